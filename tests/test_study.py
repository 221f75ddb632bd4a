"""The analyses of notebooks 04 to 06 against literal computations, and once from end to end."""

import copy
import json
import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from redlib import bench, prune, stages
from redlib.codebook import Codebook, NoPrototype
from redlib.costs import SHAPES
from redlib.data.images import Images
from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.params import Params
from redlib.store import Store
from redlib.study import (
    answered,
    asking,
    codebooks,
    maps,
    patches,
    pruning,
    savings,
    scoring,
    verdict,
)  # fmt: skip
from redlib.tabletop import questions, scenes


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Six images of 20 patches with random columns, ties included."""
    rng = np.random.default_rng(0)
    n = 120
    return pd.DataFrame(
        {
            "image": np.repeat([f"test-{i}" for i in range(6)], 20),
            "objects": np.repeat([1, 1, 2, 2, 3, 3], 20),
            "patch": np.tile(np.arange(20), 6),
            "top1": rng.integers(0, 12, n) / 12,
            "jsd_final": rng.random(n),
            "attention": rng.random(n),
            "attention_asked": rng.random(n),
            "cls_similarity": rng.integers(0, 15, n) / 15,
            "covered": rng.choice([0.0, 0.2, 0.5, 1.0], n),
            "written": rng.choice([0.0, 0.0, 0.4], n),
            "asked_covered": np.where(np.arange(n) < 20, np.nan, rng.choice([0.0, 0.3, 0.9], n)),
        }
    )


def test_sampled_patches_are_those_of_the_release():
    wanted = [24 * r + c for r, c in product(range(1, 24, 3), repeat=2)]
    assert patches.sample(Grid(24, 24), 64).tolist() == wanted
    assert len(set(patches.sample(Grid(24, 24), 576))) == 576
    for n in (50, 25**2):
        with pytest.raises(RedlibError, match="square number"):
            patches.sample(Grid(24, 24), n)


def test_curves_sort_each_image_by_itself(table):
    found = patches.curves(table, "cls_similarity", ("top1",), resamples=50)
    ranked = []
    for _, part in table.groupby("image"):
        rows = sorted(part.itertuples(), key=lambda r: (-r.cls_similarity, r.patch))
        ranked.append([r.top1 for r in rows])
    assert np.allclose(found["mean"], np.mean(ranked, axis=0))
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()
    assert found["mean"].std() > 0.01


def test_rank_correlations_are_scipys(table):
    found = patches.rank_correlations(table, "cls_similarity", ("jsd_final",), resamples=50)
    found = found.set_index("reading")["rho"]
    each = [
        spearmanr(part["cls_similarity"], part["jsd_final"]).statistic
        for _, part in table.groupby("image")
    ]
    assert found["within image"] == pytest.approx(np.mean(each))
    curve = patches.curves(table, "cls_similarity", ("jsd_final",), resamples=10)["mean"]
    assert found["mean curve"] == pytest.approx(spearmanr(-np.arange(20), curve).statistic)
    assert math.isnan(patches.spearman(np.ones(4), np.arange(4)))


def test_running_sum_is_never_reset(table):
    running = patches.add_running_sum(table)["attention_running"].to_numpy().reshape(6, 20)
    attention = table["attention"].to_numpy().reshape(6, 20)
    total = np.zeros(20)
    for image in range(6):
        total = total + attention[image]
        assert np.allclose(running[image], total)


def test_deciles(table):
    found = patches.deciles(table, below=0.3, resamples=50)
    highest, low = [], []
    for _, part in table.groupby("image"):
        rows = sorted(part.itertuples(), key=lambda r: (-r.cls_similarity, r.patch))[:2]
        highest.append(np.mean([r.top1 for r in rows]))
        low += [r.top1 < 0.3 for r in rows]
    assert found["decile"].tolist() == list(range(1, 11))
    assert found["mean"].iloc[0] == pytest.approx(np.mean(highest))
    assert found["below"].iloc[0] == pytest.approx(np.mean(low))


@pytest.mark.parametrize("target", ["object", "asked", "which"])
def test_auroc_is_sklearns(table, target):
    clear = patches.truth(table, target)
    kept = []
    for row in table.itertuples():
        share = row.covered if target == "object" else row.asked_covered
        bare = {"object": row.written == 0, "asked": True, "which": row.covered >= 0.5}
        kept.append(share >= 0.5 or (share == 0 and bare[target]))
    assert clear.index.tolist() == table.index[kept].tolist()
    assert 0 < clear["positive"].mean() < 1
    scores = ("top1", "attention", "attention_asked")
    found = patches.auroc(table, target, scores, resamples=50)
    scores = scores[:2] if target == "object" else scores
    assert list(dict.fromkeys(found["score"])) == list(scores)
    for score in scores:
        rows = found[found["score"] == score].set_index("reading")
        truth, values = clear["positive"], table.loc[clear.index, score]
        assert rows.loc["pooled", "auroc"] == pytest.approx(roc_auc_score(truth, values))
        each = [
            roc_auc_score(truth[part.index], values[part.index])
            for _, part in clear.groupby("image")
            if part["positive"].nunique() == 2
        ]
        assert rows.loc["within image", "auroc"] == pytest.approx(np.mean(each))
        assert rows.loc["within image", "images"] == len(each)
        assert (rows["low"] < rows["auroc"]).all() and (rows["auroc"] < rows["high"]).all()


def test_auroc_bootstrap_is_that_of_the_resampled_rows(table):
    clear = patches.truth(table, "object")
    wins, positives, negatives = patches.win_matrix(
        clear["top1"].to_numpy(), clear["positive"].to_numpy(), clear["image"].to_numpy()
    )
    for weight in patches.draws(6, 5, 1):
        drawn = pd.concat(
            [clear[clear["image"] == f"test-{i}"] for i in range(6) for _ in range(weight[i])]
        )
        literal = roc_auc_score(drawn["positive"], drawn["top1"])
        shares = weight @ wins @ weight / ((weight @ positives) * (weight @ negatives))
        assert shares == pytest.approx(literal)


def test_auroc_levels_and_missing_kinds(table):
    found = patches.auroc(table, "object", ("top1",), levels=True, resamples=20)
    assert found["level"].tolist() == [1, 2, 3]
    part = patches.truth(table[table["objects"] == 2], "object")
    literal = roc_auc_score(part["positive"], part["top1"])
    assert found["auroc"].iloc[1] == pytest.approx(literal)
    none = patches.auroc(table.assign(covered=0.0), "object", ("top1",), resamples=20)
    assert none["auroc"].isna().all()
    with pytest.raises(RedlibError, match="target"):
        patches.truth(table, "nothing")


def test_verdicts_read_the_intervals(table, monkeypatch):
    for module in (patches, verdict):
        monkeypatch.setattr(module, "LEAST_IMAGES", 6)
    rho = pd.concat(
        [
            patches.rank_correlations(t, order, resamples=50)
            for t in [patches.add_running_sum(table.assign(top1=table["cls_similarity"]))]
            for order in patches.ORDERS
        ]
    )
    assert patches.trend_verdict(rho, "cls_similarity", "top1").holds is False
    assert "running sum" in patches.order_verdict(rho).evidence
    falling = table.assign(top1=-table["cls_similarity"])
    assert patches.decile_verdict(falling, resamples=50, seed=0).holds is True
    seeing = table.assign(top1=table["covered"])
    found = patches.finding_verdict(seeing, "object", "top1", "attention")
    assert found.holds is True and "AUROC 1.00" in found.evidence
    assert patches.finding_verdict(seeing, "object", "attention", "top1").holds is False
    assert patches.finding_verdict(None, "object", "top1", "attention").holds is None
    monkeypatch.undo()
    assert patches.finding_verdict(seeing, "object", "top1", "attention").holds is None


@pytest.mark.parametrize(
    "low, high, images, holds",
    [(-0.2, 0.2, 100, True), (-0.1, 0.5, 100, None), (0.1, 0.5, 100, False), (0.1, 0.5, 9, None),
     (-0.4, 0.2, 100, None), (0.05, 0.2, 100, None)],
)  # fmt: skip
def test_a_wide_interval_is_no_level_curve(low, high, images, holds):
    """The last but one is lopsided, as noisy draws make it; the last falls, but a little."""
    rho = max(low, 0.0)
    rows = [
        {"order": order, "quantity": quantity, "reading": reading, "rho": rho, "low": low,
         "high": high, "images": images}
        for order in patches.ORDERS
        for quantity in patches.QUANTITIES
        for reading in ("mean curve", "within image")
    ]  # fmt: skip
    rho = pd.DataFrame(rows)
    assert patches.trend_verdict(rho, "attention", "top1").holds is holds
    assert patches.order_verdict(rho).holds is holds
    one = (rho["quantity"] == "top1") & (rho["order"] == "attention")
    rho.loc[one, ["low", "high"]] = 0.05, 0.4
    if images >= 10:
        assert patches.order_verdict(rho).holds is False  # one falls, whatever the other


def test_a_lead_is_judged_on_the_same_draws(table):
    lead = patches.auroc_lead(table, "object", "top1", "attention", resamples=40, seed=2)
    clear = patches.truth(table, "object")
    gaps = []
    for weight in np.vstack([np.ones(6, int), patches.draws(6, 40, 2)]):
        drawn = pd.concat(
            [clear[clear["image"] == f"test-{i}"] for i in range(6) for _ in range(weight[i])]
        )
        gaps.append(
            roc_auc_score(drawn["positive"], drawn["top1"])
            - roc_auc_score(drawn["positive"], drawn["attention"])
        )
    assert lead.mean == pytest.approx(gaps[0])
    assert (lead.low, lead.high) == pytest.approx(tuple(np.quantile(gaps[1:], [0.025, 0.975])))
    assert (lead.n, lead.clusters) == (len(clear), 6)


def test_some_of_the_most_similar_are_silent(table, monkeypatch):
    monkeypatch.setattr(verdict, "LEAST_IMAGES", 6)
    highest = []
    for _, part in table.groupby("image"):
        rows = sorted(part.itertuples(), key=lambda r: (-r.cls_similarity, r.patch))[:2]
        highest += [r.top1 < 0.1 for r in rows]
    found = patches.silent_verdict(table, resamples=50, seed=0)
    assert found.evidence.startswith(f"{np.mean(highest):.0%} (95%")
    assert patches.silent_verdict(table.assign(top1=0.05), resamples=50, seed=0).holds is True
    assert patches.silent_verdict(table.assign(top1=0.5), resamples=50, seed=0).holds is False


def test_odds_ratio_is_mantel_haenszel():
    rng = np.random.default_rng(3)
    exposed, outcome = rng.random(300) < 0.3, rng.random(300) < 0.4
    image = rng.integers(0, 5, 300)
    top = bottom = 0.0
    for i in range(5):
        at = image == i
        a = np.sum(exposed & outcome & at)
        b = np.sum(exposed & ~outcome & at)
        c = np.sum(~exposed & outcome & at)
        d = np.sum(~exposed & ~outcome & at)
        top, bottom = top + a * d / at.sum(), bottom + b * c / at.sum()
    found = maps.odds_ratio(exposed, outcome, image, resamples=200)
    assert found.mean == pytest.approx(top / bottom)
    assert found.low < found.mean < found.high and found.clusters == 5
    assert math.isnan(maps.odds_ratio(exposed, outcome & False, image).mean)


def test_tsne_is_the_same_each_time():
    points = np.random.default_rng(4).normal(size=(40, 6))
    assert np.array_equal(maps.tsne(points, steps=250), maps.tsne(points, steps=250))
    assert maps.tsne(points[:2]).shape == (2, 2)


def test_questions_are_spread_over_scenes_and_balanced():
    drawn = asking.asked_scenes("calibration", 8)
    asked = asking.ask(drawn, asking.FIVE_TASKS, 8)
    wide = {scene.id for scene in drawn if scene.image.size == asking.WIDE}
    assert len(drawn) == 12 and len(wide) == 4
    for task in asking.FIVE_TASKS:
        part = [q for q in asked if q.task == task]
        images = {q.image for q in part}
        # The four rotations of an MMBench question count as one, the two of an MME pair as two.
        units = {"mmb": len({(q.image, q.group) for q in part}), "mme": len(part)}
        assert units.get(task, len(part)) == 8
        assert images <= wide if task == "rwqa" else not images & wide
        assert len(images) == {"mme": 4, "rwqa": 4, "mmb": 8}.get(task, len(images))
        if task.startswith("pope") or task == "seed":
            assert len(images) >= 7
    pope = [q.answer for q in asked if q.task == "pope-random"]
    assert pope.count("yes") == pope.count("no") == 4
    pairs = pd.Series([(q.image, q.group) for q in asked if q.task == "mme"]).value_counts()
    assert (pairs == 2).all()
    rotations = pd.Series([(q.image, q.group) for q in asked if q.task == "mmb"]).value_counts()
    assert (rotations == 4).all()


def test_every_method_is_asked_along_the_curve():
    p = Params(
        methods=["prumerge", "oracle"], budgets=[9, 4], curve=[2, 4, 20], random_seeds=2,
        n_questions=8, n_further=3,
    )  # fmt: skip
    found = pruning.rules(p, 16, pd.DataFrame({"budget": [9, 4], "r": [0.5, 0.4]}))
    names = ("ours", "random", "prumerge", "oracle")
    at = {asked.rule.tokens: [] for asked in found}
    for asked in found:
        at[asked.rule.tokens].append((asked.method, asked.seed, asked.limit, asked.captions))
    # 20 are more than there are; the budgets have more draws, thresholds and captions.
    assert at.keys() == {16, 0, 9, 4, 2}
    assert sorted(at[2]) == sorted((name, 0, 3, False) for name in names)
    assert at[9] == at[4] == [
        ("ours", 0, 8, True), ("random", 0, 8, True), ("random", 1, 8, True),
        ("prumerge", 0, 8, True), ("oracle", 0, 3, False), ("threshold", 0, 3, False),
    ]  # fmt: skip


def test_a_wide_scene_with_one_question_is_made_up_for():
    """Three of the first 150 yield one question in place of two."""
    drawn = asking.asked_scenes("test", 300)
    wide = [scene for scene in drawn if asking._is_wide(scene)]
    assert len(drawn) - len(wide) == 300 and len(questions(wide[:150], "rwqa")) == 297
    assert len({scene.id for scene in wide}) == len(wide) == 152
    assert len(asking.ask(drawn, ("rwqa",), 300)) == 300


def test_even_one_question_a_task_asks_all_five():
    asked = asking.ask(asking.asked_scenes("calibration", 1), asking.FIVE_TASKS, 1)
    counts = pd.Series([q.task for q in asked]).value_counts()
    assert counts.to_dict() == {**dict.fromkeys(asking.FIVE_TASKS, 1), "mme": 2, "mmb": 4}


def test_five_task_mean_counts_pope_once():
    rows = [("pope-random", 1), ("pope-random", 0), ("pope-popular", 1), ("pope-adversarial", 0)]
    rows += [("mme", 1), ("mmb", 0), ("seed", 1), ("seed", 0), ("rwqa", 1), ("count", 0)]
    answers = pd.DataFrame(rows, columns=["task", "correct"])
    found = asking.five(answers)
    assert found["pope"] == pytest.approx(0.5)
    assert found["mean"] == pytest.approx((0.5 + 1 + 0 + 0.5 + 1) / 5)
    assert asking.strata(answers).tolist()[-2:] == ["rwqa", ""]


class Stage:
    """A session without notebook: parameters, model, tables in a temporary folder."""

    def __init__(self, folder, vlm, **parameters):
        self.params = Params(**({"model": "tiny-llava-1.5"} | parameters))
        self.model, self.folder, self.name = vlm, folder, "test"
        self.asked = []

    def store(self, kind, *, notebook="05", code=(), **key):
        return Store(self.folder / notebook / kind, key)

    def file(self, name):
        return self.folder / name

    @property
    def source(self):
        return Images(self.params)

    def images(self, role, n, *, start=0):
        return self.source.take(role, n, start=start)

    def of_images(self, role):
        return self.source.key(role)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, tiny_vlm):
    return Stage(
        tmp_path_factory.mktemp("stage"), tiny_vlm, prompt="what does this image show ?",
        top_prob=20, codebook_images=4, n_questions=2, n_calibration=2, budgets=[4, 9],
        study_images=2, study_patches=9, tsne_images=2, random_seeds=2, curve=[2, 9],
        methods=["prumerge", "fastv", "sparsevlm", "downsample", "probe", "oracle"], n_further=1,
        n_captions=1,
    )  # fmt: skip


def test_study_measures_and_resumes(stage, monkeypatch):
    table = patches.study(stage)
    assert len(table) == 18 and table["image"].nunique() == 2
    assert table["top1"].std() > 0 and (table["jsd_final"] > 0).all()
    scene = scenes("test", 1, start=patches.START)[0]
    tokens = stage.model.encode([scene.image]).tokens[0]
    layers = list(stage.model.layers)
    literal = patches.states.attention(stage.model, tokens, prompt=stage.params.prompt)[layers]
    first = table[table["image"] == scene.id]
    assert np.allclose(first["attention"], literal.sum(axis=0)[first["patch"]], rtol=1e-5)
    monkeypatch.setattr(patches, "measure", None)
    assert patches.study(stage).equals(table)


def test_codebook_from_end_to_end(stage):
    probes = codebooks.probe_images(stage)
    table = codebooks.cascade_images(stage, probes)
    assert len(table) == len(probes)
    # Lossless: where there is no divergence no setting of the grid could have let the token pass.
    closed = table[table["jsd_final"].isna()]
    found = codebooks.settings_of(stage, probes)
    most = {name: max(value for _, value in rows) for name, rows in found.items()}
    fails = (closed["top1_head"] >= most["tau_prob"]) | (closed["cluster_size"] >= most["tau_out"])
    assert fails.all() and 0 < len(closed) < len(table)
    scores = codebooks.score_grid(stage, table)
    assert scores["setting"].tolist()[-2:] == ["unpruned", "random"]
    best = codebooks.chosen_row(stage, scores)
    assert scores.loc[best, "prototypes"] > 0
    criteria = codebooks.chosen(stage, scores)
    built = codebooks.build(stage, table, criteria)
    assert built.survivors["prototypes"] == len(built.codebook) == scores.loc[best, "prototypes"]
    sizes = pd.Series(built.clusters.labels).value_counts()
    kept = built.candidates[built.candidates["prototype"]]
    assert (sizes[kept["cluster"]] > criteria.tau_in).all()
    # A prototype is the visual token of the image and patch that it names.
    name, patch = built.codebook.image[0], built.codebook.patch[0]
    scene = codebooks.training_scenes(stage)[name]
    token = stage.model.encode([scene.image]).tokens[0, patch]
    assert torch.allclose(built.codebook.vectors[0], token, atol=1e-5)


def test_scores_of_other_codebooks_are_not_taken_for_these(stage):
    """The same thresholds may make other codebooks, by another rule."""
    table = codebooks.cascade_images(stage, codebooks.probe_images(stage))
    other = copy.copy(stage)
    other.params = stage.params.model_copy(update={"rule_in": "images"})
    codebooks.score_grid(stage, table)
    with pytest.raises(RedlibError, match="made with books = "):
        codebooks.score_grid(other, table)


def test_a_codebook_is_kept_with_what_it_follows_from(stage, tmp_path):
    table = codebooks.cascade_images(stage, codebooks.probe_images(stage))
    chosen = codebooks.chosen(stage, codebooks.score_grid(stage, table))
    built = codebooks.build(stage, table, chosen)
    here = copy.copy(stage)
    here.folder = tmp_path
    codebooks.keep(here, built)
    assert Codebook.load(tmp_path / "codebook.safetensors").digest == built.codebook.digest
    told = json.loads((tmp_path / "codebook.json").read_text())
    assert told["codebook_images"] == 4 and told["tau_prob"] == "calibrated"


def test_explicit_thresholds_are_taken_and_may_leave_nothing(stage):
    fixed = Stage(
        stage.folder / "fixed", stage.model, **stage.params.model_dump()
        | {"tau_prob": 0.9, "tau_out": 30.0, "tau_jsd": 10.0, "tau_in": 1000.0},
    )  # fmt: skip
    probes = codebooks.probe_images(fixed)
    table = codebooks.cascade_images(fixed, probes)
    grid = codebooks.grid_settings(fixed, table)
    assert grid[list(codebooks.GRID)].to_numpy().tolist() == [[0.9, 30.0, 10.0, 1000.0]]
    with pytest.raises(RedlibError, match=r"no patch survives.*tau_prob \d+.*tau_in 1000"):
        codebooks.build(fixed, table, codebooks.criteria_of(fixed, grid.iloc[0]))


@pytest.fixture(scope="module")
def numbers(stage):
    """Parameters whose thresholds are numbers, and every reading of every token."""
    images = {s.id: s.image for s in codebooks.training_scenes(stage).values()}
    full = stages.read_images(stage.model, images, [stages.EAGER], codebooks.probing(stage))
    numbers = {
        "tau_prob": float(np.sort(full["top1_head"])[[60, 61]].mean()),
        "tau_out": float(full["cluster_size"].median()),
        "tau_jsd": float(np.sort(full["jsd_final"])[[70, 71]].mean()),
        "tau_in": 1.0,
    }
    return stage.params.model_dump() | numbers, full


def test_numbers_stop_tokens_early_and_parts_say_so(stage, numbers, monkeypatch):
    parameters, full = numbers
    folder = stage.folder / "numbers"
    given = Stage(folder, stage.model, **parameters)
    probes = codebooks.probe_images(given)
    small = full["cluster_size"] < parameters["tau_out"]
    assert 0 < small.sum() < len(full)
    assert (probes["top1_head"].notna() == small).all()
    table = codebooks.cascade_images(given, probes)
    criteria = codebooks.criteria_of(given, parameters)
    wanted = codebooks.candidates(full, criteria)[0]
    built = codebooks.build(given, table, criteria)
    assert built.candidates["patch"].tolist() == full.loc[wanted, "patch"].tolist()
    counts = codebooks.stage_counts(given, table, built)
    assert counts["forwards"].tolist() == counts["forwards_spent"].tolist()
    assert counts["forwards"].sum() < counts["eager"].sum() / 2
    # Again: nothing is read. One image more: it alone is read.
    read, calls = stages.read, []
    monkeypatch.setattr(stages, "read", lambda *a, **k: calls.append(1) or read(*a, **k))
    assert codebooks.cascade_images(given, codebooks.probe_images(given)).equals(table)
    assert calls == []
    more = Stage(folder, stage.model, **parameters | {"codebook_images": 5})
    longer = codebooks.cascade_images(more, codebooks.probe_images(more))
    assert len(calls) == 2 and longer[: len(table)]["patch"].equals(table["patch"])
    # Another threshold needs rows that these parts lack.
    other = {"tau_prob": 0.9, "tau_out": 30.0, "rule_out": "at-most", "tau_jsd": 10.0}
    for name, value in other.items():
        changed = Stage(folder, stage.model, **parameters | {name: value})
        with pytest.raises(RedlibError, match=f"made with {name} = "):
            codebooks.cascade_images(changed, codebooks.probe_images(changed))


def test_ablation_reads_what_its_sets_need_once(stage, numbers, monkeypatch):
    parameters, full = numbers
    given = Stage(stage.folder / "ablation", stage.model, **parameters)
    table = codebooks.cascade_images(given, codebooks.probe_images(given))
    criteria = codebooks.criteria_of(given, parameters)
    found = codebooks.ablation_codebooks(given, table, criteria, 4)
    assert len(found) == 6
    names = list(codebooks.training_scenes(given))
    for row, (setting, images) in stages.ablation(criteria, 4).items():
        part = full[full["image"].isin(names[:images])].reset_index(drop=True)
        try:
            wanted = codebooks.build(given, part, setting).codebook
        except NoPrototype:
            assert found[row] is None
            continue
        assert found[row].codebook.patch == wanted.patch, row
        assert found[row].codebook.image == wanted.image, row
    monkeypatch.setattr(stages, "read", None)
    again = codebooks.ablation_codebooks(given, table, criteria, 4)
    assert [b and len(b.codebook) for b in again.values()] == [
        b and len(b.codebook) for b in found.values()
    ]
    assert sum(b is not None for b in again.values()) > 3


def test_evaluation_from_end_to_end(stage):
    codebook = pruning.load_codebook(stage)
    assert codebooks.codebook_path(stage).is_file()
    again = pruning.load_codebook(stage)
    assert torch.equal(again.vectors, codebook.vectors) and isinstance(again, Codebook)
    limits = pruning.thresholds(stage, codebook)
    assert np.allclose(limits["calibration_mean"], limits["budget"], atol=0.51)
    answers = pruning.answer_images(stage, codebook, limits)
    of_question = ["task", "image", "question"]
    per = answers[~answers["task"].isin(asking.CAPTIONED)]
    per = per.groupby(["method", "tokens", "seed"])[of_question].apply(
        lambda part: set(part.itertuples(index=False, name=None))
    )
    all_, few = per["unpruned", 25, 0], per["fastv", 4, 0]
    assert few < all_ and {len(asked) for asked in per} == {len(few), len(all_)}
    for method, tokens, seed in per.index:
        whole = method in ("unpruned", "none") or (
            method in ("ours", "random", "prumerge") and tokens in (4, 9)
        )
        assert per[method, tokens, seed] == (all_ if whole else few), (method, tokens)
    methods = {"unpruned", "none", "ours", "random", "threshold", *stage.params.methods}
    assert set(answers["method"]) == methods
    at_2 = set(answers["method"][answers["tokens"] == 2])
    assert at_2 == methods - {"unpruned", "none", "threshold"}
    described = answers[answers["task"].isin(asking.CAPTIONED)]
    assert set(described["method"]) == {"unpruned", "ours", "random", "prumerge", "fastv"}
    fixed = answers[~answers["method"].isin(["threshold", "unpruned", "none"])]
    assert (fixed["kept"] == fixed["tokens"]).all()
    # What an answer is and what stayed, for one image, by hand.
    name = answers["image"].iloc[0]
    part = answers[(answers["image"] == name) & (answers["task"] != "mmb")]
    scene = next(s for s in asking.asked_scenes("test", 2) if s.id == name)
    shown = scene.coverage(stage.model.sight).sum(0) + scene.word_coverage(stage.model.sight)
    tokens = stage.model.encode([scene.image]).tokens[0]
    lowest = prune.keep_lowest(prune.redundancy(tokens, codebook), 9).numpy()
    ours = part[(part["method"] == "ours") & (part["tokens"] == 9)]
    said = bench.answers(stage.model, tokens[lowest], list(ours["question"]), max_new_tokens=8)
    assert ours["answer"].tolist() == said
    assert np.allclose(ours["informative"], lowest[shown >= 0.5].mean())
    assert part.loc[part["method"] == "downsample", "informative"].isna().all()
    right = [
        bench.is_correct(r.task, r.answer, r.gold, question=r.question) for r in ours.itertuples()
    ]
    assert ours["correct"].tolist() == right
    told = answered.realised(answers, limits)
    assert told["test_mean"].between(told["least"], told["most"]).all()
    gap = scoring.gap(answers, tokens=4, resamples=20)
    gap = gap.assign(images=20)
    summary = scoring.scores(answers, resamples=20)
    assert answered.better_verdict(summary, gap, 4).holds in (True, False, None)
    assert "Ours reaches" in answered.conclusion(summary, {4: gap})
    costs = savings.costs(stage, codebook)
    assert costs["operations"].iloc[1] == 2_141_979_264
    # N (2d - 1) operations a token, over two per parameter
    share = 454 * (2 * 4096 - 1) / (2 * savings.PAPER_LAYERS)
    assert costs["share_of_prefill"].iloc[1] == pytest.approx(share)
    assert savings.write_times(stage, codebook, repeats=1).endswith("06-times.json")


def test_the_papers_layers_are_those_of_its_shape():
    shape = SHAPES["llava-hf/llava-1.5-7b-hf"]
    assert savings.PAPER_LAYERS == shape.layers * shape.layer
    assert savings.PAPER_CODEBOOKS["LLaVA-1.5"][1] == shape.width
    assert savings.PAPER_TOKENS == shape.grid.size


def test_a_long_build_names_the_command(stage, monkeypatch):
    empty = SimpleNamespace(
        params=stage.params, model=stage.model, name="mine", folder=stage.folder / "none"
    )
    monkeypatch.setattr(pruning, "seconds_to_build", lambda session: 3600.0)
    with pytest.raises(RedlibError, match=r"60 minutes.*redlib run params/mine.yaml --only 05"):
        pruning.load_codebook(empty)
