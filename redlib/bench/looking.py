"""One image under many methods and budgets: seen once, pruned often, asked everything.

A table of methods asks the same questions about the same images again and again, each time with
other visual tokens. What does not change is computed once: tower and projector see an image in
`look`, whoever prunes it afterwards. A `Rule` says who prunes and to what budget, and `reply` gives
the answers:

    looked = look(vlm, [scene.image])
    reply(vlm, looked, Rule("codebook", 64), texts, codebook=codebook).texts
    reply(vlm, looked, Rule("random", 64, seed=1), texts).kept          # 64.0

The choice is that of `redlib.pruned`, by the same functions; only prompt and padding are missing.
Since the language model is causal, all questions continue from one prefix of what is left of the
image (`answering`), but for those that say themselves where their images stand. FastV prunes inside
the language model and by the question; there the first layers have such a prefix and the others
have not (`inside`). Asked several budgets at once
(`replies`), it ranks once for all of them. Other methods that prune there share nothing (`apart`).

| setting | images | visual tokens | budget |
|---|---|---|---|
| base | one, its base tile | 576 or 729 | of the image |
| split | one of Next, base tile and others, the paper's release | 2,880 | of each tile |
| several | n of OneVision | n * 729 | of each image |
| film | the frames of one film, OneVision | n * 196 | of each frame |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from redlib.bench.answering import answers, answers_between
from redlib.bench.apart import answers_apart
from redlib.bench.inside import answers_inside
from redlib.codebook import Codebook
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.prune import fastv
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept, choose, everything
from redlib.prune.method import Method
from redlib.prune.methods import METHODS, find
from redlib.prune.views import Seen, View, see

UNPRUNED, NONE = "unpruned", "none"
"""The two ends: every visual token, and no visual token."""

TRACED = tuple(sorted({layer for method in METHODS.values() for layer in method.layers}))
SETTINGS = ("base", "split", "several", "film")
PER_TILE = ("split", "film")


@dataclass(frozen=True)
class Rule:
    """Who prunes, and to how much.

    Attributes:
        method: a name of `redlib.prune.METHODS`, UNPRUNED or NONE.
        tokens: the budget, per tile, image or frame (see the table above).
        seed: of methods that draw.
        threshold: the largest redundancy that stays, instead of `tokens`, which then only names
            the budget that it was calibrated to.
    """

    method: str
    tokens: int
    seed: int = 0
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Left:
    """What a rule leaves of a prompt's images.

    Attributes:
        images: (n, D) visual rows of each image or film, newlines included.
        kept: per image or film which tokens stayed; empty for NONE.
    """

    images: list[Tensor]
    kept: list[Kept]

    @property
    def rows(self) -> Tensor:
        """(n, D) those of all, one after the other."""
        return torch.cat(self.images)


@dataclass(frozen=True)
class Replies:
    """Answers under a rule.

    Attributes:
        texts: one per question.
        kept: visual tokens of the prompt, newlines not counted; of methods that prune inside the
            language model those behind its last cut.
        chosen: per question, for each image or film which tokens stayed; empty for NONE.
    """

    texts: list[str]
    kept: int
    chosen: list[list[Kept]]


@torch.no_grad()
def look(
    vlm: VLM,
    images: Sequence[Image.Image],
    *,
    setting: str = "base",
    extra: Mapping[str, Sequence[Tensor]] | None = None,
) -> list[Seen]:
    """The images of one prompt through tower and projector, with all that a method may look at.

    Args:
        images: as `VLM.views` takes them.
        setting: one of SETTINGS.
        extra: by name, for each image or film (V,) what only the caller knows, e.g. "coverage".

    Raises:
        RedlibError: a setting that the model has not, or a wrong number of images.
    """
    if setting not in SETTINGS:
        raise RedlibError(f"setting must be one of {', '.join(SETTINGS)}; got {setting!r}")
    kind = "video" if setting == "film" else "image"
    views = [
        View(kind, pixels, len(layout), layout) for pixels, layout in vlm.views(images, setting)
    ]
    per = "tile" if setting in PER_TILE else "image"
    return see(vlm.model, views, layers=TRACED, per=per, extra=extra or {})


@torch.no_grad()
def leave(
    vlm: VLM, looked: Sequence[Seen], rule: Rule, *, codebook: Codebook | None = None
) -> Left:
    """What a rule leaves of a prompt's images.

    Raises:
        RedlibError: an unknown method, a budget that there is not, a codebook that is missing, or
            one that prunes inside the language model, which leaves everything to it.
    """
    if rule.method == UNPRUNED:
        choices = [everything(seen) for seen in looked]
    elif rule.method == NONE:
        ends = [seen.rows[torch.from_numpy(seen.view.layout.newlines)] for seen in looked]
        return Left([rows.to(vlm.dtype) for rows in ends], [])
    else:
        method, budget, options = _settled(rule, codebook)
        if method.inside:
            raise RedlibError(f"{method.name} chooses by the question, so it leaves no fixed rows")
        choices = [choose(method, seen, budget, options) for seen in looked]
    rows = [choice.rows.to(vlm.dtype) for choice in choices]
    return Left(rows, [choice.kept for choice in choices])


@torch.no_grad()
def reply(
    vlm: VLM,
    looked: Sequence[Seen],
    rule: Rule,
    questions: Sequence[str],
    *,
    codebook: Codebook | None = None,
    max_new_tokens: int = 8,
) -> Replies:
    """Greedy answers to questions about the images of one prompt, as a rule leaves them.

    The images stand before a question, or where it has the model's placeholder for each.

    Raises:
        RedlibError: as `leave`; a question has places for more images or fewer, or has places and
            a method prunes inside the language model.
    """
    (told,) = replies(
        vlm, looked, [rule], questions, codebook=codebook, max_new_tokens=max_new_tokens
    )
    return told


@torch.no_grad()
def replies(
    vlm: VLM,
    looked: Sequence[Seen],
    rules: Sequence[Rule],
    questions: Sequence[str],
    *,
    codebook: Codebook | None = None,
    max_new_tokens: int = 8,
) -> list[Replies]:
    """`reply` under each of several rules; those of FastV share all that does not depend on the
    budget.

    Raises:
        RedlibError: as `reply`.
    """
    inside = {
        rule: _settled(rule, None)
        for rule in rules
        if rule.method in METHODS and METHODS[rule.method].inside
    }
    how = {"max_new_tokens": max_new_tokens}
    woven = [vlm.processor.image_token in text for text in questions]
    if inside and any(woven):
        name = _settled(next(iter(inside)), None)[0].name
        raise RedlibError(f"{name} takes no question that says where its images stand")
    sharing = {rule: of[1] for rule, of in inside.items() if of[0] is fastv.METHOD}
    told = {}
    if sharing:
        shared = answers_inside(vlm, looked, questions, list(sharing.values()), **how)
        told = dict(zip(sharing, shared, strict=True))
    for rule in inside.keys() - sharing.keys():
        method, budget, _ = inside[rule]
        told[rule] = answers_apart(vlm, looked, questions, method, budget, **how)
    found = {
        rule: Replies(one.texts, sum(kept.after for kept in one.kept[0]), one.kept)
        for rule, one in told.items()
    }
    for rule in rules:
        if rule not in found:
            left = leave(vlm, looked, rule, codebook=codebook)
            kept = sum(kept.after for kept in left.kept)
            texts = _asked(vlm, left, questions, woven, max_new_tokens)
            found[rule] = Replies(texts, kept, [left.kept] * len(questions))
    return [found[rule] for rule in rules]


def _asked(
    vlm: VLM, left: Left, questions: Sequence[str], woven: Sequence[bool], max_new_tokens: int
) -> list[str]:
    """Answers to questions, some of which say where their images stand."""
    before = [text for text, own in zip(questions, woven, strict=True) if not own]
    between = [text for text, own in zip(questions, woven, strict=True) if own]
    # `answers` ends the visual tokens with the newline that these already have.
    shown = left.rows if vlm.newline is None else left.rows[:-1]
    plain = iter(answers(vlm, shown, before, max_new_tokens=max_new_tokens))
    placed = iter(answers_between(vlm, left.images, between, max_new_tokens=max_new_tokens))
    return [next(placed if own else plain) for own in woven]


def _settled(rule: Rule, codebook: Codebook | None) -> tuple[Method, Budget, dict[str, object]]:
    """A rule's method, budget and options."""
    method = find(rule.method)
    budget = Budget(threshold=rule.threshold)
    if rule.threshold is None:
        budget = Budget(keep=rule.tokens)
    budget.check(method)
    options: dict[str, object] = {}
    if "seed" in method.options:
        options["seed"] = rule.seed
    if "codebook" in method.options:
        if codebook is None:
            raise RedlibError(f"{method.name} needs codebook=, a redlib.codebook.Codebook")
        options["codebook"] = codebook
    return method, budget, options
