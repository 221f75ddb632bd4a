"""The paper's benchmarks on the Hugging Face hub: where each lies, what a row holds, how large it is.

A benchmark is a table with an image in every row, and no two of them name their columns alike: the
picture of a POPE row is the column `image`, of a SEED row the one element of a *list* `image`, of a
MuirBench row the list `image_list`. This module is the list of them, and `single` and `several` turn
rows into the questions that the tabletop's generators ask, so that one evaluation and one set of
official metrics serve both:

    fetches()                       # what a run would download, for a plan before it
    BENCHMARKS["pope"].ids          # the names of the data set, the newest first

The organisation lmms-lab moved its benchmarks to lmms-lab-encoder in July 2026; either name is
taken, whichever the hub, the cache or the folder `data_dir` knows.
"""

from dataclasses import dataclass

import pandas as pd

ORGANISATIONS = ("lmms-lab-encoder", "lmms-lab")
"""Of the benchmarks that lmms-eval hosts, the newest name first."""

CARD = "size on the data set's page"
RECALLED = "not read on the data set's page; an estimate"


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies.

    Attributes:
        id: of the data set on the hub; without an organisation it is one of ORGANISATIONS.
        split: the split that is asked.
        columns: those that a row must have.
        gigabytes: to download, all splits that come in the same files included.
        source: how the size is known.
        config: name of the configuration, where there are several.
        revision: branch or commit, where it is not the main one.
    """

    id: str
    split: str
    columns: tuple[str, ...]
    gigabytes: float
    source: str = CARD
    config: str | None = None
    revision: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The names that the hub knows it by, the newest first."""
        return (self.id,) if "/" in self.id else tuple(f"{o}/{self.id}" for o in ORGANISATIONS)

    @property
    def folder(self) -> str:
        """Its folder within `data_dir`."""
        return self.id.rsplit("/", 1)[-1]


BENCHMARKS: dict[str, Benchmark] = {
    "pope": Benchmark(
        "POPE", "test", ("image", "image_source", "question", "answer", "category"), 0.26
    ),
    "mmbench": Benchmark(
        "MMBench", "dev",
        ("index", "image", "question", "hint", "A", "B", "C", "D", "answer"), 0.24, config="en",
    ),
    "seed": Benchmark(
        "SEED-Bench", "test",
        ("image", "data_id", "data_type", "question", "choice_a", "choice_b", "choice_c",
         "choice_d", "answer", "question_id"), 27.2, RECALLED,
    ),
    "mme": Benchmark("MME", "test", ("image", "question_id", "question", "answer", "category"),
                     0.86),
    "realworldqa": Benchmark("RealWorldQA", "test", ("image", "question", "answer"), 0.68),
    "nocaps": Benchmark(
        "NoCaps", "validation", ("image", "image_id", "annotations_captions"), 4.76
    ),
    "flickr": Benchmark("flickr30k", "test", ("image", "img_id", "caption"), 4.41),
    "mantis": Benchmark(
        "TIGER-Lab/Mantis-Eval", "test",
        ("id", "question_type", "question", "images", "options", "answer"), 0.5, RECALLED,
    ),
    "muir": Benchmark(
        "MUIRBENCH/MUIRBENCH", "test",
        ("idx", "task", "question", "options", "answer", "image_list"), 0.43,
    ),
    "film": Benchmark(
        "OpenGVLab/MVBench", "train", ("video", "question", "candidates", "answer"), 15.8,
        revision="video",
    ),
    "image-dc": Benchmark(
        "DC100_EN", "test", ("image", "question_id", "question"), 0.1, RECALLED
    ),
}  # fmt: skip
"""Short name -> where it lies. Those of the tables are the tabletop's columns that stand in for
them, mmb and rwqa excepted, whose benchmarks have names of their own (see `bench.metrics`)."""

SEVERAL = ("mantis", "muir", "film")
"""Benchmarks of several images or of films, which only LLaVA-OneVision is asked."""


def fetches(*, several: bool = True) -> pd.DataFrame:
    """What notebooks 06 and 07 read with `data: real`, a row per data set.

    several: whether the run's model takes several images.

    Returns name, id (newest), split, gigabytes (to download), source (how the size is known).
    """
    rows = [
        (name, of.ids[0], of.split, of.gigabytes, of.source)
        for name, of in BENCHMARKS.items()
        if several or name not in SEVERAL
    ]
    return pd.DataFrame(rows, columns=["name", "id", "split", "gigabytes", "source"])
