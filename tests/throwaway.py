"""A small project in a temporary folder: notebooks that take milliseconds instead of minutes."""

from pathlib import Path

import nbformat
import numpy as np
import yaml
from safetensors.numpy import save_file

from redlib.params import NOTEBOOKS

CONFIG = """{"model_type": "llava", "text_config": {"model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model"}}"""
BEGIN = "import pandas as pd\nimport redlib\nsession = redlib.begin({number!r}, globals())"
TABLE = """session.save(
    pd.DataFrame({"patch": [1, 2], "score": [0.1, session.params.seed / 3]}), "scores",
    title="Scores", caption="Two scores.", reading="Higher is more.",
    alt="The second score follows the seed.", paper_item="Table 9")"""


def project(folder: Path, cells: dict[str, list[str]], **parameters: object) -> Path:
    """Write notebooks (number -> code cells) and params/one.yaml; returns the parameter file.

    The first cell of each notebook is the one tagged `parameters`; `begin` follows by itself.
    """
    (folder / "notebooks").mkdir()
    (folder / "params").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(CONFIG)
    save_file({"weight": np.zeros(1)}, folder / "model" / "model.safetensors")
    for number, sources in cells.items():
        write_notebook(folder, number, sources)
    file = folder / "params" / "one.yaml"
    file.write_text(yaml.safe_dump({"model": str(folder / "model")} | parameters))
    return file


def write_notebook(folder: Path, number: str, sources: list[str]) -> Path:
    first, *rest = sources
    code = [BEGIN.format(number=number), *rest]
    cells = [
        nbformat.v4.new_markdown_cell(f"# {number}", id="title"),
        nbformat.v4.new_code_cell(first, id="parameters", metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(text, id=f"cell-{n}") for n, text in enumerate(code)),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "notebooks" / NOTEBOOKS[number]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path
