"""Exact forwards over many variants of one visual input, without repeating what they share.

Every experiment of the paper asks the same question many times: what does the language model say
if the visual tokens are changed a little? A causal decoder gives token j a state that depends only
on tokens 0..j, so two variants agree in every layer up to the first token that differs. The keys
and values of that common beginning are computed once (`extend`) and every variant only adds its
own tokens (`forward`). Nothing is approximated: the layers are the stock modules, called in the
stock order, and the logits equal those of one full stock forward per variant up to rounding.

    text = extend(vlm, vlm.embed(before))                       # "USER:", computed once
    rows = torch.stack([torch.cat([token, suffix]) for ...])    # (B, n, D), one row a variant
    logits = forward(vlm, text, rows)                           # (B, V) at the last position

Three things are left out because no result depends on them. The keys and values of a variant are
dropped layer by layer, which keeps memory flat. In the last layer only the last position asks a
question, so the others compute no query, no output projection and no MLP there. And the head reads
the last position alone; it runs in float32 when the model runs in half precision, since the JSD of
a nearly unchanged image is smaller than the rounding of half-precision logits.

`ablate` is the form the leave-one-out experiments use: one sequence, many sets of positions to
overwrite. It sorts the sets by their first position and shares the unchanged beginning among those
that start close together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redlib.errors import RedlibError
from redlib.models import VLM

TOKENS_PER_FORWARD = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""Tokens of one forward when the caller names no batch: enough to fill the device, no more."""

SLACK = 32
"""Positions a variant may recompute to join a group that begins earlier."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a beginning that variants share.

    Attributes:
        keys: one (1, heads, P, head width) tensor a layer, already rotated to its positions.
        values: the same for the values.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """P, the number of positions covered."""
        return self.keys[0].shape[2]

    def cut(self, length: int) -> "Prefix":
        """The first `length` positions, as views."""
        if not 1 <= length <= self.length:
            raise RedlibError(f"a prefix of {self.length} cannot be cut to {length!r}")
        return Prefix(
            tuple(key[:, :, :length] for key in self.keys),
            tuple(value[:, :, :length] for value in self.values),
        )


@torch.no_grad()
def extend(vlm: VLM, rows: Tensor, *, after: Prefix | None = None) -> Prefix:
    """The prefix that covers `after` followed by the embeddings `rows` (n, D), n >= 1."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    _decode(vlm, after, rows[None], last=None, keep=(keys, values))
    return Prefix(tuple(keys), tuple(values))


@torch.no_grad()
def forward(
    vlm: VLM,
    prefix: Prefix | None,
    rows: Tensor,
    *,
    lengths: Tensor | None = None,
    batch: int | None = None,
) -> Tensor:
    """Logits (B, V) after the prefix and each row of embeddings (B, n, D).

    Args:
        prefix: the shared beginning, or None when the rows begin at position 0.
        rows: one variant a row, on the model's device and in its dtype.
        lengths: (B,) true lengths of rows that are padded at their end; the logits are read at the
            last true position, which padding behind it cannot reach.
        batch: rows a forward; by default as many as suit the device.

    Returns float32, or float64 for a float64 model.
    """
    if rows.dim() != 3 or rows.shape[2] != vlm.width or rows.shape[1] == 0:
        raise RedlibError(f"rows must be (B, n, {vlm.width}) with n > 0; got {tuple(rows.shape)}")
    if len(rows) == 0:
        size = vlm.model.config.text_config.vocab_size
        return rows.new_zeros(0, size, dtype=reading_dtype(rows))
    if lengths is None:
        lengths = torch.full((len(rows),), rows.shape[1])
    last = lengths.to(rows.device) - 1  # (B,)
    size = rows_per_forward(vlm, rows.shape[1], batch)
    return torch.cat(
        [
            _head(vlm, _decode(vlm, prefix, rows[at : at + size], last=last[at : at + size]))
            for at in range(0, len(rows), size)
        ]
    )


