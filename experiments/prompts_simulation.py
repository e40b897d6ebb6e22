"""How many rollouts policies for prompts take to a given success, where success rates are known and drift by learning.

    nice python experiments/prompts_simulation.py --out runs/prompts_simulation
    dataprune pack runs/prompts_simulation --out experiments/results/prompts_simulation.json

Given again, it does what is missing.

A model of learning, not learning: prompt i is solved with probability sigmoid(skill + own_i - difficulty_i), where the
difficulties are normal. A step rolls out 256 prompts, 8 answers each; the skill grows by 0.02 times the mean standard
deviation of the rewards in the groups that are trained on, which is the scale of GRPO's gradient, and own_i by half of
its group's. So a prompt without variance teaches nothing, a batch of them dilutes the step, and what is learned from
one prompt helps all. It is the best case for skipping: no noise but the answers', no prompt that is worth more or less
than its variance. Rollouts until the mean success over all prompts is 60 %, from 40 %, interpolated between every tenth
step. A seed gives all policies the same difficulties; ratios to `uniform` are taken within seeds.

Policies: `uniform`; `filter_after`, which refills its step until 256 groups have variance; `greso` without and with
that; `mopps` over the next 8 * 256 prompts, as its paper's scripts have it, and over all (10,000 prompts alone).
About six minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from emp_figure4 import Ledger
from scipy import stats

from dataprune import files, prompts
from dataprune.prompts import Policy, Prompts

COUNT, ANSWERS = 256, 8
START, TARGET = 0.4, 0.6
RATE, OWN, EVERY = 0.02, 0.5, 10
PANELS = {  # prompts, spread of the difficulties
    "10,000 prompts": (10_000, 3.0),
    "100,000 prompts": (100_000, 3.0),
    "1,000,000 prompts": (1_000_000, 3.0),
    "10,000 prompts, wide": (10_000, 6.0),
}
ARMS: dict[str, Policy] = {
    "uniform": prompts.uniform(),
    "filter_after": prompts.filter_after(),
    "greso": prompts.greso(),
    "greso, filtered": prompts.greso(discards=True),
    "mopps, pool 8": prompts.mopps(pool=8),
    "mopps": prompts.mopps(),
}


class World:
    """Prompts of different difficulty, and a model whose skill grows."""

    def __init__(self, size: int, spread: float, seed: int):
        self.random = torch.Generator().manual_seed(seed)
        self.difficulty = spread * torch.randn(size, generator=self.random)
        self.own = torch.zeros(size)
        low, high = -50.0, 50.0
        while high - low > 1e-4:  # the skill at which the mean success is START
            self.skill = (low + high) / 2
            low, high = (self.skill, high) if self.success() < START else (low, self.skill)

    def success(self) -> float:
        return float(torch.sigmoid(self.skill + self.own - self.difficulty).mean())

    def roll_out(self, ids: torch.Tensor) -> torch.Tensor:
        rates = torch.sigmoid(self.skill + self.own[ids] - self.difficulty[ids])
        return (torch.rand(len(ids), ANSWERS, generator=self.random) < rates[:, None]).float()

    def train(self, ids: torch.Tensor, rewards: torch.Tensor) -> None:
        """Of what is trained on; fewer prompts than COUNT make a smaller step."""
        signal = rewards.std(dim=1, correction=0)
        self.own[ids] += OWN * signal
        self.skill += RATE * float(signal.sum()) / COUNT


def simulate(size: int, spread: float, policy: Policy, seed: int) -> dict[str, Any]:
    """One run: the rollouts until the target."""
    started = time.process_time()
    world, chooser = World(size, spread, seed), Prompts(size, policy, seed=seed)
    rollouts, steps = 0, 0
    before = (0, world.success())
    while True:
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        missing = COUNT
        while missing:
            ids = chooser.propose(missing, refill=bool(kept))
            rewards = world.roll_out(ids)
            good = chooser.record(ids, rewards)
            rollouts += rewards.numel()
            kept.append((ids[good], rewards[good]))
            missing -= int(good.sum())
        world.train(*map(torch.cat, zip(*kept, strict=True)))
        steps += 1
        if steps % EVERY:
            continue
        success = world.success()
        if success >= TARGET:
            share = (TARGET - before[1]) / (success - before[1])
            chooser.sync()
            numbers = chooser.stats()
            return {
                "rollouts": round(before[0] + share * (rollouts - before[0])),
                "steps": round(steps - EVERY * (1 - share)),
                "no_variance": round(numbers["no_variance"], 4),
                "epochs": round(rollouts / ANSWERS / size, 2),
                "cpu_seconds": round(time.process_time() - started, 2),
            }
        before = (rollouts, success)


def analyse(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and rollouts relative to those of `uniform` within seeds, with a 95 % t interval."""
    result: dict[str, Any] = {}
    for panel in PANELS:
        cell = {
            arm: {line["seed"]: line for line in lines.values() if (line["panel"], line["arm"]) == (panel, arm)}
            for arm in ARMS
        }
        for arm, of in cell.items():
            if not of:
                continue
            row: dict[str, Any] = {"seeds": len(of)}
            for name in ("rollouts", "steps", "no_variance", "epochs"):
                row[name] = round(statistics.fmean(line[name] for line in of.values()), 3)
            ratios = [
                of[seed]["rollouts"] / cell["uniform"][seed]["rollouts"] for seed in of if seed in cell["uniform"]
            ]
            row["to_uniform"] = interval(ratios)
            result[f"{panel}, {arm}"] = row
    return result


def interval(values: list[float]) -> list[float]:
    """Mean, and the 95 % interval of Student's t where there is one."""
    mean = statistics.fmean(values)
    reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return [round(mean, 4), round(mean - reach, 4), round(mean + reach, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollouts that policies for prompts take to a given success.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "going through all")
    settings = {
        "count": COUNT, "answers": ANSWERS, "start": START, "target": TARGET, "rate": RATE, "own": OWN, "every": EVERY,
        "panels": PANELS, "arms": {name: repr(policy) for name, policy in ARMS.items()},
    }  # fmt: skip
    ledger = Ledger(given.out / "runs.jsonl", settings)
    for seed in range(given.seeds):
        for panel, (size, spread) in PANELS.items():
            for arm, policy in ARMS.items():
                run = f"{panel}, {arm}, seed {seed}"
                if run in ledger.lines or (arm == "mopps" and size > 10_000):
                    continue
                ledger.add(run, panel=panel, arm=arm, seed=seed, **simulate(size, spread, policy, seed))
        print(f"seed {seed}", flush=True)
    result = analyse(ledger.lines)
    report = {**ledger.head, "result": result, "points": list(ledger.lines.values())}
    files.write_json(given.out / "prompts_simulation.json", report)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
