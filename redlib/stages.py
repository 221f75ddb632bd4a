"""Algorithm 1 in stages: a token stops at the first criterion that it fails.

Read from top to bottom, Algorithm 1 probes every token in every way and asks afterwards whether it
passes. But its criteria are joined by "and": a token that fails one is out, whatever the others
would have said. So the criteria are asked in the order of what they cost, each only about the
tokens that are still in:

    stage     forwards a token       what it decides
    cluster   none                   tau_out; clusters need the visual tokens alone
    single    1                      tau_prob
    region    2: window, ablated     tau_jsd, where weight x JSD_region alone reaches it
    global    1, and 1 an image      tau_jsd; eq. 11 only adds what is not negative

Nothing is approximated: the candidates are those of reading everything, and so are the prototypes.

    images = {"a": Image.open("a.jpg"), "b": ...}
    built = one_codebook(vlm, images, Criteria.paper().for_images(len(images)), Probing(prompt))
    built.stages          # patches, forwards and survivors of each stage
    built.codebook

Often one setting of the thresholds is not enough: a grid of them is compared, or Table 3 removes
one criterion after the other. Then a token goes on to a stage if *any* of the settings may still
take it and asks for that stage, and every setting finds in the one table all that it needs. A
criterion that is switched off (an infinite threshold) asks for nothing; one whose threshold is to
be chosen from the readings themselves (UNCHOSEN) asks for all and stops nobody.

What was not read is NaN. It rules nothing out, and a setting that would need it is refused.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from PIL import Image

from redlib import leave_one_out, probe
from redlib.clustering import Clusters, cluster_tokens
from redlib.codebook import Codebook, Criteria, candidates, prototypes
from redlib.errors import RedlibError
from redlib.geometry import release_ranks
from redlib.models import VLM, Encoded

READINGS: dict[str, tuple[str, ...]] = {
    "single": ("word", "top1", "top1_head"),
    "region": ("jsd_region",),
    "global": ("jsd_global", "jsd_final"),
}
"""Columns that each stage fills; the stage "cluster", before them, is never left out."""

_NOTHING = pd.DataFrame(
    {c: pd.Series(dtype="str" if c == "word" else float) for cs in READINGS.values() for c in cs}
)

DECIDES = {"single": "tau_prob", "region": "tau_jsd", "global": "tau_jsd"}
"""The threshold that each stage is read for."""

UNCHOSEN = sys.float_info.max
"""A threshold that will be chosen from the readings: it asks for them and rules nothing out."""

EAGER = Criteria(tau_prob=UNCHOSEN, tau_out=math.inf, tau_in=0, tau_jsd=UNCHOSEN)
"""Every stage for every token."""

CANDIDATES_PER_CENTRE = 5
"""Few candidates get fewer centres than the definition says, or each would be its own cluster."""

FEWER_IMAGES = 0.2
"""Share of the images in the last row of Table 3."""


@dataclass(frozen=True)
class Probing:
    """How the tokens of an image are read: every choice that a reading depends on.

    Attributes:
        prompt: the one-word instruction of all probes.
        top_prob: candidates of the top-1 probability.
        top_jsd: candidates of the divergence.
        definition: of the divergence, "paper" or "released".
        weights: of region and global in jsd_final (eq. 11), neither negative.
        ranks: "all", every token as in Algorithm 1, or "release", the 96 ranks of [cls] similarity
            that the released code takes. The clusters within the image are those of these tokens.
        neighbours, centres, squared: of those clusters, as in `dpc_knn`.

    Raises RedlibError for other ranks, or a negative weight.
    """

    prompt: str
    top_prob: int = probe.TOP
    top_jsd: int = leave_one_out.TOP
    definition: str = "paper"
    weights: tuple[float, float] = leave_one_out.WEIGHTS
    ranks: str = "all"
    neighbours: int = 16
    centres: int = 8
    squared: bool = True

    def __post_init__(self) -> None:
        if self.ranks not in ("all", "release"):
            raise RedlibError(f"ranks must be all or release; got {self.ranks!r}")
        if min(self.weights) < 0:
            # The region's part would no longer be a lower bound of the sum.
            raise RedlibError(f"weights must be 0 or more; got {self.weights!r}")

    def taken(self, size: int) -> np.ndarray:
        """(n,) the ranks by [cls] similarity, ascending, that are probed of `size` tokens."""
        return np.arange(size) if self.ranks == "all" else release_ranks(size)


@dataclass(frozen=True, eq=False)
class Built:
    """A codebook with all that was decided on the way.

    Attributes:
        criteria: the thresholds.
        survivors: probed tokens that pass each criterion, "candidates" and "prototypes".
        candidates: rows of the table that are candidates, with `cluster` (of all candidates),
            `cluster_size`, `cluster_images` and `prototype`.
        vectors: (candidates, D) their visual tokens.
        clusters: clusters of the candidates.
        codebook: the prototypes.
        stages: `tally` for these criteria alone.
    """

    criteria: Criteria
    survivors: pd.Series
    candidates: pd.DataFrame
    vectors: torch.Tensor
    clusters: Clusters
    codebook: Codebook
    stages: pd.DataFrame


def one_codebook(
    vlm: VLM,
    images: Mapping[str, Image.Image],
    criteria: Criteria,
    how: Probing,
    *,
    neighbours: int = 64,
    centres: int = 64,
) -> Built:
    """The codebook of some training images (by name) under known thresholds, lazily.

    neighbours, centres: of the clusters of all candidates. Raises NoPrototype, saying how many
    tokens were left after each criterion, if there is none.
    """
    table = read_images(vlm, images, [criteria], how)
    return build(table, criteria, how, vlm=vlm, neighbours=neighbours, centres=centres)


def read_images(
    vlm: VLM, images: Mapping[str, Image.Image], settings: Sequence[Criteria], how: Probing
) -> pd.DataFrame:
    """The table of the probed tokens of all images, read as far as `settings` need.

    Raises RedlibError if there are no images.
    """
    if not images:
        raise RedlibError("no images given; name at least one")
    frames = []
    for name, image in images.items():
        encoded = vlm.encode([image])
        table = clustered(encoded, how, name)
        frames.append(read(vlm, encoded.tokens[0], table, settings, how))
    return pd.concat(frames, ignore_index=True)


def clustered(encoded: Encoded, how: Probing, name: str) -> pd.DataFrame:
    """The stage "cluster": one row per probed token of the one image that was encoded.

    Returns image, rank (by falling [cls] similarity, from 0), patch, cls_similarity, cluster,
    cluster_size.
    """
    tokens, similarity = encoded.tokens[0], encoded.cls_similarity[0]
    order = torch.argsort(similarity, descending=True, stable=True).cpu().numpy()
    ranks = how.taken(len(order))
    patches = order[ranks]
    clusters = cluster_tokens(
        tokens[torch.as_tensor(patches)], how.neighbours, how.centres, squared=how.squared
    )
    return pd.DataFrame(
        {
            "image": name,
            "rank": ranks,
            "patch": patches,
            "cls_similarity": similarity.cpu().numpy()[patches],
            "cluster": clusters.labels,
            "cluster_size": clusters.sizes,
        }
    )


def read(
    vlm: VLM,
    tokens: torch.Tensor,
    table: pd.DataFrame,
    settings: Sequence[Criteria],
    how: Probing,
    *,
    stages: Sequence[str] = tuple(READINGS),
) -> pd.DataFrame:
    """One image's rows with the readings that `settings` need and that the rows lack.

    Args:
        tokens: (L, D) visual tokens of the image.
        table: rows of `clustered`, with readings already made or without.
        stages: which of them to go through; the thresholds of later ones may still be UNCHOSEN.

    Returns the rows with READINGS of these stages, NaN where no setting needs it. After the last
    stage also `vector`, the token itself, (D,) float32, where a setting may take it, else None.
    """

    def measured(stage: str, rows: pd.DataFrame) -> pd.DataFrame:
        patches = rows["patch"].tolist()
        if stage == "single":
            return probe.single(vlm, tokens, patches, prompt=how.prompt, top=how.top_prob)
        frame = leave_one_out.cascade(
            vlm,
            tokens,
            patches,
            prompt=how.prompt,
            top=how.top_jsd,
            top_released=how.top_jsd,
            definition=how.definition,
            levels=(stage,),
        )
        if stage == "global":
            region, image = rows["jsd_region"].to_numpy(), frame["jsd_global"]
            frame["jsd_final"] = how.weights[0] * region + how.weights[1] * image
        return frame

    table = _through(table, settings, how.weights, stages, measured)
    if stages[-1] == "global":
        taken = _any_may_pass(table, settings, how.weights)
        rows = tokens[torch.as_tensor(table["patch"].to_numpy()[taken])].float().cpu().numpy()
        vectors = pd.Series(list(rows), index=table.index[taken], dtype=object)
        table["vector"] = vectors.reindex(table.index).where(taken, None)
    return table


def read_alone(
    table: pd.DataFrame, criteria: Criteria, weights: tuple[float, float]
) -> pd.DataFrame:
    """What the table would hold, had it been read for `criteria` alone."""
    bare = table.drop(columns=list(_NOTHING))
    stages = tuple(READINGS)
    return _through(bare, [criteria], weights, stages, lambda _, rows: table.loc[rows.index])


def tally(
    table: pd.DataFrame, settings: Sequence[Criteria], weights: tuple[float, float]
) -> pd.DataFrame:
    """How many tokens came to each stage, what it cost, and how many were left.

    One forward is one input that the paper's experiments ask about, whatever the engine shares
    between inputs: a token by itself; a window and the window ablated; the image ablated, and the
    intact image once. (A second step after an article is not counted.)

    Returns stage, patches (that were read), forwards, eager (forwards for all tokens), survivors
    (tokens that one of `settings` may take, for all that is known after the stage).
    """
    n, images = len(table), table["image"].nunique()
    columns = ["cluster_size"]
    rows = [("cluster", n, 0, 0, int(_any_may_pass(table[columns], settings, weights).sum()))]
    for stage, readings in READINGS.items():
        columns += readings
        was_read = table[readings[-1]].notna()
        patches = int(was_read.sum())
        each, once = {"single": (1, 0), "region": (2, 0), "global": (1, 1)}[stage]
        spent = each * patches + once * table.loc[was_read, "image"].nunique()
        left = int(_any_may_pass(table[columns], settings, weights).sum())
        rows.append((stage, patches, spent, each * n + once * images, left))
    return pd.DataFrame(rows, columns=["stage", "patches", "forwards", "eager", "survivors"])


def build(
    table: pd.DataFrame,
    criteria: Criteria,
    how: Probing,
    *,
    vlm: VLM,
    neighbours: int,
    centres: int,
) -> Built:
    """Candidates, their clusters and the codebook under one setting (Algorithm 1, lines 13-25).

    table: read for `criteria`, alone or among other settings.
    Raises RedlibError if tokens were not read far enough for these criteria, and NoPrototype,
    saying how many tokens were left after each criterion, if no prototype is left.
    """
    mask, survivors = candidates(table, criteria)
    unread = int((may_pass(table, criteria, how.weights) & ~mask).sum())
    if unread:
        raise RedlibError(
            f"{unread} tokens of the table were not read far enough for {criteria}: "
            "read it for these criteria too"
        )
    stages = tally(read_alone(table, criteria, how.weights), [criteria], how.weights)
    left = stages.set_index("stage")["survivors"]
    in_turn = {"probed": len(table), "tau_out": left["cluster"]}
    in_turn |= {"tau_out and tau_prob": left["single"], "candidates": left["global"]}
    rows = table[mask].drop(columns="vector").reset_index(drop=True)
    vectors = np.array(table.loc[mask, "vector"].tolist(), dtype=np.float32)
    vectors = torch.from_numpy(vectors.reshape(len(rows), vlm.width))  # (candidates, D)
    chosen, clusters = prototypes(
        vectors,
        rows["image"].to_numpy(),
        criteria,
        neighbours=neighbours,
        centres=min(centres, max(1, math.ceil(len(rows) / CANDIDATES_PER_CENTRE))),
        squared=how.squared,
        survivors=pd.Series(in_turn),
    )
    labels = clusters.labels
    rows = rows.rename(columns={"cluster": "cluster_image", "cluster_size": "cluster_size_image"})
    rows = rows.assign(
        cluster=labels,
        cluster_size=clusters.sizes,
        cluster_images=clusters.distinct(rows["image"].to_numpy())[labels],
        prototype=chosen,
    )
    kept = rows[chosen]
    book = Codebook(
        vectors[torch.from_numpy(chosen)],
        tuple(kept["image"]),
        tuple(kept["patch"]),
        vlm.name,
        vlm.revision,
        criteria,
    )
    survivors = pd.concat([survivors, pd.Series({"prototypes": len(book)})]).rename("tokens")
    return Built(criteria, survivors, rows, vectors, clusters, book, stages)


def may_pass(table: pd.DataFrame, criteria: Criteria, weights: tuple[float, float]) -> np.ndarray:
    """(n,) bool: the tokens that `criteria` may still take, for all that the table knows.

    A missing column or a NaN is what was not read. Where jsd_final is missing, the region's part
    of it is a lower bound. (Also after rounding: adding a number that is not negative never
    makes a sum smaller.)
    """
    known = {"tau_out": table["cluster_size"]}
    if "top1_head" in table:
        known["tau_prob"] = table["top1_head"]
    if "jsd_region" in table:
        known["tau_jsd"] = weights[0] * table["jsd_region"]
    if "jsd_final" in table:
        known["tau_jsd"] = table["jsd_final"].fillna(known["tau_jsd"])
    passing = [
        criteria.passes(name, values) | values.isna().to_numpy() for name, values in known.items()
    ]
    return np.logical_and.reduce(passing)


def contested(
    table: pd.DataFrame,
    criteria: Criteria,
    weights: tuple[float, float],
    *,
    within: float = 1e-3,
) -> pd.DataFrame:
    """The tokens that a relative change of `within` in tau_prob and tau_jsd could make candidates
    or unmake: where float32 may decide otherwise than float64, or lazily otherwise than eagerly.

    Returns their rows. Tokens that were not read to the end count if that change lets them go on.
    """

    def moved(by: float) -> Criteria:
        return replace(criteria, tau_prob=criteria.tau_prob * by, tau_jsd=criteria.tau_jsd * by)

    wider = may_pass(table, moved(1 + within), weights)
    return table[wider & ~candidates(table, moved(1 - within))[0]]


def loosest(settings: Sequence[Criteria]) -> list[Criteria]:
    """The settings without those that never need a token or a reading beyond another's."""

    def needs(setting: Criteria) -> tuple[float, ...]:
        asks = [math.isfinite(setting.tau_prob), math.isfinite(setting.tau_jsd)]
        size = (setting.tau_out, setting.rule_out == "at-most")
        return (setting.tau_prob, setting.tau_jsd, *asks, *size)

    def within(one: Criteria, other: Criteria) -> bool:
        (*rest, size, equal), (*wide, widest, same) = needs(one), needs(other)
        smaller = (size, equal) <= (widest, same)
        return smaller and all(a <= b for a, b in zip(rest, wide, strict=True))

    distinct = list({needs(setting): setting for setting in settings}.values())
    return [
        setting
        for setting in distinct
        if not any(other is not setting and within(setting, other) for other in distinct)
    ]


