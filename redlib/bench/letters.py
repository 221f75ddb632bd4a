"""MMBench, SEED and RealWorldQA: questions answered by the letter of an option.

    What is on the table?
    A. a cat
    B. a cup
    Answer with the option's letter from the given choices directly.

Models answer "B", "B. a cup", "(B)", "The answer is B." or "a cup", and whether these are all right
depends on who reads them. SEED looks at the first character, so that "a cat" is an A. MMBench looks
for a letter that stands alone, then for the text of one option, then for a letter in whatever form.
RealWorldQA changed its rule in April 2026: until then a sentence with the letter in it was wrong
and the bare text of the option right, since then it is the other way round.

All of these know capital letters only, since a small "a" is an article. The embedded models write
everything small, so that questions about the tabletop are read by a rule of ours, *delimited*,
which takes small letters too where they stand by themselves.

MMBench's unit is not the row but the question: its options are shown in all rotations, and only who
is right in all of them is right (`circular`).
"""

import re
from typing import Literal

import pandas as pd

from redlib.errors import RedlibError

LetterRule = Literal["delimited", "first"]
RealWorldQARule = Literal["until 2026-04", "since 2026-04"]

CIRCULAR = ("mmb", "mmbench")
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_KINDS = (
    "answer", "correct answer", "best answer", "correct option", "best option", "choice",
    "correct choice",
)  # fmt: skip
_ANNOUNCED = (
    *(f"{the}{kind} is" for kind in _KINDS for the in ("the ", "")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def options_in(question: str) -> dict[str, str]:
    """The options that a question shows, letter to text: at least two lines "A. cat", "A: cat" or
    "(A) cat", lettered from A on. (The line "Q: ..." of many prompts is none.)"""
    shown = re.findall(r"^\s*(?:\(([A-Z])\)|([A-Z])[.:])[ \t]*(.*?)\s*$", question, re.MULTILINE)
    found: dict[str, str] = {}
    for bracketed, plain, text in shown:
        if (bracketed or plain) == chr(ord("A") + len(found)):
            found[bracketed or plain] = text
    return found if len(found) > 1 else {}


def mmbench_options(question: str) -> dict[str, str]:
    """The options of an MMBench question as `data.prompts.mmbench` puts it, letter to text; without
    its announcement as `options_in`.

    They stand between the announcement and the instruction, so that a lettered line of the hint or
    the question is none, and what follows an option's line, up to the next letter, belongs to it.
    """
    *_, behind = re.split(r" There are several options:\n(?=A\. )", question)
    if behind == question:
        return options_in(question)
    found: dict[str, str] = {}
    for line in re.sub(r"\n\n[^\n]*\Z", "", behind).split("\n"):
        own = chr(ord("A") + len(found))
        if line.startswith(f"{own}. "):
            found[own] = line.removeprefix(f"{own}. ")
        else:
            found[max(found)] += f"\n{line}"
    return {own: text.strip() for own, text in found.items()}


def choice_letter(
    answer: str, *, letters: str = "ABCD", rule: LetterRule = "delimited"
) -> str | None:
    """Read the letter of a multiple-choice answer, in upper case; None if there is none.

    Args:
        answer: what the model said.
        letters: the letters on offer.
        rule: "delimited" (ours): a leading letter that stands by itself ("B", "b.", "(B)",
            "B: cat"), or one after "answer is" or "answer:". The article of "a cat" is no letter.
            "first" (lmms-eval's task seedbench): the first character, whatever follows.

    Raises:
        RedlibError: there is no such rule.
    """
    if rule == "first":
        letter = answer.strip()[:1].upper()
        return letter if letter and letter in letters else None
    if rule != "delimited":
        raise RedlibError(f"rule must be 'delimited' or 'first'; got {rule!r}")
    one = f"[{re.escape(letters)}]"
    leading = rf"\s*(?:\(\s*({one})\s*\)|({one})\s*(?:[.:,)]|$))"
    announced = rf".*\banswer\s*(?:is|:)\s*\(?\s*({one})\s*(?:[.:,)]|$)"
    match = re.match(leading, answer, re.IGNORECASE)
    match = match or re.match(announced, answer, re.IGNORECASE | re.DOTALL)
    return next(group for group in match.groups() if group).upper() if match else None


def extracted_letter(answer: str, letters: str = "ABCD") -> str | None:
    """The letter that lmms-eval's `extract_mcq_answer` (since April 2026) finds; None if none.

    Outer punctuation goes. Forms have ranks: a capital letter that the answer starts with, one that
    it ends with, one after "the answer is" and the like, "(B)", "B.", "B:", "B)", "B " and, if
    there is nothing else, any capital that is a letter on offer, be it inside a word. The highest
    rank counts and within it the last place, except that after an announcement each letter stands
    where it first occurs.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    padded, bare = f" {text} ", text.strip()
    small = padded.lower()
    found: list[tuple[int, int, str]] = []  # (rank, place, letter)
    for letter in letters:
        forms = (f"{letter} ", f"{letter})", f"{letter}:", f"{letter}.", f"({letter})")
        places = [padded.rfind(form) for form in forms]
        for phrase in _ANNOUNCED:
            at = small.find(phrase)
            found.append((6, padded.find(letter, at + len(phrase)) if at >= 0 else -1, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((7, len(padded), letter))
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((8, 0, letter))
        found += [(rank, place, letter) for rank, place in enumerate(places, start=1)]
        found.append((0, padded.rfind(letter), letter))
    found = [candidate for candidate in found if candidate[1] >= 0]
    return max(found)[2] if found else None


def mmbench_letter(answer: str, question: str) -> str | None:
    """The letter of an MMBench answer, read without a language model (lmms-eval's task
    mmbench_en_dev_static); None if there is none.

    First a capital of A to E that is a word of the answer, if exactly one of them is, but not if
    "A", which may be an article, is a word among more than three. Then the same with punctuation
    around it, in several forms. Then the one option whose text the answer contains. Then
    `extracted_letter`.
    """
    words, options = answer.split(), mmbench_options(question)
    around = [("", after) for after in (".", ",", ":", ")", ").")]
    around += [("(", ")"), ("(", ").")]
    around += [(":", after) for after in ("", ",", ".", ")", ").")]
    for before, after in [("", ""), *around]:
        alone = [letter for letter in "ABCDE" if f"{before}{letter}{after}" in words]
        article = not before and not after and "A" in words and len(words) > 3
        if len(alone) == 1 and not article:
            return alone[0]
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    if len(named) == 1:
        return named[0]
    return extracted_letter(answer, "".join(options) or "ABCDEFGH")


def realworldqa(answer: str, gold: str, question: str, *, rule: RealWorldQARule) -> bool:
    """Whether a RealWorldQA answer is right, by lmms-eval's task realworldqa before or after its
    change of April 2026. The paper's numbers were made before.

    Args:
        answer, gold: what was said, and what is right: a letter, a number or a word.
        question: its text, with the options.
        rule: "until 2026-04": a number word alone becomes its digit; punctuation goes; if what
            remains contains the text of an option as it is written, it becomes that option's
            letter, counted in the order shown; then it must equal the right answer, case and
            punctuation ignored. "since 2026-04": where the right answer is one of A to D,
            `extracted_letter` must equal it; elsewhere the whole answer must, case and final full
            stops ignored.

    Raises:
        RedlibError: there is no such rule.
    """
    gold = gold.strip()
    if rule == "since 2026-04":
        if gold.upper() in ("A", "B", "C", "D"):
            return extracted_letter(answer) == gold.upper()
        return answer.lower().strip().rstrip(".") == gold.lower()
    if rule != "until 2026-04":
        raise RedlibError(f"rule must be 'until 2026-04' or 'since 2026-04'; got {rule!r}")
    if answer.lower() in NUMBER_WORDS:
        answer = str(NUMBER_WORDS.index(answer.lower()))
    answer = re.sub(r"[^\w\s]", "", answer).strip()
    texts = [text.strip() for text in re.findall(r"\b[A-Z]\.\s+([^\n]*)", question)]
    letter_of = {text: chr(ord("A") + place) for place, text in enumerate(texts)}
    match = re.search("|".join(map(re.escape, texts)), answer)
    answer = letter_of.get(match.group(), answer) if match else answer
    return _unpunctuated(answer) == _unpunctuated(gold)


def _unpunctuated(text: str) -> str:
    return re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())


def circular(answers: pd.DataFrame) -> pd.Series:
    """Right by the benchmark's own unit: MMBench counts a question as right only if it was answered
    in all its rotations, so each of these rows holds that verdict; other rows stay as they are.

    Args:
        answers: rows with columns method, task, image, group, correct. For MMBench's own file
            `group` is the index modulo a million, which its rotations share.
    """
    together = answers.groupby(["method", "task", "image", "group"])["correct"].transform("all")
    return answers["correct"].where(~answers["task"].isin(CIRCULAR), together)


def mmbench(answers: pd.DataFrame) -> pd.DataFrame:
    """MMBench's accuracy per category and overall, a question with all its rotations counted once:
    questions of two options have fewer rotations than those of four, and weigh the same.

    Args:
        answers: rows of one method with columns method, task, image, group, correct (as `circular`
            reads them) and category; only MMBench's tasks count.

    Returns:
        One row per category and one "overall": category, n (questions), rows (with rotations),
        accuracy.

    Raises:
        RedlibError: there is no MMBench answer, or no column category.
    """
    if "category" not in answers:
        raise RedlibError("MMBench's table needs a column 'category'; add one to the answers")
    part = answers[answers["task"].isin(CIRCULAR)]
    if part.empty:
        raise RedlibError(f"no MMBench answers: no row has one of the tasks {', '.join(CIRCULAR)}")
    units = part.groupby(["task", "image", "group"], sort=False)
    once = units.agg(category=("category", "first"), rows=("correct", "size"),
                     correct=("correct", "all"))  # fmt: skip
    parts = [*once.groupby("category"), ("overall", once)]
    return pd.DataFrame(
        [
            {
                "category": name,
                "n": len(side),
                "rows": side["rows"].sum(),
                "accuracy": side["correct"].mean(),
            }
            for name, side in parts
        ]
    )
