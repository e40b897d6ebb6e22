"""Pruning under Ray Train: workers share each epoch's selection, and continue from a checkpoint when one fails.

    python examples/ray_train.py [--workers 2] [--keep 0.3] [--epochs 20] [--storage FOLDER --name NAME]

The same --storage and --name continue from the last checkpoint there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ray.train
import torch
import torch.nn.functional as F
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import learning_rate
from dataprune.integrations.ray import prepare_data_loader


def train(config: dict) -> None:
    # Your data, model and optimizer.
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train_set = TensorDataset(inputs[:1300], targets[:1300])
    model = prepare_model(torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(train_set, batch_size=16, shuffle=True, drop_last=True)

    # 1. A pruner, alike in all workers, and your loader: pruned, and prepared by Ray.
    pruner = dataprune.prune(len(train_set), keep=config["keep"], epochs=config["epochs"])
    loader = prepare_data_loader(loader, pruner)

    # 2. A schedule over the steps that each worker really takes.
    context = ray.train.get_context()
    steps = pruner.planned_steps(16, world_size=context.get_world_size(), drop_last=True)
    shape = learning_rate.cosine()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / steps))

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "pruner": pruner}
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            for name, state in torch.load(Path(folder, "state.pt"), map_location="cpu").items():
                parts[name].load_state_dict(state)

    for _ in range(pruner.epoch, config["epochs"]):
        trained = 0
        for index, (x, y) in loader:  # 3. The positions of the samples come with the batch.
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            loss = pruner.loss(index, losses, logits, y)  # 4. Records scores, returns the mean.
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            trained += len(index)
        pruner.sync()  # 5. On all workers: then the state of any one of them is complete.
        with torch.inference_mode():
            right = (model(inputs[1300:]).argmax(dim=1) == targets[1300:]).float().mean().item()
        metrics = {
            "epoch": pruner.stats()["epoch"],
            "trained": trained,
            "step": scheduler.last_epoch,
            "accuracy": right,
        }
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if context.get_world_rank() == 0:
                torch.save({name: part.state_dict() for name, part in parts.items()}, Path(folder, "state.pt"))
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics | {"planned": steps}, checkpoint=saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--storage", default="runs", help="folder of the checkpoints; on a cluster one that all share")
    parser.add_argument("--name", default="ray_train")
    arguments = parser.parse_args()
    trainer = TorchTrainer(
        train,
        train_loop_config={"keep": arguments.keep, "epochs": arguments.epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers, use_gpu=torch.cuda.is_available()),
        run_config=ray.train.RunConfig(
            name=arguments.name,
            storage_path=str(Path(arguments.storage).resolve()),
            failure_config=ray.train.FailureConfig(max_failures=2),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit().metrics
    assert result is not None
    print(
        f"test accuracy {result['accuracy']:.3f} after {result['step']} of {result['planned']} planned steps, "
        f"{result['trained']} samples per worker in epoch {result['epoch']}"
    )


if __name__ == "__main__":
    main()
