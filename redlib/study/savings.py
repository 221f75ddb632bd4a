"""What choosing tokens costs, and what it spares the language model (section 5.3).

Scoring takes L x N x (2d - 1) operations (`prune.scores`), reading a token two per parameter of
the layers. A method that prunes inside the language model lets some of its layers read all tokens,
so that its budget spares less:

    with_reading(summary, vlm)         # scores with tokens and operations per layer
    costs(session, codebook)           # section 5.3 in numbers
"""

import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

from redlib.codebook import Codebook
from redlib.engine import extend
from redlib.models import VLM
from redlib.notebook import Session
from redlib.prune import codebook_bytes, fastv, keep_lowest, operations, redundancy, sparsevlm
from redlib.prune.inside import read_a_layer
from redlib.store import write_json
from redlib.study.pruning import METHODS
from redlib.tabletop import scenes

PAPER_TOKENS = 576
"""Visual tokens of the paper's LLaVA-1.5."""

PAPER_CODEBOOKS = {
    "LLaVA-1.5": (454, 4096),
    "LLaVA-Next": (969, 4096),
    "LLaVA-OneVision": (310, 3584),
}
"""Prototypes (section 9.1) and width of the paper's models."""

PAPER_LAYERS = 6_476_267_520
"""Parameters of the decoder layers of LLaVA-1.5-7B, by its config.json: those of `costs.SHAPES`,
which this module, on a lower floor, cannot ask."""


def with_reading(summary: pd.DataFrame, vlm: VLM) -> pd.DataFrame:
    """The scores with what each rule lets the language model read.

    Args:
        summary: rows of `scoring.scores`.

    Returns them with label, the method's title; layer_tokens, the visual tokens that a layer reads,
    mean over the layers: those kept, or more where a method prunes behind some layers; and prefill,
    operations of the layers over these tokens, in millions (2 per parameter and token).
    """
    depth, each = len(vlm.decoder.layers), 2 * _parameters(vlm.decoder.layers) / 1e6
    full = summary[summary["method"] == "unpruned"].groupby("setting")["kept"].first()
    tokens = [
        layer_tokens(row.method, full[row.setting], row.kept, depth) for row in summary.itertuples()
    ]
    read = summary.assign(label=summary["method"].map(METHODS), layer_tokens=tokens)
    return read.assign(prefill=each * read["layer_tokens"])


def layer_tokens(method: str, size: float, kept: float, depth: int) -> float:
    """Visual tokens that a layer reads, mean over `depth` layers, where of `size` tokens `kept`
    stay: as many, or more with a method that prunes behind some of the layers."""
    if method == "fastv":
        return read_a_layer([fastv.LAYER - 1], [size, kept], depth)
    if method == "sparsevlm":
        ranking = sparsevlm.relative(depth)
        counts = [size, *sparsevlm.falling(int(size), int(kept), len(ranking))]
        return read_a_layer(ranking, counts, depth)
    return kept


def _parameters(layers: nn.Module) -> int:
    """How many parameters; of linear maps by their shape, since packed to a few bits they are held
    as fewer numbers."""
    total = 0
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            total += module.in_features * module.out_features
            total += 0 if module.bias is None else module.out_features
        else:
            total += sum(weight.numel() for weight in module.parameters(recurse=False))
    return total


def costs(session: Session, codebook: Codebook) -> pd.DataFrame:
    """Section 5.3 in numbers: operations per image and bytes of the codebook, here and there.

    Returns model, tokens, prototypes, width, operations, megabytes (float16), and
    share_of_prefill: the operations relative to those of the language model's layers over the
    visual tokens (2 per parameter and token).
    """
    vlm = session.model
    models = [
        (vlm.name, vlm.grid.size, len(codebook), vlm.width, _parameters(vlm.decoder.layers)),
        ("LLaVA-1.5-7B (paper)", PAPER_TOKENS, *PAPER_CODEBOOKS["LLaVA-1.5"], PAPER_LAYERS),
    ]
    rows = []
    for name, tokens, prototypes, width, parameters in models:
        scored = operations(tokens, prototypes, width)
        share = scored / (2 * parameters * tokens)
        megabytes = codebook_bytes(prototypes, width) / 1e6
        rows.append((name, tokens, prototypes, width, scored, megabytes, share))
    columns = ["model", "tokens", "prototypes", "width", "operations", "megabytes"]
    return pd.DataFrame(rows, columns=[*columns, "share_of_prefill"])


def write_times(session: Session, codebook: Codebook, *, repeats: int = 20) -> str:
    """Measure the time of scoring one image and of the whole prefill; returns where it is written.

    Times differ from run to run, so they go to runs/<run_name>/results/06-times.json and into no
    figure, table or notebook.
    """
    vlm, scene = session.model, scenes("test", 1)[0]
    tokens = vlm.encode([scene.image]).tokens[0]

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            if vlm.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    kept = tokens[keep_lowest(redundancy(tokens, codebook), min(64, len(tokens)))]
    path = session.file("06-times.json")
    write_json(
        path,
        {
            "device": vlm.device.type,
            "redundancy scores, ms": best(lambda: redundancy(tokens, codebook)),
            "prefill of all visual tokens, ms": best(lambda: extend(vlm, tokens)),
            "prefill of 64 visual tokens, ms": best(lambda: extend(vlm, kept)),
        },
    )
    return f"runs/{session.name}/results/{path.name}"
