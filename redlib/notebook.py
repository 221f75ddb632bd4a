"""What every notebook needs around its argument: parameters in, figures and numbers out.

A notebook should read as an argument, so its plumbing is two lines:

    session = redlib.begin("02", globals())       # first cell after the tagged `parameters` cell
    ...
    session.finish(share_right=0.41)              # last code cell

`begin` reads the parameters where papermill leaves them, in the notebook's own global names, checks
them, and finds the project's folder from wherever the kernel was started. The session then loads
the model at the first use (`session.model`), opens resumable tables (`session.store`), and saves
what a reader should see (`session.save`): a picture, the numbers behind it as CSV, and a note with
its caption, how to read it, a text alternative and the parameters that made it. The page of all
figures is built from those notes alone, so a figure and its caption cannot drift apart.

Files hold no date and no machine name: the same run writes the same bytes.
"""

import ast
import base64
import dataclasses
import html
import io
import json
import os
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from redlib import __version__, report
from redlib.errors import RedlibError
from redlib.fingerprint import code_version
from redlib.params import NOTEBOOKS, PLACES, Params, check, check_revision
from redlib.scale import Workers
from redlib.store import Missing, Store, atomic, read_json, write_json, writing

# The modules that decide what a measured row holds; part of the key of every table.
MEASURING: tuple[str, ...] = (
    "engine", "geometry", "leave_one_out", "memory", "models", "pictures", "planner", "probe",
    "states",
)  # fmt: skip

# Notebooks hold their pictures and have to stay below 1 MB.
_LARGE_PNG = 200_000

_NO_CLS = " The tower of this model has no [cls]: similarity to its mean patch stands in."
_BY_CLS = {"prumerge": "PruMerge", "prumerge+": "PruMerge+", "visionzip": "VisionZip"}
_BY_PATCHES = " Its tower has no [cls]: {} by the attention that a patch gets from the others."
_REAL = " Photographs ({}), drawn by lot with seed {}."

_GIVEN = " Ours, where it stands, is the codebook {}, which this run did not build."

_KERNEL_NAMES = {"In", "Out", "exit", "quit", "get_ipython", "open"}
_VERSIONS = ("torch", "transformers", "numpy", "pandas", "matplotlib", "scikit-learn")


def begin(notebook: str, names: Mapping[str, Any]) -> "Session":
    """Check a notebook's parameters and start its session.

    notebook: its number, a key of NOTEBOOKS. names: the notebook's `globals()`.
    Every plain value (text, number, true/false, None, list, mapping) whose name has no leading
    underscore counts as a parameter, and so does every parameter that another notebook declares.
    When the cell is run again later, names that are no parameters are taken for the reader's own.
    Raises RedlibError, one line, for an unknown name or a value of wrong type or range, and as
    `params.check_revision`.
    """
    if notebook not in NOTEBOOKS:
        raise RedlibError(f"no notebook {notebook!r}; there are {', '.join(NOTEBOOKS)}")
    again = any(isinstance(value, Session) for value in names.values())
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    values = {
        name: value
        for name, value in names.items()
        if isinstance(value, plain)
        and not name.startswith("_")
        and name not in _KERNEL_NAMES
        and not (again and name not in Params.model_fields)
    }
    # Matplotlib, transformers and the hub draw progress through tqdm, which would rather have
    # ipywidgets and says so in the first cell's output.
    warnings.filterwarnings("ignore", message="IProgress not found")
    params = check(values, source=f"notebook {notebook}")
    check_revision(params.model, params.revision)
    return Session(notebook, params)


def root() -> Path:
    """The project's folder, the one that holds notebooks/ and params/.

    The folder named by REDLIB_ROOT, else the nearest one upwards from the current folder, else the
    one that the installed package lies in. Raises RedlibError if there is none.
    """
    named = os.environ.get("REDLIB_ROOT")
    here = Path.cwd()
    for folder in [Path(named)] if named else [here, *here.parents, Path(__file__).parents[1]]:
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder.resolve()
    where = f"REDLIB_ROOT={named}" if named else str(here)
    raise RedlibError(f"{where}: no folder with notebooks/ and params/ found from here")


def runs_folder(run_name: str) -> Path:
    """Where the run keeps its working files: REDLIB_RUNS (or runs/ in the project) / run_name."""
    base = os.environ.get("REDLIB_RUNS")
    return (Path(base) if base else root() / "runs") / run_name


