"""Captions by their scene graphs: tuples and F1 of sentences written by hand."""

from collections import Counter

import numpy as np
import pytest

from redlib.bench.captions import Phrase, counts, f1, phrases, truth, tuples
from redlib.tabletop import scenes
from redlib.tabletop.world import Scene, Thing


@pytest.fixture(scope="module")
def scene():
    """Two cups, a star and the word open, on a plain and wood ground."""
    things = (
        Thing("cup", "red", "small", (10, 10, 50, 50)),
        Thing("star", "blue", "large", (100, 100, 190, 190)),
        Thing("cup", "teal", "huge", (180, 180, 320, 320)),
    )
    blank = np.zeros((336, 336), np.uint8)
    return Scene("hand-1", np.zeros((336, 336, 3), np.uint8), things, "open", "plain", blank,
                 "clear", "wood")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        ("a small red cup on a plain ground.", ["cup", "cup red", "cup small"]),
        (
            "A small red cup, an anchor and the word open on a plain and wood ground.",
            ["cup", "cup red", "cup small", "anchor", "word open"],
        ),
        ("a cup and a cup on a wood ground", ["cup", "cup"]),
        ("a red cup, a red cup", ["cup", "cup", "cup red", "cup red"]),
        ("a small red cup beside a star", ["star", "star red", "star small"]),  # no comma
        ("a red blue cup", ["cup", "cup red"]),
        ("A red cup. A large star.", ["cup", "cup red", "star", "star large"]),
        ("a red thing", []),
        ("the word on a plain ground", []),
        ("the word star open", ["word open"]),
        ("cup red small top left, star blue large bottom.",
         ["cup", "cup red", "cup small", "star", "star blue", "star large"]),
        ("a cup in small red and large blue, an anchor in huge teal on a wood ground.",
         ["cup", "cup red", "cup small", "cup", "cup blue", "cup large",
          "anchor", "anchor teal", "anchor huge"]),
        ("cup red small left and blue large top right and pink huge.",
         ["cup", "cup red", "cup small", "cup", "cup blue", "cup large",
          "cup", "cup pink", "cup huge"]),
        ("a cup and red, blue and green", ["cup", "cup", "cup red"]),  # a comma ends the noun
        ("the word open and red", ["word open"]),
        ("red and a cup and top left", ["cup"]),
        ("it is a picture", []),
        ("", []),
        (" , and . ", []),
    ],
)  # fmt: skip
def test_tuples_of_sentences_written_by_hand(text, graph):
    assert tuples(text) == Counter(tuple(words.split()) for words in graph)


def test_phrases_keep_the_words_and_their_tuples():
    text = "A cup in small red and large blue on wood, the word open. It shines ."
    assert phrases(text) == [
        Phrase("a cup in small red", (("cup",), ("cup", "red"), ("cup", "small"))),
        Phrase("large blue on wood", (("cup",), ("cup", "blue"), ("cup", "large"))),
        Phrase("the word open", (("word", "open"),)),
        Phrase("it shines", ()),
    ]


WHOLE = "a small red cup, a large blue star, a huge teal cup and the word open on a plain and wood"


@pytest.mark.parametrize(
    ("text", "hits", "said"),
    [  # of 10 true tuples: three of each object and the word
        (f"{WHOLE} ground.", 10, 10),
        ("the word open, a huge teal cup, a large blue star and a small red cup on wood", 10, 10),
        ("a small red cup on a plain ground.", 3, 3),  # omissions
        ("a cup, a star, a cup", 3, 3),
        (f"{WHOLE}, a black skull", 10, 12),  # inventions
        ("a huge red cup, a large blue star, a small teal cup, the word open", 10, 10),  # no pairs
        ("a small green cup, a large blue star", 5, 6),  # a wrong colour
        ("a small red cup, a small red cup, a small red cup", 4, 9),  # there are two cups, one red
        ("the word exit and the word open", 1, 2),
        ("a black skull on a wood ground.", 0, 2),
        ("", 0, 0),
    ],
)
def test_hits_and_f1_of_sentences_written_by_hand(scene, text, hits, said):
    assert counts(text, scene) == counts(text, scene, "flickr") == (hits, said, 10)
    precision, recall = hits / max(said, 1), hits / 10
    literal = 2 * precision * recall / (precision + recall) if hits else 0
    assert f1(hits, said, 10) == pytest.approx(literal)


def test_a_detailed_description_owes_no_word(scene):
    assert truth(scene, "nocaps")["word", "open"] == 1
    assert truth(scene, "detail").total() == 9 and ("word", "open") not in truth(scene, "detail")
    said = "cup red small top left, star blue large, cup teal huge bottom right."
    assert counts(said, scene, "detail") == (9, 9, 9)
    assert counts(said, scene, "nocaps") == (9, 9, 10)
    assert counts(f"{said} the word open", scene, "detail") == (9, 10, 9)
    assert counts("cup red small top left, star green large", scene, "detail") == (5, 6, 9)


def test_f1_by_hand():
    assert f1(10, 10, 10) == 1
    assert f1(3, 3, 9) == pytest.approx(0.5)
    assert f1(0, 0, 9) == f1(0, 4, 9) == f1(0, 0, 0) == 0


def test_the_true_sentences_of_the_world_score_one():
    """Whichever way the objects are given, with two grounds, withheld pairs and repeated things."""
    rng = np.random.default_rng(0)
    found = [
        *scenes("calibration", 15, start=6_000),
        *scenes("calibration", 10, start=6_100, level="crowded"),
        *scenes("calibration", 5, start=6_200, withheld=True),
    ]
    assert any(s.second for s in found) and any(s.word for s in found)
    assert any(max(truth(s, "flickr").values()) > 1 for s in found)
    for s in found:
        order = rng.permutation(len(s.objects))
        for text, task in (
            (s.caption, "nocaps"), (s.sentence(order), "flickr"),
            (s.inventory, "detail"), (s.description(order), "detail"),
        ):  # fmt: skip
            hits, said, true = counts(text, s, task)
            assert hits == said == true == 3 * len(s.objects) + bool(s.word and task != "detail")
