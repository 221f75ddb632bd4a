"""What a pruning method may look at, and what it gives back.

Every method of the field answers one question about an image: which of its visual tokens should the
language model see? They differ in what they look at. The codebook looks at the tokens themselves;
[cls] methods at the attention inside the vision tower; diversity methods at the distances between
tokens; merging methods change what stays. A `Context` offers all of that for one image or one tile
of it, and computes nothing that is not asked for.

A method says which tokens are worth most and leaves the counting to the budget, by a function
`scores(context) -> (L,)`: **the highest scores stay**. A method that merges, or whose choice is not
a ranking, has `select(context, keep)` instead and returns a `Selection`.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor

from redlib.errors import RedlibError
from redlib.geometry import Grid

MERGED = -1


@dataclass(frozen=True, eq=False)
class Pooling:
    """How visual tokens come from patches, where the two are not one to one.

    That is so in Hugging Face's packing, which drops patches that only pad an image and may shrink
    the rest, and in films, whose frames are pooled.

    Attributes:
        sources: (L, K) int64, the patches that stand in each token, numbered tile by tile.
        weights: (L, K) the share of each; rows sum to 1.
        shapes: (rows, columns) of the rectangles that the tokens fill one after another.
        tiles: n.
    """

    sources: Tensor
    weights: Tensor
    shapes: tuple[tuple[int, int], ...]
    tiles: int


@dataclass(frozen=True, eq=False)
class Trace:
    """Queries and keys of one attention layer of the vision tower, over the n tiles of a context.

    Attributes:
        queries, keys: (n, H, S, c), after the layer's projections; S counts [cls], if there is
            one, as its first row.
        scale: what the tower multiplies the products by.
    """

    queries: Tensor
    keys: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Context:
    """One visual input as a method sees it: one tile, or n tiles of one image taken together.

    Attributes:
        tokens: (L, D) visual tokens at the language model's input, tile by tile in raster order,
            newlines left out.
        features: (L, C) patches at the tower's feature layer, before the projector.
        cls: (n, C) [cls] at that layer, or None for a tower without one.
        grid: the patches of one tile.
        project: (K, C) features to (K, D) tokens: the stock projector.
        traces: the tower layers that the method declared in `layers`, by their number as declared.
        image: name of the visual input; random methods draw by it.
        extra: what only the caller can know, by name, each (L,): masks, measured probabilities.
        pooling: how the tokens come from the patches, or None where each patch is a token.
        smaller: what the tower says of the same tiles shrunk to h x w patches each,
            (h, w) to (n * h * w, D) tokens.
    """

    tokens: Tensor
    features: Tensor
    cls: Tensor | None
    grid: Grid
    project: Callable[[Tensor], Tensor]
    traces: Mapping[int, Trace] = field(default_factory=dict)
    image: str = ""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    pooling: Pooling | None = None
    smaller: Callable[[int, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tiles(self) -> int:
        """n."""
        return self.pooling.tiles if self.pooling else len(self.tokens) // self.grid.size

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the rectangles that the tokens fill one after another."""
        whole = (self.grid.height, self.grid.width)
        return self.pooling.shapes if self.pooling else (whole,) * self.tiles

    def of_patches(self, values: Tensor) -> Tensor:
        """Values of the patches, (n, P, ...), as values of the visual tokens, (L, ...).

        What is computed from `traces` or `cls` goes through here: a token pooled from several
        patches gets their weighted mean.
        """
        values = values.flatten(0, 1)
        if self.pooling is None:
            return values
        weights = self.pooling.weights.to(values.dtype)
        return torch.einsum("lk,lk...->l...", weights, values[self.pooling.sources])

    def trace(self, layer: int) -> Trace:
        """The traced tower layer of this number.

        Raises:
            RedlibError: the method does not declare that layer.
        """
        if layer not in self.traces:
            raise RedlibError(
                f"tower layer {layer} is not traced, only {sorted(self.traces)}; name it in the "
                "method's layers"
            )
        return self.traces[layer]

    def budget(self, keep: int) -> int:
        """`keep`, if it is a number of visual tokens that this context can keep.

        Raises:
            RedlibError: it is not a whole number in 1 .. L.
        """
        if isinstance(keep, bool) or not isinstance(keep, Integral) or not 1 <= keep <= len(self):
            raise RedlibError(
                f"keep must be a whole number in 1 .. {len(self)}, the visual tokens; got {keep!r}"
            )
        return int(keep)

    def given(self, name: str) -> Tensor:
        """(L,) what the caller gave under this name.

        Raises:
            RedlibError: nothing of that name, no numbers, of another length, or with NaN values.
        """
        if name not in self.extra:
            raise RedlibError(f"this method needs extra={{{name!r}: (L,) tensor}} for every image")
        values = self.extra[name]
        try:
            values = torch.as_tensor(values, device=self.tokens.device)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RedlibError(
                f"extra {name!r} must be a tensor ({len(self)},), one number per visual token; got "
                f"{reprlib.repr(values)}"
            ) from error
        if values.shape != (len(self),):
            raise RedlibError(
                f"extra {name!r} must have shape ({len(self)},), one value per visual token; "
                f"got {tuple(values.shape)}"
            )
        if values.isnan().any():
            raise RedlibError(
                f"extra {name!r} is NaN for {int(values.isnan().sum())} of {len(self)} visual "
                "tokens: measure them too"
            )
        return values


@dataclass(frozen=True, eq=False)
class Selection:
    """What stays of one context.

    Attributes:
        kept: (K,) int64, the visual tokens that stay, in the order in which the language model
            gets them; MERGED where a row stands for no single token.
        tokens: (K, D) the rows that the language model gets.
        scores: (L,) what they were chosen by, the highest first to stay; NaN where a method has no
            score for a token.
    """

    kept: Tensor
    tokens: Tensor
    scores: Tensor


def precise(values: Tensor) -> Tensor:
    """The values (...) in float32 at least, so that rounding does not decide who stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def highest(scores: Tensor, count: int) -> Tensor:
    """(count,) indices of the highest of (L,) scores, falling; of equal ones the earlier token."""
    return scores.argsort(descending=True, stable=True)[:count]


def unchosen(chosen: Tensor, length: int) -> Tensor:
    """(length - n,) the tokens that are not among the n chosen, in raster order."""
    mask = torch.ones(length, dtype=torch.bool, device=chosen.device)
    mask[chosen] = False
    return mask.nonzero().flatten()
