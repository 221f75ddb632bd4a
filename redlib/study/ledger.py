"""The ledger: every checkable claim of the paper, and what the runs at hand say of it.

The claims are data (`paper/claims.csv`), each with the rule that decides it. Most were written down
before there was a result; a `note` tells of a test that was added or changed when results were
known. A claim is decided in one of two ways:

    statement   a notebook has tested it and noted its verdict (`redlib.study.verdict`); rows named
                beside it only lead to the answers
    rule        the interval in certain rows of a result table lies above, below or between bounds,
                or is "not-below 1 0.98": above the second, a margin lower, and not all below the 1

Several rows decide together: all must hold, and one that fails is enough to fail; or, by a rule
that begins with "mean", the mean over all columns of the benchmarks that they stand for. A claim
about LLaVA-Next that any model can show is read from a run of that family, else from the next
family that the claim lists; where that run leaves it open and one of another family decides it,
what it needs names the other. A claim about several models ("llava-1.5+llava-next") is read from a
run of each, with rows of its own in each. What no run has measured is "not run", with the table
that it waits for; what no run of this kind can tell is "not decidable here", with what it needs.
The paper's own numbers stand in columns of their own: `paper` as its text or a table has them,
`paper_tables` as they come out of its printed tables (`redlib.study.printed`). Where its text gives
another share than its table, the bar is the table's. Rows that ask for more than the paper says are
marked `beyond` and not counted.

    frame = ledger({"tiny-llava-1.5": "figures/tiny-llava-1.5"})
    counts(frame)                     # {"holds": 9, "does not hold": 10, ...}

Nothing here needs a model; it reads the committed tables and notes.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redlib import answers, report
from redlib.errors import RedlibError
from redlib.store import read_csv
from redlib.study import LEAST_IMAGES, printed

HOLDS, FAILS, OPEN, NOT_RUN = VERDICTS = (
    "holds",
    "does not hold",
    "not decidable here",
    "not run",
)

_IN_WORDS = {True: HOLDS, False: FAILS, None: OPEN}

COLUMNS = (
    "id", "section", "claim", "paper", "paper_tables", "measured", "interval", "verdict",
    "criterion", "needs", "note", "beyond", "run", "notebook", "table", "answers",
)  # fmt: skip

MORE = "more images or questions: the interval leaves it open"
FEW = f"{LEAST_IMAGES} images at least: an interval of fewer decides nothing"

TRUTH = "needs known truth"
"""How the evidence begins where photographs were shown (`redlib.study.verdict.untold`)."""

AND, ELSE, MEAN = " + ", " else ", "mean "
"""Between the rows of several models in `where`; before those that are read where none of the first
is there; and before a rule about the mean of all rows."""

_MEASURES = {
    ("shares", "share"): (100, "%", "of the unpruned score"),
    ("rivals", "difference"): (100, " points", "of score ahead"),
    ("informative-kept", "difference"): (100, " points", "of the informative tokens kept more"),
    ("ablation", "lost"): (100, " points", "of the unpruned score lost"),
    ("ablation", "over_random"): (100, " points", "of the unpruned score ahead of random"),
    ("ablation", "prototypes/left_out=nothing"): (1, " times", "the prototypes of all criteria"),
    ("steps", "change"): (100, " points", "of change, of the unpruned score"),
    ("captions-pruned", "change"): (100, " points", "of change, of the true tuples"),
    ("spot-the-difference", "full"): (1, " a picture", "with all tokens"),
    ("costs", "megabytes"): (1, " MB", "in memory"),
    ("costs", "share_of_prefill"): (100, "%", "of the operations of a prefill"),
}
"""What the columns that rules read are: their scale, their unit, and of what. "column/name=value"
is the column over what it is in that row of the table."""

_INTERVAL = re.compile(r"\((?:95% interval )?([-+]?\d[\d.e+-]*%? to [-+]?\d[\d.e+-]*%?)\)")


@dataclass(frozen=True)
class _Found:
    """What a run says: the verdict (None: open), the numbers and their interval as text, and the
    address of the answers behind them where the table itself names it; `few`: whether it is open
    because there are fewer than LEAST_IMAGES."""

    holds: bool | None
    measured: str
    interval: str
    run: str
    answers: str = ""
    few: bool = False


def ledger(runs: Mapping[str, str | Path]) -> pd.DataFrame:
    """The claims with their verdicts.

    runs: run name -> folder with its tables and notes, as `redlib.report.write` takes them.
    Returns one row per claim with COLUMNS, in the order of the paper's argument; `verdict` is one
    of VERDICTS, `run`, `measured` and `interval` are "" where nothing was measured; `answers` is
    the address of the answers behind the numbers (`redlib.answers`), "" where neither a claim
    nor the table it reads names a rule.
    Raises RedlibError if a result table lacks a column by which a claim names its rows; one without
    the number that it reads, as an earlier version may have left, has not measured it.
    """
    folders = {name: Path(folder) for name, folder in runs.items()}
    families = report.by_family(runs)
    texts = printed.percentages().set_index("id")
    rows = []
    for claim in printed.table("claims").itertuples():
        first, _, other = claim.where.partition(ELSE)
        found = _read(claim._replace(where=first), families, folders)
        if other and not found:
            found = _read(claim._replace(where=other), families, folders)
            found = [replace(one, measured=f"{one.measured} ({other})") for one in found]
        rows.append(_row(claim, found, texts))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many claims of the paper have each verdict, all of VERDICTS in their order."""
    said = frame.loc[frame["beyond"] == "", "verdict"]
    return {verdict: int((said == verdict).sum()) for verdict in VERDICTS}


