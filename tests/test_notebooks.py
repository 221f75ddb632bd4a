"""The notebooks as files: what every one of them has to keep to, without running it."""

import re
from pathlib import Path

import nbformat
import pytest

from redlib.notebook import declared
from redlib.params import NOTEBOOKS, Params

FOLDER = Path(__file__).parents[1] / "notebooks"
FOUND = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_there_and_no_other():
    assert sorted(NOTEBOOKS.values()) == FOUND


@pytest.mark.parametrize("name", FOUND)
def test_parameters_are_the_smoke_profile(name):
    values = declared(FOLDER / name)
    assert values, "a notebook without parameters cannot be pointed at another model"
    unknown = values.keys() - Params.model_fields.keys()
    assert not unknown
    assert values == {key: Params.model_fields[key].default for key in values}
    types = {key: (type(values[key]), type(Params.model_fields[key].default)) for key in values}
    assert all(mine is theirs for mine, theirs in types.values()), types


def test_every_parameter_is_declared_by_a_notebook():
    anywhere = {key for name in FOUND for key in declared(FOLDER / name)}
    assert Params.model_fields.keys() - anywhere <= {"run_name", "publish", "notebooks", "revision"}


@pytest.mark.parametrize("name", FOUND)
def test_the_parameters_cell_says_what_each_is(name):
    (cell,) = [c for c in code(read(name)) if "parameters" in c.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        if re.match(r"\w+\s*[:=]", line):
            assert "#" in line, f"{line!r} has no comment"


@pytest.mark.parametrize("name", FOUND)
def test_the_session_begins_right_after_the_parameters(name):
    cells = code(read(name))
    tagged = [n for n, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [0]
    assert f'begin("{name[:2]}", globals())' in cells[1].source


@pytest.mark.parametrize("name", FOUND)
def test_size(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert 12 <= len(notebook.cells) <= 25
    for cell in code(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 25, cell.source
    assert (FOLDER / name).stat().st_size < 1_000_000


@pytest.mark.parametrize("name", FOUND)
def test_outputs_are_committed_and_clean(name):
    cells = code(read(name))
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "run `make figures`: outputs are not published"
    for cell in cells:
        assert "papermill" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"0x[0-9a-f]{6,}", text), "an address changes with every run"
            assert "widget-view" not in str(output.get("data", {}))
    assert "injected-parameters" not in (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FOUND)
def test_it_reads_as_an_argument(name):
    notebook = read(name)
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert notebook.cells[0].source.startswith("# ")
    assert prose.startswith(f"# {name[:2]}")
    for word in ("claim", "minute", "exercise", "falsif"):
        assert word in prose.lower(), word
    assert "](/" not in prose
    source = "\n".join(c.source for c in code(notebook))
    assert not re.search(r"/(home|Users|root|tmp|work)/", source + prose)
    assert "session.finish(" in source
