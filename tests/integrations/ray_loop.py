"""Two workers of Ray Train; each writes what it trained to a file of its own.

python ray_loop.py OUT MODE ...
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.nn.functional as F
from ray.train.torch import TorchTrainer, prepare_model
from ray.train.torch import prepare_data_loader as ray_prepare
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune.integrations.ray import prepare_data_loader

SIZE, EPOCHS, KEEP, BATCH = 480, 4, 0.25, 8


def loop(config: dict[str, Any]) -> None:
    for mode in config["modes"]:
        train(mode, Path(config["out"]))


def train(mode: str, out: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 8, generator=generator)
    y = (x[:, 0] + torch.randn(SIZE, generator=generator) > 0).long()
    torch.manual_seed(0)
    model = prepare_model(torch.nn.Linear(8, 2))
    recipe = dataprune.infobatch if mode == "infobatch" else dataprune.emp
    pruner = recipe(SIZE, keep=KEEP, epochs=EPOCHS)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)
    if mode.startswith("naive"):
        loader = ray_prepare(dataprune.prune_loader(loader, pruner))
    else:
        loader = prepare_data_loader(loader, pruner)
    context = ray.train.get_context()
    progress = dataprune.learning_rate.Progress(pruner, BATCH, world_size=context.get_world_size(), drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"model": model, "optimizer": optimizer, "pruner": pruner, "progress": progress}
    record: dict[str, Any] = {"epochs": [], "selected": [], "error": None, "resumed": None}
    step = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder, "state.pt"))
        step, record["resumed"] = saved.pop("step"), saved["pruner"]["epoch"]
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    try:
        for epoch in range(pruner.epoch, EPOCHS):
            if mode == "naive and selected":
                pruner.select(epoch)
            record["epochs"].append([])
            for index, (inputs, targets) in loader:
                if not mode.startswith("naive"):  # it has no epoch to count in, and would say so
                    optimizer.param_groups[0]["lr"] = 0.1 * (1 - progress.step())
                logits = model(inputs)
                losses = F.cross_entropy(logits, targets, reduction="none")
                loss = pruner.loss(index, losses, logits, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                record["epochs"][-1] += index.tolist()
                if mode == "fails" and checkpoint is None and step == 33:  # the third batch of the second epoch
                    pruner.sync()
                    states = {name: part.state_dict() for name, part in parts.items()}
                    with tempfile.TemporaryDirectory() as folder:
                        torch.save({**states, "step": step}, Path(folder, "state.pt"))
                        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))
                    raise ConnectionError("lost")
            if not mode.startswith("naive"):
                record["selected"].append(pruner.select(epoch).index.tolist())
    except dataprune.PlanError as error:
        record["error"] = str(error)
    record |= {
        "steps": step,
        "lr": optimizer.param_groups[0]["lr"],
        "done": 0 if mode.startswith("naive") else progress.done,
    }
    record["weight"] = [value.flatten().tolist() for value in model.state_dict().values()]
    (out / f"{mode}-{context.get_world_rank()}.json").write_text(json.dumps(record))


def main() -> None:
    out, *modes = sys.argv[1:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    # the one that fails is started a second time, which takes a trainer of its own
    for number, together in enumerate([[mode for mode in modes if mode != "fails"], ["fails"]]):
        TorchTrainer(
            loop,
            train_loop_config={"modes": together, "out": out},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(
                name=str(number), storage_path=out, failure_config=ray.train.FailureConfig(max_failures=number)
            ),
        ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
