"""The study of 6,400 patches: does a visual token matter where intermediate states say so?

Section 3.2 measures four quantities on 64 patches of each of 100 images: the top-1 probability of
the single-token probe, the divergence of the cascaded leave-one-out, the text-to-image attention,
and the similarity to [cls]. The first two read the model's *output*, the last two are the
*intermediate states* that pruning methods trust. If the states were good stand-ins, patches sorted
by a state would show falling outputs. Figure 4 says that they do not.

    table = study(session)                       # one row per patch
    curves(table, "cls_similarity")              # Figure 4, left: means per rank
    rank_correlations(table, "cls_similarity")   # the trend as one number per quantity

Every interval here comes from resampling *images*, since the patches of an image are not
independent draws.

Two things go beyond the paper. The released notebook never resets its sum of attention scores
between images, so its image n is sorted by the sum over images 1..n; `add_running_sum` makes that
order too, so that both can be compared. And on scenes with exact masks it is known which patches
hold an object: `auroc` asks how well each number tells them from bare ground.
"""

from math import isqrt

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from redlib import leave_one_out, probe, states
from redlib.bench import Interval, difference, interval
from redlib.data.images import ROLES
from redlib.data.photographs import Picture
from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.models import VLM
from redlib.notebook import MEASURING, Session
from redlib.study import LEAST_IMAGES, SILENT
from redlib.study.verdict import Verdict, above, number, percent, untold
from redlib.tabletop import Scene, questions

START = ROLES["study"].first
"""First test scene of the study; the pruning evaluation asks about the scenes from 0 on."""

ORDERS: dict[str, str] = {
    "cls_similarity": "[cls] similarity",
    "attention": "attention",
    "attention_running": "running sum of attention",
}
"""What patches are sorted by."""

QUANTITIES: dict[str, str] = {
    "top1": "top-1 probability",
    "jsd_final": "JSD (eq. 11)",
    "attention": "attention, 3 layers",
    "cls_similarity": "[cls] similarity",
}
"""The four quantities of Figure 4."""

LEVEL = 0.3
"""A rank correlation below it is weak: a curve that surely has less does not decline."""

SCORES: dict[str, str] = {
    "top1": "top-1 probability",
    "top1_head": "top-1 over top-50",
    "jsd_final": "JSD (eq. 11)",
    "cls_similarity": "[cls] similarity",
    "attention": "attention",
    "attention_asked": "attention, asked",
    "norm": "feature norm",
}
"""Scores whose agreement with the truth is measured; "attention" is that under the one-word prompt,
"attention_asked" that under the question, which exists where an object is asked about."""

TARGETS: dict[str, str] = {
    "object": "an object covers the patch",
    "asked": "the asked object covers the patch",
    "which": "the asked object covers it, not another",
}
"""What may be true of a patch. A score that is higher on all objects does well at the first two and
knows nothing of the third."""


def sample(grid: Grid, n: int) -> np.ndarray:
    """(n,) raster indices of patches spread evenly over the grid, n a square number.

    64 of a 24 x 24 grid are rows and columns 1, 4, ..., 22, those of the released code. Raises
    RedlibError for an `n` that is no square, or larger than the grid's shorter side squared.
    """
    side = isqrt(n)
    if side * side != n or not 1 <= side <= min(grid.height, grid.width):
        raise RedlibError(
            f"study_patches must be a square number of at most {min(grid.height, grid.width)} "
            f"rows and columns, so that the patches form a grid; got {n!r}"
        )
    rows, cols = (
        ((np.arange(side) + 0.5) * length / side).astype(int)
        for length in (grid.height, grid.width)
    )
    return (rows[:, None] * grid.width + cols[None, :]).ravel()


