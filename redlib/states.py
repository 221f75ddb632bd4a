"""What other methods read inside the language model: attention, contributions, layer-wise words.

Pruning methods before this paper rank visual tokens by intermediate states. This module reads those
states from a stock forward, so that they can be compared with what the model finally says.

* Text-to-image attention: the softmax weight that the last prompt position gives to each visual
  token, mean over heads (eq. 3). The softmax runs over the whole sequence, as in the model.
* Contribution: a weight alone says nothing about what is added. Visual token j adds the vector
  sum over heads of (weight x value), through the output projection (eq. 4); its norm is what the
  hidden state actually receives.
* Ranks: as depth grows, the state of one token turns into that of the next (section 7.1). Reading
  every layer with the model's own final norm and head gives the rank of both tokens.

Keys and values come from the cache that the stock forward fills; only the query of one position is
computed again, since a fused attention kernel returns no weights.

    states = read(vlm, encoded.tokens[0], prompt="What does this image show? ...")
    states.attention[vlm.layers[1]]        # (L,) weights of the middle layer
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from redlib.engine import reading_dtype, rotate, spread
from redlib.errors import RedlibError
from redlib.memory import undivided
from redlib.models import VLM
from redlib.probe import is_article


@dataclass(frozen=True)
class States:
    """Intermediate states of the position that is about to answer.

    Attributes:
        attention: (layers, L), mean over heads of the weight on each visual token.
        contribution: (layers, L), norm of what each visual token adds to the state.
        word: the token decoded at that position.
        article: whether that position is an article fed back after the prompt.
    """

    attention: np.ndarray
    contribution: np.ndarray
    word: str
    article: bool


@torch.no_grad()
def read(vlm: VLM, tokens: Tensor, *, prompt: str) -> States:
    """Attention and contributions of the visual tokens (L, D) of one image.

    The asking position is the last of the prompt; if the word decoded there is an article, the
    article is fed and its position asks instead, as in the single-token probe.

    Raises RedlibError where memory does not suffice for the forward, as `token_ranks` does.
    """
    before, after = (vlm.embed(ids) for ids in vlm.prompt(prompt))
    sequence = torch.cat([before, vlm.visual(tokens), after])[None]  # (1, T, D)
    output = _run(vlm, sequence)
    best = _lens(vlm, output.last_hidden_state[:, -1], normed=True).argmax(dim=1)
    article = bool(is_article(vlm, best))
    if article:
        sequence = torch.cat([sequence, vlm.embed(best)[None]], dim=1)
        output = _run(vlm, sequence)
        best = _lens(vlm, output.last_hidden_state[:, -1], normed=True).argmax(dim=1)
    visual = slice(len(before), len(before) + len(tokens))
    position = torch.tensor([[sequence.shape[1] - 1]], device=sequence.device)
    cos, sin = vlm.decoder.rotary_emb(sequence, position_ids=position)
    attention, contribution = [], []
    for depth, layer in enumerate(vlm.decoder.layers):
        cached = output.past_key_values.layers[depth]
        weights, added = _attend(
            layer,
            output.hidden_states[depth][:, -1:],
            cached.keys,
            cached.values,
            cos[:, None],
            sin[:, None],
            visual,
        )
        attention.append(weights)
        contribution.append(added)
    return States(
        attention=torch.stack(attention).cpu().numpy(),
        contribution=torch.stack(contribution).cpu().numpy(),
        word=vlm.word(int(best)),
        article=article,
    )


def attention(vlm: VLM, tokens: Tensor, *, prompt: str) -> np.ndarray:
    """Text-to-image attention (layers, L) of one image, mean over heads; see `read`."""
    return read(vlm, tokens, prompt=prompt).attention


@torch.no_grad()
def token_ranks(vlm: VLM, ids: Tensor, *, tokens: Tensor | None = None) -> pd.DataFrame:
    """How the state of a token turns, layer by layer, into that of the next one (section 7.1).

    Args:
        ids: (T,) token ids of a text, T >= 2.
        tokens: (L, D) visual tokens put in place of the one image placeholder in `ids`, if any.

    Returns one row for every layer 0..layers (0 is the input embedding) and every position of text
    whose next token is text too: layer, depth (layer / layers), position, current, next, and their
    ranks under the head, rank_current and rank_next (1 is the best). Raises RedlibError for fewer
    than two ids, or unless there is one placeholder with `tokens` and none without.
    """
    ids = torch.as_tensor(ids, dtype=torch.long, device=vlm.device)
    marker = vlm.model.config.image_token_id
    places = (ids == marker).nonzero().flatten().tolist()
    if len(ids) < 2 or len(places) != (0 if tokens is None else 1):
        raise RedlibError(
            "token_ranks needs at least two ids, and one image placeholder exactly if visual tokens"
            f" are given; got {len(ids)} ids with {len(places)}"
        )
    sequence = vlm.embed(ids)
    index = torch.arange(len(ids), device=ids.device)
    where = index.clone()  # place of each id in the sequence
    if tokens is not None:
        at = places[0]
        shown = vlm.visual(tokens)
        sequence = torch.cat([sequence[:at], shown, sequence[at + 1 :]])
        where[at + 1 :] += len(shown) - 1
    read_at = index[:-1][(ids[:-1] != marker) & (ids[1:] != marker)]  # (P,)
    current, following = ids[read_at], ids[read_at + 1]
    output = _run(vlm, sequence[None])
    depth = len(output.hidden_states) - 1
    frames = []
    for layer, state in enumerate(output.hidden_states):
        # Stock decoders return the last state after the final norm, the others before it.
        logits = _lens(vlm, state[0, where[read_at]], normed=layer == depth)  # (P, V)
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "depth": layer / depth,
                    "position": read_at.cpu().numpy(),
                    "current": [vlm.word(token) for token in current.tolist()],
                    "next": [vlm.word(token) for token in following.tolist()],
                    "rank_current": _rank(logits, current).cpu().numpy(),
                    "rank_next": _rank(logits, following).cpu().numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _run(vlm: VLM, sequence: Tensor):
    """Stock forward of (1, T, D) embeddings with hidden states and cache."""
    return undivided(
        partial(vlm.decoder, use_cache=True, output_hidden_states=True, inputs_embeds=sequence),
        device=vlm.device,
        one=f"one forward of {sequence.shape[1]} positions with the states of every layer",
    )


def _lens(vlm: VLM, state: Tensor, *, normed: bool) -> Tensor:
    """Logits (..., V) of states (..., D) under the model's final norm and head."""
    return vlm.model.lm_head(state if normed else vlm.decoder.norm(state))


