"""Figures of single images (notebook 07), each with the function that writes its texts.

What is right is blue with a tick, what is wrong red with a cross, what is vague grey with a tilde:
the sign alone tells them apart. What is said of photographs nobody can mark: `figures.photographs`.
"""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from redlib.figures import style
from redlib.figures.ablation import ALIKE, say_alike
from redlib.figures.veil import kept_patches, veiled
from redlib.geometry import Grid
from redlib.models import VLM
from redlib.study.describing import (
    FULL,
    PRUNED,
    RIGHT,
    RULE,
    SIDES,
    VAGUE,
    WRONG,
    left_out,
    marked,
)
from redlib.study.qualitative import CATEGORIES, METHODS, OBJECTS, START, Example
from redlib.study.spotting import counted
from redlib.study.verdict import bounds
from redlib.tables import readable
from redlib.tabletop.pairs import clause, differences_named
from redlib.tabletop.pairs import redraw as redraw_pair
from redlib.tabletop.world import Scene, redraw

DESCRIBED = 2
"""Scenes of a sort, or composites, whose texts are drawn."""

_LOOK = {RIGHT: ("blue", "\u2713"), VAGUE: ("grey", "~"), WRONG: ("red", "\u2717")}
_SIDE = {FULL: ("black", "D"), PRUNED: ("blue", "o")}
SORT_FIGURE = {"text-rich": ("Figure 10", "Figure 12"), "plain": ("Figure 11", "Figure 13")}
"""The paper's figures of kept patches and of descriptions, of either sort."""


@style.styled
def examples(shown: Sequence[Example], grid: Grid) -> Figure:
    """Figures 10 and 11: a row per scene, its picture and what each method keeps and answers."""
    figure = style.figure(9.8, 3.4 * len(shown))
    rows = figure.subplots(len(shown), 1 + len(METHODS), squeeze=False)
    for axes, one in zip(rows, shown, strict=True):
        style.image_panel(axes[0], one.view, grid)
        asked = one.answers.drop_duplicates("question")
        axes[0].set_title("image")
        lines = [
            f"{n}. {row.question.split(' Please')[0]}\n    ({row.gold})"
            for n, row in enumerate(asked.itertuples(), start=1)
        ]
        _below(axes[0], "\n".join(lines))
        for ax, (method, name) in zip(axes[1:], METHODS.items(), strict=True):
            stays = one.kept[method]
            veiled(ax, one.view, stays, grid)
            ax.set_title(f"{name}: {int(stays.sum())}")
            part = one.answers[one.answers["method"] == method]
            for n, row in enumerate(part.itertuples(), start=1):
                tint, sign = _LOOK[RIGHT if row.correct else WRONG]
                text = f"{n}. {sign} {_short(row.answer, 20) or '(nothing)'}"
                _below(ax, text, line=n - 1, tint=tint)
    return figure


def examples_note(shown: Sequence[Example], sort: str, *, model: str, tokens: int) -> dict:
    frame = pd.concat([one.answers for one in shown])
    right = frame.groupby("method")["correct"].agg(["sum", "size"])
    real = not shown[0].informative
    held = {m: "" for m in METHODS}
    if not real:
        share = {m: np.mean([one.informative[m] for one in shown]) for m in METHODS}
        held = {m: f", {share[m]:.0%} of its patches show something" for m in METHODS}
    told = "; ".join(
        f"{name} answers {right.loc[m, 'sum']} of {right.loc[m, 'size']} right{held[m]}"
        for m, name in METHODS.items()
    )
    rule = _first(len(shown), sort)
    rule += "" if sort == "text-rich" else " and of which MME asks what is there"
    if real:
        rule = f"The first {len(shown)} images that the seed draws of MME's {CATEGORIES[sort]}"
    standing = "the objects and the card with the word" if sort == "text-rich" else "the objects"
    return {
        "title": f"What three methods keep: {sort} scenes",
        "caption": (
            f"{rule}, chosen by that rule and not by any answer, with {tokens} visual tokens; "
            "patches that go are covered. One of PruMerge's tokens stands for no patch, it "
            "sums up what was dropped. FastV chooses by the question, its map is that of question "
            "1, and keeps its tokens behind layer 2. "
            "In brackets the truth; a tick: right, a cross: wrong. Drawn with "
            f"{model}; the paper shows LLaVA-1.5-7B on MMBench and MME."
        ),
        "reading": (
            f"A method that spends its budget well leaves {standing} standing. A handful of images "
            "decides nothing: whether it does so in general is counted in notebook 06."
        ),
        "alt": f"{told}.",
        "paper_item": SORT_FIGURE[sort][0],
    }


def _first(n: int, sort: str) -> str:
    """Which scenes of a sort are shown."""
    word = "with" if sort == "text-rich" else "without"
    return (
        f"The first {n} test scenes {word} a written word from number {START:,} on that have "
        f"{OBJECTS} objects or more"
    )


