"""Single images: which patches three methods keep, and what is then answered (Figures 10 and 11).

Percentages say that a method loses less; single images say why, and are the easiest place to fool
oneself. So the images shown here follow from a rule that knows no answer: of the test scenes from
START on, the first with a written word (*text-rich*) and the first without (*plain*), each with at
least OBJECTS objects, and the same kind of questions of each:

    examples = shown(session, codebook)          # SHOWN scenes of each sort
    examples["plain"][0].answers                 # question, gold, method, answer, correct

FastV prunes by the question, so its map is that of the first question. PruMerge keeps one row more
that stands for no single patch, the mean of what it left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import pandas as pd
from PIL import Image

from redlib.bench import is_correct
from redlib.bench.looking import Rule, look, reply
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts, single
from redlib.data.photo import Photo
from redlib.notebook import Session
from redlib.tabletop import Question, Scene, questions, scenes

START = 3_000_000
"""First test scene and composite of notebook 07; no other looks at these."""

SORTS = ("text-rich", "plain")
OBJECTS = 3
"""The paper speaks of images with several objects (section 9.3.1)."""

SHOWN = 3
"""Scenes of a sort that are drawn."""

METHODS: dict[str, str] = {"codebook": "Ours", "prumerge": "PruMerge", "fastv": "FastV"}

ASKED = {"text-rich": (("word", "", 1), ("mme", "", 1)), "plain": (("mme", "existence", 2),)}
"""Per sort the questions of a scene: task, its category if only one will do, and the first how
many. MME's come in pairs, the first to be answered with yes and the second with no."""

CATEGORIES = {"text-rich": "OCR", "plain": "existence"}
"""The category of MME whose pictures and pairs of questions are either sort of photographs."""


@dataclass(frozen=True, eq=False)
class Example:
    """One scene under all methods.

    Attributes:
        scene: the scene.
        view: what the model sees.
        kept: method -> (L,) bool, the patches that stay for the first question.
        answers: question, gold, method, tokens (kept), answer, correct; a row per method and
            question.
        informative: method -> share of the kept patches of which an object or the card with the
            word covers half or more; empty where nobody knows.
    """

    scene: Scene | Photo
    view: Image.Image
    kept: Mapping[str, np.ndarray]
    answers: pd.DataFrame
    informative: Mapping[str, float]


def drawn(sort: str, n: int) -> list[Scene]:
    """The first n test scenes of a sort, from START on, with OBJECTS objects or more."""
    return list(islice(_of_sort(sort), n))


def asked(scene: Scene, sort: str) -> list[Question]:
    """The questions of a scene, by ASKED; fewer where MME does not ask the scene for that."""
    return [
        question
        for task, group, n in ASKED[sort]
        for question in [q for q in questions([scene], task) if group in ("", q.group)][:n]
    ]


def shown(session: Session, codebook: Codebook) -> dict[str, list[Example]]:
    """The first SHOWN scenes of each sort of which all of ASKED is asked, with `example_tokens`
    visual tokens; of photographs the first of either of CATEGORIES."""
    found = {}
    if session.source.real:
        session.asked += benchmarks.named(session.params, kinds=("mme",))
        for sort, category in CATEGORIES.items():
            photos, about = single.ask("mme", 2 * SHOWN, session.params, group=category)
            pairs = [(one, [q for q in about if q.image == one.id]) for one in photos]
            found[sort] = [example(session, codebook, *pair) for pair in pairs]
        return found
    for sort, wanted in ASKED.items():
        whole = sum(n for *_, n in wanted)
        with_questions = ((scene, asked(scene, sort)) for scene in _of_sort(sort))
        chosen = (pair for pair in with_questions if len(pair[1]) == whole)
        found[sort] = [example(session, codebook, *pair) for pair in islice(chosen, SHOWN)]
    return found


def example(
    session: Session, codebook: Codebook, scene: Scene | Photo, chosen: list[Question]
) -> Example:
    """One image, its questions asked under every method of METHODS."""
    vlm, tokens = session.model, session.params.example_tokens
    looked = look(vlm, [scene.image])
    informative = None
    if isinstance(scene, Scene):
        informative = scene.coverage(vlm.sight).sum(axis=0) + scene.word_coverage(vlm.sight) >= 0.5
    longest = prompts.LONGEST if informative is None else 8
    rows, masks = [], {}
    for method in METHODS:
        told = reply(
            vlm, looked, Rule(method, tokens), [q.text for q in chosen], codebook=codebook,
            max_new_tokens=longest,
        )  # fmt: skip
        (first,), *_ = told.chosen
        masks[method] = mask(first.kept.tolist(), first.before)
        rows += [
            {
                "image": scene.id,
                "question": q.text,
                "gold": q.answer,
                "method": method,
                "tokens": told.kept,
                "answer": text,
                "correct": is_correct(q.task, text, q.answer, question=q.text),
            }
            for q, text in zip(chosen, told.texts, strict=True)
        ]
    return Example(
        scene,
        vlm.view(scene.image),
        masks,
        pd.DataFrame(rows),
        {}
        if informative is None
        else {method: float(informative[kept].mean()) for method, kept in masks.items()},
    )


def mask(kept: Sequence[int], size: int) -> np.ndarray:
    """(L,) bool of the numbers of the tokens that stay; a merged row stands for none."""
    stays, kept = np.zeros(size, dtype=bool), np.asarray(kept, dtype=int)
    stays[kept[kept >= 0]] = True
    return stays


def answers(examples: Mapping[str, list[Example]]) -> pd.DataFrame:
    """The answers of all examples, with their sort in front and, per image and method, the share of
    kept patches that show something."""
    parts = [
        one.answers.assign(scenes=sort, informative=one.answers["method"].map(one.informative))
        for sort, several in examples.items()
        for one in several
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame[["scenes", *frame.columns.drop("scenes")]]


def _of_sort(sort: str) -> Iterator[Scene]:
    for start in count(START):
        (scene,) = scenes("test", 1, start=start)
        if bool(scene.word) == (sort == "text-rich") and len(scene.objects) >= OBJECTS:
            yield scene
