"""What training shows the decoder is what the stock processors and models show it."""

import numpy as np
import pytest
import torch

from redlib import layouts, models
from redlib.geometry import Sight
from redlib.tabletop import architectures, lessons, scenes, sources, training
from redlib.tabletop.tower import MEAN, STD, squeezed
from redlib.tabletop.world import Scene


@pytest.fixture(scope="module")
def next_model(tmp_path_factory):
    """An untrained LLaVA-Next, and the same loaded from its stock files."""
    folder = tmp_path_factory.mktemp("next") / "tiny-llava-next"
    processor = architectures.make_processor("tiny-llava-next")
    model = architectures.make_model("tiny-llava-next", processor.tokenizer)
    with torch.no_grad():
        model.model.image_newline.normal_()
    training.export(model, processor, folder)
    return models.load(str(folder))


def _large(n: int) -> list[Scene]:
    return scenes("calibration", n, width=672, height=672)


def test_five_tiles_are_what_the_stock_processor_cuts(next_model):
    (scene,) = _large(1)
    made = next_model.processor.image_processor(images=scene.image, return_tensors="pt")
    tiles = np.stack([squeezed(picture, 336) for picture in sources.five(scene)])
    shown = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose((shown - MEAN) / STD, made["pixel_values"][0], atol=1e-5)


def test_packed_tiles_are_what_the_model_receives(next_model, tmp_path):
    """Features go through half precision on disk; beyond that, the same rows."""
    device = torch.device("cpu")
    source = sources.tiled(next_model.model, tmp_path, 2, device, split="calibration")
    found = source.pack(next_model.model, np.array([1]), [np.arange(2880)], device)[0]
    literal = next_model.tiles(_large(2)[1].image)
    assert source.tokens == 2880 and found.shape == literal.shape == (2881, 192)
    scale = literal.abs().max()
    assert (found - literal).abs().max() < 2e-3 * scale
    again = sources.tiled(next_model.model, tmp_path, 2, device, split="calibration")
    assert np.array_equal(again.features, source.features)
    base = sources.images(next_model.model, tmp_path, 2, device, split="calibration", newline=True)
    one = base.pack(next_model.model, np.array([1]), [np.arange(576)], device)[0]
    tokens = next_model.encode([scenes("calibration", 2)[1].image]).tokens[0]
    assert (one - next_model.visual(tokens)).abs().max() < 2e-3 * scale


def test_cards_of_tiles_follow_the_masks():
    scene = next(s for s in _large(20) if s.word and len(s.objects) > 2)
    c = _card(scene)
    assert c.seen.shape == (len(scene.objects), 2880) and c.written.shape == (2880,)
    for token in range(576, 2880, 7):
        tile, at = divmod(token - 576, 576)
        row, column = 24 * (tile // 2) + at // 24, 24 * (tile % 2) + at % 24
        square = scene.instance[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        for k in range(len(scene.objects)):
            assert c.seen[k, token] == ((square == k + 1).mean() > 0.5)
        assert c.written[token] == ((square == 255).mean() > 0.5)


def _card(scene: Scene) -> sources.Card:
    layout, sight = layouts.split(24, tiles=5), Sight(336, 14, crop=False)
    return sources.card(scene, sources.five(scene), layout, sight, np.arange(5))


def test_views_of_tiles_stay_in_one_tile_or_are_drawn_by_lot():
    cards = [_card(scene) for scene in _large(3)]
    rng = np.random.default_rng(0)
    blocks = 0
    for c in cards:
        for tokens in (16, 64, 144):
            kept = lessons.view(rng, tokens, c)
            assert kept.shape == (tokens,) and (np.diff(kept) > 0).all() and kept.max() < 2880
            blocks += len(np.unique(kept // 576)) == 1
    assert 0 < blocks < 9
    assert (lessons.view(rng, 2880, cards[0]) == np.arange(2880)).all()


def test_a_step_on_tiles_has_as_much_to_read_as_one_on_scenes(next_model, tmp_path):
    device = torch.device("cpu")
    source = sources.tiled(next_model.model, tmp_path, 2, device, split="calibration")
    writer = lessons.Writer(next_model.processor)
    taught = lessons.Lessons(writer, [lessons.Course(source, 1.0)], 0, device, 0)
    sizes = set()
    for step in range(12):
        packed, visual = taught.batch(next_model.model, step)
        assert (
            packed["mask"].shape[-1]
            == len(writer.prefix) + visual.shape[1] + packed["ids"].shape[1]
        )
        sizes.add(visual.shape[:2])
    assert (1, 2881) in sizes and any(t < 200 for _, t in sizes)
