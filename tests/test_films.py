"""Films against their definitions: what pixels and masks show, events, questions, balance."""

import re
import time
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from redlib.errors import RedlibError
from redlib.machine import calibration_seconds
from redlib.tabletop import scenes
from redlib.tabletop.films import (
    EVENTS,
    FRAMES_OF_TEXT,
    SUBTASKS,
    draw_film,
    film_questions,
    films,
    redraw_film,
)
from redlib.tabletop.questions import LETTER, LETTERS, NUMBERS
from redlib.tabletop.world import COLOURS, GROUNDS, NOUNS, SIZES, SPLITS, THEMES, WITHHELD, WORDS


@pytest.fixture(scope="module")
def some():
    plain = films("calibration", 100, start=5_000)
    return plain + films("calibration", 25, start=5_100, busy=True)


@pytest.fixture(scope="module")
def seen(some):
    """What the frames themselves show of every film: {film id: [history of each object]}."""
    return {film.id: [history(film, k) for k in range(len(film.objects))] for film in some}


def history(film, k: int) -> dict:
    """Presence, box centre, area and colour of the k-th object in every frame, from its mask and
    the pixels under it; None where it is not to be seen."""
    found = defaultdict(list)
    for pixels, instance in zip(film.pixels, film.instances, strict=True):
        y, x = np.nonzero(instance == k + 1)
        found["present"].append(len(y) > 0)
        found["centre"].append(((x.min() + x.max()) / 2, (y.min() + y.max()) / 2) if len(y) else ())
        found["area"].append(len(y))
        found["colour"].append(colour_name(pixels[y, x]) if len(y) else "")
    return found


