"""Bad input on the command line: one clear line, exit code 2, nothing half-written."""

import errno
import importlib.util
import os
import subprocess
import sys

import pytest
from PIL import Image
from throwaway import project

from redlib import __main__ as main_module
from redlib import scale
from redlib.__main__ import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    project(tmp_path, {"02": ["seed: int = 0\ntau_prob = None"]})
    return tmp_path


def refuse(capsys, *arguments):
    """Run the command line; returns its one line of complaint without the program's name."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("redlib: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("redlib: ").strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tau_porb: 0.1", "unknown parameter 'tau_porb'; did you mean 'tau_prob'?"),
        ('tau_prob: "1e-1x"', "tau_prob must be a number from 0 to 1"),
        ("seed: no", "seed must be a whole number"),
        ("budgets: [0]", "budgets must be"),
        ("budgets: [577]", "budgets must be from 1 to 576"),
        ("budgets: [64, 64]", "budgets must be different numbers"),
        ("tau_out: -1", "tau_out must be a number of at least 0"),
        ("", "empty"),
        ("{", "not YAML"),
        ("workers: 0", "workers must be a whole number from 1 to 1024; got 0"),
        (
            "scheduler: node1",
            "scheduler must be text such as tcp://node1:8786 or null; got 'node1'",
        ),
        ("{workers: 2, scheduler: tcp://node1:8786}", "workers counts processes of this machine"),
        (
            "scheduler: tcp://127.0.0.1:9",
            "scheduler: nothing answers at 'tcp://127.0.0.1:9' within",
        ),
        ("image: nowhere.jpg", "image: no such file 'nowhere.jpg'"),
        ("{data: real, preset: paper, data_dir: nowhere}", "data_dir: no folder 'nowhere'"),
        ("data: real", "tau_prob cannot be calibrated with data: real"),
        ("data: photos", "data must be tabletop or real; got 'photos'"),
        ("model: tiny-lava", "model: no folder, Hugging Face id or embedded model 'tiny-lava'"),
        ("model: ./nowhere/model", "model: no folder, Hugging Face id or embedded"),
        (
            "{model: tiny-llava-1.5, revision: deadbeef}",
            "revision: got 'deadbeef', but model 'tiny-llava-1.5' lies on this machine",
        ),
        ("{model: model, revision: main}", "has commits; set revision: null"),
    ],
)
def test_parameter_files(home, capsys, monkeypatch, text, words):
    monkeypatch.setattr(scale, "PATIENCE", 1)
    (home / "params" / "bad.yaml").write_text(text)
    line = refuse(capsys, "run", "params/bad.yaml")
    assert words in line
    assert not (home / "runs").exists()
    assert not (home / "figures").exists()


def test_binary_and_missing_files(home, capsys):
    (home / "params" / "bad.yaml").write_bytes(b"\x89PNG\x00\xff")
    assert "not a text file" in refuse(capsys, "run", "params/bad.yaml")
    assert "params/none.yaml: no such parameter file; there are bad.yaml, one.yaml" in refuse(
        capsys, "run", "params/none.yaml"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rum"], "invalid choice: 'rum'"),
        (["run"], "required: FILE"),
        (["run", "params/one.yaml", "--fast"], "unrecognized arguments: --fast"),
        (["run", "params/one.yaml", "--only", "2"], "--only: no notebook '2'; there are 01, 02"),
        (["run", "params/one.yaml", "--only", "02,09"], "--only: no notebook '09'"),
        (["run", "params/one.yaml", "--only", "03"], "03_cascaded_leave_one_out.ipynb: no such"),
        (["run", ""], "argument FILE: the name is empty; name a file"),
        (["page", ""], "argument FILE: the name is empty"),
        (["codebook", "show", ""], "argument FILE: the name is empty"),
        (["codebook", "import", "", "--model", "a"], "argument FILE.pt: the name is empty"),
        (["params", "7"], "no notebook '7'"),
        (["bench", "--small", "--every-patch"], "--every-patch: not allowed with argument --small"),
        (["bench", "--every-patch", "--gpu"], "--gpu: not allowed with argument --every-patch"),
        (["params", "03"], "03_cascaded_leave_one_out.ipynb: no such notebook"),
    ],
)
def test_command_lines(home, capsys, arguments, words):
    assert words in refuse(capsys, *arguments)


def test_a_codebook_that_is_not_there(home, capsys):
    assert refuse(capsys, "codebook", "show", "none") == (
        "no codebook at 'none': run notebook 05 to make one, or `redlib codebook import` to make "
        "one of the authors' file"
    )


def test_a_results_folder_that_is_none(home, capsys, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("REDLIB_RUNS", str(home / "file"))
    assert "cannot be written" in refuse(capsys, "run", "params/one.yaml", "--only", "02")


def test_a_project_that_is_none(home, capsys, monkeypatch):
    monkeypatch.setenv("REDLIB_ROOT", str(home / "params"))
    assert "no folder with notebooks/ and params/" in refuse(capsys, "run", "params/one.yaml")


def test_help_and_params_explain(home, capsys):
    assert main(["params", "02"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("seed\n    start of every random choice.")
    assert "Presets: paper 0.1, released 0.15, calibrated calibrated." in " ".join(text.split())
    assert main(["params"]) == 0
    assert "n_questions" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
@pytest.mark.parametrize("arguments", [["params"], ["params", "02"]])
def test_output_that_does_not_fit(home, arguments):
    """More than Python holds back, and less."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "redlib", *arguments], stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "redlib: the output cannot be written (No space left on device); free some space\n"
    )


