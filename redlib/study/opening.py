"""Descriptions and games as answers that a reader can open (notebook 07, `redlib.answers`).

The counts of Figures 12 to 14 are means over many images: tuples omitted and invented, differences
found and invented. Behind each stands what the model said about one image, so each description is
an answer twice, once for either count:

    task                the worth of an answer
    plain-omitted       tuples of the scene that the description owes, per tuple of the scene
    plain-invented      tuples that it adds, likewise
    text-rich-...       the same of scenes with a written word
    game-found          planted differences that the answer names
    game-invented       other differences that it names

    scoring.leave(session, answers(table, games))
    described(table, changed)       # the rows of a figure with the address of their answers
"""

import pandas as pd

from redlib.answers import address, rule
from redlib.bench.looking import UNPRUNED
from redlib.study import describing, spotting
from redlib.study.controls import OURS
from redlib.study.describing import DETAIL, FULL, SIDES, WORD
from redlib.study.qualitative import SORTS, START, drawn
from redlib.tabletop.pairs import SPOT_THE_DIFFERENCE, clause, composites


def answers(table: pd.DataFrame, games: pd.DataFrame | None) -> pd.DataFrame:
    """Rows as `scoring.leave` takes them.

    table: of `describing.describe`, of scenes. games: of `spotting.play`, None where it was not
    played.
    """
    truth = {}
    for sort in SORTS:
        for scene in drawn(sort, int((table["scenes"] == sort).sum()) // len(SIDES)):
            asked = f"{DETAIL} {WORD}" if scene.word else DETAIL
            truth[scene.id] = (asked, ", ".join(describing.left_out("", scene)))
    found = [
        _rows(table, table["scenes"] + f"-{kind}", table["description"], truth)
        .assign(correct=table[kind] / table["true"])
        for kind in describing.KINDS
    ]  # fmt: skip
    if games is not None:
        planted = {
            game.id: (SPOT_THE_DIFFERENCE, ", ".join(clause(*one) for one in game.differences))
            for game in composites("test", games["image"].nunique(), start=START)
        }
        found += [
            _rows(games, f"game-{kind}", games["answer"], planted).assign(correct=games[kind])
            for kind in spotting.KINDS
        ]
    return pd.concat(found, ignore_index=True)


def _rows(
    table: pd.DataFrame,
    task: pd.Series | str,
    said: pd.Series,
    truth: dict[str, tuple[str, str]],
) -> pd.DataFrame:
    """truth: image -> what was asked and what is so."""
    return table[["image", "tokens"]].assign(
        setting="base",
        seed=0,
        task=task,
        method=table["side"].map({FULL: UNPRUNED}).fillna(OURS),
        question=table["image"].map({name: asked for name, (asked, _) in truth.items()}),
        gold=table["image"].map({name: so for name, (_, so) in truth.items()}),
        answer=said,
    )


def described(table: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `describing.changes` with the address of their answers, in a column `answers`."""
    rules = {sort: _rules(table[table["scenes"] == sort]) for sort in SORTS}
    return changed.assign(
        answers=[
            address(rules[row.scenes], [f"{row.scenes}-{row.kind}"]) for row in changed.itertuples()
        ]
    )


def played(games: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `spotting.changes` with the address of their answers, in a column `answers`."""
    return changed.assign(
        answers=[address(_rules(games), [f"game-{kind}"]) for kind in changed["kind"]]
    )


def _rules(table: pd.DataFrame) -> list[str]:
    """Of rows with one budget: the rules of both sides."""
    tokens = table.groupby("side")["tokens"].first()
    return [rule(UNPRUNED if side == FULL else OURS, tokens[side]) for side in SIDES]
