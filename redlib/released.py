"""The codebooks that the paper's authors released, in this project's form.

Their repository (DingchenYang99/RedundancyCodebook, Apache-2.0) keeps a codebook as three files:

    coco_train_500samples_numPrototypes-454.pt     a tensor (N, D): prototypes behind the projector
    coco_train_500samples_numPrototypes-454.json   a list: the COCO image of each
    clusters.txt                                   a log: all candidates, cluster by cluster

`bring` makes one safetensors file of the first two, which the pruner takes like one of ours:

    codebook = bring("numPrototypes-454.pt", model="llava-hf/llava-1.5-7b-hf")
    codebook.save("released.safetensors")

What the files do not tell: which patch of its image a prototype is (every `patch` says UNTOLD), and
the model, which is therefore asked for and held against the width. A .pt file is a pickle, which
may run code as it is read; `weights_only=True` reads tensors and refuses the rest.

The log shows where paper and release part (eq. 1, tau_in). The paper keeps a cluster of more than
tau_in *candidates*, the released code one of more than tau_in *distinct images*; `kept` applies
either. Of the 1,383 candidates of LLaVA-1.5 the first rule keeps 868, the second the 454 released.
"""

import ast
import json
import pickle
import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.hub import read_config, revision_of
from redlib.params import KINDS, check_revision, local

UNTOLD = -1
"""The patch of a prototype that nobody wrote down."""

ALIKE = 0.9
"""Cosine from which on `describe` counts two prototypes to one group."""

_FRAME = pickle.FRAME[0]
"""The operation that pickles of protocol 4 and newer begin with."""

_CLUSTER = re.compile(r"cluster: (\d{1,9}), samples: (\[.*\])\s*")
_SIZE = re.compile(r"torch\.Size\(\[(\d{1,9}), \d+\]\)")


def bring(
    file: str | Path,
    *,
    model: str,
    revision: str | None = None,
    images: str | Path | None = None,
) -> Codebook:
    """A released codebook as one of ours.

    Args:
        file: the .pt file.
        model: the checkpoint whose projector made the prototypes: embedded name, folder or Hugging
            Face id. Its configuration is read, and of an id downloaded; its weights are not.
        revision: commit, branch or tag of an id; a model on this machine has none.
        images: the .json file; by default the one of the same name beside `file`.

    Raises:
        RedlibError: a file that is missing, damaged, of another kind or holds code; files that do
            not fit together; a model that is not there or has another width.
    """
    file = local(file)
    vectors = _tensor(file)
    named = _images(file.with_suffix(".json") if images is None else Path(images))
    if len(named) != len(vectors):
        raise RedlibError(
            f"{str(file)!r} holds {len(vectors)} prototypes, but {len(named)} images are named "
            "beside it: take the .json of the same codebook (--images)"
        )
    check_revision(model, revision, remedy="leave it out")
    config = read_config(model, revision)
    width = config.text_config.hidden_size
    if vectors.shape[1] != width:
        raise RedlibError(
            f"{str(file)!r} has width {vectors.shape[1]}, model {model!r} has {width}: it belongs "
            "to another model"
        )
    made = revision_of(model, revision), Criteria.released(KINDS[config.model_type])
    try:
        return Codebook(vectors, named, [UNTOLD] * len(vectors), model, *made)
    except RedlibError as error:
        raise RedlibError(f"{str(file)!r}: {error}; copy the released file again") from error


def clusters(file: str | Path) -> list[tuple[str, ...]]:
    """The clusters of the candidates in a released log: of each, the image of every member.

    Raises:
        RedlibError: the file is missing, no such log, or not whole.
    """
    file = Path(file)
    found, total = [], None
    for line in _text(file).splitlines():
        if match := _CLUSTER.fullmatch(line):
            found.append(_members(match[2], f"{str(file)!r}, cluster {match[1]}"))
        elif total is None and (match := _SIZE.search(line)):
            total = int(match[1])
    if not found or total is None:
        raise RedlibError(
            f"{str(file)!r} is no log of clusters: it needs a line with torch.Size([candidates, "
            "width]) and lines such as cluster: 3, samples: ['9', '17']"
        )
    listed = sum(map(len, found))
    if listed != total:
        raise RedlibError(
            f"{str(file)!r} lists {listed} candidates of {total}: copy the whole file"
        )
    return found


def _members(text: str, where: str) -> tuple[str, ...]:
    try:
        held = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        held = [None]
    if not all(type(name) in (str, int) for name in held):
        raise RedlibError(f"{where}: no list of image ids such as ['9', '17']: copy the file again")
    return tuple(map(str, held))


def kept(found: list[tuple[str, ...]], criteria: Criteria) -> list[tuple[str, ...]]:
    """The clusters that pass `tau_in` by the rule `rule_in` of the criteria."""
    count = (lambda members: len(set(members))) if criteria.rule_in == "images" else len
    return [members for members in found if count(members) > criteria.tau_in]


