"""Evaluation of features by a nearest-neighbour and a linear classifier.

Both take a row of D features for each of N training and M test samples, and their class ids from 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..checks import WHOLE, check_floating
from ..errors import needs

_CHUNK = 1 << 24  # similarities computed at a time


def knn_accuracy(
    train_features: Float[Tensor, "n d"],
    train_labels: Integer[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    test_labels: Integer[Tensor, " m"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Measure the accuracy, in [0, 1], of a weighted nearest-neighbour classifier.

    Each test sample gets the class with the largest total weight among its k nearest training samples: neighbours by
    the cosine s of two features, weighted by exp(s / temperature); the first of equal classes. Similarities are
    computed in chunks, on the device of the training features.

    Args:
        k: number of neighbours, at most N.
        temperature: above 0; the larger, the more equal the weights.
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
    train_labels: Integer[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    test_labels: Integer[Tensor, " m"],
    *,
    penalty: float = 1e-4,
    steps: int = 500,
) -> float:
    """Measure the accuracy, in [0, 1], of a linear classifier of the features.

    Multinomial logistic regression of scikit-learn, on the CPU: features standardised over the training samples, and
    L-BFGS from zero on mean cross-entropy + penalty / 2 · ‖W‖², a convex problem with one solution. Errors are those of
    `knn_accuracy`, and ImportError without scikit-learn.

    Args:
        penalty: weight of the squared norm of W, above 0; the bias is not penalised.
        steps: maximum number of L-BFGS iterations; it stops earlier on convergence.
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
    probe = fit_probe(train.cpu().numpy(), y.cpu().numpy(), penalty, steps)
    return float(probe.score(test.cpu().numpy(), wanted.cpu().numpy()))


def fit_probe(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], penalty: float, steps: int) -> Any:
    """Fit the classifier of `linear_probe`: a scikit-learn pipeline of standardisation and logistic regression."""
    with needs("the linear probe needs scikit-learn", "contrastive"):
        from sklearn.dummy import DummyClassifier
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    classes = len(np.unique(labels))
    if classes == 1:
        return DummyClassifier().fit(features, labels)
    # scikit-learn fits two classes with one column of weights, whose squared norm is twice that of both
    inverse = (2 if classes == 2 else 1) / (len(labels) * penalty)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=inverse, tol=1e-6, max_iter=steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `steps` says when to stop
        return probe.fit(features, labels)


def _checked(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check all four, and return them detached on the device of the first, features in float32 or float64."""
    parts = (("train", train_features, train_labels), ("test", test_features, test_labels))
    for name, features, labels in parts:
        check_floating(f"{name}_features", features)
        if features.ndim != 2 or 0 in features.shape or features.shape[1] != train_features.shape[1]:
            raise ValueError(
                f"{name}_features must be a row of D features per sample, with the same D for training and test; got "
                f"{tuple(train_features.shape)} and {tuple(test_features.shape)}"
            )
        if not isinstance(labels, Tensor) or labels.dtype not in WHOLE:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{name}_labels must be a tensor of class ids, got {kind}")
        if labels.shape != features.shape[:1] or int(labels.min()) < 0:
            raise ValueError(
                f"{name}_labels must hold a class id from 0 for each of the {len(features)} samples, got shape "
                f"{tuple(labels.shape)}"
            )
        if not torch.isfinite(features).all():
            raise ValueError(f"{name}_features hold NaN or infinite values: training has diverged")
    dtype = torch.promote_types(torch.promote_types(train_features.dtype, test_features.dtype), torch.float32)
    device = train_features.device
    train, test = (features.detach().to(device, dtype) for features in (train_features, test_features))
    return train, train_labels.to(device, torch.int64), test, test_labels.to(device, torch.int64)
