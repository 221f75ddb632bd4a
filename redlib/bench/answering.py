"""Greedy answers to many questions about one image, exactly and with its prefix computed once.

A prompt is a text prefix, the visual tokens and a question. In a causal decoder the states of the
first two do not depend on the third, so they are computed once per image and set of kept tokens,
and all questions continue from their keys and values. What questions have in common is computed
once too: the planner's tree merges equal ones and lets the others share the words they begin with.
The tree travels as *one* sequence, with an attention mask that shows each word its own question:

                            keys:  prefix + visual | is there a | cup ? | star ? | new words
    "is there a" of question 1:          all       |   causal   |       |        |
    "cup ?"                              all       |    all     | causal|        |  its own
    "star ?" of question 2               all       |    all     |       | causal |  its own

Every word is placed where it would stand alone (position = length of the prefix + its place in its
own question), so the answers are those of `generate` on each question by itself. The prefix is
neither copied per question nor padded, and a question that has finished costs nothing more.

    answers(vlm, tokens, ["is there a cup ?", "what colour is the cup ?"], max_new_tokens=8)

The language model is called directly, since the LLaVA classes insist on as many visual tokens as
the image has; that is what makes any kept subset, or none, a legal input.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from redlib.engine import Prefix, extend
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.planner import Tree, grow


@torch.inference_mode()
def answers(
    vlm: VLM,
    tokens: torch.Tensor,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 16,
    batch: int = 64,
) -> list[str]:
    """Greedy answer to every question about one image.

    Args:
        vlm: the model.
        tokens: (K, D) the visual tokens that it sees, in raster order; K may be 0.
        questions: texts, as they stand in the prompt after the image.
        max_new_tokens: at most so many tokens per answer.
        batch: at most so many questions in one forward.

    Returns:
        The answers without special tokens and outer white space, in the order of `questions`.

    Raises:
        RedlibError: `tokens` has another shape or width, or an argument is out of range.
    """
    if tokens.ndim != 2 or tokens.shape[1] != vlm.width:
        raise RedlibError(
            f"visual tokens must have shape (K, {vlm.width}) for this model; "
            f"got {tuple(tokens.shape)}"
        )
    if max_new_tokens < 1:
        raise RedlibError(f"max_new_tokens must be at least 1; got {max_new_tokens!r}")
    if batch < 1:
        raise RedlibError(f"batch must be at least 1; got {batch!r}")
    prompts = [vlm.prompt(text) for text in questions]
    found: list[str] = [""] * len(prompts)
    # The chat template decides where the text prefix ends: in general the same for all questions.
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, (prefix, _) in enumerate(prompts):
        groups.setdefault(tuple(prefix.tolist()), []).append(row)
    for prefix, rows in groups.items():
        shown = vlm.visual(tokens.to(vlm.device, vlm.dtype))
        sight = torch.cat([vlm.embed(prefix), shown])  # (T1 + K or K + 1, D)
        shared = extend(vlm, sight) if len(sight) else None
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            tree = grow([prompts[row][1].cpu().numpy() for row in part], shared=0)
            continued = _continue(vlm, shared, tree, max_new_tokens)
            for row, of in zip(part, tree.of, strict=True):
                text = vlm.processor.tokenizer.decode(continued[of], skip_special_tokens=True)
                found[row] = text.strip()
    return found


def _continue(vlm: VLM, shared: Prefix | None, tree: Tree, max_new_tokens: int) -> list[list[int]]:
    """Greedy continuation of every path of a tree of questions from the shared prefix, as token ids
    without the end."""
    cache = DynamicCache(config=vlm.decoder.config)
    if shared is not None:
        # `update` concatenates into new tensors, so the shared ones stay as they are
        for layer, (keys, values) in enumerate(zip(shared.keys, shared.values, strict=True)):
            cache.update(keys, values, layer)
    base = cache.get_seq_length()
    ends = _end_ids(vlm)

    # The packed words: their ids, their places within their questions, and which of them each
    # question is made of, in order.
    ids: list[int] = []
    place: list[int] = []
    cells: list[np.ndarray] = []
    for path, donor, start in zip(tree.paths, tree.donor, tree.start, strict=True):
        own = np.arange(len(ids), len(ids) + len(path) - start)
        cells.append(np.concatenate([cells[donor][:start], own]) if donor >= 0 else own)
        ids += path[start:].tolist()
        place += range(start, len(path))
    visible = np.zeros((len(ids), len(ids)), dtype=bool)  # (q, Q) queries and keys
    for of in cells:
        visible[np.ix_(of, of)] |= np.tri(len(of), dtype=bool)
    active = list(range(len(cells)))  # questions that have not ended
    last = [int(of[-1]) for of in cells]  # the query after which each of them reads its next word
    found: list[list[int]] = [[] for _ in cells]
    for _ in range(max_new_tokens):
        # Additive, since eager attention adds its mask and would read True as 1.
        mask = torch.zeros(len(ids), base + visible.shape[1], dtype=vlm.dtype)
        mask[:, base:].masked_fill_(torch.from_numpy(~visible), torch.finfo(vlm.dtype).min)
        states = vlm.decoder(
            inputs_embeds=vlm.embed(ids)[None],
            attention_mask=mask[None, None].to(vlm.device),
            position_ids=base + torch.tensor([place], device=vlm.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0, last]  # (active, D)
        words = vlm.model.lm_head(states).argmax(dim=-1).tolist()
        going = [(row, word) for row, word in zip(active, words, strict=True) if word not in ends]
        if not going:
            break
        active, ids = (list(column) for column in zip(*going, strict=True))
        size = visible.shape[1]
        visible = np.zeros((len(active), size + len(active)), dtype=bool)
        for line, (row, word) in enumerate(going):
            found[row].append(word)
            cells[row] = np.append(cells[row], size + line)
            visible[line, cells[row]] = True
        place = [len(cells[row]) - 1 for row in active]
        last = list(range(len(active)))
    return found


def _end_ids(vlm: VLM) -> set[int]:
    """Token ids that end an answer, as `generate` reads them from the generation settings."""
    end = vlm.model.generation_config.eos_token_id
    if end is None:
        end = vlm.processor.tokenizer.eos_token_id
    return set(end) if isinstance(end, list | tuple) else {end}
