"""From a number to its answers: the page holds what the files say, and links lead to it."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import made_answers
from test_report import Page, item

from redlib import answers, report
from redlib.errors import RedlibError
from redlib.study import asking, comparison, printed
from redlib.tabletop import films, pairs, scenes
from redlib.tabletop.pictures import picture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    made_answers(tmp_path)
    return tmp_path


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def cells(path, name):
    with path.open(newline="", encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_the_page_holds_both_files_whole(run):
    packed = data_of(answers.write(run, "06", run="one"))
    assert packed["question"] == cells(run / "06.answers.csv", "question")
    for name in ("task", "image", "text", "gold"):
        column = answers.unpack(packed, packed["keys"][name])
        assert list(column) == cells(run / "06.answers.csv", name)
    assert "A. cup\nB. star" in answers.unpack(packed, packed["keys"]["text"])[3]
    assert len(packed["rules"]) == 5
    for name, (said, right) in packed["rules"].items():
        assert list(answers.unpack(packed, said)) == cells(run / "06.answers.csv", name)
        assert list(answers.unpack(packed, right)) == cells(run / "06.right.csv", name)


def test_the_page_of_answers_is_one_file_and_the_same_each_time(run):
    page = answers.write(run, "06", run="one")
    first = page.read_bytes()
    assert answers.write(run, "06", run="one").read_bytes() == first
    read = Page(first.decode())
    assert read.open == [] and read.all("b") == [] and len(read.all("script")) == 2
    links = [a["href"] for a in read.all("a")]
    assert set(links) == {"#result", "index.html", "06.answers.csv", "06.right.csv"}
    assert not [a for _, a in read.tags if "//" in a.get("src", "") + a.get("href", "")]
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["for"] for a in read.all("label")} <= set(ids)


def test_a_run_without_answers_has_no_page_and_no_links(run):
    item(run, "accuracy", notebook="06", kind="table")
    answers.write(run, "06", run="one")
    for name in ("answers", "right"):
        (run / f"06.{name}.csv").unlink()
    assert answers.read(run, "06") is None and answers.write(run, "06", run="one") is None
    assert not (run / "06.answers.html").exists()
    page = Page(report.write(run / "index.html", {"one": run}, title="T").read_text())
    assert not [a for a in page.all("a") if "answers" in a["href"]]


def test_links_name_only_what_is_there(run):
    found = answers.read(run, "06")
    assert found.link("ours@64/pope") == "06.answers.html#ours@64/pope"
    assert found.link("split:ours@64,random@64/mean") == (
        "06.answers.html#split:ours@64,random@64/mean"
    )
    assert found.parts("pope") == ["pope-random", "pope-popular"]
    assert found.parts("mean") == ["pope-random", "pope-popular", "mme", "mmb", "seed", "rwqa"]
    for nothing in ("", "ours@144/pope", "ours@64/naming", "ours@64,x@1/pope", "ours@64/pop"):
        assert found.link(nothing) == ""
    assert data_of(answers.write(run, "06", run="x"))["groups"]["pope"] == [found.parts("pope")]
    assert "video" not in data_of(answers.write(run, "06", run="x"))["groups"]


def test_rules_and_tasks_of_a_row():
    row = {"method": "ours", "tokens": "64", "task": "pope", "share": ".9"}
    assert answers.of_row(row) == "ours@64/pope"
    assert answers.of_row(row | {"setting": "base"}) == "ours@64/pope"
    row |= {"setting": "split", "against": "random"}
    assert answers.of_row(row) == "split:ours@64,split:random@64/pope"
    assert answers.of_row({"method": "ours"}) == answers.of_row({"tokens": "64"}) == ""


def test_the_five_tasks_are_those_of_the_mean():
    assert set(answers.GROUPS["mean"]) == set(asking.FIVE)
    assert all(name.startswith("pope-") for name in asking.FIVE["pope"])


def test_files_that_do_not_belong_together(run):
    said, right = run / "06.answers.csv", run / "06.right.csv"
    whole = right.read_text()
    right.write_text(whole.replace("fastv@64", "fastv@65"))
    with pytest.raises(RedlibError, match="06.right.csv: other columns.*run notebook 06 again"):
        answers.read(run, "06")
    right.unlink()
    with pytest.raises(RedlibError, match="06.right.csv: no such file"):
        answers.read(run, "06")
    for path in (said, right):
        path.write_text(whole.replace("fastv@64", "fast v"))
    with pytest.raises(RedlibError, match="column 'fast v' is no rule"):
        answers.read(run, "06")
    for path in (said, right):
        path.write_text(whole.replace("gold", "golden"))
    with pytest.raises(RedlibError, match="no column 'gold'"):
        answers.read(run, "06")


def test_sixty_rules_and_a_thousand_questions_stay_below_a_megabyte(tmp_path):
    """A fifth of them captions of their own under every rule, which is what takes the room."""
    rng = np.random.default_rng(0)
    n = 1100
    words = np.array("a cup in huge teal and medium orange , an anchor on wood .".split())
    frame = pd.DataFrame({"question": range(n), "task": "pope-random", "gold": "yes"})
    frame["image"] = [f"test-{60_000_000 + k // 3}" for k in range(n)]
    frame["text"] = [f"Is there a {k} in the image?" for k in range(n)]
    right = frame.copy()
    for k in range(60):
        captions = [" ".join(row) for row in rng.choice(words, (n // 5, 20))]
        frame[f"ours@{k}"] = [*rng.choice(["yes", "no", "a"], n - n // 5), *captions]
        right[f"ours@{k}"] = [*rng.choice(["0", "1"], n - n // 5), *["0.5"] * (n // 5)]
    frame.to_csv(tmp_path / "06.answers.csv", index=False)
    right.to_csv(tmp_path / "06.right.csv", index=False)
    assert answers.write(tmp_path, "06", run="large").stat().st_size < 1_000_000


def accuracy(folder, rows):
    item(folder, "drawn", parameters={"model": folder.name})
    columns = ["setting", "method", "tokens", "task", "accuracy"]
    frame = pd.DataFrame(rows, columns=columns).assign(low=0.1, high=0.9, n=40, images=20)
    frame["std"] = (frame["method"] == "ours").map({True: 0.0123, False: float("nan")})
    frame = frame.assign(kept=frame["tokens"], label=frame["method"].str.upper())
    frame.to_csv(folder / "accuracy.csv", index=False)


@pytest.fixture
def both(tmp_path):
    one, two = tmp_path / "tiny-llava-1.5", tmp_path / "tiny-llava-next"
    rows = [("base", "unpruned", 576, "pope", 0.8), ("base", "none", 0, "pope", 0.4)]
    rows += [("base", "ours", 64, task, 0.5) for task in ("pope", "mean")]
    one.mkdir()
    made_answers(one)
    accuracy(one, [*rows, ("base", "visionzip", 64, "pope", 0.6), ("base", "ours", 8, "pope", 0.1)])
    accuracy(two, [("split", "ours", 64, "pope", 0.7), ("base", "ours", 64, "pope", 0.3)])
    return {one.name: one, two.name: two}


def test_table_1_has_the_papers_blocks(both):
    frame = comparison.table1(both)
    assert tuple(frame.columns) == comparison.COLUMNS
    key = ["model", "setting", "tokens", "method", "column"]
    assert not frame.duplicated(key).any()
    cell = frame.set_index(key)
    assert cell.loc[("llava-1.5", "base", 64, "ours", "POPE"), "accuracy"] == 0.5
    further = cell.loc[("llava-1.5", "base", 64, "visionzip", "POPE")]
    assert (further["label"], further["further"]) == ("VISIONZIP", "yes")
    ours = cell.loc[("llava-1.5", "base", 64, "ours", "POPE")]
    assert (ours["label"], ours["further"], ours["std"]) == ("Ours", "", 0.0123)
    assert cell.loc[("llava-next", "split", 64, "ours", "POPE"), "accuracy"] == 0.7
    assert cell.loc[("llava-next", "split", 64, "ours", "POPE"), "answers"] == "split:ours@64/pope"
    assert cell.loc[("llava-next", "base", 64, "ours", "POPE"), "accuracy"] == 0.3
    assert cell.loc[("llava-1.5", "base", 576, "none", "POPE"), "answers"] == "none@0/pope"
    vision = frame[frame["model"] == "llava-onevision"]
    assert set(vision["tokens"]) == {729, 144} and set(vision["run"]) == {""}
    assert vision["accuracy"].isna().all()
    paper = printed.table("table1").set_index(["model", "setting", "tokens", "method", "column"])
    for place, row in paper.iterrows():
        assert cell.loc[place, "paper"] == row["value"]
    assert frame["paper"].notna().sum() == len(paper)
    order = frame[["model", "setting", "tokens"]].drop_duplicates()
    assert [tuple(row) for row in order.to_numpy()] == [
        ("llava-1.5", "base", 576), ("llava-1.5", "base", 144), ("llava-1.5", "base", 64),
        ("llava-next", "base", 576), ("llava-next", "base", 64),
        ("llava-next", "split", 576), ("llava-next", "split", 64), ("llava-next", "split", 32),
        ("llava-onevision", "base", 729), ("llava-onevision", "base", 144),
    ]  # fmt: skip


def test_table_1_on_a_page(both, tmp_path):
    frame = comparison.table1(both)
    path = report.write(tmp_path / "set" / "index.html", both, title="T", table1=frame)
    page = Page(path.read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert page.open == []
    assert "LLaVA-OneVision, 729 visual tokens: not run" in text
    assert "50.0 ± 1.2, 10.0 to 90.0" in text
    row = next(tag for tag, attributes in page.tags if attributes.get("class") == "further")
    assert row == "tr" and "VISIONZIP" in text
    assert "LLaVA-Next with splitting, 320 visual tokens (64 per sub-image): run tiny" in text
    answered = {a["href"] for a in page.all("a") if "06.answers.html" in a["href"]}
    assert answered == {
        f"../tiny-llava-1.5/06.answers.html#ours@64/{task}" for task in ("pope", "mean")
    }
    assert pd.read_csv(path.with_name("table-1.csv"))["paper"].notna().sum() > 100
    assert len(page.all("caption")) == len(page.all("table")) == 2
    headings = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(b <= a + 1 for a, b in zip(headings, headings[1:], strict=False))


def test_numbers_of_a_result_table_lead_to_their_answers(run):
    item(run, "shares", notebook="06", kind="table")
    rows = [("base", "ours", 64, "mean", 0.9), ("split", "ours", 64, "pope", 0.8),
            ("base", "ours", 32, "mean", 0.7)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["setting", "method", "tokens", "task", "share"])
    frame.to_csv(run / "shares.csv", index=False)
    text = report.write(run / "index.html", {"one": run}, title="T").read_text(encoding="utf-8")
    assert '<td class="number"><a href="06.answers.html#ours@64/mean">0.9</a></td>' in text
    assert '<td class="number"><a href="06.answers.html#split:ours@64/pope">0.8</a></td>' in text
    assert '<td class="number">0.7</td>' in text


def test_a_table_without_a_column_says_which(both):
    path = both["tiny-llava-next"] / "accuracy.csv"
    pd.read_csv(path).drop(columns="kept").to_csv(path, index=False)
    with pytest.raises(RedlibError, match="accuracy.csv: no column 'kept', which Table 1 reads"):
        comparison.table1(both)


def test_every_picture_is_drawn_again_from_its_id():
    (scene,) = scenes("test", 1, width=504, height=336)
    assert np.array_equal(picture(scene.id), scene.image)
    (pair,) = pairs.pairs("test", 1, "mantis")
    drawn = np.asarray(picture(pair.id))
    assert np.array_equal(drawn[:, :336], pair.scenes[0].image)
    assert np.array_equal(drawn[:, -336:], pair.scenes[1].image)
    (game,) = pairs.composites("test", 1)
    assert np.array_equal(picture(game.id), game.image)
    (film,) = films.films("test", 1)
    drawn = np.asarray(picture(film.id))
    assert np.array_equal(drawn[-336:, -336:], film.pixels[-1])
    assert np.array_equal(drawn[:336, 344:680], film.pixels[1])
    with pytest.raises(RedlibError, match="not the id of a scene"):
        picture("photo.jpg")


RUNS = [path for path in (ROOT / "figures").iterdir() if (path / "06.right.csv").is_file()]


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_committed_numbers_are_the_means_of_their_answers(folder):
    """Of Ours and the unpruned model, since of several draws one is kept; not of MME, whose score
    counts pairs too."""
    found, table = answers.read(folder, "06"), pd.read_csv(folder / "accuracy.csv")
    counted = 0
    for row in table[table["method"].isin(["ours", "unpruned"])].astype(object).itertuples():
        name = answers.rule(row.method, row.tokens, getattr(row, "setting", "base"))
        if name in found.rules and row.task not in {*answers.GROUPS, "mme"}:
            part = found.right[found.right["task"].isin(found.parts(row.task))]
            worth = pd.to_numeric(part[name]).mean()
            assert worth == pytest.approx(row.accuracy, abs=1e-4), (name, row.task)
            counted += 1
    assert counted > 10
