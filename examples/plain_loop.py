"""Pruning in a plain PyTorch loop: per-sample losses, a schedule over real steps, checkpoints that resume exactly.

    python examples/plain_loop.py [--keep 0.3] [--epochs 20] [--checkpoint FILE]

Stop it at any time; the same --checkpoint continues in the middle of the epoch.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import learning_rate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--keep", type=float, default=0.3)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--checkpoint", help="file to resume from, and to save to after every tenth step")
arguments = parser.parse_args()

# Your data, model and optimizer.
torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
train_set, test_set = TensorDataset(inputs[:1300], targets[:1300]), TensorDataset(inputs[1300:], targets[1300:])
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(train_set, batch_size=32, shuffle=True, drop_last=True)

# 1. A pruner, and your loader rebuilt around it.
pruner = dataprune.prune(len(train_set), keep=arguments.keep, epochs=arguments.epochs)
loader = dataprune.prune_loader(loader, pruner)

# 2. A learning-rate schedule over the steps really taken: pruned epochs have fewer.
steps = pruner.planned_steps(32, drop_last=True)
shape = learning_rate.cosine()
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / steps))

step = 0
parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "pruner": pruner}
if arguments.checkpoint and os.path.exists(arguments.checkpoint):
    saved = torch.load(arguments.checkpoint)
    step = saved.pop("step")
    for name, state in saved.items():
        parts[name].load_state_dict(state)
    print(f"resumed at step {step}, in epoch {pruner.epoch}")

for _ in range(pruner.epoch, arguments.epochs):
    for index, (x, y) in loader:  # 3. The positions of the samples come with the batch.
        logits = model(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = pruner.loss(index, losses, logits, y)  # 4. Records scores, returns the mean.
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        if arguments.checkpoint and step % 10 == 0:
            new = f"{arguments.checkpoint}.new"  # beside it: a rename within a folder replaces the file at once
            torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, new)
            os.replace(new, arguments.checkpoint)

with torch.inference_mode():
    right = (model(test_set.tensors[0]).argmax(dim=1) == test_set.tensors[1]).float().mean().item()
full = arguments.epochs * len(train_set)
print(
    f"test accuracy {right:.3f} after {step} of {steps} planned steps, {step * 32 / full:.0%} of a full run's samples"
)
