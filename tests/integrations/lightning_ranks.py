"""What each rank does in the tests of several ranks: lightning_ranks.py FOLDER NAME ...

Lightning starts the second rank itself, by running this script again.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":
    warnings.simplefilter("error")

import torch
import torch.distributed as dist
from integrations.lightning_tiny import Tiny, annealed, every_step, growing, infobatch, train
from lightning.pytorch.strategies import DDPStrategy

import dataprune
from dataprune.pruner import Pruner


def run(pruner: Pruner, **options: Any) -> Tiny:
    return train(pruner, **({"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")} | options))


def selected(pruner: Pruner) -> dict[int, list[int]]:
    """What is selected, by epoch, while the pruner is used."""
    selections, select = {}, pruner.select

    def noting(epoch: int) -> dataprune.Selection:
        selection = select(epoch)
        selections[epoch] = selection.index.tolist()
        return selection

    pruner.select = noting  # type: ignore[method-assign]
    return selections


def outcome(module: Tiny, selections: dict[int, list[int]]) -> dict[str, Any]:
    return {
        "epochs": module.epochs(),
        "selected": [selections[epoch] for epoch in range(4)],
        "steps": module.trainer.global_step,
        "rate": module.rate(),
        "samples": float(module.trainer.callback_metrics["samples_trained"]),
    }


def naive(folder: Path) -> Any:
    """Lightning's default: a sampler of its own around the pruner's."""
    pruner = annealed()
    try:
        module = run(pruner, stock=True, use_distributed_sampler=True)
    except Exception:
        return traceback.format_exc(limit=-1)
    return module.epochs()


def refused(folder: Path) -> Any:
    try:
        run(annealed(), use_distributed_sampler=True)
    except ValueError as error:
        return str(error)
    return "no error"


def plan(folder: Path) -> Any:
    """48, 15, 15, 48 samples; 15 are one too few for two ranks."""
    pruner = annealed()
    selections = selected(pruner)
    return outcome(run(pruner), selections)


def grows(folder: Path) -> Any:
    pruner = growing()
    selections = selected(pruner)
    return outcome(run(pruner, accumulate_grad_batches=2), selections)


def decides(folder: Path) -> Any:
    pruner = infobatch()
    selections = selected(pruner)
    return outcome(run(pruner), selections)


def resume(folder: Path) -> Any:
    whole_pruner = annealed()
    whole = run(whole_pruner, callbacks=(every_step(folder),))
    results = {}
    for at in range(1, whole.trainer.global_step):
        pruner = annealed()
        again = run(pruner, resume=folder / f"{at}.ckpt")
        state, expected = pruner.state_dict(), whole_pruner.state_dict()
        results[str(at)] = {
            "seen": again.seen == whole.seen[at:],
            "weights": all(map(torch.equal, again.state_dict().values(), whole.state_dict().values())),
            "scores": torch.equal(state["score"], expected["score"]) and torch.equal(state["owner"], expected["owner"]),
        }
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, name = Path(sys.argv[1]), sys.argv[2]
    result = globals()[name](out / name)
    rank = dist.get_rank() if dist.is_initialized() else 0
    (out / f"{name}{rank}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()
