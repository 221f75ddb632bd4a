"""Figures of the patch study (notebook 04).

Every drawing function has a `..._note` beside it that writes title, caption, reading and text
alternative from the same numbers, so that no sentence can claim what the picture does not show.
"""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from redlib.figures import style
from redlib.geometry import Grid
from redlib.study.patches import ORDERS, QUANTITIES, SCORES, TARGETS
from redlib.tables import readable, with_interval

_SHORT = {
    "top1": "top-1\nprobability",
    "jsd_final": "JSD\n(nats)",
    "attention": "attention\n(3 layers)",
    "attention_running": "running sum\nof attention",
    "cls_similarity": "[cls]\nsimilarity",
}
_TINT = {
    "top1": "blue",
    "jsd_final": "orange",
    "attention": "green",
    "attention_running": "green",
    "cls_similarity": "purple",
}
_LOG = ("jsd_final", "attention", "attention_running")


@style.styled
def by_rank(curves: pd.DataFrame) -> Figure:
    """Figure 4: mean per rank with 95 % interval; a column per order, a row per quantity."""
    orders = list(dict.fromkeys(curves["order"]))
    shown = [list(dict.fromkeys(curves.loc[curves["order"] == o, "quantity"])) for o in orders]
    figure = style.figure(9.4, 1.0 + 1.75 * len(shown[0]))
    axes = figure.subplots(len(shown[0]), len(orders), sharex=True, squeeze=False)
    for column, order in enumerate(orders):
        for row, quantity in enumerate(shown[column]):
            ax = axes[row, column]
            part = curves[(curves["order"] == order) & (curves["quantity"] == quantity)]
            tint = style.COLOURS[_TINT[quantity]]
            ax.fill_between(part["rank"], part["low"], part["high"], color=tint, alpha=0.2, lw=0)
            ax.plot(part["rank"], part["mean"], "o-", color=tint, lw=1, ms=3.2)
            # A log axis over less than a decade would have no labelled tick.
            span = curves.loc[curves["quantity"] == quantity, ["low", "high"]]
            if quantity in _LOG and 0 < 20 * span["low"].min() < span["high"].max():
                ax.set_yscale("log")
            # Where both columns show one quantity they share its scale.
            alike = len({names[row] for names in shown}) == 1
            if alike:
                low, high = span["low"].min(), span["high"].max()
                pad, log = 0.05 * (high - low), ax.get_yscale() == "log"
                ax.set_ylim((low / 1.3, high * 1.3) if log else (low - pad, high + pad))
            if alike and column > 0:
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel(_SHORT[quantity])
        axes[0, column].set_title(f"sorted by {ORDERS[order]}")
        axes[-1, column].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[-1, column].set_xlabel("rank within the image (1 = highest)")
    figure.align_ylabels(axes[:, 0])
    return figure


def by_rank_note(curves: pd.DataFrame, correlations: pd.DataFrame, *, model: str, n: str) -> dict:
    """Texts for `by_rank`; n: how many images and patches, in words."""
    found = []
    for order in ("cls_similarity", "attention"):
        for quantity in ("top1", "jsd_final"):
            row = _row(correlations, order, quantity, "mean curve")
            found.append(
                f"{QUANTITIES[quantity]} against {ORDERS[order]} {row['rho']:+z.2f} "
                f"({row['low']:+z.2f} to {row['high']:+z.2f})"
            )
    return {
        "title": "Outputs against intermediate states, patch by patch",
        "caption": (
            f"{n}, sorted within each image by falling [cls] similarity (left) or falling "
            f"text-to-image attention (right); points are means over images, bands 95 % intervals "
            f"from resampling images. Drawn with {model}; the paper's figure shows LLaVA-Next on "
            "VQAv2."
        ),
        "reading": (
            "The lower rows show what a column is sorted by, or the other state; the upper two "
            "show "
            "the outputs. If a state said what a token is worth, the upper curves would fall from "
            "left to right. Level or rising curves bear the paper out; a clear fall in either "
            "would "
            "falsify its statement for this model."
        ),
        "alt": (
            "Rank correlation of the mean curves with their order (+: falls with the rank): "
            + "; ".join(found)
            + "."
        ),
        "paper_item": "Figure 4",
    }


