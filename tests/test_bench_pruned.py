"""What the bench of pruned prefill counts, against counts by other hands."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from redlib.bench import pruned
from redlib.models import VLM


@pytest.fixture
def eager(tiny_vlm: VLM):
    """With attention whose products a counter sees, all T^2 of them."""
    before = tiny_vlm.decoder.config._attn_implementation
    tiny_vlm.decoder.set_attn_implementation("eager")
    yield tiny_vlm
    tiny_vlm.decoder.set_attn_implementation(before)


@torch.no_grad()
def test_operations_are_those_of_the_products(eager: VLM):
    length = 90
    rows = torch.zeros(1, length, eager.width)
    with FlopCounterMode(display=False) as counter:
        eager.decoder(inputs_embeds=rows, use_cache=False)
    text, layers = eager.model.config.text_config, eager.decoder.layers
    heads = text.num_attention_heads * layers[0].self_attn.head_dim
    causal = counter.get_total_flops() - len(layers) * 2 * length**2 * heads
    weights = sum(p.numel() for p in layers[0].parameters() if p.dim() == 1)  # of norms: no product
    counted = pruned.operations(eager, length) - len(layers) * 2 * length * weights
    # The embedding of positions is a small product too.
    assert counted == pytest.approx(causal, rel=0.01)


@torch.no_grad()
def test_bytes_are_those_of_the_cache(tiny_vlm: VLM):
    rows = torch.zeros(2, 30, tiny_vlm.width)
    cache = tiny_vlm.decoder(inputs_embeds=rows, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert pruned.bytes_of_cache(tiny_vlm, 2 * 30) == held


def test_the_chosen_are_the_least_like_any_prototype(tiny_vlm: VLM):
    visual, book = pruned._drawn(tiny_vlm, 2, 25, seed=3)
    found = pruned._choose(visual, book, 4)
    for image, kept in zip(visual, found, strict=True):
        likeness = torch.stack(
            [torch.cosine_similarity(token[None], book.vectors).max() for token in image]
        )
        best = sorted(sorted(range(25), key=lambda i: float(likeness[i]))[:4])
        assert torch.equal(kept, image[best])


def test_rows_hold_both_sides(tiny_vlm: VLM, monkeypatch):
    seconds = iter([6.0, 1.0, 9.0, 2.0, 0.8, 1.0, 0.8, 2.0])
    monkeypatch.setattr("redlib.bench.speed._seconds", lambda work, device: next(seconds))
    time, choosing, cache = pruned.prefill(tiny_vlm, 2, 25, 8, seed=0, pairs=2)
    assert (time["value"], time["low"], time["high"], time["n"]) == (5.25, 4.5, 6.0, 2)
    ratio = pruned.operations(tiny_vlm, 85) / pruned.operations(tiny_vlm, 68)
    assert time["bar"] == pytest.approx(0.7 * ratio) and time["pass"] == "yes"
    assert choosing["value"] == pytest.approx((0.1 + 0.05) / 2) and choosing["pass"] == "no"
    assert cache["value"] == pytest.approx(68 / 85)


def test_a_real_width_is_one_layer_many_times(monkeypatch):
    seconds = iter([0.8, 0.5, 0.4, 0.5])
    monkeypatch.setattr("redlib.bench.speed._seconds", lambda work, device: next(seconds))
    row = pruned.at_real_width(width=64, heads=4, pairs=2)
    assert row["value"] == pytest.approx((0.1 / 16 + 0.05 / 16) / 2) and row["pass"] == "yes"
    tokens, inner = 35 + 64 + 25, 172
    layer = 4 * 64**2 + 3 * 64 * inner + 2 * 64  # attention, MLP, norms
    whole = 32 * (2 * tokens * layer + 2 * tokens**2 * 64)
    share = 576 * 454 * (2 * 64 - 1) / whole
    assert f"(of its operations: {share:.1%})" in row["metric"]


def test_added_memory_is_that_of_the_work():
    def work():
        held = torch.ones(50_000_000)
        time.sleep(0.05)
        assert bool(held[0])

    assert 0.9 * 200e6 < pruned.added_memory(work) < 1.5 * 200e6
