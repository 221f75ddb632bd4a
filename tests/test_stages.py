"""Algorithm 1 in stages against Algorithm 1 as printed: everything read, with stock forwards."""

import math
from dataclasses import replace

import literal
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROMPT, random_image
from test_clustering import literal as literal_dpc

from redlib import leave_one_out, load, probe, stages
from redlib.bench.lazy import lazy_codebook
from redlib.codebook import Criteria, NoPrototype, candidates
from redlib.errors import RedlibError
from redlib.stages import EAGER, UNCHOSEN, Probing

IMAGES = {f"train-{i}": random_image(i) for i in range(3)}
HOW = Probing(PROMPT, top_prob=20, top_jsd=20, neighbours=4, centres=6)
NEIGHBOURS, CENTRES = 5, 4
WEIGHTS = (1.0, 16.0)


@pytest.fixture(scope="module")
def everything(vlm):
    """Every reading of every token, one stock forward at a time: image -> patch -> readings."""
    model, processor = vlm.model, vlm.processor
    found = {}
    for name, image in IMAGES.items():
        tokens, _ = literal.visual_tokens(model, processor, image)
        order = stages.clustered(vlm.encode([image]), HOW, name)["patch"].tolist()
        labels = literal_dpc(tokens[order].tolist(), HOW.neighbours, HOW.centres)[0]
        size = {patch: labels.count(label) for patch, label in zip(order, labels, strict=True)}
        rows = {}
        for patch in order:
            alone = tokens[patch : patch + 1]
            article = literal.article_of(model, processor, alone, PROMPT)
            logits = literal.next_logits(model, processor, alone, PROMPT, article)
            best = sorted(logits.double().tolist(), reverse=True)[: HOW.top_prob]
            share = 1 / sum(math.exp(value - best[0]) for value in best)
            both = [
                literal.divergence(
                    *literal.pair(model, processor, tokens, vlm.pad, patch, PROMPT, level),
                    HOW.top_jsd,
                    "paper",
                )
                for level in ("region", "global")
            ]
            rows[patch] = {
                "vector": tokens[patch].tolist(),
                "size": size[patch],
                "top1_head": share,
                "region": both[0],
                "final": WEIGHTS[0] * both[0] + WEIGHTS[1] * both[1],
            }
        found[name] = rows
    return found


def eager_codebook(everything, criteria, images=3):
    """Algorithm 1 line by line: [(image, patch)] of candidates and of prototypes, in order."""
    taken = []
    for name in list(everything)[:images]:
        for patch, row in everything[name].items():
            out = row["size"] < criteria.tau_out
            if criteria.rule_out == "at-most":
                out = row["size"] <= criteria.tau_out
            if row["top1_head"] < criteria.tau_prob and out and row["final"] < criteria.tau_jsd:
                taken.append((name, patch))
    if len(taken) < 2:
        return taken, []
    vectors = [everything[name][patch]["vector"] for name, patch in taken]
    centres = min(CENTRES, math.ceil(len(taken) / 5), len(taken))
    labels = literal_dpc(vectors, min(NEIGHBOURS, len(taken) - 1), centres)[0]
    kept = []
    for place, label in zip(taken, labels, strict=True):
        members = [p for p, other in zip(taken, labels, strict=True) if other == label]
        common = len(members) if criteria.rule_in == "size" else len({name for name, _ in members})
        if common > criteria.tau_in:
            kept.append(place)
    return taken, kept


def between(everything, reading, share):
    """A threshold in the widest gap between readings around their `share` quantile."""
    values = sorted(row[reading] for rows in everything.values() for row in rows.values())
    middle = int(share * len(values))
    near = values[middle - 4 : middle + 5]
    below, above = max(zip(near, near[1:], strict=False), key=lambda pair: pair[1] / pair[0])
    assert above / below > 1.004, "nothing may be decided by rounding here"
    return math.sqrt(below * above)


@pytest.fixture(scope="module")
def criteria(everything):
    return Criteria(
        tau_prob=between(everything, "top1_head", 0.6),
        tau_out=6,
        tau_in=2,
        tau_jsd=between(everything, "final", 0.6),
    )


def places(frame):
    return list(zip(frame["image"], frame["patch"].tolist(), strict=True))


@pytest.mark.parametrize("rule_out", ["below", "at-most"])
@pytest.mark.parametrize("rule_in", ["size", "images"])
def test_one_codebook_is_the_eager_one(vlm, everything, criteria, bars, rule_out, rule_in):
    common = {"size": 2, "images": 1}[rule_in]
    setting = replace(criteria, rule_out=rule_out, rule_in=rule_in, tau_in=common)
    built = stages.one_codebook(vlm, IMAGES, setting, HOW, neighbours=NEIGHBOURS, centres=CENTRES)
    taken, kept = eager_codebook(everything, setting)
    assert 0 < len(kept) <= len(taken) < 75
    assert places(built.candidates) == taken
    assert list(zip(built.codebook.image, built.codebook.patch, strict=True)) == kept
    wanted = [everything[name][patch]["final"] for name, patch in taken]
    np.testing.assert_allclose(built.candidates["jsd_final"], wanted, rtol=bars["relative"])
    vectors = [everything[name][patch]["vector"] for name, patch in kept]
    np.testing.assert_allclose(built.codebook.vectors, vectors, atol=1e-5)


