"""OneVision's training: its tower begins as CLIP, its inputs are what the stock model receives."""

import pytest
import torch

from redlib import models
from redlib.tabletop import architectures, scenes, tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def first():
    """The shipped tiny-llava-1.5."""
    return models.load("tiny-llava-1.5", device="cpu").model


@pytest.fixture(scope="module")
def begun(first):
    """OneVision as its training begins it."""
    processor = architectures.make_processor("tiny-llava-onevision")
    model = architectures.make_model("tiny-llava-onevision", processor.tokenizer).eval()
    tower.adopt(model.model.vision_tower, first.model.vision_tower)
    return model


def test_clip_is_trained_as_before():
    """Numbers written down before the tower's training knew SigLIP."""
    processor = architectures.make_processor("tiny-llava-1.5")
    vision = architectures.make_model("tiny-llava-1.5", processor.tokenizer).model.vision_tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = tower.Heads(192, 24)
    tower.begin(vision)
    windows = tower.Windows(0, CPU, tower.sight(vision))
    for side, size, dense, contrastive, norm in (
        (8, 6, 6.356635093688965, 1.7558199167251587, 12.405060768127441),
        (12, 4, 6.3856201171875, 1.4669623374938965, 11.963359832763672),
    ):
        total, numbers = tower.losses(vision, heads, windows.batch(3, size, side))
        total.backward()
        assert numbers == pytest.approx({"dense": dense, "contrastive": contrastive}, rel=1e-4)
        gradient = vision.embeddings.patch_embedding.weight.grad
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3)
        vision.zero_grad()
    assert tower.spread(vision, CPU, images=2) == pytest.approx(0.6770498752593994, rel=1e-4)


def test_windows_of_siglip_lie_in_its_own_grid(begun):
    vision = begun.model.vision_tower
    batch = tower.Windows(0, CPU, tower.sight(vision)).batch(0, 6, 8)
    assert batch["pixels"].shape == (6, 112, 112, 3) and batch["labels"].shape == (6, 5, 64)
    assert batch["rows"].min() >= 0 and batch["rows"].max() <= 19
    bands = batch["labels"][:, 3].view(6, 8, 8)[:, :, 0]
    rows = batch["rows"][:, None] + torch.arange(8)
    assert torch.equal(bands, rows // 3)
    with torch.no_grad():
        found, pooled = tower.forward(vision, batch["pixels"], batch["rows"], batch["cols"])
        literal = vision.post_layernorm(found.mean(1))
    assert found.shape == (6, 64, 192) and torch.allclose(pooled, literal)


def test_features_are_those_of_the_stock_tower(begun):
    """Of a whole scene, through the stock processor and hidden_states[-1]."""
    (scene,) = scenes("calibration", 1, start=9_400)
    processor = architectures.make_processor("tiny-llava-onevision")
    pixels = processor.image_processor(images=scene.image, return_tensors="pt")["pixel_values"]
    vision = begun.model.vision_tower
    with torch.no_grad():
        stock = vision(pixels[0, :1], output_hidden_states=True).hidden_states[-1]
        mine = tower.features(vision, torch.from_numpy(tower.squeezed(scene, 384))[None])
    assert mine.shape == (1, 729, 192)
    assert (mine - stock).abs().max() < 1e-4 * stock.abs().max()


def test_an_adopted_convolution_is_that_of_clip_with_its_layer_norm(begun, first):
    """Literally, for any pixels: but for one number, the deviation that it divides by."""
    pixels = torch.rand(5, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    clip, siglip = first.model.vision_tower, begun.model.vision_tower
    norm = clip.pre_layrnorm
    with torch.no_grad():
        x = clip.embeddings.patch_embedding((pixels - tower.MEAN) / tower.STD)[..., 0, 0]
        found = siglip.embeddings.patch_embedding((pixels - 0.5) / 0.5)[..., 0, 0] / tower.STREAM
        centred = (x - x.mean(1, keepdim=True)) * norm.weight
    deviation = (centred * (found - norm.bias)).sum() / (found - norm.bias).square().sum()
    assert torch.allclose(found, centred / deviation + norm.bias, atol=1e-4 * float(found.std()))
    assert deviation > 0


def test_an_adopted_tower_sees_much_of_what_clip_saw(begun, first):
    """Features of the same places point the same way, far more than those of others do."""
    (scene,) = scenes("calibration", 1, start=9_401)
    with torch.no_grad():
        clip, siglip = (
            tower.features(vision, torch.from_numpy(tower.squeezed(scene, side))[None])[0]
            for vision, side in ((first.model.vision_tower, 336), (begun.model.vision_tower, 384))
        )
    picture = clip.T.view(1, 192, 24, 24)
    expected = torch.nn.functional.interpolate(picture, (27, 27), mode="bilinear")[0].flatten(1).T
    one, other = (rows - rows.mean(0) for rows in (expected, siglip))
    alike = torch.cosine_similarity(one, other).mean()
    shuffled = torch.cosine_similarity(one, other.roll(5 * 27 + 5, 0)).mean()
    print("alike", alike, shuffled)
    assert alike > shuffled + 0.2
