"""Errors raised where the mistake is made: what a batch and a saved recorder must be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, PlanError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_batch(index: Tensor, outputs: Tensor, targets: Tensor, features: Tensor | None) -> None:
    """Raise unless these are positions, logits, class ids and features of one batch.

    Args:
        index: (B,) positions.
        outputs: (B, C) logits.
        targets: (B,) class ids.
        features: (B, D), or None where they are missing; pass `index` where they are not needed.
    """
    for name, value in (("index", index), ("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if index.dtype not in _WHOLE:
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
    if targets.dtype not in _WHOLE or targets.ndim != 1:
        raise (TypeError if targets.ndim == 1 else ValueError)(
            f"targets must be class ids (B,) of whole numbers, got {targets.dtype} of shape {tuple(targets.shape)}: "
            "where labels are mixed or smoothed, pass the original ones"
        )
    if not len(index) == len(outputs) == len(targets):
        raise ValueError(
            f"{len(index)} positions, {len(outputs)} rows of outputs and {len(targets)} targets: pass those of the "
            "same batch"
        )
    if features is index:
        return
    if features is None:
        raise ValueError(
            "grand() needs the features that the last layer reads: update(index, outputs, targets, features)"
        )
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError("features must be a floating-point tensor")
    if features.ndim != 2 or len(features) != len(index):
        raise ValueError(f"features must be ({len(index)}, D), one row per sample, got {tuple(features.shape)}")


def check_targets(targets: Tensor, classes: int) -> None:
    """Raise ValueError unless all targets, on the CPU, are in [0, classes)."""
    if not len(targets):
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= classes:
        raise ValueError(
            f"targets hold {low} to {high}, but the outputs have classes 0 to {classes - 1}: leave samples without a "
            "label out of what is recorded"
        )


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError where values (B,) on the CPU are NaN or infinite."""
    if not torch.isfinite(values).all():
        raise ValueError(_unfinite(int((~torch.isfinite(values)).sum()), f"of {len(values)} {what}"))


def counted_problem(wrong: list[int], size: int) -> Exception | None:
    """The error for what was counted on a device: positions and targets out of range, rows that are not finite."""
    positions, targets, rows = wrong
    if positions:
        return IndexError(
            f"{positions} positions recorded in this epoch were outside the dataset, which has 0 to {size - 1}: pass "
            "the positions that came with the batch"
        )
    if targets:
        return ValueError(f"{targets} targets recorded in this epoch are none of the outputs' classes")
    return ValueError(_unfinite(rows, "rows of outputs or features")) if rows else None


def _unfinite(count: int, what: str) -> str:
    return (
        f"{count} {what} are NaN or infinite: training has diverged or overflowed; lower the learning rate, or leave "
        "the batch out before recording it"
    )


def check_ranks(headers: list[list[int]]) -> None:
    """Raise PlanError unless all ranks are at the same place.

    Args:
        headers: of each rank: epoch, checksum of its arguments, classes (0 for none yet), and whether it has a problem.
    """
    for rank, header in enumerate(headers):
        if header[-1]:
            raise PlanError(f"rank {rank} recorded wrong values: see its error")
    wrong = (
        "are at different epochs: call end_epoch on every rank, once per epoch",
        "have recorders with different arguments: build them alike on every rank",
    )
    for place, what in enumerate(wrong):
        values = [header[place] for header in headers]
        if len(set(values)) > 1:
            raise PlanError(f"the ranks {what}; got {values}")
    classes = {header[2] for header in headers} - {0}
    if len(classes) > 1:
        raise PlanError(f"the ranks recorded outputs of {sorted(classes)} classes")


def check_state(state: Any, schema: int, wanted: dict[str, Any], mine: dict[str, dict[str, Tensor]]) -> None:
    """Raise CheckpointError unless this is the whole state of a recorder like this one.

    Args:
        state: what is to be loaded.
        schema: the version that can be read.
        wanted: entries that must be equal, by name.
        mine: tensors of the statistics, whose like must be there.
    """
    if not isinstance(state, dict) or "schema" not in state or "statistics" not in state:
        raise CheckpointError("this is not the state of a recorder: pass what `state_dict()` returned")
    if state["schema"] != schema:
        raise CheckpointError(
            f"this state has schema {state['schema']}, this version reads schema {schema}: resume with the version "
            "that wrote it, or start again"
        )
    for name, value in wanted.items():
        if state.get(name) != value:
            raise CheckpointError(f"this state has {name} {state.get(name)!r}, this recorder {value!r}")
    size = wanted["size"]
    index, values, rows = state.get("pending_index"), state.get("pending_values"), state.get("rows")
    classes = state.get("classes")
    saved = state.get("state")
    right = {
        "epoch": _is_whole(state.get("epoch"), 0),
        "classes": classes is None or _is_whole(classes, 2),
        "rank": _is_whole(state.get("rank"), 0),
        "world_size": _is_whole(state.get("world_size"), 1),
        "pending_index": isinstance(index, Tensor)
        and index.dtype == torch.int64
        and index.ndim == 1
        and (len(index) == 0 or (int(index.min()) >= 0 and int(index.max()) < size)),
        "pending_values": isinstance(values, Tensor)
        and values.dtype == torch.float32
        and values.ndim == 2
        and isinstance(index, Tensor)
        and len(values) == len(index),
        "rows": rows is None
        or (isinstance(rows, Tensor) and rows.shape == (size, classes) and str(rows.dtype) == wanted["dtype"]),
        "state": isinstance(saved, dict) and saved.keys() == mine.keys(),
    }
    for name, fine in right.items():
        if not fine:
            raise CheckpointError(f"the saved state is damaged: `{name}` does not fit {size} samples")
    assert isinstance(saved, dict)
    for name, fields in mine.items():
        for field, tensor in fields.items():
            other = saved[name].get(field) if isinstance(saved[name], dict) else None
            if not isinstance(other, Tensor) or other.shape != tensor.shape or other.dtype != tensor.dtype:
                raise CheckpointError(
                    f"the saved state is damaged: `{field}` of `{name}` is not that of {size} samples"
                )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
