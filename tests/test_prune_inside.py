"""FastV against its masked form: the stock layers, run one by one, in which the dropped tokens stay
but no later layer may look at them."""

from types import SimpleNamespace

import pruning
import pytest
import torch
from pruning import IMAGES, KINDS, TEXTS, Maker, embeddings, model_of, picture, turned
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import redlib
from redlib.errors import RedlibError

EXACT = 1e-9


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    return SimpleNamespace(
        kind=request.param,
        folder=folder,
        model=model_of(folder),
        maker=Maker(request.param, folder),
    )


@torch.no_grad()
def masked_form(model, rows, owner, prompt: int, layer: int, keep: int):
    """Logits (T, V) with the tokens dropped by masks, and what each image keeps.

    `prompt` is the length of the prompt, whose last token ranks; what follows it is an answer.
    """
    decoder = model.model.language_model
    t = len(rows)
    positions = torch.arange(t)[None]
    rope = LlamaRotaryEmbedding(decoder.config)(rows[None], positions)
    causal = torch.full((t, t), -torch.inf, dtype=rows.dtype).triu(1)
    hidden, mask, kept = rows[None], causal.clone(), {}
    for k, block in enumerate(decoder.layers):
        if k == layer - 1:
            attention = block.self_attn
            normed = block.input_layernorm(hidden)[0]
            q = attention.q_proj(normed[prompt - 1]).view(-1, attention.head_dim)
            keys = attention.k_proj(normed[:prompt]).view(prompt, -1, attention.head_dim)
            total = torch.zeros(prompt, dtype=rows.dtype)
            cos, sin = (each[0, :prompt] for each in rope)
            for head in range(len(q)):
                key = turned(keys[:, head // attention.num_key_value_groups], cos, sin)
                query = turned(q[head], cos[-1], sin[-1])
                total += (key @ query / attention.head_dim**0.5).softmax(0)
            scores = total / len(q)
            for image in owner[owner >= 0].unique().tolist():
                mine = (owner[:prompt] == image).nonzero().flatten()
                best = scores[mine].topk(min(keep, len(mine))).indices
                kept[image] = sorted(best.tolist())
                gone = mine[~torch.isin(torch.arange(len(mine)), best)]
                mask[:, gone] = -torch.inf
                mask[gone, gone] = 0  # a softmax over nothing is no number; nobody reads it
        hidden = block(
            hidden,
            attention_mask=(mask if k >= layer else causal)[None, None],
            position_embeddings=rope,
            position_ids=positions,
        )
    return model.lm_head(decoder.norm(hidden))[0], kept


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [1, 2])
def test_forward_is_the_masked_form(made, layer, side):
    """A padded batch in which rows lose different numbers of tokens."""
    inputs, model = made.maker(TEXTS, IMAGES, side=side), made.model
    with torch.no_grad():
        with redlib.pruned(model, "fastv", keep=4, per="image", layer=layer) as run:
            logits = model(**inputs).logits
    before = sum(kept.before for kept in run.last)
    read = (layer * before + (4 - layer) * 12) / 4
    assert run.report == (
        f"{before} -> 12 visual tokens of 3 images or films from layer {layer} on "
        f"({read:.1f} a layer)"
    )
    for row in (0, 1):
        rows, owner = embeddings(model, inputs, row)
        expected, kept = masked_form(model, rows, owner, len(rows), layer, keep=4)
        for image, numbers in kept.items():
            assert run.last[image].kept.tolist() == numbers
            assert not run.last[image].scores.isnan().any()
        gone = sum(run.last[image].before - 4 for image in kept)
        n = len(rows) - gone
        mine = logits[row, -n:] if side == "left" else logits[row, :n]
        assert (mine[-1] - expected[-1]).abs().max() < 1e-5  # rotations are rounded to float32
        assert (mine[0] - expected[0]).abs().max() < 1e-5


def test_the_masked_form_at_every_kind_of_budget(made):
    """One token, two, all but one of the smallest image's, all of them."""
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    with torch.no_grad(), redlib.pruned(model, "fastv", keep=1, per="image") as run:
        model(**inputs)
    least = min(kept.before for kept in run.last)
    for keep in (1, 2, least - 1, least):
        with torch.no_grad(), redlib.pruned(model, "fastv", keep=keep, per="image") as run:
            logits = model(**inputs).logits
        for row in (0, 1):
            rows, owner = embeddings(model, inputs, row)
            expected, kept = masked_form(model, rows, owner, len(rows), 2, keep=keep)
            assert {image: run.last[image].kept.tolist() for image in kept} == kept
            assert (logits[row, -1] - expected[-1]).abs().max() < 1e-5


def test_of_equal_attention_the_earlier_token_stays(made):
    inputs, model = made.maker(TEXTS, IMAGES), model_of(made.folder, torch.float64)
    for weight in model.model.language_model.layers[1].self_attn.q_proj.parameters():
        torch.nn.init.zeros_(weight)  # which ranks, and asks for nothing
    with torch.no_grad(), redlib.pruned(model, "fastv", keep=3, per="image") as run:
        model(**inputs)
    for kept in run.last:
        assert kept.scores.unique().numel() == 1
        assert kept.kept.tolist() == [0, 1, 2]


def test_generate_is_the_masked_form(made):
    """Greedy, with a cache, in a batch: every step against the masked form of the whole text."""
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip
    with redlib.pruned(model, "fastv", keep=4, per="image"):
        out = model.generate(**inputs, **how)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], inputs["input_ids"])
    widths = [out.past_key_values.get_seq_length(k) for k in range(4)]
    assert widths[0] == widths[1] == length + 3 and widths[2] == widths[3] < length
    for row in (0, 1):
        rows, owner = embeddings(model, inputs, row)
        prompt = len(rows)
        for step, token in enumerate(out.sequences[row, length:].tolist()):
            expected, _ = masked_form(model, rows, owner, prompt, 2, keep=4)
            assert (out.logits[step][row] - expected[-1]).abs().max() < 1e-4
            said = model.get_input_embeddings()(torch.tensor([token])).detach()
            rows = torch.cat([rows, said])
            owner = torch.cat([owner, torch.tensor([-1])])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_and_its_beams_are_those_of_each_prompt_alone(made, attention):
    # Eager attention of transformers has no float64: a row of masks there is a row of NaN.
    model = model_of(made.folder, torch.float64 if attention == "sdpa" else torch.float32)
    model.set_attn_implementation(attention)
    together = made.maker(TEXTS, IMAGES)
    length = together["input_ids"].shape[1]
    how = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    with redlib.pruned(model, "fastv", keep=4, per="image") as run:
        both = model.generate(**together, **how)
        kept = [k.kept.tolist() for k in run.last]
        for row in (0, 1):
            one = made.maker([TEXTS[row]], [IMAGES[row]])
            alone = model.generate(**one, **how)
            assert torch.equal(
                alone[:, one["input_ids"].shape[1] :], both[2 * row : 2 * row + 2, length:]
            )
            assert [k.kept.tolist() for k in run.last] == (kept[:1], kept[1:])[row]
    assert torch.equal(both[:, :length], together["input_ids"].repeat_interleave(2, 0))


