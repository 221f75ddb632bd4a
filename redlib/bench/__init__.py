"""Benchmarks: answers to many questions, the official metrics, intervals (section 5).

A number in a table of pruning methods takes three steps, and each can be had by itself. *Answers*:
`evaluation` asks about images of which a method leaves some tokens, a row per question (`looking`
does so under many methods at once). *Verdicts*: `metrics` reads each answer as the benchmark's own
script would; whoever counts by another rule gets another number. *Intervals*: drawn over images,
because questions about one image fail together.

    frame = evaluate(vlm, tokens_by_image, questions, keep_all)      # a row per question
    accuracy(frame)                                                  # with 95 % intervals

What `redlib bench` measures, time, memory and exactness, lies here too: `speed`, `pruned`,
`scale_out` and `lazy`.
"""

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
