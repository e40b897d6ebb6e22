"""What jobs of joint pruning do besides training: forgetting counts, masks, and notes of how a model was pruned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from tiny_joint import grid
from torch import nn

from dataprune import network
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.data.augment import normalize
from dataprune.lab.sweeps.engines import Job, finished, perform
from dataprune.lab.sweeps.joint import stages
from dataprune.lab.training import run as training
from dataprune.lab.training import tasks


def test_scores_count_what_is_forgotten_between_the_ends_of_epochs(tmp_path: Path) -> None:
    """In dataset order, from right to wrong alone: what the published code gets wrong in two ways."""
    data, settings = tiny.data(), grid(epochs=6, lr=0.3).scoring(0)
    settings, right = replace(settings, epochs=6), []

    def look(model: nn.Module, line: Any) -> None:
        model.eval()
        with torch.no_grad():
            correct = [  # one at a time: each prediction is that of its own image, whatever the order
                int(model(normalize(image[None], data.mean, data.std)).argmax()) == int(label)
                for image, label in zip(data.train.images, data.train.labels)
            ]
        right.append(correct)
        model.train()

    training.run(settings, tmp_path / "plain", data=data, on_epoch=look)
    metrics = perform(Job("scoring", 0, settings, tmp_path / "scored", test=False, watch="forgetting"), data)
    scores = stages.forgotten(settings, tmp_path / "scored", data)
    history = np.array(right)
    forgotten = np.zeros(400)
    for before, after in pairwise(history):
        forgotten += before & ~after
    assert forgotten.max() >= 2  # or nothing is tested
    assert scores["forgetting"].tolist() == forgotten.tolist()
    never = ~history.any(axis=0)
    assert scores["forgetting_last"].tolist() == np.where(never, 6, forgotten).tolist()
    assert tiny.history(tmp_path / "plain") == tiny.history(tmp_path / "scored")  # looking changes nothing
    assert metrics.accuracy is None  # the test set was not read


def test_scores_are_of_predictions_in_evaluation_mode(tmp_path: Path) -> None:
    """By the running statistics of batch norm, which looking leaves as they are."""
    data, settings = tiny.data(), grid(model="small_cnn").scoring(0)
    model = tasks.of(settings, data).model()
    record, right = stages.watch("forgetting", model, settings, tmp_path, data), {True: [], False: []}
    inputs, dice = normalize(data.train.images, data.mean, data.std), torch.Generator().manual_seed(0)
    for epoch in range(settings.epochs):
        for weight in model.parameters():
            weight.data.normal_(generator=dice)
        state = {
            name: value.uniform_(0.5, 2, generator=dice).clone() for name, value in model.named_buffers() if value.ndim
        }
        record(epoch)
        assert model.training and all(torch.equal(model.get_buffer(name), value) for name, value in state.items())
        for training_mode in (False, True):
            with torch.no_grad():
                right[training_mode].append(model.train(training_mode)(inputs).argmax(1) == data.train.labels)
    forgotten = {mode: sum((a & ~b).int() for a, b in pairwise(history)) for mode, history in right.items()}
    counts = stages.forgotten(settings, tmp_path, data)["forgetting"].tolist()
    assert counts == forgotten[False].tolist() != forgotten[True].tolist()


@pytest.mark.parametrize("watched", ["forgetting", "accuracy"])
def test_a_process_that_waited_goes_on_where_the_other_was_killed(watched: Any, tmp_path: Path) -> None:
    """Both had begun to watch before either trained; the second trains the rest."""
    data, settings = tiny.data(), grid(epochs=4).scoring(0)
    settings = replace(settings, epochs=4)
    models = [tasks.of(settings, data).model() for _ in range(2)]
    first, second = (stages.watch(watched, model, settings, tmp_path, data) for model in models)
    for epoch in range(4):
        (first if epoch < 2 else second)(epoch)
    if watched == "accuracy":
        curve = stages.read_curve(tmp_path, 4)
        assert len({curve["before"], *curve["accuracy"]}) == 1  # nothing was trained
    else:
        assert set(stages.forgotten(settings, tmp_path, data)["forgetting"].tolist()) == {0.0}


def test_one_folder_is_of_one_pruning(tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings(model="mlp", method="full", keep=None)
    perform(Job("base", 0, settings, tmp_path / "trained", save_model=True), data)
    weights = tmp_path / "trained/model.safetensors"
    job = Job("base", 0, settings, tmp_path / "cell", weights=weights, prune=stages.Pruning(0.5))
    assert finished(job) is None
    record = perform(job, data)
    assert finished(job) == record
    other = replace(job, prune=stages.Pruning(0.6))
    for refuse in (finished, lambda job: perform(job, data)):
        with pytest.raises(UsageError, match="was pruned otherwise"):
            refuse(other)


def test_a_model_with_masks_goes_through_run(tmp_path: Path) -> None:
    """A resumed run is given a model with the same masks; their values are then the checkpoint's."""
    data, settings = tiny.data(), tiny.settings(method="full", keep=None, checkpoint_every=5)

    def masked() -> nn.Module:
        model = tasks.of(settings, data).model()
        network.prune(model, 0.5)
        return model

    training.run(settings, tmp_path / "whole", data=data, model=masked())
    step = training._Run._train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        taken: list[None] = []

        def stopped(self: Any, *batch: Any) -> None:
            taken.append(None)
            if len(taken) == 48:
                raise KeyboardInterrupt
            step(self, *batch)

        patch.setattr(training._Run, "_train_step", stopped)
        training.run(settings, tmp_path / "parts", data=data, model=masked())
    training.run(settings, tmp_path / "parts", data=data, model=masked())
    tiny.same_end(tmp_path / "whole", tmp_path / "parts")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        stages.load(tmp_path / "empty.safetensors", settings, data)