def study(session: Session) -> pd.DataFrame:
    """The table of all patches, one row each; see `measure` for the columns.

    Images already measured under the same parameters are read back.
    """
    p, vlm = session.params, session.model
    chosen = sample(vlm.grid, p.study_patches)
    settings = {
        "prompt": p.prompt,
        "top_prob": p.top_prob,
        "top_jsd": p.top_jsd,
        "definition": p.jsd_definition,
        "weights": [p.k_region, p.k_global],
    }
    store = session.store(
        "patches",
        code=(*MEASURING, "study/patches", "tabletop/world", "tabletop/questions"),
        patches=chosen,
        start=START,
        **settings,
        **session.of_images("study"),
    )
    drawn = studied(session)
    return store.compute(
        drawn, lambda name: measure(vlm, drawn[name], chosen, **settings), describe="images"
    )


def studied(session: Session) -> dict[str, Scene | Picture]:
    """The images of the study, by id."""
    return {one.id: one for one in session.images("study", session.params.study_images)}


def measure(
    vlm: VLM,
    shown: Scene | Picture,
    patches: np.ndarray,
    *,
    prompt: str,
    top_prob: int,
    top_jsd: int,
    definition: str,
    weights: list[float],
) -> pd.DataFrame:
    """All numbers of the study for some patches of one scene or photograph.

    Returns one row per patch: image, objects (their number), patch; word, top1, top1_head; the
    jsd columns; cls_similarity, norm; attention (sum over the shallow, middle and deep layer of
    the mean over heads, under the one-word prompt) and attention_asked (the same under a question
    about one object, or a photograph's own question); covered (share under any object), written
    (share under the card with a word), asked_covered (share under the asked object). NaN where
    nothing can be asked, or where the truth is not known.
    """
    encoded = vlm.encode([shown.image])
    tokens = encoded.tokens[0]
    layers = list(vlm.layers)
    question, known = _known(shown, vlm)
    under_question = np.full(vlm.grid.size, np.nan)
    if question:
        under_question = states.attention(vlm, tokens, prompt=question)[layers].sum(axis=0)
    single = probe.single(vlm, tokens, patches, prompt=prompt, top=top_prob)
    without = leave_one_out.cascade(
        vlm,
        tokens,
        patches,
        prompt=prompt,
        top=top_jsd,
        top_released=top_jsd,
        definition=definition,
        weights=(weights[0], weights[1]),
    )
    attention = states.attention(vlm, tokens, prompt=prompt)[layers].sum(axis=0)
    frame = single[["patch", "word", "top1", "top1_head", "article"]].copy()
    frame.insert(0, "image", shown.id)
    frame.insert(1, "objects", known.pop("objects"))
    frame = frame.merge(without, on="patch")
    for name, values in {
        "cls_similarity": encoded.cls_similarity[0].cpu().numpy(),
        "norm": encoded.norms[0].cpu().numpy(),
        "attention": attention,
        "attention_asked": under_question,
        **known,
    }.items():
        frame[name] = np.asarray(values, dtype=float)[patches]
    return frame


def _known(shown: Scene | Picture, vlm: VLM) -> tuple[str, dict[str, float | np.ndarray]]:
    """A question about an image, "" for none, and the truth: objects, and the shares of `measure`
    for every patch of the grid."""
    unknown = np.full(vlm.grid.size, np.nan)
    if isinstance(shown, Picture):
        truth = dict.fromkeys(("covered", "written", "asked_covered"), unknown)
        return shown.question, {"objects": np.nan, **truth}
    coverage = shown.coverage(vlm.sight)  # (objects, L)
    question = asked_question(shown)
    return question.text if question else "", {
        "objects": len(shown.objects),
        "covered": coverage.sum(axis=0),
        "written": shown.word_coverage(vlm.sight),
        "asked_covered": coverage[question.asked] if question else unknown,
    }


