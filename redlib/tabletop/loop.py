"""One resumable training loop for all stages.

A stage is a number of steps; a step is a function of its number alone, since it draws its data
from `default_rng([seed, step])`. So a killed run goes on from its last checkpoint and sees the
data it would have seen. Matrices inside the transformers and the patch convolution train with
Muon, everything else with AdamW; the learning rate rises for a few steps, stays, and falls to zero
over the last part.
"""

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from redlib.store import atomic, damaged

RATES = (0.02, 1e-3)  # peak learning rates of Muon and AdamW
WARM_UP = 40
FALL = 0.45  # share of the steps over which the rate falls to zero


@dataclass(frozen=True)
class Stage:
    """name, number of steps, and seconds between checkpoints."""

    name: str
    steps: int
    every: int = 60


def optimizers(
    modules: Iterable[nn.Module], rates: tuple[float, float] = RATES
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer layers and projector and for the patch convolution (with
    AdamW for it, half as many patches are named after 200 steps), AdamW for the rest (embeddings,
    norms, biases, heads), each with its own learning rate."""
    matrices, others = [], []
    for module in modules:
        for name, weight in module.named_parameters():
            inner = weight.ndim == 2 and (".layers." in f".{name}" or "linear_" in name)
            (matrices if inner or weight.ndim == 4 else others).append(weight)
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if matrices:
        chosen.append(Muon(matrices, rates[0], decay=0.01))
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return chosen


class Muon(torch.optim.Optimizer):
    """Momentum whose step is the nearest semi-orthogonal matrix (Jordan et al., 2024), in float32.

    torch.optim.Muon computes that matrix in bfloat16, which costs a CPU without bfloat16 units
    five seconds a step for these models; here equal shapes go together, in a tenth of a second.
    """

    ITERATION = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz, coefficients of the authors

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, *, decay: float) -> None:
        super().__init__(list(weights), {"lr": lr, "decay": decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                # a convolution is the matrix from its window's pixels to its channels
                means = [self._nesterov(w, group).flatten(1) for w in weights]
                steps = self._orthogonal(torch.stack(means))
                rows, columns = means[0].shape
                size = group["lr"] * max(1, rows / columns) ** 0.5
                for weight, step in zip(weights, steps, strict=True):
                    step = step.view_as(weight)
                    weight.mul_(1 - group["lr"] * group["decay"]).sub_(step, alpha=size)

    def _nesterov(self, weight: nn.Parameter, group: dict) -> torch.Tensor:
        mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
        mean.lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(mean, group["momentum"])

    def _orthogonal(self, x: torch.Tensor) -> torch.Tensor:
        tall = x.shape[1] > x.shape[2]
        x = x.mT if tall else x
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        a, b, c = self.ITERATION
        for _ in range(5):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
        return x.mT if tall else x


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, float32 elsewhere: a CPU without bfloat16 units emulates it, a hundred
    times slower than it computes in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def rate(step: int, steps: int) -> float:
    """Factor on the peak learning rate."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / max(1.0, FALL * steps))


def run(
    stage: Stage,
    folder: Path,
    modules: dict[str, nn.Module],
    *,
    loss: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    check: Callable[[], dict[str, float]],
    checks: int = 10,
    rates: tuple[float, float] = RATES,
) -> list[dict]:
    """Train the modules through one stage, or load them where the stage is already done.

    Args:
        folder: where `<stage>.pt` and `<stage>.jsonl` live.
        loss: step number -> (loss, numbers to log).
        check: held-out accuracies, called `checks` times over the stage.
        rates: peak learning rates of Muon and AdamW.

    Returns:
        the log, one row per check.

    Raises:
        RedlibError: `<stage>.pt` is damaged, or cannot be written.
    """
    path = folder / f"{stage.name}.pt"
    opts = optimizers(modules.values(), rates)
    step, log, spent = 0, [], 0.0
    if path.exists():
        step, log, spent = _restore(path, modules, opts, stage.steps)
        if step >= stage.steps:
            return log

    def save() -> None:
        # By way of memory: of a full disk torch's own writer says nothing that could be told from
        # other failures.
        held = io.BytesIO()
        torch.save(
            {
                "step": step,
                "log": json.dumps(log),
                "seconds": spent,
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "optimizers": [opt.state_dict() for opt in opts] if step < stage.steps else [],
            },
            held,
        )
        with atomic(path) as temporary:
            temporary.write_bytes(held.getbuffer())

    started = saved_at = time.monotonic()
    before = spent
    weights = [p for module in modules.values() for p in module.parameters()]
    with tqdm(total=stage.steps, initial=step, desc=stage.name, mininterval=10) as bar:
        while step < stage.steps:
            factor = rate(step, stage.steps)
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = group["peak"] * factor
            for module in modules.values():
                module.train()
            value, numbers = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            step += 1
            spent = before + time.monotonic() - started
            bar.update()
            if step % max(1, stage.steps // checks) == 0 or step == stage.steps:
                for module in modules.values():
                    module.eval()
                with torch.no_grad():
                    row = {"stage": stage.name, "step": step, **numbers, **check()}
                row = {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
                log.append({**row, "minutes": round(spent / 60, 1)})
                bar.write(json.dumps(log[-1]))
            if time.monotonic() - saved_at > stage.every or step == stage.steps:
                save()
                saved_at = time.monotonic()
    return log


def _restore(
    path: Path, modules: dict[str, nn.Module], opts: list[torch.optim.Optimizer], steps: int
) -> tuple[int, list[dict], float]:
    """Give modules and optimizers what `path` holds; returns its step, its log and the seconds
    spent. A stage that is done keeps no state of the optimizers."""
    stored = io.BytesIO(path.read_bytes())  # what fails from here on is not the file system
    try:
        # To the CPU first, since the graphics card that it was saved from may not be there.
        state = torch.load(stored, weights_only=True, map_location="cpu")
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        if state["step"] < steps:
            for opt, saved in zip(opts, state["optimizers"], strict=True):
                opt.load_state_dict(saved)
        return state["step"], json.loads(state["log"]), state["seconds"]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # a file that is torn ends in errors of many kinds
        raise damaged(path) from None