def colour_name(pixels: np.ndarray) -> str:
    """Lines are darker than the paint of a thing, except on black, where they are grey."""
    codes = set((pixels.astype(int) @ (1, 1000, 1_000_000)).tolist())
    paints = [(code % 1000, code // 1000 % 1000, code // 1_000_000) for code in codes]
    assert len(paints) <= 2
    paint = max(paints, key=sum)
    if paint == (150, 150, 156):
        paint = min(paints, key=sum)
    return min(COLOURS, key=lambda name: np.abs(np.array(paint) - COLOURS[name]).max())


def literal_event(story: dict) -> tuple | None:
    """(kind, last frame as before, first frame as after, detail or None) from a history alone."""
    present, last = story["present"], len(story["present"]) - 1
    rows = list(zip(present, story["centre"], story["area"], story["colour"], strict=True))
    changes = [frame for frame in range(last) if rows[frame] != rows[frame + 1]]
    if not changes:
        return None
    start, end = changes[0], changes[-1] + 1
    if present[0] != present[last]:
        return ("appear" if present[last] else "leave"), start, end, ""
    if story["colour"][0] != story["colour"][last]:
        return "recolour", start, end, story["colour"][last]
    if story["area"][0] != story["area"][last]:
        return ("grow" if story["area"][last] > story["area"][0] else "shrink"), start, end, None
    dx, dy = np.subtract(story["centre"][last], story["centre"][0])
    assert (dx == 0) != (dy == 0)
    if dx:
        return "move", start, end, "left" if dx < 0 else "right"
    return "move", start, end, "up" if dy < 0 else "down"


def test_a_film_has_the_shapes_it_says(some):
    for film in (some[0], films("test", 1, frames=32)[0]):
        assert film.pixels.shape == (film.frames, 336, 336, 3) and film.pixels.dtype == np.uint8
        assert film.instances.shape == (film.frames, 336, 336)
        assert film.instances.dtype == np.uint8
        assert len(film.images) == film.frames
        assert (np.asarray(film.images[3]) == film.pixels[3]).all()
    for drawn, events in ((some[:100], {1, 2, 3}), (some[100:], {3, 4, 5, 6})):
        assert {len(film.events) for film in drawn} == events
        assert {event.kind for film in drawn for event in film.events} == set(EVENTS)


def test_masks_show_the_events_and_nothing_else(some, seen):
    for film in some:
        for k, story in enumerate(seen[film.id]):
            event, literal = film.event(k), literal_event(story)
            if event is None:
                assert literal is None
                continue
            detail = None if event.kind in ("grow", "shrink") else event.detail
            assert literal == (event.kind, event.start, event.end, detail)
        assert len({event.object for event in film.events}) == len(film.events)


def test_states_are_what_the_masks_show(some, seen):
    for film in some:
        nouns = [prop.noun for prop in film.objects]
        assert len(set(nouns)) == len(nouns)
        starts = [prop.centre for prop in film.objects]
        assert starts == sorted(starts)
        for frame in range(film.frames):
            shown = [k for k, story in enumerate(seen[film.id]) if story["present"][frame]]
            assert film.present(frame) == shown
            for k in shown:
                prop, (x, y) = film.state(k, frame), seen[film.id][k]["centre"][frame]
                assert prop.centre == (x + 0.5, y + 0.5)
                assert prop.colour == seen[film.id][k]["colour"][frame]
                assert prop.pixels in SIZES[prop.size]


def test_only_actors_change_from_frame_to_frame(some):
    for film in some[:40]:
        for frame in range(film.frames - 1):
            one, two = film.instances[frame], film.instances[frame + 1]
            acting = [e.object for e in film.events if e.start <= frame < e.end]
            assert len(acting) <= 1
            differs = (film.pixels[frame] != film.pixels[frame + 1]).any(-1)
            allowed = np.isin(one, np.add(acting, 1)) | np.isin(two, np.add(acting, 1))
            assert not differs[~allowed].any()
            assert differs.any() == bool(acting)


def test_nothing_is_hidden_nor_cut_off(some):
    """The silhouette of an object is the same in every frame unless it grows or shrinks, and never
    reaches the edge."""
    for film in some[:40]:
        edge = film.instances.copy()
        edge[:, 1:-1, 1:-1] = 0
        assert not edge.any()
        for k in range(len(film.objects)):
            event = film.event(k)
            shapes = defaultdict(set)
            for frame in range(film.frames):
                if film.state(k, frame):
                    x0, y0, x1, y1 = film.state(k, frame).box
                    mask = film.instances[frame] == k + 1
                    assert mask.sum() == mask[y0:y1, x0:x1].sum()
                    after = event is not None and frame >= event.end
                    shapes[after].add((y1 - y0, mask[y0:y1, x0:x1].tobytes()))
            assert all(len(found) == 1 for found in shapes.values())
            if event is None or event.kind in ("move", "recolour"):
                assert len(set.union(*shapes.values())) == 1


def test_the_first_two_frames_and_the_last_two_are_still(some):
    for film in some:
        first, last = film.events[0], film.events[-1]
        assert first.start >= 1 and last.end <= film.frames - 2
        for one, two in zip(film.events, film.events[1:], strict=False):
            assert one.end < two.start


def test_sixteen_frames_and_thirty_two_show_the_same(some):
    for film in (*some[:25], *some[100:105]):
        fine = redraw_film(film.id.replace("=16", "=32"))
        assert fine.objects == film.objects
        assert (fine.pixels[::2] == film.pixels).all()
        assert (fine.instances[::2] == film.instances).all()
        for coarse, event in zip(film.events, fine.events, strict=True):
            assert event.end == 2 * coarse.end
            assert event.start == (2 * coarse.start if event.kind == "move" else event.end - 1)
            assert replace(event, start=0, end=0) == replace(coarse, start=0, end=0)
        for task in SUBTASKS:
            asked = [replace(q, film="") for q in film_questions([film], task)]
            assert asked == [replace(q, film="") for q in film_questions([fine], task)]
    moves = [e for film in films("test", 30, frames=32) for e in film.events if e.kind == "move"]
    assert all(e.end - e.start >= 6 for e in moves)


def test_a_film_follows_from_its_id_alone(some):
    again = redraw_film(some[7].id)
    assert again == some[7] and again == films("calibration", 1, start=5_007)[0]
    busy = some[103]
    assert redraw_film(busy.id) == busy
    assert busy == films("calibration", 1, start=5_103, busy=True)[0]
    assert busy.id == f"calibration-{SPLITS['calibration'].start + 5_103}.frames=16.busy"
    kept = some[7].pixels.copy()
    for film in some[:6]:
        film.pixels  # noqa: B018 - the kept frames of film 7 are dropped
    assert (again.pixels == kept).all()
    assert again.id == f"calibration-{SPLITS['calibration'].start + 5_007}.frames=16"
    with pytest.raises(ValueError, match="read-only"):
        again.pixels[0] = 0


def test_splits_share_no_film_and_films_are_not_scenes():
    drawn = [films(split, 2) for split in SPLITS]
    assert len({film.pixels.tobytes() for pair in drawn for film in pair}) == 6
    for split in SPLITS:
        assert (films(split, 1)[0].pixels[0] != scenes(split, 1)[0].pixels).any()
        outside = SPLITS[split].stop
        with pytest.raises(RedlibError, match=f"number must be from .* in {split}"):
            draw_film(outside, split=split)


def test_no_withheld_pair_is_shown(some, seen):
    for film in some:
        for prop, story in zip(film.objects, seen[film.id], strict=True):
            assert not {(prop.noun, colour) for colour in story["colour"]} & WITHHELD
    for film in films("train", 2000) + films("train", 500, busy=True):
        shown = [*film.objects, *(event.after for event in film.events)]
        assert not {(prop.noun, prop.colour) for prop in shown} & WITHHELD


def test_asking_for_films_that_do_not_exist(some):
    with pytest.raises(RedlibError, match="split must be one of"):
        films("holdout", 1)
    with pytest.raises(RedlibError, match="split must be one of"):
        redraw_film("holdout-5.frames=16")
    with pytest.raises(RedlibError, match="holds"):
        films("test", 1, start=len(SPLITS["test"]))
    with pytest.raises(RedlibError, match="frames must be 16 or 32; got 24"):
        films("test", 1, frames=24)
    with pytest.raises(RedlibError, match="is not the id of a film"):
        redraw_film("test-60000012")
    with pytest.raises(RedlibError, match="task must be one of"):
        film_questions(some, "riddle")


def options(question) -> list[str]:
    lines = question.text.split("\n")[1:-1]
    assert [line[:3] for line in lines] == [f"{letter}. " for letter in LETTERS[: len(lines)]]
    return [line[3:] for line in lines]


def right_option(question) -> str:
    return options(question)[LETTERS.index(question.answer.upper())]


def literal_answer(question, nouns: list[str], stories: list[dict]) -> str:
    """The answer to the question's first line, from the histories of the objects alone."""
    line = question.text.split("\n")[0]
    events = {noun: literal_event(story) for noun, story in zip(nouns, stories, strict=True)}
    acted = {noun: event for noun, event in events.items() if event}
    story = dict(zip(nouns, stories, strict=True))
    ordered = sorted(acted, key=lambda noun: acted[noun][1])
    does = {"appear": "appears", "leave": "leaves", "move": "moves",
            "recolour": "changes its color", "grow": "grows", "shrink": "shrinks"}  # fmt: skip
    for kind, verb in does.items():
        if line == f"Which object {verb}?":
            (noun,) = [noun for noun in acted if acted[noun][0] == kind]
            return noun
    if line == "Which object stays unchanged?":
        (noun,) = [option for option in options(question) if option not in acted]
        return noun
    if line == "How many objects are there at the end?":
        return NUMBERS[sum(s["present"][-1] for s in stories)]
    if line == "How many objects appear?":
        return NUMBERS[sum(s["present"][-1] and not s["present"][0] for s in stories)]
    if found := re.fullmatch(r"What happens (first|last)\?", line):
        noun = ordered[0 if found[1] == "first" else -1]
        return f"the {noun} {does[acted[noun][0]]}"
    if found := re.fullmatch(r"Which object appears (first|last)\?", line):
        new = [noun for noun in ordered if acted[noun][0] == "appear"]
        return new[0 if found[1] == "first" else -1]
    if found := re.fullmatch(r"Does the (\w+) move\?", line):
        return "yes" if len(set(story[found[1]]["centre"]) - {()}) > 2 else "no"
    if found := re.fullmatch(r"In which direction does the (\w+) move\?", line):
        return acted[found[1]][3]
    if found := re.fullmatch(r"What color does the (\w+) become\?", line):
        return story[found[1]]["colour"][-1]
    if found := re.fullmatch(r"How does the size of the (\w+) change\?", line):
        area = story[found[1]]["area"]
        return "it grows" if area[-1] > area[0] else "it shrinks"
    if found := re.fullmatch(r"Where is the (\w+) at the (start|end)\?", line):
        x, y = story[found[1]]["centre"][0 if found[2] == "start" else -1]
        assert min(abs(x - 167.5), abs(y - 167.5)) > 33
        return f"{'top' if y < 167.5 else 'bottom'} {'left' if x < 167.5 else 'right'}"
    found = re.fullmatch(
        r"Is the (\w+) (?:to the left or to the right of|above or below) the (\w+) at the end\?",
        line,
    )
    axis = 0 if "left" in line else 1
    one, two = [
        story[found[1]]["centre"][f][axis] - story[found[2]]["centre"][f][axis] for f in (0, -1)
    ]
    assert one * two < 0 and min(abs(one), abs(two)) > 16  # the mover has passed the other
    return (("left", "right"), ("above", "below"))[axis][int(two > 0)]


@pytest.mark.parametrize("task", SUBTASKS)
def test_answers_are_true_of_the_frames(task, some, seen):
    by_id = {film.id: film for film in some}
    found = film_questions(some, task)
    assert len(found) >= 5
    for q in found:
        nouns = [prop.noun for prop in by_id[q.film].objects]
        assert q.task == task
        assert right_option(q) == literal_answer(q, nouns, seen[q.film])
        offered = options(q)
        assert 2 <= len(offered) <= 4 and len(set(offered)) == len(offered)
        assert q.chance == 1 / len(offered)
        if offered[0] in NOUNS:
            assert set(offered) <= set(nouns)
            assert task != "appears" or len(offered) == min(4, len(nouns))


def test_subtasks_are_asked_in_the_words_of_the_other_choices(some):
    assert len(SUBTASKS) >= 10
    wording = LETTER
    for task in SUBTASKS:
        assert all(q.text.split("\n")[-1] == wording for q in film_questions(some, task))


@pytest.fixture(scope="module")
def many():
    drawn = films("test", 4000)
    return {task: film_questions(drawn, task) for task in SUBTASKS}


def far_from_chance(hits: float, chances: list[float]) -> float:
    """How many standard deviations guessing hits differ from so many fair guesses."""
    expected = sum(chances)
    spread = sum(chance * (1 - chance) for chance in chances) ** 0.5
    return abs(hits - expected) / spread


def kin(option: str, offered: list[str]) -> int:
    """How many of the options name something of the same theme."""
    theme = next((theme for theme in THEMES if set(theme) & set(option.split())), ())
    return sum(bool(set(theme) & set(other.split())) for other in offered)


@pytest.mark.parametrize("task", SUBTASKS)
def test_no_guess_beats_chance(task, many):
    """Not a constant letter, nor a constant option, nor a rule about the options' words."""
    asked = many[task]
    assert len(asked) > 400
    trials, hits = defaultdict(list), Counter()

    def guess(rule: tuple, option: str, q) -> None:
        trials[rule].append(q.chance)
        hits[rule] += option == right_option(q)

    for q in asked:
        offered = options(q)
        for letter, option in zip(LETTERS, offered, strict=False):
            guess(("letter", letter, len(offered)), option, q)
            guess(("option", option), option, q)
            guess(("last word", option.split()[-1]), option, q)
            asking = q.text.split("\n")[0].split()[-1]
            guess(("asked and offered", asking, option.split()[-1]), option, q)
        guess(("first of the alphabet",), min(offered), q)
        guess(("longest",), max(offered, key=len), q)
        guess(("odd one out",), min(offered, key=lambda o: kin(o, offered)), q)
        numbers = [option for option in NUMBERS if option in offered]
        guess(("middle",), numbers[len(numbers) // 2] if numbers else sorted(offered)[1], q)
        guess(("best known",), min(offered, key=lambda o: (*NOUNS, o).index(o)), q)
    for rule, chances in trials.items():
        if len(chances) >= 30:
            assert far_from_chance(hits[rule], chances) < 4, rule


def test_every_word_is_among_the_words_declared(many):
    split = r"[A-Za-z]+|[^\sA-Za-z]"
    lists = (NOUNS, COLOURS, SIZES, GROUNDS, WORDS, NUMBERS, LETTERS)
    known = {word.lower() for group in lists for word in group}
    known |= {w.lower() for example in FRAMES_OF_TEXT for w in re.findall(split, example)}
    for asked in many.values():
        for q in asked:
            assert {w.lower() for w in re.findall(split, q.text)} <= known
            assert q.answer in known


def test_a_film_takes_at_most_forty_milliseconds():
    """On a machine that multiplies 1,024 x 1,024 matrices at 100 GFLOP/s, as the design says."""
    films("test", 40, start=900)  # glyphs are drawn once
    best = min(_seconds_per_film(start) for start in (900, 920, 940))
    gigaflops = 2 * 1024**3 / calibration_seconds() / 1e9
    assert best < 0.04 * max(1, 100 / gigaflops)


def _seconds_per_film(start: int) -> float:
    begun = time.process_time()
    for film in films("test", 20, start=start):
        assert film.pixels.any()
    return (time.process_time() - begun) / 20
