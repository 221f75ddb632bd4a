"""Table 1 on a page: a block per model and budget, every number with its interval and its answers.

Below what was measured stands the paper's own table in the same layout, as a table of its own, so
that no number of the paper is ever read as if it had been measured here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from redlib.webpage import heads, linked, region, text

Link = Callable[[str, str], str]


def table1(frame: pd.DataFrame, link: Link) -> str:
    """The section of Table 1: what the runs measured, and below it what the paper prints.

    frame: as `redlib.study.comparison.table1` returns it. link: from a run and an address of
    answers to the link, or "".
    """
    key, runs = (
        ["model", "setting", "tokens", "total", "run"],
        list(filter(None, set(frame["run"]))),
    )
    columns = list(dict.fromkeys(frame["column"]))
    labels = dict(zip(frame["method"], frame["label"], strict=True))
    measured, paper = [], []
    for (model, setting, tokens, total, run), block in frame.groupby(key, sort=False):
        measured += _block(_block_title(model, setting, tokens, total, run), block, link)
        printed = block.dropna(subset="paper")
        if len(printed):
            paper.append(_row_group(_block_title(model, setting, tokens, total), len(columns)))
            for method, row in printed.groupby("method", sort=False):
                numbers = [_printed(cell) for cell in row.itertuples()]
                name = labels[method].partition(":")[0]  # without the codebook a run was given
                paper.append(_cells(name, numbers))
            paper.append("</tbody>")
    few = len(runs) == 1
    caption = (
        "Score in percent, with 95 % intervals from resampling images; a number leads to its "
        "answers, where the run has kept them. The columns are these benchmarks, or with drawn "
        "scenes the tabletop tasks that stand in for them, each with its own score as notebook 06 "
        "has it. Five tasks: mean of the first five. n: questions. Random: mean of its draws ± "
        "their standard deviation, of these draws alone. Below the thicker line: methods that the "
        "paper's table has not, which were asked neither for captions nor with tiles; SparseVLM "
        "and the direct probe are in none, and LLaVA-OneVision, which the paper's table has not, "
        "is asked with fewer methods. With "
        "splitting every method keeps the budget in each tile, FastV too, which by its own "
        "description would rank the tokens of all tiles together. Where the "
        "tower has no [cls] (LLaVA-OneVision), PruMerge ranks by the attention among patches."
    )
    heading = f"Table 1 of {'run ' + runs[0] if few else 'all models'}"
    return (
        f'<section aria-labelledby="table-1"><h2 id="table-1">{text(heading)}</h2>'
        + region("table-1", _grid(caption, [*columns, "Visual tokens"], measured))
        + '<p><a href="table-1.csv">Table 1 as CSV, with the paper\'s numbers in columns of their '
        'own</a></p><h3 id="table-1-paper">The same table in the paper</h3>'
        + region(
            "table-1-paper",
            _grid(
                "As printed, for the 7B and 8B models on the real benchmarks; nothing here was "
                "measured by this project. MME in points of 2,000, captions by SPICE; the paper "
                "prints no mean over five tasks, and no row that is missing here.",
                list(dict.fromkeys(frame.dropna(subset="paper")["column"])),
                paper,
            ),
        )
        + "</section>"
    )


def _grid(caption: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    names = ("Method", *columns)
    return (
        f"<table><caption>{text(caption)}</caption><thead><tr>{heads(names)}</tr></thead>"
        + "\n".join(rows)
        + "</table>"
    )


def _block(title: str, block: pd.DataFrame, link: Link) -> list[str]:
    """The rows of one model, setting and budget: how many questions, then the methods."""
    columns = list(dict.fromkeys(block["column"]))
    labels = dict(zip(block["method"], block["label"], strict=True))
    lines = [_row_group(title, len(columns) + 2)]
    asked = block.dropna(subset="accuracy").groupby("column")["n"].max()
    if len(asked):
        numbers = [f"{asked[name]:.0f}" if name in asked.index else "" for name in columns]
        lines.append(_cells("n", [*numbers, ""]))
    further = next(iter(block.loc[block["further"] == "yes", "method"]), None)
    for method, row in block.groupby("method", sort=False):
        kept = row["kept"].dropna()
        if kept.empty:
            rest = f'<td colspan="{len(columns) + 1}">not run</td>'
            lines.append(f'<tr><th scope="row">{text(labels[method])}</th>{rest}</tr>')
            continue
        shown = []
        for cell in row.itertuples():
            if pd.isna(cell.accuracy):
                shown.append("not run")
                continue
            number = linked(f"{100 * cell.accuracy:.1f}", link(cell.run, cell.answers))
            fewer = f", n {cell.n:.0f}" if cell.n != asked[cell.column] else ""
            spread = "" if pd.isna(cell.std) else f"± {100 * cell.std:.1f}, "
            ends = f"{spread}{100 * cell.low:.1f} to {100 * cell.high:.1f}{fewer}"
            shown.append(f'{number} <span class="interval">{ends}</span>')
        css = "further" if method == further else ""
        lines.append(_cells(labels[method], [*shown, f"{kept.iloc[0]:.4g}"], css))
    return [*lines, "</tbody>"]


def _block_title(model: str, setting: str, tokens: int, total: int, run: str | None = None) -> str:
    """ "LLaVA-Next with splitting, 64 tokens per sub-image (320): run x"."""
    title = {"llava-1.5": "LLaVA-1.5", "llava-next": "LLaVA-Next",
             "llava-onevision": "LLaVA-OneVision"}[model]  # fmt: skip
    if model == "llava-next":
        title += " with splitting" if setting == "split" else " without splitting"
    title += f", {total:,} visual tokens"
    if setting == "split":
        title += f" ({tokens} per sub-image)"
    return title if run is None else f"{title}: {f'run {run}' if run else 'not run'}"


def _row_group(title: str, width: int) -> str:
    head = f'<th scope="rowgroup" colspan="{width}">{text(title)}</th>'
    return f'<tbody><tr class="block">{head}</tr>'


def _cells(name: str, cells: Iterable[str], css: str = "") -> str:
    start = f'<tr class="{css}">' if css else "<tr>"
    cells = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'{start}<th scope="row">{text(name)}</th>{cells}</tr>'


def _printed(cell: Any) -> str:
    if pd.isna(cell.paper_std):
        return f"{cell.paper:.1f}"
    return f'{cell.paper:.1f} <span class="interval">± {cell.paper_std:g}</span>'
