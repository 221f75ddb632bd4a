"""The paper's printed tables, and what the percentages of its text average.

The text says "90% of peak performance" where Tables 1 and 2 print accuracies in seven units. A
percentage is therefore a mean of ratios, pruned over unpruned, over some set of columns, and the
text does not always say which. Here every percentage of the text is computed again from the printed
tables, by each average that could be meant:

    percentages()     # one row per percentage: each average's value, which one gives it, verdict

An average *gives* a percentage if it rounds to it at the digits that the text prints; where the
text says "approximately", if it is at most a point away. Nothing in this module was measured here:
the numbers are the paper's own, kept in `redlib/study/paper/` as they are printed.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from redlib.errors import RedlibError

FOLDER = Path(__file__).parent / "paper"

FIVE = ("POPE", "MMBench", "SEED-Image", "RealWorldQA", "MME-P")
CAPTIONS = ("NoCaps", "Flickr30k")
MULTI_IMAGE = ("Mantis-test", "MuirBench")

AVERAGES: dict[str, tuple[str, ...]] = {
    "five tasks": FIVE,
    "seven columns": (*FIVE, *CAPTIONS),
    "two captions": CAPTIONS,
    "two multi-image sets": MULTI_IMAGE,
    "video": ("MVBench",),
}
"""Name of an average -> the columns whose ratios it averages."""

OF_MEANS = "ratio of five means"
"""The other reading of a mean over five tasks: mean score pruned over mean score unpruned, with MME
as a share of its 2,000 points."""
MOST_MME = 2000.0

ABOUT = 1.0
"""Points that "approximately" may be off."""


def table(name: str) -> pd.DataFrame:
    """A file of `redlib/study/paper/` with empty cells as NaN (as "" where the column is text).

    name: "table1", "table2" (model, setting, method, tokens per image or sub-image, total tokens,
    column, value, std), "table3" (left_out, images_percent, prototypes, value), "percentages" or
    "claims".
    Raises RedlibError for another name.
    """
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.csv")))
        raise RedlibError(f"no printed table {name!r}; there are {known}")
    if name in ("percentages", "claims"):
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    return pd.read_csv(path)


def shares(cells: str, method: str) -> dict[str, float]:
    """Percent of the unpruned score that `method` keeps, by every average that has its columns.

    cells: "model/setting/tokens", several joined by "|", which are averaged in turn.
    Raises RedlibError if the paper prints no such row.
    """
    printed = pd.concat([table("table1"), table("table2")])
    printed.loc[printed["column"] == "MME-P", "value"] *= 100 / MOST_MME
    ratios, of_means = [], []
    for cell in cells.split("|"):
        model, setting, tokens = cell.split("/")
        here = printed[(printed["model"] == model) & (printed["setting"] == setting)]
        full = here[here["method"] == "unpruned"].set_index("column")["value"]
        at = here[(here["method"] == method) & (here["tokens"] == int(tokens))]
        if at.empty:
            raise RedlibError(f"the paper prints no {method} at {cell}")
        kept = at.set_index("column")["value"]
        ratios.append(100 * kept / full.loc[list(kept.index)])
        if set(FIVE) <= set(kept.index):
            of_means.append(100 * kept.loc[list(FIVE)].mean() / full.loc[list(FIVE)].mean())
    found = {}
    for name, columns in AVERAGES.items():
        if all(set(columns) <= set(ratio.index) for ratio in ratios):
            means = [ratio.loc[list(columns)].mean() for ratio in ratios]
            found[name] = float(sum(means) / len(means))
    if of_means:
        found[OF_MEANS] = float(sum(of_means) / len(of_means))
    return found


def percentages() -> pd.DataFrame:
    """Every percentage of the paper's text, computed again from its printed tables.

    Returns id, section, quote, says (the text's number), named (the average that the text names, or
    ""), recomputed (each average with its value), given_by (the averages that give the number) and
    the verdict in words.
    """
    return _percentages().copy()


@cache
def _percentages() -> pd.DataFrame:
    rows = []
    for row in table("percentages").itertuples():
        values = _values(row)
        digits = max(1, _digits(row.says))  # one more than the text, or as many as Table 3
        given = [name for name, value in values.items() if _gives(value, row.says, row.relation)]
        rows.append(
            {
                "id": row.id,
                "section": row.section,
                "quote": row.quote,
                "says": f"{row.relation} {row.says}%".removeprefix("is "),
                "named": row.named,
                "recomputed": "; ".join(f"{name} {v:.{digits}f}" for name, v in values.items()),
                "given_by": "; ".join(given),
                "verdict": _verdict(values, given, row.named, float(row.says), digits),
            }
        )
    return pd.DataFrame(rows)


def _values(row: object) -> dict[str, float]:
    """Average -> value of one row of percentages.csv."""
    if row.kind in ("share", "gain"):
        less = 100 if row.kind == "gain" else 0
        return {name: value - less for name, value in shares(row.cells, row.method).items()}
    if row.kind == "won":
        return _won(row.cells, row.method)
    if row.kind == "drop":
        before, after = row.cells.split("/")
        printed = table("table3").set_index("left_out")["value"]
        points = printed[before] - printed[after]
        return {"points": points, "relative": 100 * points / printed[before]}
    found = {}
    for cell in row.cells.split("|"):
        part, whole = map(int, cell.split("/"))
        kept = 100 * part / whole
        found[f"{part} of {whole} tokens"] = 100 - kept if row.kind == "pruned" else kept
    return found


def _won(cells: str, method: str) -> dict[str, float]:
    """Percent of the comparisons with the other methods, column by column, that `method` wins."""
    printed, better = table("table1"), []
    for cell in cells.split("|"):
        model, setting, tokens = cell.split("/")
        here = printed[(printed["model"] == model) & (printed["setting"] == setting)]
        here = here[(here["tokens"] == int(tokens)) & (here["method"] != "unpruned")]
        wide = here.pivot(index="column", columns="method", values="value")
        rivals = wide.drop(columns=method)
        better += list(rivals.lt(wide[method], axis="index").to_numpy().ravel())
    return {f"{len(better)} comparisons": 100 * sum(better) / len(better)}


def _gives(value: float, says: str, relation: str) -> bool:
    if relation == "about":
        return abs(value - float(says)) <= ABOUT
    if relation == "over":
        return value > float(says)
    return abs(value - float(says)) <= 0.5 * 10 ** -_digits(says) + 1e-9


def _verdict(
    values: dict[str, float], given: list[str], named: str, says: float, digits: int
) -> str:
    if not given:
        near = min(values, key=lambda name: abs(values[name] - says))
        return f"none gives it; nearest {near} {values[near]:.{digits}f}"
    if not named:
        return "given"
    if named in given:
        return "given as named"
    if named == "five tasks" and OF_MEANS in given:
        return "given as named, but by the ratio of means"
    return "given by another average than the named one"


def _digits(says: str) -> int:
    return len(says.partition(".")[2])
