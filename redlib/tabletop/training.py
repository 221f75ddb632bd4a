"""`redlib train NAME`: a tiny checkpoint.

tiny-llava-1.5 is trained from nothing in four stages, each resumable (see `loop`): the tower on
windows, the tower on whole scenes, the features of the training scenes, projector and decoder.
tiny-llava-next begins as tiny-llava-1.5, the one trained beside it or else the shipped one, and
goes on on base tiles alone and on images of twice the sides with their four tiles; what is exported
is the mean of the weights it began with and those it ended with.
tiny-llava-onevision begins as it too, its tower as far as CLIP and SigLIP allow; the tower is
trained on, then projector and decoder on images, on two images, on composites and on films; what is
exported is four times a mean of earlier weights and later ones (`HALFWAY`).

Work goes to `runs/train/NAME`, or `train/NAME` in the folder that REDLIB_RUNS names; a finished
checkpoint is exported in the stock Hugging Face layout, weights in half precision and `dtype:
float32` in its config, since transformers would otherwise compute in the precision that a file
happens to be stored in. The command then measures it and writes its model card, which is
`redlib.modelcard`'s part.

    train("tiny-llava-1.5", Path("runs/train"))            # 2.5 hours on two cores
    train("tiny-llava-1.5", folder, share=0.01)             # one hundredth of each stage
    train("tiny-llava-1.5", folder, plain=True)             # a tower without labels of patches

A folder goes on only with the recipe it was begun with: `recipe.json` holds that, and what differs
is an error that names it. Beside the exported weights the same is `training_recipe.json`.
"""

import copy
import hashlib
import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from redlib import models
from redlib.errors import RedlibError, first_line
from redlib.models import choose_device
from redlib.store import read_mapping, write_json, writing
from redlib.tabletop import (
    architectures,
    decoder,
    lessons,
    lessons_several,
    loop,
    marks,
    sources,
    tower,
)
from redlib.tabletop.architectures import NAMES
from redlib.tabletop.lessons import Course
from redlib.tabletop.sources import Source
from redlib.tabletop.world import scenes

