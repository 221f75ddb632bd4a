"""One image on its way through the codebook: what scores high, what goes, which prototype took it.

The figures of notebook 06 that show the method at work (Figure 5, right), each with the function
that writes its texts.
"""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from redlib.figures import style
from redlib.figures.codebooks import cut, show_cut
from redlib.figures.veil import greyed
from redlib.geometry import Grid
from redlib.study.pipeline import Origin


@style.styled
def pipeline(
    image: Image.Image, scores: np.ndarray, kept: np.ndarray, answers: pd.DataFrame, grid: Grid
) -> Figure:
    """Figure 5, right: one test image, its redundancy scores, what stays, what is answered.

    scores, kept: (L,) redundancy score and whether the token stays. answers: rows of
    `study.pipeline.Shown`.
    """
    figure = style.figure(9.8, 5.9)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.75, 1))
    axes = top.subplots(1, 3)
    style.image_panel(axes[0], image, grid)
    axes[0].set_title("test image")
    style.patch_map(axes[1], image, scores, grid, label="redundancy score (max cosine)", bar=False)
    drawn = axes[1].images[-1]
    axes[1].set_title("redundancy score")
    top.colorbar(drawn, ax=axes[1], location="bottom", shrink=0.9, pad=0.03, aspect=25)
    style.image_panel(axes[2], image, grid)
    for patch in np.flatnonzero(~kept):
        row, column = grid.row_col(int(patch))
        axes[2].add_patch(Rectangle((column, row), 1, 1, facecolor="white", alpha=0.88, lw=0))
    axes[2].add_patch(
        Rectangle(
            (0, 0), grid.width, grid.height, fill=False, edgecolor=style.COLOURS["grey"], lw=1
        )
    )
    axes[2].set_title(f"kept: {int(kept.sum())} of {grid.size}")
    for left, right in zip(axes[:-1], axes[1:], strict=True):
        top.add_artist(
            ConnectionPatch(
                (1.01, 0.5), (-0.01, 0.5), coordsA="axes fraction",
                coordsB="axes fraction", axesA=left, axesB=right,
                arrowstyle="-|>", mutation_scale=15, color=style.COLOURS["grey"], lw=1.8,
            )
        )  # fmt: skip
    ax = bottom.subplots()
    ax.axis("off")
    heads = ("question", "truth", "all tokens", f"{int(kept.sum())} tokens")
    places = (0.0, 0.62, 0.76, 0.9)
    for at, head in zip(places, heads, strict=True):
        ax.text(at, 1.0, head, fontweight="bold", va="top")
    for line, row in enumerate(answers.itertuples(), start=1):
        y = 1.0 - line / (len(answers) + 1)
        ax.text(places[0], y, _short(_asked(row.question), 78), va="top")
        ax.text(places[1], y, row.gold, va="top")
        for at, text, right in zip(
            places[2:],
            (row.unpruned, row.pruned),
            (row.unpruned_right, row.pruned_right),
            strict=True,
        ):
            tint = style.COLOURS["blue" if right else "red"]
            mark = "\u2713 " if right else "\u2717 "
            ax.text(at, y, mark + (_short(text, 12) or "(nothing)"), va="top", color=tint)
    return figure


def pipeline_note(
    scores: np.ndarray, kept: np.ndarray, covered: np.ndarray, answers: pd.DataFrame, *, model: str
) -> dict:
    """covered: (L,) share of each patch under objects, NaN where nobody knows."""
    held = kept[covered >= 0.5].mean() if (covered >= 0.5).any() else float("nan")
    known = f"Of the patches that objects cover {held:.0%} are kept, of all patches "
    if np.isnan(covered).all():
        known = "Which patches objects cover is not known; kept of all patches: "
    answered = answers[["pruned_right", "unpruned_right"]]
    right = answered.mean()
    marks = {
        "a tick: right": answered.any(axis=None),
        "a cross: wrong": not answered.all(axis=None),
    }
    occurring = ", ".join(mark for mark, occurs in marks.items() if occurs)
    return {
        "title": "One image through the codebook",
        "caption": (
            f"A test scene, the redundancy score of its {len(scores)} tokens (eq. 2), the "
            f"{int(kept.sum())} with the lowest scores, and greedy answers with all and with these "
            f"tokens ({occurring}); the instruction how to answer is left out. Drawn with {model}; "
            "the paper's Figure 5 is a sketch."
        ),
        "reading": (
            "If the method does what it is made for, bare ground is bright in the middle panel and "
            "the objects are left in the right one. Bright objects mean that the codebook takes "
            "parts of them for nothing."
        ),
        "alt": (
            f"{known}{kept.mean():.0%}; {right['pruned_right']:.0%} of the answers shown are right "
            f"with the kept tokens, {right['unpruned_right']:.0%} with all."
        ),
        "paper_item": "Figure 5, right",
    }


