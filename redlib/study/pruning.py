"""What a model still answers with a part of its visual tokens (sections 4.2 and 5, Algorithm 2).

Every method sees the visual tokens of an image and says which stay. Four are compared in the
paper's Table 1 and Figure 9, the others (`methods`) stand below a line:

    ours           keep the R tokens least similar to any prototype
    prumerge       where [cls] looks, with the rest poured into it
    fastv          where the question looks, inside the language model
    random         R tokens by lot, several seeds

with two ends beside them, the whole image and none of it. All methods answer the same questions, so
that a difference between two of them is a paired one:

    answers = answer_images(session, codebook, thresholds(session, codebook))
    scoring.scores(answers)           # Table 1
    scoring.shares(answers)           # of the unpruned, Figure 9

Each image is seen by the tower once; one part file per image holds its answers under all rules.
Rules are dear, so not all of them are asked everything: Ours, Random and PruMerge answer all
`n_questions` of each task at the budgets, the other rules the first `n_further` of them.
"""

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from redlib import bench, leave_one_out, probe, stages
from redlib.bench import captions, coco
from redlib.bench.letters import circular
from redlib.bench.looking import NONE, UNPRUNED, Replies, Rule, look, replies
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts
from redlib.data.photo import Photo
from redlib.errors import RedlibError
from redlib.notebook import MEASURING, Session
from redlib.params import Params, family
from redlib.prune import METHODS as ALL
from redlib.prune import calibrate, keep_threshold, redundancy
from redlib.prune.choose import Kept
from redlib.prune.context import MERGED
from redlib.prune.views import Seen
from redlib.study import codebooks
from redlib.study.asking import CAPTIONED, described, exam, identity
from redlib.tabletop import Question, Scene

TILE_BUDGETS = (64, 32)
"""Visual tokens of each of the five tiles that LLaVA-Next keeps in Table 1."""

PATIENCE = 600.0
"""Seconds: a missing codebook is built here if it takes no longer."""

PAPER = ("ours", "prumerge", "fastv", "random")
"""The methods of the paper's Table 1 and Figure 9."""

ASKED_ALL = ("ours", "prumerge", "random")
"""Those that answer every question at the budgets."""

METHODS: dict[str, str] = {
    "unpruned": "all tokens",
    "ours": "Ours, R lowest",
    "prumerge": "PruMerge",
    "fastv": "FastV",
    "random": "Random",
    "threshold": "Ours, threshold",
    **{
        name: method.title
        for name, method in ALL.items()
        if name not in ("codebook", "prumerge", "fastv", "random")
    },
    "none": "no visual token",
}

LONGEST, LONGEST_CAPTION = 8, 64
"""New tokens of an answer and of a caption about a scene; for photographs see `data.prompts`."""

KNOWING = ("oracle", "oracle-inverse")
"""Methods that are told where the objects are, which nobody knows of a photograph."""

INFORMATIVE = 0.5
"""A token is informative if an object or the written word covers so much of its patch."""


def load_codebook(session: Session) -> Codebook:
    """The codebook of notebook 05 of this run, or one built now if that is soon done.

    Raises RedlibError, naming the command, if building would take more than ten minutes, and for a
    codebook that belongs to another model.
    """
    path, vlm = codebooks.codebook_path(session), session.model
    if not path.is_file():
        seconds = seconds_to_build(session)
        if seconds > PATIENCE:
            raise RedlibError(
                f"no codebook at {path}, and building it takes about {seconds / 60:.0f} minutes: "
                f"run `redlib run params/{session.name}.yaml --only 05` first"
            )
        return codebooks.make(session).codebook
    return Codebook.load(path, width=vlm.width, model=vlm.name, revision=vlm.revision)


def seconds_to_build(session: Session) -> float:
    """Estimate from the probes of one training image, before anything of it is stored.

    A divergence costs about thirty probes, and about a third of the probed tokens need one.
    """
    vlm, how = session.model, codebooks.probing(session)
    scene = next(iter(codebooks.training_scenes(session).values()))
    start = time.perf_counter()
    encoded = vlm.encode([scene.image])
    tokens, table = encoded.tokens[0], stages.clustered(encoded, how, scene.id)
    table = stages.read(vlm, tokens, table, codebooks.planned(session), how, stages=("single",))
    once = time.perf_counter() - start
    start = time.perf_counter()
    stages.read(vlm, tokens, table[:4], [stages.EAGER], how)
    each = (time.perf_counter() - start) / 4
    return session.params.codebook_images * (once + each * len(table) / 3)


