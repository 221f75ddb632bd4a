"""What stands at each visual position of a prompt: the families' ways of packing an image.

A vision tower gives L patches per tile, a tile being a square of its own input size. What the
language model receives depends on the family and on the setting:

| layout | visual tokens | newlines |
|---|---|---|
| `whole` | LLaVA-1.5: the L = 576 patches of its one tile | none |
| `split`, 1 tile | base tile of Next or OneVision, 576 or 729 | one at the end |
| `split`, 5 tiles | Next as the paper's release packs it, 2,880 | one at the end |
| `unpadded` | Next and OneVision as Hugging Face packs an image | one per row of the tiles |
| `several` | OneVision, n images in a prompt, 729 each | one after each image |
| `film` | OneVision, n frames pooled to 14 x 14 = 196 each | one at the end |

The newline is a learned vector. All this is bookkeeping, so a `Layout` is data: for every position
the tower features that stand there, and by which weights where several are pooled into one. The
same layout then packs features kept from an earlier run (training) and fresh ones (evaluation), and
part of a layout is a layout:

    layout = split(24, tiles=5)                      # 2,881 positions
    few = layout.keep(range(0, 2880, 45))            # 64 visual tokens and the newline
    rows = pack(model, [features], [few])            # (1, 65, D), as the language model gets them

Features are numbered tile by tile, the base tile first, each in raster order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from redlib.errors import RedlibError

NEWLINE = -1
SHRINK = 1.1
"""OneVision shrinks the tiles of an image whose sides are this much longer than those of the most
tiles it allows."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What stands at T visual positions.

    Attributes:
        sources: (T, K) int64, numbers of the features that stand at a position; NEWLINE for the
            learned newline. K is 1, or 4 where features are pooled.
        weights: (T, K) float64, the share of each; rows sum to 1.
    """

    sources: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        """T, newlines included."""
        return len(self.sources)

    @property
    def newlines(self) -> np.ndarray:
        """(T,) bool: where the learned newline stands."""
        return self.sources[:, 0] == NEWLINE

    def keep(self, kept: Sequence[int] | np.ndarray) -> "Layout":
        """The layout with k of its V visual tokens, in their old order, and all its newlines.

        Args:
            kept: (k,) numbers of visual tokens, newlines not counted.

        Raises:
            RedlibError: a number outside 0..V-1, or the same one twice.
        """
        kept = np.asarray(kept, dtype=np.int64)
        visual = np.flatnonzero(~self.newlines)
        if len(kept) and not 0 <= kept.min() <= kept.max() < len(visual):
            raise RedlibError(
                f"kept must lie in 0..{len(visual) - 1}; got {kept.min()}..{kept.max()}"
            )
        if len(np.unique(kept)) < len(kept):
            raise RedlibError(f"kept must be distinct; got {len(kept)} with repetitions")
        stays = self.newlines.copy()
        stays[visual[kept]] = True
        return Layout(self.sources[stays], self.weights[stays])

    def compact(self) -> tuple[np.ndarray, "Layout"]:
        """The features that the layout needs, (n,) ascending numbers, and the layout over those
        alone: what a training step reads and projects for 64 of 2,880 tokens."""
        needed = np.unique(self.sources[~self.newlines])
        sources = np.searchsorted(needed, self.sources)
        sources[self.newlines] = NEWLINE
        return needed, Layout(sources, self.weights)

    def fill(self, tokens: Tensor, newline: Tensor | None) -> Tensor:
        """(T, D) rows from the projected features (N, D) and the newline (D,).

        Raises:
            RedlibError: fewer features than the layout speaks of, or no newline where it has one.
        """
        if self.sources.max(initial=0) >= len(tokens):
            raise RedlibError(
                f"the layout speaks of {self.sources.max() + 1} features; got {len(tokens)}"
            )
        if newline is None and self.newlines.any():
            raise RedlibError("the layout ends lines, but the model has no newline; use `whole`")
        if newline is not None:
            tokens = torch.cat([tokens, newline[None].to(tokens)])  # so that NEWLINE finds it
        sources = torch.from_numpy(self.sources).to(tokens.device)
        if sources.shape[1] == 1:
            return tokens[sources[:, 0]]
        # Half precision would round every one of the four products.
        exact = torch.promote_types(tokens.dtype, torch.float32)
        weights = torch.from_numpy(self.weights).to(tokens.device, exact)
        parts = zip(sources.T, weights.T, strict=True)
        return sum(tokens[source] * weight[:, None] for source, weight in parts).to(tokens.dtype)


def whole(cells: int) -> Layout:
    """The cells x cells patches of one tile and nothing else: LLaVA-1.5."""
    return _plain(np.arange(cells * cells))


def split(cells: int, *, tiles: int = 1) -> Layout:
    """Tiles one after another, padding included, and one newline at the end: the form of the
    paper's release. One tile is the base tile alone."""
    return _plain(np.append(np.arange(tiles * cells * cells), NEWLINE))


