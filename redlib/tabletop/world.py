"""The tabletop world: scenes whose truth is known to the pixel.

A study of *redundant* visual tokens needs images in which it is known which patches carry
something. Photographs never come with that knowledge, so this world draws it: one to seven named,
coloured pictograms on a ground, sometimes beside a card with a written word. For every scene the
mask of every object is exact, and so is the fraction of every patch that each object covers:

    scene = scenes("test", 1)[0]
    scene.image                     # PIL image, 336 x 336
    scene.objects[0].phrase         # "small red cup"
    scene.coverage()[0]             # (576,) share of each 14 x 14 patch under that object

Objects are glyphs of DejaVu Sans, the font that matplotlib ships, with their holes filled so that a
pictogram is a solid thing with lines on it. Nouns come in themes: a cat is seen with a mouse more
often than with an anchor, which gives POPE's popular and adversarial negatives their meaning.
Two grounds are textures with a large blank area on them (a plate, a sheet of paper): many patches
that say nothing, whatever lies beside them.

Scenes come in three levels of difficulty, drawn by lot:

* *clear*: objects stand apart on one ground;
* *cluttered*: crumbs lie on the ground, which nobody names, except in a large free rectangle; a
  second ground may meet the first, and objects may throw shadows;
* *crowded*: the same with four to seven, mostly smaller, objects that may hide a part of each
  other; at least 60 % of each stays visible.

Sixteen pairs of noun and colour are withheld: no scene shows them unless asked to
(`withheld=True`), so that they are new to whoever was trained on the others, as NoCaps is.

Everything follows from the scene's id, which holds its number and what was asked of it: `redraw`
gives the scene again. The three splits are disjoint ranges of numbers.

All chance is spent on the plan, and painting it is free of chance: whoever changes one piece of a
plan and paints it again gets the same scene to the pixel but for that piece (`pairs` does so). Nor
has a plan any pixels before they are asked for: to count what scenes show costs a fifth.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from redlib.errors import RedlibError
from redlib.geometry import Sight

PATCH = 14
SIDE = 336
SIGHT = Sight(SIDE, PATCH)

GLYPHS = {
    "umbrella": 0x2602, "star": 0x2605, "cup": 0x2615, "anchor": 0x2693,
    "scissors": 0x2702, "horse": 0x265E, "snowman": 0x2603, "heart": 0x2665,
    "clover": 0x2618, "crown": 0x265B, "castle": 0x265C, "pawn": 0x265F,
    "phone": 0x260E, "plane": 0x2708, "envelope": 0x2709, "pencil": 0x270E,
    "flag": 0x2691, "gear": 0x2699, "scales": 0x2696, "skull": 0x2620,
    "hammer": 0x2692, "flower": 0x273F, "sun": 0x2600, "moon": 0x263E,
    "cloud": 0x2601, "music": 0x266B, "cat": 0x1F431, "mouse": 0x1F42D,
    "cow": 0x1F42E, "monkey": 0x1F435, "wheel": 0x2638, "house": 0x2617,
}  # fmt: skip
NOUNS = tuple(GLYPHS)

THEMES = (
    ("horse", "crown", "castle", "pawn"),
    ("umbrella", "snowman", "sun", "moon", "cloud"),
    ("cat", "mouse", "cow", "monkey"),
    ("phone", "envelope", "pencil", "scissors"),
    ("plane", "anchor", "wheel", "flag", "house"),
    ("gear", "hammer", "scales", "skull"),
    ("star", "heart", "clover", "flower", "music", "cup"),
)

COLOURS = {
    "red": (214, 39, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 212, 30),
    "green": (30, 150, 60),
    "blue": (31, 90, 210),
    "purple": (128, 58, 178),
    "pink": (242, 112, 182),
    "black": (38, 38, 44),
    "brown": (118, 72, 32),
    "teal": (30, 165, 170),
}

WITHHELD = frozenset(
    [(noun, "brown") for noun in
     ("umbrella", "anchor", "horse", "clover", "castle", "envelope", "skull", "moon")]
    + [(noun, "teal") for noun in
       ("star", "scissors", "heart", "crown", "pencil", "hammer", "cat", "house")]
)  # fmt: skip
"""Pairs of noun and colour that no scene shows unless asked to."""

LEVELS = ("clear", "cluttered", "crowded")
LEVEL_SHARES = (0.4, 0.35, 0.25)
COUNTS = {  # chances of one to seven objects
    "clear": (0.18, 0.17, 0.16, 0.15, 0.13, 0.11, 0.10),
    "cluttered": (0.18, 0.17, 0.16, 0.15, 0.13, 0.11, 0.10),
    "crowded": (0, 0, 0, 0.25, 0.25, 0.25, 0.25),
}
VISIBLE = 0.6  # of an object, at least

SIZES = {"small": (32, 38, 42), "medium": (58, 64), "large": (88, 96), "huge": (130, 140)}
SIZE_WEIGHTS = {
    "clear": (0.35, 0.35, 0.2, 0.1),
    "cluttered": (0.35, 0.35, 0.2, 0.1),
    "crowded": (0.45, 0.38, 0.15, 0.02),
}

SIMPLE = ("plain", "noisy", "wood", "gradient", "stripes")
GROUNDS = (*SIMPLE, "plate", "sheet")
UNDERLAYS = ("noisy", "wood", "stripes")  # what a plate or a sheet lies on
PALE = ((236, 230, 218), (214, 226, 236), (222, 234, 214), (240, 222, 222), (226, 220, 238),
        (206, 206, 202), (244, 238, 206))  # fmt: skip

WORDS = ("open", "exit", "sale", "stop", "help", "free", "cafe", "bank", "taxi", "park", "news",
         "zone", "milk", "jazz", "gold", "west")  # fmt: skip

# Disjoint by construction: a scene's number is its seed.
SPLITS = {
    "train": range(0, 50_000_000),
    "calibration": range(50_000_000, 60_000_000),
    "test": range(60_000_000, 70_000_000),
}

_POPULARITY = np.array([1.0 / (rank + 8) for rank in range(len(NOUNS))])
_POPULARITY /= _POPULARITY.sum()


@dataclass(frozen=True)
class Thing:
    """One object of a scene: what it is and where its box lies, in pixels (left, top, right,
    bottom)."""

    noun: str
    colour: str
    size: str
    box: tuple[int, int, int, int]

    @property
    def phrase(self) -> str:
        """As captions name it: size, colour and noun, "small red cup"."""
        return f"{self.size} {self.colour} {self.noun}"

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """A drawn scene and its truth.

    Attributes:
        id: split, number and what was asked of the scene, "test-60000012" or
            "test-60000012.504x336.objects=1"; see `redraw`.
        pixels: (H, W, 3) uint8.
        objects: the pictograms, left to right.
        word: the written word, or "" where there is none.
        ground: one of GROUNDS.
        instance: (H, W) uint8; 0 on the ground, k where the k-th object (from 1) is to be seen,
            255 on the card.
        level: one of LEVELS.
        second: the ground that meets the first, "" for none.
    """

    id: str
    pixels: np.ndarray = field(repr=False)
    objects: tuple[Thing, ...]
    word: str
    ground: str
    instance: np.ndarray = field(repr=False)
    level: str = "clear"
    second: str = ""

    @property
    def number(self) -> int:
        """The number that it was drawn from, which its id holds."""
        return int(re.search(r"-(\d+)", self.id)[1])

    @cached_property
    def image(self) -> Image.Image:
        """The scene as models are shown it, RGB."""
        return Image.fromarray(self.pixels)

    def coverage(self, sight: Sight = SIGHT) -> np.ndarray:
        """Fraction of every patch under every object, (len(objects), L), raster order, as a model
        of that sight sees the scene."""
        return _shares(self.instance, sight, len(self.objects))[1 : 1 + len(self.objects)]

    def word_coverage(self, sight: Sight = SIGHT) -> np.ndarray:
        """Fraction of every patch under the card with the word, (L,)."""
        return _shares(self.instance, sight, len(self.objects))[-1]

    @property
    def caption(self) -> str:
        """One sentence that names everything."""
        return self.sentence(range(len(self.objects)))

    def sentence(self, chosen: Iterable[int], *, word: bool = True) -> str:
        """One sentence that names the chosen objects, the word unless told not to, and the ground:
        "a cup in small red and large blue, a star in huge teal, the word open on a wood ground."

        Nouns come in the order of NOUNS, so that what comes next depends on what was said last and
        on what is there. Objects of one noun are named together: where the same noun may come
        again, repeating what was said last is often right, and that is what is learned."""
        parts = []
        for noun, alike in self._by_noun(chosen):
            looks = (f"{self.objects[k].size} {self.objects[k].colour}" for k in alike)
            parts.append(f"{article(noun)} {noun} in {' and '.join(looks)}")
        if self.word and word:
            parts.append(f"the word {self.word}")
        under = f"{self.ground} and {self.second}" if self.second else self.ground
        return f"{', '.join(parts)} on a {under} ground."

    def _by_noun(self, chosen: Iterable[int]) -> list[tuple[str, list[int]]]:
        """The chosen objects of each noun from left to right, nouns in the order of NOUNS."""
        alike: dict[str, list[int]] = {}
        for k in sorted(chosen, key=lambda k: (NOUNS.index(self.objects[k].noun), k)):
            alike.setdefault(self.objects[k].noun, []).append(k)
        return list(alike.items())

    def details(self, k: int) -> str:
        """Colour, size and place of the k-th object, in that order; no place near the middle."""
        thing, side = self.objects[k], min(self.instance.shape)
        dx, dy = (c - n / 2 for c, n in zip(thing.centre, self.instance.shape[::-1], strict=True))
        place = ["top" if dy < 0 else "bottom"] * (abs(dy) > side / 10)
        place += ["left" if dx < 0 else "right"] * (abs(dx) > side / 10)
        return " ".join([thing.colour, thing.size, *place])

    @property
    def inventory(self) -> str:
        """The detailed description: every object with its details."""
        return self.description(range(len(self.objects)))

    def description(self, chosen: Iterable[int]) -> str:
        """The detailed description of the chosen objects, those of one noun together:
        "cup red small left and blue large, star teal huge top right."."""
        parts = [
            f"{noun} {' and '.join(map(self.details, alike))}"
            for noun, alike in self._by_noun(chosen)
        ]
        return f"{', '.join(parts)}."

    @property
    def graph(self) -> list[tuple[str, ...]]:
        """The caption as tuples (noun), (noun, colour), (noun, size), in the manner of SPICE."""
        tuples: list[tuple[str, ...]] = []
        for o in self.objects:
            tuples += [(o.noun,), (o.noun, o.colour), (o.noun, o.size)]
        if self.word:
            tuples.append(("word", self.word))
        return tuples


def article(word: str) -> str:
    """The indefinite article that a word takes."""
    return "an" if word[0] in "aeiou" else "a"


def scenes(split: str, n: int, *, start: int = 0, **asked) -> list[Scene]:
    """The n scenes of a split from its `start`-th on; `asked` as for `draw`.

    Raises:
        RedlibError: an unknown split, or more scenes than the split holds.
    """
    if split not in SPLITS:
        raise RedlibError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    numbers = SPLITS[split]
    if n < 0 or start < 0 or start + n > len(numbers):
        raise RedlibError(f"{split} holds {len(numbers)} scenes; got start {start}, n {n}")
    return [draw(number, split=split, **asked) for number in numbers[start : start + n]]


def redraw(id: str) -> Scene:
    """The scene of an id.

    Raises:
        RedlibError: not the id of a scene.
    """
    found = re.fullmatch(
        r"(\w+)-(\d+)(?:\.(\d+)x(\d+))?(?:\.level=(\w+))?(?:\.objects=(\d+))?(\.withheld)?", id
    )
    unknown = RedlibError(f"{id!r} is not the id of a scene, such as 'test-60000012'")
    if not found or found[1] not in SPLITS or int(found[2]) not in SPLITS[found[1]]:
        raise unknown
    split, number, width, height, level, objects, withheld = found.groups()
    scene = draw(
        int(number),
        split=split,
        width=int(width or SIDE),
        height=int(height or SIDE),
        level=level,
        objects=int(objects) if objects else None,
        withheld=bool(withheld),
    )
    if scene.id != id:  # "test-060000012", or a size that no id names
        raise unknown
    return scene


@dataclass(frozen=True)
class Piece:
    """One object of a plan.

    Attributes:
        thing: what it is and where.
        scale: the size in pixels that its pictogram is made for, one of SIZES[thing.size].
        paint: (red, green, blue), the colour it has here.
    """

    thing: Thing
    scale: int
    paint: tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """What a scene will show, before its objects are painted.

    Attributes:
        id, word, ground, level, second: as in `Scene`.
        table: gives (H, W, 3) uint8, the ground with its crumbs and the card; not to be written to.
        card: box of the card, None without a word.
        shadows: whether the objects throw them.
        pieces: the objects in the order in which they are painted; later ones hide earlier ones.
    """

    id: str
    word: str
    ground: str
    level: str
    second: str
    table: Callable[[], np.ndarray] = field(repr=False)
    card: tuple[int, int, int, int] | None
    shadows: bool
    pieces: tuple[Piece, ...]


def draw(number: int, **asked) -> Scene:
    """Draw the scene of a number; at most 5 ms at 336 x 336 once the glyphs are cached.

    Keywords and errors as for `plan`.
    """
    return paint(plan(number, **asked))


def plan(
    number: int,
    *,
    split: str = "train",
    width: int = SIDE,
    height: int = SIDE,
    level: str | None = None,
    objects: int | None = None,
    withheld: bool = False,
) -> Plan:
    """The plan of the scene of a number.

    Args:
        width, height: pixels; the shorter side is what the tower sees, objects keep to the
            centre square that a centre crop leaves.
        level: one of LEVELS; None draws it.
        objects: the number of objects, 1 to 7; None draws it.
        withheld: the first object is one of the WITHHELD pairs; else none is.

    Raises:
        RedlibError: an unknown level, no such number of objects, or an image too small for them.
    """
    rng = np.random.default_rng(number)
    drawn = LEVELS[rng.choice(len(LEVELS), p=LEVEL_SHARES)]
    if level is not None and level not in LEVELS:
        raise RedlibError(f"level must be one of {', '.join(LEVELS)}; got {level!r}")
    if objects is not None and objects not in range(1, 8):
        raise RedlibError(f"a scene has 1 to 7 objects; got objects={objects}")
    if min(width, height) < SIDE // 2:
        raise RedlibError(f"a scene has at least {SIDE // 2} pixels a side; got {width}x{height}")
    asked = "" if (width, height) == (SIDE, SIDE) else f".{width}x{height}"
    asked += f".level={level}" * bool(level) + f".objects={objects}" * bool(objects)
    asked += ".withheld" * withheld
    level = level or drawn
    ground, second, bare = _grounds(rng, level, width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    boxes: list[tuple[int, int, int, int]] = []
    word, card, spot = "", None, None
    if rng.random() < 0.35:
        word = WORDS[rng.integers(len(WORDS))]
        card = _card(word, int(rng.choice((26, 32, 40))))
        spot = _place(rng, card.shape[1], card.shape[0], side, left, top, boxes)
        if spot is None:
            word = ""
    shadows = level != "clear" and rng.random() < 0.5
    strew = _crumbs(rng, width, height) if level != "clear" else None

    @cache
    def table() -> np.ndarray:
        pixels = bare()
        if strew:
            strew(pixels)
        if spot:
            pixels[spot[1] : spot[3], spot[0] : spot[2]] = card
        return pixels

    layer = _bare(height, width, spot)
    count = objects or int(rng.choice(7, p=COUNTS[level])) + 1
    theme = THEMES[rng.integers(len(THEMES))]
    pieces: list[Piece] = []
    areas: list[int] = []
    for k in range(count):
        noun, colour = _kind(rng, theme, withheld and k == 0)
        drawn_size = tuple(SIZES)[rng.choice(4, p=SIZE_WEIGHTS[level])]
        for size in dict.fromkeys((drawn_size, "small")):
            scale = int(rng.choice(SIZES[size]))
            solid, _ = _pictogram(noun, scale)
            if level == "crowded":
                box = _overlap(rng, solid, side, left, top, boxes[:1] if word else [], layer, areas)
            else:
                box = _place(rng, solid.shape[1], solid.shape[0], side, left, top, boxes)
            if box or pieces:  # no scene without an object: the first may have to be a small one
                break
        if box is None:
            continue
        pieces.append(Piece(Thing(noun, colour, size, box), scale, shade(colour, rng)))
        areas.append(int(solid.sum()))
        layer[box[1] : box[3], box[0] : box[2]][solid] = len(pieces)
    id = f"{split}-{number}{asked}"
    return Plan(id, word, ground, level, second, table, spot, shadows, tuple(pieces))


def paint(plan: Plan) -> Scene:
    """The scene of a plan."""
    pixels = plan.table().copy()
    layer = _bare(*pixels.shape[:2], plan.card)  # k where the k-th piece is on top
    for k, piece in enumerate(plan.pieces, start=1):
        solid, lines = _pictogram(piece.thing.noun, piece.scale)
        x0, y0, x1, y1 = piece.thing.box
        if plan.shadows:
            _shadow(pixels, layer, solid, x0, y0)
        area = pixels[y0:y1, x0:x1]
        area[solid] = piece.paint
        # Black needs light lines, every other colour dark ones.
        dark = np.array(piece.paint) * 0.45
        area[lines] = dark if piece.thing.colour != "black" else (150, 150, 156)
        layer[y0:y1, x0:x1][solid] = k
    things = [piece.thing for piece in plan.pieces]
    order = sorted(range(len(things)), key=lambda k: things[k].centre)
    names = np.zeros(256, np.uint8)
    names[255] = 255
    for place, k in enumerate(order, start=1):
        names[k + 1] = place
    return Scene(
        plan.id,
        pixels,
        tuple(things[k] for k in order),
        plan.word,
        plan.ground,
        names[layer],
        plan.level,
        plan.second,
    )


def outline(noun: str, scale: int) -> tuple[int, int]:
    """(width, height) in pixels of a noun's pictogram made for `scale` pixels."""
    height, width = _pictogram(noun, scale)[0].shape
    return width, height


