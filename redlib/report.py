"""The page of all figures, written from the notes that lie beside them.

Every figure and table of a run lies in one folder as a picture, its numbers, and a note (see
`redlib.notebook`). The page adds nothing of its own: it lays the notes out, so that a caption is
read where the picture is seen and the parameters are one click away. One HTML file with relative
links and no script, font or style from anywhere else; it can be opened from the disk, mailed, or
served as it is (`redlib.webpage` has the style). Every picture has a text alternative that says
what it shows. The page holds no date, so that the same run gives the same bytes.

Where a run has kept its answers, a number of Table 1, and of every figure or table whose rows name
a method and its tokens, or the answers themselves, is a link to those that it counts
(`redlib.answers`).
"""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import pandas as pd

from redlib import answers, comparison_tables
from redlib.params import NOTEBOOKS, family
from redlib.store import Missing, damaged, read_csv, read_json, read_mapping, write_text
from redlib.webpage import document, heads, linked, region, text

# Columns that say what a row of a result table is about; the others hold what was measured.
_ASKED = (
    "method", "against", "tokens", "setting", "task", "set", "seed", "seeds", "from",
    "training_images", "prototypes",
)  # fmt: skip

CLAIMS = ".claims.json"
"""End of the name of a notebook's file of tested statements."""

# What `redlib.notebook` writes into every note of a figure or table, and of a statement.
_NOTE = (
    "name", "kind", "notebook", "order", "paper_item", "title", "caption", "reading", "alt",
    "parameters", "versions",
)  # fmt: skip
_CLAIM = ("notebook", "statement", "holds", "evidence", "paper_item")

# Longer tables are cut on the page, unless their rows lead to answers; the CSV file has every row.
MAX_ROWS = 60


def write(
    page: str | Path,
    folders: Mapping[str, str | Path],
    *,
    title: str,
    beside: Mapping[str, str | Path] = {},
    ledger: pd.DataFrame | None = None,
    percentages: pd.DataFrame | None = None,
    table1: pd.DataFrame | None = None,
) -> Path:
    """Write the page of one run, or of a set of runs.

    page: the HTML file to write. folders: run name -> folder with its figures and notes; links are
    relative from the page to there. title: the page's heading. beside: further runs that the ledger
    reads, with pages of their own. ledger, percentages: the paper's claims (`redlib.study.ledger`)
    and its recomputed percentages (`redlib.study.printed`). table1: its Table 1 over the runs
    (`redlib.study.comparison`), left out where nothing of it was run.
    Each is also written beside the page, as claims.csv, percentages.csv and table-1.csv.
    Returns the path of the page. Raises RedlibError for a damaged note, a figure or table of which
    a file is gone, or a folder that cannot be written.
    """
    page = Path(page)
    if table1 is not None and table1["accuracy"].isna().all():
        table1 = None
    runs = {name: (Path(folder), items(folder)) for name, folder in folders.items()}
    for folder, notes in runs.values():
        for path in (path for note in notes for path in lost(folder, note)):
            raise Missing(f"{path}: no such file; run its notebook again")
    links = _Links(page.parent, folders, beside)
    body = [
        '<a class="skip" href="#results">Skip to the results</a>',
        f"<header><h1>{text(title)}</h1>",
        f"<p>{text(_lead(runs))}</p></header>",
        '<nav aria-label="Contents"><h2>Contents</h2>',
        _contents(runs, ledger, percentages, table1),
        '</nav><main id="results" tabindex="-1">',
    ]
    if table1 is not None:
        body.append(comparison_tables.table1(table1, links.to))
        _write_csv(page.with_name("table-1.csv"), table1)
    if ledger is not None:
        body.append(_ledger(ledger, links))
        _write_csv(page.with_name("claims.csv"), ledger)
    if percentages is not None:
        body.append(_percentages(percentages))
        _write_csv(page.with_name("percentages.csv"), percentages)
    for run, (folder, notes) in runs.items():
        body.append(f'<section aria-labelledby="{_id(run)}">')
        body.append(f'<h2 id="{_id(run)}">Run {text(run)}{_model(run, notes)}</h2>')
        body.append(_log(folder, run, links))
        body.append(_claims(claims(folder), run))
        for notebook in _notebooks(notes):
            body.append(f'<h3 id="{_id(run, notebook)}">{text(_heading(notebook))}</h3>')
            for note in notes:
                if note["notebook"] == notebook:
                    body.append(_item(note, run, folder, links))
        body.append("</section>")
    body.append("</main><footer><p>Written by <code>redlib run</code> from the notes beside the ")
    body.append("figures. Each figure's numbers are in its CSV file.</p></footer>")
    write_text(page, document(title, "\n".join(part for part in body if part)))
    return page


