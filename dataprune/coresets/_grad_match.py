"""GradMatch: weighted samples whose gradients add up to the gradient of all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ..modules import has_bias
from ..selection import Selection
from . import budget
from .layer_gradients import CHUNK, check_gradients, match_classes, products, weighted_sum


def grad_match(
    errors: Float[Tensor, "n c"] | budget.Array,
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    penalty: float = 0.0,
    nonnegative: bool = True,
    balance: budget.Balance = "class",
    bias: bool | nn.Module = True,
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Keep the samples, with weights, whose weighted gradients add up to the sum of all gradients.

    Orthogonal matching pursuit: the sample whose gradient has the largest inner product with the residual is added (the
    largest in absolute value where weights may be negative), then all weights w are fitted again to minimise
    ‖Σ_kept w_i g_i − Σ_all g_i‖² + penalty·‖w‖². Gradients are those of the last layer, and never stored; a pick costs
    one pass over the features of its class, n·C·D multiplications, and k² for the weights. Beyond its inputs it needs,
    for the largest class of n samples and k kept, a copy of their rows, 16·k² bytes and the memory of a chunk.

    Args:
        penalty: λ, at least 0, on the scale of squared gradients, which shrink as a model learns: more than 0 takes
            weight from classes that are learned well. 0 was best or equal to the best on digits and MNIST, after 10
            and after 40 epochs (`benchmarks/grad_match_penalty.py`).
        nonnegative: no weight below 0, as in the paper's algorithm; False is plain matching pursuit, whose negative
            weights are unfit for training.
        balance: "class" matches each class separately, with its share of the places; "none" matches all at once.
    Returns:
        Positions in ascending order and the fitted weights. A weight is 0 where no other sample could lower the error;
        the places are filled nevertheless. Where all would be 0, as in a class without gradients, all are n / k.
    Source: GRAD-MATCH, Killamsetty et al. 2021, arXiv:2103.00123, orthogonal matching pursuit with the per-class
        last-layer gradients. Differs: no tolerance ends it early, so that all places are filled; λ is 0 by default,
        0.5 in the paper's code.
    """
    errors, features, labels = check_gradients(errors, features, labels)
    bias = has_bias(bias)
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty is the weight of the squared norm of the weights, at least 0, got {penalty}")
    (size, classes), width, item = errors.shape, features.shape[1], errors.element_size()
    budget.check_balance(balance, labels, size)

    def match(members: Tensor, places: int, _: Tensor) -> tuple[Tensor, Tensor]:
        chunk = min(CHUNK, len(members))
        need = item * ((classes + width) * (len(members) + places) + chunk * classes) + 16 * places**2
        need += 3 * 8 * classes * (width + 1) + 16 * len(members)
        budget.chunk_rows("grad_match", len(members), max_memory, fixed=need)
        return _pursue(errors[members], features[members], places, penalty, nonnegative, bias)

    return match_classes(match, labels, keep, seed, "proportional" if balance == "class" else "none")


def _pursue(
    errors: Tensor, features: Tensor, count: int, penalty: float, nonnegative: bool, bias: bool
) -> tuple[Tensor, Tensor]:
    """Run the matching pursuit; returns `count` places, in the order of picking, and their weights."""
    target = weighted_sum(errors, features, bias=bias)
    fit = Fit(count, penalty, nonnegative)
    picks: list[int] = []
    residual = target
    for _ in range(count):
        score = products(errors, features, residual)
        if not nonnegative:
            score.abs_()
        score[picks] = -torch.inf
        best = int(score.argmax())
        picks.append(best)
        chosen = torch.tensor(picks, device=errors.device)
        row = (errors[chosen] @ errors[best]).double() * (bias + (features[chosen] @ features[best]).double())
        fit.add(row.cpu(), float(products(errors[best : best + 1], features[best : best + 1], target)))
        weight = fit.weight().to(errors)
        residual = target - weighted_sum(errors[chosen], features[chosen], weight, bias=bias)
    weight = fit.weight().to(errors)
    if not bool(weight.any()):  # gradients of 0, or that add up to 0: all samples stand for the class alike
        weight.fill_(len(errors) / count)
    return torch.tensor(picks, device=errors.device), weight


