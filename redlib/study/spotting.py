"""Spot the difference, with all visual tokens and with a part of them (Figure 14).

One image shows two pictures, and the model is asked, in the paper's words, what differs between
them. The paper shows two such images and reads from them that the model finds more, and invents
less, with 508 or 586 of 729 tokens. Here one to three differences are planted in every image
(`tabletop.pairs`), so both can be counted over many:

    found     planted differences that are named, per image
    invented  named differences that were not planted, per image

The game is LLaVA-OneVision's, as in the paper; the base tile shows the whole image.

    table = play(session, codebook)              # a row per image and side; None for other models
    changes(table, resamples=2000, seed=0)       # kind, change, low, high
"""

import hashlib

import pandas as pd

from redlib.bench import difference, interval
from redlib.bench.looking import UNPRUNED, Rule, look, reply
from redlib.codebook import Codebook
from redlib.notebook import MEASURING, Session
from redlib.study.describing import FULL, LONGEST, PRUNED, SIDES
from redlib.study.patches import LEAST_IMAGES
from redlib.study.qualitative import START
from redlib.study.verdict import Verdict
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
    no LLaVA-OneVision.

    Returns image, side (full or pruned), tokens, kept (numbers of the tokens that stay, as text),
    answer, planted, found and invented (differences); a row per image and side.
    """
    p, vlm = session.params, session.model
    if vlm.model.config.model_type != "llava_onevision":
        return None
    games = {game.id: game for game in composites("test", p.n_games, start=START)}
    store = session.store(
        "games",
        code=CODE,
        codebook=hashlib.sha256(codebook.vectors.numpy().tobytes()).hexdigest()[:12],
        tokens=p.game_tokens,
    )

    def measure(name: str) -> pd.DataFrame:
        game = games[name]
        looked = look(vlm, [game.image])
        rows = []
        rules = {FULL: Rule(UNPRUNED, 0), PRUNED: Rule("codebook", p.game_tokens)}
        for side, rule in rules.items():
            told = reply(
                vlm, looked, rule, [SPOT_THE_DIFFERENCE], codebook=codebook, max_new_tokens=LONGEST
            )
            kept = " ".join(map(str, told.chosen[0][0].kept.tolist()))
            (text,) = told.texts
            rows.append((name, side, told.kept, kept, text, *counted(text, game)))
        columns = ["image", "side", "tokens", "kept", "answer", "planted", *KINDS]
        return pd.DataFrame(rows, columns=columns)

    return store.compute(games, measure, describe="images")


def counted(text: str, game: Composite) -> tuple[int, int, int]:
    """(planted, found, invented) differences of an answer."""
    named, planted = differences_named(text), set(game.differences)
    return len(planted), len(named & planted), len(named - planted)


def changes(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """What pruning changes, in differences per image.

    Returns kind, change (pruned minus full, mean over images), low, high, then per side the mean
    with its interval (full, full_low, full_high, pruned ...), planted (mean per image), tokens
    (kept when pruned) and images.
    """
    draws = {"resamples": resamples, "seed": seed}
    sides = {side: table[table["side"] == side].set_index("image") for side in SIDES}
    images = list(sides[FULL].index)
    rows = []
    for kind in KINDS:
        pruned, full = (sides[side].loc[images, kind] for side in (PRUNED, FULL))
        found = difference(pruned, full, images, **draws)
        row = {"kind": kind, "change": found.mean, "low": found.low, "high": found.high}
        for side, values in ((FULL, full), (PRUNED, pruned)):
            mean = interval(values, images, **draws)
            row |= {side: mean.mean, f"{side}_low": mean.low, f"{side}_high": mean.high}
        row["planted"] = sides[FULL]["planted"].mean()
        rows.append(row | {"tokens": sides[PRUNED]["tokens"].mean(), "images": len(images)})
    return pd.DataFrame(rows)


def verdicts(changed: pd.DataFrame) -> list[Verdict]:
    """The paper's two claims about the game, each with what became of it."""
    found = []
    for kind, statement in CLAIMS:
        row = changed.set_index("kind").loc[kind]
        low, high = (row["low"], row["high"]) if kind == FOUND else (-row["high"], -row["low"])
        holds = True if low > 0 else False if high <= 0 else None
        found.append(
            Verdict(
                statement,
                holds if row["images"] >= LEAST_IMAGES else None,
                f"{kind} per image: all tokens {row[FULL]:.2f}, {row['tokens']:.0f} tokens "
                f"{row[PRUNED]:.2f} (planted {row['planted']:.2f}); change {row['change']:+.3f} "
                f"(95% interval {row['low']:+.3f} to {row['high']:+.3f}), "
                f"{row['images']:.0f} images",
                "Figure 14",
            )
        )
    return found
