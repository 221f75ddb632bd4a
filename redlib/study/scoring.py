"""From answers to Table 1: scores, what is kept of the unpruned, and who is better.

The paper's columns count in units of their own, and a share "pruned over unpruned" is only as good
as the score under it:

| task | points of an answer | score |
|---|---|---|
| pope | right | mean of the means of its three subsets |
| mme | right, and once more if its pair is | mean over the categories: the perception sum's share |
| mmb | right in all rotations | mean |
| seed, rwqa | right | mean |
| nocaps, flickr | F1 of the caption's scene graph (tabletop-SPICE), or SPICE or CIDEr | mean |

"mean" is over the first five and "captions" over the last two: of scores where scores are told, of
ratios where shares are, as the paper averages them. Every number is computed on the questions that
both sides answered, with intervals from resampling images:

    scores(answers)        # method, tokens, task: accuracy
    shares(answers)        # pruned over unpruned
    rivals(answers)        # Ours minus each rival, and FastV minus PruMerge
    steps(answers)         # how the share changes from one budget to a smaller one

`answers` are rows of `redlib.study.pruning.answer_images`; several seeds are one method.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from redlib.answers import files
from redlib.bench.intervals import Interval, interval, ratio
from redlib.bench.looking import UNPRUNED
from redlib.bench.pope_mme import POPE_SUBSETS, mme, pope
from redlib.notebook import Session
from redlib.store import atomic
from redlib.study.asking import CAPTIONED, FIVE, REAL

TASKS: dict[str, tuple[str, ...]] = {
    **{task: (task,) for task in FIVE},
    "mean": tuple(FIVE),
    **{task: (task,) for task in CAPTIONED},
    "captions": CAPTIONED,
}
"""What is told -> the columns whose scores or shares it averages."""

_COLUMN = (
    {task: name for name, subsets in FIVE.items() for task in subsets}
    | {task: task for task in CAPTIONED}
    | REAL
)
_QUESTION = ["task", "image", "group", "question"]
_OF = ["setting", "method", "tokens"]


def points(answers: pd.DataFrame) -> pd.Series:
    """What each answer counts (see the table above)."""
    whole = answers["correct"].astype(float)
    pair = whole.groupby([answers[name] for name in (*_OF, "seed", "task", "image", "group")])
    both = pair.transform("min")
    return whole.where(answers["task"] != "mme", (whole + both) / 2)


def strata(answers: pd.DataFrame) -> pd.Series:
    """What a score is the unweighted mean over: POPE's subsets, MME's categories."""
    return answers["task"].where(answers["task"] != "mme", "mme " + answers["group"])


def wide(answers: pd.DataFrame) -> pd.DataFrame:
    """Points with a row per question (setting, task, image, group, question) and a column per
    (method, tokens), NaN where it was not asked; several seeds are averaged."""
    counted = answers.assign(points=points(answers))
    means = counted.groupby(["setting", *_QUESTION, "method", "tokens"], sort=False)["points"]
    return means.mean().unstack(["method", "tokens"])


def asked_of_all(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers to those questions of a setting that every method was asked at every budget, so
    that the points of a curve over budgets are of one set of questions."""
    key = ["setting", *_QUESTION]
    asked = answers.assign(of=answers["method"] + " " + answers["tokens"].astype(str))
    each = asked.groupby(key)["of"].transform("nunique")
    return answers[each == asked.groupby("setting")["of"].transform("nunique")]


def _told(
    table: pd.DataFrame,
    columns: Sequence[tuple[str, int]],
    measure: Callable[[pd.DataFrame, pd.DataFrame], Interval],
) -> list[tuple[str, Interval]]:
    """(task, what `measure` says) for every task whose columns all were asked, over the questions
    that all of `columns` answered; a column named twice is one."""
    part = table[list(dict.fromkeys(columns))].dropna()
    about = _about(part)
    part = part.reset_index(drop=True)
    found = []
    for task, of in TASKS.items():
        mask = about["column"].isin(of)
        if set(about["column"][mask]) == set(of):
            found.append((task, measure(part[mask], about[mask])))
    return found


