"""Figures of the pruning evaluation (notebook 06), each with the function that writes its texts."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from redlib.figures import style
from redlib.geometry import Grid
from redlib.study.asking import FIVE, FURTHER
from redlib.study.pruning import METHODS
from redlib.tables import readable, with_interval

_LOOK = {
    "ours": ("blue", "o"),
    "threshold": ("sky", "^"),
    "random": ("orange", "s"),
    "unpruned": ("black", "D"),
    "none": ("grey", "v"),
}


@style.styled
def pipeline(
    image: Image.Image, scores: np.ndarray, kept: np.ndarray, answers: pd.DataFrame, grid: Grid
) -> Figure:
    """Figure 5, right: one test image, its redundancy scores, what stays, what is answered.

    scores, kept: (L,) redundancy score and whether the token stays. answers: rows of
    `study.pruning.Shown`.
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
        question = _short(row.question.replace("\n", " "), 78)
        ax.text(places[0], y, question, va="top")
        ax.text(places[1], y, row.gold, va="top")
        for at, text, right in zip(
            places[2:],
            (row.unpruned, row.pruned),
            (row.unpruned_right, row.pruned_right),
            strict=True,
        ):
            tint = style.COLOURS["blue" if right else "red"]
            mark = "" if right else "\u2717 "
            ax.text(at, y, mark + (_short(text, 12) or "(nothing)"), va="top", color=tint)
    return figure


