"""Figures of the codebook (notebook 05).

Patches are shown as they are: cut from the square that the model sees. As in `figures.study`, every
drawing function has a `..._note` that writes its texts from the same numbers.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFT
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from redlib.figures import style
from redlib.geometry import Grid
from redlib.params import preset_value
from redlib.study.asking import FIVE
from redlib.study.codebooks import GRID, LEAST_PER_IMAGE, Built
from redlib.study.patches import SCORES
from redlib.tables import readable

_STEPS = {
    "tau_prob": "unsure of its word",
    "tau_out": "lies apart",
    "tau_jsd": "is not missed",
}


def cut(view: Image.Image, grid: Grid, patch: int, *, around: int = 1) -> np.ndarray:
    """Pixels of a patch and `around` patches on each side, (h, w, 3); grey beyond the border,
    since much of a scene's ground is white."""
    left, top, right, bottom = grid.pixel_box(int(patch), view.size)
    step_x, step_y = around * (right - left), around * (bottom - top)
    canvas = Image.new("RGB", (right - left + 2 * step_x, bottom - top + 2 * step_y), (217,) * 3)
    canvas.paste(view, (step_x - left, step_y - top))
    return np.asarray(canvas)


def show_cut(ax: Axes, pixels: np.ndarray, *, around: int, colour: str) -> None:
    """A cut with a thin edge, and a frame around the patch itself."""
    ax.imshow(pixels)
    side = pixels.shape[0] / (2 * around + 1)
    at = (side * around - 0.5, side * around - 0.5)
    for width, tint in ((3.0, "white"), (1.6, colour)):
        ax.add_patch(Rectangle(at, side, side, fill=False, edgecolor=tint, lw=width))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=style.COLOURS["grey"], linewidth=0.5)


@style.styled
def construction(
    rows: pd.DataFrame, built: Built, views: Mapping[str, Image.Image], grid: Grid
) -> Figure:
    """Figure 5, left: from the probed patches of one image to the codebook.

    rows: the table of probed tokens of one image. views: what the model sees, by image.
    """
    name = rows["image"].iloc[0]
    passed, unread = _passed(rows, built)
    lines = min(4, -(-len(built.codebook) // 16))
    figure = style.figure(9.8, 2.85 + 0.62 * lines)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.5, 0.35 + 0.62 * lines))
    axes = top.subplots(1, 5, gridspec_kw={"wspace": 0.16})
    everyone, nobody = np.ones(len(rows), bool), np.zeros(len(rows), bool)
    steps = [(f"one image,\n{len(rows)} patches probed", everyone, nobody, "blue")]
    for criterion, mask in passed.items():
        title = f"{_STEPS[criterion]}\n{criterion}: {int(mask.sum())}"
        if (left := unread[criterion]).any():
            title += f"\nof {int((~left).sum())} computed"
        steps.append((title, mask, left, "orange"))
    both = np.logical_and.reduce(list(passed.values()))
    steps.append((f"all three:\n{int(both.sum())} candidates", both, nobody, "red"))
    for ax, (title, mask, left, tint) in zip(axes, steps, strict=True):
        style.image_panel(ax, style.faded(views[name]), grid)
        looks = (
            (mask, {"facecolor": style.COLOURS[tint], "lw": 0, "alpha": 0.85}),
            (left, _UNREAD),
        )
        for which, look in looks:
            for patch in rows["patch"][which]:
                row, column = grid.row_col(int(patch))
                ax.add_patch(Rectangle((column, row), 1, 1, **look))
        ax.set_title(title, fontsize=10, loc="center")
    for left, right in ((axes[0], axes[1]), (axes[3], axes[4])):
        top.add_artist(
            ConnectionPatch(
                (1.01, 0.5), (-0.01, 0.5), coordsA="axes fraction",
                coordsB="axes fraction", axesA=left, axesB=right,
                arrowstyle="-|>", mutation_scale=13, color=style.COLOURS["grey"], lw=1.5,
            )
        )  # fmt: skip
    # The criteria do not wait for one another: each is asked of every probed patch.
    for ax in axes[1:3]:
        ax.text(
            1.08, 0.5, "+", transform=ax.transAxes, ha="center", va="center", fontsize=16,
            color=style.COLOURS["grey"], in_layout=False,
        )  # fmt: skip
    _sheet(bottom, built, views, grid, columns=16, rows=lines)
    number = len(built.codebook)
    bottom.suptitle(
        f"candidates of {built.candidates['image'].nunique()} images: {len(built.candidates)};  in "
        f"clusters of more than {built.criteria.tau_in:g}: the {number} prototypes of "
        f"the codebook, {'all' if number <= 64 else 64} of them below",
        fontsize=10.5, fontweight="bold",
    )  # fmt: skip
    return figure


