"""The three real checkpoints in miniature: the hub's files in their form, random weights, few of
them.

Everything that loading reads is as llava-hf published it: config.json with what differs from the
defaults and under its old names, weights cut into several files under their old names, the chat
template in a file of its own, a preprocessor_config.json, the tokenizer's class, a vocabulary that
is smaller than the rows of embeddings. What an experiment counts is real too: tower geometry, heads
and heads of keys, feature layer, pinpoints, newline. Small are widths, layers and vocabulary.

    name = "llava-hf/llava-1.5-7b-hf"
    save(tmp_path / "model", name)           # a folder
    publish(cache, name, commit="0" * 40)    # what a download leaves in HF_HUB_CACHE

`CONFIGS` holds the real numbers, `config(name)` the small ones.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.utils import logging

from redlib.tabletop.language import FRAMES

LLAVA, NEXT, ONEVISION = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llama3-llava-next-8b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
)
NAMES = (LLAVA, NEXT, ONEVISION)

CLIP = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
    "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
    "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 26,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
NEXT_PINS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
CONFIGS = {
    LLAVA: {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
        "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
            "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "vision_config": CLIP, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    NEXT: {
        "architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100,
        "image_grid_pinpoints": NEXT_PINS, "image_token_index": 128256,
        "model_type": "llava_next", "projector_hidden_act": "gelu",
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "bos_token_id": 128000,
            "eos_token_id": 128009, "intermediate_size": 14336, "max_position_embeddings": 8192,
            "model_type": "llama", "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0, "torch_dtype": "bfloat16", "vocab_size": 128320,
        },
        "use_image_newline_parameter": True, "vision_config": CLIP, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    ONEVISION: {
        "architectures": ["LlavaOnevisionForConditionalGeneration"], "ignore_index": -100,
        "image_grid_pinpoints": ONEVISION_PINS, "image_token_index": 151646,
        "model_type": "llava_onevision", "projector_hidden_act": "gelu",
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643,
            "eos_token_id": 151645, "hidden_size": 3584, "intermediate_size": 18944,
            "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
            "num_key_value_heads": 4, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
            "vocab_size": 152128,
        },
        "use_image_newline_parameter": True, "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9", "vision_config": SIGLIP,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    },
}  # fmt: skip
"""The numbers of each config.json on the hub, without what this library never reads."""

HEADS = {LLAVA: (32, 32), NEXT: (32, 8), ONEVISION: (28, 4)}
SMALL = {"intermediate_size": 64, "num_hidden_layers": 3}
WIDTH = 4  # of a head
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
ROWS = 64  # embeddings are padded to a multiple of it

# Each says what the model's card documents; images first, then the text.
_IMAGES = "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
_TEXTS = "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
TEMPLATES = {
    LLAVA: "{% for message in messages %}{{ message['role'].upper() }}: "
    + _IMAGES + "\n{% endif %}{% endfor %}"
    + _TEXTS + "{% generation %}{{ part['text'] }} {% endgeneration %}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    NEXT: "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n" + _IMAGES + "{% endif %}{% endfor %}"
    + _TEXTS + "{{ '\n' + part['text'] + '<|eot_id|>' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ONEVISION: "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    + _IMAGES + "{{ '\n' }}{% endif %}{% endfor %}"
    + _TEXTS + "{% generation %}{{ part['text'] }}{% endgeneration %}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}  # fmt: skip
PROMPTS = {
    LLAVA: "<s>USER: <image>\n{} ASSISTANT:",
    NEXT: "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ONEVISION: "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n",
}
"""What the filled templates say."""


CLASSES = {
    LLAVA: {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False},
    NEXT: {"tokenizer_class": "PreTrainedTokenizerFast"},
    ONEVISION: {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False},
}


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A small one of the class, with the special tokens and the beginning of the real one."""
    if name == LLAVA:
        bytes_ = [f"<0x{n:02X}>" for n in range(256)]
        core = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_]
        )
        vocabulary, merges = _trained(core, trainer)
        made = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
        made.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
        return made
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary, merges = _trained(
        core, trainers.BpeTrainer(vocab_size=500, initial_alphabet=sorted(alphabet))
    )
    if name == ONEVISION:
        made = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
        made.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
        made.add_tokens(
            [AddedToken(t, special=True) for t in ("<|im_start|>", "<image>", "<video>")]
        )
        return made
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    )
    begin = core.token_to_id("<|begin_of_text|>")
    core.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return made


