"""What the answers with a part of the visual tokens say, in words and verdicts.

The numbers are `study.scoring`'s, of the rows that `study.pruning.answer_images` makes. Here stands
what follows from them: which rule decides a claim, and the sentences of notebook 06.

    better_verdict(summary, gap, 64)                   # does the codebook beat the lot?
    informative_verdict(found, rivals)                 # does who keeps more answer more?
    conclusion(summary, gaps)
"""

import pandas as pd

from redlib.notebook import Session
from redlib.prune import METHODS as ALL
from redlib.study import LEAST_IMAGES, scoring
from redlib.study.verdict import Verdict, bounds

KEEPS_MORE = "Where Ours keeps more of the informative tokens than a rival, it answers more"
"""What has to follow if redundancy is what the paper says."""
MISSED = 0.05
"""Share of 95 % intervals that miss by chance alone."""


def open_cells(session: Session, answers: pd.DataFrame, together: pd.DataFrame) -> list[str]:
    """Write every answer, those of all draws, beside the figures (`scoring.leave`). Returns the
    names of the files.

    together: answers about several images (`study.several.answer_samples`), a set being a task.
    """
    if len(together):
        about = together.rename(columns={"set": "task"}).assign(setting="base")
        about["correct"] = about["correct"].fillna(0)  # empty, which MVBench leaves out of its mean
        answers = pd.concat([answers, about], ignore_index=True)
    return scoring.leave(session, answers)


def joined(gaps: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """The tables of `scoring.gap` as one, with the number of tokens in front."""
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


def informative_verdict(found: pd.DataFrame, rivals: pd.DataFrame) -> Verdict:
    """Whether Ours answers better wherever it keeps more of the informative tokens.

    found: rows of `scoring.informative_gaps`. rivals: of `scoring.rivals`. Rivals that keep fewer
    at a budget and answer more, each by its interval, say no, if they are more than the one in
    twenty that a 95 % interval may miss; yes takes all of them. What prunes inside the language
    model is no rival here: its first layers have seen every token.
    """
    inside = [name for name, method in ALL.items() if method.inside is not None]
    more = found[(found["low"] > 0) & (found["images"] >= LEAST_IMAGES)]
    more = more[~more["against"].isin(inside)]
    ours = (rivals["method"] == "ours") & (rivals["setting"] == "base") & (rivals["task"] == "mean")
    told = rivals[ours].merge(more[["against", "tokens"]], on=["against", "tokens"])
    told = told[told["images"] >= LEAST_IMAGES]
    better, worse = int((told["low"] > 0).sum()), int((told["high"] < 0).sum())
    evidence = "no rival keeps fewer of them by its interval"
    if len(told):
        least = told.loc[told["difference"].idxmin()]
        evidence = (
            f"of {len(told)} rivals and budgets at which Ours keeps more, it answers more in "
            f"{better}, less in {worse}, the rest is open; least against {least['against']} at "
            f"{least['tokens']}: five-task mean {_points(least)} over {least['n']} questions"
        )
    refuted = worse > MISSED * len(told)
    holds = False if refuted else True if better and better == len(told) else None
    return Verdict(KEEPS_MORE, holds, evidence, "Figures 10, 11")


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
    mean = summary[(summary["task"] == "mean") & (summary["setting"] == "base")]
    return mean.set_index(["method", "tokens"])["accuracy"]


def _points(row: pd.Series) -> str:
    """A difference of shares in percentage points with its interval."""
    between = bounds(row["low"], row["high"])
    return f"{100 * row['difference']:+z.1f} percentage points (95% interval {between})"


def realised(answers: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """How many tokens the threshold rule kept on the test images, beside what it was set to keep.

    Returns budget, r, calibration_mean, test_mean, least, most (over test images), images, off_by
    (relative to the budget) and compare_with: "threshold" if the budget is met within 2 %, else "R
    lowest".
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
                "images": len(kept),
                "off_by": off,
                "compare_with": "threshold" if abs(off) <= 0.02 else "R lowest",
            }
        )
    return pd.DataFrame(rows)