def _read(
    claim: Any, families: Mapping[str, Sequence[str]], folders: Mapping[str, Path]
) -> list[_Found]:
    """What the first run of each family that has measured the claim says of it; of families that
    decide together, the first run of each of them."""
    found = []
    for kind in claim.families.split():
        if "+" in kind:
            found.append(_together(claim, kind, families, folders))
        else:
            looked = (_look(claim, name, folders[name]) for name in families.get(kind, ()))
            found.append(next(filter(None, looked), None))
    return list(filter(None, found))


def _together(
    claim: Any, kind: str, families: Mapping[str, Sequence[str]], folders: Mapping[str, Path]
) -> _Found | None:
    """What runs of several families say together; None if one of them has not measured its part."""
    parts = []
    for family, where in zip(kind.split("+"), claim.where.split(AND), strict=True):
        names = families.get(family, ())
        measured = (_measured(claim, where, name, folders[name]) for name in names)
        rows = next((rows for rows in measured if rows is not None), None)
        if rows is None:
            return None
        parts.append(rows)
    return _decided(claim, pd.concat(parts))


def _row(claim: Any, measured: list[_Found], texts: pd.DataFrame) -> dict[str, str]:
    """measured: what the first run of each family that has measured the claim says of it; the first
    of these decides."""
    decided = claim.statement or claim.rule
    found = measured[0] if measured else None
    if found is not None:
        verdict = _IN_WORDS[found.holds]
        missing = claim.needs or (FEW if found.few else MORE)
        if found.measured.startswith(TRUTH):
            missing = TRUTH
        others = "".join(
            f"; {other.run}: {_IN_WORDS[other.holds]} ({other.measured}; {other.interval})"
            for other in measured[1:]
            if other.holds is not None
        )
        needs = missing + others if verdict == OPEN else ""
    elif decided:
        verdict = NOT_RUN
        table = f"table {claim.table} of notebook {claim.notebook}"
        table += " with the rows that the test names" if claim.where else ""
        needs = f"{table}, drawn with {' or '.join(claim.families.split())}".replace("+", " and ")
    else:
        verdict, needs = OPEN, claim.needs
    return {
        "id": claim.id,
        "section": claim.section,
        "claim": claim.claim,
        "paper": claim.paper,
        "paper_tables": "; ".join(_recomputed(texts.loc[key]) for key in claim.percentages.split()),
        "measured": found.measured if found else "",
        "interval": found.interval if found else "",
        "verdict": verdict,
        "criterion": claim.statement or _criterion(claim),
        "needs": needs,
        "note": claim.note,
        "beyond": claim.beyond,
        "run": found.run if found else "",
        "notebook": claim.notebook,
        "table": claim.table,
        "answers": (found.answers if found else "") or _answers(claim.where, claim.value),
    }


def _criterion(claim: Any) -> str:
    """A rule as people read it, "between 80 and 90% of the unpruned score, where method ours"."""
    if not claim.rule:
        return ""
    scale, unit, what = _MEASURES[claim.table, claim.value]
    word, numbers = _parsed(claim.rule)
    between = f"{unit} by an interval above " if word == "not-below" else " and "
    ends = between.join(f"{number * scale:g}" for number in numbers)
    test = f"{'mean ' * claim.rule.startswith(MEAN)}{word.replace('-', ' ')} {ends}{unit} {what}"
    parts = claim.where.split(AND)
    if len(parts) > 1:
        named = zip(parts, claim.families.split("+"), strict=True)
        parts = [f"{part} ({family})" for part, family in named]
    where = "; ".join(part.replace(";", ", ").replace("|", " and ") for part in parts)
    where = where.replace("=", " ").replace(ELSE, f",{ELSE}")
    return f"{test}, where {where}" if where else test


