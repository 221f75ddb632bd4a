"""The plain methods, each against its definition written out, at every size of budget."""

import math
from types import SimpleNamespace

import pruning
import pytest
import torch
from pruning import CELLS, KINDS, Maker, model_of, picture
from scipy.stats import rankdata

import redlib
from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.prune import METHODS, plain
from redlib.prune.context import MERGED, Context, Pooling

P = CELLS**2
TEXT = "USER: <image> what is this ?"


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    model = model_of(folder)
    maker = Maker(request.param, folder)
    packing = {} if request.param == "llava" else {"packing": "base"}
    return SimpleNamespace(kind=request.param, model=model, maker=maker, packing=packing,
                           inputs=maker([TEXT], [[picture(1)]]))  # fmt: skip


def sample(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(tokens, **more) -> Context:
    side = math.isqrt(len(tokens))
    given = {"features": tokens, "cls": None, "grid": Grid(side, side), "project": lambda x: x}
    return Context(tokens, **{**given, **more})


@torch.no_grad()
def run_of(made, name, keep, **how):
    with redlib.pruned(made.model, name, keep=keep, **made.packing, **how) as run:
        logits = made.model(**made.inputs).logits
    return run.last[0], logits


OPTIONS = {
    "codebook": {"codebook": pruning.codebook(), "codebook_of_other_model": True},
    "codebook-softmax": {"codebook": pruning.codebook(), "codebook_of_other_model": True},
    "probe": {"extra": {"top1": sample(P) * 0, "jsd": sample(P) * 0}},  # all are ties
    "oracle": {"extra": {"coverage": sample(P).round()}},
    "oracle-inverse": {"extra": {"coverage": sample(P).round()}},
}


@pytest.mark.parametrize("keep", [1, 2, P - 1, P, 0.5])
@pytest.mark.parametrize("name", [each.name for each in plain.METHODS])
def test_every_budget_is_met(made, name, keep):
    if name == "cls-attention" and made.kind == "llava_onevision":
        with pytest.raises(RedlibError, match="no \\[cls\\]; use received-attention"):
            run_of(made, name, keep)
        return
    kept, _ = run_of(made, name, keep, **OPTIONS.get(name, {}))
    count = round(keep * P) if isinstance(keep, float) else keep
    assert kept.before == P
    if name == "downsample":
        side = math.isqrt(count)
        assert kept.after == side * min(count // side, CELLS) <= count
        assert (kept.kept == MERGED).all() and kept.scores.isnan().all()
        return
    assert kept.after == count
    assert kept.kept.tolist() == sorted(set(kept.kept.tolist()))
    if METHODS[name].scores is not None:  # the highest stay, of equal ones the earlier
        best = sorted(range(P), key=lambda i: -kept.scores[i].item())[:count]
        assert kept.kept.tolist() == sorted(best)


def test_the_codebook_scores_minus_the_largest_cosine():
    tokens, book = sample(9, 48), pruning.codebook()
    found = plain.codebook(context(tokens), codebook=book)
    for token, score in zip(tokens.tolist(), found.tolist(), strict=True):
        cosines = [
            sum(a * b for a, b in zip(token, p, strict=True)) / math.hypot(*token) / math.hypot(*p)
            for p in book.vectors.tolist()
        ]
        assert score == pytest.approx(-max(cosines), abs=1e-12)


def test_the_double_softmax():
    tokens, book = sample(9, 48), pruning.codebook()
    found = plain.codebook_softmax(context(tokens), codebook=book)
    rows, columns = range(9), range(7)
    s = [[float(torch.cosine_similarity(tokens[i], book.vectors[j].double(), dim=0))
          for j in columns] for i in rows]  # fmt: skip
    for i in rows:
        products = [
            math.exp(s[i][j]) / sum(math.exp(s[k][j]) for k in rows)
            * math.exp(s[i][j]) / sum(math.exp(s[i][k]) for k in columns)
            for j in columns
        ]  # fmt: skip
        assert float(found[i]) == pytest.approx(-max(products), rel=1e-12)


def test_random_is_a_function_of_image_and_seed(made):
    one, _ = run_of(made, "random", 6, seed=1)
    again, _ = run_of(made, "random", 6, seed=1)
    other, _ = run_of(made, "random", 6, seed=2)
    assert torch.equal(one.kept, again.kept) and not torch.equal(one.kept, other.kept)
    inputs = made.maker([TEXT, TEXT], [[picture(2)], [picture(1)]])
    half = {k: v.to(torch.float16).double() if v.is_floating_point() else v
            for k, v in inputs.items()}  # fmt: skip
    for given in (inputs, half):
        with torch.no_grad():
            with redlib.pruned(made.model, "random", keep=6, seed=1, **made.packing) as run:
                made.model(**given)
        if made.packing:  # of its base tile, which is what names it
            assert torch.equal(run.last[1].kept, one.kept)
        assert not torch.equal(run.last[0].kept, run.last[1].kept)


def test_a_grid_is_even():
    for rows, columns in [(24, 24), (27, 27), (14, 14), (5, 11), (11, 5), (1, 7)]:
        size = rows * columns
        for count in {1, 2, 3, size // 9 + 1, size // 3 + 1, size - 1, size}:
            kept = plain._raster(rows, columns, count).tolist()
            assert len(set(kept)) == count and kept == sorted(kept)
            assert 0 <= kept[0] <= kept[-1] < size
    assert plain._raster(24, 24, 64).tolist() == Grid(24, 24).stride(start=1, step=3).tolist()
    for count in (24, 36, 48, 64, 100, 128, 192, 288):
        row, column = divmod(plain._raster(24, 24, count), 24)
        for half in (row < 12, column < 12):  # an odd number of lines has one in the middle
            assert abs(half.mean() - 0.5) <= 0.5 / round(count**0.5) + 0.01
        assert len(set(row)) * len(set(column)) >= count and len(set(row)) <= count**0.5 + 1


def test_a_grid_over_several_rectangles():
    tokens = sample(25 + 4 * 6, 8)
    sources = torch.arange(49)[:, None]
    pooling = Pooling(sources, torch.ones(49, 1), ((5, 5), (4, 6)), 5)
    for keep in (1, 2, 10, 48, 49):
        chosen = plain.grid(context(tokens, pooling=pooling), keep)
        kept = chosen.kept.tolist()
        assert len(set(kept)) == keep and kept == sorted(kept)
        assert abs(sum(k < 25 for k in kept) - keep * 25 / 49) <= 0.5
        assert torch.equal(chosen.tokens, tokens[kept])


@torch.no_grad()
def eager_attention(model, tiles, layer) -> torch.Tensor:
    """(n, H, S, S) of the stock tower, switched to eager attention and back."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    attentions = tower(tiles, output_attentions=True).attentions
    tower.set_attn_implementation(before)
    return attentions[layer]


@pytest.mark.parametrize("name", ["cls-attention", "received-attention"])
def test_attention_is_that_of_the_stock_tower(made, name):
    if name == "cls-attention" and made.kind == "llava_onevision":
        pytest.skip("SigLIP has no [cls]")
    kept, _ = run_of(made, name, 4)
    tiles = made.inputs["pixel_values"]
    tiles = tiles if made.kind == "llava" else tiles[0, :1]
    attention = eager_attention(made.model, tiles, -2)[0]  # (H, S, S)
    first = attention.shape[1] - P
    if name == "cls-attention":
        expected = attention[:, 0, 1:].mean(0)
    else:
        expected = attention.mean((0, 1))[first:]
    assert (kept.scores - expected).abs().max() < 1e-6  # eager softmax is float32
    assert kept.scores.std() > 1e-4


def test_attention_of_pooled_tokens_is_the_mean_of_their_patches(made):
    if made.kind != "llava_onevision":
        pytest.skip("only OneVision sees films")
    frames = [picture(1), picture(2)]
    inputs = made.maker(["key what is this ?"], films=[frames])
    with torch.no_grad():
        with redlib.pruned(made.model, "received-attention", keep=3, per="tile") as run:
            made.model(**inputs)
    attention = eager_attention(made.model, inputs["pixel_values_videos"][0], -2).mean((1, 2))
    pooled = torch.nn.functional.interpolate(
        attention.view(2, 1, CELLS, CELLS), (3, 3), mode="bilinear"
    )
    assert (run.last[0].scores - pooled.flatten()).abs().max() < 1e-6


def test_downsampling_shows_the_tower_a_smaller_image(made):
    """Against the stock tower with interpolated positions, and a literal prompt."""
    kept, logits = run_of(made, "downsample", 7)
    assert kept.after == 6  # 2 x 3
    model, ids = made.model, made.inputs["input_ids"][0]
    tiles = made.inputs["pixel_values"]
    tiles = tiles if made.kind == "llava" else tiles[0, :1]
    small = torch.nn.functional.interpolate(tiles, (28, 42), mode="bicubic", antialias=True)
    with torch.no_grad():
        states = model.model.vision_tower(
            small, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states[model.config.vision_feature_layer][0]
        tokens = model.model.multi_modal_projector(states[len(states) - 6 :])
        table = model.get_input_embeddings()
        at = (ids == model.config.image_token_id).nonzero().flatten()
        newline = getattr(model.model, "image_newline", torch.empty(0, 48)).reshape(-1, 48)
        rows = torch.cat([table(ids[: at[0]]), tokens, newline, table(ids[at[-1] + 1 :])])
        expected = model(inputs_embeds=rows[None]).logits[0, -1]
    assert (logits[0, -1] - expected).abs().max() < 1e-9


def test_an_image_shrunk_by_nothing_is_the_image(made):
    _, shrunk = run_of(made, "downsample", P)
    _, whole = run_of(made, "random", P)
    assert (shrunk - whole).abs().max() < 1e-9


def test_the_direct_probe_means_two_ranks():
    top1 = torch.tensor([0.3, 0.1, 0.3, 0.9])
    jsd = torch.tensor([0.5, 0.5, 0.5, 0.1])
    found = plain.probe(context(sample(4, 8), extra={"top1": top1, "jsd": jsd}))
    expected = (rankdata(top1) + rankdata(jsd)) / 2 - 1
    assert found.tolist() == expected.tolist() == [1.75, 1.0, 1.75, 1.5]


def test_oracles_rank_by_coverage():
    extra = {"coverage": torch.tensor([0.0, 1.0, 0.5, 1.0])}
    given = context(sample(4, 8), extra=extra)
    assert plain.oracle(given).tolist() == [0.0, 1.0, 0.5, 1.0]
    assert plain.oracle_inverse(given).tolist() == [0.0, -1.0, -0.5, -1.0]


def test_downsampling_needs_a_token_a_tile(made):
    if made.kind == "llava":
        pytest.skip("LLaVA-1.5 has one tile")
    with pytest.raises(RedlibError, match="a token for each of [35] tiles; got keep 2"):
        with redlib.pruned(made.model, "downsample", keep=2, per="image", packing="split"):
            made.model(**made.inputs)
    with pytest.raises(RedlibError, match="downsample puts tokens in an order of its own"):
        with redlib.pruned(made.model, "downsample", keep=2, per="tile"):
            made.model(**made.inputs)
