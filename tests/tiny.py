"""A data set and settings on which a whole run takes a tenth of a second."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dataprune.lab.data.named import Data, Images
from dataprune.lab.training import run as training
from dataprune.lab.training.settings import Settings

SIZE = 400


def data(*, val: int = 0) -> Data:
    """Four classes that a model can tell apart; the last `val` samples are the validation split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SIZE, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = (images.float().mean(dim=(1, 2, 3)) > 127.5).long() + 2 * (images[:, 0, 0, 0] > 127).long()
    part = Images(images, labels)
    at = torch.arange(SIZE)
    validation = part.subset(at[SIZE - val :]) if val else None
    train = part.subset(at[: SIZE - val])
    return Data("tiny", train, validation, part.subset(at[:50]), list("abcd"), (1, 8, 8), (0.5,), (0.3,))


def settings(**changes: Any) -> Settings:
    given = dict(
        model="small_cnn", method="emp", keep=0.3, epochs=4, batch_size=16, shift=1, flip=True, lr=0.05, device="cpu"
    )
    return Settings(**(given | changes))


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def same_end(first: Path, second: Path) -> None:
    """Both runs ended with the same weights, history and selections, to the last bit."""
    for name in ("model.safetensors", "selection_counts.safetensors", "trajectories.safetensors"):
        actual, expected = load_file(first / name), load_file(second / name)
        assert actual.keys() == expected.keys()
        for entry in actual:
            assert torch.allclose(actual[entry], expected[entry], rtol=0, atol=0, equal_nan=True), entry
    assert (first / "history.jsonl").read_text() == (second / "history.jsonl").read_text()


def check_resume(settings: Settings, data: Data, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in `cut`, interrupted at a step and resumed, ends as one in `whole` that was not."""
    training.run(settings, out / "whole", data=data)
    train_step, steps = training._Run._train_step, itertools.count(1)

    def interrupted(self: Any, *batch: Any) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt
        train_step(self, *batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training._Run, "_train_step", interrupted)
        training.run(settings, out / "cut", data=data)
    training.run(settings, out / "cut", data=data)
    same_end(out / "whole", out / "cut")
