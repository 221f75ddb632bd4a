"""Films of the tabletop: scenes in which something happens, in the schema of MVBench.

A video model sees many frames that mostly repeat each other, so redundancy between frames is the
first thing a pruner should find. A *film* makes it known to the pixel: on one still ground lie a
few objects, and one to three of them, the actors, each do one thing while all else stays as it is.

    film = films("test", 1)[0]
    film.pixels                     # (16, 336, 336, 3) uint8
    film.instances                  # (16, 336, 336) uint8, where every object is in every frame
    film.events[0]                  # Event(kind='appear', object=1, start=1, end=2, ...)
    film.state(1, 5).box            # (107, 236, 169, 294)
    film_questions([film], "order")[0].text
    # "What happens last? A. the snowman leaves B. the pawn appears ...", a line for each option

An event is one of EVENTS: an object appears, leaves, moves (left, right, up or down), changes its
colour, grows or shrinks. Events follow each other and never overlap in time; the first two frames
show how all began and the last two how it ended. Every object keeps to a rectangle of its own,
the whole way of a mover included, so that nothing is ever hidden; nouns are unique within a film.

A film has 16 frames or 32. Both show the same events: every second frame of the 32 is one of the
16. In a *busy* film, of which training alone sees some, most objects are actors: where nearly all
that is seen stays as it is, there is little to learn what happens from. Everything follows from the
film's id, which holds its split, its number, its frames and whether it is busy: `redraw_film` gives
the film again. Splits are those of the scenes, and no film shows a withheld
pair of noun and colour, before a change of colour or after it.

Each subtask asks a question with lettered options, in the spirit of one of MVBench's twenty:

| subtask | asks | near MVBench's |
|---|---|---|
| appears, leaves | which object does | object existence |
| moves, recoloured, unchanged | which object does or is | moving attribute |
| does-move | whether an object moves, yes or no | object existence |
| direction | where to an object moves | moving direction |
| start, end | in which corner the mover is then | object shuffle |
| side | on which side of another the mover ends, having passed it | object shuffle |
| count | how many objects there are at the end | moving count |
| arrivals | how many objects appear | action count |
| order | which event is the first or the last | action sequence |
| arrival-order | which object appears first or last | character order |
| colour | what colour an object becomes | state change |
| size | whether an object grows or shrinks | action antonym |

Who reads the questions without the film can only guess. What an actor does is drawn apart from
what it is, and options are drawn so that each is equally likely to be right: objects among those of
the film, the new colour among colours that the object could have had as well, numbers that the
world shows equally often, events among those of the film.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from redlib.errors import RedlibError
from redlib.tabletop.questions import LETTER, LETTERS, NUMBERS, options
from redlib.tabletop.world import (
    COLOURS,
    SIDE,
    SIZES,
    SPLITS,
    THEMES,
    WITHHELD,
    Thing,
    _crumbs,
    _grounds,
    _kind,
    _pictogram,
    _place,
)

EVENTS = ("appear", "leave", "move", "recolour", "grow", "shrink")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES = (16, 32)
BEATS = 16  # events begin and end on beats; 32 frames show each beat twice
LAST = range(3, 7)  # how many objects there are at the end
ARRIVALS = range(4)  # how many appear

CHECKLISTS = (
    "Which objects are there at the start?",
    "Which objects are there at the end?",
    "What happens to the objects?",
)
"""Asked in training alone."""
BOTH = " ".join(CHECKLISTS[:2])

FRAMES_OF_TEXT = (
    LETTER,
    "Which object appears? Which object leaves? Which object moves?",
    "Which object changes its color? Which object stays unchanged?",
    "Does the cup move? A. yes B. no",
    "In which direction does the cup move? A. left B. right C. up D. down",
    "Where is the cup at the start? Where is the cup at the end? A. top left B. bottom right",
    "Is the cup to the left or to the right of the star at the end?",
    "Is the cup above or below the star at the end?",
    "How many objects are there at the end? How many objects appear?",
    "What happens first? What happens last? Which object appears first?",
    "A. the cup appears B. the cup leaves C. the cup moves D. the cup changes its color",
    "What color does the cup become?",
    "How does the size of the cup change? A. it grows B. it shrinks",
)
"""Strings that hold every word of the questions but nouns, colours, numbers and letters."""

_OTHERS = ("leave", "move", "recolour", "grow", "shrink")
_OTHER_SHARES = (0.2, 0.42, 0.18, 0.1, 0.1)
_BUSY = range(3, 7)  # actors of a busy film
_BUSY_SHARES = (0.15, 0.15, 0.4, 0.14, 0.08, 0.08)  # of EVENTS
SAYING = {
    "appear": "appears",
    "leave": "leaves",
    "move": "moves",
    "recolour": "changes its color",
    "grow": "grows",
    "shrink": "shrinks",
}
# The streams of random numbers of one film; apart from those of the scene of the same number.
_PLOT, _GROUND, _ASK = 1000, 1001, 1002


@dataclass(frozen=True)
class Prop(Thing):
    """An object of a film in one state: a thing, the size in pixels that its pictogram was drawn
    for, and its paint (red, green, blue)."""

    pixels: int
    paint: tuple[int, int, int]


@dataclass(frozen=True)
class Event:
    """What one object does.

    Attributes:
        kind: one of EVENTS.
        object: index in `film.objects`.
        start: the last frame that shows the object as it was.
        end: the first frame that shows it as it will stay.
        detail: where to (move), the new colour (recolour), the new size (grow, shrink), else "".
        after: the object from `end` on; for one that leaves, as it was.
    """

    kind: str
    object: int
    start: int
    end: int
    detail: str
    after: Prop


@dataclass(frozen=True)
class Film:
    """A film and its truth. Frames are painted when they are asked for; those of the last few
    films are kept.

    Attributes:
        id: split, number and frames, "test-60000012.frames=16", and ".busy" behind them where it
            is; see `redraw_film`.
        frames: how many, 16 or 32.
        objects: all that is ever in the picture, each as it is first seen, left to right.
        events: in order of time; an object has one at most.
    """

    id: str
    frames: int
    objects: tuple[Prop, ...]
    events: tuple[Event, ...]

    @property
    def number(self) -> int:
        """The number that it was drawn from, which its id holds."""
        return int(re.search(r"-(\d+)", self.id)[1])

    @property
    def pixels(self) -> np.ndarray:
        """(frames, H, W, 3) uint8, read-only."""
        return _painted(self)[0]

    @property
    def instances(self) -> np.ndarray:
        """(frames, H, W) uint8, read-only; 0 on the ground, k where the k-th object (from 1) is."""
        return _painted(self)[1]

    @property
    def images(self) -> list[Image.Image]:
        """The frames as PIL images."""
        return [Image.fromarray(frame) for frame in self.pixels]

    def event(self, k: int) -> Event | None:
        """What the k-th object does, None where it stays as it is."""
        return next((event for event in self.events if event.object == k), None)

    def state(self, k: int, frame: int) -> Prop | None:
        """The k-th object as a frame shows it, None where it is not in the picture."""
        before, event = self.objects[k], self.event(k)
        if event is None:
            return before
        if frame <= event.start:
            return None if event.kind == "appear" else before
        if frame >= event.end:
            return None if event.kind == "leave" else event.after
        # Only a move has frames in between. Integers, so that 16 and 32 frames agree.
        done, whole = frame - event.start, event.end - event.start
        pairs = zip(before.box, event.after.box, strict=True)
        return replace(before, box=tuple(a + (b - a) * done // whole for a, b in pairs))

    def present(self, frame: int) -> list[int]:
        """Indices of the objects that a frame shows."""
        return [k for k in range(len(self.objects)) if self.state(k, frame)]


@dataclass(frozen=True)
class FilmQuestion:
    """One question about one film.

    Attributes:
        task: one of SUBTASKS.
        film: id of the film.
        text: what follows the frames in the user's turn.
        answer: the right option's letter, lower case.
        chance: one by the number of options.
    """

    task: str
    film: str
    text: str
    answer: str
    chance: float


def films(
    split: str, n: int, *, start: int = 0, frames: int = 16, busy: bool = False
) -> list[Film]:
    """The n films of a split from its `start`-th on, each of that many frames.

    Raises:
        RedlibError: an unknown split, more films than the split holds, or neither 16 nor 32
            frames.
    """
    if split not in SPLITS:
        raise RedlibError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    numbers = SPLITS[split]
    if n < 0 or start < 0 or start + n > len(numbers):
        raise RedlibError(f"{split} holds {len(numbers)} films; got start {start}, n {n}")
    chosen = numbers[start : start + n]
    return [draw_film(number, split=split, frames=frames, busy=busy) for number in chosen]


def redraw_film(id: str) -> Film:
    """The film of an id.

    Raises:
        RedlibError: not the id of a film.
    """
    found = re.fullmatch(r"(\w+)-(\d+)\.frames=(\d+)(\.busy)?", id)
    if not found:
        raise RedlibError(f"{id!r} is not the id of a film, such as 'test-60000012.frames=16'")
    split, number, frames, busy = found.groups()
    return draw_film(int(number), split=split, frames=int(frames), busy=bool(busy))


def draw_film(number: int, *, split: str, frames: int = 16, busy: bool = False) -> Film:
    """The film of a number, a busy one if wanted: its plot takes less than a millisecond, its
    frames a few when they are painted.

    Raises:
        RedlibError: an unknown split, a number outside it, or neither 16 nor 32 frames.
    """
    if split not in SPLITS:
        raise RedlibError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if number not in SPLITS[split]:
        numbers = SPLITS[split]
        raise RedlibError(
            f"number must be from {numbers.start} to {numbers.stop - 1} in {split}; got {number!r}"
        )
    if frames not in FRAMES:
        raise RedlibError(f"frames must be 16 or 32; got {frames!r}")
    rng = _rng(number, _PLOT)
    kinds = _busy_plot(rng) if busy else _plot(rng)
    cast = _cast(rng, max(len(kinds), int(rng.choice(LAST)) + kinds.count("leave")))
    details = [_detail(rng, kind, *cast[k]) for k, kind in enumerate(kinds)]
    times = _schedule(rng, kinds)
    # Only sizes and places are drawn again where objects find no room. What happens to whom, when
    # and where to is settled before, so that room favours no answer.
    while (staged := _stage(rng, cast, kinds, details)) is None:
        pass
    order = sorted(range(len(cast)), key=lambda k: staged[k][0].centre)
    step = frames // BEATS
    events = []
    for k in sorted(range(len(kinds)), key=lambda k: times[k]):
        start, end = (beat * step for beat in times[k])
        if kinds[k] != "move":
            start = end - 1  # sudden, whatever the frames
        after = staged[k][1]
        detail = after.size if kinds[k] in ("grow", "shrink") else details[k]
        events.append(Event(kinds[k], order.index(k), start, end, detail, after))
    id = f"{split}-{number}.frames={frames}" + (".busy" if busy else "")
    return Film(id, frames, tuple(staged[k][0] for k in order), tuple(events))


def film_questions(film_list: Sequence[Film], task: str) -> list[FilmQuestion]:
    """One question of a subtask about each film that can carry it: "which object moves" needs
    exactly one that does.

    Raises:
        RedlibError: an unknown subtask.
    """
    if task not in SUBTASKS:
        raise RedlibError(f"task must be one of {', '.join(SUBTASKS)}; got {task!r}")
    stream = SUBTASKS.index(task)
    found = (ask(film, task, _rng(film.number, _ASK, stream)) for film in film_list)
    return [q for q in found if q]


def ask(film: Film, task: str, rng: np.random.Generator) -> FilmQuestion | None:
    """The question of a subtask about a film with the random choices of `rng`, None where the film
    cannot carry it; training asks with ever new ones."""
    asked = _ASKERS[task](film, rng)
    if asked is None:
        return None
    text, offered = asked
    offered = offered[: len(LETTERS)]  # in busy films there can be more
    order = rng.permutation(len(offered))
    answer = LETTERS[int(np.flatnonzero(order == 0)[0])].lower()
    text = options(text, [offered[i] for i in order])
    return FilmQuestion(task, film.id, text, answer, 1 / len(offered))


def _rng(number: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng((number, *stream))


def _plot(rng: np.random.Generator) -> list[str]:
    """The actors' kinds of event, one to three. Each number of arrivals is equally likely."""
    arrivals = int(rng.choice(ARRIVALS))
    others = int(rng.integers(arrivals == 0, 4 - arrivals))
    return ["appear"] * arrivals + [
        _OTHERS[i] for i in rng.choice(len(_OTHERS), others, p=_OTHER_SHARES)
    ]


