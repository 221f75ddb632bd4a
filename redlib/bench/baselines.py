"""What `redlib bench` measures against and on: baselines N and R, a long prompt, random models.

Everything here is a stock call or a way to make a stock model; nothing of the engine is used.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from redlib import models
from redlib.codebook import Criteria
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.params import embedded
from redlib.probe import is_article
from redlib.tabletop import architectures

BEFORE, AFTER = 35, 25
"""Tokens of text before and behind the image, as many as LLaVA-1.5's."""

SYSTEM = "a chat about one image . it shows things on a ground . the answers are short ."
QUESTION = "what does this image show ? you must provide a single word that best describes it ."
WORDS = 8
"""Most words that the release generates for a probe."""

REAL = {
    "LLaVA-1.5-7B": ("tiny-llava-1.5", {"vocab_size": 32_064, "intermediate_size": 11_008}, 32),
    "LLaVA-Next-8B": ("tiny-llava-next", {"vocab_size": 128_320, "intermediate_size": 14_336}, 8),
}
"""Tiny checkpoint of the same family, vocabulary and MLP, and heads of keys among 32."""

CALIBRATED = {
    "tiny-llava-1.5": Criteria(tau_prob=0.07864, tau_out=24, tau_in=13, tau_jsd=3.1e-4),
    "tiny-llava-next": Criteria(tau_prob=0.06999, tau_out=8, tau_in=13, tau_jsd=4.74e-4),
    "tiny-llava-onevision": Criteria(tau_prob=0.1227, tau_out=24, tau_in=5, tau_jsd=1.68e-4),
}
"""Those behind the codebook of the full run of each embedded model (its survivors.csv)."""


@torch.no_grad()
def stock(vlm: VLM, rows: Tensor) -> Tensor:
    """N: logits (V,) after embeddings (T, D), one full forward of the stock model."""
    said = vlm.model(inputs_embeds=rows[None], use_cache=False, logits_to_keep=1)
    return said.logits[0, -1]


def step(vlm: VLM, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (V,) by `stock` at the step that is read, and the embedding (0 or 1, D) of the article
    that was fed before it."""
    logits = stock(vlm, rows)
    first = logits.argmax()[None]
    if not bool(is_article(vlm, first)):
        return logits, rows[:0]
    fed = vlm.embed(first)
    return stock(vlm, torch.cat([rows, fed])), fed


@contextmanager
def double_norms(vlm: VLM) -> Iterator[None]:
    """Let the decoder's norms compute in the precision of what they are given.

    Those of transformers compute in float32 whatever that is. So a model in float64 rounds in
    between, and where a number lies at the edge between two of float32, the last bit of float64
    decides which of them it becomes.
    """
    norms = [module for module in vlm.decoder.modules() if hasattr(module, "variance_epsilon")]

    def normed(norm: torch.nn.Module, x: Tensor) -> Tensor:
        return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    for norm in norms:
        norm.forward = partial(normed, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@torch.no_grad()
def generate(vlm: VLM, rows: Tensor) -> Tensor:
    """R: the ids (1, n) of a greedy answer of n <= WORDS words to embeddings (T, D)."""
    return vlm.model.generate(
        inputs_embeds=rows[None],
        attention_mask=torch.ones(1, len(rows), dtype=torch.long, device=rows.device),
        max_new_tokens=WORDS,
        do_sample=False,
    )


def lengthened(vlm: VLM) -> tuple[VLM, str]:
    """The model with a chat template, and a question, that make 35 and 25 tokens of text.

    Raises RedlibError if its tokenizer makes another number of them.
    """
    words = SYSTEM.split() * 4
    before, after = (len(ids) for ids in vlm.prompt(QUESTION))
    template = " ".join([*words[: BEFORE - before], vlm.processor.chat_template])
    question = " ".join([*QUESTION.split(), *words[: AFTER - after]])
    if isinstance(vlm.processor, models.Parts):
        processor = replace(vlm.processor, chat_template=template)
    else:
        processor = copy.copy(vlm.processor)
        processor.chat_template = template
    longer = replace(vlm, processor=processor)
    found = tuple(len(ids) for ids in longer.prompt(question))
    if found != (BEFORE, AFTER):
        raise RedlibError(f"model {vlm.name!r} makes {found} tokens of the bench's 35 and 25 words")
    return longer, question


def family_model(name: str, dtype: torch.dtype, seed: int) -> VLM:
    """A checkpoint of a family: the shipped one, or untrained with weights wide enough that patches
    differ."""
    if name in embedded():
        return models.load(name, device="cpu", dtype=str(dtype).removeprefix("torch."))
    processor = architectures.make_processor(name)
    model = architectures.make_model(name, processor.tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
        model.get_input_embeddings().weight.mul_(model.config.text_config.hidden_size**0.5)
    return models.handle(
        f"{name} (untrained)",
        model.to(dtype),
        processor,
        pad_token_id=processor.tokenizer.pad_token_id,
        revision="untrained",
    )


def random_model(name: str, device: str, *, small: bool, seed: int) -> VLM:
    """A model of a real one's shape with random weights, in fp16; `small`: a sixteenth as wide and
    two layers deep, in float32.

    Time does not depend on the weights, and nothing has to be downloaded.
    """
    family, sizes, key_heads = REAL[name]
    processor = architectures.make_processor(family)
    config = copy.deepcopy(architectures.make_model(family, processor.tokenizer).config)
    part, layers = (16, 2) if small else (1, 32)
    text = {
        "hidden_size": 4096 // part,
        "intermediate_size": sizes["intermediate_size"] // part,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": key_heads,
        "head_dim": 128 // part,
        "vocab_size": sizes["vocab_size"],
    }
    tower = {
        "hidden_size": 1024 // part,
        "intermediate_size": 4096 // part,
        "num_hidden_layers": layers if small else 24,
        "num_attention_heads": 16,
    }
    for target, values in ((config.text_config, text), (config.vision_config, tower)):
        for key, value in values.items():
            setattr(target, key, value)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = architectures.CLASSES[family]._from_config(
            config, dtype=torch.float32 if small else torch.float16
        )
    return models.handle(
        name, model, processor, pad_token_id=processor.tokenizer.pad_token_id, revision="random"
    )
