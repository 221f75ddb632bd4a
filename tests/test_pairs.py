"""Pairs and composites against what their pixels, masks and objects say."""

import re
from collections import Counter

import numpy as np
import pytest

from redlib.errors import RedlibError
from redlib.tabletop import world
from redlib.tabletop.pairs import (
    CHANGES,
    FRAMES,
    KINDS,
    NONE,
    SPOT_THE_DIFFERENCE,
    busy_pairs,
    composites,
    differences_named,
    pairs,
    redraw,
)
from redlib.tabletop.questions import LETTERS, NUMBERS
from redlib.tabletop.world import COLOURS, GROUNDS, NOUNS, SIZES, SPLITS, WITHHELD, WORDS

ONE_CHANGE = ("moved", "new", "missing", "recoloured")


@pytest.fixture(scope="module")
def mantis():
    return pairs("calibration", 80, "mantis", start=40_000)


@pytest.fixture(scope="module")
def muir():
    return pairs("calibration", 192, "muir", start=9_600)


@pytest.fixture(scope="module")
def busy():
    return busy_pairs("calibration", 80, start=500)


@pytest.fixture(scope="module")
def games():
    return composites("calibration", 90)


def count(scene):
    return len(set(np.unique(scene.instance).tolist()) - {0, 255})


def nouns(scene):
    return {thing.noun for thing in scene.objects}


def colour(scene, noun):
    """The colour whose shade the one object of that noun is painted in; its lines have none."""
    (k,) = [i for i, thing in enumerate(scene.objects, start=1) if thing.noun == noun]
    paints = np.unique(scene.pixels[scene.instance == k], axis=0).astype(int)
    (found,) = [c for c in COLOURS if (np.abs(paints - COLOURS[c]).max(1) <= 12).any()]
    return found


def middle(scene, noun):
    (k,) = [i for i, thing in enumerate(scene.objects, start=1) if thing.noun == noun]
    ys, xs = np.nonzero(scene.instance == k)
    return np.array([xs.mean(), ys.mean()])


def direction(dx, dy):
    assert min(abs(dx), abs(dy)) < 1e-6 and max(abs(dx), abs(dy)) >= 40
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "up" if dy < 0 else "down"


def options(pair):
    return {line[0].lower(): line[3:] for line in pair.text.split("\n") if line[1:3] == ". "}


def truth(pair):
    """The answers that are true, worked out from the two scenes and the words of the question."""
    one, two = pair.scenes
    asked = pair.text.split("\n")[0]
    if pair.kind == "holder":
        noun = re.search(r"shows an? (\w+)", asked)[1]
        return {
            (True, False): {"first", "the first image"},
            (False, True): {"second", "the second image"},
            (True, True): {"both images"},
            (False, False): set(),
        }[noun in nouns(one), noun in nouns(two)]
    if pair.kind == "number" and pair.schema == "muir":
        return {NUMBERS[count(one) + count(two)]}
    if pair.kind == "number":
        return {"yes" if count(one) == count(two) else "no"}
    if pair.kind == "more":
        assert count(one) != count(two)
        return {"first" if count(one) > count(two) else "second"}
    if pair.kind == "ground":
        assert one.second == two.second == ""
        return {"yes" if one.ground == two.ground else "no"}
    if pair.kind == "word":
        assert (one.instance == 255).any() and (two.instance == 255).any() and one.word != two.word
        if pair.schema == "muir":
            return {one.word if "the first image" in asked else two.word}
        return {"first" if f"word {one.word}," in asked else "second"}
    if pair.kind == "colour" and pair.schema == "muir":
        noun = re.search(r"is the (\w+)", asked)[1]
        return {colour(one if "the first image" in asked else two, noun)}
    if pair.kind == "colour":
        noun = re.search(r"Does the (\w+)", asked)[1]
        return {"yes" if colour(one, noun) == colour(two, noun) else "no"}
    if pair.kind == "moved":
        noun = re.search(r"did the (\w+)", asked)[1]
        return {direction(*(middle(two, noun) - middle(one, noun)))}
    if pair.kind == "new":
        return nouns(two) - nouns(one)
    if pair.kind == "missing":
        return nouns(one) - nouns(two)
    return {noun for noun in nouns(one) if colour(one, noun) != colour(two, noun)}


