"""The statistics of training dynamics as loops in float64 over whole trajectories, and runs to compare them on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataprune import dynamics
from dataprune.dynamics import Recorder, Statistic

# -- references: from the rows (t, C) of a sample's presentations, their epochs, its label and features (t, D) ---------


class Seen(NamedTuple):
    """All presentations of one sample."""

    z: np.ndarray  # (t, C) logits
    epochs: list[int]
    y: int
    h: np.ndarray  # (t, D)

    def before(self, until: int | None) -> Seen:
        kept = [i for i, epoch in enumerate(self.epochs) if until is None or epoch < until]
        return Seen(self.z[kept], [self.epochs[i] for i in kept], self.y, self.h[kept])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def error(row: np.ndarray, y: int) -> float:
    p = softmax(row)
    p[y] -= 1
    return math.sqrt(sum(v * v for v in p))


def lead(row: np.ndarray, y: int) -> float:
    return float(row[y] - max(row[c] for c in range(len(row)) if c != y))


def r_forgetting(seen: Seen, never: str, most: int) -> float:
    right = [int(np.argmax(row)) == seen.y for row in seen.z]
    if not any(right) and never == "last":
        return most
    return sum(right[t] and not right[t + 1] for t in range(len(right) - 1))


def r_el2n(seen: Seen, epochs: int = 10, reduce: str = "mean") -> float:
    values = [error(row, seen.y) for row in seen.before(epochs).z]
    if not values:
        return math.nan
    return values[-1] if reduce == "last" else float(np.mean(values))


def r_grand(seen: Seen) -> float:
    """The norm of the full outer product e ⊗ [h, 1], written out."""
    values = []
    for row, h in zip(seen.z, seen.h, strict=True):
        e = softmax(row)
        e[seen.y] -= 1
        values.append(np.linalg.norm(np.outer(e, [*h, 1.0])))
    return float(np.mean(values))


def r_aum(seen: Seen, space: str = "logits") -> float:
    return -float(np.mean([lead(row if space == "logits" else softmax(row), seen.y) for row in seen.z]))


def r_entropy(seen: Seen) -> float:
    return -sum(p * math.log(p) for p in softmax(seen.z[-1]) if p > 0)


def r_least_confidence(seen: Seen) -> float:
    return 1 - float(softmax(seen.z[-1]).max())


def r_margin(seen: Seen) -> float:
    second, first = sorted(softmax(seen.z[-1]))[-2:]
    return -(first - second)


def r_loss(seen: Seen) -> float:
    return -math.log(softmax(seen.z[-1])[seen.y])


def r_difficulty(seen: Seen, until: int | None = 30) -> float:
    p = [softmax(row)[seen.y] for row in seen.before(until).z]
    return 1 - sum(p) / len(p) if p else math.nan


def r_dyn_unc(seen: Seen, window: int = 10, until: int | None = None, difficulty: bool = False) -> float:
    p = [softmax(row)[seen.y] for row in seen.before(until).z]
    values = []
    for begin in range(len(p) - window + 1):
        part = p[begin : begin + window]
        middle = sum(part) / window
        deviation = math.sqrt(sum((value - middle) ** 2 for value in part) / (window - 1))
        values.append(deviation * (1 - middle) if difficulty else deviation)
    return float(np.mean(values)) if values else math.nan


def r_dual(seen: Seen, window: int = 10, until: int = 30) -> float:
    return r_dyn_unc(seen, window, until, difficulty=True)


def r_tdds(
    seen: Seen,
    window: int = 10,
    decay: float | None = 0.9,
    until: int | None = None,
    difference: str = "kl",
    magnitude: bool = True,
    variant: str = "paper",
) -> float:
    """Eq. 9 to 12 with all probabilities at hand, one window after another."""
    official = variant == "official"
    small = 1e-8 if official else 0.0
    kept = seen.before(until)
    p = [softmax(row) for row in kept.z]
    y = seen.y
    scores = []
    for begin in range(len(p) - window + 1):
        delta = []
        for t in range(begin, begin + window - 1):
            if difference == "kl":
                terms = [
                    b * (math.log(b + small) - math.log(a + small))
                    for a, b in zip(p[t], p[t + 1], strict=True)
                    if b > 0
                ]
                delta.append(sum(abs(term) for term in terms) if official and magnitude else sum(terms))
            elif difference == "ce":
                delta.append(math.log(p[t + 1][y] + small) - math.log(p[t][y] + small))
        if difference == "el2n":
            delta = [error(kept.z[t], y) for t in range(begin, begin + window)]
        if magnitude:
            delta = [abs(term) for term in delta]
        middle = sum(delta) / len(delta)
        squares = sum((term - middle) ** 2 for term in delta)
        scores.append(math.sqrt(squares) if official else squares)
    if not scores:
        return math.nan
    if decay is None:
        return float(np.mean(scores))
    total = 0.0
    for score in scores:
        total = decay * score + (1 - decay) * total
    return total


Reference = Callable[[Seen], float]
TDDS: list[dict[str, Any]] = [
    {"window": window, "decay": decay, "difference": difference, "magnitude": magnitude, "variant": variant}
    for window, decay in ((4, 0.9), (3, None))
    for difference in ("kl", "ce", "el2n")
    for magnitude in (True, False)
    for variant in ("paper", "official")
]
ROWS: dict[str, tuple[Statistic, Reference]] = {
    "el2n": (dynamics.el2n(), r_el2n),
    "el2n of 3": (dynamics.el2n(epochs=3), lambda seen: r_el2n(seen, 3)),
    "el2n, last of 3": (dynamics.el2n(3, "last"), lambda seen: r_el2n(seen, 3, "last")),
    "grand": (dynamics.grand(), r_grand),
    "aum": (dynamics.aum(), r_aum),
    "aum of probabilities": (dynamics.aum("probabilities"), lambda seen: r_aum(seen, "probabilities")),
    "entropy": (dynamics.entropy(), r_entropy),
    "least confidence": (dynamics.least_confidence(), r_least_confidence),
    "margin": (dynamics.margin(), r_margin),
    "loss": (dynamics.loss(), r_loss),
    "difficulty": (dynamics.difficulty(), r_difficulty),
    "difficulty until 3": (dynamics.difficulty(until=3), lambda seen: r_difficulty(seen, 3)),
    "difficulty of all": (dynamics.difficulty(until=None), lambda seen: r_difficulty(seen, None)),
    "dyn_unc": (dynamics.dyn_unc(), r_dyn_unc),
    "dyn_unc of 4": (dynamics.dyn_unc(window=4), lambda seen: r_dyn_unc(seen, 4)),
    "dual": (dynamics.dual(), r_dual),
    "dual of 3 until 7": (dynamics.dual(window=3, until=7), lambda seen: r_dual(seen, 3, 7)),
    "tdds": (dynamics.tdds(), r_tdds),
    "tdds until 6": (dynamics.tdds(4, until=6), lambda seen: r_tdds(seen, 4, until=6)),
    "tdds, decay 1": (dynamics.tdds(4, decay=1.0), lambda seen: r_tdds(seen, 4, 1.0)),
} | {
    f"tdds {number}": (dynamics.tdds(**options), lambda seen, options=options: r_tdds(seen, **options))
    for number, options in enumerate(TDDS)
}
FORGETTING = {"forgotten": dynamics.forgetting(), "forgotten, zero": dynamics.forgetting(never="zero")}


# -- runs ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Whole trajectories: epochs of batches of positions, and what a model said of them."""

    z: Tensor  # (T, N, C)
    y: Tensor  # (N,)
    h: Tensor  # (T, N, D)
    batches: list[list[Tensor]]  # positions

    @property
    def size(self) -> int:
        return len(self.y)