def correlations_table(correlations: pd.DataFrame) -> pd.DataFrame:
    """Every rank correlation, in words."""
    frame = correlations.assign(
        order=correlations["order"].map(ORDERS),
        quantity=correlations["quantity"].map(QUANTITIES),
        shown=with_interval(correlations, "rho", digits="+z.2f"),
    )
    heads = {
        "order": "Sorted by",
        "quantity": "Quantity",
        "reading": "Correlation of",
        "shown": "Spearman's rho [95% interval]",
        "images": "Images",
    }
    return readable(frame, heads)


def correlations_note(correlations: pd.DataFrame, *, model: str, n: str) -> dict:
    """Texts for the table of rank correlations."""
    within = correlations[correlations["reading"] == "within image"]
    strongest = within.iloc[int(within["rho"].abs().fillna(-1).to_numpy().argmax())]
    return {
        "title": "Rank correlations behind the curves",
        "caption": (
            "Spearman correlation of top-1 probability and JSD with what the patches are sorted "
            "by; "
            f"{n}. Within image: mean over images. Mean curve: of the averaged points. Intervals "
            f"resample images. Computed with {model}; the paper gives no correlations."
        ),
        "reading": (
            "Positive: the quantity falls with the order, as pruning by a state supposes. Near "
            "zero: "
            "the state says nothing about it. Negative: it says the opposite."
        ),
        "alt": (
            f"The strongest correlation within an image is {strongest['rho']:+z.2f}, of "
            f"{QUANTITIES[strongest['quantity']]} with {ORDERS[strongest['order']]}."
        ),
        "paper_item": "Figure 4",
    }


def running_sum_note(correlations: pd.DataFrame, *, model: str, n: str) -> dict:
    """Texts for `by_rank` drawn for attention and its running sum."""
    parts = []
    for order in ("attention", "attention_running"):
        row = _row(correlations, order, "top1", "mean curve")
        jsd = _row(correlations, order, "jsd_final", "mean curve")
        parts.append(f"by {ORDERS[order]}: top-1 {row['rho']:+z.2f}, JSD {jsd['rho']:+z.2f}")
    return {
        "title": "Each image by its own attention, and by the running sum",
        "caption": (
            f"{n}. Left: each image sorted by its own attention, as the paper describes. Right: "
            "image n sorted by the sum over images 1 to n, as the released notebook computes it; "
            "its attention row shows that sum. Points are means over images, bands 95 % intervals "
            f"from resampling images. Drawn with {model}; the paper's Figure 4 shows "
            "LLaVA-Next."
        ),
        "reading": (
            "Compare the columns. A running sum soon ranks places in the frame and no longer the "
            "patches of the image at hand, so a trend could vanish in it that is there on the "
            "left. "
            "If the left shows a fall and the right does not, the published picture owes its level "
            "curves to the sum."
        ),
        "alt": (
            "Rank correlation of the mean curve with the order (+: falls with the rank), "
            + "; ".join(parts)
            + "."
        ),
        "paper_item": "Figure 4, order by attention",
    }


@style.styled
def deciles(table: pd.DataFrame) -> Figure:
    """Mean top-1 probability in each tenth of the patches by [cls] similarity."""
    figure = style.figure(7.4, 3.6)
    ax = figure.subplots()
    tints = [style.COLOURS["red" if d == 1 else "blue"] for d in table["decile"]]
    ax.bar(table["decile"], table["mean"], color=tints, width=0.75)
    errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
    ax.errorbar(
        table["decile"],
        table["mean"],
        yerr=errors,
        fmt="none",
        ecolor=style.COLOURS["black"],
        lw=1.2,
    )
    ax.set_xticks(table["decile"])
    ax.set_xlabel("tenth of the image's patches by [cls] similarity (1 = most similar)")
    ax.set_ylabel("top-1 probability, mean")
    ax.grid(axis="x", visible=False)
    return figure


