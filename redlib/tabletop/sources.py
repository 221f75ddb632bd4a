"""What training shows the decoder: the frozen tower's features of many inputs, computed once.

A source is a set of inputs of one kind. Each input is made of *pictures*, one for each tile that
the tower sees, which all speak of the same objects:

| kind | pictures of an input |
|---|---|
| `images` | a scene, squeezed into the base tile |
| `tiled` | a scene of 672 x 672 pixels and its four quarters (Next) |
| `pairs` | the two scenes of a question about two images (OneVision) |
| `composites` | two scenes printed as one image, in the base tile (OneVision) |
| `films` | the frames of a film; frames that show the same are one picture (OneVision) |

Beside the features stands, for each input, what its visual tokens show, and for all of them the
layout by which the family makes visual tokens out of features (`layouts`).

    source = images(model, folder, 5_000, device)      # LLaVA-1.5: 576 patches a scene
    source.cards[0].seen                               # (objects, 576) bool
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from redlib import layouts
from redlib.geometry import Sight
from redlib.layouts import Layout
from redlib.store import write_text
from redlib.tabletop import films as world_films
from redlib.tabletop import pairs as world_pairs
from redlib.tabletop.films import Film
from redlib.tabletop.loop import precision
from redlib.tabletop.pairs import DIVIDER, Composite, Pair
from redlib.tabletop.tower import features, sight, squeezed
from redlib.tabletop.world import SIDE, Scene, scenes

TILED = 2 * SIDE  # pixels along a side of a scene that four tiles show
Subject = Scene | Pair | Composite | Film


@dataclass(frozen=True)
class Card:
    """What an input shows.

    Attributes:
        scene: the scene, pair, composite or film, without its pixels.
        seen: (objects, V) bool, which of the visual tokens each object covers by half; the objects
            of a pair or composite are those of its first scene, then those of its second.
        written: (V,) bool, which of them a card with a word does.
        cells: visual tokens along a side of a tile.
    """

    scene: Subject
    seen: np.ndarray
    written: np.ndarray
    cells: int


@dataclass(frozen=True, eq=False)
class Source:
    """Inputs of one kind.

    Attributes:
        features: (m, L, width of the tower) fp16, on disk, of m pictures.
        tiles: (n, t) numbers of the pictures that each input is made of.
        cards: what each input shows.
        layout: how features become visual tokens, the same for all.
    """

    features: np.ndarray
    tiles: np.ndarray
    cards: list[Card]
    layout: Layout

    @property
    def tokens(self) -> int:
        """V, visual tokens without newlines."""
        return int((~self.layout.newlines).sum())

    def pack(
        self, model: nn.Module, chosen: np.ndarray, kept: list[np.ndarray], device: torch.device
    ) -> torch.Tensor:
        """(B, T, D) visual inputs: of each chosen input the visual tokens kept."""
        parts = [self.layout.keep(view).compact() for view in kept]
        shown = []
        for i, (needed, _) in zip(chosen, parts, strict=True):
            tile, at = np.divmod(needed, self.features.shape[1])
            rows = self.features[self.tiles[i][tile], at]
            shown.append(torch.from_numpy(rows).float().to(device))
        with precision(device):
            return layouts.pack(model, shown, [layout for _, layout in parts])


def images(
    model: nn.Module,
    folder: Path,
    n: int,
    device: torch.device,
    *,
    split: str = "train",
    newline: bool = False,
) -> Source:
    """Base tiles of n scenes; with `newline` as Next and OneVision pack one."""
    cells = sight(model.model.vision_tower).cells
    layout = layouts.split(cells) if newline else layouts.whole(cells)

    def draw(n: int, start: int) -> list[Scene]:
        return scenes(split, n, start=start)

    tiles = np.arange(n)[:, None]
    return _source(model, folder, f"image-{split}", tiles, device, draw, _itself, layout)


def tiled(
    model: nn.Module, folder: Path, n: int, device: torch.device, *, split: str = "train"
) -> Source:
    """n scenes of 672 x 672 pixels as the paper's release splits them: squeezed into the base tile,
    which loses their details, and in four tiles that hold them."""
    layout = layouts.split(sight(model.model.vision_tower).cells, tiles=5)

    def draw(n: int, start: int) -> list[Scene]:
        return scenes(split, n, start=start, width=TILED, height=TILED)

    tiles = np.arange(5 * n).reshape(n, 5)
    return _source(model, folder, f"tiled-{split}", tiles, device, draw, five, layout)


def pairs(
    model: nn.Module,
    folder: Path,
    n: int,
    device: torch.device,
    *,
    schema: str,
    split: str = "train",
) -> Source:
    """n questions about two images each, of a schema or busy ones; the two that muir asks of the
    same images share them."""
    layout = layouts.several(sight(model.model.vision_tower).cells, 2)

    def draw(n: int, start: int) -> list[Pair]:
        if schema == "busy":
            return world_pairs.busy_pairs(split, n, start=start)
        return world_pairs.pairs(split, n, schema, start=start)

    number = np.arange(n) // (2 if schema == "muir" else 1)
    tiles = 2 * number[:, None] + np.arange(2)
    return _source(model, folder, f"{schema}-{split}", tiles, device, draw, two, layout)


def composites(
    model: nn.Module, folder: Path, n: int, device: torch.device, *, split: str = "train"
) -> Source:
    """n spot-the-difference images, by the base tile alone."""
    layout = layouts.split(sight(model.model.vision_tower).cells)

    def draw(n: int, start: int) -> list[Composite]:
        return world_pairs.composites(split, n, start=start)

    tiles = np.arange(n)[:, None]
    return _source(model, folder, f"spot-{split}", tiles, device, draw, one, layout)


def films(
    model: nn.Module,
    folder: Path,
    n: int,
    device: torch.device,
    *,
    split: str = "train",
    busy: bool = False,
) -> Source:
    """n films of 16 frames."""
    layout = layouts.film(sight(model.model.vision_tower).cells, 16)

    def draw(n: int, start: int) -> list[Film]:
        return world_films.films(split, n, start=start, busy=busy)

    orders = [_order(film) for film in draw(n, 0)]
    first = np.cumsum([0, *(order.max() + 1 for order in orders)])[:-1]
    tiles = np.stack(orders) + first[:, None]
    kind = f"{'busy-' if busy else ''}film-{split}"
    return _source(model, folder, kind, tiles, device, draw, frames, layout)


# --- pictures: scenes of one list of objects, one for each tile -----------------------------------


def _itself(scene: Scene) -> list[Scene]:
    return [scene]


def five(scene: Scene) -> list[Scene]:
    """The scene, then its quarters in raster order."""
    halves = (slice(SIDE), slice(SIDE, TILED))
    quarters = [np.s_[rows, cols] for rows in halves for cols in halves]
    return [
        scene,
        *(replace(scene, pixels=scene.pixels[q], instance=scene.instance[q]) for q in quarters),
    ]


def two(shown: Pair | Composite) -> list[Scene]:
    """Both scenes, with the objects of both."""
    first, second = shown.scenes
    things = (*first.objects, *second.objects)
    labels = second.instance.copy()
    labels[(labels > 0) & (labels < 255)] += len(first.objects)
    return [replace(first, objects=things), replace(second, objects=things, instance=labels)]


def one(game: Composite) -> list[Scene]:
    """The composite as a scene with the objects of both pictures."""
    first, second = two(game)
    shape = (DIVIDER, SIDE) if game.stacked else (SIDE, DIVIDER)
    parts = [first.instance, np.zeros(shape, np.uint8), second.instance]
    labels = np.concatenate(parts, axis=0 if game.stacked else 1)
    return [replace(first, pixels=game.pixels, instance=labels)]


def frames(film: Film) -> list[Scene]:
    """The frames that differ, in order of time."""
    _, firsts = np.unique(_order(film), return_index=True)
    return [
        Scene(f"{film.id}/{f}", film.pixels[f], film.objects, "", "", film.instances[f])
        for f in firsts
    ]


def _order(film: Film) -> np.ndarray:
    """(frames,) which of `frames` each frame is."""
    states = [tuple(film.state(k, f) for k in range(len(film.objects))) for f in range(film.frames)]
    numbers = {state: i for i, state in enumerate(dict.fromkeys(states))}
    return np.array([numbers[state] for state in states])


def card(
    shown: Subject, pictures: Sequence[Scene], layout: Layout, sight: Sight, tiles: np.ndarray
) -> Card:
    """The card of an input.

    Args:
        pictures: p scenes of one list of objects.
        tiles: (t,) which of the pictures each tile shows.
    """

    def covered(shares: list[np.ndarray]) -> np.ndarray:
        """(..., V) bool from the shares of every picture's patches, (..., L) each."""
        patches = np.concatenate([shares[k] for k in tiles], -1)  # (..., t * L)
        visual = ~layout.newlines
        tokens = (patches[..., layout.sources[visual]] * layout.weights[visual]).sum(-1)
        return tokens > 0.5

    seen = covered([picture.coverage(sight) for picture in pictures])
    written = covered([picture.word_coverage(sight) for picture in pictures])
    cells = round((seen.shape[-1] / len(tiles)) ** 0.5)
    return Card(_bare(shown), seen, written, cells)


