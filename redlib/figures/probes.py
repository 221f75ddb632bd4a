"""Figures of notebooks 01 to 03: what tokens say alone, and what their absence changes.

One function a figure: the rows that `redlib.study` makes (and the model's view of the image) in, a
matplotlib figure out. No function computes a result; what a caption says of the numbers is built in
`redlib.figures.probe_notes` from the same rows.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from redlib.figures.style import (
    COLOURS,
    faded,
    figure,
    image_panel,
    ink,
    layer_name,
    outline,
    over_windows,
    patch_map,
    styled,
)
from redlib.geometry import Grid
from redlib.study.probing import GROUPS

PAIRS = {
    "attention and what it adds": ("blue", "o"),
    "attention and removal": ("red", "s"),
    "what it adds and removal": ("green", "^"),
}
LETTERS_PER_WORD = 5
BAR_ROOM = 0.22
"""Inches between rows of panels, for the colour bars that hang below a panel."""
PAIR_COLOURS = {"A": COLOURS["red"], "B": COLOURS["blue"]}


# --- 01 ------------------------------------------------------------------------------------------


@styled
def rankings(picture: Image.Image, table: pd.DataFrame, shares: pd.DataFrame, grid: Grid) -> Figure:
    """Three rankings of one image's patches, where they agree, and how often they do over scenes.

    table: columns patch, attention_rank, contribution_rank, removal_rank (shares, 1 is the top) and
    votes (0..3), one image. shares: the rows of `probing.disagreement`.
    """
    drawn = figure(10, 7.8)
    drawn.get_layout_engine().set(h_pad=BAR_ROOM)
    axes = drawn.subplots(2, 3)
    image_panel(axes[0, 0], picture, grid)
    axes[0, 0].set_title("The image")
    patches = table["patch"].to_numpy()
    for ax, (column, title) in zip(
        (axes[0, 1], axes[0, 2], axes[1, 0]),
        {
            "attention_rank": "Attention score",
            "contribution_rank": "What it adds",
            "removal_rank": "What its removal changes",
        }.items(),
        strict=True,
    ):
        values = over_windows(table[column], patches, grid)
        patch_map(
            ax, picture, values, grid, norm=colors.Normalize(0, 1),
            label="rank in the image (1 = largest)",
        )  # fmt: skip
        ax.set_title(title)
    steps = colors.BoundaryNorm(np.arange(-0.5, 4), 256)
    bar = patch_map(
        axes[1, 1], picture, over_windows(table["votes"], patches, grid), grid, cmap="cividis",
        norm=steps, label="rankings with it in their upper quarter",
    )  # fmt: skip
    bar.set_ticks([0, 1, 2, 3])
    axes[1, 1].set_title("Where they agree")
    _votes_panel(axes[1, 2], shares)
    return drawn


def _votes_panel(ax: Axes, shares: pd.DataFrame) -> None:
    rows = shares[shares["top_of"] != "disagree"]
    place = np.arange(len(rows))
    ax.bar(place, 100 * rows["share"], width=0.6, color=COLOURS["blue"], label="measured")
    _whiskers(ax, place, rows, "share", scale=100)
    ax.plot(
        place, 100 * rows["chance"], linestyle="none", marker="D", markersize=7,
        markerfacecolor="white", markeredgecolor=COLOURS["red"], markeredgewidth=2,
        label="unrelated rankings",
    )  # fmt: skip
    ax.set_xticks(place, rows["top_of"])
    ax.set_xlabel("rankings with a patch in the upper quarter")
    ax.set_ylabel("share of patches (%)")
    ax.set_title(f"Over {rows['images'].max()} scenes")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right")


@styled
def agreement(table: pd.DataFrame, *, layers: Sequence[int], depth: int) -> Figure:
    """Rank correlations of the three rankings by layer; rows of `probing.agreement`."""
    drawn = figure(8, 4.2)
    ax = drawn.subplots()
    names = dict(zip(("shallow", "middle", "deep"), layers, strict=True))
    order = [*names, "sum"]
    for shift, (pair, (colour, marker)) in zip((-0.16, 0, 0.16), PAIRS.items(), strict=True):
        rows = table[table["pair"] == pair].set_index("layer").loc[order]
        at = np.arange(len(order)) + shift
        ax.errorbar(
            at, rows["rho"], yerr=[rows["rho"] - rows["low"], rows["high"] - rows["rho"]],
            fmt=marker, color=COLOURS[colour], label=pair, markersize=8,
        )  # fmt: skip
    ax.axhline(0, color=COLOURS["black"], linewidth=1)
    ax.set_ylim(min(-0.2, table["low"].min() - 0.05), 1.02)
    labels = [f"{name}\n{layer_name(layer, depth)}" for name, layer in names.items()]
    ax.set_xticks(range(len(order)), [*labels, "sum of the three\n"])
    ax.set_xlabel("decoder layer whose attention is read")
    ax.set_ylabel("Spearman correlation\nwithin an image")
    ax.set_title("Do the rankings agree?")
    drawn.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    ax.grid(axis="x", visible=False)
    return drawn


@styled
def layer_ranks(summary: pd.DataFrame) -> Figure:
    """Rank of the current and the next token under the head by layer; `probing.rank_summary`."""
    drawn = figure(10, 4)
    left, right = drawn.subplots(1, 2)
    for quantity, name, colour, marker in (
        ("rank_current", "current token", "orange", "s"),
        ("rank_next", "next token", "blue", "o"),
    ):
        rows = summary[summary["quantity"] == quantity]
        _band(left, rows, COLOURS[colour], marker, name)
    left.set_yscale("log")
    top = max(summary.loc[summary["quantity"] != "lead", "high"].max(), 10)
    left.set_ylim(top * 1.3, 0.8)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("median rank under the head\n(1 = best, at the top)")
    left.set_title("Which token does a state speak for?")
    left.legend(loc="best")
    _band(right, summary[summary["quantity"] == "lead"], COLOURS["green"], "D", "", scale=100)
    right.axhline(50, color=COLOURS["grey"], linestyle="--", linewidth=1)
    right.set_ylim(-3, 103)
    right.set_ylabel("positions where the next token\noutranks the current one (%)")
    right.set_title("When does the next one lead?")
    layers = sorted(summary["layer"].unique())
    for ax in (left, right):
        ax.set_xlabel("after decoder layer (0 = input embedding)")
        ax.set_xticks(layers if len(layers) <= 12 else layers[::4])
    return drawn


@styled
def pipeline(
    picture: Image.Image,
    patch: int,
    candidates: pd.DataFrame,
    row: pd.Series,
    grid: Grid,
    *,
    weights: Sequence[float],
    prompt: str,
    shown: int = 4,
) -> Figure:
    """The two experiments on one real token (Figure 2).

    candidates: rows of `subjects.single_candidates` and `subjects.pair_candidates` of that patch.
    row: its row of `subjects.measure`.
    """
    drawn = figure(10, 7.6)
    grid_spec = drawn.add_gridspec(
        3, 5, width_ratios=(1.25, 1.25, 0.55, 1.9, 1.55), height_ratios=(1, 1, 1)
    )
    window = [int(index) for index in grid.window(patch)]
    steps = (
        ("single", "A  One token alone", "the image", "the one token"),
        ("region", "B  One token in its region", "its 3 x 3 region", "without the token"),
        ("global", "C  The region in the image", "the image", "without the region"),
    )
    for line, (level, title, first, second) in enumerate(steps):
        intact, changed, arrow, bars, text = (
            drawn.add_subplot(grid_spec[line, column]) for column in range(5)
        )
        if level == "single":
            image_panel(intact, picture, grid)
            outline(intact, grid, patch, colour=COLOURS["red"])
            _crop(changed, picture, grid, [patch], blank=[])
        elif level == "region":
            _crop(intact, picture, grid, window, blank=[])
            outline(intact, grid, patch, colour=COLOURS["red"])
            _crop(changed, picture, grid, window, blank=[patch])
        else:
            image_panel(intact, picture, grid)
            outline(intact, grid, patch, colour=COLOURS["red"], span=3)
            image_panel(changed, picture, grid)
            _blank(changed, grid, window)
        intact.set_title(title, pad=20)
        intact.text(0, 1.02, first, transform=intact.transAxes, fontsize=9.5, va="bottom")
        changed.text(0, 1.02, second, transform=changed.transAxes, fontsize=9.5, va="bottom")
        _language_model(arrow)
        _candidate_bars(bars, candidates[candidates["level"] == level].head(shown))
        text.axis("off")
        text.text(
            0.02, 0.5, _pipeline_text(level, row, weights), va="center", fontsize=10.5,
            linespacing=1.5, transform=text.transAxes,
        )  # fmt: skip
    drawn.suptitle(f"“{prompt}”", fontsize=10.5, style="italic", color=COLOURS["grey"])
    return drawn


def _pipeline_text(level: str, row: pd.Series, weights: Sequence[float]) -> str:
    if level == "single":
        return f"it says “{row['word']}”\ntop-1 probability {row['top1']:.2f}"
    if level == "region":
        return f"JSD region = {row['jsd_region']:.3g} nats"
    return (
        f"JSD global = {row['jsd_global']:.3g} nats\n\nJSD final\n= {weights[0]:g} x "
        f"{row['jsd_region']:.3g}\n + {weights[1]:g} x {row['jsd_global']:.3g}\n"
        f"= {row['jsd_final']:.3g} nats"
    )


def _language_model(ax: Axes) -> None:
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.add_patch(
        FancyBboxPatch(
            (0.18, 0.3),
            0.52,
            0.4,
            boxstyle="round,pad=0.06",
            facecolor="#E8EDF3",
            edgecolor=COLOURS["grey"],
            mutation_aspect=0.6,
        )  # fmt: skip
    )
    ax.text(0.44, 0.5, "LLM", ha="center", va="center", fontsize=10, fontweight="bold")
    for start, end in (((-0.12, 0.5), (0.12, 0.5)), ((0.77, 0.5), (1.05, 0.5))):
        ax.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=12,
                color=COLOURS["grey"],
                clip_on=False,
            )  # fmt: skip
        )


def _candidate_bars(ax: Axes, rows: pd.DataFrame) -> None:
    place = np.arange(len(rows))
    pairs = [("before", "as it is", COLOURS["blue"], -0.2)]
    if "after" in rows and rows["after"].notna().any():
        pairs.append(("after", "ablated", COLOURS["orange"], 0.2))
    height = 0.6 if len(pairs) == 1 else 0.36
    for column, label, colour, shift in pairs:
        at = place + (shift if len(pairs) == 2 else 0)
        ax.barh(at, rows[column], height=height, color=colour, label=label)
    ax.set_yticks(place, rows["word"])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability")
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    if len(pairs) == 2:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, handlelength=1)


def _crop(
    ax: Axes, picture: Image.Image, grid: Grid, patches: Sequence[int], *, blank: Sequence[int]
) -> None:
    """Only those patches of the picture, enlarged, in the coordinates of the whole grid."""
    image_panel(ax, picture, grid)
    rows, cols = zip(*(grid.row_col(patch) for patch in patches), strict=True)
    ax.set_xlim(min(cols), max(cols) + 1)
    ax.set_ylim(max(rows) + 1, min(rows))
    _blank(ax, grid, blank)


def _blank(ax: Axes, grid: Grid, patches: Sequence[int]) -> None:
    for patch in patches:
        row, col = grid.row_col(patch)
        ax.add_patch(
            Rectangle((col, row), 1, 1, facecolor="#3A3F46", edgecolor="white", linewidth=0.8)
        )


# --- 02 ------------------------------------------------------------------------------------------


@styled
def words(picture: Image.Image, table: pd.DataFrame, grid: Grid) -> Figure:
    """The decoded word and its probability on every patch (Figure 1, left)."""
    # Cells keep their size, so that the words of 27 columns fit as those of 24 do.
    wider = max(grid.width, 24) / 24
    drawn = figure(10 * wider, 12.8 * wider)
    above, below = drawn.subfigures(2, 1, height_ratios=(10.1, 2.7))
    ax = above.subplots()
    table = table.sort_values("patch")
    norm, cmap = colors.Normalize(0, 1), colormaps["YlGnBu"]
    image_panel(ax, faded(picture), grid)  # grey, so that a tint means its probability alone
    for row in table.itertuples():
        line, col = grid.row_col(row.patch)
        tint = cmap(norm(row.top1))
        ax.add_patch(
            Rectangle((col, line), 1, 1, facecolor=tint, alpha=0.8, edgecolor="white", lw=0.6)
        )
        colour = ink(tint)
        word = row.word[:LETTERS_PER_WORD] or "-"
        ax.text(col + 0.5, line + 0.36, word, ha="center", va="center", fontsize=7.6,
                color=colour, clip_on=True)  # fmt: skip
        ax.text(col + 0.5, line + 0.74, f"{100 * row.top1:.0f}", ha="center", va="center",
                fontsize=7.2, color=colour, fontweight="bold", clip_on=True)  # fmt: skip
    every = range(0, max(grid.height, grid.width), 4)
    ax.set_xticks([c + 0.5 for c in every if c < grid.width], [c for c in every if c < grid.width])
    ax.set_yticks(
        [r + 0.5 for r in every if r < grid.height],
        [r * grid.width for r in every if r < grid.height],
    )
    ax.set_xlabel("column; patch number = number of the row's first patch + column")
    ax.set_ylabel("number of the row's first patch")
    ax.set_title("The word each token says alone (first five letters) and its probability in %")
    shown, room = below.subplots(1, 2, width_ratios=(1, 2.6))
    image_panel(shown, picture, grid)
    shown.set_title("the image", fontsize=10)
    room.axis("off")
    bar = below.colorbar(
        ScalarMappable(norm, cmap), ax=room, location="bottom", shrink=0.9, aspect=30
    )
    bar.set_label("top-1 probability")
    return drawn


@styled
def state_maps(
    picture: Image.Image,
    table: pd.DataFrame,
    selected: pd.DataFrame,
    grid: Grid,
    *,
    layers: Sequence[int],
    depth: int,
) -> Figure:
    """The image with the selected patches, top-1 probability, [cls] similarity and three attention
    maps (Figure 1, right)."""
    drawn = figure(10, 8.4)
    drawn.get_layout_engine().set(h_pad=BAR_ROOM)
    axes = drawn.subplots(2, 3)
    table = table.sort_values("patch")
    image_panel(axes[0, 0], picture, grid)
    tints = dict(zip(GROUPS, (COLOURS["green"], COLOURS["red"]), strict=True))
    for group, rows in selected.groupby("group"):
        for patch in rows["patch"]:
            outline(axes[0, 0], grid, patch, colour=tints[group])
    for place, (group, tint) in enumerate(tints.items()):
        axes[0, 0].text(
            0.0, -0.05 - 0.09 * place, f"□ {group}", color=tint, fontweight="bold",
            transform=axes[0, 0].transAxes, va="top",
        )  # fmt: skip
    axes[0, 0].set_title("Selected patches")
    patch_map(
        axes[0, 1], picture, table["top1"], grid, norm=colors.Normalize(0, 1), label="probability"
    )
    axes[0, 1].set_title("Top-1 probability")
    patch_map(axes[0, 2], picture, table["cls_similarity"], grid, label="cosine")
    axes[0, 2].set_title("Similarity to [cls]")
    columns = ("attention_shallow", "attention_middle", "attention_deep")
    values = table[list(columns)].to_numpy()
    norm = colors.LogNorm(max(values.min(), values.max() * 1e-5), values.max())
    for ax, column, layer in zip(axes[1], columns, layers, strict=True):
        patch_map(ax, picture, table[column], grid, norm=norm, label="score (log scale)")
        ax.set_title(f"Attention, {layer_name(layer, depth)}")
    return drawn


@styled
def right_by_coverage(table: pd.DataFrame) -> Figure:
    """How often the decoded word is right by how much of the patch the object covers; rows of
    `probing.by_coverage`."""
    drawn = figure(10, 4.3)
    axes = drawn.subplots(1, 2, sharey=True)
    bins = list(dict.fromkeys(table.sort_values("low_edge")["bin"]))
    bins = sorted(bins, key=lambda name: (name != "0", name))
    for ax, asked in zip(axes, ("noun of the object there", "any noun of the image"), strict=True):
        part = table[table["asked"] == asked]
        for tokens, colour, marker, shift, name in (
            ("own", "blue", "o", -0.06, "the image's own token"),
            ("shuffled", "orange", "s", 0.06, "another image's token"),
        ):
            rows = part[part["tokens"] == tokens]
            at = np.array([bins.index(name) for name in rows["bin"]]) + shift
            ax.errorbar(
                at, 100 * rows["share"], color=COLOURS[colour], fmt=f"{marker}-", label=name,
                yerr=100 * np.array([rows["share"] - rows["low"], rows["high"] - rows["share"]]),
            )  # fmt: skip
        counts = part[part["tokens"] == "own"].set_index("bin")["patches"]
        labels = [f"{name}\nn = {counts[name]}" if name in counts else f"{name}\n" for name in bins]
        ax.set_xticks(range(len(bins)), labels)
        ax.set_xlim(-0.5, len(bins) - 0.5)
        ax.set_ylim(-3, 103)
        ax.set_xlabel("share of the patch that the object covers")
        ax.set_title(f"Word is the {asked}" if "there" in asked else f"Word is {asked}")
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("patches (%)")
    axes[0].legend(loc="upper left")
    return drawn


# --- 03 ------------------------------------------------------------------------------------------


@styled
def divergence_maps(
    picture: Image.Image, table: pd.DataFrame, pair: Sequence[int], grid: Grid
) -> Figure:
    """The divergence of 64 patches of one image at both levels and combined; the two patches of
    Figure 3 are framed."""
    drawn = figure(10, 3.9)
    axes = drawn.subplots(1, 4)
    image_panel(axes[0], picture, grid)
    axes[0].set_title("The image")
    for ax, column, title in zip(
        axes[1:],
        ("jsd_region", "jsd_global", "jsd_final"),
        ("Token in region", "Region in image", "Final (eq. 11)"),
        strict=True,
    ):
        values = over_windows(_positive(table[column]), table["patch"], grid)
        patch_map(ax, picture, values, grid, log=True, label="divergence (nats)")
        ax.set_title(title)
    for ax in axes:
        for name, patch in zip("AB", pair, strict=True):
            outline(ax, grid, patch, colour=PAIR_COLOURS[name], span=3, text=name, width=1.6)
    return drawn


@styled
def contrast(
    picture: Image.Image,
    table: pd.DataFrame,
    pair: Sequence[int],
    candidates: pd.DataFrame,
    grid: Grid,
    *,
    shown: int = 7,
) -> Figure:
    """Two contrasting patches: candidates' logits before and after ablation (Figure 3).

    table: rows of `subjects.measure` of the image; pair: the two patches of
    `probing.contrast_pair`; candidates: rows of `subjects.pair_candidates`.
    """
    drawn = figure(10, 7)
    grid_spec = drawn.add_gridspec(2, 3, width_ratios=(1, 0.9, 0.9))
    levels = ("region", "global")
    shown_rows = candidates[candidates["place"] <= shown]
    reach = 1.08 * shown_rows.groupby("level")["diff"].agg(lambda diff: diff.abs().max())
    for line, (patch, name) in enumerate(zip(pair, "AB", strict=True)):
        tint = PAIR_COLOURS[name]
        row = table.set_index("patch").loc[patch]
        ax = drawn.add_subplot(grid_spec[line, 0])
        image_panel(ax, picture, grid)
        outline(ax, grid, patch, colour=tint, span=3, width=1.2)
        outline(ax, grid, patch, colour=tint)
        ax.set_title(f"{name}: patch {patch}, alone “{row['word']}”", color=tint)
        ax.text(
            0, -0.03,
            f"[cls] similarity {row['cls_similarity']:.3f}\nattention {row['attention']:.1e}\n"
            f"JSD final {row['jsd_final']:.1e} nats",
            transform=ax.transAxes, va="top", fontsize=10,
        )  # fmt: skip
        for column, level in enumerate(levels, start=1):
            ax = drawn.add_subplot(grid_spec[line, column])
            rows = shown_rows[(shown_rows["patch"] == patch) & (shown_rows["level"] == level)]
            _logit_changes(ax, rows, tint, reach[level] if reach[level] > 0 else 1.0)
            what = "token in its region" if level == "region" else "region in the image"
            ax.set_title(f"{what}\nJSD {row[f'jsd_{level}']:.1e} nats")
    return drawn


def _logit_changes(ax: Axes, rows: pd.DataFrame, colour: str, reach: float) -> None:
    """Candidates with their logits before and after, and the change as a bar."""
    place = np.arange(len(rows))
    ax.barh(place, -rows["diff"], color=colour, height=0.62)
    ax.axvline(0, color=COLOURS["black"], linewidth=1)
    ax.set_xlim(-reach, reach)
    logits = rows[["word", "logit_before", "logit_after"]].itertuples(index=False)
    ax.set_yticks(place, [f"{word}  {before:.2f} → {after:.2f}" for word, before, after in logits])
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.set_xlabel("change of the logit")
    ax.grid(axis="y", visible=False)


@styled
def token_against_region(
    picture: Image.Image, one: pd.DataFrame, table: pd.DataFrame, grid: Grid
) -> Figure:
    """One token ablated in the whole image beside its region (Figure 6).

    one: rows of `subjects.measure` of the drawn image; table: those of all scenes.
    """
    drawn = figure(10, 4.4)
    grid_spec = drawn.add_gridspec(1, 3, width_ratios=(1, 1, 1.5))
    columns = ("jsd_token", "jsd_global")
    names = ("One token ablated", "Its region ablated")
    positive = _positive(one[list(columns)].stack())
    norm = colors.LogNorm(positive.min(), positive.max())
    for place, (column, name) in enumerate(zip(columns, names, strict=True)):
        ax = drawn.add_subplot(grid_spec[0, place])
        values = over_windows(_positive(one[column]), one["patch"], grid)
        patch_map(ax, picture, values, grid, norm=norm, label="divergence (nats, log)")
        ax.set_title(name)
    ax = drawn.add_subplot(grid_spec[0, 2])
    pooled = _positive(table[list(columns)].stack())
    edges = np.geomspace(pooled.min(), pooled.max() * 1.001, 40)
    for column, colour, name in zip(
        columns, ("orange", "blue"), ("one token", "its region"), strict=True
    ):
        values = table[column]
        median = values.median()
        ax.hist(values, edges, color=COLOURS[colour], alpha=0.55, label=f"{name}: {median:.1e}")
        ax.hist(values, edges, color=COLOURS[colour], histtype="step", linewidth=1.5)
        ax.axvline(median, ymax=0.72, color=COLOURS[colour], linestyle="--")
    ax.set_xscale("log")
    ax.set_xlabel("divergence (nats, log scale)")
    ax.set_ylabel("patches")
    ax.set_title(f"{len(table)} patches of {table['image'].nunique()} scenes")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
    ax.legend(title="median (dashed)", loc="upper center")
    return drawn


@styled
def definitions(table: pd.DataFrame, *, tau_jsd: float) -> Figure:
    """The paper's divergence against the released one, patch by patch, with the threshold that the
    paper and the release both give."""
    drawn = figure(10, 4.4)
    axes = drawn.subplots(1, 3, sharex=True, sharey=True)
    x = table["jsd_final"]
    positive = _positive(table[["jsd_final", "jsd_final_released"]].stack())
    low, high = min(positive.min(), tau_jsd), max(positive.max(), tau_jsd)
    for ax, suffix, title, colour in zip(
        axes,
        ("_row6", "_row7", "_released"),
        ("10 candidates", "swapped, mean", "released: both"),
        ("blue", "green", "purple"),
        strict=True,
    ):
        y = _positive(table[f"jsd_final{suffix}"])
        ax.plot(_positive(x), y, ".", color=COLOURS[colour], alpha=0.45, markersize=5)
        ax.plot([low, high], [low, high], color=COLOURS["black"], linewidth=1)
        ax.axvline(tau_jsd, color=COLOURS["red"], linestyle="--", linewidth=1.5)
        ax.axhline(tau_jsd, color=COLOURS["red"], linestyle="--", linewidth=1.5)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(title)
        ax.set_xlabel("JSD final by the paper (nats)")
    axes[0].set_ylabel("JSD final, changed (nats)")
    axes[0].plot([], [], color=COLOURS["black"], linewidth=1, label="equal")
    axes[0].plot([], [], color=COLOURS["red"], linestyle="--", label=f"threshold {tau_jsd:g}")
    axes[0].legend(loc="lower right", frameon=True, framealpha=0.9)
    return drawn


def _positive(values: pd.Series) -> pd.Series:
    """Values for a log axis: what is zero or below, by rounding, is drawn at the smallest other."""
    above = values[values > 0]
    return values.clip(lower=above.min() if len(above) else 1e-12)


def _whiskers(ax: Axes, at: np.ndarray, rows: pd.DataFrame, column: str, *, scale: float) -> None:
    ax.errorbar(
        at, scale * rows[column], fmt="none", color=COLOURS["black"], linewidth=1.5,
        yerr=scale * np.array([rows[column] - rows["low"], rows["high"] - rows[column]]),
    )  # fmt: skip


def _band(
    ax: Axes, rows: pd.DataFrame, colour: str, marker: str, name: str, *, scale: float = 1
) -> None:
    ax.plot(rows["layer"], scale * rows["value"], f"{marker}-", color=colour, label=name or None)
    low, high = scale * rows["low"], scale * rows["high"]
    ax.fill_between(rows["layer"], low, high, color=colour, alpha=0.2, linewidth=0)
