"""The README's commands exist, its links lead somewhere, and its table of notebooks is complete."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from redlib import __main__ as command_line
from redlib.codebook import Codebook, Criteria
from redlib.models import load
from redlib.params import NOTEBOOKS, load_file
from redlib.tabletop import scenes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PLAIN = re.sub(r"\s+", " ", TEXT)


def _commands(program: str) -> list[str]:
    """Every command of a program in code blocks and inline code, without trailing comments."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).splitlines()
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", PLAIN)
    lines = [line.split("  #")[0].strip() for line in [*blocks, *inline]]
    return sorted({line for line in lines if line.split(" ")[0] == program and " " in line})


@pytest.mark.parametrize("line", _commands("make"))
def test_make_knows_the_target(line):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize("line", [line for line in _commands("redlib") if line.count(" ") > 1])
def test_redlib_knows_the_command_and_its_files(line):
    words = shlex.split(line)[1:]
    command_line._parser().parse_args(words)
    for word in words:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file()


def test_the_papermill_line_names_files_that_are_there():
    (line,) = _commands("papermill")
    notebook, _, flag, file = shlex.split(line)[1:]
    assert (ROOT / notebook).is_file() and flag == "-f"
    assert load_file(ROOT / file)


def test_listing_parameters_as_the_readme_does(capsys):
    assert "redlib params 04" in _commands("redlib")
    assert command_line.main(["params", "04"]) == 0
    assert "study_images" in capsys.readouterr().out


def test_the_line_in_your_own_code_is_all_it_takes(tmp_path, capsys):
    """The example as it stands, with a codebook of this scene's first tokens for the one that
    notebook 05 makes."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
               if "redlib.pruned" in block)  # fmt: skip
    path = "runs/smoke/codebook.safetensors"
    assert path in code
    vlm = load("tiny-llava-1.5", device="cpu")
    tokens = vlm.encode([scenes("test", 1)[0].image]).tokens[0, :4]
    made = Codebook(tokens, ("here",) * 4, range(4), vlm.name, vlm.revision, Criteria.paper())
    file = made.save(tmp_path / "codebook.safetensors").as_posix()
    exec(code.replace(path, file), {})
    printed = capsys.readouterr().out.strip()
    assert re.fullmatch(r"576 -> 64 visual tokens: an? [a-z ,]+\.", printed)
    said = " ".join(re.findall(r"^# (.*)$", code, re.MULTILINE))
    assert re.fullmatch(r"576 -> 64 visual tokens: an? [a-z ,]+\.", said), "as the comment says"


def test_links_lead_to_files():
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXT)
    assert len(targets) > len(NOTEBOOKS)
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_every_notebook_is_in_the_course():
    for name in NOTEBOOKS.values():
        assert f"(notebooks/{name})" in TEXT


def _table_1() -> list[str]:
    """The rows that the README has of the committed Table 1: the paper's methods, in percent."""
    frame = pd.read_csv(ROOT / "figures" / "tiny-full" / "table-1.csv")
    paper = ("unpruned", "ours", "prumerge", "fastv", "random")
    frame = frame[frame["method"].isin(paper)].dropna(subset="accuracy")
    rows = []
    for (model, setting, total, label), part in frame.groupby(
        ["model", "setting", "total", "label"], sort=False
    ):
        found = part.set_index("column")
        cells = []
        for column in frame["column"].unique():
            if column not in found.index:
                cells.append("not run")
                continue
            one = found.loc[column]
            cells.append(f"{100 * one['accuracy']:.0f}")
        mean = found.loc["Five tasks"]
        low, high, n = 100 * mean["low"], 100 * mean["high"], mean["n"]
        cells[-1] += f" ({low:.0f} to {high:.0f}), n {n:.0f}"
        split = " split" if setting == "split" else ""
        rows.append(f"| {model}{split}, {total} | {label} | {' | '.join(cells)} |")
    return rows


def test_table_1_is_the_committed_one():
    for row in _table_1():
        assert row in TEXT, f"README lacks {row}"
    told = re.findall(r"^\| llava-[^|]*, \d+ \|.*$", TEXT, re.MULTILINE)
    assert len(told) == len(_table_1())


def test_the_ledger_is_counted_as_committed():
    rows = pd.read_csv(ROOT / "figures" / "tiny-full" / "claims.csv", keep_default_na=False)
    found = rows.loc[rows["beyond"] == "", "verdict"].value_counts()
    counts = r"(\d+) hold, (\d+) do not, (\d+) cannot be decided here and (\d+) were not run"
    told = re.search(rf"Of (\d+) claims {counts}", PLAIN)
    verdicts = ("holds", "does not hold", "not decidable here", "not run")
    assert [int(n) for n in told.groups()] == [found.sum(), *(found.get(v, 0) for v in verdicts)]
    more = ("no", "one", "two", "three", "four")[(rows["beyond"] != "").sum()]
    assert f"holds {more} rows more that ask for more than the paper says" in PLAIN
