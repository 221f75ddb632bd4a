"""Run the notebooks in order, for one parameter file or for a set of them.

papermill executes one notebook with one set of parameters; it knows no order, no resume and no
check. This module adds those three around it. Each notebook runs in a process of its own, one
after the other, with the fully resolved parameters of the file:

    run("params/tiny.yaml", only=["05", "06"])

A notebook whose inputs have not changed since it last succeeded is not run again: its source, its
parameters, the library's code, the checkpoint's files, and the inputs of the notebooks it builds
on. Executed notebooks, logs, tables and times lie under runs/<run_name>/. When the run is
published, a notebook's outputs are also copied into its source, so that a reader of the repository
sees them; nothing else of the source changes, and the same outputs give the same bytes.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import yaml

from redlib import params, report
from redlib.errors import RedlibError
from redlib.notebook import figures_folder, root, runs_folder
from redlib.params import NOTEBOOKS, Params
from redlib.store import code_version, read_json, write_json, write_text, writing

# The notebooks whose saved results a notebook reads.
BUILDS_ON: dict[str, tuple[str, ...]] = {"06": ("05",)}

_LOG_TICK = re.compile(r"(\d+)/(\d+) \[")


class NotebookFailed(Exception):
    """A notebook stopped with an error that is not the reader's; one line, and where to look."""


@dataclass(frozen=True)
class Row:
    """A line of the closing table: `item` in `file`, from a notebook that took `seconds`."""

    item: str
    file: str
    seconds: str


def run(
    file: str | Path,
    *,
    only: Sequence[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], Path]:
    """Run the notebooks for the parameter file or set `file`, and write the page of figures.

    only: numbers of the notebooks to run (default: all). force: run them even if nothing changed,
    and throw their stored tables away first. say: called with one line per notebook.
    Returns the closing table and the path of the page.
    Raises RedlibError for bad input, also when a notebook stopped with one; NotebookFailed when a
    notebook stopped otherwise; KeyboardInterrupt is passed on as RedlibError that says what is
    kept.
    """
    runs = params.load_set(file)
    folder = root() / "notebooks"
    chosen = _choose(only)
    for one in runs:
        _check_inputs(one)
    for number in chosen:
        if not (folder / NOTEBOOKS[number]).is_file():
            raise RedlibError(f"{folder / NOTEBOOKS[number]}: no such notebook")
    rows: list[Row] = []
    for one in runs:
        current = ""
        try:
            for number in chosen:
                current = number
                _run_one(one, number, folder, force, say)
        except KeyboardInterrupt:
            raise RedlibError(_kept(one, current)) from None
        rows += _rows(one)
    pages = {one.run_name: figures_folder(one) for one in runs}
    for one in runs:
        name, place = one.run_name, pages[one.run_name]
        page = report.write(place / "index.html", {name: place}, title=f"Figures of run {name}")
    if params.is_set(file):
        name = Path(file).stem
        published = all(one.publish for one in runs)
        place = root() / "figures" / name if published else runs_folder(name) / "figures"
        page = report.write(place / "index.html", pages, title=f"Figures of the set {name}")
    return rows, page


