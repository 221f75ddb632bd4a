"""A random LLaVA-1.5 in miniature, saved as a stock checkpoint and loaded as any other.

The weights are drawn wide enough that logits differ clearly between patches: with the usual initial
scale of 0.02 every patch would decode alike and an exactness test would compare zeros with zeros.
The shapes keep every distinction that a mistake could hide behind: fewer key heads than query
heads, a head width that does not divide the hidden width, a text prefix of several tokens.
"""

from pathlib import Path

import literal
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from redlib import memory
from redlib.models import VLM, load

PROMPT = "what does this image show ?"
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<image>"]
WORDS = (
    "USER: ASSISTANT: what does this image show ? the The a A an An cup star anchor horse key moon "
    "flag gear crown cloud cat chair red blue green one two on plate of in picture left right"
).split()
TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ '\\n' + part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Whole files to each process of `make test`, so that what a module's tests share is made once;
    and all notebooks to one process, in order, as some read what an earlier one wrote."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "notebooks" if file.endswith(".ipynb") else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory that ends a process speaks once, and every test in it as if it were the first."""
    monkeypatch.setattr(memory, "_TOLD", set())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, split at white space."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def save_tiny_llava(
    folder: Path,
    *,
    kind: str = "llava",
    seed: int = 0,
    side: int = 70,
    layers: int = 3,
    scale: float = 0.25,
) -> Path:
    """Write a random LLaVA-1.5, Next ("llava_next") or OneVision ("llava_onevision") of a
    (side / 14)^2 grid to `folder` in the stock layout."""
    tokenizer = word_tokenizer()
    model = AutoModelForImageTextToText.from_config(_config(kind, tokenizer, side, layers)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or name.endswith("newline"):
                weight.normal_(0.0, scale, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
            elif name.endswith("class_embedding"):  # else that of whatever ran before
                weight.normal_(0.0, scale, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    if kind == "llava_onevision":  # its stock processor cannot be made without torchvision
        _image_processor(kind, side).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        return folder
    stock = LlavaProcessor if kind == "llava" else LlavaNextProcessor
    stock(
        image_processor=_image_processor(kind, side),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _config(kind: str, tokenizer: PreTrainedTokenizerFast, side: int, layers: int):
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 64, "head_dim": 8,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": side, "patch_size": 14,
    }  # fmt: skip
    image = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": (side // 14) ** 2,
    }
    pins = {"image_grid_pinpoints": [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]}
    clip, llama = CLIPVisionConfig(**vision, projection_dim=32), LlamaConfig(**text)
    if kind == "llava":
        return LlavaConfig(vision_config=clip, text_config=llama, **image)
    if kind == "llava_next":
        return LlavaNextConfig(vision_config=clip, text_config=llama, **image, **pins)
    siglip = SiglipVisionConfig(**vision, vision_use_head=False)
    image["video_token_id"] = tokenizer.convert_tokens_to_ids("key")
    return LlavaOnevisionConfig(vision_config=siglip, text_config=Qwen2Config(**text), **image,
                                **pins)  # fmt: skip


def _image_processor(kind: str, side: int):
    square, shortest = {"height": side, "width": side}, {"shortest_edge": side}
    pins = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    if kind == "llava":
        return CLIPImageProcessorPil(size=shortest, crop_size=square)
    if kind == "llava_next":
        return LlavaNextImageProcessorPil(
            size=shortest, crop_size=square, image_grid_pinpoints=pins
        )
    return LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=pins)


def random_image(seed: int, *, width: int = 96, height: int = 80) -> Image.Image:
    """Smooth coloured noise, so that neighbouring patches resemble each other and all differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (6, 7, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder; read-only for tests."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def tiny_vlm(tiny_folder: Path) -> VLM:
    """The random model in float32: 5 x 5 grid, 3 layers, 48 wide; read-only for tests."""
    return load(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_vlm64(tiny_folder: Path) -> VLM:
    """The same weights in float64."""
    return load(str(tiny_folder), device="cpu", dtype="float64")


@pytest.fixture(scope="session")
def tiny_tokens(tiny_vlm: VLM) -> torch.Tensor:
    """The (25, 48) visual tokens of one image."""
    return tiny_vlm.encode([random_image(1)]).tokens[0]


@pytest.fixture(scope="session", params=["float32", "float64"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A random model in either precision that begins some of its answers with an article.

    The head's rows of three articles are stretched until some inputs decode to an article first and
    some do not, at every level; the tests assert that both happen.
    """
    folder = save_tiny_llava(tmp_path_factory.mktemp(f"tiny-{request.param}"), seed=3)
    vlm = load(str(folder), device="cpu", dtype=request.param)
    with torch.no_grad():
        for article in ("a", "The", "An"):
            vlm.model.lm_head.weight[vlm.processor.tokenizer.convert_tokens_to_ids(article)] *= 2.0
    return vlm


@pytest.fixture(scope="session")
def tokens(vlm: VLM) -> torch.Tensor:
    """The (25, 48) visual tokens of one image under `vlm`, computed stage by stage."""
    return literal.visual_tokens(vlm.model, vlm.processor, random_image(1))[0]


@pytest.fixture(scope="session")
def bars(vlm: VLM) -> dict[str, float]:
    """How exact results must be: absolute for logits, relative for everything derived from them."""
    if vlm.dtype == torch.float64:
        return {"logits": 1e-9, "relative": 1e-9}
    return {"logits": 1e-4, "relative": 1e-3}
