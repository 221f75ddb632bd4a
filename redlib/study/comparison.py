"""Table 1 over all runs of a set, laid out as the paper prints it.

The paper's table has a block per model, way of splitting and budget, and under each its methods. A
run has one model, so no notebook can draw the whole; here the blocks are filled from the table
`accuracy` that every run's notebook 06 leaves. Where no run has a row, there stands no number: a
page shows "not run". The paper's own numbers stand in columns of their own, since nothing here can
be compared with them but the order of the methods: the models are others, and so are the questions.

    frame = table1({"tiny-llava-1.5": "figures/tiny-llava-1.5"})

Nothing here needs a model; it reads the committed tables.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from redlib import answers, report
from redlib.errors import RedlibError
from redlib.store import read_csv, read_mapping
from redlib.study import printed

TASKS: dict[str, str] = {
    "POPE": "pope",
    "MMBench": "mmb",
    "SEED-Image": "seed",
    "RealWorldQA": "rwqa",
    "MME-P": "mme",
    "NoCaps": "nocaps",
    "Flickr30k": "flickr",
    "Five tasks": "mean",
}
"""Column of the table -> the task of a run that stands for it."""

METHODS: dict[str, str] = {"ours": "Ours", "prumerge": "PruMerge", "fastv": "FastV",
                           "random": "Random"}  # fmt: skip
"""The paper's methods, which every block of few tokens names; a run's other methods follow."""

ENDS: dict[str, str] = {"unpruned": "all tokens", "none": "no visual token"}

ONEVISION = (("llava-onevision", "base", 729, 729), ("llava-onevision", "base", 144, 144))
"""Blocks that the paper's table has not: what its Table 2 takes of one image."""

COLUMNS = (
    "model", "setting", "tokens", "total", "run", "method", "label", "further", "column", "task",
    "accuracy", "low", "high", "std", "n", "images", "kept", "paper", "paper_std", "answers",
)  # fmt: skip


_MEASURED = ["accuracy", "low", "high", "std", "n", "images", "kept"]


def table1(runs: Mapping[str, str | Path]) -> pd.DataFrame:
    """Every cell of the table.

    runs: run name -> folder with its tables and notes, as `redlib.report.write` takes them.
    Returns COLUMNS: model (its family), setting ("base" or "split"), tokens (per image or
    sub-image), total, run ("" where the set has none of this family), method with its label,
    further ("yes": the paper's table has not this method), column, task; accuracy with its
    interval, std (over seeds, NaN with one), n (questions), images and kept (visual tokens), all
    NaN for what was not run; the paper's number with its deviation over seeds, NaN where it prints
    none; answers, the address of the answers behind the number. The label of Ours names the
    codebook where the run was given one.
    Raises RedlibError if a run's table `accuracy` lacks a column.
    """
    paper = printed.table("table1")
    key = ["model", "setting", "tokens", "total"]
    blocks = [*paper[key].drop_duplicates().itertuples(index=False, name=None), *ONEVISION]
    kinds = [block[:2] for block in blocks]
    blocks.sort(key=lambda block: (kinds.index(block[:2]), -block[2]))
    there = report.by_family(runs)
    measured = {name: _accuracy(Path(folder)) for name, folder in runs.items()}
    given = {name: _codebook(Path(folder)) for name, folder in runs.items()}
    names, rows = ENDS | METHODS, []
    for model, setting, tokens, total in blocks:
        printed_here = paper[(paper[key] == [model, setting, tokens, total]).all(axis=1)]
        known = printed_here.set_index(["method", "column"])
        full = tokens == _most(blocks, model, setting)
        for run in there.get(model, [""]):
            frame = measured.get(run, _accuracy(None))
            here = frame[frame["setting"] == setting]
            # The two ends have their own number of tokens: all, and none.
            ends = here["method"].isin(ENDS)
            here = here[ends if full else ~ends & (here["tokens"] == tokens)]
            named = ["unpruned"] if full else list(METHODS)
            for method in dict.fromkeys([*named, *here["method"]]):
                own = here[here["method"] == method].drop_duplicates("task").set_index("task")
                for column, task in TASKS.items():
                    row = {"model": model, "setting": setting, "tokens": tokens, "total": total}
                    label = names.get(method) or own["label"].iloc[0]
                    if method == "ours" and given.get(run):
                        label += f": {given[run]}"
                    row |= {"run": run, "method": method, "label": label}
                    row |= {"further": "" if method in names else "yes"}
                    row |= {"column": column, "task": task, "answers": ""}
                    if task in own.index:
                        found = own.loc[task]
                        row |= found[_MEASURED].to_dict()
                        rule = answers.rule(method, found["tokens"], setting)
                        row["answers"] = answers.address([rule], [task])
                    if (method, column) in known.index:
                        number = known.loc[(method, column)]
                        row |= {"paper": number["value"], "paper_std": number["std"]}
                    rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _accuracy(folder: Path | None) -> pd.DataFrame:
    """The table `accuracy` of a run, without rows if it has none; a method without a title has its
    name for one."""
    needed = ["method", "tokens", "task", *_MEASURED]
    if folder is None or not (folder / "accuracy.csv").is_file():
        return pd.DataFrame(columns=["setting", *needed])
    frame = read_csv(folder / "accuracy.csv")
    for name in needed:
        if name not in frame:
            raise RedlibError(
                f"{folder / 'accuracy.csv'}: no column {name!r}, which Table 1 reads; run notebook "
                "06 again"
            )
    titled = frame if "label" in frame else frame.assign(label=frame["method"])
    return titled if "setting" in titled else titled.assign(setting="base")


def _codebook(folder: Path) -> str:
    """Name of the codebook file that the run's parameters gave for Ours, "" for its own."""
    note = folder / "accuracy.json"
    held = read_mapping(note, "parameters") if note.is_file() else {}
    given = held.get("parameters", {}).get("codebook")
    return Path(given).name if given else ""


def _most(blocks: list[tuple[str, str, int, int]], model: str, setting: str) -> int:
    return max(tokens for name, how, tokens, _ in blocks if (name, how) == (model, setting))
