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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from redlib import bench, leave_one_out, probe, stages
from redlib.bench import captions, coco
from redlib.bench.letters import circular
from redlib.bench.looking import NONE, UNPRUNED, Replies, Rule, look, replies
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts, single
from redlib.data.photo import Photo
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.notebook import MEASURING, Session
from redlib.params import Params, family
from redlib.prune import METHODS as ALL
from redlib.prune import (
    calibrate,
    codebook_bytes,
    fastv,
    keep_lowest,
    keep_threshold,
    operations,
    redundancy,
    sparsevlm,
)
from redlib.prune.choose import Kept
from redlib.prune.context import MERGED
from redlib.prune.inside import read_a_layer
from redlib.prune.scores import cosines
from redlib.prune.views import Seen
from redlib.store import write_json
from redlib.study import LEAST_IMAGES, codebooks, scoring
from redlib.study.asking import CAPTIONED, ask, described, exam, identity
from redlib.study.verdict import Verdict, bounds
from redlib.tabletop import Question, Scene, scenes
from redlib.tabletop.world import redraw

TILE_BUDGETS = (64, 32)
"""Visual tokens of each of the five tiles that LLaVA-Next keeps in Table 1."""

PATIENCE = 600.0
"""Seconds: a missing codebook is built here if it takes no longer."""

SHOWN = ("pope-adversarial", "mme", "seed", "colour", "position")
"""Tasks of which the sketch of the pipeline shows one question each, all about a square image."""

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

KEEPS_MORE = "Where Ours keeps more of the informative tokens than a rival, it answers more"
"""What has to follow if redundancy is what the paper says."""
MISSED = 0.05
"""Share of 95 % intervals that miss by chance alone."""

PAPER_TOKENS = 576
"""Visual tokens of the paper's LLaVA-1.5."""

PAPER_CODEBOOKS = {
    "LLaVA-1.5": (454, 4096),
    "LLaVA-Next": (969, 4096),
    "LLaVA-OneVision": (310, 3584),
}
"""Prototypes (section 9.1) and width of the paper's models."""


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


@dataclass(frozen=True, eq=False)
class Shown:
    """One test image on its way through the codebook (Figure 5, right).

    Attributes:
        view: what the model sees.
        scores, kept, covered: (L,) redundancy score, whether the token stays, share under objects.
        answers: question, gold, pruned, unpruned, pruned_right, unpruned_right; one row per
            question.
        table: patch, score, kept, covered, and prototype, the number of the one that the token is
            most similar to; one row per token.
    """

    view: Image.Image
    scores: np.ndarray
    kept: np.ndarray
    covered: np.ndarray
    answers: pd.DataFrame
    table: pd.DataFrame


def show(session: Session, codebook: Codebook, *, keep: int) -> Shown:
    """The first test scene with `keep` tokens and all, asked one question of each of SHOWN; of
    photographs the first of POPE, asked one question of each subset, and `covered` is NaN."""
    p, vlm = session.params, session.model
    if p.data == "tabletop":
        scene = scenes("test", 1)[0]
        chosen = [q for task in SHOWN for q in ask([scene], (task,), 1)[:1]]
    else:
        session.asked += benchmarks.named(p, kinds=("pope",))
        (scene, *_), chosen = single.ask("pope", 1, p)
        chosen = [q for q in chosen if q.image == scene.id]
    tokens = vlm.encode([scene.image]).tokens[0]
    scores = redundancy(tokens, codebook)
    mask = keep_lowest(scores, keep)
    texts = [question.text for question in chosen]
    covered = np.full(len(tokens), np.nan)
    if isinstance(scene, Scene):
        covered = scene.coverage(vlm.sight).sum(axis=0)
    frame = pd.DataFrame({"patch": np.arange(len(tokens)), "score": scores.cpu().numpy()})
    frame["kept"], frame["covered"] = mask.cpu().numpy(), covered
    frame["prototype"] = cosines(tokens, codebook).argmax(dim=-1).cpu().numpy()
    said = {
        "pruned": bench.answers(vlm, tokens[mask], texts, max_new_tokens=4),
        "unpruned": bench.answers(vlm, tokens, texts, max_new_tokens=4),
    }
    asked = {"question": texts, "gold": [question.answer for question in chosen]}
    right = {
        f"{side}_right": [
            bench.is_correct(q.task, text, q.answer, question=q.text)
            for q, text in zip(chosen, words, strict=True)
        ]
        for side, words in said.items()
    }
    return Shown(
        vlm.view(scene.image),
        frame["score"].to_numpy(),
        frame["kept"].to_numpy(),
        covered,
        pd.DataFrame(asked | said | right),
        frame,
    )


class Origin(NamedTuple):
    """Where a prototype comes from.

    view: the image as the model sees it. patch: number of the patch, raster order.
    """

    view: Image.Image
    patch: int


