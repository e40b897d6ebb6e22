"""Accelerate on 30 % of the samples: a plain loop on one process or several.

    python examples/accelerate_loop.py [--keep 0.3] [--epochs 20] [--checkpoint FOLDER]
    torchrun --nproc-per-node 2 examples/accelerate_loop.py

The pruner shards the samples itself, so its loader is not given to accelerator.prepare. Stop it at any time; the same
--checkpoint continues in the middle of the epoch.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import learning_rate

BATCH = 32

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--keep", type=float, default=0.3)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--checkpoint", help="folder to resume from, and to save to after every tenth step")
arguments = parser.parse_args()

accelerator = Accelerator(cpu=not torch.cuda.is_available())
torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
train_set = TensorDataset(inputs[:1300], targets[:1300])
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(train_set, batch_size=BATCH, shuffle=True, drop_last=True)

# 1. A pruner, alike on every process, and your loader rebuilt around it: each process gets its share.
pruner = dataprune.prune(len(train_set), keep=arguments.keep, epochs=arguments.epochs)
loader = dataprune.prune_loader(loader, pruner)

# 2. A schedule over the steps really taken. Prepared, it would advance one step for each process.
steps = pruner.planned_steps(BATCH, world_size=accelerator.num_processes, drop_last=True)
shape = learning_rate.cosine()
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / steps))

# 3. Model and optimizer are prepared; the loader and the schedule are not.
model, optimizer = accelerator.prepare(model, optimizer)
accelerator.register_for_checkpointing(pruner, scheduler)
if arguments.checkpoint and os.path.isdir(arguments.checkpoint):
    accelerator.load_state(arguments.checkpoint)
    accelerator.print(f"resumed at step {scheduler.last_epoch}, in epoch {pruner.epoch}")

for _ in range(pruner.epoch, arguments.epochs):
    for index, (x, y) in loader:  # 4. The positions of the samples come with the batch.
        x, y = x.to(accelerator.device), y.to(accelerator.device)
        logits = model(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = pruner.loss(index, losses, logits, y)  # 5. Records scores, returns the mean.
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        if arguments.checkpoint and scheduler.last_epoch % 10 == 0:
            pruner.sync()  # on every process, before any of them saves
            accelerator.save_state(arguments.checkpoint)

with torch.inference_mode():
    logits = model(inputs[1300:].to(accelerator.device)).cpu()
accuracy = (logits.argmax(dim=1) == targets[1300:]).float().mean().item()
samples = scheduler.last_epoch * BATCH * accelerator.num_processes
accelerator.print(
    f"test accuracy {accuracy:.3f} after {scheduler.last_epoch} of {steps} planned steps, "
    f"{samples / (arguments.epochs * len(train_set)):.0%} of a full run's samples"
)
accelerator.end_training()
