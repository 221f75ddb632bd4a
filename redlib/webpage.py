"""What all pages of the project have in common: one style, one frame, escaped text.

A page is one HTML file with relative links and no script, font or style from anywhere else; it can
be opened from the disk, mailed, or served as it is. It holds to what makes it usable by everyone:
headings in order, a link past the contents, tables as tables, system fonts, colours that keep 7:1
contrast in light and dark, sizes in rem and a single column that re-flows at 200 % and more. It
holds no date, so that the same input gives the same bytes.
"""

import html
from collections.abc import Sequence
from typing import Any

STYLE = """
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
a:focus-visible, summary:focus-visible, .scroll:focus-visible, pre:focus-visible,
select:focus-visible, input:focus-visible { outline: .2rem solid var(--mark);
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
caption { text-align: left; padding: .25rem 0 .75rem; position: sticky; left: 0;
  max-width: min(46rem, 100vw - 4rem); }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left;
  vertical-align: top; }
tbody th { font-weight: 400; }
.number { text-align: right; }
.interval { display: block; color: var(--soft); font-size: .8rem; white-space: nowrap; }
.block th { font-weight: 600; padding-top: 1.25rem; }
.further > * { border-top: .2rem solid var(--line); }
.asked { display: inline-block; white-space: pre-line; }
td .asked { min-width: 14rem; }
select, input { font: inherit; color: var(--ink); background: var(--paper); max-width: 100%;
  border: 1px solid var(--line); border-radius: .25rem; padding: .2rem .3rem; }
[hidden] { display: none !important; }
form p > span { display: inline-flex; gap: .4rem; align-items: baseline;
  margin: .25rem 1rem .25rem 0; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid var(--line); border-radius: .25rem; }
.line { user-select: all; }
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


def document(title: str, body: str) -> str:
    """The whole page around `body`; `title` is plain text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Any value as text that HTML reads as nothing else."""
    return html.escape(str(value), quote=True)


def heads(names: Sequence[str]) -> str:
    """Column heads of a table."""
    return "".join(f'<th scope="col">{text(name)}</th>' for name in names)


def region(key: str, table: str) -> str:
    """A table that scrolls by itself where it is wider than the page, also from the keyboard.

    key: id of the heading that names it.
    """
    return f'<div class="scroll" role="region" aria-labelledby="{key}" tabindex="0">{table}</div>'


def linked(shown: str, target: str) -> str:
    """HTML `shown` as a link to `target`; by itself where that is ""."""
    return f'<a href="{text(target)}">{shown}</a>' if target else shown
