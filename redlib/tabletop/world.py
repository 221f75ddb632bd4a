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

Everything follows from the scene's number. The three splits are disjoint ranges of numbers.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
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
}

SIZES = {"small": (36, 42), "medium": (58, 64), "large": (88, 96), "huge": (130, 140)}
SIZE_WEIGHTS = (0.35, 0.35, 0.2, 0.1)

GROUNDS = ("plain", "noisy", "wood", "gradient", "stripes", "plate", "sheet")
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
        return f"{self.size} {self.colour} {self.noun}"

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """A drawn scene and its truth.

    Attributes:
        id: split and number, for example "test-60000012".
        pixels: (H, W, 3) uint8.
        objects: the pictograms, left to right.
        word: the written word, or "" where there is none.
        ground: one of GROUNDS.
        instance: (H, W) uint8; 0 on the ground, k on the k-th object (from 1), 255 on the card.
    """

    id: str
    pixels: np.ndarray = field(repr=False)
    objects: tuple[Thing, ...]
    word: str
    ground: str
    instance: np.ndarray = field(repr=False)

    @cached_property
    def image(self) -> Image.Image:
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
        """One sentence that names everything, objects left to right."""
        parts = [f"{article(o.size)} {o.phrase}" for o in self.objects]
        if self.word:
            parts.append(f"the word {self.word}")
        listing = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"{listing} on a {self.ground} ground."

    def details(self, k: int) -> str:
        """Colour, size and place of the k-th object, in that order; no place near the middle."""
        thing, side = self.objects[k], min(self.instance.shape)
        dx, dy = (c - n / 2 for c, n in zip(thing.centre, self.instance.shape[::-1], strict=True))
        place = ["top" if dy < 0 else "bottom"] * (abs(dy) > side / 10)
        place += ["left" if dx < 0 else "right"] * (abs(dx) > side / 10)
        return " ".join([thing.colour, thing.size, *place])

    @property
    def inventory(self) -> str:
        """The detailed description: every object with its details, left to right."""
        parts = [f"{thing.noun} {self.details(k)}" for k, thing in enumerate(self.objects)]
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
    return "an" if word[0] in "aeiou" else "a"


def scenes(
    split: str,
    n: int,
    *,
    start: int = 0,
    width: int = SIDE,
    height: int = SIDE,
    objects: int | None = None,
) -> list[Scene]:
    """The n scenes of a split from its `start`-th on.

    Args:
        split: "train", "calibration" or "test".
        width, height: pixels; the shorter side is what the tower sees, objects keep to the
            centre square that a centre crop leaves.
        objects: the number of objects in every scene, 1 to 7; None draws it per scene.

    Raises:
        RedlibError: an unknown split, or more scenes than the split holds.
    """
    if split not in SPLITS:
        raise RedlibError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    numbers = SPLITS[split]
    if n < 0 or start < 0 or start + n > len(numbers):
        raise RedlibError(f"{split} holds {len(numbers)} scenes; got start {start}, n {n}")
    return [
        draw(number, split=split, width=width, height=height, objects=objects)
        for number in numbers[start : start + n]
    ]


