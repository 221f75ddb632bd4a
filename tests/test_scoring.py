"""Table 1's numbers against literal loops over a small made-up table of answers."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import redlib.answers
from redlib.bench import mme
from redlib.bench.intervals import interval, ratio
from redlib.study import LEAST_IMAGES, answered, ledger, scoring

POPE = ("pope-random", "pope-popular", "pope-adversarial")
FIVE = ("pope", "mme", "mmb", "seed", "rwqa")


def asked():
    """(task, image, group, question, gold): twelve images, two of them described."""
    rows = []
    for n in range(10):
        rows += [(task, f"i{n}", "", f"is there {n}", "yes") for task in POPE[: 1 + n % 3]]
        rows += [("mme", f"i{n}", "ab"[n % 2], f"{n}{k}", k) for k in ("yes", "no")]
        rows += [("mmb", f"i{n}", "colour", f"turn {k}", "a") for k in range(4)]
        rows += [("seed", f"i{n}", "size", f"size {n}", "b"), ("rwqa", f"i{n}", "", f"w{n}", "x")]
    rows += [(task, f"{task}{k}", "", "describe", "") for task in ("nocaps", "flickr")
             for k in range(6)]  # fmt: skip
    return rows


def answers_of(rules, rng, setting="base"):
    """Rows of `answer_images`: each rule right with its probability; Random with two seeds, and
    "fastv" and "oracle" asked about the first six images only."""
    frames = []
    for (method, tokens), p in rules.items():
        for seed in range(2 if method == "random" else 1):
            frame = pd.DataFrame(asked(), columns=["task", "image", "group", "question", "gold"])
            right = rng.random(len(frame)) < p
            frame = frame.assign(setting=setting, method=method, tokens=tokens, seed=seed)
            frame["correct"] = right.astype(float)
            rotations = frame["task"] == "mmb"
            together = frame.groupby(["task", "image"])["correct"].transform("min")
            frame["correct"] = frame["correct"].where(~rotations, together)
            described = frame["task"].isin(["nocaps", "flickr"])
            frame.loc[described, "correct"] = p * rng.random(described.sum())
            frame["answer"] = np.where(right, frame["gold"], "perhaps")
            frame["kept"], frame["informative"] = float(tokens), rng.random() * p
            if method in ("fastv", "oracle"):
                frame = frame[frame["image"].isin([f"i{n}" for n in range(6)])]
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


RULES = {
    ("unpruned", 36): 0.9, ("none", 0): 0.2, ("ours", 8): 0.8, ("ours", 16): 0.85,
    ("prumerge", 8): 0.5, ("prumerge", 16): 0.6, ("fastv", 16): 0.7, ("random", 16): 0.6,
}  # fmt: skip


@pytest.fixture(scope="module")
def answers():
    return answers_of(RULES, np.random.default_rng(3))


def literal(answers, method, tokens, images=None):
    """Score per task, by loops over the rows of one rule; seeds averaged."""
    part = answers[(answers["method"] == method) & (answers["tokens"] == tokens)]
    found = []
    for _, rows in part.groupby("seed"):
        rows = rows[rows["image"].isin(images)] if images else rows
        score = {}
        for task in ("mmb", "seed", "rwqa", "nocaps", "flickr"):
            values = [r.correct for r in rows.itertuples() if r.task == task]
            score[task] = sum(values) / len(values) if values else None
        subsets = [[r.correct for r in rows.itertuples() if r.task == name] for name in POPE]
        score["pope"] = sum(sum(v) / len(v) for v in subsets) / 3
        categories = []
        for name in "ab":
            of = rows[(rows["task"] == "mme") & (rows["group"] == name)]
            pairs = [list(of["correct"][of["image"] == image]) for image in of["image"].unique()]
            acc = sum(map(sum, pairs)) / (2 * len(pairs))
            categories.append((acc + sum(min(pair) for pair in pairs) / len(pairs)) / 2)
        score["mme"] = sum(categories) / 2
        found.append(score)
    tasks = [task for task in found[0] if found[0][task] is not None]
    return {task: sum(score[task] for score in found) / len(found) for task in tasks}


def test_the_benchmarks_own_numbers_agree_with_the_scores(answers):
    other = {"yes": "no", "no": "yes"}
    said = [
        gold if right else other.get(gold, "")
        for gold, right in zip(answers["gold"], answers["correct"], strict=True)
    ]
    answers = answers.assign(answer=said)  # the official rules take "perhaps" for a yes
    found = scoring.official(answers)
    summary = scoring.scores(answers, resamples=2).set_index(["method", "tokens", "task"])
    for (method, tokens), part in found.groupby(["method", "tokens"]):
        part = part.set_index(["benchmark", "part"])
        seeds = part.groupby(level=[0, 1]).mean(numeric_only=True)
        pope = summary.loc[(method, tokens, "pope"), "accuracy"]
        assert seeds.loc[("POPE", "mean"), "accuracy"] == pytest.approx(pope)
        categories = seeds.loc["MME"].drop("perception")
        assert seeds.loc[("MME", "perception"), "score"] == pytest.approx(categories["score"].sum())
        share = categories["score"].mean() / 200
        assert summary.loc[(method, tokens, "mme"), "accuracy"] == pytest.approx(share)
    ours = answers[(answers["method"] == "ours") & (answers["tokens"] == 8)]
    popular = ours[ours["task"] == "pope-popular"]
    row = found[(found["method"] == "ours") & (found["tokens"] == 8)].set_index("part")
    assert row.loc["popular", "accuracy"] == pytest.approx(popular["correct"].mean())
    assert row.loc["popular", "n"] == len(popular)
    assert row["task"].to_dict() == {
        "random": "pope-random", "popular": "pope-popular", "adversarial": "pope-adversarial",
        "mean": "pope", "a": "mme", "b": "mme", "perception": "mme",
    }  # fmt: skip


def test_a_curve_is_of_the_questions_that_all_were_asked(answers):
    tiled = answers_of({("unpruned", 36): 0.9, ("ours", 8): 0.8}, np.random.default_rng(5), "split")
    found = scoring.asked_of_all(pd.concat([answers, tiled], ignore_index=True))
    base = found[found["setting"] == "base"]
    assert set(base["image"]) == {f"i{n}" for n in range(6)}  # what FastV was asked
    assert len(base) == answers["image"].isin(set(base["image"])).sum()
    assert (found["setting"] == "split").sum() == len(tiled)


@pytest.mark.parametrize("rule", [("ours", 8), ("random", 16), ("fastv", 16)])
def test_scores_and_shares_are_those_of_literal_loops(answers, rule):
    draws = {"resamples": 30}
    told = (
        scoring.scores(answers, **draws)
        .set_index(["method", "tokens", "task"])
        .sort_index()
        .loc[rule]
    )
    kept = (
        scoring.shares(answers, **draws)
        .set_index(["method", "tokens", "task"])
        .sort_index()
        .loc[rule]
    )
    images = [f"i{n}" for n in range(6)] if rule[0] == "fastv" else None
    score, full = (literal(answers, *of, images) for of in (rule, ("unpruned", 36)))
    share = {task: score[task] / full[task] for task in score}
    for of, value, numbers in ((told, "accuracy", score), (kept, "share", share)):
        numbers = numbers | {"mean": sum(numbers[task] for task in FIVE) / 5}
        if "nocaps" in numbers:
            numbers["captions"] = (numbers["nocaps"] + numbers["flickr"]) / 2
        assert of[value].to_dict() == pytest.approx(numbers)
        assert (of["low"] <= of[value]).all() and (of[value] <= of["high"]).all()
    assert told["std"].notna().all() is np.bool_(rule[0] == "random")
    assert kept["images"].loc["mean"] == (6 if images else 10)


def test_mme_is_the_share_of_the_official_score(answers):
    rows = answers[(answers["method"] == "ours") & (answers["tokens"] == 8)]
    official = mme(rows).set_index("category").loc["perception", "score"]
    told = scoring.scores(rows.assign(method="unpruned"), resamples=2).set_index("task")
    assert told.loc["mme", "accuracy"] == pytest.approx(official / 400)  # two categories of 200


def test_rivals_and_steps_are_differences_on_the_same_questions(answers):
    found = scoring.rivals(answers, resamples=30)
    pairs = set(found[["method", "against", "tokens"]].itertuples(index=False, name=None))
    assert pairs == {
        ("ours", "prumerge", 8), ("ours", "prumerge", 16), ("ours", "fastv", 16),
        ("ours", "random", 16), ("fastv", "prumerge", 16),
    }  # fmt: skip
    few = [f"i{n}" for n in range(6)]
    at = found.set_index(["method", "against", "tokens", "task"])["difference"]
    for method, against, images in (("ours", "random", None), ("fastv", "prumerge", few)):
        first, second = (literal(answers, name, 16, images) for name in (method, against))
        gaps = {task: first[task] - second[task] for task in FIVE}
        assert at[method, against, 16, "pope"] == pytest.approx(gaps["pope"])
        assert at[method, against, 16, "mean"] == pytest.approx(sum(gaps.values()) / 5)
    steps = scoring.steps(answers, resamples=30).set_index(["method", "from", "tokens"])
    assert set(steps.index) == {("ours", 16, 8), ("prumerge", 16, 8)}
    share = [literal(answers, "prumerge", tokens) for tokens in (8, 16)]
    full = literal(answers, "unpruned", 36)
    change = sum((share[0][task] - share[1][task]) / full[task] for task in FIVE) / 5
    assert steps.loc[("prumerge", 16, 8), "change"] == pytest.approx(change)


def test_the_interval_of_a_ratio_draws_images_for_both_sides():
    """Against the same bootstrap written as loops, on the same draws."""
    rng = np.random.default_rng(8)
    n, images, resamples = 60, 7, 200
    image, stratum = rng.integers(0, images, n), rng.integers(0, 4, n)
    task = stratum // 2
    first, second = rng.random(n), 0.5 + rng.random(n)
    found = ratio(first, second, image, strata=stratum, tasks=task, resamples=resamples, seed=5)

    def once(counts):
        ratios = []
        for t in range(2):
            sides = []
            for values in (first, second):
                means = []
                for s in (2 * t, 2 * t + 1):
                    rows = [k for k in range(n) if stratum[k] == s for _ in range(counts[image[k]])]
                    means += [sum(values[k] for k in rows) / len(rows)] if rows else []
                sides.append(sum(means) / len(means))
            ratios.append(sides[0] / sides[1])
        return sum(ratios) / 2

    weights = np.full(images, 1 / images)
    draws = np.random.default_rng(5).multinomial(images, weights, size=resamples)
    drawn = [once(counts) for counts in draws]
    assert found.mean == pytest.approx(once([1] * images))
    assert [found.low, found.high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])))
    assert found.low < found.mean < found.high and (found.n, found.clusters) == (n, images)


def test_informative_tokens_are_a_mean_over_images(answers):
    rng = np.random.default_rng(1)
    answers = answers.assign(informative=rng.random(len(answers)))
    answers.loc[answers["method"] == "prumerge", "informative"] = np.nan
    mean = {}
    for method in ("ours", "random"):
        part = answers[(answers["method"] == method) & (answers["tokens"] == 16)]
        each = {image: [] for image in part["image"]}
        for row in part.itertuples():
            each[row.image].append(row.informative)
        mean[method] = {image: sum(values) / len(values) for image, values in each.items()}
    found = scoring.informative(answers, resamples=30).set_index(["method", "tokens"])
    assert found.loc[("random", 16), "kept"] == pytest.approx(
        np.mean(list(mean["random"].values()))
    )
    assert "prumerge" not in found.index.get_level_values(0)
    gaps = scoring.informative_gaps(answers, resamples=30).set_index(["against", "tokens"])
    by_hand = [mean["ours"][image] - mean["random"][image] for image in mean["ours"]]
    expected = interval(by_hand, list(mean["ours"]), resamples=30)
    assert gaps.loc[("random", 16), "difference"] == pytest.approx(expected.mean)
    assert gaps.loc[("random", 16), "images"] == len(by_hand)


def test_every_cell_opens_to_its_answers(answers):
    answers = answers.assign(answer=[f"said {k}" for k in range(len(answers))])
    split = answers.iloc[:7].assign(setting="split", method="ours", tokens=64, image="large")
    both = pd.concat([answers, split], ignore_index=True)
    said, right = (scoring.opened(both, value) for value in ("answer", "correct"))
    front = ["question", "task", "image", "text", "gold"]
    assert list(said)[:5] == front and list(said) == list(right)
    rules = {f"{m}@{t}" for m, t in RULES} | {"split:ours@64", "random@16#1"}
    assert set(said.columns[5:]) == rules
    assert said["question"].tolist() == list(range(1, len(asked()) + 8))
    for row in itertools.islice(both.itertuples(), 0, None, 17):
        at = (said["task"] == row.task) & (said["image"] == row.image)
        at &= said["text"] == row.question
        name = ("split:" if row.setting == "split" else "") + f"{row.method}@{row.tokens}"
        name += f"#{row.seed}" if row.seed else ""
        assert said.loc[at, name].tolist() == [row.answer]
        assert right.loc[at, name].tolist() == [row.correct]
    assert said.loc[said["image"] == "i9", "fastv@16"].isna().all()


def test_rows_of_table_3_open_to_the_answers_of_their_codebook(tmp_path):
    judged = dict.fromkeys([("unpruned", 0), ("random", 0), ("nothing", 0), ("tau_prob", 0)], 0.7)
    rows = answers_of(judged, np.random.default_rng(5)).drop(columns=["setting", "tokens"])
    rows["correct"] = rows["correct"] > 0.5
    session = SimpleNamespace(figures=tmp_path, notebook="05")
    left = scoring.leave(session, scoring.of_codebooks(rows, keep=64, size=576))
    assert left == ["05.answers.csv", "05.right.csv"]
    found = redlib.answers.read(tmp_path, "05")
    assert found.rules == ["unpruned@576", "random@64", "random@64#1", "nothing@64", "tau_prob@64"]
    row = {"left_out": "tau_prob", "training_images": "100", "share": "0.9", "tokens": "64"}
    assert found.link(redlib.answers.of_row(row)) == "05.answers.html#tau_prob@64/mean"
    worth = found.right["tau_prob@64"].astype(int)
    assert worth.tolist() == rows[rows["method"] == "tau_prob"]["correct"].astype(int).tolist()
    page = redlib.answers.write(tmp_path, "05", run="x").read_text()
    assert (
        "nothing has them all. The tables count MME by its categories" in page
        and "they divide each task by what all visual tokens" in page
    )


def test_the_ledger_decides_its_claims_by_these_tables(answers, tmp_path):
    """Rename the budgets to those of the claims; every claim about LLaVA-1.5's Table 1 and Figure 9
    then finds its rows."""
    rules = {("unpruned", 576): 0.9, ("none", 0): 0.2}
    for tokens, method in itertools.product(
        (8, 16, 32, 64, 96, 144), ("ours", "prumerge", "fastv")
    ):
        rules[method, tokens] = 0.7
    rules["random", 64] = 0.5
    rows = answers_of(rules, np.random.default_rng(2))
    described = rows["task"].isin(["nocaps", "flickr"])
    more = rows[described & (rows["method"] == "prumerge")].assign(method="fastv")
    rows = pd.concat([rows, more], ignore_index=True)
    tables = {
        "shares": scoring.shares, "rivals": scoring.rivals, "steps": scoring.steps,
        "informative-kept": scoring.informative_gaps,
    }  # fmt: skip
    for name, table in tables.items():
        table(rows, resamples=20).to_csv(tmp_path / f"{name}.csv", index=False)
    wanted = [
        claim
        for claim in ledger.printed.table("claims").itertuples()
        if claim.table in tables and claim.families == "llava-1.5"
    ]
    assert len(wanted) == 15
    for claim in wanted:
        found = ledger._look(claim, "run", tmp_path)
        assert found is not None, claim.id


@pytest.mark.parametrize(
    ("differences", "holds"),
    [
        ([(0.02, 0.05), (0.01, 0.09)], True),
        ([(0.02, 0.05), (-0.01, 0.09)], None),
        ([(0.02, 0.05), (-0.09, -0.01)], False),
        ([(0.02, 0.05), *[(-0.09, -0.01)] * 2, *[(-0.01, 0.09)] * 37], None),  # 2 of 40 by chance
        ([(0.02, 0.05), *[(-0.09, -0.01)] * 3, *[(-0.01, 0.09)] * 36], False),
        ([], None),
    ],
)
def test_a_rival_that_keeps_less_and_answers_more_falsifies(differences, holds):
    """Those that keep as many as Ours, or whose first layers saw all tokens, decide nothing."""
    names, n = [f"rival {k}" for k in range(len(differences))], LEAST_IMAGES
    kept = [(name, 64, 0.2, 0.1, 0.3, n) for name in names] + [
        ("even", 64, 0.0, -0.1, 0.1, n),
        ("fastv", 64, 0.2, 0.1, 0.3, n),
    ]
    found = pd.DataFrame(
        kept, columns=["against", "tokens", "difference", "low", "high", "images"]
    )  # fmt: skip
    ends = [*zip(names, differences, strict=True)]
    ends += [(name, (-0.9, -0.8)) for name in ("even", "fastv")]
    rivals = pd.DataFrame(
        [("base", "ours", name, 64, "mean", (low + high) / 2, low, high, 500, n)
         for name, (low, high) in ends],
        columns=["setting", "method", "against", "tokens", "task", "difference", "low", "high", "n",
                 "images"],
    )  # fmt: skip
    verdict = answered.informative_verdict(found, rivals)
    assert verdict.holds is holds
    if holds is False:
        less = sum(high < 0 for _, high in differences)
        assert f"less in {less}," in verdict.evidence and "rival 1 at 64" in verdict.evidence
