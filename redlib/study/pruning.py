"""What a model still answers with a part of its visual tokens (sections 4.2 and 5, Algorithm 2).

Every method sees the visual tokens of an image and says which stay. Three rules are compared:

    ours           keep the R tokens least similar to any prototype
    threshold      keep tokens up to the redundancy score r, which is set on calibration images so
                   that they keep R on average; other images then keep more or fewer
    random         keep R tokens by lot, several seeds

with two ends beside them, the whole image and none of it. All methods answer the same questions, so
that a difference between two of them is a paired one:

    answers = answer_images(session, codebook, thresholds(session, codebook))
    summary(answers)                  # accuracy with interval per method, tokens and task
    paired(answers, tokens=64)        # ours minus random, per task

One part file per image holds its answers under all methods; each image is encoded once.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image

from redlib import bench, stages
from redlib.bench import Interval, difference, evaluate, interval, keep_all, keep_none
from redlib.codebook import Codebook
from redlib.errors import RedlibError
from redlib.notebook import MEASURING, Session
from redlib.prune import (
    calibrate,
    codebook_bytes,
    keep_lowest,
    keep_threshold,
    operations,
    random_scores,
    redundancy,
)
from redlib.store import write_json
from redlib.study import codebooks
from redlib.study.asking import FIVE, FIVE_TASKS, FURTHER, ask, asked_scenes, strata
from redlib.study.patches import LEAST_IMAGES
from redlib.study.verdict import Verdict
from redlib.tabletop import scenes

CURVE = (16, 32, 256)
"""Numbers of tokens that the accuracy curve has besides the budgets."""

PATIENCE = 600.0
"""Seconds: a missing codebook is built here if it takes no longer."""

SHOWN = ("pope-adversarial", "mme", "seed", "colour", "position")
"""Tasks of which the sketch of the pipeline shows one question each, all about a square image."""

METHODS: dict[str, str] = {
    "unpruned": "all tokens",
    "ours": "Ours, R lowest",
    "threshold": "Ours, threshold",
    "random": "Random",
    "none": "no visual token",
}

PAPER_CODEBOOK = (576, 454, 4096)
"""Tokens, prototypes and width of the paper's LLaVA-1.5."""

KeepRule = Callable[[str, torch.Tensor], torch.Tensor]


def load_codebook(session: Session) -> Codebook:
    """The codebook of notebook 05 of this run, or one built now if that is soon done.

    Raises RedlibError, naming the command, if building would take more than ten minutes, and for a
    codebook that belongs to another model.
    """
    path, vlm = codebooks.codebook_path(session), session.model
    if not path.is_file():
        seconds = seconds_to_build(session)
        if seconds > PATIENCE:
            raise RedlibError(
                f"no codebook at {path}, and building it takes about {seconds / 60:.0f} minutes: "
                f"run `redlib run params/{session.name}.yaml --only 05` first"
            )
        return codebooks.make(session).codebook
    return Codebook.load(path, width=vlm.width, model=vlm.name, revision=vlm.revision)


def seconds_to_build(session: Session) -> float:
    """Estimate from the probes of one training image, before anything of it is stored.

    A divergence costs about thirty probes, and about a third of the probed tokens need one.
    """
    vlm, how = session.model, codebooks.probing(session)
    scene = next(iter(codebooks.training_scenes(session).values()))
    start = time.perf_counter()
    encoded = vlm.encode([scene.image])
    tokens, table = encoded.tokens[0], stages.clustered(encoded, how, scene.id)
    table = stages.read(vlm, tokens, table, codebooks.planned(session), how, stages=("single",))
    once = time.perf_counter() - start
    start = time.perf_counter()
    stages.read(vlm, tokens, table[:4], [stages.EAGER], how)
    each = (time.perf_counter() - start) / 4
    return session.params.codebook_images * (once + each * len(table) / 3)


def thresholds(session: Session, codebook: Codebook) -> pd.DataFrame:
    """r for each budget, set on the calibration scenes; with r_threshold given, that one r.

    Returns budget, r, calibration_mean (tokens kept there), images.
    """
    p, vlm = session.params, session.model
    drawn = scenes("calibration", p.n_calibration)
    scores = [redundancy(vlm.encode([scene.image]).tokens[0], codebook) for scene in drawn]
    rows = []
    for budget in p.budgets:
        given = p.r_threshold
        r = calibrate(scores, budget) if given == "calibrated" else float(given)
        kept = [int(keep_threshold(s, r, rule=p.rule_keep).sum()) for s in scores]
        rows.append((budget, r, float(np.mean(kept)), len(drawn)))
    return pd.DataFrame(rows, columns=["budget", "r", "calibration_mean", "images"])


