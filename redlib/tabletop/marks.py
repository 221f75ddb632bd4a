"""A first layer that marks the tokens of every image but the first.

Two images reach the decoder as two runs of tokens that differ in nothing but where they lie. A
question about the *second* image has to tell them apart. The checkpoint without marks, trained for
2,000 steps on such questions too, never learned to: its attention looks for what a question names
in its very first layers, and at that depth a token of the second image still looks like one of the
first. A large language model brings this skill along; a decoder of six layers has to be given it.

So OneVision's decoder has a layer before the others that does nothing else. What tells images apart
is the newline that ends each of them. The layer's first head lets every visual token look for one
among the tokens before it, and adds the answer along a direction of its own, which visual tokens
and words hardly use. Tokens of the first image find none, nor do those of a film, which has one
newline behind its last frame; nothing is added to them, nor to words, whose queries are zero.
Queries and keys turn in the slowest pair of rotary dimensions alone, which hardly turns at all.

The layer is set by hand (`write`) and stays as it is while the others are trained on it. Steps of
Muon would blur it within fifty: they move every direction of a matrix equally far.
"""

import math

import torch
from torch import nn

SIZE = 2.5  # of a mark, root mean square, where visual tokens have 3; a third of it hardly teaches
FOUND = 14.0  # logit of a newline; e^14 outweighs the other tokens of any input
RIDGE = 1e-3
SLOW = 31  # of the 32 pairs of rotary dimensions of a head
ROTARY = 64  # dimensions of a head


@torch.no_grad()
def silence(model: nn.Module) -> None:
    """Make the first layer add nothing: the decoder is then the one of the layers after it."""
    layer = model.model.language_model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    layer.requires_grad_(False)


@torch.no_grad()
def write(model: nn.Module, shown: torch.Tensor) -> None:
    """Let the first layer write the mark, and keep it from being trained.

    Args:
        model: a OneVision checkpoint whose first layer is silent.
        shown: (n, D) visual tokens of training images, newlines not among them.
    """
    text = model.model.language_model
    layer = text.layers[0]
    attention = layer.self_attn
    words, visual = _unit(text.embed_tokens.weight), _unit(shown)
    newline = _unit(model.model.image_newline)
    of_visual, of_words = (rows.T @ rows / len(rows) for rows in (visual, words))
    both = of_visual + of_words + RIDGE * torch.eye(len(newline)).to(newline)
    # gives 1 on the newline and as little as it can on visual tokens and words
    ends = torch.linalg.solve(both, newline)
    ends /= ends @ newline
    # gives 1 on visual tokens and 0 on words, by least squares
    asks = torch.linalg.solve(both, visual.mean(0))
    along = _unit(torch.linalg.eigh(of_visual + of_words / 2).eigenvectors[:, 0])
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.fill_(1.0)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        part.weight.zero_()
        if part.bias is not None:
            part.bias.zero_()
    attention.q_proj.weight[SLOW] = math.sqrt(ROTARY) * FOUND * asks
    attention.k_proj.weight[SLOW] = ends
    attention.v_proj.weight[0] = ends
    attention.o_proj.weight[:, 0] = SIZE * along
    layer.requires_grad_(False)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows as the layer's norm hands them on."""
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
