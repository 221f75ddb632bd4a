"""Figures and tables of notebook 08: controls of the codebook, and how stable it is.

Ours is compared with simpler codebooks and with those of other samples of images. Both are drawn as
the ablation is (`figures.ablation.rows`): a line per codebook, the share of the unpruned score that
it keeps, and beside it how far Ours is ahead on the same questions, which is what decides. What no
question decides stands in one table: overlaps of kept tokens and rank correlations, 1 where nothing
changed. A `..._note` writes the texts of each from the rows that `study.controls` and
`study.stability` make.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from redlib.figures import ablation
from redlib.study.stability import PARAPHRASES, PATCHES
from redlib.tables import readable

FEW = 20
"""An overlap of fewer tokens than these is not told."""

_SHARE = ["share", "share_low", "share_high"]
_AHEAD = ["ahead", "low", "high"]


def controls(frame: pd.DataFrame) -> Figure:
    """Shares of Ours and the controls; rows of `study.controls.against`."""
    labels = [
        name if np.isnan(n) else f"{name}, N = {n:.0f}"
        for name, n in zip(frame["name"], frame["prototypes"], strict=True)
    ]
    return _rows(labels, frame, "points that Ours is ahead")


def controls_note(frame: pd.DataFrame, *, model: str, tokens: int, told: str) -> dict:
    first, seeds = frame.iloc[0], int(frame["seeds"].max())
    return {
        "title": "Ours against simpler codebooks of equal size",
        "caption": (
            f"Codebooks of as many entries as Ours, each keeping {tokens} tokens of a test image: "
            "mean over five tasks of the score over that with all tokens, counted as in Table 1, "
            "and how far Ours is ahead on the same questions. Rows that depend on chance are means "
            f"of {seeds} draws; the others need no seed. "
            f"95 % intervals from drawing images, {int(first['questions'])} questions about "
            f"{int(first['images'])} test images. Drawn with {model}; the paper has no such rows."
        ),
        "reading": (
            "A bar right of the dashed line: Ours chooses better than that control. A bar across "
            "it: these questions do not tell them apart, and the four criteria cannot be said to "
            "be needed. A bar left of it falsifies that they are."
        ),
        "alt": told.replace("**", ""),
        "paper_item": "Section 5.4, controls",
    }


def controls_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The controls in numbers."""
    frame = frame.assign(
        kept=[ablation.points(row, *_SHARE, "") for _, row in frame.iterrows()],
        gone=[ablation.points(row, *_AHEAD, "+") for _, row in frame.iterrows()],
    )
    heads = {"name": "Codebook", "prototypes": ("N", ".0f"), "seeds": "Draws"}
    heads |= {"kept": "Share of unpruned, %", "gone": "Ours ahead, points"}
    return readable(frame, heads | {"questions": "Questions", "images": "Test images"})


def samples(frame: pd.DataFrame) -> Figure:
    """Shares of the codebooks from disjoint samples; rows of `study.stability.spread`."""
    labels = [f"{row.sample.capitalize()}, N = {row.prototypes}" for row in frame.itertuples()]
    return _rows(labels, frame, "points that Ours is ahead")


def samples_note(
    frame: pd.DataFrame, overlap: pd.DataFrame, *, model: str, images: int, given: bool, tokens: int
) -> dict:
    """overlap: rows of `study.stability.overlaps`; images: training images of all samples; given:
    whether Ours is a file's codebook, whose thresholds are not those of the samples; tokens: how
    many all keep."""
    whose = "this run, not of Ours" if given else "Ours"
    parts = frame[frame["sample"].str.startswith("sample")]
    first, each = frame.iloc[0], images // len(parts)
    size = f"{each}" if images % len(parts) == 0 else f"{each} or {each + 1}"
    mean = overlap.groupby("pairs", sort=False)["overlap"].mean()
    told = ", ".join(f"{pairs} {value:.2f}" for pairs, value in mean.items())
    known = parts["share"].dropna()
    spread = (
        f"shares from {known.min():.1%} to {known.max():.1%}" if len(known) else "no share known"
    )
    return {
        "title": "Codebooks from disjoint samples of the training images",
        "caption": (
            f"{len(parts)} codebooks, each from its own part ({size} images) of {images} training "
            f"images, with the thresholds of {whose} (tau_in in proportion), judged as the "
            f"controls above are, with {tokens} tokens kept. 95 % intervals from drawing images, "
            f"{int(first['questions'])} questions about {int(first['images'])} test images. N "
            f"counts prototypes; 0: none is left. Drawn with {model}; the paper takes one sample."
        ),
        "reading": (
            "Dots under one another mean that it hardly matters which images are taken. Whether "
            "the same tokens are kept, no question asked, is not drawn here: it stands in the "
            "table below on what does not change."
        ),
        "alt": f"{spread}. In the table below, overlap of kept tokens: {told}.",
        "paper_item": "Section 4.1, stability",
    }


def stability_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.stability.summary` for readers."""
    few = frame["measure"].str.startswith("overlap") & frame["low"].isna() & (frame["n"] < FEW)
    measured = [
        f"{row.value:.2f}" + ("" if np.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]")
        for row in frame.itertuples()
    ]
    heads = {"what": "Varied", "compared": "Compared", "measure": "Measure", "told": "Value"}
    return readable(
        frame.assign(told=np.where(few, "-", measured)), heads | {"n": "n", "images": "Images"}
    )


def stability_note(frame: pd.DataFrame, *, model: str, pad: float) -> dict:
    """pad: length of the pad embedding over that of a visual token."""
    known = frame[(frame["compared"] != "by lot") & frame["value"].notna()]
    lowest = known.loc[known.groupby("what", sort=False)["value"].idxmin()]
    embedding = f"here {pad:.2g} times as long as a visual token"
    if pad == 0:
        embedding = "here zero itself, so that zeros have to agree with it"
    told = "; ".join(
        f"{r.what}, {r.compared}: {r.measure} {r.value:.2f}" for r in lowest.itertuples()
    )
    return {
        "title": "What does not change, and what does",
        "caption": (
            "Overlap (Jaccard) of the tokens that two codebooks keep of calibration images; rank "
            f"correlation of the final divergence over {PATCHES} patches of an image when an "
            f"ablated token is replaced by something else than the pad embedding ({embedding}); "
            "rank correlation of the top-1 probability, overlap of the silent tokens and of the "
            f"candidates (n: those under the first prompt; of fewer than {FEW} none is told) when "
            "the question is "
            f"put otherwise ({' / '.join(PARAPHRASES)}). Rank correlations are means within "
            f"images, 95 % intervals from drawing images. Made with {model}; the paper varies none "
            "of this."
        ),
        "reading": (
            "1 means that nothing changed, 0 that nothing is left of the order. Low values in the "
            "rows of the prompt say that a token is silent to one question and not to another: "
            "then it is not the token alone that is redundant. Few images: intervals of two or "
            "three of them are no more than their range."
        ),
        "alt": f"Lowest of each kind: {told}.",
        "paper_item": "Section 9.1, stability",
    }


def _rows(labels: list[str], frame: pd.DataFrame, difference: str) -> Figure:
    heads = ["mean", "low", "high"]
    return ablation.rows(
        labels,
        frame[_SHARE].set_axis(heads, axis=1),
        frame[_AHEAD].set_axis(heads, axis=1),
        difference=difference,
    )
