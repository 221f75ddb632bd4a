"""The way from the hub into the cache, and back out of it without a connection.

The hub is a server of this machine that answers the three requests which huggingface_hub makes for
a data set: its commit, its files, and each file. What runs against it is a process of its own, as
addresses and caches are fixed when the libraries are imported.
"""

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import miniature
import photos
import pytest
from huggingface_hub.utils import httpx

from redlib.data import VQAV2, reading, several
from redlib.errors import RedlibError
from redlib.params import Params

COMMIT = "a" * 40
PICTURES = photos.jpegs(6)
TAKE = """
from redlib.data import VQAV2, reading
from redlib.errors import RedlibError

try:
    print("took", *reading.column(reading.table(VQAV2, None, columns=()), "question_id"))
    print(reading.revision(VQAV2, None))
except RedlibError as error:
    print("redlib:", error)
"""
FILMS = """
from redlib.data import several
from redlib.errors import RedlibError
from redlib.params import Params

try:
    for one in several.shots("film", 40, Params(data="real")):
        print("film", one.id, one.film, len(one.images))
except RedlibError as error:
    print("redlib:", error)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return photos.vqav2(tmp_path_factory.mktemp("hub"), PICTURES)


def serve(folder, name, asked, gated=(), torn=()):
    """A hub that holds `name`, noting each file that is asked for; of `gated` ones it holds only
    the names. torn: endings; for each, the first file of that ending is cut off once, amid its
    body. All addresses that were asked for are in its `paths`."""
    torn = list(torn)

    class Hub(BaseHTTPRequestHandler):
        def reset(self, data):
            """A part of a file, and then no end of the connection but its reset."""
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            linger = struct.pack("ii", 1, 0)  # closed with nothing awaited, TCP sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # The server shuts a connection down before it closes it, which would end it in order.
            self.server.close_request(self.connection)
            self.close_connection = True

        def answer(self, code, body=b"", **headers):
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            self.server.paths.append(path)
            if path.startswith(f"/api/datasets/{name}/tree/"):
                files = [file for file in folder.rglob("*") if file.is_file()]
                listed = [
                    {"type": "file", "path": file.relative_to(folder).as_posix(), "oid": "b" * 40,
                     "size": file.stat().st_size} for file in files
                ]  # fmt: skip
                self.answer(200, json.dumps(listed).encode())
            elif path.startswith(f"/api/datasets/{name}"):
                told = {"id": name, "sha": COMMIT, "siblings": [], "tags": []}
                self.answer(200, json.dumps(told).encode())
            elif path.startswith(f"/datasets/{name}/resolve/"):
                if name in gated:
                    return self.answer(403, **{"X-Error-Code": "GatedRepo"})
                file = folder / path.split("/", 6)[6]
                if not file.is_file():
                    return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
                data = file.read_bytes()
                if self.command == "GET":
                    asked.append(file.relative_to(folder).as_posix())
                    if file.suffix in torn:
                        torn.remove(file.suffix)
                        return self.reset(data)
                tag = hashlib.sha256(data).hexdigest()
                self.answer(200, data, ETag=f'"{tag}"', **{"X-Repo-Commit": COMMIT})
            else:
                self.answer(401, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def take(home, port, script=TAKE, **environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    known |= {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}", **environment}
    known |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=known, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", ["lmms-lab-encoder/VQAv2", "lmms-lab/VQAv2"])
def test_one_split_is_fetched_under_either_name_and_found_again_offline(repository, tmp_path, name):
    asked = []
    server = serve(repository, name, asked)
    out = take(tmp_path, server.server_port)
    server.shutdown()
    server.server_close()
    assert f"in 2 files from {name}; datasets unpacks them" in out
    assert set(asked) == {"README.md", "data/validation-00000-of-00001.parquet"}
    taken, edition = out.splitlines()[-2:]
    assert edition == f"{name}@{COMMIT}"
    assert taken.split() == ["took", *(str(row["question_id"]) for row in photos.asked(PICTURES))]
    again = take(tmp_path, server.server_port, HF_DATASETS_OFFLINE="1")
    assert again.splitlines() == [taken, edition], "nothing is announced, and the rows are the same"


def test_what_was_fetched_under_the_former_name_is_not_fetched_again(repository, tmp_path):
    """The hub answers for both names, as it does where an organisation was renamed."""
    for name, wanted in (("lmms-lab/VQAv2", 2), ("lmms-lab", 0)):
        asked = []
        server = serve(repository, name, asked)
        out = take(tmp_path, server.server_port)
        server.shutdown()
        server.server_close()
        assert len(asked) == wanted and out.splitlines()[-1] == f"lmms-lab/VQAv2@{COMMIT}"


def test_a_gated_data_set_says_which_step_to_take(repository, tmp_path):
    name = "lmms-lab/VQAv2"
    server = serve(repository, name, [], gated=[name])
    out = take(tmp_path, server.server_port)
    server.shutdown()
    assert f"redlib: VQAv2 validation: {name} is gated: accept its terms at https://" in out
    assert "hf auth login" in out


def test_a_connection_lost_amid_a_file_is_told_and_the_same_command_goes_on(repository, tmp_path):
    name = "lmms-lab-encoder/VQAv2"
    asked = []
    server = serve(repository, name, asked, torn=[".parquet"])
    out = take(tmp_path, server.server_port)
    (told,) = [line for line in out.splitlines() if line.startswith("redlib:")]
    words = f"redlib: VQAv2 validation: {name}: the connection to the hub was lost (ReadError: "
    assert told.startswith(words) and "run the same command again, which goes on" in told
    assert not any("/lmms-lab/" in path for path in server.paths), "fetched under the other name"
    asked.clear()
    again = take(tmp_path, server.server_port)
    server.shutdown()
    server.server_close()
    taken, edition = again.splitlines()[-2:]
    assert taken.startswith("took ") and edition == f"{name}@{COMMIT}"
    assert "data/validation-00000-of-00001.parquet" in asked


@pytest.mark.parametrize("kind", [httpx.RemoteProtocolError, httpx.ProxyError, httpx.ReadTimeout])
def test_whatever_breaks_a_connection_is_told(monkeypatch, kind):
    def broken(*_, **__):
        raise kind("a reason\nand more")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    words = rf"the connection to the hub was lost \({kind.__name__}: a reason\); "
    with pytest.raises(RedlibError, match=f"^VQAv2 validation: lmms-lab-encoder/VQAv2: {words}"):
        reading.table(VQAV2, None, columns=())
    with pytest.raises(RedlibError, match=f"^MVBench: vlnqa/1.mp4: {words}"):
        several._film("vlnqa/1.mp4", Params(data="real"))


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError])
def test_a_film_that_breaks_off_is_not_left_out(monkeypatch, kind):
    """Whichever of the hub's two ways of sending it is taken: these are the errors of Xet."""

    def broken(*_, **__):
        raise kind("a reason")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(RedlibError, match=rf"1.mp4: .* was lost \({kind.__name__}: a reason\); "):
        several._film("vlnqa/1.mp4", Params(data="real"))


