"""Intervals that know which answers belong together.

Questions about one image share that image: if the model sees it badly, all of them go wrong. To
treat them as independent makes an interval too narrow. The clustered bootstrap draws whole
*images* with replacement and recomputes the number on each draw:

    interval(frame.correct, frame.image)                      # accuracy
    interval(frame.correct, frame.image, strata=frame.task)   # mean over tasks
    difference(ours.correct, random.correct, ours.image)      # paired: same questions, two methods
    ratio(ours.correct, full.correct, ours.image)             # what is kept of the unpruned

The paired difference is drawn on the differences of each question, so what is hard for both methods
cancels. It is the right test of "A is better than B"; two overlapping intervals are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from redlib.errors import RedlibError


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        mean: the number itself, not the mean of the draws.
        low, high: percentiles of the draws.
        n: values behind it.
        clusters: distinct clusters (images) behind it.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def interval(
    values: Sequence[float],
    clusters: Sequence,
    *,
    strata: Sequence | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval over `clusters`.

    Args:
        values: (n,) numbers or booleans.
        clusters: (n,) what is drawn: the image of each value.
        strata: (n,) labels; when given, the mean is the unweighted mean of the means per label
            (POPE's mean of subsets, the mean over tasks). A draw without any value of a label
            takes the mean over the others.
        resamples: number of draws.
        level: share of the draws inside the interval.
        seed: seed of the draws.

    Raises:
        RedlibError: no values, lengths that differ, or an argument out of range.
    """
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        raise RedlibError("an interval needs at least one value; got none")
    labels = np.zeros(len(numbers)) if strata is None else np.asarray(strata)
    if not len(numbers) == len(clusters) == len(labels):
        raise RedlibError(
            f"an interval needs one cluster and one stratum per value; got {len(numbers)} values, "
            f"{len(clusters)} clusters, {len(labels)} strata"
        )
    if resamples < 1 or not 0 < level < 1:
        raise RedlibError(
            f"resamples must be at least 1 and level in (0, 1); got {resamples!r} and {level!r}"
        )
    cluster_names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    stratum_names, stratum = np.unique(labels, return_inverse=True)
    c, s = len(cluster_names), len(stratum_names)
    sums, counts = np.zeros((c, s)), np.zeros((c, s))
    np.add.at(sums, (cluster, stratum), numbers)
    np.add.at(counts, (cluster, stratum), 1)

    draws = _draws(c, resamples, seed)
    drawn = draws @ counts  # (R, S)
    means = np.divide(draws @ sums, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
    low, high = np.quantile(np.nanmean(means, axis=1), [(1 - level) / 2, (1 + level) / 2])
    mean = (sums.sum(axis=0) / counts.sum(axis=0)).mean()
    return Interval(float(mean), float(low), float(high), len(numbers), c)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence,
    *,
    strata: Sequence | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Paired difference, mean of `first` - `second`, where both answer the same n questions.

    Arguments and errors as in `interval`; row i of both is one question, and it is an error too if
    one has more rows than the other.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise RedlibError(
            f"a paired difference needs the same questions on both sides; "
            f"got {len(a)} and {len(b)} values"
        )
    return interval(a - b, clusters, strata=strata, resamples=resamples, level=level, seed=seed)


def ratio(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence,
    *,
    strata: Sequence | None = None,
    tasks: Sequence | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """What is kept: mean of `first` over mean of `second`, where both answer the same n questions.

    Both sides of the ratio see the same draws, so what is hard for both cancels. The paper's
    percentages are means of such ratios over tasks (five, or two sets of images).

    Args:
        first, second: (n,) of the pruned model and of the unpruned one.
        tasks: (n,) labels; the result is the unweighted mean of the ratios per label.
        strata: (n,) labels within tasks (POPE's subsets, MVBench's subtasks); each side of a ratio
            is the unweighted mean of its means per stratum.
        clusters, resamples, level, seed: as in `interval`.

    Returns:
        NaN or infinity where the second side of a task has nothing right; such draws are left out
        of the interval.

    Raises:
        RedlibError: as `interval` and `difference`.
    """
    # For their errors and counts.
    difference(first, second, clusters, strata=tasks, resamples=1)
    whole = interval(first, clusters, strata=strata, resamples=min(1, resamples), level=level)
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    labels = np.zeros(len(a)) if tasks is None else np.asarray(tasks)
    within = np.zeros(len(a)) if strata is None else np.asarray(strata)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    task_names, task = np.unique(labels, return_inverse=True)
    _, stratum = np.unique(within, return_inverse=True)
    cells, cell = np.unique(np.stack([task, stratum]), axis=1, return_inverse=True)
    cell = cell.ravel()
    sums, counts = np.zeros((2, len(names), len(cells[0]))), np.zeros((len(names), len(cells[0])))
    for side, values in zip(sums, (a, b), strict=True):
        np.add.at(side, (cluster, cell), values)
    np.add.at(counts, (cluster, cell), 1)
    # The estimate, then the draws.
    draws = np.concatenate([np.ones((1, len(names))), _draws(len(names), resamples, seed)])
    drawn = draws @ counts  # (1 + R, cells)
    ratios = []
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [np.where(drawn > 0, draws @ side / drawn, np.nan) for side in sums]
        for number in range(len(task_names)):
            of = cells[0] == number
            top, bottom = (_mean_of_known(side[:, of]) for side in means)
            ratios.append(top / bottom)
    found = np.mean(ratios, axis=0)
    drawn = found[1:][np.isfinite(found[1:])]
    low, high = (
        np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
    )
    return Interval(float(found[0]), float(low), float(high), whole.n, whole.clusters)


@lru_cache(maxsize=8)
def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    """(R, C) draws of C clusters with replacement, as how often each is drawn; not to be changed.

    A table asks for the same draws again and again."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def _mean_of_known(means: np.ndarray) -> np.ndarray:
    """(R,) mean of each row over what is known in it."""
    known = ~np.isnan(means)
    return np.where(known, means, 0).sum(axis=1) / known.sum(axis=1)


def accuracy(
    answers: pd.DataFrame,
    by: Sequence[str] = ("method", "task"),
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy with interval for every group of `answers`, in order of first appearance.

    Args:
        answers: rows of `evaluate`, with columns image, correct, kept and those named in `by`.
        by: columns that make a group.
        resamples, level, seed: as in `interval`.

    Returns:
        Columns `by`, then accuracy, low, high, n (questions), images, kept (mean number of visual
        tokens over the questions' images, each image once).
    """
    rows = []
    for key, part in answers.groupby(list(by), sort=False):
        found = interval(
            part["correct"], part["image"], resamples=resamples, level=level, seed=seed
        )
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "accuracy": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "images": found.clusters,
                "kept": part.groupby("image")["kept"].mean().mean(),
            }
        )
    return pd.DataFrame(rows)
