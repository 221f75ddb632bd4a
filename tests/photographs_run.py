"""Notebooks 02 to 05 as a reader runs them, on photographs: miniature data sets, the shipped model.

The thresholds are numbers that let some tokens of this model through, since the paper's are for
models of seven billion parameters; the tables are too small to decide anything.
"""

import json
from pathlib import Path

import miniature
import pandas as pd
import photos
import pytest
import yaml

from redlib import batch, report
from redlib.codebook import Codebook
from redlib.data.photographs import lot
from redlib.study.verdict import NEEDS_TRUTH

SMALL = {
    "model": "tiny-llava-1.5", "data": "real", "preset": "paper", "study_images": 2,
    "study_patches": 4, "codebook_images": 2, "codebook_ranks": "release", "tsne_images": 1,
    "ablation_images": 1, "ablation_questions": 1, "random_seeds": 1, "bootstrap": 100,
    "tau_prob": 0.5, "tau_out": 40, "tau_jsd": 10.0, "tau_in": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the run."""
    folder = tmp_path_factory.mktemp("photographs")
    many = photos.jpegs(40)
    first = sorted(many, key=lambda n: lot(0, "study", n))[0]
    photos.vqav2_folder(folder / "sets", many | {first: many[first][:400]})
    photos.coco(folder / "sets", many)
    for benchmark in ("pope", "mmbench", "seed", "mme", "realworldqa"):
        getattr(miniature, benchmark)(folder / "sets")
    file = folder / "photographs.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"data_dir": str(folder / "sets")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLIB_ROOT", str(Path(__file__).parents[1]))
        patch.setenv("REDLIB_RUNS", str(folder / "runs"))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        batch.run(file, only=["02", "03", "04", "05"], jobs=2, say=lambda _: None)
    return folder / "runs" / "photographs", first


def test_every_figure_says_what_it_was_drawn_from(finished):
    folder, _ = finished
    notes = [json.loads(path.read_text()) for path in (folder / "figures").glob("*.json")]
    notes = [note for note in notes if isinstance(note, dict)]
    names = {note["name"] for note in notes}
    assert {"words", "contrast", "by-rank", "example", "construction", "prototypes"} <= names
    assert not names & {"coverage", "areas", "levels", "grid"}, "these need known truth"
    for note in notes:
        assert "Photographs (" in note["caption"], note["name"]
        assert note["parameters"]["data"] == "real"


def test_claims_that_need_masks_say_so_and_the_others_are_told(finished):
    folder, _ = finished
    noted = [one for one in report.claims(folder / "figures") if one["notebook"] in ("02", "04")]
    untold = [one for one in noted if one["evidence"] == NEEDS_TRUTH]
    assert len(untold) == 7 and all(one["holds"] is None for one in untold)
    assert any("does not decline" in one["statement"] for one in noted if one not in untold)


def test_the_drawn_photographs_are_written_and_the_damaged_one_named(finished):
    folder, first = finished
    drawn = pd.read_csv(folder / "figures" / "photographs-study.csv", keep_default_na=False)
    assert drawn["image"].tolist()[0] == first and len(drawn) == 3
    assert "cannot read" in drawn["skipped"][0] or "truncated" in drawn["skipped"][0]
    assert (drawn["skipped"][1:] == "").all()
    measured = pd.read_csv(folder / "figures" / "example.csv")["image"].unique()
    assert {one.split(".")[0] for one in measured} <= {f"vqav2-{n}" for n in drawn["image"][1:]}


def test_the_codebook_is_of_coco(finished):
    folder, _ = finished
    book = Codebook.load(folder / "codebook.safetensors")
    drawn = pd.read_csv(folder / "figures" / "photographs-training.csv")
    assert len(book) > 0
    assert {one.split(".")[0] for one in book.image} <= {f"coco-{n}" for n in drawn["image"]}
