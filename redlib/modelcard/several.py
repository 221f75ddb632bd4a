"""What only a OneVision can be asked: two images, a spot-the-difference picture, a film.

Questions are asked as users ask them, through `VLM.several`, `VLM.encode` and `VLM.film`, with all
visual tokens, greedily, on held-out numbers. Beside every accuracy stands what the best answers
without looking would get (`chance`: the options, or the better of two answers). In the game
(section 9.3.2 of the paper) a model may name as many differences as it likes, so two numbers belong
together: the share of planted differences that it names, and how many it invents per picture. Two
baselines say what they are worth: always naming the one difference that training planted most
often, and the model's own answer without any visual token.

    rows = measure(vlm, pairs=80, games=40, films=16, seed=0)      # (metric, Interval) each
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from redlib.bench.answering import answers
from redlib.bench.intervals import Interval, interval
from redlib.bench.metrics import is_correct
from redlib.models import VLM
from redlib.tabletop.films import FRAMES, SUBTASKS, film_questions
from redlib.tabletop.films import films as draw_films
from redlib.tabletop.pairs import (
    KINDS,
    SPOT_THE_DIFFERENCE,
    Composite,
    composites,
    differences_named,
)
from redlib.tabletop.pairs import pairs as draw_pairs

BARS = {
    "two images, mantis: mean over kinds": 0.80,
    "two images, muir: mean over kinds": 0.80,
    "video, 16 frames: mean over subtasks": 0.75,
    "video, 32 frames: mean over subtasks": 0.75,
}
START = 2_000_000  # apart from what the notebooks show
COUNTED = 300  # training composites from which the constant answer is taken
LONGEST = 64  # words of an answer that names differences

Rows = list[tuple[str, Interval]]


def measure(vlm: VLM, *, pairs: int, games: int, films: int, seed: int) -> Rows:
    """Metrics of several images, composites and films, on so many of each (pairs of a schema)."""
    rows: Rows = []
    for schema in KINDS:
        rows += _pairs(vlm, schema, pairs, seed)
    for frames in FRAMES:
        rows += _films(vlm, films, frames, seed)
    return rows + _games(vlm, composites("test", games, start=START), seed)


def _pairs(vlm: VLM, schema: str, n: int, seed: int) -> Rows:
    """Questions of a schema by kind, those of the same two images together."""
    together: dict[str, list] = {}
    for pair in draw_pairs("test", n, schema, start=START):
        together.setdefault(pair.id.removesuffix(".none"), []).append(pair)
    told = []
    for id, asked in tqdm(together.items(), desc=f"two images ({schema})", leave=False):
        shown = vlm.several([scene.image for scene in asked[0].scenes])
        said = _answers(vlm, shown, [pair.text for pair in asked])
        for pair, text in zip(asked, said, strict=True):
            told.append((id, pair.kind, is_correct(schema, text, pair.answer), pair.chance))
    label = f"two images, {schema}"
    return [*_by_kind(told, label, seed, "kinds"), *_chances(told, label, "kinds")]


def _films(vlm: VLM, n: int, frames: int, seed: int) -> Rows:
    """Every subtask that a film can carry."""
    told = []
    drawn = draw_films("test", n, start=START, frames=frames)
    for film in tqdm(drawn, desc=f"films ({frames} frames)", leave=False):
        asked = [q for task in SUBTASKS for q in film_questions([film], task)]
        said = _answers(vlm, vlm.film(film.images), [q.text for q in asked])
        for q, text in zip(asked, said, strict=True):
            told.append((film.id, q.task, is_correct("film", text, q.answer), q.chance))
    rows = _by_kind(told, f"video, {frames} frames", seed, "subtasks")
    # The questions are the same whatever the frames.
    return rows + (_chances(told, "video", "subtasks") if frames == FRAMES[0] else [])


def _games(vlm: VLM, games: Sequence[Composite], seed: int) -> Rows:
    """Differences found and invented, by the model and by the two baselines."""
    often = Counter(d for game in composites("train", COUNTED) for d in game.differences)
    always = {often.most_common(1)[0][0]}
    (blind,) = answers(
        vlm, vlm.pad.new_empty(0, vlm.width), [SPOT_THE_DIFFERENCE], max_new_tokens=LONGEST
    )

    def looked(game: Composite) -> set[tuple[str, ...]]:
        (tokens,) = vlm.encode([game.image]).tokens
        (text,) = answers(vlm, tokens, [SPOT_THE_DIFFERENCE], max_new_tokens=LONGEST)
        return differences_named(text)

    rows: Rows = []
    ways: dict[str, Callable[[Composite], set[tuple[str, ...]]]] = {
        "all tokens": looked,
        "none tokens": lambda game: differences_named(blind),
        "always the same": lambda game: always,
    }
    for label, name in ways.items():
        found, invented = [], []
        for game in tqdm(games, desc=f"spot the difference ({label})", leave=False):
            named, planted = name(game), set(game.differences)
            found += [(game.id, difference in named) for difference in game.differences]
            invented.append(len(named - planted))
        ids = [game.id for game in games]
        rows += [
            (
                f"spot the difference, share found, {label}",
                interval([hit for _, hit in found], [id for id, _ in found], seed=seed),
            ),
            (
                f"spot the difference, invented per picture, {label}",
                interval(invented, ids, seed=seed),
            ),
        ]
    return rows


def _answers(vlm: VLM, shown: torch.Tensor, texts: Sequence[str]) -> list[str]:
    # `answers` ends the visual tokens with the newline that these already have.
    return answers(vlm, shown[:-1], texts)


def _frame(told: list[tuple[str, str, bool, float]]) -> pd.DataFrame:
    return pd.DataFrame(told, columns=["image", "kind", "correct", "chance"])


def _by_kind(told: list[tuple[str, str, bool, float]], label: str, seed: int, kinds: str) -> Rows:
    """Accuracy of each kind and the mean over kinds."""
    frame = _frame(told)
    rows = [
        (f"{label}: {kind}", interval(part["correct"], part["image"], seed=seed))
        for kind, part in frame.groupby("kind", sort=False)
    ]
    mean = interval(frame["correct"], frame["image"], strata=frame["kind"], seed=seed)
    return [*rows, (f"{label}: mean over {kinds}", mean)]


def _chances(told: list[tuple[str, str, bool, float]], label: str, kinds: str) -> Rows:
    """The same by chance, without intervals."""
    chance = _frame(told).groupby("kind", sort=False)["chance"].agg(["mean", "size"])
    rows = [
        (f"{label}: {kind}, by chance", Interval(share, np.nan, np.nan, n, n))
        for kind, share, n in chance.itertuples()
    ]
    mean = Interval(chance["mean"].mean(), np.nan, np.nan, len(told), len(told))
    return [*rows, (f"{label}: mean over {kinds}, by chance", mean)]
