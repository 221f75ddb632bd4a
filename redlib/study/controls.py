"""Does it matter which tokens stand in the codebook? Simpler codebooks of equal size, same judge.

Pruning keeps what resembles no prototype. Most of an image is ground, so perhaps any sample of
visual tokens would do as a codebook, or one that a single number picks. Each control here has as
many entries as Ours and is judged on the same questions:

    tokens    probed training tokens by lot
    norm      those of the lowest norm
    cls       those most similar to [cls]
    top1      those of the lowest top-1 probability, without the other criteria
    ground    k-means centres of training tokens that show bare ground by the masks

The last knows the truth about the scenes, so that with photographs it is left out; what it reaches,
no knowledge of "bare" can beat by much.
The first and the last depend on chance and are made with several seeds; their shares are means.

    books = control_codebooks(session, codebook, table)
    answers = judge(session, "books", books, draws=3, limit=24)
    against(scored(pooled(answers)), books)          # Ours minus each, paired, with intervals
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from redlib.codebook import Codebook
from redlib.notebook import Session
from redlib.study import LEAST_IMAGES, codebooks
from redlib.study.ablation import RANDOM
from redlib.study.judged import Scored
from redlib.study.verdict import Verdict, bounds

OURS = "ours"

NAMES: dict[str, str] = {
    OURS: "Ours",
    "tokens": "training tokens by lot",
    "norm": "lowest norm",
    "cls": "highest [cls] similarity",
    "top1": "lowest top-1 probability alone",
    "ground": "k-means of ground tokens",
    RANDOM: "no codebook: tokens kept by lot",
}

GROUND = 4000
"""Ground tokens that k-means sees, taken evenly: enough for some hundred centres."""


def training_tokens(session: Session) -> dict[str, Tensor]:
    """(L, D) float32 visual tokens of every training image, by name."""
    vlm = session.model
    drawn = codebooks.training_scenes(session)
    return {n: vlm.encode([s.image]).tokens[0].float().cpu() for n, s in drawn.items()}


def picked(
    table: pd.DataFrame, tokens: Mapping[str, Tensor], book: Codebook, *, seeds: int, seed: int
) -> dict[str, Codebook]:
    """The controls that are made of the probed tokens, each with as many entries as `book`.

    table: rows of `codebooks.cascade_images`. Names: "norm", "cls", "top1", "tokens 0", ...
    """
    rows = table.reset_index(drop=True)
    vectors = torch.stack([tokens[r.image][r.patch] for r in rows.itertuples()])  # (n, D)
    n = min(len(book), len(rows))

    def made(order: np.ndarray) -> Codebook:
        at = np.sort(order[:n])
        return Codebook(
            vectors[torch.from_numpy(at)], tuple(rows["image"][at]), tuple(rows["patch"][at]),
            book.model, book.revision, book.criteria,
        )  # fmt: skip

    ranks = {
        "norm": vectors.norm(dim=1).numpy(),
        "cls": -rows["cls_similarity"].to_numpy(),
        "top1": rows["top1_head"].to_numpy(),  # NaN, not probed, comes last
    }
    found = {name: made(np.argsort(values, kind="stable")) for name, values in ranks.items()}
    for number in range(seeds):
        rng = np.random.default_rng([seed, number])
        found[f"tokens {number}"] = made(rng.permutation(len(rows)))
    return found


def ground_tokens(session: Session, tokens: Mapping[str, Tensor]) -> Tensor:
    """(n, D) training tokens whose patch shows neither an object nor a word card."""
    bare = []
    for name, scene in codebooks.training_scenes(session).items():
        sight = session.model.sight
        covered = scene.coverage(sight).sum(axis=0) + scene.word_coverage(sight)
        bare.append(tokens[name][torch.from_numpy(covered == 0)])
    return torch.cat(bare)


def centres(ground: Tensor, book: Codebook, *, seeds: int, seed: int) -> dict[str, Codebook]:
    """Codebooks of k-means centres of ground tokens, "ground 0", ..., as many as `book` has.

    Tokens are scaled to length 1 first, since scores compare directions alone.
    """
    from sklearn.cluster import KMeans  # slow to import, and few need it

    take = np.unique(np.linspace(0, len(ground) - 1, GROUND).astype(int))
    points = torch.nn.functional.normalize(ground[torch.from_numpy(take)], dim=1).numpy()
    n = min(len(book), len(np.unique(points, axis=0)))
    found = {}
    for number in range(seeds):
        means = KMeans(n, n_init=1, max_iter=30, random_state=seed + number).fit(points)
        vectors = torch.from_numpy(means.cluster_centers_.astype(np.float32))
        found[f"ground {number}"] = Codebook(
            vectors, ("ground",) * n, range(n), book.model, book.revision, book.criteria
        )
    return found


def control_codebooks(
    session: Session, codebook: Codebook, table: pd.DataFrame
) -> dict[str, Codebook]:
    """All controls and Ours, by name; `control_seeds` of those that depend on chance."""
    p = session.params
    tokens = training_tokens(session)
    chance = {"seeds": p.control_seeds, "seed": p.seed}
    found = {OURS: codebook} | picked(table, tokens, codebook, **chance)
    if session.source.real:  # nobody knows where the ground is
        return found
    return found | centres(ground_tokens(session, tokens), codebook, **chance)


def pooled(answers: pd.DataFrame) -> pd.DataFrame:
    """Rows of `ablation.judge` with the number of "tokens 3" as its seed, not in its name."""
    parts = answers["method"].str.extract(r"^(\S+)(?: (\d+))?$")
    numbers = pd.to_numeric(parts[1]).fillna(answers["seed"]).astype(int)
    return answers.assign(method=parts[0], seed=numbers)


def against(judged: Scored, books: Mapping[str, Codebook]) -> pd.DataFrame:
    """Ours against every control.

    Returns method, name, seeds, prototypes, share, share_low, share_high, ahead, low, high (share
    of Ours minus that of the row, paired), questions, images (of the test).
    """
    rows = []
    for method, name in NAMES.items():
        if method not in judged.points:
            continue
        own = [book for key, book in books.items() if key.split()[0] == method]
        mean, found = judged.share(method), judged.gap(OURS, method)
        row = {
            "method": method,
            "name": name,
            "seeds": judged.seeds.get(method, 1),
            "prototypes": float(len(own[0])) if own else np.nan,
            "share": mean.mean, "share_low": mean.low, "share_high": mean.high,
        }  # fmt: skip
        if method != OURS:
            row |= {"ahead": found.mean, "low": found.low, "high": found.high}
        rows.append(row | {"questions": judged.questions, "images": judged.images})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> str:
    """What the controls say, whatever they say."""
    at = frame.set_index("method")
    ours = at.loc[OURS]
    parts = [f"Ours keeps {ours['share']:.1%} of the unpruned score."]
    if ours["images"] < LEAST_IMAGES:
        return parts[0] + " Too few images to compare it."
    for method in at.index.drop(OURS):
        row = at.loc[method]
        found = (
            "below Ours" if row["low"] > 0 else
            "**above Ours**" if row["high"] < 0 else "**not distinguishable from Ours**"
        )  # fmt: skip
        parts.append(
            f"{row['name'][0].upper()}{row['name'][1:]}: {row['share']:.1%}, {found} (Ours ahead "
            f"by {100 * row['ahead']:+z.1f} points, {100 * row['low']:+z.1f} to "
            f"{100 * row['high']:+z.1f})."
        )
    return " ".join(parts)


def verdict(frame: pd.DataFrame) -> Verdict:
    """Whether Ours is above every codebook of the same size; one that is above it is enough."""
    rows = frame[~frame["method"].isin([OURS, RANDOM])]
    holds = None
    if rows["images"].min() >= LEAST_IMAGES:
        holds = True if (rows["low"] > 0).all() else False if (rows["high"] < 0).any() else None
    each = (
        f"{NAMES[row.method]} {100 * row.ahead:+z.1f} ({bounds(row.low, row.high)})"
        for row in rows.itertuples()
    )
    first = rows.iloc[0]
    return Verdict(
        "Ours keeps more of the unpruned score than simpler codebooks of the same size",
        holds,
        f"points ahead, {int(first['questions'])} questions about {int(first['images'])} test "
        f"images: {'; '.join(each)}",
        "Section 5.4",
    )
