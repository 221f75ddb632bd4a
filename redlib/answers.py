"""The answers behind every number: a page per notebook that asks, opened at a part by what stands
behind the "#" of its address.

Notebook 06 leaves two files beside its figures: `06.answers.csv`, what the model said to every
question under every rule, and `06.right.csv`, what each answer is worth. So do 05, whose Table 3
judges codebooks, 08, which judges their controls, and 07, where descriptions and games are counted.
A number of Table 1 is a mean over a part of them, so a link to it names that part:

    06.answers.html#ours@64/pope               the answers of Ours at 64 tokens to POPE's questions
    06.answers.html#ours@64,random@64/mean     two rules side by side, all five tasks
    06.answers.html#question/17                one question, every rule, and how to draw its scene
    05.answers.html#tau_prob@64/mean           those behind the row of Table 3 without tau_prob
    07.answers.html#ours@144/plain-invented    descriptions, by what they invent

A rule is `method@tokens`, with its setting in front where that is not the base one
(`split:ours@64`); several draws of one rule end in `#1`, `#2` and are shown together. A task is one
of the file or a name for several (GROUPS).

The page holds the whole of both files as text and needs no server, but a small script of its own,
which writes the table that the address asks for. Texts repeat a lot, so each is stored once, as the
numbers of its words; without the script the page points to the CSV files.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from redlib.errors import RedlibError
from redlib.store import read_csv, write_text, writing
from redlib.webpage import document, text

NOTEBOOKS = ("05", "06", "07", "08")
"""Those that leave answers."""

KEYS = ("question", "task", "image", "text", "gold")

GROUPS: dict[str, tuple[str, ...]] = {
    "mean": ("pope", "mmb", "seed", "rwqa", "mme"),
    "captions": ("nocaps", "flickr"),
    "multi-image": ("mantis", "muir"),
    "video": ("film",),
}
"""A task of the tables -> the tasks whose equally weighted mean it is. A task also stands for its
own parts: "pope" for "pope-random" and the others of the file that begin so."""

COUNTED = ("07",)
"""Notebooks whose answers are worth a count of what is in them, not right or wrong."""

_MME = (
    "The tables count MME by its categories, and a right answer once more if its pair is right too"
)
_SHARES = (
    f"{_MME}; they divide each task by what all visual tokens (unpruned) reach, and average the "
    "five."
)
_OMITTED = "An answer is worth the tuples of the scene that it owes, per tuple of the scene."
_INVENTED = "An answer is worth the tuples it adds to those of the scene, per tuple of the scene."
REMARKS: dict[str, dict[str, str]] = {
    "05": {
        "mean": "A rule is named by the criterion that its codebook was made without; nothing has "
        f"them all. {_SHARES}",
    },
    "06": {
        "mme": f"{_MME}, so their MME and their mean are others.",
        "film": "The tables count films by their subtasks, so that their number is another.",
    },
    "07": {
        "plain-omitted": _OMITTED,
        "text-rich-omitted": _OMITTED,
        "plain-invented": _INVENTED,
        "text-rich-invented": _INVENTED,
        "game-found": "An answer is worth the planted differences that it names; the mean is of a "
        "hundred pictures.",
        "game-invented": "An answer is worth the differences it names that were not planted; the "
        "mean is of a hundred pictures.",
    },
    "08": {"mean": _SHARES},
}
"""By notebook and task: how a table's number comes from the mean worth that the page shows."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_RULE = re.compile(r"(?:[a-z]+:)?[a-z0-9_+-]+@\d+(?:#\d+)?")


@dataclass(frozen=True, eq=False)
class Answers:
    """The two files of one notebook of a run.

    Attributes:
        notebook: of NOTEBOOKS.
        said: KEYS and one column per rule, all text.
        right: the same columns; "1", "0", a score, or "" where the rule was not asked.
    """

    notebook: str
    said: pd.DataFrame
    right: pd.DataFrame

    # Kept, since a page asks for them at each of its thousands of links.
    @cached_property
    def rules(self) -> list[str]:
        """The rules of the file, in its order."""
        return [name for name in self.said.columns if name not in KEYS]

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks of the file, in its order."""
        return self.said["task"].unique().tolist()

    def parts(self, task: str) -> list[str]:
        """The tasks of the file that `task` stands for, [] for one that is not there."""
        return [name for name in self.tasks if any(_within(name, part) for part in _members(task))]

    def link(self, where: str) -> str:
        """The address of the answers that `where` ("rules/tasks", see `address`) names, from the
        run's folder; "" if any of them is not there."""
        rules, _, tasks = where.partition("/")
        known = {name.split("#")[0] for name in self.rules}
        if not where or not set(rules.split(",")) <= known:
            return ""
        if not all(self.parts(task) for task in tasks.split(",")):
            return ""
        return f"{page(self.notebook)}#{quote(where, safe='@:,/+')}"


