"""The page of all figures, written from the notes that lie beside them.

Every figure and table of a run lies in one folder as a picture, its numbers, and a note (see
`redlib.notebook`). The page adds nothing of its own: it lays the notes out, so that a caption is
read where the picture is seen and the parameters are one click away. One HTML file with relative
links and no script, font or style from anywhere else; it can be opened from the disk, mailed, or
served as it is.

The page holds to what makes it usable by everyone: headings in order, a link past the contents,
every picture with a text alternative that says what it shows, tables as tables, system fonts,
colours that keep 7:1 contrast in light and dark, sizes in rem and a single column that re-flows at
200 % and more. It holds no date, so that the same run gives the same bytes.
"""

import html
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import pandas as pd

from redlib.errors import RedlibError
from redlib.params import NOTEBOOKS
from redlib.store import Missing, read_json, write_text

# Longer tables are cut on the page; the CSV file has every row.
MAX_ROWS = 40

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #454c55; --paper: #ffffff;
  --card: #f4f6f8; --line: #767e88; --link: #0a4a8f; --mark: #0a4a8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceff2; --soft: #c2c9d1; --paper: #14181c;
  --card: #1e242a; --line: #8a939d; --link: #9cc9ff; --mark: #9cc9ff; } }
* { box-sizing: border-box; }
html { font-size: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
header, nav, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 2rem 0 .5rem; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 3rem 0 1rem; }
h3 { font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 .5rem; }
h4 { font-size: 1.05rem; line-height: 1.3; margin: 0 0 .75rem; }
p, li, figcaption, dd { max-width: 46rem; overflow-wrap: break-word; }
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: .2rem solid var(--mark);
  outline-offset: .15rem; border-radius: .2rem; }
.skip { position: absolute; left: -100rem; top: 0; padding: .5rem 1rem; background: var(--paper); }
.skip:focus { left: 0; }
nav ul { padding-left: 1.2rem; margin: .25rem 0; }
.item { background: var(--card); border-radius: .5rem; padding: 1rem; margin: 0 0 1.5rem; }
.where { color: var(--soft); font-weight: 400; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: .5rem;
  border-radius: .25rem; }
figcaption, .summary { margin: .75rem 0; }
.reading { border-left: .25rem solid var(--mark); padding-left: .75rem; margin: .75rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .25rem 0 .75rem; max-width: 46rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left;
  vertical-align: top; }
tbody th { font-weight: 400; }
.number { text-align: right; }
details { margin-top: .5rem; }
summary { cursor: pointer; padding: .25rem 0; }
dl { display: grid; grid-template-columns: fit-content(14rem) 1fr; gap: .1rem 1rem; margin: .5rem 0;
  font-size: .9rem; }