STEPS = {
    "tiny-llava-1.5": {"tower-windows": 3000, "tower-scenes": 1400, "decoder": 4500},
    "tiny-llava-next": {"decoder": 900},
    "tiny-llava-onevision": {
        "tower-windows": 500, "tower-scenes": 250, "decoder": 2000, "several": 1100, "films": 1400,
        "together": 3300, "changes": 400, "finish": 2000, "polish": 2200, "movers": 2200,
        "settle": 1900,
    },
}  # fmt: skip
TRAINING_SCENES = 5_000
TILED_SCENES, TILED_SHARE = 1_200, 0.6  # of Next's steps, on images in tiles
STRETCHED = (0, 1, 1, 1, 2, 2)
ONEVISION = {
    # kind: inputs; what a step does, and for films which positions tokens keep (`Course`), as they
    # are evaluated at 32 frames too; its shares of the steps of each of DECODER_STAGES
    "images": (2_000, (lessons.on_scenes,), (0.4, 0.15, 0.2, 0.38, 0.1, 0.5, 0.38, 0.22, 0.4)),
    "mantis": (
        3_000, (lessons_several.on_pairs,), (0.13, 0.4, 0.08, 0.14, 0.08, 0.11, 0.13, 0.07, 0.1)
    ),
    "muir": (
        3_000, (lessons_several.on_pairs,), (0.12, 0.4, 0.07, 0.14, 0.07, 0.11, 0.13, 0.07, 0.1)
    ),
    "busy": (2_000, (lessons_several.on_pairs,), (0, 0, 0, 0, 0.55, 0.11, 0.17, 0.04, 0.08)),
    "composites": (
        400, (lessons_several.on_composites,), (0.1, 0, 0, 0.02, 0, 0.01, 0.01, 0, 0.01)
    ),
    "films": (
        800, (lessons_several.on_films, STRETCHED),
        (0.25, 0.05, 0.2, 0.12, 0, 0.05, 0.06, 0.15, 0.09),
    ),
    "busy films": (
        800, (lessons_several.on_films, STRETCHED),
        (0, 0, 0.45, 0.2, 0.2, 0.11, 0.12, 0.45, 0.22),
    ),
}  # fmt: skip
DECODER_STAGES = {  # share of early steps (`lessons.EARLY`), peak learning rates of Muon and AdamW
    "decoder": (lessons.EARLY_SHARE, (0.004, 3e-4)),
    "several": (0.8, (0.01, 1e-3)),  # with the marks: two images, as fast as can be
    "films": (0.9, (0.01, 1e-3)),  # then films
    "together": (0.5, (0.004, 4e-4)),  # then all kinds
    "changes": (0.85, (0.01, 1e-3)),  # two images, and films, of which most objects change
    "finish": (0.5, (0.004, 4e-4)),  # and all kinds again, half of it single images
    "polish": (0.5, (0.004, 4e-4)),  # and once more, more of it about two images
    "movers": (0.6, (0.006, 6e-4)),  # and films once more, most of them full of movers
    "settle": (0.4, (0.004, 4e-4)),  # and all kinds a last time
}
# Behind it, the mean with those behind that.
HALFWAY = {"finish": "together", "polish": "finish", "movers": "polish", "settle": "movers"}
MARKED = 60  # images that the marks are set by
RATES = {  # peak learning rates of Muon and AdamW; a trained tower is trained on with care
    "tiny-llava-1.5": {"tower-windows": loop.RATES, "tower-scenes": (0.008, 6e-4)},
    "tiny-llava-onevision": {"tower-windows": (0.01, 1e-3), "tower-scenes": (0.006, 6e-4)},
}
RECIPE = (
    "world", "questions", "pairs", "films", "language", "architectures", "tower", "sources",
    "lessons", "lessons_several", "decoder", "marks", "loop", "training",
)  # fmt: skip
TOWER_SEED, DECODER_SEED = 0, 1
CHECK_SCENES = 40
CHECKS = {  # times in a stage
    "tower-windows": 15, "tower-scenes": 7, "decoder": 8, "several": 6, "films": 5, "together": 5,
    "changes": 2, "finish": 4, "polish": 4, "movers": 4, "settle": 4,
}  # fmt: skip
CHECKED_TILED = ("pope-adversarial", "seed", "colour", "word")
# Beside the weights; the model card (`redlib.modelcard`) tells of both.
LOG, RECORD = "training_log.json", "training_recipe.json"


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
        plain: the ablation of tiny-llava-1.5: the tower learns from captions alone, as CLIP does,
            without labels of patches. The decoder's words still begin with the mean features of
            labelled patches.

    Returns:
        the folder of the exported checkpoint.

    Raises:
        RedlibError: an unknown name, `plain` for another checkpoint, the folder was begun with
            another recipe, or a file in it is damaged or cannot be written.
    """
    if name not in NAMES:
        raise RedlibError(f"train knows {', '.join(NAMES)}; got {name!r}")
    if plain and name != NAMES[0]:
        raise RedlibError(f"plain is an ablation of {NAMES[0]}'s tower; got {name!r}")
    work = Path(folder) / (f"{name}-plain" if plain else name)
    where = choose_device(device)
    recipe = _same_recipe(work, name, share, plain)
    processor = architectures.make_processor(name)
    model = architectures.make_model(name, processor.tokenizer).to(where)
    model.set_attn_implementation({"vision_config": "sdpa", "text_config": "sdpa"})
    steps = {stage: max(4, int(n * share)) for stage, n in STEPS[name].items()}
    checked = max(4, int(CHECK_SCENES * share))
    n = max(16, int(TRAINING_SCENES * share))
    writer = lessons.Writer(processor)
    if name == "tiny-llava-next":
        known = _first(Path(folder), where).model
        _begin_next(model, known)
        most = max(16, int(TILED_SCENES * share))
        log = _train_next(model, writer, work, where, steps["decoder"], n, most, checked)
        _halfway(model, known.state_dict())
    elif name == "tiny-llava-onevision":
        known = _first(Path(folder), where)
        tower.adopt(model.model.vision_tower, known.model.model.vision_tower)
        log = _train_tower(model, work, where, steps, RATES[name], checked)
        decoder.go_on(model, processor.tokenizer, known)
        log += _train_onevision(model, writer, work, where, steps, share, checked)
    else:
        tower.begin(model.model.vision_tower)
        log = _train_tower(model, work, where, steps, RATES[name], checked, plain=plain)
        log += _train_decoder(model, writer, work, where, steps["decoder"], n, checked)
    target = work / "checkpoint"
    export(model, processor, target)
    write_json(target / LOG, log)
    write_json(target / RECORD, recipe)
    return target


def _same_recipe(work: Path, name: str, share: float, plain: bool) -> dict:
    """Write down what a work folder is trained with, or refuse to go on with something else."""
    code = {
        module: hashlib.sha256((Path(__file__).parent / f"{module}.py").read_bytes()).hexdigest()
        for module in RECIPE
    }
    told = {"name": name, "plain": plain, "share": share}
    recipe = {**told, "steps": STEPS[name], "scenes": TRAINING_SCENES, **code}
    path = work / "recipe.json"
    if path.exists():
        begun = read_mapping(path)
        differs = [key for key in recipe if begun.get(key) != recipe[key]]
        if differs:
            raise RedlibError(
                f"{work} was begun with another recipe ({', '.join(differs)} changed): move it "
                "away, or go on with the code it was begun with"
            )
    else:
        write_json(path, recipe)
    return recipe


def _train_tower(
    model,
    work: Path,
    where: torch.device,
    steps: dict[str, int],
    rates: dict[str, tuple[float, float]],
    checked: int,
    *,
    plain: bool = False,
) -> list[dict]:
    vision = model.model.vision_tower
    sight = tower.sight(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TOWER_SEED)
        heads = tower.Heads(vision.config.hidden_size, sight.cells).to(where)
    windows = tower.Windows(TOWER_SEED, where, sight)
    modules = {"tower": vision, "heads": heads}

    def on_windows(step: int):
        side, size = (12, 28) if step % 4 == 3 else (8, 64)
        return tower.losses(vision, heads, windows.batch(step, size, side), dense=not plain)

    def on_scenes(step: int):
        batch = windows.batch(steps["tower-windows"] + step, 8, sight.cells)
        return tower.losses(vision, heads, batch, dense=not plain)

    check = partial(tower.accuracy, vision, heads, where, images=checked)
    log = loop.run(
        loop.Stage("tower-windows", steps["tower-windows"]),
        work,
        modules,
        loss=on_windows,
        check=check,
        checks=CHECKS["tower-windows"],
        rates=rates["tower-windows"],
    )
    log += loop.run(
        loop.Stage("tower-scenes", steps["tower-scenes"]),
        work,
        modules,
        loss=on_scenes,
        check=check,
        checks=CHECKS["tower-scenes"],
        rates=rates["tower-scenes"],
    )
    vision.requires_grad_(False).eval()
    tower.rescale(vision, 1 / tower.spread(vision, where))
    return log


def _train_decoder(
    model, writer: lessons.Writer, work: Path, where: torch.device, steps: int, n: int, checked: int
) -> list[dict]:
    source = sources.images(model, work, n, where)
    decoder.begin(model, writer.tokenizer, source)
    held = sources.images(model, work, checked, where, split="calibration")
    early = int(lessons.EARLY_SHARE * steps)
    taught = lessons.Lessons(writer, [Course(source, 1.0)], DECODER_SEED, where, early)
    return _run(model, writer, work, where, steps, taught, partial(_check, model, writer, held))


def _first(folder: Path, where: torch.device) -> models.VLM:
    """The trained tiny-llava-1.5: the one in this work folder, else the shipped one."""
    beside = folder / NAMES[0] / "checkpoint"
    name = str(beside) if beside.is_dir() else NAMES[0]
    return models.load(name, device=str(where), dtype="float32")


def _begin_next(model, known: nn.Module) -> None:
    """Give Next the weights of LLaVA-1.5: all of its own but the newline."""
    missing, unexpected = model.load_state_dict(known.state_dict(), strict=False)
    if unexpected or missing != ["model.image_newline"]:
        raise RedlibError(
            f"tiny-llava-next cannot begin as {NAMES[0]}: {[*missing, *unexpected]} do not fit"
        )
    with torch.no_grad():
        words = model.get_input_embeddings().weight
        model.model.image_newline.normal_(0, float(words.std()))


def _halfway(model, before: dict[str, torch.Tensor]) -> None:
    """Replace a model's weights by the mean of earlier ones and its own, as Wortsman et al. do with
    fine-tuned models (arXiv 2109.01903). Next, with those of LLaVA-1.5, forgets less on base tiles
    alone and loses nothing on tiles; what they lack, the newline, is its own. OneVision, behind the
    stages of HALFWAY, keeps most of what a stage taught and loses less of what it knew before; its
    card has the numbers of each."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in before:
                weight.lerp_(before[name].to(weight), 0.5)