def origins(
    session: Session, codebook: Codebook, shown: pd.DataFrame, *, most: int = 6
) -> dict[int, Origin]:
    """By number, where each of the `most` prototypes that removed most tokens comes from."""
    photographs = codebooks.training_scenes(session) if session.params.data == "real" else {}
    found = {}
    for number in shown.loc[~shown["kept"], "prototype"].value_counts().index[:most]:
        name = codebook.image[number]
        source = photographs[name] if photographs else redraw(name)
        found[int(number)] = Origin(session.model.view(source.image), int(codebook.patch[number]))
    return found


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
        **identity(p, (question for asking in about.values() for question, _ in asking.asked)),
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


def open_cells(session: Session, answers: pd.DataFrame, together: pd.DataFrame) -> list[str]:
    """Write every answer, those of all draws, beside the figures (`scoring.leave`). Returns the
    names of the files.

    together: answers about several images (`study.several.answer_samples`), a set being a task.
    """
    if len(together):
        about = together.rename(columns={"set": "task"}).assign(setting="base")
        about["correct"] = about["correct"].fillna(0)  # empty, which MVBench leaves out of its mean
        answers = pd.concat([answers, about], ignore_index=True)
    return scoring.leave(session, answers)


def joined(gaps: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """The tables of `scoring.gap` as one, with the number of tokens in front."""
    parts = [gap.assign(tokens=tokens) for tokens, gap in gaps.items()]
    frame = pd.concat(parts, ignore_index=True)
    return frame[["tokens", *frame.columns.drop("tokens")]]


def better_verdict(summary: pd.DataFrame, gap: pd.DataFrame, tokens: int) -> Verdict:
    """Whether choosing by the codebook beats the lot in the five-task mean."""
    row = gap[gap["task"] == "mean"].iloc[0]
    mean, few = _means(summary), row["images"] < LEAST_IMAGES
    return Verdict(
        f"With {tokens} visual tokens, Ours answers more questions than Random",
        None if row["low"] <= 0 <= row["high"] or few else bool(row["low"] > 0),
        f"five-task mean {mean['ours', tokens]:.1%} against {mean['random', tokens]:.1%}, paired "
        f"difference {_points(row)} over {row['n']} questions about {row['images']} images",
        "Table 1",
    )


def informative_verdict(found: pd.DataFrame, rivals: pd.DataFrame) -> Verdict:
    """Whether Ours answers better wherever it keeps more of the informative tokens.

    found: rows of `scoring.informative_gaps`. rivals: of `scoring.rivals`. Rivals that keep fewer
    at a budget and answer more, each by its interval, say no, if they are more than the one in
    twenty that a 95 % interval may miss; yes takes all of them. What prunes inside the language
    model is no rival here: its first layers have seen every token.
    """
    inside = [name for name, method in ALL.items() if method.inside is not None]
    more = found[(found["low"] > 0) & (found["images"] >= LEAST_IMAGES)]
    more = more[~more["against"].isin(inside)]
    ours = (rivals["method"] == "ours") & (rivals["setting"] == "base") & (rivals["task"] == "mean")
    told = rivals[ours].merge(more[["against", "tokens"]], on=["against", "tokens"])
    told = told[told["images"] >= LEAST_IMAGES]
    better, worse = int((told["low"] > 0).sum()), int((told["high"] < 0).sum())
    evidence = "no rival keeps fewer of them by its interval"
    if len(told):
        least = told.loc[told["difference"].idxmin()]
        evidence = (
            f"of {len(told)} rivals and budgets at which Ours keeps more, it answers more in "
            f"{better}, less in {worse}, the rest is open; least against {least['against']} at "
            f"{least['tokens']}: five-task mean {_points(least)} over {least['n']} questions"
        )
    refuted = worse > MISSED * len(told)
    holds = False if refuted else True if better and better == len(told) else None
    return Verdict(KEEPS_MORE, holds, evidence, "Figures 10, 11")


def conclusion(summary: pd.DataFrame, gaps: dict[int, pd.DataFrame]) -> str:
    """What the numbers say, in two or three sentences, whatever they say."""
    mean = _means(summary)
    size = summary.loc[summary["method"] == "unpruned", "tokens"].iloc[0]
    full, blind = mean["unpruned", size], mean["none", 0]
    parts = [
        f"With all {size} visual tokens the five-task mean is {full:.1%}, with none {blind:.1%}."
    ]
    for tokens, gap in gaps.items():
        row = gap[gap["task"] == "mean"].iloc[0]
        ours = mean["ours", tokens]
        share = f" ({ours / full:.0%} of the unpruned mean)" if full > 0 else ""
        if row["images"] < LEAST_IMAGES:
            told = "too few images to say more"
        elif row["low"] > 0:
            told = "better than Random"
        elif row["high"] < 0:
            told = "**worse than Random**: the claim is false for this model and codebook"
        else:
            told = "**not distinguishable from Random** on these questions"
        parts.append(
            f"At {tokens} tokens Ours reaches {ours:.1%}{share}, which is {told}, by "
            f"{_points(row)}."
        )
    return " ".join(parts)


def _means(summary: pd.DataFrame) -> pd.Series:
    mean = summary[(summary["task"] == "mean") & (summary["setting"] == "base")]
    return mean.set_index(["method", "tokens"])["accuracy"]


def _points(row: pd.Series) -> str:
    """A difference of shares in percentage points with its interval."""
    between = bounds(row["low"], row["high"])
    return f"{100 * row['difference']:+z.1f} percentage points (95% interval {between})"


def realised(answers: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """How many tokens the threshold rule kept on the test images, beside what it was set to keep.

    Returns budget, r, calibration_mean, test_mean, least, most (over test images), images, off_by
    (relative to the budget) and compare_with: "threshold" if the budget is met within 2 %, else "R
    lowest".
    """
    rows = []
    for row in limits.itertuples():
        part = answers[(answers["method"] == "threshold") & (answers["tokens"] == row.budget)]
        kept = part.groupby("image")["kept"].first()
        off = kept.mean() / row.budget - 1
        rows.append(
            {
                "budget": row.budget,
                "r": row.r,
                "calibration_mean": row.calibration_mean,
                "test_mean": kept.mean(),
                "least": int(kept.min()),
                "most": int(kept.max()),
                "images": len(kept),
                "off_by": off,
                "compare_with": "threshold" if abs(off) <= 0.02 else "R lowest",
            }
        )
    return pd.DataFrame(rows)


def with_reading(summary: pd.DataFrame, vlm: VLM) -> pd.DataFrame:
    """The scores with what each rule lets the language model read.

    Args:
        summary: rows of `scoring.scores`.

    Returns them with label, the method's title; layer_tokens, the visual tokens that a layer reads,
    mean over the layers: those kept, or more where a method prunes behind some layers; and prefill,
    operations of the layers over these tokens, in millions (2 per parameter and token).
    """
    depth, each = len(vlm.decoder.layers), 2 * _parameters(vlm.decoder.layers) / 1e6
    full = summary[summary["method"] == "unpruned"].groupby("setting")["kept"].first()
    tokens = [
        layer_tokens(row.method, full[row.setting], row.kept, depth) for row in summary.itertuples()
    ]
    read = summary.assign(label=summary["method"].map(METHODS), layer_tokens=tokens)
    return read.assign(prefill=each * read["layer_tokens"])


def layer_tokens(method: str, size: float, kept: float, depth: int) -> float:
    """Visual tokens that a layer reads, mean over `depth` layers, where of `size` tokens `kept`
    stay: as many, or more with a method that prunes behind some of the layers."""
    if method == "fastv":
        return read_a_layer([fastv.LAYER - 1], [size, kept], depth)
    if method == "sparsevlm":
        ranking = sparsevlm.relative(depth)
        counts = [size, *sparsevlm.falling(int(size), int(kept), len(ranking))]
        return read_a_layer(ranking, counts, depth)
    return kept


def _parameters(layers: nn.Module) -> int:
    """How many parameters; of linear maps by their shape, since packed to a few bits they are held
    as fewer numbers."""
    total = 0
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            total += module.in_features * module.out_features
            total += 0 if module.bias is None else module.out_features
        else:
            total += sum(weight.numel() for weight in module.parameters(recurse=False))
    return total


def costs(session: Session, codebook: Codebook) -> pd.DataFrame:
    """Section 5.3 in numbers: operations per image and bytes of the codebook, here and there.

    Returns model, tokens, prototypes, width, operations, megabytes (float16), and
    share_of_prefill: the operations relative to those of the language model's layers over the
    visual tokens (2 per parameter and token), NaN for the paper's model.
    """
    vlm = session.model
    parameters = _parameters(vlm.decoder.layers)
    size, n = vlm.grid.size, len(codebook)
    ours = operations(size, n, vlm.width)
    (prototypes, width), tokens = PAPER_CODEBOOKS["LLaVA-1.5"], PAPER_TOKENS
    theirs = operations(tokens, prototypes, width)
    rows = [
        (vlm.name, size, n, vlm.width, ours, ours / (2 * parameters * size)),
        ("LLaVA-1.5-7B (paper)", tokens, prototypes, width, theirs, np.nan),
    ]
    columns = ["model", "tokens", "prototypes", "width", "operations", "share_of_prefill"]
    frame = pd.DataFrame(rows, columns=columns)
    megabytes = [codebook_bytes(p, w) / 1e6 for p, w in frame[["prototypes", "width"]].to_numpy()]
    frame.insert(5, "megabytes", megabytes)
    return frame


def write_times(session: Session, codebook: Codebook, *, repeats: int = 20) -> str:
    """Measure the time of scoring one image and of the whole prefill; returns where it is written.

    Times differ from run to run, so they go to runs/<run_name>/results/06-times.json and into no
    figure, table or notebook.
    """
    from redlib.engine import extend

    vlm, scene = session.model, scenes("test", 1)[0]
    tokens = vlm.encode([scene.image]).tokens[0]

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            if vlm.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    kept = tokens[keep_lowest(redundancy(tokens, codebook), min(64, len(tokens)))]
    path = session.file("06-times.json")
    write_json(
        path,
        {
            "device": vlm.device.type,
            "redundancy scores, ms": best(lambda: redundancy(tokens, codebook)),
            "prefill of all visual tokens, ms": best(lambda: extend(vlm, tokens)),
            "prefill of 64 visual tokens, ms": best(lambda: extend(vlm, kept)),
        },
    )
    return f"runs/{session.name}/results/{path.name}"
