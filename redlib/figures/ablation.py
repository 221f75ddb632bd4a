"""Figures of the codebook's ablation and of its controls: shares of the unpruned score, in rows.

A row is a codebook; its dot is the five-task share, its bar the 95 % interval over test images. The
difference from the row above all others is drawn beside it, since two overlapping bars say little
about a difference that is paired.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from redlib.figures import style
from redlib.study.ablation import NOTHING, RANDOM
from redlib.study.verdict import bounds
from redlib.tables import readable

ROWS = {
    NOTHING: "all criteria",
    "tau_prob": "without tau_prob",
    "tau_jsd": "without tau_jsd",
    "tau_out": "without tau_out",
    "tau_in": "without tau_in",
    "images": "20% of the images",
    RANDOM: "random",
}


@style.styled
def rows(
    labels: list[str],
    share: pd.DataFrame,
    lost: pd.DataFrame,
    *,
    difference: str,
    paper: pd.Series | None = None,
) -> Figure:
    """Shares on the left, paired differences on the right, a line per codebook.

    share, lost: columns mean, low, high, in shares; NaN where nothing was measured. difference: the
    axis of the right panel. paper: the paper's shares in per cent, drawn hollow.
    """
    figure = style.figure(9.4, 0.9 + 0.38 * len(labels))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    y = np.arange(len(labels))
    for ax, frame, tint in ((left, share, "blue"), (right, lost, "orange")):
        mean, low, high = (100 * frame[name].to_numpy(float) for name in ("mean", "low", "high"))
        ax.errorbar(
            mean, y, xerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)], fmt="o",
            color=style.COLOURS[tint], lw=1.5, label="here",
        )  # fmt: skip
        ax.grid(axis="y", visible=False)
    if paper is not None:
        left.plot(paper, y, "D", mfc="none", mec=style.COLOURS["grey"], ms=6, label="the paper, 8B")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    left.set_yticks(y, labels)
    left.set_ylim(len(labels) - 0.5, -0.5)
    left.set_xlabel("share of the unpruned score, %")
    say_alike(right, lost, y)
    right.axvline(0, color=style.COLOURS["black"], lw=1, ls="--")
    right.set_xlabel(difference)
    low, high = right.get_xlim()
    right.set_xlim(min(low, -1), max(high, 1))  # differences of nothing should look like nothing
    return figure


def ablation(frame: pd.DataFrame) -> Figure:
    """Table 3 as a figure; rows of `study.judged.table3`."""
    labels = [
        ROWS[row.left_out] + ("" if np.isnan(row.prototypes) else f", N = {row.prototypes:.0f}")
        for row in frame.itertuples()
    ]
    share = frame[["share", "share_low", "share_high"]]
    lost = frame[["lost", "low", "high"]]
    return rows(
        labels,
        share.set_axis(["mean", "low", "high"], axis=1),
        lost.set_axis(["mean", "low", "high"], axis=1),
        difference="points lost against all criteria",
        paper=frame["paper"],
    )


def ablation_note(frame: pd.DataFrame, *, model: str, tokens: int, told: str, draws: int) -> dict:
    """Texts of the figure. told: `study.judged.table3_told`; draws: random subsets per image."""
    first = frame.iloc[0]
    last = frame.set_index("left_out").loc["images", "training_images"]
    return {
        "title": "What each criterion is worth",
        "caption": (
            f"Codebooks without one criterion, each keeping {tokens} tokens of a test image: the "
            "mean over five tasks of the score with these tokens over that with all, counted as in "
            "Table 1, and what is lost against all criteria on the same questions. 95 % intervals "
            f"from drawing images, {int(first['questions'])} questions about "
            f"{int(first['images'])} test images; random is the mean of {draws} draws. Codebooks "
            "come from "
            f"{first['training_images']:.0f} training images, the row of 20 % from {last:.0f}, "
            f"with tau_in in proportion; N counts prototypes. Made with {model}; the "
            "paper's rows (hollow) with LLaVA-Next-8B on five benchmarks."
        ),
        "reading": (
            "A bar right of the dashed line: the criterion helps. A bar across it: these questions "
            "do not tell. The paper loses most without tau_prob, down to random; if our row "
            "without tau_prob loses nothing, that speaks against the paper, for this model."
        ),
        "alt": told.replace("**", ""),
        "paper_item": "Table 3",
    }


def ablation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 3 for readers, the paper's numbers in columns of their own."""
    frame = frame.assign(
        row=frame["left_out"].map(ROWS),
        kept=[points(row, "share", "share_low", "share_high", "") for _, row in frame.iterrows()],
        gone=[points(row, "lost", "low", "high", "+") for _, row in frame.iterrows()],
        over=[
            points(row, "over_random", "over_random_low", "over_random_high", "+")
            for _, row in frame.iterrows()
        ],
    )
    return readable(
        frame,
        {
            "row": "Criteria",
            "training_images": ("Training images", ".0f"),
            "prototypes": ("N", ".0f"),
            "kept": "Share of unpruned, %",
            "gone": "Lost against all, points",
            "over": "Over random, points",
            "paper": ("Paper: share, %", ".1f"),
            "paper_prototypes": ("Paper: N", ".0f"),
        },
    )


ALIKE = "no image differs"
"""What stands for a difference that is 0 with both its ends: on no image do the scores differ."""


def points(row: pd.Series, mean: str, low: str, high: str, sign: str) -> str:
    """A share in per cent with its interval, or with `sign` "+" a difference of shares."""
    value, *ends = row[[mean, low, high]]
    if np.isnan(value):
        return "-"
    if not sign:
        return f"{100 * value:z.1f} [{100 * ends[0]:z.1f}, {100 * ends[1]:z.1f}]"
    return ALIKE if value == ends[0] == ends[1] == 0 else f"{100 * value:+z.1f} [{bounds(*ends)}]"


def say_alike(ax: Axes, differences: pd.DataFrame, y: np.ndarray) -> None:
    """Beside a dot at 0 without length, why it has none: it would read as perfect precision.

    differences: three columns, each row's value and the ends of its interval, drawn at its y.
    """
    for at in y[(differences == 0).all(axis=1)]:
        ax.annotate(
            ALIKE, (0, at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9,
            color=style.COLOURS["grey"],
        )  # fmt: skip
