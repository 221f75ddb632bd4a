"""Figures of notebooks 04 to 06: drawn from small tables, with texts that quote these tables."""

import io
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_scoring import answers_of

from redlib.clustering import cluster_tokens
from redlib.codebook import Codebook, Criteria
from redlib.figures import codebooks as book_figures
from redlib.figures import falloff, walk
from redlib.figures import pruning as prune_figures
from redlib.figures import study as study_figures
from redlib.figures.veil import greyed
from redlib.geometry import Grid
from redlib.params import _Pruner
from redlib.prune import METHODS
from redlib.study import codebooks, maps, patches, pruning, savings, scoring

GRID = Grid(6, 6)
VIEW = Image.fromarray(
    np.random.default_rng(0).integers(0, 255, (84, 84, 3), dtype=np.uint8), "RGB"
)


def drawn(figure: Figure) -> int:
    """Number of bytes of the picture; fails if it cannot be drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return len(buffer.getvalue())


def _six_layers() -> SimpleNamespace:
    """Six layers of four parameters, as much of a model as `savings.with_reading` asks for."""
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 1, bias=False) for _ in range(6))
    return SimpleNamespace(decoder=SimpleNamespace(layers=layers))


def texts(note: dict) -> str:
    assert note.keys() == {"title", "caption", "reading", "alt", "paper_item"}
    assert all(text.strip() for text in note.values())
    assert "nan" not in " ".join(note.values()).lower().split()
    assert "model-x" in note["caption"]
    return note["alt"]


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    """Eight images of 36 patches; top-1 follows the truth, the rest is noise."""
    rng = np.random.default_rng(1)
    rows = []
    for image in range(8):
        covered = rng.choice([0.0, 0.3, 1.0], 36)
        rows.append(
            pd.DataFrame(
                {
                    "image": f"test-{image}",
                    "objects": 1 + image % 3,
                    "patch": np.arange(36),
                    "top1": np.clip(0.2 + 0.5 * covered + rng.normal(0, 0.05, 36), 0.01, 1),
                    "top1_head": rng.random(36),
                    "jsd_final": rng.random(36) * 1e-3 + 1e-6,
                    "cls_similarity": rng.normal(0, 0.3, 36),
                    "norm": rng.random(36),
                    "attention": rng.random(36) + 1e-5,
                    "attention_asked": rng.random(36),
                    "covered": covered,
                    "written": 0.0,
                    "asked_covered": covered * (np.arange(36) % 2),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_by_rank_draws_and_quotes_the_correlations(study):
    both = pd.concat(
        [patches.curves(study, order, resamples=20) for order in ("cls_similarity", "attention")]
    )
    rho = pd.concat(
        [
            patches.rank_correlations(study, order, resamples=20)
            for order in ("cls_similarity", "attention")
        ]
    )
    figure = study_figures.by_rank(both)
    assert len(figure.axes) == 8 and drawn(figure) > 5000
    alt = texts(study_figures.by_rank_note(both, rho, model="model-x", n="8 images"))
    assert f"{rho.iloc[1]['rho']:+.2f}" in alt


def test_running_sum_deciles_and_example(study):
    table = patches.add_running_sum(study)
    rho = pd.concat(
        [
            patches.rank_correlations(table, o, resamples=20)
            for o in ("attention", "attention_running")
        ]
    )
    texts(study_figures.running_sum_note(rho, model="model-x", n="8 images"))
    tenths = patches.deciles(study, resamples=20)
    assert drawn(study_figures.deciles(tenths)) > 3000
    alt = texts(study_figures.deciles_note(tenths, model="model-x", n="8 images"))
    assert f"{tenths['mean'].iloc[0]:.2f}" in alt
    one = study[study["image"] == "test-0"]
    assert drawn(study_figures.example(VIEW, one, GRID)) > 5000
    texts(study_figures.example_note(one, model="model-x"))


@pytest.mark.parametrize("enough", [True, False])
def test_areas_and_levels_with_and_without_covered_patches(study, enough):
    table = study if enough else study.assign(covered=0.0, asked_covered=np.nan)
    areas = pd.concat([patches.auroc(table, t, resamples=20) for t in patches.TARGETS])
    levels = pd.concat(
        [patches.auroc(table, t, levels=True, resamples=20) for t in patches.TARGETS]
    )
    assert drawn(study_figures.areas(areas)) > 3000
    assert drawn(study_figures.levels(levels)) > 3000
    alt = texts(study_figures.areas_note(areas, model="model-x"))
    assert ("not measurable" in alt) is not enough
    texts(study_figures.levels_note(levels, model="model-x"))
    scarce = study_figures.levels(levels.assign(positives=4))
    assert drawn(scarce) > 3000
    hatched = sum(len(ax.patches) for ax in scarce.axes[:3])
    assert hatched == levels["auroc"].notna().sum() and (hatched > 0) is enough


@pytest.fixture(scope="module")
def built() -> codebooks.Built:
    """24 candidates of four images in three clusters, two of them prototypes."""
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1, 2], [12, 9, 3])
    rows = pd.DataFrame(
        {
            "image": [f"train-{i % 4}" for i in range(24)],
            "patch": rng.permutation(36)[:24],
            "top1_head": rng.random(24) * 0.1,
            "jsd_final": rng.random(24) * 1e-3,
            "cluster": label,
            "cluster_size": np.array([12, 9, 3])[label],
            "cluster_images": 3,
            "prototype": label < 2,
        }
    )
    vectors = torch.from_numpy(rng.normal(size=(24, 5)).astype(np.float32))
    criteria = Criteria(0.5, 8, 4, 1.0)
    kept = rows[rows["prototype"]]
    book = Codebook(
        vectors[:21], tuple(kept["image"]), tuple(kept["patch"]), "model-x", "r", criteria
    )
    clusters = cluster_tokens(vectors, 5, 3)
    counts = {"probed": 96, "tau_prob": 50, "tau_out": 60, "tau_jsd": 40, "candidates": 24}
    survivors = pd.Series(counts | {"prototypes": 21})
    stages = pd.DataFrame(
        {
            "stage": ["cluster", "single", "region", "global"],
            "patches": [96, 60, 40, 30],
            "forwards": [0, 60, 80, 34],
            "eager": [0, 96, 192, 100],
            "survivors": [60, 40, 30, 24],
        }
    )
    return codebooks.Built(criteria, survivors, rows, vectors, clusters, book, stages)


def test_figures_of_the_codebook(built):
    views = {f"train-{i}": VIEW for i in range(4)}
    rng = np.random.default_rng(3)
    rows = pd.DataFrame(
        {
            "image": "train-0",
            "patch": np.arange(36),
            "cluster_size": rng.integers(1, 20, 36),
            "top1_head": rng.random(36),
            "jsd_final": np.where(rng.random(36) < 0.5, np.nan, 0.5),
        }
    )
    figure = book_figures.construction(rows, built, views, GRID)
    assert drawn(figure) > 5000
    alt = texts(book_figures.construction_note(rows, built, model="model-x"))
    computed = int(rows["jsd_final"].notna().sum())
    assert "21 become prototypes" in alt and f"tau_jsd {computed} of {computed} computed" in alt
    titles = [ax.get_title("center") for ax in figure.subfigs[0].axes]
    assert titles[3].endswith(f"tau_jsd: {computed}\nof {computed} computed")
    assert not any("computed" in title for title in titles[:3])
    placed = built.candidates.assign(x=rng.normal(size=24), y=rng.normal(size=24))
    assert drawn(book_figures.candidate_map(placed, tau_in=4)) > 3000
    assert "21 of 24 candidates" in texts(
        book_figures.candidate_map_note(placed, built, model="model-x")
    )
    assert drawn(book_figures.contact_sheet(built, views, GRID)) > 3000
    words = pd.Series(["cup"] * 12 + ["star"] * 9)
    assert "cup 12" in texts(book_figures.contact_sheet_note(built, words, model="model-x"))


def test_stages_table_sums_forwards(built):
    counts = built.stages.assign(patches_read=96, forwards_spent=[0, 96, 100, 64])
    shown = book_figures.stages_table(counts)
    assert shown.iloc[-1].tolist() == ["all", "-", "-", "174", "388", "44.8%", "260"]
    assert shown["Share"].tolist()[:2] == ["-", "62.5%"]
    alt = texts(book_figures.stages_note(counts, model="model-x"))
    assert "global 24" in alt and "34.0%" in alt and "44.8%" in alt


def test_a_cut_at_the_border_is_filled_with_grey():
    pixels = book_figures.cut(VIEW, GRID, 0)
    assert pixels.shape == (42, 42, 3)
    assert (pixels[:14] == 217).all() and (pixels[:, :14] == 217).all()
    assert np.array_equal(pixels[14:28, 14:28], np.asarray(VIEW)[:14, :14])


def test_token_map_grid_and_odds():
    rng = np.random.default_rng(4)
    rows = pd.DataFrame(rng.random((36, 4)), columns=["x", "y", "top1_head", "cls_similarity"])
    rows["image"] = "test-0"
    rows["word"] = np.where(rows["top1_head"] < 0.5, "unsure", "cup")
    figure = book_figures.token_map(rows, low=0.2)
    assert drawn(figure) > 5000
    assert {text.get_text() for text in figure.axes[0].texts} == {"cup"}
    n = int((rows["top1_head"] < 0.2).sum())
    assert f"{n} of 36 tokens" in texts(book_figures.token_map_note(rows, low=0.2, model="model-x"))
    scores = pd.DataFrame(
        {
            "setting": ["1", "2", "3", "unpruned", "random"],
            "tau_prob": [0.1, 0.2, 0.2, np.nan, np.nan],
            "tau_out": [8, 8, 24, np.nan, np.nan],
            "tau_jsd": [1e-4, 1e-3, 1e-3, np.nan, np.nan],
            "tau_in": [6, 6, 6, np.nan, np.nan],
            "tau_prob_entry": [0.1, np.nan, np.nan, np.nan, np.nan],
            "prototypes": [100, 300, 0, np.nan, np.nan],
            "mean": [0.7, 0.6, np.nan, 0.9, 0.55],
        }
    )
    assert drawn(book_figures.grid_scores(scores, 1)) > 3000
    note = book_figures.grid_note(scores, 1, model="model-x", images=4)
    assert "chosen 60.0% with 300 prototypes" in texts(note)
    assert "fewer than that (1)" in note["caption"] and "tau_jsd also varies" in note["caption"]
    table = pd.DataFrame(rng.random((400, 1)), columns=["top1_head"])
    table["image"] = np.repeat(np.arange(10), 40)
    for centres in maps.CENTRES:
        table[f"size_{centres}"] = rng.integers(1, 30, 400) * 8 // centres
    found = maps.odds_ratios(table, bounds=[(0.3, 8), (0.5, 24)], resamples=50)
    assert drawn(book_figures.odds(found)) > 3000
    assert "triangle" not in book_figures.odds_note(found, model="model-x")["caption"]
    none = found.assign(odds_ratio=0.0, low=0.0)
    assert drawn(book_figures.odds(none)) > 3000
    assert "A triangle" in book_figures.odds_note(none, model="model-x")["caption"]
    assert f"{found['odds_ratio'].iloc[1]:.2f}" in texts(
        book_figures.odds_note(found, model="model-x")
    )


def test_figures_of_the_evaluation():
    rng = np.random.default_rng(5)
    kept = rng.random(36) < 0.5
    shown = pd.DataFrame(
        {
            "question": ["Is there a cup in the image?"] * 2,
            "gold": ["yes", "no"],
            "pruned": ["Yes", ""],
            "unpruned": ["yes.", "no"],
            "pruned_right": [True, False],
            "unpruned_right": [True, True],
        }
    )
    scores = rng.random(36)
    assert drawn(walk.pipeline(VIEW, scores, kept, shown, GRID)) > 5000
    alt = texts(walk.pipeline_note(scores, kept, rng.random(36), shown, model="model-x"))
    assert "50% of the answers shown are right with the kept tokens, 100% with all" in alt
    note = walk.pipeline_note(
        scores, kept, rng.random(36), shown.iloc[:1], model="model-x"
    )  # fmt: skip
    assert "(a tick: right)" in note["caption"]  # no answer shown is wrong
    shown = pd.DataFrame({"patch": range(36), "score": scores, "kept": kept, "covered": 0.0})
    shown["prototype"] = rng.integers(0, 3, 36)
    origins = {number: (VIEW, 5 * number) for number in range(3)}
    assert drawn(walk.removed(VIEW, shown, origins, GRID)) > 5000
    alt = texts(walk.removed_note(shown, model="model-x", origins=origins))
    assert f"3 prototypes removed {int((~kept).sum())} tokens" in alt
    answers = answers_of(
        {("unpruned", 36): 0.9, ("none", 0): 0.1, ("ours", 8): 0.8, ("ours", 16): 0.8,
         ("fastv", 16): 0.7, ("prumerge", 8): 0.5, ("random", 8): 0.5, ("oracle", 8): 0.8},
        rng,
    )  # fmt: skip
    summary, shares = (f(answers, resamples=50) for f in (scoring.scores, scoring.shares))
    figure = falloff.curve(shares)
    assert drawn(figure) > 3000
    left, right = figure.axes
    assert [name for name in left.get_legend_handles_labels()[1] if "token" not in name] == [
        "Ours, R lowest", "PruMerge", "FastV", "Random",
    ]  # fmt: skip
    assert [text.get_text() for text in right.texts] == ["Ours, R lowest", "Oracle"]
    alone = falloff.curve(shares[shares["method"] != "oracle"])
    assert len(alone.axes) == 1 and len(alone.legends) == 1
    once = shares[shares["tokens"].isin([0, 8])]
    dots = falloff.curve(once)
    assert drawn(dots) > 3000
    assert [tick.get_text() for tick in dots.axes[0].get_yticklabels()] == [
        "Ours, R lowest", "PruMerge", "Random", "Oracle",
    ]  # fmt: skip
    note = falloff.curve_note(once, model="model-x", depth=6, size=36)
    assert "sideways" not in " ".join(note.values()) and "on the left" not in note["caption"]
    at = shares.set_index(["method", "tokens", "task"])["share"]
    note = falloff.curve_note(shares, model="model-x", depth=6, size=36)
    assert f"PruMerge: {at['prumerge', 8, 'mean']:.0%} at 8" in texts(note)
    assert f"Oracle: {at['oracle', 8, 'mean']:.0%} at 8" in note["alt"]
    assert "Dashed: the masks" in note["caption"]
    photographs = shares[shares["method"] != "oracle"]
    note_of = falloff.curve_note(photographs, model="model-x", depth=6, size=36)
    assert "Dashed" not in note_of["caption"]
    read = [36, 36, 16, 16, 16, 16]  # by six layers
    assert f"at 16 tokens a layer reads {np.mean(read):.0f} on average" in note["caption"]
    sparse = shares[shares["method"] == "fastv"].assign(method="sparsevlm", tokens=8)
    both = pd.concat([shares, sparse])
    note = falloff.curve_note(both, model="model-x", depth=6, size=36)
    read = [36, 36, 22, 13, 8, 8]
    assert f"at 8 a layer reads {np.mean(read):.0f} on average" in note["caption"]
    summary = savings.with_reading(summary, _six_layers())
    assert (summary["prefill"] == 2 * 4 * 6 * 1e-6 * summary["layer_tokens"]).all()
    read = summary.set_index(["method", "tokens"])["layer_tokens"]
    assert read["fastv", 16].iloc[0] == np.mean([36, 36, 16, 16, 16, 16])
    assert read["ours", 8].iloc[0] == 8
    assert savings.layer_tokens("sparsevlm", 36, 8, 6) == np.mean([36, 36, 22, 13, 8, 8])
    table = prune_figures.accuracy_table(summary, shares)
    assert table["Method"].tolist() == [
        "all tokens", "Ours, R lowest", "FastV", "Ours, R lowest", "PruMerge", "Random",
        "no visual token", "Not in the paper's Table 1:", "Oracle",
    ]  # fmt: skip
    row = summary.set_index(["method", "tokens", "task"]).loc["ours", 8, "pope"]
    assert table["POPE"].iloc[3].startswith(f"{100 * row['accuracy']:.1f} [")
    about = {"model": "model-x", "depth": 6, "size": 36, "seeds": 3}
    assert "With five tiles" not in texts(prune_figures.accuracy_note(summary, **about))
    tiled = pd.concat([summary, summary.assign(setting="split")])
    assert "With five tiles FastV keeps" in prune_figures.accuracy_note(tiled, **about)["caption"]
    found = scoring.informative(answers, resamples=20)
    assert drawn(falloff.informative(found, shares)) > 3000
    points = falloff.informative_table(found, shares)
    assert len(points) == 6 and points["share"].notna().all()
    note = falloff.informative_note(found, shares, model="model-x")
    assert "Random at 8" in texts(note) and "correlation" not in note["alt"]  # of six points
    more = pd.concat([found, found.assign(tokens=found["tokens"] + 1)])
    shares_of_more = pd.concat([shares, shares.assign(tokens=shares["tokens"] + 1)])
    alt = texts(falloff.informative_note(more, shares_of_more, model="model-x"))
    assert "Rank correlation" in alt and "over 12 methods" in alt
    for name, readable, rows in (
        ("shares", prune_figures.shares_table, shares),
        ("rivals", prune_figures.rivals_table, scoring.rivals(answers, resamples=20)),
        ("steps", prune_figures.steps_table, scoring.steps(answers, resamples=20)),
        ("official", prune_figures.official_table, scoring.official(answers)),
        ("informative-kept", prune_figures.informative_gaps_table,
         scoring.informative_gaps(answers, resamples=20)),
    ):  # fmt: skip
        shown = readable(rows)
        assert len(shown) and texts(prune_figures.note(name, shown, model="model-x"))
    table = pd.DataFrame(
        {
            "task": ["pope", "mmb", "mean"],
            "difference": [0.1, 0, -0.02],
            "low": [0, 0, -0.1],
            "high": [0.2, 0, 0.00018],
            "n": [10, 40, 50],
            "images": [9, 10, 19],
        }
    )
    figure = prune_figures.differences({8: table, 16: table})
    assert drawn(figure) > 3000
    assert [len(ax.containers) for ax in figure.axes] == [2, 2]  # nine images have no interval
    assert [text.get_text() for text in figure.axes[0].texts] == ["no image differs"]
    note = prune_figures.differences_note({8: table}, model="model-x", seeds=3)
    assert "at 8 tokens -2.0 points (-10.0 to +0.02)" in texts(note)
    assert "Hollow" in note["caption"] and "NoCaps" not in note["caption"]
    many = prune_figures.differences_note({8: table.iloc[1:]}, model="model-x", seeds=3)
    assert "Hollow" not in many["caption"]
    assert set(summary["method"]) <= set(pruning.METHODS)
    assert set(get_args(_Pruner)) == set(METHODS) - {"codebook", "random"}


def test_names_of_lines_are_pushed_apart_in_their_order():
    moved = falloff._apart([5, 1, 5, 9], 2)
    assert moved.tolist() == [4, 1, 6, 9]
    assert falloff._apart([0, 3], 2).tolist() == [0, 3]


def test_what_is_asked_is_told_without_the_instruction():
    text = "Which object is it?\nA. cup\nB. cow\nAnswer with the option's letter."
    assert walk._asked(text) == "Which object is it? A. cup B. cow"
    assert walk._asked("Is it? Please answer yes or no.") == "Is it?"


def test_kept_patches_keep_their_colour():
    kept = np.arange(36) == 7
    ax = Figure().subplots()
    greyed(ax, VIEW, kept, GRID)
    over = np.asarray(ax.images[-1].get_array())
    assert over.shape == (84, 84, 4) and (over[14:28, 14:28, 3] == 0).all()
    assert over[..., 3].sum() == 84 * 84 - 14 * 14