def deciles_note(table: pd.DataFrame, *, model: str, n: str) -> dict:
    first, rest = table.iloc[0], table.iloc[1:]["mean"].mean()
    return {
        "title": "What the tokens most similar to [cls] say alone",
        "caption": (
            f"Top-1 probability of the single-token probe per tenth of [cls] similarity; {n}. "
            "Bars: "
            f"means over images with 95 % intervals. Drawn with {model}; the paper's remark is "
            "about "
            "LLaVA-Next."
        ),
        "reading": (
            "The paper finds very low probabilities among the tokens most similar to [cls], here "
            "the first bar, and suspects registers, background patches that store what belongs "
            "elsewhere. A first bar as high as the others speaks against that for this model."
        ),
        "alt": (
            f"The highest tenth has a mean top-1 probability of {first['mean']:.2f} "
            f"({first['low']:.2f} to {first['high']:.2f}), the other nine {rest:.2f} on average."
        ),
        "paper_item": "Section 7.4",
    }


_TWO = {"pooled": ("blue", "o"), "within image": ("orange", "D")}


@style.styled
def areas(table: pd.DataFrame) -> Figure:
    """AUROC of each score with interval, pooled and within image; a panel per target."""
    figure = style.figure(10, 4.2)
    axes = figure.subplots(1, len(TARGETS), sharex=True, sharey=True)
    names = [name for name in SCORES if name in set(table["score"])]
    for ax, (target, title) in zip(axes, TARGETS.items(), strict=True):
        for shift, (reading, (tint, marker)) in zip((-0.14, 0.14), _TWO.items(), strict=True):
            part = table[(table["target"] == target) & (table["reading"] == reading)]
            part = part.set_index("score").reindex(names)
            y = np.arange(len(names)) + shift
            ax.errorbar(
                part["auroc"], y,
                xerr=[part["auroc"] - part["low"], part["high"] - part["auroc"]],
                fmt=marker, color=style.COLOURS[tint], lw=1.5, ms=6, label=reading,
            )  # fmt: skip
        ax.axvline(0.5, color=style.COLOURS["black"], lw=1, ls="--")
        ax.set_title(f"{fill(title, 24)}\n{_counts(table, target)}", fontsize=10.5)
        ax.set_xlabel("AUROC (0.5 = chance)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(names)), [SCORES[name] for name in names])
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9.5
    )
    return figure


def _counts(table: pd.DataFrame, target: str) -> str:
    """How many pooled patches a target is true of, and of how many others it is not."""
    first = table[(table["target"] == target) & (table["reading"] == "pooled")].iloc[0]
    return f"true: {first['positives']:.0f}, not: {first['negatives']:.0f}"


def areas_note(table: pd.DataFrame, *, model: str) -> dict:
    pooled = table[table["reading"] == "pooled"]
    parts = []
    for target, title in TARGETS.items():
        part = pooled[pooled["target"] == target].dropna(subset="auroc")
        part = part.sort_values("auroc", ascending=False)
        if part.empty:
            parts.append(f"{title}: not measurable, one kind of patch is missing")
            continue
        order = "; ".join(f"{SCORES[r.score]} {r.auroc:.2f}" for r in part.itertuples())
        parts.append(f"{title}: {order}")
    return {
        "title": "Which number knows where the objects are",
        "caption": (
            "Area under the ROC curve of each score for the scenes' truth, pooled over patches "
            "and as the mean over images, with 95 % intervals from resampling images; above each "
            "panel, how many pooled patches it is true of and of how many not. Patches that "
            "the object in question (left: any object) covers in part, by less than half, are left "
            "out; left also bare ones with a card (writing); right also all that no object covers "
            "by half. "
            "Attention is "
            'that under the one-word prompt, and where an object is asked about ("asked") that '
            "under the question as well; the other scores never see a question. The paper has no "
            f"such figure: photographs come without this truth. Drawn with {model}."
        ),
        "reading": (
            "Right of the dashed line, a score is higher on covered patches, left of it on the "
            "others; on the line it knows nothing. Findings 1 and 2 expect the two outputs on the "
            "right of [cls] similarity and attention. Overlapping intervals decide nothing. The "
            "panels ask more from left to right: in the second, telling objects from bare ground "
            "is most of the task; in the third it is none of it, and a score that never sees the "
            "question has little to go by."
        ),
        "alt": "Pooled areas, highest first. " + ". ".join(parts) + ".",
        "paper_item": "Findings 1 and 2",
    }