def files(notebook: str) -> tuple[str, str]:
    """Names of the file of what was said and of the file of what that is worth."""
    return f"{notebook}.answers.csv", f"{notebook}.right.csv"


def page(notebook: str) -> str:
    """Name of the page of a notebook's answers."""
    return f"{notebook}.answers.html"


def _members(task: str) -> tuple[str, ...]:
    return GROUPS.get(task, (task,))


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}-")


def rule(method: str, tokens: object, setting: str = "base") -> str:
    """The name of a rule, as the columns of the files have it."""
    return f"{method}@{tokens}" if setting in ("", "base") else f"{setting}:{method}@{tokens}"


def address(rules: Iterable[str], tasks: Iterable[str]) -> str:
    """Which answers: "ours@64,random@64/mean"."""
    return f"{','.join(rules)}/{','.join(tasks)}"


def of_row(row: Mapping[str, str]) -> str:
    """The address of the answers behind a row of a result table, "" where it names no rule.

    A row may hold it, in a column answers; else read are method (in Table 3 left_out), against (a
    second method), tokens, setting and task (or set).
    """
    if row.get("answers"):
        return row["answers"]
    first = row.get("method") or row.get("left_out")
    if not first or not row.get("tokens"):
        return ""
    methods = [name for name in (first, row.get("against")) if name]
    setting = row.get("setting", "base")
    task = row.get("task") or row.get("set") or "mean"
    return address([rule(name, row["tokens"], setting) for name in methods], [task])


def read(folder: str | Path, notebook: str) -> Answers | None:
    """The answers of the run whose figures lie in `folder`, None if that notebook has left none.

    Raises RedlibError if only one of the two files is there, or they do not belong together.
    """
    said, right = (Path(folder) / name for name in files(notebook))
    if not said.is_file() and not right.is_file():
        return None
    frames = []
    for path in (said, right):
        frames.append(read_csv(path, dtype=str, keep_default_na=False))
    one, two = frames
    lacking = [name for name in KEYS if name not in one]
    if lacking:
        raise RedlibError(f"{said}: no column {lacking[0]!r}; run notebook {notebook} again")
    if list(one.columns) != list(two.columns) or not one["question"].equals(two["question"]):
        raise RedlibError(
            f"{right}: other columns or questions than {said.name}; run notebook {notebook} again"
        )
    odd = [name for name in one.columns if name not in KEYS and not _RULE.fullmatch(name)]
    if odd:
        raise RedlibError(f"{said}: column {odd[0]!r} is no rule such as 'ours@64'")
    return Answers(notebook, one, two)


def write(folder: str | Path, notebook: str, *, run: str) -> Path | None:
    """Write the page of a notebook's answers into the folder of its run's figures; drop one that
    has lost its files. Returns its path, None without answers. Raises RedlibError as `read` does.
    """
    found, path = read(folder, notebook), Path(folder) / page(notebook)
    if found is None:
        with writing(path):
            path.unlink(missing_ok=True)
        return None
    said, right = files(notebook)
    title = f"Answers of run {run}, notebook {notebook}"
    body = _BODY.replace("TITLE", text(title)).replace("SAID", said).replace("RIGHT", right)
    data = json.dumps(pack(found), ensure_ascii=False, separators=(",", ":"))
    # "<" could end the element in which the data stand
    data = data.replace("<", "\\u003c")
    block = f'<script type="application/json" id="data">{data}</script>'
    write_text(path, document(title, f"{body}\n{block}\n<script>{_SCRIPT}</script>"))
    return path


def pack(found: Answers) -> dict[str, Any]:
    """Both files, each text once.

    A text is the numbers of its words, and a column the numbers of its texts: digits of base 36,
    separated by spaces, the most frequent first, so that they are short.
    """
    said, right = found.said, found.right
    columns = [said[name] for name in KEYS if name != "question"]
    columns += [frame[name] for name in found.rules for frame in (said, right)]
    counts: Counter[str] = Counter()
    for column in columns:
        counts.update(column)
    texts = _ranked(counts)
    words = _ranked(Counter(word for line in texts for word in line.split(" ")))
    place = {line: _base36(k) for k, line in enumerate(texts)}
    word = {line: _base36(k) for k, line in enumerate(words)}

    def coded(column: pd.Series) -> str:
        return " ".join(place[line] for line in column)

    tasks = found.tasks
    members = [name for names in GROUPS.values() for name in names]
    groups = {
        name: [[part for part in tasks if _within(part, member)] for member in _members(name)]
        for name in [*GROUPS, *members, *tasks]
    }
    groups = {name: parts for name, parts in groups.items() if all(parts)}
    return {
        "words": words,
        "texts": [" ".join(word[part] for part in line.split(" ")) for line in texts],
        "question": said["question"].tolist(),
        "keys": {name: coded(said[name]) for name in KEYS if name != "question"},
        "groups": groups,
        "remarks": {
            part: remark
            for task, remark in REMARKS[found.notebook].items()
            for part in (task, *found.parts(task))
        },
        "counted": found.notebook in COUNTED,
        "rules": {name: [coded(said[name]), coded(right[name])] for name in found.rules},
    }


