"""Two images at once: questions about pairs of scenes, and spot-the-difference pictures.

Mantis-Eval and MuirBench ask what no single image answers: which of two images shows a cup, what
moved from one to the other. The paper's game (section 9.3.2) asks for every difference between two
pictures printed side by side. Both need what photographs never give: certainty about what differs.
Here a pair is drawn from plans (`world.plan`), and the second image is often the first plan with
one piece changed and painted again, so that nothing else differs, to the pixel.

    pair = pairs("test", 1, "mantis")[0]
    pair.scenes[0].image, pair.scenes[1].image, pair.text, pair.answer
    game = composites("test", 1)[0]
    game.image, game.answer          # "the red cup is missing and the blue star became green."

| kind | mantis asks | muir asks |
|---|---|---|
| holder | which image shows a cup: first / second | the same, or both |
| number | the same number of objects: yes / no | how many in the two together |
| more | which image shows more objects: first / second | |
| ground | the same ground: yes / no | |
| word | which image shows the word: first / second | the word in the first (second) |
| colour | has the cup one colour in both: yes / no | its colour in the first (second) |
| moved | which way one object moved | the same |
| new, missing | which object came or went | the same |
| recoloured | which object has another colour | the same |

*Mantis* items are short answers of two kinds, or have four options. *Muir* items have three options
and "None of the choices provided", and come in twos as MuirBench's do: after each answerable item
the same images once more with the right option exchanged for a wrong one (for *holder*: with a
noun that neither image shows), so that None is right. Whoever always says None is right half the
time; that is the `chance` of every muir item.

What would give an answer away is dealt out, not drawn: over consecutive numbers every letter, and
each of two short answers, is right equally often. Where one option is right, the wrong ones come
from the same source: a new object and the old ones beside it were drawn as one scene, and which of
them is new was decided last.

*Busy* pairs are for training alone, where to compare is hard to learn from one change at a time: in
every other one most objects have moved or have another colour, the others are two scenes that share
some nouns and are as alike in number, ground and colours as not.

Everything follows from a number and its split, as in `world`: the scenes of a pair are drawn from
numbers of the same split, so that no image of a test pair was ever trained on. Scenes are *clear*
or *cluttered*; no object hides another.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from PIL import Image

from redlib.errors import RedlibError
from redlib.tabletop import world
from redlib.tabletop.questions import LETTER, LETTERS, NUMBERS, YES_NO
from redlib.tabletop.world import (
    COLOURS,
    GROUNDS,
    NOUNS,
    SIDE,
    SIZES,
    SPLITS,
    WITHHELD,
    WORDS,
    Piece,
    Plan,
    Scene,
    article,
)

_T = TypeVar("_T")

SPOT_THE_DIFFERENCE = (
    "The user is playing a spot-the-difference game. The provided image displays two pictures "
    "arranged either vertically or horizontally. Please help the user identify all the differences "
    "between the two images. Please provide accurate answers in a bullet list format."
)
"""The paper's prompt for composites, section 9.3.2."""

NONE = "None of the choices provided"
ONE_WORD = "Please answer this question with one word."
ORDER = ("first", "second")

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
LEAST_MOVE = 40  # pixels, about three patches
LEVELS = ("clear", "cluttered")
BUSY = {"moved": 0.4, "recoloured": 0.3, "missing": 0.08, "new": 0.08}
"""What happens to an object of a busy pair, how often; else nothing does."""
DIVIDER = 8  # pixels between the pictures of a composite
GREY = 128

CHECKLISTS = (
    "Which objects are in the first image?",
    "Which objects are in the second image?",
    "Which image shows which object?",
)
BOTH = " ".join(CHECKLISTS[:2])
SAME_NUMBER = f"Do the two images show the same number of objects? {YES_NO}"
CHANGED = "What changed from the first image to the second?"
"""Asked in training alone."""

FRAMES = (
    SPOT_THE_DIFFERENCE,
    f"Which image shows a cup, the first or the second? {ONE_WORD}",
    "Which image shows an umbrella?\nA. the first image\nB. the second image\nC. both images\n"
    f"D. {NONE}\n{LETTER}",
    SAME_NUMBER,
    "How many objects are in the two images together?",
    "Which image shows more objects, the first or the second?",
    "Do the two images show the same ground?",
    "Which image shows the word open, the first or the second?",
    "Which word is written in the second image?",
    "Does the cup have the same color in both images?",
    "What color is the cup in the second image?",
    "Which way did the cup move from the first image to the second? left right up down",
    "Which object is new in the second image? Which object is missing in the second image?",
    "Which object has another color in the second image?",
    "yes no",
    "the red cup is missing, the blue star became green, the black cat moved left, the red sun "
    "became an anchor and a small pink cow is new.",
)
"""Texts that hold every word of questions and answers but the world's own lists of words."""