@style.styled
def descriptions(table: pd.DataFrame, sort: str, vlm: VLM) -> Figure:
    """Figures 12 and 13: the first described scenes of a sort, phrase by phrase.

    table: rows of `study.describing.describe`.
    """
    part = table[table["scenes"] == sort]
    images = list(part["image"].unique())[:DESCRIBED]
    sides = [part[part["image"] == name].set_index("side") for name in images]
    texts = [
        [_phrases(of.loc[side, "description"], redraw(name)) for side in SIDES]
        for name, of in zip(images, sides, strict=True)
    ]
    heights = [0.4 + max(_PICTURE, *(_LINE * len(text) for text in both)) for both in texts]
    figure = style.figure(9.8, sum(heights))
    rows = figure.subplots(
        len(images), 3, squeeze=False, width_ratios=(0.7, 1.15, 1.15), height_ratios=heights
    )
    for axes, name, of, both in zip(rows, images, sides, texts, strict=True):
        stays = kept_patches(of.loc[PRUNED, "kept"], vlm.grid)
        veiled(axes[0], vlm.view(redraw(name).image), stays, vlm.grid)
        axes[0].set_anchor("N")
        axes[0].set_title(f"kept: {int(stays.sum())} of {vlm.grid.size}")
        for ax, side, text in zip(axes[1:], SIDES, both, strict=True):
            row = of.loc[side]
            tokens = "all" if side == FULL else int(row["tokens"])
            title = f"{tokens} tokens: {row['omitted']} omitted, {row['invented']} invented"
            _listed(ax, text, title)
    return figure


def _phrases(description: str, scene: Scene) -> list[tuple[str, str, bool]]:
    """Lines of a description, phrase by phrase, and what it owes."""
    owed = left_out(description, scene)
    return _lines(
        marked(description, scene) or [("(nothing)", VAGUE)],
        f"owed: {', '.join(owed)}" if owed else "nothing owed",
    )


def descriptions_note(table: pd.DataFrame, sort: str, *, model: str) -> dict:
    part = table[table["scenes"] == sort]
    images = list(part["image"].unique())[:DESCRIBED]
    drawn = part[part["image"].isin(images)]
    told = []
    for side in SIDES:
        of = drawn[drawn["side"] == side]
        marks = [m for r in of.itertuples() for _, m in marked(r.description, redraw(r.image))]
        counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in _LOOK)
        told.append(f"{'all' if side == FULL else int(of['tokens'].mean())} tokens: {counts}")
    return {
        "title": f"Descriptions before and after pruning: {sort} scenes",
        "caption": (
            f"{_first(len(images), sort)}; patches that go are covered. Each phrase by the scene's "
            "graph: a tick, an object is just so; a cross, something in it is not in the scene; a "
            "tilde, nothing is false but it leaves out colour or size, joins two objects or "
            "repeats one. A noun in brackets: left out in the sentence, understood from the phrase "
            "before. Places are not judged. Invented: tuples that the scene does not have, or that "
            "are said more often than they are true. Owed: tuples left out"
            + (", the word included, which is asked for by itself" if sort == "text-rich" else "")
            + f". Drawn with {model}; the paper shows LLaVA-Next-8B on photographs and marks them "
            "by hand."
        ),
        "reading": (
            "If pruning costs no detail, the right column has the ticks of the middle one; if it "
            "takes inventions away, it has fewer crosses. The counts below decide, not these."
        ),
        "alt": "Phrases with " + "; ".join(told) + ".",
        "paper_item": SORT_FIGURE[sort][1],
    }


@style.styled
def described(changed: pd.DataFrame) -> Figure:
    """Omitted and invented tuples with all and with fewer tokens, and the change; rows of
    `study.describing.changes`."""
    figure = style.figure(9.4, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(changed))
    _sides(left, changed, y, scale=100)
    _change(right, changed, y, scale=100)
    left.set_yticks(y, [f"{r.scenes}, {r.kind}\n(n = {r.images})" for r in changed.itertuples()])
    left.invert_yaxis()
    left.set_xlabel("tuples, % of the true ones")
    right.set_xlabel("pruned minus full, percentage points")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def described_note(changed: pd.DataFrame, *, model: str) -> dict:
    told = "; ".join(
        f"{r.scenes}, {r.kind}: {r.full:.1%} with all, {r.pruned:.1%} with {r.tokens:.0f} tokens, "
        f"{_points(r)}"
        for r in changed.itertuples()
    )
    kept = ", ".join(
        f"{part['tokens'].iloc[0]:.0f} ({sort})" for sort, part in changed.groupby("scenes")
    )
    return {
        "title": "What descriptions omit and invent",
        "caption": (
            f"Tuples of {int(changed['images'].min())} scenes of each sort: the first {RULE}. "
            "Unit: tuples per true tuple of the scene, mean over images; change: pruned minus "
            "full, image by image; 95 % intervals from resampling images. Tokens kept by Ours, R "
            f"lowest: {kept}. Computed with {model}; the paper counts nothing, its Figures 12 and "
            "13 show three images."
        ),
        "reading": (
            "Left of the dashed line pruning omits or invents less. The paper's claims need plain "
            "omissions hardly right of it, and inventions, and on text-rich scenes omissions too, "
            "wholly left. A description that says less invents less as well, so read both kinds "
            "together."
        ),
        "alt": f"{told}.",
        "paper_item": "Figures 12 and 13",
    }