def publish(executed: str | Path, source: str | Path) -> None:
    """Copy the outputs of an executed notebook into the notebook it was made from.

    Left out: the cell that papermill injects, its metadata, and what is written to stderr (progress
    bars, warnings). Cells are counted from 1. Raises RedlibError if the two do not match.
    """
    done = nbformat.read(executed, as_version=4)
    target = nbformat.read(source, as_version=4)
    cells = [
        cell for cell in done.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if [c.source for c in cells] != [c.source for c in target.cells]:
        raise RedlibError(f"{source}: was edited while it ran; run it again")
    count = 0
    for cell, made in zip(target.cells, cells, strict=True):
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = list(_lasting(made.outputs, count))
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    target.metadata.pop("papermill", None)
    write_text(source, nbformat.writes(target, version=4).rstrip("\n") + "\n")


def calibration_seconds(size: int = 1024, repeats: int = 5) -> float:
    """Best time of a size x size float32 matrix product: how fast, or how busy, this machine is."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, size, size), dtype=np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def _choose(only: Sequence[str] | None) -> list[str]:
    for number in only or []:
        if number not in NOTEBOOKS:
            raise RedlibError(f"--only: no notebook {number!r}; there are {', '.join(NOTEBOOKS)}")
    return [number for number in NOTEBOOKS if not only or number in only]


def _check_inputs(one: Params) -> None:
    """What would stop a notebook after minutes, found before the first one starts."""
    if one.image is not None and not Path(one.image).expanduser().is_file():
        raise RedlibError(f"image: no such file {one.image!r}")
    embedded = _checkpoints()
    known = one.model in embedded or Path(one.model).is_dir()
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", one.model) and not Path(one.model).exists()
    if not known and not hub_id:
        names = ", ".join(sorted(embedded)) or "none"
        raise RedlibError(
            f"model: no folder, Hugging Face id or embedded model {one.model!r} (embedded: {names})"
        )
    if one.image is not None or one.device != "auto" or Path(one.model).is_dir():
        from redlib import models  # torch and transformers, only where there is something to check

        models.choose_device(one.device)
        if one.image is not None:
            models.open_image(one.image)
        if Path(one.model).is_dir():
            models.check_folder(one.model)


def _checkpoints() -> dict[str, Path]:
    folder = Path(__file__).parent / "checkpoints"
    return {path.parent.name: path.parent for path in folder.glob("*/config.json")}


def _run_one(
    one: Params, number: str, folder: Path, force: bool, say: Callable[[str], None]
) -> None:
    source = folder / NOTEBOOKS[number]
    base = runs_folder(one.run_name)
    state_file = base / "state" / f"{number}.json"
    inputs = _inputs(one, number, folder)
    if not force and _is_done(state_file, inputs, one):
        say(f"{source.stem}: unchanged")
        return
    with writing(base):
        base.mkdir(parents=True, exist_ok=True)
        if force:
            shutil.rmtree(base / "store" / number, ignore_errors=True)
        state_file.unlink(missing_ok=True)
    executed = base / "notebooks" / source.name
    given = base / "notebooks" / f"{number}.yaml"
    write_text(given, yaml.safe_dump(one.model_dump(), sort_keys=False, allow_unicode=True))
    calibration = calibration_seconds()
    start = time.perf_counter()
    code = _execute(source, executed, given, base / "logs" / f"{number}.log")
    seconds = time.perf_counter() - start
    if code != 0:
        _explain(source, executed, base / "logs" / f"{number}.log")
    if one.publish:
        publish(executed, source)
    notes = report.items(figures_folder(one))
    made = [note["name"] for note in notes if note["notebook"] == number]
    write_json(state_file, {"inputs": inputs, "seconds": round(seconds, 1), "items": made})
    _note_time(base / "timing.json", number, seconds, calibration)
    say(f"{source.stem}: {seconds:.0f} s")


def _execute(source: Path, executed: Path, given: Path, log: Path) -> int:
    """Run papermill in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "papermill", str(source), str(executed), "-f", str(given)]
    command += ["-k", "python3", "--progress-bar"]
    environment = {
        "OMP_NUM_THREADS": str(_cores()),
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "REDLIB_ROOT": str(root()),
    } | dict(os.environ)
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
    live = sys.stderr.isatty()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            start = time.perf_counter()
            while process.poll() is None:
                time.sleep(0.1)
                if live:
                    _tick(source.stem, log, time.perf_counter() - start)
        except KeyboardInterrupt:
            _stop(process)
            raise
        finally:
            if live:
                sys.stderr.write("\r\033[K")
    return process.returncode


def _stop(process: subprocess.Popen) -> None:
    """Let papermill shut its kernel down; insist if it does not.

    An interrupt from the keyboard reaches papermill too; one that was sent to us alone does not.
    """
    for act in (lambda: process.send_signal(signal.SIGINT), process.terminate, process.kill):
        try:
            process.wait(timeout=5)
            return
        except subprocess.TimeoutExpired:
            act()
    process.wait()