def shade(colour: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """A shade of a colour, at most 12 levels off its name's."""
    tone = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, 3), 0, 255)
    return tuple(tone.tolist())


def apart(box: tuple[int, int, int, int], others: Iterable[tuple[int, int, int, int]]) -> bool:
    """Whether more than 5 pixels lie between a box and every other."""
    return all(
        box[0] > b[2] + 5 or box[2] < b[0] - 5 or box[1] > b[3] + 5 or box[3] < b[1] - 5
        for b in others
    )


def _bare(height: int, width: int, card: tuple[int, int, int, int] | None) -> np.ndarray:
    """(H, W) uint8, 0 on the ground and 255 on the card: the layer before any object lies on it."""
    layer = np.zeros((height, width), np.uint8)
    if card:
        layer[card[1] : card[3], card[0] : card[2]] = 255
    return layer


def _kind(rng: np.random.Generator, theme: tuple[str, ...], withheld: bool) -> tuple[str, str]:
    """Noun and colour of an object: one of the withheld pairs, or none of them."""
    if withheld:
        pairs = sorted(WITHHELD)
        return pairs[rng.integers(len(pairs))]
    noun = (
        theme[rng.integers(len(theme))]
        if rng.random() < 0.6
        else NOUNS[rng.choice(len(NOUNS), p=_POPULARITY)]
    )
    free = [colour for colour in COLOURS if (noun, colour) not in WITHHELD]
    return noun, free[rng.integers(len(free))]


