"""Pruning: score the visual tokens, keep some (section 4.2, Algorithm 2)."""

from redlib.prune.keep import calibrate, keep_lowest, keep_threshold
from redlib.prune.scores import codebook_bytes, operations, random_scores, redundancy

__all__ = [
    "calibrate",
    "codebook_bytes",
    "keep_lowest",
    "keep_threshold",
    "operations",
    "random_scores",
    "redundancy",
]
