"""Table 3: shares of the unpruned score and their differences, against counting by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_study import Stage

from redlib.bench import Interval
from redlib.codebook import Codebook, Criteria
from redlib.figures import ablation as figures
from redlib.study import ablation, judged
from redlib.study.asking import FIVE, FIVE_TASKS
from redlib.study.ledger import ledger

ROWS = ["nothing", "tau_prob", "tau_jsd", "tau_out", "tau_in", "images"]


def answered(methods, *, images=12, seeds=2):
    """Answers by lot; every image has a question of every task, some two. MME's are of two
    categories, and two about one image are a pair."""
    rng = np.random.default_rng(5)
    rows = []
    for method, right in methods.items():
        for seed in range(seeds if method == "random" else 1):
            for image in range(images):
                for task in FIVE_TASKS:
                    group = f"category {image % 2}" if task == "mme" else ""
                    for question in range(1 + (image % 3 == 0)):
                        rows.append((method, seed, f"test-{image}", task, group, question, right))
    columns = ["method", "seed", "image", "task", "group", "question", "right"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(correct=rng.random(len(frame)) < frame["right"])


def by_hand(rows):
    """Mean over tasks of mean score over mean unpruned score, from a list of rows: a right answer
    of MME counts one half, and one half more if all of its pair are right; its categories count
    alike, as POPE's subsets do."""
    ratios = {}
    for method in {row["method"] for row in rows}:
        each = []
        for subsets in FIVE.values():
            sides = []
            for side in (method, "unpruned"):
                strata = {}
                here = [r for r in rows if r["method"] == side and r["task"] in subsets]
                for r in here:
                    worth = float(r["correct"])
                    if r["task"] == "mme":
                        pair = [
                            q for q in here if (q["seed"], q["image"]) == (r["seed"], r["image"])
                        ]
                        worth = (worth + all(q["correct"] for q in pair)) / 2
                    strata.setdefault((r["task"], r["group"]), []).append(worth)
                means = [sum(each) / len(each) for each in strata.values()]
                sides.append(sum(means) / len(means))
            each.append(sides[0] / sides[1])
        ratios[method] = sum(each) / 5
    return ratios


@pytest.fixture(scope="module")
def answers():
    right = {"unpruned": 0.9, "random": 0.4, "nothing": 0.8, "tau_prob": 0.5}
    return answered(right | dict.fromkeys(ROWS[2:5], 0.8))


