"""PruMerge: keep where [cls] looks, and pour the rest into what was kept.

Three ideas in a row. The last tower layer's attention from [cls] is sparse, so the patches that
matter are its *outliers*, and their number says how much there is to see in this image. A patch
that goes is not lost: every kept one absorbs the 32 patches whose keys are most like its own,
weighted by the attention that those get. Whatever was dropped is summed up once more in one extra
token at the end.

PruMerge+ adds patches of a regular grid between the second idea and the third, because outliers
alone leave large parts of the image unseen.

    a = softmax(q_cls K^T / sqrt(C))             # one head over the full width C, last layer
    x_i <- x_i + sum of a_j x_j                  # j: the 32 nearest of i by cosine of keys
    extra = sum of a_j x_j                       # j: dropped

The weights a_j are not normalised and the x_j are the features as they were, not as merged. The
tokens are handed on as they were found: by falling attention, then the grid, then the extra token.
A tower without [cls] has the mean over queries in its place, as ports of the method to SigLIP do.

All tiles of a context are one list: one set of outliers, one grid, neighbours from any tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from redlib.prune.attention import keys_of_patches, one_head, to_patches
from redlib.prune.context import MERGED, Context, Selection, highest, precise, unchosen
from redlib.prune.method import Method

LAYER = -1
NEIGHBOURS = 32


def prumerge(context: Context, keep: int | None = None) -> Selection:
    """PruMerge: the patches that [cls] attends to most, merged with their neighbours.

    Args:
        context: with the tower's last layer traced.
        keep: rows K that the language model gets. The extra token is one of them, so K - 1 patches
            are kept by attention, and K = 1 is the extra token alone: the image as one sum. None
            keeps the m outliers of this image and the extra token, m + 1 rows.

    Raises:
        RedlibError: `keep` is out of range, or the layer is not traced.
    """
    attention = _attention(context)
    count = len(outliers(attention)) if keep is None else context.budget(keep) - 1
    return _merge(context, attention, highest(attention, count))


def prumerge_plus(context: Context, keep: int | None = None) -> Selection:
    """PruMerge+: as PruMerge, with patches of a regular grid after those chosen by attention.

    With `keep=None` and m outliers, the ratio is m / L and every `int(int(L / m) / 3)`-th token is
    added that is not there yet, from 0 on and short of the last. At most a quarter of the tokens
    can be outliers, so the step is at least 1; without any outlier there is no ratio, and the grid
    is token 0.

    With a budget K the extra token is one row, and the others are half attention, half grid (the
    odd one goes to attention), as in the authors' variant of fixed size, which has 72 + 72 + 1. It
    lays its grid over all tokens and may take one twice; here the grid is laid over the tokens that
    attention left, so the K - 1 are all different.

    Raises:
        RedlibError: `keep` is out of range, or the layer is not traced.
    """
    attention = _attention(context)
    if keep is None:
        chosen = highest(attention, len(outliers(attention)))
        grid = torch.arange(0, len(context) - 1, _step(len(context), len(chosen)))
        grid = grid.to(chosen.device)
        grid = grid[~torch.isin(grid, chosen)]
    else:
        rows = context.budget(keep) - 1
        chosen = highest(attention, rows - rows // 2)
        grid = _spread(unchosen(chosen, len(context)), rows // 2)
    return _merge(context, attention, torch.cat([chosen, grid]))


def outliers(values: Tensor) -> Tensor:
    """(n,) indices of the values (L,) above Q3 + 1.5 (Q3 - Q1), the upper fence of a box plot."""
    ends = torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device)
    lower, upper = values.quantile(ends)
    return (values > upper + 1.5 * (upper - lower)).nonzero().flatten()


def _attention(context: Context) -> Tensor:
    """(L,)"""
    return to_patches(context, one_head(context.trace(LAYER)))[0]


def _step(length: int, count: int) -> int:
    """The grid's step, a third of the mean distance of outliers."""
    return length if count == 0 else length // count // 3


def _spread(tokens: Tensor, count: int) -> Tensor:
    """`count` of the tokens, each from the middle of one of as many equal stretches."""
    middle = 2 * torch.arange(count, device=tokens.device) + 1
    return tokens[middle * len(tokens) // (2 * max(count, 1))]


def _merge(context: Context, attention: Tensor, kept: Tensor) -> Selection:
    """The kept patches with their neighbours, then the extra token.

    Every row is a weighted sum of features, so all of them are one product (K, L) x (L, C).
    """
    keys = F.normalize(keys_of_patches(context, one_head(context.trace(LAYER)))[0], dim=-1)
    similarity = keys[kept] @ keys.T  # (k, L)
    similarity.scatter_(1, kept[:, None], -torch.inf)  # no token is its own neighbour
    nearest = similarity.argsort(dim=-1, descending=True, stable=True)
    nearest = nearest[:, : min(NEIGHBOURS, len(context) - 1)]

    weights = torch.zeros_like(similarity).scatter_(1, nearest, attention[nearest])
    weights.scatter_(1, kept[:, None], 1)
    extra = attention.clone()
    extra[kept] = 0
    weights = torch.cat([weights, extra[None]])  # (k + 1, L)

    features = precise(context.features)
    rows = (weights.to(features.dtype) @ features).to(context.features.dtype)
    return Selection(
        kept=torch.cat([kept, kept.new_tensor([MERGED])]),
        tokens=context.project(rows),
        scores=attention,
    )


PRUMERGE = Method(
    name="prumerge",
    title="PruMerge",
    select=prumerge,
    layers=(LAYER,),
    order="own",
    merges=True,
    native=True,
)
PRUMERGE_PLUS = Method(
    name="prumerge+",
    title="PruMerge+",
    select=prumerge_plus,
    layers=(LAYER,),
    order="own",
    merges=True,
    native=True,
)
