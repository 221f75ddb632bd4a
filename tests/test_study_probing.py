"""Measuring an image patch by patch, and statements over images, against literal computations."""

import literal
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROMPT, random_image

from redlib import leave_one_out
from redlib.bench.intervals import Interval
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.study import probing, subjects
from redlib.study.verdict import Verdict, above, number, percent
from redlib.tabletop import scenes

ASK = {"prompt": PROMPT, "top_prob": 50}
MEASURE = {**ASK, "top_jsd": 20, "weights": (1.0, 16.0)}
DRAWS = {"resamples": 50, "seed": 0}


@pytest.fixture(scope="module")
def image_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("images") / "mine.png"
    random_image(5).save(path)
    return str(path)


def test_a_file_is_measured_without_truth(tiny_vlm: VLM, image_file: str) -> None:
    mine = subjects.subject(tiny_vlm, image=image_file, shown=None)
    assert mine.name == "mine.png" and mine.scene is None and mine.picture.size == (70, 70)
    rows = subjects.measure(tiny_vlm, mine, **MEASURE)
    assert rows["patch"].tolist() == tiny_vlm.grid.stride().tolist()
    assert "coverage" not in rows and rows["jsd_final"].nunique() == len(rows)
    both = leave_one_out.cascade(
        tiny_vlm, mine.tokens, rows["patch"], prompt=PROMPT, definition="both",
        levels=("region", "global", "token"),
    )  # fmt: skip
    for level in ("region", "global", "token", "final"):
        ours = rows[[f"jsd_{level}", f"jsd_{level}_released"]].to_numpy()
        theirs = both[[f"jsd_{level}_paper", f"jsd_{level}_released"]].to_numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_scene_carries_its_truth(tiny_vlm: VLM) -> None:
    (third,) = scenes("test", 1, start=3)
    first = subjects.subject_of(tiny_vlm, third)
    again = subjects.subject(tiny_vlm, image=None, shown=third)
    assert torch.equal(first.tokens, again.tokens) and first.scene.id == "test-60000003"


def test_answer_drop_is_the_fall_of_the_images_own_answer(tiny_vlm: VLM, image_file: str) -> None:
    mine = subjects.subject(tiny_vlm, image=image_file, shown=None)
    rows = subjects.measure(tiny_vlm, mine, **MEASURE)
    fall = []
    for patch in rows["patch"]:
        before, after = literal.pair(
            tiny_vlm.model, tiny_vlm.processor, mine.tokens, tiny_vlm.pad, patch, PROMPT, "token"
        )
        fall.append(float((before - after)[before.argmax()]))
    np.testing.assert_allclose(rows["answer_drop"], fall, atol=1e-4)
    assert rows["answer_drop"].abs().max() > 0


def test_candidates_are_distributions(tiny_vlm: VLM, image_file: str) -> None:
    mine = subjects.subject(tiny_vlm, image=image_file, shown=None)
    found = subjects.pair_candidates(tiny_vlm, mine, [6, 12], prompt=PROMPT, top=10)
    assert len(found) == 2 * 2 * 10
    sums = found.groupby(["patch", "level"])[["before", "after"]].sum().to_numpy()
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    alone = subjects.single_candidates(tiny_vlm, mine, 6, prompt=PROMPT, top=5)
    row = subjects.describe(tiny_vlm, mine, **ASK, patches=[6]).iloc[0]
    assert alone["word"][0] == row["word"] and alone["before"][0] == pytest.approx(row["top1"])
    assert alone["before"].is_monotonic_decreasing and alone["before"].sum() <= 1


def test_caption_positions(tiny_vlm: VLM) -> None:
    ranks = pd.concat([subjects.caption_ranks(tiny_vlm, one) for one in scenes("test", 3)])
    per_layer = ranks.groupby("layer").size()
    assert per_layer.nunique() == 1 and per_layer.iloc[0] >= 40
    last = ranks[ranks["image"] == ranks["image"].iloc[0]]["next"].iloc[0]
    assert isinstance(last, str) and ranks["rank_next"].min() >= 1


@pytest.mark.parametrize(
    ("word", "noun", "hit"),
    [("cup", "cup", True), ("Umb", "umbrella", True), ("u", "umbrella", False),
     ("red", "cup", False), ("Cups", "cup", False)],
)  # fmt: skip
def test_is_named(word: str, noun: str, hit: bool) -> None:
    assert subjects.is_named(word, noun) is hit


def words_table() -> pd.DataFrame:
    """Two images of four patches: the first is read rightly, the second as the first."""
    rows = [
        ("one", 0, "cup", "cup", 1.0), ("one", 1, "cup", "", 0.0),
        ("one", 2, "cup", "cup", 0.2), ("one", 3, "star", "cup", 0.9),
        ("two", 0, "cup", "moon", 1.0), ("two", 1, "moon", "", 0.0),
        ("two", 2, "moon", "moon", 0.2), ("two", 3, "moon", "moon", 0.9),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["image", "patch", "word", "noun", "coverage"])
    frame["right"] = frame["word"] == frame["noun"]
    frame["present"] = frame["image"].map({"one": "cup", "two": "moon"})
    frame["named"] = frame["word"] == frame["present"]
    return frame


