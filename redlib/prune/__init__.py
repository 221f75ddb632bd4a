"""Pruning: score the visual tokens, keep some (section 4.2, Algorithm 2).

    with redlib.pruned(model, "codebook", keep=64, codebook=codebook):
        model.generate(**inputs)

`install` is that line, `methods` the list of what it can install; `context` says what a method may
look at, and `budget`, how many tokens stay. `scores` and `keep` are the same by hand, on tensors.
"""

from redlib.prune.install import Run, install, pruned, remove, threshold_for
from redlib.prune.keep import calibrate, keep_lowest, keep_threshold
from redlib.prune.method import Method
from redlib.prune.methods import METHODS
from redlib.prune.prepare import prepare
from redlib.prune.scores import codebook_bytes, operations, random_scores, redundancy

__all__ = [
    "METHODS",
    "Method",
    "Run",
    "calibrate",
    "codebook_bytes",
    "install",
    "keep_lowest",
    "keep_threshold",
    "operations",
    "prepare",
    "pruned",
    "random_scores",
    "redundancy",
    "remove",
    "threshold_for",
]
