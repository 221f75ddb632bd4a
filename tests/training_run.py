"""A part of the training, from nothing to the export: a hundredth of every stage of tiny-llava-1.5,
a thousandth, from which tiny-llava-next goes on, and a few steps of every stage of
tiny-llava-onevision.

The hundredth takes two minutes of two cores: the whole takes some hours.
"""

import copy
import json
import time

import numpy as np
import pytest
import torch
import transformers

from redlib.errors import RedlibError
from redlib.store import read_json
from redlib.tabletop import decoder, lessons, lessons_several, loop, training

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


def test_a_thousandth_of_the_training_runs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "WARM_UP", 1)  # a few steps, but at full rates
    monkeypatch.setattr(lessons, "SCENES", {"rich": 3, "few": 3, "more": 2, "all": 1})
    once = dict.fromkeys(training.CHECKS, 1)
    monkeypatch.setattr(training, "CHECKS", once | {"decoder": 2})
    where = training.train("tiny-llava-1.5", tmp_path, device="cpu", share=0.001)
    log = json.loads((where / "training_log.json").read_text())
    assert {row["stage"] for row in log} == {"tower-windows", "tower-scenes", "decoder"}
    answers = [row["answers"] for row in log if row["stage"] == "decoder"]
    assert answers[-1] < answers[0]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(where)
    assert model.dtype == torch.float32
    with pytest.raises(RedlibError, match="another recipe .share changed"):
        training.train("tiny-llava-1.5", tmp_path, device="cpu", share=0.002)
    monkeypatch.setattr(training, "CHECKS", once)
    following = training.train("tiny-llava-next", tmp_path, device="cpu", share=0.001)
    log = json.loads((following / "training_log.json").read_text())
    assert {row["stage"] for row in log} == {"decoder"}
    assert all(0 <= row["colour, split of tiles"] <= 1 for row in log)
    begun, went = (
        transformers.AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        for folder in (where, following)
    )
    assert "model.image_newline" in went and "model.image_newline" not in begun
    moved = {key for key, value in begun.items() if not torch.equal(value, went[key])}
    assert moved and not any("vision_tower" in key for key in moved)
    state = torch.load(tmp_path / "tiny-llava-next" / "decoder.pt", weights_only=True)["modules"]
    for key, last in state["projector"].items():  # exported: the mean of first and last
        name = f"model.multi_modal_projector.{key}"
        mean = (begun[name].double() + last.double()) / 2
        assert torch.allclose(went[name].double(), mean, rtol=1e-3, atol=1e-6), "stored as fp16"
    assert torch.equal(went["model.image_newline"], state["newline"]["newline"].half().float())


def test_a_small_part_of_onevisions_training_runs_end_to_end(tmp_path, monkeypatch):
    kinds = {kind: (4, *rest) for kind, (_, *rest) in training.ONEVISION.items()}
    monkeypatch.setattr(training, "ONEVISION", kinds)
    monkeypatch.setattr(training, "CHECKS", dict.fromkeys(training.CHECKS, 1))
    monkeypatch.setattr(loop, "WARM_UP", 2)
    monkeypatch.setattr(decoder, "COMPARED", 1)
    monkeypatch.setattr(lessons_several, "LENGTH", 500)
    monkeypatch.setattr(lessons_several, "FRAMES", dict.fromkeys(lessons_several.FRAMES, (2, 3)))
    monkeypatch.setattr(lessons, "SCENES", {"rich": 3, "few": 3, "more": 2, "all": 1})
    before, begun, plain = {}, {}, lessons.Lessons.batch

    def watched(taught, model, step):
        found = plain(taught, model, step)
        if "last" in before and before["last"][0] is not taught:  # another stage
            before.clear()
        if not before:
            begun.update(copy.deepcopy(model.model.language_model.state_dict()))
        with torch.no_grad():
            before[step] = float(decoder.loss(model, taught.writer, *found)[0])
        before["last"] = taught, model
        return found

    monkeypatch.setattr(lessons.Lessons, "batch", watched)
    where = training.train("tiny-llava-onevision", tmp_path, device="cpu", share=0.004)
    log = json.loads((where / "training_log.json").read_text())
    assert {row["stage"] for row in log} == {
        "tower-windows",
        "tower-scenes",
        "decoder",
        "several",
        "films",
        "together",
        "changes",
        "finish",
        "polish",
        "movers",
        "settle",
    }
    assert {"patch thing", "mantis", "muir", "films", "pope-random@729"} <= {
        key for row in log for key in row
    }
    (taught, model), losses = before.pop("last"), list(before.values())
    assert log[-1]["step"] == len(losses) == 7
    with torch.no_grad():  # of the same steps again, as they differ in what they ask
        after = [
            float(decoder.loss(model, taught.writer, *plain(taught, model, step))[0])
            for step in range(len(losses))
        ]
    assert np.mean(after) < np.mean(losses)
    dense = [row["dense"] for row in log if "dense" in row]
    assert dense[-1] < dense[0]
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(where)
    assert model.dtype == torch.float32
    together, finish, polish, movers, settle = (
        torch.load(tmp_path / "tiny-llava-onevision" / f"{stage}.pt", weights_only=True)["modules"][
            "decoder"
        ]
        for stage in ("together", "finish", "polish", "movers", "settle")
    )
    exported = model.model.language_model.state_dict()
    went = [key for key in begun if not torch.equal(polish[key], movers[key])]
    for key in went:  # each of these stages began with a mean, and the last ended in one
        mean = (together[key].double() + finish[key].double()) / 2
        for later in (polish, movers):
            mean = (mean + later[key].double()) / 2
        assert torch.allclose(begun[key].double(), mean, rtol=1e-5, atol=1e-8)
        mean = (mean + settle[key].double()) / 2
        assert torch.allclose(exported[key].double(), mean, rtol=1e-3, atol=1e-6), "stored as fp16"
    assert len(went) > 20
