"""Building the codebook from training images, in steps that can stop and go on (Algorithm 1).

Read from top to bottom Algorithm 1 probes every token of an image in every way. Only the tokens
that pass the other two criteria need their divergence, though, and a divergence costs thirty
single-token probes; so the steps here go from cheap to dear, and give the same prototypes:

    probes = probe_images(session)                 # clusters within the image, single-token probe
    table = cascade_images(session, probes)        # divergence, where it can still decide
    scores = score_grid(session, table)            # one row per setting of the four thresholds
    built = build(session, table, chosen(session, scores))
    built.codebook.save(codebook_path(session))

Each step writes one part per image (or per setting) and computes what is missing.

Thresholds. The paper's belong to models of seven billion parameters. For another model they are
chosen from GRID by one rule, on calibration scenes: the highest five-task mean at 64 kept tokens.
The grid is written in terms that mean the same for every model: quantiles of the probed tokens for
the top-1 probability and the divergence, multiples of the mean cluster size, tokens per training
image. A threshold that the parameters name as a number is taken as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, inf
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from redlib import leave_one_out, probe
from redlib.bench import evaluate, keep_all
from redlib.clustering import Clusters, dpc_knn
from redlib.codebook import Codebook, Criteria, candidates, prototypes
from redlib.errors import RedlibError
from redlib.geometry import release_ranks
from redlib.models import VLM
from redlib.notebook import MEASURING, Session
from redlib.prune import keep_lowest, random_scores, redundancy
from redlib.study.asking import FIVE_TASKS, ask, asked_scenes, five
from redlib.tabletop import Scene, scenes

START = 1_000_000
"""First training scene of the codebook; the tiny checkpoints were trained on scenes before it."""

# Fixed before the checkpoint that it is used on was trained, and before any result was seen.
# tau_prob: quantiles of the top-1 probability over all probed tokens.
# tau_out: multiples of the mean cluster size within an image; 2/3 is the paper's 8 for 96 probed
#   tokens in 8 clusters, 2 lets all but the dominant clusters pass.
# tau_jsd: quantiles of the divergence over the tokens that pass the largest tau_prob and tau_out.
# tau_in: multiples of the paper's 64 candidates for 500 images, scaled to the images at hand.
GRID: dict[str, tuple[float, ...]] = {
    "tau_prob": (0.1, 0.25, 0.5),
    "tau_out": (2 / 3, 2.0),
    "tau_jsd": (0.33, 0.67),
    "tau_in": (0.5, 1.0),
}

SCORED_AT = 64
"""Kept tokens at which the grid is scored."""

LEAST_PER_IMAGE = {"candidates": 3, "prototypes": 1}
"""A setting with fewer of them per training image is chosen only if all have fewer."""

CANDIDATES_PER_CENTRE = 5
"""Few candidates get fewer centres than the definition says, or each would be its own cluster."""

_CODE = (*MEASURING, "clustering", "codebook", "study/codebooks", "tabletop/world")


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
    """

    criteria: Criteria
    survivors: pd.Series
    candidates: pd.DataFrame
    vectors: torch.Tensor
    clusters: Clusters
    codebook: Codebook


def codebook_path(session: Session) -> Path:
    """runs/<run_name>/codebook.safetensors."""
    return session.folder / "codebook.safetensors"


def training_scenes(session: Session) -> dict[str, Scene]:
    """The scenes that prototypes are searched in, by id."""
    drawn = scenes("train", session.params.codebook_images, start=START)
    return {scene.id: scene for scene in drawn}


def probe_images(session: Session) -> pd.DataFrame:
    """The cheap half of the criteria for every probed token; see `probe_image`."""
    p, vlm = session.params, session.model
    settings = {
        "prompt": p.prompt,
        "top_prob": p.top_prob,
        "ranks": p.codebook_ranks,
        "neighbours": p.dpc_neighbours_image,
        "centres": p.dpc_centres_image,
        "squared": p.dpc_squared,
    }
    store = session.store("probes", notebook="05", code=_CODE, start=START, **settings)
    drawn = training_scenes(session)
    return store.compute(
        drawn, lambda name: probe_image(vlm, drawn[name], **settings), describe="images"
    )


