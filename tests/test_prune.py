"""Scores and keep rules against literal loops, and the numbers of section 5.3."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.prune import (
    calibrate,
    codebook_bytes,
    keep_lowest,
    keep_threshold,
    operations,
    random_scores,
    redundancy,
)
from redlib.prune.scores import cosines


def sample(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_redundancy_is_the_largest_cosine():
    tokens, prototypes = sample((7, 5)), sample((3, 5), seed=1)
    expected = []
    for t in tokens.tolist():
        alike = [
            sum(a * b for a, b in zip(t, p, strict=True)) / (math.hypot(*t) * math.hypot(*p))
            for p in prototypes.tolist()
        ]
        expected.append(max(alike))
    assert np.ptp(expected) > 0.1
    torch.testing.assert_close(redundancy(tokens, prototypes), torch.tensor(expected))


def test_redundancy_of_batches_codebooks_and_half_precision():
    tokens = sample((2, 7, 5))
    criteria = Criteria.paper()
    book = Codebook(sample((3, 5), seed=1), "abc", range(3), "tiny", "r", criteria)
    scores = redundancy(tokens, book)
    assert scores.shape == (2, 7)
    torch.testing.assert_close(scores[1], redundancy(tokens[1], book.vectors))
    half = redundancy(tokens.half(), book)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, scores, atol=2e-3, rtol=0)
    assert redundancy(tokens.double(), book).dtype == torch.float64
    torch.testing.assert_close(redundancy(book.vectors * 7, book), torch.ones(3))
    assert redundancy(torch.zeros(1, 5), book).item() == 0


def test_a_codebook_of_another_width_is_refused():
    with pytest.raises(RedlibError, match="width 5 but the codebook has width 4"):
        redundancy(sample((7, 5)), sample((3, 4)))


def test_the_threshold_keeps_equal_scores_in_the_paper_only():
    scores = torch.tensor([0.2, 0.5, 0.51, 0.5])
    assert keep_threshold(scores, 0.5).tolist() == [True, True, False, True]
    assert keep_threshold(scores, 0.5, rule="below").tolist() == [True, False, False, False]
    with pytest.raises(RedlibError, match="rule must be 'at-most' or 'below'; got 'above'"):
        keep_threshold(scores, 0.5, rule="above")


def test_the_lowest_scores_stay_in_raster_order():
    scores = sample((6, 40))
    mask = keep_lowest(scores, 9)
    for row, kept in zip(scores.tolist(), mask, strict=True):
        lowest = sorted(range(40), key=lambda i: row[i])[:9]
        assert kept.nonzero().ravel().tolist() == sorted(lowest)
    assert keep_lowest(scores, 40).all()


def test_of_equal_scores_the_earlier_token_stays():
    assert keep_lowest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 3).tolist() == [True, True, True, False]
    assert keep_lowest(torch.zeros(576), 64).nonzero().ravel().tolist() == list(range(64))


@pytest.mark.parametrize("keep", [0, -1, 577, 64.0, True])
def test_keep_out_of_range(keep):
    with pytest.raises(RedlibError, match=rf"keep must be .* 1 \.\. 576.*; got {keep!r}"):
        keep_lowest(torch.zeros(576), keep)


def test_random_scores_repeat_by_seed_and_differ_by_image():
    assert torch.equal(random_scores(576, [3, 7]), random_scores(576, [3, 7]))
    kept = [keep_lowest(random_scores(576, [3, image]), 64) for image in range(20)]
    assert all(mask.sum() == 64 for mask in kept)
    assert len({tuple(mask.tolist()) for mask in kept}) == 20
    # no region is favoured: each quarter of the raster gets about a quarter
    share = torch.stack(kept).float().reshape(20, 4, 144).mean(dim=(0, 2)) * 9
    assert ((share - 1).abs() < 0.2).all()


@pytest.mark.parametrize("budget", [1, 7.3, 64, 100])
def test_calibration_meets_the_mean_budget(budget):
    scores = [sample(100, seed=i) + 0.1 * i for i in range(12)]
    r = calibrate(scores, budget)
    kept = [int(keep_threshold(s, r).sum()) for s in scores]
    assert abs(sum(kept) / 12 - budget) <= 0.5 / 12
    if 1 < budget < 100:
        assert len(set(kept)) > 1  # an image with more redundancy keeps fewer


def test_calibration_does_not_hang_on_the_last_digit():
    scores = [sample(50, seed=i) for i in range(4)]
    r = calibrate(scores, 20)
    kept = [keep_threshold(s, r) for s in scores]
    moved = [keep_threshold(s * (1 + 1e-6), r) for s in scores]
    assert all(torch.equal(a, b) for a, b in zip(kept, moved, strict=True))


def test_calibration_between_neighbours_of_single_precision():
    low = torch.tensor(0.3)
    scores = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])
    assert keep_threshold(scores, calibrate([scores], 1)).tolist() == [True, False]


def test_calibration_with_equal_scores_comes_as_close_as_it_can():
    scores = [torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    assert keep_threshold(scores[0], calibrate(scores, 4)).sum() == 3
    assert keep_threshold(scores[0], calibrate(scores, 7)).sum() == 8


def test_bad_calibration():
    with pytest.raises(RedlibError, match="at least one image"):
        calibrate([], 64)
    for budget in (0, 101, float("nan"), "64", None, True):
        with pytest.raises(RedlibError, match=rf"mean_budget .* at most 100, .*; got {budget!r}"):
            calibrate([torch.zeros(100)], budget)
    with pytest.raises(RedlibError, match="NaN"):
        calibrate([torch.full((10,), torch.nan)], 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_two_bytes_a_number_and_the_cosines(dtype):
    rng = np.random.default_rng(8)
    vectors = torch.from_numpy(rng.normal(size=(130, 4096)) * rng.gamma(1.0, 50.0, (130, 1)))
    tokens = torch.from_numpy(rng.normal(size=(2, 5, 4096))).to(dtype)
    tokens[0, 0] = 3 * vectors[129].to(dtype)
    book = Codebook(vectors.float(), ["x"] * 130, range(130), "model", "r", Criteria.paper())
    exact = F.normalize(tokens.double(), dim=-1) @ F.normalize(vectors, dim=-1).T
    torch.testing.assert_close(cosines(tokens, book).double(), exact, atol=2e-5, rtol=0)
    assert [unit.nbytes for unit in book._unit.values()] == [codebook_bytes(130, 4096)]
    assert codebook_bytes(130, 4096) == 130 * 4096 * 2


def test_costs_of_section_5_3():
    assert operations(576, 454, 4096) == 2_141_979_264
    assert operations(2, 3, 1) == 6  # width 1: one multiplication each, nothing to add
    assert codebook_bytes(969, 4096) == 7_938_048
    assert codebook_bytes(454, 4096, dtype=torch.float32) == 454 * 4096 * 4
