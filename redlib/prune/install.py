"""Prune any stock LLaVA in one line.

    with redlib.pruned(model, "codebook", keep=64, codebook=codebook) as run:
        ids = model.generate(**inputs, max_new_tokens=20)
    print(run.report)                     # 576 -> 64 visual tokens

`model` is a stock LLaVA-1.5, Next or OneVision of transformers, `inputs` what its processor made.
Nothing else in a script changes. Per call the images go through the vision tower once, the method
chooses among their tokens, the prompt gets as many placeholders as are left, and the stock method
continues from there: transformers takes encoded images beside a prompt (`mm_encoder_outputs`).

What is installed are attributes of this one model: `generate` and `forward`, which hide those of
its class, and the step of `generate` that joins its own stopping criteria and logits processors
with the caller's, which are shown the prompt as it was given. `remove` deletes them, and hooks that
prune inside the language model as well. Neither the class, another model, nor the choice of
attention is touched.

Sequences that `generate` returns begin with the prompt as it was given, so that whoever cuts the
answer off behind it still can. `forward` returns logits of the shortened prompt.

Beams, sampling, assisted generation and caches of fixed length work as without pruning. A method
that prunes inside the language model has to read a prompt whole, so not by `prefill_chunk_size`,
and its layers are not compiled. It holds one prompt at a time: `generate` from several threads
waits for its turn, and a loop of `forward` over a cache has to be alone.
"""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import NoReturn

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from redlib.codebook import Codebook
from redlib.errors import RedlibError
from redlib.prune import keep as rules
from redlib.prune.budget import Budget
from redlib.prune.choose import Kept, choose, everything, scores
from redlib.prune.inside import Inside
from redlib.prune.method import Method
from redlib.prune.methods import find
from redlib.prune.prompts import Prompt, places, shorten
from redlib.prune.restore import Restored, Streamer
from redlib.prune.views import KINDS, PACKINGS, Seen, read, see

FAMILIES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
_MARK, _MERGE = "_redlib_run", "_merge_criteria_processor_list"
_PIXELS = ("pixel_values", "pixel_values_videos")
_CONSUMED = (*_PIXELS, "image_sizes", "image_sizes_videos", "batch_num_images",
             "vision_aspect_ratio")  # fmt: skip


