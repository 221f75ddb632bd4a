"""A first layer that tells one image from the next, and the end of a film from its start.

Two images reach the decoder as two runs of tokens that differ in nothing but where they lie, and so
do two frames of a film. A question about the *second* image, or about the *end* of a film, has to
tell them apart. The checkpoint without marks, trained for 2,000 steps on such questions too, never
learned to: its attention looks for what a question names in its very first layers, and at that
depth a token of the second image still looks like one of the first. A large language model brings
this skill along; a decoder of six layers has to be given it.

So OneVision's decoder has a layer before the others that does nothing else. Three of its heads let
every visual token find out where it stands, and add what they find along directions of their own,
which visual tokens and words hardly use. To words these add hardly anything, as their queries are
zero, but to those that begin every prompt, which always get the same.

- The first looks for a newline among the tokens before, since one ends each image. Tokens of the
  first image find none, nor do those of a film, which has one newline behind its last frame.
- The second is a clock. It weighs the two words that begin every prompt against each other, by how
  far away they are: from nothing at the start of a film to nearly all where its 16th frame ends.
  What it adds lies in the direction of the first, so that what was learned about the second image
  serves for the end of a film. The tokens of one image, which take less than four frames, get a
  seventh of it at most.
- The third is a slower clock in a direction of its own, for films of 32 frames.
- The fourth reads the question. To words behind one that asks for the second image or the end
  (`LATE`) it adds a third direction, to those behind one that asks for the first or the start
  (`EARLY`) its opposite. So a layer that looks for what is early, or late, needs to learn one
  product of this and the marks. After 300 steps on films full of movers the place where a mover
  begins was named right in 64 of 81 held-out cases with it and in 37 without.

Marks turn in the slowest pair of rotary dimensions, which hardly turns at all; clocks in the pairs
that take several films to turn once.

The layer is set by hand (`write`) and stays as it is while the others are trained on it. Steps of
Muon would blur it within fifty: they move every direction of a matrix equally far.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

SIZE = 2.5  # of a mark, root mean square, where visual tokens have 3; a third of it hardly teaches
FOUND = 14.0  # logit of what is looked for; e^14 outweighs the other tokens of any input
RIDGE = 1e-3
EARLY, LATE = ("first", "start"), ("second", "last", "end")
LOUD = 2.0  # what is added to words behind these, in sizes of a word
SLOW = 31  # of the 32 pairs of rotary dimensions of a head
ROTARY = 64  # dimensions of a head


class Clock(NamedTuple):
    """A head that adds SIZE * sigmoid(steep * (sin(angle) - middle)), where the angle is that by
    which a pair of rotary dimensions has turned."""

    pair: int
    steep: float
    middle: float
    direction: int  # of those that visual tokens and words use least; 0 is the mark's


CLOCKS = (Clock(20, 10.0, 0.38, 0), Clock(21, 3.0, 0.45, 1))
ASKED = 2  # direction of what the question asks for


@torch.no_grad()
def silence(model: nn.Module) -> None:
    """Make the first layer add nothing: the decoder is then the one of the layers after it."""
    layer = model.model.language_model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    layer.requires_grad_(False)


@torch.no_grad()
def write(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, shown: torch.Tensor, opening: torch.Tensor
) -> None:
    """Let the first layer write marks, and keep it from being trained.

    Args:
        model: a OneVision checkpoint whose first layer is silent.
        tokenizer: the checkpoint's.
        shown: (n, D) visual tokens of training images, newlines not among them.
        opening: (2,) ids of the two words that begin every prompt.
    """
    text = model.model.language_model
    layer = text.layers[0]
    attention = layer.self_attn
    table = text.embed_tokens.weight
    words, visual = _unit(table), _unit(shown)
    newline = _unit(model.model.image_newline)[None]
    first, second = words[opening].split(1)
    of_visual, of_words = (rows.T @ rows / len(rows) for rows in (visual, words))
    both = of_visual + of_words + RIDGE * torch.eye(len(words.T)).to(words)
    ends = _finder(both, newline)
    # gives 1 on visual tokens and 0 on words, by least squares
    asks = torch.linalg.solve(both, visual.mean(0))
    unused = _unit(torch.linalg.eigh(of_visual + of_words / 2).eigenvectors.T)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.fill_(1.0)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        part.weight.zero_()
        if part.bias is not None:
            part.bias.zero_()
    loud = math.sqrt(ROTARY)  # by which attention divides its logits
    attention.q_proj.weight[SLOW] = loud * FOUND * asks
    attention.k_proj.weight[SLOW] = ends
    attention.v_proj.weight[0] = ends
    attention.o_proj.weight[:, 0] = SIZE * unused[0]
    apart = both + newline.T @ newline
    one, other = _finder(apart, first, second), _finder(apart, second, first)
    for number, clock in enumerate(CLOCKS, start=1):
        row, turn = ROTARY * number, one - other
        attention.q_proj.weight[row + SLOW] = loud * asks
        waits = clock.steep * clock.middle / 2 * turn
        attention.k_proj.weight[row + SLOW] = FOUND * (one + other) - waits
        # the query's half of a pair against the key's other half: the sine of the turn
        attention.q_proj.weight[row + clock.pair] = loud * clock.steep / 2 * asks
        attention.k_proj.weight[row + ROTARY // 2 + clock.pair] = turn
        attention.v_proj.weight[row] = one
        attention.o_proj.weight[:, row] = SIZE * unused[clock.direction]
    early, late = (words[tokenizer.convert_tokens_to_ids(list(said))] for said in (EARLY, LATE))
    of_early = _finder(both, early, late, first)
    of_late = _finder(both, late, early, first)
    row = ROTARY * (len(CLOCKS) + 1)
    # Every token asks. Where no such word stands before it, it finds the one that begins every
    # prompt, of which nothing is written.
    attention.q_proj.bias[row + SLOW] = loud
    rests = FOUND / 2 * _finder(both, first, early, late)
    attention.k_proj.weight[row + SLOW] = FOUND * (of_early + of_late) + rests
    attention.v_proj.weight[row] = of_late - of_early
    size = float(table.square().mean(-1).sqrt().mean())
    attention.o_proj.weight[:, row] = LOUD * size * unused[ASKED]
    layer.requires_grad_(False)


def _finder(others: torch.Tensor, wanted: torch.Tensor, *unwanted: torch.Tensor) -> torch.Tensor:
    """(D,) what gives 1 on the wanted rows (n, D), 0 on the unwanted, and on what has the second
    moments `others` (D, D) as little as it can."""
    rows = torch.cat((wanted, *unwanted))
    found = torch.linalg.solve(others, rows.T)  # (D, rows)
    target = torch.zeros(len(rows)).to(rows)
    target[: len(wanted)] = 1.0
    return found @ torch.linalg.solve(rows @ found, target)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows as the layer's norm hands them on."""
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
