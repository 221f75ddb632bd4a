"""Figures of the pruning evaluation (notebook 06), each with the function that writes its texts.

What a budget costs in answers, as the paper's Table 1 tells it, and what that does not tell: the
difference on the *same* questions, since two overlapping intervals are not yet equal methods. One
image at work stands in `figures.walk`, Figure 9 in `figures.falloff`.

Tables return text for readers; the numbers with all their digits are saved beside them.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from redlib.figures import style
from redlib.figures.ablation import points, say_alike
from redlib.figures.falloff import by_tile, inside
from redlib.study import LEAST_IMAGES
from redlib.study.pruning import METHODS, PAPER
from redlib.study.verdict import bounds
from redlib.tables import readable, with_interval

_HEADS = {
    "pope": "POPE", "mmb": "MMBench", "seed": "SEED", "rwqa": "RealWorldQA", "mme": "MME",
    "nocaps": "NoCaps", "flickr": "Flickr30k",
}  # fmt: skip
_SETTINGS = {"base": "base tile", "split": "each of five tiles"}


@style.styled
def differences(tables: dict[int, pd.DataFrame]) -> Figure:
    """Paired differences Ours - Random per task, a panel per budget."""
    figure = style.figure(9.2, 4.2)
    axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (tokens, table) in zip(axes, tables.items(), strict=True):
        for y, row in enumerate(table.itertuples()):
            size, tint = (9, "red") if row.task == "mean" else (6, "blue")
            value = 100 * row.difference
            if row.images < LEAST_IMAGES:
                ax.plot(value, y, "o", ms=size, mfc="none", mec=style.COLOURS["grey"])
                continue
            ends = 100 * np.array([[row.difference - row.low], [row.high - row.difference]])
            ax.errorbar(
                value, y, xerr=ends, fmt="o", ms=size, lw=1.6, color=style.COLOURS[tint]
            )  # fmt: skip
        judged = (table["images"] >= LEAST_IMAGES).to_numpy()
        say_alike(ax, table.loc[judged, ["difference", "low", "high"]], np.flatnonzero(judged))
        ax.axvline(0, color=style.COLOURS["black"], lw=1, ls="--")
        ax.set_title(f"{tokens} tokens")
        ax.set_xlabel("Ours minus Random, percentage points")
        ax.grid(axis="y", visible=False)
    first = next(iter(tables.values()))
    heads = _HEADS | {"mean": "mean of five tasks", "captions": "mean of both captions"}
    axes[0].set_yticks(
        range(len(first)),
        [f"{heads[r.task]} (n = {r.n})" for r in first.itertuples()],
    )
    axes[0].invert_yaxis()
    return figure


def differences_note(tables: dict[int, pd.DataFrame], *, model: str, seeds: int) -> dict:
    told = []
    for tokens, table in tables.items():
        row = table[table["task"] == "mean"].iloc[0]
        interval = bounds(row["low"], row["high"])
        if row["images"] < LEAST_IMAGES:
            interval = "too few images to decide"
        told.append(f"at {tokens} tokens {100 * row['difference']:+z.1f} points ({interval})")
    both = pd.concat(tables.values())
    captions = few = ""
    if both["task"].isin(["nocaps", "flickr"]).any():
        captions = (
            "; NoCaps and Flickr30k by the metric of captions in Table 1 (of drawn scenes "
            "tabletop-SPICE, F1 of the scene graph), and the mean of both"
        )
    if (both["images"] < LEAST_IMAGES).any():
        few = f" Hollow, without interval: fewer than {LEAST_IMAGES} images, which decide nothing."
    return {
        "title": "Ours against Random, question by question",
        "caption": (
            "Paired differences of scores on the same questions, R lowest against the mean of "
            f"{seeds} random draw{'s' if seeds > 1 else ''}: accuracy, of MMBench in all "
            f"rotations; MME by its own score (accuracy and pairs){captions}. 95 % intervals from "
            f"resampling images.{few} Drawn with {model}; the paper compares on LLaVA-1.5, "
            "LLaVA-Next and LLaVA-OneVision."
        ),
        "reading": (
            "An interval right of the dashed line means that choosing by the codebook beats the "
            "lot for that task; left of it, that it is worse. An interval across the line decides "
            "nothing."
        ),
        "alt": "Mean of five tasks: " + "; ".join(told) + ".",
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

    Rows of `study.savings.with_reading` and of `study.scoring.shares`; below those of the paper's
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
            f"them, two per parameter and token. {inside(summary, depth, size)}"
            f"{by_tile(summary)} Computed with {model}; {theirs}."
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
        shown=_differences(part, "difference"),
    )  # fmt: skip
    return _words(part, {"against": "Against", "shown": "Difference of scores, points"})


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
    part = part.assign(method=part["method"].map(METHODS), shown=_differences(part, "change"))
    heads = {"method": "Method", "from": "From", "tokens": "To"}
    heads |= {"shown": "Change of the share, points"}
    return readable(part, heads | {"n": "n", "images": "Images"})


def informative_gaps_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Rows of `study.scoring.informative_gaps`."""
    part = gaps.assign(against=gaps["against"].map(METHODS), shown=_differences(gaps, "difference"))
    heads = {"against": "Against", "tokens": "Tokens", "shown": "Difference of shares kept, points"}
    return readable(part, heads | {"images": "Images"})


def _differences(part: pd.DataFrame, value: str) -> list[str]:
    """Each row's difference of shares in percentage points, with its interval."""
    return [points(row, value, "low", "high", "+") for _, row in part.iterrows()]


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
        "Random: mean of its draws. The CSV file has every category and draw. Without intervals, "
        "which stand beside the accuracies, subset by subset; n tells how sure a category is.",
        "Adversarial absent objects are those that often stand beside what is there: a model that "
        "answers by habit loses there first. acc+ far below accuracy means answers by habit too.",
        "Table 1",
    ),
    "steps": (
        "What a smaller budget costs",
        "Change of the five-task share (pruned over unpruned) from one budget to a smaller one, on "
        "the same questions.",
        "An interval below -5: a collapse in the sense of the ledger. One above it: robust.",
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
    """Operations and bytes; rows of `study.savings.costs`."""
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
