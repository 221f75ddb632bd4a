"""Two images at once, and films: what pruning costs a model that sees several (section 5.2.2).

Many images multiply the visual tokens, and the paper finds that fewer of them answer *better*:
with a fifth of its tokens LLaVA-OneVision gains on Mantis and MuirBench, and on MVBench it keeps
94 % with a twelfth (Table 2). Pairs of scenes and films stand in for the three benchmarks, asked
and judged as these are. Every method gets the same budget for each image (144 of 729) and for each
frame (16 of 196), and the codebook is that of single images (notebook 05):

    answers = answer_samples(session, codebook)
    summary(answers)                  # accuracy with interval, chance, visual tokens per sample
    shares(answers), rivals(answers)  # pruned over unpruned; Ours minus Random

**What can be decided.** A share of what guessing reaches says nothing: a model at chance keeps
"100 %" without any image. So a task is *decidable* only where the unpruned model is above chance,
by the interval of its paired excess over chance, in every set of the task, with no fewer than
LEAST_IMAGES pairs or films. `shares` and `rivals` have no rows for the others, and the ledger then
says that these claims were not run.

Intervals resample pairs and films, never single questions. One part file per pair or film holds its
answers under all methods; each is seen by the tower once.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from redlib.bench import is_correct
from redlib.bench.intervals import Interval, difference, interval, ratio
from redlib.bench.looking import UNPRUNED, Rule, leave, look, reply
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts
from redlib.data import several as photographs
from redlib.data.several import Asked, Shots
from redlib.models import VLM
from redlib.notebook import MEASURING, Session
from redlib.params import Params
from redlib.prune import calibrate
from redlib.study import LEAST_IMAGES
from redlib.study.verdict import bounds
from redlib.tabletop.films import SUBTASKS, Film, film_questions, films
from redlib.tabletop.pairs import KINDS, Pair, pairs

START = 4_000_000
"""First item of each set in its split; the checkpoint's own evaluation begins at 2,000,000."""

FRAMES = 16
LONGEST = 8  # new tokens of an answer about scenes; about photographs see `data.prompts`

RULE_OF = {"mantis": "mantis", "muir": "muirbench", "film": "mvbench"}
"""Set -> the official toolkit's rule that judges it (`redlib.bench.metrics`)."""

TOKENS = {"mantis": 144, "muir": 144, "film": 16}
"""The budgets of Table 2: visual tokens of an image, and of a frame."""

TASKS = {"multi-image": ("mantis", "muir"), "video": ("film",)}
"""What the paper's percentages average: the ratios of two sets, and that of one."""

METHODS = {
    "unpruned": "all tokens",
    "ours": "Ours, R lowest",
    "threshold": "Ours, threshold",
    "random": "Random",
    "codebook-softmax": "Ours, the release's double softmax",
    "prumerge": "PruMerge",
    "visionzip": "VisionZip",
}
FURTHER = ("codebook-softmax", "prumerge", "visionzip")
"""Methods that the paper's Table 2 has not."""

NOT_RUN = (
    "**Not run**: several images in one prompt, and films, need LLaVA-OneVision "
    "(`params/tiny-llava-onevision.yaml`)."
)