def _answers(where: str, value: str) -> str:
    """The rules and tasks that `value` is about in the rows of a claim, as `answers.address` writes
    them, of several models' the first's; "" if no answers make it."""
    asked = dict(_conditions(where.split(AND)[0]))
    methods = [*asked.get("method", ()), *asked.get("against", ())] if "method" in asked else []
    if "left_out" in asked:  # criteria, each against all of them or against chance
        methods = ["random" if value == "over_random" else "nothing", *asked["left_out"]]
    tokens = [*asked.get("tokens", ()), *asked.get("from", ())]
    if not methods or not tokens:
        return ""
    (setting,) = asked.get("setting", ["base"])
    rules = [answers.rule(method, number, setting) for number in tokens for method in methods]
    return answers.address(rules, asked.get("task", ["mean"]))


def _recomputed(text: pd.Series) -> str:
    given = f"given by {text['given_by']}" if text["given_by"] else "no average of them gives it"
    return f"{text['says']}: {text['recomputed'].replace(';', ',')} ({given.replace(';', ',')})"


def _look(claim: Any, run: str, folder: Path) -> _Found | None:
    """What `run` says of the claim; None if it has not measured it."""
    path = folder / f"{claim.table}.csv"
    if claim.statement:
        for noted in report.claims(folder):
            if (noted["notebook"], noted["statement"]) == (claim.notebook, claim.statement):
                intervals = "; ".join(_INTERVAL.findall(noted["evidence"]))
                behind = _behind(claim, path)
                return _Found(noted["holds"], noted["evidence"], intervals, run, behind)
        return None
    rows = _measured(claim, claim.where, run, folder) if claim.rule else None
    return None if rows is None else _decided(claim, rows, _behind(claim, path))


def _measured(claim: Any, where: str, run: str, folder: Path) -> pd.DataFrame | None:
    """The rows of a run's table that `where` asks for; None unless all of them are there.

    Returns run, value, low, high (both the value where it was counted), counted, few (images) and
    columns (of the benchmarks, that a mean counts it for).
    """
    path = folder / f"{claim.table}.csv"
    if not path.is_file():
        return None
    frame = read_csv(path)
    value, _, over = claim.value.partition("/")
    if value not in frame:
        return None
    frame = frame.dropna(subset=[value])
    rows = _chosen(frame, where, path)
    whole = _chosen(frame, over, path)[value] if over else pd.Series([1])
    if rows.empty or not _complete(rows, where) or len(whole) != 1 or not whole.item():
        return None
    values = rows[value] / whole.item()
    ends = None if over else _bounds(rows, value)  # of a quotient no table has any
    low, high = ends or (values, values)
    found = pd.DataFrame({"run": run, "value": values, "low": low, "high": high})
    found = found.assign(counted=ends is None, few=False, columns=1)
    if "images" in rows and not over:
        found["few"] = rows["images"] < LEAST_IMAGES
    if "task" in rows:
        found["columns"] = [len(answers.GROUPS.get(task, (task,))) for task in rows["task"]]
    return found


def _decided(claim: Any, rows: pd.DataFrame, behind: str = "") -> _Found:
    """What the rows say, each of them or their mean. rows: of `_measured`, of one run or more."""
    tested = _mean(rows) if claim.rule.startswith(MEAN) else rows
    verdicts = [
        None if row.few else _judge(row.low, row.high, claim.rule, counted=row.counted)
        for row in tested.itertuples()
    ]
    holds = False if False in verdicts else None if None in verdicts else True
    scale, unit, what = _MEASURES[claim.table, claim.value]
    measured = f"{_range(tested['value'] * scale)}{unit} {what}"
    if len(tested) > 1:
        measured += f" in {len(tested)} rows: {verdicts.count(True)} hold, "
        measured += f"{verdicts.count(False)} do not, {verdicts.count(None)} are open"
    elif len(rows) > 1:
        measured += f", the mean of {_range(rows['value'] * scale)}{unit}"
    runs = list(dict.fromkeys(rows["run"]))
    if len(runs) > 1:
        measured += f"; of {', '.join(runs)}"
    low, high = scale * tested["low"].min(), scale * tested["high"].max()
    if tested["counted"].all():
        told = "exact"
    elif len(tested) == 1:
        bounds = [scale * bound for bound in _parsed(claim.rule)[1]]
        told = _range([low, high], bounds) + unit
    else:
        told = f"each within {_range([low, high])}{unit}"
    return _Found(holds, measured, told, runs[0], behind, bool(tested["few"].any()))