def check_clusters(codebook: Codebook, file: str | Path) -> str:
    """Whether the prototypes are those that the log leaves by the released rule; in one line, with
    what the paper's rule would leave.

    Raises:
        RedlibError: they are not, or as `clusters`.
    """
    found, criteria = clusters(file), codebook.criteria
    by = {rule: kept(found, replace(criteria, rule_in=rule)) for rule in ("images", "size")}
    if Counter(name for members in by["images"] for name in members) != Counter(codebook.image):
        raise RedlibError(
            f"{str(file)!r} leaves {sum(map(len, by['images']))} prototypes of other images than "
            f"the {len(codebook)} at hand: it belongs to another codebook"
        )
    told = [
        f"{sum(map(len, members))} in {len(members)} clusters of more than {criteria.tau_in:g} "
        f"{'distinct images' if rule == 'images' else 'candidates'}"
        for rule, members in by.items()
    ]
    return f"{sum(map(len, found))} candidates in {len(found)} clusters: {', '.join(told)}"


def describe(codebook: Codebook) -> str:
    """A codebook in some lines: size, origin, norms, how alike the prototypes are, their images."""
    unit = codebook.unit(torch.device("cpu"), torch.float32)
    cosine = (unit @ unit.T).numpy()  # (N, N)
    norms = codebook.vectors.norm(dim=1).numpy()
    lines = {
        "prototypes": f"{len(codebook)} of width {codebook.width}",
        "model": f"{_printable(codebook.model)}, revision {_printable(codebook.revision)}",
        "criteria": _criteria(codebook.criteria),
        "norms": f"{norms.mean():.4g} on average, sd {norms.std():.3g}, "
        f"{norms.min():.4g} to {norms.max():.4g}",
    }
    if len(codebook) > 1:
        pairs = cosine[np.triu_indices(len(codebook), 1)]
        spread = ", ".join(f"{value:.2f}" for value in np.quantile(pairs, (0.05, 0.25, 0.5, 0.95)))
        lines["cosine of two"] = (
            f"{pairs.mean():.2f} on average; quantiles 5, 25, 50, 95 %: {spread}"
        )
        number, group = connected_components(cosine >= ALIKE, directed=False)
        sizes = sorted(np.bincount(group).tolist(), reverse=True)
        more = ", ..." if number > 5 else ""
        lines["groups"] = (
            f"{number}, of prototypes alike to a cosine of {ALIKE} (chained); sizes "
            f"{', '.join(map(str, sizes[:5]))}{more}"
        )
    counts = Counter(codebook.image).most_common()
    most = ", ".join(f"{_printable(name)} ({n})" for name, n in counts[:5])
    lines["images"] = f"{len(counts)}; most prototypes from {most}"
    untold = codebook.patch.count(UNTOLD)
    if untold:
        lines["patches"] = f"not told of {untold} prototypes"
    column = max(map(len, lines))
    return "\n".join(f"{name:<{column}}  {text}" for name, text in lines.items())


def _printable(name: str) -> str:
    """A name from a file, which may hold line ends and what no terminal shows."""
    return name if name.isprintable() else repr(name)


def _criteria(criteria: Criteria) -> str:
    return (
        f"tau_prob {criteria.tau_prob:g}, tau_out {criteria.tau_out:g} ({criteria.rule_out}), "
        f"tau_jsd {criteria.tau_jsd:g}, tau_in {criteria.tau_in:g} ({criteria.rule_in})"
    )


def _tensor(file: Path) -> torch.Tensor:
    """(N, D) what a .pt file holds, on the CPU."""
    if not file.is_file():
        raise RedlibError(f"no file {str(file)!r}: name the released .pt file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it may not be able to read; it then raises
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another format raise nearly anything as a pickle
        told = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        if "global" in told.lower():  # torch writes it in either case
            raise RedlibError(
                f"{str(file)!r} holds more than tensors; it could run code and was not read"
            ) from error
        if f"operand {_FRAME}" in told:
            raise RedlibError(
                f"{str(file)!r} is a pickle of protocol 4 or newer, of which torch reads no "
                "tensors alone: save it again with torch.save's default pickle_protocol"
            ) from error
        raise RedlibError(f"{str(file)!r} is no .pt file of torch.save, or not whole") from error
    told = type(held).__name__
    if isinstance(held, torch.Tensor):
        if held.layout != torch.strided or held.is_nested or held.is_meta:
            told += " that is sparse, nested or without values"
        elif held.ndim != 2 or not held.is_floating_point():
            told += f" shape {tuple(held.shape)}, {held.dtype}"
        else:
            return held
    raise RedlibError(
        f"{str(file)!r} must hold one tensor (N, D) of floating-point numbers; got {told}"
    )


def _images(file: Path) -> list[str]:
    try:
        held = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise RedlibError(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(held, list) or not all(type(name) in (str, int) for name in held):
        raise RedlibError(f"{str(file)!r} must be a list of image ids, one per prototype")
    return [str(name) for name in held]


def _text(file: Path) -> str:
    try:
        return local(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RedlibError(f"no file {str(file)!r}: it is released beside the prototypes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RedlibError(f"cannot read {str(file)!r} as text") from error
