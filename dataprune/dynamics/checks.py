"""Checks of a recorder's batches, ranks and saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import WHOLE, check_floating, check_schema, in_range, is_whole
from ..errors import CheckpointError, PlanError


def check_batch(
    index: Tensor, outputs: Tensor, targets: Tensor, features: Tensor | None, *, needs_features: bool
) -> None:
    """Raise unless these are positions (B,), logits (B, C), class ids (B,) and, if needed, features (B, D)."""
    for name, value in (("index", index), ("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if index.dtype not in WHOLE:
        raise TypeError(f"index must hold whole numbers (torch.int64), got {index.dtype}")
    if not outputs.is_floating_point():
        raise TypeError(f"outputs must be floating point, got {outputs.dtype}")
    if index.ndim != 1:
        raise ValueError(f"index must be (B,), one position per sample, got {tuple(index.shape)}")
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"outputs must be logits (B, C) with two classes or more, got shape {tuple(outputs.shape)}: pass what the "
            "model returns, not the loss; a single logit z of two classes is torch.stack([-z / 2, z / 2], dim=1)"
        )
    if targets.dtype not in WHOLE or targets.ndim != 1:
        raise (TypeError if targets.ndim == 1 else ValueError)(
            f"targets must be class ids (B,) of whole numbers, got {targets.dtype} of shape {tuple(targets.shape)}: "
            "where labels are mixed or smoothed, pass the original ones"
        )
    if not len(index) == len(outputs) == len(targets):
        sizes = f"{len(index)} positions, {len(outputs)} rows of outputs and {len(targets)} targets"
        raise ValueError(f"{sizes}: pass those of the same batch")
    if not needs_features:
        return
    if features is None:
        raise ValueError("grand() needs the last layer's features: update(index, outputs, targets, features)")
    check_floating("features", features)
    if features.ndim != 2 or len(features) != len(index):
        raise ValueError(f"features must be ({len(index)}, D), one row per sample, got {tuple(features.shape)}")


def check_targets(targets: Tensor, classes: int) -> None:
    """Raise ValueError unless all targets, on the CPU, are in [0, classes)."""
    if not len(targets):
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= classes:
        raise ValueError(
            f"targets hold {low} to {high}, but the outputs have classes 0 to {classes - 1}: do not record samples "
            "without a label"
        )


def check_finite(values: Tensor, name: str) -> None:
    """Raise ValueError if values (B,) on the CPU are NaN or infinite."""
    if bad := int((~torch.isfinite(values)).sum()):
        raise ValueError(_not_finite(bad, f"of {len(values)} {name}"))


def error_of_counts(counts: Sequence[int], size: int) -> Exception | None:
    """The error for positions and targets out of range and rows that are not finite, as counted on a device."""
    positions, targets, rows = counts
    if positions:
        return IndexError(
            f"{positions} positions recorded in this epoch were outside the dataset, which has 0 to {size - 1}: pass "
            "the positions that came with the batch"
        )
    if targets:
        return ValueError(f"{targets} targets recorded in this epoch are no class of the outputs")
    return ValueError(_not_finite(rows, "rows of outputs or features")) if rows else None


def _not_finite(count: int, what: str) -> str:
    return (
        f"{count} {what} are NaN or infinite: training has diverged or overflowed; lower the learning rate, or leave "
        "the batch out before recording it"
    )


def check_ranks(headers: list[list[int]]) -> None:
    """Raise PlanError unless all ranks are at the same place.

    A rank's header is epoch, checksum of its arguments, classes (0 for none yet), and whether it has an error.
    """
    for rank, header in enumerate(headers):
        if header[-1]:
            raise PlanError(f"rank {rank} recorded wrong values: see its error")
    epochs, arguments, classes, _ = zip(*headers)
    if len(set(epochs)) > 1:
        raise PlanError(f"the ranks are at different epochs {list(epochs)}: call end_epoch on each, once per epoch")
    if len(set(arguments)) > 1:
        raise PlanError("the ranks have recorders with different arguments: build the same recorder on every rank")
    classes = set(classes) - {0}
    if len(classes) > 1:
        raise PlanError(f"the ranks recorded outputs of {sorted(classes)} classes")


def check_state(
    state: Any, schema: int, expected: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Raise CheckpointError unless a state is whole, with the `expected` entries and `tensors` like the statistics'."""
    check_schema(state, "recorder", schema, "statistics")
    for name, value in expected.items():
        if state.get(name) != value:
            raise CheckpointError(f"this state has {name} {state.get(name)!r}, this recorder {value!r}")
    size, classes = expected["size"], state.get("classes")
    index, values, rows, saved = (state.get(key) for key in ("pending_index", "pending_values", "rows", "state"))
    pending = -1  # records of an unfinished epoch
    if isinstance(index, Tensor) and (index.dtype, index.ndim) == (torch.int64, 1) and in_range(index, size):
        pending = len(index)
    valid = {
        "epoch": is_whole(state.get("epoch"), 0),
        "classes": classes is None or is_whole(classes, 2),
        "rank": is_whole(state.get("rank"), 0),
        "world_size": is_whole(state.get("world_size"), 1),
        "pending_index": pending >= 0,
        "pending_values": isinstance(values, Tensor)
        and (values.dtype, values.ndim, len(values)) == (torch.float32, 2, pending),
        "rows": rows is None
        or (isinstance(rows, Tensor) and rows.shape == (size, classes) and str(rows.dtype) == expected["dtype"]),
        "state": isinstance(saved, dict) and saved.keys() == tensors.keys(),
    }
    if wrong := [name for name, right in valid.items() if not right]:
        raise CheckpointError(f"the saved state is damaged: `{wrong[0]}` does not fit {size} samples")
    assert isinstance(saved, dict)
    for name, fields in tensors.items():
        for field, tensor in fields.items():
            other = saved[name].get(field) if isinstance(saved[name], dict) else None
            if not isinstance(other, Tensor) or (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
                raise CheckpointError(f"the saved state is damaged: `{field}` of `{name}` does not fit {size} samples")