def test_coverage_bins_and_shuffled_control() -> None:
    found = probing.by_coverage(words_table(), **DRAWS)
    found = found.set_index(["asked", "bin", "tokens"])["share"]
    there, any_noun = "noun of the object there", "any noun of the image"
    # Patches 0 and 3 are covered by over 75%: own words right in 2 of 4, the
    # other image's in 1 of 4 (the cup of two at patch 0 of one).
    assert found[there, "75-100%", "own"] == 0.5
    assert found[there, "75-100%", "shuffled"] == 0.25
    # Patch 1 is bare: each names its own image's noun; swapped, neither does.
    assert found[any_noun, "0", "own"] == 1.0 and found[any_noun, "0", "shuffled"] == 0.0
    assert (there, "0", "own") not in found.index


def test_shuffling_needs_two_images() -> None:
    with pytest.raises(RedlibError, match="at least two"):
        probing.by_coverage(words_table().query("image == 'one'"), **DRAWS)


def ranking_table(seed: int, images: int = 10, size: int = 64) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = ["attention", "contribution", "jsd_token", "cls_similarity", "jsd_final", "top1"]
    frame = pd.DataFrame(rng.lognormal(size=(images * size, len(columns))), columns=columns)
    frame.insert(0, "image", np.repeat([f"i{n}" for n in range(images)], size))
    frame.insert(1, "patch", np.tile(np.arange(size), images))
    return frame


def test_unrelated_rankings_disagree_as_chance_says() -> None:
    found = probing.disagreement(ranking_table(0, images=200), **DRAWS).set_index("top_of")
    assert found.loc["disagree", "share"] == pytest.approx(probing.CHANCE, abs=0.02)
    np.testing.assert_allclose(found["share"], found["chance"], atol=0.02)


def test_equal_rankings_never_disagree() -> None:
    table = ranking_table(1).assign(contribution=lambda t: t["attention"] * 2)
    table["jsd_token"] = table["attention"] ** 3
    assert set(probing.ranked(table)["votes"]) == {0, 3}
    verdict = probing.proxy_verdict(table, **DRAWS)
    assert verdict.holds is False
    assert "Spearman correlation within an image 1.00" in verdict.evidence


def test_contrast_pair_follows_its_rule() -> None:
    table = ranking_table(2, images=1)
    a, b = probing.contrast_pair(table)
    low, high = table[probing.low_states(table)], table[probing.high_states(table)]
    assert a == low.loc[low["jsd_final"].idxmax(), "patch"]
    assert b == high.loc[high["jsd_final"].idxmin(), "patch"] and a != b


def test_the_most_contrasting_image_has_the_largest_ratio() -> None:
    table = ranking_table(6)
    name = probing.most_contrasting(table)
    ratios = {}
    for image, part in table.groupby("image"):
        a, b = probing.contrast_pair(part)
        final = part.set_index("patch")["jsd_final"]
        ratios[image] = final[a] / final[b]
    assert ratios[name] == max(ratios.values()) and min(ratios.values()) < ratios[name]


def test_selected_patches_follow_their_rule() -> None:
    table = ranking_table(3, images=1).assign(word="cup")
    chosen = probing.select(table, each=3)
    low = chosen[chosen["group"] == "low states, surest"]
    assert len(low) == 2, "no word more than twice"
    assert low["top1"].min() == table[probing.low_states(table)]["top1"].nlargest(2).min()


def test_finding_one_looks_for_some_and_at_the_average() -> None:
    """Of the patches high in both, one in three is bare and silent, the others are read surely."""
    table = ranking_table(7)
    high = probing.high_states(table)
    nth = high.cumsum()
    table["top1"] = np.where(high & (nth % 3 > 0), 0.9, 0.05)
    table["coverage"] = np.where(nth % 3 == 0, 0.0, 0.4)
    table = table.assign(card=0.0, right=False, named=False)
    _, _, some, average = probing.finding_one(table, **DRAWS)
    share = (nth[high] % 3 == 0).mean()
    assert some.holds is True and some.evidence.startswith(f"{share:.0%} (95% interval ")
    assert some.evidence.endswith(
        f"of {high.sum()} such patches; with those that an object touches {share:.0%} are below "
        "10%; 10 scenes."
    )
    assert average.holds is False
    touched = table.assign(coverage=0.4)
    assert probing.finding_one(touched, **DRAWS)[2].holds is False
    written = table.assign(card=1.0)
    assert probing.finding_one(written, **DRAWS)[2].evidence.startswith("0% ")
    photograph = table.drop(columns=["coverage", "card"])
    some = probing.finding_one(photograph, **DRAWS)[2]
    assert some.holds is None and "nobody knows" in some.evidence


