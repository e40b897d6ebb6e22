"""DeepFool: the samples closest to a decision boundary."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..checks import check_floating
from ..modules import device_of, evaluation, logits_of
from ..schedules import check_whole
from ..selection import Selection
from . import budget


def deepfool(
    model: nn.Module,
    inputs: Float[Tensor, "n ..."],
    *,
    keep: float,
    iterations: int = 50,
    nearest: int = 10,
    batch_size: int = 128,
    overshoot: float = 0.02,
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Keep the samples that need the smallest perturbation r to be classified as another class, smallest ‖r‖² first.

    Samples that reach no boundary within `iterations` come last. The model runs in evaluation mode; its modes and
    gradients are restored.

    An iteration costs one forward pass and up to `nearest` + 1 backward passes of the samples that have not crossed a
    boundary. It needs (`nearest` + 6)·`batch_size` inputs more, and the model's own memory, which is not counted.

    Args:
        model: returns (B, C) logits, or an output that has them as `logits`; differentiable in its input.
        inputs: samples, in the form that the model takes.
        iterations: linearisations per sample, at most.
        nearest: number of other classes considered, those of the highest logits.
        batch_size: samples at once.
        overshoot: how far beyond the linearised boundary each point is evaluated; it does not count in ‖r‖².
    Raises:
        TypeError: if inputs are no floating-point tensor, or the model returns no (B, C) logits.
        ValueError: if there are fewer than two classes.
    Source: DeepFool, Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, Algorithm 2; as a coreset, Ducoffe and Precioso
        2018, arXiv:1802.09841. Differs: the `nearest` classes only, as the original code does.
    """
    check_floating("inputs", inputs, " that can be perturbed")
    if inputs.ndim < 2 or 0 in inputs.shape[1:]:
        raise ValueError(f"inputs must be (N, ...), a sample per row, got {tuple(inputs.shape)}")
    count = budget.count_of(len(inputs), keep)
    for name, value in (("iterations", iterations), ("nearest", nearest), ("batch_size", batch_size)):
        check_whole(name, value)
    if not 0 <= overshoot < math.inf:
        raise ValueError(f"overshoot must be at least 0, got {overshoot}")
    if not torch.isfinite(inputs.sum()) and not torch.isfinite(inputs).all():
        raise ValueError("inputs hold NaN or infinite values")
    row = inputs[0].numel() * inputs.element_size()
    need = (nearest + 6) * min(batch_size, len(inputs)) * row
    budget.chunk_rows(f"deepfool with batch_size={batch_size}", len(inputs), max_memory, fixed=need)
    square, crossed = distances(model, inputs, iterations, nearest, batch_size, 1 + overshoot)
    order = torch.randperm(len(square), generator=torch.Generator().manual_seed(seed))
    order = order[square[order].argsort(stable=True)]
    order = order[(~crossed)[order].int().argsort(stable=True)]
    return Selection.of(order[:count].sort().values)


def distances(
    model: nn.Module, inputs: Tensor, iterations: int, nearest: int, batch_size: int, reach: float
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Measure the perturbation of every sample: its squared length, and whether it crosses a boundary."""
    with evaluation(model), torch.inference_mode(False), torch.enable_grad():
        batches = (batch.detach().to(device_of(model)).clone() for batch in inputs.split(batch_size))
        parts = [_perturb(model, batch, iterations, nearest, reach) for batch in batches]
    square, crossed = zip(*parts)
    return torch.cat(square).cpu(), torch.cat(crossed).cpu()


def _perturb(model: nn.Module, x: Tensor, iterations: int, nearest: int, reach: float) -> tuple[Tensor, Tensor]:
    """Perturb a batch until it crosses a boundary; squared lengths, and whether each sample crossed."""
    r = torch.zeros_like(x)
    crossed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    classes = torch.empty(0)  # (b, nearest + 1) of each sample, its own first; set by the unperturbed logits
    for step in range(iterations + 1):
        point = (x[active] + reach * r[active]).requires_grad_()
        logits = logits_of(model(point))
        if not torch.isfinite(logits).all():
            raise ValueError("the model returns NaN or infinite logits")
        if step == 0:
            if logits.shape[1] < 2:
                raise ValueError("the model returns one logit: a boundary needs at least two classes")
            classes = logits.detach().topk(min(nearest + 1, logits.shape[1]), dim=1).indices
        own = classes[active, :1]
        rival = logits.detach().scatter(1, own, -torch.inf).amax(1)
        left = rival < logits.detach().gather(1, own)[:, 0]
        crossed[active[~left]] = True
        if step == iterations or not left.any():
            break
        candidates = classes[active]
        values = logits.gather(1, candidates)
        best = torch.zeros_like(r[active])
        shortest = torch.full_like(rival, torch.inf)
        for other in range(1, candidates.shape[1]):
            gap = values[:, other] - values[:, 0]
            # samples do not mix in evaluation mode, so that the gradient of the sum holds that of every sample
            (slope,) = torch.autograd.grad(gap.sum(), point, retain_graph=other + 1 < candidates.shape[1])
            gap = gap.detach().abs()
            steep = slope.flatten(1).square().sum(1)
            distance = torch.where(steep > 0, gap / steep.sqrt(), torch.inf)
            better = distance < shortest
            shortest = torch.where(better, distance, shortest)
            scale = torch.where(better, gap / steep, 0.0).view(-1, *[1] * (slope.ndim - 1))
            best = torch.where(better.view_as(scale), scale * slope, best)
        moves = left & torch.isfinite(shortest)  # a flat model has no boundary in reach
        active = active[moves]
        if len(active) == 0:
            break
        r[active] += best[moves]
    return r.flatten(1).square().sum(1), crossed
