"""Descriptions and games as answers: what a reader opens is what the figures count."""

from types import SimpleNamespace

import pandas as pd
import pytest

from redlib import answers, report
from redlib.bench import captions
from redlib.study import describing, opening, qualitative, scoring, spotting
from redlib.study.ledger import ledger
from redlib.tabletop.pairs import composites, differences_named
from redlib.tabletop.questions import DETAIL


@pytest.fixture(scope="module")
def table():
    """One scene of each sort: fully described with all tokens, by one wrong object with fewer."""
    rows = []
    for sort, tokens in (("text-rich", 280), ("plain", 144)):
        (scene,) = qualitative.drawn(sort, 1)
        whole = ", ".join(f"a {o.size} {o.colour} {o.noun}" for o in scene.objects)
        texts = describing.described(whole, scene.word or ""), "a huge purple piano"
        for side, kept, text in zip(describing.SIDES, (576, tokens), texts, strict=True):
            counts = describing.counted(text, scene)
            rows.append((sort, scene.id, side, kept, "", text, *counts))
    return pd.DataFrame(rows, columns=describing._COLUMNS)


@pytest.fixture(scope="module")
def games():
    (game,) = composites("test", 1, start=qualitative.START)
    told = {"full": game.answer, "pruned": "nothing differs"}
    rows = [
        (game.id, side, kept, "", told[side], *spotting.counted(told[side], game))
        for side, kept in (("full", 729), ("pruned", 508))
    ]
    columns = ["image", "side", "tokens", "kept", "answer", "planted", *spotting.KINDS]
    return spotting.by_chance(pd.DataFrame(rows, columns=columns), {game.id: game})


def _left(tmp_path, rows):
    session = SimpleNamespace(figures=tmp_path, notebook="07")
    assert scoring.leave(session, rows) == ["07.answers.csv", "07.right.csv"]
    return answers.read(tmp_path, "07")


def test_a_description_is_an_answer_for_either_count(tmp_path, table):
    found = _left(tmp_path, opening.answers(table, None))
    assert found.rules == ["unpruned@576", "ours@280", "ours@144"]
    assert found.said["task"].tolist() == [
        "text-rich-omitted", "plain-omitted", "text-rich-invented", "plain-invented",
    ]  # fmt: skip
    text, plain = found.said["text"][:2]
    assert plain == DETAIL and text == f"{DETAIL} What word is written in the image?"
    right = found.right.set_index("task")
    assert right.loc["plain-omitted", "unpruned@576"] == "0"
    assert right.loc["plain-omitted", "ours@144"] == "1", "the one object named is none of these"
    assert right.loc["plain-omitted", "ours@280"] == "", "not asked"
    for sort in ("text-rich", "plain"):
        (scene,) = qualitative.drawn(sort, 1)
        true = 3 * len(scene.objects) + bool(scene.word)
        (gold,) = found.said.loc[found.said["task"] == f"{sort}-omitted", "gold"]
        assert len(gold.split(", ")) == true
        for noun in (o.noun for o in scene.objects):
            assert noun in gold.split(", ")
        invented = float(
            right.loc[f"{sort}-invented", "ours@280 ours@144".split()[sort == "plain"]]
        )
        said = sum(captions.tuples("a huge purple piano").values())
        assert invented == pytest.approx(said / true, rel=1e-3)


def test_a_game_is_an_answer_for_either_count(tmp_path, table, games):
    found = _left(tmp_path, opening.answers(table, games))
    said = found.said.set_index("task").loc["game-found"]
    planted = set(composites("test", 1, start=qualitative.START)[0].differences)
    assert differences_named(said["gold"]) == planted == differences_named(said["unpruned@729"])
    worth = found.right.set_index("task").loc["game-found"]
    assert worth["unpruned@729"] == str(len(planted)) and worth["ours@508"] == "0"
    assert said["unpruned@576"] == "", "a game is not asked of the descriptions' rules"


def test_rows_of_the_figures_lead_there_and_so_do_the_claims(tmp_path, table, games):
    found = _left(tmp_path, opening.answers(table, games))
    draws = {"resamples": 20, "seed": 0}
    changed = opening.described(table, describing.changes(table, **draws))
    spotted = opening.played(games, spotting.changes(games, **draws))
    assert changed["answers"].tolist() == [
        "unpruned@576,ours@280/text-rich-omitted", "unpruned@576,ours@280/text-rich-invented",
        "unpruned@576,ours@144/plain-omitted", "unpruned@576,ours@144/plain-invented",
    ]  # fmt: skip
    assert spotted["answers"].tolist() == [
        "unpruned@729,ours@508/game-found", "unpruned@729,ours@508/game-invented",
    ]  # fmt: skip
    for row in [*changed.itertuples(), *spotted.itertuples()]:
        rules, task = row.answers.split("/")
        mine = found.right.set_index("task").loc[task]
        for rule, number in zip(rules.split(","), (row.full, row.pruned), strict=True):
            assert float(mine[rule]) == pytest.approx(number, rel=1e-3), (rule, task)
    page = answers.write(tmp_path, "07", run="one").read_text(encoding="utf-8")
    assert '"counted":true' in page and "tuples of the scene that it owes" in page
    changed.to_csv(tmp_path / "captions-pruned.csv", index=False)
    spotted.to_csv(tmp_path / "spot-the-difference.csv", index=False)
    note = (
        '{"name": "captions-pruned", "notebook": "07", "order": 1, "kind": "figure", "title": "t",'
        '"caption": "c", "reading": "r", "alt": "a", "paper_item": "", "versions": {}, '
        '"width": 1, "height": 1, "parameters": {"model": "tiny-llava-next"}}'
    )
    (tmp_path / "captions-pruned.json").write_text(note)
    (tmp_path / "captions-pruned.png").write_bytes(b"")
    text = report.write(tmp_path / "index.html", {"one": tmp_path}, title="T").read_text("utf-8")
    assert 'href="07.answers.html#unpruned@576,ours@144/plain-invented"' in text
    assert '<th scope="col">answers</th>' not in text
    named = ledger({"one": tmp_path}).set_index("id")["answers"]
    assert named["captions-invented"] == "unpruned@576,ours@144/plain-invented"
    both = "unpruned@576,ours@280/text-rich-omitted,text-rich-invented"
    assert named["captions-text-rich"] == both and found.link(both).endswith(both)
    changed.assign(answers="").to_csv(tmp_path / "captions-pruned.csv", index=False)
    assert not ledger({"one": tmp_path}).set_index("id").loc["captions-text-rich", "answers"]


def test_the_address_of_a_game_follows_the_statement(tmp_path, games):
    """The claims about the game are statements, which say no rule."""
    spotted = opening.played(games, spotting.changes(games, resamples=20, seed=0))
    spotted.to_csv(tmp_path / "spot-the-difference.csv", index=False)
    claims = pd.DataFrame([verdict.note for verdict in spotting.verdicts(spotted)])
    claims.assign(notebook="07").to_json(tmp_path / "07.claims.json", orient="records")
    note = (
        '{"name": "game", "notebook": "07", "order": 1, "kind": "figure", "title": "t",'
        '"caption": "c", "reading": "r", "alt": "a", "paper_item": "", "versions": {}, '
        '"width": 1, "height": 1, "parameters": {"model": "tiny-llava-onevision"}}'
    )
    (tmp_path / "game.json").write_text(note)
    named = ledger({"one": tmp_path}).set_index("id")["answers"]
    assert named["differences-found"] == "unpruned@729,ours@508/game-found"
    assert named["differences-invented"] == "unpruned@729,ours@508/game-invented"
