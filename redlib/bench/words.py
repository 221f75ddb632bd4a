"""Words compared as words: two answers that differ in case and punctuation alone are the same."""

import re


def normalise(text: str) -> str:
    """Lower case, punctuation to spaces, single spaces; digits and letters of any script stay.

    An apostrophe goes without a space, so that "isn't" stays one word.
    """
    text = text.lower().replace("'", "").replace("\u2019", "")
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether the two are the same words, ignoring case and punctuation."""
    return normalise(answer) == normalise(gold)