@dataclass(eq=False)
class Run:
    """An installed pruner, and what it did last.

    Attributes:
        model: the model it is installed in.
        method: what chooses.
        budget: how many tokens stay.
        per: "image" or "tile", or None where views have one tile.
        packing: how tiles follow one another.
        options: what else the method is told.
        extra: by name, what a method cannot know: a tensor (L,), an array or a list of numbers for
            the one view of a call, or a list of those, one per view, images first. May be changed
            between calls.
        last: what stayed of each view of the last call, images first.
    """

    model: nn.Module
    method: Method
    budget: Budget
    per: str | None
    packing: str
    options: Mapping[str, object]
    extra: Mapping[str, Tensor | Sequence[Tensor]] = field(default_factory=dict)
    last: list[Kept] = field(default_factory=list)
    _inside: Inside | None = None
    _turn: threading.RLock = field(default_factory=threading.RLock)
    # by thread, how to restore the prompts of the answer it is writing, if they are shortened
    _generating: dict[int, Restored | None] = field(default_factory=dict)
    # by name, what was an attribute of the model itself before, and what is since
    _hidden: dict[str, object] = field(default_factory=dict)
    _shown: dict[str, object] = field(default_factory=dict)

    @property
    def report(self) -> str:
        """One line about the last call, e.g. "576 -> 64 visual tokens"."""
        if not self.last:
            return "no visual tokens"
        line = f"{sum(k.before for k in self.last)} -> {sum(k.after for k in self.last)}"
        line += " visual tokens"
        if len(self.last) > 1:
            line += f" of {len(self.last)} images or films"
        if self._inside is not None:
            line += f" from layer {self._inside.layers[-1] + 1} on"
            line += f" ({self._inside.average():.1f} a layer)"
        return line

    def seen(self, given: Mapping[str, object]) -> list[Seen]:
        """The views of a batch behind tower and projector, and of each what may be chosen.

        Raises:
            RedlibError: as `prune.views.read` and `see`, or one of `extra` is not as many tensors
                as views.
        """
        views = read(self.model, given, self.packing)
        extra = {}
        for name, values in _by_name(self.extra).items():
            several = isinstance(values, list | tuple) and not all(
                isinstance(value, Real) for value in values
            )
            values = list(values) if several else [values]
            if len(values) != len(views):
                raise RedlibError(
                    f"extra {name!r} holds {len(values)} tensors for {len(views)} images or films"
                )
            extra[name] = values
        return see(self.model, views, layers=self.method.layers, per=self.per, extra=extra)

    def prune(
        self, ids: Tensor, mask: Tensor | None, given: Mapping[str, object], side: str
    ) -> tuple[Prompt, dict[str, BaseModelOutputWithPooling]]:
        """Shortened prompts and, for the stock model, what takes the place of their placeholders.

        Args:
            ids, mask: (B, T).
            given: what else the processor made.
            side: where to pad.

        Raises:
            RedlibError: as `seen`, or a mask of another shape or that hides placeholders.
        """
        mask = torch.ones_like(ids) if mask is None else mask
        if mask.shape != ids.shape:
            raise RedlibError(
                f"attention_mask must be {tuple(ids.shape)}, as input_ids; got {tuple(mask.shape)}"
            )
        seen = self.seen(given)
        tokens = _tokens(self.model)
        lengths = {kind: [s.view.stock for s in seen if s.view.kind == kind] for kind in tokens}
        old = places(ids, lengths, tokens)
        if not all(bool(mask[p.row, p.start : p.start + p.length].all()) for p in old):
            raise RedlibError(
                "attention_mask hides placeholders of an image or film: leave the image out instead"
            )
        if self._inside is None:
            choices = [choose(self.method, s, self.budget, self.options) for s in seen]
        else:
            choices = [everything(s) for s in seen]
        prompt = shorten(
            ids,
            mask,
            old,
            [choice.offsets for choice in choices],
            placeholder=tokens["image"],
            pad=_pad(self.model),
            side=side,
        )
        self.last = [choice.kept for choice in choices]
        if self._inside is not None:
            self._inside.expect(seen, prompt, self.budget, self.last)
        order = sorted(range(len(old)), key=lambda k: (old[k].row, old[k].start))
        width = choices[0].rows.shape[1]
        rows = [
            torch.cat([choices[k].rows for k in order if old[k].row == row]
                      or [choices[0].rows.new_empty(0, width)])
            for row in range(len(ids))
        ]  # fmt: skip
        # One entry a prompt, films among the images: what repeats prompts, for beams or samples,
        # then repeats whole entries, and rows may have different numbers of tokens.
        return prompt, {"image": BaseModelOutputWithPooling(pooler_output=rows)}

    def forward(self, stock: object, given: dict[str, object]) -> object:
        """The stock `forward`, on a shortened prompt."""
        pixels = _has_pixels(given)
        if torch.compiler.is_compiling() and self._generating and not pixels:
            return stock(**given)  # no thread can be asked for its number in a graph
        with self._alone():
            if threading.get_ident() not in self._generating:
                return self._forward(stock, given)
            if given.get("mm_encoder_outputs") is None and not _goes_on(given):
                self._refuse_a_second_text()
            return self._forward(stock, given) if pixels else stock(**given)

    def _forward(self, stock: object, given: dict[str, object]) -> object:
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if not self._has_views(ids, given):
            return stock(**given)
        right = mask is not None and bool((mask[:, -1] == 0).any())
        prompt, encoded = self.prune(ids, mask, given, "right" if right else "left")
        short = self._shortened(given, prompt, encoded)
        if mask is None and bool(prompt.mask.all()):
            del short["attention_mask"]
        positions = _same_start(mask, prompt.mask)
        if "position_ids" not in short and positions is not None:
            short["position_ids"] = positions
        labels = given.get("labels")
        if labels is not None:
            if self._inside is not None:
                raise RedlibError(f"{self.method.name} cannot be trained through: leave out labels")
            if labels.shape != ids.shape:
                raise RedlibError(
                    f"labels must be {tuple(ids.shape)}, as input_ids; got {tuple(labels.shape)}"
                )
            short["labels"] = prompt.along(labels, -100)
        with self._reading():
            return stock(**short)

    @torch.no_grad()
    def generate(self, stock: object, given: dict[str, object]) -> object:
        """The stock `generate`, on shortened prompts, with the old ones in front of the answers."""
        with self._alone():
            if threading.get_ident() in self._generating:
                self._refuse_a_second_text()
            return self._generate(stock, given)

    def _generate(self, stock: object, given: dict[str, object]) -> object:
        ids = given.pop("inputs", None) if given.get("input_ids") is None else given["input_ids"]
        given["input_ids"] = ids
        if not self._has_views(ids, given):
            if _goes_on(given) and _placeholders(self.model, ids):
                raise RedlibError(
                    "past_key_values of a pruned prompt do not fit its ids, which are given back "
                    "whole: leave the cache out and pass the pixels again"
                )
            return self._stock_generate(stock, given, None)
        if given.get("inputs_embeds") is not None:
            raise RedlibError("a pruned model embeds input_ids itself: leave out inputs_embeds")
        if given.get("attention_mask") is None:
            given["attention_mask"] = _mask(self.model, ids, given)
        if self._inside is not None:
            if _setting(self.model, given, "prefill_chunk_size") is not None:
                raise RedlibError(
                    f"{self.method.name} ranks by a prompt that is read whole: leave out "
                    "prefill_chunk_size"
                )
            if _setting(self.model, given, "guidance_scale") not in (None, 1):
                raise RedlibError(
                    f"{self.method.name} holds one prompt, guidance reads a second one beside it: "
                    "leave out guidance_scale"
                )
            given["disable_compile"] = True  # what stays differs from prompt to prompt
        prompt, encoded = self.prune(ids, given["attention_mask"], given, "left")
        given = self._shortened(given, prompt, encoded)
        restored = Restored(ids, prompt.ids.shape[1])
        gone = ids.shape[1] - prompt.ids.shape[1]
        for name in ("max_length", "min_length"):
            length = _setting(self.model, given, name)
            if length:
                given[name] = max(length - gone, 0)
        if given.get("prefix_allowed_tokens_fn") is not None:
            given["prefix_allowed_tokens_fn"] = restored.prefix(given["prefix_allowed_tokens_fn"])
        if given.get("streamer") is not None:
            given["streamer"] = Streamer(given["streamer"], ids)
        with self._reading():
            out = self._stock_generate(stock, given, restored)
        if isinstance(out, Tensor):
            return restored(out)
        out.sequences = restored(out.sequences)
        return out

    def _stock_generate(
        self, stock: object, given: dict[str, object], restored: Restored | None
    ) -> object:
        thread = threading.get_ident()
        outer = {thread: self._generating[thread]} if thread in self._generating else {}
        self._generating[thread] = restored
        try:
            return stock(**given)
        finally:
            del self._generating[thread]
            self._generating |= outer

    def merge(self, stock: object, given: dict[str, object]) -> object:
        """The stock `_merge_criteria_processor_list`, the caller's criteria or processors being
        shown restored ids in what it returns."""
        found, restored = stock(**given), self._generating.get(threading.get_ident())
        if restored is None:
            return found
        own = {id(each) for each in given["custom_list"]}
        return type(found)(restored.before(each) if id(each) in own else each for each in found)

    def _reading(self) -> AbstractContextManager:
        """While the stock model reads the prompts of the last `prune`."""
        return nullcontext() if self._inside is None else self._inside.reading()

    def _alone(self) -> AbstractContextManager:
        """What a method inside the model holds of a prompt must not be another thread's."""
        return nullcontext() if self._inside is None else self._turn

    def _refuse_a_second_text(self) -> None:
        if self._inside is not None:
            raise RedlibError(
                f"{self.method.name} is in the middle of a text: ask it nothing else until "
                "generate has returned"
            )

    def __deepcopy__(self, memo: object) -> NoReturn:
        # The copy would go on computing with the weights of the model that it was made of.
        raise RedlibError("a pruned model cannot be copied or pickled: remove(model) first")

    __reduce_ex__ = __deepcopy__

    def _shortened(
        self, given: dict[str, object], prompt: Prompt, encoded: dict[str, object]
    ) -> dict[str, object]:
        """The arguments with the prompt and the encoded images in place of the old ones."""
        if given.get("position_ids") is not None:
            raise RedlibError("position_ids cannot be given to a pruned model: leave them out")
        if isinstance(given.get("logits_to_keep"), Tensor):
            raise RedlibError(
                "logits_to_keep cannot be positions for a pruned model, whose prompt is shorter: "
                "give a number of last tokens, or leave it out"
            )
        kept = {name: value for name, value in given.items() if name not in _CONSUMED}
        kept |= {
            "input_ids": prompt.ids,
            "attention_mask": prompt.mask,
            "mm_encoder_outputs": encoded,
        }
        if self.method.positions == "original" and self._inside is None:
            kept["position_ids"] = prompt.along(_positions(given, prompt), 0)
        return kept

    def _has_views(self, ids: Tensor | None, given: Mapping[str, object]) -> bool:
        """Whether there is anything to prune.

        Raises:
            RedlibError: placeholders without pixels, or pixels behind a cache.
        """
        if _has_pixels(given):
            if ids is None:
                raise RedlibError(
                    "a pruned model needs input_ids beside pixels; inputs_embeds alone do not say "
                    "where the images go"
                )
            if _goes_on(given):
                raise RedlibError(
                    "a pruned model takes no new images behind past_key_values: leave the cache "
                    "out and pass the whole conversation"
                )
            return True
        if _goes_on(given):
            return False
        if given.get("mm_encoder_outputs") is not None:
            raise RedlibError(
                "a pruned model encodes images itself: leave out mm_encoder_outputs and pass the "
                "pixels"
            )
        self.last = []
        if self._inside is not None:
            self._inside.forget()
        if _placeholders(self.model, ids):
            raise RedlibError(
                "the prompt holds placeholders of an image or film but no pixel_values: pass all "
                "that the processor made"
            )
        return False


