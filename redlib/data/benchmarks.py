"""The paper's benchmarks: where each lies on the hub, what a row must hold, how large it is.

A benchmark is a table with an image in every row, and no two of them name their columns alike: the
picture of a POPE row is the column `image`, of a SEED row the one element of a *list* `image`, of a
MuirBench row the list `image_list`. Here stands the list of them; `single` and `several` turn their
rows into the questions that the tabletop's generators ask, so that one evaluation and one set of
official metrics serve both:

    BENCHMARKS["pope"].ids      # the names of its repository, the present one first
    fetches(params)             # what notebooks 06 to 08 would fetch, for a plan beforehand

Sizes are those that the publishers state (file lists and dataset cards). Where none could be read,
the number is an estimate and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from redlib.data.sources import Source
from redlib.params import Params, family


@dataclass(frozen=True, kw_only=True)
class Benchmark(Source):
    """A benchmark in its Hugging Face form.

    Attributes:
        columns: those that a row must have.
        stated: whether its size is the publisher's; else it is an estimate.
    """

    columns: tuple[str, ...]
    stated: bool = True


def _hosted(name: str) -> tuple[str, str]:
    """Ids of a data set that lmms-eval hosts: the organisation was renamed in July 2026."""
    return f"lmms-lab-encoder/{name}", f"lmms-lab/{name}"


BENCHMARKS: dict[str, Benchmark] = {
    "pope": Benchmark(
        name="POPE", ids=_hosted("POPE"), split="test", files="data/test-*",
        gigabytes=0.26, disk=1.5,
        columns=("image", "image_source", "question", "answer", "category"),
    ),
    "mmbench": Benchmark(
        name="MMBench-EN", ids=_hosted("MMBench"), split="dev", files="en/dev-*",
        gigabytes=0.1, disk=0.1,
        columns=("index", "image", "question", "hint", "A", "B", "C", "D", "answer"),
    ),
    "seed": Benchmark(
        name="SEED-Bench", ids=_hosted("SEED-Bench"), split="test", files="data/test-*",
        gigabytes=27, disk=29, stated=False,
        columns=("image", "data_id", "data_type", "question", "choice_a", "choice_b", "choice_c",
                 "choice_d", "answer"),
    ),
    "mme": Benchmark(
        name="MME", ids=_hosted("MME"), split="test", files="data/test-*",
        gigabytes=0.86, disk=1.7,
        columns=("image", "question_id", "question", "answer", "category"),
    ),
    "realworldqa": Benchmark(
        name="RealWorldQA", ids=_hosted("RealWorldQA"), split="test", files="data/test-*",
        gigabytes=0.68, disk=0.68, columns=("image", "question", "answer"),
    ),
    "nocaps": Benchmark(
        name="NoCaps", ids=_hosted("NoCaps"), split="validation", files="data/validation-*",
        gigabytes=1.42, disk=1.42, columns=("image", "image_id", "annotations_captions"),
    ),
    "flickr": Benchmark(
        name="Flickr30k", ids=_hosted("flickr30k"), split="test", files="data/test-*",
        gigabytes=4.41, disk=4.19, columns=("image", "img_id", "caption"),
    ),
    "image-dc": Benchmark(
        name="Image-DC", ids=_hosted("DC100_EN"), split="test", files="data/test-*",
        gigabytes=0.1, disk=0.1, stated=False, columns=("image", "question_id", "question"),
    ),
    "mantis": Benchmark(
        name="Mantis-Eval", ids=("TIGER-Lab/Mantis-Eval",), split="test",
        files="mantis_eval/test-*", gigabytes=0.5, disk=0.5, stated=False,
        columns=("id", "question_type", "question", "images", "options", "answer"),
    ),
    "muir": Benchmark(
        name="MuirBench", ids=("MUIRBENCH/MUIRBENCH",), split="test", files="data/test-*",
        gigabytes=0.43, disk=0.43,
        columns=("idx", "task", "question", "options", "answer", "image_list"),
    ),
    "film": Benchmark(
        name="MVBench", ids=("OpenGVLab/MVBench",), split="train", files="json/{}.json",
        gigabytes=15.8, disk=0.0, revision="video",
        columns=("video", "question", "candidates", "answer"),
    ),
}  # fmt: skip
"""Short name -> benchmark. Where a tabletop set stands in for one under another name (mmb, rwqa),
the benchmark has its own, which decides the rule that judges it (`redlib.bench.metrics`)."""

FIVE = ("pope", "mmbench", "seed", "mme", "realworldqa")
CAPTIONED = ("nocaps", "flickr")
SEVERAL = ("mantis", "muir", "film")
"""What Table 1 averages, what it describes, and what only LLaVA-OneVision is asked (Table 2)."""


def named(params: Params, *, kinds: Sequence[str] = FIVE) -> list[str]:
    """What these benchmarks are called where photographs are asked about; nothing with scenes."""
    return [BENCHMARKS[name].name for name in kinds] if params.data == "real" else []


def needed(params: Params, notebooks: Sequence[str]) -> list[str]:
    """Names of the benchmarks that these notebooks read for the model of `params`."""
    names: list[str] = []
    if set(notebooks) & {"05", "06", "08"}:
        names += FIVE
    if "06" in notebooks:
        names += CAPTIONED
        names += SEVERAL if family(params.model) == "llava-onevision" else ()
    if "07" in notebooks:
        names += [name for name in ("mme", "image-dc") if name not in names]
    return names


def fetches(params: Params, *, notebooks: Sequence[str] = ("05", "06", "07", "08")) -> pd.DataFrame:
    """What a run would fetch of the benchmarks, at most: nothing of it where it is cached already.

    Returns name, id, split, gigabytes, source and disk, as `data.sources.fetches`; films are
    fetched one by one, so that their size is that of all twenty subtasks. A copy in `data_dir` is
    unpacked as one from the hub is, since benchmarks have no other form. No rows with
    `data: tabletop`.
    """
    rows = []
    for key in needed(params, notebooks) if params.data == "real" else ():
        of = BENCHMARKS[key]
        size = of.gigabytes
        place = "Hugging Face hub" if of.stated else "Hugging Face hub (size estimated)"
        if params.data_dir is not None:
            size, place = 0.0, f"folder {params.data_dir}"
        rows.append((of.name, of.ids[0], of.split, size, place, of.disk))
    return pd.DataFrame(rows, columns=["name", "id", "split", "gigabytes", "source", "disk"])
