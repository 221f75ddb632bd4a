"""Table 2: what a sample is, how many tokens are left, and shares and chance recomputed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_scoring import answers_of

from redlib import answers
from redlib.bench import mvbench
from redlib.bench.intervals import ratio
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.figures import several as figures
from redlib.modelcard import several as card_several
from redlib.notebook import begin
from redlib.params import Params
from redlib.study import answered, asking, printed, several
from redlib.tabletop import Question


def _answers(right: dict[str, dict[str, list[float]]], chance: float = 0.25) -> pd.DataFrame:
    """set -> method -> a number per question; every question has a pair of its own."""
    rows = [
        (name, f"{name}-{k}", f"kind{k % 2}", f"question {k}", "a", "a", value, chance, method,
         144, 0, 288)
        for name, methods in right.items()
        for method, values in methods.items()
        for k, value in enumerate(values)
    ]  # fmt: skip
    columns = ["set", "image", "kind", "question", "gold", "answer", "correct", "chance", "method",
               "tokens", "seed", "kept"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _all(full, ours, random):
    rest = {name: ours for name in ("threshold", *several.FURTHER)}
    return {"unpruned": full, "ours": ours, "random": random, **rest}


SEEN = _answers(
    {
        "mantis": _all([1, 1, 1, 1, 1, 0, 1, 1], [1] * 8, [1, 0, 1, 1, 1, 0, 1, 1]),
        "muir": _all([1, 1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]),
        "film": _all([0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0] * 8),
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def of_few(monkeypatch):
    """Eight samples a set have to do here."""
    monkeypatch.setattr(several, "LEAST_IMAGES", 8)


def test_shares_average_the_ratios_of_the_two_sets():
    found = several.shares(SEEN, resamples=200).set_index(["task", "method"])
    # Mantis 8/7 and Muir 4/6 of the unpruned; Random 6/7 and 3/6.
    assert found.loc[("multi-image", "ours"), "share"] == pytest.approx((8 / 7 + 4 / 6) / 2)
    assert found.loc[("multi-image", "random"), "share"] == pytest.approx((6 / 7 + 3 / 6) / 2)
    gap = several.rivals(SEEN, resamples=200).iloc[0]
    assert gap["difference"] == pytest.approx((2 / 8 + 1 / 8) / 2)
    # the ledger decides nothing on fewer than ten images, and takes what has no number for none
    assert found["n"].tolist() == [16] * len(found) and gap["n"] == 16
    assert found["images"].tolist() == [16] * len(found) and gap["images"] == 16
    assert list(several.shares(SEEN, resamples=100)) == [
        "setting", "method", "tokens", "task", "share", "low", "high", "n", "images"
    ]  # fmt: skip
    assert list(several.rivals(SEEN, resamples=100)) == [
        "setting", "method", "against", "tokens", "task", "difference", "low", "high", "n", "images"
    ]  # fmt: skip


def test_answers_about_several_images_stand_beside_the_others(tmp_path):
    rules = {("unpruned", 144): 0.9, ("ours", 144): 0.8}
    rows = answers_of(rules, np.random.default_rng(4))
    session = SimpleNamespace(figures=tmp_path, notebook="06")
    second = SEEN[SEEN["method"] == "random"].assign(seed=1, answer="c")  # draw of Random
    seen = pd.concat([SEEN, second], ignore_index=True)
    assert answered.open_cells(session, rows, seen) == ["06.answers.csv", "06.right.csv"]
    found = answers.read(tmp_path, "06")
    claim = printed.table("claims").set_index("id").loc["multi-image-ours"]
    where = answers.address([answers.rule("ours", 144)], ["multi-image"])
    assert claim["where"] == "setting=base;method=ours;tokens=144;task=multi-image"
    assert found.link(where) == "06.answers.html#ours@144/multi-image"
    muir = found.right[found.right["task"] == "muir"]
    assert muir["ours@144"].tolist() == ["1", "1", "1", "0", "0", "0", "1", "0"]
    pope = found.right[found.right["task"].str.startswith("pope")]
    assert set(pope["random@144"]) == {""}  # asked of pairs and films alone
    mantis = found.said[found.said["task"] == "mantis"]
    assert set(mantis["random@144"]) == {"a"} and set(mantis["random@144#1"]) == {"c"}
    answered.open_cells(session, rows, SEEN.iloc[:0])
    assert "mantis" not in set(answers.read(tmp_path, "06").said["task"])


def test_a_model_at_chance_has_no_share():
    # One of eight film questions right where guessing gets two: nothing to keep a share of.
    assert several.decidable(SEEN, resamples=200) == {"multi-image": True, "video": False}
    assert set(several.shares(SEEN, resamples=200)["task"]) == {"multi-image"}
    assert set(several.rivals(SEEN, resamples=200)["task"]) == {"multi-image"}
    assert "video: **undecided**" in several.conclusion(SEEN, resamples=200)
    # One of the two sets at chance is enough to leave the task open.
    one = SEEN.assign(chance=SEEN["chance"].mask(SEEN["set"] == "muir", 0.75))
    assert several.decidable(one, resamples=200)["multi-image"] is False
    assert several.shares(one, resamples=200).empty


def test_ratio_resamples_both_sides_together():
    first, second = [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    same = ratio(first, second, ["a", "b", "c", "d"], resamples=100)
    assert (same.mean, same.low, same.high) == (1, 1, 1)
    # Strata of unequal size count alike: (1 + 0) / 2 over (1 + 1) / 2.
    found = ratio(
        [1, 1, 1, 0], [1, 1, 1, 1], list("abcd"), strata=["x", "x", "x", "y"], resamples=50
    )
    assert found.mean == pytest.approx(0.5)
    assert math.isnan(ratio([0, 0], [0, 0], list("ab"), resamples=50).mean)


@pytest.mark.parametrize(
    ("second", "options"),
    [
        ([1], {}), ([1, 1], {}),
        ([1, 1, 1], {"tasks": ["x", "y"]}), ([1, 1, 1], {"strata": ["x", "y"]}),
        ([1, 1, 1], {"resamples": 0}), ([1, 1, 1], {"level": 1}),
    ],
)  # fmt: skip
def test_ratio_refuses(second, options):
    with pytest.raises(RedlibError):
        ratio([1, 0, 1], second, list("abc"), **{"resamples": 10} | options)


def test_video_counts_as_mvbench_does():
    kinds = ["order", "order", "order", "count", "count", "size"]
    said = ["a", "", "b", "a", "b", ""]
    frame = pd.DataFrame(
        {"set": "film", "image": list("uvwxyz"), "kind": kinds, "gold": "a", "answer": said,
         "correct": [float(word == "a") for word in said], "chance": 0.25, "method": "ours",
         "tokens": 16, "seed": 0, "kept": 256}
    )  # fmt: skip
    got = several.summary(several._uncounted(frame), resamples=50)["accuracy"].iloc[0]
    asked = frame.rename(columns={"kind": "group"}).assign(task="mvbench")
    official = mvbench(asked).set_index("subtask")["accuracy"]["mean"]
    assert got == pytest.approx(official) == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)


def test_samples_are_apart_from_those_of_the_checkpoint_s_evaluation():
    found = several.samples(Params(), "test", 4)
    assert [len(s.asked) for s in found if s.set == "muir"] == [2, 2]  # with its unanswerable twin
    assert len([s for s in found if s.set == "mantis"]) == 4
    assert sum(len(s.asked) for s in found if s.set == "film") >= 4
    reels = [s for s in found if s.set == "film"]
    assert reels[0].source.number == 60_000_000 + several.START
    # A muir number holds two items; a million numbers lie between the two starts all the same.
    assert several.START // 2 - card_several.START // 2 >= 1_000_000
    assert {s.id.split("-")[0] for s in several._pairs("calibration", 2, "mantis")} == {
        "calibration"
    }


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path))
    return begin(
        "06", {"run_name": "t", "model": "tiny-llava-onevision", "random_seeds": 1, "n_several": 1,
               "device": "cpu"}
    )  # fmt: skip


def test_every_method_keeps_the_budget_of_each_image(session):
    vlm = session.model
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, vlm.width, generator=generator)
    codebook = Codebook(
        vectors, ("a",) * 3, (0, 1, 2), vlm.name, vlm.revision, Criteria(0.1, 8, 1, 0.1)
    )
    sample = several.samples(Params(), "test", 1)[1]
    rows = several.measure(session, sample, codebook, {"several": 2.0, "film": 2.0})
    kept = rows.groupby("method")["kept"].first()
    assert kept["unpruned"] == kept["threshold"] == 2 * 729  # no cosine is above 2
    for method in ("ours", "random", *several.FURTHER):
        assert kept[method] == 2 * 144, method
    assert set(rows["set"]) == {"muir"}
    tokens = {
        (s.set, name): count
        for s in several.samples(Params(), "test", 1)
        for name, count, _ in several.rules(session, s, {"several": 0.5, "film": 0.5})
    }
    assert tokens["film", "unpruned"] == 196
    assert tokens["film", "ours"] == tokens["film", "prumerge"] == 16


def test_the_table_names_budgets_chance_and_n():
    table = figures.table(several.summary(SEEN, resamples=50)).set_index("Method")
    assert table.loc["Ours, R lowest", "Mantis"].endswith("(288×)")
    assert table.loc["all tokens", "MuirBench"].startswith("0.75 [")
    assert table.loc["by chance", "MVBench"] == "0.25"
    assert table.loc["n questions (pairs, films)", "Mantis"] == "8 (8)"


def test_other_families_show_that_it_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path))
    other = begin("06", {"run_name": "t", "model": "tiny-llava-1.5", "device": "cpu"})
    told = several.answer_samples(other, None)
    assert several.conclusion(told) == several.NOT_RUN
    assert several.shares(told).empty and several.rivals(told).empty


def test_answers_about_photographs_depend_on_the_bytes_of_their_pictures():
    """Whose names may stay while they change; of scenes nothing is told."""
    real, question = Params(data="real"), Question("pope", "pope/1", "Is there a cup?", "yes")

    def both(data, order=1):
        pictures = [SimpleNamespace(id="pope/1", data=data), SimpleNamespace(id="b", data=b"b")]
        several_ = [
            SimpleNamespace(id=one.id, asked=(), source=SimpleNamespace(files=[one.data]))
            for one in pictures
        ]
        return (
            asking.identity(real, [question], pictures[::order]),
            several._identity(real, several_[::order]),
        )

    assert both(b"one") == both(b"one", -1)
    assert all(one != other for one, other in zip(both(b"one"), both(b"two"), strict=True))
    assert asking.identity(Params(), [question], []) == several._identity(Params(), []) == {}
