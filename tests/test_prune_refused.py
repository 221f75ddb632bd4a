"""What a pruned model is given that no method can choose from, or a method gives that is no choice:
one line that names it, whichever method it is."""

from types import SimpleNamespace

import numpy as np
import pruning
import pytest
import torch
from conftest import random_image
from pruning import KINDS, Maker, model_of, picture

import redlib
from redlib.errors import RedlibError
from redlib.prune import METHODS, Method, threshold_for
from redlib.prune.context import MERGED, Selection

TEXT = "USER: <image> what is this ?"
P, SIDE = pruning.CELLS**2, pruning.SIDE
BOOK = {"codebook": pruning.codebook(), "codebook_of_other_model": True}
MEASURED = {"extra": {name: [torch.arange(P)] * 2 for name in ("top1", "jsd", "coverage")}}
OPTIONS = {"probe": MEASURED, "oracle": MEASURED, "oracle-inverse": MEASURED,
           "codebook": BOOK, "codebook-softmax": BOOK}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    return make("llava", tmp_path_factory.mktemp("llava"))


def make(kind, folder) -> SimpleNamespace:
    pruning.save(kind, folder)
    return SimpleNamespace(kind=kind, folder=folder, model=model_of(folder),
                           maker=Maker(kind, folder))  # fmt: skip


def images(made, *seeds) -> dict:
    return made.maker([TEXT] * len(seeds), [[picture(seed)] for seed in seeds])


@torch.no_grad()
def run_of(made, inputs, method="random", **how) -> redlib.prune.Run:
    with redlib.pruned(made.model, method, **{"keep": 3, "per": "image", **how}) as run:
        made.model(**inputs)
    return run


def refuse(words, made, inputs, method="random", **how) -> None:
    with pytest.raises(RedlibError, match=words) as error:
        run_of(made, inputs, method, **how)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- features


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", METHODS)
def test_features_that_are_not_finite(small, name, value):
    inputs, options = images(small, 1, 2), OPTIONS.get(name, {})
    assert len(run_of(small, inputs, name, **options).last) == 2
    inputs["pixel_values"][1, 0, 7, 9] = value
    words = r"visual features of image 1 \(of 0 .. 1\) hold NaN or infinity: .* float16"
    refuse(words, small, inputs, name, **options)


def test_an_image_alone_and_tiles_and_films(made):
    inputs = images(made, 1)
    inputs["pixel_values"][..., 0, 0] = torch.nan
    for per in ("image", "tile"):
        refuse("visual features of the image hold NaN", made, inputs, per=per)
    if made.kind == "llava_onevision":
        films = made.maker(["key what"], films=[[picture(1), picture(4)]])
        films["pixel_values_videos"][0, 1] = torch.inf
        refuse("visual features of the video hold NaN", made, films, "divprune")


def test_a_projector_that_overflows_in_float16(small):
    half = SimpleNamespace(model=model_of(small.folder, torch.float16))
    inputs = images(small, 1)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    assert len(run_of(half, inputs, "divprune").last) == 1
    projector = half.model.model.multi_modal_projector
    torch.nn.init.constant_(projector.linear_2.weight, torch.finfo(torch.float16).max)
    refuse("load it in bfloat16 or float32", half, inputs, "divprune")


# ---------------------------------------------------------------------------- extra


def test_extra_may_be_what_torch_makes_tensors_of(small):
    inputs, values = images(small, 1), [(7 * n) % P for n in range(P)]
    expected = run_of(small, inputs, "oracle", extra={"coverage": torch.tensor(values)}).last[0]
    for given in (values, tuple(values), np.array(values), [values], [np.array(values)]):
        found = run_of(small, inputs, "oracle", extra={"coverage": given}).last[0]
        assert torch.equal(found.kept, expected.kept)
        assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("value", ["abc", None, ["abc"], [None], {"a": 1}, [[1, "b"]], [[1], 2]])