def _ranked(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda line: (-counts[line], line))


def _base36(number: int) -> str:
    digits = _DIGITS[number % 36]
    while number := number // 36:
        digits = _DIGITS[number % 36] + digits
    return digits


def unpack(packed: Mapping[str, Any], column: str) -> Sequence[str]:
    """The texts of a coded column, as the page's script reads them."""
    texts = [
        " ".join(packed["words"][int(code, 36)] for code in line.split(" "))
        for line in packed["texts"]
    ]
    return [texts[int(code, 36)] for code in column.split(" ")] if column else []


_BODY = """<a class="skip" href="#result">Skip to the answers</a>
<header><h1>TITLE</h1>
<p><a href="index.html">Back to the figures</a></p></header>
<main>
<noscript><p>This page needs JavaScript to show a part of its answers. All of them are in
<a href="SAID">SAID</a> and <a href="RIGHT">RIGHT</a>.</p></noscript>
<form class="item" id="choice" aria-label="Which answers">
<p><span><label for="rule">Rule</label> <select id="rule"></select></span>
<span><label for="beside">beside</label> <select id="beside"></select></span>
<span><label for="task">Task</label> <select id="task"></select></span>
<span id="filter"><input type="checkbox" id="wrong"> <label for="wrong">only what is wrong under
the first rule</label></span></p>
</form>
<section aria-labelledby="result">
<h2 id="result" tabindex="-1"></h2>
<div id="shown"></div>
</section>
</main>
<footer><p>A rule is method@tokens: what chose the visual tokens, and how many it left. Everything
shown here is in <a href="SAID">SAID</a> and <a href="RIGHT">RIGHT</a>.</p></footer>"""

_SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const codes = (line) => line.split(" ").map((code) => parseInt(code, 36));
const texts = data.texts.map((line) => codes(line).map((k) => data.words[k]).join(" "));
const column = (line) => codes(line).map((k) => texts[k]);
const keys = Object.fromEntries(Object.entries(data.keys).map(([k, line]) => [k, column(line)]));
const rules = {};
const columnsOf = (name) => Object.keys(data.rules).filter((c) => c.split("#")[0] === name);
const answers = (name) => rules[name] ??= data.rules[name].map(column);
const names = [...new Set(Object.keys(data.rules).map((name) => name.split("#")[0]))];
const at = (id) => document.getElementById(id);
const marks = data.counted ? {"": "not asked"} : {"1": "right", "0": "wrong", "": "not asked"};
const worth = (mark) => marks[mark] ?? mark;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function make(tag, content, attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...[content].flat());
  return element;
}

const wide = (words) => words.length > 20 ? make("span", words, {class: "asked"}) : words;

function table(caption, heads, rows) {
  const head = make("tr", heads.map((name) => make("th", name, {scope: "col"})));
  const body = rows.map(([first, ...rest]) => make("tr", [make("th", first, {scope: "row"}),
    ...rest.map((cell) => make("td", cell))]));
  const whole = make("table", [make("caption", caption), make("thead", head), make("tbody", body)]);
  return make("div", whole, {class: "scroll", role: "region", tabindex: "0",
    "aria-labelledby": "result"});
}

// Over the questions of each member of a task, then over its members.
function score(right, task) {
  const member = (parts) => mean(keys.task.flatMap((name, k) =>
    parts.includes(name) && right[k] !== "" ? [Number(right[k])] : []));
  return data.groups[task] ? mean(data.groups[task].map(member)) : NaN;
}

