"""How a benchmark's question is put: in the words of the paper's release, or of lmms-eval.

The same question in other words is another measurement: POPE's accuracy moves by points with "in
one word" at its end. The paper's numbers were made with its release's wording, most published ones
with that of lmms-eval; `prompts` chooses. Where the two are the same (SEED, MMBench, RealWorldQA,
MuirBench) the release took lmms-eval's.

    yes_no("Is there a cup?", "release", "llava-1.5")
    # 'Is there a cup? Please answer this question with one word.'
"""

from collections.abc import Sequence
from typing import Literal

Wording = Literal["release", "lmms-eval"]

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "\nAnswer the question using a single word or phrase."
_MME = " Please answer yes or no."
_CAPTION = {
    "release": (
        "Describe the provided image in one sentence.\nPlease provide detailed and specific "
        "descriptions of the key information in the picture."
    ),
    "lmms-eval": "Provide a one-sentence caption for the provided image.",
}

LONGEST = 16
"""New tokens of an answer: the release's, for all questions. lmms-eval allows POPE 128 and MMBench
1,024, where what comes after the first words is not read."""


def longest_caption(wording: Wording, family: str) -> int:
    """New tokens of a caption: 64, and 256 for LLaVA-Next in the release."""
    return 256 if wording == "release" and family == "llava-next" else 64


LONGEST_DETAIL = 512
"""New tokens of Image-DC's descriptions, by the release."""


def caption(wording: Wording) -> str:
    """NoCaps and Flickr30k."""
    return _CAPTION[wording]


def yes_no(question: str, wording: Wording, family: str) -> str:
    """POPE. The release asks LLaVA-1.5 for one word and LLaVA-Next as lmms-eval does."""
    one_word = wording == "release" and family == "llava-1.5"
    return question.strip() + (
        " Please answer this question with one word." if one_word else PHRASE
    )


def mme(question: str, wording: Wording) -> str:
    """MME, whose questions end in an instruction of their own, which lmms-eval replaces."""
    question = question.strip()
    return question if wording == "release" else question.replace(_MME, "") + PHRASE


def mmbench(question: str, hint: str, options: dict[str, str]) -> str:
    """MMBench."""
    shown = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    front = f"{hint} " if hint else ""
    return f"{front}{question} There are several options:\n{shown}\n\n{LETTER}"


def lettered(question: str, options: Sequence[str]) -> str:
    """SEED and MuirBench."""
    shown = "\n".join(f"{chr(65 + n)}. {text}" for n, text in enumerate(options))
    return f"{question}\n{shown}\n{LETTER}"


def mantis(question: str, options: Sequence[str], wording: Wording) -> str:
    """Mantis-Eval: Mantis' own templates in both. lmms-eval puts the options of a choice behind the
    instruction, as Python prints a list."""
    if not options:
        return (
            "Given the images, answer the following short answer vqa question:\n"
            f"Q: {question}\nYou can first give your analysis, and then give your final answer as "
            '"Final Answer:"'
        )
    if wording == "lmms-eval":
        return f"{question}\n{LETTER}{list(options)}"
    return f"{question}" + "".join(f"\n {text}" for text in mantis_options(options)) + f"\n{LETTER}"


def mantis_options(options: Sequence[str]) -> list[str]:
    """Options with their letters, which some of the data set's have and others have not."""
    found = []
    for n, text in enumerate(options):
        letter = chr(65 + n)
        marked = any(f"{letter}{mark}" in text.upper() for mark in (")", ":", "."))
        found.append(text if marked else f"({letter}) {text}")
    return found


def mvbench(question: str, options: Sequence[str], wording: Wording) -> str:
    """MVBench; the two differ by a blank and a letter."""
    shown = "".join(f"({chr(65 + n)}) {text}\n" for n, text in enumerate(options))
    if wording == "release":
        return f"Question: {question}\nOptions:\n{shown}Only give the best option."
    return f"Question:{question}\nOption:\n{shown}Only give the best option.\n"
