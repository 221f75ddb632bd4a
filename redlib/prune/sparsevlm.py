"""SparseVLM: where the words that the image is about look (arXiv 2410.04417).

Four rules, written from what the paper defines and from descriptions of what its code does:

1. *Raters.* Not every word of a question is about the image. Of the words behind it those rate
   whose share of the visual tokens' similarity, softmax over the words of V T^T on the language
   model's input embeddings, mean over the visual tokens, lies above the average word's.
2. *Ranking.* In some layers the attention that the raters pay to each visual token, mean over heads
   and raters, ranks it; the tokens with most stay.
3. *Progress.* This happens in the layers 2, 6 and 15 of 32, each time down to fewer.
4. *Recycling.* Of the tokens that leave, the better 30 % are not lost: DPC-kNN
   (`redlib.clustering`) puts them into clusters of about ten, and the mean of each cluster's states
   goes on as one row behind those that stayed. Rows made so are ranked like others later.

How many leave, the paper tells by the rank of the raters' attention matrix, N = lambda (L - rank),
and sets lambda so that a budget is met; its code lists counts instead. Here too the budget is what
is given, and it is met exactly: `keep` rows are left behind the last cut, recycled ones included
(the code adds them on top). What stays behind the cuts before falls evenly, by the same factor at
each, unless `counts` says otherwise:

    576 tokens, keep=110     332, 191, 110 by default; counts=(300, 200) are those of the code

The paper's tables call the first and the last of these "192 tokens", since they count the mean over
all layers, (3 x 576 + 4 x 300 + 9 x 200 + 16 x 110) / 32 = 203, or 188 if a layer that cuts counts
by what it hands on. `redlib.prune.Run.report` tells ours, by what a layer reads.

The rows stand in raster order, recycled ones behind; what stays is numbered anew behind each cut,
as in the paper's first version, and the answer with it. Attention is what the softmax gives, as in
the paper, where the code takes the logits before it. The clusters' k is ours; the code's random
noise, which tells points of equal density apart, is left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from redlib.clustering import cluster_tokens
from redlib.errors import RedlibError
from redlib.prune.context import highest, precise
from redlib.prune.inside import Candidates, Inside
from redlib.prune.method import Method

LAYERS, OF = (2, 6, 15), 32
"""The layers that rank, and the depth of the model they belong to."""

RECYCLED, EACH = 3, 10
"""Of how many in ten tokens that leave rows are made, and of how many each."""

NEIGHBOURS = 5
"""k of DPC-kNN."""


class SparseVLM(Inside):
    """SparseVLM in a stock model.

    Args:
        model: a stock LLaVA.
        layers: those that rank, ascending; by default the paper's at their relative depth, and not
            the first, whose attention knows no words yet.
        counts: visual tokens left behind each cut but the last; by default falling evenly.

    Raises:
        RedlibError: the model has no such layers, attention that takes no masks, or counts that are
            not falling, one for each cut but the last.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[int] | None = None,
        counts: Sequence[int] | None = None,
    ) -> None:
        depth = len(model.model.language_model.layers)
        chosen = relative(depth) if layers is None else layers
        if not _whole(chosen) or list(chosen) != sorted({*chosen} & {*range(depth - 1)}):
            raise RedlibError(
                f"layers must ascend from 0 to {depth - 2}, the model has {depth}; got {layers!r}"
            )
        if counts is not None and (
            not _whole(counts)
            or len(counts) != len(chosen) - 1
            or list(counts) != sorted(counts, reverse=True)
        ):
            raise RedlibError(
                f"counts must name falling numbers of tokens for {len(chosen) - 1} cuts, all but "
                f"the last; got {counts!r}"
            )
        super().__init__(model, chosen, compact=True)
        self._counts = None if counts is None else tuple(counts)

    def counts(self, size: int, keep: int) -> tuple[int, ...]:
        """Falling from `size` to `keep` by the same factor, or as told."""
        if self._counts is None:
            return falling(size, keep, len(self.layers))
        return tuple(max(keep, min(count, size)) for count in (*self._counts, keep))

    def begin(self, embedded: Tensor, each: Candidates) -> Candidates:
        """Only its raters, of the words behind the image. Raises RedlibError where none are."""
        if not len(each.text):
            raise RedlibError(
                "sparsevlm ranks by the words behind an image, but none are: put the question there"
            )
        line = precise(embedded[each.row])
        share = (line[each.columns] @ line[each.text].T).softmax(1).mean(0).cpu()  # (words,)
        rate = share > share.mean()
        return replace(each, text=each.text[rate] if rate.any() else each.text)

    def raters(self, each: Candidates, last: int) -> Tensor:
        """(r,) those words."""
        return each.text

    def chosen(self, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """The best, (k,) with k one at least, and the better part of the rest, (m,)."""
        order, best = highest(scores, len(scores)), keep
        while best > 1 and best < len(scores) and best + _rows(len(scores) - best) > keep:
            best -= 1
        return order[:best], order[best:][: _pool(len(scores) - best)]

    def groups(self, states: Tensor, count: int) -> list[Tensor]:
        """Clusters of the states, (g,) each, the one with the clearest peak first."""
        if len(states) == 1:
            return [torch.zeros(1, dtype=torch.int64)]
        labels = torch.from_numpy(cluster_tokens(states, NEIGHBOURS, count).labels)
        return [(labels == cluster).nonzero().flatten() for cluster in range(count)]


def relative(depth: int) -> tuple[int, ...]:
    """The ranking layers of a model of `depth` layers, at the paper's relative depth."""
    found: list[int] = []
    for layer in LAYERS:
        found.append(max(found[-1] + 1 if found else 1, round(layer / (OF - 1) * (depth - 1))))
    return tuple(layer for layer in found if layer < depth - 1)


def falling(size: int, keep: int, cuts: int) -> tuple[int, ...]:
    """How many of `size` tokens are left behind each cut, fewer by the same factor at each."""
    middle = [round(size * (keep / size) ** (cut / cuts)) for cut in range(1, cuts)]
    return tuple(max(count, keep) for count in (*middle, keep))


def _whole(values: object) -> bool:
    """Whether these are whole numbers, one at least."""
    return bool(values) and isinstance(values, list | tuple) and all(
        isinstance(value, int) and not isinstance(value, bool) for value in values
    )  # fmt: skip


def _pool(gone: int) -> int:
    """Of how many of those that leave rows are made: of 30 %, and one more."""
    return min(gone, gone * RECYCLED // 10 + 1)


def _rows(gone: int) -> int:
    """How many rows: one of ten, and one more."""
    return _pool(gone) // EACH + 1


METHOD = Method(
    "sparsevlm", "SparseVLM", inside=SparseVLM, merges=True, options=("layers", "counts")
)
