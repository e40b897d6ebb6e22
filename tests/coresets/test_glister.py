"""Glister against a loop over a real last layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_gradients import problem, shares, stored
from torch import Tensor

from dataprune import coresets


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_glister_is_a_loop_over_a_real_last_layer(every: int, balance: str, step: float) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = torch.randn(3, 5, generator=generator, dtype=torch.float64)  # the bias is the last column

    def data(size: int) -> tuple[Tensor, Tensor]:
        return (
            torch.randn(size, 4, generator=generator, dtype=torch.float64),
            torch.randint(3, (size,), generator=generator),
        )

    def error(h: Tensor, y: Tensor, layer: Tensor) -> Tensor:
        return (h @ layer[:, :4].T + layer[:, 4]).softmax(1) - torch.nn.functional.one_hot(y, 3)

    (h, y), (h_val, y_val) = data(30), data(20)
    errors, gradients = error(h, y, layer), stored(error(h, y, layer), h)
    selection = coresets.glister(
        errors,
        h,
        keep=0.4,
        labels=y,
        val_errors=error(h_val, y_val, layer),
        val_features=h_val,
        step=step,
        every=every,
        balance=balance,  # type: ignore[arg-type]
    )
    left = shares(y, 12) if balance == "class" else dict.fromkeys(range(3), 12)
    chosen: list[int] = []
    while len(chosen) < 12:
        gain = gradients @ stored(error(h_val, y_val, layer), h_val).mean(0)
        open_ = [i for i in np.argsort(-gain).tolist() if i not in chosen and left[int(y[i])] > 0]
        for i in open_[: min(every, 12 - len(chosen))]:
            if left[int(y[i])] > 0:
                left[int(y[i])] -= 1
                chosen.append(i)
                layer = layer - step * torch.from_numpy(gradients[i]).reshape(3, 5)
    assert selection.index.tolist() == sorted(chosen)


def test_glister_moves_the_validation_gradient() -> None:
    errors, features, labels = problem(5, 60)
    options = {"keep": 0.5, "labels": labels, "val_errors": errors[:20], "val_features": features[:20]}
    still = coresets.glister(errors, features, step=0.0, **options)
    assert not torch.equal(coresets.glister(errors, features, step=0.5, **options).index, still.index)


def test_glister_refuses_bad_validation_data() -> None:
    errors, features, labels = problem(0, 12)
    good = {"keep": 0.5, "labels": labels, "val_errors": errors, "val_features": features}
    for options, message in [
        ({"val_errors": errors[:, :2]}, "val_errors has 2 columns"),
        ({"val_features": features[:, :2]}, "val_features has 2 columns"),
        ({"val_errors": errors + 0.5}, "softmax"),
        ({"val_errors": errors[:4]}, "val_errors has 4 rows"),
        ({"every": 0}, "every"),
        ({"step": -1.0}, "step"),
        ({"balance": "all"}, "balance"),
    ]:
        with pytest.raises(ValueError, match=message):
            coresets.glister(errors, features, **{**good, **options})