FEW = 5
"""An area over fewer patches than these, of either kind, is not drawn."""


@style.styled
def levels(table: pd.DataFrame) -> Figure:
    """AUROC of each score per number of objects; a panel per target."""
    figure = style.figure(10, 4.1)
    axes = figure.subplots(1, len(TARGETS), sharey=True)
    names = [name for name in SCORES if name in set(table["score"])]
    drawn = None
    for ax, (target, title) in zip(axes, TARGETS.items(), strict=True):
        part = table[table["target"] == target]
        grid = part.pivot(index="score", columns="level", values="auroc").reindex(names)
        least = part.assign(least=part[["positives", "negatives"]].min(axis=1))
        least = least.pivot(index="score", columns="level", values="least").reindex(names)
        few = (least < FEW) & grid.notna()
        grid = grid.mask(few)
        drawn = ax.imshow(grid, cmap=style.DIFFERENCE, vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(grid.shape):
            value = grid.iloc[row, column]
            if few.iloc[row, column]:
                ax.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, fill=False, hatch="///", lw=0,
                        edgecolor="#C9CED6",
                    )
                )  # fmt: skip
                continue
            text = "-" if np.isnan(value) else f"{value:.2f}"
            shade = "white" if np.isfinite(value) and abs(value - 0.5) > 0.33 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=9, color=shade)
        covered = part.groupby("level")["positives"].max().reindex(grid.columns)
        labels = [f"{level}\n({n})" for level, n in covered.items()]
        ax.set_xticks(range(grid.shape[1]), labels, fontsize=8.5)
        ax.set_title(fill(title, 24))
        ax.set_xlabel("objects in the scene\n(patches covered so)")
        ax.tick_params(axis="y", length=0)  # beside a panel a tick would look like a minus sign
        ax.grid(False)
        ax.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(names)), [SCORES[name] for name in names])
    figure.colorbar(drawn, ax=axes, label="AUROC (0.5 = chance)", shrink=0.9)
    return figure


def levels_note(table: pd.DataFrame, *, model: str) -> dict:
    part = table[(table["target"] == "object") & (table["score"] == "top1")].dropna(subset="auroc")
    told = ", ".join(f"{r.level}: {r.auroc:.2f}" for r in part.itertuples()) or "not measurable"
    return {
        "title": "Does it hold for easy and crowded scenes alike?",
        "caption": (
            "The pooled area under the ROC curve per difficulty level, the number of objects in "
            f"the scene. Hatched: true of fewer than {FEW} patches, or of all but so few. A dash: "
            "true of all patches or of none, or a score that has no question. Intervals and "
            f"numbers of patches in the CSV. Drawn with {model}; the "
            "paper has no such table."
        ),
        "reading": (
            "Orange and brown: lower on covered patches; purple: higher; white: chance. A "
            "finding that holds in one column only is a finding about those scenes, and a column "
            "of few patches may be luck."
        ),
        "alt": f"Area of the top-1 probability for covered patches by number of objects, {told}.",
        "paper_item": "Findings 1 and 2",
    }