class Fit:
    """Minimises ‖A w − b‖² + penalty·‖w‖² over w, or over w ≥ 0, given inner products only.

    A Cholesky factor grows with the columns in use. With w ≥ 0 it is the active set method of Lawson and Hanson,
    started from the weights before the new column. A column that depends on those in use gets weight 0. There are at
    most `capacity` columns.
    """

    def __init__(self, capacity: int, penalty: float, nonnegative: bool):
        self.penalty, self.nonnegative = penalty, nonnegative
        self.gram = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.target = torch.zeros(capacity, dtype=torch.float64)
        self.factor = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.used: list[int] = []  # columns with a row in the factor, in its order
        self.value = torch.zeros(capacity, dtype=torch.float64)
        self.size = 0

    def weight(self) -> Float[Tensor, " k"]:
        """Weights of the columns so far, in the order in which they were added."""
        return self.value[: self.size]

    def add(self, products: Float[Tensor, " k"], target: float) -> None:
        """Add a column, by its inner products with the columns before it and last with itself, and that with b."""
        column = self.size
        self.gram[column, : column + 1] = products
        self.gram[: column + 1, column] = products
        self.target[column] = target
        self.size += 1
        if self.nonnegative:
            self._descend()
        elif self._extend(column):
            self.value[self.used] = self._solve()

    def _descend(self) -> None:
        waiting = set(range(self.size)) - set(self.used)
        for _ in range(3 * self.size):  # a bound against rounding: it ends before
            use = torch.tensor(sorted(waiting), dtype=torch.int64)
            slope = self.target[use] - self.gram[use, : self.size] @ self.weight()
            tolerance = 1e-12 * self.target[: self.size].abs().max()
            if len(use) == 0 or float(slope.max()) <= tolerance:
                return
            column = int(use[slope.argmax()])
            waiting.discard(column)
            if not self._extend(column):
                continue
            while True:
                solution = self._solve()
                if bool((solution > 0).all()):
                    break
                before = self.value[self.used]
                falling = solution <= 0
                ratio = (before / (before - solution))[falling]
                moved = before + float(ratio.nan_to_num(0.0).min()) * (solution - before)
                moved[falling.nonzero().squeeze(1)[ratio.nan_to_num(0.0).argmin()]] = 0
                self.value[self.used] = moved.clamp_(min=0)
                removed = [used for used, value in zip(self.used, moved.tolist()) if value <= 0]
                self._rebuild([used for used in self.used if used not in removed])
                waiting.update(set(removed) - {column})  # the new one is not tried twice
                if not self.used:
                    return
            self.value[self.used] = solution

    def _extend(self, column: int) -> bool:
        """Add a row for `column` to the factor; False if the column depends on the others."""
        rank = len(self.used)
        square = self.gram[column, column] + self.penalty
        row = torch.zeros(0, dtype=torch.float64)
        if rank:
            side = self.gram[self.used, column][:, None]
            row = torch.linalg.solve_triangular(self.factor[:rank, :rank], side, upper=False)[:, 0]
        rest = float(square - row @ row)
        if rest <= 1e-12 * float(square):
            return False
        self.factor[rank, :rank] = row
        self.factor[rank, rank] = rest**0.5
        self.used.append(column)
        return True

    def _rebuild(self, columns: list[int]) -> None:
        self.used = columns
        rank = len(columns)
        part = self.gram[columns][:, columns] + self.penalty * torch.eye(rank, dtype=torch.float64)
        self.factor[:rank, :rank] = torch.linalg.cholesky(part)

    def _solve(self) -> Tensor:
        rank = len(self.used)
        return torch.cholesky_solve(self.target[self.used][:, None], self.factor[:rank, :rank])[:, 0]
