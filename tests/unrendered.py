"""Run the notebooks of a parameter file in this process: no kernels, and figures without pixels.

A kernel costs seconds of imports, and turning figures into pixels costs as much; with eight
notebooks and three models that is most of the time. Here the cells run as they are, one after
another, with the parameters where papermill would put them, and every figure is made, but saved as
one white pixel.
"""

import io
from pathlib import Path

import matplotlib.pyplot
import nbformat
import pytest
from PIL import Image

from redlib import notebook, params


def run(file: Path, numbers: list[str], patch: pytest.MonkeyPatch) -> None:
    """The notebooks of these numbers, in order; what stops one is raised."""
    given = params.load_file(file).model_dump()
    patch.setattr(notebook, "_png", _pixel)
    for number in numbers:
        path = notebook.root() / "notebooks" / params.NOTEBOOKS[number]
        names: dict = {"__name__": "__main__"}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{path.name}, cell {cell.id}", "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= given


def _pixel(figure: matplotlib.figure.Figure) -> bytes:
    """Instead of `notebook._png`."""
    matplotlib.pyplot.close(figure)
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(buffer, format="PNG")
    return buffer.getvalue()
