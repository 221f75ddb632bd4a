"""One conversation in, one answer out: a stock model with a pruner installed.

A conversation is a list of messages, each with a role and parts, as chat templates take them:

    [{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": ...}]}]

The stock processor makes the prompt, `redlib.pruned` shortens it, the stock `generate` answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from redlib import hub, models
from redlib.codebook import Codebook
from redlib.errors import RedlibError
from redlib.prune import install

SETTINGS = ("do_sample", "temperature", "top_p", "num_beams")
"""What a task may say about decoding, beside how long an answer gets and where it ends."""


class Respondent:
    """A loaded model that answers from part of its visual tokens, or from all.

    Attributes:
        model: the stock model, with the pruner installed.
        seen, kept: visual tokens of all conversations so far, before and after pruning.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        method: str | None = None,
        codebook: str | Path | None = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **how: object,
    ) -> None:
        """
        Args:
            pretrained: embedded name, folder or Hugging Face id.
            method: what chooses among the visual tokens; None: they all stay.
            codebook: a codebook file, for the methods that need one.
            revision, device, dtype: as in `redlib.models.load`.
            how: `keep`, `threshold`, `per`, `packing` and what else `redlib.pruned` takes.

        Raises:
            RedlibError: as `redlib.models.load`, `Codebook.load` and `redlib.pruned` do, or options
                of a pruner without a method.
        """
        if method is None and (how or codebook is not None):
            name = next(iter(how), "codebook")
            raise RedlibError(f"{name} is told to a pruning method: say method= too")
        vlm = models.load(pretrained, device=device, dtype=dtype, revision=revision)
        self.model, self.processor = vlm.model, vlm.processor
        if isinstance(self.processor, models.Parts):
            # The stock processor lays out tiles and several images; it needs torchvision.
            self.processor = transformers.AutoProcessor.from_pretrained(
                hub.locate(pretrained), revision=revision
            )
        self.seen, self.kept = 0, 0
        self._run = None
        if method is not None:
            if codebook is not None:
                how["codebook"] = Codebook.load(codebook, width=vlm.width)
            self._run = install(self.model, method, **how)

    @torch.inference_mode()
    def answer(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        max_new_tokens: int,
        until: Sequence[str] = (),
        **settings: object,
    ) -> tuple[str, int]:
        """The answer to a conversation, and of how many tokens it is.

        Args:
            messages: parts are of type "text", or "image" with a picture under "url".
            max_new_tokens: at most so many.
            until: the answer ends before the first of these texts.
            settings: some of SETTINGS; without any of them decoding is greedy.

        Raises:
            RedlibError: a part or a setting of another kind.
        """
        parts = [part for message in messages for part in message["content"]]
        for kind in {part["type"] for part in parts} - {"text", "image"}:
            raise RedlibError(f"a conversation holds texts and images; got a part of type {kind!r}")
        images = [part["url"].convert("RGB") for part in parts if part["type"] == "image"]
        inputs = self.processor(
            text=self.processor.apply_chat_template(messages, add_generation_prompt=True),
            images=images or None,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **_decoding(settings))
        new = ids[0, inputs["input_ids"].shape[1] :]
        if self._run is not None:
            self.seen += sum(each.before for each in self._run.last)
            self.kept += sum(each.after for each in self._run.last)
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        for stop in until:
            text = text.split(stop)[0] if stop else text
        return text, len(new)


def _decoding(settings: Mapping[str, object]) -> dict[str, object]:
    """What `generate` is told: greedy without a temperature, sampled with one."""
    for name in settings:
        if name not in SETTINGS:
            raise RedlibError(f"decoding takes {', '.join(SETTINGS)}; got {name!r}")
    told = {"num_beams": settings.get("num_beams") or 1, "do_sample": False}
    if settings.get("temperature"):
        told |= {"do_sample": True, "temperature": settings["temperature"]}
        if settings.get("top_p"):
            told["top_p"] = settings["top_p"]
    return told
