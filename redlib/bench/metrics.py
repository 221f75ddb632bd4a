"""Answers to numbers, by the rules of the real benchmarks.

A model answers in words and a benchmark counts in rights and wrongs; what lies between is a parser,
and parsers differ. To "Is there a cup?" the answer "No." is a no for LLaVA's own POPE script, and
neither yes nor no for lmms-eval, which wants the bare word. An empty answer is a *yes* for the
first. Such differences are larger than those between pruning methods, so every rule here has a
name:

    yes_no("No.", rule="llava")        # "no"
    yes_no("No.", rule="lmms-eval")    # "other", counted as wrong

Of the result tables: POPE is accuracy per subset and the mean of the subsets (the paper's number);
MME adds acc+, the share of pairs with both questions right, and sums up its categories; MMBench
wants all four rotations of a question right.
"""

import re
from typing import Literal

import pandas as pd

from redlib.errors import RedlibError

YesNoRule = Literal["llava", "lmms-eval", "mme"]
LetterRule = Literal["delimited", "first"]

POPE_SUBSETS = ("pope-random", "pope-popular", "pope-adversarial")
CHOICES = ("mmb", "seed")


def normalise(text: str) -> str:
    """Lower case, punctuation to spaces, single spaces; digits and letters of any script stay.

    An apostrophe goes without a space, so that "isn't" stays one word.
    """
    text = text.lower().replace("'", "").replace("\u2019", "")
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether the two are the same words, ignoring case and punctuation."""
    return normalise(answer) == normalise(gold)


def yes_no(answer: str, *, rule: YesNoRule = "llava") -> str:
    """Read a yes/no answer: "yes", "no" or "other".

    Args:
        answer: what the model said.
        rule: "llava" (LLaVA's POPE script): of the first sentence, "no" if one of its words is No,
            no or not, otherwise "yes", also for an empty answer. "lmms-eval": the bare word, case
            ignored. "mme" (lmms-eval's MME): the bare word, a full stop allowed, otherwise
            whichever of yes and no stands in the first four characters.

    Raises:
        RedlibError: there is no such rule.
    """
    if rule == "llava":
        words = answer.split(".")[0].replace(",", "").split()
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    bare = answer.lower().strip()
    if rule == "lmms-eval":
        return bare if bare in ("yes", "no") else "other"
    if rule == "mme":
        bare = bare.replace(".", "")
        return next((word for word in ("yes", "no") if word in bare[:4]), "other")
    raise RedlibError(f"rule must be 'llava', 'lmms-eval' or 'mme'; got {rule!r}")


def choice_letter(
    answer: str, *, letters: str = "ABCD", rule: LetterRule = "delimited"
) -> str | None:
    """Read the letter of a multiple-choice answer, in upper case; None if there is none.

    Args:
        answer: what the model said.
        letters: the letters on offer.
        rule: "delimited": a leading letter that stands by itself ("B", "b.", "(B)", "B: cat"), or
            one after "answer is" or "answer:". The article of "a cat" is no letter. "first"
            (SEED): the first character, whatever follows.

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


def is_correct(task: str, answer: str, gold: str, *, rule: YesNoRule | None = None) -> bool:
    """Whether `answer` is right, by the rule of the task.

    POPE tasks are read by the "llava" rule and MME by "mme" unless `rule` names another; MMBench
    and SEED questions, and those of RealWorldQA whose right answer is a letter, by the delimited
    letter; all others are exact matches.
    """
    if task.startswith("pope"):
        return yes_no(answer, rule=rule or "llava") == normalise(gold)
    if task == "mme":
        return yes_no(answer, rule=rule or "mme") == normalise(gold)
    if task in CHOICES or (task == "rwqa" and len(gold) == 1):
        return choice_letter(answer, letters="ABCDEFGH") == normalise(gold).upper()
    return exact_match(answer, gold)


def circular(answers: pd.DataFrame) -> pd.Series:
    """Right by the benchmark's own unit: MMBench counts a question as right only if it was answered
    in all its rotations, so each of these rows holds that verdict; other rows stay as they are.

    Args:
        answers: rows with columns method, task, image, group, correct.
    """
    together = answers.groupby(["method", "task", "image", "group"])["correct"].transform("all")
    return answers["correct"].where(answers["task"] != "mmb", together)


def pope(answers: pd.DataFrame, *, rule: YesNoRule = "llava") -> pd.DataFrame:
    """POPE's numbers per subset and their mean over the subsets.

    Args:
        answers: rows with columns task, answer, gold; tasks that are not POPE are left out.
        rule: how answers are read.

    Returns:
        One row per subset and one "mean": subset, n, accuracy, precision, recall, f1 (of "yes";
        0 where undefined) and yes, the share of answers read as yes.

    Raises:
        RedlibError: there is no POPE answer.
    """
    rows = []
    for task in POPE_SUBSETS:
        part = answers[answers["task"] == task]
        if part.empty:
            continue
        said = part["answer"].map(lambda text: yes_no(text, rule=rule))
        gold = part["gold"].map(normalise)
        hits = int(((said == "yes") & (gold == "yes")).sum())
        n_said, n_gold = int((said == "yes").sum()), int((gold == "yes").sum())
        rows.append(
            {
                "subset": task.removeprefix("pope-"),
                "n": len(part),
                "accuracy": (said == gold).mean(),
                "precision": hits / n_said if n_said else 0.0,
                "recall": hits / n_gold if n_gold else 0.0,
                "f1": 2 * hits / (n_said + n_gold) if n_said + n_gold else 0.0,
                "yes": n_said / len(part),
            }
        )
    if not rows:
        raise RedlibError(f"no POPE answers: no row has one of the tasks {', '.join(POPE_SUBSETS)}")
    table = pd.DataFrame(rows)
    mean = table.drop(columns=["subset", "n"]).mean()
    mean_row = pd.DataFrame([{"subset": "mean", "n": table["n"].sum(), **mean}])
    return pd.concat([table, mean_row], ignore_index=True)


def mme(answers: pd.DataFrame, *, rule: YesNoRule = "mme") -> pd.DataFrame:
    """MME's numbers per category and their sum.

    Args:
        answers: rows with columns task, image, group, answer, gold; only the task "mme" counts.
            `group` is the category; a pair is two rows of one image and group.
        rule: how answers are read.

    Returns:
        One row per category and one "sum": category, n, pairs, acc (share of questions right),
        acc_plus (share of pairs with both right) and score = 100 (acc + acc_plus), at most 200. The
        sum adds up the scores, as MME's perception score does; its acc and acc_plus are means over
        the categories.

    Raises:
        RedlibError: there is no MME answer, or a pair has not exactly two questions.
    """
    part = answers[answers["task"] == "mme"]
    if part.empty:
        raise RedlibError("no MME answers: no row has the task mme")
    right = part["answer"].map(lambda text: yes_no(text, rule=rule)) == part["gold"].map(normalise)
    pairs = right.groupby([part["image"], part["group"]])
    sizes = pairs.size()
    if (sizes != 2).any():
        image, group = sizes.index[(sizes != 2).to_numpy().argmax()]
        raise RedlibError(
            f"MME pair {group!r} of image {image!r} has {sizes[image, group]} questions, not 2"
        )
    both = pairs.all().groupby(level=1)
    table = pd.DataFrame(
        {
            "n": right.groupby(part["group"]).size(),
            "pairs": both.size(),
            "acc": right.groupby(part["group"]).mean(),
            "acc_plus": both.mean(),
        }
    )
    table["score"] = 100 * (table["acc"] + table["acc_plus"])
    table = table.rename_axis("category").reset_index()
    total = {
        "category": "sum",
        **{name: table[name].sum() for name in ("n", "pairs", "score")},
        **table[["acc", "acc_plus"]].mean(),
    }
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)