def _busy_plot(rng: np.random.Generator) -> list[str]:
    """The actors' kinds of event in a busy film, as many as there is time for."""
    while True:
        kinds = [EVENTS[i] for i in rng.choice(len(EVENTS), rng.choice(_BUSY), p=_BUSY_SHARES)]
        busy = sum(3 if kind == "move" else 1 for kind in kinds) + len(kinds) - 1
        if busy <= BEATS - 3 and kinds.count("appear") in ARRIVALS:
            return kinds


def _cast(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """n pairs of noun and colour, nouns unique, in random order."""
    theme = THEMES[rng.integers(len(THEMES))]
    found: dict[str, str] = {}
    while len(found) < n:
        noun, colour = _kind(rng, theme, False)
        found.setdefault(noun, colour)
    pairs = list(found.items())
    return [pairs[i] for i in rng.permutation(n)]


def _colours(noun: str) -> list[str]:
    """The colours in which a noun may be seen."""
    return [colour for colour in COLOURS if (noun, colour) not in WITHHELD]


def _detail(rng: np.random.Generator, kind: str, noun: str, colour: str) -> str:
    """Where to an actor moves, or its new colour; "" for other kinds of event."""
    if kind == "move":
        return tuple(DIRECTIONS)[rng.integers(4)]
    if kind == "recolour":
        others = [other for other in _colours(noun) if other != colour]
        return others[rng.integers(len(others))]
    return ""


def _schedule(rng: np.random.Generator, kinds: list[str]) -> list[tuple[int, int]]:
    """First and last beat of every event, in random order, a beat between any two. The first two
    beats and the last two are still."""
    longest = 5 if len(kinds) < 3 else 3
    lengths = [int(rng.integers(3, longest + 1)) if kind == "move" else 1 for kind in kinds]
    spare = BEATS - 3 - sum(lengths) - (len(kinds) - 1)
    waits = np.sort(rng.integers(0, spare + 1, len(kinds)))
    times = [(0, 0)] * len(kinds)
    beat = 1
    for wait, k in zip(waits, rng.permutation(len(kinds)), strict=True):
        times[k] = (beat + int(wait), beat + int(wait) + lengths[k])
        beat += lengths[k] + 1
    return times


def _stage(
    rng: np.random.Generator, cast: list[tuple[str, str]], kinds: list[str], details: list[str]
) -> list[tuple[Prop, Prop]] | None:
    """Every object before and after its event (twice the same for one that has none), each in a
    free rectangle that holds all it does; None where there is no room. Actors come first in the
    cast."""
    shares = (0.4, 0.45, 0.15) if len(cast) < 6 else (0.6, 0.4, 0.0)
    pairs: list[tuple[Prop, Prop]] = []
    for k, (noun, colour) in enumerate(cast):
        kind, detail = (kinds[k], details[k]) if k < len(kinds) else ("", "")
        size = tuple(SIZES)[rng.choice(3, p=shares)]
        before = _prop(rng, noun, colour, size)
        after = before
        if kind in ("grow", "shrink"):
            less, more = sorted(rng.choice(3, 2, replace=False))
            before = _prop(rng, noun, colour, tuple(SIZES)[less])
            after = replace(_prop(rng, noun, colour, tuple(SIZES)[more]), paint=before.paint)
            if kind == "shrink":
                before, after = after, before
        elif kind == "recolour":
            after = replace(before, colour=detail, paint=_mix(rng, detail))
        elif kind == "move":
            far = int(rng.integers(80, 201))
            dx, dy = (far * way for way in DIRECTIONS[detail])
            x0, y0, x1, y1 = before.box
            after = replace(before, box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy))
        pairs.append((before, after))
    unions = [_union(before.box, after.box) for before, after in pairs]
    places: list[tuple[int, int]] = [(0, 0)] * len(pairs)
    taken: list[tuple[int, int, int, int]] = []
    # The largest first, as the small ones find room beside them.
    for k in sorted(range(len(pairs)), key=lambda k: -_area(unions[k])):
        left, top, right, bottom = unions[k]
        box = _place(rng, right - left, bottom - top, SIDE, 0, 0, taken)
        if box is None:
            return None
        places[k] = (box[0] - left, box[1] - top)
    return [
        tuple(replace(prop, box=_shifted(prop.box, *place)) for prop in pair)
        for pair, place in zip(pairs, places, strict=True)
    ]


