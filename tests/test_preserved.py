"""What stays of what the masks know, and whether candidates recur: against sums by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from redlib.codebook import Codebook, Criteria
from redlib.geometry import Sight
from redlib.params import Params
from redlib.study import asking, gathering, preserved, qualitative

DRAWS = {"resamples": 200, "seed": 0}


class Seeing:
    """A model that looks up made tokens by the image it is shown."""

    def __init__(self, tokens, sight=None):
        self.tokens, self.sight = tokens, sight
        self.grid = SimpleNamespace(size=len(next(iter(tokens.values()))))

    def encode(self, images):
        (image,) = images
        return SimpleNamespace(tokens=self.tokens[image][None])


def test_nearest_of_another_image_by_hand(monkeypatch):
    """Three images of four tokens in the plane, by their angles in degrees."""
    angles = {"a": [0, 5, 90, 200], "b": [10, 100, 300, 310], "c": [50, 60, 70, 80]}
    tokens = {
        name: torch.tensor([[np.cos(np.radians(t)), np.sin(np.radians(t))] for t in row])
        for name, row in angles.items()
    }
    scaled = {
        name: rows * torch.tensor([[1.0], [2.0], [3.0], [4.0]]) for name, rows in tokens.items()
    }
    shown = {"a": [0, 0, 1, 0], "b": [0, 0, 0, 0], "c": [0, 0, 0, 0]}

    def covered(of, half):  # the third token of a shows an object and a word, of half a patch each
        return np.array(shown[of]) * half

    drawn = {
        name: SimpleNamespace(
            image=name,
            coverage=lambda sight, of=name: covered(of, 0.5)[None],
            word_coverage=lambda sight, of=name: covered(of, 0.5),
        )
        for name in tokens
    }
    monkeypatch.setattr(gathering, "training_scenes", lambda session: drawn)
    candidates = pd.DataFrame([("a", 0), ("a", 1), ("b", 0)], columns=["image", "patch"])
    table = pd.DataFrame([(n, p) for n in "abc" for p in range(4)], columns=["image", "patch"])
    source = SimpleNamespace(real=False)
    session = SimpleNamespace(params=Params(seed=3), model=Seeing(scaled), source=source)
    found = gathering.nearest(session, table, SimpleNamespace(candidates=candidates))
    assert found["image"].tolist() == ["a", "b"] and found["tokens"].tolist() == [2, 1]
    near_a = (np.cos(np.radians(10)) + np.cos(np.radians(5))) / 2
    assert np.allclose(found["candidates"], [near_a, np.cos(np.radians(5))])
    # The others of a are all two that are left, and one of b is drawn.
    possible = [
        (np.mean([np.cos(np.radians(one - b)) for one in (90, 200)]),
         max(np.cos(np.radians(b - one)) for one in (90, 200)))
        for b in (100, 300, 310)
    ]  # fmt: skip
    assert any(np.allclose(found["others"], pair) for pair in possible)
    # Without that which shows something, a has the token at 200 degrees alone.
    bare = [np.cos(np.radians(200 - b)) for b in (100, 300, 310)]
    assert any(np.allclose(found["bare"], [one, one]) for one in bare)
    source.real = True
    photographs = gathering.nearest(session, table, SimpleNamespace(candidates=candidates))
    assert photographs["bare"].isna().all()
    assert photographs["candidates"].equals(found["candidates"])
    source.real = False
    alone = candidates[candidates["image"] == "a"]
    none = gathering.nearest(session, table, SimpleNamespace(candidates=alone))
    assert none.empty and gathering.verdict(none, **DRAWS).holds is None


@pytest.mark.parametrize(
    "shift, images, holds", [(0.1, 12, True), (-0.1, 12, False), (0.0, 12, None), (0.1, 9, None)]
)
def test_the_verdict_on_gathering_is_by_the_interval_over_images(shift, images, holds):
    noise = np.random.default_rng(1).normal(scale=0.02, size=images)
    near = pd.DataFrame({"image": range(images), "tokens": 3, "others": 0.5, "bare": np.nan})
    near["candidates"] = 0.5 + shift + noise - noise.mean()
    found = gathering.verdict(near, **DRAWS)
    assert found.holds is holds and f"{3 * images} candidates" in found.evidence
    assert "neither object nor word" not in found.evidence
    bare = gathering.verdict(near.assign(bare=near["candidates"] - 0.25), **DRAWS)
    assert bare.holds is holds and "difference +0.250 (+0.250 to +0.250)" in bare.evidence


def test_informative_tokens_kept_by_hand(tiny_vlm):
    session = SimpleNamespace(params=Params(), model=tiny_vlm, source=SimpleNamespace(real=False))
    drawn, _ = asking.exam(session.params, 3)
    tokens = {scene.id: tiny_vlm.encode([scene.image]).tokens[0] for scene in drawn}
    book = _book(tiny_vlm, tokens[drawn[0].id][:4])
    found = preserved.by_criterion(session, {"nothing": book, "tau_out": None}, 3)
    assert set(found["left_out"]) == {"nothing"}
    keep = min(64, tiny_vlm.grid.size // 2)
    for row in found.itertuples():
        scene = next(scene for scene in drawn if scene.id == row.image)
        unit = tokens[row.image] / tokens[row.image].norm(dim=1, keepdim=True)
        entries = book.vectors.float() / book.vectors.float().norm(dim=1, keepdim=True)
        score = (unit @ entries.T).max(dim=1).values
        stay = set(score.argsort(stable=True)[:keep].tolist())
        covered = scene.coverage(tiny_vlm.sight).sum(0) + scene.word_coverage(tiny_vlm.sight)
        shown = set(np.flatnonzero(covered >= 0.5).tolist())
        assert row.kept == pytest.approx(len(stay & shown) / len(shown), abs=1.01 / len(shown))
    assert set(found["image"]) <= set(tokens) and len(found) > 0
    session.source.real = True
    photographs = preserved.by_criterion(session, {"nothing": book}, 3)
    verdict = preserved.criterion_verdict(photographs, **DRAWS)
    assert verdict.holds is None and verdict.evidence.startswith("needs known truth")
    alone = preserved.criterion_verdict(found, **DRAWS)
    assert alone.holds is None and "has no prototype" in alone.evidence


def _book(vlm, vectors):
    n = len(vectors)
    return Codebook(vectors, ("x",) * n, range(n), vlm.name, vlm.revision, Criteria(1, 1, 0, 1))


@pytest.mark.parametrize("gain, holds", [(0.2, True), (-0.2, False), (0.0, None)])
def test_tau_out_is_judged_on_the_same_images(gain, holds):
    """Images differ far more than the two codebooks do on each."""
    level = np.linspace(0.2, 0.7, 15)
    wobble = 0.01 * np.tile([1, -1, 0], 5)
    kept = pd.concat(
        pd.DataFrame({"left_out": name, "image": range(15), "kept": share})
        for name, share in (
            ("nothing", level + gain + wobble),
            ("tau_out", level),
            ("images", level),
        )
    )
    found = preserved.criterion_verdict(kept, **DRAWS)
    assert found.holds is holds and f"difference {100 * gain:+.1f} percentage" in found.evidence


def test_what_stays_of_the_word_by_hand():
    sight = Sight()
    few = qualitative.drawn("text-rich", 20)
    scene = next(one for one in few if (one.word_coverage(sight) >= 0.5).sum() > 1)
    written = np.flatnonzero(scene.word_coverage(sight) >= 0.5)
    bare = np.flatnonzero(scene.coverage(sight).sum(0) + scene.word_coverage(sight) == 0)
    kept = [written[0], *bare[:3]]
    row = {"scenes": "text-rich", "image": scene.id, "side": "pruned", "said": 1.0}
    row["kept"] = " ".join(map(str, kept))
    frame = pd.DataFrame([row, row | {"side": "full"}, row | {"scenes": "plain"}])
    found = preserved.of_text(frame, sight)
    assert len(found) == 1 and found["image"][0] == scene.id
    assert found["word"][0] == 1 / len(written) and found["ground"][0] == 3 / len(bare)
    assert preserved.of_text(frame.assign(said=float("nan")), sight).empty


@pytest.mark.parametrize(
    "word, ground, images, holds",
    [(1.0, 0.3, 12, True), (0.9, 0.3, 12, False), (1.0, 1.0, 12, None), (0.96, 0.99, 12, False),
     (1.0, 0.3, 9, None)],
)  # fmt: skip
def test_all_text_stays_and_ground_goes(word, ground, images, holds):
    kept = pd.DataFrame({"image": range(images), "word": word, "ground": ground})
    found = preserved.text_verdict(kept, 280, **DRAWS)
    assert found.holds is holds and f"{images} scenes" in found.evidence
    none = preserved.text_verdict(kept.iloc[:0], 280, **DRAWS)
    assert none.holds is None and none.evidence.startswith("needs known truth")