def probe_image(
    vlm: VLM,
    scene: Scene,
    *,
    prompt: str,
    top_prob: int,
    ranks: str,
    neighbours: int,
    centres: int,
    squared: bool,
) -> pd.DataFrame:
    """Clusters and single-token probe of one image's tokens.

    ranks: "release" probes the 96 ranks of [cls] similarity that the released code takes, "all"
    every token. The clusters are those of the probed tokens, as there.

    Returns image, rank (by falling [cls] similarity, from 0), patch, cls_similarity, cluster,
    cluster_size, word, top1, top1_head, one row per probed token.
    """
    encoded = vlm.encode([scene.image])
    tokens, similarity = encoded.tokens[0], encoded.cls_similarity[0]
    order = torch.argsort(similarity, descending=True, stable=True).cpu().numpy()
    taken = np.arange(len(order)) if ranks == "all" else release_ranks(len(order))
    patches = order[taken]
    clusters = cluster_tokens(
        tokens[torch.as_tensor(patches)], neighbours, centres, squared=squared
    )
    frame = probe.single(vlm, tokens, patches, prompt=prompt, top=top_prob)
    return pd.DataFrame(
        {
            "image": scene.id,
            "rank": taken,
            "patch": patches,
            "cls_similarity": similarity.cpu().numpy()[patches],
            "cluster": clusters.labels,
            "cluster_size": clusters.sizes,
            "word": frame["word"],
            "top1": frame["top1"],
            "top1_head": frame["top1_head"],
        }
    )


def cluster_tokens(
    tokens: torch.Tensor, neighbours: int, centres: int, *, squared: bool = True
) -> Clusters:
    """DPC-kNN of some tokens (n, D), with at most n - 1 neighbours and n centres."""
    n = len(tokens)
    return dpc_knn(
        tokens, neighbours=min(neighbours, n - 1), centres=min(centres, n), squared=squared
    )


