"""k-means, read in chunks: of features as they are, or of their directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...coresets import budget
from ...schedules import check_whole

_ITERATIONS = 100
_RESOLVED = 1e-6  # squared distances below this share of the largest are what rounding leaves of 0


@dataclass(frozen=True)
class Rows:
    """Features in float32, centred or scaled to length one; read in chunks, never copied as a whole."""

    values: Float[Tensor, "n d"]
    mean: Float[Tensor, " d"] | None  # float64; None: rows are scaled to length one, and a row of zeros stays one

    @staticmethod
    def of(values: Float[Tensor, "n d"], rows: int, *, cosine: bool) -> Rows:
        """Rows with the mean of all, which is read in chunks of `rows`."""
        return Rows(values, None if cosine else budget.mean_of(values, torch.arange(len(values)), rows))

    def read(self, at: Int[Tensor, " b"] | slice) -> Float[Tensor, "b d"]:
        """Rows at some places, on the device of the values."""
        chunk = self.values[at.to(self.values.device) if isinstance(at, Tensor) else at].double()
        return (F.normalize(chunk, dim=1) if self.mean is None else chunk - self.mean).float()


@dataclass(frozen=True)
class Clusters:
    """A partition into clusters."""

    centroids: Float[Tensor, "k d"]  # in the space of `Rows`
    cluster: Int[Tensor, " n"]  # of each sample, on the CPU
    distance: Float[Tensor, " n"]  # of each sample to its centroid, 1 − cosine or Euclidean, on the CPU


def cluster(rows: Rows, count: int, chunk: int, seed: int) -> Clusters:
    """Lloyd's algorithm from `count` different samples drawn at random, until no sample changes its cluster.

    A cluster that loses all its samples starts again at the sample that is farthest from its centroid. After 100
    iterations the clusters are what they are.

    Args:
        chunk: rows read at a time.
    Source: spherical k-means (`rows.mean` is None) as Dhillon and Modha 2001, "Concept decompositions for large sparse
        text data"; else Lloyd 1982. Differs: nothing.
    """
    size, device = len(rows.values), rows.values.device
    generator = torch.Generator().manual_seed(seed)
    centroids = rows.read(torch.randperm(size, generator=generator)[:count])
    assigned = torch.full((size,), -1, device=device)
    for _ in range(_ITERATIONS):
        before, (assigned, gap) = assigned, _assign(rows, centroids, chunk)
        if torch.equal(before, assigned):
            break
        centroids = _means(rows, centroids, assigned, gap, chunk, generator)
    distance = torch.empty(size)
    for part in torch.arange(size).split(chunk):
        values, centres = rows.read(part), centroids[assigned[part]]
        apart = 1 - torch.linalg.vecdot(values, centres) if rows.mean is None else (values - centres).norm(dim=1)
        distance[part] = apart.cpu()
    return Clusters(centroids, assigned.cpu(), distance)


def _assign(rows: Rows, centroids: Tensor, chunk: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The nearest centroid of each row, and its squared distance to it, up to rounding."""
    size = len(rows.values)
    half = centroids.square().sum(1) / 2
    assigned = torch.empty(size, dtype=torch.int64, device=centroids.device)
    gap = torch.empty(size, device=centroids.device)
    for start in range(0, size, chunk):
        part = slice(start, start + chunk)
        values = rows.read(part)
        nearness, assigned[part] = torch.addmm(-half, values, centroids.T).max(dim=1)
        gap[part] = values.square().sum(1) - 2 * nearness
    return assigned, gap


def _means(
    rows: Rows, centroids: Tensor, assigned: Tensor, gap: Tensor, chunk: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Means of the clusters; an empty one takes a row that is far from its centroid, if there is one."""
    total = torch.zeros(centroids.shape, dtype=torch.float64, device=centroids.device)
    for start in range(0, len(assigned), chunk):
        part = slice(start, start + chunk)
        total.index_add_(0, assigned[part], rows.read(part).double())
    sizes = torch.bincount(assigned, minlength=len(centroids))
    empty = (sizes == 0).nonzero().squeeze(1)
    mean = total / sizes[:, None].clamp(min=1)
    result = (F.normalize(mean, dim=1) if rows.mean is None else mean).float()
    result[empty] = centroids[empty]
    if len(empty):
        shuffled = torch.randperm(len(gap), generator=generator).to(gap.device)  # equals are taken at random
        farthest, place = gap[shuffled].topk(min(len(empty), len(gap)))
        scale = float(total.square().sum(1).sqrt().div(sizes.clamp(min=1)).max()) ** 2 + float(gap.max())
        far = shuffled[place[farthest > _RESOLVED * scale]]
        result[empty[: len(far)]] = rows.read(far)
    return result


def count_of(clusters: int | None, size: int, default: int | None = None) -> int:
    """Check how many clusters `size` samples have; None means `default`, or else √size, rounded up."""
    if clusters is None:
        return min(size, math.ceil(math.sqrt(size)) if default is None else default)
    check_whole("clusters", clusters)
    if clusters > size:
        raise ValueError(f"clusters is how many clusters {size} samples have, at most as many, got {clusters}")
    return int(clusters)


def memory(size: int, width: int, clusters: int) -> tuple[int, int]:
    """Bytes that `cluster` needs, and that it needs for each row of a chunk."""
    return 56 * size + 32 * clusters * width, 28 * width + 8 * clusters