def figures_folder(params: Params) -> Path:
    """figures/<run_name> for a run that is published, else a folder among its working files."""
    if params.publish:
        return root() / "figures" / params.run_name
    return runs_folder(params.run_name) / "figures"


def declared(path: str | Path) -> dict[str, Any]:
    """The names and values in the cell of a notebook file that is tagged `parameters`.

    Raises RedlibError if the file is no notebook, has not exactly one such cell, or that cell
    holds anything but assignments of literals.
    """
    path = Path(path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise RedlibError(f"{path}: no such notebook") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise RedlibError(f"{path}: not a notebook") from None
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise RedlibError(f"{path}: needs one cell tagged 'parameters'; got {len(tagged)}")
    values: dict[str, Any] = {}
    try:
        for node in ast.parse("".join(tagged[0]["source"])).body:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            values[target.id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError, AttributeError, TypeError):
        raise RedlibError(f"{path}: the cell 'parameters' may only assign plain values") from None
    return values


class Session:
    """One notebook, run once: `params`, `name` (of the run), `notebook`, `folder`, `figures`."""

    def __init__(self, notebook: str, params: Params) -> None:
        self.notebook = notebook
        self.params = params
        self.name = params.run_name
        self.folder = runs_folder(self.name)
        self.figures = figures_folder(params)
        self.workers = Workers(params.workers, params.scheduler)
        self._images: Any = None
        self.asked: list[str] = []  # names of the benchmarks that answers so far are about
        self.ours = ""  # the codebook that the parameters name, where they name one
        self._model: Any = None
        self._saved: list[str] = []
        self._claims: list[dict[str, Any]] = []
        for folder in (self.folder, self.figures):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"notebook {self.notebook}, run {self.name!r}, model {self.params.model!r}"

    @property
    def model(self) -> Any:
        """The model that the parameters name, as `redlib.models.load` returns it; loaded once."""
        if self._model is None:
            from redlib import models  # torch and transformers, only for who needs them

            p = self.params
            if p.quantization is not None:
                warnings.warn(
                    f"quantization: {p.quantization} makes another model of {p.model}; thresholds "
                    "of the JSD, the paper's above all, are not calibrated for it",
                    stacklevel=2,
                )
            self._model = models.load(
                p.model,
                device=p.device,
                dtype=p.dtype,
                revision=p.revision,
                device_map=p.device_map,
                quantization=p.quantization,
            )
            if p.repeats not in (None, self._model.repeats):
                self._model = dataclasses.replace(self._model, repeats=p.repeats)
        return self._model

    @property
    def source(self) -> Any:
        """Where the images come from, as `redlib.data.images.Images` gives them."""
        if self._images is None:
            from redlib.data.images import Images  # draws scenes, which not every notebook needs

            self._images = Images(self.params)
        return self._images

    def images(self, role: str, n: int, *, start: int = 0) -> list[Any]:
        """`n` images in a role of `redlib.data.images`, scenes or photographs.

        Which photographs were drawn, and which of them could not be read, is written beside the
        figures, photographs-<role>.csv.
        """
        found = self.source.take(role, n, start=start)
        if self.source.real:
            drawn = self.source.drawn
            with atomic(self.figures / f"photographs-{role}.csv") as temporary:
                drawn[drawn["role"] == role].to_csv(temporary, index=False, lineterminator="\n")
        return found

    def of_images(self, role: str) -> dict[str, Any]:
        """The part of a table's key that tells the photographs of a role apart; empty for scenes,
        whose names say all."""
        return self.source.key(role)

    def store(
        self,
        kind: str,
        *,
        notebook: str | None = None,
        code: Iterable[str] = MEASURING,
        **key: Any,
    ) -> Store:
        """Open the resumable table `kind` of this run.

        notebook: whose table; by default this notebook's own. code: the modules whose change makes
        the rows stale. key: what else they depend on (prompt, patches, images ...). The model, its
        revision and dtype, and the copies in which it is fed a single token are part of it always.
        """
        full = {
            "model": self.params.model,
            "revision": self.model.revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "repeats": self.model.repeats,
            "code": code_version(code),
        } | key
        if self.params.quantization is not None:
            full["quantization"] = self.params.quantization
        folder = self.folder / "store" / (notebook or self.notebook) / kind
        return Store(folder, full, workers=self.workers)

    def file(self, name: str) -> Path:
        """The path runs/<run>/results/<name>, for a result that is no table (a codebook)."""
        path = self.folder / "results" / name
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(
        self,
        figure: Any,
        name: str,
        *,
        title: str,
        caption: str,
        reading: str,
        alt: str,
        data: pd.DataFrame | None = None,
        paper_item: str = "",
    ) -> "Saved":
        """Save a figure or a table with all that a reader needs, and return it for display.

        figure: a matplotlib figure, or a data frame to be shown as a table, worded for readers.
        name: of the files, without ending. title: short heading. caption: what is drawn, from what
        and how many. reading: how to read it, and what would falsify the claim. alt: what the
        picture shows, stating the finding (also the table's summary). With photographs all of these
        say image where they say scene. data: the numbers drawn, a
        tidy table (for a table: the table itself by default). paper_item: "Figure 4", "Table 1".
        Writes <name>.csv, <name>.json and, for a figure, <name>.png; the note last, so that a
        picture without numbers never appears on the page; it holds a table as it is shown, where
        that is not `data`. Raises RedlibError for a name that is no
        file name, an empty text, or a folder that cannot be written.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise RedlibError(f"name must be lower-case letters, digits, - and _; got {name!r}")
        texts = {"title": title, "caption": caption, "reading": reading, "alt": alt}
        for field, text in texts.items():
            if not text.strip():
                raise RedlibError(f"{name}: {field} is empty; every figure and table needs one")
        is_table = isinstance(figure, pd.DataFrame)
        if self.params.data == "real":
            texts = {field: _of_images(text) for field, text in texts.items()}
            figure = figure.rename(columns=_of_images) if is_table else _drawn_of_images(figure)
        data = figure if data is None and is_table else data
        if data is None:
            raise RedlibError(f"{name}: data is missing; every figure needs the numbers behind it")
        if self._lacks_cls(texts, data):
            texts["caption"] += _NO_CLS
        texts["caption"] += self._by_patches(data)
        sets = [*self.asked, *(self.source.drawn["set"] if self.params.data == "real" else ())]
        if sets:
            sets = list(dict.fromkeys(sets))
            told = ", ".join(sets)
            texts["caption"] += _REAL.format(told, self.params.seed)
        if self.ours:
            texts["caption"] += _GIVEN.format(self.ours)
        if name not in self._saved:
            self._saved.append(name)
        note: dict[str, Any] = {
            "name": name,
            "kind": "table" if is_table else "figure",
            "notebook": self.notebook,
            "order": self._saved.index(name) + 1,
            "paper_item": paper_item,
            **texts,
        }
        png = None
        if not is_table:
            png = _png(figure)
            note["width"], note["height"] = _png_size(png)
            with atomic(self.figures / f"{name}.png") as temporary:
                temporary.write_bytes(png)
        csv = _csv(data)
        with atomic(self.figures / f"{name}.csv") as temporary:
            temporary.write_bytes(csv.encode("utf-8"))
        if is_table and figure is not data:
            csv = note["shown"] = _csv(figure)
        note["parameters"] = self._own_parameters()
        note["versions"] = self._versions()
        if sets:
            note["versions"] |= self.source.revisions(sets)
        write_json(self.figures / f"{name}.json", note)
        return Saved(note, png=png, csv=csv)

    def _lacks_cls(self, texts: Mapping[str, str], data: pd.DataFrame) -> bool:
        """Whether a figure speaks of [cls] and its model has none."""
        told = "cls_similarity" in data or any("[cls]" in text for text in texts.values())
        return told and self._model is not None and not self._model.has_cls

    def _by_patches(self, data: pd.DataFrame) -> str:
        """A sentence on the methods in `data` that rank otherwise where a tower has no [cls]."""
        columns = [name for name in ("method", "against") if name in data]
        there = {name for column in columns for name in data[column]}
        told = [title for name, title in _BY_CLS.items() if name in there]
        if not told or self._model is None or self._model.has_cls:
            return ""
        return _BY_PATCHES.format(f"{' and '.join(told)} rank{'s' * (len(told) == 1)}")

    def claim(
        self, statement: str, *, holds: bool | None, evidence: str, paper_item: str = ""
    ) -> None:
        """Put a tested statement in the page's list of claims.

        holds: True, False, or None when the data do not decide. evidence: the numbers behind it,
        with n and interval.
        """
        entry = {"statement": statement, "holds": holds, "evidence": evidence}
        self._claims.append(entry | {"paper_item": paper_item, "notebook": self.notebook})

    def finish(self, **numbers: Any) -> pd.DataFrame:
        """Write the notebook's numbers to results/<nb>.json; return them as (number, value).

        Where the parameters name a codebook, it is one of them. Also drops figures that an earlier
        version of this notebook left in the folder, writes the claims, and lets the workers go.
        """
        self.workers.close()
        if self.ours:
            numbers["codebook"] = self.ours
        write_json(self.file(f"{self.notebook}.json"), numbers)
        for path in sorted(self.figures.glob("*.json")):
            try:
                note = read_json(path)
            except Missing:  # a notebook beside this one has dropped its own
                continue
            stale = isinstance(note, dict) and note.get("notebook") == self.notebook
            if stale and note.get("name") not in self._saved:
                for suffix in (".json", ".png", ".csv"):
                    path.with_suffix(suffix).unlink(missing_ok=True)
        claims = self.figures / f"{self.notebook}{report.CLAIMS}"
        if self._claims:
            write_json(claims, self._claims)
        else:
            claims.unlink(missing_ok=True)
        rows = [
            # pandas would show a small number in a column of mixed kinds as 0.0
            {"number": name, "value": f"{value:.3g}" if _small(value) else value}
            for name, value in numbers.items()
        ]
        return pd.DataFrame(rows, columns=["number", "value"])

    def _own_parameters(self) -> dict[str, Any]:
        """What this notebook declares of the parameters that its results depend on; all of them if
        it cannot be found."""
        values = self.params.model_dump(exclude=set(PLACES))
        try:
            own = declared(root() / "notebooks" / NOTEBOOKS[self.notebook])
        except RedlibError:
            return values
        own |= {"model": None, "preset": None, "seed": None}
        return {name: value for name, value in values.items() if name in own}

    def _versions(self) -> dict[str, str]:
        versions = {"python": platform.python_version(), "redlib": __version__}
        for package in _VERSIONS:
            try:
                versions[package] = metadata.version(package).split("+")[0]
            except metadata.PackageNotFoundError:
                versions[package] = "not installed"
        if self._model is not None:
            versions["checkpoint"] = str(self._model.revision)[:12]
        return versions


class Saved:
    """A figure or table that was saved; Jupyter shows the bytes that lie in the file, or in the
    note.

    The alternative text goes with the picture, so that the committed notebook carries it too.
    """

    def __init__(self, note: Mapping[str, Any], *, png: bytes | None, csv: str) -> None:
        self.note = dict(note)
        self.png = png
        self.csv = csv

    def __repr__(self) -> str:
        return f"{self.note['title']}: {self.note['alt']}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        if self.png is None:
            table = report.table(io.StringIO(self.csv), caption=self.note["title"])
            return {"text/html": table, "text/plain": repr(self)}, {}
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": html.escape(self.note["alt"], quote=True)}}


def _small(value: Any) -> bool:
    return isinstance(value, float) and 0 < abs(value) < 1e-4


def _csv(frame: pd.DataFrame) -> str:
    # Numbers that were put together with an empty table are objects, and would keep all digits.
    return frame.infer_objects().to_csv(index=False, float_format=_six_digits, lineterminator="\n")


def _six_digits(value: float) -> str:
    """What is 0 but for rounding is written as 0: the last bit of a sum is no difference."""
    return "0" if abs(value) < 1e-15 else f"{value:.6g}"


def _of_images(text: str) -> str:
    """A text about scenes as one about photographs: figures draw both, and differ in the word."""
    text = re.sub(r"\b([Aa]) scene\b", r"\1n image", text)
    return re.sub(r"\bscene(s?)\b", r"image\1", re.sub(r"\bScene(s?)\b", r"Image\1", text))


def _drawn_of_images(figure: Any) -> Any:
    """The same for all that is written in a matplotlib figure."""
    from matplotlib.text import Text

    for written in figure.findobj(Text):
        if (told := _of_images(written.get_text())) != written.get_text():
            written.set_text(told)
    return figure


def _png(figure: Any) -> bytes:
    """A matplotlib figure as PNG; the same figure gives the same bytes."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=120,
        bbox_inches="tight",
        facecolor="white",
        metadata={"Software": None},
        pil_kwargs={"optimize": True},
    )
    plt.close(figure)  # or the inline backend would show it a second time
    png = buffer.getvalue()
    return png if len(png) <= _LARGE_PNG else _with_palette(png)


def _with_palette(png: bytes) -> bytes:
    """The picture in 256 colours: a third of the bytes where text or a photograph fills it."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=0)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header's fixed place."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
