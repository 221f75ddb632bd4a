"""What one visual token says on its own (sections 3.1.1 and 7.2).

The whole image is replaced by a single visual token and the model is asked to describe it in one
word. If the most likely word gets most of the probability, the token carries something that the
model recognises; if the probability is spread thin, it does not. Two readings of that number are
kept, since the paper's equations and its implementation details differ:

    top1       softmax over the whole vocabulary                            (eq. 5-6)
    top1_head  softmax over the 50 most likely candidates                   (section 9.1)

An answer that begins with an article ("a cup") says nothing in its first token. The article that
was decoded is then fed back and the second step is read instead. Articles are recognised by their
decoded text - the, a, an in any case - so the rule holds for every tokenizer.

    frame = single(vlm, encoded.tokens[0], range(576), prompt="What does this image show? ...")
    frame.sort_values("top1").head()      # the tokens the model knows least about
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from redlib.engine import Pieces, budget, run
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.planner import Plan, plan

ARTICLES = frozenset({"the", "a", "an"})
TOP = 50
"""Candidates of `top1_head` in the paper."""


def single(
    vlm: VLM,
    tokens: Tensor,
    patches: Sequence[int],
    *,
    prompt: str,
    top: int = TOP,
    keep_top: int = 0,
    batch: int | None = None,
) -> pd.DataFrame:
    """Probe visual tokens one at a time.

    Args:
        tokens: (L, D) visual tokens of one image.
        patches: raster indices of the tokens to probe.
        prompt: the instruction that follows the token.
        top: candidates of `top1_head`.
        keep_top: also keep ids and logits of that many best candidates, as lists in `top_ids` and
            `top_logits`; 0 keeps none.
        batch: rows a forward; by default as many as suit the device.

    Returns one row a patch, in the order given: patch, word, token_id, top1, top1_head, logit,
    margin (logit to the runner-up), entropy (nats, whole vocabulary), article (an article was
    decoded first and skipped). Raises RedlibError for a patch outside the image, a `top` outside
    2..V or a `keep_top` outside 0..V.
    """
    patches = check_patches(patches, tokens)
    size = vlm.model.config.text_config.vocab_size
    if not 2 <= top <= size or not 0 <= keep_top <= size:
        raise RedlibError(
            f"top must lie in 2..{size} and keep_top in 0..{size}; got {top!r} and {keep_top!r}"
        )
    pieces = Pieces(vlm, tokens, prompt)
    made = single_plan(vlm, pieces, patches, batch=batch)
    said = run(vlm, made, pieces.table, top=max(top, keep_top), skip=partial(is_article, vlm))
    ids, best = said.ids, said.logits  # (B, k)
    frame = pd.DataFrame(
        {
            "patch": patches,
            "word": [vlm.word(token) for token in ids[:, 0].tolist()],
            "token_id": ids[:, 0].cpu().numpy(),
            "top1": said.top1.cpu().numpy(),
            "top1_head": best[:, :top].softmax(dim=1)[:, 0].cpu().numpy(),
            "logit": best[:, 0].cpu().numpy(),
            "margin": (best[:, 0] - best[:, 1]).cpu().numpy(),
            "entropy": said.entropy.cpu().numpy(),
            "article": said.skipped.cpu().numpy(),
        }
    )
    if keep_top:
        frame["top_ids"] = ids[:, :keep_top].tolist()
        frame["top_logits"] = best[:, :keep_top].tolist()
    return frame


def single_plan(
    vlm: VLM, pieces: Pieces, patches: Sequence[int], *, batch: int | None = None
) -> Plan:
    """The plan of one input per patch: its token alone, repeated where the family wants that."""
    paths = [pieces.path(np.full(vlm.repeats, patch)) for patch in patches]
    return plan(paths, shared=pieces.shared, budget=budget(vlm, batch))


def is_article(vlm: VLM, ids: Tensor) -> Tensor:
    """(B,) bool: which token ids (B,) decode to an article."""
    known = {token: vlm.word(token).lower() in ARTICLES for token in set(ids.tolist())}
    return torch.tensor([known[token] for token in ids.tolist()], device=ids.device)


def check_patches(patches: Sequence[int], tokens: Tensor) -> list[int]:
    """The patches as plain integers.

    Raises RedlibError unless there are some, and all are whole numbers and lie in the image.
    """
    try:
        given = np.asarray(patches)
    except ValueError:  # lists of different lengths
        given = np.empty((0, 0))
    if given.ndim != 1 or (len(given) and not np.issubdtype(given.dtype, np.integer)):
        raise RedlibError(f"patches must be a list of whole numbers; got {patches!r:.60}")
    patches = given.tolist()
    outside = [patch for patch in patches if not 0 <= patch < len(tokens)]
    if outside:
        raise RedlibError(f"patch {outside[0]} lies outside 0..{len(tokens) - 1}")
    if not patches:
        raise RedlibError("no patches given; name at least one")
    return patches
