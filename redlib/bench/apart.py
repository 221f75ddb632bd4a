"""Greedy answers of a model that prunes inside, every question with the whole image.

What a method keeps inside the language model depends on the question. What questions still share
is another thing for each such method; FastV's is worth sharing (`inside`), since it is in every
table. For the others nothing is shared here: prompt by prompt, the stock `generate` reads all
visual tokens while the method's hooks are in place. The images are seen by the tower once all the
same. A batch that does not fit into memory is read again in halves (`memory`).

    told = answers_apart(vlm, looked, questions, find("sparsevlm"), Budget(keep=64))
"""

from collections.abc import Sequence

import torch

from redlib.bench.answering import end_ids
from redlib.bench.inside import Told
from redlib.memory import in_parts
from redlib.models import VLM
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept, everything
from redlib.prune.method import Method
from redlib.prune.prompts import NOWHERE, Place, Prompt
from redlib.prune.views import Seen


@torch.inference_mode()
def answers_apart(
    vlm: VLM,
    looked: Sequence[Seen],
    questions: Sequence[str],
    method: Method,
    budget: Budget,
    *,
    max_new_tokens: int = 8,
    batch: int = 8,
) -> Told:
    """Greedy answers to questions about the images of one prompt.

    Args:
        vlm: the model.
        looked: its images or films, as `looking.look` returns them.
        questions: texts, as they stand in the prompt after the image.
        method: one that prunes inside the language model.
        budget: how many visual tokens stay of each unit behind its last cut.
        max_new_tokens: at most so many tokens per answer.
        batch: at most so many questions in one `generate`.

    Raises:
        RedlibError: the model has too few layers, attention that takes no masks, memory does not
            suffice for one question, or whatever the method finds wrong.
    """
    whole = [everything(seen) for seen in looked]
    ends, inside = end_ids(vlm), method.inside(vlm.model)

    def ask(texts: Sequence[str]) -> Told:
        prompts = [vlm.prompt(text) for text in texts]
        prompt, rows = _read(vlm, prompts, [choice.rows for choice in whole])
        kept: list[Kept] = [choice.kept for _ in prompts for choice in whole]
        inside.expect(list(looked) * len(prompts), prompt, budget, kept)
        with inside.reading():
            said = vlm.model.generate(
                inputs_embeds=rows, attention_mask=prompt.mask, max_new_tokens=max_new_tokens,
                do_sample=False,
            )  # fmt: skip
        told = Told([], [])
        for number, line in enumerate(said.tolist()):
            end = next((at for at, word in enumerate(line) if word in ends), len(line))
            text = vlm.processor.tokenizer.decode(line[:end], skip_special_tokens=True)
            told.texts.append(text.strip())
            told.kept.append(kept[number * len(whole) : (number + 1) * len(whole)])
        return told

    seen = sum(len(choice.rows) for choice in whole)
    inside.attach()
    try:
        parts = in_parts(
            ask, questions, batch, device=vlm.device, what="questions",
            one=f"one question behind {seen} positions",
        )  # fmt: skip
    finally:
        inside.detach()
    return Told([text for part in parts for text in part.texts],
                [kept for part in parts for kept in part.kept])  # fmt: skip


def _read(
    vlm: VLM, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], images: Sequence[torch.Tensor]
) -> tuple[Prompt, torch.Tensor]:
    """Prompts (before, after) around the visual rows (n, D) of each image, padded on the left, and
    their embeddings (B, T, D)."""
    visual = torch.cat(list(images)).to(vlm.dtype)
    lengths = [len(before) + len(visual) + len(after) for before, after in prompts]
    longest = max(lengths)
    rows = visual.new_zeros(len(prompts), longest, vlm.width)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64, device=vlm.device)
    places = []
    for row, ((before, after), length) in enumerate(zip(prompts, lengths, strict=True)):
        mask[row, longest - length :] = 1
        rows[row, longest - length :] = torch.cat([vlm.embed(before), visual, vlm.embed(after)])
        start = longest - length + len(before)
        for image in images:
            places.append(Place(row, start, len(image)))
            start += len(image)
    nowhere = torch.full_like(mask, NOWHERE)
    return Prompt(nowhere, mask, nowhere, tuple(places)), rows
