"""Batch runs: order, resume, publishing, failure, interrupt; on notebooks that take no time."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import nbformat
import pytest
from throwaway import TABLE, project, write_notebook

from redlib import batch
from redlib.data import COCO, VQAV2
from redlib.data.benchmarks import BENCHMARKS
from redlib.errors import RedlibError
from redlib.notebook import declared
from redlib.params import BUILDS, NOTEBOOKS, Params, load_file

PARAMETERS = "# kept\nseed: int = 0  # start\nbudgets = [144, 64]"
NOISE = (
    "import sys\nprint('one')\nsys.stdout.flush()\nprint('two')\n"
    "print('to stderr', file=sys.stderr)\nsession.params.seed"
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The product that tells a machine's speed, small: it comes before every notebook."""
    with pytest.MonkeyPatch.context() as patch:
        small = partial(batch.calibration_seconds, size=64, repeats=2)
        patch.setattr(batch, "calibration_seconds", small)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A published run of two notebooks, run three times: at first, again, and by force."""
    folder = tmp_path_factory.mktemp("project")
    second = [PARAMETERS, TABLE, NOISE, "session.finish(n=1)"]
    cells = {"01": [PARAMETERS, "session.finish()"], "02": second}
    project(folder, cells, publish=True, seed=6, tau_jsd=1e-5, model=Params().model)
    (folder / "params" / "both.yaml").write_text("set: [one]\n")
    said, results, states = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLIB_ROOT", str(folder))
        patch.delenv("REDLIB_RUNS", raising=False)
        patch.chdir(folder)
        patch.setattr(batch, "code_version", lambda: "this")  # it may be edited meanwhile
        for options in ({}, {}, {"force": True, "only": ["02"]}):
            options = {"only": ["01", "02"]} | options
            results.append(batch.run(folder / "params/both.yaml", say=said.append, **options))
            kept = [*(folder / "figures").rglob("*.*"), *(folder / "notebooks").iterdir()]
            states.append({path: path.read_bytes() for path in kept})
    return SimpleNamespace(folder=folder, said=said, results=results, states=states)


def test_the_table_and_the_page(finished):
    rows, page = finished.results[0]
    assert [(row.item, row.file) for row in rows] == [
        ("Table 9: Scores", os.path.join("figures", "one", "scores.csv"))
    ]
    assert float(rows[0].seconds) > 0
    assert page == finished.folder / "figures" / "both" / "index.html"
    assert "../one/scores.csv" in page.read_text()
    assert (finished.folder / "figures" / "one" / "index.html").is_file()


def test_what_has_not_changed_is_not_run_again(finished):
    kinds = [line.split(": ")[1] for line in finished.said]
    assert re.fullmatch(r"\d+ s", kinds[0])
    assert kinds[2:4] == ["unchanged", "unchanged"]
    assert re.fullmatch(r"\d+ s", kinds[4])


def test_running_again_and_by_force_changes_no_byte(finished):
    first, again, forced = finished.states
    assert len(first) == 8
    assert first == again == forced


def test_parameters_arrive(finished):
    assert (finished.folder / "figures/one/scores.csv").read_text() == "patch,score\n1,0.1\n2,2\n"
    note = json.loads((finished.folder / "figures/one/scores.json").read_text())
    assert note["parameters"]["seed"] == 6
    assert set(note["parameters"]) == {"seed", "budgets", "model", "preset"}


def test_outputs_are_published_and_nothing_else(finished):
    path = finished.folder / "notebooks" / NOTEBOOKS["02"]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert declared(path) == {"seed": 0, "budgets": [144, 64]}
    assert [o.output_type for o in code[3].outputs] == ["stream", "execute_result"]
    assert code[3].outputs[0].text == "one\ntwo\n"
    assert code[3].outputs[1].execution_count == 4
    assert code[3].outputs[1].data["text/plain"] == "6"
    assert "<table>" in code[2].outputs[0].data["text/html"]
    assert "papermill" not in path.read_text()


def test_a_run_of_some_notebooks_is_published_with_its_log_and_leaves_the_sources(home):
    second = [PARAMETERS, TABLE, "session.finish(n=1)"]
    project(home, {"01": [PARAMETERS], "02": second}, publish=True, model=Params().model)
    one = (home / "params/one.yaml").read_text()
    (home / "params/few.yaml").write_text(one + "notebooks: ['02']\nseed: 3\n")
    (home / "params/long.yaml").write_text("set: [few]\nbeside: one\n")
    source = home / "notebooks" / NOTEBOOKS["02"]
    before = source.read_bytes()
    batch.run(home / "params/long.yaml")
    assert source.read_bytes() == before
    assert not (home / "runs/few/state/01.json").exists()
    log = (home / "figures/few/log.txt").read_text().splitlines()
    assert re.fullmatch(r"run id [0-9a-f]{12}", log[0])
    assert re.fullmatch(r"02_single_token_probe: ended after \d+ s", log[-1])
    for page in ("few", "long"):
        told = (home / "figures" / page / "index.html").read_text()
        assert "log.txt" in told and log[0] in told
    shutil.rmtree(home / "runs")
    batch.draw_pages(home / "params/long.yaml")
    assert (home / "figures/few/log.txt").read_text().splitlines() == log
    with pytest.raises(RedlibError, match="no notebook '01' in run 'few'; there are 02"):
        batch.run(home / "params/long.yaml", only=["01"])


def test_working_files(finished):
    runs = finished.folder / "runs" / "one"
    times = json.loads((runs / "timing.json").read_text())
    assert set(times) == {"01", "02"}
    assert times["02"]["seconds"] > 0
    assert times["02"]["calibration_gflops"] > 0
    assert (runs / "notebooks" / NOTEBOOKS["02"]).is_file()
    assert json.loads((runs / "results" / "02.json").read_text()) == {"n": 1}


def test_two_runs_of_one_folder_lose_no_time(home, monkeypatch):
    """Another run has ended a notebook since, begins one anew between look and read, and ends one
    between read and write."""
    file = project(home, {"01": ["seed = 0"], "02": ["seed = 0"]})
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", ""])
    batch.run(file, only=["02"])
    folder = home / "runs/one"
    (folder / "timing.json").write_text("{}")
    (folder / "state/03.json").symlink_to("vanished")
    write = batch.write_json

    def late(path, value):
        if path.name == "timing.json":
            state = json.loads((folder / "state/02.json").read_text())
            (folder / "state/04.json").write_text(json.dumps(state))
        write(path, value)

    monkeypatch.setattr(batch, "write_json", late)
    batch.run(file, only=["01"])
    times = json.loads((folder / "timing.json").read_text())
    assert list(times) == ["01", "02", "04"]
    assert times["02"]["notebook"] == NOTEBOOKS["02"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("REDLIB_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inputs_that_count(home):
    file = project(home, {"05": [PARAMETERS], "06": [PARAMETERS]}, run_name="one")
    (one,) = batch.params.load_set(file)
    folder = home / "notebooks"
    hashes = [batch._inputs(one, "06", folder)]

    def now():
        hashes.append(batch._inputs(one, "06", folder))
        return hashes[-1]

    assert now() == hashes[0]
    (home / "model" / "weights").write_text("1")
    assert now() not in hashes[:-1]
    write_notebook(home, "05", [PARAMETERS, "1"])
    assert now() not in hashes[:-1], "06 reads what 05 made"
    executed = nbformat.read(folder / NOTEBOOKS["06"], as_version=4)
    executed.cells[1].execution_count = 7
    nbformat.write(executed, folder / NOTEBOOKS["06"])
    assert now() == hashes[-2], "outputs are no input"
    one = one.model_copy(update={"seed": 9})
    assert now() not in hashes[:-1]


def test_a_notebook_that_fails(home):
    wrong = 'raise redlib.RedlibError("keep must be\\nfrom 1 to 576; got 0")'
    file = project(home, {"02": ["seed = 0", wrong]})
    source = home / "notebooks" / NOTEBOOKS["02"]
    before = source.read_bytes()
    with pytest.raises(RedlibError) as caught:
        batch.run(file, only=["02"])
    line = "02_single_token_probe.ipynb: keep must be from 1 to 576; got 0"
    assert str(caught.value) == line
    executed = nbformat.read(home / "runs/one/notebooks" / NOTEBOOKS["02"], as_version=4)
    (error,) = [o for c in executed.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert error.traceback == ["redlib: keep must be from 1 to 576; got 0"]
    assert source.read_bytes() == before
    assert not (home / "runs/one/state/02.json").exists()


def test_an_edited_notebook_is_not_overwritten(home):
    project(home, {"03": ["seed = 0"]})
    source = home / "notebooks" / NOTEBOOKS["03"]
    executed = home / "done.ipynb"
    executed.write_bytes(source.read_bytes())
    write_notebook(home, "03", ["seed = 1"])
    before = source.read_bytes()
    with pytest.raises(RedlibError, match="was edited while it ran"):
        batch.publish(executed, source)
    assert source.read_bytes() == before


def test_ctrl_c_says_what_is_kept_and_the_next_run_goes_on(home):
    measure = (
        "import time\nfrom redlib.store import Store\n"
        "table = Store(session.folder / 'store/01/t', {'k': 1})\n"
        "def slow(unit):\n"
        "    if unit == 2 and not (session.folder / 'go').exists():\n"
        "        time.sleep(300)\n"
        "    return pd.DataFrame({'unit': [unit]})\n"
        "units = table.compute(range(4), slow)['unit'].tolist()\n"
        "session.finish(units=units)"
    )
    # An embedded model, as torch is imported to look at any other.
    file = project(home, {"01": ["seed = 0", measure]}, model=Params().model)
    command = [sys.executable, "-m", "redlib", "run", str(file), "--only", "01"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background inherits that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    parts = home / "runs/one/store/01/t"
    while not (parts / "1.parquet").exists() and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.startswith("redlib: interrupted in notebook 01 of run 'one'; kept: ")
    assert "2 part files" in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert sorted(p.name for p in parts.iterdir()) == ["0.parquet", "1.parquet", "key.json"]
    (home / "runs/one/go").touch()
    written = (parts / "0.parquet").stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert (parts / "0.parquet").stat().st_mtime_ns == written
    result = json.loads((home / "runs/one/results/01.json").read_text())
    assert result == {"units": [0, 1, 2, 3]}


def test_termination_ends_the_notebooks_too(home, monkeypatch):
    """A cluster's scheduler and a container that stops send SIGTERM, to the first process alone."""
    file, told = project(home, {"01": ["seed = 0"]}), home / "child"
    code = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", code])

    def terminate(*_):
        if told.exists() and told.read_text():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(batch, "_tick", terminate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RedlibError, match="interrupted in notebook 01 of run 'one'"):
        batch.run(file, only=["01"])
    assert _gone(int(told.read_text()))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_codebook_of_other_parameters_is_not_pruned_with(home, monkeypatch):
    file = project(home, {"05": ["seed = 0"], "06": ["seed = 0"]}, tau_prob=0.3)
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", ""])
    batch.run(file, only=["06"])  # there is none: 06 builds it
    folder = home / "runs/one"
    (folder / "codebook.safetensors").touch()
    one = load_file(file)
    made = {name: getattr(one, name) for name in BUILDS}
    for note, words in (
        (None, "built with model = 'unknown', now .*: --only 05,06"),
        (made | {"tau_prob": 0.1}, r"built with tau_prob = 0\.1, now 0\.3; run 05 with them"),
    ):
        if note is not None:
            (folder / "codebook.json").write_text(json.dumps(note))
        with pytest.raises(RedlibError, match=words):
            batch.run(file, only=["06"])
        batch.run(file, only=["05", "06"])
    (folder / "codebook.json").write_text(json.dumps(made))
    batch.run(file, only=["06"])


