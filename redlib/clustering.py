"""Density peaks clustering with nearest neighbours (DPC-kNN), section 8.2.

Two of the four criteria of the codebook ask how *common* a visual token is: rare within its image
(its cluster is small) and common across images (its cluster of candidates is large). Both need
clusters, and DPC-kNN finds them with two numbers for every point:

* the density rho, high where the nearest neighbours are near (eq. 12);
* the separation delta, the distance to the nearest *denser* point (eq. 13), and for the densest
  point the distance to the farthest one.

A point that is dense *and* far from anything denser is a peak. The points with the highest
rho x delta become centres, and every point joins its nearest centre:

    clusters = dpc_knn(tokens, neighbours=16, centres=8)      # tokens (L, D)
    clusters.sizes                                            # (L,) size of every point's cluster

Three details decide whether this works on real visual tokens. Their norms are about 34 in 4,096
dimensions, so that exp(-1,000) is zero in any float format: rho is kept as its logarithm and the
product as a sum. Two points of equal density would each wait for the other to be denser: the one
with the smaller index counts as denser, and no random noise is added, so the same tokens always
give the same clusters. And the distances of 10,000 candidates fill 800 MB: they are made a block
of rows at a time and never kept.

Eq. 12 and 13 leave the number of centres open ("relatively high rho x delta"): it is an argument.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from redlib.errors import RedlibError

_BLOCK = 4_000_000  # distances per block of rows, 32 MB as float64


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of n points.

    Attributes:
        labels: (n,) cluster of every point, 0 .. C - 1; cluster 0 has the highest rho x delta.
        centre_index: (C,) the point that is the centre of each cluster.
        log_density: (n,) log rho, the exponent of eq. 12 (never above 0).
        delta: (n,) separation, eq. 13.
        neighbours: the k of eq. 12 that was used.
    """

    labels: np.ndarray
    centre_index: np.ndarray
    log_density: np.ndarray
    delta: np.ndarray
    neighbours: int

    @property
    def cluster_sizes(self) -> np.ndarray:
        """(C,) number of points in each cluster; at least 1, since a centre is its own."""
        return np.bincount(self.labels, minlength=len(self.centre_index))

    @property
    def sizes(self) -> np.ndarray:
        """(n,) size of the cluster that each point belongs to."""
        return self.cluster_sizes[self.labels]

    def distinct(self, images: Sequence) -> np.ndarray:
        """(C,) number of distinct images in each cluster; `images` (n,) names each point's image.

        Index it with `labels` to have the number for every point. Raises RedlibError if there are
        more or fewer images than points.
        """
        if len(images) != len(self.labels):
            raise RedlibError(
                f"images has {len(images)} entries for {len(self.labels)} clustered points"
            )
        _, codes = np.unique(np.asarray(images), return_inverse=True)
        pairs = np.unique(np.stack([self.labels, codes]), axis=1)  # (2, distinct pairs)
        return np.bincount(pairs[0], minlength=len(self.centre_index))


def dpc_knn(
    x: torch.Tensor | np.ndarray,
    *,
    neighbours: int,
    centres: int,
    squared: bool = True,
    scaled: bool = False,
) -> Clusters:
    """Cluster the rows of `x` (n, D) by DPC-kNN (eq. 12-13, section 8.2).

    Args:
        x: (n, D) points, of any float type; distances are computed in float64.
        neighbours: k of eq. 12, 1 .. n - 1; a point is not its own neighbour.
        centres: number of clusters, 1 .. n.
        squared: eq. 12 with squared Euclidean distances (as DPC-kNN defines it) or plain ones.
        scaled: divide every distance by sqrt(D), as the well-known implementation does. This
            changes the clusters: log rho shrinks against log delta.

    Raises:
        RedlibError: `x` is not a finite matrix, or `neighbours` or `centres` is out of range.
    """
    points = torch.as_tensor(x).detach().to("cpu", torch.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise RedlibError(f"x must have shape (n, D) to be clustered; got {tuple(points.shape)}")
    n, width = points.shape
    if not 1 <= neighbours <= n - 1:
        raise RedlibError(f"neighbours must lie in 1 .. {n - 1} for {n} points; got {neighbours!r}")
    if not 1 <= centres <= n:
        raise RedlibError(f"centres must lie in 1 .. {n} for {n} points; got {centres!r}")
    if not bool(torch.isfinite(points).all()):
        raise RedlibError("x has NaN or infinite values: these points cannot be clustered")
    # Distances come from |a|^2 + |b|^2 - 2ab, which cancels fewer digits around the mean.
    points = points - points.mean(dim=0)
    if scaled:
        points = points / width**0.5

    log_density = torch.empty(n, dtype=torch.float64)
    for rows, distance in _distances(points, points):
        distance[torch.arange(len(distance)), torch.arange(rows.start, rows.stop)] = torch.inf
        nearest = distance.topk(neighbours, dim=1, largest=False).values  # (block, k)
        log_density[rows] = -(nearest.square() if squared else nearest).mean(dim=1)

    # denser[i, j]: j comes before i in the order of falling density, ties by index. As ranks that
    # order has no ties left.
    rank = torch.empty(n, dtype=torch.int64)
    rank[_falling(log_density)] = torch.arange(n)
    delta = torch.empty(n, dtype=torch.float64)
    for rows, distance in _distances(points, points):
        denser = rank[None, :] < rank[rows, None]  # (block, n)
        separation = distance.masked_fill(~denser, torch.inf).amin(dim=1)
        delta[rows] = torch.where(rank[rows] == 0, distance.amax(dim=1), separation)

    peak = log_density + delta.log()  # log(rho x delta); -inf for a copy of a denser point
    centre = _falling(peak)[:centres]
    labels = torch.empty(n, dtype=torch.int64)
    for rows, distance in _distances(points, points[centre]):
        labels[rows] = distance.argmin(dim=1)
    labels[centre] = torch.arange(centres)  # also where two centres coincide
    return Clusters(
        labels=labels.numpy(),
        centre_index=centre.numpy(),
        log_density=log_density.numpy(),
        delta=delta.numpy(),
        neighbours=neighbours,
    )


def cluster_tokens(
    tokens: torch.Tensor, neighbours: int, centres: int, *, squared: bool = True
) -> Clusters:
    """DPC-kNN of some tokens (n, D), with at most n - 1 neighbours and n centres."""
    n = len(tokens)
    return dpc_knn(
        tokens, neighbours=min(neighbours, n - 1), centres=min(centres, n), squared=squared
    )


def _falling(values: torch.Tensor) -> torch.Tensor:
    """Indices (n,) from the highest value to the lowest, equal values by index.

    Two points that are each other's nearest neighbour have equal densities, but a matrix product
    may round d(i, j) and d(j, i) differently: values are compared on 12 digits.
    """
    scale = values[values.isfinite()].abs().max() if values.isfinite().any() else 0.0
    coarse = (values / scale * 1e12).round() if scale > 0 else values
    return torch.argsort(-coarse, stable=True)


def _distances(points: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (rows, Euclidean distances (block, m)) from `points` (n, D) to `targets` (m, D)."""
    n, m = len(points), len(targets)
    block = max(1, _BLOCK // m)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        own, other = points[rows].square().sum(dim=1), targets.square().sum(dim=1)
        norms = own[:, None] + other[None, :]  # (block, m)
        square = norms - 2 * points[rows] @ targets.T
        # What rounding leaves would make a copy lie 1e-7 away from its original.
        yield rows, square.masked_fill_(square <= 1e-13 * norms, 0.0).sqrt_()
