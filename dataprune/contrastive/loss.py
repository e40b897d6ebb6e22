"""NT-Xent, the loss of SimCLR, with one value per sample and a single matrix of similarities in memory."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import distributed
from ..checks import check_floating


def nt_xent(
    z_i: Float[Tensor, "b d"],
    z_j: Float[Tensor, "b d"],
    temperature: float = 0.5,
    reduction: Literal["mean", "none"] = "mean",
    *,
    gather: bool = False,
) -> Float[Tensor, "*b"]:
    """Compute the normalised temperature-scaled cross-entropy (NT-Xent) of two views of every sample.

    Each of the 2B projections, normalised to length one, is compared with the 2B - 1 others: the loss is −log of the
    softmax, over these similarities / temperature, at the other view of the same sample. A sample's loss is the mean
    over its two views. float16 and bfloat16 are computed in float32, inside autocast too. In a pruned epoch the
    negatives are the kept samples of the batch.

    It needs one (2B, 2B) matrix; with `gather` on R ranks (2B, 2RB) on each. It cannot be differentiated twice.

    Args:
        z_i: projections of the samples' first views, of any length; z_j those of their second views.
        temperature: τ > 0.
        reduction: "mean" over the samples, or "none".
        gather: take the negatives from all ranks. Collective, forward and backward; every rank must have the same
            number of samples, as from a pruner. The values equal those of one process with the joined batch, and so do
            gradients under DistributedDataParallel, which divides by R: a rank's are those of the SUM over ranks.
    Returns:
        A scalar, or one loss per sample; float32, or float64 for float64.
    Raises:
        TypeError: if the projections are not floating-point tensors.
        ValueError: if shapes differ, there are no negatives, or temperature or reduction is out of range.
    Example:
        >>> z = torch.eye(2)
        >>> nt_xent(z, z, temperature=1.0, reduction="none")
        tensor([0.5514, 0.5514])

    Source: Chen et al. 2020, arXiv:2002.05709, Eq. 1 and Algorithm 1; temperature 0.5 as in Xiao et al.,
        arXiv:2408.16031, appendix C.2. Differs: the mean over a sample's two views is taken before that over samples.
    """
    ranks = distributed.world_size() if gather else 1
    _check(z_i, z_j, temperature, reduction, ranks)
    batch = len(z_i)
    joined = torch.cat([z_i, z_j])
    z = F.normalize(joined.to(torch.promote_types(joined.dtype, torch.float32)), dim=1)
    everyone = distributed.gathered(z) if ranks > 1 else z
    begin = 2 * batch * distributed.rank() if ranks > 1 else 0
    each = _Contrast.apply(z, everyone, begin, 1 / temperature)  # (2B,)
    losses = (each[:batch] + each[batch:]) / 2
    return losses if reduction == "none" else losses.mean()


class _Contrast(torch.autograd.Function):
    """One loss per row: logsumexp of its similarities to all columns but itself, minus that to its other view.

    Rows are columns `begin` to `begin` + 2B, first views and then second views, so that a row's other view lies B
    further, modulo 2B. Autograd of the plain formula would keep the similarities, and allocate two or three matrices of
    their size in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, begin: int, scale: float) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            matrix = rows @ columns.T
        matrix *= scale
        own = matrix[:, begin : begin + len(rows)]
        positive = torch.cat([own.diagonal(len(rows) // 2), own.diagonal(-(len(rows) // 2))])
        own.diagonal().fill_(-torch.inf)
        highest = matrix.amax(dim=1, keepdim=True)
        matrix.sub_(highest).exp_()
        total = matrix.sum(dim=1, keepdim=True)
        matrix /= total  # the softmax, all that the backward pass needs
        ctx.save_for_backward(rows, columns, matrix)
        ctx.begin, ctx.scale = begin, scale
        return (highest + total.log()).squeeze(1) - positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():  # once_differentiable would silently treat the softmax as a constant
            raise RuntimeError("nt_xent cannot be differentiated twice: leave create_graph=True out")
        rows, columns, softmax = ctx.saved_tensors
        own = slice(ctx.begin, ctx.begin + len(rows))
        weight = (gradient * ctx.scale)[:, None]
        weighted = rows * weight
        with torch.autocast(rows.device.type, enabled=False):
            towards = softmax @ columns
            away = softmax.T @ weighted
        towards -= columns[own].roll(len(rows) // 2, 0)
        away[own] -= weighted.roll(len(rows) // 2, 0)
        return towards * weight, away, None, None


def _check(z_i: Tensor, z_j: Tensor, temperature: float, reduction: str, ranks: int) -> None:
    for name, z in (("z_i", z_i), ("z_j", z_j)):
        check_floating(name, z, " of projections")
    if z_i.ndim != 2 or z_i.shape != z_j.shape:
        raise ValueError(
            f"z_i {tuple(z_i.shape)} and z_j {tuple(z_j.shape)} must both be (B, D): the projections of two views of "
            "the same samples"
        )
    if len(z_i) * ranks < 2:
        message = f"a batch of {len(z_i)} has no negatives: NT-Xent needs two samples or more"
        raise ValueError(f"{message}; drop a last batch of one (drop_last=True)")
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, got {temperature!r}")
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}; pruner.loss takes "none"')
