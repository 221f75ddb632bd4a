"""The three tiny checkpoints before training: stock classes, random weights, real geometry.

What the experiments count is the real models': 24 x 24 or 27 x 27 patches of 14 pixels, the same
feature layer, the same tiles, the same pooling of video. What is small is the width and the depth,
a thousandth of a 7B model's parameters, and the vocabulary of whole words.

    processor = make_processor("tiny-llava-next")
    model = make_model("tiny-llava-next", processor.tokenizer)

| name | tower | decoder | visual input |
|---|---|---|---|
| tiny-llava-1.5 | CLIP, 336 px, layer -2, without [cls] | Llama | one tile, 576 tokens |
| tiny-llava-next | the same | the same | base tile and tiles of 336 px, newline |
| tiny-llava-onevision | SigLIP, 384 px, last layer, no [cls] | Qwen2 | also several images, video |

LLaVA-1.5 and Next have the same shapes but for Next's newline, so that Next can begin with the
weights of 1.5.
"""

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)

from redlib.errors import RedlibError
from redlib.models import Parts
from redlib.tabletop.language import CHAT, further, make_tokenizer
from redlib.tabletop.world import PATCH, SIDE

NAMES = ("tiny-llava-1.5", "tiny-llava-next", "tiny-llava-onevision")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""(height, width) in pixels of the tiles together, those of LLaVA-Next."""

SIGLIP_SIDE = 384
SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
POSITIONS = {
    "tiny-llava-1.5": 2048,
    "tiny-llava-next": 4096,  # 5 tiles and their newlines are 2,928 tokens
    "tiny-llava-onevision": 8192,  # 32 frames are 6,273
}
CLASSES = dict(
    zip(
        NAMES,
        (
            LlavaForConditionalGeneration,
            LlavaNextForConditionalGeneration,
            LlavaOnevisionForConditionalGeneration,
        ),
        strict=True,
    )
)


def make_processor(name: str) -> ProcessorMixin | Parts:
    """The stock processor of a checkpoint; of OneVision its parts, see `models.Parts`.

    Raises:
        RedlibError: none of NAMES.
    """
    _check(name)
    if name == "tiny-llava-onevision":
        return Parts(
            make_tokenizer("<video>", words=further(), positions=POSITIONS[name]),
            LlavaOnevisionImageProcessorPil(**SIGLIP),
            CHAT,
        )
    square = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
    }
    if name == "tiny-llava-next":
        stock = LlavaNextProcessor
        images = LlavaNextImageProcessorPil(**square, image_grid_pinpoints=PINPOINTS)
    else:
        stock, images = LlavaProcessor, CLIPImageProcessorPil(**square)
    return stock(
        image_processor=images,
        tokenizer=make_tokenizer(positions=POSITIONS[name]),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def make_model(name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> PreTrainedModel:
    """The untrained checkpoint, random weights of a seed.

    Raises:
        RedlibError: none of NAMES.
    """
    _check(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLASSES[name](_config(name, tokenizer))


def _check(name: str) -> None:
    if name not in NAMES:
        raise RedlibError(f"a tiny checkpoint is one of {', '.join(NAMES)}; got {name!r}")


def _config(name: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    image = tokenizer.convert_tokens_to_ids("<image>")
    if name == "tiny-llava-onevision":
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                **_tower(SIGLIP_SIDE, layers=5),  # all of them used, as of CLIP's six
                vision_use_head=False,
            ),
            # one layer more, which marks the images of several (`marks`)
            text_config=Qwen2Config(**_decoder(name, tokenizer) | {"num_hidden_layers": 7}),
            image_token_index=image,
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            pad_token_id=tokenizer.pad_token_id,
        )
    shared = {
        "vision_config": CLIPVisionConfig(**_tower(SIDE, layers=6)),
        "text_config": LlamaConfig(**_decoder(name, tokenizer)),
        "image_token_index": image,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (SIDE // PATCH) ** 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "tiny-llava-next":
        return LlavaNextConfig(**shared, image_grid_pinpoints=PINPOINTS)
    return LlavaConfig(**shared)


def _tower(side: int, *, layers: int) -> dict:
    return {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "image_size": side,
        "patch_size": PATCH,
        "layer_norm_eps": 1e-9,  # small beside the rescaled stream, see tower.rescale
    }


def _decoder(name: str, tokenizer: PreTrainedTokenizerFast) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        # A question has to find patches hundreds of positions away by what they show. Rotary
        # embedding spoils that for all dimensions that turn within such a distance: heads of
        # 64 with Llama 3's base leave more than half of them, heads of 32 with 10,000 a third.
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "max_position_embeddings": POSITIONS[name],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
