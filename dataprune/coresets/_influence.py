"""Dataset pruning by influence: leave out samples whose effects on the last layer cancel out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from ..errors import check_known
from ..modules import has_bias
from ..schedules import check_whole
from ..selection import Selection
from . import budget
from .layer_gradients import CHUNK, check_gradients, probabilities

_BLOCK = 64  # right-hand sides that conjugate gradients solve for at once
_SHORT = 256  # candidates re-scored after every step, at least
_AHEAD = 16  # greedy steps before the full candidate set is re-scored, at most


def influence(
    errors: Float[Tensor, "n c"] | budget.Array,
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    damping: float = 0.01,
    epsilon: float | None = None,
    every: int = 1,
    solver: Literal["kronecker", "conjugate"] = "kronecker",
    bias: bool | nn.Module = True,
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Leave out the samples whose influences on the last layer nearly cancel out.

    The influence of a sample is I_i = −H⁻¹ g_i / N, with g_i its gradient and H the Hessian of the mean loss plus
    `damping` on the diagonal; leaving samples out moves the optimum by −Σ I_i, to first order. Samples are left out one
    after another, each time the one that makes ‖Σ I_i‖ smallest.

    "kronecker" approximates H by its diagonal in the eigenbasis of a Kronecker factorisation: the second moment of the
    features times the mean of diag(p) − p pᵀ. It needs 3·N·(C + D) values and (C + D)² for the eigenvectors.
    "conjugate" solves for every sample by conjugate gradients with products of H: exact, at N·iterations·4·N·C·D
    multiplications and N·C·(D + 1) values, for small problems. Neither forms H.

    Args:
        damping: above 0; the weight decay that the layer was trained with is a natural choice.
        epsilon: leave out samples as long as ‖Σ I_i‖ ≤ epsilon, at least 0, but keep at least the fraction `keep`.
        every: samples left out before all samples are scored again. With 1 every step takes the best of all, at up to
            N·C·D multiplications (50,000 samples of ten classes with 512 features: minutes). With more it takes the
            best of those that were best at the last scoring (N / 32, at least 256 and four times `every`), for larger
            datasets.
        solver: method for H⁻¹ g, "kronecker" or "conjugate".
    Returns:
        Ascending positions with weight one; more of them than `keep` asks for if epsilon stops earlier.
    Source: DP, Yang et al. 2023, arXiv:2205.09329: influence of leaving a set out, and its two problems, the largest
        set within ε and the best set of a given size. Differs: last layer only; the set is built greedily; damping is
        this library's, as the Hessian of softmax is singular.
    """
    errors, features, labels = check_gradients(errors, features, labels)
    if epsilon is not None and not epsilon >= 0:
        raise ValueError(f"epsilon is the largest norm of the summed influences, at least 0, got {epsilon}")
    check_whole("every", every)
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping must be above 0, or the Hessian of softmax has no inverse, got {damping}")
    check_known(solver, ("kronecker", "conjugate"), what="solver")
    (size, classes), item, bias = errors.shape, errors.element_size(), has_bias(bias)
    least, width = budget.count_of(size, keep), features.shape[1] + bias
    chunk = item * min(CHUNK, size) * (classes + width)
    need = item * (3 * size * (classes + width) + 4 * classes * width) + 8 * 4 * (classes**2 + width**2) + 2 * chunk
    need += item * _AHEAD * (2 * size + classes * (3 * width + min(CHUNK, size)))
    if solver == "conjugate":
        need += item * (2 * size * classes * width + min(_BLOCK, size) * classes * (6 * width + 4 * size))
    budget.chunk_rows(f"influence with solver={solver!r}", size, max_memory, fixed=need)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    samples = influences(errors[order], features[order], labels[order], damping, solver, bias)
    out = _cancel(samples, size - least, epsilon, every)
    kept = torch.ones(size, dtype=torch.bool, device=labels.device)
    kept[order[out]] = False
    return Selection.of(kept.nonzero().squeeze(1).cpu())


