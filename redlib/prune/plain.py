"""The codebook, and what it is measured against.

A method that beats a codebook has to beat chance and a raster too, and the codebook has to beat
what a reader would try first. Below are the paper's method, the released code's variant for
OneVision, and plain rules: chance, a raster, attention inside the vision tower, the whole image
shrunk; and rankings by what is known of a scene or was measured on it, which show how far any
ranking could get.

Scores: the highest stay.
"""

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from redlib.codebook import Codebook
from redlib.errors import RedlibError
from redlib.prune.attention import received, to_patches
from redlib.prune.context import MERGED, Context, Selection
from redlib.prune.method import Method
from redlib.prune.scores import cosines, random_scores, redundancy


def codebook(context: Context, *, codebook: Codebook) -> Tensor:
    """(L,) minus the redundancy: the largest cosine with any prototype (eq. 2, Algorithm 2)."""
    return -redundancy(context.tokens, codebook)


def codebook_softmax(context: Context, *, codebook: Codebook) -> Tensor:
    """(L,) the released score for OneVision.

    Of the cosines (L, N) a softmax over the tokens times a softmax over the prototypes; the
    redundancy of a token is its largest product.
    """
    similarity = cosines(context.tokens, codebook)  # (L, N)
    return -(similarity.softmax(0) * similarity.softmax(1)).amax(1)


def random(context: Context, *, seed: int = 0) -> Tensor:
    """(L,) uniform scores: another subset for every image and seed, the same for the same ones.

    Raises:
        RedlibError: a seed that is no whole number from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise RedlibError(f"seed must be a whole number from 0 on; got {seed!r}")
    seeds = [int(seed), *context.image.encode()]
    return random_scores(len(context), seeds).to(context.tokens.device)


def grid(context: Context, keep: int) -> Selection:
    """Exactly K tokens, evenly over rows and columns.

    Each rectangle of tokens, a tile or the picture of several, gets its share of K; of that about
    as many rows as the rectangle's proportions say, and in every row as many columns, one more in
    some.
    """
    shares = _shares(keep, [rows * columns for rows, columns in context.shapes])
    kept, start = [], 0
    for (rows, columns), share in zip(context.shapes, shares, strict=True):
        kept.append(start + _raster(rows, columns, share))
        start += rows * columns
    chosen = torch.from_numpy(np.concatenate(kept)).to(context.tokens.device)
    scores = torch.zeros(len(context), device=chosen.device)
    scores[chosen] = 1
    return Selection(chosen, context.tokens[chosen], scores)


def _shares(total: int, sizes: list[int]) -> list[int]:
    """`total` divided in proportion to `sizes`, none above its size."""
    ends = np.floor(np.cumsum(sizes) * total / sum(sizes) + 0.5).astype(int)
    return np.diff(ends, prepend=0).tolist()


def _raster(rows: int, columns: int, count: int) -> np.ndarray:
    """(count,) numbers in a rectangle, spread evenly."""
    if count == 0:
        return np.empty(0, np.int64)
    lines = round((count * rows / columns) ** 0.5)
    lines = min(max(lines, 1, -(-count // columns)), rows, count)
    numbers = [
        row * columns + column
        for row, each in zip(_spread(lines, rows), _shares(count, [1] * lines), strict=True)
        for column in _spread(each, columns)
    ]
    return np.asarray(numbers, np.int64)


def _spread(count: int, size: int) -> list[int]:
    """`count` of `size` places, each in the middle of its share."""
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def cls_attention(context: Context) -> Tensor:
    """(L,) attention that [cls] pays to a patch, mean over heads (FasterVLM).

    In the tower's last layer but one: for CLIP the layer that makes the features.

    Raises:
        RedlibError: a tower without [cls].
    """
    if context.cls is None:
        raise RedlibError("this tower has no [cls]; use received-attention")
    return to_patches(context, context.trace(-2)).mean(0)


def received_attention(context: Context) -> Tensor:
    """(L,) attention that a patch receives, mean over heads and queries: for towers without [cls].

    In the tower's last layer but one.
    """
    first = int(context.cls is not None)
    return context.of_patches(received(context.trace(-2)).mean(1)[:, first:])  # [cls] looks as well


def downsample(context: Context, keep: int) -> Selection:
    """The image shrunk until it has no more than K patches, and all of them.

    The tower sees h x w patches of each tile, h the largest square's side that fits and w what is
    then left, with its position embeddings interpolated. No token of it is one of the L.

    Raises:
        RedlibError: fewer tokens than tiles.
    """
    each = keep // context.tiles
    if each < 1:
        raise RedlibError(
            f"downsample needs a token for each of {context.tiles} tiles; got keep {keep}"
        )
    height = min(int(each**0.5), context.grid.height)
    width = min(each // height, context.grid.width)
    tokens = context.smaller(height, width)
    return Selection(
        torch.full((len(tokens),), MERGED),
        tokens,
        torch.full((len(context),), torch.nan),
    )


def probe(context: Context) -> Tensor:
    """(L,) mean of two ranks, by what was measured on this image's own tokens.

    `extra`: "top1", the top-1 probability of the single-token probe (section 3.1.1), and "jsd", the
    final JSD of the cascade (eq. 11). Rank 0 is the lowest; equal values share their mean rank.
    """
    return (_ranks(context.given("top1")) + _ranks(context.given("jsd"))) / 2


def _ranks(values: Tensor) -> Tensor:
    """(L,) ranks from 0, equal values sharing the mean of theirs."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2)[group].double()


def oracle(context: Context) -> Tensor:
    """(L,) which share of the token's patch shows an object: `extra` "coverage"."""
    return context.given("coverage").double()


def oracle_inverse(context: Context) -> Tensor:
    """(L,) which share of the token's patch shows none."""
    return -oracle(context)


METHODS = (
    Method("codebook", "Redundancy codebook", scores=codebook, options=("codebook",)),
    Method(
        "codebook-softmax", "Redundancy codebook, double softmax", scores=codebook_softmax,
        options=("codebook",),
    ),
    Method("random", "Random", scores=random, options=("seed",)),
    Method("grid", "Grid", select=grid),
    Method("cls-attention", "[cls] attention (FasterVLM)", scores=cls_attention, layers=(-2,)),
    Method("received-attention", "Received attention", scores=received_attention, layers=(-2,)),
    Method("downsample", "Downsampled image", select=downsample, merges=True),
    Method("probe", "Direct probe", scores=probe),
    Method("oracle", "Oracle", scores=oracle),
    Method("oracle-inverse", "Oracle, inverse", scores=oracle_inverse),
)  # fmt: skip
