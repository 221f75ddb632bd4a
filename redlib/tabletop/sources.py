"""What training shows the decoder: the frozen tower's features of many images, computed once.

A source is a set of inputs of one kind: base tiles of scenes, or scenes four times as large in base
tile and four tiles. Beside the features stands, for each input, what its visual tokens show, and
for all of them the layout by which the family makes visual tokens out of features (`layouts`).

    source = images(model, folder, 5_000, device)      # LLaVA-1.5: 576 patches a scene
    source.cards[0].seen                               # (objects, 576) bool
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from redlib import layouts
from redlib.geometry import Sight
from redlib.layouts import Layout
from redlib.tabletop.loop import precision
from redlib.tabletop.tower import GRID, MEAN, STD, forward
from redlib.tabletop.world import PATCH, SIDE, Scene, scenes

TILED = 2 * SIDE  # pixels along a side of a scene that four tiles show
BASE, TILES = Sight(SIDE, PATCH, crop=False), Sight(TILED, PATCH, crop=False)


@dataclass(frozen=True)
class Card:
    """A scene without its pixels, which of V visual tokens each object covers by half, (n, V) bool,
    and which the card with the word does, (V,) bool."""

    scene: Scene
    seen: np.ndarray
    written: np.ndarray


@dataclass(frozen=True, eq=False)
class Source:
    """Inputs of one kind.

    Attributes:
        features: (n, N, width of the tower) fp16, on disk.
        cards: what each shows.
        layout: how features become visual tokens, the same for all.
    """

    features: np.ndarray
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
        shown = [
            torch.from_numpy(self.features[i][needed]).float().to(device)
            for i, (needed, _) in zip(chosen, parts, strict=True)
        ]
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
    """Base tiles of n scenes; with `newline` as Next packs one."""
    layout = layouts.split(GRID) if newline else layouts.whole(GRID)
    return _source(model, folder, "image", n, device, split, {}, _one, layout)


def tiled(
    model: nn.Module, folder: Path, n: int, device: torch.device, *, split: str = "train"
) -> Source:
    """n scenes of 672 x 672 pixels as the paper's release splits them: squeezed into the base tile,
    which loses their details, and in four tiles that hold them."""
    asked = {"width": TILED, "height": TILED}
    return _source(
        model, folder, "tiled", n, device, split, asked, _five, layouts.split(GRID, tiles=5)
    )


def _one(scene: Scene) -> np.ndarray:
    return scene.pixels[None]


def _five(scene: Scene) -> np.ndarray:
    """(5, 336, 336, 3): the squeezed scene, then its quarters in raster order."""
    small = np.asarray(scene.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    quarters = scene.pixels.reshape(2, SIDE, 2, SIDE, 3).swapaxes(1, 2).reshape(4, SIDE, SIDE, 3)
    return np.concatenate((small[None], quarters))


def card(scene: Scene) -> Card:
    """The card of a scene, by the tiles that show it."""
    shares = [scene.coverage(BASE)]
    written = [scene.word_coverage(BASE)]
    if scene.instance.shape == (TILED, TILED):
        shares.append(_by_tile(scene.coverage(TILES)))
        written.append(_by_tile(scene.word_coverage(TILES)))
    blank = {"pixels": np.empty((0,)), "instance": np.empty(scene.instance.shape, np.bool_)}
    return Card(
        replace(scene, **blank),
        np.concatenate(shares, -1) > 0.5,
        np.concatenate(written, -1) > 0.5,
    )


def _by_tile(share: np.ndarray) -> np.ndarray:
    """(..., 48 * 48) in raster order to (..., 4 * 576), tile by tile."""
    parts = share.reshape(*share.shape[:-1], 2, GRID, 2, GRID).swapaxes(-3, -2)
    return parts.reshape(*share.shape[:-1], -1)


def _source(
    model: nn.Module,
    folder: Path,
    kind: str,
    n: int,
    device: torch.device,
    split: str,
    asked: dict[str, int],
    tiles: Callable[[Scene], np.ndarray],
    layout: Layout,
) -> Source:
    """Features of n scenes, going on where an earlier run stopped."""
    path = folder / f"features-{kind}-{split}-{n}.npy"
    width, patches = model.config.vision_config.hidden_size, int(layout.sources.max()) + 1
    done_path = path.with_suffix(".done")
    done = int(done_path.read_text()) if done_path.exists() and path.exists() else 0
    store = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, (n, patches, width))
    cards: list[Card] = []
    zero = torch.zeros(1, dtype=torch.long, device=device)
    for i in tqdm(range(0, n, 8), desc=f"features ({kind})", mininterval=10):
        found = scenes(split, min(8, n - i), start=i, **asked)
        cards += [card(s) for s in found]
        if i >= done:
            shown = torch.from_numpy(np.concatenate([tiles(s) for s in found])).to(device)
            for at, part in enumerate(shown.split(8)):
                x = (part.permute(0, 3, 1, 2).float() / 255 - MEAN.to(device)) / STD.to(device)
                with torch.no_grad(), precision(device):
                    out, _ = forward(model.model.vision_tower, x, zero, zero)
                flat = store[i : i + len(found)].reshape(-1, GRID * GRID, width)
                flat[8 * at : 8 * at + len(part)] = out.float().cpu().numpy()
            done_path.write_text(str(i + len(found)))
    return Source(store, cards, layout)
