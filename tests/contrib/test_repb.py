"""RePB, against the rule in plain Python, over batches and windows of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_under_test import signals

import dataprune
from dataprune import CheckpointError

SIZE = 60


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("options", [{"prune_probability": 0.5}, {"keep": 0.6}, {"keep": 0.05}])
def test_what_is_below_the_mean_of_its_window_is_dropped_and_the_rest_weighed(options: dict, window: int) -> None:
    epochs = 12
    pruner = dataprune.repb(SIZE, epochs=epochs, window=window, anneal=0.2, **options)
    losses, windows, selections = [0.0] * SIZE, [-1] * SIZE, []
    batches = 0
    for epoch in range(epochs):
        selection = pruner.select(epoch)
        index, weight = selection.index.tolist(), selection.weight.tolist()
        if 0 < epoch < 10:
            last = selections[-1]
            means = {w: np.mean([losses[i] for i in last if windows[i] == w]) for w in {windows[i] for i in last}}
            low = {i for i in range(SIZE) if i not in last or losses[i] < means[windows[i]] - 1e-6}
            assert set(range(SIZE)) - low <= set(index)
            count = int(options.get("keep", 0) * SIZE + 0.5)
            r = options.get("prune_probability", min((SIZE - count) / len(low), 0.99))
            assert abs(len(low & set(index)) - (1 - r) * len(low)) < 1
            if "keep" in options and r < 0.99:
                assert len(index) == count
            times = [sum(i in selected for selected in selections) for i in range(SIZE)]
            assert weight == pytest.approx([epoch / times[i] for i in index])
        else:
            assert index == list(range(SIZE)) and weight == [1.0] * SIZE
        selections.append(set(index))
        for batch in pruner.batches(epoch, 8, drop_last=False):
            new, logits, targets = signals(epoch, batch)
            assert pruner.loss(batch, new, logits, targets).item() == pytest.approx(
                np.mean([dict(zip(index, weight))[i] * loss for i, loss in zip(batch.tolist(), new.tolist())])
            )
            for sample, loss in zip(batch.tolist(), new.tolist()):
                losses[sample], windows[sample] = loss, batches // window
            batches += 1


def test_survivors_are_drawn_uniformly() -> None:
    hits, trials = np.zeros(20), 600
    for seed in range(trials):
        pruner = dataprune.repb(20, keep=0.75, epochs=4, seed=seed)
        pruner.select(0)
        pruner.update(torch.arange(20), torch.arange(20).float())  # one batch, ten below the mean
        hits[pruner.select(1).index.numpy()] += 1
    assert (hits[10:] == trials).all()
    assert hits[:10].sum() == 5 * trials
    assert np.abs(hits[:10] / trials - 0.5).max() < 4 * 0.5 / np.sqrt(trials)


def test_a_rank_has_windows_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = dataprune.contrib.loss_and_window(window=2)
    monkeypatch.setattr("dataprune.distributed.world_size", lambda: 3)
    monkeypatch.setattr("dataprune.distributed.rank", lambda: 1)
    numbers = [criterion(torch.zeros(2), None, None)[:, 1].tolist() for _ in range(4)]
    assert numbers == [[1, 1], [1, 1], [4, 4], [4, 4]]


def test_a_state_without_its_batches_is_refused() -> None:
    pruner = dataprune.repb(SIZE, keep=0.5, epochs=4)
    state = pruner.state_dict()
    del state["criterion.batches"]
    with pytest.raises(CheckpointError, match="no number of batches"):
        pruner.load_state_dict(state)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="give prune_probability, or keep, or budget"):
        dataprune.repb(SIZE, keep=0.5, prune_probability=0.5, epochs=4)
    with pytest.raises(ValueError, match=r"prune_probability is a probability in \[0, 1\)"):
        dataprune.repb(SIZE, prune_probability=1.0, epochs=4)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1"):
        dataprune.repb(SIZE, keep=0.5, epochs=4, window=0)
