"""Figures of the pruning evaluation (notebook 06), each with the function that writes its texts.

First one image, so that the method is seen at work: what scores high, what goes, and which
prototype took it. Then what it costs in answers, as the paper tells it (Table 1, Figure 9), and
what that does not tell: the difference on the *same* questions, since two overlapping intervals
are not yet equal methods, and whether whoever keeps the informative tokens answers better. A budget
means less for methods that prune inside the language model; captions say by how much (`_inside`).

Tables return text for readers; the numbers with all their digits are saved beside them.
"""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from redlib.figures import style
from redlib.figures.codebooks import cut, show_cut
from redlib.geometry import Grid
from redlib.prune import fastv, sparsevlm
from redlib.study.pruning import KNOWING, METHODS, PAPER, Origin, layer_tokens
from redlib.tables import readable, with_interval

_LOOK = {
    "ours": ("blue", "o"),
    "prumerge": ("green", "^"),
    "fastv": ("purple", "D"),
    "random": ("orange", "s"),
}
# The others differ in both, so that few of them are told apart by colour alone.
_LOOK |= zip(
    (name for name in METHODS if name not in (*PAPER, "unpruned", "none")),
    zip(
        itertools.cycle(("red", "sky", "green", "purple", "orange", "grey")),
        itertools.cycle("v<>Pp*Xdh8"),
    ),
    strict=False,
)
_HEADS = {
    "pope": "POPE", "mmb": "MMBench", "seed": "SEED", "rwqa": "RealWorldQA", "mme": "MME",
    "nocaps": "NoCaps", "flickr": "Flickr30k",
}  # fmt: skip
_SETTINGS = {"base": "base tile", "split": "each of five tiles"}


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
    """covered: (L,) share of each patch under objects, NaN where nobody knows."""
    held = kept[covered >= 0.5].mean() if (covered >= 0.5).any() else float("nan")
    known = f"Of the patches that objects cover {held:.0%} are kept, of all patches "
    if np.isnan(covered).all():
        known = "Which patches objects cover is not known; kept of all patches: "
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
            f"{known}{kept.mean():.0%}; {right[0]:.0%} of the answers shown are right with the "
            f"kept tokens, {right[1]:.0%} with all."
        ),
        "paper_item": "Figure 5, right",
    }


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
    """Which prototype removed which patch; shown: table of `study.pruning.Shown`.

    origins: where the shown prototypes come from, of each whose patch is known.
    """
    leading = _leading(shown)
    figure = style.figure(9.6, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    axes = left.subplots(1, 2)
    style.image_panel(axes[0], image, grid)
    axes[0].set_title("test image")
    style.image_panel(axes[1], style.faded(image), grid)
    axes[1].set_title("removed, by prototype")
    tints = dict(zip(leading, style.CYCLE, strict=False))
    for row in shown[~shown["kept"]].itertuples():
        y, x = grid.row_col(int(row.patch))
        tint = style.COLOURS[tints.get(row.prototype, "grey")]
        alpha = 0.85 if row.prototype in tints else 0.25
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
            "that each is most similar to; grey: of other prototypes. Right, framed, the patches "
            f"that the {min(len(counts), _SHOWN_PROTOTYPES)} foremost of them come from, in "
            f"training scenes.{absent} Drawn with {model}; the paper shows no such "
            "picture."
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


@style.styled
def curve(shares: pd.DataFrame) -> Figure:
    """Figure 9: five-task mean as a share of the unpruned one, against visual tokens.

    Left the paper's methods; right the further ones, if any were asked, with Ours once more.
    """
    mean = _figure_9(shares)
    present = set(mean["method"])
    further = [name for name in METHODS if name in present and name not in PAPER]
    panels = [[name for name in PAPER if name in present], ["ours", *further]]
    figure = style.figure(9.8, 6.2) if further else style.figure(8.8, 4.6)
    axes = figure.subplots(1, 2 if further else 1, sharex=True, sharey=True, squeeze=False)[0]
    ticks = sorted(set(mean["tokens"]))
    for ax, names in zip(axes, panels, strict=False):
        for place, method in enumerate(names):
            part = mean[mean["method"] == method].sort_values("tokens")
            tint, marker = _LOOK[method]
            # A little beside each other, so that no interval hides another one.
            x = part["tokens"] * 1.1 ** ((2 * place + 1) / len(names) - 1)
            ax.errorbar(
                x, 100 * part["share"],
                yerr=_bars(part, "share", "low", "high"),
                color=style.COLOURS[tint], marker=marker, ls="--" if method in KNOWING else "-",
                lw=1.8 if method in PAPER else 1.1, elinewidth=0.9, capsize=2,
                label=METHODS[method],
            )  # fmt: skip
        ax.axhline(100, color=style.COLOURS["black"], lw=1.3, label=METHODS["unpruned"])
        none = shares[(shares["method"] == "none") & (shares["task"] == "mean")]
        if len(none):
            ax.axhline(
                100 * none["share"].iloc[0], color=style.COLOURS["black"], lw=1.3, ls=":",
                label=METHODS["none"],
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlim(ticks[0] / 1.5, ticks[-1] * 1.5)  # so that one budget is seen to be one
        ax.set_xlabel("visual tokens kept (log scale)")
        if further:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    axes[0].set_ylabel("five-task mean, % of the unpruned")
    if further:
        axes[0].set_title("the paper's methods")
        axes[1].set_title("further methods, and Ours")
    else:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _bars(part: pd.DataFrame, value: str, low: str, high: str) -> np.ndarray:
    """(2, n) percent below and above; where all images agree, rounding is no interval."""
    return 100 * np.maximum([part[value] - part[low], part[high] - part[value]], 0)


def _figure_9(shares: pd.DataFrame) -> pd.DataFrame:
    """Means of the base tile by every rule that keeps a given number of tokens."""
    wanted = (shares["task"] == "mean") & (shares["setting"] == "base")
    return shares[wanted & ~shares["method"].isin(["unpruned", "none", "threshold"])]


def curve_note(shares: pd.DataFrame, *, model: str, depth: int, size: int) -> dict:
    mean, told = _figure_9(shares), []
    for method in METHODS:
        part = mean[mean["method"] == method].sort_values("tokens")
        if len(part):
            each = ", ".join(f"{r.share:.0%} at {r.tokens}" for r in part.itertuples())
            told.append(f"{METHODS[method]}: {each}")
    counts = sorted(set(mean["n"]))
    needs = "The claims need Ours on top everywhere"
    if mean["tokens"].nunique() > 2:  # else there is nothing to fall or to be flat
        needs += ", FastV falling steeply below 96, PruMerge flat from 32 down to 8"
    if counts[0] < 1000:
        needs += ", and more questions than these: a curve over few may lie far from that over many"
    needs += "."
    return {
        "title": "What is left of the answers, by tokens",
        "caption": (
            "Mean over five tasks of the score with few visual tokens over that with all, each on "
            f"the same questions ({' or '.join(map(str, counts))} a point), with 95 % intervals "
            f"from resampling images. {_inside(shares, depth, size)}{_told_masks(mean)} Drawn with "
            f"{model}; the paper's Figure 9 shows LLaVA-1.5-7B and the methods on the left."
        ),
        "reading": (
            "Higher is better at the same place on the axis; points are moved a little sideways. "
            f"{needs} Between two methods the table of paired differences decides, not the overlap "
            "of bars."
        ),
        "alt": ". ".join(told) + ".",
        "paper_item": "Figure 9",
    }


def _told_masks(table: pd.DataFrame) -> str:
    """What the dashed lines are, where there are any."""
    told = " Dashed: the masks say which patches objects cover, which no method can know."
    return told if table["method"].isin(KNOWING).any() else ""


def _inside(table: pd.DataFrame, depth: int, size: int) -> str:
    """What the budget of methods that prune inside leaves out: the layers that read more, a small
    part of a deep model and a large one of a shallow model."""
    base, told = table[table["setting"] == "base"], "FastV was not run."
    budgets = base.loc[base["method"] == "fastv", "tokens"]
    if not budgets.empty:
        least = budgets.min()
        read = layer_tokens("fastv", size, least, depth)
        told = (
            "FastV's tokens are those behind its second layer, as the paper counts; its first "
            f"{fastv.LAYER} of {depth} layers read all {size}, so that at {least} tokens a layer "
            f"reads {read:.0f} on average."
        )
    budgets = base.loc[base["method"] == "sparsevlm", "tokens"]
    if not budgets.empty:
        least, layers = int(budgets.min()), sparsevlm.relative(depth)
        read = layer_tokens("sparsevlm", size, least, depth)
        told += (
            f" SparseVLM's are those behind its last cut, in front of layer {layers[-1] + 1}; at "
            f"{least} a layer reads {read:.0f} on average."
        )
    return told


def _by_tile(table: pd.DataFrame) -> str:
    """What a budget of each tile means for methods that see all tiles in one prompt."""
    split = set(table.loc[table["setting"] == "split", "method"]) & {"fastv", "sparsevlm"}
    if not split:
        return ""
    names = " and ".join(METHODS[name] for name in sorted(split))
    return (
        f" With five tiles {names} keeps the budget in each of them, as all methods do here; by "
        "its own description it would rank the tokens of all tiles together."
    )


@style.styled
def informative(kept: pd.DataFrame, shares: pd.DataFrame) -> Figure:
    """Share of the unpruned score against the share of informative tokens kept."""
    both = _with_shares(kept, shares)
    figure = style.figure(8.8, 5.0)
    ax = figure.subplots()
    for method, part in both.groupby("method", sort=False):
        name, marker = _LOOK[method]
        tint = style.COLOURS[name]
        ax.errorbar(
            100 * part["kept"], 100 * part["share"],
            xerr=_bars(part, "kept", "kept_low", "kept_high"),
            yerr=_bars(part, "share", "low", "high"),
            fmt="none", ecolor=tint, elinewidth=0.7, alpha=0.45, capsize=0,
        )  # fmt: skip
        ax.scatter(
            100 * part["kept"], 100 * part["share"], s=18 + 5 * part["tokens"] ** 0.5, color=tint,
            marker=marker, facecolor=tint if method in PAPER else "none", label=METHODS[method],
            zorder=3,
        )  # fmt: skip
    ax.set_xlabel("informative tokens kept, % (an object or the word covers half the patch)")
    ax.set_ylabel("five-task mean, % of the unpruned")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _with_shares(kept: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """One row per method and budget of the base tile that has both numbers."""
    mean = shares[(shares["task"] == "mean") & (shares["setting"] == "base")]
    mean = mean[~mean["method"].isin(["none", "unpruned"])]
    renamed = kept.rename(columns={"low": "kept_low", "high": "kept_high", "images": "scenes"})
    return mean.merge(renamed, on=["method", "tokens"])


def informative_table(kept: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """The numbers behind `informative`: method, tokens, share, low, high, kept, kept_low,
    kept_high, scenes."""
    columns = ["method", "tokens", "share", "low", "high", "kept", "kept_low", "kept_high"]
    return _with_shares(kept, shares)[[*columns, "scenes"]]


def informative_note(kept: pd.DataFrame, shares: pd.DataFrame, *, model: str) -> dict:
    both = _with_shares(kept, shares)
    order = both[["kept", "share"]].rank().corr().iloc[0, 1]
    counts = sorted(set(both["n"]))
    return {
        "title": "Answers against informative tokens kept",
        "caption": (
            f"Each point is a method at a budget, {len(both)} of them, larger with more tokens: "
            "which share of the tokens that show an object or the written word it keeps, and what "
            "share of the unpruned five-task mean is left, with 95 % intervals from resampling "
            f"images; all points are of the same {' or '.join(map(str, counts))} questions. "
            "Filled: the paper's methods. A token that was merged into another one does not count "
            "as kept; methods without any single token kept are left out. Drawn with "
            f"{model}; the paper, without "
            "masks, has no such figure."
        ),
        "reading": (
            "If keeping what is informative is what matters, the points lie along one rising line "
            "whatever the method. A method far above it answers with tokens that show no object: "
            "its tokens hold what their neighbours showed."
        ),
        "alt": f"Rank correlation {order:.2f} over {len(both)} methods and budgets.",
        "paper_item": "Section 3",
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
            f"at {tokens} tokens {100 * row['difference']:+z.1f} points "
            f"({100 * row['low']:+z.1f} to {100 * row['high']:+z.1f})"
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
            "images": "Test scenes",
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


_TIED = "\N{NO-BREAK SPACE}"


def accuracy_table(summary: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """Table 1 for readers: a row per setting, budget and method, a column per task.

    Rows of `study.pruning.with_reading` and of `study.scoring.shares`; below those of the paper's
    methods stand the others, at the end n.
    """
    kept = shares[shares["task"] == "mean"].set_index(["setting", "method", "tokens"])
    full = set(summary.loc[summary["method"] == "unpruned", "tokens"])
    told = set(summary.loc[summary["task"] == "nocaps", "tokens"]) | full | {0}
    first, below = [], []
    for (setting, tokens, method), part in summary.groupby(
        ["setting", "tokens", "method"], sort=False
    ):
        if tokens not in told:  # of the curve alone
            continue
        cells = part.set_index("task")
        row = {
            "Tokens": f"{tokens}, {_SETTINGS[setting]}".replace(" ", _TIED),
            "Method": METHODS[method],
            "Kept": f"{part['kept'].iloc[0]:.1f}",
            "Read by a layer": f"{part['layer_tokens'].iloc[0]:.1f}",
            "Prefill, MFLOP": f"{part['prefill'].iloc[0]:.0f}",
        }
        heads = _HEADS | {"mean": "Mean of five"}
        row |= {head: _cell(cells, task) for task, head in heads.items()}
        key = (setting, method, tokens)
        row["% of unpruned"] = (
            f"{100 * kept.loc[key, 'share']:.0f} " + _ends(*kept.loc[key, ["low", "high"]])
            if key in kept.index else "100"
        )  # fmt: skip
        row["n, images"] = f"{cells['n'].get('mean', 0)}, {cells['images'].get('mean', 0)}"
        rank = list(METHODS).index(method)
        side = first if method in (*PAPER, "unpruned", "none") else below
        side.append((setting, -tokens, rank, row))
    line = {name: "" for name in first[0][-1]} | {"Method": "Not in the paper's Table 1:"}
    ordered = [[row for *_, row in sorted(side, key=lambda r: r[:3])] for side in (first, below)]
    return pd.DataFrame([*ordered[0], *([line] if below else []), *ordered[1]])


def _cell(cells: pd.DataFrame, task: str) -> str:
    """ "84.2 ± 0.6 [80, 88]" in percent, "-" where the task was not asked."""
    if task not in cells.index:
        return "-"
    row = cells.loc[task]
    spread = "" if pd.isna(row["std"]) else f"{_TIED}±{_TIED}{100 * row['std']:.1f}"
    return f"{100 * row['accuracy']:.1f}{spread} " + _ends(row["low"], row["high"])


def _ends(low: float, high: float) -> str:
    return f"[{100 * low:.0f},{_TIED}{100 * high:.0f}]"


def accuracy_note(
    summary: pd.DataFrame,
    *,
    model: str,
    seeds: int,
    depth: int,
    size: int,
    metric: str | None = None,
) -> dict:
    """metric: what captions of photographs are judged by; None: the images are scenes."""
    mean = summary[(summary["task"] == "mean") & summary["method"].isin([*PAPER, "unpruned"])]
    told = "; ".join(
        f"{METHODS[r.method]} {r.accuracy:.2f} at {r.tokens} ({r.setting})"
        for r in mean.sort_values(["setting", "tokens", "method"]).itertuples()
    )
    captions = summary[summary["task"].isin(["nocaps", "flickr"])]
    described = f"{captions['images'].max()} images each" if len(captions) else "none here"
    asked = "tabletop tasks that stand in for the paper's benchmarks"
    judged = "F1 of the caption's scene graph (tabletop-SPICE, which is not SPICE"
    theirs = "no number of the paper's Table 1 is measured here"
    if metric is not None:
        asked = "samples of the paper's benchmarks"
        judged = f"{metric} (times 100, over the images described here"
        theirs = "the paper's Table 1 is of all questions, with its own codebook and code"
    return {
        "title": "Answers with fewer visual tokens",
        "caption": (
            f"Scores in percent on {asked}, each "
            "by the official rule: POPE, mean of the three subsets; MMBench, right in all "
            "rotations; MME, share of the perception score (accuracy and pairs, mean over its "
            f"categories); NoCaps and Flickr30k, {judged}; {described}). 95 % "
            f"intervals from resampling images; Random: mean of {seeds} draw"
            f"{'s' if seeds > 1 else ''} ± their deviation. n: prompts of the five tasks, and the "
            "images they are about (a question of MMBench is a prompt for each rotation of its "
            "options, and counts once); methods with a smaller n answered the first of them. "
            "Read by a layer: visual tokens, mean over the layers, more than is kept where a "
            "method prunes inside the language model; prefill: operations of the layers over "
            f"them, two per parameter and token. {_inside(summary, depth, size)}"
            f"{_by_tile(summary)} Computed with {model}; {theirs}."
        ),
        "reading": (
            "Compare rows of one budget and one n; the last column relates each to the unpruned "
            "model on its own questions. The row without visual tokens is what guessing reaches: a "
            "method that comes near it has lost the image."
        ),
        "alt": f"Five-task means: {told}.",
        "paper_item": "Table 1",
    }


def shares_table(shares: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.scoring.shares` over several columns: the mean of five, and captions."""
    part = shares[shares["task"].isin(["mean", "captions"]) & (shares["method"] != "none")]
    part = part.assign(
        setting=part["setting"].map(_SETTINGS), method=part["method"].map(METHODS),
        task=part["task"].map({"mean": "five tasks", "captions": "captions"}),
        shown=with_interval(part, "share"),
    )  # fmt: skip
    return _words(part, {"shown": "Pruned over unpruned"})


def rivals_table(rivals: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.scoring.rivals` over several columns: the mean of five, and captions."""
    part = rivals[rivals["task"].isin(["mean", "captions"])]
    part = part.assign(
        setting=part["setting"].map(_SETTINGS), method=part["method"].map(METHODS),
        against=part["against"].map(METHODS),
        task=part["task"].map({"mean": "five tasks", "captions": "captions"}),
        shown=with_interval(part, "difference", digits="+z.3f"),
    )  # fmt: skip
    return _words(part, {"against": "Against", "shown": "Difference of scores"})


def official_table(parts: pd.DataFrame) -> pd.DataFrame:
    """POPE by subset and MME as the two report themselves; rows of `study.scoring.official`."""
    parts = parts.assign(column=parts["benchmark"] + " " + parts["part"])
    key = ["setting", "method", "tokens"]
    rows = []
    for (setting, method, tokens), part in parts.groupby(key, sort=False):
        mean = part.groupby("column")[["n", "accuracy", "f1", "acc_plus", "score"]].mean()
        row = {
            "Tokens of": _SETTINGS[setting],
            "Method": METHODS[method],
            "Tokens": tokens,
            **{f"POPE {name}": _percent(mean, f"POPE {name}") for name in _POPE},
            "POPE F1": _percent(mean, "POPE mean", "f1"),
            "MME accuracy": _percent(mean, "MME perception"),
            "MME acc+": _percent(mean, "MME perception", "acc_plus"),
        }
        score = mean["score"].get("MME perception", np.nan)
        categories = part.loc[part["benchmark"] == "MME", "part"].nunique() - 1
        row["MME perception"] = "-" if np.isnan(score) else f"{score:.0f} of {200 * categories}"
        asked = (f"{mean['n'].get(name, 0):.0f}" for name in ("POPE mean", "MME perception"))
        rows.append(row | {"n": ", ".join(asked)})
    return pd.DataFrame(rows)


_POPE = ("random", "popular", "adversarial", "mean")


def _percent(mean: pd.DataFrame, name: str, value: str = "accuracy") -> str:
    return f"{100 * mean.loc[name, value]:.1f}" if name in mean.index else "-"


def steps_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.scoring.steps` of the paper's methods."""
    part = steps[steps["method"].isin(PAPER)]
    part = part.assign(method=part["method"].map(METHODS), shown=with_interval(part, "change"))
    heads = {"method": "Method", "from": "From", "tokens": "To", "shown": "Change of the share"}
    return readable(part, heads | {"n": "n", "images": "Images"})


def informative_gaps_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.scoring.informative_gaps`."""
    part = gaps.assign(
        against=gaps["against"].map(METHODS), shown=with_interval(gaps, "difference")
    )
    heads = {"against": "Against", "tokens": "Tokens", "shown": "Difference of shares kept"}
    return readable(part, heads | {"images": "Images"})


def _words(part: pd.DataFrame, more: dict) -> pd.DataFrame:
    heads = {"setting": "Tokens of", "method": "Method", "tokens": "Tokens", "task": "Over"}
    return readable(part, heads | more | {"n": "n", "images": "Images"})


_NOTES = {
    "shares": (
        "What is kept of the unpruned score",
        "Score with few visual tokens over that with all, on the same questions; over five tasks "
        "and over the two captions the mean of the ratios, as the paper's percentages. The CSV "
        "file has every task.",
        "1 keeps everything. The share of a small score is unsure: read the interval.",
        "Table 1",
    ),
    "rivals": (
        "Ours against each rival",
        "Difference of scores on the same questions, Ours minus the rival, and FastV minus "
        "PruMerge. The CSV file has every task.",
        "An interval above 0: the first method is better. One across 0 decides nothing.",
        "Table 1",
    ),
    "official": (
        "POPE by subset, MME by pairs",
        "In percent: POPE's accuracy on each of its subsets, the mean of the three, and the mean "
        "F1 of yes; MME's accuracy, and acc+, the share of pairs with both questions right, each a "
        "mean over its categories, whose scores 100 (accuracy + acc+) add up to perception. "
        "Random: mean of its draws. The CSV file has every category and draw.",
        "Adversarial absent objects are those that often stand beside what is there: a model that "
        "answers by habit loses there first. acc+ far below accuracy means answers by habit too.",
        "Table 1",
    ),
    "steps": (
        "What a smaller budget costs",
        "Change of the five-task share (pruned over unpruned) from one budget to a smaller one, on "
        "the same questions.",
        "An interval below -0.05: a collapse in the sense of the ledger. One above it: robust.",
        "Figure 9",
    ),
    "informative-kept": (
        "Who keeps the informative tokens",
        "Share of the tokens that show an object or the written word (half of the patch) that Ours "
        "keeps, minus the share that the rival keeps, mean over images. What was merged does not "
        "count as kept; FastV's is the mean over questions.",
        "An interval above 0: Ours spends more of its budget on what is there to see.",
        "Figures 10, 11",
    ),
}


_RESAMPLED = " 95 % intervals from resampling images."


def note(name: str, table: pd.DataFrame, *, model: str) -> dict:
    """Texts of one of the tables of _NOTES; `table` as it is shown."""
    title, caption, reading, item = _NOTES[name]
    foremost = table.iloc[:3].to_dict("records")
    told = "; ".join(", ".join(str(value) for value in row.values()) for row in foremost)
    return {
        "title": title,
        "caption": (
            f"{caption}{'' if name == 'official' else _RESAMPLED} Computed with {model}; the "
            f"paper's {item} {'are' if item.startswith('Figures') else 'is'} of its own models."
        ),
        "reading": reading,
        "alt": f"{len(table)} rows, the first: {told or 'none'}.",
        "paper_item": item,
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
            "share_of_prefill": ("Operations over those of the unpruned prefill", ".2%"),
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
            "A share far below one means that scoring is nearly free beside the prefill of all "
            "tokens; what is left after pruning is several times less, and scoring that much more "
            "of it (`make bench` has that). Nothing in the method itself needs half a "
            "gigabyte."
        ),
        "alt": (
            f"{here['operations']:,} operations here and {paper['operations']:,} for the paper's "
            f"model, whose codebook has {paper['megabytes']:.1f} MB."
        ),
        "paper_item": "Section 5.3",
    }
