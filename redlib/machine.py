"""How many cores there are, and how fast they are just now.

Times say little without the machine that they were taken on, and on a shared one little without the
hour. So a notebook's seconds are noted with those of a matrix product right before it.
"""

import os
import time

import numpy as np


def calibration_seconds(size: int = 1024, repeats: int = 5) -> float:
    """Best time of a size x size float32 matrix product: how fast, or how busy, this machine is."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, size, size), dtype=np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def cores() -> int:
    """The cores that this process may use, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)
