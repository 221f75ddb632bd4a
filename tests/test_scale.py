"""Many processes on one store: the rows of one process, whoever is killed, whoever is beside."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torture
from conftest import PROMPT, random_image, save_tiny_llava
from distributed import KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError

from redlib import load, models, probe, scale
from redlib.bench import scale_out
from redlib.errors import RedlibError
from redlib.scale import Workers
from redlib.store import Store, _make_there

KEY = {"kind": "light"}


@pytest.fixture(scope="module")
def two():
    """Two processes of this machine, shared by the tests below."""
    workers = Workers(2)
    workers.start()
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The files of a run in one process."""
    folder = tmp_path_factory.mktemp("intact")
    torture.run(folder, "light")
    return torture.files(folder)


def noted(folder, before=lambda unit: None):
    """A measurement that leaves a note; defined here so that it travels by value."""
    measure, note = torture.light(), torture.note

    def call(unit):
        note(folder, unit)
        before(unit)
        return measure(unit)

    return call


def test_two_workers_make_the_files_of_one_process(two, tmp_path, intact):
    store = Store(tmp_path / "store", KEY, workers=two)
    table = store.compute(torture.UNITS, noted(tmp_path), describe="images")
    assert torture.files(tmp_path) == intact
    assert table["image"].unique().tolist() == torture.UNITS
    assert sorted(torture.begun(tmp_path)) == torture.UNITS
    pids = {line.split()[1] for line in (tmp_path / "begun").read_text().splitlines()}
    assert len(pids) == 2 and str(os.getpid()) not in pids


def test_a_worker_killed_in_an_image_costs_that_image(two, tmp_path, intact):
    marker = tmp_path / "killed"

    def die_once(unit):
        if unit == "image-3" and not marker.exists():
            marker.touch()
            psutil.Process().kill()

    store = Store(tmp_path / "store", KEY, workers=two)
    store.compute(torture.UNITS, noted(tmp_path, die_once))
    assert torture.files(tmp_path) == intact
    assert sorted(torture.begun(tmp_path)) == sorted([*torture.UNITS, "image-3"])


def test_workers_of_a_running_scheduler(two, tmp_path, intact):
    joined = Workers(scheduler=two.start().scheduler.address)
    store = Store(tmp_path / "store", KEY, workers=joined)
    store.compute(torture.UNITS, noted(tmp_path))
    joined.close()
    assert torture.files(tmp_path) == intact
    assert two.start().status == "running"


def test_what_a_unit_raises_arrives_and_the_rest_is_kept(two, tmp_path):
    def refuse(unit):
        if unit == "image-2":
            until = time.monotonic() + 30
            while not store_has_first() and time.monotonic() < until:
                time.sleep(0.02)
            raise RedlibError("keep must be from 1 to 576;\ngot 0")

    def store_has_first():
        return any((tmp_path / "store").rglob("image-0*.parquet"))

    store = Store(tmp_path / "store", KEY, workers=two)
    with pytest.raises(RedlibError, match=r"^keep must be from 1 to 576; got 0$"):
        store.compute(torture.UNITS, noted(tmp_path, refuse))
    assert not store.has("image-2")
    assert store.has("image-0")
    store.compute(torture.UNITS, noted(tmp_path))
    assert set(torture.begun(tmp_path)) == set(torture.UNITS)


def test_the_probe_of_a_model_that_is_loaded_once_a_worker(two, tmp_path, tiny_folder):
    vlm = load(str(tiny_folder), device="cpu", dtype="float32")
    images = {number: random_image(number) for number in range(4)}

    def measure(number):
        tokens = vlm.encode([images[number]]).tokens[0]
        frame = probe.single(vlm, tokens, range(25), prompt=PROMPT, top=5)
        loads = models._loaded.cache_info().misses
        (tmp_path / f"loads-{number}-{os.getpid()}").write_text(str(loads))
        return frame

    one = Store(tmp_path / "one" / "store", KEY)
    several = Store(tmp_path / "several" / "store", KEY, workers=two)
    one.compute(images, measure)
    several.compute(images, measure)
    assert torture.files(tmp_path / "one") == torture.files(tmp_path / "several")
    loads = {
        p.read_text() for p in tmp_path.glob("loads-*") if not p.name.endswith(f"{os.getpid()}")
    }
    assert loads == {"1"}


def test_a_model_travels_as_its_name(tmp_path):
    from distributed.protocol import pickle

    save_tiny_llava(tmp_path / "model", seed=1)
    vlm = load(str(tmp_path / "model"), device="cpu", dtype="float64", pad_token_id=7)
    sent = pickle.dumps(vlm)
    weights = sum(p.nbytes for p in vlm.model.parameters())
    assert len(sent) < weights / 20
    found = pickle.loads(sent)
    assert (found.revision, found.dtype, found.wish) == (vlm.revision, vlm.dtype, "cpu")
    assert found.pad.equal(vlm.pad)
    save_tiny_llava(tmp_path / "model", seed=2)
    models._loaded.cache_clear()
    with pytest.raises(RedlibError, match="has other weights"):
        pickle.loads(sent)
    models._loaded.cache_clear()


