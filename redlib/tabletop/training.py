"""`redlib train NAME`: a tiny checkpoint from nothing.

Four stages, each resumable (see `loop`): the tower on windows, the tower on whole scenes, the
features of the training scenes, projector and decoder. Work goes to `runs/train/NAME`; a finished
checkpoint is exported in the stock Hugging Face layout, weights in half precision and `dtype:
float32` in its config, since transformers would otherwise compute in the precision that a file
happens to be stored in.

    train("tiny-llava-1.5", Path("runs/train"))            # two to three hours on two cores
    train("tiny-llava-1.5", folder, share=0.01)             # one hundredth of each stage
    train("tiny-llava-1.5", folder, plain=True)             # a tower without labels of patches

A folder goes on only with the recipe it was begun with: `recipe.json` holds that, and what differs
is an error that names it.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import torch

from redlib.errors import RedlibError
from redlib.models import choose_device
from redlib.tabletop import card, decoder, evaluation, language, lessons, loop, sources, tower
from redlib.tabletop.world import scenes

NAMES = ("tiny-llava-1.5",)
STEPS = {"tower-windows": 3000, "tower-scenes": 1200, "decoder": 3000}
TRAINING_SCENES = 5_000
RECIPE = (
    "world", "questions", "language", "tower", "sources", "lessons", "decoder", "loop", "training",
)  # fmt: skip
TOWER_SEED, DECODER_SEED = 0, 1
CHECK_SCENES = 40


def train(
    name: str,
    folder: Path,
    *,
    device: str = "auto",
    share: float = 1.0,
    plain: bool = False,
) -> Path:
    """Train a checkpoint, going on from where an earlier run of the same folder stopped.

    Args:
        name: one of NAMES.
        folder: work folder; the run lives in `folder/name`.
        share: fraction of every stage's steps and scenes, for trying things.
        plain: the ablation: the tower learns from captions alone, as CLIP does, without labels of
            patches. The decoder's words still begin with the mean features of labelled patches.

    Returns:
        the folder of the exported checkpoint.

    Raises:
        RedlibError: an unknown name, or the folder was begun with another recipe.
    """
    if name not in NAMES:
        raise RedlibError(f"train knows {', '.join(NAMES)}; got {name!r}")
    work = Path(folder) / (f"{name}-plain" if plain else name)
    where = choose_device(device)
    _same_recipe(work, share)
    processor = language.make_processor()
    model = language.make_model(processor.tokenizer).to(where)
    model.set_attn_implementation({"vision_config": "sdpa", "text_config": "sdpa"})
    steps = {stage: max(4, int(n * share)) for stage, n in STEPS.items()}
    checked = max(4, int(CHECK_SCENES * share))
    log = _train_tower(model, work, where, steps, checked, plain)
    log += _train_decoder(
        model,
        processor,
        work,
        where,
        steps["decoder"],
        max(16, int(TRAINING_SCENES * share)),
        checked,
    )
    target = work / "checkpoint"
    export(model, processor, target)
    (target / card.LOG).write_text(json.dumps(log, indent=1) + "\n")
    return target


def _same_recipe(work: Path, share: float) -> None:
    """Write down what a work folder is trained with, or refuse to go on with something else."""
    code = {
        module: hashlib.sha256((Path(__file__).parent / f"{module}.py").read_bytes()).hexdigest()
        for module in RECIPE
    }
    recipe = {"share": share, "steps": STEPS, "scenes": TRAINING_SCENES, **code}
    path = work / "recipe.json"
    if path.exists():
        begun = json.loads(path.read_text())
        differs = [key for key in recipe if begun.get(key) != recipe[key]]
        if differs:
            raise RedlibError(
                f"{work} was begun with another recipe ({', '.join(differs)} changed): move it "
                "away, or go on with the code it was begun with"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(recipe, indent=1) + "\n")
    temporary.replace(path)


def _train_tower(
    model, work: Path, where: torch.device, steps: dict[str, int], checked: int, plain: bool
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
        return tower.losses(vision, heads, windows.batch(step, size, side), dense=not plain)

    def on_scenes(step: int):
        batch = windows.batch(steps["tower-windows"] + step, 8, 24)
        return tower.losses(vision, heads, batch, dense=not plain)

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
    writer = lessons.Writer(processor)
    source = sources.images(model, work, n, where)
    decoder.begin(model, processor.tokenizer, source)
    held = sources.images(model, work, checked, where, split="calibration")
    masked = scenes("calibration", checked // 2)
    early = int(lessons.EARLY_SHARE * steps)
    steps_of = lessons.Lessons(writer, [(source, 1.0)], DECODER_SEED, where, early)

    def check() -> dict[str, float]:
        return {
            **decoder.accuracy(model, writer, held, where, tokens=576),
            **decoder.accuracy(model, writer, held, where, tokens=64),
            **decoder.single_tokens(model, writer, held, masked, where),
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
        loss=lambda step: decoder.loss(model, writer, *steps_of.batch(model, step)),
        check=check,
        checks=8,
        rates=(0.004, 3e-4),
    )


def export(model, processor, target: Path) -> None:
    """Write model and processor as stock files: fp16 weights, fp32 in the config."""
    target.mkdir(parents=True, exist_ok=True)
    half = language.make_model(processor.tokenizer).half()
    half.load_state_dict({k: v.half() for k, v in model.state_dict().items()})
    half.generation_config.do_sample = False
    half.save_pretrained(target)
    processor.save_pretrained(target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(name: str, folder: Path, *, plain: bool = False) -> int:
    """Train, measure on held-out scenes, and write the model card beside the weights."""
    where = train(name, folder, plain=plain)
    table = evaluation.measure(str(where))
    card.write(name, where, table)
    print(card.table_text(table))
    print(where)
    return 0
