"""EMP in contrastive learning, and the other methods on NT-Xent losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dataprune
from dataprune import METHODS, Pruner, criteria
from dataprune.contrastive import SimCLR, Views, knn_accuracy, nt_xent

SIZE, EPOCHS, KEEP = 61, 16, 0.3
COUNT = 18


def signals(epoch: int, index: Tensor, dim: int = 4) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Made-up losses and features of two views."""
    generator = torch.Generator().manual_seed(epoch)
    losses = torch.rand(SIZE, generator=generator) * 5
    f_i, f_j = torch.randn(2, SIZE, dim, generator=generator).unbind()
    return losses[index], (f_i[index], f_j[index])


def slow_score(losses: Tensor, pair: tuple[Tensor, Tensor], beta: float) -> list[float]:
    """Eq. 13, sample by sample."""
    scores = []
    for loss, view, other in zip(losses.tolist(), pair[0].tolist(), pair[1].tolist(), strict=True):
        scores.append(loss - beta * math.sqrt(sum((a - b) ** 2 for a, b in zip(view, other, strict=True))))
    return scores


def images() -> Tensor:
    """Squares and crosses on noise: two classes that views keep apart."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 60, (SIZE, 1, 12, 12), generator=generator, dtype=torch.uint8)
    made[::2, :, 2:10, 2:10] = 250
    made[1::2, :, 5:7, :] = 250
    made[1::2, :, :, 5:7] = 250
    return made


def model() -> SimCLR:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 16))
    made = SimCLR(encoder, dim=8, features=16)
    torch.set_rng_state(state)
    return made


def train(pruner: Pruner, pictures: Tensor, network: SimCLR, *, projections: bool = False) -> list[float]:
    """The loop of the package's first page; mean loss of every epoch."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    views, means = Views(), []
    for epoch in range(pruner.epochs):
        total = []
        for index in pruner.batches(epoch, 8):
            features, z = network(*views(pictures[index], index, seed=0, epoch=epoch))
            losses = nt_xent(*z, reduction="none")
            loss = pruner.loss(index, losses, z if projections else features)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total.append(losses.detach())
        means.append(float(torch.cat(total).mean()))
    return means


# -- the criterion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0])
def test_score_is_loss_minus_beta_distance(beta: float) -> None:
    losses, pair = signals(0, torch.arange(20))
    wanted = torch.tensor(slow_score(losses, pair, beta))
    torch.testing.assert_close(criteria.loss_minus_distance(beta)(losses, pair, None), wanted)
    torch.testing.assert_close(criteria.loss_minus_distance(beta)(losses, list(pair), "unused"), wanted)


def test_beta_is_five_by_default() -> None:
    losses, pair = signals(0, torch.arange(20))
    default = criteria.loss_minus_distance()(losses, pair, None)
    assert torch.equal(default, criteria.loss_minus_distance(5.0)(losses, pair, None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_distances_of_nearby_views_are_taken_in_float32(dtype: torch.dtype) -> None:
    f_i = torch.full((2, 1000), 200.0, dtype=dtype)
    f_j = f_i.clone()
    f_j[1, 0] = 201
    score = criteria.loss_minus_distance(1.0)(torch.zeros(2), (f_i, f_j), None)
    assert score.tolist() == [0.0, -1.0]
    far = criteria.loss_minus_distance(1.0)(torch.zeros(2), (f_i * 0 - 3e4, f_i * 0 + 3e4), None)
    assert far.isfinite().all()  # as squares they overflow float16


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "NoneType"),
        (torch.zeros(6, 10), r"contrastive learning; for logits use `emp`"),
        (torch.zeros(2, 6, 10), r"\(f_i, f_j\)"),  # of length two, and yet no pair
        ((torch.zeros(6, 4),), "features of the two views"),
        ((torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(6, 4)), "features of the two views"),
        ((torch.zeros(6, 4), None), "features of the two views"),
        ((torch.zeros(6, 4), torch.zeros(6, 5)), r"\(6, 4\) and \(6, 5\)"),
        ((torch.zeros(5, 4), torch.zeros(5, 4)), "B = 6"),
        ((torch.zeros(6), torch.zeros(6)), r"\(B, D\)"),
        ((torch.zeros(6, 4).long(), torch.zeros(6, 4).long()), "floating point"),
    ],
)
def test_outputs_that_are_no_pair_raise(outputs, message: str) -> None:
    pruner = dataprune.emp_contrastive(SIZE, keep=KEEP, epochs=EPOCHS)
    with pytest.raises(ValueError, match=message):
        pruner.loss(torch.arange(6), torch.rand(6), outputs)


@pytest.mark.parametrize("beta", [math.nan, math.inf, None, True, "5"])
def test_wrong_beta_raises(beta) -> None:
    with pytest.raises(ValueError, match="beta"):
        dataprune.emp_contrastive(SIZE, keep=KEEP, epochs=EPOCHS, beta=beta)