dt { overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; color: var(--soft); }
.holds { font-weight: 600; }
footer { padding: 2rem 1rem 3rem; color: var(--soft); }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem 1rem; } }
@media print { nav, .skip { display: none; } .item { break-inside: avoid; } }
"""


def write(
    page: str | Path,
    folders: Mapping[str, str | Path],
    *,
    title: str,
    ledger: pd.DataFrame | None = None,
    percentages: pd.DataFrame | None = None,
) -> Path:
    """Write the page of one run, or of a set of runs.

    page: the HTML file to write. folders: run name -> folder with its figures and notes; links are
    relative from the page to there. title: the page's heading. ledger, percentages: the paper's
    claims (`redlib.study.ledger`) and its recomputed percentages (`redlib.study.printed`); each is
    also written beside the page, as claims.csv and percentages.csv.
    Returns the path of the page. Raises RedlibError for a damaged note or a folder that cannot be
    written.
    """
    page = Path(page)
    runs = {name: (Path(folder), items(folder)) for name, folder in folders.items()}
    body = [
        '<a class="skip" href="#results">Skip to the results</a>',
        f"<header><h1>{_text(title)}</h1>",
        f"<p>{_text(_lead(runs))}</p></header>",
        '<nav aria-label="Contents"><h2>Contents</h2>',
        _contents(runs, ledger, percentages),
        '</nav><main id="results" tabindex="-1">',
    ]
    if ledger is not None:
        body.append(_ledger(ledger, runs))
        _write_csv(page.with_name("claims.csv"), ledger)
    if percentages is not None:
        body.append(_percentages(percentages))
        _write_csv(page.with_name("percentages.csv"), percentages)
    for run, (folder, notes) in runs.items():
        body.append(f'<section aria-labelledby="{_id(run)}">')
        body.append(f'<h2 id="{_id(run)}">Run {_text(run)}{_model(run, notes)}</h2>')
        body.append(_claims(claims(folder), run))
        for notebook in _notebooks(notes):
            body.append(f'<h3 id="{_id(run, notebook)}">{_text(_heading(notebook))}</h3>')
            for note in notes:
                if note["notebook"] == notebook:
                    body.append(_item(note, run, folder, page.parent))
        body.append("</section>")
    body.append("</main><footer><p>Written by <code>redlib run</code> from the notes beside the ")
    body.append("figures. Each figure's numbers are in its CSV file.</p></footer>")
    write_text(page, _document(title, "\n".join(part for part in body if part)))
    return page


def items(folder: str | Path) -> list[dict[str, Any]]:
    """The notes of all figures and tables in `folder`, in the order of notebooks and cells."""
    notes = []
    for path in Path(folder).glob("*.json"):
        if not path.name.endswith(".claims.json"):
            with suppress(Missing):  # a notebook at work may drop its own
                notes.append(read_json(path))
    return sorted(notes, key=lambda note: (note["notebook"], note["order"], note["name"]))


def claims(folder: str | Path) -> list[dict[str, Any]]:
    """The tested statements of all notebooks whose results lie in `folder`."""
    paths = sorted(Path(folder).glob("*.claims.json"))
    return [claim for path in paths for claim in read_json(path)]


def table(source: str | Path | TextIO, *, caption: str, max_rows: int = MAX_ROWS) -> str:
    """A CSV file as an HTML table: caption, column heads and row heads with scope, numbers right.

    Every cell is shown as it stands in the file. Raises RedlibError if the file is missing.
    """
    try:
        frame = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise RedlibError(f"{source}: no such file; run its notebook again") from None
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    numeric = [all(_is_number(value) for value in frame[name]) for name in frame.columns]
    css = [' class="number"' if flag else "" for flag in numeric]
    heads = zip(frame.columns, css, strict=True)
    head = "".join(f'<th scope="col"{style}>{_text(name)}</th>' for name, style in heads)
    rows = []
    for values in frame.head(max_rows).itertuples(index=False):
        first, *rest = [_text(value) for value in values]
        cells = "".join(f"<td{style}>{v}</td>" for v, style in zip(rest, css[1:], strict=True))
        rows.append(f'<tr><th scope="row"{css[0]}>{first}</th>{cells}</tr>')
    more = len(frame) - max_rows
    note = f" (first {max_rows} of {len(frame)} rows; all are in the CSV file)" if more > 0 else ""
    return (
        f"<table><caption>{_text(caption)}{note}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(rows) + "</tbody></table>"
    )


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _lead(runs: Mapping[str, tuple[Path, list[dict[str, Any]]]]) -> str:
    kinds = [note["kind"] for _, notes in runs.values() for note in notes]
    count = f"{_count(kinds.count('figure'), 'figure')} and {_count(kinds.count('table'), 'table')}"
    of = f"{_count(len(runs), 'run')}: {', '.join(runs)}"
    return (
        f"{count} from {of}. Under each stand what it shows, how to read it, the numbers as CSV, "
        "and the parameters and versions that made it."
    )


def _contents(
    runs: Mapping[str, tuple[Path, list[dict[str, Any]]]],
    ledger: pd.DataFrame | None,
    percentages: pd.DataFrame | None,
) -> str:
    lines = ["<ul>"]
    if ledger is not None:
        lines.append('<li><a href="#claims">The paper\'s claims</a></li>')
    if percentages is not None:
        lines.append('<li><a href="#percentages">The paper\'s percentages</a></li>')
    for run, (_, notes) in runs.items():
        for notebook in _notebooks(notes):
            label = _heading(notebook) if len(runs) == 1 else f"{run}: {_heading(notebook)}"
            lines.append(f'<li><a href="#{_id(run, notebook)}">{_text(label)}</a><ul>')
            for note in notes:
                if note["notebook"] == notebook:
                    link = f"#{_id(run, note['name'])}"
                    lines.append(f'<li><a href="{link}">{_text(_title(note))}</a></li>')
            lines.append("</ul></li>")
    return "\n".join([*lines, "</ul>"])


def _item(note: Mapping[str, Any], run: str, folder: Path, start: Path) -> str:
    link = f"{quote(Path(os.path.relpath(folder, start)).as_posix())}/{note['name']}"
    link = link.removeprefix("./")
    key = _id(run, note["name"])
    lines = [f'<article class="item" aria-labelledby="{key}"><h4 id="{key}">{_head(note)}</h4>']
    if note["kind"] == "table":
        cells = table(folder / f"{note['name']}.csv", caption=note["caption"])
        lines.append(f'<div class="scroll" role="region" aria-labelledby="{key}" tabindex="0">')
        lines.append(f'{cells}</div><p class="summary">{_text(note["alt"])}</p>')
    else:
        size = f'width="{note["width"]}" height="{note["height"]}"'
        lines.append(f'<figure><img src="{link}.png" alt="{_text(note["alt"])}" {size}>')
        lines.append(f"<figcaption>{_text(note['caption'])}</figcaption></figure>")
    reading, title = _text(note["reading"]), _text(note["title"])
    lines.append(f'<p class="reading"><strong>How to read it.</strong> {reading}</p>')
    picture = "" if note["kind"] == "table" else f'<a href="{link}.png">Picture at full size</a> · '
    lines.append(f'<p>{picture}<a href="{link}.csv">Numbers of “{title}” as CSV</a></p>')
    lines.append(f"<details><summary>Parameters and versions of “{title}”</summary>")
    lines.append(_pairs(note["parameters"]))
    lines.append(_pairs(note["versions"]))
    lines.append("</details></article>")
    return "\n".join(lines)


def _claims(found: Iterable[Mapping[str, Any]], run: str) -> str:
    verdicts = {True: "holds", False: "does not hold", None: "not decided"}
    rows = []
    for claim in found:
        where = f"{claim['paper_item'] or '-'}, notebook {claim['notebook']}"
        rows.append(
            f'<tr><th scope="row">{_text(claim["statement"])}</th>'
            f'<td class="holds">{verdicts[claim["holds"]]}</td>'
            f"<td>{_text(claim['evidence'])}</td><td>{_text(where)}</td></tr>"
        )
    if not rows:
        return ""
    key = _id(run, "claims")
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("Claim", "Verdict", "Evidence", "Where"))
    return (
        f'<h3 id="{key}">Claims</h3>'
        f'<div class="scroll" role="region" aria-labelledby="{key}" tabindex="0">'
        f"<table><caption>Claims tested in run {_text(run)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>" + "\n".join(rows) + "</tbody></table></div>"
    )


def _ledger(frame: pd.DataFrame, runs: Mapping[str, tuple[Path, list[dict[str, Any]]]]) -> str:
    """The paper's claims one by one, each with a link to the figure or table that decides it."""
    there = {_id(run, note["name"]) for run, (_, notes) in runs.items() for note in notes}
    rows = []
    for claim in frame.itertuples():
        where = f"{claim.run}, notebook {claim.notebook}: {claim.table}"
        key = _id(claim.run, claim.table)
        linked = f'<a href="#{key}">{_text(where)}</a>' if key in there else _text(where)
        where = linked if claim.run else ""
        needs = f"needs {_text(claim.needs)}" if claim.needs else ""
        cells = (claim.paper, claim.paper_tables, claim.criterion, claim.measured)
        rows.append(
            f'<tr><th scope="row">{_text(claim.claim)} '
            f'<span class="where">({_text(claim.section)})</span></th>'
            + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
            + f'<td class="holds">{_text(claim.verdict)}</td>'
            f"<td>{'; '.join(part for part in (where, needs) if part)}</td></tr>"
        )
    numbers = frame["verdict"].value_counts(sort=False)
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
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<section aria-labelledby="claims"><h2 id="claims">The paper\'s claims</h2>'
        f"<p>{_count(len(frame), 'claim')}: {_text(count)}. A verdict is about the model of the "
        "run it names, which is not the paper's. What the paper prints is in columns of its own; "
        "nothing in them was measured here.</p>"
        '<div class="scroll" role="region" aria-labelledby="claims" tabindex="0">'
        "<table><caption>Every claim, the test that decides it, and what the runs say</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>" + "\n".join(rows) + "</tbody></table></div>"
        '<p><a href="claims.csv">The claims as CSV</a></p></section>'
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
        '<div class="scroll" role="region" aria-labelledby="percentages" tabindex="0">'
        f'{cells}</div><p><a href="percentages.csv">The percentages as CSV</a></p></section>'
    )


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _pairs(values: Mapping[str, Any]) -> str:
    lines = [
        f"<dt><code>{_text(name)}</code></dt><dd>{_text(_yaml(value))}</dd>"
        for name, value in values.items()
    ]
    return "<dl>" + "\n".join(lines) + "</dl>"


def _yaml(value: Any) -> str:
    """A value as one would write it in a parameter file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _head(note: Mapping[str, Any]) -> str:
    item = _text(note["paper_item"])
    return _text(note["title"]) + (f' <span class="where">({item})</span>' if item else "")


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
    return f", drawn with {_text(' and '.join(models))}" if models else ""


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _id(*parts: str) -> str:
    return "-".join(["r", *(quote(part, safe="").replace("%", "_") for part in parts)])


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value in ("", "-")
    return True
