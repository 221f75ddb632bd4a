"""Figures, captions and tables of notebooks 01 to 03, drawn from made-up rows."""

from io import BytesIO
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from redlib import tables
from redlib.errors import RedlibError
from redlib.figures import probe_notes, probes, style
from redlib.geometry import Grid
from redlib.study import probing
from redlib.study.subjects import DEPTHS, VARIANTS

GRID = Grid(12, 12)
LAYERS = (0, 3, 5)
VLM = SimpleNamespace(
    name="made-up", layers=LAYERS, decoder=SimpleNamespace(layers=range(6)), grid=GRID
)
DRAWS = {"resamples": 20, "seed": 0}
NOUNS = ("cup", "star", "horse")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 255, (168, 168, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Rows of `subjects.measure` at every patch of three images."""
    rng = np.random.default_rng(0)
    frames = []
    for image in range(3):
        size = GRID.size
        coverage = np.clip(rng.uniform(-1, 1, size), 0, 1)
        truth = rng.choice(NOUNS, size)
        word = np.where(rng.random(size) < 0.5, truth, "plate")
        frame = pd.DataFrame({"image": f"test-{image}", "patch": range(size), "word": word})
        frame["top1"] = rng.uniform(0, 1, size)
        frame["top1_head"] = np.minimum(frame["top1"] * 1.1, 1)
        frame["logit"] = rng.normal(5, 1, size)
        frame["cls_similarity"] = rng.normal(0.2, 0.1, size)
        for name in ("attention", "contribution"):
            for depth in DEPTHS:
                frame[f"{name}_{depth}"] = rng.lognormal(-6, 1, size)
            frame[name] = frame[[f"{name}_{depth}" for depth in DEPTHS]].sum(axis=1)
        for suffix in VARIANTS:
            for level, scale in (("region", -5), ("global", -8), ("token", -11)):
                frame[f"jsd_{level}{suffix}"] = rng.lognormal(scale, 1, size)
            final = frame[f"jsd_region{suffix}"] + 16 * frame[f"jsd_global{suffix}"]
            frame[f"jsd_final{suffix}"] = final
        frame["noun"] = np.where(coverage > 0, truth, "")
        frame["coverage"] = coverage
        frame["right"] = frame["word"] == frame["noun"]
        frame["named"] = np.isin(word, NOUNS)
        frame["present"] = " ".join(NOUNS)
        frame["card"] = 0.0
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def one(table: pd.DataFrame) -> pd.DataFrame:
    return probing.ranked(table).query("image == 'test-0'")


@pytest.fixture(scope="module")
def sampled(one: pd.DataFrame) -> pd.DataFrame:
    return one[one["patch"].isin(GRID.stride())]


@pytest.fixture(scope="module")
def candidates(sampled: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    for patch in sampled["patch"].head(2):
        for level in ("single", "region", "global"):
            before = np.sort(rng.normal(3, 1, 10))[::-1]
            after = before + rng.normal(0, 0.5, 10)
            part = pd.DataFrame({"logit_before": before, "logit_after": after})
            part["diff"] = before - after
            part["before"], part["after"] = 0.1, (np.nan if level == "single" else 0.08)
            part["place"] = range(1, 11)
            part["word"] = [f"word{place}" for place in range(10)]
            rows.append(part.assign(patch=patch, level=level, image="test-0"))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {"image": f"test-{image}", "layer": layer, "position": position,
         "rank_current": 1 + layer * int(rng.integers(1, 20)),
         "rank_next": 1 + (6 - layer) * int(rng.integers(1, 20))}
        for image in range(3) for layer in range(7) for position in range(12)
    ]  # fmt: skip
    return probing.rank_summary(pd.DataFrame(rows), **DRAWS)


def check(drawn: Figure, note: dict[str, str]) -> None:
    """Axes with data are named, the figure can be written, and the note says something."""
    drawn.savefig(BytesIO(), format="png", dpi=40)
    for ax in drawn.axes:
        if ax.axison and len(ax.get_xticks()):
            assert ax.get_xlabel(), ax.get_title(loc="left")
    assert set(note) == {"title", "caption", "reading", "alt", "paper_item"}
    for field in ("title", "caption", "reading", "alt"):
        assert note[field].strip() and "nan" not in note[field].split()
    assert "made-up" in note["caption"]


def test_rankings(picture, table, sampled) -> None:
    shares = probing.disagreement(table, **DRAWS)
    check(
        probes.rankings(picture, sampled, shares, GRID), probe_notes.rankings(VLM, sampled, shares)
    )
    assert shares.set_index("top_of").loc["disagree", "chance"] == pytest.approx(0.5625)


def test_agreement(table) -> None:
    rho = probing.agreement(table, **DRAWS)
    check(probes.agreement(rho, layers=LAYERS, depth=6), probe_notes.agreement(VLM, rho))


def test_layer_ranks(summary) -> None:
    check(probes.layer_ranks(summary), probe_notes.layer_ranks(VLM, summary))
    assert probing.transition_verdict(summary.assign(images=10)).holds is True
    assert probing.transition_verdict(summary.assign(images=9)).holds is None


def test_pipeline(picture, sampled, candidates) -> None:
    row = sampled.iloc[0]
    part = candidates[candidates["patch"] == row["patch"]]
    drawn = probes.pipeline(
        picture, row["patch"], part, row, GRID, weights=(1.0, 16.0), prompt="what is it?"
    )
    check(drawn, probe_notes.pipeline(VLM, row))


def test_words_and_maps(picture, one) -> None:
    check(probes.words(picture, one, GRID), probe_notes.words(VLM, one))
    chosen = probing.select(one)
    drawn = probes.state_maps(picture, one, chosen, GRID, layers=LAYERS, depth=6)
    check(drawn, probe_notes.state_maps(VLM, one, chosen))
    shown = tables.selected_patches(chosen, layers=LAYERS)
    assert list(shown)[-1] == "Attention, layer 6" and len(shown) == len(chosen)
    assert probe_notes.selected(VLM, one, chosen)["alt"].startswith(f"{len(chosen)} patches")


def test_words_of_an_image_without_truth(picture, one) -> None:
    bare = one.drop(columns=["noun", "coverage", "right", "named", "present", "card"])
    check(probes.words(picture, bare, GRID), probe_notes.words(VLM, bare))


def test_coverage(table) -> None:
    right = probing.by_coverage(table, **DRAWS)
    check(probes.right_by_coverage(right), probe_notes.right_by_coverage(VLM, right))


def test_leave_one_out(picture, table, sampled, candidates) -> None:
    pair = tuple(sampled["patch"].head(2))
    check(
        probes.divergence_maps(picture, sampled, pair, GRID),
        probe_notes.divergence_maps(VLM, sampled, pair),
    )
    check(
        probes.contrast(picture, sampled, pair, candidates, GRID),
        probe_notes.contrast(VLM, sampled, pair),
    )
    other = sampled.assign(image="test-2")  # not the first of the table
    note = probe_notes.token_against_region(VLM, other, table, (3.0, 2.0, 4.0))
    check(probes.token_against_region(picture, other, table, GRID), note)
    assert "Left: test-2," in note["caption"]


def test_definitions(table) -> None:
    found = probing.definitions(table, tau_jsd=2e-3, top_jsd=20, **DRAWS)
    check(
        probes.definitions(table, tau_jsd=2e-3),
        probe_notes.definitions(VLM, table, found, tau_jsd=2e-3),
    )
    shown = tables.definitions(found)
    assert shown["Over the paper's"].iloc[0] == "1.000"
    assert list(shown["Candidates"]) == [20, 10, 20, 10]


def test_divergences_of_zero_are_drawn(picture, table, sampled) -> None:
    """On logarithmic scales, which know no zero: where there is nothing else, at 1e-12."""
    flat = sampled.assign(jsd_global=0.0)
    region, token, final = (flat[f"jsd_{name}"].min() for name in ("region", "token", "final"))
    for drawn, least in (
        (probes.divergence_maps(picture, flat, (0, 1), GRID), [region, 1e-12, final]),
        (probes.token_against_region(picture, flat, flat, GRID), [token, 1e-12]),
    ):
        drawn.savefig(BytesIO(), format="png", dpi=40)
        maps = [image for ax in drawn.axes for image in ax.images if image.get_alpha()]
        assert all(isinstance(image.norm, LogNorm) for image in maps)
        assert [image.get_array().min() for image in maps] == pytest.approx(least, abs=0)


def test_readable_names_the_missing_column() -> None:
    with pytest.raises(RedlibError, match="no column 'top1'"):
        tables.readable(pd.DataFrame({"patch": [1]}), {"top1": "Top-1"})
    frame = pd.DataFrame({"a": [0.12345, np.nan], "b": [1, 2]})
    shown = tables.readable(frame, {"b": "B", "a": "A"})
    assert shown.to_dict("list") == {"B": [1, 2], "A": ["0.123", "-"]}


def test_style_is_undone() -> None:
    before = matplotlib.rcParams["font.size"]
    with style.apply():
        assert matplotlib.rcParams["font.size"] == style.RC["font.size"]
    assert matplotlib.rcParams["font.size"] == before


def test_patch_map_lies_on_the_grid(picture) -> None:
    drawn = style.figure(3, 3)
    ax = drawn.subplots()
    bar = style.patch_map(ax, picture, np.arange(GRID.size), GRID, label="amount")
    assert bar is not None and bar.ax.get_xlabel() == "amount"
    assert ax.get_xlim() == (0, 12) and ax.get_ylim() == (12, 0)
    filled = style.over_windows([1.0], [GRID.index(1, 1)], GRID)
    assert np.flatnonzero(~np.isnan(filled)).tolist() == GRID.window(GRID.index(1, 1)).tolist()


def test_ink_is_readable() -> None:
    assert style.ink("white") == "black" and style.ink("#08306b") == "white"
