"""The three real parameter files from end to end, on the real checkpoints and data in miniature.

The model is named by its id of the hub and comes, at the commit that the file names, from the cache
of a download; the data sets lie in a folder as `hf download` makes it. Only the counts are others
than in the file, and captions are judged by a stand-in, since CIDEr and SPICE need Java (CIDEr
meets its package in `harness.py`). Random weights say nothing, so what is looked at is that every
notebook reaches its end, for each family's own figures, and that the results say what made them.
The notebooks run without kernels and pixels, but for two that the command itself runs and
publishes.

The bench for a GPU stands here too: models as small as those of `redlib bench --small` have the
real ones' tokens.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import miniature
import numpy as np
import pandas as pd
import photos
import pytest
import real
import torch
import unrendered
import yaml
from huggingface_hub import constants

from redlib import batch, params
from redlib.bench import coco, pruned, speed
from redlib.codebook import Codebook
from redlib.store import read_json

ROOT = Path(__file__).parents[1]
FILES = dict(zip(real.NAMES, ("llava-1.5-7b", "llava-next-8b", "llava-onevision-7b"), strict=True))
IMAGES = 2
COUNTS = {
    "probe_scenes": 2, "attention_positions": 200, "study_images": 2, "study_patches": 16,
    "bootstrap": 100, "codebook_images": IMAGES, "codebook_ranks": "release", "tsne_images": 1,
    "ablation_images": 2, "ablation_questions": 1, "control_seeds": 1, "control_questions": 1,
    "stability_images": 1, "curve": [8, 144], "random_seeds": 1, "n_questions": 2,
    "n_further": 1, "n_captions": 2, "n_tiled": 2, "n_calibration": 1, "n_described": 2,
    "n_several": 1, "n_games": 2,
    "tau_in": 64 * IMAGES / 500,  # of 500 images
    "publish": False,
}  # fmt: skip
OWN = {
    real.LLAVA: set(),
    real.NEXT: set(),
    real.ONEVISION: {"table-2"},
}
"""Figures that one family alone has."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with the data sets, a cache of the hub with the models, and the parameter files."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "prepared")
        sets = miniature.everything(folder / "sets")
        photos.vqav2_folder(sets, photos.jpegs(30))
        shutil.rmtree(sets / "coco-karpathy")  # of too few images for notebook 01
        photos.coco(sets, photos.jpegs(30))
        here = {"data_dir": str(sets), "caption_metric": "CIDEr"}
        for model, name in FILES.items():
            values = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8"))
            assert values["model"] == model
            real.publish(folder / "cache", model, commit=values["revision"])
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(values | COUNTS | here))
    return folder