@dataclass(frozen=True, eq=False)
class Shown:
    """One test image on its way through the codebook (Figure 5, right).

    Attributes:
        view: what the model sees.
        scores, kept, covered: (L,) redundancy score, whether the token stays, share under objects.
        answers: question, gold, pruned, unpruned, pruned_right, unpruned_right; one row per
            question.
        table: patch, score, kept, covered; one row per token.
    """

    view: Image.Image
    scores: np.ndarray
    kept: np.ndarray
    covered: np.ndarray
    answers: pd.DataFrame
    table: pd.DataFrame


def show(session: Session, codebook: Codebook, *, keep: int) -> Shown:
    """The first test scene with `keep` tokens and all, asked one question of each of SHOWN."""
    vlm = session.model
    scene = scenes("test", 1)[0]
    tokens = vlm.encode([scene.image]).tokens[0]
    scores = redundancy(tokens, codebook)
    mask = keep_lowest(scores, keep)
    chosen = [q for task in SHOWN for q in ask([scene], (task,), 1)[:1]]
    texts = [question.text for question in chosen]
    covered = scene.coverage(vlm.sight).sum(axis=0)
    frame = pd.DataFrame({"patch": np.arange(len(tokens)), "score": scores.cpu().numpy()})
    frame["kept"], frame["covered"] = mask.cpu().numpy(), covered
    said = {
        "pruned": bench.answers(vlm, tokens[mask], texts, max_new_tokens=4),
        "unpruned": bench.answers(vlm, tokens, texts, max_new_tokens=4),
    }
    asked = {"question": texts, "gold": [question.answer for question in chosen]}
    right = {
        f"{side}_right": [
            bench.is_correct(q.task, text, q.answer, question=q.text)
            for q, text in zip(chosen, words, strict=True)
        ]
        for side, words in said.items()
    }
    return Shown(
        vlm.view(scene.image),
        frame["score"].to_numpy(),
        frame["kept"].to_numpy(),
        covered,
        pd.DataFrame(asked | said | right),
        frame,
    )


@dataclass(frozen=True)
class Method:
    """A rule to be judged: `name` of METHODS, `tokens` (its budget), `seed`, and the rule."""

    name: str
    tokens: int
    seed: int
    keep: KeepRule


def methods(session: Session, codebook: Codebook, limits: pd.DataFrame) -> list[Method]:
    """All methods at all numbers of tokens; Random has all its seeds at the budgets only."""
    p, size = session.params, session.model.grid.size
    found = [Method("unpruned", size, 0, keep_all), Method("none", 0, 0, keep_none)]
    for tokens in sorted({*p.budgets, *(n for n in CURVE if n < size)}):
        found.append(Method("ours", tokens, 0, _lowest(codebook, tokens)))
        seeds = p.random_seeds if tokens in p.budgets else 1
        found += [
            Method("random", tokens, seed, _random(p.seed + seed, tokens)) for seed in range(seeds)
        ]
    for row in limits.itertuples():
        found.append(
            Method("threshold", int(row.budget), 0, _threshold(codebook, row.r, p.rule_keep))
        )
    return found


def answer_images(session: Session, codebook: Codebook, limits: pd.DataFrame) -> pd.DataFrame:
    """Answers of all methods to `n_questions` of each task, on the test scenes from 0 on.

    Returns the columns of `bench.evaluate` with tokens (the budget) and seed, one row per method,
    budget, seed and question.
    """
    p, vlm = session.params, session.model
    drawn = {scene.id: scene for scene in asked_scenes("test", p.n_questions)}
    asked = ask(list(drawn.values()), (*FIVE_TASKS, *FURTHER), p.n_questions)
    about: dict[str, list] = {}
    for question in asked:
        about.setdefault(question.image, []).append(question)
    rules = methods(session, codebook, limits)
    store = session.store(
        "answers",
        code=(*MEASURING, "bench", "prune", "study/pruning", "study/asking", "tabletop/questions"),
        questions=p.n_questions,
        codebook=hashlib.sha256(codebook.vectors.numpy().tobytes()).hexdigest()[:12],
        limits=limits["r"].tolist(),
        methods=[f"{m.name} {m.tokens} {m.seed}" for m in rules],
        seed=p.seed,
    )

    def measure(name: str) -> pd.DataFrame:
        tokens = {name: vlm.encode([drawn[name].image]).tokens[0]}
        frames = []
        for rule in rules:
            frame = evaluate(
                vlm,
                tokens,
                about[name],
                rule.keep,
                method=rule.name,
                max_new_tokens=4,
                progress=False,
            )
            frames.append(frame.assign(tokens=rule.tokens, seed=rule.seed))
        return pd.concat(frames, ignore_index=True)

    return store.compute(about, measure, describe="images")


