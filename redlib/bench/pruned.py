"""What pruning saves: prefill, memory and cache of a stock model, full and with few visual tokens.

A prefill reads B prompts of 35 + L + 25 tokens, images already encoded, into the cache and gives
the logits behind them. Full and pruned take turns, as in `speed`. Beside the ratio of their times
stands that of their floating-point operations, which a machine can reach only if small products run
as fast as large ones:

    operations(T) = layers x (2 T x parameters of a layer + 2 T^2 x width of all heads)

attention counted as causal. Choosing who stays, scoring included, is timed by itself, on tokens
that are there already, image by image as `redlib.prune` does it, as a share of the pruned prefill.
It costs the same whatever the codebook holds, so this one holds tokens drawn by lot, as many as the
paper's: few beside the weights of a model of its width, many beside those of a small one. In the
embedded model the cosines alone are an eighth of the prefill's operations, and no exact score can
do without them. So the share is measured once more at the 7B model's width, where a CPU has room
for one of its layers, and counts it 32 times. What the codebook holds there is counted too.

    rows = measure(vlm)                # metric, value, low, high, n, bar, pass
"""

import math
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

import redlib
from redlib import models
from redlib.bench.baselines import AFTER, BEFORE, lengthened, random_model
from redlib.bench.speed import Row, isolated, row, turns
from redlib.codebook import Codebook, Criteria
from redlib.models import VLM
from redlib.prune import codebook_bytes, fastv, keep_lowest, redundancy
from redlib.prune import operations as scoring
from redlib.prune.scores import cosines
from redlib.tabletop import scenes

BATCH, SIZE, KEEP = 8, 576, 64
PAIRS = 7
PROTOTYPES = 454  # of the paper's codebook for LLaVA-1.5
DEPTH = 32  # layers of LLaVA-1.5-7B
SHARE = 0.7  # of the ratio of operations
CHOOSING = 0.03  # of the pruned prefill
REPEATS = 8  # of what is short, in a turn

REAL = (("LLaVA-1.5-7B", 1, 576, 64, None), ("LLaVA-1.5-7B", 16, 576, 64, 4.0),
        ("LLaVA-Next-8B", 4, 2880, 320, 6.0))  # fmt: skip
"""Model, batch, visual tokens, kept ones, and by how much the prefill has to become faster."""


def measure(vlm: VLM, *, seed: int = 0) -> list[Row]:
    """Rows for an embedded model on one thread of this CPU."""
    torch.set_num_threads(1)
    rows = prefill(vlm, BATCH, vlm.grid.size, KEEP, seed=seed)
    rows.append(at_real_width(seed=seed))
    rows.append(codebook_memory(seed=seed))
    rows.append(_memory(vlm.name, seed=seed))
    return rows


def measure_gpu(*, small: bool, seed: int = 0) -> list[Row]:
    """Rows for random models of the real ones' shapes; `small` as in `speed.measure_gpu`."""
    device, rows, held = "cpu" if small else "cuda", [], {}
    for name, batch, size, keep, bar in REAL:
        if name not in held:
            held = {name: random_model(name, device, small=small, seed=seed)}
        vlm, batch = held[name], min(batch, 2) if small else batch
        pairs = 1 if small else PAIRS
        found = prefill(vlm, batch, size, keep, bar=bar, seed=seed, pairs=pairs)
        found.append(_held(vlm, batch, size, keep, seed=seed))
        found.append(_fastv(vlm, batch, size, keep, pairs=pairs))
        rows += [one | {"metric": f"{name}: {one['metric']}"} for one in found]
    return rows


def prefill(
    vlm: VLM,
    batch: int,
    size: int,
    keep: int,
    *,
    bar: float | None = None,
    seed: int,
    pairs: int = PAIRS,
) -> list[Row]:
    """Time of a full over a pruned prefill, share of choosing in it, and bytes of the caches.

    Args:
        size, keep: visual tokens before and after.
        bar: of the ratio of times; by default SHARE of the ratio of operations.
    """
    visual, codebook = _drawn(vlm, batch, size, seed)
    lengths = [BEFORE + n + AFTER for n in (size, keep)]
    of = operations(vlm, lengths[0]) / operations(vlm, lengths[1])
    full, few = (_rows(vlm, visual[:, :n]) for n in (size, keep))
    label = f"prefill, batch {batch}, {keep} of {size} visual tokens"
    timed = turns(label, partial(_read, vlm, full), partial(_read, vlm, few), pairs, vlm.device)
    ratios = [slow / fast for slow, fast in timed]
    slow, fast = np.median(timed, axis=0)

    cache = [bytes_of_cache(vlm, batch * length) for length in lengths]
    return [
        row(
            f"{label}: time of full over pruned ({1000 * slow:.1f} ms over {1000 * fast:.1f} ms; "
            f"operations: {of:.2f})",
            float(np.median(ratios)), low=min(ratios), high=max(ratios), n=pairs,
            bar=SHARE * of if bar is None else bar,
        ),
        choosing(
            label, visual, codebook, keep, partial(_read, vlm, few), pairs=pairs,
            operations=operations(vlm, lengths[1]),
        ),
        row(
            f"{label}: bytes of keys and values, pruned over full ({cache[1]:,} over {cache[0]:,})",
            cache[1] / cache[0], n=1,
        ),
    ]  # fmt: skip