_UNREAD = {"facecolor": "white", "edgecolor": style.COLOURS["grey"], "hatch": "//////", "lw": 0.5}
"""How a patch is drawn whose value was not computed."""


def _passed(
    rows: pd.DataFrame, built: Built
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By criterion, which rows pass it and for which its value was not computed; (n,) bool. A
    criterion that is switched off passes all and needs no value."""
    columns = {"tau_prob": "top1_head", "tau_out": "cluster_size", "tau_jsd": "jsd_final"}
    passed = {name: built.criteria.passes(name, rows[column]) for name, column in columns.items()}
    unread = {name: rows[columns[name]].isna().to_numpy() & ~passed[name] for name in columns}
    return passed, unread


def _sheet(figure, built: Built, views: Mapping[str, Image.Image], grid: Grid, *, columns: int,
           rows: int) -> None:  # fmt: skip
    """Some prototypes as cuts, spread over the images they come from."""
    axes = figure.subplots(rows, columns, squeeze=False)
    chosen = built.candidates[built.candidates["prototype"]]
    take = np.unique(np.linspace(0, len(chosen) - 1, rows * columns).astype(int))
    for ax in axes.flat:
        ax.axis("off")
    for ax, row in zip(axes.flat, chosen.iloc[take].itertuples(), strict=False):
        ax.axis("on")
        show_cut(ax, cut(views[row.image], grid, row.patch), around=1, colour=style.COLOURS["red"])


def construction_note(rows: pd.DataFrame, built: Built, *, model: str) -> dict:
    s = built.survivors
    passed, unread = _passed(rows, built)
    told = ", ".join(f"{name} {int(s[name])}" for name in _STEPS)
    here = ", ".join(
        f"{name} {int(passed[name].sum())}"
        + (f" of {int((~left).sum())} computed" if left.any() else "")
        for name, left in unread.items()
    )
    return {
        "title": "From probed patches to the codebook",
        "caption": (
            f"Algorithm 1 on real patches. Top: the probed patches of {rows['image'].iloc[0]}, "
            "those that pass each criterion by itself, and those that pass all three. tau_prob is "
            f"compared with the {SCORES['top1_head']}. Hatched: not computed, since another "
            "criterion already rules the patch out for every setting; counted as not passed. "
            "Bottom: prototypes, each in the middle of its 3 x 3 window (grey: beyond the image). "
            f"Drawn with {model}; the paper's Figure 5 is a sketch."
        ),
        "reading": (
            "The three criteria are independent of one another; a candidate passes all of them. "
            "What is left should be patches that show nothing by themselves; prototypes with a "
            "clear piece of an object in their frame would speak against the criteria."
        ),
        "alt": (
            f"In the image drawn {len(rows)} patches are probed, and there pass {here}. Of "
            f"{int(s['probed'])} probed patches of all images pass {told} (of those computed); all "
            f"three {int(s['candidates'])}; {int(s['prototypes'])} become prototypes."
        ),
        "paper_item": "Figure 5, left",
    }


@style.styled
def grid_scores(scores: pd.DataFrame, chosen: int) -> Figure:
    """Five-task mean of every setting against its number of prototypes."""
    settings = scores[scores["prototypes"].notna()]
    beside = scores.set_index("setting")["mean"]
    figure = style.figure(9.6, 4.2)
    ax = figure.subplots()
    tints = dict(zip(sorted(settings["tau_prob"].unique()), style.CYCLE, strict=False))
    marks = dict(zip(sorted(settings["tau_out"].unique()), "os^Dv", strict=False))
    passed_over = _passed_over(scores, chosen)
    for row in settings[settings["prototypes"] > 0].itertuples():
        tint = style.COLOURS[tints[row.tau_prob]]
        look = {"mfc": "white", "mec": tint, "mew": 1.6} if passed_over[row.Index] else {}
        ax.plot(
            row.prototypes, 100 * row.mean, marks[row.tau_out],
            **({"color": tint, "ms": 8, "mec": "white"} | look),
        )  # fmt: skip
    best = scores.loc[chosen]
    ax.plot(
        best["prototypes"],
        100 * best["mean"],
        "o",
        ms=16,
        mfc="none",
        mec=style.COLOURS["black"],
        mew=1.6,
    )
    for name, dash in (("unpruned", "-"), ("random", "--")):
        ax.axhline(100 * beside[name], color=style.COLOURS["black"], lw=1.2, ls=dash)
    handles = [
        *(_mark("o", tint, _tau_prob(settings, value)) for value, tint in tints.items()),
        *(_mark(mark, "grey", f"tau_out {value:g}") for value, mark in marks.items()),
        _hollow("o", 12, "chosen"),
        *([_hollow("s", 6, "higher, but\ntoo few tokens")] if passed_over.any() else []),
        Line2D([], [], color="black", lw=1.2, label="unpruned"),
        Line2D([], [], color="black", lw=1.2, ls="--", label="random, 64"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper")
    _logarithmic(ax)
    ax.set_xlabel("prototypes in the codebook (log scale)")
    ax.set_ylabel("five-task mean at 64 tokens (%)")
    return figure


def _passed_over(scores: pd.DataFrame, chosen: int) -> pd.Series:
    """Which settings scored higher than the chosen one, so that only LEAST_PER_IMAGE can have ruled
    them out: (n,) bool. Scores that differ by rounding alone are equal."""
    return scores["prototypes"].gt(0) & scores["mean"].round(6).gt(scores["mean"].round(6)[chosen])


def _tau_prob(settings: pd.DataFrame, value: float) -> str:
    """A threshold, and the quantile of the probed tokens that it is, if the grid names one."""
    entry = settings.loc[settings["tau_prob"] == value, "tau_prob_entry"].iloc[0]
    return f"tau_prob {value:.3g}" + ("" if np.isnan(entry) else f" ({entry:.0%} quantile)")


def _logarithmic(ax: Axes) -> None:
    """Labels at 1, 2 and 5, since few of these ranges hold two powers of ten."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _mark(marker: str, tint: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=style.COLOURS[tint], label=label)


def _hollow(marker: str, size: float, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, mfc="none", mec="black", ms=size, label=label)


def grid_note(scores: pd.DataFrame, chosen: int, *, model: str, images: int) -> dict:
    settings = scores[scores["prototypes"].notna()]
    alive = settings[settings["prototypes"] > 0]
    best = scores.loc[chosen]
    beside = scores.set_index("setting")["mean"]
    least = ", ".join(f"{name} at least {n}" for name, n in LEAST_PER_IMAGE.items())
    alike = alive.groupby(["tau_prob", "tau_out"]).size().max()
    hidden = [name for name in ("tau_jsd", "tau_in") if settings[name].nunique() > 1]
    unseen = (
        f"{' and '.join(hidden)} also var{'y' if len(hidden) > 1 else 'ies'} and "
        f"{'are' if len(hidden) > 1 else 'is'} not shown, so up to {alike} marks share a look. "
    )
    higher = _passed_over(scores, chosen)
    return {
        "title": "Choosing the thresholds",
        "caption": (
            f"All {len(settings)} settings of a grid that was fixed before any result, each "
            "scored by "
            f"the mean of five tasks ({', '.join(FIVE)}) at 64 kept tokens on {images} calibration "
            f"scenes; settings without a prototype: {len(settings) - len(alive)}. Chosen is the "
            f"highest mean among those with enough per training image ({least}), if there are any; "
            f"hollow: a higher mean with fewer than that ({int(higher.sum())}). "
            f"{unseen if hidden else ''}No intervals are drawn. "
            f"Drawn with {model}; the paper reports one setting per model."
        ),
        "reading": (
            "Each mark is a codebook. Marks at about one height mean that the thresholds hardly "
            "matter; a best mark far above its neighbours may be luck on few scenes, which is why "
            "the test scenes are asked only once, in notebook 06. Marks below the dashed line are "
            "worse than keeping tokens by lot. A hollow mark may be no worse a codebook than the "
            "chosen one; it rests on few tokens."
        ),
        "alt": (
            f"Means from {alive['mean'].min():.1%} to {alive['mean'].max():.1%}; chosen "
            f"{best['mean']:.1%} with {int(best['prototypes'])} prototypes; unpruned "
            f"{beside['unpruned']:.1%}, random {beside['random']:.1%}."
        ),
        "paper_item": "Section 9.1, hyperparameters",
    }


def grid_table(scores: pd.DataFrame, chosen: int, *, model: str) -> pd.DataFrame:
    """Every setting with its scores, the paper's setting in front, best first, then the rest."""
    settings = scores[scores["prototypes"].notna()].sort_values(
        "mean", ascending=False, kind="stable"
    )
    paper = {name: preset_value("paper", name, model) for name in GRID}
    settings = settings.assign(
        setting=settings["setting"].where(
            settings.index != chosen, settings["setting"] + " (chosen)"
        )
    )
    beside = scores[scores["prototypes"].isna()]
    rows = [pd.DataFrame([{"setting": "the paper's", **paper}]), beside, settings]
    frame = pd.concat(rows, ignore_index=True)
    counts = ["candidates", "prototypes"]
    heads = {"setting": "Setting"} | {name: name for name in GRID}
    heads |= {name: (name.capitalize(), ".0f") for name in counts}
    heads |= {name: (name, ".3f") for name in FIVE} | {"mean": ("Mean of five", ".3f")}
    return readable(frame.astype(dict.fromkeys([*GRID, *counts, *FIVE, "mean"], float)), heads)


def survivors_table(built: Built, contested: pd.DataFrame) -> pd.DataFrame:
    """How many of the probed tokens pass each criterion by itself, and all of them.

    contested: the tokens on which rounding may decide otherwise, `stages.contested`.
    """
    c, s = built.criteria, built.survivors
    least = "at most" if c.rule_out == "at-most" else "below"
    what = "images" if c.rule_in == "images" else "candidates"
    rules = {
        "probed": "probed",
        "tau_prob": f"{SCORES['top1_head']} below {c.tau_prob:.4g} (tau_prob), of those computed",
        "tau_out": f"cluster within the image {least} {c.tau_out:g} (tau_out)",
        "tau_jsd": f"JSD below {c.tau_jsd:.3g} (tau_jsd), of those computed",
        "candidates": "all three: candidates",
        "prototypes": f"cluster of more than {c.tau_in:g} {what} (tau_in): prototypes",
    }
    counted = [(text, int(s[name])) for name, text in rules.items()]
    counted.append(
        ("within a thousandth of tau_prob or tau_jsd: rounding may decide", len(contested))
    )
    rows = [(text, n, f"{n / s['probed']:.1%}") for text, n in counted]
    return pd.DataFrame(rows, columns=["Criterion", "Tokens", "Of the probed"])


def stages_table(counts: pd.DataFrame) -> pd.DataFrame:
    """What each stage cost, for one codebook and here; rows of `stage_counts` and their sum."""
    costs = ["forwards", "eager", "forwards_spent"]
    total = pd.DataFrame([{"stage": "all", **counts[costs].sum()}])
    frame = pd.concat([counts, total], ignore_index=True)
    frame = frame.assign(share=frame["forwards"] / frame["eager"])
    whole = ".0f"
    return readable(
        frame.astype(dict.fromkeys([*costs, "patches", "survivors"], float)),
        {
            "stage": "Stage",
            "patches": ("Patches", whole),
            "survivors": ("Left after it", whole),
            "forwards": ("Forwards", whole),
            "eager": ("Forwards, every patch", whole),
            "share": ("Share", ".1%"),
            "forwards_spent": ("Forwards, all settings together", whole),
        },
    )


def stages_note(counts: pd.DataFrame, *, model: str) -> dict:
    at = counts.set_index("stage")
    share = at.loc["global", "forwards"] / at.loc["global", "eager"]
    left = ", ".join(f"{name} {int(n)}" for name, n in at["survivors"].items())
    return {
        "title": "What each stage costs",
        "caption": (
            "Patches that come to each stage and are left after it, under the chosen thresholds, "
            "and the forwards for them: one for a token by itself, two for its window, one for "
            "the image with the window ablated and one for each intact image. Beside them those "
            "for every probed patch, and those that were spent here on all settings together. "
            f"Made with {model}; the paper reads every patch (Algorithm 1)."
        ),
        "reading": (
            "From top to bottom the patches become fewer and the forwards dearer. The prototypes "
            "are those of reading every patch; if they were not, the stages would be wrong."
        ),
        "alt": (
            f"Left after each stage: {left}. Global forwards {share:.1%} and all forwards "
            f"{counts['forwards'].sum() / counts['eager'].sum():.1%} of those for every patch."
        ),
        "paper_item": "Algorithm 1",
    }


_SURE = 0.5
"""A token says its word with confidence from this top-1 over the top-50 on."""


@style.styled
def token_map(rows: pd.DataFrame, *, low: float, words: int = 12) -> Figure:
    """Figure 7: one image's tokens by t-SNE, coloured by the top-1 over the top-50 and by [cls]
    similarity.

    low: a value of the first below it is ringed. words: how many confident tokens are named.
    """
    figure = style.figure(9.6, 5.2)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    panels = [(name, SCORES[name]) for name in ("top1_head", "cls_similarity")]
    for ax, (name, label) in zip(axes, panels, strict=True):
        drawn = ax.scatter(
            rows["x"], rows["y"], c=rows[name], cmap=style.AMOUNT, s=20, linewidths=0
        )
        ringed = rows[rows["top1_head"] < low]
        ax.scatter(
            ringed["x"], ringed["y"], s=42, facecolors="none",
            edgecolors=style.COLOURS["purple"], linewidths=0.8,
        )  # fmt: skip
        figure.colorbar(drawn, ax=ax, location="bottom", label=label, shrink=0.95, aspect=28)
        ax.set_title(f"coloured by {label}")
        ax.set_xlabel("t-SNE, no unit")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
    placed: list[np.ndarray] = []
    named: dict[str, int] = {}
    span = np.ptp(rows[["x", "y"]].to_numpy(), axis=0)
    sure = rows[rows["top1_head"] >= _SURE].sort_values("top1_head", ascending=False)
    for row in sure.itertuples():
        at = np.array([row.x, row.y])
        if len(placed) >= words:
            break
        # A name needs about a sixth of the panel's width and a fifteenth of its height.
        near = [(np.abs(at - other) / span < (0.17, 0.065)).all() for other in placed]
        if any(near) or named.get(row.word, 0) == 2:
            continue
        placed.append(at)
        named[row.word] = named.get(row.word, 0) + 1
        side = row.x > rows["x"].mean()
        axes[0].annotate(
            row.word, at, xytext=(-5 if side else 5, 0), textcoords="offset points", fontsize=9,
            ha="right" if side else "left", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )  # fmt: skip
    return figure


def token_map_note(rows: pd.DataFrame, *, low: float, model: str) -> dict:
    ringed = rows["top1_head"] < low
    rho = rows["top1_head"].corr(rows["cls_similarity"], method="spearman")
    return {
        "title": "One image's tokens in feature space",
        "caption": (
            f"The {len(rows)} visual tokens of {rows['image'].iloc[0]} by t-SNE (exact, started "
            "from "
            f"principal components, seed fixed). Rings: {SCORES['top1_head']} below {low:.3g}. "
            f"Words: what tokens decode to alone, of the {int((rows['top1_head'] >= _SURE).sum())} "
            f"with a {SCORES['top1_head']} of {_SURE:g} or more, where there is room, and none "
            f"more than twice. Drawn with {model}; the paper's figure shows LLaVA-Next."
        ),
        "reading": (
            "Distances between far groups mean nothing in t-SNE. The paper sees its "
            "low-probability "
            "tokens as scattered points outside the groups, and low probabilities where [cls] "
            "similarity is high; the table below tests the first on many images."
        ),
        "alt": (
            f"{int(ringed.sum())} of {len(rows)} tokens are ringed; rank correlation of the "
            f"{SCORES['top1_head']} with [cls] similarity in this image {rho:+z.2f}."
        ),
        "paper_item": "Figure 7",
    }


_ODDS = (1e-3, 1e3)
"""Odds ratios that are drawn; an interval may reach zero or infinity."""


@style.styled
def odds(table: pd.DataFrame) -> Figure:
    """Odds ratios with intervals, a row per number of clusters, a colour per bound."""
    figure = style.figure(8.2, 4.4)
    ax = figure.subplots()
    centres = list(dict.fromkeys(table["centres"]))
    bounds = list(dict.fromkeys(table["bound"]))
    ends = table.loc[np.isfinite(table["odds_ratio"]), ["odds_ratio", "low", "high"]].to_numpy()
    ends = ends[(ends >= _ODDS[0]) & (ends <= _ODDS[1])]
    edges = min([*ends, 0.5]) / 1.5, max([*ends, 2.0]) * 1.5
    for shift, bound, tint in zip(
        np.linspace(-0.27, 0.27, len(bounds)), bounds, style.CYCLE, strict=False
    ):
        part = table[(table["bound"] == bound) & np.isfinite(table["odds_ratio"])]
        ratio, low, high = (part[c].clip(*edges) for c in ("odds_ratio", "low", "high"))
        y = np.array([centres.index(c) for c in part["centres"]]) + shift
        colour, none = style.COLOURS[tint], (part["odds_ratio"] == 0).to_numpy()
        ax.errorbar(ratio, y, xerr=[ratio - low, high - ratio], fmt="none", ecolor=colour, lw=1.5)
        ax.plot(ratio[~none], y[~none], "o", color=colour, label=bound)
        # Zero lies beyond a logarithmic axis: a triangle whose tip touches the frame.
        ax.plot(ratio[none], y[none], ls="", marker=CARETLEFT, color=colour, ms=9, clip_on=False)
    ax.axvline(1, color=style.COLOURS["black"], lw=1, ls="--")
    _logarithmic(ax)
    ax.set_xlim(*edges)
    ax.set_yticks(range(len(centres)), [f"{c} clusters" for c in centres])
    ax.set_ylim(len(centres) - 0.5, -0.5)
    ax.set_xlabel("odds ratio: low-probability tokens in small clusters (log scale)")
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def odds_note(table: pd.DataFrame, *, model: str) -> dict:
    first = table[table["centres"] == 8].iloc[0]
    low = table.assign(bound=table["bound"].str.split(",").str[0]).groupby("bound", sort=False)
    shares = ", ".join(
        f"{share:.0%} ({bound})" for bound, share in low["low_share"].first().items()
    )
    zero = (
        " A triangle at the frame is an odds ratio of 0."
        if (table["odds_ratio"] == 0).any()
        else ""
    )
    return {
        "title": "Are low-probability tokens outliers?",
        "caption": (
            f"Odds of lying in a small cluster for tokens with a low {SCORES['top1_head']} over "
            f"those of the other tokens, within images, {int(first['tokens'])} tokens of "
            f"{int(first['images'])} test scenes, 95 % intervals from resampling images. Low is "
            "below the 0.1 of the paper's section 8.1, and below tau_prob: "
            f"{shares} of all tokens; small is below the "
            "paper's 8, and below tau_out, scaled from the probed tokens to all. Clusters are "
            "those of all tokens of the image; a cluster is small below the bound at 8 clusters, "
            "and below 8 / C of it at C. No mark: no cluster is that small or "
            f"no token that low. An interval up to the frame goes on.{zero} "
            f"Drawn with {model}; the paper shows it by a map of one image, of LLaVA-Next."
        ),
        "reading": (
            "Right of the dashed line the paper's statement holds; left of it low-probability "
            "tokens "
            "lie in large clusters more often than the others. Rows that disagree mean that the "
            "answer depends on the number of clusters, which the paper does not give; colours "
            "that disagree, that it depends on what is called low or small."
        ),
        "alt": (
            f"With 8 clusters and {first['bound']}: odds ratio {first['odds_ratio']:.2f} "
            f"({first['low']:.2f} to {first['high']:.2f}); "
            f"pooled over images, {first['outliers_low']:.0%} of low-probability and "
            f"{first['outliers_other']:.0%} of other tokens are outliers."
        ),
        "paper_item": "Section 8.1, Figure 7",
    }


@style.styled
def candidate_map(placed: pd.DataFrame, *, tau_in: float) -> Figure:
    """Figure 8: all candidates by t-SNE; ringed: in a cluster over tau_in, the largest of them each
    in a colour of its own."""
    figure = style.figure(9.8, 5.8)
    ax = figure.subplots()
    ax.scatter(placed["x"], placed["y"], c=style.COLOURS["grey"], s=14, linewidths=0, alpha=0.6)
    kept = placed[placed["prototype"]]
    ax.scatter(
        kept["x"], kept["y"], s=46, facecolors="none", edgecolors=style.COLOURS["black"],
        linewidths=0.8,
    )  # fmt: skip
    largest = _largest(kept, len(style.CYCLE))
    for cluster, tint, marker in zip(largest, style.CYCLE, "os^Dvp", strict=False):
        part = kept[kept["cluster"] == cluster]
        first = part.iloc[0]
        ax.scatter(
            part["x"], part["y"], s=26, c=style.COLOURS[tint], marker=marker, linewidths=0,
            label=f"{cluster}: {first['cluster_size']} tokens,\n{first['cluster_images']} images",
        )  # fmt: skip
        away = (part[["x", "y"]] - part[["x", "y"]].median()).pow(2).sum(axis=1)
        ax.annotate(
            str(cluster), part.loc[away.idxmin(), ["x", "y"]], xytext=(0, 5),
            textcoords="offset points", ha="center", va="bottom", fontsize=9, fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    ax.margins(0.08)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.set_xlabel("t-SNE, no unit")
    ax.set_title(f"ringed: in a cluster of more than {tau_in:g}")
    title = "the largest clusters" if kept["cluster"].nunique() > len(largest) else "the clusters"
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title=title)
    return figure


def _largest(kept: pd.DataFrame, n: int) -> list[int]:
    """The n clusters of most candidates, largest first."""
    sizes = kept.groupby("cluster")["cluster_size"].first()
    return sizes.sort_values(ascending=False, kind="stable").index[:n].tolist()


def candidate_map_note(placed: pd.DataFrame, built: Built, *, model: str) -> dict:
    chosen = built.candidates[built.candidates["prototype"]]
    sizes = chosen.groupby("cluster")["image"].nunique()
    drawn = (
        "" if len(placed) == len(built.candidates) else f" ({len(placed)} of them, evenly taken)"
    )
    coloured = (
        f"; in colour the {len(style.CYCLE)} largest of these {len(sizes)}"
        if len(sizes) > len(style.CYCLE)
        else ", each in a colour and shape"
    )
    counts = chosen.groupby("cluster")[["cluster_size", "cluster_images"]].first()
    told = ", ".join(
        f"{cluster} ({counts.loc[cluster, 'cluster_size']} from "
        f"{counts.loc[cluster, 'cluster_images']})"
        for cluster in _largest(chosen, len(style.CYCLE))
    )
    return {
        "title": "Candidates of all images in feature space",
        "caption": (
            f"The {len(built.candidates)} candidates{drawn} of "
            f"{built.candidates['image'].nunique()} training images by t-SNE. Ringed: the members "
            f"of clusters that the inlier threshold keeps{coloured}. A number names the cluster, "
            "as in the sheet below, above its member nearest to the cluster's middle; the legend "
            "says how many candidates it holds and from how many images. "
            f"Drawn with {model}; the paper's figure shows LLaVA-Next."
        ),
        "reading": (
            "A cluster from many images holds tokens that images share: general, so kept. A "
            "ringed cluster from one or two images would mean that the size rule keeps tokens of "
            "one image; the released code counts images instead. Clusters are those of the "
            "features; on the map one may lie in several places."
        ),
        "alt": (
            f"{len(sizes)} of {len(built.clusters.centre_index)} clusters are kept, with "
            f"{len(chosen)} of {len(built.candidates)} candidates; a kept cluster spans "
            f"{int(sizes.min())} to {int(sizes.max())} images. Largest, candidates and images: "
            f"{told}."
        ),
        "paper_item": "Figure 8",
    }


SHEET_COLUMNS = 14
"""Patches that a row of the contact sheet has room for."""


@style.styled
def contact_sheet(
    built: Built, views: Mapping[str, Image.Image], grid: Grid, *, rows: int = 10
) -> Figure:
    """Patches behind the largest prototype clusters, a row per cluster."""
    chosen = built.candidates[built.candidates["prototype"]]
    order = chosen["cluster"].value_counts(sort=True).index[:rows]
    figure = style.figure(9.6, 0.62 * len(order) + 0.25)
    axes = figure.subplots(len(order), SHEET_COLUMNS, squeeze=False)
    for line, cluster in zip(axes, order, strict=True):
        part = chosen[chosen["cluster"] == cluster]
        take = np.unique(np.linspace(0, len(part) - 1, SHEET_COLUMNS).astype(int))
        for ax in line:
            ax.axis("off")
        for ax, row in zip(line, part.iloc[take].itertuples(), strict=False):
            ax.axis("on")
            show_cut(
                ax, cut(views[row.image], grid, row.patch), around=1, colour=style.COLOURS["red"]
            )
        line[0].text(
            -0.25, 0.5, f"{cluster}: {len(part)} from {part['image'].nunique()}",
            transform=line[0].transAxes, ha="right", va="center", fontsize=9,
        )  # fmt: skip
    return figure


def contact_sheet_note(built: Built, words: pd.Series, *, model: str) -> dict:
    chosen = built.candidates[built.candidates["prototype"]]
    common = words.value_counts().head(4)
    told = ", ".join(f"{word} {n}" for word, n in common.items())
    return {
        "title": "What the prototypes look like",
        "caption": (
            "Patches behind the largest prototype clusters, each in the middle of its 3 x 3 "
            "window; label: cluster, tokens, and images they come from. "
            f"Of each at most {SHEET_COLUMNS} are drawn, spread over the images; grey lies beyond "
            "the image. "
            f"Drawn with {model}; the paper shows no patches behind its prototypes."
        ),
        "reading": (
            "Rows of bare ground are what the criteria are meant to find. A row of object parts "
            "says "
            "that the model does not recognise these parts alone, and pruning by this codebook "
            "will "
            "remove them."
        ),
        "alt": (
            f"{chosen['cluster'].nunique()} clusters with {len(chosen)} prototypes; most frequent "
            f"words of the single-token probe: {told}; mean {SCORES['top1_head']} "
            f"{chosen['top1_head'].mean():.2f}."
        ),
        "paper_item": "Figure 8, patches",
    }
