"""What is committed belongs together: the figures were made with the shipped weights, and their
numbers come out again."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from redlib import load, probe
from redlib.bench.baselines import CALIBRATED
from redlib.hub import revision_of
from redlib.params import embedded, load_file
from redlib.study import subjects
from redlib.tabletop import scenes

ROOT = Path(__file__).parents[1]
RUN = ROOT / "figures" / "tiny-llava-1.5"
RUNS = sorted(folder.name for folder in (ROOT / "figures").glob("tiny-llava-*"))


@pytest.fixture(scope="module")
def shipped():
    return load("tiny-llava-1.5", device="cpu")


def test_every_embedded_model_has_a_run():
    assert set(embedded()) <= set(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_every_figure_was_made_with_the_shipped_weights(run):
    file = ROOT / "params" / f"{run}.yaml"
    model, paths = load_file(file).model, sorted((ROOT / "figures" / run).glob("*.json"))
    notes = {path.name: path for path in paths if not path.name.endswith(".claims.json")}
    assert model in embedded() and len(notes) > 20
    revision = revision_of(model)
    for name, path in notes.items():
        note = json.loads(path.read_text(encoding="utf-8"))
        assert note["parameters"]["model"] == model, name
        made_with = note["versions"]["checkpoint"]
        assert made_with == revision[:12], f"{name}: say `redlib run params/{file.name}`"


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_bench_takes_the_thresholds_of_the_full_run(name):
    told = (ROOT / "figures" / f"{name}-full" / "survivors.csv").read_text(encoding="utf-8")
    found = re.findall(r"(?:below|more than) (\S+) .*?\((tau_\w+)\)", told)
    assert {tau: float(value) for value, tau in found} == {
        tau: getattr(CALIBRATED[name], tau) for tau in ("tau_prob", "tau_out", "tau_jsd", "tau_in")
    }, "redlib.bench.baselines.CALIBRATED is of another run"


def test_the_words_of_figure_1_come_out_again(shipped):
    """Another processor sums in another order; the probabilities may move in the fifth digit."""
    note = json.loads((RUN / "words.json").read_text())
    drawn = pd.read_csv(RUN / "words.csv").set_index("patch")
    patches = np.arange(5, 576, 24)
    subject = subjects.subject_of(shipped, scenes("test", 1)[0])
    again = probe.single(
        shipped, subject.tokens, patches, prompt=note["parameters"]["prompt"]
    ).set_index("patch")
    drawn = drawn.loc[patches]
    assert drawn["top1"].std() > 0.05
    np.testing.assert_allclose(again["top1"], drawn["top1"], atol=2e-4)
    clear = drawn["margin"] > 0.01
    assert clear.sum() > 10
    assert (again["word"] == drawn["word"])[clear].all()
