"""The published pruning methods against their descriptions, written out token by token.

Every expected value is computed here with lists and loops in double precision, and shares no code
with the methods. Shapes of real checkpoints come once, for shape and speed.
"""

import math
import time

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.prune import divprune as div
from redlib.prune import prumerge as pm
from redlib.prune import visionzip as vz
from redlib.prune.attention import from_cls, one_head, received
from redlib.prune.context import MERGED, Context, Trace, highest, precise
from redlib.prune.method import Method

METHODS = [pm.PRUMERGE, pm.PRUMERGE_PLUS, vz.METHOD, div.METHOD]


def make(
    height=5, width=6, *, tiles=1, cls=True, heads=2, head=3, feature=7, token=4, seed=0, sharp=1.5,
    dtype=torch.float64, levels=None,
):  # fmt: skip
    """A random context. `levels`: everything is one of a few odd numbers over twice of it, so that
    many are equal and none is zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float32)
        if levels:
            values = ((values * levels).floor() + 0.5) / levels
        return values.to(dtype)

    patches, rows = height * width, height * width + cls
    features, matrix = draw(tiles * patches, feature), draw(feature, token)
    return Context(
        tokens=features @ matrix,
        features=features,
        cls=draw(tiles, feature) if cls else None,
        grid=Grid(height, width),
        project=lambda x: x @ matrix,
        traces={
            layer: Trace(
                sharp * draw(tiles, heads, rows, head), draw(tiles, heads, rows, head), head**-0.5
            )
            for layer in (-1, -2)
        },
    )


# ------------------------------------------------------------------ the descriptions, literally


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


def heads_of(trace):
    """Tile -> head -> (rows of q, rows of k)."""
    q, k = trace.queries.double().tolist(), trace.keys.double().tolist()
    return [list(zip(q[t], k[t], strict=True)) for t in range(len(q))]


def attention_of(q, k, scale, cls):
    """Patch -> attention, of one head of one tile."""
    rows = [softmax([scale * dot(query, key) for key in k]) for query in (q[:1] if cls else q)]
    if cls:
        return rows[0][1:]
    return [sum(row[j] for row in rows) / len(rows) for j in range(len(k))]


def literal_single_head(context):
    """PruMerge's attention and keys, patch by patch over all tiles."""
    cls, trace = context.cls is not None, context.traces[-1]
    attention, keys = [], []
    for tile in heads_of(trace):
        joined = [
            [sum((head[part][row] for head in tile), []) for row in range(len(tile[0][part]))]
            for part in (0, 1)
        ]
        scale = 1 / math.sqrt(len(joined[0][0]))
        attention += attention_of(*joined, scale, cls)
        keys += joined[1][1:] if cls else joined[1]
    return attention, keys


def literal_outliers(a):
    low, high = np.percentile(a, 25), np.percentile(a, 75)
    return sum(v > high + 1.5 * (high - low) for v in a)


def by_value(values, candidates):
    """Candidates by falling value, of equal ones the earlier first."""
    return sorted(candidates, key=lambda i: (-values[i], i))


def literal_prumerge(context, kept, a, keys):
    """(K, D) rows for kept patches: neighbours added, extra token appended."""
    x, length = context.features.double().tolist(), len(context)
    rows = []
    for i in kept:
        near = {j: cosine(keys[i], keys[j]) for j in range(length) if j != i}
        row = list(x[i])
        for j in by_value(near, near)[:32]:
            row = [r + a[j] * v for r, v in zip(row, x[j], strict=True)]
        rows.append(row)
    extra = [0.0] * len(x[0])
    for j in range(length):
        if j not in kept:
            extra = [e + a[j] * v for e, v in zip(extra, x[j], strict=True)]
    return context.project(torch.tensor([*rows, extra], dtype=torch.float64))