def items(folder: str | Path) -> list[dict[str, Any]]:
    """The notes of all figures and tables in `folder`, in the order of notebooks and cells.

    Raises RedlibError if one is damaged.
    """
    notes = []
    for path in Path(folder).glob("*.json"):
        if not path.name.endswith(CLAIMS):
            with suppress(Missing):  # a notebook at work may drop its own
                note = read_mapping(path, *_NOTE)
                if not _has(note["parameters"], "model"):
                    raise damaged(path)
                notes.append(note)
    return sorted(notes, key=lambda note: (note["notebook"], note["order"], note["name"]))


def files(folder: str | Path, note: Mapping[str, Any]) -> list[Path]:
    """Where a figure or table of `items` lies: the picture, if it has one, and the numbers."""
    endings = (".csv",) if note["kind"] == "table" else (".png", ".csv")
    return [Path(folder) / f"{note['name']}{ending}" for ending in endings]


def lost(folder: str | Path, note: Mapping[str, Any]) -> list[Path]:
    """Those of its `files` that are gone."""
    return [path for path in files(folder, note) if not path.is_file()]


def claims(folder: str | Path) -> list[dict[str, Any]]:
    """The tested statements of all notebooks whose results lie in `folder`.

    Raises RedlibError if a file of them is damaged.
    """
    found = []
    for path in sorted(Path(folder).glob(f"*{CLAIMS}")):
        noted = read_json(path)
        if not isinstance(noted, list) or not all(_has(claim, *_CLAIM) for claim in noted):
            raise damaged(path)
        found += noted
    return found


def _has(note: Any, *fields: str) -> bool:
    return isinstance(note, dict) and note.keys() >= set(fields)


def by_family(runs: Mapping[str, str | Path]) -> dict[str, list[str]]:
    """Family -> names of the runs whose model is one of it, by their first note."""
    found: dict[str, list[str]] = {}
    for name, folder in runs.items():
        for note in items(folder)[:1]:
            found.setdefault(family(str(note["parameters"]["model"])), []).append(name)
    return found


def table(
    source: str | Path | TextIO,
    *,
    caption: str,
    max_rows: int | None = MAX_ROWS,
    link: Callable[[Mapping[str, str]], str] = lambda row: "",
) -> str:
    """A CSV file as an HTML table: caption, column heads and row heads with scope, numbers right.

    Every cell is shown as it stands in the file, but for a column `answers`, which only links read.
    max_rows: longer tables are cut there; None: not. link: from a row (column -> cell) to the
    address behind its first measured number, or "". Raises RedlibError if the file is missing or
    damaged.
    """
    whole = read_csv(source, dtype=str, keep_default_na=False)
    frame = whole.drop(columns="answers", errors="ignore")
    numeric = [all(_is_number(value) for value in frame[name]) for name in frame.columns]
    css = [' class="number"' if flag else "" for flag in numeric]
    named = zip(frame.columns, css, strict=True)
    head = "".join(f'<th scope="col"{style}>{text(name)}</th>' for name, style in named)
    measured = next(
        (k for k, name in enumerate(frame.columns) if k and numeric[k] and name not in _ASKED), 0
    )
    rows = []
    shown = frame if max_rows is None else frame.head(max_rows)
    for values, row in zip(shown.to_numpy(), whole.to_dict("records"), strict=False):
        first, *rest = [text(value) for value in values]
        if measured and (target := link(row)):
            rest[measured - 1] = linked(rest[measured - 1], target)
        cells = "".join(f"<td{style}>{v}</td>" for v, style in zip(rest, css[1:], strict=True))
        rows.append(f'<tr><th scope="row"{css[0]}>{first}</th>{cells}</tr>')
    more = len(frame) - len(shown)
    cut = f" (first {len(shown)} of {len(frame)} rows; all are in the CSV file)" if more else ""
    return (
        f"<table><caption>{text(caption)}{cut}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(rows) + "</tbody></table>"
    )


