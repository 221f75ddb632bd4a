"""Answers of a run, made up: what notebook 06 leaves, in a few questions."""

import pandas as pd

from redlib.answers import rule

QUESTIONS = (
    ("pope-random", "test-60000012", "Is there a cup?", "yes"),
    ("pope-popular", "test-60000012", "Is there a <b>star</b>?", "no"),
    ("mme", "test-60000013", "Is it red?", "no"),
    ("mmb", "test-60000013", "Which?\nA. cup\nB. star", "a"),
    ("seed", "test-60000014", "Where?", "b"),
    ("seed", "test-60000012", "What?", "a"),
    ("rwqa", "test-61000000.504x336", "How many?", "two"),
    ("flickr", "test-60000014", "Describe it.", "a cup in red , on wood ."),
    ("colour", "test-60000012", "What colour?", "red"),
)


def made_answers(folder):
    """Write 06.answers.csv and 06.right.csv into `folder`: one column per method and budget of the
    table `accuracy` there, or of three; every third answer is wrong, and fastv was asked less."""
    table = folder / "accuracy.csv"
    rules = ["ours@64", "random@64#0", "random@64#1", "split:ours@64", "fastv@64"]
    if table.is_file():
        asked = pd.read_csv(table).assign(setting=lambda frame: frame.get("setting", "base"))
        asked = asked[["method", "tokens", "setting"]].drop_duplicates()
        rules = [rule(*row) for row in asked.itertuples(index=False)]
    tasks = {task for task, *_ in QUESTIONS}
    more = () if not table.is_file() else sorted(set(pd.read_csv(table)["task"]) - {"pope", "mean"})
    questions = [*QUESTIONS, *((t, "photo.jpg", f"{t}?", "yes") for t in more if t not in tasks)]
    columns = ("task", "image", "text", "gold")
    said = pd.DataFrame(questions, columns=columns)
    said.insert(0, "question", range(1, len(said) + 1))
    right = said.copy()
    for k, name in enumerate(rules):
        wrong = (said.index + k) % 3 == 0
        said[name] = said["gold"].mask(wrong, "")
        right[name] = (~wrong).astype(int).astype(str)
        right.loc[right["task"] == "flickr", name] = "0.25"
        if name.startswith("fastv"):
            right.loc[said.index > 4, name] = ""
    for kind, frame in (("answers", said), ("right", right)):
        frame.to_csv(folder / f"06.{kind}.csv", index=False, lineterminator="\n")