class Influences(NamedTuple):
    """Influences I_i = (left_i right_iᵀ) ∘ scale, each a (C, D + 1) matrix in some orthonormal basis.

    In the eigenbasis of a Kronecker factorisation `left` and `right` are errors and features, and `scale` the inverse
    eigenvalues over −N. Influences as they are stand flattened in `right`, with a single column of ones on the left.
    """

    left: Float[Tensor, "n c"]
    right: Float[Tensor, "n d+1"]
    scale: Float[Tensor, "c d+1"]

    def squares(self) -> Float[Tensor, " n"]:
        """Squared norms."""
        square = self.scale.square()
        parts = zip(self.left.split(CHUNK), self.right.split(CHUNK))
        return torch.cat([((left.square() @ square) * right.square()).sum(1) for left, right in parts])

    def dots(self, totals: Float[Tensor, "m c d+1"]) -> Float[Tensor, "m n"]:
        """Inner products of all influences with each of `totals`."""
        scaled = (totals * self.scale).flatten(0, 1)
        result = totals.new_empty(len(totals), len(self.left))
        for start in range(0, len(self.left), CHUNK):
            part = slice(start, start + CHUNK)
            mapped = (scaled @ self.right[part].T).unflatten(0, totals.shape[:2])
            torch.sum(mapped.mul_(self.left[part].T), 1, out=result[:, part])
        return result

    def of(self, position: int) -> Float[Tensor, "c d+1"]:
        """One influence."""
        return self.left[position][:, None] * self.right[position] * self.scale

    def take(self, index: Int[Tensor, " m"]) -> Influences:
        """Those at `index`."""
        return self._replace(left=self.left[index], right=self.right[index])


def influences(
    errors: Tensor, features: Tensor, labels: Tensor, damping: float, solver: str = "kronecker", bias: bool = True
) -> Influences:
    """Compute the influence of every sample on the last layer; without a bias it has D columns in place of D + 1."""
    size = len(errors)
    p = probabilities(errors, labels, "errors")
    right = torch.cat([features, features.new_ones(size, int(bias))], dim=1)
    # the basis in float64: its eigenvalues span many orders of magnitude
    moment = _gram(right) / size
    curvature = torch.diag(p.double().mean(0)) - _gram(p) / size
    basis = (torch.linalg.eigh(curvature)[1].to(errors), torch.linalg.eigh(moment)[1].to(errors))
    turned = right @ basis[1]
    diagonal = p @ basis[0].square() - (p @ basis[0]).square()
    # the diagonal of H in the eigenbasis, not the product of eigenvalues: exact where both differ
    eigenvalues = diagonal.clamp_(min=0).T @ turned.square() / size
    inverse = 1 / (eigenvalues + damping)
    if solver == "kronecker":
        return Influences(errors @ basis[0], turned, inverse / -size)
    solved = _conjugate(errors, right, p, damping, (inverse, *basis)).flatten(1)
    return Influences(solved.new_ones(size, 1), solved, solved.new_full((1, solved.shape[1]), -1 / size))


def _conjugate(
    errors: Tensor, right: Tensor, p: Tensor, damping: float, known: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, "n c d+1"]:
    """H⁻¹ g for all samples by conjugate gradients, with the Kronecker factorisation as preconditioner."""
    inverse, first, second = known
    tolerance = 1e-10 if errors.dtype == torch.float64 else 1e-5
    result = errors.new_empty(len(errors), errors.shape[1], right.shape[1])

    def hessian(v: Tensor) -> Tensor:
        logits = v @ right.T  # (b, c, n)
        inner = (logits * p.T).sum(1, keepdim=True)
        return ((logits - inner).mul_(p.T) @ right).div_(len(p)).add_(v, alpha=damping)

    def precondition(v: Tensor) -> Tensor:
        return first @ ((first.T @ v @ second) * inverse) @ second.T

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    for start in range(0, len(errors), _BLOCK):
        part = slice(start, start + _BLOCK)
        rest = errors[part][:, :, None] * right[part][:, None, :]
        goal = tolerance * dot(rest, rest).sqrt()
        solution = torch.zeros_like(rest)
        step = ready = precondition(rest)
        old = dot(rest, ready)
        for _ in range(20 + 10 * rest[0].numel()):
            if bool((dot(rest, rest).sqrt() <= goal).all()):
                break
            curved = hessian(step)
            length = (old / dot(step, curved)).nan_to_num_(0.0)  # 0 / 0 where the gradient is zero
            solution += length * step
            rest = rest - length * curved
            ready = precondition(rest)
            new = dot(rest, ready)
            step = ready + (new / old).nan_to_num_(0.0) * step
            old = new
        else:
            raise ValueError(f"conjugate gradients did not converge: raise damping, which is {damping}")
        result[part] = solution
    return result