class _Links:
    """Where the answers behind a number are, and the figures, from the page at hand, which shows
    the runs of `folders` and speaks of those of `beside`."""

    def __init__(
        self, start: Path, folders: Mapping[str, str | Path], beside: Mapping[str, str | Path]
    ) -> None:
        self._start, self._beside = start, beside
        self._folders = {name: Path(folder) for name, folder in {**folders, **beside}.items()}
        self._answers = {
            (name, notebook): answers.read(folder, notebook)
            for name, folder in self._folders.items()
            for notebook in answers.NOTEBOOKS
        }
        self._items = {
            (name, note["name"]) for name, folder in self._folders.items() for note in items(folder)
        }

    def place(self, run: str) -> str:
        """The way to the run's folder, to be put in front of a file's name."""
        way = quote(Path(os.path.relpath(self._folders[run], self._start)).as_posix())
        return "" if way == "." else f"{way}/"

    def item(self, run: str, name: str) -> str:
        """The link to a figure or table of a run, "" if it has none of this name."""
        if (run, name) not in self._items:
            return ""
        page = f"{self.place(run)}index.html" if run in self._beside else ""
        return f"{page}#{_id(run, name)}"

    def to(self, run: str, where: str, notebook: str = "06") -> str:
        """The link to a notebook's answers named as `answers.address` does, "" if the run has none
        of them."""
        found = self._answers.get((run, notebook))
        link = found.link(where) if found else ""
        return self.place(run) + link if link else ""


def _log(folder: Path, run: str, links: "_Links") -> str:
    """The link to the log of a run that is published with it, named by the run's id."""
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8") as file:
        id = file.readline().strip()
    return f'<p><a href="{links.place(run)}log.txt">Log of {text(run)}, {text(id)}</a></p>'


def _lead(runs: Mapping[str, tuple[Path, list[dict[str, Any]]]]) -> str:
    count = _kinds([note for _, notes in runs.values() for note in notes])
    of = f"{_count(len(runs), 'run')}: {', '.join(runs)}"
    return (
        f"{count} from {of}. Under each stand what it shows, how to read it, the numbers as CSV, "
        "and the parameters and versions that made it."
    )


def _contents(
    runs: Mapping[str, tuple[Path, list[dict[str, Any]]]],
    ledger: pd.DataFrame | None,
    percentages: pd.DataFrame | None,
    table1: pd.DataFrame | None,
) -> str:
    lines = ["<ul>"]
    if table1 is not None:
        lines.append('<li><a href="#table-1">Table 1</a></li>')
    if ledger is not None:
        lines.append('<li><a href="#claims">The paper\'s claims</a></li>')
    if percentages is not None:
        lines.append('<li><a href="#percentages">The paper\'s percentages</a></li>')
    for run, (_, notes) in runs.items():
        for notebook in _notebooks(notes):
            mine = [note for note in notes if note["notebook"] == notebook]
            label = _heading(notebook) if len(runs) == 1 else f"{run}: {_heading(notebook)}"
            # of several runs a hundred lines would stand before the first number
            fold = f"<details><summary>Its {_kinds(mine)}</summary>" if len(runs) > 1 else ""
            lines.append(f'<li><a href="#{_id(run, notebook)}">{text(label)}</a>{fold}<ul>')
            for note in mine:
                link = f"#{_id(run, note['name'])}"
                lines.append(f'<li><a href="{link}">{text(_title(note))}</a></li>')
            lines.append(f"</ul>{'</details>' if fold else ''}</li>")
    return "\n".join([*lines, "</ul>"])