def install(
    model: nn.Module,
    method: str | Callable[..., Tensor] | Method,
    *,
    keep: int | float | None = None,
    threshold: float | None = None,
    per: str | None = None,
    packing: str = "stock",
    extra: Mapping[str, Tensor | Sequence[Tensor]] | None = None,
    codebook_of_other_model: bool = False,
    **options: object,
) -> Run:
    """Make a stock model prune its visual tokens, until `remove`.

    Args:
        model: `LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration` or
            `LlavaOnevisionForConditionalGeneration`.
        method: a name in `redlib.prune.METHODS`, or a method of your own: a function
            `scores(context) -> (L,)` of a `redlib.prune.context.Context`, the highest of which
            stay, or a `redlib.prune.Method`.
        keep: how many visual tokens stay of every image, or which share of them (a float).
        threshold: the largest redundancy that stays, instead of `keep` (Algorithm 2).
        per: what the budget holds for where an image has several tiles, or a film frames: "tile"
            or "image".
        packing: "stock", "split" or "base"; see `redlib.prune.views`.
        extra: see `Run`.
        codebook_of_other_model: use a codebook although it was made with another model.
        options: what else the method takes, e.g. seed=1.

    Raises:
        RedlibError: anything of this that makes no sense, or a model that prunes already.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if type(model).__name__ != FAMILIES.get(kind):
        raise RedlibError(
            f"only {', '.join(FAMILIES.values())} can be pruned; got {type(model).__name__}"
        )
    if _MARK in vars(model):
        raise RedlibError(
            f"this model is pruned already, by {vars(model)[_MARK].method.name}: remove(model) "
            "first, or leave the with block"
        )
    run = _run(model, method, keep, threshold, per, packing, extra, codebook_of_other_model,
               options)  # fmt: skip
    for name, ours in (
        (_MARK, run),  # in front: whoever pickles the model meets it first
        ("forward", _instead(model.forward, run.forward)),
        ("generate", _instead(model.generate, run.generate)),
        (_MERGE, _instead(getattr(model, _MERGE), run.merge)),
    ):
        if name in vars(model):
            run._hidden[name] = vars(model)[name]
        run._shown[name] = ours
    for name, ours in run._shown.items():
        setattr(model, name, ours)
    if run._inside is not None:
        run._inside.attach()
    return run


def remove(model: nn.Module) -> None:
    """Undo `install`: the model is the stock one again, or what another library had made of it.

    A warning tells if somebody has replaced `forward` or `generate` since; that goes too, as it
    most likely calls the pruner.

    Raises:
        RedlibError: nothing is installed, or it is no model.
    """
    if not isinstance(model, nn.Module):
        raise RedlibError(
            f"remove takes the model that was given to install; got {type(model).__name__}"
        )
    run = vars(model).get(_MARK)
    if run is None:
        raise RedlibError("this model is not pruned; there is nothing to remove")
    with run._alone():  # another thread may still be writing
        if run._inside is not None:
            run._inside.detach()
        for name, ours in run._shown.items():
            if vars(model).get(name) is not ours:
                warnings.warn(
                    f"{name} was replaced while the model was pruned: what replaced it is gone "
                    "with the pruner",
                    stacklevel=2,
                )
            if name in run._hidden:
                setattr(model, name, run._hidden[name])
            else:
                vars(model).pop(name, None)


@contextmanager
def pruned(
    model: nn.Module, method: str | Callable[..., Tensor] | Method, **how: object
) -> Iterator[Run]:
    """A model that prunes its visual tokens for the length of a with block.

    Arguments and errors are those of `install`; what is yielded tells what was kept.
    """
    run = install(model, method, **how)
    try:
        yield run
    finally:
        if _MARK in vars(model):  # else it was removed within the block
            remove(model)


@torch.no_grad()
def threshold_for(
    model: nn.Module,
    method: str | Callable[..., Tensor] | Method,
    batches: Sequence[Mapping[str, object]],
    *,
    mean_budget: float,
    per: str | None = None,
    packing: str = "stock",
    codebook_of_other_model: bool = False,
    **options: object,
) -> float:
    """The threshold under which images of a calibration split keep `mean_budget` tokens on average.

    Args:
        batches: what the processor made of calibration images; prompts do not matter.
        mean_budget: wanted mean number of kept tokens, per tile if `per` is "tile".

    Raises:
        RedlibError: as `install`, one batch in place of several, or a budget out of range.
    """
    if isinstance(batches, Mapping):
        raise RedlibError("batches must be a list of what the processor made; got one: say [batch]")
    run = _run(model, method, None, 0.0, per, packing, None, codebook_of_other_model, options)
    found = [
        -each for batch in batches for s in run.seen(batch)
        for each in scores(run.method, s, run.options)
    ]  # fmt: skip
    return rules.calibrate(found, mean_budget)


def _run(
    model: nn.Module,
    method: str | Callable[..., Tensor] | Method,
    keep: int | float | None,
    threshold: float | None,
    per: str | None,
    packing: str,
    extra: Mapping[str, Tensor | Sequence[Tensor]] | None,
    foreign: bool,
    options: dict[str, object],
) -> Run:
    config = model.config
    if not isinstance(config.vision_feature_layer, int):
        raise RedlibError(
            f"the model takes its features from the layers {config.vision_feature_layer}; only one "
            "layer can be pruned"
        )
    has_cls = config.vision_config.model_type == "clip_vision_model"
    if has_cls and config.vision_feature_select_strategy != "default":
        raise RedlibError(
            "vision_feature_select_strategy keeps [cls] among the visual tokens; only 'default' "
            "can be pruned"
        )
    method = find(method)
    budget = Budget(keep, threshold)
    budget.check(method)
    if per not in (None, "image", "tile"):
        raise RedlibError(f"per must be 'image' or 'tile'; got {per!r}")
    if packing not in PACKINGS:
        raise RedlibError(f"packing must be one of {', '.join(PACKINGS)}; got {packing!r}")
    if packing != "stock" and method.positions == "original" and not method.inside:
        raise RedlibError(f"{method.name} keeps original positions, which only packing='stock' has")
    if packing != "stock" and config.model_type == "llava":
        raise RedlibError(f"LLaVA-1.5 has no tiles to pack; leave out packing={packing!r}")
    for name in options:
        if name not in method.options:
            takes = ", ".join(method.options) or "no option of its own"
            raise RedlibError(f"{method.name} takes no {name!r}; it takes {takes}")
    if "codebook" in method.options:
        _check_codebook(model, method, options.get("codebook"), foreign)
    extra = _by_name({} if extra is None else extra)
    inside = method.inside(model, **options) if method.inside else None
    return Run(model, method, budget, per, packing, options, extra, _inside=inside)


def _by_name(extra: object) -> Mapping[str, object]:
    if not isinstance(extra, Mapping):
        raise RedlibError(
            "extra must name what it holds, e.g. {'coverage': (L,) tensor}; got "
            f"{type(extra).__name__}"
        )
    return extra


def _check_codebook(model: nn.Module, method: Method, codebook: object, foreign: bool) -> None:
    if not isinstance(codebook, Codebook):
        raise RedlibError(
            f"{method.name} needs codebook=, a redlib.codebook.Codebook (Codebook.load reads one); "
            f"got {type(codebook).__name__}"
        )
    width = model.config.text_config.hidden_size
    if codebook.width != width:
        raise RedlibError(
            f"the codebook has width {codebook.width}, the model has {width}: it belongs to "
            "another model"
        )
    name = str(getattr(model.config, "_name_or_path", "")).rstrip("/\\")
    same = (
        name.replace("\\", "/").rsplit("/", 1)[-1] == codebook.model.rstrip("/").rsplit("/", 1)[-1]
    )
    other = same and _other_commit(name, codebook.revision)
    if not foreign and (other or not same):
        raise RedlibError(
            f"the codebook was made with {codebook.model!r} (revision {codebook.revision[:12]}), "
            f"the model is {name or 'without a name'!r}{' of another revision' * other}: tokens of "
            "another model live in another space; say codebook_of_other_model=True if they are the "
            "same"
        )


def _other_commit(name: str, revision: str) -> bool:
    """Whether a model of the hub is surely not of this commit.

    A stock model knows from which id it was loaded, but since transformers 5 not from which commit
    of it: any of those in this machine's cache. Of a folder's weights nothing is known here.
    """
    if Path(name).is_dir():
        return False
    try:
        held = [try_to_load_from_cache(name, "config.json", revision=r) for r in (None, revision)]
    except HFValidationError:  # a name that is no id
        return False
    return isinstance(held[0], str) and not isinstance(held[1], str)


def _instead(stock: object, ours: object) -> object:
    """A function that looks like the stock method and hands its arguments, by name, to ours."""
    signature = inspect.signature(stock)
    kinds = {p.kind: name for name, p in signature.parameters.items()}
    rest = kinds.get(inspect.Parameter.VAR_KEYWORD)

    @functools.wraps(stock)
    def call(*args: object, **kwargs: object) -> object:
        given = dict(signature.bind(*args, **kwargs).arguments)
        given |= given.pop(rest, {})
        return ours(stock, given)

    return call


def _has_pixels(given: Mapping[str, object]) -> bool:
    """Whether images or films are among the arguments, or something in their place."""
    values = [given[name] for name in _PIXELS if given.get(name) is not None]
    return any(not isinstance(value, Tensor) or value.numel() > 0 for value in values)


def _goes_on(given: Mapping[str, object]) -> bool:
    """Whether a text is continued from a cache."""
    cache = given.get("past_key_values")
    return cache is not None and cache.get_seq_length() > 0


def _placeholders(model: nn.Module, ids: Tensor | None) -> bool:
    """Whether placeholders of any kind stand in the prompts."""
    return ids is not None and any(bool((ids == each).any()) for each in _tokens(model).values())


def _tokens(model: nn.Module) -> dict[str, int]:
    """The placeholder of each kind that the model knows."""
    config = model.config
    found = {kind: getattr(config, f"{kind}_token_id", None) for kind in KINDS}
    return {kind: token for kind, token in found.items() if token is not None}


def _mask(model: nn.Module, ids: Tensor, given: Mapping[str, object]) -> Tensor:
    """The mask that stock `generate` infers where none is given: padding is masked, unless its id
    also ends texts."""
    pad, ends = (_setting(model, given, f"{name}_token_id") for name in ("pad", "eos"))
    ends = ends if isinstance(ends, list) else [ends]
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return (ids != pad).long()


def _pad(model: nn.Module) -> int:
    """An id to pad with. It is masked, so any will do that is no placeholder."""
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else pad


def _setting(model: nn.Module, given: Mapping[str, object], name: str) -> int | list[int] | None:
    """A setting, from where stock `generate` takes it."""
    configs = (given.get("generation_config"), model.generation_config)
    values = [given.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), None)


def _same_start(old: Tensor | None, new: Tensor) -> Tensor | None:
    """(B, T) positions at which every row starts where the stock `forward` starts it, which counts
    padding on the left; None where it would number them so by itself.

    Rotary embeddings are rounded, so the same prompt gives slightly other logits when it is moved.
    """
    width = new.shape[1]
    starts = new.argmax(1) - (0 if old is None else old.long().argmax(1))  # (B,)
    if not bool(starts.any()):
        return None
    column = torch.arange(width, device=new.device)
    return (column - starts[:, None]).clamp(min=0)


def _positions(given: Mapping[str, object], prompt: Prompt) -> Tensor:
    """(B, T_old) positions in the prompt as it was given, padding not counted."""
    mask = given.get("attention_mask")
    ids = given.get("input_ids")
    if mask is None:
        mask = torch.ones_like(ids)
    return (mask.cumsum(1) - 1).clamp(min=0)
