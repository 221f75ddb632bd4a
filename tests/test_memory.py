"""Where memory ends, simulated: a layer that gives up above a size. Whoever halves says the same
afterwards as without the error, says so once, and names what does not fit by itself in one line.

The engine's own plans, which are halved too, are in test_engine. Here they are laid on a GPU of
24 GB beside the real models' weights, as arithmetic: shapes are real, nothing is allocated.
"""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import real
import torch
from conftest import random_image
from pruning import codebook, picture, save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText

from redlib import costs, engine, leave_one_out, memory, probe, states
from redlib.bench import answers
from redlib.bench.answering import answers_between
from redlib.bench.looking import Rule, look, replies
from redlib.errors import RedlibError
from redlib.models import VLM, load
from redlib.params import PRESETS
from redlib.planner import Plan

CPU = torch.device("cpu")
TEXTS = [
    "what does this image show ?",
    "is a cup on the plate ?",
    "what",
    "red or blue ?",
    "the star in one picture of the crown on the left",
]
RULES = [Rule("fastv", 4), Rule("sparsevlm", 6), Rule("codebook", 4), Rule("fastv", 9)]


@pytest.fixture(scope="module", params=["llava", "llava_onevision"])
def vlm(request, tmp_path_factory) -> VLM:
    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    return load(str(folder), device="cpu", dtype="float64")


@contextmanager
def small(modules, most, size=lambda shape: shape[0] * shape[1]):
    """While it lasts, the modules fail above `most`; yields the sizes that were tried."""
    tried: list[int] = []

    def weigh(module, given):
        tried.append(size(given[0].shape))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hooks = [module.register_forward_pre_hook(weigh) for module in modules]
    try:
        yield tried
    finally:
        for hook in hooks:
            hook.remove()


def norms(vlm: VLM):
    """What every layer of the decoder, however it is called, does first."""
    return [layer.input_layernorm for layer in vlm.decoder.layers]


def patches(vlm: VLM):
    """What the tower does first; its size is a number of images."""
    return [vlm.model.model.vision_tower.embeddings.patch_embedding]


def told(warned) -> list[str]:
    return [str(one.message) for one in warned if "memory of" in str(one.message)]


def halves(tried: list[int], most: int) -> bool:
    """Whether something failed, and the next try after each failure was a smaller one."""
    failed = [at for at, size in enumerate(tried) if size > most]
    return bool(failed) and all(tried[at + 1] < tried[at] for at in failed)


@pytest.mark.parametrize("most", [31, 28])
def test_questions_about_one_image_are_answered_in_halves(tiny_vlm, tiny_tokens, most):
    expected = answers(tiny_vlm, tiny_tokens, TEXTS, max_new_tokens=6)
    with small(norms(tiny_vlm), most) as tried, pytest.warns(UserWarning) as warned:
        found = answers(tiny_vlm, tiny_tokens, TEXTS, max_new_tokens=6)
        again = answers(tiny_vlm, tiny_tokens, TEXTS[::-1], max_new_tokens=6)
    assert found == expected and again == expected[::-1] and len(set(expected)) == len(TEXTS)
    assert halves(tried, most)
    assert told(warned) == [
        "memory of cpu ended within one forward of 5 questions; going on with half as many at a "
        "time, here and wherever it ends again"
    ], "once, though it ended twice and more"


def test_memory_that_ends_within_an_answer(tiny_vlm, tiny_tokens):
    """Words are said already when the cache of the questions no longer fits."""
    expected = answers(tiny_vlm, tiny_tokens, TEXTS, max_new_tokens=8)
    stock = tiny_vlm.decoder.forward
    ends = []

    def forward(*, past_key_values, **given):
        length = past_key_values.get_seq_length() + given["inputs_embeds"].shape[1]
        if length > 75:
            ends.append(length)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stock(past_key_values=past_key_values, **given)

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="5 questions"):
        patch.setattr(tiny_vlm.decoder, "forward", forward)
        assert answers(tiny_vlm, tiny_tokens, TEXTS, max_new_tokens=8) == expected
    assert ends and 75 < ends[0] <= 75 + len(TEXTS), (
        "it ended at the words of an answer, not before"
    )