@style.styled
def example(image: Image.Image, rows: pd.DataFrame, grid: Grid) -> Figure:
    """One image and its sampled patches: the truth, where it is known, two outputs, two
    intermediate states."""
    figure = style.figure(9.6, 7.8)
    figure.get_layout_engine().set(h_pad=0.3)
    axes = figure.subplots(2, 3)
    style.image_panel(axes[0, 0], image, grid)
    known = bool(rows["covered"].notna().all())
    axes[0, 0].set_title("scene, sampled patches" if known else "image, sampled patches")
    kind = np.where(rows["covered"] + rows["written"] == 0, "blue", "grey")
    kind = np.where(rows["covered"] >= 0.5, "red", kind)
    for patch, tint in zip(rows["patch"], kind, strict=True):
        row, column = grid.row_col(int(patch))
        tint = style.COLOURS[tint]
        axes[0, 0].plot(column + 0.5, row + 0.5, "s", ms=4.5, color=tint, mec="white", mew=0.7)
    kinds = (("red", "covered"), ("grey", "in part, or a card"), ("blue", "bare"))
    kinds = kinds if known else (("grey", "sampled; what covers it nobody knows"),)
    axes[0, 0].legend(
        handles=[
            Line2D([], [], ls="", marker="s", color=style.COLOURS[tint], label=text)
            for tint, text in kinds
        ],
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, columnspacing=0.8,
        handletextpad=0.1,
    )  # fmt: skip
    panels = {
        "covered": "truth: share under objects",
        "top1": "top-1 probability",
        "jsd_final": "JSD (eq. 11, nats)",
        "attention": "attention, 3 layers",
        "cls_similarity": "[cls] similarity",
    }
    panels = {name: label for name, label in panels.items() if rows[name].notna().any()}
    for ax in axes.flat[1 + len(panels) :]:
        ax.axis("off")
    for ax, (name, label) in zip(axes.flat[1:], panels.items(), strict=False):
        log = name in ("jsd_final", "attention") and bool((rows[name] > 0).all())
        bar = style.patch_map(ax, image, _spread(rows, name, grid), grid, log=log)
        if not log:
            bar.locator = MaxNLocator(3)
        ax.set_title(label)
    return figure


def example_note(rows: pd.DataFrame, *, model: str) -> dict:
    known = bool(rows["covered"].notna().all())
    covered, bare = rows[rows["covered"] >= 0.5], rows[rows["covered"] == 0]
    told = "; ".join(
        f"{QUANTITIES[name]} {covered[name].mean():.3g} on covered and {bare[name].mean():.3g} on "
        "bare patches"
        for name in QUANTITIES
        if len(covered) and len(bare)
    )
    if not known:
        rho = rows[list(QUANTITIES)].corr(method="spearman")["top1"].drop("top1")
        told = ", ".join(f"{QUANTITIES[name]} {value:+z.2f}" for name, value in rho.items())
        told = f"rank correlations with the top-1 probability: {told}"
    return {
        "title": "One scene of the study" if known else "One image of the study",
        "caption": (
            f"The {len(rows)} sampled patches of {rows['image'].iloc[0]}: "
            f"{'truth, ' if known else ''}outputs and "
            "intermediate states, each value filling the cell around its patch. Drawn with "
            f"{model}; the paper's patches are of photographs of VQAv2."
        ),
        "reading": (
            "Orange-red squares lie on an object. A map that knows where the objects are looks "
            "like the one titled truth. "
            if known
            else "What covers a patch, a reader has to judge. "
        )
        + ("One scene shows what is measured; the claims below rest on all of them."),
        "alt": f"Means in this scene: {told or 'covered or bare patches are missing'}."
        if known
        else f"Maps of {rows['image'].iloc[0]}; {told}.",
        "paper_item": "Section 7.4",
    }


def _spread(rows: pd.DataFrame, name: str, grid: Grid) -> np.ndarray:
    """(L,) map in which each patch holds the value of the nearest sampled one."""
    at = np.array([grid.row_col(int(patch)) for patch in rows["patch"]])  # (n, 2)
    cells = np.stack(np.divmod(np.arange(grid.size), grid.width), axis=1)  # (L, 2)
    nearest = np.abs(cells[:, None] - at[None]).sum(axis=2).argmin(axis=1)
    return rows[name].to_numpy(float)[nearest]


def _row(correlations: pd.DataFrame, order: str, quantity: str, reading: str) -> pd.Series:
    mask = (
        (correlations["order"] == order)
        & (correlations["quantity"] == quantity)
        & (correlations["reading"] == reading)
    )
    return correlations[mask].iloc[0]
