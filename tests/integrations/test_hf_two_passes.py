"""Two passes over a batch in the Trainer, as SAM makes them: both weighted, the first recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from integrations.hf_tiny import Items, Pruned, bert, train

import dataprune


class SAM(torch.optim.SGD):
    """Sharpness-aware minimization: gradients at the worst point near by, applied to the weights before it."""

    @torch.no_grad()
    def climb(self, rho: float = 0.05) -> None:
        grads = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        scale = rho / torch.stack([grad.norm() for _, grad in grads]).norm()
        for p, grad in grads:
            self.state[p]["climbed"] = grad * scale
            p.add_(self.state[p]["climbed"])
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if "climbed" in self.state[p]:
                    p.sub_(self.state[p].pop("climbed"))
        return super().step(closure)


class TwoSteps(Pruned):
    """The Trainer's step twice."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.optimizer.optimizer.climb()
        super().training_step(model, inputs, num_items_in_batch)
        return loss


class TwoLosses(Pruned):
    """A step by hand, which computes two losses of one dictionary."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        losses = []
        for again in (False, True):
            losses.append(self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))
            self.accelerator.backward(losses[-1])
            if not again:
                self.optimizer.optimizer.climb()
        return losses[0].detach()


def by_hand(pruner: Any) -> Any:
    """The same run in a plain loop: the model, and how many samples were trained."""
    model, data, trained = bert(), Items(), 0
    optimizer = SAM(model.parameters(), lr=0.05)
    loader = dataprune.prune_loader(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True), pruner)
    model.train()
    for _ in range(4):
        for index, batch in loader:
            for again in (False, True):
                logits = model(input_ids=batch["input_ids"]).logits
                losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
                pruner.loss(index, losses, logits, batch["labels"], record=not again).backward()
                if not again:
                    optimizer.climb()
            optimizer.step()
            optimizer.zero_grad()
            trained += len(index)
    pruner.sync()
    return model, trained


@pytest.mark.parametrize("kind", [TwoSteps, TwoLosses])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", ["emp", "infobatch"])
def test_a_second_pass_is_weighted_and_not_recorded(method: str, per_sample: bool, kind: Any) -> None:
    def each(outputs: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    def pruner() -> Any:
        return dataprune.METHODS[method](48, keep=0.5, epochs=4, seed=1)

    class Run(kind):
        def create_optimizer(self, *rest: Any) -> Any:
            self.optimizer = SAM(self.model.parameters(), lr=0.05)
            return self.optimizer

    expected = pruner()
    model, trained = by_hand(expected)
    options = {"lr_scheduler_type": "constant", "learning_rate": 0.05, "max_grad_norm": 0.0}
    ours = train(Run, pruner=pruner(), per_sample_loss=each if per_sample else None, **options)
    assert ours.state.global_step == ours.state.max_steps and ours.column("samples_trained")[-1] == trained
    torch.testing.assert_close(ours.pruner.book.score, expected.book.score, rtol=1e-4, atol=1e-5)
    for weight, reference in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(weight, reference, rtol=1e-3, atol=1e-5)
