"""The authors' codebooks: their files in the documented form, made here, become ours."""

import json
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

import redlib
from redlib import released
from redlib.__main__ import main
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError

WIDTH = 4096
"""Of LLaVA-1.5-7B."""


def log(sizes_and_images, leave_out=0):
    """A log of clusters as it is released: of each cluster (members, distinct images)."""
    total = sum(size for size, _ in sizes_and_images)
    lines = [f"torch.Size([{total}, {WIDTH}])"]
    members = [[str(1000 * n + k % distinct) for k in range(size)]
               for n, (size, distinct) in enumerate(sizes_and_images)]  # fmt: skip
    lines += [f"cluster: {n}, samples: {ids}" for n, ids in enumerate(members)]
    return "\n".join(lines[: len(lines) - leave_out]) + "\n", members


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A random LLaVA-1.5 as wide as the 7B one, and nothing else of its size: (folder, model)."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            image_size=336, patch_size=14, projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=8, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        ),
        image_token_id=7,
        image_seq_length=576,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder, AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture
def files(tmp_path):
    """book.pt, book.json and clusters.txt: 10 prototypes in half precision, as released."""
    text, members = log([(70, 65), (70, 9), (3, 3)])
    vectors = torch.randn(70, WIDTH, generator=torch.Generator().manual_seed(1)).half()
    torch.save(torch.nn.Parameter(vectors), tmp_path / "book.pt")
    (tmp_path / "book.json").write_text(json.dumps(members[0]))
    (tmp_path / "clusters.txt").write_text(text)
    return tmp_path, vectors, members[0]


def test_the_two_rules_of_tau_in():
    """A cluster of more than 64 candidates, or of candidates from more than 64 images."""
    found = [("a",) * 65, tuple(map(str, range(65))), tuple(map(str, range(64))), ("b", "c")]
    kept = {
        rule: [len(c) for c in released.kept(found, Criteria(0.1, 8, 64, 2e-3, rule_in=rule))]
        for rule in ("size", "images")
    }
    assert kept == {"size": [65, 65], "images": [65]}


def test_the_two_rules_at_the_size_of_the_paper(tmp_path):
    """As many candidates, clusters and prototypes as in the log of LLaVA-1.5, of invented images;
    how the authors' other clusters are divided does not matter."""
    released_ones = [(256, 131), (198, 98)]
    large = [(83, 64)] * 4 + [(82, 41)]  # of more than 64 candidates, but not images
    text, members = log([(9, 9)] * 55 + large + released_ones + [(10, 5)] * 2)
    (tmp_path / "clusters.txt").write_text(text)
    found = released.clusters(tmp_path / "clusters.txt")
    assert (len(found), sum(map(len, found))) == (64, 1383)
    by_images, by_size = (
        released.kept(found, criteria) for criteria in (Criteria.released(), Criteria.paper())
    )
    assert [list(cluster) for cluster in by_images] == members[60:62]
    assert (len(by_size), sum(map(len, by_size))) == (7, 868)
    images = members[60] + members[61]
    book = Codebook(torch.ones(454, 2), images, [0] * 454, "any", "none", Criteria.released())
    assert released.check_clusters(book, tmp_path / "clusters.txt") == (
        "1383 candidates in 64 clusters: 454 in 2 clusters of more than 64 distinct images, "
        "868 in 7 clusters of more than 64 candidates"
    )


def test_an_imported_codebook_prunes_a_model_of_its_width(files, wide, capsys):
    folder, vectors, images = files
    place, model = wide
    arguments = ["codebook", "import", str(folder / "book.pt"), "--model", str(place)]
    assert main([*arguments, "--clusters", str(folder / "clusters.txt")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "143 candidates in 3 clusters: 70 in 1 clusters of more than 64 distinct images, "
        "140 in 2 clusters of more than 64 candidates\n"
    )
    codebook = Codebook.load(folder / "book.safetensors", width=WIDTH, model=str(place))
    assert torch.equal(codebook.vectors, vectors.float())
    assert codebook.image == tuple(images) and set(codebook.patch) == {released.UNTOLD}
    assert codebook.criteria == Criteria(0.15, 8, 64, 2e-3, "images", "at-most")
    # The pruner keeps the tokens least like any prototype (eq. 2), computed by hand here.
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[1, *[7] * 576, 2]])
    with torch.no_grad():
        tokens = model.model.get_image_features(pixels).pooler_output[0]
    cosine = torch.cosine_similarity(tokens[:, None], vectors.float()[None, :], dim=-1)
    expected = cosine.max(1).values.argsort()[:64].sort().values
    with redlib.pruned(model, "codebook", keep=64, codebook=codebook) as run, torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
    assert logits.shape == (1, 66, 8)
    assert run.last[0].kept.tolist() == expected.tolist()
    assert run.report == "576 -> 64 visual tokens"


