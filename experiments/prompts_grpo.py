"""A tiny decoder trained by GRPO on the prompts that policies propose: success against rollouts and against seconds.

    nice python experiments/prompts_grpo.py --out runs/prompts_grpo
    dataprune pack runs/prompts_grpo --out experiments/results/prompts_grpo.json

Given again, it does what is missing.

Task: answers that a program can verify, of mixed difficulty: the last digit of a sum of two or three digits, two to
five digits sorted, one to five brackets closed. 1,000 prompts are trained on, 500 others are held out. A decoder of two
layers with 48 units, warm-started by 100 supervised steps of 64 fresh prompts, solves about a third of them. Then GRPO:
16 prompts a step, 8 answers each at temperature 1, reward 1 for the exact answer, advantages within groups, one update
for each batch, no KL term, AdamW at 5e-4 (chosen of 3e-4, 5e-4 and 1e-3 with `uniform` and `filter_after`, one seed).
No KV cache, so that rolling out is the larger part of the time, as it is for large models. Each run ends at 32,000
rollouts.

Success is that of the greedy answers, on all training prompts and on the held-out ones, at eight places of a run. CPU
seconds are those of proposing, rolling out and updating, evaluation left out. A seed gives all policies the same
prompts and the same warm start; differences to `uniform` and `filter_after` are taken within seeds. n: five seeds, 25
runs, about twelve minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from emp_figure4 import Ledger
from jaxtyping import Float, Int
from prompts_simulation import interval
from torch import Tensor, nn

from dataprune import files, prompts
from dataprune.prompts import Policy, Prompts

SYMBOLS = {symbol: number for number, symbol in enumerate("_.=sob0123456789([)]")}
PAD, END = SYMBOLS["_"], SYMBOLS["."]
ASKED, ANSWERED = 8, 6  # tokens of a prompt, padded on the left, and of an answer with its end
SETTINGS: dict[str, Any] = dict(
    train=1000, held_out=500, width=48, layers=2, heads=4, warm_steps=100, warm_batch=64, warm_lr=2e-3,
    count=16, answers=8, lr=5e-4, rollouts=32_000, evaluations=8,
)  # fmt: skip
ARMS: dict[str, Policy] = {
    "uniform": prompts.uniform(),
    "filter_after": prompts.filter_after(),
    "greso": prompts.greso(),
    "greso, filtered": prompts.greso(discards=True),
    "mopps, pool 8": prompts.mopps(pool=8),
}


# -- the task ----------------------------------------------------------------------------------------------------------


def problem(rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer."""
    kind = rng.choice("sob")
    if kind == "b":
        opened = [rng.choice("([") for _ in range(rng.randint(1, 5))]
        return "b" + "".join(opened), "".join({"(": ")", "[": "]"}[symbol] for symbol in reversed(opened))
    digits = [rng.randrange(10) for _ in range(rng.randint(2, 3 if kind == "s" else 5))]
    answer = [sum(digits) % 10] if kind == "s" else sorted(digits)
    return kind + "".join(map(str, digits)), "".join(map(str, answer))


def encoded(problems: list[tuple[str, str]]) -> Int[Tensor, "n t"]:
    rows = torch.full((len(problems), ASKED + ANSWERED), PAD)
    for row, (asked, answer) in zip(rows, problems, strict=True):
        asked = f"{asked}="
        row[ASKED - len(asked) : ASKED] = torch.tensor([SYMBOLS[symbol] for symbol in asked])
        row[ASKED : ASKED + len(answer) + 1] = torch.tensor([SYMBOLS[symbol] for symbol in f"{answer}."])
    return rows