def test_force_throws_stored_tables_away(home, monkeypatch):
    file = project(home, {"01": ["seed = 0"]})
    old = home / "runs/one/store/01/t"
    other = home / "runs/one/store/02/t"
    for folder in (old, other):
        folder.mkdir(parents=True)
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", ""])
    batch.run(file, only=["01"])
    assert old.is_dir()
    batch.run(file, only=["01"], force=True)
    assert not old.exists()
    assert other.is_dir()


@pytest.mark.parametrize("tries", [2, 3])
def test_a_kernel_that_never_answers_is_started_once_more(home, monkeypatch, tries):
    """As papermill tells it; the `tries`-th start is the first that works."""
    file, count = project(home, {"01": ["seed = 0"]}), home / "starts"
    code = (
        f"path = {str(count)!r}\nn = len(open(path, 'a+').read()) if False else 0\n"
        "open(path, 'a').write('x')\n"
        f"if len(open(path).read()) < {tries}:\n"
        '    raise RuntimeError("Kernel didn\'t respond in 60 seconds")'
    )
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", code])
    if tries == 2:
        batch.run(file, only=["01"])
    else:
        with pytest.raises(batch.NotebookFailed, match="without a message; see .*01.log"):
            batch.run(file, only=["01"])
    assert count.read_text() == "xx"


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A published run of three notebooks, two at a time, with a model that they do not name. Each
    notes when it began and ended; 04 and 05 wait for each other, and 06 builds on 05."""
    folder = tmp_path_factory.mktemp("beside")
    meeting = (
        "import time\nstart = time.time()\n(session.folder / {0!r}).touch()\n"
        "while not (session.folder / {1!r}).exists() and time.time() < start + 200:\n"
        "    time.sleep(0.05)\nsession.finish(start=start, end=time.time())"
    )
    met = {"04": ("04", "05"), "05": ("05", "04"), "06": ("06", "05")}
    cells = {number: [PARAMETERS, meeting.format(*names)] for number, names in met.items()}
    cells["06"].insert(1, TABLE)
    file = project(folder, cells, publish=True)
    sources = {path: path.read_bytes() for path in (folder / "notebooks").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLIB_ROOT", str(folder))
        patch.delenv("REDLIB_RUNS", raising=False)
        batch.run(file, only=list(cells), jobs=2)
    found = [json.loads((folder / f"runs/one/results/{n}.json").read_text()) for n in cells]
    return SimpleNamespace(folder=folder, found=found, sources=sources)


def test_notebooks_run_side_by_side_and_after_what_they_build_on(beside):
    four, five, six = beside.found
    assert max(four["start"], five["start"]) < min(four["end"], five["end"])
    assert five["end"] < six["start"]


def test_the_longest_of_all_runs_begin_first():
    jobs = [SimpleNamespace(run=run, number=number)
            for run, numbers in (("a", ("01", "02", "05")), ("b", ("03", "04", "05")))
            for number in numbers]  # fmt: skip
    found = [(job.number, job.run) for job in batch._longest_first(jobs)]
    assert found[:3] == [("05", "a"), ("05", "b"), ("04", "b")]
    assert found[-2:] == [("02", "a"), ("03", "b")]


def test_notebooks_keep_the_outputs_of_their_own_model(beside):
    assert (beside.folder / "figures" / "one" / "scores.csv").is_file()
    assert len(beside.sources) == 3
    assert all(path.read_bytes() == before for path, before in beside.sources.items())


def test_less_than_one_at_a_time_is_refused(home):
    file = project(home, {"01": ["seed = 0"]})
    with pytest.raises(RedlibError, match="--jobs: must be 1 or more; got 0"):
        batch.run(file, jobs=0)


def test_a_failure_stops_the_notebooks_beside_it(home):
    noted = "import os\n(session.folder / 'pid').write_text(str(os.getpid()))\n"
    slow = f"{noted}import time\ntime.sleep(300)"
    wait = "import time\nwhile not (session.folder / 'pid').exists():\n    time.sleep(0.1)\n1 / 0"
    file = project(home, {"01": ["seed = 0", wait], "02": ["seed = 0", slow]})
    start = time.monotonic()
    with pytest.raises(batch.NotebookFailed, match="ZeroDivisionError: division by zero; see"):
        batch.run(file, only=["01", "02"], jobs=2)
    assert time.monotonic() - start < 200
    assert not list((home / "runs/one/state").glob("*.json"))
    assert _gone(int((home / "runs/one/pid").read_text()))


def _gone(process: int) -> bool:
    """Whether a process ends within a minute: a busy machine takes its time to end a kernel."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("where", ["calibration_seconds", "_finish"])