def _item(note: Mapping[str, Any], run: str, folder: Path, links: "_Links") -> str:
    link = f"{links.place(run)}{note['name']}"
    key = _id(run, note["name"])
    lines = [f'<article class="item" aria-labelledby="{key}"><h4 id="{key}">{_head(note)}</h4>']

    def behind(row: Mapping[str, str]) -> str:
        return links.to(run, answers.of_row(row), note["notebook"])

    path = folder / f"{note['name']}.csv"
    rows = read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    opens = any(behind(row) for row in rows)
    numbers = partial(table, path, link=behind, max_rows=None if opens else MAX_ROWS)
    if note["kind"] == "table":
        summary = f'<p class="summary">{text(note["alt"])}</p>'
        if "shown" in note:
            worded = table(io.StringIO(note["shown"]), caption=note["caption"])
            lines += [f"{region(key, worded)}{summary}", _fold(key, numbers)]
        else:
            lines.append(f"{region(key, numbers(caption=note['caption']))}{summary}")
    else:
        size = f'width="{note["width"]}" height="{note["height"]}"'
        lines.append(f'<figure><img src="{link}.png" alt="{text(note["alt"])}" {size}>')
        lines.append(f"<figcaption>{text(note['caption'])}</figcaption></figure>")
        lines += [_fold(key, numbers)] if opens else []
    reading, title = text(note["reading"]), text(note["title"])
    lines.append(f'<p class="reading"><strong>How to read it.</strong> {reading}</p>')
    picture = "" if note["kind"] == "table" else f'<a href="{link}.png">Picture at full size</a> · '
    lines.append(f'<p>{picture}<a href="{link}.csv">Numbers of “{title}” as CSV</a></p>')
    lines.append(f"<details><summary>Parameters and versions of “{title}”</summary>")
    lines.append(_pairs(note["parameters"]))
    lines.append(_pairs(note["versions"]))
    lines.append("</details></article>")
    return "\n".join(lines)


def _fold(key: str, numbers: Callable[..., str]) -> str:
    """What stands in the file of a figure or table, to be opened."""
    under = region(key, numbers(caption="As in the CSV file"))
    return f"<details><summary>Its numbers, row by row</summary>{under}</details>"


def _claims(found: Iterable[Mapping[str, Any]], run: str) -> str:
    verdicts = {True: "holds", False: "does not hold", None: "not decided"}
    rows = []
    for claim in found:
        where = f"{claim['paper_item'] or '-'}, notebook {claim['notebook']}"
        rows.append(
            f'<tr><th scope="row">{text(claim["statement"])}</th>'
            f'<td class="holds">{verdicts[claim["holds"]]}</td>'
            f"<td>{text(claim['evidence'])}</td><td>{text(where)}</td></tr>"
        )
    if not rows:
        return ""
    key = _id(run, "claims")
    cells = (
        f"<table><caption>Claims tested in run {text(run)}</caption><thead><tr>"
        + heads(("Claim", "Verdict", "Evidence", "Where"))
        + "</tr></thead><tbody>"
        + "\n".join(rows)
        + "</tbody></table>"
    )
    return f'<h3 id="{key}">Claims</h3>{region(key, cells)}'


