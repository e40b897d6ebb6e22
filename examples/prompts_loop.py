"""GRPO in a plain loop that rolls out only prompts likely to teach something.

    python examples/prompts_loop.py [--policy greso] [--steps 300]

A prompt is a pair of numbers, its answer the last digit of their sum; a small network learned a fifth of the prompts
before. Compare `--policy uniform`, which rolls out all in turn, and `filter_after`, which throws groups without
variance away and rolls out others.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from dataprune import prompts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--policy", default="greso", choices=["greso", "mopps", "uniform", "filter_after"])
parser.add_argument("--steps", type=int, default=300)
arguments = parser.parse_args()

# Your prompts, model and optimizer.
torch.manual_seed(0)
pairs = torch.cartesian_prod(torch.arange(30), torch.arange(30))
answers = pairs.sum(dim=1) % 10


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.nn.Embedding(30, 32)
        self.out = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.out(self.numbers(pairs).flatten(1))


model = Network()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
known = torch.randperm(len(pairs))[: len(pairs) // 5]
for _ in range(40):
    F.cross_entropy(model(pairs[known]), answers[known]).backward()
    optimizer.step()
    optimizer.zero_grad()
before = model(pairs).softmax(dim=1)[torch.arange(len(pairs)), answers].mean().item()

# 1. The prompts, and who chooses among them.
chooser = prompts.Prompts(len(pairs), getattr(prompts, arguments.policy)())

optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(arguments.steps):
    losses: list[torch.Tensor] = []
    while len(losses) < 32:
        ids = chooser.propose(32 - len(losses), refill=bool(losses))  # 2. Which to roll out.
        likelihoods = model(pairs[ids]).log_softmax(dim=1)
        drawn = torch.multinomial(likelihoods.exp(), 8, replacement=True)  # 8 answers each: the rollout
        rewards = (drawn == answers[ids, None]).float()
        trained = chooser.record(ids, rewards)  # 3. What came of it; which groups to train on.
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)
        losses += list(-(advantages * likelihoods.gather(1, drawn)).mean(dim=1)[trained])
    optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    optimizer.step()

chooser.sync()
numbers = chooser.stats()
after = model(pairs).softmax(dim=1)[torch.arange(len(pairs)), answers].mean().item()
print(
    f"success {before:.2f} -> {after:.2f} in {arguments.steps} steps and {numbers['rollouts']} rollouts, "
    f"{numbers['no_variance']:.0%} of the groups without variance"
)
