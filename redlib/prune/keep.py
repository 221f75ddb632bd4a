"""From scores to the set of tokens that stay.

Two rules. The threshold rule keeps every token whose score is at most r (Algorithm 2): an image
with much that is redundant loses more tokens, so the budget holds only on average, and r has to be
found on other images. The count rule keeps the R tokens with the lowest scores, in every image.

    r = calibrate([redundancy(t, codebook) for t in calibration_tokens], mean_budget=64)
    tokens[keep_threshold(scores, r)]            # (about 64, D), in raster order
    tokens[keep_lowest(scores, 64)]              # (64, D), in raster order

Both return a mask, so what stays keeps its order in the image.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch

from redlib.errors import RedlibError


def keep_threshold(
    scores: torch.Tensor, r: float, *, rule: Literal["at-most", "below"] = "at-most"
) -> torch.Tensor:
    """(..., L) bool: kept where the score is at most `r` (Algorithm 2, line 18).

    The released code keeps scores `below` r only. An image may keep nothing.

    Raises:
        RedlibError: there is no such rule.
    """
    if rule not in ("at-most", "below"):
        raise RedlibError(f"rule must be 'at-most' or 'below'; got {rule!r}")
    return scores <= r if rule == "at-most" else scores < r


def keep_lowest(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """(..., L) bool: the `keep` lowest scores of each row; of equal scores the earlier token stays.

    Raises:
        RedlibError: `keep` is not a whole number in 1 .. L.
    """
    count = scores.shape[-1]
    if isinstance(keep, bool) or not isinstance(keep, Integral) or not 1 <= keep <= count:
        raise RedlibError(
            f"keep must be a whole number in 1 .. {count}, the visual tokens; got {keep!r}"
        )
    lowest = torch.argsort(scores, dim=-1, stable=True)[..., :keep]  # (..., keep)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, lowest, True)


def calibrate(scores: Sequence[torch.Tensor], mean_budget: float) -> float:
    """The threshold r under which images keep `mean_budget` tokens on average.

    Args:
        scores: one (L,) tensor per calibration image.
        mean_budget: wanted mean number of kept tokens, above 0 and at most the mean L.

    Returns:
        r, halfway between the last score that stays and the first that goes. Where many scores
        are equal the budget is met as closely as they allow.

    Raises:
        RedlibError: no scores, NaN among them, or a budget out of range.
    """
    if not len(scores):
        raise RedlibError("calibration needs the scores of at least one image; got none")
    pooled = np.concatenate([s.detach().cpu().numpy().astype(np.float64).ravel() for s in scores])
    if np.isnan(pooled).any():
        raise RedlibError("calibration scores have NaN values")
    mean_length = len(pooled) / len(scores)
    number = isinstance(mean_budget, Real) and not isinstance(mean_budget, bool)
    if not number or not 0 < mean_budget <= mean_length:
        raise RedlibError(
            f"mean_budget must be a number above 0 and at most {mean_length:g}, the visual tokens; "
            f"got {mean_budget!r}"
        )
    values, counts = np.unique(pooled, return_counts=True)
    kept = counts.cumsum()  # tokens that stay when r = values[i]
    best = int(np.abs(kept - mean_budget * len(scores)).argmin())
    above = values[min(best + 1, len(values) - 1)]
    middle = float((values[best] + above) / 2)
    # Between neighbours of single precision, in which scores are compared, there is nothing.
    return middle if np.float32(middle) < above else float(values[best])
