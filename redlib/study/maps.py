"""Visual tokens as points: maps by t-SNE, and what the maps suggest, tested (section 8.1).

Figure 7 shows one image's tokens and says that those with a low top-1 probability often lie apart
from the rest. A map of one image can suggest that; t-SNE invents gaps of its own. So the statement
is also tested without a map, on many images: are tokens with a low probability more often in small
clusters? The answer is an odds ratio, taken within images (Mantel and Haenszel), because images
differ in both shares, with an interval from resampling images:

    table = cluster_sizes(session)                       # every token of some held-out images
    odds_ratio(table["top1_head"] < 0.1, table["size_8"] < 8, table["image"])
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from redlib import probe
from redlib.bench import Interval
from redlib.clustering import cluster_tokens
from redlib.data.images import ROLES
from redlib.data.photographs import Picture
from redlib.models import VLM
from redlib.notebook import MEASURING, Session
from redlib.study import LEAST_IMAGES
from redlib.study.codebooks import Built
from redlib.study.patches import draws
from redlib.study.verdict import Verdict
from redlib.tabletop import Scene

START = ROLES["maps"].first
"""First test scene of the maps; no other notebook looks at these."""

CENTRES = (4, 8, 16, 32)
"""Numbers of clusters; the release takes 8, and the paper names none."""


def crowded(session: Session) -> Scene | Picture:
    """The first scene of the maps with five objects or more, one with something to see; of
    photographs, which nobody has counted, the first."""
    if session.source.real:
        return session.images("maps", 1)[0]
    return next(one for one in session.images("maps", 100) if len(one.objects) >= 5)


def tsne(vectors: torch.Tensor | np.ndarray, *, seed: int = 0, steps: int = 500) -> np.ndarray:
    """(n, 2) map of the rows of `vectors` (n, D), the same for the same rows.

    Exact (no tree approximation), started from the first two principal components. Perplexity 30,
    or less for few points. The sign of each axis is fixed by its farthest point.
    """
    from sklearn.manifold import TSNE  # slow to import, and few need it

    points = np.asarray(vectors, dtype=np.float64)
    if len(points) < 4:
        return np.column_stack([np.arange(len(points)), np.zeros(len(points))]).astype(float)
    placed = TSNE(
        n_components=2,
        perplexity=min(30.0, (len(points) - 1) / 3),
        init="pca",
        method="exact",
        max_iter=steps,
        random_state=seed,
    ).fit_transform(points)
    far = placed[np.abs(placed).argmax(axis=0), [0, 1]]
    return placed * np.where(far < 0, -1.0, 1.0)


def token_map(session: Session, shown: Scene | Picture) -> pd.DataFrame:
    """Every token of one image with its place on the map: the columns of `describe`, x and y."""
    p, vlm = session.params, session.model
    tokens = vlm.encode([shown.image]).tokens[0]
    settings = {"neighbours": p.dpc_neighbours_image, "squared": p.dpc_squared}
    frame = describe(vlm, shown, prompt=p.prompt, top_prob=p.top_prob, **settings)
    placed = tsne(tokens.float().cpu().numpy(), seed=p.seed)
    return frame.assign(x=placed[:, 0], y=placed[:, 1])


def cluster_sizes(session: Session) -> pd.DataFrame:
    """`describe` of every token of `tsne_images` held-out images."""
    p, vlm = session.params, session.model
    settings = {
        "prompt": p.prompt,
        "top_prob": p.top_prob,
        "neighbours": p.dpc_neighbours_image,
        "squared": p.dpc_squared,
    }
    store = session.store(
        "maps",
        notebook="05",
        code=(*MEASURING, "clustering", "study/maps", "tabletop/world"),
        start=START,
        **settings,
        **session.of_images("maps"),
    )
    drawn = {one.id: one for one in session.images("maps", p.tsne_images)}
    return store.compute(
        drawn, lambda name: describe(vlm, drawn[name], **settings), describe="images"
    )


def describe(
    vlm: VLM, shown: Scene | Picture, *, prompt: str, top_prob: int, neighbours: int, squared: bool
) -> pd.DataFrame:
    """All tokens of an image: image, patch, word, top1, top1_head, cls_similarity, covered (NaN for
    a photograph), and size_<C>, the size of the token's cluster when all tokens fall into C
    clusters."""
    encoded = vlm.encode([shown.image])
    tokens = encoded.tokens[0]
    frame = probe.single(vlm, tokens, range(len(tokens)), prompt=prompt, top=top_prob)
    frame = frame[["patch", "word", "top1", "top1_head"]]
    frame.insert(0, "image", shown.id)
    frame["cls_similarity"] = encoded.cls_similarity[0].cpu().numpy()
    known = isinstance(shown, Scene)
    frame["covered"] = shown.coverage(vlm.sight).sum(axis=0) if known else np.nan
    for centres in CENTRES:
        clusters = cluster_tokens(tokens, neighbours, centres, squared=squared)
        frame[f"size_{centres}"] = clusters.sizes
    return frame


def odds_ratio(
    exposed: pd.Series | np.ndarray,
    outcome: pd.Series | np.ndarray,
    image: pd.Series | np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Odds of the outcome among the exposed over those among the others, within images.

    The Mantel-Haenszel ratio over the images' 2 x 2 tables; above 1, the outcome is more frequent
    among the exposed. The interval resamples images. NaN where no image has both exposed tokens
    without and others with the outcome (or neither), since the ratio is then undefined.
    """
    names, code = np.unique(np.asarray(image), return_inverse=True)
    exposed, outcome = np.asarray(exposed, bool), np.asarray(outcome, bool)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights=mask, minlength=len(names))

    n = count(np.ones(len(code)))
    for_it = count(exposed & outcome) * count(~exposed & ~outcome) / n  # (images,)
    against = count(exposed & ~outcome) * count(~exposed & outcome) / n
    weights = draws(len(names), resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(for_it.sum(), against.sum())
        drawn = (weights @ for_it) / (weights @ against)
    defined = drawn[~np.isnan(drawn)]
    # "lower" and "higher": a draw may be infinite, and between two draws there is then no number.
    low = np.quantile(defined, 0.025, method="lower") if len(defined) else np.nan
    high = np.quantile(defined, 0.975, method="higher") if len(defined) else np.nan
    return Interval(float(ratio), float(low), float(high), len(code), len(names))


def odds_ratios(
    table: pd.DataFrame,
    *,
    bounds: Sequence[tuple[float, float]],
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The odds ratio for every number of clusters and every pair of bounds.

    table: rows of `cluster_sizes`. bounds: a probability below the first is low; a cluster below
    the second makes outliers, for 8 clusters of all tokens; with C clusters 8 / C of it, since the
    mean cluster is so much smaller.

    Returns centres, bound (both as text), size, low_share, outliers_low and outliers_other (shares
    of outliers among low-probability and other tokens), odds_ratio, low, high, images, tokens.
    """
    rows = []
    for tau_prob, size in bounds:
        low = (table["top1_head"] < tau_prob).to_numpy()
        name = f"top-1 below {tau_prob:.3g}, cluster below {size:.3g}"
        for centres in CENTRES:
            limit = size * 8 / centres
            outlier = (table[f"size_{centres}"] < limit).to_numpy()
            found = odds_ratio(low, outlier, table["image"], resamples=resamples, seed=seed)
            shares = [outlier[mask].mean() if mask.any() else np.nan for mask in (low, ~low)]
            rows.append(
                (centres, name, limit, low.mean(), *shares, found.mean, found.low, found.high)
            )
    columns = ["centres", "bound", "size", "low_share", "outliers_low", "outliers_other"]
    frame = pd.DataFrame(rows, columns=[*columns, "odds_ratio", "low", "high"])
    return frame.assign(images=table["image"].nunique(), tokens=len(table))


def outlier_verdict(table: pd.DataFrame) -> Verdict:
    """Section 8.1's statement, at 8 clusters and the first bounds of `odds_ratios`, which are the
    paper's; those of the others are told beside it."""
    row, *others = table[table["centres"] == 8].to_dict("records")
    known = np.isfinite(row["odds_ratio"]) and row["images"] >= LEAST_IMAGES
    holds = None
    if known and not row["low"] <= 1 <= row["high"]:
        holds = bool(row["low"] > 1)
    return Verdict(
        "Tokens with a low top-1 probability are more often outliers of their image",
        holds,
        f"odds ratio {row['odds_ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) within "
        f"{row['images']} test scenes at 8 clusters, {row['bound']} ({row['low_share']:.0%} of the "
        "tokens)"
        + "".join(
            f"; {other['bound']} ({other['low_share']:.0%}): {other['odds_ratio']:.2f} "
            f"({other['low']:.2f} to {other['high']:.2f})"
            for other in others
            if np.isfinite(other["odds_ratio"])
        ),
        "Section 8.1",
    )


def candidate_map(session: Session, built: Built, *, most: int = 1000) -> pd.DataFrame:
    """The candidates with their place on a map, x and y; at most `most` of them, evenly taken."""
    take = np.unique(np.linspace(0, len(built.candidates) - 1, most).astype(int))
    placed = tsne(built.vectors[torch.from_numpy(take)].numpy(), seed=session.params.seed)
    rows = built.candidates.iloc[take].reset_index(drop=True)
    return rows.assign(x=placed[:, 0], y=placed[:, 1])
