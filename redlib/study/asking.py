"""Which questions stand for the paper's benchmarks, and their five-task mean.

The paper judges a pruning method by the mean over five benchmarks of short answers; each has its
own generator in the tabletop world: POPE (mean of its three subsets, as the paper reports it), MME
(`study.scoring` counts it by categories and pairs, calibration by accuracy), MMBench (right in all
four rotations), SEED and RealWorldQA (images of another shape). With `data: real` the benchmarks
themselves are asked. Whoever evaluates takes both from here and need not know which:

    images, questions = exam(params, params.n_questions)
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import zip_longest

import numpy as np
import pandas as pd

from redlib.bench import POPE_SUBSETS
from redlib.data import benchmarks, single
from redlib.data.photo import Photo
from redlib.params import Params
from redlib.tabletop import Question, Scene, questions, scenes
from redlib.tabletop.world import SIDE

FIVE: dict[str, tuple[str, ...]] = {
    "pope": POPE_SUBSETS,
    "mme": ("mme",),
    "mmb": ("mmb",),
    "seed": ("seed",),
    "rwqa": ("rwqa",),
}
"""The five tasks, each the mean of its subsets."""

CAPTIONED: tuple[str, ...] = ("nocaps", "flickr")
"""The two columns of captions, which do not enter the mean."""

FIVE_TASKS: tuple[str, ...] = tuple(task for subsets in FIVE.values() for task in subsets)

REAL = {"mmbench": "mmb", "realworldqa": "rwqa"}
"""Benchmarks that a tabletop task stands in for under another name; other names are the same."""

JUDGED = 4
"""New tokens of an answer about scenes by which a codebook is judged."""

WIDE = (504, 336)
"""Pixels of the images that RealWorldQA's questions are asked about."""

WIDE_START = 1_000_000
"""Number of the first of them in its split, beyond the square scenes."""

CAPTION_STARTS = {"nocaps": 1_100_000, "flickr": 1_200_000}
"""Number of the first scene that is described, for either column."""


def exam(
    params: Params, limit: int, *, images: int | None = None, scale: int = 1
) -> tuple[list[Scene] | list[Photo], list[Question]]:
    """Test images, and at most `limit` questions of each of the five tasks about them.

    A smaller limit asks the first of the same questions.

    images: how many scenes to ask about, by default `limit`. scale:
    see `asked_scenes`; photographs are as many and as large as they are.
    """
    if params.data == "tabletop":
        drawn = asked_scenes("test", images or limit, scale=scale)
        return drawn, ask(drawn, FIVE_TASKS, limit)
    return _gathered(benchmarks.FIVE, limit, params)


def described(
    params: Params, limit: int, *, scale: int = 1
) -> tuple[list[Scene] | list[Photo], list[Question]]:
    """Images to be described in one sentence, `limit` for either column, and the questions."""
    if params.data == "tabletop":
        drawn = described_scenes("test", limit, scale=scale)
        about = [q for task, part in drawn.items() for q in questions(part, task)]
        return [scene for part in drawn.values() for scene in part], about
    return _gathered(benchmarks.CAPTIONED, limit, params)


def _gathered(
    names: Iterable[str], limit: int, params: Params
) -> tuple[list[Photo], list[Question]]:
    each = [single.ask(name, limit, params) for name in names]
    return [photo for photos, _ in each for photo in photos], [
        q for _, about in each for q in about
    ]


def identity(
    params: Params, about: Iterable[Question], pictures: Iterable[Scene | Photo]
) -> dict[str, object]:
    """What a table of answers to questions about photographs depends on: the questions and the
    bytes of the pictures, whose names may stay while they change. Nothing for scenes, whose code
    says it all."""
    if params.data == "tabletop":
        return {}
    told = sorted((q.task, q.image, q.text, q.answer) for q in about)
    digest = sha256(repr(told).encode())
    for picture in sorted(pictures, key=lambda one: one.id):
        digest.update(sha256(picture.data).digest())
    return {"data": "real", "asked": digest.hexdigest()[:12]}


def asked_scenes(split: str, limit: int, *, scale: int = 1) -> list[Scene]:
    """As many square scenes as questions per task, so that most tasks ask each scene once, and
    half as many wide ones, which give two questions each, or a few more where some give only one.

    scale: 2 draws them with twice the sides, for a model that looks at them in tiles.
    """
    width, height = (scale * side for side in WIDE)
    wide: list[Scene] = []
    while (short := limit - len(questions(wide, "rwqa"))) > 0:
        start = WIDE_START + len(wide)
        wide += scenes(split, (short + 1) // 2, start=start, width=width, height=height)
    side = scale * SIDE
    return scenes(split, limit, width=side, height=side) + wide


def described_scenes(split: str, limit: int, *, scale: int = 1) -> dict[str, list[Scene]]:
    """By column, the scenes that are described: those that show a withheld pair of noun and colour
    stand in for NoCaps, crowded ones for Flickr30k."""
    kinds = {"nocaps": {"withheld": True}, "flickr": {"level": "crowded"}}
    side = scale * SIDE
    return {
        task: scenes(split, limit, start=CAPTION_STARTS[task], width=side, height=side, **kind)
        for task, kind in kinds.items()
    }


def ask(scene_list: Sequence[Scene], tasks: Iterable[str], limit: int) -> list[Question]:
    """At most `limit` questions of each task, spread evenly over the scenes.

    Every scene gives its first question before any gives its second, so that few questions still
    see many images. The two questions of an MME pair stay together, and with a limit of one there
    is one pair all the same; the four rotations of an MMBench question count as one. RealWorldQA
    alone is asked about images that are not square, and all others about square ones.
    """
    chosen: list[Question] = []
    for task in tasks:
        turns: list[tuple[int, int, list[Question]]] = []
        suited = [scene for scene in scene_list if _is_wide(scene) == (task == "rwqa")]
        for at, scene in enumerate(suited):
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
            size = 1 if task == "mmb" else len(unit)
            if taken and taken + size > limit:
                break
            chosen += unit
            taken += size
    return chosen


def _is_wide(scene: Scene) -> bool:
    height, width = scene.instance.shape
    return width != height


def strata(answers: pd.DataFrame) -> np.ndarray:
    """(n,) name of the five-task task of every answer, "" for the further ones."""
    of = {task: name for name, subsets in FIVE.items() for task in subsets}
    return answers["task"].replace(REAL).map(of).fillna("").to_numpy()


def five(answers: pd.DataFrame) -> dict[str, float]:
    """Accuracy of each of the five tasks and their "mean"; NaN for a task without answers.

    POPE is the mean of its subsets, whatever their sizes.
    """
    per_task = answers.groupby(answers["task"].replace(REAL))["correct"].mean()
    numbers = {
        name: float(per_task.reindex(subsets).mean(skipna=False)) for name, subsets in FIVE.items()
    }
    return numbers | {"mean": float(np.mean(list(numbers.values())))}
