"""Words compared as words: two answers that differ in case and punctuation alone are the same.

Asked for a colour or a count, one model says "Red." and another "red", and neither knows more than
the other. So this much is forgiven, and no more: an article, another word or a digit for a number
word is another answer. Benchmarks that offer letters, or a yes and a no, are read by rules of their
own (`metrics`).

    exact_match("Red.", "red")       # True
    exact_match("a cup", "cup")      # False
"""

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
