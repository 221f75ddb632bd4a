"""`redlib bench`: how much the planner and the engine save, and that they change nothing.

Two baselines, both made of stock calls alone and both far from it only in what they repeat:

    N   one full forward of the stock model for every probe, the image encoded once
    R   as the paper's release works: the image encoded for every probe, `generate` of 8 words

Time is the CPU time of this process with one thread (on a GPU, the time until it has finished).
N, R and ours take turns, `PAIRS` times after a warm-up, and each ratio is taken within its turn, so
that a machine that slows down slows both. Ours always runs the map of all patches, since what it
saves depends on the whole; a baseline costs the same for every patch, so it runs `SAMPLE` of them,
one drawn from each of as many equal stretches of the raster, and its time is scaled.

The prompt has 35 tokens before the image and 25 behind it, as many as LLaVA-1.5's: the tiny model's
own has 3 and 20, which leaves less to share than a real one. In the comparison with N every probe
reads one step; the cascade, compared with R, reads the step behind an article too.

    rows = measure()              # metric, value, low, high, n, bar, pass
    rows = exact(None)            # those of exactness alone, over every patch
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from redlib import leave_one_out, models, probe, stages
from redlib.bench import lazy, scale_out
from redlib.bench.baselines import (
    AFTER,
    BEFORE,
    CALIBRATED,
    QUESTION,
    REAL,
    double_norms,
    family_model,
    generate,
    lengthened,
    random_model,
    step,
    stock,
)
from redlib.codebook import candidates
from redlib.engine import Pieces, Readings, run
from redlib.errors import RedlibError
from redlib.machine import calibration_seconds
from redlib.models import VLM
from redlib.planner import Plan
from redlib.store import write_json
from redlib.tabletop import scenes
from redlib.tabletop.architectures import NAMES

PAIRS = 7
SAMPLE = {"single": 64, "region": 64, "global": 16, "cascade": 4}
"""Patches that a baseline runs in one turn."""

LEVELS = ("single", "region", "global")
CASCADE = ("region", "global")
EXACT_IMAGES, EXACT_PATCHES = 3, 8
LOGITS = {torch.float32: 5e-6, torch.float64: 1e-9}
JSD_RELATIVE, JSD_ABSOLUTE = 1e-4, 1e-9
CRITERIA = ("top-1 probability", "JSD_region", "JSD_final")
NEAR = {torch.float32: 1e-3, torch.float64: 0.0}
"""How near to a threshold, as a share of it, a patch may fall on the other side."""
WORK = 0.97  # of the closed-form bound

BARS = {"single": 2.0, "region": 1.8, "global": 1.6, "cascade": 4.0}
BARS_GPU = {"single": 10.0, "region": 10.0, "global": 1.9, "cascade": 15.0}
MEMORY = 1.5

Row = dict[str, object]


def publish(rows: Sequence[Row], file: Path | None) -> int:
    """Print the table and write it to `file`, as JSON, unless that is None.

    Returns 1 where a bar is missed, else 0.
    """
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    if file is not None:
        write_json(file, json.loads(table.to_json(orient="records", double_precision=15)))
    return int((table["pass"] == "no").any())


def measure(*, seed: int = 0) -> list[Row]:
    """All rows of `make bench`; those of exactness over a sample of the patches."""
    torch.set_num_threads(1)
    rows = [_machine(product("cpu"))]
    vlm = models.load("tiny-llava-1.5", device="cpu")
    scene = scenes("test", 1)[0]
    rows += planned(vlm, scene.image)
    rows += timed(vlm, scene.image, BARS, seed=seed)
    rows.append(memory(vlm.name, seed=seed))
    return [*rows, *exact(EXACT_PATCHES, seed=seed), *spared(vlm), *shared()]


def exact(patches: int | None, *, seed: int = 0) -> list[Row]:
    """The rows of exactness of all families, in both precisions.

    Args:
        patches: so many of each image, or None for all, which takes the better part of an hour.
    """
    torch.set_num_threads(1)
    rows = []
    for name in NAMES:
        stocks = {}
        for dtype in LOGITS:
            found, stocks[dtype] = exactness(family_model(name, dtype, seed), patches, seed=seed)
            rows += found
        rows.append(_rounding(name, stocks))
    return rows


def measure_gpu(*, small: bool, seed: int = 0) -> list[Row]:
    """The rows of planned work and time for LLaVA-1.5-7B and Next-8B with random weights on a GPU;
    `small`: fewer and narrower layers on the CPU, which tries the code.

    Raises RedlibError if there is no GPU and `small` is not asked for.
    """
    if not small and not torch.cuda.is_available():
        raise RedlibError("bench --gpu finds no CUDA; --small tries the same code on the CPU")
    device = "cpu" if small else "cuda"
    torch.set_num_threads(1)
    rows = [_machine(product(device), "small, on the CPU" if small else _gpu_name())]
    for name in REAL:
        vlm = random_model(name, device, small=small, seed=seed)
        for scene in scenes("test", 1 if small else 2):
            found = planned(vlm, scene.image)
            found += timed(vlm, scene.image, BARS_GPU, seed=seed, pairs=1 if small else PAIRS)
            rows += [one | {"metric": f"{name}, {scene.id}: {one['metric']}"} for one in found]
        del vlm
    return rows


# Rows


def planned(vlm: VLM, image: Image.Image) -> list[Row]:
    """Tokens of N over planned tokens of a whole map, against the closed-form bound."""
    vlm, prompt = lengthened(vlm)
    pieces = Pieces(vlm, vlm.encode([image]).tokens[0], prompt)
    rows = []
    for level in LEVELS:
        made, bound = _plan(vlm, pieces, level), bounds(vlm)[level]
        rows.append(
            row(
                f"planned tokens, {level}: N over ours (at most {bound:.3f} are possible)",
                made.naive_tokens / made.tokens,
                n=len(made.tree.of),
                bar=WORK * bound,
            )
        )
    return rows


def bounds(vlm: VLM) -> dict[str, float]:
    """Tokens of N over the fewest that an exact method can compute, for a map of all patches.

    The text before the image once; a single probe its own positions and the text behind; a region
    each distinct window, and each ablation from its target on; the whole image once, and each
    distinct window ablated in it from its first token on.
    """
    size, end = vlm.grid.size, AFTER + (vlm.newline is not None)
    windows = [tuple(vlm.grid.window(patch)) for patch in range(size)]
    distinct = set(windows)
    wide = len(windows[0])
    region = len(distinct) * (wide + end)
    region += sum(wide - window.index(patch) + end for patch, window in enumerate(windows))
    whole = size + end + sum(size - window[0] + end for window in distinct)
    single = size * (vlm.repeats + end)
    return {
        "single": size * (BEFORE + vlm.repeats + end) / (BEFORE + single),
        "region": 2 * size * (BEFORE + wide + end) / (BEFORE + region),
        "global": (size + 1) * (BEFORE + size + end) / (BEFORE + whole),
    }


def timed(
    vlm: VLM, image: Image.Image, bars: dict[str, float], *, seed: int, pairs: int = PAIRS
) -> list[Row]:
    """Time of N over ours for each level, and of R over ours for the whole cascade."""
    vlm, prompt = lengthened(vlm)
    tokens = vlm.encode([image]).tokens[0]
    pieces = Pieces(vlm, tokens, prompt)
    size = vlm.grid.size
    top = min(probe.TOP, vlm.model.config.text_config.vocab_size)

    def ours(level: str) -> None:
        run(vlm, _plan(vlm, pieces, level), pieces.table)

    def naive(level: str, patches: Sequence[int]) -> None:
        for path in _paths(vlm, pieces, level, patches):
            stock(vlm, pieces.table[path])

    def cascade() -> None:
        seen = vlm.encode([image]).tokens[0]
        probe.single(vlm, seen, range(size), prompt=prompt, top=top)
        leave_one_out.cascade(vlm, seen, range(size), prompt=prompt)

    def released(patches: Sequence[int]) -> None:
        for level in LEVELS:
            for path in _paths(vlm, pieces, level, patches):
                vlm.encode([image])
                generate(vlm, pieces.table[path])

    naive("single", range(3)), ours("single")  # warm up
    compared = {level: (partial(naive, level), partial(ours, level)) for level in LEVELS}
    compared["cascade"] = released, cascade
    rows = []
    for name, (slow, fast) in compared.items():
        sample = spread(size, SAMPLE[name], seed)
        taken = turns(name, lambda: slow(sample), fast, pairs, vlm.device)  # noqa: B023
        share = size / len(sample)
        ratios = [share * base / own for base, own in taken]
        base, own = np.median(taken, axis=0)
        against = "R" if name == "cascade" else "N"
        rows.append(
            row(
                f"{name}: time of {against} over ours ({against} on {len(sample)} of {size}"
                f" patches, {share * base:.1f} s; ours {own:.2f} s; 35 + 25 words)",
                float(np.median(ratios)),
                low=min(ratios),
                high=max(ratios),
                n=pairs,
                bar=bars[name],
            )
        )
    return rows


def memory(name: str, *, seed: int) -> Row:
    """Peak memory of a process that runs all levels, ours over N."""
    naive, own = (isolated(_peak, name, ours, seed) for ours in (False, True))
    return row(
        f"peak memory of a process, ours over N ({own / 1e6:.0f} MB over {naive / 1e6:.0f} MB)",
        own / naive,
        n=1,
        bar=MEMORY,
        at_most=True,
    )


def exactness(vlm: VLM, patches: int | None, *, seed: int) -> tuple[list[Row], np.ndarray]:
    """Every number against N: logits of single and both cascade levels, their divergences, and by
    which criteria a patch is a candidate for a codebook whose thresholds lie at the medians; of an
    embedded model, which are candidates by its calibrated thresholds.

    Of a model in float64, patches whose logits are farther off than the bar are compared once more
    with norms that do not round to float32 (`baselines.double_norms`): what was rounded apart
    agrees then, what is computed wrongly does not.

    Args:
        patches: so many of each image, or None for all.

    Returns:
        the rows, and (n, 2) the divergences by N of n patches, the region's and the whole image's.
    """
    size, bar = vlm.grid.size, LOGITS[vlm.dtype]
    images = scenes("test", EXACT_IMAGES)
    compared, missed, asked, sizes = [], [], [], []
    for number, scene in enumerate(tqdm(images, desc=f"exactness, {vlm.name}", leave=False)):
        chosen = range(size) if patches is None else spread(size, patches, seed + number)
        compared.append(_compare(vlm, scene.image, chosen))
        asked += [(number, patch) for patch in chosen]
        over = np.flatnonzero(compared[-1][0].max(1) > bar)
        missed += [(scene.image, [chosen[place] for place in over])] if len(over) else []
        if vlm.name in CALIBRATED:
            sizes.append(_cluster_sizes(vlm, scene.image)[list(chosen)])
    logits, right, found = (np.concatenate(part) for part in zip(*compared, strict=True))
    label = f"exactness, {vlm.name}, {str(vlm.dtype).removeprefix('torch.')}"
    of = f"{len(logits)} patches of {len(images)} images"
    near = NEAR[vlm.dtype]
    met = _other_side(_criteria(found), _criteria(right))
    far = sum(one.share > near for one in met)
    rows = [
        row(f"{label}: logits against N, share of the largest ({of})",
            logits.max(), n=logits.size, bar=bar, at_most=True),
        row(f"{label}: JSD against N, of the allowed 1e-4 or 1e-9 ({of})",
            _wrong(found[:, 1:], right[:, 1:]), n=right[:, 1:].size, bar=1.0, at_most=True),
        row(f"{label}: criteria met otherwise than by N, {len(CRITERIA)} thresholds at the medians"
            f"{', but for those listed' if near else ''} ({of})",
            far, n=right.size, bar=0, at_most=True),
    ]  # fmt: skip
    if sizes:
        rows.append(_same_candidates(label, vlm, np.concatenate(sizes), found, right))
    for one in met if near else ():
        image, patch = asked[one.place]
        rows.append(
            row(f"{label}: {one.criterion} of patch {patch} of image {image}, met otherwise; by N"
                f" {one.right:.7g}, ours {one.found:.7g}, distance from the threshold as share of"
                " it", one.share, n=1, bar=near, at_most=True)
        )  # fmt: skip
    if missed and vlm.dtype == torch.float64:
        with double_norms(vlm):
            again = np.concatenate([_compare(vlm, *patches)[0] for patches in missed])
        rows.append(
            row(f"{label}: the {len(again)} patches over that bar, norms in float64 (stock's round"
                " to float32)", again.max(), n=again.size, bar=bar, at_most=True)
        )  # fmt: skip
    return rows, right[:, 1:]


def _compare(
    vlm: VLM, image: Image.Image, chosen: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far ours are from N.

    Returns:
        (patches, 5) the largest difference of each logit vector, as `_apart` has it, and twice
        (patches, 3), by N and by ours, top-1 probability (among the top 50, section 9.1) and the
        divergences of the region and of the whole image.
    """
    vocabulary = vlm.model.config.text_config.vocab_size
    head = min(probe.TOP, vocabulary)
    skip = partial(probe.is_article, vlm)
    pieces = Pieces(vlm, vlm.encode([image]).tokens[0], QUESTION)
    alone = run(
        vlm, probe.single_plan(vlm, pieces, chosen), pieces.table, top=vocabulary, skip=skip
    )
    made, pairs = leave_one_out.ablation_plan(vlm, pieces, chosen, CASCADE)
    said = run(vlm, made, pieces.table, top=vocabulary, skip=skip)
    seen = step(vlm, pieces.table[pieces.path(range(vlm.grid.size))])
    far, right, found = [], [], []
    for place, patch in enumerate(chosen):
        shown, window, ablated, whole = (
            pieces.table[path] for level in LEVELS for path in _paths(vlm, pieces, level, [patch])
        )
        single = step(vlm, shown)[0]
        apart = [_apart(alone, place, single)]
        right.append([float(single.topk(head).values.softmax(-1)[0])])
        found.append([float(alone.logits[place, :head].softmax(-1)[0])])
        both = {"region": (step(vlm, window), ablated), "global": (seen, whole)}
        for level, ((intact, fed), rows) in both.items():
            changed = stock(vlm, torch.cat([rows, fed]))
            before, after = (numbers[place] for numbers in pairs[level])
            apart += [_apart(said, before, intact), _apart(said, after, changed)]
            right[-1].append(float(leave_one_out.jsd(intact, changed)))
            found[-1].append(float(leave_one_out.jsd(said.logits[before], said.logits[after])))
        far.append(apart)
    return np.array(far), np.array(right), np.array(found)