def literal_visionzip(context, dominant, contextual):
    """(numbers, rows (K, D))."""
    cls, trace = context.cls is not None, context.traces[-2]
    scores, keys = [], []
    for tile in heads_of(trace):
        per_head = [attention_of(q, k, trace.scale, cls) for q, k in tile]
        total = [sum(column) for column in zip(*per_head, strict=True)]
        scores += total if cls else [t / len(per_head) for t in total]
        for row in range(cls, len(tile[0][1])):
            mean = [
                sum(column) / len(tile) for column in zip(*(k[row] for _, k in tile), strict=True)
            ]
            keys.append(mean)
    x = context.features.double().tolist()
    front = context.cls.double().tolist()[:dominant] if cls else []
    chosen = sorted(by_value(scores, range(len(scores)))[: dominant - len(front)])
    rest = [i for i in range(len(x)) if i not in chosen]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
    joined = {t: [] for t in targets}
    for i in rest:
        if i not in targets and targets:
            near = {t: cosine(keys[i], keys[t]) for t in targets}
            joined[by_value(near, targets)[0]].append(i)
    rows = front + [x[i] for i in chosen]
    for t, members in joined.items():
        row = list(x[t])
        for i in members:
            row = [r + v / len(members) for r, v in zip(row, x[i], strict=True)]
        rows.append(row)
    made = context.project(torch.tensor(rows, dtype=torch.float64))
    return [MERGED] * len(front) + chosen + targets, made, scores


def literal_divprune(tokens, keep):
    """Picks in the order they are made."""
    rows = tokens.double().tolist()
    distance = [[1 - cosine(a, b) if i != j else 0.0 for j, b in enumerate(rows)]
                for i, a in enumerate(rows)]  # fmt: skip
    second = [sorted(column)[min(1, len(rows) - 1)] for column in zip(*distance, strict=True)]
    picks = by_value(second, range(len(rows)))[:1]
    while len(picks) < keep:
        gap = {j: min(distance[i][j] for i in picks) for j in range(len(rows)) if j not in picks}
        picks.append(by_value(gap, gap)[0])
    return picks


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# Of one number a row, so that its products are exact: rounding would tell apart what is equal.
TIED = {"levels": 2, "heads": 1, "head": 1, "feature": 1, "token": 1}
CONTEXTS = [
    pytest.param({}, id="cls"),
    pytest.param({"cls": False}, id="no-cls"),
    pytest.param({"tiles": 3, "height": 4, "width": 4}, id="tiles"),
    pytest.param({"height": 8, "width": 8, "seed": 1}, id="more-than-32-neighbours"),
    pytest.param(TIED | {"height": 8, "width": 8}, id="ties"),
    pytest.param(TIED | {"cls": False}, id="ties-no-cls"),
    pytest.param({"height": 1, "width": 1}, id="one-token"),
    pytest.param({"height": 1, "width": 2, "cls": False}, id="two-tokens"),
]


def test_of_tied_contexts_more_than_half_is_equal():
    for shape in (TIED, TIED | {"cls": False}):
        context = make(**shape)
        for values in (literal_single_head(context)[0], context.tokens.flatten().tolist()):
            assert len(set(values)) < len(context) / 2