def test_rows_without_padding_that_lose_different_numbers(made):
    """One image and much text beside two images: padding arises inside the model."""
    if made.kind != "llava":
        pytest.skip("once is enough")
    long = "USER: <image> " + "red cup the " * 8 + "show"
    texts = ["<image> <image> cup", long]
    images = [[picture(1), picture(2)], [picture(3)]]
    inputs = made.maker(texts, images)
    assert bool(inputs["attention_mask"].all())
    how = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip
    for attention in ("sdpa", "eager"):
        model = model_of(made.folder)
        model.set_attn_implementation(attention)
        with redlib.pruned(model, "fastv", keep=4):
            both = torch.stack(model.generate(**inputs, **how).logits, 1)
            for row in (0, 1):
                one = made.maker([texts[row]], [images[row]])
                alone = torch.stack(model.generate(**one, **how).logits, 1)[0]
                assert (alone - both[row]).abs().max() < 1e-5


def test_all_tokens_kept_are_the_stock_model(made):
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        stock, ids = model(**inputs).logits, model.generate(**inputs, max_new_tokens=4)
        with redlib.pruned(model, "fastv", keep=1.0, per="image"):
            assert (model(**inputs).logits - stock)[real].abs().max() < EXACT
            assert torch.equal(model.generate(**inputs, max_new_tokens=4), ids)


def test_budgets_per_tile(made):
    if made.kind == "llava":
        pytest.skip("LLaVA-1.5 has one tile")
    inputs, model = made.maker([TEXTS[0]], [[picture(3)]]), made.model
    with torch.no_grad(), redlib.pruned(model, "fastv", keep=2, per="tile", packing="split") as run:
        model(**inputs)
    (kept,) = run.last
    assert torch.bincount(kept.kept // 25).tolist() == [2] * (kept.before // 25)
    for tile in range(kept.before // 25):
        scores = kept.scores[25 * tile : 25 * (tile + 1)]
        mine = kept.kept[kept.kept // 25 == tile] - 25 * tile
        assert mine.tolist() == sorted(scores.topk(2).indices.tolist())


@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_text_beside_an_image_is_not_shortened(made, method):
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    text = {k: v for k, v in made.maker(["USER: what is this ?"]).items()
            if k in ("input_ids", "attention_mask")}  # fmt: skip
    with torch.no_grad():
        stock = model(**text).logits
        with redlib.pruned(model, method, keep=2, per="image"):
            assert torch.equal(model(**text).logits, stock)
            model(**inputs)
            assert torch.equal(model(**text).logits, stock)


@torch.no_grad()
@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_other_prompts_of_the_language_model_are_the_stock_ones(made, method):
    """Before a call, behind one, and in between by a cache of their own."""
    model, inputs = made.model, made.maker(TEXTS, IMAGES)
    decoder = model.model.language_model
    rows = torch.randn(2, 90, decoder.config.hidden_size, dtype=torch.float64)

    def read():
        short = decoder(inputs_embeds=rows[:, :7]).last_hidden_state
        whole = decoder(inputs_embeds=rows[:, :80], use_cache=True)
        more = decoder(inputs_embeds=rows[:, 80:], past_key_values=whole.past_key_values)
        return short, whole.last_hidden_state, more.last_hidden_state

    stock = read()
    with redlib.pruned(model, method, keep=3, per="image"):
        plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        for found, wanted in zip(read(), stock, strict=True):
            assert torch.equal(found, wanted)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), plain)
        assert torch.equal(read()[1], stock[1])


def test_what_it_refuses(made):
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    with redlib.pruned(model, "fastv", keep=2, per="image"):
        with pytest.raises(RedlibError, match="fastv cannot be trained through"):
            model(**inputs, labels=inputs["input_ids"])
    with pytest.raises(RedlibError, match="fastv has no scores for a threshold"):
        redlib.prune.install(model, "fastv", threshold=0.1)
