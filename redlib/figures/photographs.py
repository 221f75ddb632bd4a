"""Figures 12 to 14 of photographs (notebook 07), whose truth nobody wrote down.

What is said stands there as it was said, before and after pruning, and no phrase is marked: the
paper marks by hand, and here a reader may. `Said` has the figures that `figures.qualitative` draws
of scenes, under the same names:

    figures = Said(photos) if photos else qualitative
    figures.descriptions(table, "plain", vlm)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from redlib.figures import style
from redlib.figures.qualitative import SORT_FIGURE
from redlib.figures.veil import kept_patches, veiled
from redlib.models import VLM
from redlib.study.describing import FULL, PRUNED, SIDES

SHOWN = 2
"""Images whose texts are drawn."""

_MOST = 900  # characters of a text that are drawn


@dataclass(frozen=True)
class Said:
    """Figures 12 to 14 of pictures, with their texts.

    pictures: image -> one with `image`: photographs of a data set, or of the reader's folder.
    """

    pictures: Mapping[str, Any]

    def descriptions(self, table: pd.DataFrame, sort: str, vlm: VLM) -> Figure:
        """Figures 12 and 13; rows of `study.describing.describe`; sort: which budget."""
        return said(table[table["scenes"] == sort], "description", vlm, self.pictures)

    def descriptions_note(self, table: pd.DataFrame, sort: str, *, model: str) -> dict:
        part = table[table["scenes"] == sort]
        tokens = int(part.loc[part["side"] == PRUNED, "tokens"].iloc[0])
        title = f"Descriptions before and after pruning to {tokens} tokens"
        item = SORT_FIGURE[sort][1]
        return said_note(part, "description", title=title, model=model, item=item)

    def game(self, table: pd.DataFrame, vlm: VLM) -> Figure:
        """Figure 14; rows of `study.spotting.play`."""
        return said(table, "answer", vlm, self.pictures)

    def game_note(self, table: pd.DataFrame, *, model: str) -> dict:
        title = "Spot the difference, on pictures of a folder"
        return said_note(table, "answer", title=title, model=model, item="Figure 14")


@style.styled
def said(table: pd.DataFrame, text: str, vlm: VLM, pictures: Mapping[str, Any]) -> Figure:
    """The first images with what goes covered, and what is said with all tokens and with the rest.

    table: rows with image, side, tokens, kept and the column `text`. pictures: image -> one with
    `image`.
    """
    images = list(table["image"].unique())[:SHOWN]
    figure = style.figure(9.8, 4.2 * len(images))
    rows = figure.subplots(len(images), 3, squeeze=False, width_ratios=(1, 1.05, 1.05))
    for axes, name in zip(rows, images, strict=True):
        of = table[table["image"] == name].set_index("side")
        stays = kept_patches(of.loc[PRUNED, "kept"], vlm.grid)
        picture: Image.Image = vlm.view(pictures[name].image)
        veiled(axes[0], picture, stays, vlm.grid)
        axes[0].set_anchor("N")
        axes[0].set_title(f"kept: {int(stays.sum())} of {vlm.grid.size}")
        for ax, side in zip(axes[1:], SIDES, strict=True):
            row = of.loc[side]
            _written(ax, row[text], "all" if side == FULL else str(int(row["tokens"])))
    return figure


def _written(ax: Axes, text: str, tokens: str) -> None:
    ax.axis("off")
    ax.set_title(f"{tokens} tokens", fontsize=10)
    shown = text if len(text) <= _MOST else f"{text[:_MOST].rstrip()} ..."
    lines = [line for part in shown.splitlines() for line in wrap(part, 46) or [""]]
    ax.text(0, 0.97, "\n".join(lines) or "(nothing)", va="top", fontsize=8)


def said_note(table: pd.DataFrame, text: str, *, title: str, model: str, item: str) -> dict:
    """Texts of `said`."""
    length = table.groupby("side", sort=False)[text].apply(lambda told: told.str.split().str.len())
    words = length.groupby("side", sort=False).mean()
    told = ", ".join(f"{words[side]:.0f} words with {side} tokens" for side in SIDES)
    images = table["image"].nunique()
    return {
        "title": title,
        "caption": (
            f"The first {min(SHOWN, images)} of {images} photographs; patches that go are covered. "
            "What is said is not judged: there is no truth to hold it against, so nothing is "
            f"marked and nothing counted. The CSV file has all of it. Drawn with {model}."
        ),
        "reading": (
            "Read both texts against the image: what is in the first alone was lost with the "
            "covered patches, what is in the second alone came without them. Two images decide "
            "nothing."
        ),
        "alt": f"Descriptions of {told} on average.",
        "paper_item": item,
    }