def test_each_stage_reads_the_survivors_of_the_one_before(vlm, everything, criteria, monkeypatch):
    """Counted at the calls that reach the model, against the eager table."""
    asked = {"single": [], "region": [], "global": []}
    single, cascade = probe.single, leave_one_out.cascade

    def spy_single(vlm, tokens, patches, **more):
        asked["single"].append(list(patches))
        return single(vlm, tokens, patches, **more)

    def spy_cascade(vlm, tokens, patches, **more):
        asked[more["levels"][0]].append(list(patches))
        return cascade(vlm, tokens, patches, **more)

    monkeypatch.setattr(probe, "single", spy_single)
    monkeypatch.setattr(leave_one_out, "cascade", spy_cascade)
    # By default eq. 11 leaves next to nothing to the region: weigh it so that it decides for some.
    how = replace(HOW, weights=(1.0, 0.01))
    rows = [row for part in everything.values() for row in part.values()]
    setting = replace(criteria, tau_jsd=between(everything, "region", 0.5))
    small = [r for r in rows if r["size"] < setting.tau_out]
    silent = [r for r in small if r["top1_head"] < setting.tau_prob]
    missed = [r for r in silent if r["region"] < setting.tau_jsd]
    assert 0 < len(missed) < len(silent) < len(small) < len(rows)
    table = stages.read_images(vlm, IMAGES, [setting], how)
    spent = {stage: sum(map(len, calls)) for stage, calls in asked.items()}
    assert spent == {"single": len(small), "region": len(silent), "global": len(missed)}
    told = stages.tally(table, [setting], how.weights).set_index("stage")
    assert told["patches"].to_dict() == {"cluster": len(rows), **spent}
    images = len(asked["global"])
    assert told["forwards"].tolist() == [
        0, spent["single"], 2 * spent["region"], spent["global"] + images
    ]  # fmt: skip
    assert told["eager"].tolist() == [0, 75, 150, 78]
    left = int(candidates(table, setting)[0].sum())
    assert told["survivors"].tolist() == [len(small), len(silent), len(missed), left]


def test_table_3_is_six_eager_codebooks_from_one_table(vlm, everything, criteria):
    sets = stages.ablation(criteria, 3)
    assert list(sets) == [
        "all criteria", "without tau_prob", "without tau_jsd", "without tau_out", "without tau_in",
        "20% of the images",
    ]  # fmt: skip
    settings = stages.loosest([setting for setting, _ in sets.values()])
    assert len(settings) == 3  # the others need nothing beyond "without tau_out"
    table = stages.read_images(vlm, IMAGES, settings, HOW)
    assert 0 < table["jsd_final"].notna().sum() < 75
    off = dict(tau_prob=1.1, tau_jsd=1e9, tau_out=1e9, tau_in=0)  # what nothing can fail
    literally = {f"without {k}": (replace(criteria, **{k: v}), 3) for k, v in off.items()}
    literally |= {
        "all criteria": (criteria, 3),
        "20% of the images": (replace(criteria, tau_in=round(criteria.tau_in / 3)), 1),
    }
    numbers = set()
    for row, (setting, images) in sets.items():
        part = table[table["image"].isin(list(IMAGES)[:images])]
        taken, kept = eager_codebook(everything, *literally[row])
        numbers.add(len(kept))
        assert places(part[candidates(part, setting)[0]]) == taken, row
        try:
            built = stages.build(
                part, setting, HOW, vlm=vlm, neighbours=NEIGHBOURS, centres=CENTRES
            )
        except NoPrototype:
            assert kept == [], row
            continue
        assert list(zip(built.codebook.image, built.codebook.patch, strict=True)) == kept, row
    assert len(numbers) > 3  # the rows differ


def test_a_threshold_on_a_reading_may_only_move_the_contested(vlm, everything, criteria):
    """Whichever side of its own value a token falls on, the others stay where they are."""
    reading = sorted(r["top1_head"] for rows in everything.values() for r in rows.values())[45]
    setting = replace(criteria, tau_prob=reading, tau_out=math.inf)
    table = stages.read_images(vlm, IMAGES, [setting], HOW)
    found = set(places(table[candidates(table, setting)[0]]))
    listed = set(places(stages.contested(table, setting, HOW.weights)))
    assert 1 <= len(listed) < 15
    assert found ^ set(eager_codebook(everything, setting)[0]) <= listed


