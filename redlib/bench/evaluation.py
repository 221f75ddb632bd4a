"""The evaluation loop: a method, a budget, many questions, one tidy row per answer.

    def ours(image: str, tokens: torch.Tensor) -> torch.Tensor:      # (L, D) -> (L,) bool
        return keep_lowest(redundancy(tokens, codebook), 64)

    frame = evaluate(vlm, tokens_by_image, questions, ours, method="ours")
    accuracy(frame)

A method sees the visual tokens of one image and says which stay; it does not see the question, so
all questions about an image share its kept set and its prefix (`answering`). Each row keeps what
was asked, what was said and how many visual tokens were there, so that every table and interval is
computed from rows and never from stored means.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import pandas as pd
import torch
from tqdm.auto import tqdm

from redlib.bench.answering import answers
from redlib.bench.letters import circular
from redlib.bench.metrics import is_correct
from redlib.errors import RedlibError
from redlib.models import VLM

KeepRule = Callable[[str, torch.Tensor], torch.Tensor]


class Asked(Protocol):
    """What the loop reads of a question; the world's and the benchmarks' records have more."""

    task: str
    image: str
    text: str
    answer: str
    group: str
    asked: int


def keep_all(image: str, tokens: torch.Tensor) -> torch.Tensor:
    """The unpruned baseline, (L,) bool: every visual token stays."""
    return torch.ones(len(tokens), dtype=torch.bool)


def keep_none(image: str, tokens: torch.Tensor) -> torch.Tensor:
    """The blind baseline, (L,) bool: the model sees no visual token and can only guess."""
    return torch.zeros(len(tokens), dtype=torch.bool)


def evaluate(
    vlm: VLM,
    tokens_by_image: Mapping[str, torch.Tensor],
    questions: Sequence[Asked],
    keep: KeepRule = keep_all,
    *,
    method: str = "all",
    max_new_tokens: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer all questions with the tokens that `keep` leaves, and judge the answers.

    Args:
        vlm: the model.
        tokens_by_image: (L, D) visual tokens of every image asked about.
        questions: in any order; questions about one image are answered together.
        keep: called once per image with its name and tokens; returns the mask (L,) of what stays.
        method: name written in every row.
        max_new_tokens: longest answer.
        progress: show a bar.

    Returns:
        One row per question, in the order of `questions`: method, task, image, group, asked,
        question, gold, answer, correct (bool, by the benchmark's own unit: see `letters.circular`),
        kept (number of visual tokens).

    Raises:
        RedlibError: an image has no tokens, or a mask has another length than the tokens.
    """
    rows_of: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows_of.setdefault(question.image, []).append(row)
    said: list[str] = [""] * len(questions)
    kept: list[int] = [0] * len(questions)
    for image, rows in tqdm(rows_of.items(), desc=method, disable=not progress, leave=False):
        if image not in tokens_by_image:
            raise RedlibError(f"no visual tokens for image {image!r}, which a question asks about")
        tokens = tokens_by_image[image]
        mask = torch.as_tensor(keep(image, tokens))
        if mask.shape != tokens.shape[:1] or mask.dtype != torch.bool:
            raise RedlibError(
                f"{method!r} must keep by a boolean mask ({len(tokens)},); "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        texts = [questions[row].text for row in rows]
        found = answers(vlm, tokens[mask.to(tokens.device)], texts, max_new_tokens=max_new_tokens)
        for row, text in zip(rows, found, strict=True):
            said[row], kept[row] = text, int(mask.sum())
    frame = pd.DataFrame(
        {
            "method": method,
            "task": [q.task for q in questions],
            "image": [q.image for q in questions],
            "group": [q.group for q in questions],
            "asked": [q.asked for q in questions],
            "question": [q.text for q in questions],
            "gold": [q.answer for q in questions],
            "answer": said,
            "correct": [
                is_correct(q.task, text, q.answer, question=q.text)
                for q, text in zip(questions, said, strict=True)
            ],
            "kept": kept,
        }
    )
    return frame.assign(correct=circular(frame))