def _place(
    rng: np.random.Generator,
    width: int,
    height: int,
    side: int,
    left: int,
    top: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """A free box in the centre square with a margin of 5 pixels to the others, or None after 40
    tries (later objects, and three first ones in 100,000: huge ones beside a card)."""
    for _ in range(40):
        x0 = left + int(rng.integers(2, side - width - 1))
        y0 = top + int(rng.integers(2, side - height - 1))
        box = (x0, y0, x0 + width, y0 + height)
        if apart(box, taken):
            taken.append(box)
            return box
    return None


def _overlap(
    rng: np.random.Generator,
    solid: np.ndarray,
    side: int,
    left: int,
    top: int,
    card: list[tuple[int, int, int, int]],
    layer: np.ndarray,
    areas: list[int],
) -> tuple[int, int, int, int] | None:
    """A box apart from the card in which the object hides so little of those that were there
    before that VISIBLE of each is still to be seen, or None after 40 tries. `areas` are the
    objects' sizes in pixels."""
    height, width = solid.shape
    for _ in range(40):
        box = _place(rng, width, height, side, left, top, card.copy())
        if box is None:
            return None
        x0, y0, x1, y1 = box
        under = np.bincount(layer[y0:y1, x0:x1][solid], minlength=len(areas) + 1)[1:]
        hit = np.flatnonzero(under[: len(areas)])
        if all((layer == k + 1).sum() - under[k] >= VISIBLE * areas[k] for k in hit):
            return box
    return None


def _shadow(pixels: np.ndarray, layer: np.ndarray, solid: np.ndarray, x0: int, y0: int) -> None:
    """Darken the ground where an object at (x0, y0) throws its shadow, to the lower right."""
    y, x = y0 + 5, x0 + 4
    bare = layer[y : y + solid.shape[0], x : x + solid.shape[1]] == 0
    area = pixels[y : y + solid.shape[0], x : x + solid.shape[1]]
    dark = solid[: bare.shape[0], : bare.shape[1]] & bare
    area[dark] = area[dark] * 0.72


def _grounds(
    rng: np.random.Generator, level: str, width: int, height: int
) -> tuple[str, str, Callable[[], np.ndarray]]:
    """The ground, the second ground ("" for none) and what paints them, (H, W, 3)."""
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    first = _ground(rng, ground, width, height)
    if level == "clear" or rng.random() < 0.5:
        return ground, "", first
    second = SIMPLE[rng.integers(len(SIMPLE))]
    if second == ground:
        return ground, "", first
    # The border crosses the image at any angle, and leaves at least a fifth to the second.
    angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    other = _ground(rng, second, width, height)

    def both() -> np.ndarray:
        pixels = first()
        x, y = _grid(width, height)
        along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        beyond = along > off * min(width, height)
        np.copyto(pixels, other(), where=beyond[..., None])
        return pixels

    return ground, second, both


def _crumbs(rng: np.random.Generator, width: int, height: int) -> Callable[[np.ndarray], None]:
    """What strews 60 to 140 marks of 2 to 8 pixels in muted colours on an image (H, W, 3), except
    in a free rectangle of a quarter to half of it."""
    n = int(rng.integers(60, 141))
    share = rng.uniform(0.5, 0.72, 2)
    w, h = int(width * share[0]), int(height * share[1])
    x0, y0 = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    xs, ys = rng.integers(0, width - 8, n), rng.integers(0, height - 8, n)
    stamps, sizes = rng.integers(0, len(_STAMPS), n), rng.integers(2, 9, n)
    tones = rng.integers(70, 170, n)[:, None] + rng.integers(-22, 23, (n, 3))
    apart = (xs + 8 < x0) | (xs >= x0 + w) | (ys + 8 < y0) | (ys >= y0 + h)

    def strew(pixels: np.ndarray) -> None:
        for i in np.flatnonzero(apart):
            stamp = _stamp(_STAMPS[stamps[i]], int(sizes[i]))
            pixels[ys[i] : ys[i] + len(stamp), xs[i] : xs[i] + len(stamp)][stamp] = tones[i]

    return strew


_STAMPS = ("dot", "ring", "dash", "slash", "corner")


@lru_cache(maxsize=64)
def _stamp(kind: str, size: int) -> np.ndarray:
    """A crumb, (size, size) bool."""
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
    far = np.hypot(x, y)
    if kind == "dot":
        return far <= size / 2
    if kind == "ring":
        return np.abs(far - size / 2 + 0.8) <= 0.8
    if kind == "dash":
        return np.abs(y) <= 1
    if kind == "slash":
        return np.abs(x + y) <= 1
    return (np.minimum(x, y) + (size - 1) / 2) < 2


def _shares(instance: np.ndarray, sight: Sight, objects: int) -> np.ndarray:
    """Share of every patch per label, (objects + 2, L): ground, objects, card."""
    if sight.crop:
        side = min(instance.shape)
        y, x = ((n - side) // 2 for n in instance.shape)
        instance = instance[y : y + side, x : x + side]
    n = sight.cells
    rows, cols = (np.arange(size) * sight.side // size // sight.patch for size in instance.shape)
    label = instance[rows < n][:, cols < n].astype(np.int64)  # a rest at the end makes no patch
    label[label == 255] = objects + 1
    rows, cols = rows[rows < n], cols[cols < n]
    cell = rows[:, None] * n + cols  # raster index of each pixel's patch
    counts = np.bincount((label * n * n + cell).ravel(), minlength=(objects + 2) * n * n)
    return counts.reshape(objects + 2, n * n) / np.bincount(cell.ravel(), minlength=n * n)


@lru_cache(maxsize=16)
def _grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns, (1, W), and the rows, (H, 1), float32: what depends on one is computed once."""
    y, x = np.ogrid[0:height, 0:width]
    return x.astype(np.float32), y.astype(np.float32)


def _coloured(height: int, width: int, channel: Callable[[int], np.ndarray]) -> np.ndarray:
    """An image (H, W, 3) from its three channels: loops over a last axis of 3 would be slow."""
    pixels = np.empty((height, width, 3), np.uint8)
    for c in range(3):
        pixels[..., c] = channel(c)
    return pixels


def _ground(
    rng: np.random.Generator, kind: str, width: int, height: int
) -> Callable[[], np.ndarray]:
    """What paints a ground, (H, W, 3) uint8, anew at each call."""
    x, y = _grid(width, height)
    if kind in ("plate", "sheet"):
        under = _ground(rng, UNDERLAYS[rng.integers(3)], width, height)
        side = min(width, height)
        w, h = (side * rng.uniform(0.7, 0.95, 2)).astype(int)
        x0 = int(rng.integers((width - side) // 2, (width + side) // 2 - w + 1))
        y0 = int(rng.integers((height - side) // 2, (height + side) // 2 - h + 1))
        blank = rng.integers(244, 253)

        def laid() -> np.ndarray:
            pixels = under()
            if kind == "sheet":
                pixels[y0 : y0 + h, x0 : x0 + w] = blank
            else:
                far = ((x - x0 - w / 2) / (w / 2)) ** 2 + ((y - y0 - h / 2) / (h / 2)) ** 2
                pixels[far <= 1] = blank
            return pixels

        return laid
    base = np.array(PALE[rng.integers(len(PALE))], np.float32)
    if kind == "plain":
        return lambda: np.broadcast_to(base.astype(np.uint8), (height, width, 3)).copy()
    if kind == "noisy":
        noise = rng.integers(-26, 27, (height, width), dtype=np.int8)

        def noisy() -> np.ndarray:
            tone = base.astype(np.int16) - 20
            grain = noise.astype(np.int16)
            return _coloured(height, width, lambda c: np.clip(tone[c] + grain, 0, 255))

        return noisy
    if kind == "wood":
        wood = np.array((202, 168, 122), np.float32) + rng.integers(-14, 15)
        length, start, ring = rng.uniform(50, 90), rng.uniform(0, 6), rng.uniform(2.5, 5)

        def wooden() -> np.ndarray:
            wobble = 3 * np.sin(x / length + start)
            grain = np.sin((y + wobble) / ring) * 9
            return _coloured(height, width, lambda c: np.clip(wood[c] + grain, 0, 255))

        return wooden
    if kind == "gradient":
        other = np.array(PALE[rng.integers(len(PALE))], np.float32) - rng.integers(20, 60)
        angle = rng.uniform(0, 2 * np.pi)

        def fading() -> np.ndarray:
            t = x * np.cos(angle) + y * np.sin(angle)
            t = (t - t.min()) / (t.max() - t.min())
            return _coloured(height, width, lambda c: base[c] + t * (other[c] - base[c]))

        return fading
    other = np.array(PALE[rng.integers(len(PALE))], np.float32) - 18
    angle = rng.integers(4) * np.pi / 4
    period = rng.uniform(16, 40)

    def striped() -> np.ndarray:
        on = ((x * np.cos(angle) + y * np.sin(angle)) % period) < period / 2
        light, dark = base.astype(np.uint8), other.astype(np.uint8)
        return _coloured(height, width, lambda c: np.where(on, light[c], dark[c]))

    return striped


def _font(bold: bool, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's folder, found without importing matplotlib."""
    package = Path(find_spec("matplotlib").origin).parent
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(package / "mpl-data" / "fonts" / "ttf" / name, size)


@lru_cache(maxsize=64)
def _glyph(noun: str) -> Image.Image:
    """The glyph of a noun, 400 points high, without loose specks."""
    canvas = Image.new("L", (900, 700))
    ImageDraw.Draw(canvas).text((150, 100), chr(GLYPHS[noun]), font=_font(False, 400), fill=255)
    ink = np.asarray(canvas.crop(canvas.getbbox())) > 110
    # Loose specks (the snow around the snowman) are no part of the thing; what lies inside its
    # outline is.
    parts, n = ndimage.label(np.pad(ink, 12), structure=np.ones((3, 3)))
    filled = [ndimage.binary_fill_holes(parts == k) for k in range(1, n + 1)]
    least = 0.05 * max(part.sum() for part in filled)
    ink = np.pad(ink, 12) & np.any([part for part in filled if part.sum() >= least], axis=0)
    glyph = Image.fromarray((ink * 255).astype(np.uint8))
    return glyph.crop(glyph.getbbox())


@lru_cache(maxsize=256)
def _pictogram(noun: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(solid, lines): boolean arrays of one shape, longer side about `size` pixels.

    The solid is the glyph with its gaps closed and its holes filled; the lines are whichever of
    ink and holes is the smaller part, so that an outline glyph and a filled one both read.
    """
    glyph = _glyph(noun)
    scale = (size - 4) / max(glyph.size)
    shape = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    ink = np.pad(np.asarray(glyph.resize(shape, Image.Resampling.LANCZOS)) > 110, 8)
    thin = max(1, size // 40)
    grown = ndimage.binary_dilation(ink, iterations=thin)
    closed = ndimage.binary_closing(grown, iterations=max(1, size // 28))
    solid = ndimage.binary_fill_holes(closed | grown)
    ink &= solid
    rim = ndimage.binary_dilation(~solid, iterations=thin)
    lines = ink if ink.sum() < 0.55 * solid.sum() else ~ink & solid & ~rim
    rows, cols = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return solid[window], lines[window]


@lru_cache(maxsize=64)
def _card(word: str, height: int) -> np.ndarray:
    """A cream card with the word in black capitals, (h, w, 3) uint8."""
    font = _font(True, int(height * 0.72))
    left, top, right, bottom = font.getbbox(word.upper())
    card = Image.new("RGB", (right - left + height // 2, height), (255, 250, 225))
    pen = ImageDraw.Draw(card)
    pen.text(
        (height // 4 - left, (height - bottom - top) // 2),
        word.upper(),
        font=font,
        fill=(20, 20, 20),
    )
    pen.rectangle((0, 0, card.width - 1, height - 1), outline=(120, 110, 90))
    return np.asarray(card)
