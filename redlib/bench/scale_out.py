"""Whether two workers do twice the work of one: probe and cascade on `redlib.scale`.

Two processes are never quite twice as fast as one: they share memory, caches and, under load, the
cores themselves. So the speed-up is read beside that of two bare processes that multiply matrices.
Where those do not reach MATMUL_BAR, or in any round stray from what two processes can do (STEADY),
the machine is too small or too busy to decide.

    row(pairs=7)    # {"metric": "two workers over one ...", "value": ..., "pass": True}

Each round measures all four, one after another: one process and two workers on the same images,
one process and two on matrices. One thread each, everything loaded beforehand.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redlib import leave_one_out, probe
from redlib.models import load
from redlib.params import ONE_WORD_PROMPT
from redlib.scale import Workers
from redlib.store import Store
from redlib.tabletop import scenes

BAR, MATMUL_BAR = 1.7, 1.85
STEADY = (1.6, 2.2)
SIDE = 1024  # of the matrices, float32


def row(*, pairs: int = 7, images: int = 6, patches: int = 64, seconds: float = 2.0) -> dict:
    """The row of bench.json: metric, value, low, high, n, bar, pass; and matmul, of bare processes.

    pairs: rounds. images, patches: of one measurement of the probes. seconds: of one measurement of
    the matrices. value is the median over the rounds, low and high are the extremes; pass is None
    where the machine does not decide.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = Workers(2)
    try:
        rounds = _rounds(workers, pairs, images, patches, seconds)
    finally:
        workers.close()
        torch.set_num_threads(threads)
    return judged([probes for probes, _ in rounds], [bare for _, bare in rounds])


def judged(probes: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """The row of some rounds' speed-ups, of the probe and of bare processes."""
    value, matmul = statistics.median(probes), statistics.median(bare)
    steady = all(STEADY[0] <= ratio <= STEADY[1] for ratio in bare)
    return {
        "metric": f"two workers over one (the median of {len(probes)} rounds decides)",
        "value": value,
        "low": min(probes),
        "high": max(probes),
        "n": len(probes),
        "bar": BAR,
        "pass": value >= BAR if steady and matmul >= MATMUL_BAR else None,
        "matmul": matmul,
    }


def _rounds(
    workers: Workers, pairs: int, images: int, patches: int, seconds: float
) -> list[tuple[float, float]]:
    """Speed-ups of the probe and of bare processes, one pair a round."""
    vlm = load("tiny-llava-1.5", device="cpu")
    drawn = {scene.id: scene for scene in scenes("test", images)}
    chosen = np.linspace(0, vlm.grid.size - 1, patches).astype(int)

    def measure(name: str):
        tokens = vlm.encode([drawn[name].image]).tokens[0]
        alone = probe.single(vlm, tokens, chosen, prompt=ONE_WORD_PROMPT)
        return alone.merge(leave_one_out.cascade(vlm, tokens, chosen, prompt=ONE_WORD_PROMPT))

    def took(folder: str, several: Workers | None) -> float:
        start = time.perf_counter()
        Store(Path(folder), {}, workers=several).compute(drawn, measure, describe="images")
        return time.perf_counter() - start

    found = []
    for number in range(pairs + 1):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            speedup = took(one, None) / took(two, workers)
        alone, both = (
            sum(rate for _, rate in workers.each(_Products(seconds), range(count)))
            for count in (1, 2)
        )
        if number:  # the first round loads the models and warms the caches
            found.append((speedup, both / alone))
    return found


class _Products:
    """A call that multiplies matrices for some seconds and tells how many a second it did."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, number: int) -> float:
        rng = np.random.default_rng(number)
        a, b = rng.random((2, SIDE, SIDE), dtype=np.float32)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds:
            a @ b
            done += 1
        return done / (time.perf_counter() - start)
