"""What judged codebooks keep of the unpruned score: Table 3, and the numbers behind the controls.

The *share* is the paper's average: for each of the five tasks the score with pruned tokens over
that with all of them, and the mean of these five. Scores count as in Table 1 (`study.scoring`):
POPE by its subsets, MME by its categories and pairs. All codebooks answered the same questions, so
that the difference of two shares is a paired one: every draw of the bootstrap takes whole images
and recomputes all scores, ratios and differences from them.

    judged = scored(answers, resamples=2000, seed=0)    # rows of `ablation.judge`
    judged.share("nothing")                             # with all criteria, and its interval
    judged.gap("nothing", "tau_prob")                   # what is lost without the first of them
    table3(judged, books, images=20)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from redlib import stages
from redlib.bench import Interval
from redlib.bench.looking import UNPRUNED
from redlib.codebook import Codebook
from redlib.study import LEAST_IMAGES, printed, scoring
from redlib.study.ablation import NOTHING, RANDOM
from redlib.study.asking import FIVE_TASKS, REAL
from redlib.study.verdict import Verdict, above, bounds


@dataclass(frozen=True, eq=False)
class Scored:
    """Answers of several codebooks to the same questions.

    Attributes:
        points: what each answer counts; a row per question as `scoring.wide` has it, a column per
            method, several seeds of one averaged.
        seeds: method -> how many of its seeds were averaged.
        draws: resamples and seed of the intervals.
    """

    points: pd.DataFrame
    seeds: Mapping[str, int]
    draws: Mapping[str, int]

    @property
    def questions(self) -> int:
        return len(self.points)

    @property
    def images(self) -> int:
        return self.points.index.unique("image").size

    def share(self, method: str) -> Interval:
        """The share of one method with its 95 % interval; NaN for a method that was not judged, and
        where one of the tasks was not asked or the unpruned model has nothing right in it."""
        return self._share(self.points.get(method))

    def gap(self, first: str, second: str) -> Interval:
        """Share of `first` minus share of `second`, paired; NaN as in `share`."""
        if not {first, second} <= set(self.points):
            return self._share(None)
        return self._share(self.points[first] - self.points[second])

    def _share(self, points: pd.Series | None) -> Interval:
        if points is None:
            return Interval(np.nan, np.nan, np.nan, self.questions, self.images)
        found = scoring.five_task_ratio(points, self.points[UNPRUNED], self.draws)
        return found if np.isfinite(found.mean) else self._share(None)


def scored(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> Scored:
    """Rows of `ablation.judge` as the scores of the five tasks."""
    five = answers[answers["task"].replace(REAL).isin(FIVE_TASKS)]
    points = scoring.wide(five.assign(setting="base", tokens=0)).droplevel("tokens", axis=1)
    seeds = five.groupby("method")["seed"].nunique().to_dict()
    return Scored(points, seeds, {"resamples": resamples, "seed": seed})


def table3(judged: Scored, books: Mapping[str, Codebook | None], images: int) -> pd.DataFrame:
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
        found = judged.share(name)
        row |= {"share": found.mean, "share_low": found.low, "share_high": found.high}
        if name != NOTHING:
            found = judged.gap(NOTHING, name)
            row |= {"lost": found.mean, "low": found.low, "high": found.high}
        if name != RANDOM:
            found = judged.gap(name, RANDOM)
            row |= {"over_random": found.mean}
            row |= {"over_random_low": found.low, "over_random_high": found.high}
        row |= {"questions": judged.questions, "images": judged.images}
        row["paper"] = theirs.loc[name, "value"]
        row["paper_prototypes"] = theirs.loc[name, "prototypes"]
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"paper_prototypes": float})


COLUMNS = (
    "left_out", "training_images", "prototypes", "share", "share_low", "share_high", "lost", "low",
    "high", "over_random", "over_random_low", "over_random_high", "questions", "images", "paper",
    "paper_prototypes",
)  # fmt: skip


def most_verdict(judged: Scored, books: Mapping[str, Codebook | None]) -> Verdict:
    """Section 5.4: losing tau_prob costs significantly, losing another criterion moderately. So it
    must cost more than each of them, by the interval of the paired difference.

    books: by what is left out (`ablated`).
    """
    others = [name for name in books if name not in (NOTHING, "tau_prob", "images")]
    more = {name: judged.gap(name, "tau_prob") for name in others}
    told = ", ".join(
        f"than without {name} {100 * one.mean:+z.1f} ({bounds(one.low, one.high)})"
        for name, one in more.items()
    )
    found = [above(one, 0) for one in more.values()]
    known = all(np.isfinite(one.mean) for one in more.values())
    return Verdict(
        "A codebook without tau_prob costs more of the unpruned score than one without any other "
        "criterion",
        None if not known else False if False in found else None if None in found else True,
        f"points lost more {told}; {judged.questions} questions about {judged.images} images"
        if known
        else "one of the codebooks has no prototype, or a task was not asked",
        "Table 3",
    )


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
            f"({-100 * row['lost']:+z.1f} points, {bounds(-row['high'], -row['low'])})."
        )
    return " ".join(parts)
