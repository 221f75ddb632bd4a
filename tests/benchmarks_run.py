"""Notebooks 06 to 08 on the benchmarks in miniature, with small random models of all families.

The cells run in this process, one after another as in a kernel. Captions are judged by a stand-in,
since CIDEr and SPICE need Java: what is tested is that each rule's captions reach the metric as one
set with their references, and that its numbers reach the table.
"""

import json
from pathlib import Path

import matplotlib
import miniature
import nbformat
import pandas as pd
import pytest
import torch
from conftest import save_tiny_llava
from PIL import Image

from redlib import released
from redlib.bench import coco, looking
from redlib.errors import RedlibError
from redlib.models import load
from redlib.notebook import Session
from redlib.params import NOTEBOOKS, check
from redlib.study import pruning, several
from redlib.study.verdict import NEEDS_TRUTH
from redlib.tabletop import questions, scenes

ROOT = Path(__file__).parents[1]
SMALL = {
    "data": "real", "preset": "paper", "codebook_images": 2, "codebook_ranks": "all",
    "top_prob": 20, "top_jsd": 10, "tau_prob": 1.0, "tau_out": 1000, "tau_jsd": 1e9, "tau_in": 0,
    "r_threshold": "calibrated",
    "random_seeds": 1, "bootstrap": 100, "budgets": [8, 6], "curve": [4], "n_questions": 2,
    "n_further": 1, "n_captions": 2, "n_tiled": 2, "n_several": 2, "n_calibration": 2,
    "methods": ["prumerge", "fastv", "oracle"], "caption_metric": "CIDEr", "example_tokens": 6,
    "n_described": 2, "caption_tokens": 6, "text_tokens": 8, "n_games": 2, "game_tokens": 8,
    "control_questions": 1, "device": "cpu", "dpc_centres_image": 2, "dpc_neighbours_image": 2,
    "dpc_centres_candidates": 2, "dpc_neighbours_candidates": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniature.everything(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def place(tmp_path, tmp_path_factory, monkeypatch):
    """Folders of the run's own, budgets that fit a 5 x 5 grid, and the stand-in for CIDEr."""
    matplotlib.use("agg")
    monkeypatch.setenv("REDLIB_ROOT", str(ROOT))
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(pruning, "TILE_BUDGETS", (6, 4))
    monkeypatch.setattr(several, "TOKENS", {"mantis": 8, "muir": 8, "film": 4})
    monkeypatch.setattr(coco, "ready", lambda metric: None)
    judged = []

    def worth(captions, references):
        judged.append((dict(captions), dict(references)))
        return pd.Series({name: len(references[name]) / 4 for name in captions})

    monkeypatch.setattr(coco, "cider", worth)
    return judged


def run(number, **parameters):
    """What stands in the notebook's namespace at its end."""
    cells = nbformat.read(ROOT / "notebooks" / NOTEBOOKS[number], as_version=4).cells
    names = {"__name__": "__main__"}
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        exec(compile(cell.source, f"notebook {number}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
    return names


def parameters(root, folder, **more):
    return SMALL | {"data_dir": str(root), "model": str(folder), "run_name": "mini"} | more


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_notebook_06(root, tmp_path, place, kind):
    folder = save_tiny_llava(tmp_path / kind, kind=kind)
    names = run("06", **parameters(root, folder))
    answers, session = names["answers"], names["session"]
    assert set(answers["task"]) == {
        "pope-random", "pope-popular", "pope-adversarial", "mme", "mmbench", "seed", "realworldqa",
        "nocaps", "flickr",
    }  # fmt: skip
    assert "oracle" not in set(answers["method"]) and answers["informative"].isna().all()
    assert set(answers["setting"]) == ({"base", "split"} if kind == "llava_next" else {"base"})
    captions = answers[answers["task"].isin(["nocaps", "flickr"])]
    assert (captions["correct"] == 0.5).all() and len(place) == captions.groupby(
        ["setting", "method", "tokens", "seed", "task"]
    ).ngroups
    (said, told), *_ = place
    assert said.keys() == told.keys() and all(len(told[name]) == 2 for name in told)
    summary = names["summary"]
    assert {"pope", "mme", "mmb", "seed", "rwqa", "mean", "nocaps", "flickr", "captions"} == set(
        summary["task"]
    )
    claims = json.loads((session.figures / "06.claims.json").read_text())
    assert [c["evidence"] for c in claims if c["holds"] is None].count(NEEDS_TRUTH) == 1
    note = json.loads((session.figures / "accuracy.json").read_text())
    assert "tabletop" not in note["caption"] and "CIDEr" in note["caption"]
    assert "POPE, MMBench-EN" in note["caption"]
    assert not (session.figures / "informative.json").exists()
    together = names["together"]
    assert set(together["set"]) == (
        {"mantis", "muir", "film"} if kind == "llava_onevision" else set()
    )
    if kind == "llava_onevision":
        kept = together.groupby(["set", "method"])["kept"].first()
        assert kept["mantis", "ours"] == 2 * 8 and kept["muir", "ours"] == 3 * 8
        assert kept["film", "ours"] == 16 * 4 and kept["film", "unpruned"] == 16 * 9
    place.clear()
    again = run("06", **parameters(root, folder))
    assert not place, "captions were judged twice"
    pd.testing.assert_frame_equal(again["answers"], answers)


@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_notebook_07(root, tmp_path, kind):
    folder = save_tiny_llava(tmp_path / kind, kind=kind)
    games = tmp_path / "games"
    games.mkdir()
    for n in range(3):
        Image.new("RGB", (64, 32), (80 * n, 0, 0)).save(games / f"{n}.png")
    names = run("07", **parameters(root, folder, games_dir=str(games)))
    table, session = names["table"], names["session"]
    assert set(table["scenes"]) == {"plain", "text-rich"} and table["true"].isna().all()
    assert set(table.loc[table["side"] == "pruned", "tokens"]) == {6, 8}
    assert names["changed"] is None and names["spotted"] is None
    shown = names["shown"]
    assert [len(shown[sort]) for sort in ("text-rich", "plain")] == [3, 3]
    assert all(len(one.answers["question"].unique()) == 2 for one in shown["plain"])
    claims = json.loads((session.figures / "07.claims.json").read_text())
    assert all(claim["holds"] is None for claim in claims)
    assert len(claims) == (7 if kind == "llava_onevision" else 5)
    games_table = names["games"]
    if kind == "llava":
        assert games_table is None
    else:
        assert list(games_table["image"].unique()) == ["0.png", "1.png"]
        assert games_table["found"].isna().all()
        assert (session.figures / "game.png").is_file()


def test_notebook_08(root, tmp_path):
    folder = save_tiny_llava(tmp_path / "llava")
    names = run("08", **parameters(root, folder))
    assert "ground" not in set(names["compared"]["method"])
    assert {"ours", "tokens", "norm", "cls", "top1", "random"} == set(names["compared"]["method"])
    assert names["replaced"]["image"].str.startswith("coco-").all()


def test_a_codebook_from_outside(root, tmp_path):
    """The authors' form, imported: 06 to 08 prune with it, and 05 has not run."""
    folder = save_tiny_llava(tmp_path / "llava")
    vlm = load(str(folder), device="cpu")
    drawn = torch.randn(9, vlm.width, generator=torch.Generator().manual_seed(4))
    torch.save(drawn, tmp_path / "book.pt")
    (tmp_path / "book.json").write_text(json.dumps(list(range(9))))
    released.bring(tmp_path / "book.pt", model=str(folder)).save(tmp_path / "book.safetensors")
    given = parameters(root, folder, codebook=str(tmp_path / "book.safetensors"))
    for number in ("06", "07", "08"):
        names = run(number, **given)
        assert torch.equal(names["book"].vectors, drawn)
        session = names["session"]
        notes = [json.loads(path.read_text()) for path in session.figures.glob("*.json")]
        own = [n for n in notes if isinstance(n, dict) and n["notebook"] == number]
        assert own and all("book.safetensors (9 prototypes" in note["caption"] for note in own)
        assert not (session.folder / "codebook.safetensors").exists()


def test_without_a_folder_there_is_no_game(root, tmp_path):
    folder = save_tiny_llava(tmp_path / "one", kind="llava_onevision")
    names = run("07", **parameters(root, folder))
    assert names["games"] is None
    assert "games_dir" in names["spotting"].not_run(names["session"])


def test_photographs_are_answered_as_the_scenes_that_they_are(root, tmp_path):
    """A benchmark that holds drawn scenes and the world's own questions is answered the same."""
    folder = save_tiny_llava(tmp_path / "llava")
    vlm = load(str(folder), device="cpu")
    session = Session("06", check(parameters(root, folder)))
    codebook = pruning.load_codebook(session)
    asking = next(a for n, a in pruning.to_ask(session).items() if n.startswith("base/pope"))
    rule = pruning.Asked("ours", 0, pruning.Rule("codebook", 6), 9, False)
    frame = pruning.answer_image(session, asking, [rule], codebook)
    (scene,) = scenes("test", 1, start=miniature.START + int(asking.scene.id[-12:]))
    looked = looking.look(vlm, [scene.image])
    texts = [q.text for q in questions([scene], "pope-random")]
    told = looking.reply(
        vlm, looked, rule.rule, texts, codebook=codebook, max_new_tokens=16
    ).texts  # fmt: skip
    said = dict(zip(texts, told, strict=True))
    own = frame[frame["task"] == "pope-random"]
    assert len(own) and list(own["answer"]) == [said[text] for text in own["question"]]


def test_missing_java_stops_before_anything_is_answered(root, tmp_path, monkeypatch):
    def missing(metric):
        raise RedlibError(f"{metric} needs Java")

    monkeypatch.setattr(coco, "ready", missing)
    folder = save_tiny_llava(tmp_path / "llava")
    session = Session("06", check(parameters(root, folder)))
    with pytest.raises(RedlibError, match="CIDEr needs Java"):
        pruning.answer_images(session, None, None)