def same_but_for(one, two, things):
    """Whether two scenes agree in every pixel except those things and their shadows, given as
    (scene, noun); each of them must make a difference."""
    differ = (one.pixels != two.pixels).any(-1)
    allowed = np.zeros_like(differ)
    for scene, noun in things:
        (k,) = [i for i, thing in enumerate(scene.objects, start=1) if thing.noun == noun]
        mask = scene.instance == k
        assert differ[mask].any()
        allowed |= mask
        if scene.level == "cluttered":
            allowed[5:, 4:] |= mask[:-5, :-4]
    return not (differ & ~allowed).any()


def test_answers_are_true(mantis, muir):
    for pair in mantis:
        right = {options(pair)[pair.answer]} if options(pair) else {pair.answer}
        assert right <= truth(pair), pair.id
    for pair in muir:
        if not pair.id.endswith(".none"):
            assert options(pair)[pair.answer] in truth(pair), pair.id


def test_exactly_one_option_is_true(mantis, muir):
    for pair in (*mantis, *muir):
        offered = list(options(pair).values())
        assert len(set(offered)) == len(offered) and len(offered) in (0, 4)
        if offered:
            assert len(set(offered) & truth(pair)) == (not pair.id.endswith(".none")), pair.id


def test_every_muir_question_returns_without_an_answer(muir):
    for asked, again in zip(muir[::2], muir[1::2], strict=True):
        assert again.id == f"{asked.id}.none" and again.kind == asked.kind
        for one, two in zip(asked.scenes, again.scenes, strict=True):
            assert (one.pixels == two.pixels).all()
        assert list(options(asked).values()).count(NONE) == 1
        assert options(asked)[asked.answer] != NONE and options(again)[again.answer] == NONE
        # They differ in one option, or in the noun they ask for.
        changed = [
            (a, b)
            for a, b in zip(asked.text.split("\n"), again.text.split("\n"), strict=True)
            if a != b
        ]
        assert len(changed) == 1
        assert changed[0][0].startswith("Which image" if asked.kind == "holder" else
                                        asked.answer.upper())  # fmt: skip


def test_there_are_enough_kinds(mantis, muir):
    assert len(KINDS["mantis"]) >= 7 and len(KINDS["muir"]) >= 7
    for found, schema in ((mantis, "mantis"), (muir, "muir")):
        counts = Counter(pair.kind for pair in found)
        assert set(counts) == set(KINDS[schema]) and len(set(counts.values())) == 1
        assert {pair.schema for pair in found} == {schema}


def test_no_constant_answer_beats_chance(mantis, muir):
    for kind in KINDS["mantis"]:
        found = [pair for pair in mantis if pair.kind == kind]
        counts = Counter(pair.answer for pair in found)
        (chance,) = {pair.chance for pair in found}
        assert set(counts.values()) == {len(found) * chance} and len(counts) == 1 / chance
    for kind in KINDS["muir"]:
        found = [pair for pair in muir if pair.kind == kind]
        for part in (found[::2], found[1::2]):
            assert set(Counter(pair.answer for pair in part).values()) == {len(part) / 4}
        # Whoever always says None is right half the time, and that is the chance they state.
        always_none = sum(options(pair)[pair.answer] == NONE for pair in found) / len(found)
        assert {pair.chance for pair in found} == {always_none} == {0.5}


def test_the_letters_of_right_and_none_tell_nothing(muir):
    where = Counter(
        (pair.answer, next(x for x, option in options(pair).items() if option == NONE))
        for pair in muir[::2]
    )
    assert len(where) == 12 and set(where.values()) == {8}


def test_the_second_image_differs_in_one_object_alone(mantis, muir):
    for pair in (*mantis, *muir):
        if pair.kind not in ONE_CHANGE:
            continue
        one, two = pair.scenes
        changed = set(one.objects) ^ set(two.objects)
        (noun,) = {thing.noun for thing in changed}
        holders = [scene for scene in (one, two) if noun in nouns(scene)]
        assert len(holders) == (1 if pair.kind in ("new", "missing") else 2)
        assert same_but_for(one, two, [(scene, noun) for scene in holders])


def test_nothing_is_hidden_and_every_mask_is_what_was_painted(mantis, muir, busy, games):
    for item in (*mantis, *muir[::2], *busy, *games):
        for scene in item.scenes:
            assert scene.level in ("clear", "cluttered")
            for k, thing in enumerate(scene.objects, start=1):
                x0, y0, x1, y1 = thing.box
                assert x0 >= 2 and y0 >= 2 and x1 <= 334 and y1 <= 334
                mask = scene.instance == k
                solids = [world._pictogram(thing.noun, size)[0] for size in SIZES[thing.size]]
                found = mask[y0:y1, x0:x1]
                assert mask.sum() == found.sum()
                assert any(s.shape == found.shape and (s == found).all() for s in solids)
                for other in scene.objects[k:]:
                    gap = max(other.box[0] - x1, x0 - other.box[2],
                              other.box[1] - y1, y0 - other.box[3])  # fmt: skip
                    assert gap > 5


