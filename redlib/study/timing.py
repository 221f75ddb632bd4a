"""How long the study of 6,400 patches takes: the last row of `redlib bench`.

All experiments on 64 patches of a scene, as notebook 04 does them (`patches.measure`), on a few
scenes in one thread. The study takes 100 scenes, and two cores share them: the minutes are
projected from that, not measured.

    minutes()        # {"metric": "patch study ...", "value": minutes, "bar": 4, ...}
"""

import time

import numpy as np
import torch

from redlib.bench.speed import Row, product, row
from redlib.models import load
from redlib.params import ONE_WORD_PROMPT, PRESETS
from redlib.study.patches import START, measure, sample
from redlib.tabletop import scenes

STUDY = 100  # scenes of the whole study
PATCHES = 64
CORES = 2
BAR = 4.0  # minutes, where a product of 1,024 x 1,024 matrices reaches FAST GFLOP/s
FAST = 100.0


def minutes(*, images: int = 5) -> Row:
    """The row: minutes on two cores, projected from the CPU time of `images` scenes after one to
    warm up; low and high are the fastest and the slowest scene."""
    torch.set_num_threads(1)
    vlm = load("tiny-llava-1.5", device="cpu")
    preset = PRESETS["paper"]
    chosen = sample(vlm.grid, PATCHES)
    seconds = []
    for scene in scenes("test", images + 1, start=START):
        start = time.process_time()
        measure(
            vlm,
            scene,
            chosen,
            prompt=ONE_WORD_PROMPT,
            top_prob=preset["top_prob"],
            top_jsd=preset["top_jsd"],
            definition=preset["jsd_definition"],
            weights=[preset["k_region"], preset["k_global"]],
        )
        seconds.append(time.process_time() - start)
    share = STUDY / CORES / 60
    return row(
        f"study of {STUDY * PATCHES:,} patches, all experiments, projected minutes on {CORES} cores"
        f" (CPU time of {images} scenes x {STUDY} / {CORES})",
        share * float(np.mean(seconds[1:])),
        low=share * min(seconds[1:]),
        high=share * max(seconds[1:]),
        n=images,
        bar=BAR * max(1.0, FAST / product("cpu")),
        at_most=True,
    )
