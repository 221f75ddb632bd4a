"""The way from the hub into the cache, and back out of it without a connection.

The hub is a server of this machine that answers the three requests which huggingface_hub makes for
a data set: its commit, its files, and each file. What runs against it is a process of its own, as
addresses and caches are fixed when the libraries are imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import photos
import pytest

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


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return photos.vqav2(tmp_path_factory.mktemp("hub"), PICTURES)


def serve(folder, name, asked, gated=()):
    """A hub that holds `name`, noting each file that is asked for; of `gated` ones it holds only
    the names."""

    class Hub(BaseHTTPRequestHandler):
        def answer(self, code, body=b"", **headers):
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
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
                if self.command == "GET":
                    asked.append(file.relative_to(folder).as_posix())
                data = file.read_bytes()
                tag = hashlib.sha256(data).hexdigest()
                self.answer(200, data, ETag=f'"{tag}"', **{"X-Repo-Commit": COMMIT})
            else:
                self.answer(401, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def take(home, port, **environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    known |= {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}", **environment}
    known |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TAKE], env=known, capture_output=True, text=True, check=True
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
