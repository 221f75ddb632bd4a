"""Spot the difference, with all visual tokens and with a part of them (Figure 14).

One image shows two pictures, and the model is asked, in the paper's words, what differs between
them. The paper shows two such images and reads from them that the model finds more, and invents
less, with 508 or 586 of 729 tokens. Here one to three differences are planted in every image
(`tabletop.pairs`), so both can be counted over many:

    found     planted differences that are named, per image
    invented  named differences that were not planted, per image

The game is LLaVA-OneVision's, as in the paper; the base tile shows the whole image.

**What can be decided.** A model that does not play the game names differences all the same, and now
and then one that is there. How often is told by the answers to other images: what an answer to the
next image would find in this one is chance. The claims are decided only where the model with all
tokens finds more than that, by the interval of the paired difference.

    table = play(session, codebook)              # a row per image and side; None for other models
    changes(table, resamples=2000, seed=0)       # kind, change, low, high
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from redlib.bench import difference, interval
from redlib.bench.looking import UNPRUNED, Rule, look, reply
from redlib.codebook import Codebook
from redlib.data.folder import Own, own
from redlib.data.prompts import LONGEST_DETAIL
from redlib.notebook import MEASURING, Session
from redlib.study import LEAST_IMAGES
from redlib.study.describing import FULL, LONGEST, PRUNED, SIDES
from redlib.study.qualitative import START
from redlib.study.verdict import Verdict, untold
from redlib.tabletop.pairs import SPOT_THE_DIFFERENCE, Composite, composites, differences_named

FOUND, INVENTED = KINDS = ("found", "invented")
CODE = (*MEASURING, "bench", "prune", "study/spotting", "tabletop")

NOT_RUN = (
    "**Not run: needs LLaVA-OneVision**, the paper's model for this game. This run's model is of "
    "another family, so there is no figure and no number here."
)

CLAIMS = (
    (FOUND, "With redundant tokens removed, the model finds more of the planted differences"),
    (INVENTED, "With redundant tokens removed, the model invents fewer differences"),
)


def play(session: Session, codebook: Codebook) -> pd.DataFrame | None:
    """`n_games` composites with all visual tokens and with `game_tokens`; None where the model is
    no LLaVA-OneVision. With photographs, the pictures of `games_dir`, and None without one; what is
    planted in them nobody says, so that planted, found and invented are NaN.

    Returns image, side (full or pruned), tokens, kept (numbers of the tokens that stay, as text),
    answer, planted, found and invented (differences), chance (found, were the next image's answer
    given); a row per image and side.
    """
    p, vlm = session.params, session.model
    if vlm.model.config.model_type != "llava_onevision":
        return None
    games: dict[str, Composite | Own] = own_pictures(session)
    if session.source.real and not games:
        return None
    if not games:
        games = {game.id: game for game in composites("test", p.n_games, start=START)}
    store = session.store(
        "games",
        code=CODE,
        codebook=codebook.digest,
        tokens=p.game_tokens,
        **_identity(games),
    )
    longest = LONGEST_DETAIL if session.source.real else LONGEST

    def measure(name: str) -> pd.DataFrame:
        game = games[name]
        looked = look(vlm, [game.image])
        rows = []
        rules = {FULL: Rule(UNPRUNED, 0), PRUNED: Rule("codebook", p.game_tokens)}
        for side, rule in rules.items():
            told = reply(
                vlm, looked, rule, [SPOT_THE_DIFFERENCE], codebook=codebook, max_new_tokens=longest
            )
            kept = " ".join(map(str, told.chosen[0][0].kept.tolist()))
            (text,) = told.texts
            counts = counted(text, game) if isinstance(game, Composite) else [np.nan] * 3
            rows.append((name, side, told.kept, kept, text, *counts))
        columns = ["image", "side", "tokens", "kept", "answer", "planted", *KINDS]
        return pd.DataFrame(rows, columns=columns)

    return by_chance(store.compute(games, measure, describe="images"), games)


def by_chance(table: pd.DataFrame, games: Mapping[str, Composite | Own]) -> pd.DataFrame:
    """The table of `play` with its column chance: NaN for pictures whose differences nobody listed,
    and 0 for a single image, which has no other."""
    chance = pd.Series(np.nan, table.index)
    for _, part in table.groupby("side"):
        for at, name, said in zip(
            part.index, part["image"], np.roll(part["answer"], -1), strict=True
        ):
            game = games[name]
            if isinstance(game, Composite):
                chance[at] = counted(said, game)[1] if len(part) > 1 else 0
    return table.assign(chance=chance)


def own_pictures(session: Session) -> dict[str, Own]:
    """The first `n_games` pictures of `games_dir`, by name; none with scenes or no folder."""
    p = session.params
    if not session.source.real or p.games_dir is None:
        return {}
    return {one.id: one for one in own(p.games_dir)[: p.n_games]}


def _identity(games: Mapping[str, Composite | Own]) -> dict[str, object]:
    """What tells files apart for a table's key; scenes' names say all."""
    files = {n: g.path.read_bytes() for n, g in games.items() if isinstance(g, Own)}
    return (
        {"files": {n: hashlib.sha256(b).hexdigest()[:12] for n, b in files.items()}}
        if files
        else {}
    )


def not_run(session: Session) -> str:
    """Why there is no game."""
    if session.source.real and session.model.model.config.model_type == "llava_onevision":
        return (
            "**Not run: needs pictures of the game.** The paper's are from web sites and in no "
            "data set; let `games_dir` name a folder with some of your own."
        )
    return NOT_RUN


def counted(text: str, game: Composite) -> tuple[int, int, int]:
    """(planted, found, invented) differences of an answer."""
    named, planted = differences_named(text), set(game.differences)
    return len(planted), len(named & planted), len(named - planted)


def changes(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """What pruning changes, in differences per image.

    Returns kind, change (pruned minus full, mean over images), low, high, then per side the mean
    with its interval (full, full_low, full_high, pruned ...), planted (mean per image), tokens
    (kept when pruned), images, and, the same in every row, chance (found with the next image's
    answer) and above, above_low, above_high (found with all tokens, minus chance).
    """
    draws = {"resamples": resamples, "seed": seed}
    sides = {side: table[table["side"] == side].set_index("image") for side in SIDES}
    images = list(sides[FULL].index)
    played = sides[FULL]
    above = difference(played[FOUND], played["chance"], images, **draws)
    rows = []
    for kind in KINDS:
        pruned, full = (sides[side].loc[images, kind] for side in (PRUNED, FULL))
        found = difference(pruned, full, images, **draws)
        row = {"kind": kind, "change": found.mean, "low": found.low, "high": found.high}
        for side, values in ((FULL, full), (PRUNED, pruned)):
            mean = interval(values, images, **draws)
            row |= {side: mean.mean, f"{side}_low": mean.low, f"{side}_high": mean.high}
        row["planted"] = played["planted"].mean()
        row |= {"tokens": sides[PRUNED]["tokens"].mean(), "images": len(images)}
        row |= {"chance": played["chance"].mean(), "above": above.mean}
        rows.append(row | {"above_low": above.low, "above_high": above.high})
    return pd.DataFrame(rows)


def verdicts(changed: pd.DataFrame | None) -> list[Verdict]:
    """The paper's two claims about the game, each with what became of it, which is nothing where
    the game is not played above chance; None: it was played with pictures whose differences nobody
    listed."""
    if changed is None:
        return [untold(statement, "Figure 14") for _, statement in CLAIMS]
    found = []
    for kind, statement in CLAIMS:
        row = changed.set_index("kind").loc[kind]
        low, high = (row["low"], row["high"]) if kind == FOUND else (-row["high"], -row["low"])
        holds = True if low > 0 else False if high < 0 else None
        decided = row["images"] >= LEAST_IMAGES and row["above_low"] > 0
        found.append(
            Verdict(
                statement,
                holds if decided else None,
                f"{kind} per image: all tokens {row[FULL]:.2f}, {row['tokens']:.0f} tokens "
                f"{row[PRUNED]:.2f} (planted {row['planted']:.2f}); change {row['change']:+z.3f} "
                f"(95% interval {row['low']:+z.3f} to {row['high']:+z.3f}), "
                f"{row['images']:.0f} images; found with all tokens {row['above']:+z.3f} "
                f"({row['above_low']:+z.3f} to {row['above_high']:+z.3f}) above chance",
                "Figure 14",
            )
        )
    return found
