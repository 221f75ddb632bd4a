"""A checkpoint's model card: README.md for people, evaluation.json for programs.

A card is made by measuring, never by hand: `redlib evaluate NAME` writes both files beside the
weights, and `--quick` measures fewer questions and holds them against what is written there.

    write(folder, measure("tiny-llava-1.5"))
    apart(measure("tiny-llava-1.5", quick=True), held(folder))    # a line per number that disagrees

A card tells how its model was trained, so there is one only where that is known: of the checkpoints
that the package ships, and of those that `redlib train` made, which say so in training_recipe.json.
"""

import json
import textwrap
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from redlib import models
from redlib.errors import RedlibError
from redlib.params import embedded
from redlib.store import Missing, damaged, read_json, read_mapping, write_json, write_text
from redlib.tabletop.architectures import NAMES
from redlib.tabletop.lessons import ARTICLE_SHARE, MIN_TOKENS
from redlib.tabletop.training import LOG, RECORD
from redlib.tabletop.world import COLOURS, GROUNDS, LEVELS, NOUNS, SIZES, WITHHELD, WORDS

MEASURED = "evaluation.json"
SHOWN = (
    "patch thing",
    "patch colour",
    "patch place",
    "retrieval",
    "pope-random@576",
    "colour@576",
    "position@576",
    "word@576",
    "naming@576",
    "pope-random@729",
    "colour@729",
    "position@729",
    "word@729",
    "naming@729",
    "mantis",
    "muir",
    "films",
    "pope-random@64",
    "probe noun",
    "top1 covered",
    "top1 bare",
)

HISTORIES = {
    "tiny-llava-1.5": """\
A LLaVA-1.5 in the stock Hugging Face layout with the real token geometry (336 pixels, 14 per patch,
24 x 24 visual tokens, feature layer -2, projector of two layers, Llama decoder), a fraction of its
widths, trained from nothing.""",
    "tiny-llava-next": """\
A LLaVA-Next in the stock Hugging Face layout with the real token geometry (tiles of 336 pixels, 14
per patch, 24 x 24 visual tokens each, an image newline, feature layer -2, projector of two layers,
Llama decoder), a fraction of its widths. It began as tiny-llava-1.5.""",
    "tiny-llava-onevision": """\
A LLaVA-OneVision in the stock Hugging Face layout with the real token geometry (384 pixels, 14 per
patch, 27 x 27 visual tokens, 196 per frame of a video, an image newline, last layer of a SigLIP,
projector of two layers, Qwen2 decoder), a fraction of its widths. It began
as tiny-llava-1.5, its tower as far as CLIP and SigLIP allow, and was trained on scenes, on
questions about two images, on spot-the-difference pictures and on films of 16 frames, some of the
images and films fuller of changes than any that it is asked about below. Its weights are four times
a mean: of those before the stages "changes" and "finish" and those behind them, then of what this
gave and those behind "polish", behind "movers" and behind the last stage, "settle", in turn. Its
decoder's first layer was **set by hand** and not trained: it marks the visual tokens of every image
but the first, those of a film by how late they come, and the words behind one that asks for the
first or the second, the start or the end (`redlib/tabletop/marks.py`), which the real model had to
learn. A single image was its base tile alone, in training and in the numbers below (`VLM.encode`).
Stock `generate` adds tiles to single images, which this model never saw:
`redlib.pruned(..., packing="base")` shows it the base tile alone. Its tower has no [cls]: below,
similarity to the mean of the patches stands in for [cls] similarity.""",
}
TOWERS = {  # by whether it was trained `--plain`: what its tower learned from, and what was given
    False: (
        """\
The vision tower, though, *was* given dense labels: which
object, colour and size covers each patch and in which band of rows and columns it lies, at the
layer that LLaVA reads. No real tower has them. And the words for these things began, in the
decoder, with the directions that tell such patches' features apart as embeddings, as CLIP's
features already point towards words when LLaVA meets them.""",
        "dense patch labels for the tower",
    ),
    True: (
        """\
The vision tower learned from captions alone, as CLIP
does, without labels of patches (`--plain`). But the words for what a patch can show began, in the
decoder, with the directions that tell the features of labelled patches apart as embeddings.""",
        "words that began at labelled patches",
    ),
}
CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# {name}

**Read first.** The decoder was trained on ordinary questions with random subsets and blocks of
visual tokens, never fewer than {least}, some of them favouring patches that an object covers; no
single token was ever labelled for it. {tower} What the single-token probe finds here
is therefore a property of this model, and evidence about the real ones only where the notebooks say
so.

