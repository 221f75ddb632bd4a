"""What is read from the real checkpoints' files: prompt, grid, newline, pad, layers, tiles."""

from functools import partial

import pytest
import real
import torch
from conftest import random_image
from safetensors import safe_open
from torch import nn

from redlib import models, states
from redlib.bench.looking import Rule, look, reply
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.models import load
from redlib.notebook import Session
from redlib.params import ONE_WORD_PROMPT, Params
from redlib.prune import METHODS

GRID = {real.LLAVA: 24, real.NEXT: 24, real.ONEVISION: 27}
REPEATS = {real.LLAVA: 1, real.NEXT: 24, real.ONEVISION: 27}


@pytest.fixture(scope="module", params=real.NAMES)
def made(request, tmp_path_factory):
    """(id on the hub, folder, handle) of a miniature."""
    folder = real.save(tmp_path_factory.mktemp("real") / "model", request.param)
    return request.param, folder, load(str(folder), device="cpu")


def weight(folder, key: str) -> torch.Tensor:
    """A tensor from the file that holds it."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if key in opened.keys():
                return opened.get_tensor(key).float()
    raise KeyError(key)


def test_the_prompt_is_the_documented_one(made):
    name, _, vlm = made
    before, after = vlm.prompt(ONE_WORD_PROMPT)
    image = torch.tensor([vlm.model.config.image_token_id])
    said = vlm.processor.tokenizer.decode(torch.cat([before, image, after]))
    plain = str.maketrans("", "", " ")  # decoders differ in the space behind a special token
    assert said.translate(plain) == real.PROMPTS[name].format(ONE_WORD_PROMPT).translate(plain)


def test_what_the_checkpoint_holds_is_what_is_used(made):
    name, folder, vlm = made
    words = vlm.processor.tokenizer
    table = weight(folder, "language_model.model.embed_tokens.weight")
    assert torch.equal(vlm.pad, table[words.pad_token_id]) and len(table) > len(words)
    assert (vlm.grid.height, vlm.grid.width) == (GRID[name], GRID[name])
    assert (vlm.repeats, vlm.layers) == (REPEATS[name], (0, 1, 2))
    heads = vlm.decoder.layers[0].self_attn
    assert (vlm.model.config.text_config.num_attention_heads, heads.num_key_value_groups) == {
        real.LLAVA: (32, 1), real.NEXT: (32, 4), real.ONEVISION: (28, 7)
    }[name]  # fmt: skip
    assert vlm.has_cls == (name != real.ONEVISION)
    if name == real.LLAVA:
        assert vlm.newline is None
    else:
        assert torch.equal(vlm.newline, weight(folder, "image_newline"))
    assert vlm.encode([random_image(1)]).tokens.shape == (1, GRID[name] ** 2, vlm.width)
    assert vlm.word(len(table) - 1) == "", "rows of embeddings that no token has"


@pytest.mark.parametrize("size", [(700, 500), (1500, 400)])
def test_tiles_follow_the_real_pinpoints(made, size):
    name, _, vlm = made
    image = random_image(2, width=size[0], height=size[1])
    if name == real.LLAVA:
        with pytest.raises(RedlibError, match="has no tiles"):
            vlm.tiles(image)
        return
    inputs = vlm.processor.image_processor(images=image, return_tensors="pt")
    with torch.no_grad():
        found = vlm.model.model.get_image_features(
            inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
    stock = found.pooler_output[0]
    assert len(stock) > 2 * vlm.grid.size
    torch.testing.assert_close(vlm.tiles(image, packing="unpadded"), stock, atol=1e-4, rtol=0)


# Placement and fewer bits. bitsandbytes itself is an optional package.


@pytest.mark.parametrize(
    ("options", "missing", "words"),
    [
        ({"device_map": "auto"}, "accelerate", "device_map needs the package accelerate"),
        ({"quantization": "8bit"}, "accelerate", "quantization needs the package accelerate"),
        ({"quantization": "4bit"}, "bitsandbytes", "quantization needs the package bitsandbytes"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, options, missing, words):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: name != missing or None)
    with pytest.raises(RedlibError, match=words + r".*pip install -e '.\[large\]'") as error:
        load("tiny-llava-1.5", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": "balanced"}, "device_map must be auto or null; got 'balanced'"),
        ({"quantization": "3bit"}, "quantization must be 8bit, 4bit or null; got '3bit'"),
        ({"device_map": "auto", "device": "cpu"}, "leave device at auto, got 'cpu'"),
    ],
)
def test_wrong_placing_is_named(options, words):
    with pytest.raises(RedlibError, match=words):
        load("tiny-llava-1.5", **options)


def test_a_model_over_several_devices_is_refused(made):
    _, _, vlm = made
    vlm.model.hf_device_map = {"model.vision_tower": 0, "model.language_model": 0, "lm_head": "cpu"}
    try:
        with pytest.raises(RedlibError, match="spread it over 0, cpu; take quantization: 8bit"):
            models._check_one_device("some/model", vlm.model)
        vlm.model.hf_device_map = {"": 0}
        models._check_one_device("some/model", vlm.model)
    finally:
        del vlm.model.hf_device_map


def test_only_the_decoder_is_stored_in_fewer_bits():
    for name, bits in (("8bit", 8), ("4bit", 4)):
        config = models._bits(name, torch.float16)
        assert getattr(config, f"load_in_{bits}bit")
        whole = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
        assert config.llm_int8_skip_modules == whole
    assert config.bnb_4bit_compute_dtype == torch.float16


def test_fewer_bits_come_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    session = Session("02", Params(quantization="4bit"))
    with (
        pytest.warns(UserWarning, match="thresholds of the JSD, .* are not calibrated for it"),
        pytest.raises(RedlibError, match="quantization needs the package"),
    ):
        session.model  # noqa: B018


class Packed(nn.Module):
    """A linear layer that keeps its weight in whole numbers, as quantized ones do."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features, self.bias, self.scale = weight.shape[1], bias, weight.abs().max() / 127
        self.weight = (weight / self.scale).round().to(torch.int8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, (self.weight * self.scale).to(rows.dtype), self.bias)