@dataclass(frozen=True)
class Pair:
    """One question about two images.

    Attributes:
        id: split, number and schema, "test-60000012.mantis"; ".muir.none" where None is right.
        kind: one of KINDS[schema]; "changed" or "alike" where the pair is busy.
        schema: "mantis", "muir" or "busy".
        scenes: the first image and the second.
        text: what follows the images in the user's turn.
        answer: the right answer, lower case, without final punctuation.
        chance: accuracy of the best answers given without the images.
    """

    id: str
    kind: str
    schema: str
    scenes: tuple[Scene, Scene]
    text: str
    answer: str
    chance: float


@dataclass(frozen=True)
class Composite:
    """One image of two pictures, the second with one to three planted differences.

    Attributes:
        id: split and number, "test-60000012.spot".
        pixels: (336, 680, 3) uint8 side by side, (680, 336, 3) stacked; first picture left or top.
        scenes: the first picture and the second.
        stacked: whether the second lies below the first, else to its right.
        differences: one tuple each, left to right: ("missing", colour, noun), ("new", size,
            colour, noun), ("recoloured", colour, noun, new colour), ("moved", colour, noun, way),
            ("exchanged", colour, noun, new noun). Each names one object alone.
    """

    id: str
    pixels: np.ndarray = field(repr=False)
    scenes: tuple[Scene, Scene]
    stacked: bool
    differences: tuple[tuple[str, ...], ...]

    @cached_property
    def image(self) -> Image.Image:
        """Both pictures as the model is shown them, RGB."""
        return Image.fromarray(self.pixels)

    @property
    def answer(self) -> str:
        """The differences as one sentence, which `differences_named` reads."""
        return _sentence(self.differences)


def pairs(split: str, n: int, schema: str, *, start: int = 0) -> list[Pair]:
    """The n items of a split from its `start`-th on; kinds take turns. A muir number gives two
    items, the second unanswerable.

    Raises:
        RedlibError: an unknown split or schema, or more items than the split holds.
    """
    if schema not in KINDS:
        raise RedlibError(f"schema must be one of {', '.join(KINDS)}; got {schema!r}")
    each = 2 if schema == "muir" else 1
    numbers = _numbers(split, n, start, each)
    found = [pair for number in numbers for pair in _ask(number, split, schema)]
    return found[start % each :][:n]


def busy_pairs(split: str, n: int, *, start: int = 0) -> list[Pair]:
    """The n busy pairs of a split from its `start`-th on, "changed" and "alike" in turn. The first
    are asked what changed, in the words of a composite's answer, the second whether they show the
    same number of objects.

    Raises:
        RedlibError: an unknown split, or more pairs than the split holds.
    """
    return [_busy(number, split) for number in _numbers(split, n, start, 1)]


def composites(split: str, n: int, *, start: int = 0) -> list[Composite]:
    """The n composites of a split from its `start`-th on.

    Raises:
        RedlibError: an unknown split, or more composites than the split holds.
    """
    return [_compose(number, split) for number in _numbers(split, n, start, 1)]


def redraw(id: str) -> Pair | Composite:
    """The pair or composite of an id.

    Raises:
        RedlibError: not the id of a pair or composite.
    """
    found = re.fullmatch(r"(\w+)-(\d+)\.(?:(mantis)|(muir)(\.none)?|(busy)|spot)", id)
    if not found or found[1] not in SPLITS or int(found[2]) not in SPLITS[found[1]]:
        raise RedlibError(f"{id!r} is not the id of a pair, such as 'test-60000012.muir.none'")
    split, number, mantis, muir, none, busy = found.groups()
    if busy:
        return _busy(int(number), split)
    if not (mantis or muir):
        return _compose(int(number), split)
    return _ask(int(number), split, mantis or muir)[1 if none else 0]


