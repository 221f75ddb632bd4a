"""Run the notebooks, for one parameter file or for a set of them.

papermill executes one notebook with one set of parameters; it knows no order, no resume and no
check. This module adds those three around it. Each notebook runs in a process of its own, with the
fully resolved parameters of the file:

    run("params/tiny.yaml", only=["05", "06"])

Imports and drawing use one thread, whatever there is. So with an embedded model as many notebooks
run at a time as there are cores, up to MOST_JOBS, on an equal share of them (on two cores that
halves the time of `make smoke`); one that builds on another waits for it. A 7B model fills its
device: one at a time, in order. A notebook that asks for `workers` takes as many shares. The
threads of a notebook follow from the machine alone, since they decide the last digits of its
numbers.

A notebook whose inputs have not changed since it last succeeded is not run again: its source, its
parameters, the library's code, the files of the checkpoint and of a codebook that the parameters
name, the data sets in `data_dir` (by names, sizes and times of change), and the inputs of the
notebooks it builds on. Executed notebooks, logs, tables and times lie under runs/<run_name>/. When
the run is published and its model is the one that the notebooks name, a notebook's outputs are also
copied into its source, so that a reader of the repository sees them; nothing else of the source
changes, and the same outputs give the same bytes.

A parameter file that names its `notebooks` runs a part of them at another scale. The sources keep
the outputs that belong together, those of a run of all; and since hours of computing are not done
again by whoever reads the numbers, such a run is published with its log, which begins with its id.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from redlib import answers, forecast, params, pictures, report
from redlib.errors import RedlibError
from redlib.fingerprint import code_version
from redlib.machine import calibration_seconds, cores
from redlib.notebook import figures_folder, root, runs_folder
from redlib.params import NOTEBOOKS, PLACES, Params, is_hub_id, local
from redlib.scale import Workers
from redlib.store import Missing, read_mapping, write_json, write_text, writing
from redlib.study import comparison, ledger, printed

# The notebooks whose saved results a notebook reads, instead of measuring the same again.
BUILDS_ON: dict[str, tuple[str, ...]] = {
    "03": ("01",), "06": ("05",), "07": ("05",), "08": ("05",)
}  # fmt: skip
# Begun first, in all runs, so that little is left to wait for at the end.
LONGEST = ("05", "04", "06", "08", "01", "07")
MOST_JOBS = 4  # each takes a gigabyte
# glibc hands a large tensor's memory back when it is freed, and the system blanks every page of the
# next one: one part in twelve of a probe's time. Other C libraries do not read these.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

_NO_KERNEL = ("Kernel didn't respond", "Kernel died before replying")  # of jupyter_client
_LOG_TICK = re.compile(r"(\d+)/(\d+) \[")
_BAR = re.compile(r"(\w+): +\d+%\|[^|]*\| (\d+)/(\d+) \[[^<\]]*<([^,\]]+), *([^,\]]+)")


class NotebookFailed(Exception):
    """A notebook stopped with an error that is not the reader's; one line, and where to look."""


@dataclass(frozen=True)
class Row:
    """A line of the closing table: `item` in `file`, from a notebook that took `seconds`."""

    item: str
    file: str
    seconds: str


@dataclass
class _Job:
    """One notebook of one run: what it depends on and, once it started, its process."""

    one: Params
    number: str
    source: Path
    label: str
    inputs: str = ""
    process: subprocess.Popen | None = None
    start: float = 0.0
    calibration: float = 0.0
    threads: int = 1
    again: bool = False

    @property
    def base(self) -> Path:
        return runs_folder(self.one.run_name)

    @property
    def state(self) -> Path:
        return self.base / "state" / f"{self.number}.json"

    @property
    def given(self) -> Path:
        """Its parameters, as papermill reads them."""
        return self.base / "notebooks" / f"{self.number}.yaml"

    @property
    def executed(self) -> Path:
        return self.base / "notebooks" / self.source.name

    @property
    def log(self) -> Path:
        return self.base / "logs" / f"{self.number}.log"

    @property
    def bars(self) -> Path:
        """What the notebook's cells write to stderr: progress bars of its loops."""
        return self.base / "logs" / f"{self.number}.bars"


