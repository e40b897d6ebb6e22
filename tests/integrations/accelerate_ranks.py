"""What each rank does in the tests of Accelerate: torchrun --nproc-per-node 2 accelerate_ranks.py FOLDER."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    warnings.simplefilter("error")

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import learning_rate

SIZE, BATCH = 48, 8


def annealed() -> dataprune.Pruner:
    """48, 15, 15, 48 samples; 15 are one too few for two ranks."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, anneal=0.25)


def run(
    *, prepare_loader: bool = False, prepare_scheduler: bool = False, resume: Any = None, folder: Any = None
) -> Any:
    """A run, and what it trained."""
    accelerator = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(SIZE, 10, generator=generator), torch.randint(3, (SIZE,), generator=generator))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = annealed()
    loader = dataprune.prune_loader(DataLoader(data, batch_size=BATCH, shuffle=True), pruner)
    steps, shape = pruner.planned_steps(BATCH, world_size=accelerator.num_processes), learning_rate.linear()
    scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(min(1, step / steps)))
    model, optimizer = accelerator.prepare(model, optimizer)
    if prepare_loader:
        loader = accelerator.prepare(loader)
    if prepare_scheduler:
        scheduler = accelerator.prepare(scheduler)
    accelerator.register_for_checkpointing(pruner, scheduler)
    if resume is not None:
        accelerator.load_state(str(resume))
    seen, selected, rates, step = [], [], [], 0
    for epoch in range(pruner.epoch, 4):
        selected.append(pruner.select(epoch).index.tolist())
        trained = []
        for index, (x, y) in loader:
            logits = model(x)
            loss = pruner.loss(index, F.cross_entropy(logits, y, reduction="none"), logits, y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            trained += index.tolist()
            rates.append(optimizer.param_groups[0]["lr"])
            step += 1
            if folder is not None:
                pruner.sync()
                accelerator.save_state(str(folder / str(step)))
        seen.append(trained)
    pruner.sync()
    return {
        "epochs": seen,
        "selected": selected,
        "rates": rates,
        "steps": step,
        "scored": int(pruner.book.score.isfinite().sum()),
        "weights": [value.tolist() for value in accelerator.unwrap_model(model).state_dict().values()],
    }


def prepared(folder: Path) -> Any:
    """The loader given to `prepare`, which shards it again."""
    try:
        run(prepare_loader=True)
    except dataprune.PlanError as error:
        return str(error)
    return "no error"


def twice(folder: Path) -> Any:
    """The schedule given to `prepare`, which goes on by a step for each rank."""
    return run(prepare_scheduler=True)["rates"]


def plan(folder: Path) -> Any:
    return run()


def resume(folder: Path) -> Any:
    whole, results = run(folder=folder), {}
    for at in range(1, 8):
        again = run(resume=folder / str(at))
        trained, before = [i for ids in again["epochs"] for i in ids], [i for ids in whole["epochs"] for i in ids]
        results[at] = {
            "seen": trained == before[len(before) - len(trained) :],
            "steps": again["steps"] == whole["steps"] - at,
            "weights": again["weights"] == whole["weights"],
            "rates": again["rates"] == whole["rates"][at:],
        }
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), Accelerator(cpu=True).process_index
    results = {name: globals()[name](out / name) for name in ("prepared", "twice", "plan", "resume")}
    (out / f"rank{rank}.json").write_text(json.dumps(results))
    time.sleep(1)  # gloo drops the last collective in a thread, which must not outlive the interpreter
    Accelerator(cpu=True).end_training()