def _cancel(samples: Influences, count: int, epsilon: float | None, every: int) -> Int[Tensor, " r"]:
    """Choose up to `count` positions greedily, so that the norm of the sum of their influences is small.

    Steps are taken among the few candidates that were best when all samples were last scored. One matrix product then
    scores all samples at each of these steps, and the steps at which another sample was better are taken back.
    """
    squares = samples.squares()
    if not bool(squares.isfinite().all()):
        raise ValueError("influences overflow: divide the features by a constant, or raise damping")
    index = torch.arange(len(squares), device=squares.device)
    total, change = samples.of(0) * 0, squares.clone()  # how adding each changes ‖total‖²; ∞ once left out
    out: list[Tensor] = []
    left, ahead = count, 1
    while left:
        alive = change < torch.inf
        size = int(alive.sum())
        if size < 0.75 * len(alive):
            samples, squares, index, change = samples.take(alive), squares[alive], index[alive], change[alive]
        candidates = change.topk(min(max(_SHORT, 4 * every, size // 32), size), largest=False).indices
        steps = min(left, len(candidates), every - 1 + ahead)
        picks, changes, totals = _step(samples.take(candidates), squares[candidates], total, steps, epsilon, every)
        if len(picks) == 0:
            break
        later = samples.dots(totals).mul_(2).add_(squares)
        later[:, change == torch.inf] = torch.inf
        others = later.index_fill(1, candidates, torch.inf).amin(1)
        unchecked = min(every, len(picks))  # steps taken without scoring the other samples
        wrong = (others[:-1] < changes[unchecked:]).nonzero()
        right = int(wrong[0]) if len(wrong) else len(totals) - 1
        picks, total, change = candidates[picks[: unchecked + right]], totals[right], later[right]
        change[picks] = torch.inf
        out.append(index[picks])
        left -= len(picks)
        ahead = max(1, ahead // 2) if len(wrong) else min(2 * ahead, _AHEAD)
    return torch.cat(out) if out else index[:0]


def _step(
    candidates: Influences, squares: Tensor, total: Tensor, steps: int, epsilon: float | None, every: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take up to `steps` greedy steps; the picks, the change of ‖total‖² by each, and the totals from `every` on."""
    squares, totals = squares.clone(), [total]
    picks: list[int] = []
    changes: list[Tensor] = []
    for _ in range(steps):
        change = candidates.dots(total[None])[0].mul_(2).add_(squares)
        best = int(change.argmin())
        total = total + candidates.of(best)
        if epsilon is not None and float(total.double().norm()) > epsilon:
            break
        picks.append(best)
        changes.append(change[best])
        totals = [*totals, total] if len(picks) > every else [total]
        squares[best] = torch.inf
    places = torch.tensor(picks, dtype=torch.int64, device=squares.device)
    return places, torch.stack(changes) if changes else squares[:0], torch.stack(totals)


def _gram(value: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Compute valueᵀ value in float64."""
    result = value.new_zeros(value.shape[1], value.shape[1], dtype=torch.float64)
    for part in value.split(CHUNK):
        wide = part.double()
        result += wide.T @ wide
    return result