def test_what_is_shown(tmp_path, capsys):
    vectors = torch.tensor([[3.0, 0], [3, 0.1], [0, 4], [4, 4]])
    book = Codebook(vectors, ("9", "9", "17", "4"), range(4), "any", "abc", Criteria.paper())
    assert main(["codebook", "show", str(book.save(tmp_path / "book.safetensors"))]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    told = {name: text.strip() for name, text in told.items()}
    assert told["prototypes"] == "4 of width 2"
    assert told["model"] == "any, revision abc"
    # lengths 3, 3.0017, 4, 5.657
    assert told["norms"] == "3.915 on average, sd 1.09, 3 to 5.657"
    # six pairs: .999, 0, .707, .033, .730, .707
    assert told["cosine of two"].startswith("0.53 on average; quantiles 5, 25, 50, 95 %: 0.01, 0.2")
    assert told["groups"].startswith("3, ") and told["groups"].endswith("sizes 2, 1, 1")
    assert told["images"] == "3; most prototypes from 9 (2), 17 (1), 4 (1)"
    assert "patches" not in told


def test_names_that_no_line_holds_and_letters_that_no_terminal_has(files, wide, tmp_path):
    """As a program, whose output is ASCII."""
    folder, _, images = files
    images = ["Größe"] * 4 + ["a\nb"] * 3 + ["\ud800"] * 2 + images[9:]
    (folder / "book.json").write_text(json.dumps(images))
    out = ("--out", str(folder / "Größe.safetensors"))
    for arguments in (
        ("import", str(folder / "book.pt"), "--model", str(wide[0]), *out),
        ("show", out[1]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "redlib", "codebook", *arguments],
            capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("images"))
        assert r"most prototypes from Gr\xf6\xdfe (4), 'a\nb' (3), '\ud800' (2)" in line
    assert Codebook.load(out[1]).image == tuple(images)


def refused(capsys, *arguments):
    assert main(["codebook", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("redlib: ")
    return err


class Harmful:
    """A pickle that would run code."""

    def __init__(self, run=exec, code="raise SystemExit('ran')"):
        self.run, self.code = run, code

    def __reduce__(self):
        return (self.run, (self.code,))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, yet such files lie about
def test_files_that_are_no_codebook(files, wide, capsys):
    folder, vectors, images = files
    model = ("--model", wide[0])

    def written(name, thing):
        torch.save(thing, folder / name)
        return folder / name

    (folder / "page.pt").write_text("<html>not found</html>")
    (folder / "code.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    (folder / "shell.pt").write_bytes(pickle.dumps(Harmful(os.system, "exit"), protocol=2))
    torch.save(vectors, folder / "new.pt", pickle_protocol=5)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.pt")
    (folder / "log.pt").write_text(log([(70, 65)])[0])
    half = (folder / "book.pt").read_bytes()
    (folder / "half.pt").write_bytes(half[: len(half) // 2])
    cases = {
        folder / "none.pt": "no file",
        folder / "page.pt": "is no .pt file of torch.save",
        folder / "log.pt": "is no .pt file of torch.save",
        folder / "half.pt": "not whole",
        folder / "code.pt": "could run code and was not read",
        folder / "shell.pt": "could run code and was not read",
        folder / "new.pt": "save it again with torch.save's default pickle_protocol",
        folder / "script.pt": "is no .pt file of torch.save",
        written("modern.pt", Harmful()): "could run code and was not read",
        written("dict.pt", {"a": vectors}): "one tensor (N, D) of floating-point numbers; got dict",
        written("whole.pt", vectors.int()): "got Tensor shape (70, 4096), torch.int32",
        written("sparse.pt", vectors.to_sparse()): "got Tensor that is sparse",
        written("meta.pt", vectors.to("meta")): "got Tensor that is sparse, nested or without",
        written("nan.pt", vectors / 0): "nan.pt': the codebook has NaN or infinite values; copy",
        written("eight.pt", vectors.to(torch.float8_e4m3fn)): "eight.pt': the vectors of a codebook"
        " must be float16, bfloat16, float32 or float64; got float8_e4m3fn; copy the released file",
        "a" * 5000: "File name too long",
        written("alone.pt", vectors): "no file",
    }
    for name in ("nan.json", "eight.json"):
        (folder / name).write_text(json.dumps(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, more lines before ours
        for file, words in cases.items():
            assert words in refused(capsys, "import", file, *model), file
    assert not list(folder.glob("*.safetensors"))
    (folder / "none.json").write_text("[]")
    told = refused(capsys, "import", written("none.pt", vectors[:0]), *model)
    assert "none.pt': the codebook is empty: it holds no prototype; copy the released file" in told


def test_what_cannot_be_read_or_written_is_told_before_anything_else(
    files, wide, capsys, monkeypatch
):
    folder, *_ = files
    book, model = folder / "book.pt", ("--model", wide[0])
    out = book / "below" / "x.safetensors"
    told = refused(capsys, "import", book, *model, "--out", out)
    assert "x.safetensors: cannot be written (Not a directory); choose a folder that can" in told
    assert told.endswith(" be written, by --out\n")
    if sys.platform != "win32":
        import resource

        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))  # as a disk that fills up
        try:
            told = refused(capsys, "import", book, *model)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert "book.safetensors: cannot be written (File too large); free some space" in told
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".pt", ".txt"]
    assert main(["codebook", "import", str(book), "--model", str(wide[0])]) == 0
    capsys.readouterr()
    access, taken = os.access, ("--out", folder / "new.safetensors")
    for shut, arguments in {
        "book.pt": ("import", book, *model, *taken),
        "book.json": ("import", book, *model, *taken),
        "clusters.txt": ("import", book, *model, *taken, "--clusters", folder / "clusters.txt"),
        "book.safetensors": ("show", folder / "book.safetensors"),
    }.items():
        path = folder / shut
        monkeypatch.setattr("os.access", lambda p, mode, path=path: p != path and access(p, mode))
        assert f"{str(path)!r} cannot be read: Permission denied" in refused(capsys, *arguments)
    assert not (folder / "new.safetensors").exists()


def test_a_list_of_images_that_windows_wrote(files, wide):
    folder, _, images = files
    (folder / "book.json").write_bytes(json.dumps(images).encode("utf-8-sig"))
    assert released.bring(folder / "book.pt", model=str(wide[0])).image == tuple(images)


def test_files_that_do_not_fit(files, wide, tiny_folder, capsys):
    folder, vectors, images = files
    book = folder / "book.pt"

    def bad(*more, model=wide[0]):
        return refused(capsys, "import", book, "--model", model, *more)

    assert "has width 4096, model" in bad(model=tiny_folder) and not folder.joinpath("x").exists()
    assert "no model 'llava-2'" in bad(model="llava-2")
    told = bad("--revision", "deadbeef")
    assert "revision: got 'deadbeef', but model" in told and told.endswith("; leave it out\n")
    assert "revision: got 'main'" in bad("--revision", "main", model="tiny-llava-1.5")
    (folder / "short.json").write_text(json.dumps(images[1:]))
    assert "holds 70 prototypes, but 69 images" in bad("--images", folder / "short.json")
    (folder / "text.json").write_text("[1,")
    assert "is not JSON" in bad("--images", folder / "text.json")
    (folder / "deep.json").write_text("[" * 100_000)
    assert "is not JSON" in bad("--images", folder / "deep.json")
    (folder / "other.json").write_text('{"a": 1}')
    assert "must be a list of image ids" in bad("--images", folder / "other.json")
    (folder / "book.safetensors").write_text("mine")
    assert "exists: name another file with --out" in bad()
    assert (folder / "book.safetensors").read_text() == "mine"
    assert "not a safetensors file" in refused(capsys, "show", folder / "book.safetensors")
    out = ("--out", folder / "new.safetensors")
    for text, words in {
        "nothing": "is no log of clusters",
        log([(70, 65), (70, 9), (3, 3)], leave_out=1)[0]: "lists 140 candidates of 143",
        log([(70, 66), (70, 9)])[0]: "leaves 70 prototypes of other images than the 70 at hand",
    }.items():
        (folder / "log.txt").write_text(text)
        assert words in bad("--clusters", folder / "log.txt", *out)
    assert not (folder / "new.safetensors").exists()


@pytest.mark.parametrize(
    "listed",
    ["foo bar", "foo", "007", "'a\0'", "[" * 3000 + "]" * 3000, "{[]: 1}", "['9']", "None", "True"],
    ids=range(9),
)
def test_a_line_of_the_log_that_is_no_list_of_images(tmp_path, listed):
    file = tmp_path / "clusters.txt"
    file.write_text(f"torch.Size([1, 192])\ncluster: 3, samples: [{listed}]\n")
    with pytest.raises(RedlibError, match=r"clusters.txt', cluster 3: no list of image") as caught:
        released.clusters(file)
    assert "\n" not in str(caught.value)


def test_a_log_of_more_candidates_than_there_are_numbers(tmp_path):
    file = tmp_path / "clusters.txt"
    file.write_text(f"torch.Size([{'9' * 5000}, 192])\ncluster: 3, samples: ['9']\n")
    with pytest.raises(RedlibError, match="is no log of clusters"):
        released.clusters(file)
