"""What each rank does in the tests of several ranks; torchrun or accelerate launch starts it.

torchrun --nproc-per-node 2 hf_ranks.py FOLDER [naive] [plan] [full] [resume]
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":
    warnings.simplefilter("error")

import torch
import torch.distributed as dist
from integrations.hf_tiny import Items, Naive, Stock, bert, llama, train
from torch.utils.data import DataLoader

import dataprune

SIZE = 48


def emp() -> dataprune.Pruner:
    """48, 15, 15, 48 samples; 15 are one too few for two ranks."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, anneal=0.25)


def naive(folder: Path) -> Any:
    """Each rank selects its share, and accelerate shares that among the ranks again."""
    ours = train(Naive, pruner=dataprune.full(SIZE, epochs=1), rank_local=True, num_train_epochs=1, folder=folder)
    return ours.epochs()


def sharded_twice(folder: Path) -> Any:
    """The same without a Trainer: what accelerate's own loader yields."""
    from accelerate import Accelerator

    pruner = dataprune.full(SIZE, epochs=1)
    loader = Accelerator(cpu=True).prepare(
        DataLoader(list(range(SIZE)), batch_size=8, sampler=dataprune.PruneSampler(pruner))
    )
    return [batch.tolist() for batch in loader]


def plan(folder: Path) -> Any:
    pruner, selected = emp(), {}
    select = pruner.select
    pruner.select = lambda epoch: selected.setdefault(epoch, select(epoch))  # type: ignore[method-assign]
    ours = train(pruner=pruner, folder=folder)
    return {
        "epochs": ours.epochs(),
        "selected": [selected[epoch].index.tolist() for epoch in range(4)],
        "steps": ours.state.global_step,
        "rate": ours._get_learning_rate(),
        "scored": int(pruner.book.score.isfinite().sum()),
        "samples": ours.column("samples_trained"),
    }


def infobatch(folder: Path) -> Any:
    ours = train(pruner=dataprune.infobatch(SIZE, keep=0.5, epochs=4), folder=folder)
    return {"epochs": ours.epochs(), "steps": ours.state.global_step, "rate": ours._get_learning_rate()}


def online(folder: Path) -> Any:
    """Four rows of every 16, on each rank."""
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    whole = train(pruner=dataprune.online.memory(0.25), folder=folder, model=bert(dropout=0.1), **options)
    checkpoint = str(folder / "checkpoint-3")
    model = bert(dropout=0.1)
    again = train(pruner=dataprune.online.memory(0.25), folder=folder, resume=checkpoint, model=model, **options)
    return {
        "epochs": whole.epochs(),
        "seen": [ids for _, ids in again.seen] == [ids for _, ids in whole.seen[3:]],
        "weights": all(map(torch.equal, again.model.parameters(), whole.model.parameters())),
    }


def full(folder: Path) -> Any:
    """Losses of the stock Trainer beside ours; with two ranks the two sum the same samples in another order."""
    results = {}
    for average in (True, False):
        for build, labels in ((bert, "class"), (llama, "language")):
            options = {
                "train_sampling_strategy": "sequential", "average_tokens_across_devices": average, "folder": folder,
                "gradient_accumulation_steps": 2, "num_train_epochs": 2, "learning_rate": 1e-3, "optim": "sgd",
            }  # fmt: skip
            stock = train(Stock, pruner=None, model=build(), data=Items(labels=labels), **options)
            ours = train(pruner=dataprune.full(SIZE, epochs=2), model=build(), data=Items(labels=labels), **options)
            results[f"{labels} {average}"] = (ours.column("loss"), stock.column("loss"))
    return results


def resume(folder: Path) -> Any:
    options = {"folder": folder, "save_strategy": "steps", "save_steps": 1, "seed": 3}
    whole = train(pruner=emp(), model=bert(dropout=0.1), **options)
    results = {}
    for at in (2, 3, 4, 6):
        checkpoint = str(folder / f"checkpoint-{at}")
        again = train(pruner=emp(), model=bert(dropout=0.1), resume=checkpoint, **options)
        state, expected = again.pruner.state_dict(), whole.pruner.state_dict()
        results[str(at)] = {
            "seen": [ids for _, ids in again.seen] == [ids for _, ids in whole.seen[at:]],
            "weights": all(map(torch.equal, again.model.parameters(), whole.model.parameters())),
            "scores": torch.equal(state["score"], expected["score"]) and torch.equal(state["owner"], expected["owner"]),
        }
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, results = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        results[name] = globals()[name](out / name)
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
