import pytest
import torch
from conftest import PROMPT, random_image

from redlib.engine import TOKENS_PER_FORWARD, ablate, extend, forward, rows_per_forward
from redlib.errors import RedlibError
from redlib.models import VLM, load


@pytest.fixture(scope="module")
def parts(vlm: VLM, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    before, after = (vlm.embed(ids) for ids in vlm.prompt(PROMPT))
    return before, tokens, after


def stock(vlm: VLM, sequence: torch.Tensor) -> torch.Tensor:
    """Logits (V,) at the end of embeddings (T, D), one full stock forward."""
    with torch.no_grad():
        return vlm.model(inputs_embeds=sequence[None], use_cache=False).logits[0, -1]


def varied(logits: torch.Tensor) -> None:
    assert logits.abs().mean() > 0.1
    assert logits.std(dim=0).mean() > 0.05, "variants must differ for a comparison to mean anything"


def test_whole_image_equals_the_stock_call_from_pixels(vlm: VLM, bars: dict[str, float]):
    image = random_image(4)
    inputs = vlm.processor(
        text=f"USER: <image>\n{PROMPT} ASSISTANT:", images=image, return_tensors="pt"
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(vlm.dtype)
    with torch.no_grad():
        expected = vlm.model(**inputs).logits[0, -1]
    before, after = (vlm.embed(ids) for ids in vlm.prompt(PROMPT))
    row = torch.cat([vlm.encode([image]).tokens[0], after])
    logits = forward(vlm, extend(vlm, before), row[None])[0]
    torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


def test_rows_after_a_prefix_equal_full_forwards(vlm: VLM, parts, bars: dict[str, float]):
    before, tokens, after = parts
    rows = torch.stack([torch.cat([token[None], after]) for token in tokens])
    expected = torch.stack([stock(vlm, torch.cat([before, row])) for row in rows])
    varied(expected)
    text = extend(vlm, before)
    for batch in (None, 1, 7):
        logits = forward(vlm, text, rows, batch=batch)
        torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


def test_no_prefix(vlm: VLM, parts, bars: dict[str, float]):
    sequence = torch.cat(parts)
    logits = forward(vlm, None, sequence[None])[0]
    torch.testing.assert_close(logits, stock(vlm, sequence), atol=bars["logits"], rtol=0)


def test_a_prefix_grows_and_is_cut(vlm: VLM, parts, bars: dict[str, float]):
    before, tokens, _ = parts
    sequence = torch.cat(parts)
    grown = extend(vlm, tokens[10:], after=extend(vlm, tokens[:10], after=extend(vlm, before)))
    assert grown.length == len(before) + len(tokens)
    expected = stock(vlm, sequence)
    for length in (1, 2, 9, grown.length):
        logits = forward(vlm, grown.cut(length), sequence[None, length:])[0]
        torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


def test_a_prefix_is_not_changed_by_use(vlm: VLM, parts):
    before, _, after = parts
    text = extend(vlm, before)
    copies = [key.clone() for key in text.keys]
    forward(vlm, text, after.repeat(3, 1, 1))
    assert all(map(torch.equal, text.keys, copies))


def test_padding_behind_the_true_length_changes_nothing(vlm: VLM, parts, bars: dict[str, float]):
    before, tokens, after = parts
    texts = [torch.cat([tokens[:n], after]) for n in (1, 4, 9)]
    rows = tokens.new_full((3, max(map(len, texts)), vlm.width), 7.0)  # loud, if it were read
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    lengths = torch.tensor([len(text) for text in texts])
    expected = torch.stack([stock(vlm, torch.cat([before, text])) for text in texts])
    varied(expected)
    logits = forward(vlm, extend(vlm, before), rows, lengths=lengths, batch=2)
    torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_ablate_equals_one_full_forward_a_change(
    vlm: VLM, parts, bars: dict[str, float], batch: int | None
):
    before, tokens, _ = parts
    sequence = torch.cat(parts)
    chain = extend(vlm, torch.cat([before, tokens]))
    changes = [[26, 3], [20], [2, 3, 4], [12, 13], [5], [26], [2]]  # in no order
    expected = []
    for change in changes:
        changed = sequence.clone()
        changed[change] = vlm.pad
        expected.append(stock(vlm, changed))
    expected = torch.stack(expected)
    varied(expected)
    logits = ablate(vlm, chain, sequence, changes, fill=vlm.pad, batch=batch)
    torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


def test_shared_beginnings_are_computed_once(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    """Counts the tokens that pass through the first layer, which no clock can blur."""
    before, after = (tiny_vlm.embed(ids) for ids in tiny_vlm.prompt(PROMPT))
    seen: list[int] = []
    hook = tiny_vlm.decoder.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1])
    )
    try:
        text = extend(tiny_vlm, before)
        forward(tiny_vlm, text, after.repeat(25, 1, 1))
        assert sum(seen) == len(before) + 25 * len(after)
        sequence = torch.cat([before, tiny_tokens, after])
        chain = extend(tiny_vlm, sequence[: len(before) + 25])
        seen.clear()
        changes = [[start, start + 1] for start in range(2, 26)]
        ablate(tiny_vlm, chain, sequence, changes, fill=tiny_vlm.pad, batch=1)
        assert sum(seen) == sum(len(sequence) - change[0] for change in changes)
    finally:
        hook.remove()


def test_half_precision_reads_its_logits_in_float32(tiny_folder, tiny_vlm: VLM):
    half = load(str(tiny_folder), device="cpu", dtype="bfloat16")
    tokens = half.encode([random_image(1)]).tokens[0]
    assert tokens.dtype == torch.bfloat16
    before, after = (half.embed(ids) for ids in half.prompt(PROMPT))
    logits = forward(half, extend(half, before), torch.cat([tokens, after])[None])
    assert logits.dtype == torch.float32
    before, after = (tiny_vlm.embed(ids) for ids in tiny_vlm.prompt(PROMPT))
    exact = forward(tiny_vlm, extend(tiny_vlm, before), torch.cat([tokens.float(), after])[None])
    assert (logits - exact).abs().max() < 0.5


def test_rows_per_forward(tiny_vlm: VLM):
    assert rows_per_forward(tiny_vlm, 100, 5) == 5
    assert rows_per_forward(tiny_vlm, 100, None) == TOKENS_PER_FORWARD["cpu"] // 100
    assert rows_per_forward(tiny_vlm, 10**9, None) == 1


def test_nothing_asked_gives_nothing(tiny_vlm: VLM):
    vocabulary = tiny_vlm.model.config.text_config.vocab_size
    assert forward(tiny_vlm, None, torch.zeros(0, 3, 48)).shape == (0, vocabulary)


def test_mistakes_are_named(tiny_vlm: VLM):
    chain = extend(tiny_vlm, tiny_vlm.embed([5, 6, 7]))
    sequence = tiny_vlm.embed([5, 6, 7, 8])
    with pytest.raises(RedlibError, match=r"rows must be \(B, n, 48\)"):
        forward(tiny_vlm, chain, torch.zeros(2, 3, 47))
    with pytest.raises(RedlibError, match="cannot be cut to 4"):
        chain.cut(4)
    with pytest.raises(RedlibError, match="batch must be at least 1; got 0"):
        forward(tiny_vlm, chain, sequence[None], batch=0)
    with pytest.raises(RedlibError, match=r"first changes must lie in 1\.\.3; got 0\.\.2"):
        ablate(tiny_vlm, chain, sequence, [[0], [2]], fill=tiny_vlm.pad)
