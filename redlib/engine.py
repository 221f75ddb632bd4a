"""Exact forwards over many variants of one visual input, without repeating what they share.

Every experiment of the paper asks the same question many times: what does the language model say
if the visual tokens are changed a little? `redlib.planner` finds what the variants share; here the
plan is run. Nothing is approximated: the layers are the stock modules, called in the stock order,
and the logits equal those of one full stock forward per variant up to rounding.

    pieces = Pieces(vlm, tokens, "What is this?")          # embeddings, numbered
    paths = [pieces.path([patch]) for patch in range(576)]  # one variant each
    made = plan(paths, shared=pieces.shared, budget=budget(vlm))
    said = run(vlm, made, pieces.table)                     # ids, logits, entropy of each path

Under it lie two functions on embeddings, for whoever has no variants to plan:

    text = extend(vlm, vlm.embed(before))                   # keys and values, computed once
    logits = forward(vlm, text, rows)                       # (B, V) at the last position

Three things are left out because no result depends on them. Keys and values that nobody continues
are dropped layer by layer. In the last layer only the last position asks a question, so the others
compute no query, no output projection and no MLP there. And the head reads the last position alone;
it runs in float32 when the model runs in half precision, since the JSD of a nearly unchanged image
is smaller than the rounding of half-precision logits. Of the logits in turn only the best
candidates outlive a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from redlib.errors import RedlibError
from redlib.memory import FULL, attempt, halved, release
from redlib.models import VLM
from redlib.planner import Batch, Budget, Plan, batches

TOKENS_PER_FORWARD = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""New tokens of one forward: enough to fill the device, no more."""

MEMORY_SHARE = 0.5
"""Of the free memory, what one forward may take."""

QUERIES = 64
"""Positions that ask together: the attention of a block skips the keys behind it."""

TOP = 50
"""Candidates of which the logits are kept."""


Skip = Callable[[Tensor], Tensor]
"""Of first words (B,), which (B,) bool are to be fed back and the step after them read."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a beginning that others continue.

    Attributes:
        keys: one (B, heads, P, head width) tensor a layer, already rotated to its positions.
        values: the same for the values.

    B is 1, or the number of rows that continue it.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """P, the number of positions covered."""
        return self.keys[0].shape[2]

    def cut(self, length: int) -> "Prefix":
        """The first `length` positions, as views. Raises RedlibError for a length outside 1..P."""
        if not 1 <= length <= self.length:
            raise RedlibError(f"a prefix of {self.length} cannot be cut to {length!r}")
        return self._map(lambda x: x[:, :, :length])

    def pick(self, rows: Sequence[int]) -> "Prefix":
        """The rows named, in that order; a single one is shared rather than repeated."""
        if len(set(rows)) == 1:
            return self._map(lambda x: x[rows[0] : rows[0] + 1])
        index = torch.as_tensor(rows, device=self.keys[0].device)
        return self._map(lambda x: x[index])

    def copy(self) -> "Prefix":
        """The same in memory of its own, so that what it was cut from can be freed."""
        return self._map(torch.clone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Prefix":
        return Prefix(tuple(map(change, self.keys)), tuple(map(change, self.values)))


class Pieces:
    """The embeddings that the inputs about one image are put together from, each with a number.

    Attributes:
        table: (K, D) the embeddings; visual token i has number i.
        pad: number of the embedding that stands for an ablated token.
        shared: positions before the image.

    Raises:
        RedlibError: tokens that are not (L, D), or not finite.
    """

    def __init__(self, vlm: VLM, tokens: Tensor, prompt: str) -> None:
        if tokens.dim() != 2 or tokens.shape[1] != vlm.width:
            raise RedlibError(f"tokens must be (L, {vlm.width}); got {tuple(tokens.shape)}")
        before, after = (vlm.embed(ids) for ids in vlm.prompt(prompt))
        shown = tokens.to(vlm.device, vlm.dtype)
        if not shown.isfinite().all():
            raise RedlibError(f"tokens hold NaN or infinity, in {vlm.dtype}; encode the image anew")
        end = torch.cat([vlm.visual(shown[:0]), after])  # the newline, where there is one
        self.table = torch.cat([shown, vlm.pad[None], end, before])
        self.pad = len(tokens)
        self.shared = len(before)
        self._end = np.arange(len(tokens) + 1, len(tokens) + 1 + len(end))
        self._before = np.arange(len(self.table) - len(before), len(self.table))

    def path(self, visual: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T,) the input that shows visual tokens (or pads) of these numbers in this order."""
        return np.concatenate([self._before, visual, self._end])