def _mean(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean of some rows as a row, each counted as often as it has columns.

    Its interval is from the mean of the lower ends to that of the upper ones: as wide as if all
    erred together, since tables do not tell how much they do, and so never too narrow.
    """
    ends = ["value", "low", "high"]
    found = np.average(rows[ends], axis=0, weights=rows["columns"])
    sides = {"counted": rows["counted"].all(), "few": rows["few"].any()}
    return pd.DataFrame([dict(zip(ends, found, strict=True)) | sides])


def _behind(claim: Any, path: Path) -> str:
    """The address of the answers behind the rows that a claim is about, "" where the table names
    none."""
    frame = read_csv(path) if path.is_file() else pd.DataFrame()
    if "answers" not in frame:
        return ""
    rows = _chosen(frame, claim.where, path)["answers"].dropna()
    if rows.empty:
        return ""
    named = [row.partition("/") for row in rows]
    rules = dict.fromkeys(rule for these, _, _ in named for rule in these.split(","))
    return answers.address(rules, dict.fromkeys(task for _, _, task in named))


def _chosen(frame: pd.DataFrame, where: str, path: Path) -> pd.DataFrame:
    """The rows of `frame` that have one of the values asked for in every column asked for."""
    for column, wanted in _conditions(where):
        if column not in frame:
            known = ", ".join(frame.columns)
            told = f"{path}: no column {column!r}, which the ledger reads; there are {known}"
            raise RedlibError(told)
        frame = frame[frame[column].map(_text).isin(wanted)]
    return frame


def _complete(rows: pd.DataFrame, where: str) -> bool:
    """Whether every combination that was asked for is there: a part of a claim decides nothing."""
    conditions = _conditions(where)
    there = {tuple(_text(row[column]) for column, _ in conditions) for _, row in rows.iterrows()}
    return there == set(itertools.product(*(wanted for _, wanted in conditions)))


def _conditions(where: str) -> list[tuple[str, list[str]]]:
    """ "method=ours;tokens=96|144" as [("method", ["ours"]), ("tokens", ["96", "144"])]; words
    without "=", as of all rows, ask for nothing."""
    pairs = (part.split("=", 1) for part in where.split(";") if "=" in part)
    return [(column, wanted.split("|")) for column, wanted in pairs]


def _bounds(rows: pd.DataFrame, value: str) -> tuple[pd.Series, pd.Series] | None:
    """Ends of the interval of `value`; None where it was counted, not estimated."""
    for low, high in ((f"{value}_low", f"{value}_high"), ("low", "high")):
        if low in rows and high in rows:
            return rows[low], rows[high]
    return None


def _judge(low: float, high: float, rule: str, *, counted: bool) -> bool | None:
    """Whether an interval lies where `rule` says, e.g. "above 0.9" or "between 0.8 0.9".

    counted: the number is exact, and both ends are it; one at the bound is not above it. Of an
    estimate whose draws all came out alike, that is no certainty.
    """
    word, numbers = _parsed(rule)
    if word == "not-below":
        bound, margin = numbers
        surely, hardly = high < bound, low > margin  # where both are so it is a little below: open
        return None if surely == hardly else hardly
    if word == "between":
        floor, ceiling = numbers
        if low >= floor and high <= ceiling:
            return True
        return False if high < floor or low > ceiling else None
    (bound,) = numbers
    if word == "below":
        low, high, bound = -high, -low, -bound
    if low > bound:
        return True
    return False if counted or high < bound else None


def _parsed(rule: str) -> tuple[str, list[float]]:
    """ "above 0.9" or "mean above 0.9" as ("above", [0.9])."""
    word, *numbers = rule.removeprefix(MEAN).split()
    return word, [float(number) for number in numbers]


def _range(values: Any, bounds: Sequence[float] = ()) -> str:
    """The ends of some numbers, with so many digits that none looks like a bound it is not."""
    ends = []
    for value in (min(values), max(values)):
        digits = 3
        while digits < 8 and value not in bounds and float(f"{value:.{digits}g}") in bounds:
            digits += 1
        ends.append(f"{value:.{digits}g}")
    return " to ".join(dict.fromkeys(ends))


def _text(value: Any) -> str:
    """A cell as claims.csv writes it: whole numbers without a point."""
    return f"{value:g}" if isinstance(value, float) else str(value)