def budgets(length):
    return sorted({k for k in (1, 2, 3, 4, 13, 14, length // 2, length - 1, length) if
                   1 <= k <= length})  # fmt: skip


# ------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("cls", [True, False])
def test_attention_is_that_of_the_stock_tower(cls):
    """Queries and keys caught at a stock tower's projections give its eager attention."""
    shape = {
        "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "image_size": 70,
        "num_attention_heads": 3, "patch_size": 14, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    kind = CLIPVisionModel if cls else SiglipVisionModel
    tower = kind((CLIPVisionConfig if cls else SiglipVisionConfig)(**shape)).eval()
    caught, hooks = {}, []
    for name, module in tower.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            torch.nn.init.normal_(module.weight, std=0.6)  # else every patch attends alike
            index = (int(name.split("layers.")[1].split(".")[0]), name[-6])
            hooks.append(
                module.register_forward_hook(lambda _m, _i, out, at=index: caught.update({at: out}))
            )
    with torch.no_grad():
        stock = tower(torch.randn(2, 3, 70, 70), output_attentions=True).attentions
    for layer, expected in enumerate(stock):
        q, k = (caught[layer, part].unflatten(-1, (3, 8)).transpose(1, 2) for part in "qk")
        trace = Trace(q, k, 8**-0.5)
        assert expected.shape == (2, 3, 25 + cls, 25 + cls)
        assert expected.std() > 0.01
        if cls:
            actual, expected = from_cls(trace), expected[:, :, 0, 1:]
        else:
            actual, expected = received(trace), expected.mean(dim=2)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_one_head_has_the_projections_as_they_came():
    flat = torch.arange(2 * 5 * 6.0).reshape(2, 5, 6)
    split = flat.unflatten(-1, (3, 2)).transpose(1, 2)
    joined = one_head(Trace(split, -split, 2**-0.5))
    assert torch.equal(joined.queries, flat[:, None])
    assert torch.equal(joined.keys, -flat[:, None])
    assert joined.scale == 6**-0.5


def test_a_trace_of_other_tiles_is_refused():
    one, two = make(), make(tiles=2)
    mixed = Context(two.tokens, two.features, two.cls, two.grid, two.project, one.traces)
    for method in (pm.prumerge, vz.visionzip):
        with pytest.raises(RedlibError, match="covers 30 patches but the context has 60"):
            method(mixed, 4)


# ------------------------------------------------------------------------------------- PruMerge


@pytest.mark.parametrize("shape", CONTEXTS)
def test_prumerge_with_a_budget(shape):
    context = make(**shape)
    a, keys = literal_single_head(context)
    for keep in budgets(len(context)):
        kept = by_value(a, range(len(a)))[: keep - 1]
        got = pm.prumerge(context, keep)
        assert got.kept.tolist() == [*kept, MERGED]
        close(got.tokens, literal_prumerge(context, kept, a, keys))
        close(got.scores, a)


@pytest.mark.parametrize("shape", CONTEXTS)
def test_prumerge_finds_its_own_count(shape):
    context = make(**shape, sharp=8)  # else the attention of 30 patches may have no outlier
    a, keys = literal_single_head(context)
    count = literal_outliers(a)
    kept = by_value(a, range(len(a)))[:count]
    assert count > 0 or len(context) < 3
    got = pm.prumerge(context)
    assert got.kept.tolist() == [*kept, MERGED]
    close(got.tokens, literal_prumerge(context, kept, a, keys))

    length, grid = len(a), []
    if count:
        distance = int(1 / (count / length))
        grid = [i for i in range(0, length - 1, int(distance / 3)) if i not in kept]
    elif length > 1:
        grid = [0]
    got = pm.prumerge_plus(context)
    assert got.kept.tolist() == [*kept, *grid, MERGED]
    close(got.tokens, literal_prumerge(context, kept + grid, a, keys))


@pytest.mark.parametrize("shape", CONTEXTS)
def test_prumerge_plus_with_a_budget(shape):
    context = make(**shape)
    a, keys = literal_single_head(context)
    for keep in budgets(len(context)):
        kept = by_value(a, range(len(a)))[: math.ceil((keep - 1) / 2)]
        rest, size = [i for i in range(len(a)) if i not in kept], (keep - 1) // 2
        grid = [rest[math.floor((i + 0.5) * len(rest) / size)] for i in range(size)]
        got = pm.prumerge_plus(context, keep)
        assert got.kept.tolist() == [*kept, *grid, MERGED]
        assert len(set(got.kept.tolist())) == keep
        close(got.tokens, literal_prumerge(context, kept + grid, a, keys))


def test_prumerge_plus_of_the_authors_fixed_size():
    """145 rows: 72 by attention, 72 that are 7 apart among the 504 left, and the extra token."""
    context = make(24, 24)
    kept = pm.prumerge_plus(context, 145).kept.tolist()
    left = [i for i in range(576) if i not in kept[:72]]
    assert kept[72:144] == [left[3 + 7 * i] for i in range(72)]
    assert max(kept[72:144]) > 560


def test_outliers_lie_above_the_upper_fence():
    values = torch.tensor([1.0, 2, 3, 4, 7, -50, 7.0001])  # Q1 1.5, Q3 5.5: fence 11.5
    assert pm.outliers(values).tolist() == []
    values = torch.tensor([0.0, 1, 1, 2, 2, 3.5, 3.6, -9])  # Q1 0.75, Q3 2.375: fence 4.8125
    assert pm.outliers(values).tolist() == []
    values = torch.tensor([0.0, 5, 1, 1, 2, 2, 9, 0, 1])  # Q1 1, Q3 2: fence 3.5
    assert pm.outliers(values).tolist() == [1, 6]
    assert pm.outliers(torch.ones(9)).tolist() == []


def test_without_outliers_the_extra_token_is_the_image():
    context = make(sharp=0)  # every query is zero: attention is uniform
    got = pm.prumerge(context)
    assert got.kept.tolist() == [MERGED]
    close(got.tokens[0], context.tokens.sum(dim=0) / 31)
    assert pm.prumerge_plus(context).kept.tolist() == [0, MERGED]


# ------------------------------------------------------------------------------------ VisionZip


@pytest.mark.parametrize(
    ("keep", "parts"),
    [(192, (162, 30)), (128, (108, 20)), (64, (54, 10)), (32, (27, 5)), (4, (3, 1)), (3, (3, 0)),
     (2, (2, 0)), (1, (1, 0))],
)  # fmt: skip
def test_visionzip_splits_as_published(keep, parts):
    assert vz.split(keep) == parts


@pytest.mark.parametrize("shape", CONTEXTS)
def test_visionzip(shape):
    context = make(**shape)
    for keep in budgets(len(context)):
        contextual = math.floor(keep * 10 / 64 + 0.5)
        numbers, rows, scores = literal_visionzip(context, keep - contextual, contextual)
        got = vz.visionzip(context, keep)
        assert got.kept.tolist() == numbers
        assert len(got.tokens) == keep
        close(got.tokens, rows)
        close(got.scores, scores)


def test_visionzip_leaves_dominant_patches_as_they_are():
    context = make(dtype=torch.float16, sharp=1)
    got = vz.visionzip(context, 20)
    patches = got.kept[1:17]
    assert got.kept[0] == MERGED
    assert torch.equal(got.tokens[1:17], context.tokens[patches])
    assert torch.equal(got.tokens[0], context.project(context.cls)[0])


def test_a_target_that_nobody_joins_stays_alone():
    """All keys alike: every patch joins the first target."""
    context = make()
    old = context.traces[-2]
    context.traces[-2] = Trace(old.queries, torch.ones_like(old.keys), old.scale)
    got = vz.visionzip(context, 14)  # 12 + 2
    first, second = got.kept[-2:].tolist()
    assert (first, second) == (11, 20)
    close(got.tokens[-1], context.tokens[second])
    others = [i for i in range(11, 30) if i not in (first, second)]
    close(got.tokens[-2], context.tokens[first] + context.tokens[others].mean(dim=0))


# ------------------------------------------------------------------------------------- DivPrune


@pytest.mark.parametrize("shape", CONTEXTS)
def test_divprune(shape):
    context = make(**shape)
    for keep in budgets(len(context)):
        picks = literal_divprune(context.tokens, keep)
        got = div.divprune(context, keep)
        assert got.kept.tolist() == sorted(picks)
        assert torch.equal(got.tokens, context.tokens[sorted(picks)])
        # The scores tell the same story: picks in their order, then the others.
        assert by_value(got.scores.tolist(), range(len(context)))[:keep] == picks
        rest = [i for i in range(len(context)) if i not in picks]
        gaps = [min(1 - cosine(context.tokens[i].tolist(), context.tokens[p].tolist())
                    for p in picks) for i in rest]  # fmt: skip
        close(got.scores[rest], gaps)


# ---------------------------------------------------------------------------------- all of them


def test_of_equal_tokens_the_earlier_stays():
    """Every token is one of four, eight times over."""
    base = make(2, 2, seed=3)
    pattern = torch.arange(32) % 4

    def tile(trace):
        at = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + pattern])
        return Trace(trace.queries[:, :, at], trace.keys[:, :, at], trace.scale)

    context = Context(
        base.tokens[pattern], base.features[pattern], base.cls, Grid(4, 8), base.project,
        {layer: tile(trace) for layer, trace in base.traces.items()},
    )  # fmt: skip
    a, keys = literal_single_head(context)
    best = max(range(4), key=lambda i: a[i])
    got = pm.prumerge(context, 6)
    assert got.kept.tolist() == [best + 4 * i for i in range(5)] + [MERGED]
    close(got.tokens, literal_prumerge(context, got.kept.tolist()[:5], a, keys))

    numbers, rows, _ = literal_visionzip(context, 8, 2)
    got = vz.visionzip(context, 10)
    assert got.kept.tolist() == numbers
    close(got.tokens, rows)

    # Four directions at right angles, so that distances are 0 and 1 to the last bit. Every token
    # has a twin; after one of each direction, only twins are left.
    context = Context(
        torch.eye(4)[pattern], base.features[pattern], base.cls, Grid(4, 8), base.project
    )
    assert div.divprune(context, 4).kept.tolist() == [0, 1, 2, 3]
    assert div.divprune(context, 6).kept.tolist() == [0, 1, 2, 3, 4, 5]