def choosing(
    label: str,
    visual: Tensor,
    codebook: Codebook,
    keep: int,
    read: Callable[[], None],
    *,
    operations: int,
    pairs: int,
    times: int = 1,
) -> Row:
    """Share of choosing among visual tokens (B, L, D) in a pruned prefill, which is `times` what
    `read` does and needs so many operations an image."""

    def choose() -> None:
        for _ in range(REPEATS):
            _choose(visual, codebook, keep)

    choose(), read()  # warm up
    taken = turns("choosing", choose, read, pairs, visual.device)
    shares = [one / REPEATS / (times * other) for one, other in taken]
    scored = scoring(visual.shape[1], len(codebook), codebook.width)
    return row(
        f"{label}: scoring and choosing by {len(codebook)} prototypes, share of the pruned "
        f"prefill (of its operations: {scored / operations:.1%})",
        float(np.median(shares)), low=min(shares), high=max(shares), n=pairs,
        bar=CHOOSING, at_most=True,
    )  # fmt: skip


def at_real_width(*, width: int = 4096, heads: int = 32, pairs: int = PAIRS, seed: int = 0) -> Row:
    """Share of choosing in a prefill as wide as LLaVA-1.5-7B's: one image, one of its layers with
    random weights in float32."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 11_008 // 4096, num_attention_heads=heads,
        num_hidden_layers=1, vocab_size=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = LlamaModel(config).eval()
    visual, codebook = _tokens((1, SIZE), width, 0.02, seed)
    length = BEFORE + KEEP + AFTER
    parameters = sum(weight.numel() for weight in decoder.layers.parameters())
    each = 2 * length * parameters + 2 * length**2 * width

    @torch.no_grad()
    def read() -> None:
        decoder(inputs_embeds=visual[:, :length], use_cache=True)

    label = f"{DEPTH} times one layer of LLaVA-1.5-7B's shape, {KEEP} of {SIZE} visual tokens"
    return choosing(
        label, visual, codebook, KEEP, read, operations=DEPTH * each, pairs=pairs, times=DEPTH
    )


def codebook_memory(*, width: int = 4096, seed: int = 0) -> Row:
    """Bytes that scoring one image in half precision holds at LLaVA-1.5-7B's width, unit vectors
    and scores, over N x D x 2 + L x N x 4."""
    visual, codebook = _tokens((1, SIZE), width, 0.02, seed)
    scores = cosines(visual[0].half(), codebook)
    unit = codebook.unit(scores.device, torch.float16)  # those that have just been used
    least = codebook_bytes(PROTOTYPES, width) + SIZE * PROTOTYPES * 4
    return row(
        f"memory of the codebook at LLaVA-1.5-7B's width, float16: unit vectors of {len(unit)} "
        f"prototypes ({unit.nbytes:,} bytes) and float32 scores of one image "
        f"({scores.nbytes:,} bytes), over N x D x 2 + L x N x 4",
        (unit.nbytes + scores.nbytes) / least, n=1, bar=1.0, at_most=True,
    )  # fmt: skip


def operations(vlm: VLM, length: int) -> int:
    """Floating-point operations of the decoder layers on one prompt of T tokens."""
    text = vlm.model.config.text_config
    layers = vlm.decoder.layers
    parameters = sum(weight.numel() for weight in layers[0].parameters())
    heads = text.num_attention_heads * layers[0].self_attn.head_dim
    return len(layers) * (2 * length * parameters + 2 * length**2 * heads)


def bytes_of_cache(vlm: VLM, tokens: int) -> int:
    """Keys and values of so many tokens in all layers."""
    text, layers = vlm.model.config.text_config, vlm.decoder.layers
    width = text.num_key_value_heads * layers[0].self_attn.head_dim
    return 2 * len(layers) * tokens * width * vlm.dtype.itemsize


def _drawn(vlm: VLM, batch: int, size: int, seed: int) -> tuple[Tensor, Codebook]:
    """(B, L, D) visual tokens as large as words, and a codebook of such."""
    words = vlm.model.get_input_embeddings().weight
    scale = float(words.detach().float().std())
    visual, book = _tokens((batch, size), vlm.width, scale, seed)
    return visual.to(vlm.device, vlm.dtype), book


def _tokens(shape: tuple[int, int], width: int, scale: float, seed: int) -> tuple[Tensor, Codebook]:
    """(B, L, D) tokens drawn by lot, and a codebook of such."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(math.prod(shape) + PROTOTYPES, width, generator=generator) * scale
    nowhere = ("",) * PROTOTYPES
    book = Codebook(drawn[:PROTOTYPES], nowhere, (0,) * PROTOTYPES, "drawn", "by lot",
                    Criteria.paper())  # fmt: skip
    return drawn[PROTOTYPES:].view(*shape, width), book


