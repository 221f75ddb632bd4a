"""Benchmarks: answers to many questions, the official metrics, intervals (section 5)."""

from redlib.bench.answering import answers
from redlib.bench.evaluation import evaluate, keep_all, keep_none
from redlib.bench.intervals import Interval, accuracy, difference, interval
from redlib.bench.metrics import (
    POPE_SUBSETS,
    choice_letter,
    circular,
    exact_match,
    is_correct,
    mme,
    normalise,
    pope,
    yes_no,
)

__all__ = [
    "POPE_SUBSETS",
    "Interval",
    "accuracy",
    "answers",
    "choice_letter",
    "circular",
    "difference",
    "evaluate",
    "exact_match",
    "interval",
    "is_correct",
    "keep_all",
    "keep_none",
    "mme",
    "normalise",
    "pope",
    "yes_no",
]
