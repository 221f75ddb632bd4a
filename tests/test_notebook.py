"""A notebook's session: parameters in, figures and numbers out, the same bytes each time."""

import builtins
import json
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest

import redlib
from redlib import notebook, report
from redlib.errors import RedlibError
from redlib.notebook import begin, declared, root
from redlib.params import NOTEBOOKS, ONE_WORD_PROMPT

TEXTS = {
    "title": "A line",
    "caption": "Three points.",
    "reading": "Up is more.",
    "alt": "The line rises.",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    monkeypatch.setenv("REDLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("REDLIB_RUNS", raising=False)
    matplotlib.use("agg")
    return tmp_path


def draw():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2, 3])
    return figure


def test_begin_takes_plain_names_and_leaves_the_kernels_alone(home):
    names = {
        "seed": 3,
        "tau_jsd": "1e-4",
        "budgets": [64],
        "image": None,
        "In": ["", "seed = 3"],
        "Out": {},
        "_i1": "seed = 3",
        "_": "",
        "redlib": redlib,
        "exit": object(),
        "open": builtins.open,
        "get_ipython": lambda: None,
    }
    session = redlib.begin("02", names)
    assert session.params.seed == 3
    assert session.params.tau_jsd == 1e-4
    assert session.params.prompt == ONE_WORD_PROMPT
    assert session.name == "smoke"
    assert (home / "runs" / "smoke" / "figures").is_dir()


def test_begin_knows_the_parameters_of_all_notebooks(home):
    assert begin("01", {"n_questions": 5}).params.n_questions == 5


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"tau_porb": 0.1}, "notebook 02: unknown parameter 'tau_porb'; did you mean 'tau_prob'?"),
        ({"seed": False}, "notebook 02: seed must be a whole number"),
        ({"budgets": [577]}, "notebook 02: budgets must be from 1 to 576"),
        ({"revision": "deadbeef"}, "revision: got 'deadbeef', but model 'tiny-llava-1.5' lies on"),
    ],
)
def test_begin_refuses_in_one_line(home, names, words):
    with pytest.raises(RedlibError) as caught:
        begin("02", names)
    assert str(caught.value).startswith(words)
    assert caught.value._render_traceback_() == [f"redlib: {caught.value}"]
    assert not (home / "runs").exists()


def test_begin_again_ignores_the_readers_own_names(home):
    names = {"seed": 1}
    names["session"] = begin("02", names)
    names |= {"mine": 7, "seed": 2}
    assert begin("02", names).params.seed == 2
    with pytest.raises(RedlibError, match="unknown parameter 'mine'"):
        begin("02", {"mine": 7})


def test_begin_knows_its_notebooks(home):
    with pytest.raises(RedlibError, match="no notebook '99'"):
        begin("99", {})


def test_root_from_a_folder_below_and_from_nowhere(home, monkeypatch):
    monkeypatch.delenv("REDLIB_ROOT")
    monkeypatch.chdir(home / "notebooks")
    assert root() == home.resolve()
    monkeypatch.setenv("REDLIB_ROOT", str(home / "params"))
    with pytest.raises(RedlibError, match="no folder with notebooks/ and params/"):
        root()


def test_runs_may_lie_elsewhere(home, monkeypatch):
    monkeypatch.setenv("REDLIB_RUNS", str(home / "scratch"))
    assert begin("02", {"run_name": "mine"}).folder == home / "scratch" / "mine"
    assert begin("02", {"publish": True}).figures == home / "figures" / "smoke"


