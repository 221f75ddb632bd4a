"""Benchmarks: answers to many questions, the official metrics, intervals (section 5)."""

from redlib.bench.answering import answers
from redlib.bench.evaluation import evaluate, keep_all, keep_none
from redlib.bench.intervals import Interval, accuracy, difference, interval
from redlib.bench.letters import choice_letter, circular, mmbench
from redlib.bench.metrics import RULE_OF, RULES, is_correct
from redlib.bench.pope_mme import POPE_SUBSETS, mme, pope, yes_no
from redlib.bench.several import mvbench
from redlib.bench.words import exact_match, normalise

__all__ = [
    "POPE_SUBSETS",
    "RULES",
    "RULE_OF",
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
    "mmbench",
    "mme",
    "mvbench",
    "normalise",
    "pope",
    "yes_no",
]
