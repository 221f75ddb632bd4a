from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import PROMPT, random_image

from redlib import engine, leave_one_out, probe
from redlib.engine import Pieces, budget, extend, forward, run
from redlib.errors import RedlibError
from redlib.models import VLM, load
from redlib.planner import Budget, plan


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
    logits = forward(vlm, extend(vlm, before), rows)
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
    logits = forward(vlm, extend(vlm, before), rows, lengths=lengths)
    torch.testing.assert_close(logits, expected, atol=bars["logits"], rtol=0)


def variants(pieces: Pieces) -> tuple[list[np.ndarray], list[int | None]]:
    """Paths of every kind, in no order, some of them equal, and whom each is read like."""
    whole = np.arange(25)

    def without(shown, *patches):
        return pieces.path(np.where(np.isin(shown, patches), pieces.pad, shown))

    window, other = np.array([6, 7, 8, 11, 12, 13]), np.array([6, 7, 9])
    paths = [
        pieces.path(whole),
        pieces.path(window),
        without(whole, 24, 1),
        pieces.path([3]),
        pieces.path(other),
        without(window, 8),
        pieces.path([3]),
        without(whole, 18),
        without(whole, 0, 1, 2),
        without(window, 6),
        without(whole, 18),
        pieces.path(window),
        without(whole, 18, 19),
    ]
    return paths, [None, None, 0, None, None, 1, None, 0, 0, 1, 0, None, 0]


@contextmanager
def pushed(vlm: VLM):
    """The tokens that pass through the first decoder layer, which no clock can blur, a batch at a
    time."""
    seen: list[int] = []
    hook = vlm.decoder.layers[0].input_layernorm.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1])
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("limits", [{}, {"tokens": 90}, {"rows": 1}, {"rows": 3}])
def test_a_plan_run_equals_one_full_forward_a_path(
    vlm: VLM, tokens: torch.Tensor, bars: dict[str, float], limits: dict
):
    pieces = Pieces(vlm, tokens, PROMPT)
    paths, like = variants(pieces)
    expected = torch.stack([stock(vlm, pieces.table[path]) for path in paths])
    varied(expected)
    made = plan(paths, shared=pieces.shared, like=like, budget=Budget(**{"tokens": 2048} | limits))
    with pushed(vlm) as seen:
        said = run(vlm, made, pieces.table, top=expected.shape[1])
    assert sum(seen) == said.tokens == made.tokens < made.naive_tokens == sum(map(len, paths))
    assert len(seen) == len(made.batches) + 1
    for row, intact in enumerate(like):
        leading = expected[row if intact is None else intact].sort(descending=True).indices
        logits = expected[row]
        torch.testing.assert_close(said.ids[row], leading)
        torch.testing.assert_close(said.logits[row], logits[leading], atol=bars["logits"], rtol=0)
        p = logits.double().softmax(-1)
        assert float(said.log_sum[row]) == pytest.approx(
            float(logits.double().exp().sum().log()), abs=bars["logits"]
        )
        assert float(said.entropy[row]) == pytest.approx(
            float(-(p * p.log()).sum()), abs=10 * bars["logits"]
        )
    assert not said.skipped.any()
    assert torch.equal(said.logits[3], said.logits[6])


@pytest.mark.parametrize("limits", [{}, {"rows": 2}])
def test_the_word_skipped_is_fed_to_all_that_are_read_alike(
    vlm: VLM, tokens: torch.Tensor, bars: dict[str, float], limits: dict
):
    """Here every other word is skipped, so that in most batches some rows are and some are not."""
    pieces = Pieces(vlm, tokens, PROMPT)
    paths, like = variants(pieces)
    made = plan(paths, shared=pieces.shared, like=like, budget=Budget(**{"tokens": 2048} | limits))
    with pushed(vlm) as seen:
        said = run(vlm, made, pieces.table, top=4, skip=lambda words: words % 2 == 0)
    assert said.ids.shape == (len(paths), 4)
    assert sum(seen) == said.tokens > made.tokens
    for row, intact in enumerate(like):
        of = row if intact is None else intact
        word = stock(vlm, pieces.table[paths[of]]).argmax()
        skipped = bool(word % 2 == 0)
        assert bool(said.skipped[row]) == (skipped and intact is None)
        fed = vlm.embed(word[None]) if skipped else pieces.table[:0]
        leader, logits = (
            stock(vlm, torch.cat([pieces.table[paths[number]], fed])) for number in (of, row)
        )
        ids = leader.topk(4).indices
        torch.testing.assert_close(said.ids[row], ids)
        torch.testing.assert_close(said.logits[row], logits[ids], atol=bars["logits"], rtol=0)
    intact = [row for row, of in enumerate(like) if of is None]
    assert 0 < said.skipped[intact].sum() < len(intact)


