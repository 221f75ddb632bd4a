"""Which criteria the codebook needs (section 5.4, Table 3), and what codebooks are judged by.

Table 3 takes one criterion away after the other and asks how much of the unpruned model's score is
left. Several codebooks answer the same questions about the same test images, all keeping as many
tokens, so that a difference between two of them is a paired one:

    books = codebooks.ablation_codebooks(session, table, criteria, images)
    answers = judge(session, "ablation", {row: built.codebook for ...})
    kept = shares(answers)                        # share of the unpruned score, with draws
    gap(kept, "all criteria", "without tau_prob")

The *share* is the paper's average: for each of the five tasks the accuracy with pruned tokens over
that with all of them, and the mean of these five. Every draw of the bootstrap takes whole images
and recomputes all accuracies, ratios and differences from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from redlib import stages
from redlib.bench import Interval, evaluate, keep_all
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts
from redlib.models import VLM
from redlib.notebook import Session
from redlib.prune import keep_lowest, random_scores, redundancy
from redlib.stages import Built
from redlib.study import LEAST_IMAGES, printed
from redlib.study.asking import FIVE, FIVE_TASKS, JUDGED, REAL, exam, identity
from redlib.study.codebooks import SCORED_AT

UNPRUNED, RANDOM, NOTHING = "unpruned", "random", "nothing"

CODE = (
    "bench", "memory", "models", "pictures", "prune", "study/ablation", "study/asking",
    "tabletop/questions",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shares:
    """What each method keeps of the unpruned score.

    Attributes:
        drawn: method -> (1 + R,) the five-task share; first the estimate, then one per draw of
            images, the same draws for all methods. NaN where the unpruned model has nothing right
            in one of the tasks.
        seeds: method -> how many of its seeds were averaged.
        questions, images: how many questions about how many images are behind it.
    """

    drawn: Mapping[str, np.ndarray]
    seeds: Mapping[str, int]
    questions: int
    images: int


def ablated(built: Mapping[str, Built | None]) -> dict[str, Codebook | None]:
    """The codebooks of Table 3 by what is left out, as the paper's table names its rows: "nothing",
    a threshold, or "images".

    built: rows of `codebooks.ablation_codebooks`.
    """
    names = [NOTHING, "tau_prob", "tau_jsd", "tau_out", "tau_in", "images"]
    return {
        name: None if one is None else one.codebook
        for name, one in zip(names, built.values(), strict=True)
    }


def kept_tokens(session: Session) -> int:
    """Tokens that every codebook keeps: 64, or half of a smaller grid."""
    return min(SCORED_AT, session.model.grid.size // 2)


def judge(
    session: Session,
    kind: str,
    books: Mapping[str, Codebook | None],
    *,
    draws: int,
    limit: int,
) -> pd.DataFrame:
    """Answers to `limit` questions of each of the five tasks about the first test images.

    Args:
        kind: name of the resumable table.
        books: codebooks by name; None, where there is no prototype, is left out.
        draws: random subsets beside them.
        limit: as in `asking.ask`.

    Returns the columns of `bench.evaluate` with `seed`: methods "unpruned", "random" (seeds 0 ..
    draws - 1) and those of `books`, one row per method, seed and question. Codebooks that keep the
    same tokens of an image are asked once.
    """
    p, vlm = session.params, session.model
    found, questions = exam(p, limit)
    session.asked += benchmarks.named(p)
    drawn = {scene.id: scene for scene in found}
    about: dict[str, list] = {}
    for question in questions:
        about.setdefault(question.image, []).append(question)
    books = {name: book for name, book in books.items() if book is not None}
    keep, longest = kept_tokens(session), JUDGED if p.data == "tabletop" else prompts.LONGEST
    store = session.store(
        kind,
        code=CODE,
        questions=limit,
        books={name: book.digest for name, book in books.items()},
        draws=draws,
        tokens=keep,
        seed=p.seed,
        **identity(p, questions),
    )

    def measure(name: str) -> pd.DataFrame:
        tokens = vlm.encode([drawn[name].image]).tokens[0]
        masks = {(UNPRUNED, 0): keep_all(name, tokens)}
        for seed in range(draws):
            scores = random_scores(len(tokens), [p.seed + seed, *name.encode()])
            masks[RANDOM, seed] = keep_lowest(scores, keep)
        for method, book in books.items():
            masks[method, 0] = keep_lowest(redundancy(tokens, book), keep).cpu()
        said: dict[bytes, pd.DataFrame] = {}
        frames = []
        for (method, seed), mask in masks.items():
            same = mask.numpy().tobytes()
            if same not in said:
                said[same] = _ask(vlm, name, tokens, about[name], mask, longest)
            frames.append(said[same].assign(method=method, seed=seed))
        return pd.concat(frames, ignore_index=True)

    return store.compute(about, measure, describe="images")


def _ask(
    vlm: VLM, name: str, tokens: torch.Tensor, questions: list, mask: torch.Tensor, longest: int
) -> pd.DataFrame:
    return evaluate(
        vlm, {name: tokens}, questions, lambda *_: mask, max_new_tokens=longest, progress=False
    )


def shares(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> Shares:
    """The five-task share of every method of `judge`, several seeds of one taken together.

    POPE's accuracy is the mean over its subsets. A draw without a subset takes the others.
    """
    frame = answers.assign(task=answers["task"].replace(REAL))
    frame = frame[frame["task"].isin(FIVE_TASKS)]
    counts = frame.pivot_table("correct", "image", ["method", "task"], "count", fill_value=0)
    sums = frame.astype({"correct": float}).pivot_table(
        "correct", "image", ["method", "task"], "sum", fill_value=0
    )
    n = len(sums)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    drawn = np.concatenate([np.ones((1, n), int), drawn])  # (1 + R, images)
    accuracy = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for method, task in sums.columns:
            right, asked = (drawn @ table[method, task].to_numpy() for table in (sums, counts))
            accuracy[method, task] = right / asked  # NaN: not drawn

        def task_mean(method: str, subsets: tuple[str, ...]) -> np.ndarray:
            each = np.stack([accuracy[method, task] for task in subsets])
            known = ~np.isnan(each)
            return np.where(known, each, 0).sum(axis=0) / known.sum(axis=0)

        whole = {name: task_mean(UNPRUNED, subsets) for name, subsets in FIVE.items()}
        found = {
            method: np.mean(
                [task_mean(method, subsets) / whole[name] for name, subsets in FIVE.items()], axis=0
            )
            for method in dict.fromkeys(frame["method"])
        }
    asked = frame[frame["method"] == UNPRUNED]
    found = {m: np.where(np.isfinite(values), values, np.nan) for m, values in found.items()}
    seeds = frame.groupby("method")["seed"].nunique().to_dict()
    return Shares(found, seeds, len(asked), n)


def share(kept: Shares, method: str) -> Interval:
    """The share of one method with its 95 % interval; NaN for a method that was not judged."""
    return _interval(kept, kept.drawn.get(method, np.full(1, np.nan)))


def gap(kept: Shares, first: str, second: str) -> Interval:
    """Share of `first` minus share of `second`, paired: both see the same draws of images."""
    if not {first, second} <= kept.drawn.keys():
        return _interval(kept, np.full(1, np.nan))
    return _interval(kept, kept.drawn[first] - kept.drawn[second])


def _interval(kept: Shares, values: np.ndarray) -> Interval:
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high), kept.questions, kept.images)


def table3(kept: Shares, books: Mapping[str, Codebook | None], images: int) -> pd.DataFrame:
    """Table 3: what each row keeps, loses against all criteria, and has over random.

    books: by what is left out (`ablated`). images: training images behind all rows but "images".

    Returns left_out, training_images, prototypes (0: none is left, and nothing is measured), share,
    share_low, share_high, lost, low, high, over_random, over_random_low, over_random_high,
    questions, images (of the test), paper (its share, per cent) and paper_prototypes; a row per
    codebook, then "random". A row has no difference from itself.
    """
    theirs = printed.table("table3").set_index("left_out")
    fewer = max(1, round(stages.FEWER_IMAGES * images))
    rows = []
    for name in (*books, RANDOM):
        book = books.get(name)
        row = {
            "left_out": name,
            "training_images": {RANDOM: np.nan, "images": fewer}.get(name, images),
            "prototypes": np.nan if name == RANDOM else len(book) if book else 0,
        }
        found = share(kept, name)
        row |= {"share": found.mean, "share_low": found.low, "share_high": found.high}
        if name != NOTHING:
            found = gap(kept, NOTHING, name)
            row |= {"lost": found.mean, "low": found.low, "high": found.high}
        if name != RANDOM:
            found = gap(kept, name, RANDOM)
            row |= {"over_random": found.mean}
            row |= {"over_random_low": found.low, "over_random_high": found.high}
        row |= {"questions": kept.questions, "images": kept.images}
        row["paper"] = theirs.loc[name, "value"]
        row["paper_prototypes"] = theirs.loc[name, "prototypes"]
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"paper_prototypes": float})


COLUMNS = (
    "left_out", "training_images", "prototypes", "share", "share_low", "share_high", "lost", "low",
    "high", "over_random", "over_random_low", "over_random_high", "questions", "images", "paper",
    "paper_prototypes",
)  # fmt: skip


def table3_told(frame: pd.DataFrame) -> str:
    """What the rows say, in a few sentences, whatever they say."""
    at = frame.set_index("left_out")
    whole = at.loc[NOTHING]
    parts = [
        f"With all criteria ({whole['prototypes']:.0f} prototypes) {whole['share']:.1%} of the "
        f"unpruned score is left, with tokens by lot {at.loc[RANDOM, 'share']:.1%}."
    ]
    for name in at.index.drop([NOTHING, RANDOM]):
        row = at.loc[name]
        what = "With a fifth of the images" if name == "images" else f"Without {name}"
        if np.isnan(row["lost"]) or row["images"] < LEAST_IMAGES:
            left = "too few images to say more" if row["prototypes"] else "no prototype is left"
            parts.append(f"{what}: {left}.")
            continue
        found = (
            "less than with all" if row["low"] > 0 else
            "**more than with all**" if row["high"] < 0 else "not distinguishable from all"
        )  # fmt: skip
        parts.append(
            f"{what} ({row['prototypes']:.0f} prototypes) it is {row['share']:.1%}, {found} "
            f"({-100 * row['lost']:+.1f} points, {-100 * row['high']:+.1f} to "
            f"{-100 * row['low']:+.1f})."
        )
    return " ".join(parts)