def draw(
    number: int,
    *,
    split: str = "train",
    width: int = SIDE,
    height: int = SIDE,
    objects: int | None = None,
) -> Scene:
    """Draw the scene of a number; at most 5 ms at 336 x 336 once the glyphs are cached."""
    rng = np.random.default_rng(number)
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    pixels = _ground(rng, ground, width, height)
    instance = np.zeros((height, width), np.uint8)
    count = int(rng.choice(7, p=(0.18, 0.17, 0.16, 0.15, 0.13, 0.11, 0.10))) + 1
    count = count if objects is None else objects
    things, taken = [], []
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    word = ""
    if rng.random() < 0.35:
        word = WORDS[rng.integers(len(WORDS))]
        card = _card(word, int(rng.choice((26, 32, 40))))
        box = _place(rng, card.shape[1], card.shape[0], side, left, top, taken)
        if box is None:
            word = ""
        else:
            x0, y0, x1, y1 = box
            pixels[y0:y1, x0:x1] = card
            instance[y0:y1, x0:x1] = 255
    theme = THEMES[rng.integers(len(THEMES))]
    for _ in range(count):
        noun = (
            theme[rng.integers(len(theme))]
            if rng.random() < 0.6
            else NOUNS[rng.choice(len(NOUNS), p=_POPULARITY)]
        )
        colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
        size = tuple(SIZES)[rng.choice(4, p=SIZE_WEIGHTS)]
        solid, lines = _pictogram(noun, int(rng.choice(SIZES[size])))
        box = _place(rng, solid.shape[1], solid.shape[0], side, left, top, taken)
        if box is None:
            continue
        things.append((Thing(noun, colour, size, box), solid, lines))
    things.sort(key=lambda thing: thing[0].centre)
    for k, (thing, solid, lines) in enumerate(things, start=1):
        x0, y0, x1, y1 = thing.box
        paint = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255)
        area = pixels[y0:y1, x0:x1]
        area[solid] = paint
        # Black needs light lines, every other colour dark ones.
        area[lines] = (paint * 0.45) if thing.colour != "black" else (150, 150, 156)
        instance[y0:y1, x0:x1][solid] = k
    return Scene(f"{split}-{number}", pixels, tuple(t[0] for t in things), word, ground, instance)


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
    tries (only later objects of a crowded scene; the first always fits)."""
    for _ in range(40):
        x0 = left + int(rng.integers(2, side - width - 1))
        y0 = top + int(rng.integers(2, side - height - 1))
        box = (x0, y0, x0 + width, y0 + height)
        if all(
            box[0] > b[2] + 5 or box[2] < b[0] - 5 or box[1] > b[3] + 5 or box[3] < b[1] - 5
            for b in taken
        ):
            taken.append(box)
            return box
    return None


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
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def _ground(rng: np.random.Generator, kind: str, width: int, height: int) -> np.ndarray:
    """The ground, (H, W, 3) uint8."""
    if kind in ("plate", "sheet"):
        under = ("noisy", "wood", "stripes")[rng.integers(3)]
        pixels = _ground(rng, under, width, height)
        side = min(width, height)
        w, h = (side * rng.uniform(0.7, 0.95, 2)).astype(int)
        x0 = int(rng.integers((width - side) // 2, (width + side) // 2 - w + 1))
        y0 = int(rng.integers((height - side) // 2, (height + side) // 2 - h + 1))
        blank = rng.integers(244, 253)
        x, y = _grid(width, height)
        if kind == "sheet":
            pixels[y0 : y0 + h, x0 : x0 + w] = blank
        else:
            inside = ((x - x0 - w / 2) / (w / 2)) ** 2 + ((y - y0 - h / 2) / (h / 2)) ** 2 <= 1
            pixels[inside] = blank
        return pixels
    base = np.array(PALE[rng.integers(len(PALE))], np.float32)
    x, y = _grid(width, height)
    if kind == "plain":
        return np.broadcast_to(base.astype(np.uint8), (height, width, 3)).copy()
    if kind == "noisy":
        grain = rng.integers(-26, 27, (height, width), dtype=np.int8).astype(np.int16)
        return np.clip(base.astype(np.int16) - 20 + grain[..., None], 0, 255).astype(np.uint8)
    if kind == "wood":
        base = np.array((202, 168, 122), np.float32) + rng.integers(-14, 15)
        wobble = 3 * np.sin(x / rng.uniform(50, 90) + rng.uniform(0, 6))
        grain = np.sin((y + wobble) / rng.uniform(2.5, 5)) * 9
        return np.clip(base + grain[..., None], 0, 255).astype(np.uint8)
    if kind == "gradient":
        other = np.array(PALE[rng.integers(len(PALE))], np.float32) - rng.integers(20, 60)
        angle = rng.uniform(0, 2 * np.pi)
        t = x * np.cos(angle) + y * np.sin(angle)
        t = (t - t.min()) / (t.max() - t.min())
        return (base + t[..., None] * (other - base)).astype(np.uint8)
    other = np.array(PALE[rng.integers(len(PALE))], np.float32) - 18
    angle = rng.integers(4) * np.pi / 4
    period = rng.uniform(16, 40)
    on = ((x * np.cos(angle) + y * np.sin(angle)) % period) < period / 2
    return np.where(on[..., None], base.astype(np.uint8), other.astype(np.uint8))


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