def differences_named(text: str) -> set[tuple[str, ...]]:
    """The differences that a text names, as tuples like `Composite.differences`, in whatever order
    and layout; what is no clause of the grammar names none.

    With `planted = set(composite.differences)`, `named & planted` are found, `named - planted`
    invented.
    """
    plain = " ".join(text.lower().split())
    return {
        (change, *found.groups())
        for change, clause in _CLAUSES.items()
        for found in re.finditer(clause, plain)
    }


def clause(change: str, *words: str) -> str:
    """A difference, as in `Composite.differences`, in words."""
    if change == "new":
        size, colour, noun = words
        return f"{article(size)} {size} {colour} {noun} is new"
    colour, noun, *rest = words
    if change == "missing":
        return f"the {colour} {noun} is missing"
    if change == "moved":
        return f"the {colour} {noun} moved {rest[0]}"
    other = rest[0] if change == "recoloured" else f"{article(rest[0])} {rest[0]}"
    return f"the {colour} {noun} became {other}"


def _sentence(differences: Sequence[tuple[str, ...]]) -> str:
    clauses = [clause(*difference) for difference in differences]
    if len(clauses) == 1:
        return f"{clauses[0]}."
    return f"{', '.join(clauses[:-1])} and {clauses[-1]}."


_SIZE, _COLOUR, _NOUN, _WAY = (f"({'|'.join(words)})" for words in (SIZES, COLOURS, NOUNS, WAYS))
_CLAUSES = {
    "missing": rf"\bthe {_COLOUR} {_NOUN} is missing\b",
    "new": rf"\ban? {_SIZE} {_COLOUR} {_NOUN} is new\b",
    "recoloured": rf"\bthe {_COLOUR} {_NOUN} became {_COLOUR}\b",
    "moved": rf"\bthe {_COLOUR} {_NOUN} moved {_WAY}\b",
    "exchanged": rf"\bthe {_COLOUR} {_NOUN} became an? {_NOUN}\b",
}
CHANGES = tuple(_CLAUSES)
"""What may differ between the pictures of a composite."""


