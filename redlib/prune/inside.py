"""Pruning inside the language model: FastV.

FastV lets all visual tokens into the language model and looks, behind its first K layers, how much
attention the last token of the prompt pays to each: the probabilities of layer K - 1, mean over the
heads. The tokens that get most stay, the others leave the sequence between two layers. What follows
sees fewer keys, but every token keeps the position it had.

    layer 0 .. K-1        [text | 576 visual tokens | text]      cache of full length
    layer K ..            [text |  64 visual tokens | text]      cache of the shortened length

It is done by hooks in front of the decoder layers. Layers from K on are handed shortened hidden
states, positions and masks while a prompt is read. While an answer is written there is nothing to
shorten but the mask, whose width is that of the first layer's cache. Without a cache every step
reads the whole sequence and ranks anew, as in the method's first code.

Attention need not be computed in a form that shows its probabilities: the one row that is needed is
computed again, from the layer's own projections.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from redlib.errors import RedlibError
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept
from redlib.prune.context import precise
from redlib.prune.keep import keep_lowest
from redlib.prune.prompts import Prompt
from redlib.prune.views import Seen


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens of one unit: in `row` at `columns` (L,), of which `keep` stay; they are the `numbers`
    (L,) of the view `view`."""

    row: int
    columns: Tensor
    keep: int
    view: int
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """A batch shortened between two layers, T positions to S.

    Attributes:
        index: (B, S) which old position stands at each new one.
        blank: (B, S) bool, where a row is padded.
        length: T.
    """

    index: Tensor
    blank: Tensor
    length: int

    def along(self, values: Tensor) -> Tensor:
        """(B or 1, T, ...) to (B, S, ...)."""
        rows = torch.arange(len(self.index), device=values.device)[:, None]
        return values.expand(len(self.index), *values.shape[1:])[rows, self.index]

    def keys(self, mask: Tensor) -> Tensor:
        """(B or 1, 1, q, T + t) to (B, 1, q, S + t): no query sees a blank."""
        mask = mask.expand(len(self.index), *mask.shape[1:])
        index = self.index[:, None, None].expand(-1, 1, mask.shape[2], -1)
        seen = mask[..., : self.length].gather(3, index)
        seen = seen.masked_fill(self.blank[:, None, None], _lowest(mask.dtype))
        return torch.cat([seen, mask[..., self.length :]], 3)

    def both(self, mask: Tensor) -> Tensor:
        """(B or 1, 1, T, T) to (B, 1, S, S). A blank query sees everything: it is never read, and a
        softmax over nothing would not be a number."""
        mask = self.keys(mask)
        index = self.index[:, None, :, None].expand(-1, 1, -1, mask.shape[3])
        most = True if mask.dtype == torch.bool else 0.0
        return mask.gather(2, index).masked_fill(self.blank[:, None, :, None], most)