def _tick(name: str, log: Path, seconds: float) -> None:
    """Rewrite the line on the terminal that says how far the notebook is."""
    ticks = _LOG_TICK.findall(log.read_text(encoding="utf-8", errors="replace")[-400:])
    cells = f", cell {ticks[-1][0]} of {ticks[-1][1]}" if ticks else ""
    sys.stderr.write(f"\r\033[K{name}: {seconds:.0f} s{cells} ")
    sys.stderr.flush()


def _explain(source: Path, executed: Path, log: Path) -> None:
    """Raise what stopped the notebook: a RedlibError as such, anything else as NotebookFailed."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):
        cells = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                message = " ".join(output.evalue.split())
                if output.ename == "RedlibError":
                    raise RedlibError(f"{source.name}: {message}")
                raise NotebookFailed(f"{source.name}: {output.ename}: {message}; see {executed}")
    raise NotebookFailed(f"{source.name}: the kernel stopped without a message; see {log}")


def _inputs(one: Params, number: str, folder: Path) -> str:
    """Hash of all that the notebook's outputs depend on."""
    digest = hashlib.sha256()
    for each in (*BUILDS_ON.get(number, ()), number):
        notebook = nbformat.read(folder / NOTEBOOKS[each], as_version=4)
        cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]
        digest.update(json.dumps(cells).encode())
    digest.update(one.model_dump_json().encode())
    digest.update(code_version().encode())
    model = _checkpoints().get(one.model, Path(one.model))
    for path in (sorted(model.iterdir()) if model.is_dir() else []) + [Path(one.image or "")]:
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _is_done(state_file: Path, inputs: str, one: Params) -> bool:
    if not state_file.exists():
        return False
    state = read_json(state_file)
    there = {note["name"] for note in report.items(figures_folder(one))}
    return state.get("inputs") == inputs and there.issuperset(state["items"])


def _note_time(path: Path, number: str, seconds: float, calibration: float) -> None:
    times = read_json(path) if path.exists() else {}
    times[number] = {
        "notebook": NOTEBOOKS[number],
        "seconds": round(seconds, 1),
        "calibration_matmul_1024_fp32_seconds": round(calibration, 5),
        "calibration_gflops": round(2 * 1024**3 / calibration / 1e9, 1),
        "threads": _cores(),
    }
    write_json(path, dict(sorted(times.items())))


def _rows(one: Params) -> list[Row]:
    place = figures_folder(one)
    rows = []
    for note in report.items(place):
        state = runs_folder(one.run_name) / "state" / f"{note['notebook']}.json"
        seconds = f"{read_json(state)['seconds']:.0f}" if state.exists() else "-"
        suffix = ".csv" if note["kind"] == "table" else ".png"
        item = f"{note['paper_item']}: {note['title']}" if note["paper_item"] else note["title"]
        rows.append(Row(item, from_here(place / f"{note['name']}{suffix}"), seconds))
    return rows


def _kept(one: Params, number: str) -> str:
    base = runs_folder(one.run_name)
    done = sorted(path.stem for path in (base / "state").glob("*.json"))
    parts = sum(1 for _ in (base / "store").glob("*/*/*.parquet"))
    notebooks = f"finished notebooks {', '.join(done)}" if done else "no finished notebook"
    return (
        f"interrupted in notebook {number} of run {one.run_name!r}; kept: {notebooks} and "
        f"{parts} part files in {from_here(base)}; the same command without --force goes on "
        "from there"
    )


def _lasting(outputs: Sequence[Mapping[str, Any]], count: int) -> Iterator[Any]:
    """Outputs worth committing: no stderr, neighbouring pieces of stdout joined, counts renewed."""
    last = None
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if last is not None and last.output_type == "stream":
                last.text += output.text
                continue
        if last is not None:
            yield last
        last = output
        if output.output_type == "execute_result":
            last.execution_count = count
    if last is not None:
        yield last


def _cores() -> int:
    """Threads for the matrix products: the cores of this process, at most 8, or the user's wish."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish) > 0:
        return int(wish)
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def from_here(path: Path) -> str:
    """The path as one would type it here: relative where that is possible without climbing."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