def test_an_interrupt_between_notebooks_says_what_is_kept(home, monkeypatch, where):
    def interrupt(*_):
        raise KeyboardInterrupt

    file = project(home, {"01": ["seed = 0"]})
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", ""])
    monkeypatch.setattr(batch, where, interrupt)
    with pytest.raises(RedlibError, match="interrupted in notebook 01 of run 'one'; kept: no fin"):
        batch.run(file, only=["01"])


def test_what_succeeded_is_noted_before_a_failure_is_told(home, monkeypatch):
    file = project(home, {"01": ["seed = 0"], "02": ["seed = 0"]})
    ends = {"01": "raise SystemExit(1)", "02": ""}
    monkeypatch.setattr(batch, "_command", lambda job: [sys.executable, "-c", ends[job.number]])
    monkeypatch.setattr(batch.time, "sleep", lambda _, real=time.sleep: real(1))
    with pytest.raises(batch.NotebookFailed):
        batch.run(file, only=["01", "02"], jobs=2)
    assert [path.name for path in (home / "runs/one/state").glob("*.json")] == ["02.json"]


def test_threads_follow_from_the_machine_and_the_users_wish_alone(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, embedded, threads in ((1, True, 1), (2, True, 1), (8, True, 2), (8, False, 8)):
        monkeypatch.setattr(batch, "cores", lambda cores=cores: cores)
        assert batch._threads(embedded) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert batch._threads(True) == batch._threads(False) == 3


def test_workers_take_their_share_of_the_cores(home, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(batch, "cores", lambda: 8)
    monkeypatch.setattr(batch.params, "embedded", lambda: {str(home / "model"): home / "model"})
    seen = []
    monkeypatch.setattr(batch, "_run_all", lambda waiting, jobs, *_: seen.append(jobs))
    monkeypatch.setattr(batch, "draw_pages", lambda _: None)
    for workers in (1, 2, 3):
        file = home / "params" / "one.yaml"
        if not file.exists():
            file = project(home, {"01": ["seed = 0"]})
        file.write_text(f"model: {home / 'model'}\nworkers: {workers}\n")
        batch.run(file, only=["01"])
    assert seen == [4, 2, 1], "2 threads a notebook or worker"


def test_where_a_run_is_computed_is_no_input(home):
    file = project(home, {"01": ["seed = 0"]})
    (one,) = batch.params.load_set(file)
    before = batch._inputs(one, "01", home / "notebooks")
    for update in ({"workers": 2}, {"scheduler": "tcp://node1:8786"}, {"notebooks": ["01"]}):
        moved = one.model_copy(update=update)
        assert batch._inputs(moved, "01", home / "notebooks") == before


def test_other_data_of_the_same_name_are_another_input(home):
    folder = home / "data"
    file = project(home, {"04": ["seed = 0"], "05": ["seed = 0"], "06": ["seed = 0"]},
                   data="real", preset="paper", data_dir=str(folder))  # fmt: skip
    (one,) = batch.params.load_set(file)
    rows = {name: folder / name / "data" for name in ("VQAv2", "POPE")}
    for place, split in zip(rows.values(), ("validation", "test"), strict=True):
        place.mkdir(parents=True)
        (place / f"{split}-00000-of-00001.parquet").write_bytes(b"old")
    (folder / "train2014").mkdir()

    def hashes():
        return [batch._inputs(one, number, home / "notebooks") for number in ("04", "06")]

    before = hashes()
    assert hashes() == before
    (parquet,) = rows["POPE"].iterdir()
    os.utime(parquet, (1, 1))
    assert [a == b for a, b in zip(hashes(), before, strict=True)] == [True, False]
    before = hashes()
    (parquet,) = rows["VQAv2"].iterdir()
    parquet.write_bytes(b"newer")
    assert [a == b for a, b in zip(hashes(), before, strict=True)] == [False, False]
    before = hashes()
    os.utime(folder / "train2014", (1, 1))
    assert [a == b for a, b in zip(hashes(), before, strict=True)] == [True, False]


def test_what_would_stop_06_is_found_before_the_first_notebook(home, monkeypatch):
    asked = []

    def ready(metric):
        asked.append(metric)
        raise RedlibError("SPICE needs Java")

    monkeypatch.setattr("redlib.bench.coco.ready", ready)
    shown = ("pope", "mmbench", "seed", "mme", "realworldqa", "nocaps", "flickr", "image-dc")
    (home / "data" / "train2014").mkdir(parents=True)
    file = project(home, {"01": ["seed = 0"]}, data="real", preset="paper",
                   data_dir=str(home / "data"))  # fmt: skip
    for source in (VQAV2, COCO, *(BENCHMARKS[name] for name in shown)):
        with pytest.raises(RedlibError, match=f"no folder '.*/data/{source.folder}' for "):
            batch.run(file)
        rows = home / "data" / source.folder / source.files.replace("*", "00000-of-00001.parquet")
        rows.parent.mkdir(parents=True)
        rows.write_bytes(b"looked at later")
    assert asked == []
    with pytest.raises(RedlibError, match="^SPICE needs Java$"):
        batch.run(file)
    assert asked == ["SPICE"] and not (home / "runs").exists()
    (one,) = batch.params.load_set(file)
    batch._check_reach(one, ["05", "07"])
    batch._check_reach(one.model_copy(update={"data": "tabletop"}), ["06"])
    assert asked == ["SPICE"], "of no other notebook, and of no scene"
    several = one.model_copy(update={"model": "tiny-llava-onevision"})
    with pytest.raises(RedlibError, match="data/Mantis-Eval' for Mantis-Eval; copy it there with"):
        batch._check_given(several, ["06"])
    shutil.rmtree(home / "data" / "coco-karpathy")
    batch._check_given(one, ["07"])


def test_progress_of_the_loop_that_a_cell_is_in(tmp_path):
    bars = tmp_path / "04.bars"
    assert batch._progress(bars) == ""
    first = "\rimages:  25%|##5       | 2/8 [00:02<00:06,  1.02s/image, 2 workers]"
    bars.write_text("some warning\n" + first)
    assert batch._progress(bars) == ", images 2 of 8 at 1.02s/image, 00:06 left"
    with bars.open("a") as file:
        file.write("\r" + " " * 70 + "\r")
    assert batch._progress(bars) == "", "the loop has ended"


DRAWN = {
    "name": "words", "kind": "figure", "notebook": "01", "order": 1, "paper_item": "", "title": "T",
    "caption": "C", "reading": "R", "alt": "A", "versions": {}, "parameters": {"model": "m"},
    "width": 1, "height": 1,
}  # fmt: skip


@pytest.fixture
def drawn(home, monkeypatch):
    """The parameter file of a run whose notebook 01 leaves a figure, and its folder of figures."""
    place = home / "runs/one/figures"
    code = (
        f"import pathlib\nplace = pathlib.Path({str(place)!r})\n"
        "place.mkdir(parents=True, exist_ok=True)\n"
        "[(place / f'words{end}').touch() for end in ('.png', '.csv')]\n"
        f"(place / 'words.json').write_text({json.dumps(DRAWN)!r})"
    )
    monkeypatch.setattr(batch, "_command", lambda *_: [sys.executable, "-c", code])
    return project(home, {"01": ["seed = 0"], "02": ["seed = 0"]}), place


@pytest.mark.parametrize("lost", ["words.png", "words.csv", "words.json"])
def test_a_notebook_whose_figure_is_lost_is_run_again(drawn, lost):
    file, place = drawn
    for again in (r"\d+ s", "unchanged", r"\d+ s"):
        if again != "unchanged" and place.exists():
            (place / lost).unlink()
        said = []
        batch.run(file, only=["01"], say=said.append)
        assert re.fullmatch(f"01_attention_background: {again}", said[0])
        assert (place / lost).is_file()


def test_a_page_of_no_run_or_without_a_picture_is_refused(drawn):
    file, place = drawn
    with pytest.raises(RedlibError, match=r"figures: no results yet; `redlib run .*one\.yaml`"):
        batch.draw_pages(file)
    assert not place.exists()
    batch.run(file, only=["01"])
    (place / "words.png").unlink()
    with pytest.raises(RedlibError, match=r"words\.png: no such file; run its notebook again"):
        batch.draw_pages(file)


@pytest.mark.parametrize("text", ["[]", "3", "{}", "", "[" * 100_000])
def test_a_damaged_note_of_a_finished_notebook(drawn, text):
    file, place = drawn
    batch.run(file, only=["01"])
    state = place.parent / "state" / "01.json"
    state.write_text(text)
    for only in ("01", "02"):
        with pytest.raises(RedlibError, match=r"01\.json: damaged; delete it and run again"):
            batch.run(file, only=[only])


@pytest.mark.parametrize("name", ["image", "games_dir", "data_dir", "codebook", "model"])
def test_a_long_path_is_no_file(home, name):
    file = project(home, {"01": ["seed = 0"]}, **{name: "a" * 5_000})
    with pytest.raises(RedlibError, match="cannot be looked up: File name too long"):
        batch.run(file, only=["01"])
    assert not (home / "runs").exists()


def test_calibration_takes_a_moment():
    assert 0 < batch.calibration_seconds() < 10