def _ledger(frame: pd.DataFrame, links: "_Links") -> str:
    """The paper's claims one by one, each with a link to the figure or table that decides it, and
    one from what was measured to the answers behind it."""
    rows = []
    for claim in frame.itertuples():
        where = f"{claim.run}, notebook {claim.notebook}: {claim.table}"
        where = linked(text(where), links.item(claim.run, claim.table)) if claim.run else ""
        needs = f"needs {text(claim.needs)}" if claim.needs else ""
        cells = [text(cell) for cell in (claim.paper, claim.paper_tables, claim.criterion)]
        cells.append(
            linked(text(claim.measured), links.to(claim.run, claim.answers, claim.notebook))
        )
        rows.append(
            f'<tr><th scope="row">{text(claim.claim)} '
            f'<span class="where">({text("; ".join(filter(None, (claim.section, claim.note))))})'
            "</span></th>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f'<td class="holds">{text(claim.verdict)}</td>'
            f"<td>{'; '.join(part for part in (where, needs) if part)}</td></tr>"
        )
    said = frame[frame["beyond"] == ""]
    numbers = said["verdict"].value_counts(sort=False)
    count = ", ".join(f"{verdict} {number}" for verdict, number in numbers.items())
    names = (
        "Claim",
        "Paper's number",
        "Its tables give",
        "Test",
        "Measured here",
        "Verdict",
        "Where",
    )
    cells = (
        "<table><caption>Every claim, the test that decides it, and what the runs say</caption>"
        f"<thead><tr>{heads(names)}</tr></thead><tbody>" + "\n".join(rows) + "</tbody></table>"
    )
    return (
        '<section aria-labelledby="claims"><h2 id="claims">The paper\'s claims</h2>'
        f"<p>{_count(len(said), 'claim')}: {text(count)}; {_count(len(frame) - len(said), 'row')} "
        "more ask for more than the paper says. A verdict is about the model of the "
        "run it names, which is not the paper's. What the paper prints is in columns of its own; "
        "nothing in them was measured here.</p>"
        + region("claims", cells)
        + '<p><a href="claims.csv">The claims as CSV</a></p></section>'
    )


def _percentages(frame: pd.DataFrame) -> str:
    """The percentages of the paper's text beside what its own tables give."""
    shown = frame.rename(columns=lambda name: name.replace("_", " ")).drop(columns="id")
    cells = table(
        io.StringIO(shown.to_csv(index=False)),
        caption="What the text says, and what each average over the columns of the paper's own "
        "printed tables gives; no number of this table was measured here",
        max_rows=len(frame),
    )
    return (
        '<section aria-labelledby="percentages">'
        '<h2 id="percentages">The paper\'s percentages</h2>'
        + region("percentages", cells)
        + '<p><a href="percentages.csv">The percentages as CSV</a></p></section>'
    )


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _pairs(values: Mapping[str, Any]) -> str:
    lines = [
        f"<dt><code>{text(name)}</code></dt><dd>{text(_yaml(value))}</dd>"
        for name, value in values.items()
    ]
    return "<dl>" + "\n".join(lines) + "</dl>"


def _yaml(value: Any) -> str:
    """A value as one would write it in a parameter file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _head(note: Mapping[str, Any]) -> str:
    item = text(note["paper_item"])
    return text(note["title"]) + (f' <span class="where">({item})</span>' if item else "")


def _title(note: Mapping[str, Any]) -> str:
    return f"{note['title']} ({note['paper_item']})" if note["paper_item"] else note["title"]


def _heading(notebook: str) -> str:
    words = NOTEBOOKS[notebook].removesuffix(".ipynb").replace("vqav2", "VQAv2").split("_")
    return f"Notebook {notebook}: {' '.join(words[1:])}"


def _notebooks(notes: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(note["notebook"] for note in notes))


def _model(run: str, notes: list[dict[str, Any]]) -> str:
    """Names the model where the run's own name does not."""
    models = sorted({str(note["parameters"]["model"]) for note in notes} - {run})
    return f", drawn with {text(' and '.join(models))}" if models else ""


def _kinds(notes: Iterable[Mapping[str, Any]]) -> str:
    """As `6 figures and 1 table`; a kind of which there is none is told where there is nothing."""
    kinds = [note["kind"] for note in notes]
    told = [kind for kind in ("figure", "table") if kind in kinds or not kinds]
    return " and ".join(_count(kinds.count(kind), kind) for kind in told)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _id(*parts: str) -> str:
    return "-".join(["r", *(quote(part, safe="").replace("%", "_") for part in parts)])


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value in ("", "-")
    return True