def thresholds(session: Session, codebook: Codebook) -> pd.DataFrame:
    """r for each budget, set on the calibration images; with r_threshold given, that one r.

    Returns budget, r, calibration_mean (tokens kept there), images.
    """
    p, vlm = session.params, session.model
    drawn = session.images("calibration", p.n_calibration)
    scores = [redundancy(vlm.encode([scene.image]).tokens[0], codebook) for scene in drawn]
    rows = []
    for budget in p.budgets:
        given = p.r_threshold
        r = calibrate(scores, budget) if given == "calibrated" else float(given)
        kept = [int(keep_threshold(s, r, rule=p.rule_keep).sum()) for s in scores]
        rows.append((budget, r, float(np.mean(kept)), len(drawn)))
    return pd.DataFrame(rows, columns=["budget", "r", "calibration_mean", "images"])


@dataclass(frozen=True)
class Asked:
    """A rule to be judged and how much it is asked.

    Attributes:
        method: of METHODS.
        seed: number of the draw.
        rule: what prunes.
        limit: questions of each task that it answers.
        captions: whether it describes images too.
    """

    method: str
    seed: int
    rule: Rule
    limit: int
    captions: bool


def rules(params: Params, size: int, limits: pd.DataFrame, setting: str = "base") -> list[Asked]:
    """All rules of a setting, "base" or "split" (LLaVA-Next's five tiles).

    size: visual tokens of an image. limits: rows of `thresholds`.

    What `curve` has beyond the budgets has one seed of Random, and no threshold, which is set for
    budgets. Captions, which are dear, are asked of the paper's methods at the budgets.
    """
    full = params.n_questions if setting == "base" else params.n_tiled
    few = min(params.n_further, full)
    budgets = params.budgets if setting == "base" else TILE_BUDGETS
    names = ["ours", "random", *params.methods, "threshold"]
    if params.data == "real":
        names = [name for name in names if name not in KNOWING]
    if setting == "split":
        names = [name for name in names if name in PAPER]
    found = [Asked("unpruned", 0, Rule(UNPRUNED, size), full, True)]
    if setting == "base":
        found.append(Asked("none", 0, Rule(NONE, 0), full, False))
    for name, tokens in itertools.product(dict.fromkeys(names), budgets):
        limit = full if name in ASKED_ALL else few
        for seed in range(params.random_seeds if name == "random" else 1):
            rule = _rule(name, tokens, params.seed + seed)
            if name == "threshold":
                r = limits.set_index("budget").loc[tokens, "r"]
                rule = Rule("codebook", tokens, threshold=_limit(float(r), params.rule_keep))
            found.append(Asked(name, seed, rule, limit, name in PAPER))
    more = [n for n in params.curve if n not in budgets and n < size] if setting == "base" else []
    for name, tokens in itertools.product(dict.fromkeys(names), more):
        if name != "threshold":
            found.append(Asked(name, 0, _rule(name, tokens, params.seed), few, False))
    return found


def _rule(name: str, tokens: int, seed: int) -> Rule:
    return Rule("codebook" if name == "ours" else name, tokens, seed if name == "random" else 0)


def _limit(r: float, rule_keep: str) -> float:
    """The largest float32 score that a threshold r keeps."""
    return r if rule_keep == "at-most" else float(np.nextafter(np.float32(r), np.float32(-np.inf)))


@dataclass(frozen=True, eq=False)
class Asking:
    """One test image with all that is asked about it.

    Attributes:
        scene, setting: the image, and how the model looks at it.
        asked: (question, place): rules that answer `limit` questions of each task take those whose
            place is below it.
    """

    scene: Scene | Photo
    setting: str
    asked: list[tuple[Question, int]]