def _bare(shown: Subject) -> Subject:
    """Without pixels; a film has none until they are asked for."""
    if isinstance(shown, Scene):
        none = {"pixels": np.empty((0,)), "instance": np.empty(shown.instance.shape, np.bool_)}
        return replace(shown, **none)
    if isinstance(shown, Film):
        return shown
    bare = replace(shown, scenes=tuple(_bare(scene) for scene in shown.scenes))
    return replace(bare, pixels=np.empty((0,))) if isinstance(bare, Composite) else bare


def _source(
    model: nn.Module,
    folder: Path,
    kind: str,
    tiles: np.ndarray,
    device: torch.device,
    draw: Callable[[int, int], list],
    pictures: Callable[[Subject], list[Scene]],
    layout: Layout,
) -> Source:
    """Features of n inputs, going on where an earlier run stopped.

    Args:
        kind: in the name of the file.
        tiles: (n, t) numbers of pictures, those of an input consecutive and new ones ascending.
        draw: (n, start) -> the n inputs from the start-th on.
        pictures: of an input.
    """
    vision = model.model.vision_tower
    seen, n = sight(vision), len(tiles)
    path = folder / f"features-{kind}-{n}.npy"
    done_path = path.with_suffix(".done")
    done = int(done_path.read_text()) if done_path.exists() and path.exists() else 0
    shape = (int(tiles.max()) + 1, seen.cells**2, vision.config.hidden_size)
    store = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
    cards: list[Card] = []
    for i in tqdm(range(0, n, 8), desc=f"features ({kind})", mininterval=10):
        new: dict[int, Scene] = {}
        for shown, of in zip(draw(min(8, n - i), i), tiles[i : i + 8], strict=True):
            made = pictures(shown)
            cards.append(card(shown, made, layout, seen, of - of.min()))
            new |= dict(enumerate(made, start=of.min()))
        if i >= done:
            numbers = list(new)
            for at in range(0, len(numbers), 8):
                part = numbers[at : at + 8]
                shown = np.stack([squeezed(new[k], seen.side) for k in part])
                with torch.no_grad(), precision(device):
                    out = features(vision, torch.from_numpy(shown).to(device))
                store[part] = out.float().cpu().numpy()
            write_text(done_path, str(i + len(tiles[i : i + 8])))
    return Source(store, tiles, cards, layout)