_BEHIND = ["low", "high", "n", "images"]
_SHARES = ["setting", "method", "tokens", "task", "share", *_BEHIND]
_RIVALS = ["setting", "method", "against", "tokens", "task", "difference", *_BEHIND]
_ANSWERS = [
    "set", "image", "kind", "question", "gold", "answer", "correct", "chance", "method", "tokens",
    "seed", "kept",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sample:
    """One pair of images, or one film, with all that is asked about it.

    Attributes:
        id: of the pair (both items of a muir number share it) or film.
        set: "mantis", "muir" or "film".
        source: what the images are painted from, or the photographs.
        asked: its questions.
    """

    id: str
    set: str
    source: Pair | Film | Shots
    asked: tuple[Asked, ...]

    @property
    def setting(self) -> str:
        """Of `bench.looking`."""
        return "film" if self.set == "film" else "several"

    @property
    def images(self) -> list[Image.Image]:
        """The two images, or the frames, in the order in which the model sees them."""
        if isinstance(self.source, Pair):
            return [scene.image for scene in self.source.scenes]
        return self.source.images


def takes_several(vlm: VLM) -> bool:
    """Whether the model was made for several images in one prompt."""
    return vlm.model.config.model_type == "llava_onevision"


def samples(params: Params, split: str, n: int) -> list[Sample]:
    """n items of each multi-image set, and films until n questions are asked about them."""
    if params.data == "real":
        return [one for name in RULE_OF for one in _photographed(params, n, name, split)]
    shown = [sample for schema in KINDS for sample in _pairs(split, n, schema)]
    reels: list[Sample] = []
    while sum(len(reel.asked) for reel in reels) < n:
        reels.append(_film(split, len(reels)))
    return shown + reels


def _pairs(split: str, n: int, schema: str) -> list[Sample]:
    together: dict[str, list[Pair]] = {}
    for pair in pairs(split, n, schema, start=START):
        together.setdefault(pair.id.removesuffix(".none"), []).append(pair)
    return [
        Sample(id, schema, of[0], tuple(Asked(p.kind, p.text, p.answer, p.chance) for p in of))
        for id, of in together.items()
    ]


def _film(split: str, index: int) -> Sample:
    film = films(split, 1, start=START + index, frames=FRAMES)[0]
    asked = [q for task in SUBTASKS for q in film_questions([film], task)]
    told = tuple(Asked(q.task, q.text, q.answer, q.chance) for q in asked)
    return Sample(film.id, "film", film, told)


def _photographed(params: Params, n: int, name: str, part: str) -> list[Sample]:
    found = photographs.shots(name, n, params, part=part)
    return [Sample(shots.id, name, shots, shots.asked) for shots in found]


def thresholds(session: Session, codebook: Codebook) -> dict[str, float]:
    """Setting -> the redundancy r at which calibration samples keep the budget on average.

    About `n_calibration` images of the calibration split see to each: half as many pairs of either
    schema in turn, and a sixteenth as many films. With r_threshold given, that one r for both.
    """
    p, vlm = session.params, session.model
    if p.r_threshold != "calibrated":
        return dict.fromkeys(("several", "film"), float(p.r_threshold))
    each = math.ceil(p.n_calibration / 2 / len(KINDS))
    reels = math.ceil(p.n_calibration / FRAMES)
    if p.data == "tabletop":
        drawn = [sample for schema in KINDS for sample in _pairs("calibration", each, schema)]
        drawn += [_film("calibration", at) for at in range(reels)]
    else:
        drawn = _photographed(p, reels, "film", "calibration")
        for name in KINDS:
            drawn += _photographed(p, each, name, "calibration")
    found = {}
    for setting in ("several", "film"):
        part = [sample for sample in drawn if sample.setting == setting]
        scores, images = [], 0
        for sample in part:
            shown = sample.images
            looked = look(vlm, shown, setting=setting)
            kept = leave(vlm, looked, Rule("codebook", 1), codebook=codebook).kept
            scores += [-one.scores for one in kept]  # redundancy: the highest go
            images += len(shown)
        found[setting] = calibrate(scores, TOKENS[part[0].set] * images / len(scores))
    return found


def rules(session: Session, sample: Sample, limits: dict[str, float]) -> dict[tuple, Rule]:
    """(method, tokens, seed) -> what prunes, for all rows of Table 2."""
    p, full, tokens = session.params, session.model.grid.size, TOKENS[sample.set]
    if sample.setting == "film":
        full = ((session.model.grid.height + 1) // 2) ** 2
    found = {
        ("unpruned", full, 0): Rule(UNPRUNED, full),
        ("ours", tokens, 0): Rule("codebook", tokens),
        ("threshold", tokens, 0): Rule("codebook", tokens, threshold=limits[sample.setting]),
    }
    for seed in range(p.random_seeds):
        found["random", tokens, seed] = Rule("random", tokens, seed=p.seed + seed)
    return found | {(name, tokens, 0): Rule(name, tokens) for name in FURTHER}


def answer_samples(session: Session, codebook: Codebook) -> pd.DataFrame:
    """Answers of all methods to `n_several` questions of each set, on the test split.

    Returns set, image (the pair or film), kind, question, gold, answer, correct (by the official
    rule; NaN for an empty answer about a film, which MVBench does not count), chance, method,
    tokens (the budget per image or frame), seed, kept (visual tokens of the whole prompt). No rows
    for a model that takes one image at a time.
    """
    p, vlm = session.params, session.model
    if not takes_several(vlm):
        return pd.DataFrame(columns=_ANSWERS)
    session.asked += benchmarks.named(p, kinds=benchmarks.SEVERAL)
    limits = thresholds(session, codebook)
    drawn = {sample.id: sample for sample in samples(p, "test", p.n_several)}
    store = session.store(
        "several",
        code=(*MEASURING, "bench", "prune", "study/several", "tabletop/pairs", "tabletop/films"),
        codebook=codebook.digest,
        limits=list(limits.values()),
        seeds=p.random_seeds,
        seed=p.seed,
        questions=p.n_several,
        **_identity(p, drawn.values()),
    )
    found = store.compute(
        drawn, lambda id: measure(session, drawn[id], codebook, limits), describe="pairs and films"
    )
    return _uncounted(found)


def _identity(params: Params, drawn: Iterable[Sample]) -> dict[str, object]:
    """As `asking.identity`."""
    if params.data == "tabletop":
        return {}
    digest = hashlib.sha256()
    for sample in sorted(drawn, key=lambda one: one.id):
        digest.update(repr((sample.id, sample.asked)).encode())
        for part in sample.source.files:
            digest.update(hashlib.sha256(part).digest())
    return {"data": "real", "asked": digest.hexdigest()[:12]}


def measure(
    session: Session, sample: Sample, codebook: Codebook, limits: dict[str, float]
) -> pd.DataFrame:
    """Rows of `answer_samples` of one sample, empty answers not yet taken out."""
    looked = look(session.model, sample.images, setting=sample.setting)
    texts = [asked.text for asked in sample.asked]
    longest = LONGEST if session.params.data == "tabletop" else prompts.LONGEST
    rows = []
    for (method, tokens, seed), rule in rules(session, sample, limits).items():
        told = reply(session.model, looked, rule, texts, codebook=codebook, max_new_tokens=longest)
        for (kind, text, gold, chance, options), said in zip(sample.asked, told.texts, strict=True):
            shown = text if options is None else options
            right = is_correct(sample.set, said, gold, question=shown, rule=RULE_OF[sample.set])
            rows.append(
                (sample.set, sample.id, kind, text, gold, said, float(right), chance, method,
                 tokens, seed, told.kept)
            )  # fmt: skip
    return pd.DataFrame(rows, columns=_ANSWERS)


def _uncounted(answers: pd.DataFrame) -> pd.DataFrame:
    """Films' empty answers as NaN; they stay wrong where a subtask got no other answer."""
    empty = (answers["set"] == "film") & (answers["answer"] == "")
    rest = (~empty).groupby([answers[c] for c in ("set", "kind", "method", "seed")])
    return answers.assign(correct=answers["correct"].mask(empty & rest.transform("any")))


def _strata(answers: pd.DataFrame) -> pd.Series:
    """What a set's accuracy is the unweighted mean over: MVBench's subtasks; elsewhere nothing."""
    return answers["set"].where(answers["set"] != "film", "film/" + answers["kind"])


def summary(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Accuracy of each method on each set.

    Mantis and Muir: over all questions; films: mean over the subtasks. Several seeds are one mean.

    Returns set, method, tokens, accuracy, low, high, std (over seeds, NaN with one), chance (of the
    best answers without the images), n (questions), images (pairs or films), kept (mean visual
    tokens of a sample).
    """
    rows = []
    for (name, method), part in answers.groupby(["set", "method"], sort=False):
        counted = part.dropna(subset="correct")
        found = _interval(counted, counted["correct"], resamples, seed)
        each = [_interval(of, of["correct"], 1, seed).mean for _, of in counted.groupby("seed")]
        first = part[part["seed"] == part["seed"].iloc[0]]
        rows.append(
            (name, method, part["tokens"].iloc[0], found.mean, found.low, found.high,
             np.std(each) if len(each) > 1 else np.nan,
             _interval(first, first["chance"], 1, seed).mean, len(first), found.clusters,
             part.groupby("image")["kept"].mean().mean())
        )  # fmt: skip
    columns = ["set", "method", "tokens", "accuracy", "low", "high", "std", "chance", "n",
               "images", "kept"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _interval(part: pd.DataFrame, values: pd.Series, resamples: int, seed: int) -> Interval:
    return interval(values, part["image"], strata=_strata(part), resamples=resamples, seed=seed)


def excess(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """Set -> by how much the unpruned model is above chance, question by question."""
    found = {}
    full = answers[answers["method"] == "unpruned"].dropna(subset="correct")
    for name, part in full.groupby("set", sort=False):
        found[name] = _interval(part, part["correct"] - part["chance"], resamples, seed)
    return found


def decidable(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> dict[str, bool]:
    """Task -> whether the unpruned model is above chance in each of its sets, by enough pairs or
    films (see the module)."""
    above = {
        name: found.low > 0 and found.clusters >= LEAST_IMAGES
        for name, found in excess(answers, resamples=resamples, seed=seed).items()
    }
    return {task: all(above.get(name, False) for name in sets) for task, sets in TASKS.items()}


def shares(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Pruned over unpruned, of every method and every decidable task; of two sets the mean ratio.

    Returns setting ("base"), method, tokens, task, share, low, high, n (questions), images (pairs
    or films, without which the ledger decides nothing).
    """
    rows = []
    for task, sets in _decided(answers, resamples, seed):
        tokens = TOKENS[sets[0]]
        for method in (name for name in METHODS if name != "unpruned"):
            both = _joined(answers, sets, method, "unpruned")
            found = ratio(
                both["first"], both["second"], both["image"], strata=_strata(both),
                tasks=both["set"], resamples=resamples, seed=seed,
            )  # fmt: skip
            rows.append(("base", method, tokens, task, *_told(found)))
    return pd.DataFrame(rows, columns=_SHARES)


def rivals(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Ours minus Random on the same questions, for every decidable task; of two sets the mean.

    Returns setting ("base"), method, against, tokens, task, difference, low, high, n, images.
    """
    rows = []
    for task, sets in _decided(answers, resamples, seed):
        both = _joined(answers, sets, "ours", "random")
        found = difference(
            both["first"], both["second"], both["image"], strata=_strata(both),
            resamples=resamples, seed=seed,
        )  # fmt: skip
        tokens = TOKENS[sets[0]]
        rows.append(("base", "ours", "random", tokens, task, *_told(found)))
    return pd.DataFrame(rows, columns=_RIVALS)


def _told(found: Interval) -> tuple[float, float, float, int, int]:
    return found.mean, found.low, found.high, found.n, found.clusters


def _decided(answers: pd.DataFrame, resamples: int, seed: int) -> list[tuple[str, tuple[str, ...]]]:
    can = decidable(answers, resamples=resamples, seed=seed)
    return [(task, sets) for task, sets in TASKS.items() if can[task]]


def _joined(answers: pd.DataFrame, sets: Sequence[str], first: str, second: str) -> pd.DataFrame:
    """One row per question that both methods answered: set, image, kind, first, second."""
    part = answers[answers["set"].isin(sets)]
    key = ["set", "image", "kind", "question"]
    sides = [
        part[part["method"] == name].groupby(key, sort=False)["correct"].mean()
        for name in (first, second)
    ]
    return pd.concat(sides, axis=1, keys=["first", "second"]).dropna().reset_index()


def conclusion(answers: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> str:
    """What the numbers say of the paper's claims, whatever they say; "not run" without any."""
    if answers.empty:
        return NOT_RUN
    draws = {"resamples": resamples, "seed": seed}
    can, above = decidable(answers, **draws), excess(answers, **draws)
    kept, gaps = shares(answers, **draws), rivals(answers, **draws)
    lines = []
    for task, sets in TASKS.items():
        told = ", ".join(f"{name} {_points(above[name])}" for name in sets)
        if not can[task]:
            lines.append(
                f"- {task}: **undecided**. The unpruned model is not above chance by its interval, "
                f"of {LEAST_IMAGES} pairs or films at least, in every set ({told} from chance), "
                "and a share of guessing says nothing."
            )
            continue
        share = kept[kept["task"] == task].set_index("method")
        gap = gaps[gaps["task"] == task].iloc[0]
        better = "better than" if gap["low"] > 0 else "worse than" if gap["high"] < 0 else None
        lines.append(
            f"- {task}: unpruned {told} from chance. With {TOKENS[sets[0]]} tokens Ours keeps "
            f"{_percent(share.loc['ours'])} and Random {_percent(share.loc['random'])}; Ours is "
            f"{better or '**not distinguishable from**'} Random, by "
            f"{_points(Interval(gap['difference'], gap['low'], gap['high'], 0, 0))}."
        )
    return "\n".join(lines)


def _points(found: Interval) -> str:
    return f"{100 * found.mean:+z.1f} points (95% interval {bounds(found.low, found.high)})"


def _percent(row: pd.Series) -> str:
    return f"{row['share']:.0%} (95% interval {row['low']:.0%} to {row['high']:.0%})"