def test_methods_inside_the_language_model_halve_too(vlm):
    looked, book = look(vlm, [picture(1)]), codebook(width=vlm.width)
    expected = replies(vlm, looked, RULES, TEXTS, codebook=book, max_new_tokens=5)
    with small(norms(vlm), 60) as tried, pytest.warns(UserWarning) as warned:
        found = replies(vlm, looked, RULES, TEXTS, codebook=book, max_new_tokens=5)
    for one, other in zip(found, expected, strict=True):
        assert one.texts == other.texts and one.kept == other.kept
        stayed = [[[k.kept.tolist() for k in each] for each in of.chosen] for of in (one, other)]
        assert stayed[0] == stayed[1]
    assert len(told(warned)) == 1 and max(tried) > 60
    hooks = [len(module._forward_pre_hooks) for module in vlm.decoder.layers]
    assert hooks == [0] * len(hooks), "nothing of a method stays in the model"


@pytest.mark.parametrize("count", [3, 9, 20])
def test_images_go_through_the_tower_in_halves(tiny_vlm, count):
    images = [random_image(seed) for seed in range(count)]
    expected = tiny_vlm.encode(images)
    with small(patches(tiny_vlm), 2, lambda shape: shape[0]) as tried:
        with pytest.warns(UserWarning, match=rf"forward of {min(count, 8)} images; going on"):
            found = tiny_vlm.encode(images)
    for name in ("tokens", "cls_similarity", "norms"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert halves(tried, 2) and sum(size for size in tried if size <= 2) == count


@pytest.mark.parametrize("vlm", ["llava_onevision"], indirect=True)
@pytest.mark.parametrize("setting", ["several", "film"])
def test_so_do_the_images_of_one_prompt(vlm, setting):
    images = [picture(seed) for seed in range(5)]
    expected, rows = look(vlm, images, setting=setting), getattr(vlm, setting)(images)
    with small(patches(vlm), 2, lambda shape: shape[0]) as tried, pytest.warns(UserWarning):
        found, packed = look(vlm, images, setting=setting), getattr(vlm, setting)(images)
    assert halves(tried, 2)
    torch.testing.assert_close(packed, rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.rows, other.rows)
        for mine, theirs in zip(one.units, other.units, strict=True):
            for layer, trace in theirs.context.traces.items():
                torch.testing.assert_close(mine.context.traces[layer].keys, trace.keys)


@pytest.mark.filterwarnings("ignore:memory of cpu ended")
def test_what_does_not_fit_by_itself_is_one_line(vlm):
    looked, book = look(vlm, [picture(1)]), codebook(width=vlm.width)
    rows, tokens = looked[0].rows, looked[0].units[0].context.tokens
    before, after = vlm.prompt("what")
    end, sight = vlm.newline is not None, len(before) + len(rows)

    def asked(rule):
        return lambda: replies(vlm, looked, [rule], TEXTS[:1], codebook=book)

    whole = len(before) + len(tokens) + end + len(after)
    image = f"one forward of {sight} positions"
    first = f"one question behind {sight} positions"
    for most, work, one in (
        (20, lambda: answers(vlm, tokens, TEXTS), image),
        (20, asked(Rule("fastv", 4)), image),
        (20, asked(Rule("sparsevlm", 6)), f"one question behind {len(rows)} positions"),
        (sight, asked(Rule("fastv", 25)), first),
        (2 + end, lambda: answers(vlm, tokens[:0], TEXTS), f"one question behind {2 + end} posit"),
        (9, lambda: answers_between(vlm, [rows], ["<image> what"]), "one forward of "),
        (sight, lambda: answers_between(vlm, [rows], ["<image>" + " what" * 50]), "one question b"),
        (
            9,
            lambda: states.read(vlm, tokens, prompt="what"),
            f"one forward of {whole} positions wi",
        ),
        (3, lambda: states.token_ranks(vlm, [5, 6, 7, 8]), "one forward of 4 positions with the s"),
    ):
        with small(norms(vlm), most), pytest.raises(RedlibError) as caught:
            work()
        line = str(caught.value)
        assert line.startswith(f"memory of cpu ends within {one}") and "\n" not in line
        assert line.endswith("; free some, or choose a smaller model or dtype")
        assert caught.value.__cause__ is caught.value.__context__ is None, "no traceback in front"
    for work in (lambda: vlm.encode([picture(1)]), lambda: look(vlm, [picture(1)])):
        with small(patches(vlm), 0), pytest.raises(RedlibError, match="one image in the vision to"):
            work()


def test_other_errors_pass(tiny_vlm, tiny_tokens):
    def broken(module, given):
        raise RuntimeError("shapes cannot be multiplied")

    hook = tiny_vlm.decoder.register_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="shapes cannot"):
            answers(tiny_vlm, tiny_tokens, TEXTS)
    finally:
        hook.remove()