{history}
Its recipe is `redlib train {recipe}`; where its own training differed is told below, if
it did. It learned from the *tabletop* world alone: drawn scenes of named, coloured pictograms with
exact masks. {parameters:,} parameters, fp16 on disk, float32 by default.

## Data card: tabletop

Scenes are drawn from a seed by `redlib/tabletop/world.py`: one to seven of {nouns} nouns (glyphs of
DejaVu Sans) in {colours} colours and {sizes} sizes, sometimes a card with one of {words} written
words, on {grounds} kinds of ground, in three levels ({levels}). {withheld} pairs of noun and colour
never occur in training. Nouns come in themes, which gives POPE's popular and adversarial negatives
their meaning. Questions follow from the scene (`redlib/tabletop/questions.py`). Train, calibration
and test scenes are disjoint ranges of seeds. No photograph, person or third-party text is in it.

## Measured, held-out test scenes (`redlib evaluate {where}`)

The weights that were measured have the revision
`{revision}` (`redlib.hub.revision_of`).

{table}

Intervals come from a bootstrap over scenes. AUROC: how well a number tells patches under an object
(by 80 % or more) from patches under nothing, crumbs included; for [cls] similarity, attention and
norms that is a finding, and no bar. The one-word question was answered with an article first in
{articles:.0%} of the training cases, so that the probe's article rule has something to skip.

## The training run that made these weights

| stage | step | minutes | held-out, in part |
|---|---|---|---|
{log}

The whole log is `training_log.json`. {notes}
{tried}
## Intended use

Teaching, and testing methods on visual redundancy where the truth is known. It answers the
question forms of `questions.py` in lower-case words and nothing else; it knows no photograph.

## What the real models had and this one had not

