"""Which data sets stand behind `data: real`, where they live, and how large they are.

The paper looks at two sets of photographs, both from COCO:

    VQAv2 validation      40,504 images with 214,354 questions, each answered by ten people; the
                          study of section 3.2 and the images of notebooks 01 to 03
    COCO Karpathy train   82,783 images with five captions each; prototypes are searched in them

Either one is read in one of two forms, and which one it is makes no difference to what is drawn:

* the *Hugging Face form*, through `datasets.load_dataset`: from the hub, from its cache
  (HF_DATASETS_OFFLINE=1), or from a copy of the repository in a folder, as `hf download` makes it;
* the *folder form*, in which their makers publish them: JSON beside the JPEG files.

`data_dir` names a folder that holds them; without it the hub is asked.

Sizes are those that the publishers state, so that `fetches` can name them without a connection:
what the dataset cards give as download_size and dataset_size, the file list of the repository, and
cocodataset.org's 13 GB for its 82,783 training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from redlib.params import NOTEBOOKS, Params, local

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
KARPATHY = "dataset_coco.json"
"""Files of the folder form, by the names that their makers gave them."""


@dataclass(frozen=True)
class Source:
    """A data set in its Hugging Face form.

    Attributes:
        name: as the paper calls it.
        ids: names of its repository on the hub, the present one first.
        split: of that repository.
        files: which of its files hold the split.
        gigabytes: to fetch.
        disk: gigabytes more that `datasets` takes for its own uncompressed copy.
        per_image: gigabytes of each image that is used, where images are fetched one by one.
        revision: branch of the repository, where it is not the main one.
        published: what its makers' own form consists of, where that is read too: files, and with a
            slash behind it the folder of the images.
    """

    name: str
    ids: tuple[str, ...]
    split: str
    files: str
    gigabytes: float
    disk: float
    per_image: float = 0.0
    revision: str | None = None
    published: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The folder below `data_dir` that holds a copy of the repository."""
        return self.ids[0].split("/")[1]

    @staticmethod
    def beside(folder: Path) -> tuple[Path, ...]:
        """Where a folder of images may lie: in the data set's `folder`, or beside it for several
        sets."""
        return folder, folder / "images", folder.parent


# The organisation lmms-lab was renamed in July 2026; whoever has a copy has it under either name.
VQAV2 = Source(
    name="VQAv2 validation",
    ids=("lmms-lab-encoder/VQAv2", "lmms-lab/VQAv2"),
    split="validation",
    files="data/validation-*",
    gigabytes=6.9,
    disk=33.9,
    published=(QUESTIONS, ANNOTATIONS, "val2014/"),
)

# This repository holds captions and the address of each image, not the images.
COCO = Source(
    name="COCO Karpathy train",
    ids=("yerevann/coco-karpathy",),
    split="train",
    files="data/train-*",
    gigabytes=0.017,
    disk=0.05,
    per_image=13 / 82_783,
    published=(KARPATHY, "train2014/"),
)

CAPTION_TOKENS = 8
"""Fewest text positions that a caption of COCO is counted for."""


def needed(params: Params, notebooks: Sequence[str]) -> dict[Source, int]:
    """The sets of photographs behind these notebooks, each with the number of its images that are
    fetched one by one: VQAv2 behind 01 to 05, COCO behind 01 (captions), 05 and all that need its
    codebook."""
    asked = set(notebooks)
    images = captioned(params) if "01" in asked else 0
    images += params.codebook_images if asked & {"05", "06", "07", "08"} else 0
    images += params.n_calibration if asked & {"06", "08"} else 0
    images += max(params.stability_images + 1 - params.n_calibration, 0) if "08" in asked else 0
    found = {VQAV2: 0} if asked & {"01", "02", "03", "04", "05"} else {}
    return found | ({COCO: images} if images else {})


def fetches(params: Params, *, notebooks: Sequence[str] = tuple(NOTEBOOKS)) -> pd.DataFrame:
    """What a run would fetch, at most: nothing of it where it is cached already.

    notebooks: numbers of those that run, see `needed`.

    Returns name, id, split, gigabytes, source, one row per data set: source is "Hugging Face hub",
    or the folder that `data_dir` names and from which nothing is fetched; and disk, gigabytes more
    that `datasets` takes for its own copy. No rows with `data: tabletop`.
    """
    columns = ["name", "id", "split", "gigabytes", "source", "disk"]
    if params.data != "real":
        return pd.DataFrame(columns=columns)
    rows = []
    for source, images in needed(params, notebooks).items():
        size, place, disk = source.gigabytes, "Hugging Face hub", source.disk
        size += images * source.per_image
        if params.data_dir is not None:
            size, place = 0.0, f"folder {params.data_dir}"
            copied = local(Path(params.data_dir, source.folder, "data")).is_dir()
            disk = disk if copied else 0.0
        rows.append((source.name, source.ids[0], source.split, round(size, 3), place, disk))
    return pd.DataFrame(rows, columns=columns)


def captioned(params: Params) -> int:
    """How many captions have `attention_positions` positions between them, for certain."""
    return -(-params.attention_positions // CAPTION_TOKENS)
