"""The encoder and its projection."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dataprune.contrastive import SimCLR


class Encoder(nn.Module):
    """Features of known width, with batch norm."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x)


def pair(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 1, 2, 2, generator=generator), torch.randn(batch, 1, 2, 2, generator=generator) + 3


def test_gives_features_and_projections_of_both_views() -> None:
    model = SimCLR(Encoder(), dim=3).eval()
    x_i, x_j = pair()
    (f_i, f_j), (z_i, z_j) = model(x_i, x_j)
    for x, f, z in ((x_i, f_i, z_i), (x_j, f_j, z_j)):
        first, _, last = model.projection
        torch.testing.assert_close(f, model.encoder(x))
        wanted = torch.relu(f @ first.weight.T + first.bias) @ last.weight.T + last.bias
        torch.testing.assert_close(z, wanted)
        assert f.shape == (5, 6) and z.shape == (5, 3)


def test_a_linear_projection_has_no_hidden_layer() -> None:
    model = SimCLR(Encoder(), dim=3, projection="linear").eval()
    (f_i, _), (z_i, _) = model(*pair())
    (head,) = model.projection
    assert sum(weight.numel() for weight in model.projection.parameters()) == 6 * 3 + 3
    torch.testing.assert_close(z_i, f_i @ head.weight.T + head.bias)
    with pytest.raises(ValueError, match=r"linaer.*linear"):
        SimCLR(Encoder(), projection="linaer")  # type: ignore[arg-type]


def test_both_views_are_one_batch_for_batch_norm() -> None:
    encoder = Encoder()
    model = SimCLR(encoder)
    x_i, x_j = pair()
    (f_i, f_j), _ = model(x_i, x_j)
    assert encoder.calls == 1
    norm = encoder.layers[2]
    assert isinstance(norm, nn.BatchNorm1d) and int(norm.num_batches_tracked or 0) == 1
    torch.testing.assert_close(torch.cat([f_i, f_j]), Encoder.forward(encoder, torch.cat([x_i, x_j])))
    assert f_i.mean(0).abs().max() > 0.1  # neither view is centred by itself
    torch.testing.assert_close(torch.cat([f_i, f_j]).mean(0), torch.zeros(6), rtol=0, atol=1e-5)


def test_features_keep_their_values_where_the_projection_works_in_place() -> None:
    (f_i, _), _ = (model := SimCLR(Encoder()).eval())(*pair())
    torch.testing.assert_close(f_i, model.encoder(pair()[0]))


def test_widths() -> None:
    model = SimCLR(Encoder())
    assert [tuple(p.shape) for p in model.projection.parameters()] == [(6, 6), (6,), (128, 6), (128,)]
    model = SimCLR(nn.Flatten(), dim=2, hidden=9, features=4)
    assert [tuple(p.shape) for p in model.projection.parameters()] == [(9, 4), (9,), (2, 9), (2,)]
    assert model(*pair())[1][0].shape == (5, 2)


def test_the_encoder_is_trained_through_the_projection() -> None:
    model = SimCLR(Encoder())
    _, (z_i, z_j) = model(*pair())
    (z_i - z_j).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass features=D"),
        ({"features": 0}, "at least 1"),
        ({"features": 4, "dim": 0}, "dim"),
        ({"features": 4, "hidden": 0}, "hidden"),
        ({"features": 4, "dim": True}, "dim"),
    ],
)
def test_wrong_widths_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimCLR(nn.Flatten(), **options)


def test_an_encoder_of_other_features_raises() -> None:
    with pytest.raises(ValueError, match=r"\(10, 7\).*features=4"):
        SimCLR(nn.Flatten(), features=7)(*pair())
    with pytest.raises(ValueError, match="flatten"):
        SimCLR(nn.Identity(), features=4)(*pair())
    with pytest.raises(ValueError, match="differ in shape"):
        SimCLR(Encoder())(pair()[0], pair(4)[1])


@pytest.mark.parametrize(
    ("encoder", "features"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU()), 5),
        (nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4),
        (nn.Sequential(nn.Conv2d(3, 7, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten()), 7),
    ],
)
def test_the_width_is_found_where_it_can_be(encoder: nn.Module, features: int) -> None:
    (f_i, _), (z_i, _) = SimCLR(encoder, dim=2)(torch.rand(3, 3, 2, 2), torch.rand(3, 3, 2, 2))
    assert f_i.shape == (3, features) and z_i.shape == (3, 2)