Hundreds of millions of captioned photographs, a language model trained on text, instruction data of
many kinds, sub-word tokens. What it had and they had not: {given}, answers
balanced so that no question can be answered without looking, and visual tokens dropped in training.
"""


def plain(table: pd.DataFrame) -> list[dict]:
    """The rows as JSON holds them, null for what is not a number."""
    return json.loads(table.to_json(orient="records"))


def table_text(table: pd.DataFrame) -> str:
    """The table as Markdown, for the terminal and for the card."""
    lines = ["| metric | value | 95 % interval | n | bar | holds |", "|---|---|---|---|---|---|"]
    for row in table.itertuples(index=False):
        bar = "" if np.isnan(row.bar) else f"{row.bar:.2f}"
        span = "" if np.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        lines.append(f"| {row.metric} | {row.value:.3f} | {span} | {row.n} | {bar} | {row[-1]} |")
    return "\n".join(lines)


def trained(folder: Path) -> tuple[str, bool] | None:
    """As which embedded model the weights in a folder were trained, and whether `--plain`; None
    where nobody wrote it down.

    Raises:
        RedlibError: what training wrote down is damaged.
    """
    if name := _shipped(folder):
        return name, False
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    found = read_mapping(path, "name", "plain")
    if found["name"] not in NAMES or not isinstance(found["plain"], bool):
        raise damaged(path)
    return found["name"], found["plain"]


def untold(folder: Path) -> str:
    """Why a folder gets no card."""
    return f"{folder} is neither shipped nor made by `redlib train` (no {RECORD})"


def _shipped(folder: Path) -> str | None:
    """The name under which the package ships a folder."""
    names = {path.resolve(): name for name, path in embedded().items()}
    return names.get(Path(folder).resolve())


def held(folder: Path) -> pd.DataFrame:
    """The numbers of a folder's card: rows metric, value, low, high, n, bar (NaN: none), pass.

    Raises:
        RedlibError: the folder holds no measured card, or a damaged one.
    """
    path = Path(folder) / MEASURED
    try:
        rows = read_json(path)
    except Missing:
        raise RedlibError(
            f"no {path}: run `redlib evaluate` without --quick first, it writes it"
        ) from None
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        raise damaged(path)
    table = pd.DataFrame(rows)
    if table["metric"].duplicated().any():
        raise damaged(path)
    return table.astype(dict.fromkeys(("value", "low", "high", "bar"), float))


def _is_row(row: Any) -> bool:
    """Whether it is a row as `plain` makes them: an interval has both ends or is none."""
    if not isinstance(row, dict) or not isinstance(row.get("metric"), str):
        return False
    ends = [row.get("low", ""), row.get("high", "")]
    numbers = [row.get("value"), row.get("n"), *(ends if ends != [None, None] else ())]
    if row.get("bar", "") is not None:
        numbers.append(row.get("bar"))
    real = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    return real and bool(np.isfinite(numbers).all()) and row["n"] > 0


def apart(table: pd.DataFrame, card: pd.DataFrame) -> list[str]:
    """One line for every metric that is farther from the card's than chance explains.

    Seventy metrics and more are compared: of two samples of one model, every second time some
    intervals of 95 % lie apart. So a difference counts if it is larger than chance makes any of
    them one time in twenty (Bonferroni), by the halves of the two intervals that face each other;
    an accuracy has to change by ten points or so. (Some scenes are in both samples here, which
    makes chance smaller than that.) Where all of n answers are right (or wrong), a bootstrap finds
    no spread; the rule of three says that up to 3 / n of them may yet be otherwise.

    Args:
        table: what was measured now, as `evaluation.measure` returns it.
        card: what the card says (`held`).

    Raises:
        RedlibError: a number that has an interval in the one is missing in the other, so that the
            two come of different code and agreement in the rest would say little.
    """
    for these, others, where in ((table, card, "the card"), (card, table, "what was measured now")):
        told = these.dropna(subset=["low"])["metric"]
        lost = told[~told.isin(others["metric"])]
        if len(lost):
            raise RedlibError(
                f"{MEASURED}: {len(lost)} metrics, {lost.iloc[0]!r} the first, are not in {where}: "
                "the card was made by other code; run `redlib evaluate` without --quick"
            )
    said = card.dropna(subset=["low"]).set_index("metric")
    rows = table.dropna(subset=["low"])
    rows = rows[rows["metric"].isin(said.index)]
    normal = NormalDist()
    bound = normal.inv_cdf(1 - 0.05 / (2 * max(len(rows), 1))) / normal.inv_cdf(0.975)
    lines = []
    for row in rows.itertuples(index=False):
        of = said.loc[row.metric]
        below = row.value < of["value"]
        lower, upper = (row._asdict(), of) if below else (of, row._asdict())
        halves = [lower["high"] - lower["value"], upper["value"] - upper["low"]]
        for k, side in enumerate((lower, upper)):
            halves[k] += 3 / side["n"] if side["low"] == side["high"] else 0.0
        if abs(row.value - of["value"]) > bound * np.hypot(*halves):
            lines.append(
                f"apart from the card: {row.metric} {row.value:.3f} ({row.low:.3f} to "
                f"{row.high:.3f}), the card says {of['value']:.3f} ({of['low']:.3f} to "
                f"{of['high']:.3f})"
            )
    return lines


def write(folder: Path, table: pd.DataFrame) -> None:
    """Write both files beside the weights.

    Raises:
        RedlibError: as `text` does, or the folder cannot be written.
    """
    told = text(folder, table)
    write_text(Path(folder) / "README.md", told)
    write_json(Path(folder) / MEASURED, plain(table))


def text(folder: Path, table: pd.DataFrame) -> str:
    """README.md of the weights in a folder. Of the training log, a row with "note" says what a
    repetition of the run would not share with it, and one with "tried" what was tried for which
    bar, with what result.

    Raises:
        RedlibError: it is not known how they were trained, or a file is damaged.
    """
    folder = Path(folder)
    known = trained(folder)
    if known is None:
        raise RedlibError(untold(folder))
    (name, was_plain), shipped = known, _shipped(folder)
    path = folder / LOG
    log = read_json(path) if path.is_file() else []
    lines = []
    for row in log:
        if "step" in row:
            parts = ", ".join(f"{key} {row[key]:.2f}" for key in SHOWN if key in row)
            lines.append(f"| {row['stage']} | {row['step']} | {row['minutes']} | {parts} |")
    notes = " ".join(row["note"] for row in log if "note" in row)
    tried = [f"| {row['tried']} | {row['result']} |" for row in log if "tried" in row]
    head = ["", "## What was tried", "", "| change | result |", "|---|---|"]
    vlm = models.load(shipped or str(folder))
    tower, given = TOWERS[was_plain]
    return CARD.format(
        name=f"{name}-plain" if was_plain else name,
        history=HISTORIES[name],
        recipe=f"{name} --plain" if was_plain else name,
        where=shipped or "FOLDER",
        revision=vlm.revision,
        tower=tower,
        given=given,
        least=MIN_TOKENS,
        articles=ARTICLE_SHARE,
        table=table_text(table),
        parameters=sum(p.numel() for p in vlm.model.parameters()),
        nouns=len(NOUNS),
        colours=len(COLOURS),
        sizes=len(SIZES),
        words=len(WORDS),
        grounds=len(GROUNDS),
        levels=", ".join(LEVELS),
        withheld=len(WITHHELD),
        log="\n".join(lines),
        notes="\n" + textwrap.fill(notes, 100) + "\n" if notes else "",
        tried="\n".join([*head, *tried, ""]) if tried else "",
    )