def typical(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first image with three objects or more, or of the last image."""
    several = table.loc[table["objects"] >= 3, "image"]
    return table[table["image"] == (several if len(several) else table["image"][::-1]).iloc[0]]


def asked_question(scene: Scene):
    """A question about the colour of one object of the scene, the same whenever it is asked for.

    None where no object can be named without ambiguity.
    """
    able = questions([scene], "colour")
    if not able:
        return None
    number = int(scene.id.split("-")[1])
    return able[np.random.default_rng([number, len(able)]).integers(len(able))]


def add_running_sum(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `attention_running`: attention summed over this image and all before it.

    That is what the released notebook sorts and plots, since its accumulator is never reset; the
    sum goes over the same patch of each image, in the table's order of images.
    """
    running = table.groupby("patch", sort=False)["attention"].cumsum()
    return table.assign(attention_running=running)


def curves(
    table: pd.DataFrame,
    order: str,
    quantities: tuple[str, ...] = tuple(QUANTITIES),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means per rank when the patches of each image are sorted by falling `order` (Figure 4).

    Equal values keep their raster order. Returns one row per quantity and rank (1 is the highest):
    order, quantity, rank, mean over images, and the 95 % interval low, high.
    """
    rows = []
    for quantity in quantities:
        values = _sorted(table, order, quantity)  # (images, ranks)
        low, high = np.quantile(_resampled_means(values, resamples, seed), [0.025, 0.975], axis=0)
        rows.append(
            pd.DataFrame(
                {
                    "order": order,
                    "quantity": quantity,
                    "rank": np.arange(1, values.shape[1] + 1),
                    "mean": values.mean(axis=0),
                    "low": low,
                    "high": high,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def rank_correlations(
    table: pd.DataFrame,
    order: str,
    quantities: tuple[str, ...] = ("top1", "jsd_final"),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman correlation of each quantity with `order`; positive where they fall together.

    Two readings: "within image", the correlation over the patches of an image, averaged over
    images; "mean curve", the correlation of Figure 4's averaged points with their order, which
    leaves out the scatter and is therefore always the larger. Images in which either is constant
    have no correlation and are left out of the first.

    Returns order, quantity, reading, rho, low, high, images.
    """
    rows = []
    for quantity in quantities:
        each = []
        for _, part in table.groupby("image", sort=False):
            each.append(spearman(part[order].to_numpy(), part[quantity].to_numpy()))
        known = np.array([rho for rho in each if np.isfinite(rho)])
        within = (np.nan, np.nan, np.nan)
        if len(known):
            found = interval(known, np.arange(len(known)), resamples=resamples, seed=seed)
            within = (found.mean, found.low, found.high)
        values = _sorted(table, order, quantity)
        falling = -np.arange(values.shape[1], dtype=float)
        drawn = [spearman(falling, means) for means in _resampled_means(values, resamples, seed)]
        ends = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else [np.nan] * 2
        curve = (spearman(falling, values.mean(axis=0)), *ends)
        for reading, numbers, n in (
            ("within image", within, len(known)),
            ("mean curve", curve, len(values)),
        ):
            rows.append((order, quantity, reading, *map(float, numbers), n))
    columns = ["order", "quantity", "reading", "rho", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one side is constant."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def deciles(
    table: pd.DataFrame,
    order: str = "cls_similarity",
    value: str = "top1",
    *,
    below: float = SILENT,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of `value` in each tenth of an image's patches by falling `order` (1 is the highest).

    Returns decile, mean, low, high (over images), and below: the share of its patches whose value
    is under that bound.
    """
    parts = with_deciles(table, order)
    rows = []
    for decile, part in parts.groupby("decile"):
        per_image = part.groupby("image", sort=False)[value].mean()
        found = interval(per_image, per_image.index, resamples=resamples, seed=seed)
        rows.append((decile, found.mean, found.low, found.high, (part[value] < below).mean()))
    return pd.DataFrame(rows, columns=["decile", "mean", "low", "high", "below"])


def with_deciles(table: pd.DataFrame, order: str) -> pd.DataFrame:
    """The table with `decile`, 1..10, of each patch in its image by falling `order`."""
    rank = table.groupby("image", sort=False)[order].rank(method="first", ascending=False)
    count = table.groupby("image", sort=False)[order].transform("size")
    return table.assign(decile=((rank - 1) * 10 // count).astype(int) + 1)


def top_decile_difference(
    table: pd.DataFrame,
    order: str = "cls_similarity",
    value: str = "top1",
    *,
    resamples: int = 2000,
    seed: int = 0,
):
    """Mean of `value` in the highest tenth minus that in the rest, paired by image (Interval)."""
    parts = with_deciles(table, order)
    highest = parts["decile"] == 1
    top = parts[highest].groupby("image", sort=False)[value].mean()
    rest = parts[~highest].groupby("image", sort=False)[value].mean().reindex(top.index)
    return difference(top, rest, top.index, resamples=resamples, seed=seed)


def truth(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """The patches whose truth is clear, with `positive`.

    target "object": positive where objects cover at least half of the patch, negative where no
    object and no card touches it. "asked": positive where the asked object covers at least half,
    negative where it covers nothing, whatever else is there. "which": the same, and negative only
    where other objects cover at least half, so that bare ground helps no score. Patches in between,
    and for the last two images without a question, are left out. Raises RedlibError for another
    target.
    """
    if target not in TARGETS:
        raise RedlibError(f"target must be one of {', '.join(TARGETS)}; got {target!r}")
    if target == "object":
        share = table["covered"]
        negative = (share == 0) & (table["written"] == 0)
    else:
        share = table["asked_covered"]
        negative = share == 0
        if target == "which":
            negative &= table["covered"] >= 0.5
    positive = share >= 0.5
    return table[positive | negative].assign(positive=positive)


def auroc(
    table: pd.DataFrame,
    target: str,
    scores: tuple[str, ...] = tuple(SCORES),
    *,
    levels: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each score tells covered patches from the others: area under the ROC curve.

    0.5 is chance; below 0.5 the score is *higher* on what is not covered. "pooled" compares the
    patches of all images, as a fixed threshold would; "within image" averages over the images in
    which both kinds occur, as a fixed budget per image would.

    Args:
        table: rows of `study`.
        target: a key of TARGETS; "object" has no "attention_asked".
        levels: one row per number of objects (pooled) instead of over all images.

    Returns target, score, reading, level (0 for all), auroc, low, high, images, positives,
    negatives; NaN where one kind of patch is missing.
    """
    clear = truth(table, target)
    if target == "object":
        scores = tuple(name for name in scores if name != "attention_asked")
    rows = []
    for level in sorted(table["objects"].unique()) if levels else [0]:
        part = clear[clear["objects"] == level] if levels else clear
        for score in scores:
            for reading, numbers in _auroc(part, score, resamples, seed, within=not levels):
                rows.append((target, score, reading, int(level), *numbers))
    columns = ["target", "score", "reading", "level", "auroc", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "images", "positives", "negatives"])


def _auroc(part: pd.DataFrame, score: str, resamples: int, seed: int, *, within: bool):
    """Yield (reading, (auroc, low, high, images, positives, negatives))."""
    wins, positives, negatives = win_matrix(
        part[score].to_numpy(float), part["positive"].to_numpy(bool), part["image"].to_numpy()
    )
    counts = (int(positives.sum()), int(negatives.sum()))
    weights = draws(len(wins), resamples, seed)
    with np.errstate(invalid="ignore"):
        pooled = wins.sum() / (positives.sum() * negatives.sum())
        drawn = ((weights @ wins) * weights).sum(axis=1) / (
            (weights @ positives) * (weights @ negatives)
        )
    yield "pooled", (pooled, *_ends(drawn), len(wins), *counts)
    if within:
        both = (positives > 0) & (negatives > 0)
        each = wins.diagonal()[both] / (positives * negatives)[both]
        numbers = (np.nan,) * 3
        if len(each):
            found = interval(each, np.arange(len(each)), resamples=resamples, seed=seed)
            numbers = (found.mean, found.low, found.high)
        kept = (int(positives[both].sum()), int(negatives[both].sum()))
        yield "within image", (*numbers, int(both.sum()), *kept)


def win_matrix(
    score: np.ndarray, positive: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wins of positives over negatives between all pairs of images.

    Returns wins (I, I): over the positives of image i and the negatives of image j, how often the
    positive scores higher (a tie is half a win); and how many positives and negatives each of the
    I images has. The area under the ROC curve of any set of images, also with repeats, is a sum
    over this matrix, so that a bootstrap over images costs no sorting.
    """
    names, code = np.unique(image, return_inverse=True)
    one_hot = np.eye(len(names))[code]  # (n, I)
    high, low = score[positive], score[~positive]
    beats = (high[:, None] > low) + 0.5 * (high[:, None] == low)  # (positives, negatives)
    wins = one_hot[positive].T @ beats @ one_hot[~positive]
    return wins, one_hot[positive].sum(axis=0), one_hot[~positive].sum(axis=0)


def _sorted(table: pd.DataFrame, order: str, quantity: str) -> np.ndarray:
    """(images, ranks) values of `quantity`, each image sorted by falling `order`."""
    rows = []
    for _, part in table.groupby("image", sort=False):
        by = np.argsort(-part[order].to_numpy(), kind="stable")
        rows.append(part[quantity].to_numpy()[by])
    return np.stack(rows)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, ranks) means over images drawn with replacement."""
    return draws(len(values), resamples, seed) @ values / len(values)


def draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, n) how often each of n images is drawn."""
    if n == 0:
        return np.zeros((resamples, 0))
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def trend_verdict(correlations: pd.DataFrame, order: str, quantity: str) -> Verdict:
    """Figure 4's statement about one quantity in one order, by the averaged points' correlation."""
    row = _one(correlations, order=order, quantity=quantity, reading="mean curve")
    within = _one(correlations, order=order, quantity=quantity, reading="within image")
    falls = _falls(row)
    return Verdict(
        f"{_capital(QUANTITIES[quantity])} does not decline with falling {ORDERS[order]} (the "
        f"interval of the mean curve's rank correlation lies below {LEVEL:g}; it declines if that "
        "lies above 0)",
        None if falls is None else not falls,
        f"rank correlation of the {row['images']} images' mean curve {_triple(row)}; within an "
        f"image on average {_triple(within)} (positive: they fall together)",
        "Figure 4",
    )


def order_verdict(correlations: pd.DataFrame) -> Verdict:
    """Whether the finding without a declining trend survives the order the paper describes."""
    parts, falls = [], []
    for quantity in ("top1", "jsd_final"):
        for order in ("attention", "attention_running"):
            row = _one(correlations, order=order, quantity=quantity, reading="mean curve")
            parts.append(f"{QUANTITIES[quantity]} by {ORDERS[order]} {_triple(row)}")
            if order == "attention":
                falls.append(_falls(row))
    return Verdict(
        "Without the running sum, sorted by each image's own attention, there is still no "
        "declining "
        "trend in top-1 probability or JSD",
        False if True in falls else None if None in falls else True,
        "; ".join(parts),
        "Figure 4",
    )


def _falls(row: pd.Series) -> bool | None:
    """Whether a curve falls: its correlation's whole interval is above 0. That it does not can be
    said where the interval excludes LEVEL; one that only includes 0 may just be wide. Where both
    are so it falls a little, which is open. Draws of images add noise to the mean curve, which
    takes from its correlation, so that the upper end has to hold as far above the number as the
    lower end is below it."""
    if not _enough(row):
        return None
    high = max(row["high"], 2 * row["rho"] - row["low"])
    surely, hardly = row["low"] > 0, high < LEVEL
    return None if surely == hardly else bool(surely)


def decile_verdict(table: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    """Section 7.4's remark on the tokens with the highest similarity to [cls]."""
    found = top_decile_difference(table, resamples=resamples, seed=seed)
    first = deciles(table, resamples=resamples, seed=seed).iloc[0]
    return Verdict(
        "The tokens most similar to [cls] have a lower top-1 probability than the others",
        None if found.low <= 0 <= found.high or found.clusters < LEAST_IMAGES else found.high < 0,
        f"highest tenth minus the rest {number(found, 3)} over {found.clusters} images; mean in "
        "the "
        f"highest tenth {first['mean']:.3f}, {first['below']:.0%} of it below {SILENT:g}",
        "Section 7.4",
    )


def silent_verdict(
    table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 0.05
) -> Verdict:
    """The same section's remark as it is worded: of *certain* tokens of the highest similarity."""
    highest = with_deciles(table, "cls_similarity")["decile"] == 1
    low = table["top1"] < SILENT
    silent = interval(low[highest], table["image"][highest], resamples=resamples, seed=seed)
    return Verdict(
        f"Some of the tokens most similar to [cls] have a top-1 probability below {SILENT:g} (over "
        f"{bound:.0%} of each image's highest tenth)",
        above(silent, bound),
        f"{percent(silent)} of {silent.n} such tokens, and {low[~highest].mean():.0%} of the "
        f"others; {silent.clusters} images",
        "Section 7.4",
    )


def auroc_lead(
    table: pd.DataFrame, target: str, score: str, rival: str, *, resamples: int, seed: int
) -> Interval:
    """How much larger the pooled area under the ROC curve of one score is than that of another,
    drawn together: both are judged on the same images of every draw."""
    clear = truth(table, target)
    positive, image = clear["positive"].to_numpy(bool), clear["image"].to_numpy()
    leads = []
    for name in (score, rival):
        wins, positives, negatives = win_matrix(clear[name].to_numpy(float), positive, image)
        weights = np.vstack([np.ones(len(wins)), draws(len(wins), resamples, seed)])
        with np.errstate(invalid="ignore"):
            pairs = (weights @ positives) * (weights @ negatives)
            leads.append(((weights @ wins) * weights).sum(axis=1) / pairs)
    lead = leads[0] - leads[1]
    return Interval(float(lead[0]), *_ends(lead[1:]), len(clear), len(np.unique(image)))


def finding_verdict(
    table: pd.DataFrame | None,
    target: str,
    score: str,
    rival: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Whether an output-side score tells covered patches apart better than a state does.

    table: rows of `study`; None where no truth is known.
    """
    statement = (
        f"{_capital(SCORES[score])} tells whether {TARGETS[target]} better than {SCORES[rival]}"
    )
    finding = "Finding 1" if score.startswith("top1") else "Finding 2"
    if table is None:
        return untold(statement, finding)
    areas = auroc(table, target, (score, rival), resamples=resamples, seed=seed)
    rows = [_one(areas, score=name, reading="pooled") for name in (score, rival)]
    lead = auroc_lead(table, target, score, rival, resamples=resamples, seed=seed)
    return Verdict(
        statement,
        above(lead, 0.0),
        " against ".join(f"AUROC {row['auroc']:.3f}" for row in rows)
        + f", ahead by {lead.mean:+z.4f} (95% interval {lead.low:+z.4f} to {lead.high:+z.4f}), "
        f"pooled over {rows[0]['positives']} covered and {rows[0]['negatives']} other patches; "
        f"{lead.clusters} images",
        finding,
    )


def _enough(row: pd.Series) -> bool:
    return bool(np.isfinite(row["low"])) and row["images"] >= LEAST_IMAGES


def _one(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame.iloc[0]


def _triple(row: pd.Series) -> str:
    return f"{row['rho']:+z.2f} ({row['low']:+z.2f} to {row['high']:+z.2f})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