def test_films_are_fetched_one_by_one_from_their_branch(tmp_path):
    """One that the hub lacks, that of a whole subtask, and one amid which the connection breaks."""
    name = "OpenGVLab/MVBench"
    folder = miniature.mvbench(tmp_path / "hub", each=2)
    for file in folder.rglob("*.mp4"):  # of files with the same bytes the cache fetches one
        own = file.name.encode()
        file.write_bytes(file.read_bytes() + struct.pack(">I4s", 8 + len(own), b"free") + own)
    asked = []
    server = serve(folder, name, asked, torn=[".mp4"])
    out = take(tmp_path / "home", server.server_port, FILMS)
    (torn,) = [file for file in asked if file.endswith(".mp4")]
    words = f"redlib: MVBench: {torn}: the connection to the hub was lost (ReadError: "
    assert out.splitlines()[-1].startswith(words) and "film/" not in out
    asked.clear()
    again = take(tmp_path / "home", server.server_port, FILMS)
    server.shutdown()
    server.server_close()
    assert "without its subtask fine_grained_pose, since the first film drawn of it" in again
    assert "nturgbd_convert/" in again and "(RemoteEntryNotFoundError)" in again
    shown = [line.split() for line in again.splitlines() if line.startswith("film film/")]
    assert len({id for _, id, *_ in shown}) == len(shown) == 19
    below = [file.partition(f"/snapshots/{COMMIT}/")[2] for *_, file, _ in shown]
    assert sorted(below) == sorted(asked), "each once, and no questions for a second time"
    assert torn in asked and {frames for *_, frames in shown} == {"16"}
    fetched = [path for path in server.paths if path.endswith(".mp4")]
    assert all(path.startswith(f"/datasets/{name}/resolve/video/") for path in fetched)
