"""How many tokens stay.

    keep=64          64 of every image, or of every tile
    keep=0.25        a quarter of them, rounded, one at least
    threshold=0.45   all with a redundancy of at most 0.45 (Algorithm 2): their number differs
    neither          as many as the method finds right, if it can tell

The budget is counted over *visual tokens*; newlines stay and are not counted. A redundancy is minus
the score by which a method ranks, so a threshold means for every method what it means for the
codebook.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune.keep import keep_lowest, keep_threshold
from redlib.prune.method import Method


@dataclass(frozen=True)
class Budget:
    """How many tokens stay: `keep` or `threshold`, or neither."""

    keep: int | float | None = None
    threshold: float | None = None

    def check(self, method: Method) -> None:
        """Raises RedlibError if it means nothing, whatever the image, or nothing to this method."""
        keep, threshold = self.keep, self.threshold
        if keep is not None and threshold is not None:
            raise RedlibError(f"give keep or threshold, not both; got {keep!r} and {threshold!r}")
        if keep is None and threshold is None and not method.native:
            raise RedlibError(
                f"{method.name}: give keep, a number or share of the visual tokens, or threshold"
            )
        if threshold is not None:
            if not _number(threshold) or not math.isfinite(threshold):
                raise RedlibError(f"threshold must be a number; got {threshold!r}")
            if method.scores is None:
                raise RedlibError(f"{method.name} has no scores for a threshold; give keep")
        if keep is not None and not _sensible(keep):
            raise RedlibError(
                "keep must be a whole number of visual tokens from 1, or a share of them above 0 "
                f"and at most 1.0; got {keep!r}"
            )

    def count(self, size: int, full: int, name: str = "an image") -> int | None:
        """How many of `size` tokens stay; None where the method has to tell.

        Args:
            size: L.
            full: L of a unit from which no padding is cut: of a tile that has fewer than `keep`
                tokens all stay, but no tile can have more than this.
            name: what the message calls whoever has too few.

        Raises:
            RedlibError: more than there are.
        """
        if self.keep is None:
            return None
        if isinstance(self.keep, Integral):
            if self.keep > full:
                raise RedlibError(
                    f"keep must be at most {full}, the visual tokens of {name}; got "
                    f"{self.keep!r}: keep fewer, or a share of them such as 0.25"
                )
            return min(int(self.keep), size)  # numpy's small ones would overflow
        return max(1, round(float(self.keep) * size))

    def choose(self, scores: Tensor, full: int, name: str) -> Tensor:
        """(K,) int64 ascending: who stays by scores (L,), the highest first; of equal scores the
        earlier token. `full` and `name` as in `count`.

        Raises:
            RedlibError: NaN among the scores, or more than there are.
        """
        if bool(torch.isnan(scores).any()):
            raise RedlibError(
                f"the method's scores of {name} have NaN values: it must rank every visual token"
            )
        redundancy = -scores
        if self.threshold is not None:
            mask = keep_threshold(redundancy, self.threshold)
        else:
            mask = keep_lowest(redundancy, self.count(len(scores), full, name))
        return mask.nonzero().flatten()


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _sensible(keep: object) -> bool:
    if not _number(keep):
        return False
    return keep >= 1 if isinstance(keep, Integral) else 0 < keep <= 1
