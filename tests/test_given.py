"""A codebook from outside prunes a run: imported as a reader does it, checked, named, never mixed.

The notebooks themselves run with one in `make test-real`.
"""

import json

import pandas as pd
import pytest
import torch

from redlib import batch
from redlib.__main__ import main
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.figures import walk as figures
from redlib.notebook import Session
from redlib.params import Params
from redlib.study import codebooks, comparison, given, pipeline, pruning
from redlib.tabletop import scenes

SMALL = {
    "prompt": "what does this image show ?", "top_prob": 20, "device": "cpu", "codebook_images": 2,
    "n_questions": 1, "n_further": 1, "n_captions": 1, "n_calibration": 2, "budgets": [4],
    "curve": [9], "methods": ["prumerge"], "tau_prob": 1.0, "tau_out": 1000, "tau_jsd": 1e9,
    "tau_in": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tiny_folder, tmp_path_factory):
    """A file as `redlib codebook import` makes it of ten prototypes in the released form."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(torch.randn(10, 48, generator=torch.Generator().manual_seed(1)), folder / "book.pt")
    (folder / "book.json").write_text(json.dumps([str(n) for n in range(10)]))
    assert main(["codebook", "import", str(folder / "book.pt"), "--model", str(tiny_folder)]) == 0
    return folder / "book.safetensors"


@pytest.fixture
def begin(tiny_folder, tmp_path, monkeypatch):
    """A session of notebook 06 with a codebook, or with None."""
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))

    def made(file):
        named = None if file is None else str(file)
        return Session("06", Params(model=str(tiny_folder), codebook=named, **SMALL))

    return made


def another(imported, tmp_path, **changed):
    """The imported codebook with other fields, in a file."""
    book = Codebook.load(imported)
    fields = {"vectors": book.vectors, "model": book.model, "revision": book.revision} | changed
    told = (fields["model"], fields["revision"], book.criteria)
    return Codebook(fields["vectors"], book.image, book.patch, *told).save(tmp_path / "b.st")


def test_it_prunes_and_no_other_is_built(begin, imported, capsys):
    session = begin(imported)
    book = given.codebook(session)
    assert "Ours: the codebook book.safetensors (10 prototypes" in capsys.readouterr().out
    assert torch.equal(book.vectors, Codebook.load(imported).vectors)
    answers = pruning.answer_images(session, book, pruning.thresholds(session, book))
    assert {"ours", "random", "prumerge", "threshold"} < set(answers["method"])
    assert not codebooks.codebook_path(session).exists()
    shown = pipeline.show(session, book, keep=4)
    assert given.origins(session, book, shown.table) == {}, "nobody told where they come from"
    figures.removed(shown.view, shown.table, {}, session.model.grid)
    note = figures.removed_note(shown.table, model="any", origins={})
    told = min(6, shown.table.loc[~shown.table["kept"], "prototype"].nunique())
    assert f"Of {told} the patch is not known." in note["caption"]


def test_answers_of_two_codebooks_never_mix(begin, imported, tmp_path):
    first = begin(imported)
    book = given.codebook(first)
    limits = pruning.thresholds(first, book)
    pruning.answer_images(first, book, limits)
    second = begin(another(imported, tmp_path, vectors=2 * book.vectors[:10].flip(1)))
    with pytest.raises(RedlibError, match="answers: made with codebook = .*, now .*--force"):
        pruning.answer_images(second, given.codebook(second), limits)


def test_captions_results_and_table_1_name_it(begin, imported):
    session = begin(imported)
    given.codebook(session)
    note = {"title": "t", "caption": "Drawn.", "reading": "r", "alt": "a"}
    frame = pd.DataFrame({"setting": ["base"], "method": ["ours"], "tokens": [64]})
    frame = frame.assign(task="pope", accuracy=0.5, low=0.4, high=0.6, n=9, images=9, kept=64)
    frame = frame.assign(std=float("nan"), label="Ours, R lowest")
    saved = session.save(frame, "accuracy", **note)
    assert saved.note["caption"].startswith("Drawn. Ours, where it stands, is the codebook book.s")
    assert saved.note["parameters"]["codebook"] == str(imported)
    numbers = session.finish(n=1).set_index("number")["value"]
    assert numbers["codebook"].startswith("book.safetensors (10 prototypes, digest ")
    labels = comparison.table1({"tiny-llava-1.5": session.figures})["label"]
    assert "Ours: book.safetensors" in set(labels)


def test_without_a_file_it_is_that_of_notebook_05(begin):
    session = begin(None)
    book = given.codebook(session)
    assert codebooks.codebook_path(session).is_file() and session.ours == ""
    assert given.criteria(session, book, None) == book.criteria
    shown = pipeline.show(session, book, keep=4).table
    found, wanted = (f(session, book, shown) for f in (given.origins, pipeline.origins))
    assert found.keys() == wanted.keys() and len(found)
    assert all(found[number].patch == wanted[number].patch for number in wanted)
    assert all(found[number].view.tobytes() == wanted[number].view.tobytes() for number in wanted)


def test_samples_are_built_under_the_thresholds_of_this_run(begin, imported):
    session = begin(imported)
    book = given.codebook(session)
    table = codebooks.cascade_images(session, codebooks.probe_images(session))
    assert given.criteria(session, book, table) == Criteria(1.0, 1000, 0, 1e9)
    assert book.criteria == Criteria.released()


def test_a_codebook_of_our_own_shows_what_it_can(begin, imported, tmp_path):
    """Of photographs that this run did not draw, nothing; of drawn scenes, all."""
    book = Codebook.load(imported)
    names = [scenes("train", 1)[0].id, "coco-9", *["train-0x"] * 8]
    own = Codebook(book.vectors, names, range(10), book.model, book.revision, book.criteria)
    session = begin(own.save(tmp_path / "own.safetensors"))
    read = given.codebook(session)
    table = pipeline.show(session, read, keep=4).table.assign(
        kept=False, prototype=[0, 1, 2, 0, 1] * 5
    )
    assert list(given.origins(session, read, table)) == [0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vectors": torch.ones(10, 40)}, "has width 40, the model has 48; import it with --model"),
        ({"model": "llava-hf/other"}, "was made with model 'llava-hf/other', not '"),
        ({"revision": "f" * 40}, "was made with revision 'ffff"),
    ],
)
def test_of_another_model(begin, imported, tmp_path, changed, words):
    with pytest.raises(RedlibError, match=f"^codebook: '.*b.st' {words}") as told:
        given.codebook(begin(another(imported, tmp_path, **changed)))
    assert "\n" not in str(told.value)


def test_refused_before_a_notebook_starts(tiny_folder, imported, tmp_path):
    (tmp_path / "text.safetensors").write_text("no codebook")
    for file, words in (
        ("nowhere.st", "^codebook: no file 'nowhere.st'; `redlib codebook import`"),
        (str(tmp_path / "text.safetensors"), "^codebook: cannot read .* as a codebook"),
    ):
        with pytest.raises(RedlibError, match=words):
            batch._check_given(Params(codebook=file, model=str(tiny_folder)))
    with pytest.raises(RedlibError, match="not 'tiny-llava-1.5'; import it with --model tiny-ll"):
        batch._check_given(Params(codebook=str(imported)))
    batch._check_given(Params(codebook=str(imported), model=str(tiny_folder)))


def test_another_file_of_the_same_name_is_another_run(imported, tmp_path):
    file = tmp_path / "book.safetensors"
    file.write_bytes(imported.read_bytes())
    folder = batch.root() / "notebooks"
    before = batch._inputs(Params(codebook=str(file)), "06", folder)
    assert before == batch._inputs(Params(codebook=str(file)), "06", folder)
    another(imported, tmp_path, vectors=torch.ones(10, 48)).replace(file)
    assert before != batch._inputs(Params(codebook=str(file)), "06", folder)
