"""Detailed descriptions with all visual tokens and with a part of them (Figures 12 and 13).

The paper reads a few descriptions and marks what is right, ambiguous and wrong by hand. Here a
description is held against the scene's graph (`bench.captions`), so that the marks are not ours and
hundreds of descriptions can be counted. Per image, with t true tuples of which h are said, and s
said,

    omitted  = (t - h) / t         what the description owes
    invented = (s - h) / t         what it adds

both in shares of the true tuples, so that one unit fits both; the change is pruned minus full, and
images are resampled. The detailed description of the drawn world names objects alone, so a
text-rich scene is asked for its word too, and the answer ends the description.

    table = describe(session, codebook)          # a row per image and side
    changes(table, resamples=2000, seed=0)       # scenes, kind, change, low, high
"""

from collections import Counter

import numpy as np
import pandas as pd

from redlib.bench import captions, difference, interval
from redlib.bench.captions import CAPTIONS
from redlib.bench.looking import UNPRUNED, Rule, look, reply
from redlib.codebook import Codebook
from redlib.data import benchmarks, single
from redlib.data.photo import Photo
from redlib.data.prompts import LONGEST_DETAIL
from redlib.notebook import MEASURING, Session
from redlib.params import Params
from redlib.study import LEAST_IMAGES
from redlib.study.asking import identity
from redlib.study.qualitative import OBJECTS, SORTS, START, drawn
from redlib.study.verdict import Verdict, bounds, untold
from redlib.tabletop import Scene
from redlib.tabletop.questions import DETAIL

WORD = "What word is written in the image?"
LONGEST = 64
"""Words of an answer at most; seven objects with all their details take about 40."""

FULL, PRUNED = SIDES = ("full", "pruned")
KINDS = ("omitted", "invented")
RIGHT, VAGUE, WRONG = MARKS = ("right", "vague", "wrong")
CODE = (*MEASURING, "bench", "prune", "study/describing", "study/qualitative", "tabletop")

CLAIMS = (
    ("plain", "omitted", 0.05, "With fewer visual tokens, descriptions of plain scenes omit less "
     "than 5 points more of what is there"),
    ("plain", "invented", 0.0, "With fewer visual tokens, descriptions of plain scenes invent "
     "less"),
    ("text-rich", "omitted", 0.0, "With fewer visual tokens, descriptions of text-rich scenes omit "
     "less"),
    ("text-rich", "invented", 0.0, "With fewer visual tokens, descriptions of text-rich scenes "
     "invent less"),
)  # fmt: skip
"""Scenes, kind, what the change has to lie below, and the claim in words (section 9.3.1)."""
_FIGURE = {"text-rich": 12, "plain": 13}


def budgets(params: Params) -> dict[str, int]:
    """Visual tokens kept of each sort of scene."""
    return {"text-rich": params.text_tokens, "plain": params.caption_tokens}


def describe(session: Session, codebook: Codebook) -> pd.DataFrame:
    """`n_described` scenes of each sort, described with all visual tokens and with the budget.

    Of photographs nobody wrote down which hold text, so that the same ones are described at both
    budgets, by the question of Image-DC, and the numbers of tuples are NaN.

    Returns scenes, image, side (full or pruned), tokens, kept (numbers of the tokens that stay, as
    text), description, true (tuples of the scene), said, omitted and invented (tuples); a row per
    image and side.
    """
    p, vlm = session.params, session.model
    if session.source.real:
        return _described_photographs(session, codebook)
    about = {scene.id: (sort, scene) for sort in SORTS for scene in drawn(sort, p.n_described)}
    store = session.store(
        "descriptions",
        code=CODE,
        codebook=codebook.digest,
        budgets=budgets(p),
    )

    def measure(name: str) -> pd.DataFrame:
        sort, scene = about[name]
        looked = look(vlm, [scene.image])
        texts = [DETAIL, WORD] if scene.word else [DETAIL]
        rules = {FULL: Rule(UNPRUNED, 0), PRUNED: Rule("codebook", budgets(p)[sort])}
        rows = []
        for side, rule in rules.items():
            told = reply(vlm, looked, rule, texts, codebook=codebook, max_new_tokens=LONGEST)
            kept = " ".join(map(str, told.chosen[0][0].kept.tolist()))
            text = described(*told.texts)
            rows.append((sort, name, side, told.kept, kept, text, *counted(text, scene)))
        return pd.DataFrame(rows, columns=_COLUMNS)

    return store.compute(about, measure, describe="images")


def photographs(session: Session) -> dict[str, Photo]:
    """The photographs that are described, by id; none with scenes."""
    if not session.source.real:
        return {}
    return {
        one.id: one for one in single.ask("image-dc", session.params.n_described, session.params)[0]
    }


def _described_photographs(session: Session, codebook: Codebook) -> pd.DataFrame:
    p, vlm = session.params, session.model
    session.asked += benchmarks.named(p, kinds=("image-dc",))
    photos, questions = single.ask("image-dc", p.n_described, p)
    about = {photo.id: (photo, q.text) for photo, q in zip(photos, questions, strict=True)}
    store = session.store(
        "descriptions", code=CODE, budgets=budgets(p),
        codebook=codebook.digest,
        **identity(p, questions, photos),
    )  # fmt: skip

    def measure(name: str) -> pd.DataFrame:
        photo, text = about[name]
        looked = look(vlm, [photo.image])
        rules = {FULL: Rule(UNPRUNED, 0)}
        rules |= {sort: Rule("codebook", tokens) for sort, tokens in budgets(p).items()}
        told = {
            of: reply(vlm, looked, rule, [text], codebook=codebook, max_new_tokens=LONGEST_DETAIL)
            for of, rule in rules.items()
        }
        rows = []
        for sort in SORTS:
            for side, found in ((FULL, told[FULL]), (PRUNED, told[sort])):
                kept = " ".join(map(str, found.chosen[0][0].kept.tolist()))
                rows.append((sort, name, side, found.kept, kept, found.texts[0], *[np.nan] * 4))
        return pd.DataFrame(rows, columns=_COLUMNS)

    return store.compute(about, measure, describe="images")


