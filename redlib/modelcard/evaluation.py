"""`redlib evaluate NAME`: the numbers of a model card, measured again from the shipped weights.

Everything is asked on held-out test scenes through the code that users run: stock checkpoint,
greedy answers, official answer parsing. Six parts:

* the tasks, with all visual tokens, each with a 95 % interval over scenes, and by level;
* captions, by the F1 of their scene graphs (tabletop-SPICE);
* the rule on difficulty: with 64 random tokens the mean over the paper's five tasks lies 5 to 25
  points lower, and with none at most 5 points above chance. A world in which few tokens suffice,
  or none, could not tell one pruning method from another;
* the single-token probe and the leave-one-out divergence against the masks: what is decoded from
  covered patches, from patches of other scenes and from bare ground, and how well each number
  tells covered from bare patches;
* the same question put to [cls] similarity, to attention and to the norm of a patch;
* LLaVA-Next: what its tiles add on images whose details the base tile loses; OneVision: two images,
  films and the game of `several`.

    rows = measure("tiny-llava-1.5", quick=True)      # metric, value, low, high, n, bar, pass
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from redlib import hub, leave_one_out, models, probe, states
from redlib.bench import captions
from redlib.bench.answering import answers
from redlib.bench.evaluation import evaluate, keep_all, keep_none
from redlib.bench.intervals import Interval, difference, interval
from redlib.bench.pope_mme import mme
from redlib.errors import RedlibError
from redlib.modelcard import card, several
from redlib.models import VLM
from redlib.params import embedded
from redlib.prune import keep_lowest, random_scores
from redlib.tabletop.questions import (
    DESCRIBE,
    DETAIL,
    NUMBERS,
    ONE_WORD,
    POPE,
    VQA,
    Question,
    questions,
)
from redlib.tabletop.sources import TILED as TILED_SIDE
from redlib.tabletop.world import LEVELS, Scene, scenes

FIVE = ("pope", "mme", "mmb", "seed", "rwqa")
ASKED = (*POPE, "mme", "mmb", "seed", "rwqa", *(task for task in VQA if task != "naming"))
# Bars of the issue the checkpoint was made for; a metric that is not named is only stated.
BARS = {
    "pope, all tokens": 0.95,
    "colour, all tokens": 0.92,
    "position, all tokens": 0.92,
    "count within one, all tokens": 0.90,
    "naming, all tokens": 0.95,
    "word, all tokens": 0.85,
    f"caption, {captions.METRIC}": 0.85,
    "probe: covered patches decoded to their noun": 0.40,
    "probe: covered patches decoded to their noun or colour": 0.60,
    "AUROC covered against bare, top-1 probability, pooled": 0.85,
    "AUROC covered against bare, top-1 probability, mean within scenes": 0.85,
    "AUROC covered against bare, JSD_final, pooled": 0.75,
    "AUROC covered against bare, JSD_final, mean within scenes": 0.75,
}
ONEVISION_BARS = {**BARS, **several.BARS, "pope, all tokens": 0.93}
POOLS = {"naming": "alone", "rwqa": "wide", "word": "worded"}  # all else: "square"
FULL, QUICK = 1000, 200  # questions per task
COVERED, BARE = 0.8, 0.0
PROBED = {FULL: 60, QUICK: 20}  # scenes
DIVERGED = {FULL: 30, QUICK: 10}  # scenes, at every third row and column
SAID = {FULL: 1000, QUICK: 120}  # captions of scenes of all levels
SAID_MORE = {FULL: 200, QUICK: 40}  # of withheld pairs, and detailed ones
LONGEST = 64  # words of a caption
TILED = {FULL: 200, QUICK: 30}  # scenes that need tiles
PAIRS = {FULL: 1000, QUICK: 80}  # questions about two images, of each schema
GAMES = {FULL: 200, QUICK: 40}  # spot-the-difference pictures
FILMS = {FULL: 150, QUICK: 16}  # with some seven questions each
# Apart from the scenes that the notebooks show, and from each other.
START = 2_000_000
ALONE, WIDE, NEW, DENSE, LARGE, WORDED = (START + k * 100_000 for k in range(1, 7))
NEED_TILES = ("pope-adversarial", "colour", "seed", "word")
SCORES = {
    "top1": "top-1 probability",
    "top1_head": "top-1 probability over the top 50",
    "cls_similarity": "[cls] similarity",
    "attention": "attention of the middle layer",
    "norm": "norm at the feature layer",
}
RESAMPLES = 200  # of scenes, for the interval of an AUROC
REGISTER = 3.0  # a patch whose norm is so many times its scene's median


def measure(name: str, *, quick: bool = False, device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """Measure a checkpoint.

    Args:
        name: embedded name, or a folder.
        quick: QUICK questions per task instead of FULL.

    Returns:
        rows metric, value, low, high, n, bar (NaN: none), pass (empty where there is no bar).
    """
    vlm = models.load(name, device=device)
    n = QUICK if quick else FULL
    pools = _pools(n)
    asked = _asked(pools, n, seed)
    level = {scene.id: scene.level for pool in pools.values() for scene in pool}
    tokens = _tokens(vlm, [scene for pool in pools.values() for scene in pool])
    rows, paired = [], {}

    def random64(image: str, t: torch.Tensor) -> torch.Tensor:
        return keep_lowest(random_scores(len(t), [seed, *image.encode()]), 64)

    for label, keep in (("all", keep_all), ("64 random", random64), ("none", keep_none)):
        said = evaluate(vlm, tokens, asked, keep, method=label)
        said["family"] = said["task"].where(~said["task"].isin(POPE), "pope")
        rows += [
            _row(f"{family}, {label} tokens", _mean(group, seed))
            for family, group in said.groupby("family", sort=False)
        ]
        if keep is keep_all:
            rows += _more(said, level, seed)
        paired[label] = said
    rows += _difficulty(paired, asked, seed)
    rows += _said(vlm, pools["square"][: SAID[n]], tokens, SAID_MORE[n], seed)
    rows += _probe(vlm, PROBED[n], DIVERGED[n], seed)
    kind = vlm.model.config.model_type
    if kind == "llava_next":
        rows += _tiles(vlm, TILED[n], seed)
    elif kind == "llava_onevision":
        found = several.measure(vlm, pairs=PAIRS[n], games=GAMES[n], films=FILMS[n], seed=seed)
        rows += [_row(*row) for row in found]
    return judged(pd.DataFrame(rows), kind)


def judged(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows with the bars of their metrics, by the model type, and whether they are met: columns bar
    and pass in place of `holds`, which says it of what is judged by a rule."""
    bars = ONEVISION_BARS if kind == "llava_onevision" else BARS
    table = rows.assign(bar=rows["metric"].map(bars))
    met = np.where(table["value"] >= table["bar"], "yes", "no")
    table["pass"] = np.where(table["bar"].notna(), met, table["holds"])
    return table.drop(columns="holds")