def test_extra_that_holds_no_numbers(small, value):
    words = r"extra 'coverage' (must be a tensor \(25,\), one number per visual token|holds 2)"
    refuse(words, small, images(small, 1), "oracle", extra={"coverage": value})


def test_extra_that_is_changed_to_something_else(small):
    with redlib.pruned(small.model, "oracle", keep=3) as run:
        run.extra = torch.zeros(P)
        with pytest.raises(RedlibError, match="extra must name what it holds, .*; got Tensor"):
            small.model(**images(small, 1))


# ---------------------------------------------------------------------------- pixels and sizes


def test_pixels_of_another_type_or_shape(made):
    inputs = images(made, 1)
    pixels = inputs["pixel_values"]
    others = [pixels.numpy(), list(pixels), [], 5, "cup", torch.tensor(5.0),
              pixels.flatten(0, -4)[0], pixels[..., :9, :9], pixels[..., :1, :, :],
              pixels[None, None]]  # fmt: skip
    for other in others:
        got = (
            rf"got {type(other).__name__}( \({', '.join(map(str, getattr(other, 'shape', '')))}|$)"
        )
        words = rf"pixel_values must be a tensor \(B, .*3, {SIDE}, {SIDE}\).*'pt'; {got}"
        refuse(words, made, {**inputs, "pixel_values": other})
    if made.kind == "llava_onevision":
        films = made.maker(["key what"], films=[[picture(1), picture(4)]])
        films["pixel_values_videos"] = films["pixel_values_videos"][0]
        refuse(r"pixel_values_videos must be .*got Tensor \(2, 3", made, films)
    else:
        films = {**inputs, "pixel_values_videos": torch.zeros(1, 2, 3, SIDE, SIDE)}
        refuse("takes no films: leave out pixel_values_videos", made, films)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_sizes_that_do_not_fit(kind, tmp_path):
    made = make(kind, tmp_path)
    inputs = images(made, 1)
    for sizes in (
        torch.tensor([80, 96]),
        [None],
        [80, 96],
        5,
        torch.tensor(5),
        ["ab"],
        [[80]],
        [[80, 96, 3]],
        [[0, 96]],
        [[80, -1]],
        [[80, float("nan")]],
        [[80, np.inf]],
    ):
        words = r"image_sizes must hold one \(height, width\) in pixels per image; got "
        refuse(words, made, {**inputs, "image_sizes": sizes})
    for sizes in (inputs["image_sizes"].tolist(), list(inputs["image_sizes"]),
                  inputs["image_sizes"].numpy(), inputs["image_sizes"].double()):  # fmt: skip
        run_of(made, {**inputs, "image_sizes": sizes})
    inputs["pixel_values"] = inputs["pixel_values"][:, :2]
    words = r"image_sizes \(of 1 images\) and pixel_values \(1, 2, .* do not belong together"
    refuse(words, made, inputs)


# ---------------------------------------------------------------------------- budgets


def test_an_image_with_too_few_tokens_is_named(tmp_path):
    """In the stock packing a thin one has fewer than others of its batch."""
    made = make("llava_next", tmp_path)
    thin = random_image(4, width=30, height=150)
    inputs = made.maker([TEXT] * 2, [[picture(2)], [thin]])
    has = run_of(made, inputs).last[1].before
    words = rf"at most {has}, the visual tokens of image 1 \(of 0 .. 1\); got {has + 1}: .* share"
    for method in ("random", "divprune", "fastv"):
        refuse(words, made, inputs, method, keep=has + 1)
    words = rf"at most {P}, the visual tokens of tile 0 of image 0 \(of 0 .. 1\); got {P + 1}"
    refuse(words, made, inputs, keep=P + 1, per="tile")


def test_calibration_on_one_batch_that_is_not_in_a_list(small):
    how = {"mean_budget": 9, **BOOK}
    with pytest.raises(RedlibError, match=r"batches must be a list .*; got one: say \[batch\]"):
        threshold_for(small.model, "codebook", images(small, 1, 2), **how)
    with pytest.raises(RedlibError, match="mean_budget must be a number .*; got '64'"):
        threshold_for(small.model, "codebook", [images(small, 1)], **{**how, "mean_budget": "64"})