_COLUMNS = ["scenes", "image", "side", "tokens", "kept", "description", "true", "said", *KINDS]


def described(detail: str, word: str = "") -> str:
    """The description and, where it was asked for, the word, as one text."""
    detail = detail.replace(" ,", ",").replace(" .", ".")
    return f"{detail.rstrip('.')}, the word {word}." if word else detail


def counted(text: str, scene: Scene) -> tuple[int, int, int, int]:
    """(true, said, omitted, invented) tuples of a description of a scene."""
    hits, said, true = captions.counts(text, scene, CAPTIONS[0])  # whose truth has the word
    return true, said, true - hits, said - hits


def changes(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """What pruning changes, per sort of scene and kind of error, in shares of the true tuples.

    Returns scenes, kind, change (pruned minus full, mean over images), low, high, then per side the
    share with its interval (full, full_low, full_high, pruned ...) and the mean number of tuples
    (full_tuples, pruned_tuples), tokens (kept when pruned) and images.
    """
    draws = {"resamples": resamples, "seed": seed}
    rows = []
    for sort in SORTS:
        part = table[table["scenes"] == sort]
        sides = {side: part[part["side"] == side].set_index("image") for side in SIDES}
        images = list(sides[FULL].index)
        for kind in KINDS:
            shares = {side: (one[kind] / one["true"])[images] for side, one in sides.items()}
            found = difference(shares[PRUNED], shares[FULL], images, **draws)
            row = {"scenes": sort, "kind": kind, "change": found.mean}
            row |= {"low": found.low, "high": found.high}
            for side in SIDES:
                share = interval(shares[side], images, **draws)
                row |= {side: share.mean, f"{side}_low": share.low, f"{side}_high": share.high}
                row[f"{side}_tuples"] = sides[side][kind].mean()
            rows.append(row | {"tokens": sides[PRUNED]["tokens"].mean(), "images": len(images)})
    return pd.DataFrame(rows)


def verdicts(changed: pd.DataFrame | None) -> list[Verdict]:
    """The paper's claims about descriptions, each with what became of it; None: of photographs."""
    if changed is None:
        return [untold(claim, f"Figure {_FIGURE[sort]}") for sort, _, _, claim in CLAIMS]
    found = []
    at = changed.set_index(["scenes", "kind"])
    for sort, kind, bound, statement in CLAIMS:
        row = at.loc[(sort, kind)]
        holds = True if row["high"] < bound else False if row["low"] > bound else None
        numbers = ", ".join(f"{side} {row[side]:.1%}" for side in SIDES)
        found.append(
            Verdict(
                statement,
                holds if row["images"] >= LEAST_IMAGES else None,
                f"tuples {kind} per true tuple: {numbers}; change {100 * row['change']:+z.1f} "
                f"points (95% interval {bounds(row['low'], row['high'])}), "
                f"{row['images']:.0f} images, {row['tokens']:.0f} tokens kept",
                f"Figure {_FIGURE[sort]}",
            )
        )
    return found


def marked(text: str, scene: Scene) -> list[tuple[str, str]]:
    """The phrases of a description, each with its mark.

    right   an object of the scene, not described before, is just so: noun, colour and size; or the
            written word
    wrong   it says a tuple that the scene does not have
    vague   the rest: nothing in it is false, but it leaves out colour or size, joins two objects in
            one, says again what was said, or says nothing that the truth could decide

    Places are not judged, since the graph holds none. A phrase behind "and" that leaves out its
    noun has it in brackets: "(cow) pink small".
    """
    graph = captions.truth(scene, CAPTIONS[0])
    left = Counter(_whole(scene))
    found = []
    for phrase in captions.phrases(text):
        said = frozenset(phrase.graph)
        if any(one not in graph for one in said):
            mark_ = WRONG
        elif left[said] > 0:
            left[said] -= 1
            mark_ = RIGHT
        else:
            mark_ = VAGUE
        noun = phrase.graph[0][0] if phrase.graph else ""
        elided = noun and noun not in phrase.text.split()
        found.append((f"({noun}) {phrase.text}" if elided else phrase.text, mark_))
    return found


def left_out(text: str, scene: Scene) -> list[str]:
    """The tuples that a description owes, e.g. ["cup", "cup red", "word open"]."""
    missing = captions.truth(scene, CAPTIONS[0]) - captions.tuples(text)
    return [" ".join(one) for one in missing.elements()]


def _whole(scene: Scene) -> list[frozenset[tuple[str, ...]]]:
    """The tuples of each object, and of the word."""
    found = [frozenset([(o.noun,), (o.noun, o.colour), (o.noun, o.size)]) for o in scene.objects]
    return [*found, frozenset([("word", scene.word)])] if scene.word else found


RULE = (
    f"test scenes from number {START:,} on, with and without a written word, that have {OBJECTS} "
    "objects or more"
)
"""Which scenes the first are taken of, in words."""
