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

A question that says itself where its images stand ("is <image> larger than <image> ?") shares no
prefix with any other: `answers_between` takes such ones, one by one.

A question in a batch that does not fit into memory is asked again with half as many beside it
(`memory`).

The language model is called directly, since the LLaVA classes insist on as many visual tokens as
the image has; that is what makes any kept subset, or none, a legal input.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from transformers import DynamicCache

from redlib.engine import Prefix, extend
from redlib.errors import RedlibError
from redlib.memory import in_parts, undivided
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
        RedlibError: `tokens` has another shape or width, an argument is out of range, or memory
            does not suffice for the image or for one question about it.
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
        shared = _read(vlm, sight) if len(sight) else None
        parts = in_parts(
            partial(_behind, vlm, shared, max_new_tokens),
            [prompts[row][1] for row in rows],
            batch,
            device=vlm.device,
            what="questions",
            one=_one(sight),
        )
        for row, text in zip(rows, chain.from_iterable(parts), strict=True):
            found[row] = text
    return found


@torch.inference_mode()
def answers_between(
    vlm: VLM,
    images: Sequence[torch.Tensor],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 16,
) -> list[str]:
    """Greedy answers to questions with the model's image placeholder where their images stand.

    Args:
        images: (K, D) visual rows of each image, its newline included.
        questions, max_new_tokens: as in `answers`.

    Raises:
        RedlibError: a question has places for more images or fewer, or memory does not suffice for
            one.
    """
    found = []
    for question in questions:
        first, *others = vlm.woven(question)
        if len(others) != len(images):
            raise RedlibError(
                f"{question!r} has places for {len(others)} images; got {len(images)}"
            )
        rows = [vlm.embed(first)]
        for image, text in zip(images, others, strict=True):
            rows += [image.to(vlm.device, vlm.dtype), vlm.embed(text)]
        sight = torch.cat(rows[:-1])  # the last words are read as the question
        asked = vlm, _read(vlm, sight), max_new_tokens, others[-1:]
        found += undivided(_behind, *asked, device=vlm.device, one=_one(sight))
    return found


def _read(vlm: VLM, sight: torch.Tensor) -> Prefix:
    """The prefix of embeddings (T, D)."""
    one = f"one forward of {len(sight)} positions"
    return undivided(extend, vlm, sight, device=vlm.device, one=one)


def _one(sight: torch.Tensor) -> str:
    """What a single question behind embeddings (T, D) is called."""
    return f"one question behind {len(sight)} positions"


def _behind(
    vlm: VLM, shared: Prefix | None, max_new_tokens: int, questions: Sequence[torch.Tensor]
) -> list[str]:
    """Answers to questions, token ids (T2,) each, behind a prefix that they share."""
    tree = grow([ids.cpu().numpy() for ids in questions], shared=0)
    continued = _continue(vlm, shared, tree, max_new_tokens)
    decode = vlm.processor.tokenizer.decode
    return [decode(continued[of], skip_special_tokens=True).strip() for of in tree.of]


class Packed:
    """The questions of a tree as one sequence, which grows by the words that are said.

    Attributes:
        ids: words that are read next.
        place: where each of them stands in its own question.
        last: which of them each open question goes on from.
        cells: for each question the places in the sequence that it is made of, in order.
        active: open questions.
        found: words that each question has been answered with.
    """

    def __init__(self, tree: Tree) -> None:
        self.ids: list[int] = []
        self.place: list[int] = []
        self.cells: list[np.ndarray] = []
        for path, donor, start in zip(tree.paths, tree.donor, tree.start, strict=True):
            own = np.arange(len(self.ids), len(self.ids) + len(path) - start)
            shared = self.cells[donor][:start] if donor >= 0 else own[:0]
            self.cells.append(np.concatenate([shared, own]))
            self.ids += path[start:].tolist()
            self.place += range(start, len(path))
        self._visible = np.zeros((len(self.ids), len(self.ids)), dtype=bool)  # (q, Q)
        for of in self.cells:
            self._visible[np.ix_(of, of)] |= np.tri(len(of), dtype=bool)
        self.active = list(range(len(self.cells)))
        self.last = [int(of[-1]) for of in self.cells]
        self.found: list[list[int]] = [[] for _ in self.cells]

    def mask(self, base: int, dtype: torch.dtype) -> torch.Tensor:
        """(1, 1, q, base + Q) what each word that is read next sees, behind a prefix of `base`."""
        # Additive, since eager attention adds its mask and would read True as 1.
        mask = torch.zeros(len(self.ids), base + self._visible.shape[1], dtype=dtype)
        mask[:, base:].masked_fill_(torch.from_numpy(~self._visible), torch.finfo(dtype).min)
        return mask[None, None]

    def say(self, words: Sequence[int], ends: set[int]) -> list[int]:
        """Give each open question its next word; those that it ends are closed.

        Returns which of the open questions, counted in the order they had, stay open.
        """
        stay = [line for line, word in enumerate(words) if word not in ends]
        self.active = [self.active[line] for line in stay]
        self.ids = [words[line] for line in stay]
        size = self._visible.shape[1]
        self._visible = np.zeros((len(stay), size + len(stay)), dtype=bool)
        for line, (row, word) in enumerate(zip(self.active, self.ids, strict=True)):
            self.found[row].append(word)
            self.cells[row] = np.append(self.cells[row], size + line)
            self._visible[line, self.cells[row]] = True
        self.place = [len(self.cells[row]) - 1 for row in self.active]
        self.last = list(range(len(self.active)))
        return stay


def _continue(vlm: VLM, shared: Prefix | None, tree: Tree, max_new_tokens: int) -> list[list[int]]:
    """Greedy continuation of every path of a tree of questions from the shared prefix, as token ids
    without the end."""
    cache = DynamicCache(config=vlm.decoder.config)
    if shared is not None:
        # `update` concatenates into new tensors, so the shared ones stay as they are
        for layer, (keys, values) in enumerate(zip(shared.keys, shared.values, strict=True)):
            cache.update(keys, values, layer)
    base = cache.get_seq_length()
    packed, ends = Packed(tree), end_ids(vlm)
    for _ in range(max_new_tokens):
        states = vlm.decoder(
            inputs_embeds=vlm.embed(packed.ids)[None],
            attention_mask=packed.mask(base, vlm.dtype).to(vlm.device),
            position_ids=base + torch.tensor([packed.place], device=vlm.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0, packed.last]  # (active, D)
        if not packed.say(vlm.model.lm_head(states).argmax(dim=-1).tolist(), ends):
            break
    return packed.found


def end_ids(vlm: VLM) -> set[int]:
    """Token ids that end an answer, as `generate` reads them from the generation settings."""
    end = vlm.model.generation_config.eos_token_id
    if end is None:
        end = vlm.processor.tokenizer.eos_token_id
    return set(end) if isinstance(end, list | tuple) else {end}