def _prop(rng: np.random.Generator, noun: str, colour: str, size: str) -> Prop:
    """An object about the origin."""
    pixels = int(rng.choice(SIZES[size]))
    h, w = _pictogram(noun, pixels)[0].shape
    box = (-(w // 2), -(h // 2), w - w // 2, h - h // 2)
    return Prop(noun, colour, size, box, pixels, _mix(rng, colour))


def _mix(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A paint near the colour of that name."""
    paint = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, 3), 0, 255)
    return tuple(int(channel) for channel in paint)


def _union(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """The smallest box that holds both."""
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        max(one[3], other[3]),
    )


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shifted(box: tuple[int, int, int, int], dx: int, dy: int) -> tuple[int, int, int, int]:
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


@lru_cache(maxsize=4)
def _painted(film: Film) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (frames, H, W, 3) and instances (frames, H, W)."""
    rng = _rng(film.number, _GROUND)
    level = ("clear", "cluttered")[rng.integers(2)]
    still = _grounds(rng, level, SIDE, SIDE)[2]()
    if level == "cluttered":
        _crumbs(rng, SIDE, SIDE)(still)
    layer = np.zeros((SIDE, SIDE), np.uint8)
    actors = [event.object for event in film.events]
    for k, prop in enumerate(film.objects):
        if k not in actors:
            _paint(still, layer, k, prop)
    pixels = np.repeat(still[None], film.frames, axis=0)
    instances = np.repeat(layer[None], film.frames, axis=0)
    for frame in range(film.frames):
        for k in actors:
            if prop := film.state(k, frame):
                _paint(pixels[frame], instances[frame], k, prop)
    pixels.flags.writeable = instances.flags.writeable = False  # shared by all who ask
    return pixels, instances


def _paint(pixels: np.ndarray, layer: np.ndarray, k: int, prop: Prop) -> None:
    """Paint the k-th object on a frame (H, W, 3) and its number, from 1, on the layer (H, W)."""
    solid, lines = _pictogram(prop.noun, prop.pixels)
    x0, y0, x1, y1 = prop.box
    area = pixels[y0:y1, x0:x1]
    area[solid] = prop.paint
    # Black needs light lines, every other colour dark ones, as in the scenes.
    area[lines] = np.array(prop.paint) * 0.45 if prop.colour != "black" else (150, 150, 156)
    layer[y0:y1, x0:x1][solid] = k + 1


# Below, a question and its options, the right one first; None where the film cannot carry it.
_Asked = tuple[str, list[str]] | None


def _which(kind: str, text: str, film: Film, rng: np.random.Generator) -> _Asked:
    doers = _doers(film, kind)
    if len(doers) != 1:
        return None
    others = [k for k in range(len(film.objects)) if k not in doers]
    return text, _nouns(film, doers + _some(rng, others, 3))


def _unchanged(film: Film, rng: np.random.Generator) -> _Asked:
    still = _still(film)
    if not still:
        return None
    actors = [event.object for event in film.events]
    return "Which object stays unchanged?", _nouns(film, _some(rng, still, 1) + actors)


def _does_move(film: Film, rng: np.random.Generator) -> _Asked:
    movers = _doers(film, "move")
    others = [k for k in range(len(film.objects)) if k not in movers]
    if not movers or not others:
        return None
    right = ("yes", "no")[rng.integers(2)]
    k = _some(rng, movers if right == "yes" else others, 1)[0]
    return f"Does the {film.objects[k].noun} move?", _first(right, ("yes", "no"))


def _direction(film: Film, rng: np.random.Generator) -> _Asked:
    for k in _some(rng, _doers(film, "move"), 1):
        text = f"In which direction does the {film.objects[k].noun} move?"
        return text, _first(film.event(k).detail, DIRECTIONS)
    return None


def _corner(when: str, film: Film, rng: np.random.Generator) -> _Asked:
    """Movers within a tenth of a middle line are not asked about, as in the scenes."""
    for k in _some(rng, _doers(film, "move"), 1):
        prop = film.objects[k] if when == "start" else film.event(k).after
        dx, dy = (c - SIDE / 2 for c in prop.centre)
        if min(abs(dx), abs(dy)) > SIDE / 10:
            right = f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"
            corners = ("top left", "top right", "bottom left", "bottom right")
            return f"Where is the {prop.noun} at the {when}?", _first(right, corners)
    return None


def _side(film: Film, rng: np.random.Generator) -> _Asked:
    """A mover and an object that it passes: on one side at first, on the other in the end."""
    for k in _some(rng, _doers(film, "move"), 1):
        event = film.event(k)
        axis = 0 if event.detail in ("left", "right") else 1
        path = [prop.centre[axis] for prop in (film.objects[k], event.after)]
        passed = [
            j
            for j in _still(film)
            if min(path) + SIDE / 20 < film.objects[j].centre[axis] < max(path) - SIDE / 20
        ]
        for j in _some(rng, passed, 1):
            mover, other = film.objects[k].noun, film.objects[j].noun
            if axis == 0:
                text = f"Is the {mover} to the left or to the right of the {other} at the end?"
                return text, _first(event.detail, ("left", "right"))
            text = f"Is the {mover} above or below the {other} at the end?"
            return text, _first("above" if event.detail == "up" else "below", ("above", "below"))
    return None


def _count(film: Film, rng: np.random.Generator) -> _Asked:
    right = NUMBERS[len(film.present(film.frames - 1))]
    return "How many objects are there at the end?", _first(right, [NUMBERS[n] for n in LAST])


def _arrivals(film: Film, rng: np.random.Generator) -> _Asked:
    right = NUMBERS[len(_doers(film, "appear"))]
    return "How many objects appear?", _first(right, [NUMBERS[n] for n in ARRIVALS])


def _order(film: Film, rng: np.random.Generator) -> _Asked:
    if len(film.events) < 2:
        return None
    said = [f"the {film.objects[e.object].noun} {SAYING[e.kind]}" for e in film.events]
    when, right = (("first", said[0]), ("last", said[-1]))[rng.integers(2)]
    return f"What happens {when}?", _first(right, said)


def _arrival_order(film: Film, rng: np.random.Generator) -> _Asked:
    nouns = _nouns(film, _doers(film, "appear"))
    if len(nouns) < 2:
        return None
    when, right = (("first", nouns[0]), ("last", nouns[-1]))[rng.integers(2)]
    return f"Which object appears {when}?", _first(right, nouns)


def _colour(film: Film, rng: np.random.Generator) -> _Asked:
    """The new colour, the old one and two more, all of them colours that the noun may have."""
    for k in _some(rng, _doers(film, "recolour"), 1):
        prop, new = film.objects[k], film.event(k).detail
        others = [c for c in _colours(prop.noun) if c not in (prop.colour, new)]
        options = [new, prop.colour, *(others[i] for i in rng.permutation(len(others))[:2])]
        return f"What color does the {prop.noun} become?", options
    return None


def _size(film: Film, rng: np.random.Generator) -> _Asked:
    for k in _some(rng, _doers(film, "grow", "shrink"), 1):
        right = f"it {SAYING[film.event(k).kind]}"
        text = f"How does the size of the {film.objects[k].noun} change?"
        return text, _first(right, ("it grows", "it shrinks"))
    return None


_ASKERS = {
    "appears": partial(_which, "appear", "Which object appears?"),
    "leaves": partial(_which, "leave", "Which object leaves?"),
    "moves": partial(_which, "move", "Which object moves?"),
    "recoloured": partial(_which, "recolour", "Which object changes its color?"),
    "unchanged": _unchanged,
    "does-move": _does_move,
    "direction": _direction,
    "start": partial(_corner, "start"),
    "end": partial(_corner, "end"),
    "side": _side,
    "count": _count,
    "arrivals": _arrivals,
    "order": _order,
    "arrival-order": _arrival_order,
    "colour": _colour,
    "size": _size,
}
SUBTASKS = tuple(_ASKERS)


def _doers(film: Film, *kinds: str) -> list[int]:
    """The objects that do one of these, in order of time."""
    return [event.object for event in film.events if event.kind in kinds]


def _still(film: Film) -> list[int]:
    """The objects that nothing happens to."""
    return [k for k in range(len(film.objects)) if film.event(k) is None]


def _some(rng: np.random.Generator, among: list[int], n: int) -> list[int]:
    """n of the list, or all where it has fewer, in random order."""
    return [among[i] for i in rng.permutation(len(among))[:n]]


def _nouns(film: Film, among: Iterable[int]) -> list[str]:
    return [film.objects[k].noun for k in among]


def _first(right: str, options: Iterable[str]) -> list[str]:
    """The options, the right one first."""
    return [right, *(option for option in options if option != right)]