def _trained(core: Tokenizer, trainer: trainers.BpeTrainer) -> tuple[dict, list]:
    core.train_from_iterator([*FRAMES, *(text.lower() for text in FRAMES)], trainer)
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def config(name: str, words: PreTrainedTokenizerFast) -> dict:
    """config.json in the real one's form, small."""
    made = copy.deepcopy(CONFIGS[name])
    heads, key_heads = HEADS[name]
    text = made["text_config"]
    text |= SMALL | {"hidden_size": heads * WIDTH, "num_attention_heads": heads}
    text |= {"num_key_value_heads": key_heads, "vocab_size": -(-len(words) // ROWS) * ROWS}
    made["vision_config"] |= SMALL_TOWER
    made["image_token_index"] = words.convert_tokens_to_ids("<image>")
    for part in (made, text):
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if key in part:
                part[key] = getattr(words, key)
    if "video_token_index" in made:
        made["video_token_index"] = words.convert_tokens_to_ids("<video>")
    return made


def save(folder: Path, name: str, *, seed: int = 0, scale: float = 0.06) -> Path:
    """Write the miniature checkpoint to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer(name)
    small = config(name, words)
    _write(folder / "config.json", small)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1 or "newline" in key or "class_embedding" in key:
                weight.normal_(0.0, scale, generator=generator)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.half().save_pretrained(folder, max_shard_size="150KB")
    if bars:
        logging.enable_progress_bar()
    _old_names(folder)
    _write(folder / "config.json", small)
    words.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    _write(file, json.loads(file.read_text(encoding="utf-8")) | CLASSES[name])
    _write(folder / "chat_template.json", {"chat_template": TEMPLATES[name]})
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    _write(folder / "generation_config.json", {"_from_model_config": True} | ends)
    for file, values in _processors(name).items():
        _write(folder / file, values)
    return folder


def publish(cache: Path, name: str, *, commit: str, seed: int = 0) -> Path:
    """What `hf download NAME` leaves in a cache folder; returns its commit's folder."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return save(root / "snapshots" / commit, name, seed=seed)


def _old_names(folder: Path) -> None:
    """The towers' weights under the name that they had when the checkpoints were made."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        renamed = {key.replace("vision_tower.", "vision_tower.vision_model."): w
                   for key, w in weights.items()}  # fmt: skip
        save_file(renamed, file, metadata={"format": "pt"})
        for key in renamed.keys() - weights.keys():
            index["weight_map"][key] = file.name
    index["weight_map"] = {
        key: file for key, file in index["weight_map"].items()
        if not key.startswith("vision_tower.") or "vision_model" in key
    }  # fmt: skip
    _write(folder / "model.safetensors.index.json", index)


def _processors(name: str) -> dict[str, dict]:
    if name == ONEVISION:
        mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        shared = {
            "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
            "processor_class": "LlavaOnevisionProcessor", "resample": 3,
            "rescale_factor": 1 / 255, "size": {"height": 384, "width": 384},
        } | mean  # fmt: skip
        images = {
            "do_pad": True, "image_grid_pinpoints": ONEVISION_PINS,
            "image_processor_type": "LlavaOnevisionImageProcessor",
        }  # fmt: skip
        whole = {
            "num_image_tokens": 729, "processor_class": "LlavaOnevisionProcessor",
            "vision_feature_select_strategy": "full",
        }  # fmt: skip
        return {"preprocessor_config.json": shared | images, "processor_config.json": whole}
    clip = {
        "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": 336},
    }  # fmt: skip
    if name == LLAVA:
        images = {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
        return {"preprocessor_config.json": clip | images}
    images = {
        "aspect_ratio_setting": "anyres", "do_pad": True, "image_grid_pinpoints": NEXT_PINS,
        "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
    }  # fmt: skip
    whole = {
        "image_token": "<image>", "patch_size": 14, "processor_class": "LlavaNextProcessor",
        "vision_feature_select_strategy": "default",
    }  # fmt: skip
    return {"preprocessor_config.json": clip | images, "processor_config.json": whole}


def _write(file: Path, values: dict) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
