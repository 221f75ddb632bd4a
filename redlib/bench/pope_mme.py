"""POPE and MME: benchmarks that are answered by yes or no.

To "Is there a cup?" the answer "No." is a no for LLaVA's own POPE script, and neither yes nor no
for lmms-eval, which wants the bare word. An empty answer is a *yes* for the first. So every rule
has the name of its source:

    yes_no("No.", rule="llava")        # "no"
    yes_no("No.", rule="lmms-eval")    # "other", counted as wrong

POPE reports each of its three subsets; the paper's number is their mean accuracy, while most tables
of other pruning methods print F1. MME asks two questions about each image, one to be answered yes
and one no; acc+ is the share of such pairs with both right, and a category scores at most 200. Ten
categories add up to *perception* (2,000), four more to *cognition* (800). Tables of other methods
print perception, or the sum of both, under the one name MME: here they are two rows.
"""

from typing import Literal

import pandas as pd

from redlib.bench.words import normalise
from redlib.errors import RedlibError

YesNoRule = Literal["llava", "lmms-eval", "mme"]

POPE_SUBSETS = ("pope-random", "pope-popular", "pope-adversarial")
MME_COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
"""All other categories are perception."""


def yes_no(answer: str, *, rule: YesNoRule = "llava") -> str:
    """Read a yes/no answer: "yes", "no" or "other".

    Args:
        answer: what the model said.
        rule: "llava" (LLaVA, `eval_pope.py`, with the answer stripped as LLaVA writes it): of what
            stands before the first full stop, commas left out and cut at spaces, "no" if a word is
            No, no or not, otherwise "yes", also for an empty answer. "lmms-eval" (its task pope):
            the bare word, case ignored. "mme" (lmms-eval's task mme): full stops left out and case
            ignored, y and n alone, otherwise whichever of yes and no, in this order, stands in the
            first four characters.

    Raises:
        RedlibError: there is no such rule.
    """
    if rule == "llava":
        words = answer.strip().split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    bare = answer.lower().strip()
    if rule == "lmms-eval":
        return bare if bare in ("yes", "no") else "other"
    if rule == "mme":
        bare = bare.replace(".", "")
        if bare in ("y", "n"):
            return {"y": "yes", "n": "no"}[bare]
        return next((word for word in ("yes", "no") if word in bare[:4]), "other")
    raise RedlibError(f"rule must be 'llava', 'lmms-eval' or 'mme'; got {rule!r}")


def pope(answers: pd.DataFrame, *, rule: YesNoRule = "llava") -> pd.DataFrame:
    """POPE's numbers per subset and their mean over the subsets.

    An answer that is neither yes nor no is wrong and, where yes was right, a miss. (lmms-eval
    leaves it out of the recall, and prints the share of *questions* to be answered by yes under the
    name yes ratio, which is one half for every model.)

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
    """MME's numbers per category and their sums.

    Args:
        answers: rows with columns task, image, group, answer, gold; only the task "mme" counts.
            `group` is the category; a pair is two rows of one image and group.
        rule: how answers are read.

    Returns:
        One row per category, then "perception" and, if any of its categories was asked,
        "cognition": category, n, pairs, acc (share of questions right), acc_plus (share of pairs
        with both right) and score = 100 (acc + acc_plus), at most 200. The last rows add up the
        scores; their acc and acc_plus are means over the categories.

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
    cognition = table["category"].isin(MME_COGNITION)
    totals = [
        {
            "category": name,
            **{column: side[column].sum() for column in ("n", "pairs", "score")},
            **side[["acc", "acc_plus"]].mean(),
        }
        for name, side in (("perception", table[~cognition]), ("cognition", table[cognition]))
        if len(side)
    ]
    return pd.concat([table, pd.DataFrame(totals)], ignore_index=True)