def ablation(criteria: Criteria, images: int) -> dict[str, tuple[Criteria, int]]:
    """The criteria sets of Table 3: row -> (criteria, number of images, from the first on).

    tau_in follows the number of images in the last row, as `Criteria.for_images` has it; the paper
    does not say. Its random baseline prunes by lot: it has no codebook and needs no reading.
    """
    fewer = max(1, round(FEWER_IMAGES * images))
    off = {"tau_prob": math.inf, "tau_jsd": math.inf, "tau_out": math.inf, "tau_in": 0}
    rows = {"all criteria": (criteria, images)}
    rows |= {f"without {k}": (replace(criteria, **{k: v}), images) for k, v in off.items()}
    rows[f"{FEWER_IMAGES:.0%} of the images"] = (criteria.for_images(fewer, of=images), fewer)
    return rows


def _any_may_pass(
    table: pd.DataFrame, settings: Sequence[Criteria], weights: tuple[float, float]
) -> np.ndarray:
    found = [may_pass(table, criteria, weights) for criteria in settings]
    return np.logical_or.reduce(found) if found else np.zeros(len(table), bool)


def _through(
    table: pd.DataFrame,
    settings: Sequence[Criteria],
    weights: tuple[float, float],
    stages: Sequence[str],
    measured: Callable[[str, pd.DataFrame], pd.DataFrame],
) -> pd.DataFrame:
    """The table after some stages; `measured(stage, rows)` has the readings of the rows that a
    setting needs and that are not known."""
    table = table.copy()
    for stage in stages:
        asking = [s for s in settings if math.isfinite(getattr(s, DECIDES[stage]))]
        need = _any_may_pass(table, asking, weights)
        columns = READINGS[stage]
        if columns[-1] in table:
            need &= table[columns[-1]].isna().to_numpy()
        rows = table[need]
        found = measured(stage, rows) if need.any() else _NOTHING
        for column in columns:
            new = pd.Series(found[column].to_numpy(), index=rows.index).reindex(table.index)
            table[column] = table[column].fillna(new) if column in table else new
    return table