# ---------------------------------------------------------------------------- methods of one's own


def largest(context) -> torch.Tensor:
    return context.tokens.norm(dim=-1)


def test_a_method_of_ones_own_is_one_function(small):
    inputs = images(small, 1, 2)
    run = run_of(small, inputs, largest, keep=5)
    method = Method("norm", "Largest norm", scores=largest)
    expected = run_of(small, inputs, method, keep=5)
    assert run.method.name == "largest"
    for one, other in zip(run.last, expected.last, strict=True):
        assert torch.equal(one.kept, other.kept) and torch.equal(one.scores, other.scores)
    r = threshold_for(small.model, largest, [inputs], mean_budget=5)
    assert sum(view.after for view in run_of(small, inputs, largest, keep=None,
                                             threshold=r).last) == 10  # fmt: skip


@pytest.mark.parametrize(
    "scores, words",
    [
        (lambda c: [0.0] * len(c), r"gave scores as list: return a tensor \(25,\)"),
        (lambda c: largest(c).numpy(), "gave scores as ndarray"),
        (lambda c: None, "gave scores as NoneType"),
        (lambda c: largest(c) > 0, "gave scores of torch.bool, which cannot rank"),
        (lambda c: largest(c).byte(), "gave scores of torch.uint8"),
        (lambda c: largest(c).to(torch.complex128), "gave scores of torch.complex128"),
        (lambda c: largest(c)[:, None], r"gave scores of shape \(25, 1\) for 25 visual tokens"),
        (lambda c: largest(c) * torch.nan, "scores of the image have NaN values"),
    ],
)
def test_scores_that_do_not_rank(small, scores, words):
    refuse(words, small, images(small, 1), scores)
    if "NaN" not in words:
        with pytest.raises(RedlibError, match=words):
            threshold_for(small.model, scores, [images(small, 1)], mean_budget=5)


def selection(kept, rows=None, scores=None):
    def select(context, keep):
        tokens = context.tokens[: len(kept) if rows is None else rows]
        return Selection(kept, tokens, torch.zeros(len(context)) if scores is None else scores)

    return select


FEW = torch.arange(3)


@pytest.mark.parametrize(
    "select, words",
    [
        (lambda c, keep: torch.arange(keep), "gave Tensor: its select must return a .*Selection"),
        (lambda c, keep: None, "gave NoneType: its select must return a"),
        (selection([0, 1, 2]), "gave Selection: its select must return a .*Selection of tensors"),
        (selection(FEW[None]), r"of shapes \[\(1, 3\), .*must be \(K,\), \(K, 48\) and \(25,\)"),
        (selection(FEW, rows=2), r"of shapes \[\(3,\), \(2, 48\), \(25,\)\]"),
        (selection(FEW, scores=torch.zeros(3)), r"of shapes \[\(3,\), \(3, 48\), \(3,\)\]"),
        (selection(FEW + P), "int64 numbers from 0 to 24; got torch.int64 .25, 26, 27."),
        (selection(FEW.double()), "int64 numbers from 0 to 24; got torch.float64"),
        (selection(FEW > 0), "int64 numbers from 0 to 24; got torch.bool"),
        (selection(FEW + MERGED), "int64 numbers from 0 to 24; got torch.int64 .-1, 0, 1."),
    ],
)
def test_selections_that_are_none(small, select, words):
    refuse(words, small, images(small, 1), Method("mine", "Mine", select=select))


def test_only_rows_that_may_stand_anywhere_are_merged(small):
    merging = Method("mine", "Mine", select=selection(FEW + MERGED), merges=True)
    assert run_of(small, images(small, 1), merging).last[0].kept.tolist() == [MERGED, 0, 1]
    outside = Method("mine", "Mine", select=selection(FEW + 2 * MERGED), merges=True)
    refuse("int64 numbers from -1 to 24", small, images(small, 1), outside)