function list(chosen, tasks) {
  const known = tasks.filter((task) => data.groups[task]);
  const columns = chosen.flatMap(columnsOf);
  if (!columns.length || known.length < tasks.length) {
    return ["Nothing here", [make("p", "There are no answers of this rule and task.")]];
  }
  const parts = known.flatMap((task) => data.groups[task].flat());
  const only = at("wrong").checked;
  const first = answers(columns[0])[1];
  const kept = keys.task.flatMap((task, k) =>
    parts.includes(task) && first[k] !== "" && (!only || Number(first[k]) < 1) ? [k] : []);
  const several = new Set(parts).size > 1;
  const rows = kept.map((k) => [
    make("a", data.question[k], {href: "#question/" + data.question[k]}),
    ...(several ? [keys.task[k]] : []), keys.image[k], wide(keys.text[k]), wide(keys.gold[k]),
    ...columns.flatMap((name) => [wide(answers(name)[0][k]), worth(answers(name)[1][k])])]);
  const heads = ["No.", ...(several ? ["Task"] : []), "Image", "Question", "Right answer",
    ...columns.flatMap((name) => columns.length > 1 ? [name + " said", "worth"]
      : ["Said", "Worth"])];
  const scored = (name, draws) => name + ": " + known.map((task) => task + " "
    + (100 * mean(draws.map((draw) => score(answers(draw)[1], task)))).toFixed(1)).join(", ");
  const scores = columns.map((name) => scored(name, [name])).concat(chosen.map((name) =>
    [name, columnsOf(name)]).filter(([, draws]) => draws.length > 1).map(([name, draws]) =>
      scored("the " + draws.length + " draws of " + name, draws)));
  const what = chosen.join(" beside ") + ", " + known.join(" and ");
  const count = kept.length + (kept.length === 1 ? " question" : " questions");
  const remarks = [...new Set(parts.flatMap((part) => data.remarks[part] ?? []))];
  return [what, [
    make("p", "Mean worth in percent. " + scores.join("; ") + ". " + remarks.join(" "),
      {class: "summary"}),
    table(what + ": " + count + (only ? ", wrong ones only" : "")
      + ". A number leads to the question under every rule.", heads, rows)]];
}

function one(number) {
  const k = data.question.indexOf(number);
  if (k < 0) return ["Nothing here", [make("p", "There is no question of this number.")]];
  const facts = [["Task", keys.task[k]], ["Image", keys.image[k]],
    ["Question", wide(keys.text[k])], ["Right answer", keys.gold[k]]];
  const pairs = facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]);
  const shown = [make("dl", pairs)];
  if (/^(train|calibration|test)-\d+/.test(keys.image[k])) {
    const id = JSON.stringify(keys.image[k]);
    const line = "from redlib.tabletop.pictures import picture; picture(" + id + ").save("
      + JSON.stringify(keys.image[k] + ".png") + ")";
    shown.push(make("p", "Its picture is not stored; this line of Python draws it again:"),
      make("pre", make("code", line, {class: "line"}), {tabindex: "0", "aria-label": "Python"}));
  }
  const rows = Object.keys(data.rules).map((name) => {
    const [said, right] = answers(name).map((cells) => cells[k]);
    const link = make("a", name, {href: "#" + name.split("#")[0] + "/" + keys.task[k]});
    return right === "" ? null : [link, wide(said), worth(right)];
  });
  shown.push(table("What the model said under every rule", ["Rule", "Said", "Worth"],
    rows.filter((row) => row)));
  return ["Question " + number, shown];
}

function address() {
  const hash = location.hash === "#result" ? "" : decodeURIComponent(location.hash.slice(1));
  const [rule = "", task = ""] = hash.split("/");
  return rule === "question" ? [rule, task]
    : [(rule || names[0]).split(","), (task || Object.keys(data.groups)[0]).split(",")];
}

function show() {
  const [what, tasks] = address();
  const single = what === "question";
  const [title, content] = single ? one(tasks) : list(what, tasks);
  at("result").replaceChildren(title);
  at("shown").replaceChildren(...content);
  document.title = title + " - " + document.querySelector("h1").textContent;
  at("choice").hidden = single;
  if (!single) {
    at("rule").value = what[0];
    at("beside").value = what[1] ?? "";
    at("task").value = tasks[0];
  }
}

const option = (name, label = name) => make("option", label, {value: name});
at("rule").append(...names.map((name) => option(name)));
at("beside").append(option("", "no other"), ...names.map((name) => option(name)));
at("task").append(...Object.keys(data.groups).map((name) => option(name)));
for (const id of ["rule", "beside", "task"]) {
  at(id).addEventListener("change", () => {
    const chosen = [at("rule").value, at("beside").value].filter((name) => name);
    location.hash = chosen.join(",") + "/" + at("task").value;
  });
}
at("filter").hidden = data.counted;
at("wrong").addEventListener("change", show);
at("choice").addEventListener("submit", (event) => event.preventDefault());
let byLink = false;
document.addEventListener("click", (event) => { byLink = Boolean(event.target.closest("a")); });
window.addEventListener("hashchange", () => {
  if (location.hash === "#result") return;
  show();
  if (byLink) at("result").focus();
  byLink = false;
});
show();
"""
