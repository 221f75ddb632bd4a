"""Every way of packing an image, against the stock model run from the stock processor's pixels.

The models are the tiny architectures, untrained, in float64. Towers are cut to two layers and
decoders to one, since both sides run the same ones.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import random_image
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from redlib import layouts
from redlib.errors import RedlibError
from redlib.models import VLM, load
from redlib.tabletop import architectures, training

TEXT = "What color is the cup?"
EXACT = 1e-9
OV_PINS = transformers.LlavaOnevisionConfig().image_grid_pinpoints


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """The three architectures as `export` writes them."""
    found = {}
    for name in architectures.NAMES:
        processor = architectures.make_processor(name)
        model = architectures.make_model(name, processor.tokenizer)
        with torch.no_grad():  # wide enough for logits to depend on every visual token
            for weight in model.parameters():
                weight.mul_(4 if weight.ndim == 2 else 1)
        found[name] = tmp_path_factory.mktemp(name)
        training.export(model, processor, found[name])
    return found


@pytest.fixture(scope="module")
def vlms(folders) -> dict[str, VLM]:
    found = {}
    for name, folder in folders.items():
        vlm = load(str(folder), device="cpu", dtype="float64")
        tower, decoder = vlm.model.model.vision_tower.encoder, vlm.decoder
        tower.layers, decoder.layers = tower.layers[:2], decoder.layers[:1]
        vlm.model.config.vision_config.num_hidden_layers = 2
        vlm.model.config.text_config.num_hidden_layers = 1
        found[name.removeprefix("tiny-llava-")] = vlm
    return found


def picture(seed: int, width: int, height: int) -> Image.Image:
    return random_image(seed, width=width, height=height)


@torch.no_grad()
def ours(vlm: VLM, rows: torch.Tensor) -> torch.Tensor:
    """Logits (V,) of the last position behind visual rows (T, D), from embeddings alone."""
    before, after = vlm.prompt(TEXT)
    x = torch.cat([vlm.embed(before), rows, vlm.embed(after)])[None]
    return vlm.model(inputs_embeds=x, use_cache=False).logits[0, -1]


def marked(vlm: VLM, kind: str, counts: list[int], text: str = TEXT) -> torch.Tensor:
    """Ids (1, T) of the chat prompt with `counts` placeholders at its images or videos."""
    parts = [{"type": kind}] * len(counts) + [{"type": "text", "text": text}]
    chat = [{"role": "user", "content": parts}]
    filled = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    first, *rest = filled.split(f"<{kind}>")
    for count, part in zip(counts, rest, strict=True):
        first += f"<{kind}>" * count + part
    return vlm.processor.tokenizer(first, return_tensors="pt").input_ids


@torch.no_grad()
def stock(vlm: VLM, **inputs: torch.Tensor) -> torch.Tensor:
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    return vlm.model(**inputs, use_cache=False).logits[0, -1]


@torch.no_grad()
def by_features(vlm: VLM, visual: torch.Tensor) -> torch.Tensor:
    """Logits of the stock model for a packing that it cannot make, handed over as features."""
    features = BaseModelOutputWithPooling(pooler_output=[visual])
    ids = marked(vlm, "image", [len(visual)])
    output = vlm.model(input_ids=ids, mm_encoder_outputs={"image": features}, use_cache=False)
    return output.logits[0, -1]


@torch.no_grad()
def by_hand(vlm: VLM, pixels: torch.Tensor) -> torch.Tensor:
    """(n, L, D) projected tokens of n tiles."""
    config, inner = vlm.model.config, vlm.model.model
    seen = inner.vision_tower(pixels.double(), output_hidden_states=True)
    chosen = seen.hidden_states[config.vision_feature_layer]
    first = 1 if config.vision_feature_select_strategy == "default" else 0
    return inner.multi_modal_projector(chosen[:, first:])


def assert_same(vlm: VLM, rows: torch.Tensor, expected: torch.Tensor) -> None:
    assert (ours(vlm, rows) - expected).abs().max() < EXACT


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_logits_tell_positions_apart(vlms, name):
    """Without this, the tests below would compare what no mistake can change."""
    rows = 0.2 * torch.randn(300, 192, dtype=torch.float64)
    swapped = rows.clone()
    swapped[[5, 250]] = rows[[250, 5]]
    right = ours(vlms[name], rows)
    for wrong in (swapped, rows[:-1]):
        assert (ours(vlms[name], wrong) - right).abs().max() > 1e3 * EXACT


def test_llava_15(vlms):
    vlm, image = vlms["1.5"], picture(1, 400, 336)
    rows = vlm.visual(vlm.encode([image]).tokens[0])
    ids = marked(vlm, "image", [1])
    text = vlm.processor.tokenizer.decode(ids[0, 1:])
    inputs = vlm.processor(text=text, images=image, return_tensors="pt")
    assert len(rows) == 576 == len(layouts.whole(24))
    assert_same(vlm, rows, stock(vlm, **inputs))


@pytest.mark.parametrize(("name", "count"), [("next", 577), ("onevision", 730)])
def test_base_tile_of_a_composite(vlms, name, count):
    vlm, image = vlms[name], picture(2, 672, 336)
    pixels = vlm.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    rows = vlm.visual(vlm.encode([image]).tokens[0])
    tile = by_hand(vlm, pixels[:1])[0]
    assert len(rows) == count
    newline = vlm.model.model.image_newline.detach()
    assert_same(vlm, rows, by_features(vlm, torch.cat([tile, newline[None]])))


def test_next_with_split_as_released(vlms):
    vlm, image = vlms["next"], picture(3, 672, 672)
    pixels = vlm.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    newline = vlm.model.model.image_newline.detach()
    packed = torch.cat([by_hand(vlm, pixels).flatten(0, 1), newline[None]])
    rows = vlm.tiles(image)
    assert len(rows) == 2881
    assert (rows - packed).abs().max() < EXACT
    assert_same(vlm, rows, by_features(vlm, packed))


def test_next_as_hugging_face_packs_it(vlms):
    vlm, image = vlms["next"], picture(4, 640, 250)
    text = vlm.processor.tokenizer.decode(marked(vlm, "image", [1])[0, 1:])
    inputs = vlm.processor(text=text, images=image, return_tensors="pt")
    rows = vlm.tiles(image, packing="unpadded")
    assert len(rows) == (inputs["input_ids"] == vlm.model.config.image_token_id).sum()
    assert_same(vlm, rows, stock(vlm, **inputs))
    square = layouts.unpadded(24, (672, 672), 336, architectures.PINPOINTS)
    assert len(square) == 576 + 48 * 49


def test_onevision_tiles(vlms):
    vlm, image = vlms["onevision"], picture(5, 600, 380)
    inputs = vlm.processor.image_processor(images=image, return_tensors="pt")
    rows = vlm.tiles(image, packing="unpadded")
    ids = marked(vlm, "image", [len(rows)])
    assert_same(vlm, rows, stock(vlm, input_ids=ids, **inputs))


def test_several_images(vlms):
    vlm, images = vlms["onevision"], [picture(6, 336, 336), picture(7, 400, 300)]
    inputs = vlm.processor.image_processor(images=[images], return_tensors="pt")
    rows = vlm.several(images)
    assert len(rows) == 2 * 730
    ids = marked(vlm, "image", [730, 730])
    assert_same(vlm, rows, stock(vlm, input_ids=ids, **inputs))


def test_film(vlms):
    vlm, frames = vlms["onevision"], [picture(seed, 336, 336) for seed in (8, 9)]
    made = [vlm.processor.image_processor(images=f, return_tensors="pt") for f in frames]
    video = torch.stack([one["pixel_values"][0, 0] for one in made])[None]  # (1, 2, 3, 384, 384)
    rows = vlm.film(frames)
    assert len(rows) == 2 * 196 + 1
    ids = marked(vlm, "video", [len(rows)])
    assert_same(vlm, rows, stock(vlm, input_ids=ids, pixel_values_videos=video))
    assert [len(layouts.film(27, n)) for n in (16, 32)] == [3137, 6273]


SIZES = [(672, 672), (336, 336), (200, 650), (650, 211), (90, 100), (500, 333), (1500, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_unpadded_is_the_stock_packing_next(size):
    expected, mine = packings(
        LlavaNextModel, 24, size, 336, architectures.PINPOINTS, None,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    assert torch.equal(mine, expected)


@pytest.mark.parametrize("size", [*SIZES, (1500, 1100), (2300, 2300)])
def test_unpadded_is_the_stock_packing_onevision(size):
    """The last two have more than nine tiles and are shrunk."""
    expected, mine = packings(LlavaOnevisionModel, 27, size, 384, OV_PINS, 9)
    assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


def packings(stock_class, cells, size, side, pins, most, **more) -> tuple[torch.Tensor, ...]:
    """Random features packed by the stock method and by the layout."""
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=side, patch_size=14), image_grid_pinpoints=pins
    )
    height, width = transformers.image_processing_utils.select_best_resolution(size, pins)
    generator = torch.Generator().manual_seed(0)
    tiles = 1 + (height // side) * (width // side)
    features = torch.randn(tiles, cells**2, 3, generator=generator, dtype=torch.float64)
    newline = torch.full((3,), 9.0, dtype=torch.float64)
    packed, _ = stock_class.pack_image_features(
        SimpleNamespace(config=config), [features], torch.tensor([size]), image_newline=newline,
        **more,
    )  # fmt: skip
    layout = layouts.unpadded(cells, size, side, pins, most=most)
    assert torch.equal(torch.from_numpy(layout.newlines), (packed[0] == 9).all(1))
    return packed[0], layout.fill(features.flatten(0, 1), newline)


LAYOUTS = {
    "whole": layouts.whole(24),
    "base": layouts.split(24),
    "split": layouts.split(24, tiles=5),
    "unpadded": layouts.unpadded(24, (500, 600), 336, architectures.PINPOINTS),
    "several": layouts.several(27, 3),
    "film": layouts.film(27, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_of_a_layout(vlms, name):
    """k tokens of a layout, made from the few features they need, are the same k rows as in the
    whole; a batch holds different ones of each input."""
    layout, rng = LAYOUTS[name], np.random.default_rng(0)
    vlm = vlms["1.5" if name == "whole" else "next"]
    visual = np.flatnonzero(~layout.newlines)
    features = torch.randn(2, 5 * 729, 192, dtype=torch.float64)
    whole = layouts.pack(vlm.model, features, [layout, layout])
    views = [rng.permutation(len(visual))[:64] for _ in range(2)]
    needed, few = zip(*(layout.keep(view).compact() for view in views), strict=True)
    read = [f[n] for f, n in zip(features, needed, strict=True)]
    rows = layouts.pack(vlm.model, read, few)
    assert rows.shape == (2, 64 + layout.newlines.sum(), 192)
    assert len(needed[0]) <= (256 if name == "film" else 64)
    for k, view in enumerate(views):
        stays = np.sort(np.append(visual[view], np.flatnonzero(layout.newlines)))
        assert (rows[k] - whole[k][stays]).abs().max() < 1e-12
    everything = layout.keep(range(len(visual)))
    assert np.array_equal(everything.sources, layout.sources)
    assert np.allclose(layout.weights.sum(1), 1)


def test_training_reaches_the_newline(folders):
    model = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        folders["tiny-llava-next"]
    )
    features = torch.randn(3, 576, 192)
    layouts.pack(model, features, [layouts.split(24)] * 3).sum().backward()
    assert torch.equal(model.model.image_newline.grad, torch.full((192,), 3.0))
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_wrong_layouts_are_refused(vlms):
    layout, features = layouts.split(24), torch.zeros(576, 192, dtype=torch.float64)
    newline = torch.zeros(192, dtype=torch.float64)
    cases = [
        (lambda: layout.keep([0, 576]), "0..575; got 0..576"),
        (lambda: layout.keep([-1]), "got -1..-1"),
        (lambda: layout.keep([3, 3]), "distinct"),
        (lambda: layout.fill(features[:575], newline), "speaks of 576 features; got 575"),
        (lambda: layout.fill(features, None), "has no newline"),
        (
            lambda: layouts.pack(vlms["next"].model, [features] * 2, [layout, layout.keep([1])]),
            r"lengths \[2, 577\]",
        ),
        (lambda: vlms["1.5"].tiles(picture(1, 70, 70)), "has no tiles"),
        (lambda: vlms["next"].tiles(picture(1, 70, 70), packing="x"), "got 'x'"),
        (lambda: vlms["next"].several([picture(1, 70, 70)] * 2), "several images need a OneV"),
        (lambda: vlms["1.5"].film([picture(1, 70, 70)]), "a video needs a OneVision"),
        (lambda: vlms["onevision"].several([picture(1, 70, 70)]), "at least two images; got 1"),
        (lambda: vlms["onevision"].film([]), "at least one frame"),
        (lambda: architectures.make_processor("tiny"), "got 'tiny'"),
        (lambda: architectures.make_model("tiny", None), "got 'tiny'"),
    ]
    for call, words in cases:
        with pytest.raises(RedlibError, match=words):
            call()


@pytest.mark.parametrize("name", architectures.NAMES)
def test_stock_generate_alone_and_in_a_batch(vlms, name):
    vlm = vlms[name.removeprefix("tiny-llava-")]
    alone, together = requests(vlm)
    scores = []  # (B, 2, V)
    for inputs in (*alone, together):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        out = vlm.model.generate(
            **inputs, max_new_tokens=2, min_new_tokens=2, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        scores.append(torch.stack(out.logits, 1))
    assert (torch.cat(scores[:2]) - scores[2]).abs().max() < EXACT
    assert (scores[0] - scores[1]).abs().max() > 1e3 * EXACT


def requests(vlm: VLM) -> tuple[list[dict], dict]:
    """Two questions, each by itself and both in one batch, padded on the left."""
    images = [picture(11, 336, 336), picture(12, 200, 600)]
    texts = [TEXT, "Is there a star?"]
    if vlm.model.config.model_type != "llava_onevision":
        filled = [
            vlm.processor.tokenizer.decode(marked(vlm, "image", [1], text)[0, 1:]) for text in texts
        ]
        alone = [
            vlm.processor(text=text, images=image, return_tensors="pt")
            for text, image in zip(filled, images, strict=True)
        ]
        both = vlm.processor(text=filled, images=images, padding=True, return_tensors="pt")
        return alone, both
    # two images in one prompt, and a video
    seen = vlm.processor.image_processor(images=[images], return_tensors="pt")
    frames = seen["pixel_values"][:, 0][None]
    ids = [marked(vlm, "image", [730, 730], texts[0]), marked(vlm, "video", [393], texts[1])]
    alone = [{"input_ids": ids[0], **seen}, {"input_ids": ids[1], "pixel_values_videos": frames}]
    padded = vlm.processor.tokenizer.pad(
        {"input_ids": [row[0].tolist() for row in ids]}, return_tensors="pt"
    )
    return alone, {**padded, **seen, "pixel_values_videos": frames}


@pytest.mark.parametrize("name", architectures.NAMES)
def test_files_are_stock_small_and_float32(folders, name):
    folder = folders[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16_000_000
    config = json.loads((folder / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert [part["dtype"] for part in parts] == ["float32"] * 3
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is architectures.CLASSES[name] and model.dtype == torch.float32


def test_next_begins_with_the_weights_of_15():
    tokenizer = architectures.make_processor("tiny-llava-1.5").tokenizer
    one = architectures.make_model("tiny-llava-1.5", tokenizer)
    other = architectures.make_model("tiny-llava-next", tokenizer, seed=1)
    missing, unexpected = other.load_state_dict(one.state_dict(), strict=False)
    assert (missing, unexpected) == (["model.image_newline"], [])
    words = architectures.make_processor("tiny-llava-onevision").tokenizer.get_vocab()
    assert words.items() > tokenizer.get_vocab().items()
    further = set(words) - set(tokenizer.get_vocab())
    assert "<video>" in further and min(words[word] for word in further) == len(tokenizer)


def test_files_of_the_onevision_processor(folders, vlms):
    """What can be read without torchvision says what the stock classes say of themselves."""
    folder = folders["tiny-llava-onevision"]
    stored = json.loads((folder / "processor_config.json").read_text())
    made = architectures.make_processor("tiny-llava-onevision")
    assert vlms["onevision"].processor.image_processor.to_dict() == made.image_processor.to_dict()
    assert stored["num_image_tokens"] == 729
    assert stored["video_processor"]["image_mean"] == stored["image_processor"]["image_mean"]
    assert stored["video_processor"]["size"] == {"height": 384, "width": 384}