def _rows(vlm: VLM, visual: Tensor) -> Tensor:
    """(B, 35 + K + 25, D) prompts around visual tokens (B, K, D)."""
    longer, question = lengthened(vlm)
    before, after = (vlm.embed(ids).expand(len(visual), -1, -1) for ids in longer.prompt(question))
    return torch.cat([before, visual, after], dim=1)


@torch.no_grad()
def _read(vlm: VLM, rows: Tensor) -> None:
    vlm.model(inputs_embeds=rows, use_cache=True, logits_to_keep=1)


def _choose(visual: Tensor, codebook: Codebook, keep: int) -> Tensor:
    """(B, K, D): the paper's rule, R lowest."""
    return torch.stack([image[keep_lowest(redundancy(image, codebook), keep)] for image in visual])


def _fastv(vlm: VLM, batch: int, size: int, keep: int, *, pairs: int) -> Row:
    """Time of a full prefill over FastV's, encoding included on both sides. More visual tokens than
    the grid has are those of an image in tiles, which newlines stand between. Of a small model the
    last layer is behind the cut."""
    longer, question = lengthened(vlm)
    before, after = longer.prompt(question)
    layer = min(fastv.LAYER, len(vlm.decoder.layers) - 1)
    tiled = size > vlm.grid.size
    side = (2 if tiled else 1) * vlm.model.config.vision_config.image_size
    (scene,) = scenes("test", 1, width=side, height=side)
    ((pixels, layout),) = vlm.views([scene.image], "unpadded" if tiled else "base")
    pixels = pixels.to(vlm.device, vlm.dtype)
    place = before.new_full((len(layout),), vlm.model.config.image_token_id)
    ids = torch.cat([before, place, after]).expand(batch, -1)
    shown = {"pixel_values": (torch.stack if tiled else torch.cat)([pixels] * batch)}
    if tiled:
        shown["image_sizes"] = torch.tensor([[side, side]] * batch, device=vlm.device)

    @torch.no_grad()
    def read() -> None:
        vlm.model(input_ids=ids, **shown, use_cache=True, logits_to_keep=1)

    def inside() -> None:
        per = "image" if tiled else None
        with redlib.pruned(vlm.model, "fastv", keep=keep, layer=layer, per=per):
            read()

    inside()  # warm up
    ratios = [slow / fast for slow, fast in turns("FastV", read, inside, pairs, vlm.device)]
    return row(
        f"prefill with its images' encoding, batch {batch}, FastV {keep} of {size} from "
        f"layer {layer} on: time of full over pruned",
        float(np.median(ratios)), low=min(ratios), high=max(ratios), n=pairs,
    )  # fmt: skip


def _memory(name: str, *, seed: int) -> Row:
    """Memory that reading the batch adds to a process, pruned over full."""
    full, few = (isolated(_added, name, keep, seed) for keep in (None, KEEP))
    return _lessened(f"batch {BATCH} adds to its process", few, full)


def _held(vlm: VLM, batch: int, size: int, keep: int, *, seed: int) -> Row:
    """Memory that reading the batch adds to the weights, pruned over full: at its peak on a GPU,
    and of the process elsewhere."""
    visual, codebook = _drawn(vlm, batch, size, seed)

    def full() -> None:
        _read(vlm, _rows(vlm, visual))

    def few() -> None:
        _read(vlm, _rows(vlm, _choose(visual, codebook, keep)))

    measure = _peak_on_gpu if vlm.device.type == "cuda" else added_memory
    return _lessened(
        f"batch {batch}, {keep} of {size} visual tokens, adds", measure(few), measure(full)
    )


def _lessened(what: str, few: int, full: int) -> Row:
    return row(
        f"memory that a prefill of {what}, pruned over full "
        f"({few / 1e6:.0f} MB over {full / 1e6:.0f} MB)",
        few / full if full else math.nan, n=1,
    )  # fmt: skip


def _peak_on_gpu(work: Callable[[], None]) -> int:
    """The most bytes that tensors held during some work, beyond those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _added(name: str, keep: int | None, seed: int) -> int:
    torch.set_num_threads(1)
    vlm = models.load(name, device="cpu")
    visual, codebook = _drawn(vlm, BATCH, vlm.grid.size, seed)
    _read(vlm, _rows(vlm, visual[:1, :1]))  # what a first call sets up

    def work() -> None:
        _read(vlm, _rows(vlm, visual if keep is None else _choose(visual, codebook, keep)))

    return added_memory(work)


def added_memory(work: Callable[[], None]) -> int:
    """The most bytes that this process held during some work, beyond those before it.

    What a process ever held tells nothing of a small model, whose loading takes more.
    """
    process, most, done = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.001):
            most.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max([before, *most]) - before