@torch.no_grad()
def ablate(
    vlm: VLM,
    chain: Prefix,
    sequence: Tensor,
    changes: Sequence[Sequence[int]],
    *,
    fill: Tensor,
    batch: int | None = None,
) -> Tensor:
    """Logits (B, V) at the end of `sequence` when the positions of each change hold `fill`.

    Args:
        chain: a prefix of the unchanged sequence, long enough to reach every first change.
        sequence: (T, D) embeddings, the prompt included.
        changes: B sets of positions in 1..T-1, none empty.
        fill: (D,) what replaces them, the pad embedding in the paper.
        batch: rows a forward; by default as many as suit the device.
    """
    firsts = [min(change) for change in changes]
    if firsts and not 1 <= min(firsts) <= max(firsts) <= chain.length:
        raise RedlibError(
            f"first changes must lie in 1..{chain.length}; got {min(firsts)}..{max(firsts)}"
        )
    vocabulary = vlm.model.config.text_config.vocab_size
    logits = sequence.new_empty(len(changes), vocabulary, dtype=reading_dtype(sequence))
    order = sorted(range(len(changes)), key=firsts.__getitem__)
    while order:
        start = firsts[order[0]]
        size = rows_per_forward(vlm, len(sequence) - start, batch)
        group = [member for member in order[:size] if firsts[member] <= start + SLACK]
        order = order[len(group) :]
        rows = sequence[start:].repeat(len(group), 1, 1)  # (B, T - start, D)
        for row, member in zip(rows, group, strict=True):
            row[torch.as_tensor(changes[member], device=row.device) - start] = fill
        logits[group] = forward(vlm, chain.cut(start), rows, batch=len(group))
    return logits


def rows_per_forward(vlm: VLM, tokens: int, batch: int | None) -> int:
    """`batch`, or as many rows of `tokens` tokens as suit the device."""
    if batch is None:
        return max(1, TOKENS_PER_FORWARD[vlm.device.type] // tokens)
    if batch < 1:
        raise RedlibError(f"batch must be at least 1; got {batch!r}")
    return batch


def _decode(
    vlm: VLM,
    prefix: Prefix | None,
    rows: Tensor,
    *,
    last: Tensor | None,
    keep: tuple[list[Tensor], list[Tensor]] | None = None,
) -> Tensor | None:
    """Run the decoder layers over rows (B, n, D).

    With `last` (B,) the result is the state (B, D) at those positions, before the final norm; with
    `keep` the keys and values of prefix and rows are appended to its two lists instead.
    """
    decoder = vlm.decoder
    past = 0 if prefix is None else prefix.length
    length = rows.shape[1]
    positions = torch.arange(past, past + length, device=rows.device)
    cos, sin = decoder.rotary_emb(rows, position_ids=positions[None])
    cos, sin = cos[:, None], sin[:, None]  # (1, 1, n, head width)
    seen = torch.arange(past + length, device=rows.device)
    mask = seen <= positions[:, None]  # (n, P + n)
    state = rows
    for depth, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(state)
        key = rotate(_heads(attention.k_proj(normed), attention.head_dim), cos, sin)
        value = _heads(attention.v_proj(normed), attention.head_dim)
        if prefix is not None:
            key = _join(prefix.keys[depth], key)  # (B, heads, P + n, head width)
            value = _join(prefix.values[depth], value)
        if keep is not None:
            keep[0].append(key)
            keep[1].append(value)
        if depth == len(decoder.layers) - 1:
            if last is None:
                return None
            at = torch.arange(len(rows), device=rows.device)
            state, normed = state[at, last][:, None], normed[at, last][:, None]  # (B, 1, D)
            cos, sin = cos[0, 0, last][:, None, None], sin[0, 0, last][:, None, None]
            mask = mask[last][:, None, None]  # (B, 1, 1, P + n)
        query = rotate(_heads(attention.q_proj(normed), attention.head_dim), cos, sin)
        groups = attention.num_key_value_groups
        mixed = functional.scaled_dot_product_attention(
            query,
            spread(key, groups),
            spread(value, groups),
            attn_mask=mask,
            scale=attention.scaling,
        )  # (B, heads, n, head width)
        state = state + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        state = state + layer.mlp(layer.post_attention_layernorm(state))
    return state[:, 0]


def _head(vlm: VLM, state: Tensor) -> Tensor:
    """Logits (B, V) of last states (B, D)."""
    state = vlm.decoder.norm(state.to(reading_dtype(state)))
    return functional.linear(state, vlm.model.lm_head.weight.to(state.dtype))


def reading_dtype(tensor: Tensor) -> torch.dtype:
    """What final numbers are computed in: float32 for half precision, else the tensor's own."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, n, head width), in the half-split layout of Llama."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def spread(x: Tensor, groups: int) -> Tensor:
    """Repeat every key or value head for the `groups` query heads that share it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _heads(x: Tensor, width: int) -> Tensor:
    """(B, n, heads * width) to (B, heads, n, width)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def _join(shared: Tensor, own: Tensor) -> Tensor:
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)
