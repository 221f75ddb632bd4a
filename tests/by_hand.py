"""Run notebooks in one process, without a kernel: python tests/by_hand.py FILE NN NN ...

A kernel costs seconds of imports, and turning figures into pixels costs as much; with eight
notebooks and three models that is most of the time. Here the cells run as they are, one after
another, with the parameters of FILE where papermill would put them, and every figure is made but
saved as one white pixel.
"""

import io
import sys
import time
from pathlib import Path

import matplotlib.pyplot
import nbformat
from PIL import Image

from redlib import notebook, params

matplotlib.use("agg")


def pixel(figure) -> bytes:
    """Stands in for `notebook._png`."""
    matplotlib.pyplot.close(figure)
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(buffer, format="PNG")
    return buffer.getvalue()


def run(number: str, values: dict) -> dict:
    """The names that a notebook leaves behind."""
    path = notebook.root() / "notebooks" / params.NOTEBOOKS[number]
    names: dict = {"__name__": "__main__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= values
    return names


if __name__ == "__main__":
    file, *numbers = sys.argv[1:]
    notebook._png = pixel
    given = params.load_file(Path(file)).model_dump()
    for one in numbers:
        start = time.process_time()
        run(one, given)
        print(f"{one}: {time.process_time() - start:.1f} s", flush=True)