def five_tasks(answers: pd.DataFrame, *, resamples: int, seed: int) -> Interval:
    """Five-task mean with its interval, over the rows of one method (all its seeds)."""
    part = answers.assign(task5=strata(answers))
    part = part[part["task5"] != ""]
    return interval(
        part["correct"], part["image"], strata=part["task5"], resamples=resamples, seed=seed
    )


def summary(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Accuracy per method, tokens and task, with intervals clustered by image.

    Tasks are the five (POPE as the mean of its subsets), "mean" over the five, and the further
    ones. A method with several seeds is their mean. `kept` is the mean number of visual tokens
    over the images.

    Returns method, tokens, task, accuracy, low, high, n (questions), images, kept.
    """
    answers = answers.assign(task5=strata(answers))
    rows = []
    for (method, tokens), part in answers.groupby(["method", "tokens"], sort=False):
        kept = part.groupby("image")["kept"].mean().mean()
        groups = {name: part[part["task5"] == name] for name in FIVE}
        groups |= {name: part[part["task"] == name] for name in FURTHER}
        found = {
            name: interval(rows_["correct"], rows_["image"], resamples=resamples, seed=seed)
            for name, rows_ in groups.items()
            if len(rows_)
        }
        found["mean"] = five_tasks(part, resamples=resamples, seed=seed)
        for task in (*FIVE, "mean", *FURTHER):
            if task in found:
                value = found[task]
                n = value.n // part["seed"].nunique()
                rows.append(
                    (
                        method,
                        tokens,
                        task,
                        value.mean,
                        value.low,
                        value.high,
                        n,
                        value.clusters,
                        kept,
                    )
                )
    columns = ["method", "tokens", "task", "accuracy", "low", "high", "n", "images", "kept"]
    return pd.DataFrame(rows, columns=columns)


def paired(
    answers: pd.DataFrame,
    *,
    tokens: int,
    first: str = "ours",
    second: str = "random",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of two methods on the same questions, per task and for the five-task mean.

    A question's answers under several seeds are averaged first. Returns task, difference, low,
    high, n, images; difference above 0: `first` is better.
    """
    at = answers[answers["tokens"] == tokens]
    key = ["task", "image", "question"]
    sides = [
        at[at["method"] == name].groupby(key, sort=True)["correct"].mean()
        for name in (first, second)
    ]
    both = pd.concat(sides, axis=1, keys=["first", "second"]).dropna().reset_index()
    both["task5"] = strata(both)
    groups = {name: both[both["task5"] == name] for name in FIVE}
    groups["mean"] = both[both["task5"] != ""]
    groups |= {name: both[both["task"] == name] for name in FURTHER}
    rows = []
    for name, part in groups.items():
        if len(part):
            found = difference(
                part["first"],
                part["second"],
                part["image"],
                strata=part["task5"],
                resamples=resamples,
                seed=seed,
            )
            rows.append((name, found.mean, found.low, found.high, found.n, found.clusters))
    return pd.DataFrame(rows, columns=["task", "difference", "low", "high", "n", "images"])


def joined(gaps: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """The tables of `paired` as one, with the number of tokens in front."""
    parts = [gap.assign(tokens=tokens) for tokens, gap in gaps.items()]
    frame = pd.concat(parts, ignore_index=True)
    return frame[["tokens", *frame.columns.drop("tokens")]]


def better_verdict(summary: pd.DataFrame, gap: pd.DataFrame, tokens: int) -> Verdict:
    """Whether choosing by the codebook beats the lot in the five-task mean."""
    row = gap[gap["task"] == "mean"].iloc[0]
    mean, few = _means(summary), row["images"] < LEAST_IMAGES
    return Verdict(
        f"With {tokens} visual tokens, Ours answers more questions than Random",
        None if row["low"] <= 0 <= row["high"] or few else bool(row["low"] > 0),
        f"five-task mean {mean['ours', tokens]:.1%} against {mean['random', tokens]:.1%}, paired "
        f"difference {_points(row)} over {row['n']} questions about {row['images']} images",
        "Table 1",
    )


def conclusion(summary: pd.DataFrame, gaps: dict[int, pd.DataFrame]) -> str:
    """What the numbers say, in two or three sentences, whatever they say."""
    mean = _means(summary)
    size = summary.loc[summary["method"] == "unpruned", "tokens"].iloc[0]
    full, blind = mean["unpruned", size], mean["none", 0]
    parts = [
        f"With all {size} visual tokens the five-task mean is {full:.1%}, with none {blind:.1%}."
    ]
    for tokens, gap in gaps.items():
        row = gap[gap["task"] == "mean"].iloc[0]
        ours = mean["ours", tokens]
        share = f" ({ours / full:.0%} of the unpruned mean)" if full > 0 else ""
        if row["images"] < LEAST_IMAGES:
            told = "too few images to say more"
        elif row["low"] > 0:
            told = "better than Random"
        elif row["high"] < 0:
            told = "**worse than Random**: the claim is false for this model and codebook"
        else:
            told = "**not distinguishable from Random** on these questions"
        parts.append(
            f"At {tokens} tokens Ours reaches {ours:.1%}{share}, which is {told}, by "
            f"{_points(row)}."
        )
    return " ".join(parts)


def _means(summary: pd.DataFrame) -> pd.Series:
    return summary[summary["task"] == "mean"].set_index(["method", "tokens"])["accuracy"]


def _points(row: pd.Series) -> str:
    """A difference of shares in percentage points with its interval."""
    mean, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{mean:+.1f} percentage points (95% interval {low:+.1f} to {high:+.1f})"


def realised(answers: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """How many tokens the threshold rule kept on the test images, beside what it was set to keep.

    Returns budget, r, calibration_mean, test_mean, least, most (over test images), off_by (relative
    to the budget) and compare_with: "threshold" if the budget is met within 2 %, else "R lowest".
    """
    rows = []
    for row in limits.itertuples():
        part = answers[(answers["method"] == "threshold") & (answers["tokens"] == row.budget)]
        kept = part.groupby("image")["kept"].first()
        off = kept.mean() / row.budget - 1
        rows.append(
            {
                "budget": row.budget,
                "r": row.r,
                "calibration_mean": row.calibration_mean,
                "test_mean": kept.mean(),
                "least": int(kept.min()),
                "most": int(kept.max()),
                "off_by": off,
                "compare_with": "threshold" if abs(off) <= 0.02 else "R lowest",
            }
        )
    return pd.DataFrame(rows)


def costs(session: Session, codebook: Codebook) -> pd.DataFrame:
    """Section 5.3 in numbers: operations per image and bytes of the codebook, here and there.

    Returns model, tokens, prototypes, width, operations, megabytes (float16), and
    share_of_prefill: the operations relative to those of the language model's layers over the
    visual tokens (2 per parameter and token), NaN for the paper's model.
    """
    vlm = session.model
    parameters = sum(weight.numel() for weight in vlm.decoder.layers.parameters())
    size, n = vlm.grid.size, len(codebook)
    ours = operations(size, n, vlm.width)
    tokens, prototypes, width = PAPER_CODEBOOK
    rows = [
        (vlm.name, size, n, vlm.width, ours, ours / (2 * parameters * size)),
        ("LLaVA-1.5-7B (paper)", tokens, prototypes, width, operations(*PAPER_CODEBOOK), np.nan),
    ]
    columns = ["model", "tokens", "prototypes", "width", "operations", "share_of_prefill"]
    frame = pd.DataFrame(rows, columns=columns)
    megabytes = [codebook_bytes(p, w) / 1e6 for p, w in frame[["prototypes", "width"]].to_numpy()]
    frame.insert(5, "megabytes", megabytes)
    return frame


def write_times(session: Session, codebook: Codebook, *, repeats: int = 20) -> str:
    """Measure the time of scoring one image and of the whole prefill; returns where it is written.

    Times differ from run to run, so they go to runs/<run_name>/results/06-times.json and into no
    figure, table or notebook.
    """
    from redlib.engine import extend

    vlm, scene = session.model, scenes("test", 1)[0]
    tokens = vlm.encode([scene.image]).tokens[0]

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            if vlm.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    kept = tokens[keep_lowest(redundancy(tokens, codebook), min(64, len(tokens)))]
    path = session.file("06-times.json")
    write_json(
        path,
        {
            "device": vlm.device.type,
            "redundancy scores, ms": best(lambda: redundancy(tokens, codebook)),
            "prefill of all visual tokens, ms": best(lambda: extend(vlm, tokens)),
            "prefill of 64 visual tokens, ms": best(lambda: extend(vlm, kept)),
        },
    )
    return f"runs/{session.name}/results/{path.name}"


def _lowest(codebook: Codebook, tokens: int) -> KeepRule:
    return lambda image, visual: keep_lowest(redundancy(visual, codebook), tokens)


def _threshold(codebook: Codebook, r: float, rule: str) -> KeepRule:
    return lambda image, visual: keep_threshold(redundancy(visual, codebook), r, rule=rule)


def _random(seed: int, tokens: int) -> KeepRule:
    """Another subset for every image, the same one whenever this image is seen."""

    def keep(image: str, visual: torch.Tensor) -> torch.Tensor:
        number = [byte for byte in image.encode()]
        return keep_lowest(random_scores(len(visual), [seed, *number]), tokens)

    return keep
