"""Training on a coreset: weights, batch sizes, and a fixed selection through the pruner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pool import Pool

from dataprune import CheckpointError, Selection, coresets, methods

SIZE = 40
INDEX = torch.tensor([7, 3, 30, 21, 12, 39, 0, 5])


def selection_of(weight: torch.Tensor | None = None) -> Selection:
    return Selection.of(INDEX) if weight is None else Selection(INDEX, weight)


def test_weights_are_scores_with_mean_one_or_raw() -> None:
    scores = torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    kept = scores.numpy()[INDEX.numpy()]
    result = coresets.weighted(selection_of(), scores, variant="paper")
    np.testing.assert_allclose(result.weight.numpy(), kept / kept.mean(), rtol=1e-6)
    assert result.weight.mean().item() == pytest.approx(1) and torch.equal(result.index, INDEX)
    raw = coresets.weighted(selection_of(), scores, raw=True, variant="paper")
    np.testing.assert_array_equal(raw.weight.numpy(), kept)
    assert not result.by_batch and not raw.by_batch
    np.testing.assert_allclose(coresets.mean_one(selection_of(torch.full((8,), 5.0))).weight.numpy(), 1)


def test_the_loss_is_equation_13() -> None:
    scores = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    weighted = coresets.weighted(selection_of(), scores, raw=True, variant="paper")
    pruner = methods.fixed(SIZE, selection=weighted, epochs=3)
    for epoch in range(3):
        for batch in pruner.batches(epoch, 4):
            losses = torch.rand(4)
            expected = sum(float(scores[i]) * float(loss) for i, loss in zip(batch, losses)) / 4
            assert pruner.loss(batch, losses).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("low", [0.0, -3.0])
def test_the_loss_is_the_official_one_for_a_batch_at_a_time(raw: bool, low: float) -> None:
    """Scores normalised over all samples by their range; the mean loss of a batch times the mean score of it."""
    generator = torch.Generator().manual_seed(1)
    scores = low + torch.rand(SIZE, generator=generator) ** 4
    scores[1], scores[2] = torch.nan, torch.inf  # not selected, and so without a part in it
    known = [float(score) for score in scores if math.isfinite(score)]
    normal = {int(i): (float(scores[i]) - min(known)) / (max(known) - min(known)) for i in INDEX}
    scale = 1.0 if raw else 8 / sum(normal.values())
    selection = coresets.weighted(selection_of(), scores, raw=raw)
    assert selection.by_batch and repr(selection) == "Selection(8 samples, weighted by batch)"
    pruner = methods.fixed(SIZE, selection=selection, epochs=3)
    seen = set()
    for epoch in range(3):
        for batch in pruner.batches(epoch, 3, drop_last=False):
            losses = torch.rand(len(batch), generator=generator, requires_grad=True)
            score = scale * sum(normal[int(i)] for i in batch) / len(batch)
            assert pruner.weight(batch).tolist() == pytest.approx([score] * len(batch), rel=1e-5)
            loss = pruner.loss(batch, losses)
            assert loss.item() == pytest.approx(score * losses.mean().item(), rel=1e-5)
            loss.backward()
            assert losses.grad is not None
            assert losses.grad.tolist() == pytest.approx([score / len(batch)] * len(batch), rel=1e-5)
            seen.add(round(score, 5))
    assert len(seen) > 3  # batches differ


def test_a_selection_weighted_by_batch_survives_files_states_and_copies(tmp_path: Path) -> None:
    selection = coresets.weighted(selection_of(), torch.arange(float(SIZE)))
    assert coresets.mean_one(selection).by_batch and not Selection.of(INDEX).by_batch
    selection.save(tmp_path / "a.safetensors", {"by_batch": False})  # what it is, not what it was told
    assert Selection.load(tmp_path / "a.safetensors").by_batch
    assert Selection.metadata(tmp_path / "a.safetensors")["by_batch"] is True
    each = Selection(selection.index, selection.weight)
    each.save(tmp_path / "b.safetensors", Selection.metadata(tmp_path / "a.safetensors"))
    assert not Selection.load(tmp_path / "b.safetensors").by_batch

    pruner = methods.fixed(SIZE, selection=selection, epochs=3)
    batches = list(pruner.batches(0, 4))
    pruner.loss(batches[0], torch.ones(4))
    state = pruner.state_dict()
    resumed = methods.fixed(SIZE, selection=selection, epochs=3)
    resumed.load_state_dict(state)
    (left,) = resumed.batches(0, 4)
    assert torch.equal(left, batches[1]) and resumed.select(0).by_batch
    assert torch.equal(resumed.weight(left), pruner.weight(left)) and len(pruner.weight(left).unique()) == 1
    with pytest.raises(CheckpointError, match=r"is 8 samples .* weighted by batch in the state and 8 samples"):
        methods.fixed(SIZE, selection=each, epochs=3).load_state_dict(state)
    with pytest.raises(CheckpointError, match="`by_batch` does not fit"):
        resumed.load_state_dict(state | {"by_batch": 1})
    plain = methods.fixed(SIZE, selection=each, epochs=3)
    plain.select(0)
    assert "by_batch" not in plain.state_dict()  # as in the states of earlier versions
    plain.load_state_dict(plain.state_dict())
    assert torch.equal(plain.weight(INDEX), each.weight)


def by_rank(rank: int, world_size: int) -> list[tuple[list[int], list[float]]]:
    pruner = methods.fixed(
        SIZE, selection=coresets.weighted(selection_of(), torch.arange(float(SIZE)), raw=True), epochs=1
    )
    return [(batch.tolist(), pruner.weight(batch).tolist()) for batch in pruner.batches(0, 2)]


@pytest.mark.slow
@pytest.mark.ddp
def test_the_batch_is_that_of_the_rank(pool: Pool) -> None:
    ranks = pool.run(by_rank, world_size=2)
    assert sorted(i for rank in ranks for batch, _ in rank for i in batch) == sorted(INDEX.tolist())
    for batch, weight in (pair for rank in ranks for pair in rank):
        assert weight == pytest.approx([sum(batch) / 2 / (SIZE - 1)] * 2)


def test_a_heavy_weight_is_warned_of() -> None:
    scores = torch.full((SIZE,), 1e-3)
    index = torch.arange(SIZE)
    assert coresets.weighted(Selection.of(index), scores, variant="paper").weight.max() == 1
    heavy = scores.index_fill(0, torch.tensor([3]), 0.8)
    with pytest.warns(UserWarning, match="weighs 38 times the mean"):
        coresets.weighted(Selection.of(index), heavy, variant="paper")
    coresets.weighted(Selection.of(index), heavy)  # over a batch it is levelled out


def test_scores_that_cannot_weight() -> None:
    variants: tuple[Literal["paper", "official"], ...] = ("paper", "official")
    for variant in variants:
        for wrong in (-1.0, torch.nan, torch.inf):
            equal = variant == "official" and wrong == -1
            with pytest.raises(
                ValueError, match="all scores are -1" if equal else "finite for all selected .* negative"
            ):
                coresets.weighted(selection_of(), torch.full((SIZE,), wrong), variant=variant)
    with pytest.raises(ValueError, match="all weights are 0"):
        coresets.weighted(selection_of(), torch.zeros(SIZE), variant="paper")
    with pytest.raises(ValueError, match="all weights are 0"):
        coresets.weighted(
            selection_of(), torch.zeros(SIZE).index_fill(0, torch.tensor([1]), 1.0)
        )  # none of it selected
    with pytest.raises(ValueError, match=r"offical.*official"):
        coresets.weighted(selection_of(), torch.rand(SIZE), variant="offical")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number for each sample"):
        coresets.weighted(selection_of(), torch.ones(20))


def test_the_batch_size_follows_tdds() -> None:
    sizes = {keep: coresets.small_batch(128, keep) for keep in (1.0, 0.3, 0.21, 0.2, 0.15, 0.1, 0.05)}
    assert sizes == {1.0: 128, 0.3: 128, 0.21: 128, 0.2: 64, 0.15: 64, 0.1: 32, 0.05: 32}
    assert coresets.small_batch(2, 0.1) == 1
    assert coresets.small_batch(128, 1 - 0.9) == 32  # a hair below, or above, a tenth


def test_a_fixed_selection_is_trained_in_every_epoch_in_another_order() -> None:
    pruner = methods.fixed(SIZE, selection=selection_of(), epochs=4, seed=1)
    orders = [torch.cat(list(pruner.batches(epoch, 3, drop_last=False))) for epoch in range(4)]
    assert all(torch.equal(order.sort().values, INDEX.sort().values) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) > 1
    assert (
        pruner.epoch_sizes() == [8] * 4
        and pruner.planned_steps(3) == 12
        and pruner.planned_steps(3, drop_last=True) == 8
    )


def test_strategies() -> None:
    assert methods.fixed(SIZE, selection=selection_of(), epochs=10).epochs == 10
    longer = methods.fixed(SIZE, selection=selection_of(), epochs=10, strategy="P")
    assert longer.epochs == 50 and sum(longer.epoch_sizes()) == 10 * SIZE
    with pytest.raises(ValueError, match="strategy"):
        methods.fixed(SIZE, selection=selection_of(), epochs=10, strategy="Q")  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0.2, 1.0])
def test_weights_count_also_where_all_is_kept_and_after_a_resume(keep: float) -> None:
    index = torch.arange(round(keep * SIZE))
    selection = Selection(index, torch.linspace(0, 2, len(index)))
    pruner = methods.fixed(SIZE, selection=selection, epochs=3)
    pruner.select(0)
    resumed = methods.fixed(SIZE, selection=selection, epochs=3)
    resumed.load_state_dict(pruner.state_dict())
    for tested in (pruner, resumed):
        assert torch.equal(tested.select(0).weight, selection.weight)
        assert tested.loss(index, torch.ones(len(index))).item() == pytest.approx(1)
    other = methods.fixed(SIZE, selection=Selection(index, torch.ones(len(index))), epochs=3)
    with pytest.raises(CheckpointError, match="other arguments"):
        other.load_state_dict(pruner.state_dict())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection.of(torch.tensor([0, 40])), "positions 0 to 40, the dataset 40 samples"),
        (Selection.of(torch.tensor([-1, 4])), "positions -1 to 4"),
        (Selection.of(torch.tensor([1, 1])), "only 1 different"),
        (Selection.of(torch.empty(0).long()), "0 positions"),
        (Selection(torch.tensor([1, 2]), torch.tensor([1.0, -1.0])), "not negative"),
        (Selection(torch.tensor([1, 2]), torch.tensor([1.0, torch.nan])), "finite"),
    ],
)
def test_selections_that_cannot_be_trained(selection: Selection, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.fixed(SIZE, selection=selection, epochs=2)


def test_what_the_file_says(tmp_path: Path) -> None:
    labels = torch.arange(SIZE) % 3
    data = torch.utils.data.TensorDataset(torch.rand(SIZE, 2), labels)
    path = tmp_path / "core.safetensors"
    selection_of().save(path, {"method": "mine"}, dataset=data, labels=labels)
    notes = Selection.metadata(path)
    assert notes["method"] == "mine" and notes["size"] == SIZE and set(notes["versions"]) == {"dataprune", "torch"}
    kept = [int((labels[INDEX] == name).sum()) for name in range(3)]
    assert notes["retention"] == [[0, kept[0], 14], [1, kept[1], 13], [2, kept[2], 13]]
    assert torch.equal(Selection.load(path, data).index, INDEX)
