"""Pruning of images in tiles and of films: packings, budgets per tile, who belongs where."""

from types import SimpleNamespace

import pruning
import pytest
import torch
from conftest import random_image
from pruning import CELLS, Maker, model_of, picture

import redlib
from redlib.errors import RedlibError
from redlib.prune.context import Selection
from redlib.prune.method import Method

EXACT = 1e-9
TEXT = "USER: <image> what is this ?"
P = CELLS**2


def make(kind: str, folder) -> SimpleNamespace:
    pruning.save(kind, folder)
    return SimpleNamespace(kind=kind, model=model_of(folder), maker=Maker(kind, folder))


@pytest.fixture(scope="module", params=["llava_next", "llava_onevision"])
def made(request, tmp_path_factory) -> SimpleNamespace:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory) -> SimpleNamespace:
    return make("llava_onevision", tmp_path_factory.mktemp("onevision"))


@torch.no_grad()
def tile_tokens(model, tiles) -> torch.Tensor:
    """(n, P, D) from pixels (n, 3, side, side), by the stock modules."""
    states = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states
    features = states[model.config.vision_feature_layer]
    if model.config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    return model.model.multi_modal_projector(features)


@torch.no_grad()
def spoken(model, ids, visual) -> torch.Tensor:
    """(V,) logits behind a prompt of one image, its placeholders replaced by `visual`."""
    placeholders = (ids == model.config.image_token_id) | (
        ids == getattr(model.config, "video_token_id", -1)
    )
    at = placeholders.nonzero().flatten()
    table = model.get_input_embeddings()
    rows = torch.cat([table(ids[: at[0]]), visual, table(ids[at[-1] + 1 :])])
    return model(inputs_embeds=rows[None]).logits[0, -1]


@torch.no_grad()
def ours(model, inputs, method="random", **how) -> tuple[torch.Tensor, redlib.prune.Run]:
    with redlib.pruned(model, method, **how) as run:
        return model(**inputs).logits[0, -1], run


def test_several_tiles_need_a_word(made):
    inputs = made.maker([TEXT], [[picture(3)]])
    tiles = inputs["pixel_values"].shape[1]
    with redlib.pruned(made.model, "random", keep=3):
        for call in (made.model.forward, made.model.generate):
            with pytest.raises(RedlibError, match=rf"has {tiles} tiles: say per='tile' .*'image'"):
                call(**inputs)


@pytest.mark.parametrize("length", [3, 10_000])
def test_masks_of_another_length_are_refused_before_tiles_are_cut(made, length):
    inputs = made.maker([TEXT], [[picture(3)]])
    with redlib.pruned(made.model, "oracle", keep=3, per="tile", packing="split") as run:
        run.extra = {"coverage": [torch.zeros(length)]}
        with pytest.raises(RedlibError, match=rf"'coverage' must have shape .* got \({length},"):
            made.model(**inputs)