@dataclass(frozen=True)
class Readings:
    """What is kept of the logits of n paths, each at the step where it is read.

    Attributes:
        ids: (n, K) the best candidates, best first, of the path itself or the one it is read like.
        logits: (n, K) the path's own logits at these candidates.
        log_sum: (n,) logarithm of the sum of exp(logit) over the whole vocabulary.
        entropy: (n,) in nats, over the whole vocabulary.
        skipped: (n,) bool, whether a first word was fed back and the second step read.
        tokens: how many went through the decoder.
    """

    ids: Tensor
    logits: Tensor
    log_sum: Tensor
    entropy: Tensor
    skipped: Tensor
    tokens: int

    @property
    def top1(self) -> Tensor:
        """(n,) probability of the first of `ids`, over the whole vocabulary."""
        return (self.logits[:, 0] - self.log_sum).exp()


def budget(vlm: VLM, batch: int | None = None) -> Budget:
    """What one forward may hold on the model's device; `batch` limits its rows further.

    Raises RedlibError if `batch` is below 1.
    """
    if batch is not None and batch < 1:
        raise RedlibError(f"batch must be at least 1; got {batch!r}")
    text = vlm.decoder.config
    head = vlm.decoder.layers[0].self_attn.head_dim
    size = torch.finfo(vlm.dtype).bits // 8
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    return Budget(
        tokens=TOKENS_PER_FORWARD[vlm.device.type],
        memory=MEMORY_SHARE * free_memory(vlm.device),
        # states, queries and what comes out; gate, up and their product
        per_token=size * (6 * vlm.width + 4 * heads * head + 3 * text.intermediate_size),
        # of all layers, if they are kept, and of one layer spread over the query heads
        per_position=2 * size * head * (shared * text.num_hidden_layers + heads),
        rows=batch,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


@torch.no_grad()
def extend(vlm: VLM, rows: Tensor, *, after: Prefix | None = None) -> Prefix:
    """The prefix that covers `after` followed by the embeddings `rows` (n, D), n >= 1."""
    past = 0 if after is None else after.length
    return _decode(vlm, after, rows[None], last=None, keep=past + len(rows))[1]


@torch.no_grad()
def forward(
    vlm: VLM, prefix: Prefix | None, rows: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Logits (B, V) after the prefix and each row of embeddings (B, n, D), in one forward.

    Args:
        prefix: the shared beginning, or None when the rows begin at position 0.
        rows: one variant a row, on the model's device and in its dtype.
        lengths: (B,) true lengths of rows that are padded at their end; the logits are read at the
            last true position, which padding behind it cannot reach.

    Returns float32, or float64 for a float64 model. Raises RedlibError if `rows` is of another
    shape, or empty.
    """
    if rows.dim() != 3 or rows.shape[2] != vlm.width or 0 in rows.shape:
        raise RedlibError(f"rows must be (B, n, {vlm.width}), none empty; got {tuple(rows.shape)}")
    if lengths is None:
        lengths = torch.full((len(rows),), rows.shape[1])
    state, _ = _decode(vlm, prefix, rows, last=lengths.to(rows.device) - 1)
    return _head(vlm, state)


@torch.no_grad()
def run(
    vlm: VLM,
    plan: Plan,
    table: Tensor,
    *,
    top: int = TOP,
    skip: Skip | None = None,
) -> Readings:
    """Run a plan and read every path that it was asked for.

    Args:
        table: (K, D) the embeddings that the numbers in the paths name.
        top: candidates of which the logits are kept, at most the vocabulary.
        skip: decides whether the step behind an intact run's first word is read instead of it;
            paths read like that run are then fed the same word.

    Where memory does not suffice, the batches are halved until it does (`memory`), and the rest is
    planned anew: what was read stays, but the keys and values that others continue are gone.

    Raises:
        RedlibError: `top` below 1, or not even one path fits into memory.
    """
    if top < 1:
        raise RedlibError(f"top must be 1 or more; got {top!r}")
    work = _Work(vlm, plan, table, top, skip)
    limit, todo = plan.budget, plan.batches
    while todo:
        failed = _until_full(work, todo)
        if failed is None:
            break
        size, one = len(failed.rows), f"one forward of {failed.end} positions"
        halved(size, device=vlm.device, what="inputs", one=one)
        limit = replace(limit, tokens=size * (failed.end - failed.start) // 2)
        todo = work.remaining(limit)
    return work.readings()


def _until_full(work: "_Work", todo: Sequence[Batch]) -> Batch | None:
    """Run batches; the one for which memory did not suffice, None if all are done."""
    for number, batch in enumerate(todo):
        if attempt(work.run, number, batch) is FULL:
            return batch
    return None


class _Work:
    """A plan on its way: what has been read, and the keys and values that others will continue."""

    def __init__(self, vlm: VLM, plan: Plan, table: Tensor, top: int, skip: Skip | None) -> None:
        self.vlm, self.tree, self.table, self.skip = vlm, plan.tree, table, skip
        n, shared = len(self.tree.paths), self.tree.shared
        self.text = extend(vlm, table[self._numbers([0], 0, shared)[0]]) if shared else None
        self.tokens = shared
        self.kept: dict[int, Prefix] = {}  # by the number of a batch
        self.done = np.zeros(n, dtype=bool)
        k = min(top, vlm.model.config.text_config.vocab_size)
        self.ids = torch.zeros(n, k, dtype=torch.long, device=table.device)
        self.logits = table.new_zeros(n, k, dtype=reading_dtype(table))
        self.log_sum, self.entropy = self.logits.new_zeros(2, n)
        self.fed = torch.full((n,), -1, device=table.device)  # the first word, where it was skipped

    def remaining(self, limit: Budget) -> Sequence[Batch]:
        """What is left to run, in batches that hold to a limit."""
        self.kept.clear()
        release(self.table.device)
        return batches(self.tree, np.flatnonzero(~self.done).tolist(), limit)

    def run(self, number: int, batch: Batch) -> None:
        """Push one batch through the decoder and read it."""
        # Batches come in the order of a walk through the tree, so later ones than the parent are
        # over with all that continued them.
        for old in [old for old in self.kept if batch.parent is None or old > batch.parent]:
            del self.kept[old]
        index = torch.as_tensor(batch.rows, device=self.table.device)
        like = torch.as_tensor([self.tree.like[row] for row in batch.rows], device=index.device)
        # A row that runs again, for what others continue of it, keeps its first reading: in another
        # batch it may round otherwise, and a word that was skipped must not go before it.
        fresh = torch.as_tensor(~self.done[list(batch.rows)], device=index.device)
        intact = like == index
        rows, last = self._rows(batch, self.fed[like].masked_fill(intact, -1))
        intact &= fresh
        skipping = self.skip is not None and bool(intact.any())
        keep = batch.start + rows.shape[1] if skipping else batch.keep
        state, kept = _decode(self.vlm, self._prefix(batch), rows, last=last, keep=keep)
        self.tokens += rows.shape[0] * rows.shape[1]
        logits = _head(self.vlm, state)
        if skipping:
            self._step(index, batch.start + 1 + last, kept, logits, intact)
        self._read(index[fresh], like[fresh], logits[fresh])
        if batch.keep:
            self.kept[number] = kept if kept.length == batch.keep else kept.cut(batch.keep).copy()

    def _rows(self, batch: Batch, fed: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, n, D) of a batch and the last true place (B,) of each row."""
        numbers = self._numbers(batch.rows, batch.start, batch.end)
        lengths = torch.tensor([len(self.tree.paths[row]) for row in batch.rows]) - batch.start
        rows, lengths = self.table[numbers], lengths.to(fed.device)
        at = (fed >= 0).nonzero().flatten()
        if len(at):
            rows = functional.pad(rows, (0, 0, 0, 1))
            rows[at, lengths[at]] = self.vlm.embed(fed[at])
            lengths[at] += 1
            rows = rows[:, : int(lengths.max())]
        return rows, lengths - 1

    def _numbers(self, rows: Sequence[int], start: int, end: int) -> Tensor:
        """(B, end - start) of the paths, padded behind."""
        numbers = np.zeros((len(rows), end - start), dtype=np.int64)
        for line, row in zip(numbers, rows, strict=True):
            own = self.tree.paths[row][start:end]
            line[: len(own)] = own
        return torch.as_tensor(numbers, device=self.table.device)

    def _prefix(self, batch: Batch) -> Prefix | None:
        if batch.start == 0:
            return None
        if batch.parent is None:
            return self.text
        return self.kept[batch.parent].cut(batch.start).pick(batch.donors)

    def _step(
        self, index: Tensor, lengths: Tensor, kept: Prefix, logits: Tensor, intact: Tensor
    ) -> None:
        """Replace the logits of intact rows that begin with a word to be skipped by the next."""
        first = logits.argmax(dim=1)  # (B,)
        skipped = intact & self.skip(first)
        self.fed[index[intact]] = first.where(skipped, -1)[intact]
        for length in lengths[skipped].unique().tolist():
            at = (skipped & (lengths == length)).nonzero().flatten()
            past = kept.cut(length).pick(at.tolist())
            word = self.vlm.embed(first[at])[:, None]  # (A, 1, D)
            logits[at] = forward(self.vlm, past, word)
            self.tokens += len(at)

    def _read(self, index: Tensor, like: Tensor, logits: Tensor) -> None:
        own = (like == index).nonzero().flatten()
        self.ids[index[own]] = logits[own].topk(self.ids.shape[1], dim=1).indices
        self.ids[index] = self.ids[like]
        self.logits[index] = logits.gather(1, self.ids[index])
        log_p = logits.log_softmax(dim=1)
        self.log_sum[index] = logits.logsumexp(dim=1)
        self.entropy[index] = -(log_p.exp() * log_p).sum(dim=1)
        self.done[index.cpu().numpy()] = True

    def readings(self) -> Readings:
        """Of all paths asked, equal ones included."""
        of = torch.as_tensor(self.tree.of, device=self.ids.device)
        columns = self.ids, self.logits, self.log_sum, self.entropy, self.fed >= 0
        return Readings(*(column[of] for column in columns), tokens=self.tokens)


def _decode(
    vlm: VLM, prefix: Prefix | None, rows: Tensor, *, last: Tensor | None, keep: int = 0
) -> tuple[Tensor | None, Prefix | None]:
    """Run the decoder layers over rows (B, n, D).

    Returns the states (B, D) at the positions `last` (B,), before the final norm, and the first
    `keep` keys and values of prefix and rows together; None for what is not asked.
    """
    decoder = vlm.decoder
    past = 0 if prefix is None else prefix.length
    length = rows.shape[1]
    positions = torch.arange(past, past + length, device=rows.device)
    cos, sin = decoder.rotary_emb(rows, position_ids=positions[None])
    cos, sin = cos[:, None], sin[:, None]  # (1, 1, n, head width)
    seen = torch.arange(past + length, device=rows.device)
    mask = seen <= positions[:, None]  # (n, P + n)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    state = rows
    for depth, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(state)
        key = rotate(_heads(attention.k_proj(normed), attention.head_dim), cos, sin)
        value = _heads(attention.v_proj(normed), attention.head_dim)
        if prefix is not None:
            key = _join(prefix.keys[depth], key)  # (B, heads, P + n, head width)
            value = _join(prefix.values[depth], value)
        if keep:
            keys.append(key[:, :, :keep])
            values.append(value[:, :, :keep])
        if depth == len(decoder.layers) - 1:
            if last is None:
                break
            at = torch.arange(len(rows), device=rows.device)
            state, normed = state[at, last][:, None], normed[at, last][:, None]  # (B, 1, D)
            cos, sin = cos[0, 0, last][:, None, None], sin[0, 0, last][:, None, None]
            mask = mask[last][:, None, None]  # (B, 1, 1, P + n)
        query = rotate(_heads(attention.q_proj(normed), attention.head_dim), cos, sin)
        groups = attention.num_key_value_groups
        mixed = _attend(query, spread(key, groups), spread(value, groups), mask, attention.scaling)
        state = state + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        state = state + layer.mlp(layer.post_attention_layernorm(state))
    kept = Prefix(tuple(keys), tuple(values)) if keep else None
    return (None if last is None else state[:, 0]), kept


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Causal attention (B, heads, n, head width) of the last n positions, block by block.

    A block leaves out the keys behind its last query, which a mask alone would compute and discard.
    """
    n, behind = query.shape[2], key.shape[2] - query.shape[2]
    if n == 1:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale
        )
    blocks = []
    for at in range(0, n, QUERIES):
        end = min(at + QUERIES, n)
        blocks.append(
            functional.scaled_dot_product_attention(
                query[:, :, at:end],
                key[:, :, : behind + end],
                value[:, :, : behind + end],
                attn_mask=mask[at:end, : behind + end],
                scale=scale,
            )
        )
    return torch.cat(blocks, dim=2)


def _head(vlm: VLM, state: Tensor) -> Tensor:
    """Logits (B, V) of last states (B, D)."""
    state = vlm.decoder.norm(state.to(reading_dtype(state)))
    # A product over many rows adds float32 in an order that doubles the error of a logit, and a
    # divergence of 1e-5 then misses its 1e-4. On a CPU float64 costs nothing beside the layers.
    wide = torch.float64 if state.device.type == "cpu" else state.dtype
    logits = functional.linear(state.to(wide), vlm.model.lm_head.weight.to(wide))
    return logits.to(state.dtype)


def reading_dtype(tensor: Tensor) -> torch.dtype:
    """What final numbers are computed in: float32 for half precision, else the tensor's own."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, n, head width), in the half-split layout of Llama."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def spread(x: Tensor, groups: int) -> Tensor:
    """(B, heads, n, head width) to (B, heads * groups, ...): every head of keys or values once for
    each of the `groups` query heads that share it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _heads(x: Tensor, width: int) -> Tensor:
    """(B, n, heads * width) to (B, heads, n, width)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def _join(shared: Tensor, own: Tensor) -> Tensor:
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)
