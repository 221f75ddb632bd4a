"""What is left of the answers by budget (Figure 9), and by what is kept of the informative tokens.

A budget means less for methods that prune inside the language model; captions say by how much
(`inside`), and for images in tiles per what it is counted (`by_tile`).
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from redlib.figures import style
from redlib.prune import fastv, sparsevlm
from redlib.study.pruning import KNOWING, METHODS, PAPER
from redlib.study.savings import layer_tokens

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


@style.styled
def curve(shares: pd.DataFrame) -> Figure:
    """Figure 9: five-task mean as a share of the unpruned one, against visual tokens.

    Left the paper's methods; right the further ones, if any were asked, with Ours once more. With
    one budget there is no curve, and every method has a row.
    """
    mean = _figure_9(shares)
    none = 100 * shares.loc[(shares["method"] == "none") & (shares["task"] == "mean"), "share"]
    if _one_budget(mean):
        return _dots(mean, none)
    further = _further(mean)
    figure = style.figure(9.8, 5.4) if further else style.figure(8.8, 4.6)
    axes = figure.subplots(1, 2 if further else 1, sharex=True, sharey=True, squeeze=False)[0]
    names = [name for name in PAPER if name in set(mean["method"])]
    for place, method in enumerate(names):
        part = mean[mean["method"] == method].sort_values("tokens")
        tint, marker = _LOOK[method]
        # A little beside each other, so that no interval hides another one.
        x = part["tokens"] * 1.1 ** ((2 * place + 1) / len(names) - 1)
        axes[0].errorbar(
            x, 100 * part["share"], yerr=_bars(part, "share", "low", "high"),
            color=style.COLOURS[tint], marker=marker, lw=1.8, elinewidth=0.9, capsize=2,
            label=METHODS[method],
        )  # fmt: skip
    ticks = sorted(set(mean["tokens"]))
    for ax in axes:
        _ends_of_scale(ax.axhline, none)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlabel("visual tokens kept (log scale)")
    axes[0].set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes[0].set_ylabel("five-task mean, % of the unpruned")
    place = "outside lower left" if further else "outside right upper"
    figure.legend(*axes[0].get_legend_handles_labels(), loc=place, ncols=6 if further else 1)
    if further:
        axes[0].set_title("the paper's methods")
        axes[1].set_title("further methods, and Ours")
        _named_lines(axes[1], mean, ["ours", *further])
    return figure


def _one_budget(mean: pd.DataFrame) -> bool:
    return mean["tokens"].nunique() == 1


def _further(mean: pd.DataFrame) -> list[str]:
    """The methods that the paper's Figure 9 does not have."""
    present = set(mean["method"])
    return [name for name in METHODS if name in present and name not in PAPER]


def _ends_of_scale(line: Callable[..., object], none: pd.Series) -> None:
    """Lines at what all tokens reach and, where it was asked, at what none reaches."""
    line(100, color=style.COLOURS["black"], lw=1.3, label=METHODS["unpruned"])
    for value in none:
        line(value, color=style.COLOURS["black"], lw=1.3, ls=":", label=METHODS["none"])


def _named_lines(ax: Axes, mean: pd.DataFrame, names: Sequence[str]) -> None:
    """A line per method with its name at the right end: they are too many for their colours, and
    their intervals would hide them."""
    ends = []
    for method in names:
        part = mean[mean["method"] == method].sort_values("tokens")
        tint, marker = _LOOK[method]
        ax.plot(
            part["tokens"], 100 * part["share"], color=style.COLOURS[tint], marker=marker,
            ls="--" if method in KNOWING else "-", lw=1.8 if method in PAPER else 1.1,
        )  # fmt: skip
        ends.append((part["tokens"].iloc[-1], 100 * part["share"].iloc[-1]))
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    line = 0.045 * (high - low)
    for method, end, y in zip(names, ends, _apart([y for _, y in ends], line), strict=True):
        colour = style.COLOURS[_LOOK[method][0]]
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 4}
        leader["relpos"] = (0, 0.5)  # at the name's left end; behind it, it would strike others
        ax.annotate(
            METHODS[method], end, xytext=(1.06, y), textcoords=ax.get_yaxis_transform(),
            va="center", fontsize=9, color=colour, annotation_clip=False,
            arrowprops=leader if abs(y - end[1]) > line / 4 else None,
        )  # fmt: skip


def _apart(values: Sequence[float], least: float) -> np.ndarray:
    """The values moved as little as puts them `least` apart, in their order."""
    order = np.argsort(values, kind="stable")
    steps = least * np.arange(len(order))
    moved = np.empty(len(order))
    moved[order] = isotonic_regression(np.asarray(values)[order] - steps).x + steps
    return moved


