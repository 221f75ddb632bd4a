"""`redlib train NAME`: a tiny checkpoint from nothing.

Four stages, each resumable (see `loop`): the tower on windows, the tower on whole scenes, the
features of the training scenes, projector and decoder. Work goes to `runs/train/NAME`; a finished
checkpoint is exported in the stock Hugging Face layout, weights in half precision and `dtype:
float32` in its config, since transformers would otherwise compute in the precision that a file
happens to be stored in.

    train("tiny-llava-1.5", Path("runs/train"))            # two to three hours on two cores
    train("tiny-llava-1.5", folder, share=0.01)             # one hundredth of each stage
"""

import copy
import json
from functools import partial
from pathlib import Path

import torch

from redlib.errors import RedlibError
from redlib.models import choose_device
from redlib.tabletop import architectures, decoder, evaluation, loop, tower
from redlib.tabletop.world import scenes

NAMES = ("tiny-llava-1.5",)
STEPS = {"tower-windows": 3000, "tower-scenes": 1200, "decoder": 3000}
TRAINING_SCENES = 5_000
TOWER_SEED, DECODER_SEED = 0, 1
CHECK_SCENES = 40


def train(
    name: str,
    folder: Path,
    *,
    device: str = "auto",
    share: float = 1.0,
    export_to: Path | None = None,
) -> Path:
    """Train a checkpoint, going on from where an earlier run of the same folder stopped.

    Args:
        name: one of NAMES.
        folder: work folder; the run lives in `folder/name`.
        share: fraction of every stage's steps and scenes, for trying things.
        export_to: where the checkpoint goes; default `folder/name/checkpoint`.

    Returns:
        the folder of the exported checkpoint.

    Raises:
        RedlibError: an unknown name.
    """
    if name not in NAMES:
        raise RedlibError(f"train knows {', '.join(NAMES)}; got {name!r}")
    work, where = Path(folder) / name, choose_device(device)
    processor = architectures.make_processor(name)
    model = architectures.make_model(name, processor.tokenizer).to(where)
    model.set_attn_implementation({"vision_config": "sdpa", "text_config": "sdpa"})
    steps = {stage: max(4, int(n * share)) for stage, n in STEPS.items()}
    checked = max(4, int(CHECK_SCENES * share))
    log = _train_tower(model, work, where, steps, checked)
    log += _train_decoder(
        model,
        processor,
        work,
        where,
        steps["decoder"],
        max(16, int(TRAINING_SCENES * share)),
        checked,
    )
    target = export_to or work / "checkpoint"
    export(model, processor, target)
    (target / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    return target


def _train_tower(
    model, work: Path, where: torch.device, steps: dict[str, int], checked: int
) -> list[dict]:
    vision = model.model.vision_tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TOWER_SEED)
        heads = tower.Heads(vision.config.hidden_size).to(where)
    tower.begin(vision)
    windows = tower.Windows(TOWER_SEED, where)
    modules = {"tower": vision, "heads": heads}

    def on_windows(step: int):
        side, size = (12, 28) if step % 4 == 3 else (8, 64)
        return tower.losses(vision, heads, windows.batch(step, size, side))

    def on_scenes(step: int):
        return tower.losses(vision, heads, windows.batch(steps["tower-windows"] + step, 8, 24))

    check = partial(tower.accuracy, vision, heads, where, images=checked)
    log = loop.run(
        loop.Stage("tower-windows", steps["tower-windows"]),
        work,
        modules,
        loss=on_windows,
        check=check,
        checks=15,
    )
    return log + loop.run(
        loop.Stage("tower-scenes", steps["tower-scenes"]),
        work,
        modules,
        loss=on_scenes,
        check=check,
        checks=5,
        rates=(0.008, 4e-4),
    )


def _train_decoder(
    model, processor, work: Path, where: torch.device, steps: int, n: int, checked: int
) -> list[dict]:
    vision = model.model.vision_tower
    vision.requires_grad_(False).eval()
    tower.rescale(vision, 1 / tower.spread(vision, where))
    writer = decoder.Writer(processor)
    features, cards = decoder.compute_features(model, work, n, where)
    decoder.begin(model, processor.tokenizer, features, cards)
    held_features, held_cards = decoder.compute_features(
        model, work, checked, where, split="calibration"
    )
    masked = scenes("calibration", checked // 2)
    lessons = decoder.Lessons(writer, features, cards, DECODER_SEED, where, steps)

    def check() -> dict[str, float]:
        held = (model, writer, held_features, held_cards)
        return {
            **decoder.accuracy(*held, where, tokens=576),
            **decoder.accuracy(*held, where, tokens=64),
            **decoder.single_tokens(model, writer, held_features, masked, where),
        }

    modules = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "head": model.lm_head,
    }
    return loop.run(
        loop.Stage("decoder", steps),
        work,
        modules,
        loss=lambda step: decoder.loss(model, writer, *lessons.batch(step)),
        check=check,
        checks=8,
        rates=(0.004, 3e-4),
    )


def export(model, processor, target: Path) -> None:
    """Write model and processor as stock files: fp16 weights, fp32 in the config."""
    target.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.generation_config.do_sample = False
    half.save_pretrained(target)
    processor.save_pretrained(target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(name: str, folder: Path) -> int:
    """Train, measure on held-out scenes, and write the model card beside the weights."""
    where = train(name, folder)
    log = json.loads((where / "training_log.json").read_text())
    table = evaluation.measure(str(where))
    evaluation.write_card(name, where, log, table)
    print(evaluation.table_text(table))
    print(where)
    return 0
