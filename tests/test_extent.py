"""How much a plan says is asked, against what the loaders yield and the notebooks' code then asks.

Nothing here is compared with the plan's own sums: images and questions are counted where they are
drawn, and answers where they are given.
"""

from collections import Counter

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_tiny_llava
from pruning import codebook

from redlib import costs, stages
from redlib.bench import coco
from redlib.bench.looking import Replies
from redlib.codebook import Criteria
from redlib.data import benchmarks, several, single
from redlib.notebook import Session
from redlib.params import Params, check
from redlib.study import (
    ablation,
    asking,
    codebooks,
    controls,
    describing,
    extent,
    pruning,
    spotting,
    stability,
)
from redlib.study import several as together
from redlib.tabletop import questions

SMALL = {
    "preset": "paper", "top_prob": 20, "top_jsd": 10, "tau_prob": 1.0, "tau_out": 1000,
    "tau_jsd": 1e9, "tau_in": 0, "codebook_images": 2, "r_threshold": 0.5,
    "random_seeds": 2, "budgets": [8, 6], "curve": [4, 6, 500], "n_questions": 4, "n_further": 2,
    "n_captions": 2, "n_tiled": 2, "n_several": 4, "n_calibration": 2, "control_questions": 2,
    "control_seeds": 2, "n_described": 2, "caption_tokens": 6, "text_tokens": 8, "n_games": 2,
    "game_tokens": 8, "caption_metric": "CIDEr", "device": "cpu", "dpc_centres_image": 2,
    "dpc_neighbours_image": 2, "dpc_centres_candidates": 2, "dpc_neighbours_candidates": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniature.everything(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def held(monkeypatch):
    """The numbers of the benchmarks in miniature, counted on the pictures they were made of."""
    wide = miniature.drawn(width=504, height=336)
    pairs = [pair for pair in miniature.mme_pairs() if pair[1] != "code_reasoning"]
    turned = Counter((n, q.group) for n, q in miniature.asked("mmb"))
    numbers = {
        "pope": miniature.PICTURES, "mmbench": len(turned), "mme": len(pairs),
        "seed": len(miniature.asked("seed")), "realworldqa": len(questions(wide, "rwqa")),
        "film": 3 * (len(several.FOLDERS) - 1),
    }  # fmt: skip
    numbers |= dict.fromkeys(("nocaps", "flickr", "image-dc", "mantis", "muir"), miniature.PICTURES)
    monkeypatch.setattr(extent, "HELD", numbers)
    monkeypatch.setitem(extent.ROTATIONS, "real", sum(turned.values()) / len(turned))
    return numbers


def counted(drawn):
    """(images, questions) that are asked about."""
    return len({q.image for q in drawn}), len(drawn)


# --- what there is to ask ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 24])
def test_scenes_are_shared_by_the_tasks(limit):
    images, asked = asking.exam(Params(), limit)
    assert extent.exam(Params(), limit) == counted(asked)
    assert len(images) == extent.exam(Params(), limit).images
    shown, about = asking.described(Params(), limit)
    assert extent.described(Params(), limit) == counted(about) == (len(shown), len(shown))


@pytest.mark.parametrize(("few", "many"), [(1, 4), (3, 24), (20, 24)])
def test_fewer_questions_are_of_more_scenes(few, many):
    _, asked = asking.exam(Params(), few, images=many)
    assert extent.exam(Params(), few, scenes=many) == counted(asked)


def test_scenes_yield_no_more_than_their_generators_ask():
    """As where 16 scenes are to score a grid by 300 questions a task; of POPE some have fewer."""
    drawn = asking.asked_scenes("calibration", 16)
    images, asked = counted(asking.ask(drawn, asking.FIVE_TASKS, 300))
    found = extent.exam(Params(), 300, scenes=16)
    assert found.images == images == len(drawn)
    assert asked <= found.questions < 1.15 * asked < 0.5 * 300 * 10


@pytest.mark.parametrize("limit", [1, 2, 5, 12])
def test_every_benchmark_brings_its_own_photographs(root, held, limit):
    real = Params(data="real", data_dir=str(root))
    photos, asked = asking.exam(real, limit)
    assert extent.exam(real, limit) == (len(photos), len(asked)) == counted(asked)
    shown, about = asking.described(real, limit)
    assert extent.described(real, limit) == (len(shown), len(about))
    images, _ = single.ask("image-dc", limit, real)
    assert extent.detailed(real.model_copy(update={"n_described": limit})) == len(images)


def test_a_benchmark_ends_where_it_has_no_more(root, held):
    """More is asked for than any of them holds, of Image-DC as in the real parameter files."""
    real = Params(data="real", data_dir=str(root), n_described=200)
    found, images, asked = extent.exam(real, 10_000), held["seed"], 0
    for name in benchmarks.FIVE:
        photos, about = single.ask(name, 10_000, real)
        images += len(photos) if name != "seed" else 0  # a picture of it may have two questions
        asked += len(about) if name != "pope" else 0
    assert found.images == images
    # POPE's publisher asks six questions about every picture, the miniature fewer about some.
    assert found.questions == asked + 3 * 6 * miniature.PICTURES
    for name, limit in (("image-dc", 200), ("nocaps", 10_000), ("flickr", 10_000)):
        assert len(single.ask(name, limit, real)[0]) == held[name]
    assert extent.detailed(real) == held["image-dc"]
    assert extent.described(real, 10_000) == (2 * miniature.PICTURES, 2 * miniature.PICTURES)


def test_the_numbers_of_the_real_parameter_files():
    assert set(extent.HELD) == set(benchmarks.BENCHMARKS)
    real = Params(data="real", n_several=300)
    for name, n in (("mantis", 217 - 11), ("muir", 300), ("film", 300)):
        assert extent.several(real, name) == (n, n)
    assert extent.exam(real, 1000) == pytest.approx(
        # POPE, MMBench, SEED, MME, RealWorldQA
        (500 + 1000 + 1000 + 500 + 765, 3000 + 1000 * 4329 / 1164 + 1000 + 1000 + 765)
    )


@pytest.mark.parametrize("n", [1, 4, 30])
def test_samples_of_several_scenes(n):
    params = Params(n_several=n)
    found = together.samples(params, "test", n)
    for name in ("mantis", "muir"):
        own = [len(sample.asked) for sample in found if sample.set == name]
        assert extent.several(params, name) == (len(own), sum(own))


def test_a_drawn_film_is_asked_six_questions_and_one_of_mvbench_one(root, held):
    films = [together._film("test", n) for n in range(150)]
    mean = sum(len(film.asked) for film in films) / len(films)
    assert mean == pytest.approx(extent.PER_FILM, abs=0.3)
    params = Params(data="real", data_dir=str(root), n_several=300)
    for n, names in ((5, ("mantis", "muir", "film")), (300, ("mantis", "muir"))):
        some = params.model_copy(update={"n_several": n})
        for name in names:
            found = several.shots(name, n, some)
            asked = sum(len(one.asked) for one in found)
            assert extent.several(some, name) == (len(found), asked), (name, n)


def test_games_are_pictures_of_a_folder_where_nothing_is_drawn(tmp_path):
    for n in range(3):
        miniature.drawn()[n].image.save(tmp_path / f"{n}.png")
    assert extent.games(Params(n_games=7)) == 7
    assert extent.games(Params(data="real", n_games=7)) == 0
    for n in (2, 7):
        own = Params(data="real", n_games=n, games_dir=str(tmp_path))
        assert extent.games(own) == min(n, 3)


# --- what is then asked --------------------------------------------------------------------------


RUNS = [f"{what} of {kind}" for kind in ("llava_onevision", "llava_next")
        for what in ("scenes", "photographs")]  # fmt: skip
FAMILY_NO_MATTER = RUNS[:2]


@pytest.fixture(params=RUNS)
def session(request, root, held, tmp_path, monkeypatch):
    what, kind = request.param.split(" of ")
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(pruning, "TILE_BUDGETS", (6, 4))
    monkeypatch.setattr(together, "TOKENS", {"mantis": 8, "muir": 8, "film": 4})
    monkeypatch.setattr(coco, "ready", lambda metric: None)
    monkeypatch.setattr(coco, "cider", lambda said, told: pd.Series(0.5, index=list(said)))
    values = SMALL | {"model": str(save_tiny_llava(tmp_path / kind, kind=kind)), "run_name": "t"}
    values["methods"] = ["fastv", "oracle", "grid", "probe"]
    if what == "photographs":
        values |= {"data": "real", "data_dir": str(root)}
    return Session("06", check(values))


@pytest.fixture
def planned(session):
    """(images, inputs) of a stage that the plan has, (0, 0) of another."""
    table = costs.plan(session.params).set_index("stage")[["images", "forwards"]]

    def of(*stages):
        found = table.reindex(list(stages), fill_value=0)
        return int(found["images"].max()), int(found["forwards"].sum())

    return of


def listening(monkeypatch, module, name="reply", at=3, said=None):
    """The calls of a function from a module: number of questions, its argument `at`, and longest
    answer of each. said: answers in its place, from the same arguments."""
    calls, stock = [], said or getattr(module, name)

    def heard(*given, **options):
        calls.append((len(given[at]), options["max_new_tokens"]))
        return stock(*given, **options)

    monkeypatch.setattr(module, name, heard)
    return calls


def silent(vlm, looked, rule, texts, **options):
    """Answers that no model was asked for."""
    return Replies([""] * len(texts), 0, [[]] * len(texts))


def test_the_stages_of_notebook_06(session, planned, monkeypatch):
    p, vlm = session.params, session.model
    book = codebook(width=vlm.width)
    limits = pruning.thresholds(session, book)
    monkeypatch.setattr(pruning, "look", lambda *given, **options: [])
    calls = listening(
        monkeypatch, pruning, "replies",
        said=lambda vlm, looked, rules, texts, **options: [
            silent(vlm, looked, rule, texts) for rule in rules
        ],
    )  # fmt: skip
    probed, tokens = [], torch.zeros(vlm.grid.size)  # what it says does not matter, but how often
    known = {"top1": [tokens], "jsd": [tokens]}
    monkeypatch.setattr(pruning, "probed", lambda *given: probed.append(given) or known)
    answers = pruning.answer_images(session, book, limits)
    assert ("oracle" in set(answers["method"])) == (p.data == "tabletop")
    assert "prumerge" not in set(answers["method"]), "which the parameters do not name"
    captions = answers["task"].isin(asking.CAPTIONED)
    for setting, stages_of, described in (
        ("base", ("answers of Ours, PruMerge and Random",
                  "answers of FastV, further methods and Figure 9"), "captions"),
        ("split", ("answers about five tiles", "FastV's answers about five tiles"),
         "captions of five tiles"),
    ):  # fmt: skip
        asked, said = (
            answers[(answers["setting"] == setting) & of] for of in (~captions, captions)
        )
        assert planned(*stages_of) == (asked["image"].nunique(), len(asked))
        assert planned(described) == (said["image"].nunique(), len(said))
        few = asked.loc[asked["method"] == "fastv", "image"].nunique()
        assert planned(stages_of[1])[0] == few
    assert (answers["setting"] == "split").any() == (vlm.model.config.model_type == "llava_next")
    images, inputs = planned("the method probe, every token")
    # every token alone, in its window with and without it, in the image, and the image itself
    assert images == len(probed) and inputs == images * (vlm.grid.size * 4 + 1)
    planner = costs._Planner(p, costs.shape_of(p.model))
    assert {longest for _, longest in calls} == {planner.longest, planner.caption}


def test_table_2(session, planned, monkeypatch):
    monkeypatch.setattr(together, "look", lambda *given, **options: [])
    calls = listening(monkeypatch, together, said=silent)
    answers = together.answer_samples(session, codebook(width=session.model.width))
    sets = ("mantis", "muir", "film")
    for name in sets:
        part = answers[answers["set"] == name]
        told = "films" if name == "film" else f"several images ({name})"
        images, inputs = planned(f"Table 2, {told}")
        assert images == part["image"].nunique()
        films = name == "film" and session.params.data == "tabletop"  # six questions on average
        assert inputs == pytest.approx(len(part), rel=0.5 if films else 0)
    if len(answers):
        planner = costs._Planner(session.params, costs.shape_of(session.params.model))
        assert {longest for _, longest in calls} == {planner.longest}


@pytest.mark.parametrize("session", FAMILY_NO_MATTER, indirect=True)
def test_the_stages_of_notebook_05(session, planned, monkeypatch):
    """Of scenes a grid is asked about, if only of one setting; of photographs nobody is."""
    p, planner = (
        session.params,
        costs._Planner(session.params, costs.shape_of(session.params.model)),
    )
    scored = listening(monkeypatch, codebooks, "evaluate", at=2)
    judged = listening(monkeypatch, ablation, "evaluate", at=2)
    table = codebooks.cascade_images(session, codebooks.probe_images(session))
    scores = codebooks.score_grid(session, table)
    assert ("mean" in scores) == bool(scored) == (p.data == "tabletop")
    images, inputs = planned("grid of thresholds")
    drawn = asking.asked_scenes("calibration", p.n_calibration)
    assert images == (len(drawn) if scored else 0)
    # a calibration scene may yield fewer questions than its generators ask at most
    assert inputs == pytest.approx(sum(n for n, _ in scored), rel=0.1)
    built = codebooks.build(session, table, codebooks.chosen(session, scores))
    sets = codebooks.ablation_codebooks(session, table, built.criteria, p.ablation_images)
    books = {name: built.codebook for name in ablation.ablated(sets)}
    how = {"draws": p.random_seeds, "limit": p.ablation_questions}
    answers = ablation.judge(session, "table-3", books, **how)
    assert planned("Table 3") == (answers["image"].nunique(), len(answers))
    assert {longest for _, longest in scored + judged} == {planner.judged}


@pytest.mark.parametrize("session", FAMILY_NO_MATTER, indirect=True)
def test_the_stages_of_notebook_08(session, planned):
    p = session.params
    table = codebooks.cascade_images(session, codebooks.probe_images(session))
    criteria = codebooks.criteria_of(session, codebooks.grid_settings(session, table).iloc[0])
    book = codebooks.build(session, table, criteria).codebook
    books = controls.control_codebooks(session, book, table)
    books |= stability.samples(session, table, criteria)
    books = {name: one or book for name, one in books.items()}
    how = {"draws": p.control_seeds, "limit": p.control_questions}
    answers = ablation.judge(session, "books", books, **how)
    assert planned("controls") == (answers["image"].nunique(), len(answers))
    replaced, read = stability.replacements(session), stability.paraphrases(session, table)
    inputs = len(stability.REPLACED) * (3 * len(replaced) + replaced["image"].nunique())
    alone = costs.EXPECTED["single"] * len(read) * len(stability.PARAPHRASES)
    assert planned("replacements and paraphrases") == (p.stability_images, round(inputs + alone))


def test_the_stages_of_notebook_07(session, planned, monkeypatch):
    heard = [listening(monkeypatch, module) for module in (describing, spotting)]
    book = codebook(width=session.model.width)
    table = describing.describe(session, book)
    games = spotting.play(session, book)
    stages_of = ("plain scenes described", "text-rich scenes described", "photographs described")
    sorts = table.groupby("scenes")["image"].nunique()
    assert planned(*stages_of) == (sorts.max(), sum(n for n, _ in heard[0]))
    played = 0 if games is None else games["image"].nunique()
    assert planned("spot the difference") == (played, sum(n for n, _ in heard[1]))
    planner = costs._Planner(session.params, costs.shape_of(session.params.model))
    assert {longest for calls in heard for _, longest in calls} == {planner.detail}


def test_table_3_reads_what_either_criterion_lets_pass():
    """Of tokens whose criteria have nothing to do with one another, by the code that decides."""
    rng = np.random.default_rng(0)
    n, small, silent = 20_000, costs.EXPECTED["single"], costs._SILENT
    criteria = Criteria(tau_prob=silent, tau_out=8, tau_in=1, tau_jsd=0.5)
    whole = pd.DataFrame(
        {
            "image": "a",
            "cluster_size": np.where(rng.random(n) < small, 7, 8),
            "top1": 0.0,
            "top1_head": rng.random(n),
            "jsd_region": 0.0,
            "jsd_global": 0.0,
            "jsd_final": 0.0,
        }
    )
    readings = ["word", "top1", "top1_head", "jsd_region", "jsd_global", "jsd_final"]
    whole["word"] = "cup"

    def read(table, settings):
        return stages._through(
            table,
            settings,
            (1.0, 16.0),
            tuple(stages.READINGS),
            lambda _, rows: whole.loc[rows.index],
        )

    first = read(whole.drop(columns=readings), [criteria])
    sets = [setting for setting, _ in stages.ablation(criteria, 10).values()]
    then = read(first, stages.loosest(sets))
    for stage, columns in stages.READINGS.items():
        found, more = (one[columns[-1]].notna().mean() for one in (first, then))
        assert found == pytest.approx(costs.EXPECTED[stage], abs=0.02)
        assert more == pytest.approx(costs.ABLATED[stage], abs=0.02)