def main(name: str, *, quick: bool = False, as_json: bool = False) -> int:
    """Print the numbers. A full run writes the card beside the weights, where it is known how they
    were trained (`card.trained`), and otherwise says that it writes none; a quick one is held
    against the card.

    Returns:
        3 where a number lies apart from the card's, else 1 where a bar is missed, else 0.

    Raises:
        RedlibError: a Hugging Face id; and, before minutes of measuring, for a card that is damaged
            or, with `quick`, not there.
    """
    folder = Path(hub.locate(name))
    if not folder.is_dir():
        raise RedlibError(
            f"evaluate: {name!r} is a Hugging Face id, beside whose weights no card can lie; name "
            f"an embedded model ({', '.join(embedded())}) or a folder"
        )
    held = card.held(folder) if quick else None
    known = card.trained(folder)
    table = measure(name, quick=quick)
    print(json.dumps(card.plain(table), indent=1) if as_json else card.table_text(table))
    if held is not None:
        apart = card.apart(table, held)
        for line in apart:
            print(line, file=sys.stderr)
        if apart:
            return 3
    elif known:
        card.write(folder, table)
    else:
        print(f"no card is written: {card.untold(folder)}", file=sys.stderr)
    return int((table["pass"] == "no").any())


def _row(metric: str, found: Interval, holds: str = "") -> dict:
    return {
        "metric": metric,
        "value": found.mean,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "holds": holds,
    }


def _stated(metric: str, value: float, n: int, holds: str = "") -> dict:
    """A number without interval."""
    return _row(metric, Interval(value, np.nan, np.nan, n, n), holds)


def _mean(part: pd.DataFrame, seed: int) -> Interval:
    """Accuracy; POPE as the mean of its subsets."""
    return interval(part["correct"], part["image"], strata=part["task"], seed=seed)


