"""GRESO, MoPPS and the walk through shuffled epochs once more: a prompt at a time, on dictionaries and lists."""

from __future__ import annotations

import torch

from dataprune import hashing

SEEDS = {"order": 1 << 34, "pass": 1 << 35, "posterior": 1 << 36}


def number(seed: int, epoch: int, prompt: int) -> float:
    """In [0, 1), of one prompt in one epoch."""
    return float(hashing.uniform(seed + SEEDS["pass"], epoch, torch.tensor([prompt])))


class Order:
    """Prompts have their turn in shuffled epochs; what a step has goes to the end of an epoch begun within it."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, -1
        self.rest: list[int] = []
        self.step: set[int] = set()

    def next(self) -> int:
        while True:
            if not self.rest:
                self.epoch += 1
                hashes = hashing.bits(self.seed + SEEDS["order"], self.epoch, torch.arange(self.size)).tolist()
                order = sorted(range(self.size), key=hashes.__getitem__)
                self.rest = [i for i in order if i not in self.step] + [i for i in order if i in self.step]
            prompt = self.rest.pop(0)
            if prompt not in self.step:
                return prompt


class Greso:
    """One list of rewards a visit and prompt, as the paper tells it."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.order = Order(size, seed)
        self.visits: dict[int, list[list[float]]] = {i: [] for i in range(size)}
        self.p = {"easy": 0.5, "hard": 0.5}
        self.last: list[list[float]] = []
        self.skipped = self.explored = 0

    def kind(self, rewards: list[float]) -> str:
        if max(rewards) > min(rewards):
            return "varied"
        return "easy" if sum(rewards) / len(rewards) >= 0.5 else "hard"

    def record(self, ids: list[int], groups: list[list[float]]) -> None:
        for i, rewards in zip(ids, groups, strict=True):
            if rewards:
                self.visits[i].append(rewards)
                self.last.append(rewards)

    def skip(self, i: int) -> float:
        kinds = [self.kind(rewards) for rewards in self.visits[i]]
        if not kinds or kinds[-1] == "varied":
            return 0.0
        z = 0
        while z < len(kinds) and kinds[-1 - z] == kinds[-1]:
            z += 1
        return 1 - max(self.p[kinds[-1]] ** z, 0.01)

    def propose(self, count: int, refill: bool = False) -> list[int]:
        if not refill:
            self.order.step = set()
            if self.last and self.order.epoch > 0:
                for kind, target in (("easy", 0.25 / 3), ("hard", 0.25 * 2 / 3)):
                    share = sum(self.kind(rewards) == kind for rewards in self.last) / len(self.last)
                    moved = self.p[kind] - 0.01 if share >= target else self.p[kind] + 0.01
                    self.p[kind] = min(max(moved, 0.05), 0.95)
            self.last = []
        chosen: list[int] = []
        skipped: dict[int, int] = {}
        for _ in range(len(self.order.rest) + self.size):
            if len(chosen) == count:
                break
            i = self.order.next()
            u, skip = number(self.seed, self.order.epoch, i), self.skip(i)
            if u < skip:
                passes = 1
                while u < skip**passes:
                    passes += 1
                skipped.pop(i, None)
                skipped[i] = passes
                self.skipped += 1
            else:
                chosen.append(i)
                self.order.step.add(i)
        missing = count - len(chosen)
        left = [i for i in sorted(skipped, key=skipped.__getitem__) if i not in self.order.step]
        self.explored += missing
        self.skipped -= missing
        self.order.step |= set(left[:missing])
        return chosen + left[:missing]


class Mopps:
    """Beta(a, b) a prompt; `pool` in prompts, None for all."""

    def __init__(self, size: int, seed: int, decay: float, prior: tuple[float, float], pool: int | None):
        self.size, self.seed, self.decay, self.prior, self.pool = size, seed, decay, prior, pool
        self.belief = {i: prior for i in range(size)}
        self.order = Order(size, seed)
        self.round = 0

    def record(self, ids: list[int], groups: list[list[float]]) -> None:
        for i, rewards in zip(ids, groups, strict=True):
            if rewards:
                (a, b), (a0, b0) = self.belief[i], self.prior
                right = sum(rewards)
                a = self.decay * a + (1 - self.decay) * a0 + right
                b = self.decay * b + (1 - self.decay) * b0 + len(rewards) - right
                self.belief[i] = (a, b)

    def propose(self, count: int) -> list[int]:
        candidates = list(range(self.size))
        if self.pool is not None and self.pool * count < self.size:
            self.order.step, candidates = set(), []
            for _ in range(self.pool * count):
                candidates.append(self.order.next())
                self.order.step.add(candidates[-1])
        distance = {}
        for i in candidates:
            a, b = (torch.tensor([value], dtype=torch.float32) for value in self.belief[i])
            draw = hashing.beta(self.seed + SEEDS["posterior"], self.round, torch.tensor([i]), a, b)
            distance[i] = abs(float(draw) - 0.5)
        self.round += 1
        return sorted(candidates, key=distance.__getitem__)[:count]