def settings_of(session: Session, probes: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """tau_prob, tau_out, tau_in -> [(entry of the grid, threshold)], in the order of GRID.

    The entry is NaN where the parameters give a number. tau_jsd follows from the divergences:
    `jsd_settings`.
    """
    p = session.params
    probed = probes.groupby("image", sort=False).size().mean()
    units = {
        "tau_prob": lambda q: float(f"{probes['top1_head'].quantile(q):.4g}"),
        "tau_out": lambda m: max(2.0, round(m * probed / p.dpc_centres_image)),
        "tau_in": lambda m: max(1.0, round(m * 64 * p.codebook_images / 500)),
    }
    found = {}
    for name, threshold in units.items():
        given = getattr(p, name)
        if given == "calibrated":
            found[name] = [(entry, threshold(entry)) for entry in GRID[name]]
        else:
            found[name] = [(float("nan"), float(given))]
    return found


def loosest(session: Session, probes: pd.DataFrame) -> pd.Series:
    """(n,) bool: the tokens that pass the largest tau_prob and the largest tau_out."""
    found = settings_of(session, probes)
    largest = {name: max(value for _, value in found[name]) for name in ("tau_prob", "tau_out")}
    small = probes["cluster_size"] < largest["tau_out"]
    if session.params.rule_out == "at-most":
        small = probes["cluster_size"] <= largest["tau_out"]
    return small & (probes["top1_head"] < largest["tau_prob"])


def cascade_images(session: Session, probes: pd.DataFrame) -> pd.DataFrame:
    """The table of probed tokens with the divergence where it can still decide.

    A token that fails the largest tau_prob or tau_out of the grid is no candidate under any
    setting; its jsd columns are NaN. `vector` holds the token itself, (D,) float32, where there is
    a divergence, and None elsewhere.
    """
    p, vlm = session.params, session.model
    settings = {
        "prompt": p.prompt,
        "top_jsd": p.top_jsd,
        "definition": p.jsd_definition,
        "weights": [p.k_region, p.k_global],
    }
    open_ = probes[loosest(session, probes)]
    wanted = {name: part["patch"].to_numpy() for name, part in open_.groupby("image", sort=False)}
    limits = {
        name: max(v for _, v in found) for name, found in settings_of(session, probes).items()
    }
    store = session.store(
        "cascade",
        notebook="05",
        code=_CODE,
        start=START,
        ranks=p.codebook_ranks,
        # Quantiles move with the images, so more images are another table.
        images=p.codebook_images,
        tau_prob=limits["tau_prob"],
        tau_out=limits["tau_out"],
        **settings,
    )
    drawn = training_scenes(session)
    frame = store.compute(
        wanted,
        lambda name: cascade_image(vlm, drawn[name], wanted[name], **settings),
        describe="images",
    )
    if frame.empty:
        columns = ["jsd_region", "jsd_global", "jsd_final"]
        return probes.assign(**dict.fromkeys(columns, np.nan), vector=None)
    return probes.merge(frame, on=["image", "patch"], how="left")


def cascade_image(
    vlm: VLM,
    scene: Scene,
    patches: np.ndarray,
    *,
    prompt: str,
    top_jsd: int,
    definition: str,
    weights: list[float],
) -> pd.DataFrame:
    """Divergence and vector of some tokens of one image: image, patch, jsd columns, vector."""
    tokens = vlm.encode([scene.image]).tokens[0]
    frame = leave_one_out.cascade(
        vlm,
        tokens,
        patches,
        prompt=prompt,
        top=top_jsd,
        top_released=top_jsd,
        definition=definition,
        weights=(weights[0], weights[1]),
    )
    frame.insert(0, "image", scene.id)
    rows = torch.as_tensor(patches.copy())
    frame["vector"] = list(tokens[rows].float().cpu().numpy())
    return frame


def grid_settings(session: Session, table: pd.DataFrame) -> pd.DataFrame:
    """Every setting of the grid: for each threshold its value, and <name>_entry of GRID."""
    found = settings_of(session, table)
    given = session.params.tau_jsd
    if given == "calibrated":
        jsd = table["jsd_final"].dropna()
        if jsd.empty:  # no token passes the other two: let the criteria say so
            loosest = {name: max(v for _, v in rows) for name, rows in found.items()}
            build(session, table, criteria_of(session, loosest | {"tau_jsd": inf}))
        found["tau_jsd"] = [(q, float(f"{jsd.quantile(q):.3g}")) for q in GRID["tau_jsd"]]
    else:
        found["tau_jsd"] = [(float("nan"), float(given))]
    rows = []
    for combination in product(*(found[name] for name in GRID)):
        row = dict(zip(GRID, (value for _, value in combination), strict=True))
        entries = (entry for entry, _ in combination)
        rows.append(row | {f"{name}_entry": e for name, e in zip(GRID, entries, strict=True)})
    return pd.DataFrame(rows).drop_duplicates(list(GRID), ignore_index=True)


def criteria_of(session: Session, setting: Mapping[str, float]) -> Criteria:
    """The criteria of one row of `grid_settings`, with the parameters' rules."""
    p = session.params
    values = {name: float(setting[name]) for name in GRID}
    return Criteria(**values, rule_in=p.rule_in, rule_out=p.rule_out)


def build(session: Session, table: pd.DataFrame, criteria: Criteria) -> Built:
    """Candidates, their clusters and the codebook under one setting (Algorithm 1, lines 13-25).

    Raises RedlibError, saying how many tokens passed each criterion, if no prototype is left.
    """
    p, vlm = session.params, session.model
    mask, survivors = candidates(table, criteria)
    rows = table[mask].drop(columns="vector").reset_index(drop=True)
    vectors = np.array(table.loc[mask, "vector"].tolist(), dtype=np.float32)
    vectors = torch.from_numpy(vectors.reshape(len(rows), vlm.width))  # (candidates, D)
    centres = min(p.dpc_centres_candidates, max(1, ceil(len(rows) / CANDIDATES_PER_CENTRE)))
    chosen_mask, clusters = prototypes(
        vectors,
        rows["image"].to_numpy(),
        criteria,
        neighbours=p.dpc_neighbours_candidates,
        centres=centres,
        squared=p.dpc_squared,
        survivors=survivors,
    )
    labels = clusters.labels
    rows = rows.rename(columns={"cluster": "cluster_image", "cluster_size": "cluster_size_image"})
    rows = rows.assign(
        cluster=labels,
        cluster_size=clusters.sizes,
        cluster_images=clusters.distinct(rows["image"].to_numpy())[labels],
        prototype=chosen_mask,
    )
    kept = rows[chosen_mask]
    book = Codebook(
        vectors[torch.from_numpy(chosen_mask)],
        tuple(kept["image"]),
        tuple(kept["patch"]),
        vlm.name,
        vlm.revision,
        criteria,
    )
    survivors = pd.concat([survivors, pd.Series({"prototypes": len(book)})]).rename("tokens")
    return Built(criteria, survivors, rows, vectors, clusters, book)


def score_grid(session: Session, table: pd.DataFrame) -> pd.DataFrame:
    """The five-task mean of every setting at 64 tokens on the calibration scenes.

    Returns the columns of `grid_settings`, candidates, prototypes, the five tasks and mean (NaN
    where no prototype is left), one row per setting; then two rows for comparison, `setting`
    "unpruned" and "random". Settings with the same prototypes are asked once.

    Raises RedlibError, saying how many tokens passed each criterion, if no setting leaves a
    prototype.
    """
    p = session.params
    grid = grid_settings(session, table)
    books: list[Codebook | None] = []
    counts = []
    complaints: dict[int, RedlibError] = {}
    for row in grid.to_dict("records"):
        criteria = criteria_of(session, row)
        n = int(candidates(table, criteria)[1]["candidates"])
        try:
            book = build(session, table, criteria).codebook
        except RedlibError as error:
            book = None
            complaints[n] = error
        books.append(book)
        counts.append({"candidates": n, "prototypes": 0 if book is None else len(book)})
    if not any(books):
        raise complaints[max(complaints)]
    store = session.store(
        "grid",
        notebook="05",
        code=(*_CODE, "bench", "prune", "study/asking", "tabletop/questions"),
        images=p.codebook_images,
        calibration=p.n_calibration,
        questions=p.n_questions,
        settings=grid.to_dict("list"),
        seed=p.seed,
    )
    names: list[str] = []
    methods: dict[str, Codebook | None] = {"unpruned": None, "random": None}
    for book in books:
        places = () if book is None else tuple(zip(book.image, book.patch, strict=True))
        twin = next((m for m, b in methods.items() if b is not None and _places(b) == places), None)
        name = twin or f"setting-{len(methods) - 2:03d}"
        names.append("" if book is None else name)
        if book is not None and twin is None:
            methods[name] = book
    asker: list[_Asker] = []

    def ask_one(name: str) -> pd.DataFrame:
        if not asker:
            asker.append(_Asker(session))
        return asker[0].score(name, methods[name])

    found = store.compute(methods, ask_one, describe="settings").set_index("setting")
    tasks = list(found.columns)
    scored = found.reindex(names).reset_index(drop=True)
    frame = pd.concat([grid, pd.DataFrame(counts), scored], axis=1)
    frame.insert(0, "setting", [f"{n + 1}" for n in range(len(frame))])
    beside = found.loc[["unpruned", "random"]].reset_index()
    return pd.concat([frame, beside], ignore_index=True)[[*frame.columns[: -len(tasks)], *tasks]]


def chosen(session: Session, scores: pd.DataFrame) -> Criteria:
    """The setting with the highest mean among those with enough candidates and prototypes
    (LEAST_PER_IMAGE); the first of equals."""
    return criteria_of(session, scores.loc[chosen_row(session, scores)])


def chosen_row(session: Session, scores: pd.DataFrame) -> int:
    """Index of the chosen setting in `scores`."""
    usable = scores[scores["prototypes"] > 0]
    least = pd.Series(LEAST_PER_IMAGE) * session.params.codebook_images
    many = usable[(usable[least.index] >= least).all(axis=1)]
    pool = many if len(many) else usable
    # Scores that differ by rounding alone are equal.
    return int(pool["mean"].round(6).idxmax())


def make(session: Session) -> Built:
    """All steps at once, and the codebook saved; what notebook 06 does when 05 has not run."""
    probes = probe_images(session)
    table = cascade_images(session, probes)
    built = build(session, table, chosen(session, score_grid(session, table)))
    built.codebook.save(codebook_path(session))
    return built


def _places(book: Codebook) -> tuple:
    return tuple(zip(book.image, book.patch, strict=True))


class _Asker:
    """The calibration scenes, encoded once, and their questions."""

    def __init__(self, session: Session) -> None:
        p = session.params
        self.vlm, self.seed = session.model, p.seed
        drawn = asked_scenes("calibration", p.n_calibration)
        self.questions = ask(drawn, FIVE_TASKS, p.n_questions)
        self.tokens = {s.id: self.vlm.encode([s.image]).tokens[0] for s in drawn}
        self.number = {s.id: n for n, s in enumerate(drawn)}
        self.keep = min(SCORED_AT, self.vlm.grid.size // 2)

    def score(self, name: str, book: Codebook | None) -> pd.DataFrame:
        def rule(image: str, tokens: torch.Tensor) -> torch.Tensor:
            if name == "unpruned":
                return keep_all(image, tokens)
            if book is None:
                return keep_lowest(
                    random_scores(len(tokens), [self.seed, self.number[image]]), self.keep
                )
            return keep_lowest(redundancy(tokens, book), self.keep)

        answers = evaluate(
            self.vlm,
            self.tokens,
            self.questions,
            rule,
            method=name,
            max_new_tokens=4,
            progress=False,
        )
        return pd.DataFrame([{"setting": name, **five(answers)}])
