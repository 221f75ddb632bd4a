"""LLaVA-Next and OneVision, base tile alone: every stage against the stock model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPT, random_image, save_tiny_llava
from transformers.modeling_outputs import BaseModelOutputWithPooling

from redlib import bench, leave_one_out, probe, states
from redlib.geometry import Sight
from redlib.models import VLM, load
from redlib.study import patches
from redlib.tabletop import scenes

KINDS = ("llava_next", "llava_onevision")


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    """A random model in float64, and the tokens of an image."""
    folder = save_tiny_llava(tmp_path_factory.mktemp(request.param), kind=request.param, seed=5)
    vlm = load(str(folder), device="cpu", dtype="float64")
    image = random_image(1)
    return SimpleNamespace(
        kind=request.param, vlm=vlm, image=image, tokens=vlm.encode([image]).tokens[0]
    )


def stock(
    vlm: VLM, visual: torch.Tensor, text: str = PROMPT, more: tuple[int, ...] = ()
) -> torch.Tensor:
    """Logits (V,) after a prompt whose image is `visual` (n, D), by the whole stock model."""
    before, after = vlm.prompt(text)
    marks = torch.full((len(visual),), vlm.model.config.image_token_id)
    ids = torch.cat([before, marks, after, torch.tensor(more, dtype=torch.long)])[None]
    features = BaseModelOutputWithPooling(pooler_output=[visual])
    with torch.no_grad():
        output = vlm.model(input_ids=ids, mm_encoder_outputs={"image": features}, use_cache=False)
    return output.logits[0, -1]


def read(vlm: VLM, visual: torch.Tensor) -> torch.Tensor:
    """The same, one step later where the first word is an article."""
    logits = stock(vlm, visual)
    first = int(logits.argmax())
    if vlm.word(first).lower() in probe.ARTICLES:
        logits = stock(vlm, visual, more=(first,))
    return logits


def test_the_base_tile_equals_the_stock_packing_of_one_tile(made):
    """The stock model packs an image without tiles as its patches and one newline."""
    vlm, inner = made.vlm, made.vlm.model.model
    pixels = vlm.processor.image_processor(images=made.image, return_tensors="pt")["pixel_values"][
        0
    ]
    assert len(pixels) > 1, "the image has tiles that the base tile alone leaves out"
    strategy = vlm.model.config.vision_feature_select_strategy
    with torch.no_grad():
        seen = inner.vision_tower(pixels[:1].double(), output_hidden_states=True)
        chosen = seen.hidden_states[vlm.model.config.vision_feature_layer]
        chosen = chosen[:, 1:] if strategy == "default" else chosen
        tile = inner.multi_modal_projector(chosen)  # (1, L, D)
        arguments = {"image_newline": inner.image_newline}
        if made.kind == "llava_next":
            arguments["vision_feature_select_strategy"] = strategy
        packed = inner.pack_image_features([tile], torch.tensor([[70, 70]]), **arguments)[0][0]
    assert len(packed) == vlm.grid.size + 1
    assert torch.allclose(vlm.visual(made.tokens), packed, atol=1e-12)
    assert packed.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "side", "count"), [("llava_next", 336, 577), ("llava_onevision", 384, 730)]
)
def test_real_geometry(tmp_path, kind, side, count):
    vlm = load(str(save_tiny_llava(tmp_path, kind=kind, side=side, layers=1)), device="cpu")
    assert len(vlm.visual(vlm.encode([random_image(2)]).tokens[0])) == count


def test_similarity_to_the_whole(made):
    vlm = made.vlm
    encoded = vlm.encode([made.image, random_image(2, width=40, height=160)])
    assert encoded.tokens.shape == (2, 25, 48)
    pixels = vlm.processor.image_processor(images=made.image, return_tensors="pt")["pixel_values"][
        0
    ]
    with torch.no_grad():
        seen = vlm.model.model.vision_tower(pixels[:1].double(), output_hidden_states=True)
    states_ = seen.hidden_states[vlm.model.config.vision_feature_layer][0]
    whole, patches = states_[0], states_[1:]
    if made.kind == "llava_onevision":
        whole, patches = states_.mean(0), states_
    expected = [float(whole @ p / whole.norm() / p.norm()) for p in patches]
    assert np.allclose(encoded.cls_similarity[0], expected, atol=1e-9)
    assert np.ptp(expected) > 0.05


def test_single_token_probe_repeats_and_ends_the_line(made):
    vlm, patches = made.vlm, [0, 7, 24]
    frame = probe.single(vlm, made.tokens, patches, prompt=PROMPT, top=5)
    assert vlm.repeats == {"llava_next": 24, "llava_onevision": 27}[made.kind]
    for row, patch in zip(frame.itertuples(), patches, strict=True):
        visual = torch.cat([made.tokens[patch].expand(vlm.repeats, -1), vlm.newline[None]])
        p = read(vlm, visual).softmax(-1)
        assert row.top1 == pytest.approx(float(p.max()), rel=1e-9)
    assert np.ptp(frame["top1"]) > 1e-3


def test_cascade(made):
    vlm, patch = made.vlm, 12
    row = leave_one_out.cascade(vlm, made.tokens, [patch], prompt=PROMPT, top=5).iloc[0]
    window = vlm.grid.window(patch)

    def changed(tokens: torch.Tensor, at: list[int]) -> torch.Tensor:
        """Divergence between the readings with and without the tokens, at the intact run's step."""
        ablated = tokens.clone()
        ablated[at] = vlm.pad
        before, more = stock(vlm, vlm.visual(tokens)), ()
        if vlm.word(int(before.argmax())).lower() in probe.ARTICLES:
            more = (int(before.argmax()),)
        one, other = (stock(vlm, vlm.visual(t), more=more) for t in (tokens, ablated))
        head, ids = one.topk(5)
        m, n = head.softmax(-1), other[ids].softmax(-1)
        q = (m + n) / 2
        return 0.5 * (m * (m / q).log() + n * (n / q).log()).sum()

    region = changed(made.tokens[window], [int(np.flatnonzero(window == patch)[0])])
    whole = changed(made.tokens, window.tolist())
    assert float(region) > 1e-6 and float(whole) > 1e-6
    assert row["jsd_region"] == pytest.approx(float(region), rel=1e-6)
    assert row["jsd_global"] == pytest.approx(float(whole), rel=1e-6)