def answers_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every description, of scenes with its counts; rows of `study.describing.describe`."""
    counted = {"true": "True tuples", "said": "Said", "omitted": "Omitted", "invented": "Invented"}
    sort = "Scenes"
    if table["true"].isna().all():
        counted, sort = {}, "Sort"
    return readable(
        table,
        {
            "image": "Image",
            "scenes": sort,
            "tokens": "Tokens",
            "description": "Description",
        }
        | counted,
    )


def answers_note(table: pd.DataFrame, *, model: str) -> dict:
    invented, omitted, true = (table[name].sum() for name in ("invented", "omitted", "true"))
    counts = f" with {invented:.0f} invented and {omitted:.0f} omitted of {true:.0f} tuples"
    if table["true"].isna().all():
        counts = ""
    return {
        "title": "All descriptions",
        "caption": (
            f"Every description behind the counts, {table['image'].nunique()} images, two each. "
            f"Computed with {model}; the paper's descriptions are LLaVA-Next's, of photographs."
        ),
        "reading": (
            "Two rows of one image differ by pruning alone. The column with the kept tokens is in "
            "the CSV file."
        ),
        "alt": f"{len(table)} descriptions{counts}.",
        "paper_item": "Figures 12 and 13",
    }


@style.styled
def game(table: pd.DataFrame, vlm: VLM) -> Figure:
    """Figure 14: the first composites and the differences named; rows of `study.spotting.play`."""
    images = list(table["image"].unique())[:DESCRIBED]
    figure = style.figure(9.8, 2.9 * len(images))
    rows = figure.subplots(len(images), 3, squeeze=False, width_ratios=(1.3, 1, 1))
    for axes, name in zip(rows, images, strict=True):
        one = redraw_pair(name)
        of = table[table["image"] == name].set_index("side")
        stays = kept_patches(of.loc[PRUNED, "kept"], vlm.grid)
        veiled(axes[0], one.image, stays, vlm.grid)
        axes[0].set_aspect(one.image.height / one.image.width)
        axes[0].set_anchor("N")
        axes[0].set_title(f"kept: {int(stays.sum())} of {vlm.grid.size}")
        _below(axes[0], "\n".join(wrap("planted: " + one.answer, 48)))
        for ax, side in zip(axes[1:], SIDES, strict=True):
            row = of.loc[side]
            planted, found, invented = counted(row["answer"], one)
            named = sorted(differences_named(row["answer"]))
            lines = [(clause(*d), RIGHT if d in one.differences else WRONG) for d in named]
            said = _short(row["answer"], 90) or "(nothing)"
            tokens = "all" if side == FULL else int(row["tokens"])
            _listed(
                ax,
                _lines(lines or [(f"names no difference: {said}", VAGUE)], ""),
                f"{tokens} tokens: {found} of {planted} found, {invented} invented",
            )
    return figure


def game_note(table: pd.DataFrame, *, model: str) -> dict:
    images = list(table["image"].unique())[:DESCRIBED]
    drawn = table[table["image"].isin(images)].groupby("side", sort=False)[
        ["planted", "found", "invented"]
    ]
    told = "; ".join(
        f"{side}: {row['found']} of {row['planted']} found, {row['invented']} invented"
        for side, row in drawn.sum().iterrows()
    )
    return {
        "title": "Spot the difference",
        "caption": (
            f"The first {len(images)} composites of the test split from number {START:,} on, seen "
            "through the base tile, and the differences that the model names in answer to the "
            "paper's prompt; patches that go are covered. A tick: planted, a cross: invented. "
            f"Drawn with {model}; the paper shows LLaVA-OneVision-7B on pictures of a game."
        ),
        "reading": "More ticks and fewer crosses on the right would be what the paper shows.",
        "alt": f"{told}.",
        "paper_item": "Figure 14",
    }


@style.styled
def spotted(changed: pd.DataFrame) -> Figure:
    """Differences found and invented with all and with fewer tokens, and the change; rows of
    `study.spotting.changes`."""
    figure = style.figure(9.4, 2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(changed))
    _sides(left, changed, y)
    _change(right, changed, y)
    left.set_yticks(y, [f"{r.kind}\n(n = {r.images})" for r in changed.itertuples()])
    left.set_ylim(len(y) - 0.5, -0.5)
    left.set_xlabel("differences per image")
    right.set_xlabel("pruned minus full, differences per image")
    right.xaxis.set_major_locator(MaxNLocator(5))  # their labels have many digits
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def spotted_note(changed: pd.DataFrame, *, model: str) -> dict:
    planted, images, tokens = (changed[name].iloc[0] for name in ("planted", "images", "tokens"))
    told = "; ".join(
        f"{r.kind} {r.full:.3f} with all, {r.pruned:.3f} with {r.tokens:.0f} tokens, "
        + (ALIKE if _alike(r) else f"change {r.change:+z.3f} ({r.low:+z.3f} to {r.high:+z.3f})")
        for r in changed.itertuples()
    )
    return {
        "title": "Differences found and invented",
        "caption": (
            f"{images} composites with {planted:.2f} planted differences on average, all tokens "
            f"against the {tokens:.0f} that Ours keeps. Unit: differences per image; change: "
            "pruned minus full, image by image; 95 % intervals from resampling images. By chance, "
            f"with the answer to the next image, {changed['chance'].iloc[0]:.3f} would be found. "
            f"Computed with {model}; the paper counts nothing, its Figure 14 shows two images."
        ),
        "reading": (
            "The claims need found right of the dashed line and invented left of it. Where no more "
            "is found with all tokens than by chance, the model does not play the game, and a "
            "change says nothing about redundant tokens: the claims stay undecided."
        ),
        "alt": f"Differences per image: {told}.",
        "paper_item": "Figure 14",
    }


def _alike(row: object) -> bool:
    return row.change == row.low == row.high == 0


def _points(row: object) -> str:
    return (
        ALIKE if _alike(row) else f"{100 * row.change:+z.1f} points ({bounds(row.low, row.high)})"
    )


def _below(ax: Axes, text: str, *, line: int = 0, tint: str = "black") -> None:
    """Text under a panel, as its label, so that the layout makes room."""
    ax.annotate(
        text, (0, 0), xycoords="axes fraction", xytext=(0, -6 - 15 * line),
        textcoords="offset points", va="top", fontsize=9.5, color=style.COLOURS[tint],
        linespacing=1.25,
    )  # fmt: skip


_LINE, _PICTURE = 0.2, 2.2
"""Inches: height of a line of text, and of a picture beside descriptions."""


def _lines(phrases: Sequence[tuple[str, str]], last: str) -> list[tuple[str, str, bool]]:
    """Phrases with their marks, and a last text without one, as lines that fit into a column: text,
    mark, and whether a phrase begins there."""
    lines = [
        (part, mark, n == 0) for text, mark in phrases for n, part in enumerate(wrap(text, 38))
    ]
    return lines + [(part, "", False) for part in wrap(last, 42)]


def _listed(ax: Axes, lines: Sequence[tuple[str, str, bool]], title: str) -> None:
    """Lines under each other, phrases with sign and colour of their mark, what has none in grey."""
    ax.axis("off")
    ax.set_title(title, fontsize=10)
    for n, (text, mark, first) in enumerate(lines):
        tint, sign = _LOOK.get(mark, ("grey", ""))
        how = {"textcoords": "offset points", "va": "top", "color": style.COLOURS[tint]}
        y = -3 - 72 * _LINE * n
        if first:
            ax.annotate(sign, (0, 1), (0, y), "axes fraction", fontweight="bold", **how)
        ax.annotate(text, (0, 1), (18 if mark else 0, y), "axes fraction", fontsize=9.5, **how)


def _sides(ax: Axes, changed: pd.DataFrame, y: np.ndarray, *, scale: float = 1) -> None:
    """The value of either side with its interval."""
    for shift, side in zip((-0.12, 0.12), SIDES, strict=True):
        tint, marker = _SIDE[side]
        value, low, high = (scale * changed[f"{side}{end}"] for end in ("", "_low", "_high"))
        ax.errorbar(
            value, y + shift, xerr=[value - low, high - value], fmt=marker, lw=1.6,
            color=style.COLOURS[tint], label="all tokens" if side == FULL else "pruned",
            clip_on=False,
        )  # fmt: skip
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)


def _change(ax: Axes, changed: pd.DataFrame, y: np.ndarray, *, scale: float = 1) -> None:
    """The paired change with its interval."""
    value, low, high = (scale * changed[name] for name in ("change", "low", "high"))
    ax.errorbar(
        value, y, xerr=[value - low, high - value], fmt="o", lw=1.6, color=style.COLOURS["blue"]
    )
    say_alike(ax, changed[["change", "low", "high"]], y)
    ax.axvline(0, color=style.COLOURS["black"], lw=1, ls="--")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="y", visible=False)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