def _wrong(found: np.ndarray, right: np.ndarray) -> float:
    """The largest error of a divergence over the allowed one."""
    return float((np.abs(found - right) / np.maximum(JSD_RELATIVE * right, JSD_ABSOLUTE)).max())


def _criteria(values: np.ndarray) -> np.ndarray:
    """(n, 3) what CRITERIA names, of `_compare`'s numbers: the final divergence is eq. 11's."""
    return np.column_stack([values[:, :2], values[:, 1:] @ leave_one_out.WEIGHTS])


def _cluster_sizes(vlm: VLM, image: Image.Image) -> np.ndarray:
    """(L,) size of each patch's cluster within the image; NaN where the release does not look."""
    how = stages.Probing(QUESTION, ranks="release")
    table = stages.clustered(vlm.encode([image]), how, "")
    return table.set_index("patch")["cluster_size"].reindex(range(vlm.grid.size)).to_numpy(float)


def _same_candidates(
    label: str, vlm: VLM, sizes: np.ndarray, found: np.ndarray, right: np.ndarray
) -> Row:
    """How many patches are candidates by N alone or by ours alone, but for those NEAR a threshold.

    Equal candidates make equal prototypes: what decides on those are their visual tokens, which
    nobody recomputes.
    """
    near, criteria = NEAR[vlm.dtype], CALIBRATED[vlm.name]

    def table(values: np.ndarray) -> pd.DataFrame:
        frame = pd.DataFrame(_criteria(values), columns=("top1_head", "jsd_region", "jsd_final"))
        return frame.assign(cluster_size=sizes).dropna()

    by_stock, by_own = (candidates(table(each), criteria)[0] for each in (right, found))
    whole = table(right)
    close = stages.contested(whole, criteria, leave_one_out.WEIGHTS, within=near).index
    apart = (by_stock != by_own) & ~whole.index.isin(close)
    but = f", but for {len(close)} within {near:g} of a threshold" if near else ""
    return row(
        f"{label}: candidates, which the prototypes follow from, other than by N, calibrated"
        f" thresholds{but} ({by_stock.sum()} by N, {by_own.sum()} by ours)",
        apart.sum(), n=len(apart), bar=0, at_most=True,
    )  # fmt: skip


