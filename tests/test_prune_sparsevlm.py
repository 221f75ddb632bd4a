"""SparseVLM against its description, run literally: the stock layers one by one over a list of
rows, from which rows really leave and into which means of them are put."""

import math
from types import SimpleNamespace

import pruning
import pytest
import torch
from conftest import save_tiny_llava
from pruning import IMAGES, KINDS, TEXTS, Maker, embeddings, model_of, picture, turned
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import redlib
from redlib.errors import RedlibError
from redlib.prune.context import MERGED
from redlib.prune.inside import _rows
from redlib.prune.sparsevlm import SparseVLM, relative

LAYERS = (0, 2)


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    return SimpleNamespace(
        kind=request.param, model=model_of(folder), maker=Maker(request.param, folder)
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """As many layers as the paper's model."""
    folder = tmp_path_factory.mktemp("deep")
    return model_of(save_tiny_llava(folder, layers=32))


# ------------------------------------------------------------------ the description, literally


def left_of(scores: list[float], keep: int) -> tuple[list[int], list[int], int]:
    """Who stays, who is recycled, and into how many rows; found by trying every number."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if keep >= len(scores):
        return sorted(order), [], 0
    for best in range(keep, 0, -1):
        gone = len(scores) - best
        pool = min(gone, math.floor(0.3 * gone + 1e-9) + 1)
        rows = math.floor(pool / 10) + 1
        if best + rows <= keep or best == 1:
            return sorted(order[:best]), order[best : best + pool], keep - best


def clusters(points: list[list[float]], count: int, k: int = 5) -> list[list[int]]:
    """DPC-kNN: centres by density times distance to a denser point, then the nearest centre."""
    n = len(points)
    if n == 1:
        return [[0]]
    far = [[math.dist(a, b) for b in points] for a in points]
    k = min(k, n - 1)
    nearest = [sorted(far[i][j] for j in range(n) if j != i)[:k] for i in range(n)]
    rho = [-sum(d * d for d in near) / k for near in nearest]  # its logarithm
    peak = []
    for i in range(n):
        denser = [far[i][j] for j in range(n) if (rho[j], -j) > (rho[i], -i)]
        delta = min(denser) if denser else max(far[i])
        peak.append(rho[i] + (math.log(delta) if delta else -math.inf))
    centres = sorted(range(n), key=lambda i: (-peak[i], i))[:count]
    labels = [
        centres.index(i) if i in centres else min(range(count), key=lambda c: far[i][centres[c]])
        for i in range(n)
    ]
    return [[i for i in range(n) if labels[i] == c] for c in range(count)]


def attention(block, states, rope, query: int) -> torch.Tensor:
    """(query + 1,) what a position pays to those up to it, mean over heads."""
    module, normed = block.self_attn, block.input_layernorm(states)
    cos, sin = (each[0] for each in rope)
    q = module.q_proj(normed[query]).view(-1, module.head_dim)
    keys = module.k_proj(normed).view(len(states), -1, module.head_dim)
    total = 0
    for head in range(len(q)):
        key = turned(keys[:, head // module.num_key_value_groups], cos, sin)[: query + 1]
        mine = turned(q[head], cos[query], sin[query])
        total = total + (key @ mine / module.head_dim**0.5).softmax(0)
    return total / len(q)


@torch.no_grad()
def literal(model, rows, owner, prompt: int, layers, counts):
    """Logits (S, V) of what is left, and what stays of each image, in order.

    owner: (T,) the image of each row, -1 for text and newlines. counts: image to how many are left
    behind each of `layers`. What follows the prompt is an answer.
    """
    decoder = model.model.language_model
    seen: dict[int, int] = {}
    kinds = []  # of each row: None, or its image and number
    for image in owner.tolist():
        kinds.append(None if image < 0 else (image, seen.setdefault(image, 0)))
        if image >= 0:
            seen[image] += 1
    text = {image: [i for i in range(prompt) if owner[i] < 0 and i > max_of(owner, image)
                    and not is_newline(model, rows[i])] for image in seen}  # fmt: skip
    raters = {}
    for image, words in text.items():
        share = torch.zeros(len(words), dtype=rows.dtype)
        for i in (owner == image).nonzero().flatten():
            share += torch.stack([rows[i] @ rows[w] for w in words]).softmax(0)
        mean = float(share.mean())
        raters[image] = [w for w, value in zip(words, share.tolist(), strict=True) if value > mean]
        raters[image] = raters[image] or words
    names = list(range(len(rows)))  # which row of the prompt stands where
    hidden = rows
    for k, block in enumerate(decoder.layers):
        t = len(hidden)
        rope = LlamaRotaryEmbedding(decoder.config)(hidden[None], torch.arange(t)[None])
        scores = {}
        for image in seen if k in layers else ():
            mine = [i for i, kind in enumerate(kinds) if kind and kind[0] == image]
            paid = [attention(block, hidden, rope, names.index(w)) for w in raters[image]]
            scores[image] = mine, [float(sum(p[i] for p in paid)) for i in mine]
        causal = torch.full((t, t), -torch.inf, dtype=rows.dtype).triu(1)
        hidden = block(hidden[None], attention_mask=causal[None, None], position_embeddings=rope)[0]
        gone, put = set(), {}
        for image, (mine, values) in scores.items():
            best, pool, count = left_of(values, counts[image][layers.index(k)])
            gone |= {mine[i] for i in range(len(mine)) if i not in best}
            states = [hidden[mine[i]] for i in pool]
            for group in clusters([s.tolist() for s in states], count) if count else []:
                mean = torch.stack([states[i] for i in group]).mean(0)
                put.setdefault(mine[best[-1]], []).append((image, mean))
        new = []
        for i in range(t):
            if i not in gone:
                new.append((hidden[i], kinds[i], names[i]))
                new += [(mean, (image, MERGED), None) for image, mean in put.get(i, [])]
        hidden = torch.stack([row for row, *_ in new])
        kinds, names = [kind for _, kind, _ in new], [name for *_, name in new]
    kept = {image: [kind[1] for kind in kinds if kind and kind[0] == image] for image in seen}
    return model.lm_head(decoder.norm(hidden)), kept


def max_of(owner, image: int) -> int:
    return int((owner == image).nonzero().max())


def is_newline(model, row) -> bool:
    newline = getattr(model.model, "image_newline", None)
    return newline is not None and torch.equal(row, newline)


def evenly(size: int, keep: int, cuts: int) -> list[int]:
    return [max(keep, round(size * (keep / size) ** (cut / cuts))) for cut in range(1, cuts + 1)]


def sizes(owner) -> dict[int, int]:
    images = owner[owner >= 0].tolist()
    return {image: images.count(image) for image in images}


# ------------------------------------------------------------------ in a stock model


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_is_the_description(made, side):
    """A padded batch in which rows lose different numbers of tokens, at two layers."""
    inputs, model = made.maker(TEXTS, IMAGES, side=side), made.model
    with torch.no_grad():
        with redlib.pruned(model, "sparsevlm", keep=6, per="image", layers=LAYERS) as run:
            logits = model(**inputs).logits
    merged = 0
    for row in (0, 1):
        rows, owner = embeddings(model, inputs, row)
        counts = {image: evenly(n, 6, 2) for image, n in sizes(owner).items()}
        expected, kept = literal(model, rows, owner, len(rows), LAYERS, counts)
        n = len(expected)
        mine = logits[row, -n:] if side == "left" else logits[row, :n]
        assert (mine - expected).abs().max() < 1e-5  # rotations are rounded to float32
        for image, numbers in kept.items():
            assert run.last[image].kept.tolist() == numbers and len(numbers) == 6
            merged += numbers.count(MERGED)
            assert not run.last[image].scores.isnan().any()
    assert merged, "no row was recycled, so the test shows little"


def test_generate_is_the_description(made):
    """Greedy, with a cache, in a batch: every step against the whole text."""
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip
    with redlib.pruned(model, "sparsevlm", keep=6, per="image", layers=LAYERS):
        out = model.generate(**inputs, **how)
        again = model.generate(**inputs, use_cache=False, **how)
    assert torch.equal(again.sequences, out.sequences)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], inputs["input_ids"])
    widths = [out.past_key_values.get_seq_length(k) for k in range(4)]
    assert length + 3 == widths[0] > widths[1] == widths[2] > widths[3]
    for row in (0, 1):
        rows, owner = embeddings(model, inputs, row)
        prompt, counts = len(rows), {k: evenly(n, 6, 2) for k, n in sizes(owner).items()}
        for step, token in enumerate(out.sequences[row, length:].tolist()):
            expected, _ = literal(model, rows, owner, prompt, LAYERS, counts)
            assert (out.logits[step][row] - expected[-1]).abs().max() < 1e-4
            said = model.get_input_embeddings()(torch.tensor([token])).detach()
            rows, owner = torch.cat([rows, said]), torch.cat([owner, torch.tensor([-1])])


@pytest.mark.parametrize("keep", [1, 2, 24, 25])
def test_every_budget_is_met(made, keep):
    packing = "stock" if made.kind == "llava" else "base"
    inputs, model = made.maker(TEXTS[:1], IMAGES[:1]), made.model
    with torch.no_grad(), redlib.pruned(model, "sparsevlm", keep=keep, packing=packing) as run:
        logits = model(**inputs).logits
    (kept,) = run.last
    assert (kept.before, kept.after) == (25, keep)
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    assert logits.shape[1] == text + keep + (made.kind != "llava")
    stayed = [number for number in kept.kept.tolist() if number != MERGED]
    assert stayed == sorted(set(stayed))


def test_all_tokens_kept_are_the_stock_model(made):
    inputs, model = made.maker(TEXTS, IMAGES), made.model
    with torch.no_grad():
        stock, ids = model(**inputs).logits, model.generate(**inputs, max_new_tokens=4)
        real = inputs["attention_mask"].bool()
        with redlib.pruned(model, "sparsevlm", keep=1.0, per="image"):
            assert (model(**inputs).logits - stock)[real].abs().max() < 1e-5
            assert torch.equal(model.generate(**inputs, max_new_tokens=4), ids)


def test_beams_and_tiles(made):
    """A batch with beams is each prompt alone; a budget can hold for each tile."""
    model, together = made.model, made.maker(TEXTS, IMAGES)
    length = together["input_ids"].shape[1]
    how = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    with redlib.pruned(model, "sparsevlm", keep=4, per="image") as run:
        both = model.generate(**together, **how)
        kept = [k.kept.tolist() for k in run.last]
        for row in (0, 1):
            one = made.maker([TEXTS[row]], [IMAGES[row]])
            alone = model.generate(**one, **how)[:, one["input_ids"].shape[1] :]
            assert torch.equal(alone, both[2 * row : 2 * row + 2, length:])
            assert [k.kept.tolist() for k in run.last] == (kept[:1], kept[1:])[row]
    if made.kind == "llava":
        return
    inputs = made.maker(TEXTS[:1], [[picture(3)]])
    for packing in ("split", "stock"):
        with (
            torch.no_grad(),
            redlib.pruned(model, "sparsevlm", keep=2, per="tile", packing=packing) as run,
        ):
            model(**inputs)
        (one,) = run.last
        assert one.after % 2 == 0 and one.after > 2


# ------------------------------------------------------------------ its parts


@pytest.mark.parametrize("size", [25, 90])
def test_who_stays_with_ties(deep, size):
    """At every budget, with scores of few values."""
    method = SparseVLM(deep)
    scores = torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(size)).double()
    for keep in range(1, size + 1):
        best, pool = method.chosen(scores, keep)
        stays, recycled, rows = left_of(scores.tolist(), keep)
        assert sorted(best.tolist()) == stays and keep - len(best) == rows
        assert not rows or pool.tolist() == recycled


def test_clusters_with_copies(deep):
    method = SparseVLM(deep)
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[5] = points[2]
    for count in (1, 2, 3):
        found = [group.tolist() for group in method.groups(points, count)]
        assert found == clusters(points.tolist(), count)
    assert [group.tolist() for group in method.groups(points[:1], 1)] == [[0]]


@pytest.mark.parametrize("heads, groups, make", [
    (32, 8, lambda **how: LlamaModel(LlamaConfig(**how))),
    (28, 4, lambda **how: Qwen2Model(Qwen2Config(**how))),
])  # fmt: skip
def test_attention_is_that_of_the_stock_layer(heads, groups, make):
    """Grouped keys as in Next-8B and OneVision-7B."""
    torch.manual_seed(0)
    model = make(vocab_size=9, hidden_size=4 * heads, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=heads, num_key_value_heads=groups)  # fmt: skip
    model.set_attn_implementation("eager")
    rows, at = torch.randn(2, 40, 4 * heads), torch.tensor([[9, 30, 39], [0, 7, 39]])
    turns = model.rotary_emb(rows, position_ids=torch.arange(40)[None])
    with torch.no_grad():
        stock = model(inputs_embeds=rows, output_attentions=True).attentions[0].mean(1)  # (B, T, T)
        found = _rows(model.layers[0], rows, {"position_embeddings": turns}, at, 1)
    for row in (0, 1):
        torch.testing.assert_close(found[row], stock[row, at[row]], rtol=1e-5, atol=1e-6)


def test_layers_and_counts():
    assert [relative(depth) for depth in (32, 28, 6, 4, 2)] == [
        (2, 6, 15), (2, 5, 13), (1, 2, 3), (1, 2), ()
    ]  # fmt: skip


@pytest.mark.parametrize("size", [576, 729, 2880])
def test_progress_of_real_sizes(deep, size):
    even, told = SparseVLM(deep), SparseVLM(deep, counts=(300, 200))
    for keep in (1, 64, 110, size - 1, size):
        falling = even.counts(size, keep)
        assert falling[-1] == keep and size >= falling[0] >= falling[1] >= keep
        assert list(falling) == evenly(size, keep, 3)
    assert told.counts(size, 110) == (300, 200, 110) and told.counts(250, 110) == (250, 200, 110)
    if size == 576:
        assert even.counts(size, 110) == (332, 191, 110)


def test_what_it_refuses(made):
    model, inputs = made.model, made.maker(TEXTS[:1], IMAGES[:1])
    for options, words in (
        ({"layers": (3,)}, r"layers must ascend from 0 to 2"),
        ({"layers": (2, 1)}, r"got \(2, 1\)"),
        ({"layers": ()}, r"got \(\)"),
        ({"layers": 2}, "got 2"),
        ({"layers": (0, 1), "counts": ("many",)}, "got .'many',."),
        ({"layers": (0, 1), "counts": (3, 9)}, "falling numbers of tokens for 1 cuts"),
        ({"layers": (0, 1, 2), "counts": (3, 9)}, r"got \(3, 9\)"),
    ):
        with pytest.raises(RedlibError, match=words):
            redlib.prune.install(model, "sparsevlm", keep=3, **options)
    bare = made.maker(["what is <image>"], IMAGES[:1])
    with redlib.pruned(model, "sparsevlm", keep=3, per="image"):
        with pytest.raises(RedlibError, match="none are: put the question there"):
            model(**bare)
        model(**inputs)
