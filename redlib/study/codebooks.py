"""Building the codebook from training images, in steps that can stop and go on (Algorithm 1).

`redlib.stages` says which token needs which reading; the steps here keep the readings, one part per
image, and compute what is missing:

    probes = probe_images(session)                 # clusters within the image, single-token probe
    table = cascade_images(session, probes)        # divergence, where it can still decide
    scores = score_grid(session, table)            # one row per setting of the four thresholds
    built = build(session, table, chosen(session, scores))
    keep(session, built)

Thresholds. The paper's belong to models of seven billion parameters. For another model they are
chosen from GRID by one rule, on calibration scenes: the highest five-task mean at 64 kept tokens.
The grid is written in terms that mean the same for every model: quantiles of the probed tokens for
the top-1 probability and the divergence, multiples of the mean cluster size, tokens per training
image. A threshold that the parameters name as a number is taken as it is, and then tokens that it
rules out are read no further; a quantile needs the readings of all tokens that it is taken over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from redlib import stages
from redlib.bench import evaluate, keep_all
from redlib.codebook import Codebook, Criteria, NoPrototype, candidates
from redlib.data.images import ROLES
from redlib.data.photographs import Picture
from redlib.notebook import MEASURING, Session
from redlib.params import BUILDS, CODEBOOK
from redlib.prune import keep_lowest, random_scores, redundancy
from redlib.stages import EAGER, UNCHOSEN, Built, Probing
from redlib.store import Store, write_json
from redlib.study.asking import FIVE_TASKS, JUDGED, ask, asked_scenes, five
from redlib.tabletop import Scene

START = ROLES["training"].first
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

_CODE = (*MEASURING, "clustering", "codebook", "stages", "study/codebooks", "tabletop/world")


def codebook_path(session: Session) -> Path:
    """runs/<run_name>/codebook.safetensors."""
    return session.folder / CODEBOOK


def keep(session: Session, built: Built) -> None:
    """Save the codebook for notebooks 06 to 08, and beside it the parameters that it follows from,
    by which `redlib run` tells an outdated one."""
    path, p = codebook_path(session), session.params
    note = path.with_suffix(".json")
    note.unlink(missing_ok=True)  # so that it never speaks of another codebook
    built.codebook.save(path)
    write_json(note, {name: getattr(p, name) for name in BUILDS})


def training_scenes(session: Session) -> dict[str, Scene | Picture]:
    """The scenes, or photographs, that prototypes are searched in, by id."""
    return {one.id: one for one in session.images("training", session.params.codebook_images)}


def probing(session: Session) -> Probing:
    """How the parameters say a token is read."""
    p = session.params
    return Probing(
        prompt=p.prompt,
        top_prob=p.top_prob,
        top_jsd=p.top_jsd,
        definition=p.jsd_definition,
        weights=(p.k_region, p.k_global),
        ranks=p.codebook_ranks,
        neighbours=p.dpc_neighbours_image,
        centres=p.dpc_centres_image,
        squared=p.dpc_squared,
    )


def probe_images(session: Session) -> pd.DataFrame:
    """Clusters and single-token probe of the training images' tokens.

    Where tau_prob is a number, tokens whose cluster is too large for every tau_out are not probed.

    Returns image, rank (by falling [cls] similarity, from 0), patch, cls_similarity, cluster,
    cluster_size, word, top1, top1_head, one row per token of the ranks that are looked at.
    """
    how, settings = probing(session), planned(session)
    drawn = training_scenes(session)

    def probe_image(name: str) -> pd.DataFrame:
        encoded = session.model.encode([drawn[name].image])
        table = stages.clustered(encoded, how, name)
        return stages.read(
            session.model, encoded.tokens[0], table, settings, how, stages=("single",)
        )

    fields = ("prompt", "top_prob", "ranks", "neighbours", "centres", "squared")
    key = {name: getattr(how, name) for name in fields}
    store = _store(session, "probes", **key, **_asked(settings, "tau_prob", "tau_out", "rule_out"))
    return store.compute(drawn, probe_image, describe="images")


def cascade_images(session: Session, probes: pd.DataFrame) -> pd.DataFrame:
    """The probed tokens with their divergence where it can still decide under some setting.

    Returns the columns of `probe_images`, jsd_region, jsd_global and jsd_final (NaN where no
    setting needs them) and `vector`, the token itself, (D,) float32, where a setting may take it
    (None elsewhere).
    """
    return _read_on(session, "cascade", probes, planned(session, probes))


def planned(session: Session, probes: pd.DataFrame | None = None) -> list[Criteria]:
    """The settings to read for: the loosest of the grid, as far as the thresholds are known.

    probes: where there are none yet, a tau_prob of the grid is not known.
    """
    p = session.params
    if probes is None and p.tau_prob == "calibrated":
        return [EAGER]  # its quantiles are those of all tokens
    found = settings_of(session, probes)
    tau_jsd = UNCHOSEN if p.tau_jsd == "calibrated" else p.tau_jsd
    return stages.loosest(
        [
            Criteria(tau_prob, tau_out, 0, tau_jsd, rule_out=p.rule_out)
            for (_, tau_prob), (_, tau_out) in product(found["tau_prob"], found["tau_out"])
        ]
    )


def ablation_codebooks(
    session: Session, table: pd.DataFrame, criteria: Criteria, images: int
) -> dict[str, Built | None]:
    """The codebooks of Table 3, by row (`stages.ablation`); None where no prototype is left.

    table: what `cascade_images` returned. images: training images, from the first on, behind all
    rows but the last; with fewer than `criteria` were chosen for, tau_in follows in proportion.
    What the criteria sets need beyond the table is read in one pass for all of them.
    """
    names = list(training_scenes(session))[:images]
    if len(names) < session.params.codebook_images:
        criteria = criteria.for_images(len(names), of=session.params.codebook_images)
    sets = stages.ablation(criteria, len(names))
    settings = stages.loosest([setting for setting, _ in sets.values()])
    whole = _read_on(session, "ablation", table[table["image"].isin(names)], settings)
    found: dict[str, Built | None] = {}
    for row, (setting, count) in sets.items():
        part = whole[whole["image"].isin(names[:count])].reset_index(drop=True)
        try:
            found[row] = build(session, part, setting)
        except NoPrototype:
            found[row] = None
    return found


def _read_on(
    session: Session, kind: str, table: pd.DataFrame, settings: Sequence[Criteria]
) -> pd.DataFrame:
    """The table with all readings that the settings need; one part per image, of all its rows."""
    vlm, how = session.model, probing(session)
    drawn = training_scenes(session)
    rows = {name: part.reset_index(drop=True) for name, part in table.groupby("image", sort=False)}

    def read_image(name: str) -> pd.DataFrame:
        tokens = vlm.encode([drawn[name].image]).tokens[0]
        return stages.read(vlm, tokens, rows[name], settings, how)

    key = _asked(settings, "tau_prob", "tau_out", "rule_out", "tau_jsd")
    if session.params.tau_prob == "calibrated":
        # Quantiles move with the images, so more images are another table.
        key["images"] = session.params.codebook_images
    store = _store(session, kind, **asdict(how), **key)
    return store.compute(rows, read_image, describe="images")


def _store(session: Session, kind: str, **key: Any) -> Store:
    """A table of readings."""
    key |= {"start": START} | session.of_images("training")
    return session.store(kind, notebook="05", code=_CODE, **key)


def _asked(settings: Sequence[Criteria], *names: str) -> dict[str, list]:
    """What decides which tokens were read, for a table's key: per threshold, one entry a setting.

    Tighter settings beside these change nothing, since the loosest alone are listed.
    """
    words = {inf: "off", UNCHOSEN: "calibrated"}
    values = {name: [getattr(setting, name) for setting in settings] for name in names}
    return {name: [words.get(value, value) for value in found] for name, found in values.items()}


def settings_of(
    session: Session, probes: pd.DataFrame | None
) -> dict[str, list[tuple[float, float]]]:
    """tau_prob, tau_out, tau_in -> [(entry of the grid, threshold)], in the order of GRID.

    The entry is NaN where the parameters give a number. tau_jsd follows from the divergences:
    `grid_settings`. probes: not looked at where tau_prob is a number.
    """
    p = session.params
    probed = len(probing(session).taken(session.model.grid.size))
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
    """`stages.build` with the parameters' clusters of candidates."""
    p = session.params
    return stages.build(
        table,
        criteria,
        probing(session),
        vlm=session.model,
        neighbours=p.dpc_neighbours_candidates,
        centres=p.dpc_centres_candidates,
    )