def test_a_file_that_nobody_expected_to_be_shut(home, capsys, monkeypatch):
    def shut():
        raise PermissionError(errno.EACCES, "Permission denied", "/x/notebooks")

    monkeypatch.setattr(main_module, "root", shut)
    told = refuse(capsys, "params", "02")
    assert told == "/x/notebooks: Permission denied; see who may read and write there"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_data_dir_without_what_is_asked_of_it(home, capsys, more):
    file = home / "params" / "bad.yaml"
    for folder, words in (
        ("nowhere", "data_dir: no folder 'nowhere'; it should hold the data sets"),
        ("params", f"data_dir: no folder {str(home / 'params' / 'VQAv2')!r} for VQAv2 validation; "
         "it should hold v2_OpenEnded_mscoco_val2014_questions.json, "
         "v2_mscoco_val2014_annotations.json and val2014/, or be a copy of the repository "
         "lmms-lab-encoder/VQAv2"),
    ):  # fmt: skip
        folder = folder if folder == "nowhere" else home / folder
        file.write_text(f"{{data: real, preset: paper, data_dir: {folder}}}")
        assert refuse(capsys, "run", str(file), "--only", "02", *more) == words
    assert not (home / "runs").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image: nowhere.jpg", "image: no such file 'nowhere.jpg'"),
        ("image: text.png", "'text.png' is not an image that Pillow can read"),
        ("codebook: nowhere", "codebook: no file 'nowhere'"),
        ("games_dir: nowhere", "games_dir: no folder 'nowhere'"),
        ("model: ./nowhere/model", "model: no folder, Hugging Face id or embedded"),
        ("model: params", "model folder 'params' holds no config.json"),
        ("{model: model, revision: main}", "revision: got 'main', but model 'model' lies on this"),
        ("quantization: 8bit", "quantization needs the package"),
        ("device_map: auto", "device_map needs the package accelerate"),
        ("{device_map: auto, device: cpu}", "device_map: auto chooses the device; leave device at"),
        ("{set: [one], beside: 5}", "beside must be the name of a set file; got 5"),
        ("{set: [one], beside: none}", "beside 'none': params/none.yaml: no such parameter file"),
        ("{set: [one], beside: shut}", "image: no such file 'nowhere.jpg'"),
    ],
)
def test_what_a_run_would_refuse_a_dry_run_refuses_too(
    home, capsys, monkeypatch, text, words, more
):
    find = importlib.util.find_spec
    extra = ("accelerate", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in extra else find(n))
    (home / "text.png").write_text("text")
    (home / "params" / "shut.yaml").write_text("image: nowhere.jpg")
    (home / "params" / "bad.yaml").write_text(text)
    assert words in refuse(capsys, "run", "params/bad.yaml", *more)
    assert not (home / "runs").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_less_than_one_job(home, capsys, more):
    line = refuse(capsys, "run", "params/one.yaml", "--only", "02", "--jobs", "0", *more)
    assert line == "--jobs: must be 1 or more; got 0"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_damaged_picture_of_ones_own(home, capsys, monkeypatch, more):
    """Among those that are shown, before a notebook starts."""
    monkeypatch.setattr("redlib.data.copies.check", lambda *_: None)
    (home / "games").mkdir()
    Image.new("RGB", (8, 8)).save(home / "games" / "a.png")
    (home / "games" / "b.png").write_text("text")
    file = home / "params" / "one.yaml"
    values = "model: tiny-llava-onevision, data: real, preset: paper, games_dir: games"
    file.write_text(f"{{{values}}}")
    told = refuse(capsys, "run", str(file), "--only", "07", *more)
    assert "b.png' is not an image that Pillow can read" in told
    assert not (home / "runs").exists()
    assert main(["run", str(file), "--only", "02", "--dry-run"]) == 0, "02 plays no game"


def test_as_a_program(home):
    (home / "params" / "bad.yaml").write_text("seed: no\n")
    command = [sys.executable, "-m", "redlib", "run", "params/bad.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("redlib: params/bad.yaml: seed must be a whole number")
    assert done.stderr.count("\n") == 1


def test_plain_papermill_stops_at_a_misspelt_name(home):
    """papermill itself only warns; the notebook's first cell stops."""
    (home / "bad.yaml").write_text("tau_porb: 0.1\n")
    source = home / "notebooks" / "02_single_token_probe.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), "out.ipynb", "-f", "bad.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "unknown parameter 'tau_porb'; did you mean 'tau_prob'?" in done.stderr
    assert not (home / "runs").exists()
