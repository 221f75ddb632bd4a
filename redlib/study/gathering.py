"""Do candidates of different images resemble each other? (sections 4.1.2 and 8.1, Figure 8)

Algorithm 1 clusters the redundant candidates of all images and keeps the clusters that are large:
what recurs in many images is redundant wherever it occurs. That some clusters come out large says
little, since they are chosen for it. So the statement is tested without a cluster: how similar is a
candidate to the most similar candidate of *another* image, and how similar are as many other tokens
of the same images to the most similar of theirs? Among the others are objects, which differ more
than grounds do, so the same is told of others that show neither object nor word, where masks are
known: does a candidate recur because it is redundant, or because it is ground?

    near = nearest(session, table, built)       # a row per training image
    verdict(near, resamples=2000, seed=0)
"""

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from redlib.bench import interval
from redlib.notebook import Session
from redlib.stages import Built
from redlib.study.codebooks import training_scenes
from redlib.study.verdict import Verdict, above

KINDS = ("candidates", "others", "bare")


def nearest(session: Session, table: pd.DataFrame, built: Built) -> pd.DataFrame:
    """Cosine similarity to the nearest of another image, of candidates and of other tokens.

    table: rows of `codebooks.cascade_images`. The others are drawn by seed from what was probed of
    each image, as many as it has candidates, or all where there are fewer; the bare ones of those
    whose patch no object and no word touches.

    Returns image, tokens (candidates), candidates (their mean similarity), others and bare (NaN of
    photographs, and where an image has none); one row per image that has candidates and others,
    none where a single image has candidates.
    """
    vlm, rng = session.model, np.random.default_rng(session.params.seed)
    taken = built.candidates.groupby("image")["patch"].agg(list)
    scenes = training_scenes(session)
    of: dict[str, list] = {kind: [] for kind in KINDS}
    names: dict[str, list] = {kind: [] for kind in KINDS}
    for name, patches in taken.items():
        scene = scenes[name]
        tokens = normalize(vlm.encode([scene.image]).tokens[0].float(), dim=-1).cpu()
        rest = np.setdiff1d(table.loc[table["image"] == name, "patch"], patches)
        rest = rng.permutation(rest)
        bare = rest[:0]
        if not session.source.real:
            shown = scene.coverage(vlm.sight).sum(axis=0) + scene.word_coverage(vlm.sight)
            bare = rest[shown[rest] == 0]
        for kind, chosen in zip(KINDS, (patches, rest, bare), strict=True):
            chosen = chosen[: len(patches)]
            of[kind].append(tokens[torch.as_tensor(np.asarray(chosen, dtype=np.int64))])
            names[kind] += [name] * len(chosen)
    found = {}
    for kind, vectors in of.items():
        owner = np.array(names[kind])
        if len(set(owner)) > 1:
            similar = (torch.cat(vectors) @ torch.cat(vectors).T).numpy()
            similar[owner[:, None] == owner] = -1
            found[kind] = pd.Series(similar.max(axis=1)).groupby(owner).mean()
    rows = pd.DataFrame(found).reindex(columns=list(KINDS)).dropna(subset=list(KINDS[:2]))
    rows = rows.rename_axis("image").reset_index()
    return rows.assign(tokens=rows["image"].map(taken.str.len()))[["image", "tokens", *KINDS]]


def verdict(near: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    """Whether candidates are nearer to those of other images than other tokens are to theirs, by
    the interval of the difference within images. near: rows of `nearest`."""
    statement = (
        "A redundant candidate resembles its nearest candidate of another image more than other "
        "tokens resemble theirs"
    )
    if near.empty:
        told = "no two images have candidates and other tokens"
        return Verdict(statement, None, told, "Figure 8")
    draws = {"resamples": resamples, "seed": seed}
    found = interval(near["candidates"] - near["others"], near["image"], **draws)
    told, ground = "", near.dropna(subset="bare")
    if len(ground):
        ahead = interval(ground["candidates"] - ground["bare"], ground["image"], **draws)
        told = (
            f"; those of them that show neither object nor word {ground['bare'].mean():.3f}, "
            f"difference {ahead.mean:+.3f} ({ahead.low:+.3f} to {ahead.high:+.3f})"
        )
    return Verdict(
        statement,
        above(found, 0),
        f"mean cosine similarity {near['candidates'].mean():.3f} against "
        f"{near['others'].mean():.3f}, difference {found.mean:+.3f} (95% interval {found.low:+.3f} "
        f"to {found.high:+.3f}); {near['tokens'].sum()} candidates of {found.clusters} training "
        f"images, and as many other tokens of each{told}",
        "Figure 8",
    )