@pytest.mark.parametrize("per", ["tile", "image"])
@pytest.mark.parametrize("packing", ["split", "base"])
def test_the_papers_packings(made, packing, per):
    """Tiles one after another, or the base tile alone, and one newline."""
    inputs, model = made.maker([TEXT], [[picture(3)]]), made.model
    tiles = inputs["pixel_values"][0]
    logits, run = ours(model, inputs, keep=6, per=per, packing=packing)
    (kept,) = run.last
    tokens = tile_tokens(model, tiles[:1] if packing == "base" else tiles)
    assert kept.before == len(tokens) * P
    assert kept.after == (6 * len(tokens) if per == "tile" else 6)
    if per == "tile":
        assert torch.bincount(kept.kept // P).tolist() == [6] * len(tokens)
    rows = torch.cat([tokens.flatten(0, 1)[kept.kept], model.model.image_newline[None]])
    assert (logits - spoken(model, inputs["input_ids"][0], rows)).abs().max() < EXACT
    assert torch.equal(kept.patches, torch.arange(kept.before))


def picture_of_tiles(config, size) -> torch.Tensor:
    """(rows, columns) numbers of the patches of an image's tiles joined, without padding, written
    from the description: the rows or columns outside the image's proportions go, as many on both
    sides."""
    width, height = size
    fits = []
    for h, w in config.image_grid_pinpoints:
        scale = min(w / width, h / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        fits.append((used, -(h * w - used), h, w))
    _, _, h, w = max(fits)
    down, across = h // pruning.SIDE, w // pruning.SIDE
    numbers = [
        [
            (1 + (r // CELLS) * across + c // CELLS) * P + (r % CELLS) * CELLS + c % CELLS
            for c in range(across * CELLS)
        ]
        for r in range(down * CELLS)
    ]
    rows, columns = down * CELLS, across * CELLS
    if width / height > columns / rows:
        cut = (rows - int(round(height * columns / width, 7))) // 2
        numbers = numbers[cut : rows - cut]
    else:
        cut = (columns - int(round(width * rows / height, 7))) // 2
        numbers = [line[cut : columns - cut] for line in numbers]
    return torch.tensor(numbers)


@pytest.mark.parametrize("per", ["tile", "image"])
@pytest.mark.parametrize("size", [(150, 60), (96, 80), (130, 140), (60, 150)])
def test_hugging_faces_packing(made, size, per):
    """All newlines, and of the tokens those that are kept; a tile's are those that come from it."""
    model = made.model
    inputs = made.maker([TEXT], [[random_image(4, width=size[0], height=size[1])]])
    logits, run = ours(model, inputs, keep=5, per=per)
    (kept,) = run.last
    numbers = picture_of_tiles(model.config, size)
    patches = torch.cat([torch.arange(P), numbers.flatten()])
    assert torch.equal(kept.patches, patches)
    assert len(numbers.unique()) == numbers.numel() < 4 * P or size == (130, 140)
    tiles = inputs["pixel_values"][0]
    tokens = tile_tokens(model, tiles).flatten(0, 1)
    if per == "tile":
        each = torch.bincount(patches[kept.kept] // P, minlength=1)
        assert each.tolist() == [5] * int(patches.max() // P + 1)
    else:
        assert kept.after == 5
    stays, rows = set(patches[kept.kept].tolist()), []
    rows += [tokens[n] for n in range(P) if n in stays]
    for line in numbers.tolist():
        rows += [tokens[n] for n in line if n in stays] + [model.model.image_newline]
    expected = spoken(model, inputs["input_ids"][0], torch.stack(rows))
    assert (logits - expected).abs().max() < EXACT


def test_a_tile_that_is_mostly_padding_keeps_all_it_has(made):
    model = made.model
    inputs = made.maker([TEXT], [[random_image(4, width=30, height=150)]])  # 1 x 5 of 5 x 10
    _, run = ours(model, inputs, keep=23, per="tile")
    (kept,) = run.last
    owner = kept.patches // P
    have = torch.bincount(owner)
    assert have.min() < 23 < have.max()
    assert torch.bincount(owner[kept.kept]).tolist() == have.clamp(max=23).tolist()
    with pytest.raises(RedlibError, match="keep must be at most 25, .* got 26"):
        ours(model, inputs, keep=26, per="tile")
    with pytest.raises(RedlibError, match=f"keep must be at most {kept.before}, "):
        ours(model, inputs, keep=kept.before + 1, per="image")


@pytest.fixture
def shrinking(onevision):
    """OneVision that shrinks what has more patches than one tile."""
    onevision.model.config.vision_aspect_ratio = "anyres_max_1"
    yield onevision
    onevision.model.config.vision_aspect_ratio = "anyres_max_9"


def test_shrunk_tiles(shrinking):
    """Pooled tokens are the candidates; all kept they are those of the stock model, and a tile's
    are those that owe it most."""
    model = shrinking.model
    inputs = shrinking.maker([TEXT], [[random_image(4, width=130, height=140)]])
    with torch.no_grad():
        names = ("pixel_values", "image_sizes", "batch_num_images")
        given = {name: inputs[name] for name in names}
        (stock,) = model.model.get_image_features(
            **given, vision_aspect_ratio="anyres_max_1", return_dict=True
        ).pooler_output
    ids = inputs["input_ids"][0]
    at = (ids == model.config.image_token_id).nonzero().flatten()
    inputs["input_ids"] = torch.cat([ids[: at[0] + len(stock)], ids[at[-1] + 1 :]])[None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    ids = inputs["input_ids"][0]
    logits, run = ours(model, inputs, keep=1.0, per="tile")
    assert (logits - spoken(model, ids, stock)).abs().max() < EXACT

    # each pooled token as a mean of patches: interpolating one picture per tile gives its share
    side = 2 * CELLS
    shares = torch.zeros(4, 1, side, side)
    for t in range(4):
        shares[t, 0, CELLS * (t // 2) : CELLS * (1 + t // 2), CELLS * (t % 2) :][:, :CELLS] = 1
    columns = int(side * 130 / 140)
    cut = (side - columns) // 2
    shares = shares[..., cut : side - cut]
    newlines = (stock == model.model.image_newline).all(1).sum()
    width = (len(stock) - P) // newlines - 1
    assert newlines < side
    pooled = torch.nn.functional.interpolate(shares, (int(newlines), int(width)), mode="bilinear")
    owner = torch.cat([torch.zeros(P, dtype=torch.long), 1 + pooled.flatten(1).argmax(0)])

    logits, run = ours(model, inputs, keep=2, per="tile")
    (kept,) = run.last
    assert kept.before == len(owner)
    assert torch.bincount(owner[kept.kept]).tolist() == [2] * 5
    stays, rows, number = set(kept.kept.tolist()), [], 0
    for row in stock:
        if torch.equal(row, model.model.image_newline):
            rows.append(row)
        else:
            rows += [row] * (number in stays)
            number += 1
    assert (logits - spoken(model, ids, torch.stack(rows))).abs().max() < EXACT


def film(maker, frames=3, text="USER: key what is this ?") -> dict:
    return maker([text], films=[[picture(seed) for seed in range(frames)]])


@torch.no_grad()
def film_rows(model, inputs) -> torch.Tensor:
    return model.model.get_video_features(
        inputs["pixel_values_videos"], return_dict=True
    ).pooler_output[0]


@pytest.mark.parametrize("per, keep, each", [("tile", 4, [4, 4, 4]), ("image", 6, None)])
def test_films(onevision, per, keep, each):
    """9 tokens a frame behind pooling, one newline at the end."""
    model, inputs = onevision.model, film(onevision.maker)
    with torch.no_grad():
        whole, _ = ours(model, inputs, keep=1.0, per=per)
        assert (whole - model(**inputs).logits[0, -1]).abs().max() < EXACT
    logits, run = ours(model, inputs, keep=keep, per=per)
    (kept,) = run.last
    assert kept.kind == "video" and kept.before == 27
    counts = torch.bincount(kept.kept // 9, minlength=3).tolist()
    assert counts == each if each else sum(counts) == keep
    rows = film_rows(model, inputs)
    stays = torch.cat([rows[:-1][kept.kept], rows[-1:]])
    assert (logits - spoken(model, inputs["input_ids"][0], stays)).abs().max() < EXACT
    with pytest.raises(RedlibError, match="this video has 3 frames: say per='tile'"):
        ours(model, inputs, keep=3)


def test_films_beside_images_in_a_batch(onevision):
    """A prompt with a film and an image, one with an image: each as it is alone; generate too."""
    model, maker = onevision.model, onevision.maker
    texts = ["show key the <image> cup", TEXT]
    frames = [picture(1), picture(2)]
    both = maker(texts, [[picture(3)], [picture(4)]], [frames])
    ones = [maker(texts[:1], [[picture(3)]], [frames]), maker(texts[1:], [[picture(4)]])]
    how = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip
    with redlib.pruned(model, "random", keep=3, per="tile") as run:
        out = model.generate(**both, **how)
        assert [k.kind for k in run.last] == ["image", "image", "video"]
        assert run.last[2].after == 6
        alone = [torch.stack(model.generate(**one, **how).logits, 1)[0] for one in ones]
        beams = model.generate(**both, num_beams=2, max_new_tokens=3)
    assert (torch.stack(out.logits, 1) - torch.stack(alone)).abs().max() < EXACT
    length = both["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], both["input_ids"])
    assert torch.equal(beams[:, :length], both["input_ids"])
    with torch.no_grad():
        stock = model(**both).logits
        with redlib.pruned(model, "random", keep=1.0, per="image"):
            assert (model(**both).logits - stock).abs().max() < EXACT
    del both["pixel_values_videos"]
    with redlib.pruned(model, "random", keep=3, per="tile"):
        with pytest.raises(RedlibError, match="prompt 0 holds video placeholders but no video"):
            model.generate(**both)


def test_extra_is_cut_to_tiles(made):
    inputs = made.maker([TEXT], [[picture(3)]])
    tiles = inputs["pixel_values"].shape[1]
    coverage = torch.rand(tiles * P, generator=torch.Generator().manual_seed(0))
    how = {"packing": "split", "extra": {"coverage": coverage}}
    _, run = ours(made.model, inputs, "oracle", keep=3, per="tile", **how)
    expected = [
        t * P + i
        for t, each in enumerate(coverage.split(P))
        for i in sorted(each.topk(3).indices.tolist())
    ]
    assert run.last[0].kept.tolist() == expected
    _, run = ours(made.model, inputs, "oracle", keep=3, per="image", **how)
    assert run.last[0].kept.tolist() == sorted(coverage.topk(3).indices.tolist())
    assert torch.allclose(run.last[0].scores, coverage.double())


def backwards(context, keep) -> Selection:
    kept = torch.arange(keep).flip(0)
    return Selection(kept, context.tokens[kept], torch.zeros(len(context)))


def test_an_order_of_its_own(made):
    """Rows stand as the method gave them, tile after tile, the newline behind all."""
    method = Method("backwards", "Backwards", select=backwards, order="own")
    model, inputs = made.model, made.maker([TEXT], [[picture(3)]])
    logits, run = ours(model, inputs, method, keep=3, per="tile", packing="split")
    tokens = tile_tokens(model, inputs["pixel_values"][0])
    rows = torch.cat([*(each[[2, 1, 0]] for each in tokens), model.model.image_newline[None]])
    assert (logits - spoken(model, inputs["input_ids"][0], rows)).abs().max() < EXACT
    assert run.last[0].kept[:6].tolist() == [2, 1, 0, P + 2, P + 1, P]
    with pytest.raises(RedlibError, match="backwards puts tokens .* say packing='split'"):
        ours(model, inputs, method, keep=3, per="tile")


def every_third(context) -> torch.Tensor:
    return (torch.arange(len(context)) % 3 == 1).double()


@pytest.mark.parametrize("side", ["left", "right"])
def test_original_positions(made, side):
    """Tokens keep the positions that they had in the whole prompt."""
    method = Method("third", "Every third", scores=every_third, positions="original")
    model = made.model
    inputs = made.maker([TEXT, "the <image>"], [[picture(3)], [picture(4)]], side=side)
    with torch.no_grad():
        with redlib.pruned(model, method, keep=8, per="image") as run:
            logits = model(**inputs).logits
            said = model.generate(**inputs, max_new_tokens=1, output_logits=True,
                                  return_dict_in_generate=True).logits[0]  # fmt: skip
        for row in (0, 1):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            given = {k: inputs[k] for k in ("pixel_values", "image_sizes", "batch_num_images")
                     if k in inputs}  # fmt: skip
            stock = model.model.get_image_features(**given, return_dict=True).pooler_output[row]
            at = (ids == model.config.image_token_id).nonzero().flatten()
            newline = (stock == model.model.image_newline).all(1)
            stays = newline.clone()
            stays[(~newline).nonzero().flatten()[run.last[row].kept]] = True
            table = model.get_input_embeddings()
            rows = torch.cat([table(ids[: at[0]]), stock[stays], table(ids[at[-1] + 1 :])])
            places = torch.cat(
                [torch.arange(int(at[0])), at[stays], torch.arange(int(at[-1]) + 1, len(ids))]
            )
            out = model(
                inputs_embeds=rows[None], position_ids=places[None],
                attention_mask=torch.ones(1, len(rows)),
            ).logits[0]  # fmt: skip
            mine = logits[row, -len(rows) :] if side == "left" else logits[row, : len(rows)]
            assert (mine - out).abs().max() < EXACT
            if side == "left":
                assert (said[row] - out[-1]).abs().max() < 1e-5  # generate hands out float32
    with pytest.raises(RedlibError, match="original positions, which only packing='stock' has"):
        redlib.prune.install(model, method, keep=8, packing="split")


def test_packings_are_for_tiles(tmp_path):
    made = make("llava", tmp_path)
    with pytest.raises(RedlibError, match="LLaVA-1.5 has no tiles to pack"):
        redlib.prune.install(made.model, "random", keep=3, packing="split")


def test_image_sizes_are_needed(made):
    inputs = made.maker([TEXT], [[picture(3)]])
    del inputs["image_sizes"]
    with pytest.raises(RedlibError, match="image_sizes is missing beside pixel_values"):
        ours(made.model, inputs, keep=3)


def test_image_sizes_are_those_of_the_pixels(made):
    inputs = made.maker([TEXT, TEXT], [[picture(3)], [picture(4)]])
    inputs["image_sizes"] = inputs["image_sizes"][:1]
    with pytest.raises(RedlibError, match="image_sizes .of 1 images. and pixel_values .* together"):
        ours(made.model, inputs, keep=3)
