"""The pages in a real browser, as a reader meets them: `make test-page`.

Opens the page of the set and of every run, and their answers, in headless Chromium, from the disk
and without a network. Nothing may be said on the console; every picture and link must lead to
something; Tab alone must reach every table and every link in one; and a number of Table 1 must open
the answers that it counts, from which one more link shows a question under every rule.

Not part of `make test`: it needs Chromium with its driver, and selenium, which drives it. The pages
are those of a copy, in which runs whose notebook 06 left no answers have made-up ones, so that
every link is tried whatever is committed.
"""

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pandas as pd
import pytest
from pages import made_answers
from PIL import Image

from redlib import batch
from redlib.params import load_set

NEEDS = (
    "make test-page needs Chromium and selenium: `apt-get install chromium chromium-driver` (or "
    "what your system calls them), and `.venv/bin/pip install -e '.[page]'`"
)
ROOT = Path(__file__).parents[1]
DRIVER = shutil.which("chromedriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
try:
    from selenium import webdriver
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait
except ImportError:
    webdriver = None

SETS = ("tiny", "tiny-full")
RUNS, FULL = ([one.run_name for one in load_set(ROOT / "params" / f"{name}.yaml")] for name in SETS)
ALONE = ["tiny-llava-1.5-probe", "tiny-llava-onevision-all"]
"""Runs of no set, whose figures are committed too."""
PAGES = [*SETS, *RUNS, *FULL, *ALONE]

# Everything that Tab must reach, and what it did reach, by the element itself.
TABLE_LINKS = "[...document.querySelectorAll('table a, .scroll')]"


@pytest.fixture(scope="session")
def figures(tmp_path_factory):
    """The committed figures with answers, and their pages written again."""
    root = tmp_path_factory.mktemp("project")
    for name in ("figures", "params"):
        shutil.copytree(ROOT / name, root / name)
    (root / "notebooks").mkdir()
    for run in (*RUNS, *FULL, *ALONE):
        folder = root / "figures" / run
        if not (folder / "06.answers.csv").exists():
            made_answers(folder)
    before = os.environ.get("REDLIB_ROOT")
    os.environ["REDLIB_ROOT"] = str(root)
    try:
        for name in (*SETS, *ALONE):
            batch.draw_pages(root / "params" / f"{name}.yaml")
    finally:
        os.environ.pop("REDLIB_ROOT") if before is None else os.environ.update(REDLIB_ROOT=before)
    return root / "figures"


@pytest.fixture(scope="session")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # no-sandbox: a container's root may not make namespaces; the pages are our own files.
    # flooding protection drops what goes beyond 200 fragments in ten seconds, without a word.
    # What a fresh profile asks the network or its user comes between the page and its keys.
    for flag in (
        "--headless=new",
        "--disable-ipc-flooding-protection",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    found.set_window_size(1280, 900)
    found.set_script_timeout(120)
    yield found
    found.quit()


def visit(browser, path, fragment=""):
    browser.get("about:blank")  # else a new fragment would not load the page again
    browser.get_log("browser")
    browser.get(path.as_uri() + fragment)
    # On a busy machine the driver was seen to come back with a third of the page not yet parsed.
    WebDriverWait(browser, 60).until(
        lambda page: page.execute_script("return document.readyState") == "complete"
    )


def quiet(browser):
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", PAGES)
def test_pictures_load_and_nothing_complains(browser, figures, name):
    visit(browser, figures / name / "index.html")
    broken = browser.execute_async_script(
        """const done = arguments[0];
        Promise.all([...document.images].map((image) => image.decode().then(() => null,
          () => image.src))).then((all) => done([all.length, all.filter((src) => src),
          [...document.images].filter((image) => !image.naturalWidth).map((i) => i.src)]));"""
    )
    count, failed, empty = broken
    # a set's page shows some pictures of each of its runs, a run's page all of its own
    least = len(list((figures / name).glob("*.png"))) or 30
    assert count >= least and failed == [] and empty == []
    quiet(browser)


FOLLOW = """const [fragments, done] = arguments, found = {};
(async () => { for (const fragment of fragments) {
  const seen = new Promise((go) => addEventListener("hashchange", go, {once: true}));
  location.hash = fragment;
  await seen;
  found[fragment] = document.querySelectorAll("#shown tbody tr").length;
} done(found); })();"""
"""Goes to every fragment and counts the rows that are then shown."""

EMPTY = """return arguments[0].filter((fragment) => {
  const [rules, tasks] = decodeURIComponent(fragment).split("/").map((part) => part.split(","));
  if (!rules.every((name) => columnsOf(name).length)) return true;
  if (!tasks.every((task) => data.groups[task])) return true;
  const parts = tasks.flatMap((task) => data.groups[task].flat());
  const right = answers(columnsOf(rules[0])[0])[1];
  return !keys.task.some((task, k) => parts.includes(task) && right[k] !== "");
});"""
"""The fragments that name no answer, by the data of the page."""

FOLLOWED = 40  # fragments of each page of answers; to show all of them would take an hour


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(browser, figures, name):
    visit(browser, figures / name / "index.html")
    links = set(browser.execute_script("return [...document.links].map((link) => link.href)"))
    own = browser.current_url
    ids = set(
        browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    )
    answers = []
    for link in links:
        url, fragment = urldefrag(link)
        path = Path(unquote(url.removeprefix("file://")))
        assert path.is_file(), link
        if url == own:
            assert unquote(fragment) in ids, link
        elif path.name.endswith(".answers.html") and fragment:
            answers.append((path, fragment))
        else:  # the ledger's, to what another run has drawn
            assert not fragment or f'id="{unquote(fragment)}"' in path.read_text("utf-8"), link
    assert len(answers) > 50
    for path in {path for path, _ in answers}:
        fragments = sorted(fragment for of, fragment in answers if of == path)
        visit(browser, path)
        assert browser.execute_script(EMPTY, fragments) == []
        followed = fragments[:: -(-len(fragments) // FOLLOWED)]
        rows = {}
        for at in range(0, len(followed), 10):  # a table may have thousands of rows
            rows |= browser.execute_async_script(FOLLOW, followed[at : at + 10])
        assert set(rows) == set(followed)
        assert [fragment for fragment, count in rows.items() if not count] == []
        quiet(browser)


@pytest.mark.parametrize("name", PAGES)
def test_tab_reaches_every_table_and_every_link_in_one(browser, figures, name):
    visit(browser, figures / name / "index.html")
    walk(browser)


def walk(browser):
    """Tab through the page until it begins again; every table and link in one must have had its
    turn, where it can be seen, and so must what folds a table out."""
    folds = "document.querySelectorAll('details:has(table)')"
    browser.execute_script(f"for (const fold of {folds}) fold.open = true;")
    browser.execute_script(
        f"""window.wanted = new Set({TABLE_LINKS}); window.hidden = [];
        for (const fold of {folds}) window.wanted.add(fold.querySelector("summary"));
        document.addEventListener("focusin", (event) => {{
          window.wanted.delete(event.target);
          const box = event.target.getBoundingClientRect();
          if (!box.width || !box.height) window.hidden.push(event.target.outerHTML);
        }});"""
    )
    focusable = browser.execute_script(
        "return document.querySelectorAll('a, summary, select, input, [tabindex=\"0\"]').length"
    )
    before = browser.execute_script("return window.wanted.size")
    assert before > 1
    for _ in range(0, 2 * (focusable + 20), 20):  # twice: a busy browser may miss a key
        webdriver.ActionChains(browser, duration=0).send_keys(Keys.TAB * 20).perform()
        if not browser.execute_script("return window.wanted.size"):
            break
    left = browser.execute_script("return [...window.wanted].map((e) => e.outerHTML.slice(0, 99))")
    assert left == []
    assert browser.execute_script("return window.hidden") == []


@pytest.mark.parametrize("name", PAGES)
def test_two_clicks_from_a_number_to_a_question_under_every_rule(
    browser, figures, name, tmp_path, monkeypatch
):
    visit(browser, figures / name / "index.html")
    number = browser.find_elements("css selector", "[aria-labelledby='table-1'] td a")[-1]
    number.send_keys(Keys.ENTER)
    rows = "#shown tbody tr"
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements("css selector", rows))
    assert browser.current_url.split("#")[0].endswith("/06.answers.html")
    assert "Mean worth in percent" in browser.find_element("id", "shown").text
    browser.find_element("css selector", "#shown tbody th a").send_keys(Keys.ENTER)
    title = browser.find_element("id", "result")
    WebDriverWait(browser, 20).until(lambda _: title.text.startswith("Question "))
    WebDriverWait(browser, 20).until(lambda _: browser.switch_to.active_element == title)
    assert len(browser.find_elements("css selector", "#shown tbody tr")) > 3
    line = browser.find_element("css selector", "pre code").text
    monkeypatch.chdir(tmp_path)
    exec(line, {})
    (drawn,) = tmp_path.iterdir()
    assert Image.open(drawn).size[0] >= 336
    quiet(browser)


@pytest.mark.parametrize(("name", "notebook"), [("ablation-table", "05"), ("controls-table", "08")])
def test_a_codebooks_number_leads_to_its_answers(browser, figures, name, notebook):
    folder = figures / RUNS[0]
    visit(browser, folder / "index.html")
    item = browser.find_element("xpath", f"//article[h4[contains(@id, '{name}')]]")
    item.find_element("xpath", ".//summary[contains(., 'row by row')]").send_keys(Keys.ENTER)
    numbers = item.find_elements("css selector", "td a")
    assert len(numbers) == len(pd.read_csv(folder / f"{name}.csv"))
    numbers[0].send_keys(Keys.ENTER)
    rows = "#shown tbody tr"
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements("css selector", rows))
    url, fragment = urldefrag(browser.current_url)
    assert url.endswith(f"/{notebook}.answers.html")
    rule = unquote(fragment).split("/")[0]
    right = pd.read_csv(folder / f"{notebook}.right.csv")
    right["task"] = right["task"].str.replace(r"^pope-.*", "pope", regex=True)
    expected = 100 * right.groupby("task")[rule].mean().mean()
    told = browser.find_element("id", "shown").text
    assert f"{rule}: mean {expected:.1f}." in told and "(unpruned) reach" in told
    quiet(browser)


@pytest.mark.parametrize(("run", "name"), [
    (RUNS[1], "captions-pruned"), (RUNS[2], "spot-the-difference"),
])  # fmt: skip
def test_a_count_of_a_figure_leads_to_what_was_said(browser, figures, run, name):
    """From a row of Figures 13 and 14 to the descriptions or games that it counts; their mean is
    the number of the row."""
    frame = pd.read_csv(figures / run / f"{name}.csv")
    visit(browser, figures / run / "index.html")
    item = browser.find_element("xpath", f"//article[h4[contains(@id, '{name}')]]")
    item.find_element("xpath", ".//summary[contains(., 'row by row')]").send_keys(Keys.ENTER)
    numbers = item.find_elements("css selector", "td a")
    assert len(numbers) == len(frame)
    numbers[-1].send_keys(Keys.ENTER)
    rows = "#shown tbody tr"
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements("css selector", rows))
    url, fragment = urldefrag(browser.current_url)
    last = frame.iloc[-1]
    assert url.endswith("/07.answers.html") and unquote(fragment) == last["answers"]
    assert len(browser.find_elements("css selector", rows)) == last["images"]
    told = browser.find_element("id", "shown").text
    task, (full, few) = last["answers"].split("/")[1], last["answers"].split("/")[0].split(",")
    for rule, mean in ((full, last["full"]), (few, last["pruned"])):
        assert f"{rule}: {task} {100 * mean:.1f}" in told
    assert not browser.find_element("id", "wrong").is_displayed(), "nothing is right or wrong here"
    browser.find_element("css selector", "#shown tbody th a").send_keys(Keys.ENTER)
    title = browser.find_element("id", "result")
    WebDriverWait(browser, 20).until(lambda _: title.text.startswith("Question "))
    quiet(browser)


def test_the_number_above_the_answers_is_their_mean(browser, figures):
    """Of the five tasks, each the mean over its questions, computed from the file by hand."""
    folder = figures / RUNS[0]
    right = pd.read_csv(folder / "06.right.csv")
    right["task"] = right["task"].str.replace(r"^pope-.*", "pope", regex=True)
    five = right[right["task"].isin(["pope", "mme", "mmb", "seed", "rwqa"])]
    expected = 100 * five.groupby("task")["ours@64"].mean().mean()
    visit(browser, folder / "06.answers.html", "#ours@64/mean")
    assert f"ours@64: mean {expected:.1f}." in browser.find_element("id", "shown").text
    assert len(browser.find_elements("css selector", "#shown tbody tr")) == len(five)
    draws = [name for name in right if name.split("#")[0] == "random@64"]
    expected = 100 * five.groupby("task")[draws].mean().mean().mean()
    visit(browser, folder / "06.answers.html", "#random@64/mean")
    told = f"the {len(draws)} draws of random@64: mean {expected:.1f}."
    assert len(draws) == 3 and told in browser.find_element("id", "shown").text


def test_the_answers_page_by_its_own_controls(browser, figures):
    page = figures / RUNS[0] / "06.answers.html"
    visit(browser, page)
    Select(browser.find_element("id", "task")).select_by_visible_text("seed")
    Select(browser.find_element("id", "rule")).select_by_visible_text("random@64")
    title = browser.find_element("id", "result")
    WebDriverWait(browser, 20).until(lambda _: title.text == "random@64, seed")
    every = len(browser.find_elements("css selector", "#shown tbody tr"))
    browser.find_element("id", "wrong").click()
    wrong = browser.find_elements("css selector", "#shown tbody tr")
    assert 0 < len(wrong) < every
    # image, question, right answer, and what the first draw said and is worth
    assert all(row.find_elements("tag name", "td")[4].text != "right" for row in wrong)
    walk(browser)
    visit(browser, page, "#nobody@3/seed")
    assert browser.find_element("id", "result").text == "Nothing here"
    quiet(browser)


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_the_window(browser, figures, width):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
    try:
        for path in ("tiny/index.html", f"{RUNS[0]}/index.html", f"{RUNS[0]}/06.answers.html"):
            visit(browser, figures / path)
            inside = browser.execute_script("return document.documentElement.scrollWidth")
            assert inside <= width, path
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


if __name__ == "__main__":
    if not (webdriver and DRIVER and CHROMIUM):
        sys.exit(NEEDS)
    sys.exit(pytest.main([__file__, "-p", "no:cacheprovider"]))