def _dots(mean: pd.DataFrame, none: pd.Series) -> Figure:
    """A row per method at the one budget, with its interval."""
    at = mean.set_index("method")
    names = [name for name in METHODS if name in at.index]
    figure = style.figure(8.8, 1.5 + 0.3 * len(names))
    ax = figure.subplots()
    for y, method in enumerate(names):
        tint, marker = _LOOK[method]
        ax.errorbar(
            100 * at.loc[method, "share"], y,
            xerr=_bars(at.loc[[method]], "share", "low", "high"), fmt=marker,
            color=style.COLOURS[tint], mfc="none" if method in KNOWING else None, lw=1.5,
        )  # fmt: skip
    _ends_of_scale(ax.axvline, none)
    if "random" in names:
        random = style.COLOURS[_LOOK["random"][0]]
        ax.axvline(100 * at.loc["random", "share"], color=random, lw=1.3, ls="--", label="Random")
    ax.set_yticks(range(len(names)), [METHODS[name] for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"five-task mean with {mean['tokens'].iloc[0]} tokens, % of the unpruned")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
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
    needs = f"The claims need Ours on top{'' if _one_budget(mean) else ' everywhere'}"
    if mean["tokens"].nunique() > 2:  # else there is nothing to fall or to be flat
        needs += ", FastV falling steeply below 96, PruMerge flat from 32 down to 8"
    if counts[0] < 1000:
        needs += ", and more questions than these: shares of few may lie far from those of many"
    needs += "."
    better, bars, theirs = "Higher is better at the same place on the axis", "", ""
    if _one_budget(mean):
        better, theirs = "Further right is better", " at several budgets"
    elif _further(mean):
        better += "; the points on the left are moved a little sideways"
        bars, theirs = (
            "; those of the right panel are in the CSV file",
            " and the methods on the left",
        )
    else:
        better += "; points are moved a little sideways"
    return {
        "title": "What is left of the answers, by tokens",
        "caption": (
            "Mean over five tasks of the score with few visual tokens over that with all, each on "
            f"the same questions ({' or '.join(map(str, counts))} a point), with 95 % intervals "
            f"from resampling images{bars}. {inside(shares, depth, size)}{_told_apart(mean)} "
            f"Drawn with {model}; the paper's Figure 9 shows LLaVA-1.5-7B{theirs}."
        ),
        "reading": (
            f"{better}. {needs} Between two methods the table of paired differences decides, not "
            "the overlap of bars."
        ),
        "alt": ". ".join(told) + ".",
        "paper_item": "Figure 9",
    }


def _told_apart(mean: pd.DataFrame) -> str:
    """What the dashed lines, or the hollow dots, are, where there are any; and what is drawn at a
    number of tokens that it does not quite have."""
    told = ""
    if mean["method"].isin(KNOWING).any():
        told = (
            f" {'Hollow' if _one_budget(mean) else 'Dashed'}: the masks say which patches objects "
            "cover, which no method can know. Oracle: tokens the masks call informative, no upper "
            "bound of answers."
        )
    if (mean["method"] == "downsample").any():
        told += " A downsampled image has at most as many tokens as it is drawn at."
    return told


def inside(table: pd.DataFrame, depth: int, size: int) -> str:
    """What the budget of methods that prune inside leaves out: the layers that read more, a small
    part of a deep model and a large one of a shallow model."""
    base, told = table[table["setting"] == "base"], "FastV was not run in notebook 06."
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


def by_tile(table: pd.DataFrame) -> str:
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
            fmt="none", ecolor=tint, elinewidth=1.1, alpha=0.6, capsize=0,
        )  # fmt: skip
        ax.scatter(
            100 * part["kept"], 100 * part["share"], s=18 + 5 * part["tokens"] ** 0.5, color=tint,
            marker=marker, facecolor=tint if method in (*PAPER, "threshold") else "none",
            label=METHODS[method], zorder=3,
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


_RANKED = 8
"""Of fewer points a rank correlation says nothing."""


def informative_note(kept: pd.DataFrame, shares: pd.DataFrame, *, model: str) -> dict:
    both = _with_shares(kept, shares)
    counts = sorted(set(both["n"]))
    if len(both) < _RANKED:
        told = "; ".join(
            f"{METHODS[r.method]} at {r.tokens}: {r.kept:.0%} kept, {r.share:.0%} of the unpruned"
            for r in both.itertuples()
        )
    else:
        order = both[["kept", "share"]].rank().corr().iloc[0, 1]
        told = f"Rank correlation {order:.2f} over {len(both)} methods and budgets"
    return {
        "title": "Answers against informative tokens kept",
        "caption": (
            f"Each point is a method at a budget, {len(both)} of them"
            f"{', larger with more tokens' if both['tokens'].nunique() > 1 else ''}: which share "
            "of the tokens that show an object or the written word it keeps, and what share of the "
            "unpruned five-task mean is left, with 95 % intervals from resampling "
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
        "alt": f"{told}.",
        "paper_item": "Section 3",
    }