def several(cells: int, images: int) -> Layout:
    """Images of one tile each, a newline after each."""
    numbers = np.arange(images * cells * cells).reshape(images, -1)
    return _plain(np.pad(numbers, ((0, 0), (0, 1)), constant_values=NEWLINE).ravel())


def unpadded(
    cells: int,
    size: tuple[int, int],
    side: int,
    pinpoints: Sequence[Sequence[int]],
    *,
    most: int | None = None,
) -> Layout:
    """Hugging Face's packing: the base tile, then the other tiles joined to one picture, row by
    row, without the rows or columns that only pad it, a newline after every row.

    Args:
        cells: patches along the side of a tile.
        size: (height, width) of the image, pixels.
        side: side of a tile, pixels.
        pinpoints: the (height, width) in pixels that tiles may make up together.
        most: tiles of which the picture may hold the patches; what is larger is shrunk (OneVision).
    """
    height, width = select_best_resolution(size, [list(p) for p in pinpoints])
    down, across = height // side, width // side
    numbers = (1 + torch.arange(down * across))[:, None] * cells**2 + torch.arange(cells**2)
    joined = numbers.view(down, across, cells, cells).transpose(1, 2)
    picture = unpad_image(joined.reshape(1, down * cells, across * cells), size)[0]
    ratio = (picture.numel() / (most * cells**2)) ** 0.5 if most else 1.0
    if ratio > SHRINK:
        rows, columns = (int(n // ratio) for n in picture.shape)
        layout = _pooled(picture.numpy(), (rows, columns))
    else:
        rows, columns = picture.shape
        layout = _plain(picture.numpy().ravel())
    pieces = [_like(layout, np.arange(cells * cells))]
    for row in range(rows):
        part = slice(row * columns, (row + 1) * columns)
        pieces += [
            Layout(layout.sources[part], layout.weights[part]),
            _like(layout, np.array([NEWLINE])),
        ]
    return _joined(pieces)


def film(cells: int, frames: int) -> Layout:
    """Frames of one tile each, pooled to half the sides (27 x 27 patches to 14 x 14) as OneVision
    pools them, and one newline at the end."""
    half = (cells + 1) // 2
    numbers = np.arange(frames * cells * cells).reshape(frames, cells, cells)
    pooled = [_pooled(frame, (half, half)) for frame in numbers]
    return _joined([*pooled, _like(pooled[0], np.array([NEWLINE]))])


def pack(model: nn.Module, features: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    """Visual inputs from tower features, through the stock projector and with the stock newline.

    Args:
        model: a stock LLaVA of any of the three families.
        features: B tensors (N, width of the tower), the features of each input at the feature
            layer, without [cls].
        layouts: what to make of each, all of the same T.

    Returns:
        (B, T, D) rows for the language model.

    Raises:
        RedlibError: the layouts differ in length.
    """
    lengths = sorted({len(layout) for layout in layouts})
    if len(lengths) != 1:
        raise RedlibError(f"layouts must be of one length; got lengths {lengths}")
    newline = getattr(model.model, "image_newline", None)
    # Pooling comes after the projector, which is not linear.
    tokens = model.model.multi_modal_projector(torch.cat(list(features)))
    parts = tokens.split([len(each) for each in features])
    filled = [layout.fill(part, newline) for layout, part in zip(layouts, parts, strict=True)]
    return torch.stack(filled)


def _plain(numbers: np.ndarray) -> Layout:
    return Layout(numbers[:, None].astype(np.int64), np.ones((len(numbers), 1)))


def _like(layout: Layout, numbers: np.ndarray) -> Layout:
    """Features as they are, written in as many columns as the layout has."""
    shape = (len(numbers), layout.sources.shape[1])
    weights = np.zeros(shape)
    weights[:, 0] = 1
    return Layout(np.broadcast_to(numbers[:, None], shape).astype(np.int64), weights)


def _joined(parts: Sequence[Layout]) -> Layout:
    return Layout(
        np.concatenate([part.sources for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def _pooled(numbers: np.ndarray, size: tuple[int, int]) -> Layout:
    """A picture of features (h, w), interpolated bilinearly to another size."""
    (row, row_weight), (col, col_weight) = (
        _neighbours(n, m) for n, m in zip(numbers.shape, size, strict=True)
    )
    sources = numbers[row[:, None, :, None], col[None, :, None, :]]  # (h', w', 2, 2)
    weights = row_weight[:, None, :, None] * col_weight[None, :, None, :]
    return Layout(sources.reshape(-1, 4), weights.reshape(-1, 4))


@lru_cache(maxsize=64)
def _neighbours(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The two of n points, and their weights, from which torch interpolates each of m, (m, 2).

    Interpolating unit vectors gives its weights; a picture's are products of those of its sides.
    """
    units = torch.eye(n, dtype=torch.float64)[:, None]  # (n, 1, n)
    weights, points = F.interpolate(units, size=m, mode="linear")[:, 0].T.topk(2)
    return points.numpy(), weights.numpy()