def test_a_worker_of_another_version_is_refused():
    from distributed.protocol import pickle

    with pytest.raises(RedlibError, match="runs another version of redlib"):
        scale._call(pickle.dumps((None, "older", len)), "image")


def test_a_folder_that_a_worker_does_not_see(tmp_path):
    with pytest.raises(RedlibError, match="not seen from the worker on .*; all machines need to"):
        _make_there(tmp_path / "elsewhere", KEY, torture.light(), "image-0")
    assert not (tmp_path / "elsewhere").exists()


def test_a_scheduler_that_is_none(monkeypatch):
    monkeypatch.setattr(scale, "PATIENCE", 1)
    with pytest.raises(RedlibError, match=r"scheduler: nothing answers at 'tcp://127.0.0.1:9'"):
        Workers(scheduler="tcp://127.0.0.1:9").start()


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"", "nothing answers at"), (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be joined")],
)
def test_what_listens_but_is_no_scheduler(monkeypatch, said: bytes, words: str):
    """It takes the connection, and then says nothing, or something else."""
    monkeypatch.setattr(scale, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def answer():
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    taken.append(server.accept()[0])
                    taken[-1].sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RedlibError, match=f"scheduler: .*{words}"):
            Workers(scheduler=address).start()
        assert taken
        for each in taken:
            each.close()


@pytest.mark.parametrize(
    ("probes", "bare", "verdict"),
    [
        ([1.9, 1.7, 1.2], [1.9, 1.9, 1.85], True),
        ([1.9, 1.6, 1.2], [1.9, 1.9, 1.85], False),
        ([1.9, 1.9, 1.9], [1.9, 1.8, 1.8], None),
        ([1.9, 0.5, 0.2], [3.3, 1.9, 1.9], None),
    ],
)
def test_a_speed_up_is_judged_where_bare_processes_have_room(probes, bare, verdict):
    row = scale_out.judged(probes, bare)
    assert row["pass"] is verdict
    assert (row["value"], row["low"], row["high"]) == (probes[1], probes[2], probes[0])
    assert (row["n"], row["bar"], row["matmul"]) == (3, 1.7, bare[1])


def test_one_worker_needs_no_dask(tmp_path):
    program = (
        "import sys\nimport pandas as pd\nfrom redlib.scale import Workers\n"
        "from redlib.store import Store\n"
        f"store = Store({str(tmp_path)!r}, {{'k': 1}}, workers=Workers())\n"
        "store.compute([1], lambda unit: pd.DataFrame({'unit': [unit]}))\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=torture.PATIENCE)


def test_three_kills_change_no_byte_and_cost_an_image_at_most(tmp_path):
    found = list(torture.torture(tmp_path, 3, "light"))
    assert all(kill.same for kill in found), found
    assert all(kill.repeated <= 1 for kill in found), found
    assert any(kill.kept < len(torture.UNITS) for kill in found), "no kill came in time"


def test_a_kill_of_the_probe_changes_no_byte(tmp_path):
    (kill,) = torture.torture(tmp_path, 1, "probe")
    assert kill.same and kill.repeated <= 1, kill


def test_two_runs_at_once_share_the_images(tmp_path, intact):
    other = torture.start(tmp_path, "light")
    while not torture.begun(tmp_path):
        assert other.poll() is None
        threading.Event().wait(0.005)
    torture.run(tmp_path, "light")
    assert other.wait(timeout=torture.PATIENCE) == 0
    assert sorted(torture.begun(tmp_path)) == torture.UNITS
    assert torture.files(tmp_path) == intact


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FutureCancelledError("image-0", "gone"), "connection to tcp://node1:8786 was lost; what"),
        (CommClosedError("in <TCP (closed)>"), "connection to tcp://node1:8786 was lost; what"),
        (KilledWorker("image-0", None, 3), "workers: one after another died, with 'image-0' in"),
    ],
)
def test_what_dask_gives_up_is_told_in_one_line(monkeypatch, error, words):
    class Lost:
        def result(self):
            raise error

    client = SimpleNamespace(
        submit=lambda *_, **__: None,
        map=lambda *_, **__: [Lost()],
        scheduler=SimpleNamespace(address="tcp://node1:8786"),
        loop=None,
        status="closed",
    )
    workers = Workers(2)
    monkeypatch.setattr(workers, "start", lambda: client)
    monkeypatch.setattr("distributed.as_completed", lambda futures, loop: futures)
    with pytest.raises(RedlibError, match=words):
        list(workers.each(len, ["image-0"]))
