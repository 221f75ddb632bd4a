"""Which criteria the codebook needs (section 5.4, Table 3), and what codebooks are judged by.

Table 3 takes one criterion away after the other and asks how much of the unpruned model's score is
left. Several codebooks answer the same questions about the same test images, all keeping as many
tokens, so that a difference between two of them is a paired one:

    books = codebooks.ablation_codebooks(session, table, criteria, images)
    answers = judge(session, "table-3", ablated(books), draws=3, limit=24)

What the answers are worth, and the rows of the table, is `study.judged`.
"""

from collections.abc import Mapping

import pandas as pd
import torch

from redlib.bench import evaluate, keep_all
from redlib.bench.looking import UNPRUNED
from redlib.codebook import Codebook
from redlib.data import benchmarks, prompts
from redlib.models import VLM
from redlib.notebook import Session
from redlib.prune import keep_lowest, random_scores, redundancy
from redlib.stages import Built
from redlib.study.asking import JUDGED, exam, identity
from redlib.study.codebooks import SCORED_AT

RANDOM, NOTHING = "random", "nothing"

CODE = (
    "bench", "memory", "models", "pictures", "prune", "study/ablation", "study/asking",
    "tabletop/questions",
)  # fmt: skip


def ablated(built: Mapping[str, Built | None]) -> dict[str, Codebook | None]:
    """The codebooks of Table 3 by what is left out, as the paper's table names its rows: "nothing",
    a threshold, or "images".

    built: rows of `codebooks.ablation_codebooks`.
    """
    names = [NOTHING, "tau_prob", "tau_jsd", "tau_out", "tau_in", "images"]
    return {
        name: None if one is None else one.codebook
        for name, one in zip(names, built.values(), strict=True)
    }


def kept_tokens(session: Session) -> int:
    """Tokens that every codebook keeps: 64, or half of a smaller grid."""
    return min(SCORED_AT, session.model.grid.size // 2)


def judge(
    session: Session,
    kind: str,
    books: Mapping[str, Codebook | None],
    *,
    draws: int,
    limit: int,
) -> pd.DataFrame:
    """Answers to `limit` questions of each of the five tasks about the first test images.

    Args:
        kind: name of the resumable table.
        books: codebooks by name; None, where there is no prototype, is left out.
        draws: random subsets beside them.
        limit: as in `asking.ask`.

    Returns the columns of `bench.evaluate` with `seed`: methods "unpruned", "random" (seeds 0 ..
    draws - 1) and those of `books`, one row per method, seed and question. Codebooks that keep the
    same tokens of an image are asked once.
    """
    p, vlm = session.params, session.model
    found, questions = exam(p, limit)
    session.asked += benchmarks.named(p)
    drawn = {scene.id: scene for scene in found}
    about: dict[str, list] = {}
    for question in questions:
        about.setdefault(question.image, []).append(question)
    books = {name: book for name, book in books.items() if book is not None}
    keep, longest = kept_tokens(session), JUDGED if p.data == "tabletop" else prompts.LONGEST
    store = session.store(
        kind,
        code=CODE,
        questions=limit,
        books={name: book.digest for name, book in books.items()},
        draws=draws,
        tokens=keep,
        seed=p.seed,
        **identity(p, questions, found),
    )

    def measure(name: str) -> pd.DataFrame:
        tokens = vlm.encode([drawn[name].image]).tokens[0]
        masks = {(UNPRUNED, 0): keep_all(name, tokens)}
        for seed in range(draws):
            scores = random_scores(len(tokens), [p.seed + seed, *name.encode()])
            masks[RANDOM, seed] = keep_lowest(scores, keep)
        for method, book in books.items():
            masks[method, 0] = keep_lowest(redundancy(tokens, book), keep).cpu()
        said: dict[bytes, pd.DataFrame] = {}
        frames = []
        for (method, seed), mask in masks.items():
            same = mask.numpy().tobytes()
            if same not in said:
                said[same] = _ask(vlm, name, tokens, about[name], mask, longest)
            frames.append(said[same].assign(method=method, seed=seed))
        return pd.concat(frames, ignore_index=True)

    return store.compute(about, measure, describe="images")


def _ask(
    vlm: VLM, name: str, tokens: torch.Tensor, questions: list, mask: torch.Tensor, longest: int
) -> pd.DataFrame:
    return evaluate(
        vlm, {name: tokens}, questions, lambda *_: mask, max_new_tokens=longest, progress=False
    )
