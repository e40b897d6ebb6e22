"""Data held as tensors on the device, without a loader, and a pruner composed by hand.

python examples/tensors.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dataprune import Pruner, criteria, policies, schedules

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
generator = torch.Generator().manual_seed(0)
x = torch.randn(10_000, 20, generator=generator).to(device)
y = (x[:, :3].sum(dim=1) > 0).long()

# What a recipe does in one line: a criterion scores, a policy selects, a schedule says how much.
pruner = Pruner(
    len(x),
    criteria.loss_plus_entropy(beta=1.0),
    policies.epsilon_greedy(0.2),
    schedules.linear(1.0, 0.1, epochs=10),
    epochs=10,
    smoothing=0.5,
)

model = torch.nn.Linear(20, 2).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(10):
    for index in pruner.batches(epoch, batch_size=100, device=device):
        logits = model(x[index])
        loss = pruner.loss(index, F.cross_entropy(logits, y[index], reduction="none"), logits, y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stats = pruner.stats()
    print(f"epoch {epoch}: kept {stats['reached_keep']:.0%}, never seen {stats['never_seen']}, loss {loss.item():.3f}")