def test_a_folder_that_cannot_be_written(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("REDLIB_RUNS", str(home / "file"))
    with pytest.raises(RedlibError, match="cannot be written"):
        begin("02", {})


def test_save_writes_picture_numbers_and_note(home):
    session = begin("04", {"publish": True})
    data = pd.DataFrame({"x": [1, 2, 3], "y": [1 / 3, 2e-7, 123456789.0]})
    saved = session.save(draw(), "line", data=data, paper_item="Figure 4", **TEXTS)
    folder = home / "figures" / "smoke"
    assert sorted(p.name for p in folder.iterdir()) == ["line.csv", "line.json", "line.png"]
    assert (folder / "line.csv").read_bytes() == b"x,y\n1,0.333333\n2,2e-07\n3,1.23457e+08\n"
    note = json.loads((folder / "line.json").read_text())
    assert note["kind"] == "figure"
    assert note["paper_item"] == "Figure 4"
    assert note["parameters"]["model"] == "tiny-llava-1.5"
    assert note["versions"]["numpy"]
    assert note["width"] > note["height"] > 100
    bundle, about = saved._repr_mimebundle_()
    assert about["image/png"]["alt"] == "The line rises."
    assert bundle["text/plain"] == "A line: The line rises."


def test_saving_twice_gives_the_same_bytes(home):
    def everything():
        session = begin("04", {})
        session.save(draw(), "line", data=pd.DataFrame({"x": [1]}), **TEXTS)
        session.save(pd.DataFrame({"a": ["b"], "n": [0.1]}), "tab", **TEXTS)
        session.finish(x=1)
        files = sorted((home / "runs").rglob("*.*"))
        return {path.name: path.read_bytes() for path in files if path.is_file()}

    first = everything()
    assert len(first) == 6
    assert everything() == first
    assert b"Software" not in first["line.png"]
    assert b"tEXt" not in first["line.png"]


def test_a_table_is_shown_as_a_table(home):
    saved = begin("06", {}).save(pd.DataFrame({"task": ["a<b"], "n": [3]}), "tab", **TEXTS)
    bundle, _ = saved._repr_mimebundle_()
    assert '<th scope="col">task</th>' in bundle["text/html"]
    assert "a&lt;b" in bundle["text/html"]
    assert saved.note["kind"] == "table" and "shown" not in saved.note


def test_a_table_is_shown_as_worded_and_kept_as_numbers(home):
    session, numbers = begin("06", {}), pd.DataFrame({"accuracy": [0.51234567]})
    saved = session.save(pd.DataFrame({"Right, %": ["51"]}), "tab", data=numbers, **TEXTS)
    shown = saved._repr_mimebundle_()[0]["text/html"]
    assert '<th scope="col" class="number">Right, %</th>' in shown and "accuracy" not in shown
    assert (session.figures / "tab.csv").read_text() == "accuracy\n0.512346\n"
    session.finish()
    page = report.write(home / "index.html", {"smoke": session.figures}, title="T")
    text = page.read_text()
    assert text.index("Right, %") < text.index("Its numbers, row by row") < text.index("0.512346")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("Line", {}, "name must be lower-case"),
        ("../line", {}, "name must be lower-case"),
        ("line", {"alt": " "}, "alt is empty"),
        ("line", {"data": None}, "data is missing"),
    ],
)
def test_save_refuses_what_a_reader_would_miss(home, name, change, words):
    session = begin("04", {})
    given = TEXTS | {"data": pd.DataFrame({"x": [1]})} | change
    with pytest.raises(RedlibError, match=words):
        session.save(draw(), name, **given)
    assert list(session.figures.iterdir()) == []


def test_finish_writes_numbers_and_drops_what_is_gone(home):
    old = begin("04", {})
    old.save(pd.DataFrame({"a": [1]}), "gone", **TEXTS)
    old.claim("It holds.", holds=True, evidence="n = 3", paper_item="Finding 1")
    old.finish()
    other = begin("05", {})
    other.save(pd.DataFrame({"a": [1]}), "other", **TEXTS)
    new = begin("04", {})
    new.save(pd.DataFrame({"a": [1]}), "stays", **TEXTS)
    frame = new.finish(share=0.25, word="cup", n=3, little=1.4e-7)
    assert list(frame["number"]) == ["share", "word", "n", "little"]
    assert list(frame["value"]) == [0.25, "cup", 3, "1.4e-07"]
    assert json.loads((home / "runs/smoke/results/04.json").read_text())["share"] == 0.25
    names = sorted(p.name for p in new.figures.iterdir())
    assert names == ["other.csv", "other.json", "stays.csv", "stays.json"]


def test_claims_are_written(home):
    session = begin("04", {})
    session.claim("It holds.", holds=None, evidence="n = 3")
    session.finish()
    (claim,) = json.loads((session.figures / "04.claims.json").read_text())
    assert claim["holds"] is None
    assert claim["notebook"] == "04"


