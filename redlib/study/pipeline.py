"""One test image on its way through the codebook (Figure 5, right).

Every token gets the redundancy score of the prototype that it is most similar to; the least
redundant stay, and a few questions are asked with them and with all. So one can see which prototype
removed which patch, and where that prototype itself comes from:

    shown = show(session, codebook, keep=64)
    origins(session, codebook, shown.table)        # number of a prototype -> (image, patch)
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from redlib import bench
from redlib.codebook import Codebook
from redlib.data import benchmarks, single
from redlib.notebook import Session
from redlib.prune import keep_lowest, redundancy
from redlib.prune.scores import cosines
from redlib.study import codebooks
from redlib.study.asking import ask
from redlib.tabletop import Scene, scenes
from redlib.tabletop.world import redraw

SHOWN = ("pope-adversarial", "mme", "seed", "colour", "position")
"""Tasks of which the sketch of the pipeline shows one question each, all about a square image."""


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
