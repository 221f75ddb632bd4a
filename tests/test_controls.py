"""Controls of the codebook and its stability, against sorting, counting and ablating by hand."""

from itertools import combinations

import literal
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROMPT
from scipy.stats import spearmanr
from sklearn.metrics import pairwise_distances_argmin
from test_ablation import answered
from test_study import Stage

from redlib.codebook import Codebook, Criteria
from redlib.figures import controls as figures
from redlib.study import codebooks, controls, judged, stability
from redlib.tabletop import scenes


@pytest.fixture(scope="module")
def stage(tmp_path_factory, tiny_vlm):
    return Stage(
        tmp_path_factory.mktemp("controls"), tiny_vlm, prompt=PROMPT, top_prob=20, top_jsd=20,
        codebook_images=3, n_calibration=2, tau_prob=1.0, tau_out=30.0, tau_jsd=1e9, tau_in=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(stage):
    return codebooks.cascade_images(stage, codebooks.probe_images(stage))


@pytest.fixture(scope="module")
def book(stage, table):
    vectors = torch.from_numpy(np.array(table["vector"][:7].tolist()))
    places = (tuple(table["image"][:7]), tuple(table["patch"][:7]))
    return Codebook(vectors, *places, "m", "r", Criteria(1, 30, 0, 1e9))


def test_controls_are_picked_by_what_they_are_called(stage, table, book):
    tokens = controls.training_tokens(stage)
    found = controls.picked(table, tokens, book, seeds=2, seed=0)
    assert {len(each) for each in found.values()} == {7}
    rows = [(r.image, r.patch, r) for r in table.itertuples()]

    def length(row):
        return sum(float(value) ** 2 for value in tokens[row[0]][row[1]])

    orders = {
        "norm": sorted(rows, key=length),
        "cls": sorted(rows, key=lambda row: -row[2].cls_similarity),
        "top1": sorted(rows, key=lambda row: row[2].top1_head),
    }
    for name, order in orders.items():
        wanted = {(image, patch) for image, patch, _ in order[:7]}
        assert set(zip(found[name].image, found[name].patch, strict=True)) == wanted, name
        for vector, image, patch in zip(
            found[name].vectors, found[name].image, found[name].patch, strict=True
        ):
            assert torch.equal(vector, tokens[image][patch])
    assert found["tokens 0"].patch != found["tokens 1"].patch
    again = controls.picked(table, tokens, book, seeds=1, seed=0)
    assert again["tokens 0"].patch == found["tokens 0"].patch


def test_ground_is_what_no_mask_covers(stage, book):
    tokens = controls.training_tokens(stage)
    wanted = []
    for name, scene in codebooks.training_scenes(stage).items():
        objects, word = scene.coverage(stage.model.sight), scene.word_coverage(stage.model.sight)
        for patch in range(25):
            if word[patch] == 0 and not any(shares[patch] > 0 for shares in objects):
                wanted.append(tokens[name][patch])
    ground = controls.ground_tokens(stage, tokens)
    assert 7 < len(wanted) < 75 and torch.equal(ground, torch.stack(wanted))
    found = controls.centres(ground, book, seeds=2, seed=0)
    points = (ground / ground.norm(dim=1, keepdim=True)).numpy()
    for each in found.values():
        # Lloyd's fixed point: every centre is the mean of the points that are nearest to it.
        nearest = pairwise_distances_argmin(points, each.vectors.numpy())
        assert set(nearest) == set(range(7))
        for n, centre in enumerate(each.vectors):
            assert np.allclose(points[nearest == n].mean(axis=0), centre, atol=1e-5)


def test_against_takes_the_seeds_together():
    right = {"unpruned": 0.9, "random": 0.5, "ours": 0.9, "norm": 0.4, "cls": 0.9, "top1": 0.8}
    right |= {"tokens 0": 0.2, "tokens 1": 0.9, "ground 0": 0.8, "ground 1": 0.8}
    answers = answered(right, images=24)
    each = judged.scored(answers, resamples=300)
    kept = judged.scored(controls.pooled(answers), resamples=300)
    frame = controls.against(kept, {}).set_index("method")
    both = [each.share(f"tokens {n}").mean for n in range(2)]
    assert frame.loc["tokens", "share"] == pytest.approx(sum(both) / 2)
    assert frame.loc["tokens", "seeds"] == 2
    assert frame.loc["norm", "ahead"] == pytest.approx(
        each.share("ours").mean - each.share("norm").mean
    )
    told = controls.told(frame.reset_index())
    assert "Lowest norm: " in told and "**not distinguishable from Ours**" in told
    assert controls.verdict(frame.reset_index()).holds is None
    worse = answered(right | {"ours": 0.3}, images=24)
    frame = controls.against(judged.scored(controls.pooled(worse), resamples=300), {})
    assert controls.verdict(frame).holds is False and "**above Ours**" in controls.told(frame)
    best = answered(dict.fromkeys(right, 0.1) | {"unpruned": 0.9, "ours": 0.9}, images=24)
    frame = controls.against(judged.scored(controls.pooled(best), resamples=300), {})
    assert controls.verdict(frame).holds is True


def test_samples_share_no_image(stage, table):
    found = stability.samples(stage, table, Criteria(1.0, 30, 0, 1e9))
    assert list(found) == ["sample 0", "sample 1", "sample 2"]
    images = [set(each.image) for each in found.values()]
    assert all(images) and not any(a & b for a, b in combinations(images, 2))
    # 90 of three images is 30 of one, more than its 25 tokens.
    assert stability.samples(stage, table, Criteria(1.0, 30, 90, 1e9)) == dict.fromkeys(found)


def test_what_samples_keep_leads_to_their_answers(book):
    said = answered({"unpruned": 0.9, "ours": 0.8, "sample 0": 0.5}, images=24)
    scored = judged.scored(said, resamples=50)
    books = {"ours": book, "sample 0": book, "sample 1": None}
    frame = stability.spread(scored, books, "ours", tokens=9).set_index("sample")
    assert frame["answers"].to_dict() == {
        "ours": "ours@9/mean", "sample 0": "sample@9/mean", "sample 1": "",
    }  # fmt: skip
    assert frame["share"]["sample 0"] == scored.share("sample 0").mean < frame["share"]["ours"]
    assert frame["ahead"]["sample 0"] == pytest.approx(-frame["share"].diff()["sample 0"])
    assert frame["prototypes"].tolist() == [7, 7, 0] and np.isnan(frame["share"]["sample 1"])


def test_overlaps_are_common_over_all(stage, book, table):
    found = stability.samples(stage, table, Criteria(1.0, 30, 0, 1e9))
    images = stability.calibration_tokens(stage)
    frame = stability.overlaps(stage, {"ours": book} | found, images)
    name, tokens = next(iter(images.items()))

    def kept(each):
        unit = torch.nn.functional.normalize(each.vectors.double(), dim=1)
        cosines = torch.nn.functional.normalize(tokens.double(), dim=1) @ unit.T
        return set(cosines.max(dim=1).values.argsort()[:12].tolist())

    sets = [kept(each) for each in found.values()]
    pairs = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    own = [len(a & kept(book)) / len(a | kept(book)) for a in sets]
    at = frame[frame["image"] == name].set_index("pairs")["overlap"]
    assert at["samples"] == pytest.approx(np.mean(pairs))
    assert at["sample and Ours"] == pytest.approx(np.mean(own))


def test_replacements_are_those_of_stock_forwards(stage):
    frame = stability.replacements(stage)
    assert len(frame) == 25 and frame["image"].nunique() == 1
    vlm = stage.model
    scene = scenes("calibration", 1)[0]
    tokens, _ = literal.visual_tokens(vlm.model, vlm.processor, scene.image)
    vectors = {"pad": vlm.pad, "mean": tokens.mean(dim=0), "zero": torch.zeros(48)}
    for kind, vector in vectors.items():
        region, image = (
            literal.divergence(
                *literal.pair(vlm.model, vlm.processor, tokens, vector, 7, PROMPT, level),
                20, "paper",
            )
            for level in ("region", "global")
        )  # fmt: skip
        wanted = region + 16 * image
        assert frame[kind][7] == pytest.approx(wanted, rel=2e-3), kind
    assert frame["another image"].nunique() > 20
    found = stability.correlations(frame, "pad", ["mean"], resamples=10)["mean"]
    assert found.mean == pytest.approx(spearmanr(frame["pad"], frame["mean"]).statistic)


def test_agreement_counts_the_same_number_of_silent_tokens():
    frame = pd.DataFrame(
        {
            "top1_head": [0.1, 0.2, 0.3, 0.6, 0.7],
            "paraphrase 1": [0.9, 0.2, 0.1, 0.3, 0.8],
            "cluster_size": [1, 1, 9, 1, 1],
            "jsd_final": [0.0, 0.0, 0.0, 0.0, np.nan],
        }
    )
    found = stability.agreement(frame, Criteria(0.5, 5, 0, 1.0), "paraphrase 1")
    # silent before 0 1 2, after 1 2 3; candidates before 0 1, after 1 3
    assert found == {"silent tokens": (2 / 4, 3), "candidates": (1 / 3, 2)}


def test_paraphrases_probe_the_same_tokens_again(stage, table, monkeypatch):
    monkeypatch.setattr(stability, "PARAPHRASES", (PROMPT, "what is the cup ?"))
    frame = stability.paraphrases(stage, table)
    assert np.allclose(frame["paraphrase 1"], frame["top1_head"], rtol=1e-5)
    assert not np.allclose(frame["paraphrase 2"], frame["top1_head"], rtol=1e-2)


def varied(*rows, images=12):
    """Rows of `stability.summary`: what, low and high of a rank correlation."""
    frame = pd.DataFrame(rows, columns=["what", "low", "high"])
    frame = frame.assign(compared="another", value=(frame["low"] + frame["high"]) / 2, n=300)
    return frame.assign(measure="rank correlation of JSD", images=images)


@pytest.mark.parametrize(
    ("frame", "holds"),
    [
        (varied(("replacement", 0.6, 0.8), ("prompt", 0.6, 0.7), ("prompt", 0.55, 0.9)), True),
        (varied(("replacement", 0.4, 0.8), ("prompt", 0.6, 0.7), ("prompt", 0.45, 0.9)), None),
        (varied(("replacement", 0.1, 0.2), ("prompt", 0.6, 0.7), ("prompt", 0.1, 0.4)), False),
        (varied(("replacement", 0.1, 0.2), ("prompt", 0.1, 0.2), images=3), None),
    ],
)
def test_another_wording_is_judged_by_its_interval(frame, holds):
    replacement, prompt = stability.verdicts(frame)
    assert prompt.holds is holds and replacement.holds is holds
    assert "12 images" in prompt.evidence or "3 images" in prompt.evidence


def test_an_overlap_of_few_is_not_told():
    frame = pd.DataFrame(
        [
            ("images", "samples", "overlap of kept tokens", 0.7, 0.6, 0.8, 12, 12),
            ("prompt", "paraphrase 1", "overlap of silent tokens", 0.3, np.nan, np.nan, 20, 3),
            ("prompt", "paraphrase 1", "overlap of candidates", 0.5, np.nan, np.nan, 2, 3),
        ],
        columns=["what", "compared", "measure", "value", "low", "high", "n", "images"],
    )
    assert figures.stability_table(frame)["Value"].tolist() == ["0.70 [0.60, 0.80]", "0.30", "-"]
