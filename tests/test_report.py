"""The page: everything is on it, it is accessible, and it is the same each time."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from pages import made_answers
from PIL import Image

from redlib import answers, report
from redlib.errors import RedlibError
from redlib.store import write_json

NOTE = {
    "caption": "What is <drawn>.",
    "reading": "Up is more; a flat line would falsify it.",
    "alt": 'The "line" rises.',
    "paper_item": "Figure 4",
    "parameters": {"model": "tiny", "seed": 0, "publish": True, "image": None, "batch": 1},
    "versions": {"python": "3.11.7"},
}


class Page(HTMLParser):
    """What the tests ask of a page: its tags with attributes, its headings and its ids."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.text = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def item(folder, name, notebook="04", order=1, kind="figure", rows=2, **more):
    folder.mkdir(parents=True, exist_ok=True)
    note = NOTE | {"name": name, "kind": kind, "notebook": notebook, "order": order}
    note |= {"title": f"Title of {name}"} | more
    if kind == "figure":
        note |= {"width": 600, "height": 400}
        (folder / f"{name}.png").write_bytes(b"png")
    frame = pd.DataFrame({"method": ["ours"] * rows, "score": [0.5] * rows})
    frame.to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / f"{name}.json", note)


@pytest.fixture
def folders(tmp_path):
    one, two = tmp_path / "figures" / "one", tmp_path / "figures" / "two"
    item(one, "second", order=2)
    item(one, "first", order=1)
    item(one, "later", notebook="06", kind="table", rows=70)
    item(two, "first", paper_item="")
    claim = {"statement": "A < B", "holds": False, "evidence": "n = 3", "paper_item": ""}
    write_json(one / "04.claims.json", [claim | {"notebook": "04"}])
    return {"one": one, "two": two}


def _ids(page):
    return {a["id"] for _, a in page.tags if "id" in a}


def unresolved(path):
    """Links and pictures of a page that lead nowhere: to no file, or to no part of one."""
    page = Page(path.read_text(encoding="utf-8"))
    parts = cache(lambda file: _ids(Page(file.read_text(encoding="utf-8"))))
    lost, read = [], cache(answers.read)
    for target in [a.get("href", a.get("src")) for a in (*page.all("a"), *page.all("img"))]:
        name, _, fragment = target.partition("#")
        file = path.parent / unquote(name) if name else path
        if not file.is_file():
            lost.append(target)
        elif file.name.endswith(".answers.html") and fragment:
            if not read(file.parent, file.name[:2]).link(unquote(fragment)):
                lost.append(target)
        elif fragment and unquote(fragment) not in parts(file):
            lost.append(target)
    return lost


@pytest.fixture
def page(folders, tmp_path):
    path = report.write(tmp_path / "figures" / "set" / "index.html", folders, title="A set")
    text = path.read_text(encoding="utf-8")
    assert path.read_bytes() == text.encode()
    return Page(text)


def test_every_item_is_there_in_order(page):
    pictures = [a["src"] for a in page.all("img")]
    assert pictures == ["../one/first.png", "../one/second.png", "../two/first.png"]
    links = [a["href"] for a in page.all("a") if a["href"].endswith(".csv")]
    assert links == [
        "../one/first.csv",
        "../one/second.csv",
        "../one/later.csv",
        "../two/first.csv",
    ]
    text = "".join(page.text)
    for words in ("What is <drawn>.", "How to read it.", "a flat line would", "3.11.7", "null"):
        assert words in text
    assert "does not hold" in text
    assert "A < B" in text


def test_the_contents_of_several_runs_are_folded(page, folders):
    text = "".join(page.text)
    assert text.count("Its 2 figures") == 1 and text.count("Its 1 table") == 1  # notebooks of one
    assert text.count("Its 1 figure") == 1
    alone = report.write(folders["one"] / "index.html", {"one": folders["one"]}, title="T")
    assert ">Its " not in alone.read_text(encoding="utf-8").partition("<main")[0]


def test_a_run_that_drew_nothing_says_so(tmp_path):
    page = report.write(tmp_path / "index.html", {"one": tmp_path}, title="T")
    assert "<p>0 figures and 0 tables from 1 run: one." in page.read_text(encoding="utf-8")


def test_pictures_say_what_they_show(page):
    assert len(page.all("img")) == 3
    for attributes in page.all("img"):
        assert attributes["alt"] == 'The "line" rises.'
        assert (attributes["width"], attributes["height"]) == ("600", "400")