# -- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [5.0, 0.5])
def test_selects_as_algorithm_two(beta: float) -> None:
    """A full first epoch, then the highest of the scores that training gave last; full again from epoch 14 of 16."""
    pruner = dataprune.emp_contrastive(SIZE, keep=KEEP, epochs=EPOCHS, beta=beta, anneal=0.125)
    scores: dict[int, float] = {}
    for epoch in range(EPOCHS):
        expected = set(range(SIZE))
        if 0 < epoch < 14:
            expected = set(sorted(scores, key=scores.__getitem__, reverse=True)[:COUNT])
        assert set(pruner.select(epoch).index.tolist()) == expected, f"epoch {epoch}"
        for index in pruner.batches(epoch, 8, drop_last=False):
            losses, pair = signals(epoch, index)
            pruner.loss(index, losses, pair)
            scores.update(zip(index.tolist(), slow_score(losses, pair, beta), strict=True))


def test_balance_gives_every_class_its_share() -> None:
    labels = torch.arange(SIZE) % 3
    pruner = dataprune.emp_contrastive(SIZE, keep=KEEP, epochs=EPOCHS, balance=labels)
    pruner.select(0)
    pruner.update(torch.arange(SIZE), *signals(0, torch.arange(SIZE)))
    assert torch.bincount(labels[pruner.select(1).index]).tolist() == [6, 6, 6]


@pytest.mark.parametrize("projections", [False, True])
def test_trains_an_encoder_whose_features_know_the_classes(projections: bool) -> None:
    pictures, network = images(), model()
    pruner = dataprune.emp_contrastive(SIZE, keep=0.5, epochs=12, anneal=0.125)
    means = train(pruner, pictures, network, projections=projections)
    assert means[-1] < means[0] - 0.1
    assert pruner.epoch_sizes() == [61] + [31] * 10 + [61]
    network.eval()
    with torch.no_grad():
        features = network.encoder(pictures / 255)
    labels = torch.arange(SIZE) % 2
    assert knn_accuracy(features[:40], labels[:40], features[40:], labels[40:], k=5) > 0.9


def test_a_scored_batch_adds_nothing_to_the_graph() -> None:
    pictures, network = images()[:8], model()
    index = torch.arange(8)
    features, z = network(*Views()(pictures, index, seed=0, epoch=0))
    pruner = dataprune.emp_contrastive(SIZE, keep=KEEP, epochs=EPOCHS)
    loss = pruner.loss(index, nt_xent(*z, reduction="none"), features)
    parameters = list(network.parameters())
    scored = torch.autograd.grad(loss, parameters, retain_graph=True)
    bare = torch.autograd.grad(nt_xent(*z), parameters)
    torch.testing.assert_close(scored, bare)


# -- the other methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "random", "rs2", "loss", "epsilon_greedy", "ucb", "infobatch"])
def test_other_methods_take_nt_xent_as_their_loss(name: str) -> None:
    pruner = METHODS[name](SIZE, keep=0.5, epochs=6)
    means = train(pruner, images(), model())
    assert all(math.isfinite(mean) for mean in means)
    assert means[-1] < means[0]
    sizes = (
        [SIZE] * 6
        if name == "full"
        else [SIZE if epoch == 0 and name not in ("random", "rs2") else 31 for epoch in range(6)]
    )
    assert name == "infobatch" or pruner.epoch_sizes() == sizes
    score = pruner.book.score
    assert score[~score.isnan()].min() >= 0  # the losses themselves


def test_infobatch_weighs_the_losses_of_its_survivors() -> None:
    pruner = dataprune.infobatch(SIZE, prune_probability=0.5, epochs=6)
    everything = torch.arange(SIZE)
    pruner.select(0)
    generator = torch.Generator().manual_seed(0)
    z_i = torch.randn(SIZE, 4, generator=generator)
    z_j = z_i + torch.rand(SIZE, 1, generator=generator) * torch.randn(SIZE, 4, generator=generator)
    losses = nt_xent(z_i, z_j, reduction="none")
    pruner.loss(everything, losses)
    selection = pruner.select(1)
    index, weight = selection.index, selection.weight
    assert set(weight.tolist()) == {1.0, 2.0}
    assert torch.equal(weight == 2, losses[index] < losses.mean())
    z = (z_i[index].requires_grad_(), z_j[index].requires_grad_())
    loss = pruner.loss(index, nt_xent(*z, reduction="none"))
    plain = weight * F.cross_entropy(*_logits(*z), reduction="none").view(2, -1).mean(0)
    torch.testing.assert_close(loss, plain.mean())
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(plain.mean(), z))


def _logits(z_i: Tensor, z_j: Tensor) -> tuple[Tensor, Tensor]:
    z = F.normalize(torch.cat([z_i, z_j]), dim=1)
    logits = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return logits, torch.arange(len(z)).roll(len(z_i))
