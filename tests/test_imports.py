"""Imports point only downwards, by the map of floors in the docstring of `redlib`.

An import within a function counts, and so does one that only a type checker sees: each says that
the one module cannot be understood without the other.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import redlib

PACKAGE = Path(redlib.__file__).parent


def floors() -> list[list[str]]:
    """The map, from the lowest floor up: names on the left, and a comma where they go on."""
    (drawn,) = (part for part in redlib.__doc__.split("\n\n") if part.startswith("    "))
    found, goes_on = [], False
    for line in drawn.splitlines():
        left = re.match(r"((?: ?\w+,?)*)", line.removeprefix("    "))[1]
        if names := re.findall(r"\w+", left):
            found = [*found[:-1], found[-1] + names] if goes_on else [*found, names]
            goes_on = left.endswith(",")
    return found


def modules(package: Path) -> dict[str, Path]:
    """Every module below the package by its name there, "." for the package itself."""
    files = {file.relative_to(package).with_suffix(""): file for file in package.rglob("*.py")}
    return {
        ".".join(name.parts).removesuffix("__init__").rstrip(".") or ".": file
        for name, file in files.items()
    }


def imports(package: Path) -> Iterator[tuple[str, str, int]]:
    """(module, module that it imports, line), wherever in a file an import stands.

    `redlib.pruned` imports the module behind that name, as the package does at its first use.
    """
    known = modules(package)
    for name, file in known.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Import():
                    told = [alias.name for alias in node.names]
                case ast.ImportFrom():
                    assert not node.level, f"{file}, line {node.lineno}: say where from in full"
                    told = [f"{node.module}.{alias.name}" for alias in node.names]
                case ast.Attribute(value=ast.Name(id="redlib")):
                    told = [f"redlib.{node.attr}"]
                case _:
                    continue
            for one in told:
                if one.startswith("redlib."):
                    path = one.removeprefix("redlib.")
                    path = redlib._HOME.get(path, path)
                    path = path if path in known else path.rpartition(".")[0]
                    if path not in ("", name):
                        yield name, path, node.lineno


def upward(package: Path) -> list[str]:
    """Every import of a higher floor, in words."""
    floor = {name: k for k, names in enumerate(floors()) for name in names}
    return [
        f"{name}, line {line}: {imported} lies above"
        for name, imported, line in imports(package)
        if name != "." and floor[name.split(".")[0]] < floor[imported.split(".")[0]]
    ]


def test_every_module_has_one_floor():
    mapped = sorted(name for names in floors() for name in names)
    assert mapped == sorted({name.split(".")[0] for name in modules(PACKAGE)} - {""})


def test_imports_point_only_downwards():
    assert not upward(PACKAGE)


@pytest.mark.parametrize("parts", [1, None])
def test_no_two_import_each_other(parts):
    """Nor do packages (the first part of a name), on one floor or within a package."""
    graph = TopologicalSorter()
    for name, imported, _ in imports(PACKAGE):
        one, other = (".".join(path.split(".")[:parts]) for path in (name, imported))
        if one != other:
            graph.add(one, other)
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    "code",
    [
        "import redlib.bench.words",
        "from redlib import bench",
        "from redlib.bench import evaluate",
        "from redlib.bench.words import normalise",
        "def late():\n    from redlib.bench import evaluate",
        "if TYPE_CHECKING:\n    from redlib.bench import evaluate",
        "import redlib\nredlib.pruned()",
    ],
)
def test_an_import_of_a_higher_floor_is_found(tmp_path, code):
    for folder in ("bench", "prune"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    for file in ("bench/words.py", "prune/install.py"):
        (tmp_path / file).touch()
    (tmp_path / "store.py").write_text("from redlib.errors import RedlibError\n" + code)
    (tmp_path / "errors.py").touch()
    (found,) = upward(tmp_path)
    assert re.fullmatch(r"store, line [234]: (bench|prune)(\.\w+)? lies above", found)