@pytest.fixture(scope="module")
def finished(shelf):
    """The folder of all runs, and the page of the set."""
    matplotlib.use("agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLIB_ROOT", str(ROOT))
        patch.setenv("REDLIB_RUNS", str(shelf / "runs"))
        patch.setattr(constants, "HF_HUB_CACHE", str(shelf / "cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", shelf / "prepared")
        patch.setattr(coco, "ready", lambda metric: None)
        patch.setattr(coco, "cider", lambda said, told: pd.Series(0.5, index=list(said)))
        for name in FILES.values():
            file = shelf / f"{name}.yaml"
            batch._check_given(params.load_file(file))
            unrendered.run(file, list(params.NOTEBOOKS), patch)
        every = shelf / "7b.yaml"
        every.write_text((ROOT / "params" / "7b.yaml").read_text(encoding="utf-8"))
        yield shelf / "runs", batch.draw_pages(every)


def test_redlib_run_ends_with_the_published_page(shelf, tmp_path):
    """The command of the README, with kernels and pixels, for two notebooks that need no Java."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    values = yaml.safe_load((shelf / "llava-1.5-7b.yaml").read_text())
    file = tmp_path / "params" / "llava-1.5-7b.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(values | {"publish": True}))
    places = {
        "REDLIB_ROOT": tmp_path,
        "REDLIB_RUNS": tmp_path / "runs",
        "HF_HUB_CACHE": shelf / "cache",
        "HF_DATASETS_CACHE": shelf / "prepared",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "redlib", "run", str(file), "--only", "02,04"],
        env=os.environ | {name: str(place) for name, place in places.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "GPU-hours" in done.stdout, "what it will cost, before it starts"
    assert done.stdout.rstrip().endswith("figures/llava-1.5-7b/index.html")
    folder = tmp_path / "figures" / "llava-1.5-7b"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for name in ("words", "by-rank", "example"):
        assert (folder / f"{name}.png").stat().st_size > 5000 and f"{name}.png" in page


@pytest.mark.parametrize("model", FILES)
def test_every_notebook_reaches_its_end(finished, model):
    folder, name = finished[0], FILES[model]
    done = sorted(path.stem for path in (folder / name / "results").glob("0?.json"))
    assert done == sorted(params.NOTEBOOKS)
    one = params.load_file(ROOT / "params" / f"{name}.yaml")
    notes = [read_json(path) for path in (folder / name / "figures").glob("*.json")]
    notes = [note for note in notes if isinstance(note, dict)]
    names = {note["name"] for note in notes}
    assert {"words", "contrast", "by-rank", "prototypes", "accuracy", "costs", "controls"} <= names
    assert OWN[model] <= names
    assert not names & set().union(*(own for other, own in OWN.items() if other != model))
    for note in notes:
        assert note["versions"]["checkpoint"] == one.revision[:12], note["name"]
        assert note["parameters"]["revision"] == one.revision
        assert note["parameters"]["model"] == model


@pytest.mark.parametrize("model", FILES)
def test_every_table_is_of_the_commit_in_half_precision(finished, model):
    folder, name = finished[0], FILES[model]
    revision = params.load_file(ROOT / "params" / f"{name}.yaml").revision
    keys = [json.loads(path.read_text()) for path in (folder / name / "store").rglob("key.json")]
    assert len(keys) >= 10
    for key in keys:
        assert (key["model"], key["revision"], key["dtype"]) == (model, revision, "float16")
    book = Codebook.load(folder / name / "codebook.safetensors")
    assert (book.model, book.revision) == (model, revision) and len(book) > 0


def test_the_page_of_the_set_has_all_three(finished):
    page = finished[1].read_text(encoding="utf-8")
    assert all(name in page for name in FILES.values())


def test_the_bench_for_a_gpu_is_tried_small(monkeypatch):
    """How fast it is, models of two narrow layers do not tell."""
    monkeypatch.setattr(speed, "SAMPLE", dict.fromkeys(speed.SAMPLE, 1))
    machine, *rows = speed.measure_gpu(small=True)
    assert "small, on the CPU" in machine["metric"]
    names = list(speed.REAL)
    assert [row["metric"].split(",")[0] for row in rows] == [names[0]] * 7 + [names[1]] * 7
    for mine in (rows[:7], rows[7:]):
        for level, row in zip(speed.LEVELS, mine[:3], strict=True):
            assert f"planned tokens, {level}: N over ours" in row["metric"]
            assert row["pass"] == "yes"
        for (what, bar), row in zip(speed.BARS_GPU.items(), mine[3:], strict=True):
            assert (
                f": {what}: time of {'R' if what == 'cascade' else 'N'} over ours" in row["metric"]
            )
            assert np.isfinite(row["value"]) and row["value"] > 0 and row["bar"] == bar


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_rows_of_pruning_on_a_gpu_are_tried_small():
    rows = pruned.measure_gpu(small=True)
    names = [name for name, *_ in pruned.REAL]
    assert {name for name in names if any(r["metric"].startswith(name) for r in rows)} == set(names)
    of = [r for r in rows if "memory that a prefill" not in r["metric"]]
    assert all(np.isfinite(r["value"]) and r["value"] > 0 for r in of)
    for what in ("FastV 64 of 576", "FastV 320 of 2880"):
        assert any(what in r["metric"] for r in rows), what
    held = [r for r in rows if "memory that a prefill" in r["metric"]]
    assert len(held) == len(pruned.REAL)
    assert "320 of 2880" in held[-1]["metric"]  # how much, a process that has freed memory hides