def test_no_withheld_pair_is_shown(mantis, muir, busy, games):
    shown = {(t.noun, t.colour) for item in (*mantis, *muir, *busy, *games)
             for scene in item.scenes for t in scene.objects}  # fmt: skip
    assert not shown & WITHHELD and len(shown) > 150


def test_busy_pairs_show_what_they_are_said_to(busy):
    """By pixels and masks: of a changed pair what became of every noun that is there once, of an
    alike one whether the objects are as many."""
    told = Counter()
    for pair in busy:
        first, second = pair.scenes
        if pair.kind == "alike":
            assert pair.answer == ("yes" if count(first) == count(second) else "no")
            assert not first.second and not second.second
            told["number", pair.answer] += 1
            told["ground", first.ground == second.ground] += 1
            continue
        named = differences_named(pair.answer)
        found = set()
        for noun in nouns(first) | nouns(second):
            shown = [[o for o in scene.objects if o.noun == noun] for scene in pair.scenes]
            if max(map(len, shown)) > 1:
                assert shown[0] == shown[1]
            elif not shown[1]:
                found.add(("missing", colour(first, noun), noun))
            elif not shown[0]:
                found.add(("new", shown[1][0].size, colour(second, noun), noun))
            elif colour(first, noun) != colour(second, noun):
                assert (middle(first, noun) == middle(second, noun)).all()
                found.add(("recoloured", colour(first, noun), noun, colour(second, noun)))
            elif (middle(first, noun) != middle(second, noun)).any():
                way = direction(*middle(second, noun) - middle(first, noun))
                found.add(("moved", colour(first, noun), noun, way))
            else:
                told["unchanged"] += 1
        assert named == found
        told.update(change for change, *_ in named)
        told["exchanged", first.ground != second.ground] += 1
    assert told["moved"] > told["recoloured"] > told["missing"] + told["new"]
    assert min(told.values()) >= 4


def test_composites_show_the_planted_differences_and_no_other(games):
    for game in games:
        one, two = game.scenes
        before = {thing.noun: thing for thing in set(one.objects) - set(two.objects)}
        after = {thing.noun: thing for thing in set(two.objects) - set(one.objects)}
        touched = [(one, noun) for noun in before] + [(two, noun) for noun in after]
        assert same_but_for(one, two, touched)
        for change, *words in game.differences:
            if change == "new":
                thing = after.pop(words[2])
                assert [thing.size, thing.colour] == words[:2] and thing.noun not in nouns(one)
                continue
            thing = before.pop(words[1])
            assert [thing.colour, thing.noun] == words[:2]
            if change == "missing":
                assert thing.noun not in nouns(two)
                continue
            other = after.pop(words[2] if change == "exchanged" else thing.noun)
            assert other.size == thing.size
            assert (other.colour != thing.colour) == (change == "recoloured")
            assert (other.noun != thing.noun) == (change == "exchanged")
            if change == "recoloured":
                assert other.box == thing.box and colour(two, thing.noun) == words[2]
            elif change == "moved":
                step = middle(two, thing.noun) - middle(one, thing.noun)
                assert direction(*step) == words[2]
        assert not before and not after


def test_every_planted_difference_names_one_object(games):
    for game in games:
        named = [noun for _, *words in game.differences for noun in words if noun in NOUNS]
        for scene in game.scenes:
            for noun in named:
                assert [thing.noun for thing in scene.objects].count(noun) <= 1


def test_a_composite_is_one_image_of_two_pictures(games):
    for game in games:
        one, two = game.scenes
        if game.stacked:
            assert game.image.size == (336, 680)
            parts = game.pixels[:336], game.pixels[336:344], game.pixels[344:]
        else:
            assert game.image.size == (680, 336)
            parts = game.pixels[:, :336], game.pixels[:, 336:344], game.pixels[:, 344:]
        assert (parts[0] == one.pixels).all() and (parts[2] == two.pixels).all()
        assert (parts[1] == 128).all()
    assert sum(game.stacked for game in games) == len(games) / 2