def test_highest_prefers_the_earlier():
    assert highest(torch.tensor([1.0, 3, 3, 2, 3, 1]), 5).tolist() == [1, 2, 4, 3, 0]
    many = torch.zeros(5000)
    many[::2] = 1
    assert highest(many, 2600).tolist() == [*range(0, 5000, 2), *range(1, 200, 2)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_as_double(method, dtype):
    """The same numbers in double choose the same: nothing is rounded before the choice."""
    half = make(8, 8, dtype=dtype)
    double = Context(
        half.tokens.double(), half.features.double(), half.cls.double(), half.grid,
        lambda x: half.project(x.to(dtype)),
        {i: Trace(t.queries.double(), t.keys.double(), t.scale) for i, t in half.traces.items()},
    )  # fmt: skip
    got, expected = method.select(half, 20), method.select(double, 20)
    assert got.kept.tolist() == expected.kept.tolist()
    assert got.tokens.dtype == dtype
    assert got.scores.dtype == torch.float32
    torch.testing.assert_close(got.tokens.double(), expected.tokens.double(), rtol=0.02, atol=0.05)
    assert precise(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("keep", [0, -1, 31, 2.0, True, "4"])
def test_impossible_budgets_are_refused(method, keep):
    with pytest.raises(RedlibError, match=r"keep must be a whole number in 1 \.\. 30"):
        method.select(make(), keep)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: m.name)
def test_a_layer_that_is_not_traced_is_named(method):
    context = make()
    bare = Context(context.tokens, context.features, context.cls, context.grid, context.project)
    with pytest.raises(RedlibError, match=f"layer {method.layers[0]} is not traced"):
        method.select(bare, 4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "shape",
    [
        {"height": 24, "width": 24, "heads": 16, "head": 64, "feature": 1024},
        {"height": 27, "width": 27, "heads": 16, "head": 72, "feature": 1152, "cls": False},
        {"height": 24, "width": 24, "heads": 16, "head": 64, "feature": 1024, "tiles": 5},
    ],
    ids=["clip-l", "siglip", "five-tiles"],
)
def test_shapes_of_real_towers(method, shape):
    """A second of processor time is far below what a prefill of a 7B model costs there."""
    context = make(**shape, token=64, dtype=torch.float32, sharp=0.3)
    keep = len(context) // 9
    start = time.process_time()
    got = method.select(context, keep)
    spent = time.process_time() - start
    assert got.kept.shape == (keep,)
    assert got.tokens.shape == (keep, 64)
    assert got.scores.shape == (len(context),)
    assert got.tokens.isfinite().all()
    numbers = got.kept[got.kept != MERGED].tolist()
    assert len(set(numbers)) == len(numbers)
    assert spent < 2


def test_what_the_methods_say_of_themselves():
    assert [m.name for m in METHODS] == ["prumerge", "prumerge+", "visionzip", "divprune"]
    assert [m.layers for m in METHODS] == [(-1,), (-1,), (-2,), ()]
    assert [m.native for m in METHODS] == [True, True, False, False]
    assert [m.merges for m in METHODS] == [True, True, True, False]
    assert [m.order for m in METHODS] == ["own", "own", "own", "raster"]


def test_a_method_has_one_function():
    with pytest.raises(RedlibError, match="'x' must have exactly one of scores, select and inside"):
        Method(name="x", title="X")
    with pytest.raises(RedlibError, match="exactly one"):
        Method(name="x", title="X", scores=len, select=len)