def test_the_model_is_loaded_once_and_keys_its_tables(home, monkeypatch):
    calls = []

    def load(name, **options):
        calls.append((name, options))
        return SimpleNamespace(revision="abc", dtype="torch.float32", repeats=1)

    # In the package's namespace, so that torch need not be imported for this.
    monkeypatch.setitem(vars(redlib), "models", SimpleNamespace(load=load))
    session = begin("04", {"dtype": "float32"})
    store = session.store("study", prompt="word?", patches=[1, 2])
    assert session.model is session.model
    asked = {"device": "auto", "dtype": "float32"}
    asked |= dict.fromkeys(("revision", "device_map", "quantization"))
    assert calls == [("tiny-llava-1.5", asked)]
    assert store.folder == home / "runs" / "smoke" / "store" / "04" / "study"
    assert store.key["revision"] == "abc"
    assert store.key["dtype"] == "float32"
    assert store.key["repeats"] == 1
    assert store.key["code"]
    assert session.store("study", notebook="02").folder.parent.name == "02"
    with pytest.raises(RedlibError, match="made with prompt = 'word\\?', now 'name it'"):
        session.store("study", prompt="name it", patches=[1, 2])


@pytest.mark.parametrize("has_cls", [True, False])
def test_a_caption_says_what_stands_in_for_a_missing_cls(home, monkeypatch, has_cls):
    model = SimpleNamespace(revision="abc", dtype="torch.float32", repeats=1, has_cls=has_cls)
    monkeypatch.setitem(vars(redlib), "models", SimpleNamespace(load=lambda *_, **__: model))
    session = begin("04", {})
    assert session.model is model
    texts = {"title": "A", "reading": "B.", "alt": "C."}
    table = pd.DataFrame({"a": [1]})
    of_cls = session.save(table, "one", caption="By [cls] similarity.", **texts)
    other = session.save(table, "two", caption="By attention.", **texts)
    assert ("mean patch" in of_cls.note["caption"]) is not has_cls
    frame = pd.DataFrame({"method": ["ours", "visionzip"], "against": ["prumerge", "random"]})
    ranked = session.save(draw(), "ranked", data=frame, **TEXTS).note["caption"]
    assert ("no [cls]: PruMerge and VisionZip rank by the attention" in ranked) is not has_cls
    others = session.save(draw(), "others", data=frame[["method"]][:1], **TEXTS).note["caption"]
    assert others == TEXTS["caption"]
    assert other.note["caption"] == "By attention."


def test_where_a_session_computes_leaves_no_trace_in_what_it_saves(home, monkeypatch):
    model = SimpleNamespace(revision="abc", dtype="torch.float32", repeats=1)
    monkeypatch.setitem(vars(redlib), "models", SimpleNamespace(load=lambda *_, **__: model))
    one = begin("04", {"seed": 3})
    two = begin("04", {"seed": 3, "workers": 2})
    assert two.store("study").workers is two.workers
    assert two.workers.several and not one.workers.several
    assert two.store("study").key == one.store("study").key
    notes = [s.save(draw(), "line", **TEXTS, data=pd.DataFrame()).note for s in (one, two)]
    assert notes[0] == notes[1]
    assert notes[0]["parameters"]["seed"] == 3


def test_measuring_modules_exist():
    assert notebook.code_version(notebook.MEASURING)


def write_cells(path, *sources, tags=("parameters",)):
    cells = [
        {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}}
        for source in sources
    ]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_declared_reads_the_parameters_cell(tmp_path):
    source = 'seed: int = 3  # start\nimage = None\nbudgets = [144, 64]\nk = -1.5\nm = "x"'
    found = declared(write_cells(tmp_path / "n.ipynb", source))
    assert found == {"seed": 3, "image": None, "budgets": [144, 64], "k": -1.5, "m": "x"}


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "needs one cell tagged 'parameters'; got 0"),
        (["a = 1", "b = 2"], "got 2"),
        (["a = 1\nb = 2 * a"], "only assign plain values"),
        (["import os"], "only assign plain values"),
        (["a ="], "only assign plain values"),
    ],
)
def test_declared_refuses(tmp_path, sources, words):
    with pytest.raises(RedlibError, match=words):
        declared(write_cells(tmp_path / "n.ipynb", *sources))


def test_declared_of_no_notebook(tmp_path):
    with pytest.raises(RedlibError, match="no such notebook"):
        declared(tmp_path / NOTEBOOKS["01"])
    (tmp_path / "x.ipynb").write_text("{")
    with pytest.raises(RedlibError, match="not a notebook"):
        declared(tmp_path / "x.ipynb")