def test_links_lead_somewhere(page, tmp_path):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        target = attributes["href"]
        if target.startswith("#"):
            assert target[1:] in ids
        else:
            assert (tmp_path / "figures" / "set" / target).exists()
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert any("aria-labelledby" in attributes for _, attributes in page.tags)
    assert page.all("a")[0] == {"class": "skip", "href": "#results"}


COMMITTED = sorted((Path(__file__).parents[1] / "figures").glob("*/index.html"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_every_link_and_picture_of_the_committed_pages_is_there(path):
    assert unresolved(path) == []
    for attributes in Page(path.read_text(encoding="utf-8")).all("img"):
        with Image.open(path.parent / attributes["src"]) as picture:
            assert picture.size == (int(attributes["width"]), int(attributes["height"]))


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    made_answers(tmp_path)
    answers.write(tmp_path, "06", run="x")
    page = tmp_path / "index.html"
    (tmp_path / "second.html").write_text('<p id="z">x</p>')
    for good in ("index.html", "#x", "second.html#z", "06.answers.html#ours@64/mean"):
        page.write_text(f'<p id="x"><a href="{good}">x</a></p>')
        assert unresolved(page) == []
    for bad in ("other.html", "#y", "#z", "second.html#x", "06.answers.html#ours@65/mean"):
        page.write_text(f'<p id="x"><a href="{bad}">x</a></p>')
        assert unresolved(page) == [bad]


def test_headings_never_skip_a_level(page):
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_landmarks_language_and_no_foreign_files(page):
    assert page.open == []
    assert page.all("html") == [{"lang": "en"}]
    for tag in ("header", "nav", "main", "footer"):
        assert len(page.all(tag)) == 1
    assert page.all("script") == []
    sources = [a.get("src", "") + a.get("href", "") for _, a in page.tags]
    assert not [s for s in sources if "//" in s]
    style = "".join(page.text)
    assert "prefers-color-scheme: dark" in style
    assert "@import" not in style
    assert "url(" not in style


def test_tables_are_tables(page):
    heads = page.all("th")
    assert all(h["scope"] in ("col", "row") for h in heads)
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert "first 60 of 70 rows" in "".join(page.text)
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" for a in regions)


def test_the_same_notes_give_the_same_bytes(folders, tmp_path):
    path = tmp_path / "a" / "index.html"
    first = report.write(path, folders, title="A set").read_bytes()
    assert report.write(path, folders, title="A set").read_bytes() == first


def test_a_page_of_one_run_links_to_its_own_folder(folders):
    page = Page(report.write(folders["two"] / "index.html", {"two": folders["two"]}, title="T")
                .read_text(encoding="utf-8"))  # fmt: skip
    assert [a["src"] for a in page.all("img")] == ["first.png"]


def test_a_table_cell_is_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('name,n,s\n"<b>&""x""",1,\nNA,-2e-3,nan\n')
    table = report.table(path, caption="C & D")
    assert '<th scope="row">&lt;b&gt;&amp;&quot;x&quot;</th><td class="number">1</td>' in table
    assert '<th scope="row">NA</th><td class="number">-2e-3</td>' in table
    assert "<caption>C &amp; D</caption>" in table


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("note.json", "{}"), ("note.json", "[1]"), ("04.claims.json", "[{}]"),
        ("04.claims.json", "{}"), ("note.json", '{"parameters": 3}'),
    ],
)  # fmt: skip
def test_notes_of_another_shape_are_damaged(folders, name, text):
    (folders["one"] / name).write_text(text)
    with pytest.raises(RedlibError, match=f"{name}: damaged; delete it and run again"):
        report.write(folders["one"] / "index.html", folders, title="t")


def test_damaged_folders(tmp_path):
    item(tmp_path, "x", kind="table")
    (tmp_path / "x.csv").unlink()
    with pytest.raises(RedlibError, match="no such file; run its notebook again"):
        report.write(tmp_path / "index.html", {"x": tmp_path}, title="T")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RedlibError, match="damaged"):
        report.write(tmp_path / "index.html", {"x": tmp_path}, title="T")
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("ending", [".png", ".csv"])
def test_a_lost_figure_is_named(folders, ending):
    (folders["two"] / f"first{ending}").unlink()
    with pytest.raises(RedlibError, match=f"first{ending}: no such file; run its notebook again"):
        report.write(folders["one"] / "index.html", folders, title="t")
    assert not (folders["one"] / "index.html").exists()