def test_parts_are_halved_and_stay_small():
    sizes = []

    def work(part):
        sizes.append(len(part))
        if len(part) > 3:
            raise MemoryError
        return sum(part)

    how = {"device": CPU, "what": "numbers", "one": "one number"}
    with pytest.warns(UserWarning, match="one forward of 10 numbers"):
        found = memory.in_parts(work, list(range(20)), 10, **how)
    assert sizes == [10, 5, *[2] * 10] and found == [2 * n + 1 for n in range(0, 20, 2)]
    assert memory.in_parts(work, [], 10, **how) == []
    with pytest.raises(RedlibError, match="^memory of cpu ends within one number; free some"):
        memory.in_parts(lambda part: work("longer"), [1, 2, 3], 3, **how)


def test_what_failed_is_gone_before_the_next_try():
    """Else the memory would still be as full as it was."""
    held, alive = [], []

    def work(part):
        alive.append([one() is not None for one in held])
        large = torch.zeros(1)
        held.append(weakref.ref(large))
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(part)

    gc.disable()
    try:
        with pytest.warns(UserWarning):
            memory.in_parts(work, [1, 2, 3, 4], 4, device=CPU, what="numbers", one="one")
    finally:
        gc.enable()
    assert len(alive) == 6 and not any(map(any, alive))


@pytest.mark.parametrize(
    "error, known",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.96 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_which_errors_are_of_memory(error, known):
    assert memory.out_of_memory(error) is known


GPU = 24e9
"""Bytes of the GPU that README asks for. One of 24 GiB has 1.8e9 more; the driver wants some."""

FLOAT = 4  # bytes of a number that is read: the head runs in float32


def shapes_of(name: str, layers: int | None = None) -> SimpleNamespace:
    """What plans and the decoder's layers need of a real model: all shapes and no weight."""
    config = AutoConfig.for_model(**real.CONFIGS[name])
    config.text_config.num_hidden_layers = layers or config.text_config.num_hidden_layers
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).half()
    return SimpleNamespace(
        model=model,
        decoder=model.model.language_model,
        width=config.text_config.hidden_size,
        dtype=torch.float16,
        device=torch.device("cuda"),  # by name: the budget of new tokens is a GPU's
        grid=costs.SHAPES[name].grid,
        repeats=PRESETS["paper"]["repeats"][real.NAMES.index(name)],
    )


