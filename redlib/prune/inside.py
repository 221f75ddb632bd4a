"""Pruning inside the language model, between two of its layers.

Such a method lets all visual tokens into the language model and looks at the attention that some
words pay them in a layer. The tokens that get most stay, the others leave the sequence behind that
layer. What follows sees fewer keys. It may happen at several layers, each time to fewer tokens:

    layers before a cut    [text | 576 visual tokens | text]      cache of full length
    layers behind it       [text |  64 visual tokens | text]      cache of the shortened length

It is done by hooks in front of the decoder layers. Those behind a cut are handed shortened hidden
states, positions and masks while a prompt is read. While an answer is written there is nothing to
shorten but the mask, whose width is that of the first layer's cache. Without a cache every step
reads the whole sequence and ranks anew, as in FastV's first code.

Attention need not be computed in a form that shows its probabilities: the few rows that are needed
are computed again, from the layer's own projections.

What a method adds to that is in `fastv` and `sparsevlm`: at which layers, by whose attention, how
many stay behind each, and what becomes of those that leave.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from redlib.errors import RedlibError
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept
from redlib.prune.context import MERGED, highest, precise
from redlib.prune.prompts import Prompt
from redlib.prune.views import Seen


@dataclass(frozen=True, eq=False)
class Candidates:
    """Visual rows of one unit, among which one choice is made.

    Attributes:
        view, row: of which view and prompt they are.
        numbers: (n,) their numbers among the visual tokens of the view, MERGED for what stands for
            several.
        columns: (n,) where in the prompt they stand, ascending.
        text: columns of the words behind the view.
        counts: how many stay behind each cut.
    """

    view: int
    row: int
    numbers: Tensor
    columns: Tensor
    text: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Cut:
    """A batch of prompts shortened between two layers, T positions to S.

    What was written behind the prompts already, if it is read with them, goes along whole.

    Attributes:
        layer: the first that reads it.
        index: (B, S) which old position stands at each new one; of a merged row that of the last
            one before it.
        blank: (B, S) bool, where a row is padded.
        length: T.
        merged: rows that are means: row, new position, and the old positions of which.
        places: (B, S + w) the old position whose number each new one has, of w written ones too.
        gone: (B,) by how much the numbers of what comes behind fall.
    """

    layer: int
    index: Tensor
    blank: Tensor
    length: int
    merged: Sequence[tuple[int, int, Tensor]]
    places: Tensor
    gone: Tensor

    def states(self, hidden: Tensor) -> Tensor:
        """(B, T + w, D) to (B, S + w, D)."""
        short = _along(hidden, self._whole(hidden.shape[1]))
        for row, at, members in self.merged:
            short[row, at] = hidden[row, members].mean(0)
        return short

    def numbered(self, values: Tensor) -> Tensor:
        """(B or 1, T + w, ...), values of positions, to (B, S + w, ...)."""
        return _along(values, self.places)

    def keys(self, mask: Tensor) -> Tensor:
        """(B or 1, 1, q, T + t) to (B, 1, q, S + t): no query sees a blank."""
        mask = mask.expand(len(self.index), *mask.shape[1:])
        index = self.index[:, None, None].expand(-1, 1, mask.shape[2], -1)
        seen = mask[..., : self.length].gather(3, index)
        seen = seen.masked_fill(self.blank[:, None, None], _lowest(mask.dtype))
        return torch.cat([seen, mask[..., self.length :]], 3)

    def both(self, mask: Tensor) -> Tensor:
        """(B or 1, 1, T + w, T + t) to (B, 1, S + w, S + t). A blank query sees everything: it is
        never read, and a softmax over nothing would not be a number."""
        index, mask = self._whole(mask.shape[2]), self.keys(mask)
        mask = mask.gather(2, index[:, None, :, None].expand(-1, 1, -1, mask.shape[3]))
        future = torch.ones(mask.shape[2:], dtype=torch.bool, device=mask.device).triu(1)
        mask = mask.masked_fill(future, _lowest(mask.dtype))  # of equal indices
        most = True if mask.dtype == torch.bool else 0.0
        blank = nn.functional.pad(self.blank, (0, mask.shape[2] - self.blank.shape[1]))
        return mask.masked_fill(blank[:, None, :, None], most)

    def _whole(self, length: int) -> Tensor:
        """(B, S + w) the index, and what is written behind the prompts."""
        return _continued(self.index, self.length, length - self.length)


class Inside:
    """A method at work inside a stock model.

    Args:
        model: a stock LLaVA.
        layers: those whose attention ranks, counted from 0, ascending; the cuts are behind them.
        compact: whether what stays is numbered anew behind a cut; else it keeps its positions.

    Raises:
        RedlibError: the model has no such layers, or attention that takes no such masks.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], *, compact: bool) -> None:
        self._decoder = model.model.language_model
        self.depth = len(self._decoder.layers)
        kind = self._decoder.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise RedlibError(f"pruning inside the model needs sdpa or eager attention; got {kind}")
        self.layers, self._compact = tuple(layers), compact
        self._hooks: list = []
        self._read_now = False
        self.forget()

    # What a method says

    def counts(self, size: int, keep: int) -> tuple[int, ...]:
        """How many of `size` tokens stay behind each cut, `keep` behind the last."""
        raise NotImplementedError

    def raters(self, each: Candidates, last: int) -> Tensor:
        """(r,) columns of the words whose attention ranks, of a prompt that ends at column `last`;
        they are behind the candidates."""
        raise NotImplementedError

    def chosen(self, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Of candidates with scores (n,) those that stay, (k,), and those that are merged into the
        rows that are missing to `keep`, (m,)."""
        return highest(scores, keep), scores.new_empty(0, dtype=torch.int64)

    def groups(self, states: Tensor, count: int) -> list[Tensor]:
        """Which of the states (m, D) are merged into each of `count` rows: (g,) numbers of them."""
        raise NotImplementedError

    def begin(self, embedded: Tensor, each: Candidates) -> Candidates:
        """Candidates as they go in, with what the embeddings (B, T, D) say of them."""
        return each

    # At work

    def attach(self) -> None:
        """Put the hooks in place."""
        layers = self._decoder.layers
        hooks = [(layers[0], self._begin)]
        hooks += [(layer, self._shorten) for layer in layers[self.layers[0] + 1 :]]
        hooks += [(layers[layer], self._look) for layer in self.layers]
        self._hooks = [
            module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks
        ]

    def detach(self) -> None:
        """Take them away."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """No visual tokens in what comes next."""
        self._expected: list[Candidates] = []
        self._cuts: list[Cut] = []

    def expect(
        self, seen: Sequence[Seen], prompt: Prompt, budget: Budget, last: list[Kept]
    ) -> None:
        """Say what the stock model reads next, while `reading`.

        Args:
            seen: its views.
            prompt: its prompts, with all visual tokens.
            budget: how many stay of each unit.
            last: where to write what stayed.
        """
        self.forget()
        self._mask, self._last = prompt.mask.bool().cpu(), last
        expected, words = [], self._mask.clone()
        for place in prompt.places:
            words[place.row, place.start : place.start + place.length] = False
        for k, (view, place) in enumerate(zip(seen, prompt.places, strict=True)):
            visual = torch.from_numpy(~view.view.layout.newlines).nonzero().flatten()
            text = words[place.row].nonzero().flatten()
            text = text[text >= place.start + place.length]
            for unit in view.units:
                numbers = torch.from_numpy(unit.numbers)
                keep = budget.count(len(numbers), unit.full, unit.name)
                columns, counts = place.start + visual[numbers], self.counts(len(numbers), keep)
                expected.append(Candidates(k, place.row, numbers, columns, text, counts))
        self._expected = expected

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the stock model reads what was expected. At all other times a prompt is somebody
        else's, and only answers to the last one are gone on with."""
        self._read_now = True
        try:
            yield
        finally:
            self._read_now = False

    def average(self) -> float:
        """Visual tokens that a layer reads, mean over all layers, of what the last call read."""
        return sum(
            read_a_layer(self.layers, (len(each.numbers), *each.counts), self.depth)
            for each in self._expected
        )

    def _fresh(self, kwargs: dict, layer: int) -> bool:
        """Whether a layer reads a prompt, with nothing in its cache."""
        cache = kwargs.get("past_key_values")
        return cache is None or cache.get_seq_length(layer) == 0

    def _is_ours(self, kwargs: dict, layer: int, new: int) -> bool:
        """Whether a layer goes on, by `new` positions, with a cache of prompts that these cuts have
        shortened: its keys are fewer than the first layer's by what they took."""
        cuts = [cut for cut in self._cuts if cut.layer <= layer]
        if not cuts:
            return False
        cache = kwargs["past_key_values"]
        read = cache.get_seq_length(0) - new  # the first layer has the new ones already
        taken = sum(cut.length - cut.index.shape[1] for cut in cuts)
        return read >= cuts[0].length and cache.get_seq_length(layer) == read - taken

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """In front of the first layer."""
        if not self._read_now or not self._fresh(kwargs, 0):
            return
        hidden = args[0]
        self._copies = len(hidden) // len(self._mask)  # beams of one prompt share its ranking
        self._real, self._cuts = self._mask, []
        self._now = [self.begin(hidden[:: self._copies], each) for each in self._expected]

    def _look(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """In front of a layer that ranks: how much attention every candidate gets."""
        layer, hidden = module.self_attn.layer_idx, args[0]
        if not self._read_now or not self._fresh(kwargs, layer):
            return
        real = self._real
        last = (real * torch.arange(real.shape[1])).amax(1).tolist()
        if kwargs.get("past_key_values") is None and hidden.shape[1] > real.shape[1]:
            last = [hidden.shape[1] - 1] * len(real)  # written one by one, ranked by each anew
        raters = [self.raters(each, last[each.row]) for each in self._now]
        asked: list[list[Tensor]] = [[] for _ in real]
        for each, of in zip(self._now, raters, strict=True):
            asked[each.row].append(of)
        positions = [
            torch.cat(of).unique() if of else torch.zeros(1, dtype=torch.int64) for of in asked
        ]
        padded = nn.utils.rnn.pad_sequence(positions, batch_first=True).to(hidden.device)  # (B, R)
        attention = _rows(module, hidden, kwargs, padded, self._copies)  # (B, R, T)
        self._scores = [
            attention[each.row][torch.searchsorted(positions[each.row], of)][:, each.columns]
            .mean(0).detach().cpu()
            for each, of in zip(self._now, raters, strict=True)
        ]  # fmt: skip
        if layer == self.layers[0]:
            found = [kept.scores.clone() for kept in self._last]
            for each, scores in zip(self._now, self._scores, strict=True):
                found[each.view][each.numbers] = scores.double()
            for k, scores in enumerate(found):
                self._last[k] = replace(self._last[k], scores=scores)

    def _shorten(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """In front of a layer behind the first cut."""
        layer, hidden = module.self_attn.layer_idx, args[0]
        cuts = [cut for cut in self._cuts if cut.layer <= layer]
        fresh = self._fresh(kwargs, layer)
        if not (self._read_now if fresh else self._is_ours(kwargs, layer, hidden.shape[1])):
            return None
        if not fresh:
            for cut in cuts:
                kwargs = kwargs | self._written(cut, hidden, kwargs)
            return args, kwargs | _as_wide_as_the_cache(kwargs, layer)
        for cut in cuts:
            kwargs = kwargs | self._read(cut, hidden.device, kwargs)
        if layer - 1 in self.layers:
            cut = self._cut(layer, hidden)
            self._cuts.append(cut)
            kwargs = kwargs | self._read(cut, hidden.device, kwargs)
            hidden = cut.states(hidden)
        return (hidden, *args[1:]), kwargs | _as_wide_as_the_cache(kwargs, layer)

    def _read(self, cut: Cut, device: torch.device, kwargs: dict) -> dict:
        """What changes for a layer behind a cut while a prompt is read."""
        mask = kwargs.get("attention_mask")
        if mask is None and bool(cut.blank.any()):
            length = kwargs["position_embeddings"][0].shape[1]
            square = torch.ones(length, length, dtype=torch.bool, device=device)
            mask = square.tril()[None, None]
        short = {
            "attention_mask": None if mask is None else cut.both(mask),
            "position_embeddings": tuple(cut.numbered(v) for v in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            short["position_ids"] = cut.numbered(kwargs["position_ids"])
        return short

    def _written(self, cut: Cut, hidden: Tensor, kwargs: dict) -> dict:
        """What changes while an answer is written."""
        mask, short = kwargs.get("attention_mask"), {}
        if mask is None and bool(cut.blank.any()):
            width = kwargs["past_key_values"].get_seq_length(0)
            width -= self._cuts[0].length - cut.length  # what cuts before this one took
            mask = torch.ones(1, 1, 1, width, dtype=torch.bool, device=hidden.device)
        if mask is not None:
            short["attention_mask"] = cut.keys(mask)
        if self._compact:
            places = kwargs["position_ids"] - cut.gone[:, None]
            short["position_ids"] = places
            short["position_embeddings"] = self._decoder.rotary_emb(hidden, position_ids=places)
        return short

    def _cut(self, layer: int, hidden: Tensor) -> Cut:
        """Who stays in front of a layer, by the scores of the one before, and where.

        hidden: (B * copies, T, D).
        """
        stage, real = self.layers.index(layer - 1), self._real
        stays, merged, picked = real.clone(), [[] for _ in real], []
        for each, scores in zip(self._now, self._scores, strict=True):
            keep, line = each.counts[stage], merged[each.row]
            best, poor = self.chosen(scores, keep)
            best, sources = best.sort().values, each.columns[poor]
            stays[each.row, each.columns] = False
            stays[each.row, each.columns[best]] = True
            groups = []
            if len(best) < keep:
                states = hidden[each.row * self._copies, sources]
                groups = self.groups(states, keep - len(best))
            picked.append((best, slice(len(line), len(line) + len(groups))))
            line += [(int(each.columns[best[-1]]), sources[group]) for group in groups]
        left = not bool(real[:, 0].all()) or bool(real[:, -1].all())
        index, blank, moved, made = _packed(
            stays, [[at for at, _ in line] for line in merged], left
        )
        written = hidden.shape[1] - real.shape[1]
        places = _continued(index, real.shape[1], written)
        if self._compact:  # of as many as are left, the first
            old, new = (nn.functional.pad(of, (0, written), value=True) for of in (real, ~blank))
            places[new] = torch.cat(
                [
                    was.nonzero().flatten()[: int(now.sum())]
                    for was, now in zip(old, new, strict=True)
                ]
            )
        now = []
        for each, (best, new) in zip(self._now, picked, strict=True):
            own, new = moved[each.row], made[each.row][new]
            now.append(
                replace(
                    each,
                    numbers=torch.cat([each.numbers[best], torch.full_like(new, MERGED)]),
                    columns=torch.cat([own[each.columns[best]], new]),
                    text=own[each.text],
                )
            )
        self._now = now
        self._real = ~blank
        if layer - 1 == self.layers[-1]:
            self._tell()
        means = [
            (row * self._copies + copy, int(at), of)
            for row, line in enumerate(merged)
            for (_, of), at in zip(line, made[row], strict=True)
            for copy in range(self._copies)
        ]
        index, blank, places, gone = (
            each.repeat_interleave(self._copies, 0).to(hidden.device)
            for each in (index, blank, places, real.sum(1) - self._real.sum(1))
        )
        return Cut(layer, index, blank, real.shape[1], means, places, gone)

    def _tell(self) -> None:
        """Write down what is left of each view, in the order in which it stands."""
        for k, old in enumerate(self._last):
            of = [each for each in self._now if each.view == k]
            order = torch.cat([each.columns for each in of]).argsort()
            numbers = torch.cat([each.numbers for each in of])[order]
            self._last[k] = replace(old, kept=numbers)


def read_a_layer(layers: Sequence[int], counts: Sequence[int], depth: int) -> float:
    """Visual tokens that each of `depth` layers reads on average.

    layers: those behind which tokens leave. counts: before the first cut, and behind each.
    """
    ends = [0, *(layer + 1 for layer in layers), depth]
    spans = [b - a for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return sum(span * count for span, count in zip(spans, counts, strict=True)) / depth


def _rows(layer: nn.Module, hidden: Tensor, kwargs: dict, positions: Tensor, copies: int) -> Tensor:
    """(B, R, T) attention that the positions (B, R) pay in a layer, mean over heads; of every
    `copies`-th row."""
    attention = layer.self_attn
    hidden = layer.input_layernorm(hidden[::copies])
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    cos, sin = (v.expand(len(hidden) * copies, -1, -1)[::copies]
                for v in kwargs["position_embeddings"])  # fmt: skip
    query = attention.q_proj(hidden[rows, positions]).unflatten(-1, (-1, attention.head_dim))
    key = attention.k_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    query, key = query.transpose(1, 2), key.transpose(1, 2)  # (B, H, R, c), (B, Hk, T, c)
    query, _ = apply_rotary_pos_emb(query, query, cos[rows, positions], sin[rows, positions])
    key, _ = apply_rotary_pos_emb(key, key, cos, sin)
    key = key.repeat_interleave(attention.num_key_value_groups, 1)
    logits = precise(query @ key.transpose(2, 3) * attention.scaling)  # (B, H, R, T)
    future = torch.arange(logits.shape[3], device=hidden.device) > positions[..., None]  # (B, R, T)
    logits = logits.masked_fill(future[:, None], -torch.inf)
    mask = kwargs.get("attention_mask")
    if mask is not None:
        mask = mask.expand(len(hidden) * copies, *mask.shape[1:])[::copies, 0]
        mask = mask[rows, positions, : logits.shape[3]]  # a cache of fixed length is longer
        if mask.dtype == torch.bool:  # (B, R, T)
            logits = logits.masked_fill(~mask[:, None], -torch.inf)
        else:
            logits = logits + mask[:, None]
    return logits.softmax(-1).mean(1)


def _along(values: Tensor, index: Tensor) -> Tensor:
    """(B or 1, T, ...) at the positions (B, S), (B, S, ...)."""
    rows = torch.arange(len(index), device=values.device)[:, None]
    return values.expand(len(index), *values.shape[1:])[rows, index]


def _continued(index: Tensor, start: int, count: int) -> Tensor:
    """(B, S) positions and the `count` ones from `start` on, (B, S + count)."""
    more = torch.arange(start, start + count, device=index.device)
    return torch.cat([index, more.expand(len(index), -1)], 1)


def _packed(
    stays: Tensor, after: Sequence[Sequence[int]], left: bool
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Rows of a batch closed up, with new ones among them.

    Args:
        stays: (B, T) bool.
        after: for each row the positions behind which new ones are put.
        left: whether shorter rows are padded on the left.

    Returns:
        (B, S) old positions, of a new one that which it is put behind; (B, S) bool where a row is
        padded; for each row (T,) where every old position stands; for each row (m,) where the new
        ones do.
    """
    lines, orders = [], []
    for row, behind in zip(stays, after, strict=True):
        keys = [2 * row.nonzero().flatten(), 2 * torch.tensor(behind, dtype=torch.int64) + 1]
        keys, order = torch.cat(keys).sort(stable=True)
        lines.append(keys // 2)
        orders.append(order.argsort())
    lengths = torch.tensor([[len(line)] for line in lines])
    column = torch.arange(int(lengths.max()))
    blank = column < column[-1] + 1 - lengths if left else column >= lengths
    index = torch.zeros(blank.shape, dtype=torch.int64)
    index[~blank] = torch.cat(lines)
    moved, made = [], []
    for row, padded, order in zip(stays, blank, orders, strict=True):
        order = order + int(padded.long().argmin())
        count = int(row.sum())
        moved.append(torch.zeros(len(row), dtype=torch.int64).masked_scatter(row, order[:count]))
        made.append(order[count:])
    return index, blank, moved, made


def _as_wide_as_the_cache(kwargs: dict, layer: int) -> dict:
    """The mask of a layer whose cache has a fixed length: what is left over is not seen."""
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if cache is None or mask is None:
        return {}
    missing = cache.get_max_length(layer) - mask.shape[-1]  # -1 if the length is not fixed
    mask = nn.functional.pad(mask, (0, max(missing, 0)), value=_lowest(mask.dtype))
    return {"attention_mask": mask}


def _lowest(dtype: torch.dtype) -> float | bool:
    return False if dtype == torch.bool else torch.finfo(dtype).min
