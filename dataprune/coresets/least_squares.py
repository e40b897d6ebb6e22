"""Ridge regression with columns added one after another, and optionally nonnegative weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Fit:
    """Minimises ‖A w − b‖² + penalty·‖w‖² over w, or over w ≥ 0, given inner products only.

    A Cholesky factor grows with the columns in use. With w ≥ 0 it is the active set method of Lawson and Hanson,
    started from the weights before the new column. A column that depends on those in use gets weight 0.

    Args:
        capacity: columns at most.
        penalty: λ ≥ 0.
        nonnegative: w ≥ 0.
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
        """Add a column.

        Args:
            products: its inner products with the columns before it, and last with itself.
            target: its inner product with b.
        """
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