class _Other(NamedTuple):
    """A number that falls on another side of a threshold than by N.

    place: its row. share: how far N's number lies from the threshold, as a share of it.
    """

    place: int
    criterion: str
    right: float
    found: float
    share: float


def _other_side(found: np.ndarray, right: np.ndarray) -> list[_Other]:
    """Which of (n, criteria) numbers fall on another side of a threshold than by N.

    The threshold of a criterion lies in the middle of N's numbers, between two of them.
    """
    middle = len(right) // 2
    threshold = np.sort(right, axis=0)[middle - 1 : middle + 1].mean(0)
    share = np.abs(right - threshold) / np.maximum(threshold, np.finfo(float).tiny)
    return [
        _Other(int(n), CRITERIA[k], *(float(of[n, k]) for of in (right, found, share)))
        for n, k in np.argwhere((found < threshold) != (right < threshold))
    ]


def _rounding(name: str, stocks: dict[torch.dtype, np.ndarray]) -> Row:
    """How far N itself is from N in float64: what float32 leaves uncertain in any order of adding.

    A divergence is a small difference of logits squared, so its relative error is twice that of the
    difference, and the rounding of a logit is a large share of a small difference.
    """
    single, double = stocks[torch.float32], stocks[torch.float64]
    return row(
        f"rounding, {name}: JSD of N in float32 against N in float64, of the allowed 1e-4 or 1e-9",
        _wrong(single, double),
        n=double.size,
    )