def stage_counts(session: Session, table: pd.DataFrame, built: Built) -> pd.DataFrame:
    """What the stages cost for one codebook, and what was read here for all settings.

    Returns stage, patches, forwards, eager, survivors of `built.stages`, and patches_read,
    forwards_spent, those of the table.
    """
    spent = stages.tally(table, [built.criteria], probing(session).weights)
    return built.stages.assign(patches_read=spent["patches"], forwards_spent=spent["forwards"])


def score_grid(session: Session, table: pd.DataFrame) -> pd.DataFrame:
    """The five-task mean of every setting at 64 tokens on the calibration scenes.

    Returns the columns of `grid_settings`, candidates, prototypes, the five tasks and mean (NaN
    where no prototype is left), one row per setting; then two rows for comparison, `setting`
    "unpruned" and "random". Settings with the same prototypes are asked once.

    With photographs there is one setting, whose thresholds the parameters give, and nobody is
    asked: no column of tasks, no mean, no rows for comparison.

    Raises RedlibError, saying how many tokens passed each criterion, if no setting leaves a
    prototype.
    """
    p = session.params
    grid = grid_settings(session, table)
    books: list[Codebook | None] = []
    counts = []
    complaints: dict[int, NoPrototype] = {}
    for row in grid.to_dict("records"):
        criteria = criteria_of(session, row)
        n = int(candidates(table, criteria)[1]["candidates"])
        try:
            book = build(session, table, criteria).codebook
        except NoPrototype as error:
            book = None
            complaints[n] = error
        books.append(book)
        counts.append({"candidates": n, "prototypes": 0 if book is None else len(book)})
    if not any(books):
        raise complaints[max(complaints)]
    frame = pd.concat([grid, pd.DataFrame(counts)], axis=1)
    frame.insert(0, "setting", [f"{n + 1}" for n in range(len(frame))])
    if session.source.real:
        return frame
    names: list[str] = []
    methods: dict[str, Codebook | None] = {"unpruned": None, "random": None}
    for book in books:
        places = () if book is None else tuple(zip(book.image, book.patch, strict=True))
        twin = next((m for m, b in methods.items() if b is not None and _places(b) == places), None)
        name = twin or f"setting-{len(methods) - 2:03d}"
        names.append("" if book is None else name)
        if book is not None and twin is None:
            methods[name] = book
    store = session.store(
        "grid",
        notebook="05",
        code=(*_CODE, "bench", "prune", "study/asking", "tabletop/questions"),
        calibration=p.n_calibration,
        questions=p.n_questions,
        books={name: book.digest for name, book in methods.items() if book is not None},
        seed=p.seed,
    )
    asker: list[_Asker] = []

    def ask_one(name: str) -> pd.DataFrame:
        if not asker:
            asker.append(_Asker(session))
        return asker[0].score(name, methods[name])

    found = store.compute(methods, ask_one, describe="settings").set_index("setting")
    tasks = list(found.columns)
    scored = found.reindex(names).reset_index(drop=True)
    frame = pd.concat([frame, scored], axis=1)
    beside = found.loc[["unpruned", "random"]].reset_index()
    return pd.concat([frame, beside], ignore_index=True)[[*frame.columns[: -len(tasks)], *tasks]]


def chosen(session: Session, scores: pd.DataFrame) -> Criteria:
    """The setting with the highest mean among those with enough candidates and prototypes
    (LEAST_PER_IMAGE); the first of equals."""
    return criteria_of(session, scores.loc[chosen_row(session, scores)])


def chosen_row(session: Session, scores: pd.DataFrame) -> int:
    """Index of the chosen setting in `scores`; of settings that nobody scored, there is but one."""
    if "mean" not in scores:
        return 0
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
    keep(session, built)
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
            max_new_tokens=JUDGED,
            progress=False,
        )
        return pd.DataFrame([{"setting": name, **five(answers)}])
