"""Which code made a row: a short hash of what modules do, not of how they are written.

A row that was measured yesterday may be taken for one of today only if the code that measured it
still does the same. So the key of every result table (`redlib.store`) holds the hash of the modules
that decide what its rows hold, a notebook runs again when the whole library's has changed, and a
worker on another machine is refused if its own differs (`redlib.scale`).

    code_version(["engine", "bench"])     # of a module and of a package
    code_version()                        # of the whole library
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from redlib.errors import RedlibError


def code_version(modules: Iterable[str] | None = None, *, package: Path | None = None) -> str:
    """A short hash of what the code of `modules` does; None: of the whole library.

    modules: names below redlib, a package ("bench") standing for all that it holds.
    Comments, layout and docstrings do not count, so explaining a line better costs no rerun.
    Raises RedlibError for a name that is no module's.
    """
    package = package or Path(__file__).parent
    names = ["."] if modules is None else sorted(modules)
    digest = hashlib.sha256()
    for name in names:
        folder = package / name
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [package / f"{name}.py"]
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except FileNotFoundError:
                raise RedlibError(f"no module {name!r} in redlib") from None
            digest.update(f"{file.relative_to(package).as_posix()}\n{_meaning(text)}\n".encode())
    return digest.hexdigest()[:12]


@functools.lru_cache(maxsize=512)  # a run asks for the whole library before each notebook
def _meaning(text: str) -> str:
    """A module's code as `code_version` counts it."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            body.pop(0)
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
