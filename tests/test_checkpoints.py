"""Checkpoints of the Hugging Face hub: from the cache of a download, and all that can go wrong.

The hub here is a server of this test that answers as the real one does where it refuses; what asks
it is the real client.
"""

import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import real
import torch
from huggingface_hub import constants
from transformers import AutoModelForImageTextToText

import redlib
from redlib import batch
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.hub import read_config
from redlib.models import load
from redlib.notebook import Session
from redlib.params import Params
from redlib.store import Store

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache in which LLaVA-1.5 lies, on a machine that is offline."""
    folder = tmp_path / "cache"
    real.publish(folder, real.LLAVA, commit=COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def files(cache: Path, commit: str) -> Path:
    return cache / "models--llava-hf--llava-1.5-7b-hf" / "snapshots" / commit


def refused(**arguments) -> str:
    with pytest.raises(RedlibError) as error:
        load(arguments.pop("name", real.LLAVA), device="cpu", **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_commit_is_the_revision(cache):
    for asked in (None, "main", COMMIT):
        vlm = load(real.LLAVA, device="cpu", revision=asked)
        assert (vlm.name, vlm.revision) == (real.LLAVA, COMMIT)
    assert vlm.__reduce__()[1][0] == real.LLAVA
    assert f"hf download {real.LLAVA} --revision {OTHER}" in refused(revision=OTHER)


def test_the_revision_is_part_of_every_table(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    session = Session("02", Params(model=real.LLAVA, device="cpu", dtype="float16"))
    store = session.store("words")
    assert (store.key["revision"], store.key["dtype"]) == (COMMIT, "float16")
    assert "quantization" not in store.key
    store.compute(["one"], lambda name: __import__("pandas").DataFrame({"image": [name]}))
    with pytest.raises(RedlibError, match=f"made with revision = '?{COMMIT[:8]}") as error:
        Store(store.folder, store.key | {"revision": OTHER})
    assert "\n" not in str(error.value)
    assert session._versions()["checkpoint"] == COMMIT[:12]


def test_a_codebook_of_another_commit_is_refused(cache):
    def accepts(model, revision):
        width = model.config.text_config.hidden_size
        book = Codebook(torch.ones(2, width), "ab", range(2), real.LLAVA, revision,
                        Criteria.paper())  # fmt: skip
        try:
            with redlib.pruned(model, "codebook", keep=1, codebook=book):
                return True
        except RedlibError as error:
            assert "of another revision: tokens" in str(error) and "\n" not in str(error)
            return False

    model = AutoModelForImageTextToText.from_pretrained(real.LLAVA)
    assert accepts(model, COMMIT) and not accepts(model, OTHER)
    shutil.copytree(files(cache, COMMIT), files(cache, OTHER))
    assert accepts(model, OTHER), "a stock model keeps no commit: it may be either"
    shutil.rmtree(cache)
    assert accepts(model, OTHER), "from a cache elsewhere"


def test_nothing_in_the_cache_and_no_network(cache):
    told = refused(name=real.NEXT)
    assert "is not, or not whole, in this machine's cache, and HF_HUB_OFFLINE is set" in told
    assert f"hf download {real.NEXT}" in told
    with pytest.raises(RedlibError, match="HF_HUB_OFFLINE is set"):
        read_config(real.NEXT)
    with pytest.raises(RedlibError, match="HF_HUB_OFFLINE is set"):
        batch._check_reach(Params(model=real.NEXT))


def test_a_download_that_broke_off(cache):
    weights = files(cache, COMMIT) / "model-00002-of-00007.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    told = refused()
    assert "model-00002-of-00007.safetensors' is truncated or damaged" in told
    assert f"`hf download {real.LLAVA} --force-download`" in told
    weights.unlink()
    assert "model-00002-of-00007.safetensors' is missing, one of 7 files" in refused()


def test_a_copied_folder_that_lacks_a_file(tmp_path):
    folder = real.save(tmp_path / "model", real.LLAVA)
    (folder / "model-00003-of-00007.safetensors").unlink()
    with pytest.raises(RedlibError, match="00003-of-00007.safetensors' is missing, one of 7 files"):
        batch._check_given(Params(model=str(folder)))
    assert "model-00003-of-00007.safetensors' is missing" in refused(name=str(folder))
    for odd in ("[]", '{"weight_map": []}', "[" * 100_000):
        (folder / "model.safetensors.index.json").write_text(odd)
        with pytest.raises(RedlibError, match="index.json' is truncated or damaged"):
            batch._check_given(Params(model=str(folder)))


class Hub(BaseHTTPRequestHandler):
    """Refuses by the name that is asked for, as the hub does."""

    def do_GET(self):
        for word, (status, code) in {
            "gated": (403, "GatedRepo"),
            "private": (401, "RepoNotFound"),
            "branch": (404, "RevisionNotFound"),
        }.items():
            if word in self.path:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Lets the client ask the hub at a port of this machine, with nothing in its cache."""

    def at(port: int) -> None:
        hub = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        template = f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    return at


def test_what_the_hub_refuses(asked):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    asked(server.server_port)
    try:
        gated, private = refused(name="some/gated"), refused(name="some/private")
        branch = refused(name="some/model", revision="branch")
    finally:
        server.shutdown()
        server.server_close()
    assert "'some/gated' is gated: accept its licence at https://huggingface.co/some/gated" in gated
    assert "`hf auth login`" in gated
    assert "the Hugging Face hub knows no such id, or it is private" in private
    assert branch == (
        "revision: 'branch' is no commit, branch or tag of model 'some/model'; without a revision "
        "(null) the newest is taken"
    )


def test_a_hub_out_of_reach(asked, monkeypatch):
    asked(9)
    pauses = []  # before the client asks again, half a minute in all
    monkeypatch.setattr(time, "sleep", pauses.append)
    told = refused(name="some/gated")
    assert "cache, and the Hugging Face hub is out of reach: run `hf download some/gated`" in told
    assert pauses