def run(
    file: str | Path,
    *,
    only: Sequence[str] | None = None,
    force: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], Path]:
    """Run the notebooks for the parameter file or set `file`, and write the page of figures.

    only: numbers of the notebooks to run (default: all). force: run them even if nothing changed,
    and throw their stored tables away first. jobs: how many at a time (default: the cores, up to
    MOST_JOBS, for embedded models; else one). say: called with one line per notebook.
    Returns the closing table and the path of the page.
    Raises RedlibError for bad input, also when a notebook stopped with one; NotebookFailed when a
    notebook stopped otherwise; KeyboardInterrupt is passed on as RedlibError that says what is
    kept.
    """
    runs, chosen = _checked(file, only, jobs)
    if any(one.data == "real" or is_hub_id(one.model) for one in runs):
        for line in [*forecast.lines(runs, only or list(NOTEBOOKS)), ""]:
            say(line)
    # Behind the forecast, which a network that is down, or a gated model, need not keep back.
    for one in [*runs, *params.load_beside(file)]:
        _check_reach(one, chosen.get(one.run_name, ()))
    folder = root() / "notebooks"
    shipped = all(one.model in params.embedded() for one in runs)
    threads = _threads(shipped)
    if jobs is None:
        each = threads * max(one.workers for one in runs)
        jobs = max(1, min(MOST_JOBS, cores() // each)) if shipped else 1
    for number in sorted({number for part in chosen.values() for number in part}):
        if not (folder / NOTEBOOKS[number]).is_file():
            raise RedlibError(f"{folder / NOTEBOOKS[number]}: no such notebook")
    waiting = []
    for one in runs:
        for number in chosen[one.run_name]:
            source = folder / NOTEBOOKS[number]
            label = f"{one.run_name}, {source.stem}" if len(runs) > 1 else source.stem
            waiting.append(_Job(one, number, source, label))
    if jobs > 1:
        waiting = _longest_first(waiting)
    with _heeding_termination():
        _run_all(waiting, jobs, threads, force, say)
    rows = [row for one in runs for row in _rows(one)]
    return rows, draw_pages(file)


def forecast_lines(
    file: str | Path, only: Sequence[str] | None = None, *, jobs: int | None = None
) -> list[str]:
    """What `run` would fetch and cost, and nothing is run; see `redlib.forecast`.

    Raises RedlibError as `run` does, but for what depends on a network or on another machine than
    this one: the hub, a scheduler, the device, Java.
    """
    runs, _ = _checked(file, only, jobs)
    return forecast.lines(runs, only or list(NOTEBOOKS))


def draw_pages(file: str | Path) -> Path:
    """Write the pages of the runs of `file` from the tables and notes that lie there, and run
    nothing; with each, the page of its answers. A set's page also has Table 1 over all its models
    and the ledger of the paper's claims.

    Returns the path of the set's page, or of the run's. Raises RedlibError as `report.write` does,
    and for a run of which no notebook has finished and nothing lies there.
    """
    runs = params.load_set(file)
    pages = {one.run_name: figures_folder(one) for one in runs}
    for name, place in pages.items():
        if not report.items(place) and not _states(runs_folder(name)):
            raise RedlibError(f"{from_here(place)}: no results yet; `redlib run {file}` makes them")
    for one in runs:
        name, place = one.run_name, pages[one.run_name]
        for notebook in answers.NOTEBOOKS:
            answers.write(place, notebook, run=name)
        if one.publish and one.notebooks is not None:
            _publish_log(one, place)
        table1 = comparison.table1({name: place})
        page = report.write(
            place / "index.html",
            {name: place},
            title=f"Figures of run {name}",
            table1=table1[table1["run"] == name],
        )
    if params.is_set(file):
        name = Path(file).stem
        published = all(one.publish for one in runs)
        place = root() / "figures" / name if published else runs_folder(name) / "figures"
        beside = {one.run_name: figures_folder(one) for one in params.load_beside(file)}
        page = report.write(
            place / "index.html",
            pages,
            title=f"Figures of the set {name}",
            beside=beside,
            ledger=ledger.ledger(pages | beside),
            percentages=printed.percentages(),
            table1=comparison.table1(pages),
        )
    return page


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


def _choose(only: Sequence[str] | None, one: Params) -> list[str]:
    """The notebooks to run for one parameter file."""
    there = one.notebooks or list(NOTEBOOKS)
    for number in only or []:
        if number not in there:
            where = f" in run {one.run_name!r}" if one.notebooks else ""
            raise RedlibError(
                f"--only: no notebook {number!r}{where}; there are {', '.join(there)}"
            )
    return [number for number in NOTEBOOKS if number in (only or there)]


def _checked(
    file: str | Path, only: Sequence[str] | None, jobs: int | None
) -> tuple[list[Params], dict[str, list[str]]]:
    """The runs of a parameter file or set and, by name, the notebooks of each, once `_check_given`
    finds nothing wrong with them or with those of a set beside it."""
    runs = params.load_set(file)
    chosen = {one.run_name: _choose(only, one) for one in runs}
    if jobs is not None and jobs < 1:
        raise RedlibError(f"--jobs: must be 1 or more; got {jobs}")
    for one in [*runs, *params.load_beside(file)]:
        _check_given(one, chosen.get(one.run_name, ()))
    for one in runs:
        _check_codebook(one, chosen[one.run_name])
    return runs, chosen


def _check_data(one: Params, numbers: Sequence[str]) -> None:
    """Whether `data_dir` holds what these notebooks read."""
    if one.data_dir is not None and not local(one.data_dir).is_dir():
        raise RedlibError(f"data_dir: no folder {one.data_dir!r}; it should hold the data sets")
    if one.data == "real":
        from redlib.data import copies  # only where there is something to check

        copies.check(one, numbers)


def _check_given(one: Params, numbers: Sequence[str] = tuple(NOTEBOOKS)) -> None:
    """Whether what the parameters name is there and whole, as far as this machine's files tell."""
    if one.image is not None:
        if not local(one.image).is_file():
            raise RedlibError(f"image: no such file {one.image!r}")
        pictures.open_image(one.image)
    _check_data(one, numbers)
    if one.games_dir is not None:
        if not local(one.games_dir).is_dir():
            raise RedlibError(
                f"games_dir: no folder {one.games_dir!r}; it should hold your pictures"
            )
        if one.data == "real" and "07" in numbers:
            from redlib.data import folder  # only where there is something to check

            for game in folder.own(one.games_dir)[: one.n_games]:
                pictures.open_image(game.path)
    if one.codebook is not None:
        from redlib.study import given  # torch, only where there is something to check

        given.read(one)
    params.check_revision(one.model, one.revision)
    shipped = params.embedded()
    place = local(one.model)
    if one.model not in shipped:
        if place.is_dir():
            from redlib import hub  # transformers, only where there is need

            hub.check_folder(str(place))
        elif place.exists() or not is_hub_id(one.model):
            names = ", ".join(shipped) or "none"
            raise RedlibError(
                f"model: no folder, Hugging Face id or embedded model {one.model!r} "
                f"(embedded: {names})"
            )
    if one.device_map is not None or one.quantization is not None:
        from redlib import models  # torch and transformers

        # How the weights are placed counts for nothing here, only whether they can be.
        models.placement(models.choose_device("auto"), one.device, one.device_map, one.quantization)


def _check_reach(one: Params, numbers: Sequence[str] = tuple(NOTEBOOKS)) -> None:
    """Whether what lies beyond this machine's files is in reach, which would else stop one of these
    notebooks after minutes: Java, a scheduler, the device, the hub."""
    if one.data == "real" and "06" in numbers:
        from redlib.bench import coco  # torch

        coco.ready(one.caption_metric)
    if one.scheduler is not None:
        workers = Workers(scheduler=one.scheduler)
        workers.start()
        workers.close()
    if one.device != "auto":
        from redlib import models  # torch and transformers, only where there is need

        models.choose_device(one.device)
    if one.model not in params.embedded() and not local(one.model).is_dir():
        from redlib import hub

        hub.read_config(one.model, one.revision)


def _check_codebook(one: Params, numbers: Sequence[str]) -> None:
    """Of notebooks that run without the one that they build on: is its codebook that of these
    parameters? Where there is none, they build it themselves, or say that this takes long."""
    first = "05"
    late = [number for number in numbers if first in BUILDS_ON.get(number, ())]
    file = runs_folder(one.run_name) / params.CODEBOOK
    if not late or first in numbers or one.codebook is not None or not file.is_file():
        return
    remedy = f"run {first} with them: --only {','.join([first, *late])}"
    note = file.with_suffix(".json")
    made = read_mapping(note) if note.is_file() else {}
    for name in params.BUILDS:
        if (now := getattr(one, name)) != (before := made.get(name, "unknown")):
            raise RedlibError(
                f"{from_here(file)}: built with {name} = {before!r}, now {now!r}; {remedy}"
            )


def _run_all(
    waiting: list[_Job], jobs: int, threads: int, force: bool, say: Callable[[str], None]
) -> None:
    """Run the jobs, at most `jobs` at a time, each after those of its run that it builds on."""
    running: list[_Job] = []
    last, grace = waiting[-1], 0.0
    try:
        while waiting or running:
            while len(running) < jobs and (job := _next(waiting, running)):
                running.append(job)
                waiting.remove(job)
                if not _begin(job, threads, force):
                    running.remove(job)
                    _clear()
                    say(f"{job.label}: unchanged")
            time.sleep(0.1)
            _tick(running)
            ended = [job for job in running if job.process.poll() is not None]
            for job in [job for job in ended if not job.again and _without_kernel(job)]:
                job.again = True
                _start(job)
                ended.remove(job)
            # What succeeded is noted before what failed stops everything.
            for job in sorted(ended, key=lambda job: job.process.returncode != 0):
                seconds = _finish(job)
                running.remove(job)
                _clear()
                say(f"{job.label}: {seconds:.0f} s")
    except KeyboardInterrupt as error:
        # One from the keyboard has reached papermill too.
        grace = 0.0 if isinstance(error, _Terminated) else 5.0
        raise RedlibError(_kept(running or waiting or [last])) from None
    finally:
        _stop([job.process for job in running if job.process is not None], grace)
        _clear()


class _Terminated(KeyboardInterrupt):
    """SIGTERM: from a cluster's scheduler, a container that stops, `timeout`."""


@contextlib.contextmanager
def _heeding_termination() -> Iterator[None]:
    """Take SIGTERM for an interrupt, so that no notebook runs on alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def stop(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _longest_first(waiting: list[_Job]) -> list[_Job]:
    rank = {number: k for k, number in enumerate(LONGEST)}
    return sorted(waiting, key=lambda job: rank.get(job.number, len(rank)))


def _next(waiting: list[_Job], running: list[_Job]) -> _Job | None:
    """The first job that builds on none that is still to come or at work."""
    open_jobs = {(job.one.run_name, job.number) for job in (*waiting, *running)}
    for job in waiting:
        needs = {(job.one.run_name, number) for number in BUILDS_ON.get(job.number, ())}
        if not needs & open_jobs:
            return job
    return None


def _begin(job: _Job, threads: int, force: bool) -> bool:
    """Start papermill in a process of its own, unless nothing that counts has changed."""
    job.inputs = _inputs(job.one, job.number, job.source.parent)
    if not force and _is_done(job.state, job.inputs, job.one):
        return False
    with writing(job.base):
        job.base.mkdir(parents=True, exist_ok=True)
        if force:
            shutil.rmtree(job.base / "store" / job.number, ignore_errors=True)
        job.state.unlink(missing_ok=True)
    write_text(job.given, yaml.safe_dump(job.one.model_dump(), sort_keys=False, allow_unicode=True))
    with writing(job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
    job.calibration, job.threads = calibration_seconds(), threads
    _note(job, f"began with inputs {job.inputs[:12]} on {threads} of {cores()} cores")
    _start(job)
    return True


def _start(job: _Job) -> None:
    environment = {
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "REDLIB_ROOT": str(root()),
        **_KEEP_MEMORY,
    } | dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(job.threads)  # an empty one there would mean all cores
    job.start = time.perf_counter()
    with job.log.open("wb") as output:
        job.process = subprocess.Popen(
            _command(job), stdout=output, stderr=subprocess.STDOUT, env=environment
        )


def _without_kernel(job: _Job) -> bool:
    """Whether papermill gave up since its kernel never answered. A kernel is told numbers of ports
    that were free a moment ago; where many kernels start at once, another may have taken one."""
    if job.process.returncode == 0:
        return False
    end = job.log.read_text(encoding="utf-8", errors="replace")[-300:]
    return any(text in end for text in _NO_KERNEL)


def _command(job: _Job) -> list[str]:
    command = [sys.executable, "-m", "papermill", str(job.source), str(job.executed)]
    command += ["-f", str(job.given), "-k", "python3", "--progress-bar"]
    return [*command, "--stderr-file", str(job.bars)]


def _finish(job: _Job) -> float:
    """Publish and note what a notebook that has ended made; returns the seconds it took."""
    seconds = time.perf_counter() - job.start
    _note(job, f"{'stopped' if job.process.returncode else 'ended'} after {seconds:.0f} s")
    if job.process.returncode != 0:
        _explain(job.source, job.executed, job.log)
    if job.one.publish and job.one.model == Params().model and job.one.notebooks is None:
        publish(job.executed, job.source)
    notes = report.items(figures_folder(job.one))
    made = [note["name"] for note in notes if note["notebook"] == job.number]
    write_json(job.state, {"inputs": job.inputs, "items": made} | _times(job, seconds))
    _gather_times(job.base)
    return seconds


def _stop(processes: Sequence[subprocess.Popen], grace: float) -> None:
    """Let every papermill shut its kernel down; insist if it does not.

    grace: seconds to wait before the first signal, for those that have had one.
    """

    def left(seconds: float) -> list[subprocess.Popen]:
        until = time.monotonic() + seconds
        while (alive := [p for p in processes if p.poll() is None]) and time.monotonic() < until:
            time.sleep(0.05)
        return alive

    acts: list[Callable[[subprocess.Popen], None]] = [
        subprocess.Popen.terminate,
        subprocess.Popen.kill,
    ]
    if os.name != "nt":  # where SIGINT cannot be sent to a process
        acts.insert(0, lambda process: process.send_signal(signal.SIGINT))
    alive = left(grace)
    for act in acts:
        for process in alive:
            act(process)
        alive = left(5.0)
    for process in alive:
        process.wait()


def _tick(running: Sequence[_Job]) -> None:
    """Rewrite the line on the terminal that says how far the notebooks are."""
    if not running or not sys.stderr.isatty():
        return
    parts = []
    for job in running:
        text = job.log.read_text(encoding="utf-8", errors="replace")[-400:]
        ticks = _LOG_TICK.findall(text)
        cells = f", cell {ticks[-1][0]} of {ticks[-1][1]}" if ticks else ""
        seconds = time.perf_counter() - job.start
        parts.append(f"{job.label}: {seconds:.0f} s{cells}{_progress(job.bars)}")
    line = "; ".join(parts)[: shutil.get_terminal_size().columns - 1]
    sys.stderr.write(f"\r\033[K{line}")
    sys.stderr.flush()


def _progress(bars: Path) -> str:
    """The loop that a cell is in: what it counts, how many are done, their rate, the time left."""
    if not bars.exists():
        return ""
    # A bar overwrites itself from the start of its line, and blanks the line at its end.
    now = bars.read_bytes()[-1000:].rpartition(b"\r")[2]
    found = _BAR.search(now.decode("utf-8", errors="replace"))
    return ", {0} {1} of {2} at {4}, {3} left".format(*found.groups()) if found else ""


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
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
    notebooks = (*BUILDS_ON.get(number, ()), number)
    for each in notebooks:
        notebook = nbformat.read(folder / NOTEBOOKS[each], as_version=4)
        cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]
        digest.update(json.dumps(cells).encode())
    digest.update(one.model_dump_json(exclude=set(PLACES)).encode())
    digest.update(code_version().encode())
    model = params.embedded().get(one.model, local(one.model))
    named = [local(name) for name in (one.image, one.codebook) if name is not None]
    for folder in (model, *([local(one.games_dir)] if one.games_dir is not None else [])):
        named += sorted(folder.iterdir()) if folder.is_dir() else []
    for path in named:
        if path.is_file():
            digest.update(path.name.encode())
            with local(path).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    if one.data == "real":
        from redlib.data import copies

        digest.update(repr(copies.state(one, notebooks)).encode())
    return digest.hexdigest()


def _is_done(state_file: Path, inputs: str, one: Params) -> bool:
    if not state_file.exists():
        return False
    state = _read_state(state_file)
    place = figures_folder(one)
    whole = {note["name"] for note in report.items(place) if not report.lost(place, note)}
    return state["inputs"] == inputs and whole.issuperset(state["items"])


def _states(base: Path) -> list[Path]:
    """What `_finish` has noted of the notebooks of a run."""
    return sorted((base / "state").glob("*.json"))


def _read_state(path: Path) -> dict[str, Any]:
    return read_mapping(path, "inputs", "items", "notebook", "seconds")


def _times(job: _Job, seconds: float) -> dict:
    """How long a notebook took, and how fast the machine was before it."""
    return {
        "notebook": NOTEBOOKS[job.number],
        "seconds": round(seconds, 1),
        "calibration_matmul_1024_fp32_seconds": round(job.calibration, 5),
        "calibration_gflops": round(2 * 1024**3 / job.calibration / 1e9, 1),
        "threads": job.threads,
    }


def _gather_times(base: Path) -> None:
    """Draw up timing.json from what is noted of every finished notebook; again where another run
    of this folder has noted something meanwhile, so that none of its lines is lost."""
    written = None
    while (times := _noted_times(base)) != written:
        write_json(base / "timing.json", times)
        written = times


def _noted_times(base: Path) -> dict[str, dict]:
    times = {}
    for path in _states(base):
        with contextlib.suppress(Missing):  # the other run begins that notebook anew
            state = _read_state(path)
            times[path.stem] = {k: v for k, v in state.items() if k not in ("inputs", "items")}
    return times


def _note(job: _Job, event: str) -> None:
    """A line in the log of the run."""
    with writing(job.base), (job.base / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{job.source.stem}: {event}\n")


def _publish_log(one: Params, place: Path) -> None:
    """Put the log of a finished run beside its figures, with the run's id in front; where its
    working files are not, the one that lies there stays."""
    base = runs_folder(one.run_name)
    states = [base / "state" / f"{number}.json" for number in one.notebooks]
    if all(path.is_file() for path in states):
        found = [_read_state(path) for path in states]
        inputs = "".join(state["inputs"] for state in found)
        lines = [
            f"run id {hashlib.sha256(inputs.encode()).hexdigest()[:12]}",
            "It names what the results depend on: parameters, code, notebooks and checkpoint.",
            *(
                f"{state['notebook']}: a 1,024 x 1,024 fp32 product ran at "
                f"{state['calibration_gflops']} GFLOP/s before it"
                for state in found
                if "calibration_gflops" in state  # not in those of an older version
            ),
        ]
        log = (base / "log.txt").read_text(encoding="utf-8")
        write_text(place / "log.txt", "\n".join([*lines, log]))


def _rows(one: Params) -> list[Row]:
    place = figures_folder(one)
    rows = []
    for note in report.items(place):
        state = runs_folder(one.run_name) / "state" / f"{note['notebook']}.json"
        seconds = f"{_read_state(state)['seconds']:.0f}" if state.exists() else "-"
        item = f"{note['paper_item']}: {note['title']}" if note["paper_item"] else note["title"]
        rows.append(Row(item, from_here(report.files(place, note)[0]), seconds))
    return rows


def _kept(jobs: Sequence[_Job]) -> str:
    base = jobs[0].base
    done = [path.stem for path in _states(base)]
    parts = sum(1 for _ in (base / "store").glob("*/*/*.parquet"))
    notebooks = f"finished notebooks {', '.join(done)}" if done else "no finished notebook"
    at_work = ", ".join(job.number for job in jobs if job.one is jobs[0].one)
    return (
        f"interrupted in notebook {at_work} of run {jobs[0].one.run_name!r}; kept: {notebooks} and "
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


def _threads(embedded: bool) -> int:
    """Threads of one notebook's matrix products: the user's wish, or the cores, which notebooks on
    an embedded model share."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish) > 0:
        return int(wish)
    return max(1, cores() // min(cores(), MOST_JOBS)) if embedded else cores()


def from_here(path: Path) -> str:
    """The path as one would type it here: relative where that is possible without climbing."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
