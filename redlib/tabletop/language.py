"""The tiny family's words.

A word-level tokenizer: every word and punctuation mark that captions, questions and answers can
hold is one token, so that one decoding step is one word and the single-token probe reads plainly.
Words are lower-cased. The chat template is LLaVA-1.5's, `USER: <image>\\n... ASSISTANT:`.
Images and videos come before the text, with nothing between them.

    make_tokenizer()("USER: <image>\\nwhat color is the cup? ASSISTANT:").input_ids
"""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from redlib.tabletop import films, pairs
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
from redlib.tabletop.world import COLOURS, GROUNDS, NOUNS, SIZES, WORDS

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
    "{% for part in message['content'] %}{% if part['type'] in ('image', 'video') %}"
    "<{{ part['type'] }}>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    words = _words(FRAMES)
    lists = (NOUNS, COLOURS, SIZES, GROUNDS, WORDS, NUMBERS, [x.lower() for x in LETTERS])
    words += [w for group in lists for w in group]
    return [*SPECIAL, *dict.fromkeys(words)]


def further() -> list[str]:
    """The words about two images and about films that the vocabulary lacks."""
    taught = (*pairs.CHECKLISTS, pairs.CHANGED, *films.CHECKLISTS)
    words = _words((*pairs.FRAMES, *films.FRAMES_OF_TEXT, *taught))
    known = set(vocabulary())
    return [word for word in dict.fromkeys(words) if word not in known]


def _words(texts: Iterable[str]) -> list[str]:
    return [word.lower() for text in texts for word in re.findall(SPLIT, text)]


def make_tokenizer(
    *more: str, words: Sequence[str] = (), positions: int = 2048
) -> PreTrainedTokenizerFast:
    """The tokenizer of the vocabulary and, behind it, further words and `more` special tokens, for
    sequences of at most so many positions. Ids of the vocabulary are the same in all of them."""
    tokens = [*vocabulary(), *words, *more]
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
        additional_special_tokens=["<image>", *more],
        padding_side="left",
        model_max_length=positions,
    )