def pipeline_note(
    scores: np.ndarray, kept: np.ndarray, covered: np.ndarray, answers: pd.DataFrame, *, model: str
) -> dict:
    """covered: (L,) share of each patch under objects."""
    held = kept[covered >= 0.5].mean() if (covered >= 0.5).any() else float("nan")
    right = [answers[f"{name}_right"].mean() for name in ("pruned", "unpruned")]
    return {
        "title": "One image through the codebook",
        "caption": (
            f"A test scene, the redundancy score of its {len(scores)} tokens (eq. 2), the "
            f"{int(kept.sum())} with the lowest scores, and greedy answers with all and with these "
            f"tokens (a cross: wrong). Drawn with {model}; the paper's Figure 5 is a "
            "sketch."
        ),
        "reading": (
            "If the method does what it is made for, bare ground is bright in the middle panel and "
            "the objects are left in the right one. Bright objects mean that the codebook takes "
            "parts of them for nothing."
        ),
        "alt": (
            f"Of the patches that objects cover {held:.0%} are kept, of all patches "
            f"{kept.mean():.0%}; {right[0]:.0%} of the answers shown are right with the kept "
            "tokens, "
            f"{right[1]:.0%} with all."
        ),
        "paper_item": "Figure 5, right",
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


@style.styled
def curve(summary: pd.DataFrame) -> Figure:
    """Five-task mean against visual tokens."""
    mean = summary[summary["task"] == "mean"]
    figure = style.figure(8.4, 4.4)
    ax = figure.subplots()
    for method in ("ours", "random"):
        part = mean[mean["method"] == method].sort_values("kept")
        tint, marker = _LOOK[method]
        ax.fill_between(
            part["kept"], part["low"], part["high"], color=style.COLOURS[tint], alpha=0.18, lw=0
        )
        ax.plot(
            part["kept"], part["accuracy"], color=style.COLOURS[tint], marker=marker,
            label=METHODS[method],
        )  # fmt: skip
    part = mean[mean["method"] == "threshold"]
    tint, marker = _LOOK["threshold"]
    ax.errorbar(
        part["kept"], part["accuracy"],
        yerr=[part["accuracy"] - part["low"], part["high"] - part["accuracy"]],
        fmt=marker, color=style.COLOURS[tint], mec=style.COLOURS["black"], ms=8,
        label=METHODS["threshold"],
    )  # fmt: skip
    for method, dash in (("unpruned", "-"), ("none", ":")):
        row = mean[mean["method"] == method].iloc[0]
        ax.axhline(row["accuracy"], color=style.COLOURS["black"], lw=1.3, ls=dash,
                   label=METHODS[method])  # fmt: skip
    ticks = sorted(mean[mean["method"] == "ours"]["tokens"])
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set_xlabel("visual tokens at the language model's input, mean over images (log scale)")
    ax.set_ylabel("five-task mean accuracy")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


def curve_note(summary: pd.DataFrame, *, model: str) -> dict:
    mean = summary[summary["task"] == "mean"]
    told = []
    for method in ("ours", "random"):
        part = mean[mean["method"] == method].sort_values("tokens")
        told.append(
            f"{METHODS[method]}: "
            + ", ".join(f"{r.accuracy:.2f} at {r.tokens}" for r in part.itertuples())
        )
    ends = {m: mean[mean["method"] == m]["accuracy"].iloc[0] for m in ("unpruned", "none")}
    return {
        "title": "Accuracy against tokens",
        "caption": (
            f"Mean of five tasks on {int(mean['images'].max())} test scenes, "
            f"{int(mean['n'].max())} questions, with 95 % intervals from resampling images. Random "
            "averages its seeds at the budgets and has one elsewhere. "
            f"Drawn with {model}; the paper's Figure 9 shows LLaVA-1.5-7B on five benchmarks."
        ),
        "reading": (
            "Higher is better at the same place on the axis. The claim needs Ours above Random, "
            "which the paired differences decide better than these bands; near the right end every "
            "method must meet the unpruned line."
        ),
        "alt": (
            ". ".join(told)
            + f". Unpruned {ends['unpruned']:.2f}, without visual tokens {ends['none']:.2f}."
        ),
        "paper_item": "Figure 9",
    }


@style.styled
def differences(tables: dict[int, pd.DataFrame]) -> Figure:
    """Paired differences Ours - Random per task, a panel per budget."""
    figure = style.figure(9.2, 4.2)
    axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (tokens, table) in zip(axes, tables.items(), strict=True):
        y = np.arange(len(table))
        mean = (table["task"] == "mean").to_numpy()
        for mask, tint, size in ((~mean, "blue", 6), (mean, "red", 9)):
            part = table[mask]
            ax.errorbar(
                100 * part["difference"], y[mask],
                xerr=100 * np.array([part["difference"] - part["low"],
                                     part["high"] - part["difference"]]),
                fmt="o", ms=size, lw=1.6, color=style.COLOURS[tint],
            )  # fmt: skip
        ax.axvline(0, color=style.COLOURS["black"], lw=1, ls="--")
        ax.set_title(f"{tokens} tokens")
        ax.set_xlabel("Ours minus Random, percentage points")
        ax.grid(axis="y", visible=False)
    first = next(iter(tables.values()))
    names = ["five-task mean" if t == "mean" else t for t in first["task"]]
    axes[0].set_yticks(
        range(len(first)), [f"{t} (n = {n})" for t, n in zip(names, first["n"], strict=True)]
    )
    axes[0].invert_yaxis()
    return figure


def differences_note(tables: dict[int, pd.DataFrame], *, model: str, seeds: int) -> dict:
    told = []
    for tokens, table in tables.items():
        row = table[table["task"] == "mean"].iloc[0]
        told.append(
            f"at {tokens} tokens {100 * row['difference']:+.1f} points "
            f"({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        )
    return {
        "title": "Ours against Random, question by question",
        "caption": (
            "Paired differences in accuracy on the same questions, R lowest against the mean of "
            f"{seeds} random draw{'s' if seeds > 1 else ''}; 95 % intervals from resampling "
            "images. "
            f"Drawn with {model}; the paper compares on LLaVA-1.5, LLaVA-Next and LLaVA-OneVision."
        ),
        "reading": (
            "An interval right of the dashed line means that choosing by the codebook beats the "
            "lot "
            "for that task; left of it, that it is worse. An interval across the line decides "
            "nothing."
        ),
        "alt": "Five-task mean: " + "; ".join(told) + ".",
        "paper_item": "Table 1",
    }


def thresholds_table(kept: pd.DataFrame) -> pd.DataFrame:
    """What the threshold rule keeps; rows of `realised`."""
    return readable(
        kept,
        {
            "budget": "Budget",
            "r": ("Threshold r", ".4f"),
            "calibration_mean": ("Kept on calibration scenes, mean", ".1f"),
            "test_mean": ("Kept on test scenes, mean", ".1f"),
            "least": "Least",
            "most": "Most",
            "off_by": ("Off the budget by", "+.1%"),
            "compare_with": "Fair comparison",
        },
    )


def thresholds_note(kept: pd.DataFrame, *, model: str) -> dict:
    told = "; ".join(f"{r.test_mean:.1f} for a budget of {r.budget}" for r in kept.itertuples())
    return {
        "title": "What the threshold keeps",
        "caption": (
            "Threshold on the redundancy score, set on calibration scenes, and the tokens it keeps "
            f"on test scenes. Computed with {model}; the paper sets its threshold on the test "
            "samples themselves."
        ),
        "reading": (
            "Where test and budget differ by more than 2 %, the rule of the R lowest scores is the "
            "fair comparison at this budget. A wide range from least to most means that images are "
            "treated very differently."
        ),
        "alt": f"The test scenes keep {told} on average.",
        "paper_item": "Algorithm 2",
    }


def accuracy_table(summary: pd.DataFrame, *, budgets: list[int]) -> pd.DataFrame:
    """Accuracy with interval: a row per method and budget, a column per task."""
    wanted = summary[summary["method"].isin(["unpruned", "none"]) | summary["tokens"].isin(budgets)]
    order = ("unpruned", "ours", "threshold", "random", "none")
    rows = []
    for tokens in sorted(wanted["tokens"].unique(), reverse=True):
        for method in order:
            part = wanted[(wanted["tokens"] == tokens) & (wanted["method"] == method)]
            if part.empty:
                continue
            shown = part.assign(shown=with_interval(part, "accuracy")).set_index("task")["shown"]
            row = {"Method": METHODS[method], "Tokens": f"{part['kept'].iloc[0]:.1f}"}
            names = {"mean": "Mean of five"} | {t: t for t in (*FIVE, *FURTHER)}
            rows.append(row | {head: shown.get(task, "-") for task, head in names.items()})
    counts = summary[summary["method"] == "unpruned"].set_index("task")["n"]
    tasks = {"Mean of five": "mean"} | {t: t for t in (*FIVE, *FURTHER)}
    last = {"Method": "questions (n)", "Tokens": ""}
    last |= {head: str(counts.get(task, 0)) for head, task in tasks.items()}
    return pd.DataFrame([*rows, last])


def accuracy_note(summary: pd.DataFrame, *, model: str, seeds: int) -> dict:
    mean = summary[summary["task"] == "mean"]
    best = mean[mean["method"].isin(["ours", "random"])]
    told = "; ".join(
        f"{METHODS[r.method]} {r.accuracy:.2f} at {r.tokens}"
        for r in best.sort_values(["tokens", "method"]).itertuples()
    )
    return {
        "title": "Accuracy with fewer visual tokens",
        "caption": (
            "Accuracy on tabletop tasks that stand in for the paper's benchmarks (pope: mean of "
            "the three subsets; mme: accuracy; mmb: MMBench, right in all four rotations; seed: "
            "SEED; rwqa: RealWorldQA), with 95 % intervals from resampling images; the mean is "
            "over these five, the other columns (VQA's kinds of question) stand outside it. "
            f"Random: mean of {seeds} draw{'s' if seeds > 1 else ''}. Computed "
            f"with {model}; no number of the paper's Table 1 is measured here."
        ),
        "reading": (
            "Compare rows of one budget. The row without visual tokens is what guessing reaches; a "
            "method that comes near it has lost the image. n stands in the last row."
        ),
        "alt": f"Five-task means: {told}.",
        "paper_item": "Table 1",
    }


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Operations and bytes; rows of `study.pruning.costs`."""
    return readable(
        costs.assign(operations=[f"{n:,}" for n in costs["operations"]]),
        {
            "model": "Model",
            "tokens": "Tokens L",
            "prototypes": "Prototypes N",
            "width": "Width d",
            "operations": "L N (2d - 1)",
            "megabytes": ("Codebook, MB in half precision", ".3f"),
            "share_of_prefill": ("Operations over those of the prefill", ".2%"),
        },
    )


def costs_note(costs: pd.DataFrame, *, model: str) -> dict:
    here, paper = costs.iloc[0], costs.iloc[1]
    return {
        "title": "What scoring costs",
        "caption": (
            "Operations for the cosines of one image (section 5.3), and memory of the codebook; "
            "the "
            "paper says approximately 0.5 GB. The prefill counts two operations per parameter of "
            f"the decoder layers and visual token. Counted from shapes, for {model} and for the "
            "paper's LLaVA-1.5."
        ),
        "reading": (
            "A share far below one means that scoring is nearly free beside the prefill it "
            "shortens. Nothing in the method itself needs half a gigabyte."
        ),
        "alt": (
            f"{here['operations']:,} operations here and {paper['operations']:,} for the paper's "
            f"model, whose codebook has {paper['megabytes']:.1f} MB."
        ),
        "paper_item": "Section 5.3",
    }