def different(count: int, seed: int) -> Int[Tensor, "n t"]:
    """Prompts that all differ."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        asked, answer = problem(rng)
        found.setdefault(asked, answer)
    return encoded(list(found.items()))


# -- the model ---------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        parts = self.attention(self.before_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Decoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(SYMBOLS), width), nn.Embedding(ASKED + ANSWERED, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        self.out = nn.Linear(width, len(SYMBOLS), bias=False)

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        return self.out(self.layers(self.tokens(tokens) + self.places.weight[: tokens.shape[1]]))

    def log_likelihood(self, rows: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b a"], Float[Tensor, "b a"]]:
        """Of every token of the answers, and which tokens those are."""
        answers = rows[:, ASKED:]
        logits = self(rows[:, :-1])[:, ASKED - 1 :]
        return -F.cross_entropy(logits.transpose(1, 2), answers, reduction="none"), (answers != PAD).float()

    @torch.no_grad()
    def answer(self, asked: Int[Tensor, "b p"], draws: torch.Generator | None = None) -> Int[Tensor, "b t"]:
        """Prompts with their answers, drawn; the likeliest tokens without a generator."""
        rows, ended = asked, torch.zeros(len(asked), dtype=torch.bool)
        for _ in range(ANSWERED):
            logits = self(rows)[:, -1]
            token = (
                logits.argmax(1) if draws is None else torch.multinomial(logits.softmax(1), 1, generator=draws)[:, 0]
            )
            token = token.where(~ended, PAD)
            rows, ended = torch.cat([rows, token[:, None]], dim=1), ended | (token == END)
        return rows

    def success(self, problems: Int[Tensor, "n t"]) -> float:
        return float((self.answer(problems[:, :ASKED]) == problems).all(dim=1).float().mean())


def warm_started(seed: int) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(SETTINGS["width"], SETTINGS["layers"], SETTINGS["heads"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["warm_lr"])
    rng = random.Random(seed + 1000)
    for _ in range(SETTINGS["warm_steps"]):
        likelihood, real = model.log_likelihood(encoded([problem(rng) for _ in range(SETTINGS["warm_batch"])]))
        optimizer.zero_grad()
        (-(likelihood * real).sum() / real.sum()).backward()
        optimizer.step()
    return model


# -- GRPO --------------------------------------------------------------------------------------------------------------


class Clock:
    """CPU seconds by what they are spent on."""

    def __init__(self) -> None:
        self.seconds = {"proposing": 0.0, "rolling_out": 0.0, "updating": 0.0}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[what] += time.process_time() - started


def step(
    model: Decoder, optimizer: torch.optim.Optimizer, chooser: Prompts, train: Tensor, draws: Any, clock: Clock
) -> int:
    """One update on `count` groups; returns the rollouts it took."""
    missing, answers, taken = SETTINGS["count"], SETTINGS["answers"], 0
    rows, advantages = [], []
    while missing and taken < answers * len(train):  # or until every prompt is in the step
        with clock.on("proposing"):
            ids = chooser.propose(min(missing, len(train) - taken // answers), refill=bool(rows))
        with clock.on("rolling_out"):
            problems = train[ids].repeat_interleave(answers, dim=0)
            given = model.answer(problems[:, :ASKED], draws)
            rewards = (given == problems).all(dim=1).float().view(-1, answers)
        with clock.on("proposing"):
            good = chooser.record(ids, rewards)
        advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        rows.append(given.view(len(ids), answers, -1)[good])
        advantages.append(advantage[good])
        missing, taken = missing - int(good.sum()), taken + rewards.numel()
    if missing == SETTINGS["count"]:
        return taken
    with clock.on("updating"):
        likelihood, real = model.log_likelihood(torch.cat(rows).flatten(0, 1))
        loss = -(torch.cat(advantages).flatten()[:, None] * likelihood * real).sum() / real.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return taken


def train(policy: Policy, seed: int) -> dict[str, Any]:
    """One run: its curve, and what it took."""
    problems = different(SETTINGS["train"] + SETTINGS["held_out"], seed)
    problems = problems[torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed))]
    trained_on, held_out = problems.split([SETTINGS["train"], SETTINGS["held_out"]])
    model = warm_started(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["lr"], weight_decay=0.0)
    chooser, draws, clock = Prompts(len(trained_on), policy, seed=seed), torch.Generator().manual_seed(seed), Clock()
    curve: dict[str, list[float]] = {"rollouts": [], "seconds": [], "train": [], "held_out": []}
    rollouts, steps = 0, 0
    while True:
        if rollouts >= len(curve["rollouts"]) * SETTINGS["rollouts"] / SETTINGS["evaluations"]:
            curve["rollouts"].append(rollouts)
            curve["seconds"].append(round(sum(clock.seconds.values()), 3))
            curve["train"].append(round(model.success(trained_on), 4))
            curve["held_out"].append(round(model.success(held_out), 4))
        if rollouts >= SETTINGS["rollouts"]:
            break
        rollouts += step(model, optimizer, chooser, trained_on, draws, clock)
        steps += 1
    chooser.sync()
    numbers = {name: round(chooser.stats()[name], 4) for name in ("no_variance", "easy", "hard", "epoch")}
    return {"steps": steps, **numbers, **{name: round(at, 2) for name, at in clock.seconds.items()}, "curve": curve}


# -- what came out -----------------------------------------------------------------------------------------------------


def at(line: dict[str, Any], axis: str, place: float, of: str) -> float:
    """Success at a number of rollouts or seconds, interpolated."""
    return 100 * float(np.interp(place, line["curve"][axis], line["curve"][of]))


def mean_until(line: dict[str, Any], place: float, of: str) -> float:
    """Success averaged over the rollouts up to a place."""
    return statistics.fmean(at(line, "rollouts", place * (i + 0.5) / 100, of) for i in range(100))


def analyse(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Success in percent and its differences to `uniform` and `filter_after` within seeds, with a 95 % t interval.

    `final` is at as many rollouts, `average` up to there, `seconds` at the time that the first of a seed's runs ended.
    """
    table = {(line["arm"], line["seed"]): line for line in lines.values()}
    seeds = sorted({seed for arm, seed in table if all((name, seed) in table for name in ARMS)})
    ends = {seed: min(table[arm, seed]["curve"]["seconds"][-1] for arm in ARMS) for seed in seeds}
    result: dict[str, Any] = {}
    for arm in ARMS:
        runs = [table[arm, seed] for seed in seeds]
        row: dict[str, Any] = {"seeds": len(seeds)}
        for name in ("steps", "no_variance", "easy", "hard", "rolling_out", "updating", "proposing"):
            row[name] = round(statistics.fmean(line[name] for line in runs), 3)
        for of in ("train", "held_out"):
            row[f"{of} start"] = round(statistics.fmean(at(line, "rollouts", 0, of) for line in runs), 2)
            figures = {
                "final": {seed: {name: at(table[name, seed], "rollouts", SETTINGS["rollouts"], of) for name in ARMS}
                          for seed in seeds},
                "average": {seed: {name: mean_until(table[name, seed], SETTINGS["rollouts"], of) for name in ARMS}
                            for seed in seeds},
                "seconds": {seed: {name: at(table[name, seed], "seconds", ends[seed], of) for name in ARMS}
                            for seed in seeds},
            }  # fmt: skip
            for what, values in figures.items():
                row[f"{of} {what}"] = round(statistics.fmean(values[seed][arm] for seed in seeds), 2)
                for other in ("uniform", "filter_after"):
                    if arm != other:
                        pairs = [values[seed][arm] - values[seed][other] for seed in seeds]
                        row[f"{of} {what} minus {other}"] = interval(pairs)
        result[arm] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO of a tiny decoder on the prompts that policies propose.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=SETTINGS["rollouts"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order are other sums
    warnings.filterwarnings("ignore", "going through all")
    SETTINGS["rollouts"] = given.rollouts
    ledger = Ledger(given.out / "runs.jsonl", {**SETTINGS, "arms": {name: repr(arm) for name, arm in ARMS.items()}})
    for seed in range(given.seeds):
        for arm, policy in ARMS.items():
            run = f"{arm}, seed {seed}"
            if run not in ledger.lines:
                ledger.add(run, arm=arm, seed=seed, **train(policy, seed))
                print(run, ledger.lines[run]["curve"]["train"][-1], flush=True)
    result = analyse(ledger.lines)
    report = {**ledger.head, "result": result, "points": list(ledger.lines.values())}
    files.write_json(given.out / "prompts_grpo.json", report)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
