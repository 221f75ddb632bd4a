"""The paper's experiments, computed the long way with stock transformers alone.

Nothing here imports redlib's engine, probe or leave-one-out: every probe is one full forward of the
stock model over a sequence of embeddings written out by hand, and every divergence a loop over
candidates with the formula of the paper. Slow, and meant to be read beside the equations.
"""

import math

import torch
from PIL import Image
from torch import Tensor

SIDE_ARTICLES = {"the", "The", "a", "A", "an", "An"}


@torch.no_grad()
def visual_tokens(model, processor, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Visual tokens (L, D) and tower states (1 + L, .) at the feature layer, stage by stage."""
    dtype = model.dtype
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    states = model.model.vision_tower(pixels.to(dtype), output_hidden_states=True).hidden_states
    feature = states[model.config.vision_feature_layer][0]
    return model.model.multi_modal_projector(feature[1:]), feature


@torch.no_grad()
def embedded_prompt(model, processor, visual: Tensor, prompt: str, answer: list[int]) -> Tensor:
    """(1, T, D): the chat prompt with `visual` (n, D) at the image, then the ids of `answer`."""
    table = model.get_input_embeddings().weight
    ids = processor.tokenizer(f"USER: <image>\n{prompt} ASSISTANT:")["input_ids"]
    at = ids.index(processor.tokenizer.convert_tokens_to_ids("<image>"))
    rows = [table[i] for i in ids[:at]] + list(visual) + [table[i] for i in ids[at + 1 :] + answer]
    return torch.stack(rows)[None]


@torch.no_grad()
def next_logits(model, processor, visual: Tensor, prompt: str, answer: list[int]) -> Tensor:
    """Logits (V,) of the token after the prompt and `answer`: one full stock forward."""
    rows = embedded_prompt(model, processor, visual, prompt, answer)
    return model(inputs_embeds=rows, use_cache=False).logits[0, -1]


def article_of(model, processor, visual: Tensor, prompt: str) -> list[int]:
    """The id of the article that the answer begins with, as a list; empty if it has none."""
    best = int(next_logits(model, processor, visual, prompt, []).argmax())
    return [best] if processor.tokenizer.decode([best]).strip() in SIDE_ARTICLES else []


def divergence(intact: Tensor, ablated: Tensor, top: int, definition: str) -> float:
    """Equations 7-10 for two logit vectors (V,), or their released variant, with scalars only."""
    before, after = intact.double().tolist(), ablated.double().tolist()
    leading = sorted(range(len(before)), key=lambda i: -before[i])[:top]

    def softmax(logits: list[float]) -> list[float]:
        weights = [math.exp(logits[i]) for i in leading]
        return [weight / sum(weights) for weight in weights]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    m, n = softmax(before), softmax(after)
    q = [(a + b) / 2 for a, b in zip(m, n, strict=True)]
    if definition == "paper":
        return (kl(m, q) + kl(n, q)) / 2
    return (kl(q, m) + kl(q, n)) / 2 / top


def window(patch: int, side: int) -> list[int]:
    """The nine patches of the 3 x 3 window that is moved inside a side x side grid."""
    row, col = patch // side, patch % side
    rows = [r + min(max(row, 1), side - 2) for r in (-1, 0, 1)]
    cols = [c + min(max(col, 1), side - 2) for c in (-1, 0, 1)]
    return [r * side + c for r in rows for c in cols]


def pair(
    model, processor, tokens: Tensor, pad: Tensor, patch: int, prompt: str, level: str
) -> tuple[Tensor, Tensor]:
    """Logits before and after one ablation; the intact run's article is fed to both runs."""
    around = window(patch, math.isqrt(len(tokens)))
    intact, ablated = tokens.clone(), tokens.clone()
    if level == "region":
        ablated[patch] = pad
        intact, ablated = intact[around], ablated[around]
    else:
        ablated[around if level == "global" else patch] = pad
    answer = article_of(model, processor, intact, prompt)
    return (
        next_logits(model, processor, intact, prompt, answer),
        next_logits(model, processor, ablated, prompt, answer),
    )
