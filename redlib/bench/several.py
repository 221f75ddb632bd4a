"""Mantis-Eval, MuirBench and MVBench: questions about several images and about videos.

All three offer options with letters, and each reads the answer in its own way. To the right option
C, "C. the second" is right for all. "(C)" is right for Mantis and MVBench and wrong for MuirBench;
"I choose C" is right for MVBench alone, which looks for a letter anywhere, and for Mantis an I.

Mantis has questions without options too, to be answered word for word. MVBench is twenty subtasks
of 200 questions; its number is the mean over the subtasks.
"""

import re

import pandas as pd

from redlib.bench.letters import options_in
from redlib.errors import RedlibError

_MVBENCH_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def mantis(answer: str, gold: str, question: str) -> bool:
    """Whether a Mantis-Eval answer is right (lmms-eval's task mantis).

    What follows "final answer:", else "the answer is", else "answer:" is the answer, if one of them
    was said. Where the question shows options, the first letter of the answer in any script and
    case is the choice; if it is the letter of no option, all that was said must be the text of the
    right option. Without options the answer must be the right one but for case.
    """
    final = answer
    for marker in ("final answer:", "the answer is", "answer:"):
        at = answer.lower().find(marker)
        if at >= 0:
            final = answer[at + len(marker) :].strip()
            break
    gold, options = gold.strip("()\n "), options_in(question)
    if not options:
        return final.lower() == gold.lower()
    gold = next((c for c in gold if c.isalpha()), "").upper()
    final = re.sub(r"^Answer: (?=[A-Z])", "", final)  # said after another marker
    choice = next((c for c in final if c.isalpha()), "").upper()
    if choice in options:
        return choice == gold
    return gold in options and answer.strip() == options[gold]


def muirbench(answer: str, gold: str) -> bool:
    """Whether a MuirBench answer is right (lmms-eval's task muirbench): the capital letter before a
    full stop at the start of the answer, if there is one, else the whole answer, must be the right
    letter, case and outer white space ignored."""
    match = re.match(r"\s*([A-Z])\.", answer)
    said = match[1] if match else answer
    return said.lower().strip() == gold.lower().strip()


def mvbench_letter(answer: str) -> str | None:
    """The letter of an MVBench answer (lmms-eval's tasks mvbench_*): one of A to E, in any case,
    that starts it, before a full stop and one line of text, else the first of them that is a word
    by itself once punctuation is gone; None if there is none. An article counts."""
    match = re.match(r"([A-E])\.\s*.+$", answer.strip(), re.IGNORECASE)
    if match:
        return match[1].upper()
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    number, bare = re.search(r"\d,\d", text), text
    for mark in _MVBENCH_MARKS:
        # A mark that somewhere stands beside a space goes without a trace, others part words.
        traceless = number or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if traceless else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    match = re.search(r"\b([A-E])\b", bare, re.IGNORECASE)
    return match[1].upper() if match else None


def mvbench(answers: pd.DataFrame) -> pd.DataFrame:
    """MVBench's accuracy per subtask and its mean over the subtasks.

    Args:
        answers: rows with columns task, group (the subtask), answer, gold (a letter); only the task
            "mvbench" counts.

    Returns:
        One row per subtask and one "mean": subtask, n, answered (not empty), accuracy over the
        answered, as the benchmark counts (0 where none is).

    Raises:
        RedlibError: there is no MVBench answer.
    """
    part = answers[answers["task"] == "mvbench"]
    if part.empty:
        raise RedlibError("no MVBench answers: no row has the task mvbench")
    rows = []
    for subtask, side in part.groupby("group", sort=False):
        said = side[side["answer"] != ""]
        right = said["answer"].map(mvbench_letter) == said["gold"].str.upper()
        rows.append(
            {
                "subtask": subtask,
                "n": len(side),
                "answered": len(said),
                "accuracy": right.mean() if len(said) else 0.0,
            }
        )
    table = pd.DataFrame(rows)
    mean = {"subtask": "mean", **table[["n", "answered"]].sum(), "accuracy": table.accuracy.mean()}
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True)