def test_composites_hold_every_change_and_number_of_changes(games):
    assert Counter(len(game.differences) for game in games) == {1: 30, 2: 30, 3: 30}
    counts = Counter(change for game in games for change, *_ in game.differences)
    assert set(counts) == set(CHANGES) and min(counts.values()) > 20


def test_the_parser_reads_every_answer_back(games):
    for game in games:
        assert differences_named(game.answer) == set(game.differences)
        assert game.answer.endswith(".") and game.answer == game.answer.lower()


def test_the_parser_reads_other_layouts_and_counts_what_was_invented():
    planted = {("missing", "red", "cup"), ("recoloured", "blue", "star", "green")}
    named = differences_named(
        "- The red cup is missing.\n- A small pink cat is new\n* the black sun became an  anchor,\n"
        "the teal cow moved up and the blue star is nice, the red cups is missing, the is missing"
    )
    assert named == {
        ("missing", "red", "cup"),
        ("new", "small", "pink", "cat"),
        ("exchanged", "black", "sun", "anchor"),
        ("moved", "teal", "cow", "up"),
    }
    assert len(named & planted) == 1 and len(named - planted) == 3
    assert differences_named("there is nothing to see.") == set()


def test_the_prompt_is_the_paper_s():
    assert SPOT_THE_DIFFERENCE.split(". ") == [
        "The user is playing a spot-the-difference game",
        "The provided image displays two pictures arranged either vertically or horizontally",
        "Please help the user identify all the differences between the two images",
        "Please provide accurate answers in a bullet list format.",
    ]


def test_frames_hold_every_word_and_no_other(mantis, muir, games):
    def words(text):
        return set(re.findall(r"[a-z]+(?:'[a-z]+)?|[^\sa-z]", text.lower()))

    lists = {word.lower() for group in (NOUNS, COLOURS, SIZES, GROUNDS, WORDS, NUMBERS, LETTERS)
             for word in group}  # fmt: skip
    frames = set().union(*map(words, FRAMES)) - lists
    used = set().union(*(words(f"{pair.text} {pair.answer}") for pair in (*mantis, *muir)))
    used |= set().union(*(words(f"{SPOT_THE_DIFFERENCE} {game.answer}") for game in games))
    assert used - lists == frames


def test_an_item_follows_from_its_id_alone(mantis, muir, busy, games):
    for item in (*mantis[:10], *muir[:6], *busy[:4], *games[:3]):
        again = redraw(item.id)
        assert type(again) is type(item) and again.id == item.id
        for one, two in zip(item.scenes, again.scenes, strict=True):
            assert one.id == two.id and one.objects == two.objects
            assert (one.pixels == two.pixels).all() and (one.instance == two.instance).all()
    assert redraw(mantis[6].id).text == mantis[6].text
    assert redraw(muir[1].id).text == muir[1].text and redraw(muir[1].id).answer == muir[1].answer
    assert redraw(busy[2].id).answer == busy[2].answer and busy[3].text == redraw(busy[3].id).text
    assert redraw(games[2].id).differences == games[2].differences
    ids = [item.id for item in (*mantis, *muir, *busy, *games)]
    assert len(set(ids)) == len(ids)


def test_starting_later_gives_the_same_items(muir):
    later = pairs("calibration", 3, "muir", start=9_601)
    assert [pair.id for pair in later] == [pair.id for pair in muir[1:4]]
    assert composites("test", 0) == []


def test_splits_draw_from_their_own_numbers_alone(monkeypatch):
    drawn = []
    plan = world.plan

    def watched(number, **asked):
        drawn.append(number)
        return plan(number, **asked)

    monkeypatch.setattr(world, "plan", watched)
    for split, numbers in SPLITS.items():
        drawn.clear()
        items = [*pairs(split, 10, "mantis"), *pairs(split, 16, "muir"), *composites(split, 3)]
        items += busy_pairs(split, 4)
        assert drawn and all(number in numbers for number in drawn)
        assert all(int(re.search(r"-(\d+)", item.id)[1]) in numbers for item in items)


def test_asking_for_what_does_not_exist():
    with pytest.raises(RedlibError, match="split must be one of"):
        composites("holdout", 1)
    with pytest.raises(RedlibError, match="schema must be one of"):
        pairs("test", 1, "blink")
    with pytest.raises(RedlibError, match="holds 20000000 items"):
        pairs("test", 1, "muir", start=2 * len(SPLITS["test"]))
    for id in ("test-60000012", "test-5.mantis", "test-60000012.mantis.none", "x-1.spot"):
        with pytest.raises(RedlibError, match="is not the id of a pair"):
            redraw(id)