def _asked(text: str) -> str:
    """The question and its options, without the instruction how to answer."""
    return re.split(r" (?:Please a|A)nswer ", text.replace("\n", " "))[0]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


_SHOWN_PROTOTYPES, _AROUND = 6, 2
"""Prototypes, and how many patches around each one's own."""


def _leading(shown: pd.DataFrame) -> list[int]:
    """The prototypes that removed most tokens."""
    removed = shown.loc[~shown["kept"], "prototype"]
    return [int(n) for n in removed.value_counts().index[:_SHOWN_PROTOTYPES]]


@style.styled
def removed(
    image: Image.Image, shown: pd.DataFrame, origins: dict[int, Origin], grid: Grid
) -> Figure:
    """Which prototype removed which patch; shown: table of `study.pipeline.Shown`.

    origins: where the shown prototypes come from, of each whose patch is known.
    """
    leading = _leading(shown)
    figure = style.figure(9.6, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    axes = left.subplots(1, 2)
    style.image_panel(axes[0], image, grid)
    axes[0].set_title("test image")
    greyed(axes[1], image, shown["kept"].to_numpy(bool), grid)
    axes[1].set_title("removed, by prototype")
    tints = dict(zip(leading, style.CYCLE, strict=False))
    for row in shown[~shown["kept"]].itertuples():
        y, x = grid.row_col(int(row.patch))
        tint = style.COLOURS[tints.get(row.prototype, "grey")]
        alpha = 0.6 if row.prototype in tints else 0.25  # objects that went shine through
        axes[1].add_patch(Rectangle((x, y), 1, 1, facecolor=tint, alpha=alpha, lw=0))
    counts = shown.loc[~shown["kept"], "prototype"].value_counts()
    cells = right.subplots(3, 2).ravel()
    for ax in cells:
        ax.axis("off")
    for ax, number in zip(cells, leading, strict=False):
        if number in origins:
            view, patch = origins[number]
            pixels = cut(view, grid, patch, around=_AROUND)
            show_cut(ax, pixels, around=_AROUND, colour=style.COLOURS["black"])
        else:
            ax.text(0.5, 0.5, "patch not known", ha="center", va="center", transform=ax.transAxes)
        ax.axis("on")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set(visible=True, edgecolor=style.COLOURS[tints[number]], linewidth=4)
        ax.set_title(f"{counts[number]} tokens", fontsize=9.5, fontweight="normal")
    return figure


def removed_note(shown: pd.DataFrame, *, model: str, origins: dict[int, Origin]) -> dict:
    """origins: as in `removed`."""
    gone = shown[~shown["kept"]]
    counts = gone["prototype"].value_counts()
    leading = counts.iloc[:_SHOWN_PROTOTYPES].sum()
    unknown = len(set(_leading(shown)) - origins.keys())
    absent = f" Of {unknown} the patch is not known." if unknown else ""
    bare = f"; {(gone['covered'] == 0).mean():.0%} of what was removed shows no object"
    if gone["covered"].isna().all():
        bare = ""
    return {
        "title": "Which prototype removed which patch",
        "caption": (
            f"The {len(gone)} removed tokens of one test scene, in the colour of the prototype "
            "that each is most similar to; grey: of other prototypes. Kept tokens in full colour. "
            "Right, framed, the patches that the "
            f"{min(len(counts), _SHOWN_PROTOTYPES)} foremost of them come from, in training "
            f"scenes.{absent} Drawn with {model}; the paper shows no such picture."
        ),
        "reading": (
            "Redundancy is bare ground if the removed tokens and the patches of their prototypes "
            "show grounds. A prototype with an object in its frame is a mistake of the codebook."
        ),
        "alt": (
            f"{len(counts)} prototypes removed {len(gone)} tokens, the foremost shown "
            f"{leading / len(gone):.0%} of them{bare}."
        ),
        "paper_item": "Algorithm 2",
    }