def _attend(
    layer: nn.Module,
    state: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    visual: slice,
) -> tuple[Tensor, Tensor]:
    """Weights and norms of contributions (L,) of the visual positions, for one asking state.

    state (1, 1, D); key and value (1, kv heads, T, head width), keys already rotated.
    """
    module = layer.self_attn
    query = module.q_proj(layer.input_layernorm(state)).unflatten(-1, (-1, module.head_dim))
    query = rotate(query.transpose(1, 2), cos, sin)  # (1, heads, 1, head width)
    precise = reading_dtype(state)
    key, value = (spread(part, module.num_key_value_groups).to(precise) for part in (key, value))
    scores = query.to(precise) @ key.transpose(2, 3) * module.scaling  # (1, heads, 1, T)
    weights = scores.softmax(dim=-1)[0, :, 0, visual]  # (heads, L)
    moved = weights[..., None] * value[0, :, visual]  # (heads, L, head width)
    moved = moved.transpose(0, 1).flatten(1)  # (L, heads * head width)
    # The bias of the output projection, if there is one, belongs to no token.
    added = functional.linear(moved, _weight(module.o_proj).to(precise))  # (L, D)
    return weights.mean(dim=0), added.norm(dim=-1)


def _weight(linear: nn.Module) -> Tensor:
    """(out, in) the weight of a linear layer, also of one that stores it in fewer bits: what it
    makes of each unit vector."""
    weight = linear.weight
    if weight.is_floating_point():
        return weight
    unit = torch.eye(linear.in_features, dtype=torch.float16, device=weight.device)
    made = linear(unit)
    return (made if linear.bias is None else made - linear.bias).T


def _rank(logits: Tensor, ids: Tensor) -> Tensor:
    """1 + how many candidates beat each id: (P,) from logits (P, V) and ids (P,)."""
    own = logits.gather(1, ids[:, None])
    return 1 + (logits > own).sum(dim=1)