def held(made: Plan, shape: costs.Shape) -> Iterator[tuple[int, int]]:
    """Of each batch, bytes held in the layers and while it is read, as `engine._Work` goes along.

    Both with what earlier batches keep for it. In the layers: what the budget states, and a copy of
    the keys and values that the rows continue, where they are not all the same ones. Then the head
    in float32, the logits, and three more of their size behind the softmax. Where a row is intact,
    its article may be fed back: the keys and values of all rows beside what the budget states for
    one word of each. Where later batches continue some, there is a moment with their copy, too.
    """
    limit, position = made.budget, 2 * costs.HALF * shape.layers * shape.key_heads * shape.head
    kept: dict[int, int] = {}
    for number, batch in enumerate(made.batches):
        above = -1 if batch.parent is None else batch.parent
        kept = {old: size for old, size in kept.items() if old <= above}
        n, own = len(batch.rows), batch.end - batch.start
        layers = n * (own * limit.per_token + batch.end * limit.per_position)
        layers += n * batch.start * position if len(set(batch.donors)) > 1 else 0
        read = FLOAT * shape.vocabulary * (shape.width + 4 * n)
        if any(made.tree.like[row] == row for row in batch.rows):
            read += n * (limit.per_token + (batch.end + 1) * (limit.per_position + position))
        elif batch.keep:
            read += n * (batch.end + batch.keep) * position
        waiting = sum(kept.values())
        yield waiting + layers, waiting + read
        if batch.keep:
            kept[number] = n * batch.keep * position


EXPERIMENTS = {
    "single": (),
    "region": ("region",),
    "global": ("global",),
    "both": ("region", "global"),
    "all": leave_one_out.LEVELS,
}


@pytest.mark.parametrize("levels", EXPERIMENTS.values(), ids=EXPERIMENTS)
@pytest.mark.parametrize("name", real.NAMES)
def test_experiments_on_every_token_fit_a_gpu_of_24_gb(name, levels, monkeypatch):
    """Half of what the weights leave is the batch's own; kept and copied keys have the other."""
    vlm, shape = shapes_of(name), costs.SHAPES[name]
    free = GPU - sum(weight.nbytes for weight in vlm.model.parameters())
    monkeypatch.setattr(engine, "free_memory", lambda device: free)
    numbers, patches = costs._Numbers(shape), range(vlm.grid.size)
    if levels:
        made, _ = leave_one_out.ablation_plan(vlm, numbers, patches, levels)
    else:
        made = probe.single_plan(vlm, numbers, patches)
    assert made.budget.memory == engine.MEMORY_SHARE * free
    layers, read = (max(bytes_) for bytes_ in zip(*held(made, shape), strict=True))
    assert max(layers, read) < free
    assert max(len(batch.rows) for batch in made.batches) > 4, "not one by one, for want of memory"


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at a time, also of those that have no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage: torch.UntypedStorage, *, new: bool = True) -> None:
        if (key := storage._cdata) in self.known:
            return  # a view
        size = storage.nbytes() if new else 0
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("name", real.NAMES)
def test_a_forward_holds_no_more_than_the_budget_states(name, monkeypatch):
    """Counted tensor by tensor on two layers of the real widths. Of attention the output alone, as
    the fused kernels of a GPU have no scores in memory."""
    vlm, shape = shapes_of(name, layers=2), costs.SHAPES[name]
    monkeypatch.setattr(engine, "free_memory", lambda device: GPU)
    monkeypatch.setattr(
        engine.functional, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q)
    )
    limit = engine.budget(vlm)
    for n, own, end, donors in ((239, 26, 31, 1), (166, 30, 39, 166), (8, 601, 606, 1)):
        half = {"dtype": torch.float16, "device": "meta"}
        before = [
            torch.empty(donors, shape.key_heads, end - own, shape.head, **half) for _ in range(4)
        ]
        rows, last = torch.empty(n, own, vlm.width, **half), torch.full((n,), own - 1).to("meta")
        with Live() as live, torch.no_grad():
            for there in (*vlm.model.parameters(), *before):
                live.count(there.untyped_storage(), new=False)
            live.count(rows.untyped_storage())
            engine._decode(
                vlm, engine.Prefix(tuple(before[:2]), tuple(before[2:])), rows, last=last, keep=end
            )
        stated = n * (own * limit.per_token + end * limit.per_position)
        assert 0.5 * stated < live.most < stated, "neither too much nor so little that rows are few"