def _train_next(
    model,
    writer: lessons.Writer,
    work: Path,
    where: torch.device,
    steps: int,
    n: int,
    most: int,
    checked: int,
) -> list[dict]:
    """No early steps: where to look is known from LLaVA-1.5."""
    model.model.vision_tower.requires_grad_(False).eval()
    base = sources.images(model, work, n // 2, where, newline=True)
    split = sources.tiled(model, work, most, where)
    held = sources.images(model, work, checked, where, split="calibration", newline=True)
    apart = sources.tiled(model, work, checked // 2, where, split="calibration")
    courses = [Course(base, 1 - TILED_SHARE), Course(split, TILED_SHARE)]
    taught = lessons.Lessons(writer, courses, DECODER_SEED, where, 0)
    ask = partial(decoder.known, tasks=CHECKED_TILED)

    def check() -> dict[str, float]:
        found = _check(model, writer, held)
        for label, view in (("base", range(576)), ("split", range(split.tokens))):
            known = decoder.accuracy(model, writer, apart, ask, view=view)
            found |= {f"{task}, {label} of tiles": value for task, value in known.items()}
        return found

    return _run(model, writer, work, where, steps, taught, check)


def _train_onevision(
    model,
    writer: lessons.Writer,
    work: Path,
    where: torch.device,
    steps: dict[str, int],
    share: float,
    checked: int,
) -> list[dict]:
    """Without the marks, then with them and a judge; behind stages of HALFWAY, halfway back."""
    draw = {
        "images": partial(sources.images, newline=True),
        "mantis": partial(sources.pairs, schema="mantis"),
        "muir": partial(sources.pairs, schema="muir"),
        "busy": partial(sources.pairs, schema="busy"),
        "composites": sources.composites,
        "films": sources.films,
        "busy films": partial(sources.films, busy=True),
    }
    made = {
        kind: draw[kind](model, work, max(4, int(n * share)), where)
        for kind, (n, *_) in ONEVISION.items()
    }
    # Films are long, and each is asked much.
    held = {"images": checked, "mantis": checked, "muir": checked, "films": checked // 4}
    held_on = {
        kind: draw[kind](model, work, n, where, split="calibration") for kind, n in held.items()
    }

    def check() -> dict[str, float]:
        found = _check(model, writer, held_on["images"])
        for kind in ("mantis", "muir", "films"):
            found |= decoder.accuracy(model, writer, held_on[kind], lessons_several.known)
        return found

    log, judge, behind = [], None, {}
    for number, (stage, (early, _)) in enumerate(DECODER_STAGES.items()):
        if stage == "several":
            _mark(model, writer, made["images"], where)
            judge = decoder.Judge(model.lm_head.in_features).to(where)
        courses = [
            Course(made[kind], shares[number], *step)
            for kind, (_, step, shares) in ONEVISION.items()
        ]
        taught = lessons.Lessons(
            writer, courses, DECODER_SEED + number, where, int(early * steps[stage])
        )
        log += _run(
            model, writer, work, where, steps[stage], taught, check, stage=stage, judge=judge
        )
        if stage in HALFWAY:
            _halfway(model, behind[HALFWAY[stage]])
        behind[stage] = copy.deepcopy(model.state_dict())
    return log


def _mark(model, writer: lessons.Writer, images: Source, where: torch.device) -> None:
    """Write the marks by visual tokens of some images."""
    chosen = np.arange(min(MARKED, len(images.cards)))
    all_of_one = np.arange(images.tokens)
    with torch.no_grad():
        shown = images.pack(model, chosen, [all_of_one] * len(chosen), where)
    opening = torch.tensor(writer.prefix[:2], device=where)
    tokens = shown[:, ~images.layout.newlines].flatten(0, 1).float()
    marks.write(model, writer.tokenizer, tokens, opening)


def _check(model, writer: lessons.Writer, held: Source) -> dict[str, float]:
    """Held-out accuracies with all tokens and with 64, and the single-token probe."""
    rows = {}
    for tokens in (held.tokens, 64):
        known = decoder.accuracy(model, writer, held, tokens=tokens)
        rows |= {f"{task}@{tokens}": value for task, value in known.items()}
    masked = scenes("calibration", len(held.cards) // 2)
    return rows | decoder.single_tokens(model, writer, held, masked)


class _Newline(nn.Module):
    """The learned newline, as a module that the loop can train and store."""

    def __init__(self, newline: nn.Parameter) -> None:
        super().__init__()
        self.newline = newline


def _run(
    model,
    writer: lessons.Writer,
    work: Path,
    where: torch.device,
    steps: int,
    taught,
    check,
    *,
    stage: str = "decoder",
    judge: decoder.Judge | None = None,
) -> list[dict]:
    modules = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "head": model.lm_head,
    }
    if hasattr(model.model, "image_newline"):
        modules["newline"] = _Newline(model.model.image_newline)
    if judge:
        modules["judge"] = judge
    return loop.run(
        loop.Stage(stage, steps),
        work,
        modules,
        loss=lambda step: decoder.loss(model, writer, *taught.batch(model, step), judge),
        check=check,
        checks=CHECKS[stage],
        rates=DECODER_STAGES[stage][1],
    )


def export(model, processor, target: Path) -> None:
    """Write model and processor as stock files: fp16 weights, fp32 in the config. They take their
    place in `target` when all of them are written.

    Raises:
        RedlibError: the folder is full or cannot be written.
    """
    half = copy.deepcopy(model).half()
    half.generation_config.do_sample = False
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
            try:
                half.save_pretrained(made)
                processor.save_pretrained(made)
            except Exception as error:
                # What safetensors and tokenizers, in Rust, say of a full disk is no OSError.
                if isinstance(error, OSError) or "os error" not in str(error):
                    raise
                raise RedlibError(
                    f"{target}: cannot be written ({first_line(error)}); free some space, and the "
                    "same command goes on from there"
                ) from None
            path = Path(made) / "config.json"
            config = json.loads(path.read_text())
            for part in (config, config["text_config"], config["vision_config"]):
                part["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            target.mkdir(exist_ok=True)
            for file in Path(made).iterdir():
                os.replace(file, target / file.name)