def to_ask(session: Session) -> dict[str, Asking]:
    """By image, all questions of all settings; test scenes from 0 on, captions on others."""
    p, found = session.params, {}
    session.asked += benchmarks.named(p, kinds=benchmarks.FIVE + benchmarks.CAPTIONED)
    shown: list[tuple[str, int, int, int]] = [("base", 1, p.n_questions, p.n_captions)]
    if session.model.model.config.model_type == "llava_next":
        shown.append(("split", 2, p.n_tiled, min(p.n_tiled, p.n_captions)))
    for setting, scale, limit, n_described in shown:
        drawn, about = exam(p, limit, scale=scale)
        few = set(exam(p, min(p.n_further, limit), images=limit, scale=scale)[1])
        placed = [(question, 0 if question in few else p.n_further) for question in about]
        more, captioned = described(p, n_described, scale=scale)
        placed += [(question, 0) for question in captioned]
        found |= {
            f"{setting}/{scene.id}" if p.data == "real" else scene.id: Asking(scene, setting, [])
            for scene in (*drawn, *more)
        }
        for question, place in placed:
            name = f"{setting}/{question.image}" if p.data == "real" else question.image
            found[name].asked.append((question, place))
    return {name: asking for name, asking in found.items() if asking.asked}


def answer_images(session: Session, codebook: Codebook, limits: pd.DataFrame) -> pd.DataFrame:
    """Answers of all rules of all settings, on the test split.

    Returns one row per setting, method, tokens (the budget), seed and question, with task, image,
    group, asked, question, gold, answer, correct (by the benchmark's own unit, see
    `letters.circular`; of captions the F1), kept (visual tokens) and informative (share of the
    informative tokens that stayed; NaN where rows stand for no single token, and for tiles).
    """
    p = session.params
    if p.data == "real":
        coco.ready(p.caption_metric)
    about = to_ask(session)
    plan = {
        setting: rules(p, session.model.grid.size, limits, setting)
        for setting in dict.fromkeys(asking.setting for asking in about.values())
    }
    store = session.store(
        "answers",
        code=(*MEASURING, "bench", "prune", "study/pruning", "study/asking", "tabletop/questions"),
        questions=[p.n_questions, p.n_further, p.n_captions, p.n_tiled],
        codebook=codebook.digest,
        rules=[repr(asked) for part in plan.values() for asked in part],
        probe=[p.prompt, p.top_prob, p.top_jsd, p.jsd_definition, p.k_region, p.k_global]
        if "probe" in p.methods
        else None,
        **identity(
            p,
            (question for asking in about.values() for question, _ in asking.asked),
            (asking.scene for asking in about.values()),
        ),
    )

    def measure(name: str) -> pd.DataFrame:
        asking = about[name]
        return answer_image(session, asking, plan[asking.setting], codebook)

    answers = store.compute(about, measure, describe="images")
    return answers if p.data == "tabletop" else _captions_judged(session, answers, about)


def _captions_judged(
    session: Session, answers: pd.DataFrame, about: dict[str, Asking]
) -> pd.DataFrame:
    """The answers with what the captions of photographs are worth, by `caption_metric`.

    Both metrics are of a set of captions, so each rule's captions of a column are judged together.
    """
    metric = session.params.caption_metric
    judge = {"SPICE": coco.spice, "CIDEr": coco.cider}[metric]
    told = {asking.scene.id: asking.scene.references for asking in about.values()}
    key = ["setting", "method", "tokens", "seed", "task"]
    part = answers[answers["task"].isin(CAPTIONED)]
    sets = {" ".join(map(str, of)): rows for of, rows in part.groupby(key, sort=False)}
    said = sorted(zip(part["image"], part["answer"], strict=True))
    store = session.store(
        "captions", code=("bench/coco",), metric=metric,
        said=hashlib.sha256(repr((said, sorted(told.items()))).encode()).hexdigest()[:12],
    )  # fmt: skip

    def measure(name: str) -> pd.DataFrame:
        captions = dict(zip(sets[name]["image"], sets[name]["answer"], strict=True))
        worth = judge(captions, {image: told[image] for image in captions})
        return pd.DataFrame({"row": sets[name].index, "worth": worth[sets[name]["image"]].values})

    worth = store.compute(sets, measure, describe="sets of captions").set_index("row")["worth"]
    return answers.assign(correct=worth.reindex(answers.index).fillna(answers["correct"]))