def test_a_weight_in_fewer_bits_can_be_read():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.Linear(4, 6)
    assert states._weight(plain) is plain.weight
    for bias in (None, torch.ones(6).half()):
        packed = Packed(weight, bias)
        found = states._weight(packed).float()
        torch.testing.assert_close(found, packed.weight * packed.scale, atol=2e-3, rtol=0)


HEADS = {real.LLAVA: (32, 32), real.NEXT: (32, 8), real.ONEVISION: (28, 4)}


@pytest.fixture(scope="module")
def shown(made):
    """Of a model: tiles -> an image that is seen whole, or in them, and what was told of it."""
    name, _, vlm = made
    found = {}
    for setting, tiles in {"base": 1, "split": 5}.items():
        if tiles > 1 and name != real.NEXT:
            continue
        told = torch.linspace(0, 1, tiles * GRID[name] ** 2)
        extra = {what: [told] for what in ("coverage", "top1", "jsd")}
        image = random_image(1, width=672, height=672)
        found[tiles] = look(vlm, [image], setting=setting, extra=extra)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_pruning_at_real_sizes(made, shown, method):
    """Heads, grouped keys and tokens of the real models: 576, 729, and 2,880 in five tiles."""
    name, _, vlm = made
    text = vlm.model.config.text_config
    assert (text.num_attention_heads, text.num_key_value_heads) == HEADS[name]
    vectors = torch.randn(9, vlm.width, generator=torch.Generator().manual_seed(0))
    book = Codebook(vectors, ("",) * 9, (0,) * 9, vlm.name, vlm.revision, Criteria.paper())
    for tiles, looked in shown.items():
        ask = partial(reply, vlm, looked, Rule(method, 64), ["what is it ?"], codebook=book)
        if method == "cls-attention" and name == real.ONEVISION:
            with pytest.raises(RedlibError, match=r"this tower has no \[cls\]"):
                ask(max_new_tokens=2)
            continue
        for (kept,) in ask(max_new_tokens=2).chosen:
            assert (kept.before, kept.after) == (tiles * GRID[name] ** 2, tiles * 64)
            unscored = kept.scores.isnan()
            assert bool(unscored.all() if method == "downsample" else not unscored.any())
