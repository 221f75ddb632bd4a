"""Which questions stand for the paper's benchmarks, and their five-task mean.

The paper judges a pruning method by the mean over five single-image benchmarks. Here five tasks of
the tabletop world stand in for them: POPE (mean of its three subsets, as the paper reports it), MME
(accuracy), choice (for MMBench and SEED), colour and position (for the open questions of VQA).
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd

from redlib.bench import POPE_SUBSETS
from redlib.tabletop import Question, Scene, questions

FIVE: dict[str, tuple[str, ...]] = {
    "pope": POPE_SUBSETS,
    "mme": ("mme",),
    "choice": ("choice",),
    "colour": ("colour",),
    "position": ("position",),
}
"""The five tasks, each the mean of its subsets."""

FURTHER: tuple[str, ...] = ("count", "word", "naming", "article")
"""Tasks that are reported too but do not enter the mean."""

FIVE_TASKS: tuple[str, ...] = tuple(task for subsets in FIVE.values() for task in subsets)


def ask(scene_list: Sequence[Scene], tasks: Iterable[str], limit: int) -> list[Question]:
    """At most `limit` questions of each task, spread evenly over the scenes.

    Every scene gives its first question before any gives its second, so that few questions still
    see many images; the two questions of an MME pair stay together.
    """
    chosen: list[Question] = []
    for task in tasks:
        turns: list[tuple[int, int, list[Question]]] = []
        for at, scene in enumerate(scene_list):
            groups: dict[object, list[Question]] = {}
            for number, question in enumerate(questions([scene], task)):
                groups.setdefault(question.group or number, []).append(question)
            # A scene's yes-questions come before its no-questions: take them in turn, and let every
            # other scene begin with a no.
            units = list(groups.values())
            halves = units[: len(units) // 2], units[len(units) // 2 :]
            pairs = zip_longest(*(halves if at % 2 else halves[::-1]))
            units = [unit for pair in pairs for unit in pair if unit is not None]
            turns += [(turn, at, unit) for turn, unit in enumerate(units)]
        taken = 0
        for _, _, unit in sorted(turns, key=lambda item: item[:2]):
            if taken + len(unit) > limit:
                break
            chosen += unit
            taken += len(unit)
    return chosen


def strata(answers: pd.DataFrame) -> np.ndarray:
    """(n,) name of the five-task task of every answer, "" for the further ones."""
    of = {task: name for name, subsets in FIVE.items() for task in subsets}
    return answers["task"].map(of).fillna("").to_numpy()


def five(answers: pd.DataFrame) -> dict[str, float]:
    """Accuracy of each of the five tasks and their "mean"; NaN for a task without answers.

    POPE is the mean of its subsets, whatever their sizes.
    """
    per_task = answers.groupby("task")["correct"].mean()
    numbers = {
        name: float(per_task.reindex(subsets).mean(skipna=False)) for name, subsets in FIVE.items()
    }
    return numbers | {"mean": float(np.mean(list(numbers.values())))}
