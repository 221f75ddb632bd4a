"""One hundredth of every stage of tiny-llava-1.5's training, from nothing to the export.

It takes two minutes of two cores: the whole takes some hours.
"""

import time

from redlib.store import read_json
from redlib.tabletop import loop, training

LOSSES = {"tower-windows": "dense", "tower-scenes": "dense", "decoder": "answers"}


def test_the_loss_falls_in_a_hundredth_of_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "WARM_UP", 1)  # a hundredth's steps would not leave it
    begun, spent = time.perf_counter(), time.process_time()
    where = training.train("tiny-llava-1.5", tmp_path, device="cpu", share=0.01)
    with capsys.disabled():
        print(
            f"\na hundredth of the training: {time.perf_counter() - begun:.0f} s, "
            f"{time.process_time() - spent:.0f} s of processor time"
        )
    log = read_json(where / training.LOG)
    assert LOSSES.keys() == training.STEPS["tiny-llava-1.5"].keys()
    for stage, loss in LOSSES.items():
        steps = [row["step"] for row in log if row["stage"] == stage]
        assert steps[-1] == training.STEPS["tiny-llava-1.5"][stage] // 100
        values = [row[loss] for row in log if row["stage"] == stage]
        half = len(values) // 2
        assert sum(values[-half:]) < sum(values[:half]), stage
