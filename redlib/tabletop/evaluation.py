"""`redlib evaluate NAME`: the numbers of a model card, measured again from the shipped weights.

Everything is asked on held-out test scenes through the code that users run: stock checkpoint,
greedy answers, official answer parsing. Four parts:

* the tasks, with all visual tokens, each with a 95 % interval over scenes;
* the rule on difficulty: with 64 random tokens the mean over tasks lies 5 to 25 points lower, and
  with none at all within 5 points of chance. A world in which few tokens suffice could not tell
  one pruning method from another;
* the single-token probe on patches that an object covers by at least 80 %, beside the same with
  tokens of other scenes, and how well its top-1 probability tells covered from bare patches;
* the same question put to [cls] similarity.

    rows = measure("tiny-llava-1.5", quick=True)      # metric, value, low, high, n, bar, pass
"""

import json
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from redlib import models, probe
from redlib.bench.evaluation import evaluate, keep_all, keep_none
from redlib.bench.intervals import interval
from redlib.models import VLM
from redlib.prune import keep_lowest, random_scores
from redlib.tabletop.decoder import ARTICLE_SHARE, MIN_TOKENS
from redlib.tabletop.questions import LETTERS, NUMBERS, ONE_WORD, POPE, Question, questions
from redlib.tabletop.world import COLOURS, NOUNS, SPLITS, Scene, draw, scenes

COVERED, BARE = 0.8, 0.0
PROBE_IMAGES = 60
# Bars of the issue the checkpoint was made for; None where the number is only stated.
BARS = {"pope": 0.85, "colour": 0.80, "naming": 0.85}
ASKED = (*POPE, "mme", "choice", "colour", "position", "count", "word", "article")
FIVE = ("pope", "mme", "choice", "colour", "position")
SCORES = {
    "top1": "top-1 probability",
    "top1_head": "top-1 probability over the top 50",
    "cls_similarity": "[cls] similarity",
}
FIRST_TEST_SCENE = 2_000_000  # apart from the scenes that the notebooks show
FIRST_ALONE = 2_100_000  # scenes of one object
PRUNED_SCENES = 150  # of either kind, on which the rule on difficulty is measured


