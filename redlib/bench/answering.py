"""Greedy answers to many questions about one image, exactly and with its prefix computed once.

A prompt is a text prefix, the visual tokens and a question. In a causal decoder the states of the
first two do not depend on the third, so they are computed once per image and set of kept tokens,
and all questions continue from their keys and values. The questions travel together as *one*
sequence, with an attention mask that keeps them apart:

                       keys:  prefix + visual | question 1 | question 2 | new words
    row of question 1:             all        |   causal   |            |  its own
    row of question 2:             all        |            |   causal   |  its own

Every row is placed where it would stand alone (position = length of the prefix + its place in its
own question), so the answers are those of `generate` on each question by itself. The prefix is
neither copied per question nor padded, and a question that has finished costs nothing more.

    answers(vlm, tokens, ["is there a cup ?", "what colour is the cup ?"], max_new_tokens=8)

The language model is called directly, since the LLaVA classes insist on as many visual tokens as
the image has; that is what makes any kept subset, or none, a legal input.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from redlib.engine import Prefix, extend
from redlib.errors import RedlibError
from redlib.models import VLM


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
            suffixes = [prompts[row][1].cpu() for row in part]
            continued = _continue(vlm, shared, suffixes, max_new_tokens)
            for row, ids in zip(part, continued, strict=True):
                text = vlm.processor.tokenizer.decode(ids, skip_special_tokens=True)
                found[row] = text.strip()
    return found


def _continue(
    vlm: VLM, shared: Prefix | None, suffixes: list[torch.Tensor], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuation of every suffix from the shared prefix, as token ids without the end."""
    cache = DynamicCache(config=vlm.decoder.config)
    if shared is not None:
        # `update` concatenates into new tensors, so the shared ones stay as they are
        for layer, (keys, values) in enumerate(zip(shared.keys, shared.values, strict=True)):
            cache.update(keys, values, layer)
    base = cache.get_seq_length()
    ends = _end_ids(vlm)

    # The questions side by side: `owner` names the question of each query, `key_owner` that of each
    # key behind the prefix, `place` is a query's position within its own question.
    lengths = torch.tensor([len(ids) for ids in suffixes])
    owner = torch.repeat_interleave(torch.arange(len(suffixes)), lengths)  # (q,)
    place = torch.cat([torch.arange(n) for n in lengths])  # (q,)
    ids = torch.cat(suffixes)  # (q,)
    key_owner = owner  # (Q,), grows with every word
    active = torch.arange(len(suffixes))  # questions that have not ended
    last = lengths.cumsum(0) - 1  # the query after which each of them reads its next word
    found: list[list[int]] = [[] for _ in suffixes]
    for step in range(max_new_tokens):
        own = owner[:, None] == key_owner[None, :]  # (q, Q)
        # The queries are the newest keys: "not later" is a triangle shifted to the right.
        own = own.tril(diagonal=len(key_owner) - len(owner))
        # Additive, since eager attention adds its mask and would read True as 1.
        mask = torch.zeros(len(owner), base + len(key_owner), dtype=vlm.dtype)
        mask[:, base:].masked_fill_(~own, torch.finfo(vlm.dtype).min)
        states = vlm.decoder(
            inputs_embeds=vlm.embed(ids)[None],
            attention_mask=mask[None, None].to(vlm.device),
            position_ids=(base + place)[None].to(vlm.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0, last.to(vlm.device)]  # (active, D)
        words = vlm.model.lm_head(states).argmax(dim=-1).cpu()  # (active,)
        going = torch.tensor([int(word) not in ends for word in words])
        active, words = active[going], words[going]
        for row, word in zip(active.tolist(), words.tolist(), strict=True):
            found[row].append(word)
        if not len(active):
            break
        owner, ids, place = active, words, lengths[active] + step
        last = torch.arange(len(active))
        key_owner = torch.cat([key_owner, owner])
    return found


def _end_ids(vlm: VLM) -> set[int]:
    """Token ids that end an answer, as `generate` reads them from the generation settings."""
    end = vlm.model.generation_config.eos_token_id
    if end is None:
        end = vlm.processor.tokenizer.eos_token_id
    return set(end) if isinstance(end, list | tuple) else {end}