def test_only_what_a_later_batch_continues_is_kept(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    """Rows that nobody continues leave nothing behind; half of a branch is not kept whole."""
    pieces = Pieces(tiny_vlm, tiny_tokens, PROMPT)
    alone = plan([pieces.path([3]), pieces.path([4])], shared=pieces.shared, budget=Budget(2048))
    assert [batch.keep for batch in alone.batches] == [0]
    whole = np.arange(25)
    paths = [pieces.path(whole), pieces.path(np.where(whole < 20, whole, pieces.pad))]
    branch = plan(paths, shared=pieces.shared, budget=Budget(2048), like=[None, 0])
    assert [batch.keep for batch in branch.batches] == [pieces.shared + 20, 0]


@pytest.mark.parametrize("kind", ["gpu", "linux", "windows", "python"])
def test_batches_are_halved_until_they_fit(
    tiny_vlm: VLM, tiny_tokens: torch.Tensor, monkeypatch, kind: str
):
    error = {
        "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "linux": RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 9"),
        "windows": RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: 9"),
        "python": MemoryError(),
    }[kind]
    expected = leave_one_out.cascade(tiny_vlm, tiny_tokens, range(25), prompt=PROMPT)
    tried: list[int] = []
    decode = engine._decode

    def small(vlm, prefix, rows, **options):
        tried.append(rows.shape[0] * rows.shape[1])
        if tried[-1] > 60:
            raise error
        return decode(vlm, prefix, rows, **options)

    monkeypatch.setattr(engine, "_decode", small)
    with pytest.warns(UserWarning, match="memory of cpu ended within one forward of 8 inputs"):
        found = leave_one_out.cascade(tiny_vlm, tiny_tokens, range(25), prompt=PROMPT)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)
    failed = [size for size in tried if size > 60]
    assert 1 <= len(failed) <= 6, "what did not fit once is not tried again"
    assert failed == sorted(failed, reverse=True)


