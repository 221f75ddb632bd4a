"""Greedy answers where the language model itself prunes, with its first layers read once per image.

FastV (`redlib.prune.fastv`) drops visual tokens behind its first K layers, where the last token of
the prompt pays them little attention. What stays depends on the question, so from there on every
question has a sequence of its own. Up to there nothing does: the image stands before the question,
and in a causal decoder its states are the same whatever is asked.

    layers 0 .. K-1    [text | all visual tokens]    once per image
                       [questions]                   packed behind it, as in `answering`
    attention of each question's last word in layer K-1: one ranking for all budgets
    layers K ..        [text | kept | question]      a row per question, budget by budget

Every token keeps its position and the stock layers are called in the stock order, so the answers
are those of `generate` under `redlib.pruned`, question by question. A question in a batch that does
not fit into memory is asked again with half as many beside it (`memory`).

    told = answers_inside(vlm, looked, questions, [Budget(keep=144), Budget(keep=64)])
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from redlib.bench.answering import Packed, end_ids
from redlib.engine import rotate, spread
from redlib.memory import in_parts, undivided
from redlib.models import VLM
from redlib.planner import grow
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept, everything
from redlib.prune.context import precise
from redlib.prune.fastv import FastV
from redlib.prune.keep import keep_lowest
from redlib.prune.views import Seen

Said = tuple[str, list[Kept]]
"""An answer, and for each image or film which tokens stayed for it."""

Turns = tuple[Tensor, Tensor]
"""Cosines and sines (B, T, c) that turn queries and keys to their positions."""


@dataclass(frozen=True, eq=False)
class Told:
    """Answers at one budget.

    Attributes:
        texts: one per question.
        kept: per question, for each image or film which tokens stayed.
    """

    texts: list[str]
    kept: list[list[Kept]]


@torch.inference_mode()
def answers_inside(
    vlm: VLM,
    looked: Sequence[Seen],
    questions: Sequence[str],
    budgets: Sequence[Budget],
    *,
    max_new_tokens: int = 8,
    batch: int = 64,
) -> list[Told]:
    """Greedy answers to questions about the images of one prompt, for each budget.

    Args:
        vlm: the model.
        looked: its images or films, as `looking.look` returns them.
        questions: texts, as they stand in the prompt after the image.
        budgets: how many visual tokens stay of each unit behind the pruning layer.
        max_new_tokens: at most so many tokens per answer.
        batch: at most so many questions in one forward.

    Raises:
        RedlibError: the model has too few layers, attention that takes no masks, or memory does not
            suffice for the images or for one question about them.
    """
    depth = FastV(vlm.model).layers[0] + 1
    whole = [everything(seen) for seen in looked]
    visual = torch.cat([choice.rows for choice in whole]).to(vlm.dtype)
    blank = [choice.kept for choice in whole]
    prompts = [vlm.prompt(text) for text in questions]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, (prefix, _) in enumerate(prompts):
        groups.setdefault(tuple(prefix.tolist()), []).append(row)
    told = [Told([""] * len(prompts), [[] for _ in prompts]) for _ in budgets]

    def ask(image: _Image, before: int, texts: Sequence[Tensor]) -> list[list[Said]]:
        """For each question (T2,) behind `before` words and the image, an answer per budget."""
        tree = grow([ids.cpu().numpy() for ids in texts], shared=0)
        asked = _Asked(image, Packed(tree))
        attention = asked.attention[:, before : before + len(visual)]
        each: list[list[Said]] = [[] for _ in texts]
        for budget in budgets:
            chosen = [_choose(looked, blank, scores, budget) for scores in attention]
            stays = torch.stack([rows for _, rows in chosen])
            stays = torch.cat([stays.new_ones(len(stays), before), stays], 1)
            found = asked.answer(stays, max_new_tokens)
            for own, of in zip(each, tree.of, strict=True):
                text = vlm.processor.tokenizer.decode(found[of], skip_special_tokens=True)
                own.append((text.strip(), chosen[of][0]))
        return each

    for prefix, rows in groups.items():
        sight = torch.cat([vlm.embed(prefix), visual])
        one = f"one forward of {len(sight)} positions"
        image = undivided(_Image, vlm, sight, depth, device=vlm.device, one=one)
        parts = in_parts(
            partial(ask, image, len(prefix)),
            [prompts[row][1] for row in rows],
            batch,
            device=vlm.device,
            what="questions",
            one=f"one question behind {len(sight)} positions",
        )
        for row, each in zip(rows, chain.from_iterable(parts), strict=True):
            for of, (text, kept) in zip(told, each, strict=True):
                of.texts[row], of.kept[row] = text, kept
    return told


def _choose(
    looked: Sequence[Seen], blank: Sequence[Kept], attention: Tensor, budget: Budget
) -> tuple[list[Kept], Tensor]:
    """What stays of each view, and which of all visual rows (R,), newlines included.

    attention: (R,) that each row gets.
    """
    kept, stays, start = [], torch.ones(len(attention), dtype=torch.bool), 0
    for seen, old in zip(looked, blank, strict=True):
        newlines = torch.from_numpy(seen.view.layout.newlines)
        columns = start + (~newlines).nonzero().flatten()  # of its visual tokens
        start += len(newlines)
        scores, numbers = old.scores.clone(), []
        for unit in seen.units:
            own = torch.from_numpy(unit.numbers)
            given = attention[columns[own].to(attention.device)]
            chosen = keep_lowest(-given, budget.count(len(own), unit.full)).cpu()
            stays[columns[own]] = chosen
            scores[own] = given.to("cpu", scores.dtype)
            numbers.append(own[chosen])
        kept.append(replace(old, kept=torch.cat(numbers).sort().values, scores=scores))
    return kept, stays


class _Image:
    """Text and image in front of all questions, behind the first `depth` layers.

    Attributes:
        states: (P, D) what layer `depth` gets.
        cached: keys and values (1, heads, P, c) of each layer before it.
    """

    def __init__(self, vlm: VLM, rows: Tensor, depth: int) -> None:
        self.vlm, self.depth = vlm, depth
        cache, places = DynamicCache(config=vlm.decoder.config), torch.arange(len(rows))
        mask = _hidden(torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1), vlm)
        layers, turns = vlm.decoder.layers[:depth], _turns(vlm, places[None])
        self.states = _through(layers, rows[None], mask[None, None], turns, cache)[0]
        self.cached = _cached(cache, depth)


class _Asked:
    """Questions about an image behind the first layers, ready to go on with any choice of tokens.

    Attributes:
        attention: (n, P + Q) that the last word of each question pays, mean over heads.
    """

    def __init__(self, image: _Image, packed: Packed) -> None:
        self._vlm, self._depth, self._packed = image.vlm, image.depth, packed
        self._base = len(image.states)
        *first, ranking = self._vlm.decoder.layers[: self._depth]
        cache = self._cache(image.cached)
        states, mask, places = self._next(packed)
        turns = _turns(self._vlm, places)
        states = _through(first, states, mask, turns, cache)
        last = ranking.input_layernorm(states[0, packed.last])  # (n, D)
        states = _through([ranking], states, mask, turns, cache)
        self._cached = _cached(cache, self._depth)
        self._states = torch.cat([image.states, states[0]])  # (P + Q, D)
        self._places = torch.cat([torch.arange(self._base), places[0]])
        keys = self._cached[-1][0][0]  # (heads, P + Q, c)
        cos, sin = (each[0, packed.last, None] for each in turns)  # (n, 1, c)
        self.attention = _attention(ranking, last, keys, mask[0, 0, packed.last], cos, sin)

    def answer(self, stays: Tensor, max_new_tokens: int) -> list[list[int]]:
        """Token ids of the answers, without the end, if of text and image the positions `stays`
        (n, P) alone go on behind the first layers."""
        vlm, depth = self._vlm, self._depth
        packed, cache = copy.deepcopy(self._packed), self._cache(self._cached)
        early, late, ends = vlm.decoder.layers[:depth], vlm.decoder.layers[depth:], end_ids(vlm)
        index, padded = self._left(stays)
        states, places = self._states[index.to(vlm.device)], self._places[index]
        future = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool).triu(1)
        mask = _hidden(future | padded[:, None], vlm)[:, None]  # (n, 1, S, S)
        for _ in range(max_new_tokens):
            states = _through(late, states, mask, _turns(vlm, places), cache)[:, -1]  # (n, D)
            words = vlm.model.lm_head(vlm.decoder.norm(states)).argmax(dim=-1).tolist()
            open_ones = packed.say(words, ends)
            if not open_ones:
                break
            for layer in cache.layers[depth:]:
                layer.batch_select_indices(torch.tensor(open_ones, device=vlm.device))
            padded = padded[open_ones]
            padded = torch.cat([padded, padded.new_zeros(len(padded), 1)], 1)
            states, mask, places = self._next(packed)
            states = _through(early, states, mask, _turns(vlm, places), cache)
            states, places = states.transpose(0, 1), places.T  # (n, 1, D), (n, 1)
            mask = _hidden(padded, vlm)[:, None, None]  # (n, 1, 1, S)
        return packed.found

    def _left(self, stays: Tensor) -> tuple[Tensor, Tensor]:
        """(n, S) what goes on, of text, image and question, and where shorter rows are padded."""
        rows = [
            np.concatenate([np.flatnonzero(own), self._base + of])
            for own, of in zip(stays.numpy(), self._packed.cells, strict=True)
        ]
        longest = max(map(len, rows))
        index = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
        padded = np.arange(longest) < longest - np.array([[len(row)] for row in rows])
        return torch.from_numpy(index), torch.from_numpy(padded)

    def _next(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (1, q, D), mask (1, 1, q, P + Q) and positions (1, q) of what is read next."""
        mask = packed.mask(self._base, self._vlm.dtype).to(self._vlm.device)
        places = self._base + torch.tensor([packed.place])
        return self._vlm.embed(packed.ids)[None], mask, places

    def _cache(self, cached: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
        cache = DynamicCache(config=self._vlm.decoder.config)
        for layer, (keys, values) in enumerate(cached):
            cache.update(keys, values, layer)
        return cache


def _through(
    layers: Iterable[nn.Module], states: Tensor, mask: Tensor, turns: Turns, cache: DynamicCache
) -> Tensor:
    """States (B, T, D) behind some layers, whose keys and values the cache keeps."""
    for layer in layers:
        states = layer(
            states, attention_mask=mask, position_embeddings=turns, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
    return states


def _attention(
    layer: nn.Module, normed: Tensor, keys: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """(n, T) attention of single positions, mean over heads.

    normed: (n, D) what the layer's projections get. keys: (heads, T, c), turned. mask: (n, T),
    additive. cos, sin: (n, 1, c).
    """
    attention = layer.self_attn
    query = attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim))  # (n, heads, c)
    keys = spread(keys[None], attention.num_key_value_groups)[0]
    logits = torch.einsum("nhc,htc->nht", rotate(query, cos, sin), keys) * attention.scaling
    return (precise(logits) + mask[:, None]).softmax(-1).mean(1)


def _turns(vlm: VLM, places: Tensor) -> Turns:
    """For positions (B, T)."""
    return vlm.decoder.rotary_emb(vlm.pad, position_ids=places.to(vlm.device))


def _hidden(hidden: Tensor, vlm: VLM) -> Tensor:
    """An additive mask, since eager attention adds its mask and would read True as 1."""
    mask = torch.zeros(hidden.shape, dtype=vlm.dtype)
    return mask.masked_fill_(hidden, torch.finfo(vlm.dtype).min).to(vlm.device)


def _cached(cache: DynamicCache, depth: int) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((layer.keys, layer.values) for layer in cache.layers[:depth])