def spared(vlm: VLM) -> list[Row]:
    """Forwards behind one codebook that stops early, over those of an eager one (`bench.lazy`)."""
    found = lazy.lazy_codebook(vlm)
    return [
        row(
            f"one codebook, {what} forwards: lazy over eager ({found[f'{kind}_lazy']:,} of"
            f" {found[f'{kind}_eager']:,}, {found['images']} scenes, the paper's thresholds)",
            found[f"{kind}_lazy"] / found[f"{kind}_eager"],
            n=found["images"],
            bar=bar,
            at_most=True,
        )
        for kind, what, bar in (("global", "global", 0.4), ("all", "all", 0.6))
    ]


def shared() -> list[Row]:
    """Two workers over one, and what two bare processes reach beside them (`bench.scale_out`)."""
    found = scale_out.row()
    matmul, held = found.pop("matmul"), found.pop("pass")
    return [
        found | {"pass": {True: "yes", False: "no", None: "not decidable here"}[held]},
        row("two bare processes over one, matrix products", matmul, n=found["n"]),
    ]


# The inputs


def spread(size: int, n: int, seed: int) -> list[int]:
    """n of `size` patches (all, if there are no more), one drawn from each of n equal stretches."""
    n = min(n, size)
    edges = np.linspace(0, size, n + 1).astype(int)
    rng = np.random.default_rng(seed)
    return [int(rng.integers(low, high)) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def _plan(vlm: VLM, pieces: Pieces, level: str) -> Plan:
    patches = range(vlm.grid.size)
    if level == "single":
        return probe.single_plan(vlm, pieces, patches)
    return leave_one_out.ablation_plan(vlm, pieces, patches, [level])[0]


def _paths(vlm: VLM, pieces: Pieces, level: str, patches: Sequence[int]) -> list[np.ndarray]:
    """The inputs that N computes for these patches: 1, 2 (region) and 1 (global) for each."""
    paths = []
    for patch in patches:
        window, whole = vlm.grid.window(patch), np.arange(vlm.grid.size)
        if level == "single":
            paths.append(pieces.path(np.full(vlm.repeats, patch)))
        elif level == "region":
            paths.append(pieces.path(window))
            paths.append(pieces.path(np.where(window == patch, pieces.pad, window)))
        else:
            paths.append(pieces.path(np.where(np.isin(whole, window), pieces.pad, whole)))
    return paths


# Measuring


def turns(
    name: str,
    slow: Callable[[], None],
    fast: Callable[[], None],
    pairs: int,
    device: torch.device,
) -> list[tuple[float, float]]:
    """Seconds of slow and fast, turn by turn: CPU time, or on a GPU the time until it is done."""
    bar = tqdm(range(pairs), desc=f"time of {name}", leave=False)
    return [(_seconds(slow, device), _seconds(fast, device)) for _ in bar]


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(name: str, ours: bool, seed: int) -> int:
    """In a process of its own: the most bytes that N or ours ever held."""
    torch.set_num_threads(1)
    vlm, prompt = lengthened(models.load(name, device="cpu"))
    pieces = Pieces(vlm, vlm.encode([scenes("test", 1)[0].image]).tokens[0], prompt)
    for level in LEVELS:
        if ours:
            run(vlm, _plan(vlm, pieces, level), pieces.table)
        else:
            for path in _paths(vlm, pieces, level, spread(vlm.grid.size, 4, seed)):
                stock(vlm, pieces.table[path])
    return peak_memory()


def isolated(work: Callable[..., int], *given: object) -> int:
    """What a function says in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose `ru_maxrss` hands the parent's peak down to a child
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    try:
        import resource  # not on Windows
    except ImportError:
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if psutil.MACOS else 1024 * peak


def _apart(said: Readings, at: int, right: Tensor) -> float:
    """Largest difference to the logits (V,) of N, as a share of the largest of them."""
    return float((said.logits[at] - right[said.ids[at]]).abs().max() / right.abs().max())


def _machine(gflops: float, name: str = "1,024 x 1,024 float32 product") -> Row:
    return row(f"this machine: {name}, GFLOP/s", gflops, n=1)


def product(device: str) -> float:
    """GFLOP/s of a product of 4,096 x 4,096 in half precision, or of 1,024 x 1,024 on the CPU."""
    if device == "cpu":
        return 2 * 1024**3 / calibration_seconds() / 1e9
    a = torch.randn(4096, 4096, dtype=torch.float16, device=device)
    times = [_seconds(lambda: a @ a, a.device) for _ in range(6)]
    return 2 * 4096**3 / min(times) / 1e9


def _gpu_name() -> str:
    return f"{torch.cuda.get_device_name()}, 4,096 x 4,096 float16 product"


def row(
    metric: str,
    value: float,
    *,
    n: int,
    low: float = float("nan"),
    high: float = float("nan"),
    bar: float = float("nan"),
    at_most: bool = False,
) -> Row:
    """A row of the table. low, high: the spread of n values; `at_most`: the bar is an upper one."""
    held = "" if np.isnan(bar) else "yes" if (value <= bar if at_most else value >= bar) else "no"
    return {"metric": metric, "value": float(value), "low": low, "high": high, "n": n,
            "bar": float(bar), "pass": held}  # fmt: skip
