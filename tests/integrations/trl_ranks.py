"""What each rank does in the test of two ranks: torchrun --nproc-per-node 2 trl_ranks.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from integrations.trl_tiny import SIZE, build, greso

from dataprune.prompts import Prompts

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    options = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 8, "save_strategy": "steps",
        "save_steps": 4,
    }  # fmt: skip
    whole = build(out / "whole", Prompts(SIZE, greso(), seed=4), **options)
    whole.train()
    again = build(out / "again", Prompts(SIZE, greso()), **options)
    again.train(resume_from_checkpoint=str(out / "whole" / "checkpoint-4"))
    results = {
        "proposals": whole.noted.proposals,
        "records": whole.noted.records,
        "rows": whole.rows,
        "rewards": whole.rewards,
        "stats": whole.prompts.stats(),
        "resumed": again.noted.proposals,
    }
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