# Tables by hand from here on: nine tokens, and readings that are looked up.

HAND = pd.DataFrame(
    {
        "image": "a",
        "patch": range(9),
        "cluster_size": [1, 2, 3, 3, 4, 2, 2, 2, 9],
        "top1_head": [0.1, 0.2, 0.3, 0.1, 0.1, 0.2999, 0.1, 0.1, 0.1],
        "jsd_region": [0.1, 0.5, 0.1, 0.1, 0.1, 0.25, 0.2499, 0.0, 0.0],
        "jsd_global": [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0],
    }
)  # fmt: skip
HAND_WEIGHTS = (2.0, 2.0)


@pytest.fixture
def looked_up(monkeypatch):
    """Readings come from HAND; yields the patches asked at each stage."""
    asked = {}

    def single(vlm, tokens, patches, **more):
        asked["single"] = list(patches)
        return HAND.loc[patches, ["top1_head"]].assign(word="cup", top1=0.0)

    def cascade(vlm, tokens, patches, *, levels, **more):
        asked[levels[0]] = list(patches)
        return HAND.loc[patches, [f"jsd_{levels[0]}"]].reset_index(drop=True)

    monkeypatch.setattr(probe, "single", single)
    monkeypatch.setattr(leave_one_out, "cascade", cascade)
    return asked


def hand_read(settings, weights=HAND_WEIGHTS):
    bare = HAND[["image", "patch", "cluster_size"]]
    tokens = torch.arange(18.0).reshape(9, 2)
    return stages.read(None, tokens, bare, settings, Probing(PROMPT, weights=weights))


@pytest.mark.parametrize(
    ("rule_out", "single", "region", "global_", "taken"),
    [
        ("below", [0, 1, 5, 6, 7], [0, 1, 5, 6, 7], [0, 6, 7], [0, 6]),
        ("at-most", [0, 1, 2, 3, 5, 6, 7], [0, 1, 3, 5, 6, 7], [0, 3, 6, 7], [0, 3, 6]),
    ],
)
def test_a_token_on_a_threshold(looked_up, rule_out, single, region, global_, taken):
    """tau_out 3: patches 2 and 3 lie on it. tau_prob 0.3: patch 2. tau_jsd 0.5: the region alone
    reaches it at patch 5, the sum at patch 7."""
    setting = Criteria(0.3, 3, 0, 0.5, rule_out=rule_out)
    table = hand_read([setting])
    assert looked_up == {"single": single, "region": region, "global": global_}
    assert table.index[candidates(table, setting)[0]].tolist() == taken
    assert [i for i, v in enumerate(table["vector"]) if v is not None] == taken
    assert table["vector"][taken[-1]].tolist() == [2 * taken[-1], 2 * taken[-1] + 1]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"tau_out": 1}, []),
        ({"tau_prob": 0.1}, ["single"]),
        ({"tau_jsd": 0.0}, ["single", "region"]),
        ({"tau_jsd": 0.4, "tau_out": 2}, ["single", "region", "global"]),
    ],
)
def test_nobody_is_left_at_a_stage(looked_up, change, asked):
    setting = replace(Criteria(0.3, 3, 0, 0.5), **change)
    table = hand_read([setting])
    assert list(looked_up) == asked
    told = stages.tally(table, [setting], HAND_WEIGHTS)["survivors"].tolist()
    assert told[len(asked) :] == [0] * (4 - len(asked)) and all(told[: len(asked)])
    assert set(stages.READINGS["global"]) < set(table) and table["vector"].isna().all()
    vlm = type("Width", (), {"width": 2})
    how = Probing(PROMPT, weights=HAND_WEIGHTS)
    with pytest.raises(
        NoPrototype, match=f"tau_out {told[0]}, tau_out and tau_prob {told[1]}; all"
    ):
        stages.build(table, setting, how, vlm=vlm, neighbours=2, centres=2)


def test_what_is_switched_off_is_not_read(looked_up):
    cheap = Criteria(math.inf, 3, 0, math.inf)
    assert candidates(hand_read([cheap]), cheap)[0].tolist() == (HAND["cluster_size"] < 3).tolist()
    assert looked_up == {}
    hand_read([replace(cheap, tau_prob=0.3)])
    assert list(looked_up) == ["single"]
    looked_up.clear()
    hand_read([replace(cheap, tau_jsd=0.5)])
    assert list(looked_up) == ["region", "global"]
    hand_read([EAGER])
    assert {len(patches) for patches in looked_up.values()} == {9}
    hand_read([])
    assert len(looked_up["single"]) == 9  # not asked again