def a_run(
    epochs: int = 14, size: int = 12, classes: int = 5, *, seed: int = 0, drop: float = 0.0, batch: int = 5
) -> Run:
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(size, generator=draw)
        order = order[torch.rand(size, generator=draw) >= drop]
        batches.append(list(order.split(batch)) if len(order) else [])
    return Run(
        2 * torch.randn(epochs, size, classes, generator=draw),
        torch.randint(0, classes, (size,), generator=draw),
        torch.randn(epochs, size, 3, generator=draw),
        batches,
    )


def feed(recorder: Recorder, run: Run, epochs: range | None = None) -> Recorder:
    for epoch in epochs or range(len(run.batches)):
        for index in run.batches[epoch]:
            recorder.update(index, run.z[epoch, index], run.y[index], run.h[epoch, index])
        recorder.end_epoch()
    return recorder


def trajectories(run: Run) -> list[Seen]:
    rows: list[list[tuple[int, int]]] = [[] for _ in range(run.size)]
    for epoch, batches in enumerate(run.batches):
        for index in batches:
            for position in index.tolist():
                rows[position].append((epoch, position))
    z, h = run.z.double().numpy(), run.h.double().numpy()
    return [
        Seen(
            np.array([z[epoch, n] for epoch, n in presented]).reshape(-1, z.shape[2]),
            [epoch for epoch, _ in presented],
            int(run.y[n]),
            np.array([h[epoch, n] for epoch, n in presented]).reshape(-1, h.shape[2]),
        )
        for n, presented in enumerate(rows)
    ]


def everything(size: int, **options: Any) -> Recorder:
    return Recorder(size, {name: statistic for name, (statistic, _) in ROWS.items()} | FORGETTING, **options)


def check_all(run: Run, scores: dict[str, Tensor], *, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    seen = trajectories(run)
    most = max((len(trajectory.epochs) for trajectory in seen), default=0)
    wanted = {
        name: [reference(trajectory) if trajectory.epochs else math.nan for trajectory in seen]
        for name, (_, reference) in ROWS.items()
    }
    wanted["forgotten"] = [
        r_forgetting(trajectory, "last", most) if trajectory.epochs else math.nan for trajectory in seen
    ]
    wanted["forgotten, zero"] = [
        r_forgetting(trajectory, "zero", most) if trajectory.epochs else math.nan for trajectory in seen
    ]
    assert scores.keys() == wanted.keys()
    for name, score in scores.items():
        assert score.dtype == torch.float32 and score.shape == (run.size,)
        torch.testing.assert_close(
            score.double(),
            torch.tensor(wanted[name], dtype=torch.float64),
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
