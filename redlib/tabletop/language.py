"""The tiny family's words, and its checkpoints before training.

A word-level tokenizer: every word and punctuation mark that captions, questions and answers can
hold is one token, so that one decoding step is one word and the single-token probe reads plainly.
Words are lower-cased. The chat template is LLaVA-1.5's, `USER: <image>\\n... ASSISTANT:`.

    processor = make_processor()
    model = make_model(processor.tokenizer)      # random weights, stock classes
"""

import re

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from redlib.tabletop.questions import (
    CHECKLIST,
    DESCRIBE,
    DETAIL,
    LETTER,
    LETTERS,
    NUMBERS,
    ONE_WORD,
    PLACES,
    RELATIONS,
    SHORT,
    YES_NO,
)
from redlib.tabletop.world import COLOURS, GROUNDS, NOUNS, PATCH, SIDE, SIZES, WORDS

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
FRAMES = (
    "USER: ASSISTANT:",
    ONE_WORD,
    DESCRIBE,
    DETAIL,
    CHECKLIST,
    YES_NO,
    LETTER,
    SHORT,
    *PLACES,
    *RELATIONS,
    "Is there a cup in the image? Please answer this question with one word.",
    "Is there an umbrella in this image? Is the word open written in this image?",
    "Are there two objects in this image? Is there a plain ground in this image?",
    "Is the cup red? What color is the cup? What size is the cup? What is the red thing?",
    "Is the cup on the left or on the right? Is the cup at the top or at the bottom?",
    "How many objects are there? What word is written in the image?",
    "Which object is in the image? Where is the cup? Where is the cup from the star?",
    "Answer the question using a single word or phrase.",
    "a large red cup, a small blue star and the word open on a plain and wood ground.",
    "yes no not which how many in out it this that of to by and or near beside above below",
)
SPLIT = r"[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z]"
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    words = [w.lower() for frame in FRAMES for w in re.findall(SPLIT, frame)]
    lists = (NOUNS, COLOURS, SIZES, GROUNDS, WORDS, NUMBERS, [x.lower() for x in LETTERS])
    words += [w for group in lists for w in group]
    return [*SPECIAL, *dict.fromkeys(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokens = vocabulary()
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
    )


def make_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """tiny-llava-1.5: the real model's geometry (24 x 24 tokens, feature layer -2, a projector of
    two layers), a hundredth of its widths."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("pad", "s", "image")}
    end = tokenizer.convert_tokens_to_ids("</s>")
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=PATCH,
            layer_norm_eps=1e-9,  # small beside the rescaled stream, see tower.rescale
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            # A question has to find patches hundreds of positions away by what they show. Rotary
            # embedding spoils that for all dimensions that turn within such a distance: heads of
            # 64 with Llama 3's base leave more than half of them, heads of 32 with 10,000 a third.
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            max_position_embeddings=2048,
            pad_token_id=ids["pad"],
            bos_token_id=ids["s"],
            eos_token_id=end,
        ),
        image_token_id=ids["image"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        pad_token_id=ids["pad"],
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0
) -> LlavaForConditionalGeneration:
    """The untrained checkpoint, random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(make_config(tokenizer))