def test_a_token_goes_on_if_any_setting_may_take_it(looked_up):
    """One setting needs the region of silent tokens, the other of small clusters."""
    silent = Criteria(0.2, math.inf, 0, 0.5)
    small = Criteria(math.inf, 3, 0, UNCHOSEN)
    table = hand_read([silent, small])
    assert looked_up["single"] == list(range(9))
    assert looked_up["region"] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert looked_up["global"] == [0, 1, 3, 4, 5, 6, 7, 8]
    alone = stages.read_alone(table, silent, HAND_WEIGHTS)
    assert stages.tally(alone, [silent], HAND_WEIGHTS)["forwards"].tolist() == [0, 9, 12, 7]
    pd.testing.assert_frame_equal(alone.drop(columns="vector"), hand_read([silent])[
        alone.columns.drop("vector")])  # fmt: skip


def test_a_table_that_was_not_read_far_enough_is_refused(looked_up):
    setting = Criteria(0.3, 3, 0, 0.5)
    table = hand_read([setting])
    vlm = type("Width", (), {"width": 2})
    for looser in ({"tau_out": 4}, {"tau_prob": 0.4, "tau_out": 4}, {"tau_jsd": 0.6}):
        with pytest.raises(RedlibError, match="not read far enough") as caught:
            stages.build(
                table,
                replace(setting, **looser),
                Probing(PROMPT, weights=HAND_WEIGHTS),
                vlm=vlm,
                neighbours=2,
                centres=2,
            )
        assert not isinstance(caught.value, NoPrototype)


def test_contested_are_the_tokens_that_a_thousandth_could_move():
    rng = np.random.default_rng(0)
    n = 4000
    size, prob = rng.integers(1, 8, n), rng.uniform(0.09, 0.11, n)
    region, image = rng.uniform(0, 1.2e-3, n), rng.uniform(0, 1e-4, n)
    final = region + 16 * image

    def table(by):
        frame = pd.DataFrame({"image": "a", "patch": range(n), "cluster_size": size})
        return frame.assign(top1_head=prob * by, jsd_region=region * by, jsd_final=final * by)

    setting = Criteria(0.1, 4, 0, 1.5e-3)
    listed = stages.contested(table(1), setting, WEIGHTS)
    near = (np.abs(prob / 0.1 - 1) < 9e-4) & (size < 4) & (final < 1.4e-3)
    assert set(np.flatnonzero(near)) <= set(listed["patch"]) and near.sum() > 5
    assert (listed["cluster_size"] < 4).all() and len(listed) < n / 20
    before = candidates(table(1), setting)[0]
    moved = [candidates(table(1 + d), setting)[0] != before for d in (-9e-4, 9e-4)]
    assert 0 < moved[0].sum() and 0 < moved[1].sum()
    assert set(np.flatnonzero(moved[0] | moved[1])) <= set(listed["patch"])


def test_loosest_keeps_what_asks_for_more():
    base = Criteria(0.1, 8, 64, 2e-3)
    tighter = replace(base, tau_prob=0.05, tau_in=3)
    at_most = replace(base, rule_out="at-most")
    off = replace(base, tau_jsd=math.inf)  # lets everyone pass, but reads no divergence
    assert stages.loosest([tighter, base, base]) == [base]
    assert stages.loosest([base, at_most]) == [at_most]
    assert stages.loosest([base, off]) == [base, off]
    wider = replace(base, tau_prob=0.2, tau_jsd=1e-3)
    assert stages.loosest([base, wider]) == [base, wider]


def test_bad_input_is_one_line(vlm):
    with pytest.raises(RedlibError, match="ranks must be all or release; got 'some'"):
        Probing(PROMPT, ranks="some")
    with pytest.raises(RedlibError, match="weights must be 0 or more"):
        Probing(PROMPT, weights=(1.0, -1.0))
    with pytest.raises(RedlibError, match="no images given"):
        stages.one_codebook(vlm, {}, EAGER, HOW)


def test_one_image_is_enough(vlm, everything, criteria):
    name = next(iter(IMAGES))
    setting = replace(criteria, tau_in=0)
    built = stages.one_codebook(
        vlm, {name: IMAGES[name]}, setting, HOW, neighbours=NEIGHBOURS, centres=CENTRES
    )
    assert places(built.candidates) == eager_codebook(everything, setting, 1)[0]
    assert len(built.codebook) == len(built.candidates) > 1


def test_the_bars_of_the_lazy_codebook_on_the_shipped_model():
    """Of the forwards for every token: global at most 40 %, all at most 60 %."""
    counts = lazy_codebook(load("tiny-llava-1.5", device="cpu"), images=1)
    assert counts["global_eager"] == 96 + 1 and counts["all_eager"] == 96 + 2 * 96 + 96 + 1
    assert 0 < counts["global_lazy"] <= 0.4 * counts["global_eager"]
    assert 0 < counts["all_lazy"] <= 0.6 * counts["all_eager"]
