"""What is committed belongs together: the figures were made with the shipped weights, and their
numbers come out again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from redlib import load, probe
from redlib.study import subjects
from redlib.tabletop import scenes

ROOT = Path(__file__).parents[1]
RUN = ROOT / "figures" / "tiny-llava-1.5"
NOTES = sorted(path for path in RUN.glob("*.json") if not path.name.endswith(".claims.json"))


@pytest.fixture(scope="module")
def shipped():
    return load("tiny-llava-1.5", device="cpu")


def test_every_figure_was_made_with_the_shipped_weights(shipped):
    assert len(NOTES) > 20
    for path in NOTES:
        made_with = json.loads(path.read_text())["versions"]["checkpoint"]
        assert made_with == shipped.revision[:12], f"{path.name}: run `make figures`"


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
