"""What features are worth: the accuracy that their neighbours and a linear classifier reach."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 1 << 24  # similarities computed at a time


def knn_accuracy(
    train_features: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test samples whose label has most weight among their k nearest training samples.

    Nearness is the cosine s of two features, and a neighbour's weight exp(s / temperature). Of classes with equal
    weight the first is predicted. Similarities are computed in chunks, on the device of the training features.

    Args:
        train_features: one row per training sample.
        train_labels: their class ids, from 0.
        test_features: one row per test sample.
        test_labels: their class ids.
        k: neighbours that vote, at most N.
        temperature: above 0; the larger, the more equal the votes.
    Returns:
        A number in [0, 1].
    Raises:
        TypeError: if features are not floating point, or labels no whole numbers.
        ValueError: if shapes do not fit, values are not finite or arguments are out of range.
    Example:
        >>> knn_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[2.0, 1.0]]), torch.tensor([0]), k=1)
        1.0

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4. Differs: k is 20 in place of 200 by default.
    """
    train, y, test, wanted = _checked(train_features, train_labels, test_features, test_labels)
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be between 1 and the {len(train)} training samples, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    classes = int(y.max()) + 1
    right = torch.zeros((), dtype=torch.int64, device=train.device)
    rows = max(1, _CHUNK // len(train))
    with torch.no_grad(), torch.autocast(train.device.type, enabled=False):
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
        for part, labels in zip(test.split(rows), wanted.split(rows)):
            near, neighbours = (part @ train.T).topk(k, dim=1)
            weight = ((near - near[:, :1]) / temperature).exp()  # the nearest has 1: no overflow
            votes = weight.new_zeros(len(part), classes).scatter_add_(1, y[neighbours], weight)
            right += (votes.argmax(dim=1) == labels).sum()
    return int(right) / len(test)


def linear_probe(
    train_features: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    penalty: float = 1e-4,
    steps: int = 500,
) -> float:
    """Share of test samples that a linear classifier of the features gets right.

    Multinomial logistic regression, fitted to all training samples at once: the features, each to mean 0 and variance
    1 over the training samples, and L-BFGS from zero on mean cross-entropy + penalty / 2 · ‖W‖². The problem is
    convex, its solution unique, and nothing in it is random.

    Args:
        train_features: one row per training sample.
        train_labels: their class ids, from 0.
        test_features: one row per test sample.
        test_labels: their class ids.
        penalty: above 0, weight of the squared norm of the weights, the bias left out; 1 / (N·C) in terms of
            scikit-learn's C.
        steps: most iterations of L-BFGS; it stops before where it has converged.
    Returns:
        A number in [0, 1].
    Raises:
        TypeError: if features are not floating point, or labels no whole numbers.
        ValueError: if shapes do not fit, values are not finite or arguments are out of range.
    Example:
        >>> linear_probe(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        1.0

    Source: the linear evaluation of Chen et al. 2020, arXiv:2002.05709, section 2.3 and appendix B.8. Differs:
        standardised features and a fixed penalty, where the paper tunes it on a validation set.
    """
    train, y, test, wanted = _checked(train_features, train_labels, test_features, test_labels)
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}: without it the weights of separable data grow on")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    # autocast would round, and hand every step of L-BFGS the weights it cached at the first: zeros
    with torch.autocast(train.device.type, enabled=False):
        deviation, mean = torch.std_mean(train, dim=0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1)  # a constant feature tells nothing
        weight, bias = fit((train - mean) / deviation, y, penalty, steps)
        predicted = ((test - mean) / deviation @ weight + bias).argmax(dim=1)
    return int((predicted == wanted).sum()) / len(test)


def fit(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], penalty: float, steps: int
) -> tuple[Float[Tensor, "d c"], Float[Tensor, " c"]]:
    """Weight and bias of the logistic regression of `linear_probe`."""
    classes = int(labels.max()) + 1
    weight = features.new_zeros(features.shape[1], classes).requires_grad_()
    bias = features.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=4 * steps,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(torch.addmm(bias, features, weight), labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def _checked(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four, detached, on the device of the first; features in float32, or in float64 where they are."""
    parts = (("train", train_features, train_labels), ("test", test_features, test_labels))
    for name, features, labels in parts:
        if not isinstance(features, Tensor) or not features.is_floating_point():
            found = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"{name}_features must be a floating-point tensor, got {found}")
        if features.ndim != 2 or 0 in features.shape or features.shape[1] != train_features.shape[1]:
            raise ValueError(
                f"{name}_features must be a row of D features per sample, with the same D for training and test; got "
                f"{tuple(train_features.shape)} and {tuple(test_features.shape)}"
            )
        if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{name}_labels must be a tensor of class ids, got {found}")
        if labels.shape != features.shape[:1] or int(labels.min()) < 0:
            raise ValueError(
                f"{name}_labels must hold a class id from 0 for each of the {len(features)} samples, got shape "
                f"{tuple(labels.shape)}"
            )
        if not torch.isfinite(features).all():
            raise ValueError(f"{name}_features hold NaN or infinite values: has training diverged?")
    dtype = torch.promote_types(torch.promote_types(train_features.dtype, test_features.dtype), torch.float32)
    device = train_features.device
    return (
        train_features.detach().to(dtype),
        train_labels.to(device, torch.int64),
        test_features.detach().to(device, dtype),
        test_labels.to(device, torch.int64),
    )