@pytest.mark.filterwarnings("ignore:memory of cpu ended")
def test_wherever_memory_ends_the_readings_are_the_same(tiny_vlm: VLM, tiny_tokens, monkeypatch):
    """Also where intact rows whose first word was skipped run again for what continues them."""
    pieces = Pieces(tiny_vlm, tiny_tokens, PROMPT)
    paths, like = variants(pieces)
    made = plan(paths, shared=pieces.shared, like=like, budget=Budget(2048, rows=2))
    decode = engine._decode
    calls: list[int] = []

    def readings(end: int):
        calls.clear()

        def ends(vlm, prefix, rows, **options):
            calls.append(len(rows))
            if len(calls) == end:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(vlm, prefix, rows, **options)

        monkeypatch.setattr(engine, "_decode", ends)
        return run(tiny_vlm, made, pieces.table, top=4, skip=lambda words: words % 2 == 1)

    right = readings(0)
    sizes = list(calls)
    assert right.skipped[[0, 1]].all(), "rows that others are read like"
    assert not right.skipped[[3, 4]].any()
    ends = [number for number, size in enumerate(sizes, start=1) if size > 1]
    assert len(ends) >= 3
    for end in ends:
        found = readings(end)
        assert len(calls) > len(sizes)
        assert torch.equal(found.ids, right.ids) and torch.equal(found.skipped, right.skipped)
        for name in ("logits", "log_sum", "entropy"):
            one, other = getattr(found, name), getattr(right, name)
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_tokens_that_cannot_be_read_are_named(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    broken = tiny_tokens.clone()
    broken[3, 5] = float("nan")
    for tokens, words in (
        (broken, "tokens hold NaN or infinity, in torch.float32"),
        (tiny_tokens[:, :7], r"tokens must be \(L, 48\); got \(25, 7\)"),
        (tiny_tokens[None], r"tokens must be \(L, 48\); got \(1, 25, 48\)"),
    ):
        with pytest.raises(RedlibError, match=words):
            probe.single(tiny_vlm, tokens, [0], prompt=PROMPT, top=10)


def test_what_does_not_fit_at_all_is_said(tiny_vlm: VLM, tiny_tokens, monkeypatch):
    decode = engine._decode

    def tiny(vlm, prefix, rows, **options):
        if rows.shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(vlm, prefix, rows, **options)

    monkeypatch.setattr(engine, "_decode", tiny)
    with pytest.raises(RedlibError, match="memory of cpu ends within one forward of 34 positions"):
        leave_one_out.cascade(tiny_vlm, tiny_tokens, [3], prompt=PROMPT, levels=("token",))


def test_other_errors_are_not_taken_for_a_full_memory(tiny_vlm: VLM, tiny_tokens, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes cannot be multiplied")

    pieces = Pieces(tiny_vlm, tiny_tokens, PROMPT)
    made = probe.single_plan(tiny_vlm, pieces, [1, 2])
    with pytest.raises(RedlibError, match="top must be 1 or more; got 0"):
        run(tiny_vlm, made, pieces.table, top=0)
    monkeypatch.setattr(engine, "_head", broken)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        run(tiny_vlm, made, pieces.table)


def test_the_budget_follows_the_free_memory(tiny_vlm: VLM, monkeypatch):
    """48 wide, 4 heads of 8, 2 of them for keys, MLP 64, 3 layers, 4 bytes: written out by hand."""
    monkeypatch.setattr(engine, "free_memory", lambda device: 2_000_000)
    found = budget(tiny_vlm)
    a_token = 4 * (6 * 48 + 4 * 4 * 8 + 3 * 64)
    a_position = 2 * 4 * (3 * 2 * 8 + 4 * 8)
    assert found.room(10, 30) == 1_000_000 // (10 * a_token + 30 * a_position) == 22
    assert found.room(1000, 1000) == 1
    assert budget(tiny_vlm, 5).room(10, 30) == 5
    monkeypatch.setattr(engine, "free_memory", lambda device: 10**15)
    assert budget(tiny_vlm).room(10, 30) == engine.TOKENS_PER_FORWARD["cpu"] // 10
    with pytest.raises(RedlibError, match="batch must be at least 1; got 0"):
        budget(tiny_vlm, 0)


def test_free_memory_of_this_machine():
    assert 10**7 < engine.free_memory(torch.device("cpu")) < 10**14


@pytest.mark.parametrize(("attention", "bar"), [("eager", 1e-5), ("sdpa", 1e-9)])
def test_stock_eager_and_sdpa_both_agree(tiny_vlm64: VLM, tiny_tokens, attention: str, bar: float):
    """Stock eager attention takes its softmax in float32 whatever the model computes in."""
    pieces = Pieces(tiny_vlm64, tiny_tokens, PROMPT)
    whole = np.arange(25)
    paths = [pieces.path(whole), pieces.path(np.where(whole == 7, pieces.pad, whole))]
    before = tiny_vlm64.decoder.config._attn_implementation
    tiny_vlm64.model.set_attn_implementation(attention)
    try:
        expected = [stock(tiny_vlm64, pieces.table[path]) for path in paths]
        made = plan(paths, shared=pieces.shared, like=[None, 0], budget=Budget(2048))
        said = run(tiny_vlm64, made, pieces.table)
    finally:
        tiny_vlm64.model.set_attn_implementation(before)
    for row, logits in enumerate(expected):
        torch.testing.assert_close(said.logits[row], logits[said.ids[row]], atol=bar, rtol=0)


def test_blocks_of_queries_reach_all_keys_before_them(tiny_vlm64: VLM, tiny_tokens, monkeypatch):
    pieces = Pieces(tiny_vlm64, tiny_tokens, PROMPT)
    path = pieces.path(np.arange(25))
    expected = stock(tiny_vlm64, pieces.table[path])
    for size in (1, 4, 33, 64):
        monkeypatch.setattr(engine, "QUERIES", size)
        text = extend(tiny_vlm64, pieces.table[path[:5]])
        logits = forward(tiny_vlm64, text, pieces.table[path[5:]][None])[0]
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)


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


def test_mistakes_are_named(tiny_vlm: VLM):
    chain = extend(tiny_vlm, tiny_vlm.embed([5, 6, 7]))
    for shape in ((2, 3, 47), (0, 3, 48), (2, 0, 48)):
        with pytest.raises(RedlibError, match=r"rows must be \(B, n, 48\)"):
            forward(tiny_vlm, chain, torch.zeros(shape))
    with pytest.raises(RedlibError, match="cannot be cut to 4"):
        chain.cut(4)
