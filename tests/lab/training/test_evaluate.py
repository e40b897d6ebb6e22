"""Accuracy, and batch-norm statistics, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dataprune.lab.data.named import Images
from dataprune.lab.models import build
from dataprune.lab.training.evaluate import accuracy, batches, recalibrate_batch_norm

CPU = torch.device("cpu")


class AsItems(torch.utils.data.Dataset):
    """Streamed data, as far as evaluation sees it."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.images[position]


def sample(size: int = 30) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(3, (size,), generator=generator))


def prepare(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch_size", [7, 30, 512])
def test_accuracy_is_that_of_a_loop(streamed: bool, batch_size: int) -> None:
    data, model = sample(), build.build("small_cnn", (1, 8, 8), 3, seed=0)
    model.eval()
    right = [int(model(prepare(data.images[i : i + 1])).argmax()) == int(data.labels[i]) for i in range(len(data))]
    model.train()
    random = torch.get_rng_state()
    given = AsItems(data) if streamed else data
    evaluated = batches(given, CPU, prepare, batch_size=batch_size)  # type: ignore[arg-type]
    assert accuracy(model, evaluated) == sum(right) / 30
    assert torch.equal(torch.get_rng_state(), random)


def test_accuracy_changes_neither_statistics_nor_any_modules_mode() -> None:
    model = build.build("small_cnn", (1, 8, 8), 3, seed=0)
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy(model, batches(sample(), CPU, prepare))
    assert model.training and not frozen.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_recalibrated_statistics_are_the_mean_over_the_batches() -> None:
    torch_model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, momentum=0.1), nn.Linear(64, 3))
    norm = torch_model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        torch_model(torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    before = {name: value.clone() for name, value in torch_model.state_dict().items()}
    inputs = [prepare(images) for images in sample().images.split(10)]
    recalibrate_batch_norm(torch_model, iter(inputs))
    flat = torch.stack([batch.flatten(1) for batch in inputs])  # (batches, B, D)
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, flat.mean(dim=1).mean(dim=0))
    torch.testing.assert_close(norm.running_var, flat.var(dim=1).mean(dim=0))
    changed = {n for n, value in torch_model.state_dict().items() if not torch.equal(before[n], value)}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert norm.momentum == 0.1 and torch_model.training
    assert all(parameter.grad is None for parameter in torch_model.parameters())