def test_shares_are_those_counted_by_hand(answers):
    kept = judged.scored(answers, resamples=40, seed=3)
    rows = answers.to_dict("records")
    literal = [by_hand(rows)]
    images = sorted({row["image"] for row in rows})
    for weight in np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=40):
        # A picture drawn twice is two pictures, whose pairs are their own.
        drawn = [r | {"image": f"{name} {k}"} for name, n in zip(images, weight, strict=True)
                 for k in range(n) for r in rows if r["image"] == name]  # fmt: skip
        literal.append(by_hand(drawn))
    for method in literal[0]:
        each = [found[method] for found in literal]
        assert kept.share(method).mean == pytest.approx(each[0])
        ends = np.quantile(each[1:], [0.025, 0.975])
        assert [kept.share(method).low, kept.share(method).high] == pytest.approx(ends)
    assert kept.images == 12 and kept.questions == (12 + 4) * len(FIVE_TASKS)
    found = kept.gap("nothing", "tau_prob")
    differences = [each["nothing"] - each["tau_prob"] for each in literal]
    assert found.mean == pytest.approx(differences[0])
    ends = np.quantile(differences[1:], [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(ends)


def test_nothing_right_is_no_share(answers):
    blind = answers.assign(correct=answers["correct"] & (answers["task"] != "mmb"))
    assert np.isnan(judged.scored(blind, resamples=5).share("random").mean)
    assert np.isnan(judged.scored(answers, resamples=5).share("no such").mean)
    without = answers[answers["task"] != "seed"]
    assert np.isnan(judged.scored(without, resamples=5).share("random").mean)


def _book(n):
    vectors = torch.randn(n, 48, generator=torch.Generator().manual_seed(n))
    return Codebook(vectors, ("a",) * n, range(n), "m", "r", Criteria(1, 1, 0, 1))


def test_table_3_is_what_the_ledger_reads(answers, tmp_path):
    """Without tau_prob the drop is large; a set without prototype decides nothing."""
    books = {name: _book(n + 1) for n, name in enumerate(ROWS[:5])} | {"images": None}
    kept = judged.scored(answers, resamples=400)
    frame = judged.table3(kept, books, 10)
    at = frame.set_index("left_out")
    assert list(at.index) == [*ROWS, "random"]
    assert at["prototypes"].tolist()[:6] == [1, 2, 3, 4, 5, 0]
    assert at.loc["images", "training_images"] == 2 and np.isnan(at.loc["images", "lost"])
    assert at.loc["tau_prob", "lost"] == pytest.approx(
        at.loc["nothing", "share"] - at.loc["tau_prob", "share"]
    )
    assert at.loc["tau_prob", "over_random"] == pytest.approx(
        at.loc["tau_prob", "share"] - at.loc["random", "share"]
    )
    told = judged.table3_told(frame)
    assert "With a fifth of the images: no prototype is left." in told
    assert "Without tau_prob (2 prototypes) it is" in told and "less than with all" in told
    note = '{"name": "ablation", "notebook": "05", "order": 1, "kind": "table", "title": "t", '
    note += '"caption": "c", "reading": "r", "alt": "a", "paper_item": "", "versions": {}, '
    note += '"parameters": {"model": "tiny-llava-next"}}'
    (tmp_path / "ablation.json").write_text(note)
    frame.assign(tokens=64).to_csv(tmp_path / "ablation.csv", index=False)  # as notebook 05 does
    verdicts = ledger({"a run": tmp_path}).set_index("id")["verdict"]
    assert verdicts["ablation-prob"] == "holds"
    assert verdicts["ablation-images"] == "not run"
    assert verdicts["ablation-prob-random"] in ("does not hold", "not decidable here")
    assert verdicts["ablation-each"] in ("does not hold", "not decidable here")


def test_every_codebook_keeps_its_own_tokens(tmp_path, tiny_vlm, monkeypatch):
    stage = Stage(tmp_path, tiny_vlm, prompt="what does this image show ?")
    books = {"one": _book(3), "two": _book(5), "none": None}
    masks = []
    asked = ablation._ask

    def spy(vlm, name, tokens, questions, mask, longest):
        masks.append((name, tokens, mask))
        assert longest == 4
        return asked(vlm, name, tokens, questions, mask, longest)

    monkeypatch.setattr(ablation, "_ask", spy)
    answers = ablation.judge(stage, "table-3", books, draws=2, limit=1)
    assert answers.groupby(["method", "seed"]).ngroups == 5
    assert set(answers["method"]) == {"unpruned", "random", "one", "two"}
    pruned = answers[answers["method"] != "unpruned"]
    assert set(pruned["kept"]) == {12} and set(answers["task"]) == set(FIVE_TASKS)
    name, tokens, _ = masks[0]
    found = [mask.tolist() for image, _, mask in masks if image == name]
    for book in (books["one"], books["two"]):
        cosines = [
            max(float(torch.cosine_similarity(t, v, dim=0)) for v in book.vectors) for t in tokens
        ]
        lowest = sorted(range(25), key=lambda n: cosines[n])[:12]
        assert [n in lowest for n in range(25)] in found
    assert len(found) == 5
    monkeypatch.setattr(ablation, "_ask", None)
    assert ablation.judge(stage, "table-3", books, draws=2, limit=1).equals(answers)


def test_a_difference_of_nothing_is_told_as_such():
    row = pd.Series({"share": 0.9, "low": 0.0, "high": 0.0, "lost": 0.0})
    assert figures.points(row, "lost", "low", "high", "+") == "no image differs"
    row = pd.Series({"lost": 0.012, "low": 0.00018, "high": 0.02})
    assert figures.points(row, "lost", "low", "high", "+") == "+1.2 [+0.02 to +2.0]"
    assert figures.points(row, "lost", "low", "high", "") == "1.2 [0.0, 2.0]"
    assert figures.points(row * np.nan, "lost", "low", "high", "+") == "-"


def test_rows_are_named_as_the_paper_names_them():
    built = {name: SimpleNamespace(codebook=name) for name in "abcde"} | {"f": None}
    found = ablation.ablated(built)
    assert found == dict(zip(ROWS, [*"abcde", None], strict=True))


@pytest.mark.parametrize(
    ("worst", "images", "holds"),
    [((0.01, 0.03), 20, True), ((-0.01, 0.03), 20, None), ((-0.03, -0.01), 20, False),
     ((0.01, 0.03), 9, None)],
)  # fmt: skip
def test_tau_prob_must_cost_more_than_each_of_the_others(worst, images, holds):
    """By the share of a codebook without another criterion minus that without tau_prob."""
    ends = {"tau_jsd": (0.02, 0.04), "tau_out": worst, "tau_in": (0.02, 0.04)}

    def gap(first, second):
        assert second == "tau_prob"
        low, high = ends[first]
        return Interval((low + high) / 2, low, high, 100, images)

    books = dict.fromkeys(["nothing", "tau_prob", *ends, "images"])
    found = judged.most_verdict(SimpleNamespace(gap=gap, questions=100, images=images), books)
    assert found.holds is holds
    low, high = (f"{100 * end:+.1f}" for end in worst)
    assert f"than without tau_out {50 * sum(worst):+.1f} ({low} to {high})" in found.evidence
    ends["tau_in"] = (np.nan, np.nan)
    unknown = judged.most_verdict(SimpleNamespace(gap=gap, questions=100, images=images), books)
    assert unknown.holds is None and "has no prototype" in unknown.evidence
