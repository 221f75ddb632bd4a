"""Where memory ends, simulated: a layer that gives up above a size. Whoever halves says the same
afterwards as without the error, says so once, and names what does not fit by itself in one line.

The engine's own plans, which are halved too, are in test_engine.
"""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from conftest import random_image
from pruning import codebook, picture, save

from redlib import memory, states
from redlib.bench import answers
from redlib.bench.answering import answers_between
from redlib.bench.looking import Rule, look, replies
from redlib.errors import RedlibError
from redlib.models import VLM, load

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
