"""Runs that choose inside the batch: what they score, train and record, and that they resume exactly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dataprune import full, online
from dataprune.errors import UsageError
from dataprune.lab.data.named import Images
from dataprune.lab.training import choosing, optimizers, tasks
from dataprune.lab.training import run as training
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.glue import Language


def settings(name: str = "memory", **changes: Any) -> Settings:
    return tiny.settings(method=f"online:{name}", **{"model": "mlp", **changes})


@pytest.mark.parametrize("name", choosing.RECIPES)
def test_a_run_counts_what_it_scored_and_trained(name: str, tmp_path: Path) -> None:
    record = training.run(settings(name), tmp_path, data=tiny.data())
    steps = 4 * (400 // 53)  # super-batches of round(16 / 0.3)
    assert (record.method, record.steps, record.samples) == (f"online:{name}", steps, 16 * steps)
    assert record.forwarded_samples == 53 * steps and record.reached_keep == pytest.approx(16 / 53)
    history, counts = tiny.history(tmp_path), load_file(tmp_path / "selection_counts.safetensors")
    assert [line["selected"] for line in history] == [line["samples"] for line in history] == [112] * 4
    assert counts["selected"].sum() == 16 * steps and counts["selected"].max() <= 4
    assert counts["drawn"].equal(counts["selected"])
    assert history[-1]["never_seen"] == pytest.approx(float((counts["selected"] == 0).double().mean()))
    assert history[-1]["lr"] < 0.05 * 0.05  # the schedule is over real steps


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_is_the_plain_loop(bf16: bool, tmp_path: Path) -> None:
    """The super-batches are those of `full`, and a row is trained on the view that was scored."""
    own, data = settings("loss", schedule="constant", lr_warmup=0.0, bf16=bf16, option=("sample=true",)), tiny.data()
    training.run(own, tmp_path, data=data)
    task, images = tasks.of(own, data), data.train
    assert isinstance(images, Images)
    model = task.model().train()
    optimizer = optimizers.build(own, model.parameters())
    chooser, pruner = online.loss(0.3, sample=True, seed=own.seed), full(400, epochs=4, seed=own.seed)
    for epoch in range(4):
        for index in pruner.batches(epoch, 53):
            (x,), y = task.inputs(images.images[index], index, epoch), images.labels[index]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with chooser.scoring(model):
                    losses = F.cross_entropy(model(x).float(), y, reduction="none")
                rows, weight = chooser.choose(losses)
                logits = model(x[rows])
            pruner.update(index, losses)
            loss = (weight * F.cross_entropy(logits.float(), y[rows], reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = load_file(tmp_path / "model.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("memory", {"model": "small_cnn", "checkpoint_every": 3}),
        ("window", {"checkpoint_every": 3, "option": ("online:window.batches=5",)}),
        ("uniform", {"checkpoint_every": 4, "steps": 50, "count_forwards": True, "recalibrate_bn": 32}),
        ("loss", {"checkpoint_every": 5, "option": ("sample=true",), "workers": 1}),
    ],
)
def test_a_run_resumes_exactly(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.check_resume(settings(name, **changes), tiny.data(), tmp_path, 12, monkeypatch)


def test_scoring_counts_against_the_steps_where_told_so(tmp_path: Path) -> None:
    counted = training.run(settings(steps=50, count_forwards=True), tmp_path / "counted", data=tiny.data())
    cost = 1 + 53 / (3 * 16)
    assert counted.steps == int(50 / cost) and counted.samples == 16 * counted.steps
    rates = [line["lr"] for line in tiny.history(tmp_path / "counted")]
    assert rates[-1] < 0.05 * 0.05
    plain = training.run(settings(steps=20), tmp_path / "plain", data=tiny.data())
    assert plain.steps == 20 and plain.forwarded_samples == 20 * 53
    with pytest.raises(UsageError, match=r"--steps 60 are more than 4 epochs have \(28\)"):
        training.run(settings(steps=60, count_forwards=True), tmp_path / "more", data=tiny.data())


def ranked(rank: int, world_size: int, out: str) -> Any:
    return training.run(settings(batch_size=8), Path(out), data=tiny.data())


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_choose_equally_many(pool: Any, tmp_path: Path) -> None:
    first, second = pool.run(ranked, str(tmp_path), world_size=2)
    steps = 4 * (200 // 27)
    assert first == second and (first.steps, first.samples) == (steps, 16 * steps)
    assert first.forwarded_samples == 2 * 27 * steps
    assert load_file(tmp_path / "selection_counts.safetensors")["selected"].sum() == first.samples


def test_texts_lose_the_padding_that_no_chosen_row_needs() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    taken = Language.take(SimpleNamespace(), {"input_ids": 5 * mask, "attention_mask": mask}, torch.tensor([1, 2]))  # type: ignore[arg-type]
    assert taken["input_ids"].tolist() == [[5, 5], [5, 0]] and taken["attention_mask"].shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 0}, "online:memory: every batch is chosen alike, from the first on: leave --warmup and --anneal"),
        ({"anneal": 0.1}, "leave --warmup and --anneal out"),
        ({"keep": None, "budget": 0.5}, "--keep says what is trained of a super-batch"),
        ({"statistics": "el2n"}, "statistics need every sample"),
        ({"method": "online:excess"}, "online:excess needs a reference model"),
        ({"method": "online:memori"}, "unknown online recipe 'memori'"),
        ({"option": ("beta=2",)}, "unknown option of online:memory 'beta'"),
        ({"option": ("sample=3", "distribution=gaussian")}, "entropy of a Gaussian can be negative"),
        ({"keep": 0.03}, "the training set keeps 400 of 400 samples per rank, fewer than one super-batch of 533"),
        ({"task": "contrastive"}, "contrastive learning"),
        ({"task": "glue/stsb", "model": "x", "shift": 0, "flip": False}, "online:memory reads classes"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        own = tiny.settings(**changes) if "method" in changes else settings(**changes)
        training.run(own, tmp_path, data=tiny.data())