class Inside:
    """FastV in a stock model.

    Args:
        model: a stock LLaVA.
        layer: K, how many layers see everything.

    Raises:
        RedlibError: the model has no layer K, or attention that takes no such masks.
    """

    def __init__(self, model: nn.Module, *, layer: int = 2) -> None:
        self._decoder = model.model.language_model
        depth = len(self._decoder.layers)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer < depth:
            raise RedlibError(
                f"layer must be from 1 to {depth - 1}, the model has {depth}; got {layer!r}"
            )
        kind = self._decoder.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise RedlibError(f"pruning inside the model needs sdpa or eager attention; got {kind}")
        self.layer = layer
        self._hooks: list = []
        self.forget()

    def attach(self) -> None:
        """Put the hooks in place."""
        layers = self._decoder.layers
        hooks = [(layers[self.layer - 1], self._rank), *((each, self._shorten) for each in
                                                         layers[self.layer :])]  # fmt: skip
        self._hooks = [
            module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks
        ]

    def detach(self) -> None:
        """Take them away."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """No visual tokens in what comes next."""
        self._candidates: list[Candidates] | None = None
        self._cut: Cut | None = None

    def expect(
        self, seen: Sequence[Seen], prompt: Prompt, budget: Budget, last: list[Kept]
    ) -> None:
        """Say what the next call reads.

        Args:
            seen: its views.
            prompt: its prompts, with all visual tokens.
            budget: how many stay of each unit.
            last: where to write what stayed.
        """
        self.forget()
        self._prompt, self._last, self._candidates = prompt, last, []
        for k, (view, place) in enumerate(zip(seen, prompt.places, strict=True)):
            visual = torch.from_numpy(~view.view.layout.newlines).nonzero().flatten()
            for unit in view.units:
                numbers = torch.from_numpy(unit.numbers)
                keep = budget.count(len(numbers), unit.full)
                columns = (place.start + visual[numbers]).to(prompt.ids.device)
                self._candidates.append(Candidates(place.row, columns, keep, k, numbers))

    def _fresh(self, kwargs: dict, layer: int) -> bool:
        """Whether a layer reads a prompt, with nothing in its cache."""
        cache = kwargs.get("past_key_values")
        return cache is None or cache.get_seq_length(layer) == 0

    def _rank(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """In front of layer K - 1: who gets the attention of the last token, and so who stays."""
        if self._candidates is None or not self._fresh(kwargs, self.layer - 1):
            return
        hidden, mask = args[0], self._prompt.mask.to(args[0].device)
        copies = len(hidden) // len(mask)  # beams or samples of one prompt: they share its ranking
        grown = hidden.shape[1] - mask.shape[1]  # what was written already, without a cache
        mask = torch.cat([mask, mask.new_ones(len(mask), grown)], 1).bool()
        column = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * column).amax(1)  # (B,)
        attention = _last_row(module, hidden, kwargs, last, copies)  # (B, T)
        stays = mask.clone()
        found = [kept.scores.clone() for kept in self._last]
        kept: list[list[Tensor]] = [[] for _ in self._last]
        for each in self._candidates:
            scores = attention[each.row, each.columns]
            chosen = keep_lowest(-scores, each.keep)
            stays[each.row, each.columns] = chosen
            found[each.view][each.numbers] = scores.detach().to("cpu", torch.float64)
            kept[each.view].append(each.numbers[chosen.cpu()])
        for k, old in enumerate(self._last):
            numbers = torch.cat(kept[k]).sort().values
            self._last[k] = replace(old, kept=numbers, scores=found[k])
        left = not bool(mask[:, :1].all()) or bool(mask[:, -1].all())
        index, blank = _packed(stays, left)
        self._cut = Cut(
            index.repeat_interleave(copies, 0), blank.repeat_interleave(copies, 0), mask.shape[1]
        )

    def _shorten(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """In front of layer K and those behind it."""
        if self._cut is None:
            return None
        cut, mask = self._cut, kwargs.get("attention_mask")
        layer = module.self_attn.layer_idx
        if not self._fresh(kwargs, layer):
            if mask is None and bool(cut.blank.any()):
                width = kwargs["past_key_values"].get_seq_length(0)
                mask = torch.ones(1, 1, 1, width, dtype=torch.bool, device=args[0].device)
            return args, kwargs | {"attention_mask": None if mask is None else cut.keys(mask)}
        if mask is None and bool(cut.blank.any()):
            square = torch.ones(cut.length, cut.length, dtype=torch.bool, device=args[0].device)
            mask = square.tril()[None, None]
        kwargs = kwargs | {
            "attention_mask": None if mask is None else cut.both(mask),
            "position_embeddings": tuple(cut.along(v) for v in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = cut.along(kwargs["position_ids"])
        hidden = cut.along(args[0]) if layer == self.layer else args[0]
        return (hidden, *args[1:]), kwargs


def _last_row(layer: nn.Module, hidden: Tensor, kwargs: dict, last: Tensor, copies: int) -> Tensor:
    """(B, T) attention of the positions `last` (B,), mean over heads, of every `copies`-th row."""
    attention = layer.self_attn
    hidden = layer.input_layernorm(hidden[::copies])
    rows = torch.arange(len(hidden), device=hidden.device)
    cos, sin = (v.expand(len(hidden) * copies, -1, -1)[::copies]
                for v in kwargs["position_embeddings"])  # fmt: skip
    query = attention.q_proj(hidden[rows, last][:, None]).unflatten(-1, (-1, attention.head_dim))
    key = attention.k_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    query, key = query.transpose(1, 2), key.transpose(1, 2)  # (B, H, 1, c), (B, Hk, T, c)
    query, _ = apply_rotary_pos_emb(
        query, query, cos[rows, last][:, None], sin[rows, last][:, None]
    )
    key, _ = apply_rotary_pos_emb(key, key, cos, sin)
    key = key.repeat_interleave(attention.num_key_value_groups, 1)
    logits = (query @ key.transpose(2, 3))[:, :, 0] * attention.scaling  # (B, H, T)
    logits = precise(logits)
    mask = kwargs.get("attention_mask")
    if mask is not None:
        mask = mask.expand(len(hidden) * copies, *mask.shape[1:])[::copies, :, :][rows, :, last]
        if mask.dtype == torch.bool:  # (B, 1, T)
            logits = logits.masked_fill(~mask, -torch.inf)
        else:
            logits = logits + mask
    return logits.softmax(-1).mean(1)


def _packed(stays: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """(B, S) positions that stay, ascending, and where shorter rows are blank."""
    counts = stays.sum(1, keepdim=True)
    longest = int(counts.max())
    column = torch.arange(longest, device=stays.device)
    blank = column < longest - counts if left else column >= counts  # (B, S)
    index = torch.zeros(blank.shape, dtype=torch.int64, device=stays.device)
    index[~blank] = stays.nonzero()[:, 1]
    return index, blank


def _lowest(dtype: torch.dtype) -> float | bool:
    return False if dtype == torch.bool else torch.finfo(dtype).min