def _about(table: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """What the rows of `wide` are: the names of their index, column (of a table) and stratum."""
    about = table.index.to_frame(index=False)
    return about.assign(column=about["task"].map(_COLUMN), stratum=strata(about))


def five_task_ratio(first: pd.Series, second: pd.Series, draws: Mapping[str, int]) -> Interval:
    """Mean over the five tasks of `first` over `second`, two columns of `wide` (or differences of
    columns); NaN where a task was not asked."""
    about = _about(first)
    if set(about["column"]) != set(FIVE):
        return Interval(np.nan, np.nan, np.nan, len(about), about["image"].nunique())
    return _ratio(first, second, about, draws)


def _ratio(
    first: pd.Series, second: pd.Series | None, about: pd.DataFrame, draws: Mapping[str, int]
) -> Interval:
    """Mean over tasks of `first` over `second`; None: of `first` itself, since over 1."""
    below = np.ones(len(first)) if second is None else second
    return ratio(
        first, below, about["image"], strata=about["stratum"], tasks=about["column"], **draws
    )


def _settings(answers: pd.DataFrame) -> list[tuple[str, pd.DataFrame, tuple[str, int]]]:
    """(setting, its wide table, the unpruned column) of every setting."""
    found = []
    for setting, part in answers.groupby("setting", sort=False):
        table = wide(part).dropna(axis=1, how="all")
        (full,) = [column for column in table if column[0] == "unpruned"]
        found.append((setting, table, full))
    return found


def scores(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Score of every method, budget and task on all that it was asked.

    Returns setting, method, tokens, task, accuracy, low, high, std (over seeds, NaN with one), n
    (questions), images, kept (mean visual tokens over the images).
    """
    draws = {"resamples": resamples, "seed": seed}
    by = answers.groupby(_OF, sort=False)
    each = {key: [rows for _, rows in part.groupby("seed")] for key, part in by}
    kept = {key: part.groupby("image")["kept"].mean().mean() for key, part in by}
    rows = []
    for setting, table, _ in _settings(answers):
        for name, tokens in table:
            key, column = (setting, name, tokens), (name, tokens)
            alone = [
                dict(_told(wide(part), [column], lambda p, a, c=column: _once(p, a, c)))
                for part in each[key]
                if len(each[key]) > 1
            ]
            for task, value in _told(
                table, [column], lambda p, a, c=column: _ratio(p[c], None, a, draws)
            ):
                known = [seeds[task] for seeds in alone if task in seeds]
                std = float(np.std(known)) if len(known) > 1 else np.nan
                rows.append(
                    (setting, name, tokens, task, value.mean, value.low, value.high, std, value.n,
                     value.clusters, kept[key])
                )  # fmt: skip
    columns = [*_OF, "task", "accuracy", "low", "high", "std", "n", "images", "kept"]
    return pd.DataFrame(rows, columns=columns)


def official(answers: pd.DataFrame) -> pd.DataFrame:
    """POPE's subsets and MME's categories as their benchmarks report them (`bench.pope_mme`).

    Returns setting, method, tokens, seed, task (whose answers they are), benchmark ("POPE" or
    "MME"), part (subset or category, then their mean or sum), n (questions), accuracy, f1 (of
    POPE), acc_plus and score (of MME, 100 (accuracy + acc_plus), at most 200 for a category); NaN
    where a benchmark has no such number.
    """
    found = []
    asked = answers.assign(task=answers["task"].replace(REAL))
    for key, part in asked.groupby([*_OF, "seed"], sort=False):
        parts = []
        if part["task"].isin(POPE_SUBSETS).any():
            told = pope(part).rename(columns={"subset": "part"})
            told = told[["part", "n", "accuracy", "f1"]].assign(benchmark="POPE")
            task = "pope-" + told["part"]
            parts.append(told.assign(task=task.where(told["part"] != "mean", "pope")))
        if (part["task"] == "mme").any():
            told = mme(part).rename(columns={"category": "part", "acc": "accuracy"})
            told = told[["part", "n", "accuracy", "acc_plus", "score"]]
            parts.append(told.assign(benchmark="MME", task="mme"))
        found += [rows.assign(**dict(zip([*_OF, "seed"], key, strict=True))) for rows in parts]
    columns = ["task", "benchmark", "part", "n", "accuracy", "f1", "acc_plus", "score"]
    return pd.concat(found, ignore_index=True).reindex(columns=[*_OF, "seed", *columns])


def _once(part: pd.DataFrame, about: pd.DataFrame, column: tuple[str, int]) -> float:
    return _ratio(part[column], None, about, {"resamples": 1}).mean


def shares(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Pruned over unpruned on the same questions.

    Returns setting, method, tokens, task, share, low, high, n, images.
    """
    draws, rows = {"resamples": resamples, "seed": seed}, []
    for setting, table, full in _settings(answers):
        for column in table:
            if column != full:
                rows += [
                    (setting, *column, task, v.mean, v.low, v.high, v.n, v.clusters)
                    for task, v in _told(
                        table,
                        [column, full],
                        lambda p, a, c=column, f=full: _ratio(p[c], p[f], a, draws),
                    )
                ]
    columns = [*_OF, "task", "share", "low", "high", "n", "images"]
    return pd.DataFrame(rows, columns=columns)


def gap(
    answers: pd.DataFrame,
    *,
    tokens: int,
    first: str = "ours",
    second: str = "random",
    setting: str = "base",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of two methods' scores on the same questions, per task.

    Returns task, difference, low, high, n, images; above 0: `first` is better.
    """
    table = wide(answers[answers["setting"] == setting])
    return _gap(table, (first, tokens), (second, tokens), {"resamples": resamples, "seed": seed})


def _gap(
    table: pd.DataFrame, first: tuple[str, int], second: tuple[str, int], draws: dict
) -> pd.DataFrame:
    rows = [
        (task, v.mean, v.low, v.high, v.n, v.clusters)
        for task, v in _told(
            table, [first, second], lambda p, a: _ratio(p[first] - p[second], None, a, draws)
        )
    ]
    return pd.DataFrame(rows, columns=["task", "difference", "low", "high", "n", "images"])


def rivals(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Ours minus every rival at every budget that both have, and FastV minus PruMerge.

    Returns setting, method, against, tokens, task, difference, low, high, n, images.
    """
    draws, found = {"resamples": resamples, "seed": seed}, []
    for setting, table, _ in _settings(answers):
        for first, second in itertools.product(list(table), repeat=2):
            of = first[0], second[0]
            ours = of[0] == "ours" and of[1] not in ("ours", "none")
            if first[1] == second[1] and (ours or of == ("fastv", "prumerge")):
                part = _gap(table, first, second, draws)
                part.insert(0, "tokens", first[1])
                part.insert(0, "against", second[0])
                part.insert(0, "method", first[0])
                part.insert(0, "setting", setting)
                found.append(part)
    return pd.concat(found, ignore_index=True)


def steps(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Change of the five-task share from a budget to each smaller one, base tile alone.

    Returns method, from, tokens, change (below 0: lost), low, high, n, images.
    """
    draws, rows = {"resamples": resamples, "seed": seed}, []
    for _, table, full in _settings(answers[answers["setting"] == "base"]):
        for few, many in itertools.product(list(table), repeat=2):
            if few[0] == many[0] and few[1] < many[1]:
                told = _told(
                    table,
                    [few, many, full],
                    # One minus the other share is their difference over what both are shares of.
                    lambda p, a, f=few, m=many, u=full: _ratio(p[f] - p[m], p[u], a, draws),
                )
                rows += [
                    (few[0], many[1], few[1], v.mean, v.low, v.high, v.n, v.clusters)
                    for task, v in told
                    if task == "mean"
                ]
    columns = ["method", "from", "tokens", "change", "low", "high", "n", "images"]
    return pd.DataFrame(rows, columns=columns)


def informative(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Share of the informative tokens that stays, mean over images.

    Returns method, tokens, kept, low, high, images.
    """
    rows = []
    for (method, tokens), part in _per_image(answers).groupby(["method", "tokens"], sort=False):
        v = interval(part["informative"], part["image"], resamples=resamples, seed=seed)
        rows.append((method, tokens, v.mean, v.low, v.high, v.clusters))
    return pd.DataFrame(rows, columns=["method", "tokens", "kept", "low", "high", "images"])


def informative_gaps(
    answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Share of the informative tokens that Ours keeps minus that of each rival, on the same images.

    Returns against, tokens, difference, low, high, images.
    """
    table = _per_image(answers).pivot(index="image", columns=["method", "tokens"])["informative"]
    rows = []
    for name, tokens in table:
        if name not in ("ours", "none", "unpruned") and ("ours", tokens) in table:
            both = table[[("ours", tokens), (name, tokens)]].dropna()
            v = interval(
                both["ours", tokens] - both[name, tokens], both.index, resamples=resamples,
                seed=seed,
            )  # fmt: skip
            rows.append((name, tokens, v.mean, v.low, v.high, v.clusters))
    return pd.DataFrame(rows, columns=["against", "tokens", "difference", "low", "high", "images"])


def _per_image(answers: pd.DataFrame) -> pd.DataFrame:
    """method, tokens, image, informative: mean over questions and seeds, where it is known."""
    known = answers[answers["setting"] == "base"].dropna(subset="informative")
    return known.groupby(["method", "tokens", "image"], sort=False, as_index=False)[
        "informative"
    ].mean()


def leave(session: Session, answers: pd.DataFrame) -> list[str]:
    """Write every answer, and what it is worth, beside the figures of the notebook (`opened`): the
    two files that `redlib.answers` reads. Returns their names."""
    names = files(session.notebook)
    for value, name in zip(("answer", "correct"), names, strict=True):
        table = opened(answers, value)
        text = table.to_csv(index=False, float_format="%.4g", lineterminator="\n")
        with atomic(session.figures / name) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
    return list(names)


def of_codebooks(answers: pd.DataFrame, *, keep: int, size: int) -> pd.DataFrame:
    """Rows of `ablation.judge` as `leave` takes them, all draws of a method.

    keep: tokens that each codebook left, of `size`.
    """
    left = np.where(answers["method"] == UNPRUNED, size, keep)
    right = answers["correct"].astype(float)  # which is stored as a truth value
    return answers.assign(setting="base", tokens=left, correct=right)


def opened(answers: pd.DataFrame, value: str) -> pd.DataFrame:
    """Every answer beside its question: a row per question, a column per rule.

    value: "answer", what was said; or "correct", 1, 0, or the F1 of a caption.

    Returns question (running number), task, image, text, gold, and `method@tokens` for each rule,
    "split:method@tokens" for images in tiles, with "#1", "#2" for all seeds but 0. A cell is empty
    where the rule was not asked.
    """
    front = answers["setting"].map(lambda name: "" if name == "base" else f"{name}:")
    behind = answers["seed"].map(lambda seed: f"#{seed}" if seed else "")
    rule = front + answers["method"] + "@" + answers["tokens"].astype(str) + behind
    key = ["task", "image", "question", "gold"]
    # A benchmark may ask the same question about one image twice: one answer stands for both.
    every = answers.assign(task=answers["task"].replace(REAL), rule=rule)
    every = every.drop_duplicates([*key, "rule"])
    table = every.pivot(index=key, columns="rule", values=value)
    order = every[key].drop_duplicates()
    table = table.loc[pd.MultiIndex.from_frame(order), rule.drop_duplicates()].reset_index()
    table.insert(0, "number", range(1, len(table) + 1))
    names = {"question": "text", "number": "question"}
    return table.rename(columns=names).rename_axis(columns=None)