def answer_image(
    session: Session, asking: Asking, plan: Sequence[Asked], codebook: Codebook
) -> pd.DataFrame:
    """Rows of `answer_images` of one image."""
    vlm, scene, base = session.model, asking.scene, asking.setting == "base"
    covered = None
    if isinstance(scene, Scene):
        covered = scene.coverage(vlm.sight).sum(axis=0) + scene.word_coverage(vlm.sight)
    extra = {}
    if base:
        if covered is not None:
            extra["coverage"] = [torch.from_numpy(covered)]
        # No caption is asked of it, and nothing else is as dear.
        if any(asked.method == "probe" for asked in plan) and any(
            question.task not in CAPTIONED for question, _ in asking.asked
        ):
            extra |= probed(session, scene)
    looked = look(vlm, [scene.image], setting=asking.setting, extra=extra)
    frames = []
    for asked, chosen, told in _told(session, asking, plan, looked, codebook):
        frame = pd.DataFrame(
            {
                "setting": asking.setting,
                "method": asked.method,
                "tokens": asked.rule.tokens,
                "seed": asked.seed,
                "task": [q.task for q in chosen],
                "image": scene.id,
                "group": [q.group for q in chosen],
                "asked": [q.asked for q in chosen],
                "question": [q.text for q in chosen],
                "gold": [q.answer for q in chosen],
                "answer": told.texts,
                "correct": [
                    _right(q, said, scene) for q, said in zip(chosen, told.texts, strict=True)
                ],
                "kept": told.kept,
                "informative": [
                    np.nan if covered is None or not base else _found(covered, kept)
                    for kept in told.chosen
                ],
            }
        )
        frames.append(frame.assign(correct=circular(frame).astype(float)))
    return pd.concat(frames, ignore_index=True)


def _told(
    session: Session,
    asking: Asking,
    plan: Sequence[Asked],
    looked: Sequence[Seen],
    codebook: Codebook,
) -> Iterator[tuple[Asked, list[Question], Replies]]:
    """What each rule of the plan is asked about an image, and answers. Rules that are asked the
    same are asked together, which spares FastV the ranking at every further budget."""
    together: dict[tuple[Question, ...], list[Asked]] = {}
    for asked in plan:
        chosen = tuple(
            q
            for q, place in asking.asked
            if (asked.captions if q.task in CAPTIONED else place < asked.limit)
        )
        if chosen:
            together.setdefault(chosen, []).append(asked)
    p = session.params
    longest, longest_caption = LONGEST, LONGEST_CAPTION
    if p.data == "real":
        longest = prompts.LONGEST
        longest_caption = prompts.longest_caption(p.prompts, family(p.model))
    found = {}
    for chosen, part in together.items():
        told = replies(
            session.model, looked, [asked.rule for asked in part], [q.text for q in chosen],
            codebook=codebook,
            max_new_tokens=longest_caption if any(q.task in CAPTIONED for q in chosen) else longest,
        )  # fmt: skip
        found |= {asked: (list(chosen), one) for asked, one in zip(part, told, strict=True)}
    yield from ((asked, *found[asked]) for asked in plan if asked in found)


def _right(question: Question, said: str, scene: Scene | Photo) -> float:
    if question.task in CAPTIONED:
        if isinstance(scene, Photo):
            return np.nan  # worth something only among others, see `_captions_judged`
        return captions.f1(*captions.counts(said, scene, question.task))
    return float(bench.is_correct(question.task, said, question.answer, question=question.text))


def _found(covered: np.ndarray, kept: Sequence[Kept]) -> float:
    """Share of the informative tokens that stayed; NaN if there is none, or none is a token's."""
    told = np.flatnonzero(covered >= INFORMATIVE)
    if not len(told):
        return np.nan
    if not kept:
        return 0.0
    stays = kept[0].kept.numpy()
    stays = stays[stays != MERGED]
    return float(np.isin(told, stays).mean()) if len(stays) else np.nan


def probed(session: Session, scene: Scene | Photo) -> dict[str, list[torch.Tensor]]:
    """What the direct probe ranks by: top-1 probability and final JSD of every token, (L,) each, in
    a list of one. Dear: it probes and ablates each token of the image."""
    p, vlm = session.params, session.model
    tokens = vlm.encode([scene.image]).tokens[0]
    every = np.arange(len(tokens))
    alone = probe.single(vlm, tokens, every, prompt=p.prompt, top=p.top_prob)["top1"]
    lost = leave_one_out.cascade(
        vlm, tokens, every, prompt=p.prompt, top=p.top_jsd, top_released=p.top_jsd,
        definition=p.jsd_definition, weights=(p.k_region, p.k_global),
    )["jsd_final"]  # fmt: skip
    return {
        "top1": [torch.tensor(alone.to_numpy(copy=True))],
        "jsd": [torch.tensor(lost.to_numpy(copy=True))],
    }
