"""DPC-kNN against a literal transcription of eq. 12-13 with Python loops."""

import math

import numpy as np
import pytest
import torch

from redlib import clustering
from redlib.clustering import dpc_knn
from redlib.errors import RedlibError


def literal(x, neighbours, centres, *, squared=True):
    """Labels, centres, log density and delta, one pair of points at a time."""
    n = len(x)
    distance = [[math.dist(a, b) for b in x] for a in x]
    log_rho = []
    for i in range(n):
        near = sorted(distance[i][j] for j in range(n) if j != i)[:neighbours]
        log_rho.append(-sum(d**2 if squared else d for d in near) / neighbours)
    delta = []
    for i in range(n):
        # of equal densities (points that are each other's only neighbour) the first is denser
        tied = [math.isclose(log_rho[j], log_rho[i], rel_tol=1e-12) for j in range(n)]
        denser = [j for j in range(n) if (j < i if tied[j] else log_rho[j] > log_rho[i])]
        delta.append(min(distance[i][j] for j in denser) if denser else max(distance[i]))
    peak = [log_rho[i] + math.log(delta[i]) for i in range(n)]
    chosen = sorted(range(n), key=lambda i: -peak[i])[:centres]
    labels = [min(range(centres), key=lambda c: distance[i][chosen[c]]) for i in range(n)]
    return labels, chosen, log_rho, delta


def blobs(seed, sizes, width=5, spread=0.3):
    """Gaussian blobs of the given sizes, in random order."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(len(sizes), width)) * 3
    points = np.concatenate(
        [c + spread * rng.normal(size=(n, width)) for c, n in zip(centre, sizes, strict=True)]
    )
    return points[rng.permutation(len(points))]


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize(("neighbours", "centres"), [(1, 1), (5, 4), (16, 8), (39, 40)])
def test_agrees_with_the_literal_equations(neighbours, centres, squared):
    x = blobs(0, [20, 12, 5, 3])
    labels, chosen, log_rho, delta = literal(x.tolist(), neighbours, centres, squared=squared)
    found = dpc_knn(x, neighbours=neighbours, centres=centres, squared=squared)
    assert np.ptp(log_rho) > 0 and min(delta) > 0
    np.testing.assert_allclose(found.log_density, log_rho, rtol=1e-9)
    np.testing.assert_allclose(found.delta, delta, rtol=1e-9)
    assert found.centre_index.tolist() == chosen
    assert found.labels.tolist() == labels


def test_finds_separate_blobs_and_their_sizes():
    rng = np.random.default_rng(1)
    truth = rng.permutation(np.repeat([0, 1, 2], [30, 20, 6]))
    x = np.eye(3)[truth] * 4 + 0.1 * rng.normal(size=(56, 3))
    found = dpc_knn(x, neighbours=4, centres=3)
    assert sorted(found.cluster_sizes) == [6, 20, 30]
    assert (found.sizes == np.array([30, 20, 6])[truth]).all()


def test_density_survives_the_norms_of_real_tokens():
    # norm 34 in 4,096 dimensions: mean squared distances of about 2,000, whose exponential is 0
    x = np.random.default_rng(2).normal(size=(40, 4096)) * 34 / 64
    found = dpc_knn(x, neighbours=5, centres=4)
    assert np.exp(found.log_density).max() == 0
    assert len(np.unique(found.log_density)) == 40


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = blobs(3, [25, 15, 9])
    whole = dpc_knn(x, neighbours=6, centres=5)
    monkeypatch.setattr(clustering, "_BLOCK", 49 * 10)  # 10 rows at a time, the last block 9
    parts = dpc_knn(x, neighbours=6, centres=5)
    assert (parts.labels == whole.labels).all()
    assert (parts.centre_index == whole.centre_index).all()
    np.testing.assert_allclose(parts.delta, whole.delta, rtol=1e-12)


def test_equal_densities_are_ordered_by_index():
    # The corners of a square: every density and every distance to a side is the same.
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = dpc_knn(square, neighbours=1, centres=2)
    assert found.centre_index.tolist() == [0, 1]
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_copies_of_a_point_are_no_second_centre():
    x = np.concatenate([np.zeros((6, 2)), np.array([[5.0, 0.0], [5.0, 0.2], [9.0, 9.0]])])
    found = dpc_knn(x, neighbours=2, centres=3)
    assert found.centre_index[0] == 0 or 0 in found.centre_index
    assert (found.delta[1:6] == 0).all()
    assert sum(index < 6 for index in found.centre_index) == 1


def test_scaled_distances_divide_by_the_square_root_of_the_width():
    x = blobs(4, [10, 10])
    scaled = dpc_knn(x, neighbours=3, centres=2, scaled=True)
    by_hand = dpc_knn(x / math.sqrt(5), neighbours=3, centres=2)
    np.testing.assert_allclose(scaled.log_density, by_hand.log_density, rtol=1e-12)
    np.testing.assert_allclose(scaled.delta, by_hand.delta, rtol=1e-12)


def test_half_precision_tensors_are_accepted():
    x = torch.from_numpy(blobs(5, [10, 8])).half()
    found = dpc_knn(x, neighbours=3, centres=2)
    assert (found.labels == dpc_knn(x.double(), neighbours=3, centres=2).labels).all()


def test_distinct_images_per_cluster():
    x = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.3]])
    found = dpc_knn(x, neighbours=2, centres=2)
    images = ["a", "a", "b", "c", "c", "c"]
    assert dict(zip(found.labels, found.distinct(images)[found.labels], strict=True)) == {
        found.labels[0]: 2,
        found.labels[3]: 1,
    }
    with pytest.raises(RedlibError, match="images has 2 entries for 6"):
        found.distinct(["a", "b"])


@pytest.mark.parametrize(
    ("x", "neighbours", "centres", "message"),
    [
        (np.zeros((4, 2)), 4, 2, r"neighbours must lie in 1 \.\. 3 for 4 points; got 4"),
        (np.zeros((4, 2)), 0, 2, "neighbours must lie"),
        (np.zeros((4, 2)), 2, 5, r"centres must lie in 1 \.\. 4 for 4 points; got 5"),
        (np.zeros(4), 2, 2, r"shape \(n, D\)"),
        (np.full((4, 2), np.nan), 2, 2, "NaN"),
    ],
)
def test_bad_arguments(x, neighbours, centres, message):
    with pytest.raises(RedlibError, match=message):
        dpc_knn(x, neighbours=neighbours, centres=centres)