def test_answers_are_those_of_generate(made):
    vlm = made.vlm
    kept = made.tokens[[1, 5, 6, 20]]
    texts = [PROMPT, "the red cup ?"]
    said = bench.answers(vlm, kept, texts, max_new_tokens=4)
    for text, answer in zip(texts, said, strict=True):
        words: tuple[int, ...] = ()
        for _ in range(4):
            best = int(stock(vlm, vlm.visual(kept), text, words).argmax())
            if best == vlm.processor.tokenizer.eos_token_id:
                break
            words += (best,)
        assert answer == vlm.processor.tokenizer.decode(words, skip_special_tokens=True).strip()


def test_attention_is_what_eager_attention_says(made, monkeypatch):
    # The stock one takes its softmax in float32, which is off by 1e-6 here.
    exact = lambda scores, dim, dtype: scores.softmax(dim)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "softmax", exact)
    vlm = made.vlm
    found = states.read(vlm, made.tokens, prompt=PROMPT)
    before, after = (vlm.embed(ids) for ids in vlm.prompt(PROMPT))
    rows = torch.cat([before, vlm.visual(made.tokens), after])
    first = stock(vlm, vlm.visual(made.tokens)).argmax()
    if vlm.word(int(first)).lower() in probe.ARTICLES:
        rows = torch.cat([rows, vlm.embed(first[None])])
    decoder = vlm.decoder
    decoder.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = decoder(inputs_embeds=rows[None], output_attentions=True)
    finally:
        decoder.set_attn_implementation("sdpa")
    at = slice(len(before), len(before) + len(made.tokens))
    expected = torch.stack([a[0, :, -1, at].mean(0) for a in output.attentions])
    assert np.allclose(found.attention, expected, rtol=1e-9, atol=0)
    assert expected.std() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_measured_against_their_own_grid(tmp_path, kind):
    """The truth of the patch study on the real grid: the first, the last and a covered patch."""
    side = 384 if kind == "llava_onevision" else 336
    folder = save_tiny_llava(tmp_path, kind=kind, side=side, layers=1)
    vlm = load(str(folder), device="cpu")
    scene = scenes("test", 1, start=5)[0]
    share = scene.coverage(Sight(side, 14, crop=False)).sum(0)
    assert share.shape == (vlm.grid.size,)
    chosen = [0, int(share.argmax()), vlm.grid.size - 1]
    frame = patches.measure(
        vlm, scene, chosen, prompt=PROMPT, top_prob=5, top_jsd=5, definition="paper",
        weights=(1.0, 16.0),
    )  # fmt: skip
    assert frame["covered"].tolist() == pytest.approx(share[chosen].tolist())
    assert share.max() > 0.9