def _numbers(split: str, n: int, start: int, each: int) -> range:
    """The numbers of the n items from `start` on, where every number gives `each` items."""
    if split not in SPLITS:
        raise RedlibError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    numbers = SPLITS[split]
    if n < 0 or start < 0 or start + n > len(numbers) * each:
        raise RedlibError(f"{split} holds {len(numbers) * each} items; got start {start}, n {n}")
    return numbers[start // each : -(-(start + n) // each)]


# --- two images -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A question before its options are laid out.

    Attributes:
        plans: of the two images.
        text: the question.
        right: the right answer or option.
        wrong: the wrong options; none where the answer is short.
        unanswerable: the same question about what neither image shows, "" where it is the options
            that make a question unanswerable.
    """

    plans: tuple[Plan, Plan]
    text: str
    right: str
    wrong: tuple[str, ...] = ()
    unanswerable: str = ""


def _ask(number: int, split: str, schema: str) -> list[Pair]:
    """The item of a number (mantis), or the answerable one and the unanswerable one (muir)."""
    # The second entry keeps the streams of the schemas apart.
    rng = np.random.default_rng([number, 1 + list(KINDS).index(schema)])
    # Kinds take turns; every kind deals its answers by how often its turn has come.
    turn, k = divmod(number, len(KINDS[schema]))
    kind = KINDS[schema][k]
    case = _MAKERS[schema][kind](rng, split, turn % 2)
    id = f"{split}-{number}.{schema}"
    scenes = _paint(id, *case.plans)
    place = turn % 4
    wrong = [case.wrong[i] for i in rng.permutation(len(case.wrong))]
    if schema == "mantis":
        if not wrong:
            return [Pair(id, kind, schema, scenes, case.text, case.right, 0.5)]
        text = _listing(case.text, {place: case.right}, wrong)
        return [Pair(id, kind, schema, scenes, text, LETTERS[place].lower(), 0.25)]
    last = (place + 1 + turn // 4 % 3) % 4
    text = _listing(case.text, {place: case.right, last: NONE}, wrong[:2])
    if case.unanswerable:
        unanswerable = _listing(case.unanswerable, {place: case.right, last: NONE}, wrong[:2])
    else:
        unanswerable = _listing(case.text, {place: wrong[2], last: NONE}, wrong[:2])
    return [
        Pair(id, kind, schema, scenes, text, LETTERS[place].lower(), 0.5),
        Pair(f"{id}.none", kind, schema, scenes, unanswerable, LETTERS[last].lower(), 0.5),
    ]


def _listing(text: str, placed: dict[int, str], others: Sequence[str]) -> str:
    """The question, its options with a letter each, and how to answer."""
    rest = iter(others)
    lines = [f"{x}. {placed[k] if k in placed else next(rest)}" for k, x in enumerate(LETTERS)]
    return "\n".join([text, *lines, LETTER])


def _paint(id: str, first: Plan, second: Plan) -> tuple[Scene, Scene]:
    return (
        world.paint(replace(first, id=f"{id}/1")),
        world.paint(replace(second, id=f"{id}/2")),
    )


def _pick(rng: np.random.Generator, items: Collection[_T]) -> _T:
    return tuple(items)[int(rng.integers(len(items)))]


def _few(rng: np.random.Generator, items: Sequence[str]) -> tuple[str, ...]:
    """Three of the items."""
    return tuple(items[i] for i in rng.permutation(len(items))[:3])


def _base(
    rng: np.random.Generator,
    split: str,
    fits: Callable[[Plan], bool] = lambda plan: True,
    *,
    objects: int | None = None,
) -> Plan:
    """A plan of a number of the split that fits."""
    numbers = SPLITS[split]
    while True:
        number = int(rng.integers(numbers.start, numbers.stop))
        found = world.plan(number, split=split, level=_pick(rng, LEVELS), objects=objects)
        # A full table may leave no room for the last object.
        if fits(found) and objects in (None, len(found.pieces)):
            return found


def _nouns(plan: Plan) -> list[str]:
    return [piece.thing.noun for piece in plan.pieces]


def _unique(plan: Plan) -> list[Piece]:
    """The pieces whose noun occurs once: "the cup" names one of them."""
    nouns = _nouns(plan)
    return [piece for piece in plan.pieces if nouns.count(piece.thing.noun) == 1]


def _only(one: Plan, *others: Plan) -> list[str]:
    """The nouns of a plan that no other holds, in order."""
    elsewhere = {noun for other in others for noun in _nouns(other)}
    return [noun for noun in dict.fromkeys(_nouns(one)) if noun not in elsewhere]


def _colours(noun: str, *but: str) -> list[str]:
    """The colours in which a noun may be shown."""
    return [c for c in COLOURS if c not in but and (noun, c) not in WITHHELD]


def _boxes(plan: Plan, but: Piece) -> list[tuple[int, int, int, int]]:
    """Boxes of all that lies on the ground but one piece."""
    card = [plan.card] if plan.card else []
    return card + [piece.thing.box for piece in plan.pieces if piece is not but]


def _free(box: tuple[int, int, int, int], taken: list[tuple[int, int, int, int]]) -> bool:
    return min(box[:2]) >= 2 and max(box[2:]) <= SIDE - 2 and world.apart(box, taken)


def _moved(
    rng: np.random.Generator, piece: Piece, way: str, taken: list[tuple[int, int, int, int]]
) -> Piece | None:
    """The piece moved one way by LEAST_MOVE or more, None if there is no room."""
    dx, dy = WAYS[way]
    x0, y0, x1, y1 = piece.thing.box
    reached = [
        (x0 + dx * d, y0 + dy * d, x1 + dx * d, y1 + dy * d) for d in range(LEAST_MOVE, SIDE)
    ]
    free = [box for box in reached if _free(box, taken)]
    return replace(piece, thing=replace(piece.thing, box=_pick(rng, free))) if free else None


def _recoloured(rng: np.random.Generator, piece: Piece, colour: str) -> Piece:
    paint = world.shade(colour, rng)
    return replace(piece, thing=replace(piece.thing, colour=colour), paint=paint)


def _exchanged(piece: Piece, noun: str, taken: list[tuple[int, int, int, int]]) -> Piece | None:
    """The piece with another noun about the same centre, None if there is no room."""
    width, height = world.outline(noun, piece.scale)
    x0, y0 = (round(c - n / 2) for c, n in zip(piece.thing.centre, (width, height), strict=True))
    box = (x0, y0, x0 + width, y0 + height)
    if not _free(box, taken):
        return None
    return replace(piece, thing=replace(piece.thing, noun=noun, box=box))


def _without(plan: Plan, piece: Piece) -> Plan:
    return replace(plan, pieces=tuple(p for p in plan.pieces if p is not piece))


def _with(plan: Plan, piece: Piece, instead: Piece) -> Plan:
    return replace(plan, pieces=tuple(instead if p is piece else p for p in plan.pieces))


# Each maker below draws one case: (rng, split, which of two answers is dealt) -> _Case.


def _holder(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    while True:
        plans = _base(rng, split), _base(rng, split)
        only = _only(plans[dealt], plans[1 - dealt])
        if only:
            noun = _pick(rng, only)
            text = f"Which image shows {article(noun)} {noun}, the first or the second? {ONE_WORD}"
            return _Case(plans, text, ORDER[dealt])


def _holders(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    """The first, the second or both; unanswerable by a noun that neither shows."""
    options = ("the first image", "the second image", "both images")
    right = _pick(rng, options)
    while True:
        # The noun that neither shows comes from a third scene, so that it is as common as others.
        plans = _base(rng, split), _base(rng, split)
        shown = _only(*plans) if right != options[1] else _only(*reversed(plans))
        lost = _only(_base(rng, split), *plans)
        if not shown or not lost:
            continue
        noun, neither = _pick(rng, shown), _pick(rng, lost)
        if right == options[2]:
            second = _showing(rng, plans[1], noun, _colours(noun))
            if second is None:
                continue
            plans = plans[0], second
        return _Case(
            plans,
            f"Which image shows {article(noun)} {noun}?",
            right,
            tuple(option for option in options if option != right),
            f"Which image shows {article(neither)} {neither}?",
        )


def _showing(
    rng: np.random.Generator, plan: Plan, noun: str, colours: Sequence[str]
) -> Plan | None:
    """The plan with one piece exchanged for a noun in one of the colours, None if there is no
    room."""
    piece = _pick(rng, plan.pieces)
    other = _exchanged(piece, noun, _boxes(plan, piece))
    return other and _with(plan, piece, _recoloured(rng, other, _pick(rng, colours)))


def _same_number(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    first, second = _two_numbers(rng)
    plans = (
        _base(rng, split, objects=first),
        _base(rng, split, objects=second if dealt else first),
    )
    return _Case(plans, SAME_NUMBER, ("yes", "no")[dealt])


def _more(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    numbers = sorted(_two_numbers(rng), reverse=not dealt)
    plans = tuple(_base(rng, split, objects=number) for number in numbers)
    text = f"Which image shows more objects, the first or the second? {ONE_WORD}"
    return _Case(plans, text, ORDER[dealt])


def _two_numbers(rng: np.random.Generator) -> list[int]:
    """Two different numbers of objects, one to six."""
    return (1 + rng.permutation(6)[:2]).tolist()


def _total(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    totals = range(2, len(NUMBERS))
    total = _pick(rng, totals)
    first = int(rng.integers(max(1, total - 6), min(6, total - 1) + 1))
    plans = _base(rng, split, objects=first), _base(rng, split, objects=total - first)
    wrong = [NUMBERS[k] for k in totals if k != total]
    return _Case(
        plans,
        "How many objects are in the two images together?",
        NUMBERS[total],
        _few(rng, wrong),
    )


def _same_ground(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    first = _base(rng, split, lambda plan: not plan.second)
    wanted = _pick(rng, [g for g in GROUNDS if g != first.ground]) if dealt else first.ground
    second = _base(rng, split, lambda plan: plan.ground == wanted and not plan.second)
    text = f"Do the two images show the same ground? {YES_NO}"
    return _Case((first, second), text, ("yes", "no")[dealt])


def _word_holder(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plans = _two_words(rng, split)
    text = f"Which image shows the word {plans[dealt].word}, the first or the second? {ONE_WORD}"
    return _Case(plans, text, ORDER[dealt])


def _word_in(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plans = _two_words(rng, split)
    k = int(rng.integers(2))
    right, other = plans[k].word, plans[1 - k].word
    wrong = _few(rng, [word for word in WORDS if word not in (right, other)])
    text = f"Which word is written in the {ORDER[k]} image?"
    return _Case(plans, text, right, (other, *wrong[:2]))


def _two_words(rng: np.random.Generator, split: str) -> tuple[Plan, Plan]:
    """Two plans with a word each, not the same."""
    first = _base(rng, split, lambda plan: plan.word != "")
    return first, _base(rng, split, lambda plan: plan.word not in ("", first.word))


def _same_colour(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plans, noun, _ = _one_noun(rng, split, same=not dealt)
    text = f"Does the {noun} have the same color in both images? {YES_NO}"
    return _Case(plans, text, ("yes", "no")[dealt])


def _colour_in(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plans, noun, colours = _one_noun(rng, split, same=False)
    k = int(rng.integers(2))
    wrong = _few(rng, _colours(noun, *colours))
    text = f"What color is the {noun} in the {ORDER[k]} image?"
    return _Case(plans, text, colours[k], (colours[1 - k], *wrong[:2]))


def _one_noun(
    rng: np.random.Generator, split: str, *, same: bool
) -> tuple[tuple[Plan, Plan], str, tuple[str, str]]:
    """Two plans that both show a noun once, the noun, and its colours in them."""
    while True:
        first, base = _base(rng, split), _base(rng, split)
        shared = [p.thing for p in _unique(first) if p.thing.noun in _only(first, base)]
        if not shared:
            continue
        thing = _pick(rng, shared)
        colours = [thing.colour] if same else _colours(thing.noun, thing.colour)
        second = _showing(rng, base, thing.noun, colours)
        if second:
            colour = next(p.thing.colour for p in second.pieces if p.thing.noun == thing.noun)
            return (first, second), thing.noun, (thing.colour, colour)


def _way(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    way = _pick(rng, WAYS)
    while True:
        plan = _base(rng, split, _unique)
        piece = _pick(rng, _unique(plan))
        moved = _moved(rng, piece, way, _boxes(plan, piece))
        if moved:
            text = f"Which way did the {piece.thing.noun} move from the first image to the second?"
            wrong = tuple(other for other in WAYS if other != way)
            return _Case((plan, _with(plan, piece, moved)), text, way, wrong)


def _new(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plan, piece, others = _one_of_several(rng, split)
    text = "Which object is new in the second image?"
    return _Case((_without(plan, piece), plan), text, piece.thing.noun, others)


def _missing(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plan, piece, others = _one_of_several(rng, split)
    text = "Which object is missing in the second image?"
    return _Case((plan, _without(plan, piece)), text, piece.thing.noun, others)


def _other_colour(rng: np.random.Generator, split: str, dealt: int) -> _Case:
    plan, piece, others = _one_of_several(rng, split)
    colour = _pick(rng, _colours(piece.thing.noun, piece.thing.colour))
    second = _with(plan, piece, _recoloured(rng, piece, colour))
    text = "Which object has another color in the second image?"
    return _Case((plan, second), text, piece.thing.noun, others)


def _one_of_several(rng: np.random.Generator, split: str) -> tuple[Plan, Piece, tuple[str, ...]]:
    """A plan of four to six different nouns, one of its pieces, and three other nouns of it."""
    objects = _pick(rng, range(4, 7))
    plan = _base(rng, split, lambda plan: len(_unique(plan)) == objects, objects=objects)
    piece = _pick(rng, plan.pieces)
    return plan, piece, _few(rng, [noun for noun in _nouns(plan) if noun != piece.thing.noun])


_CHANGED = {"moved": _way, "new": _new, "missing": _missing, "recoloured": _other_colour}
_MAKERS = {
    "mantis": {
        "holder": _holder,
        "number": _same_number,
        "more": _more,
        "ground": _same_ground,
        "word": _word_holder,
        "colour": _same_colour,
        **_CHANGED,
    },
    "muir": {
        "holder": _holders,
        "number": _total,
        "word": _word_in,
        "colour": _colour_in,
        **_CHANGED,
    },
}
KINDS = {schema: tuple(makers) for schema, makers in _MAKERS.items()}
"""Per schema, what is asked; a number's kind is its rest by how many there are."""


# --- two images for training alone ----------------------------------------------------------------


def _busy(number: int, split: str) -> Pair:
    rng = np.random.default_rng([number, 2 + len(KINDS)])
    id = f"{split}-{number}.busy"
    if number % 2:
        plans = _alike(rng, split)
        same = len(plans[0].pieces) == len(plans[1].pieces)
        answer = "yes" if same else "no"
        return Pair(id, "alike", "busy", _paint(id, *plans), SAME_NUMBER, answer, 0.5)
    first, second, differences = _changed(rng, split)
    scenes = _paint(id, first, second)
    return Pair(id, "changed", "busy", scenes, CHANGED, _sentence(differences), 0.0)


def _alike(rng: np.random.Generator, split: str) -> tuple[Plan, Plan]:
    """Two plans, by even chances each of the same number of objects and on the same ground, or as
    it happens. Up to three nouns of the first are in the second too, by even chances in the same
    colour or in another."""
    first = _base(rng, split, lambda plan: not plan.second)
    objects = len(first.pieces) if rng.random() < 0.5 else None
    grounds = (first.ground,) if rng.random() < 0.5 else GROUNDS
    second = _base(
        rng, split, lambda plan: plan.ground in grounds and not plan.second, objects=objects
    )
    for piece in _unique(first)[:3]:
        thing = piece.thing
        if thing.noun in _nouns(second):
            continue
        colours = [thing.colour] if rng.random() < 0.5 else _colours(thing.noun, thing.colour)
        second = _showing(rng, second, thing.noun, colours) or second
    return first, second


def _changed(
    rng: np.random.Generator, split: str
) -> tuple[Plan, Plan, tuple[tuple[str, ...], ...]]:
    """A plan, the same with most objects changed, by even chances on another's ground, and the
    differences."""
    kinds = (*BUSY, "")
    shares = (*BUSY.values(), 1 - sum(BUSY.values()))
    planted = None
    while planted is None:
        plan = _base(rng, split, objects=int(rng.integers(3, 7)))
        drawn = [kinds[i] for i in rng.choice(len(kinds), len(_unique(plan)), p=shares)]
        changes = [change for change in drawn if change]
        planted = _plant(rng, plan, changes) if changes else None
    first, second, differences = planted
    if not first.word and rng.random() < 0.5:
        other = _base(rng, split, lambda plan: not plan.word)
        second = replace(second, table=other.table, ground=other.ground, second=other.second)
    return first, second, differences


# --- one image of two pictures --------------------------------------------------------------------


def _compose(number: int, split: str) -> Composite:
    """The composite of a number: one, two or three differences in turn, side by side and stacked
    in turn."""
    rng = np.random.default_rng([number, 1 + len(KINDS)])
    turn, rest = divmod(number, 3)
    changes = [_pick(rng, CHANGES) for _ in range(1 + rest)]
    planted = None
    while planted is None:
        # One object more than there are changes, so that no picture is empty.
        plan = _base(rng, split, objects=int(rng.integers(len(changes) + 1, 7)))
        planted = _plant(rng, plan, changes)
    first, second, differences = planted
    id = f"{split}-{number}.spot"
    scenes = _paint(id, first, second)
    stacked = bool(turn % 2)
    between = (DIVIDER, SIDE, 3) if stacked else (SIDE, DIVIDER, 3)
    pixels = np.concatenate(
        [scenes[0].pixels, np.full(between, GREY, np.uint8), scenes[1].pixels],
        axis=0 if stacked else 1,
    )
    return Composite(id, pixels, scenes, stacked, differences)


def _plant(
    rng: np.random.Generator, plan: Plan, changes: Sequence[str]
) -> tuple[Plan, Plan, tuple[tuple[str, ...], ...]] | None:
    """The two plans and the differences from left to right, None if there is no room."""
    unique = _unique(plan)
    if len(unique) < len(changes):
        return None
    first = second = plan
    absent = [noun for noun in NOUNS if noun not in _nouns(plan)]
    chosen = sorted(
        rng.permutation(len(unique))[: len(changes)], key=lambda k: unique[k].thing.centre
    )
    differences = []
    for change, piece in zip(changes, (unique[k] for k in chosen), strict=True):
        thing = piece.thing
        # What lies anywhere in either picture keeps its place to itself.
        taken = _boxes(plan, piece) + [p.thing.box for p in second.pieces if p is not piece]
        changed, named = piece, (thing.colour, thing.noun)
        if change == "missing":
            second = _without(second, piece)
        elif change == "new":
            first = _without(first, piece)
            named = (thing.size, *named)
        elif change == "recoloured":
            colour = _pick(rng, _colours(thing.noun, thing.colour))
            changed, named = _recoloured(rng, piece, colour), (*named, colour)
        elif change == "moved":
            way = _pick(rng, WAYS)
            changed, named = _moved(rng, piece, way, taken), (*named, way)
        else:
            noun = _pick(rng, [n for n in absent if (n, thing.colour) not in WITHHELD])
            absent.remove(noun)
            changed, named = _exchanged(piece, noun, taken), (*named, noun)
        if changed is None:
            return None
        second = _with(second, piece, changed)
        differences.append((change, *named))
    return first, second, tuple(differences)