def _pools(n: int) -> dict[str, list[Scene]]:
    """The scenes asked about: of all kinds, of one object, of another shape, with a word."""
    return {
        "square": scenes("test", n, start=START),
        "alone": scenes("test", n, start=ALONE, objects=1),
        "wide": scenes("test", n // 2, start=WIDE, width=504, height=336),
        "worded": _of_kind(n, WORDED, lambda scene: bool(scene.word)),
    }


def _of_kind(n: int, start: int, holds: Callable[[Scene], bool]) -> list[Scene]:
    """The first n test scenes from `start` on of which something holds."""
    found: list[Scene] = []
    while len(found) < n:
        found += [scene for scene in scenes("test", 50, start=start) if holds(scene)]
        start += 50
    return found[:n]


def _asked(pools: dict[str, list[Scene]], n: int, seed: int) -> list[Question]:
    """Up to n questions per task (per subset for POPE). Groups (a pair of mme, the rotations of
    mmb) stay together, the rotations counting as one; POPE's yes and no in equal parts."""
    rng = np.random.default_rng(seed)
    chosen: list[Question] = []
    for task in (*ASKED, "naming"):
        pool = pools[POOLS.get(task, "square")]
        found = questions(pool, task)
        if task in ("mme", "mmb"):
            groups: dict[tuple[str, str], list[Question]] = {}
            for q in found:
                groups.setdefault((q.image, q.group), []).append(q)
            units = list(groups.values())
            share = n // 2 if task == "mme" else n
            kept = sorted(rng.permutation(len(units))[:share])
            chosen += [q for i in kept for q in units[i]]
            continue
        sides = [[q for q in found if q.answer == a] for a in ("yes", "no")]
        for side in sides if task in POPE else [found]:
            share = n // 2 if task in POPE else n
            chosen += [side[i] for i in sorted(rng.permutation(len(side))[:share])]
    return chosen


def _tokens(vlm: VLM, drawn: Sequence[Scene]) -> dict[str, torch.Tensor]:
    tokens: dict[str, torch.Tensor] = {}
    for i in tqdm(range(0, len(drawn), 16), desc="images", leave=False):
        part = drawn[i : i + 16]
        encoded = vlm.encode([scene.image for scene in part]).tokens
        tokens.update(zip((scene.id for scene in part), encoded, strict=True))
    return tokens


def _more(said: pd.DataFrame, level: dict[str, str], seed: int) -> list[dict]:
    """Of the answers with all tokens: counts within one, MME's sum, and the tasks by level."""
    near = said[said["task"] == "count"]
    rows = [
        _row(
            "count within one, all tokens",
            interval(_within_one(near), near["image"], seed=seed),
        )
    ]
    total = mme(said).set_index("category").loc["perception"]
    rows.append(_stated("mme, sum over 7 categories, of 1400", total["score"], int(total["n"])))
    levels = said["image"].map(level)
    for family in ("pope", "colour", "seed"):
        for name in LEVELS:
            part = said[(said["family"] == family) & (levels == name)]
            rows.append(_row(f"{family}, {name} scenes", _mean(part, seed)))
    return rows


def _within_one(part: pd.DataFrame) -> list[bool]:
    def close(answer: str, gold: str) -> bool:
        word = answer.strip().lower().rstrip(".")
        return word in NUMBERS and abs(NUMBERS.index(word) - NUMBERS.index(gold)) <= 1

    return [close(a, g) for a, g in zip(part["answer"], part["gold"], strict=True)]


def chance(asked: Sequence[Question]) -> dict[str, float]:
    """Accuracy without looking, per task family: one out of the options where a question offers
    some, the share of the most frequent answer where it does not."""
    frame = pd.DataFrame(
        {
            "family": ["pope" if q.task in POPE else q.task for q in asked],
            "options": [q.options for q in asked],
            "answer": [q.answer for q in asked],
        }
    )
    found = {}
    for family, part in frame.groupby("family"):
        free = part[part["options"] == 0]
        hits = (1 / part.loc[part["options"] > 0, "options"]).sum()
        hits += free["answer"].value_counts().max() if len(free) else 0
        found[family] = hits / len(part)
    return found


def _difficulty(said: dict[str, pd.DataFrame], asked: Sequence[Question], seed: int) -> list[dict]:
    """The rule on difficulty, over the five tasks, in points of accuracy, on the same questions.

    Without looking an answer right in all rotations is rarer than one in four, so that blind
    answers may well lie below chance; only above it would they give the world away.
    """
    guessed = chance(asked)
    base = np.mean([guessed[task] for task in FIVE])
    five = {label: part[part["family"].isin(FIVE)] for label, part in said.items()}
    full, few, none = (five[label]["correct"] for label in ("all", "64 random", "none"))
    where = {"clusters": five["all"]["image"], "strata": five["all"]["family"], "seed": seed}
    drop = _points(difference(full, few, **where))
    blind = interval(none, **where)
    above = _points(interval(none - base, **where))
    return [
        _row("five-task mean, all tokens", interval(full, **where)),
        _row("points lost with 64 random tokens (rule: 5 to 25)", drop,
             "yes" if 5 <= drop.mean <= 25 else "no"),
        _row("five-task mean, none tokens", blind),
        _stated("five-task mean by chance", base, blind.n),
        _row("points above chance with no token (rule: at most 5)", above,
             "yes" if above.mean <= 5 else "no"),
    ]  # fmt: skip


def _points(share: Interval) -> Interval:
    return replace(share, mean=100 * share.mean, low=100 * share.low, high=100 * share.high)


def _said(
    vlm: VLM, drawn: list[Scene], tokens: dict[str, torch.Tensor], more: int, seed: int
) -> list[dict]:
    """Captions by the F1 of their scene graphs, mean over scenes: of all levels, of withheld pairs,
    of crowded scenes, and the detailed ones."""
    new = scenes("test", more, start=NEW, withheld=True)
    tokens = tokens | _tokens(vlm, new)
    parts = (
        (f"caption, {captions.METRIC}", drawn, DESCRIBE, "caption"),
        (f"nocaps (withheld pairs), {captions.METRIC}", new, DESCRIBE, "caption"),
        (f"detailed descriptions, {captions.METRIC}", drawn[:more], DETAIL, "detail"),
    )
    rows = []
    for metric, part, prompt, task in parts:
        found = []
        for scene in tqdm(part, desc=metric.split(",")[0], leave=False):
            (text,) = answers(vlm, tokens[scene.id], [prompt], max_new_tokens=LONGEST)
            found.append((scene, text, captions.f1(*captions.counts(text, scene, task))))
        rows.append(_f1(metric, found, seed))
        if part is drawn:
            for level in LEVELS:
                of = [row for row in found if row[0].level == level]
                label = "flickr (crowded scenes)" if level == "crowded" else f"{level} scenes"
                rows.append(_f1(f"{label}, {captions.METRIC}", of, seed))
    return rows


def _f1(metric: str, found: list[tuple[Scene, str, float]], seed: int) -> dict:
    return _row(metric, interval([f for *_, f in found], [s.id for s, *_ in found], seed=seed))


def _probe(vlm: VLM, images: int, diverged: int, seed: int) -> list[dict]:
    """What single tokens say, against the masks, on scenes of at least three nouns and colours."""
    found = _of_kind(images, DENSE, _is_dense)
    parts = [_probe_scene(vlm, s) for s in tqdm(found, desc="probe", leave=False)]
    table = pd.concat(parts, ignore_index=True)
    covered, bare = table[table["share"] >= COVERED], table[table["share"] <= BARE]
    noun, colour = (covered["word"] == covered[key] for key in ("noun", "colour"))
    rows = [
        _row("probe: covered patches decoded to their noun",
             interval(noun, covered["image"], seed=seed)),
        _row("probe: covered patches decoded to their noun or colour",
             interval(noun | colour, covered["image"], seed=seed)),
    ]  # fmt: skip
    elsewhere = _foreign(covered, seed)
    noun, colour = (elsewhere == covered[key] for key in ("noun", "colour"))
    rows += [
        _row("probe: the same noun in covered patches of other scenes",
             interval(noun, covered["image"], seed=seed)),
        _row("probe: the same noun or colour in covered patches of other scenes",
             interval(noun | colour, covered["image"], seed=seed)),
    ]  # fmt: skip
    for word, times in bare["word"].value_counts().head(3).items():
        rows.append(_stated(f'probe: bare patches decoded to "{word}"', times / len(bare),
                            len(bare)))  # fmt: skip
    told = pd.concat((covered, bare))
    for score, label in SCORES.items():
        rows += _aurocs(told, score, label, seed)
    far = table["norm"] > REGISTER * table.groupby("image")["norm"].transform("median")
    rows.append(_stated(f"patches with a norm over {REGISTER:g} medians (registers)",
                        far.mean(), len(table)))  # fmt: skip
    parts = [_diverge_scene(vlm, s) for s in tqdm(found[:diverged], desc="JSD", leave=False)]
    return rows + _aurocs(pd.concat(parts, ignore_index=True), "jsd_final", "JSD_final", seed)


def _tiles(vlm: VLM, n: int, seed: int) -> list[dict]:
    """Questions about n images of twice the sides, from the base tile alone and with all five
    tiles, and the paired difference."""
    drawn = scenes("test", n, start=LARGE, width=TILED_SIDE, height=TILED_SIDE)
    asked = [q for task in NEED_TILES for q in questions(drawn, task)]
    # The newline at the end comes by itself, as behind the base tile.
    split = {s.id: vlm.tiles(s.image)[:-1] for s in tqdm(drawn, desc="tiles", leave=False)}
    inputs = {"base tile alone": _tokens(vlm, drawn), "with split": split}
    said = {label: evaluate(vlm, tokens, asked, method=label) for label, tokens in inputs.items()}
    rows = []
    for task in NEED_TILES:
        parts = [answers[answers["task"] == task] for answers in said.values()]
        for label, part in zip(inputs, parts, strict=True):
            rows.append(_row(f"{task} on 672 x 672, {label}", _mean(part, seed)))
        base, tiles = (part["correct"] for part in parts)
        gain = difference(tiles, base, parts[0]["image"], seed=seed)
        rows.append(_row(f"{task} on 672 x 672, gain by tiles", gain))
    return rows


def _is_dense(scene: Scene) -> bool:
    """At least three different nouns and colours."""
    return min(len({getattr(o, of) for o in scene.objects}) for of in ("noun", "colour")) >= 3


def _foreign(covered: pd.DataFrame, seed: int) -> np.ndarray:
    """For each covered patch, what one of another scene, drawn by lot, is decoded to."""
    rng = np.random.default_rng(seed)
    image, words = covered["image"].to_numpy(), covered["word"].to_numpy()
    others = {name: np.flatnonzero(image != name) for name in np.unique(image)}
    return np.array([words[rng.choice(others[name])] for name in image])


def _aurocs(told: pd.DataFrame, score: str, label: str, seed: int) -> list[dict]:
    """How well a score tells covered from bare patches: pooled, the interval over resampled scenes,
    and as the mean within scenes."""
    each = {name: part for name, part in told.groupby("image")}
    within = [
        _auroc(part, score) for part in each.values() if part["share"].gt(BARE).nunique() == 2
    ]
    rng = np.random.default_rng(seed)
    draws = [
        _auroc(pd.concat([each[name] for name in rng.choice(list(each), len(each))]), score)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    pooled = Interval(_auroc(told, score), low, high, len(told), len(each))
    return [
        _row(f"AUROC covered against bare, {label}, pooled", pooled),
        _row(f"AUROC covered against bare, {label}, mean within scenes",
             interval(within, range(len(within)), seed=seed)),
    ]  # fmt: skip


def _auroc(part: pd.DataFrame, score: str) -> float:
    return float(roc_auc_score(part["share"] > BARE, part[score]))


def _truth(scene: Scene, vlm: VLM, patches: Callable[[np.ndarray], np.ndarray]) -> pd.DataFrame:
    """patch, image, share, noun and colour of the object that covers most of it, for those of the
    patches under an object by COVERED, or under nothing, that `patches` chooses."""
    cover = scene.coverage(vlm.sight)
    share, owner = cover.max(0), cover.argmax(0)
    nothing = (share <= BARE) & (scene.word_coverage(vlm.sight) == 0)
    chosen = patches(np.flatnonzero((share >= COVERED) | nothing))
    return pd.DataFrame(
        {
            "patch": chosen,
            "image": scene.id,
            "share": share[chosen],
            "noun": [scene.objects[k].noun for k in owner[chosen]],
            "colour": [scene.objects[k].colour for k in owner[chosen]],
        }
    )


def _probe_scene(vlm: VLM, scene: Scene) -> pd.DataFrame:
    encoded = vlm.encode([scene.image])
    tokens = encoded.tokens[0]
    table = _truth(scene, vlm, lambda found: found)
    at = table["patch"].to_numpy(copy=True)  # torch indexes with writable arrays only
    said = probe.single(vlm, tokens, at, prompt=ONE_WORD)[["word", "top1", "top1_head"]]
    return table.assign(
        **said,
        cls_similarity=encoded.cls_similarity[0, at].cpu().numpy(),
        norm=encoded.norms[0, at].cpu().numpy(),
        attention=states.attention(vlm, tokens, prompt=ONE_WORD)[vlm.layers[1]][at],
    )


def _diverge_scene(vlm: VLM, scene: Scene) -> pd.DataFrame:
    """JSD_final (eq. 11) at every third row and column."""
    tokens = vlm.encode([scene.image]).tokens[0]
    table = _truth(scene, vlm, lambda found: np.intersect1d(found, vlm.grid.stride()))
    found = leave_one_out.cascade(vlm, tokens, table["patch"], prompt=ONE_WORD)
    return table.assign(jsd_final=found["jsd_final"])
