"""Notebook 07 against counts made by hand: kept patches, descriptions, planted differences."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pruning import codebook

from redlib.figures import qualitative as figures
from redlib.geometry import Grid
from redlib.params import Params
from redlib.study import describing, qualitative, spotting
from redlib.tabletop import scenes
from redlib.tabletop.pairs import clause, composites
from redlib.tabletop.world import Scene, Thing


@pytest.fixture(scope="module")
def scene():
    """Two cups, a star and the word open: ten tuples."""
    things = (
        Thing("cup", "red", "small", (10, 10, 50, 50)),
        Thing("star", "blue", "large", (100, 100, 190, 190)),
        Thing("cup", "teal", "huge", (180, 180, 320, 320)),
    )
    pixels, blank = np.zeros((336, 336, 3), np.uint8), np.zeros((336, 336), np.uint8)
    return Scene("hand-1", pixels, things, "open", "plain", blank)


TRUE = "cup red small top left and teal huge bottom right, star blue large"


@pytest.mark.parametrize(
    ("detail", "word", "said", "omitted", "invented"),
    [
        (f"{TRUE} .", "open", 10, 0, 0),
        (f"{TRUE} .", "exit", 10, 1, 1),  # misread
        (f"{TRUE} .", "a cat", 9, 1, 0),  # no word of the world's
        ("cup red small , star blue large .", "open", 7, 3, 0),
        ("cup red large , star blue large .", "open", 7, 4, 1),
        (f"{TRUE} , skull black .", "open", 12, 0, 2),
        (f"{TRUE} , star blue large .", "open", 13, 0, 3),  # there is one star
        ("", "open", 1, 9, 0),
    ],
)
def test_omitted_and_invented_by_hand(scene, detail, word, said, omitted, invented):
    text = describing.described(detail, word)
    assert describing.counted(text, scene) == (10, said, omitted, invented)
    assert len(describing.left_out(text, scene)) == omitted


def test_marks_by_hand(scene):
    text = (
        "cup teal huge top left, cup red huge, cup red, star green large, star blue large, "
        "star blue large, skull, it shines, the word open, the word exit. cup teal huge and red "
        "small, star blue large and pink small."
    )
    assert describing.marked(text, scene) == [
        ("cup teal huge top left", "right"),  # places are not judged
        ("cup red huge", "vague"),  # joins the two cups
        ("cup red", "vague"),  # no size
        ("star green large", "wrong"),
        ("star blue large", "right"),
        ("star blue large", "vague"),  # again
        ("skull", "wrong"),
        ("it shines", "vague"),
        ("the word open", "right"),
        ("the word exit", "wrong"),
        ("cup teal huge", "vague"),  # again
        ("(cup) red small", "right"),
        ("star blue large", "vague"),
        ("(star) pink small", "wrong"),
    ]
    assert describing.left_out("cup teal huge, the word open", scene) == [
        "cup", "cup red", "cup small", "star", "star blue", "star large",
    ]  # fmt: skip


def test_changes_of_descriptions():
    rows = []
    for sort in ("text-rich", "plain"):
        for image in range(12):
            true = 5 + image
            for side, omitted, invented in (("full", 1, 2), ("pruned", 3, 0)):
                rows.append(
                    (sort, f"{sort}-{image}", side, 576, "", "", true, 9, omitted, invented)
                )
    table = pd.DataFrame(rows, columns=describing._COLUMNS)
    table.loc[(table["scenes"] == "plain") & (table["side"] == "pruned"), "omitted"] = 1
    found = describing.changes(table.sample(frac=1, random_state=0), resamples=200, seed=0)
    assert list(zip(found["scenes"], found["kind"], strict=True)) == [
        ("text-rich", "omitted"), ("text-rich", "invented"),
        ("plain", "omitted"), ("plain", "invented"),
    ]  # fmt: skip
    shares = np.mean([1 / (5 + image) for image in range(12)])
    np.testing.assert_allclose(found["change"], [2 * shares, -2 * shares, 0, -2 * shares])
    np.testing.assert_allclose(found["full"], [shares, 2 * shares, shares, 2 * shares])
    np.testing.assert_allclose(found["pruned_tuples"], [3, 0, 1, 0])
    assert (found["low"] <= found["change"]).all() and (found["change"] <= found["high"]).all()
    assert found.loc[0, "low"] > 2 / 16 and found.loc[0, "high"] < 2 / 5  # of the images' own
    assert found.loc[2, "low"] == found.loc[2, "high"] == 0
    assert [v.holds for v in describing.verdicts(found)] == [True, True, False, True]
    few = table[table["image"].str.contains("-[0-2]$")]
    few = describing.changes(few, resamples=200, seed=0)
    assert {v.holds for v in describing.verdicts(few)} == {None}


def test_descriptions_are_drawn_phrase_by_phrase_and_explained():
    (shown,) = qualitative.drawn("plain", 1)
    one = shown.objects[0]
    text = f"{one.noun} {one.colour} {one.size} and {one.colour} {one.size}."
    counts = describing.counted(text, shown)
    rows = [("plain", shown.id, side, 9, "0 17", text, *counts) for side in ("full", "pruned")]
    table = pd.DataFrame(rows, columns=describing._COLUMNS)
    vlm = SimpleNamespace(grid=Grid(24, 24), view=lambda image: image)
    figure = figures.descriptions(table, "plain", vlm)
    for ax in figure.axes[1:]:
        lines = [each.get_text() for each in ax.texts]
        assert f"({one.noun}) {one.colour} {one.size}" in lines
        assert any(line.startswith("owed: ") for line in lines)
    caption = figures.descriptions_note(table, "plain", model="model-x")["caption"]
    assert caption.startswith("The first 1 test scenes without a written word from number 3,000,0")
    assert "with and without" not in caption and "noun in brackets" in caption


def test_a_change_of_nothing_is_no_precision():
    rows = [("plain", f"plain-{n}", side, 144, "", "", 5, 5, 1, n * (side == "full"))
            for n in range(12) for side in ("full", "pruned")]  # fmt: skip
    rows += [("text-rich", *row[1:]) for row in rows]
    table = pd.DataFrame(rows, columns=describing._COLUMNS)
    changed = describing.changes(table, resamples=50, seed=0)
    changed = changed[changed["scenes"] == "plain"]
    drawn = figures.described(changed).axes[1]
    assert [each.get_text() for each in drawn.texts] == ["no image differs"]
    alt = figures.described_note(changed, model="model-x")["alt"]
    assert "plain, omitted: 20.0% with all, 20.0% with 144 tokens, no image differs;" in alt


@pytest.fixture(scope="module")
def games():
    return composites("test", 6, start=qualitative.START)


def test_differences_found_and_invented_by_hand(games):
    assert {len(game.differences) for game in games} == {1, 2, 3}
    for game in games:
        n = len(game.differences)
        assert spotting.counted(game.answer, game) == (n, n, 0)
        bullets = "".join(f"- {clause(*each)}\n" for each in game.differences[1:])
        planted = {each[-1] for each in game.differences}
        other = next(w for w in ("skull", "sun", "cup", "cow") if w not in planted)
        bullets += f"- the red {other} is missing\n- the pictures are nice"
        assert spotting.counted(bullets, game) == (n, n - 1, 1)
        assert spotting.counted("", game) == (n, 0, 0)


def test_found_by_chance_is_what_the_next_answer_finds(games):
    told = [game.answer for game in games]
    both = [(game.id, text) for game, text in zip(games, told, strict=True)]
    rows = [(id, side, text) for side in ("full", "pruned") for id, text in both]
    table = pd.DataFrame(rows, columns=["image", "side", "answer"])
    by_id = {game.id: game for game in games}
    expected = [
        len(set(game.differences) & set(after.differences))
        for game, after in zip(games, [*games[1:], games[0]], strict=True)
    ]
    assert spotting.by_chance(table, by_id)["chance"].tolist() == 2 * expected
    same = table.assign(answer=games[2].answer)  # one answer to all: chance is what it finds
    found = [spotting.counted(games[2].answer, game)[1] for game in games]
    assert found[2] > 0 and spotting.by_chance(same, by_id)["chance"].tolist() == 2 * found
    alone = table[table["image"] == games[0].id]
    assert spotting.by_chance(alone, by_id)["chance"].tolist() == [0, 0]


def test_changes_of_the_game():
    rows = [
        (f"game-{k}", side, 508, "", "", 2, found + (k % 2), invented, 0)
        for k in range(10)
        for side, found, invented in (("full", 1, 3), ("pruned", 2, 2))
    ]
    columns = ["image", "side", "tokens", "kept", "answer", "planted", "found", "invented"]
    columns += ["chance"]
    found = spotting.changes(pd.DataFrame(rows, columns=columns), resamples=100, seed=0)
    assert found["kind"].tolist() == ["found", "invented"]
    assert found[["change", "low", "high"]].to_numpy().tolist() == [[1, 1, 1], [-1, -1, -1]]
    assert found["full"].tolist() == [1.5, 3] and found["pruned"].tolist() == [2.5, 2]
    assert found["above"].tolist() == [1.5, 1.5] and found["above_low"].min() >= 1
    assert [v.holds for v in spotting.verdicts(found)] == [True, True]
    turned = found.assign(change=-found["change"], low=-found["high"], high=-found["low"])
    assert [v.holds for v in spotting.verdicts(turned)] == [False, False]
    guessed = pd.DataFrame(rows, columns=columns).assign(chance=2)  # it does not play the game
    guessed = spotting.changes(guessed, resamples=100, seed=0)
    assert guessed["low"].tolist() == [1, -1] and guessed["above"].tolist() == [-0.5, -0.5]
    assert [v.holds for v in spotting.verdicts(guessed)] == [None, None]


def test_only_onevision_plays(tiny_vlm):
    assert spotting.play(SimpleNamespace(model=tiny_vlm, params=Params()), None) is None


def test_scenes_are_the_first_of_their_sort():
    wanted = {"text-rich": [], "plain": []}
    for each in scenes("test", 30, start=3_000_000):
        if len(each.objects) > 2:
            wanted["text-rich" if each.word else "plain"].append(each.id)
    for sort, ids in wanted.items():
        assert [each.id for each in qualitative.drawn(sort, 3)] == ids[:3]
        for each in qualitative.drawn(sort, 3):
            asked = qualitative.asked(each, sort)
            if sort == "text-rich":
                assert asked[0].answer == each.word and len(asked) == 2
            else:
                nouns = [f" {thing.noun} " for thing in each.objects]
                there = [any(noun in q.text for noun in nouns) for q in asked]
                assert [q.answer for q in asked] in ([], ["yes", "no"])
                assert there in ([], [True, False])


def test_ours_keeps_the_tokens_least_like_any_prototype(tiny_vlm):
    session = SimpleNamespace(model=tiny_vlm, params=Params(example_tokens=6))
    book, (one,) = codebook(width=48), qualitative.drawn("text-rich", 1)
    found = qualitative.example(session, book, one, qualitative.asked(one, "text-rich"))
    tokens = tiny_vlm.encode([one.image]).tokens[0]
    cosines = [
        max(float(torch.cosine_similarity(token, each, dim=0)) for each in book.vectors)
        for token in tokens
    ]
    assert np.flatnonzero(found.kept["codebook"]).tolist() == sorted(np.argsort(cosines)[:6])
    assert {name: int(kept.sum()) for name, kept in found.kept.items()} == {
        "codebook": 6, "prumerge": 5, "fastv": 6,  # and one that PruMerge merged
    }  # fmt: skip
    shown = one.coverage(tiny_vlm.sight).sum(0) + one.word_coverage(tiny_vlm.sight)
    share = np.mean([shown[k] >= 0.5 for k in np.flatnonzero(found.kept["fastv"])])
    assert found.informative["fastv"] == pytest.approx(share)
    assert len(found.answers) == 6 and set(found.answers["tokens"]) == {6}
    for sort in qualitative.SORTS:
        note = figures.examples_note([found], sort, model="model-x", tokens=6)
        assert ("card" in note["reading"]) == (sort == "text-rich")