def test_finding_one_says_what_is_there_instead() -> None:
    """No patch low in both is covered: the covered ones are those of highest attention."""
    table = ranking_table(8)
    rank = table.groupby("image")["attention"].rank(pct=True)
    table = table.assign(coverage=np.where(rank > 0.75, 1.0, 0.0), card=0.0, right=False)
    low = probing.low_states(table)
    table.loc[low[low].index[:3], "coverage"] = 0.1
    _, found, *_ = probing.finding_one(table, **DRAWS)
    assert found.holds is None
    assert f"of the {low.sum()} low in both an object touches 3" in found.evidence
    assert f"a top-1 probability of {table['top1'][low].max():.2f}" in found.evidence
    least = rank[table["coverage"] >= 0.5].min()
    assert f"160 covered ones none gets less attention than {least:.0%}" in found.evidence


def test_finding_two_both_ways() -> None:
    table = ranking_table(9)
    low, high = probing.low_states(table), probing.high_states(table)
    table["jsd_final"] = np.where(low, 1.0, np.where(high, 1e-6, 1e-3)) * table["jsd_final"]
    top = table.groupby("image")["jsd_final"].rank(pct=True)
    found = probing.influence_verdict(table, **DRAWS)
    assert found.holds is True and found.evidence.startswith(f"{(top[low] > 0.75).mean():.0%} ")
    idle = probing.idle_verdict(table, **DRAWS)
    assert idle.holds is True and idle.evidence.startswith(f"{(top[high] <= 0.25).mean():.0%} ")
    strong = table.assign(jsd_final=np.where(high, 1.0, 1e-3))
    assert probing.idle_verdict(strong, **DRAWS).holds is False
    assert (
        probing.idle_verdict(table.assign(attention=-table["cls_similarity"]), **DRAWS).holds
        is None
    )


@pytest.mark.parametrize(
    "first, last, images, holds",
    [((0.0, 0.1), (0.9, 1.0), 12, True), ((0.0, 0.1), (0.9, 1.0), 9, None),
     ((0.0, 0.1), (0.1, 0.3), 12, False), ((0.0, 0.1), (0.4, 0.6), 12, None)],
)  # fmt: skip
def test_a_transition_takes_enough_scenes(first, last, images, holds) -> None:
    rows = [
        {"layer": layer, "quantity": "lead", "value": np.mean(ends), "low": ends[0],
         "high": ends[1], "positions": 50, "images": images}
        for layer, ends in enumerate((first, (0.2, 0.8), last))
    ]  # fmt: skip
    assert probing.transition_verdict(pd.DataFrame(rows)).holds is holds


def test_ratio_of_medians() -> None:
    table = ranking_table(4).assign(jsd_global=lambda t: t["jsd_token"] * 10)
    found = probing.token_ratio(table, **DRAWS)
    assert found.mean == pytest.approx(10) and found.low == pytest.approx(10)
    assert probing.ratio_verdict(table, **DRAWS).holds is True
    assert probing.ratio_verdict(table, **DRAWS, bound=20).holds is False


def test_weights_verdict() -> None:
    table = ranking_table(5).assign(jsd_region=1.0, jsd_global=1 / 16)
    assert probing.weights_verdict(table, (1.0, 16.0), **DRAWS).holds is True
    assert probing.weights_verdict(table, (1.0, 0.0), **DRAWS).holds is False


def test_a_verdict_says_so() -> None:
    assert above(Interval(0.5, 0.4, 0.6, 30, 10), 0.3) is True
    assert above(Interval(0.5, 0.4, 0.6, 30, 10), 0.7) is False
    assert above(Interval(0.5, 0.4, 0.6, 30, 10), 0.5) is None
    assert above(Interval(0.5, 0.4, 0.6, 30, 9), 0.3) is None, "nine images decide nothing"
    assert percent(Interval(0.5, 0.4, 0.6, 30, 10)) == "50% (95% interval 40% to 60%)"
    assert number(Interval(0.5, 0.4, 0.6, 30, 10)) == "0.50 (95% interval 0.40 to 0.60)"
    shown = Verdict("A claim.", False, "no evidence.")._repr_markdown_()
    assert "does not hold" in shown and "no evidence." in shown


def test_an_image_of_the_reference_is_familiar_and_noise_is_not(tiny_vlm: VLM) -> None:
    others = scenes("test", 6, start=1000)
    known = subjects.subject_of(tiny_vlm, others[0])
    found = probing.familiarity(tiny_vlm, known, others)
    assert found.share == 0 and not found.outside and found.distance.max() < 1e-5
    assert found.reference == 6 and "inside" in str(found)
    strange = subjects.Subject(
        "noise", known.picture, torch.randn_like(known.tokens), known.cls_similarity, None
    )
    assert probing.familiarity(tiny_vlm, strange, others).outside