def measure(name: str, *, quick: bool = False, device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """Measure a checkpoint.

    Args:
        name: embedded name, or a folder.
        quick: 200 questions per task instead of 500.

    Returns:
        rows metric, value, low, high, n, bar (NaN: none), pass (empty where there is no bar).
    """
    vlm = models.load(name, device=device)
    n = 200 if quick else 500
    asked = _draw(n, seed)
    tokens = _tokens(vlm, sorted({q.image for q in asked}, key=_number))
    few = [q for q in asked if (_number(q.image) - SPLITS["test"].start) % 100_000 < PRUNED_SCENES]
    rows: list[dict] = []
    means: dict[str, float] = {}

    def random64(image: str, t: torch.Tensor) -> torch.Tensor:
        return keep_lowest(random_scores(len(t), [seed, _number(image)]), 64)

    for label, keep in (("576", keep_all), ("64 random", random64), ("none", keep_none)):
        answers = evaluate(vlm, tokens, asked if keep is keep_all else few, keep, method=label)
        answers["family"] = answers["task"].where(~answers["task"].isin(POPE), "pope")
        for family, part in answers.groupby("family", sort=False):
            if label == "576":
                pair = part["image"].isin({q.image for q in few})
                means[f"{family} 576 paired"] = part.loc[pair, "correct"].mean()
            found = interval(part["correct"], part["image"], seed=seed)
            means[f"{family} {label}"] = found.mean
            bar = BARS.get(family, np.nan) if label == "576" else np.nan
            rows.append(_row(f"{family}, {label} tokens", found, bar))
        if label == "576":
            near = answers[answers["task"] == "count"]
            found = interval(_within_one(near), near["image"], seed=seed)
            rows.append(_row("count within one, 576 tokens", found))
    rows += _difficulty(means, asked)
    rows += _probe(vlm, PROBE_IMAGES // 3 if quick else PROBE_IMAGES, seed)
    return pd.DataFrame(rows)


def main(name: str, *, quick: bool = False, as_json: bool = False) -> int:
    """Print the numbers; 1 where a bar is missed, else 0."""
    table = measure(name, quick=quick)
    print(json.dumps(_plain(table), indent=1) if as_json else table_text(table))
    return int((table["pass"] == "no").any())


def table_text(table: pd.DataFrame) -> str:
    """The table as Markdown, for the terminal and for the model card."""
    lines = ["| metric | value | 95 % interval | n | bar | holds |", "|---|---|---|---|---|---|"]
    for row in table.itertuples(index=False):
        bar = "" if np.isnan(row.bar) else f"{row.bar:.2f}"
        span = "" if np.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        lines.append(f"| {row.metric} | {row.value:.3f} | {span} | {row.n} | {bar} | {row[-1]} |")
    return "\n".join(lines)


def _plain(table: pd.DataFrame) -> list[dict]:
    return json.loads(table.to_json(orient="records"))


def _row(metric: str, found, bar: float = np.nan) -> dict:
    holds = "" if np.isnan(bar) else ("yes" if found.mean >= bar else "no")
    return {
        "metric": metric,
        "value": found.mean,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "bar": bar,
        "pass": holds,
    }


def _draw(n: int, seed: int) -> list[Question]:
    """Up to n questions per task (per subset for POPE) about n test scenes, and naming about n
    scenes of one object. Pairs (mme) stay together, POPE's yes and no in equal parts."""
    pool = scenes("test", n, start=FIRST_TEST_SCENE)
    rng = np.random.default_rng(seed)
    chosen: list[Question] = []
    for task in ASKED:
        found = questions(pool, task)
        if task == "mme":
            pairs = sorted({q.group for q in found})
            kept = {pairs[i] for i in rng.permutation(len(pairs))[: n // 2]}
            chosen += [q for q in found if q.group in kept]
            continue
        sides = [[q for q in found if q.answer == a] for a in ("yes", "no")]
        for side in sides if task in POPE else [found]:
            share = n // 2 if task in POPE else n
            chosen += [side[i] for i in np.sort(rng.permutation(len(side))[:share])]
    alone = scenes("test", n, start=FIRST_ALONE, objects=1)
    return chosen + questions(alone, "naming")


def _number(image: str) -> int:
    return int(image.split("-")[1])


def _tokens(vlm: VLM, images: list[str]) -> dict[str, torch.Tensor]:
    first_alone = SPLITS["test"][FIRST_ALONE]
    tokens: dict[str, torch.Tensor] = {}
    for i in range(0, len(images), 16):
        part = images[i : i + 16]
        drawn = [
            draw(_number(key), split="test", objects=1 if _number(key) >= first_alone else None)
            for key in part
        ]
        encoded = vlm.encode([scene.image for scene in drawn]).tokens
        tokens.update(zip(part, encoded, strict=True))
    return tokens


def _within_one(part: pd.DataFrame) -> list[bool]:
    def close(answer: str, gold: str) -> bool:
        word = answer.strip().lower().rstrip(".")
        return word in NUMBERS and abs(NUMBERS.index(word) - NUMBERS.index(gold)) <= 1

    return [close(a, g) for a, g in zip(part["answer"], part["gold"], strict=True)]


def chance(asked: list[Question]) -> dict[str, float]:
    """Accuracy of the best constant answer per task family: half for the yes / no tasks, the
    share of the most frequent answer elsewhere; for position, of the better half of a pair."""
    fixed = {
        "pope": 0.5,
        "mme": 0.5,
        "position": 0.5,
        "choice": 1 / len(LETTERS),
        "colour": 1 / len(COLOURS),
    }
    count = pd.Series([q.answer for q in asked if q.task == "count"]).value_counts(normalize=True)
    word = pd.Series([q.answer for q in asked if q.task == "word"]).value_counts(normalize=True)
    return {
        **fixed,
        "count": count.max(),
        "word": word.max(),
        "naming": 1 / len(NOUNS),
        "article": 1 / len(NOUNS),
    }


def _difficulty(means: dict[str, float], asked: list[Question]) -> list[dict]:
    """The rule on difficulty, over the five question tasks, in points of accuracy."""
    full, few, none = (
        np.mean([means[f"{task} {label}"] for task in FIVE])
        for label in ("576 paired", "64 random", "none")
    )
    base = np.mean([chance(asked)[task] for task in FIVE])
    drop, above = 100 * (full - few), 100 * (none - base)
    n = len(asked)

    def stated(metric: str, value: float, holds: bool | None = None) -> dict:
        word = "" if holds is None else ("yes" if holds else "no")
        return {
            "metric": metric,
            "value": value,
            "low": np.nan,
            "high": np.nan,
            "n": n,
            "bar": np.nan,
            "pass": word,
        }

    return [
        stated("five-task mean, 576 tokens, on the scenes of the next two rows", full),
        stated("points lost with 64 random tokens (rule: 5 to 25)", drop, 5 <= drop <= 25),
        stated("points above chance with no token (rule: within 5)", above, abs(above) <= 5),
    ]


def _probe(vlm: VLM, images: int, seed: int) -> list[dict]:
    """The single-token probe against the masks, on scenes of at least three nouns and colours."""
    found: list[Scene] = []
    start = FIRST_TEST_SCENE + 200_000
    while len(found) < images:
        found += [
            s
            for s in scenes("test", 50, start=start)
            if len({o.noun for o in s.objects}) >= 3 and len({o.colour for o in s.objects}) >= 3
        ]
        start += 50
    rows = [_probe_scene(vlm, s) for s in found[:images]]
    table = pd.concat(rows, ignore_index=True)
    covered = table[table["share"] >= COVERED]
    out = [
        _row(
            "probe: covered patches decoded to their noun",
            interval(covered["word"] == covered["noun"], covered["image"], seed=seed),
        ),
        _row(
            "probe: covered patches decoded to their noun or colour",
            interval(
                (covered["word"] == covered["noun"]) | (covered["word"] == covered["colour"]),
                covered["image"],
                seed=seed,
            ),
        ),
    ]
    rng = np.random.default_rng(seed)
    shuffled = covered["word"].to_numpy()[rng.permutation(len(covered))]
    out.append(
        _row(
            "probe: the same, words shuffled across patches and scenes",
            interval(shuffled == covered["noun"].to_numpy(), covered["image"], seed=seed),
        )
    )
    told = table[(table["share"] >= COVERED) | (table["share"] <= BARE)]
    for score, label in SCORES.items():
        within = [
            roc_auc_score(part["share"] > BARE, part[score])
            for _, part in told.groupby("image")
            if part["share"].gt(BARE).nunique() == 2
        ]
        pooled = roc_auc_score(told["share"] > BARE, told[score])
        out.append(
            {
                "metric": f"AUROC covered against bare, {label}, pooled",
                "value": pooled,
                "low": np.nan,
                "high": np.nan,
                "n": len(told),
                "bar": np.nan,
                "pass": "",
            }
        )
        out.append(
            _row(
                f"AUROC covered against bare, {label}, mean within scenes",
                interval(within, range(len(within)), seed=seed),
            )
        )
    return out


def _probe_scene(vlm: VLM, scene: Scene) -> pd.DataFrame:
    encoded = vlm.encode([scene.image])
    cover = scene.coverage()
    card = scene.word_coverage()
    share, owner = cover.max(0), cover.argmax(0)
    patches = np.flatnonzero((share >= COVERED) | ((share <= BARE) & (card == 0)))
    table = probe.single(vlm, encoded.tokens[0], patches, prompt=ONE_WORD)
    return table.assign(
        image=scene.id,
        share=share[patches],
        noun=[scene.objects[k].noun for k in owner[patches]],
        colour=[scene.objects[k].colour for k in owner[patches]],
        cls_similarity=encoded.cls_similarity[0, patches].cpu().numpy(),
    )


CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# {name}

**Read first.** The decoder was trained on ordinary questions with random subsets and blocks of
visual tokens, never fewer than {least}, some of them favouring patches that an object covers; no
single token was ever labelled for it. The vision tower,
though, *was* given dense labels: which object, colour and size covers each patch and in which band
of rows and columns it lies, at the layer that LLaVA reads. No real tower has them. And the words
for these things began, in the decoder, with the directions that tell such patches' features apart
as embeddings, as CLIP's features already point towards words when LLaVA meets them. What the
single-token probe finds here is therefore a property of this model, and evidence about the real
ones only where the notebooks say so.

A LLaVA-1.5 in the stock Hugging Face layout with the real token geometry (336 pixels, 14 per patch,
24 x 24 visual tokens, feature layer -2, projector of two layers, Llama decoder), a fraction of its
widths, trained from nothing by `redlib train {name}` on the *tabletop* world: drawn scenes of
named, coloured pictograms with exact masks. {parameters:,} parameters, fp16 on disk, float32 by
default.

## Data card: tabletop

Scenes are drawn from a seed by `redlib/tabletop/world.py`: one to seven of 32 nouns (glyphs of
DejaVu Sans) in 8 colours and 4 sizes, sometimes a card with one of 16 written words, on 7 kinds of
ground. Nouns come in themes, which gives POPE's popular and adversarial negatives their meaning.
Questions follow from the scene (`redlib/tabletop/questions.py`). Train, calibration and test scenes
are disjoint ranges of seeds. No photograph, person or third-party text is in it.

## Measured, held-out test scenes (`redlib evaluate {name}`)

{table}

The one-word question was answered with an article first in {articles:.0%} of the training cases, so
that the probe's article rule has something to skip.

## The training run that made these weights

| stage | step | minutes | held-out, in part |
|---|---|---|---|
{log}

The whole log is `training_log.json`. {notes}

## Intended use

Teaching, and testing methods on visual redundancy where the truth is known. It answers the
question forms of `questions.py` in lower-case words and nothing else; it knows no photograph.

## What the real models had and this one had not

Hundreds of millions of captioned photographs, a language model trained on text, instruction data of
many kinds, sub-word tokens. What it had and they had not: dense patch labels for the tower, answers
balanced so that no question can be answered without looking, and visual tokens dropped in training.
"""


def write_card(name: str, folder: Path, log: list[dict], table: pd.DataFrame) -> None:
    """Write `README.md` beside the weights. A row of the log that holds a "note" says what a
    repetition of that run would not share with it."""
    vlm = models.load(str(folder))
    shown = (
        "patch thing",
        "patch colour",
        "patch place",
        "retrieval",
        "pope-random@576",
        "colour@576",
        "position@576",
        "naming@576",
        "pope-random@64",
        "probe noun",
        "top1 covered",
        "top1 bare",
    )
    lines, notes = [], [row["note"] for row in log if "note" in row]
    for row in log:
        if "note" in row:
            continue
        parts = ", ".join(f"{key} {row[key]:.2f}" for key in shown if key in row)
        lines.append(f"| {row['stage']} | {row['step']} | {row['minutes']} | {parts} |")
    text = CARD.format(
        name=name,
        least=MIN_TOKENS,
        articles=ARTICLE_SHARE,
        table=table_text(table),
        parameters=sum(p.numel() for p in vlm.model.parameters()),
        log="\n".join(lines),
        notes=textwrap.fill(" ".join(notes), 100),
    )
    (folder / "README.md").write_text(text)
