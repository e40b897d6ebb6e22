"""The arguments of a pruner, spelled one by one: a saved state is loaded only where all of them agree."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .criteria import Criterion
from .errors import CheckpointError
from .hashing import Key, uniform
from .policies import Function, Policy
from .selection import Selection

_ROWS, _CLASSES = 8, 4  # of the batch that a criterion of your own is asked about
# the recipes' names of what a schedule calls otherwise
_RECIPE = {"schedule.start": "warmup", "schedule.stop": "anneal"}

Plan = dict[str, Any]  # argument -> a number, a text, or a list of numbers


def plan_of(
    *,
    criterion: Criterion,
    policy: Policy,
    schedule: Callable[[int], float],
    counts: Iterable[int],
    size: int,
    **numbers: float,
) -> Plan:
    """Spell a pruner's arguments, `numbers` being the other ones, as plain values that JSON can hold.

    A dataclass is known by its name and fields; a function or other callable by what it gives on fixed inputs, a
    schedule by `counts`, the samples it asks for in every epoch.
    """
    plan: Plan = {"size": size, **numbers}
    plan |= _spelled("criterion", criterion, lambda: _scores(criterion))
    choose = policy.function if isinstance(policy, Function) else policy
    plan |= _spelled("policy", choose, lambda: _selected(policy, size))
    plan |= _spelled("schedule", schedule, None)
    plan["counts"] = [[count, len(list(epochs))] for count, epochs in groupby(counts)]  # run lengths
    return plan


def brief(part: Any) -> str:
    """Name a criterion, policy or schedule on one line."""
    if hasattr(part, "__qualname__"):
        return part.__qualname__
    text = repr(part)
    return text if len(text) <= 60 and "\n" not in text else f"{type(part).__qualname__}(...)"


def differences(saved: Plan, current: Plan) -> list[str]:
    """Name every argument that differs, with both values; a run with more epochs may have another schedule."""
    if not isinstance(saved, dict):
        raise TypeError(f"a plan is a dictionary, got {type(saved).__name__}")
    names = [name for name in {**saved, **current} if saved.get(name) != current.get(name)]
    if "epochs" in names and isinstance(saved.get("epochs"), int) and saved["epochs"] < current["epochs"]:
        longer = {"epochs", "counts"}
        if saved.get("every") == saved["epochs"] and current["every"] == current["epochs"]:
            longer.add("every")  # one selection for the whole run
        names = [name for name in names if name not in longer and not name.startswith("schedule")]
    changed = [name for name in names if name != "counts" and not name.startswith("schedule")]
    if "counts" in names:  # schedules that ask for the same counts are the same
        fields = [name for name in names if name.startswith("schedule.")]
        if fields and saved.get("schedule") == current.get("schedule"):
            changed += fields
        elif "size" not in changed and changed != ["epochs"]:  # which explain other counts
            changed.append("counts")
    return [f"{_shown(name)} is {_value(saved.get(name))} in the state and {_value(current.get(name))} here"
            for name in changed]  # fmt: skip


def check_plan(saved: Any, current: Plan) -> None:
    """Raise CheckpointError unless a state's plan, as JSON, is that of the pruner which loads it."""
    try:
        names = differences(json.loads(saved), current)
    except (TypeError, ValueError):
        raise CheckpointError("the saved state is damaged: `plan` does not hold a pruner's arguments") from None
    if names:
        raise CheckpointError(
            f"this state is of a pruner with other arguments: {'; '.join(names)}. Build this pruner as that one was, "
            "or start again"
        )


def _spelled(name: str, part: Any, gives: Callable[[], str] | None) -> Plan:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f"{name}.{field.name}": _plain(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {name: type(part).__qualname__, **fields}
    label = part.__qualname__ if hasattr(part, "__qualname__") else type(part).__qualname__
    if gives is None or (hasattr(part, "__module__") and part.__module__.split(".")[0] == __package__):
        return {name: label}
    return {name: label, f"{name} gives": gives()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} {_digest([value])}"
    if isinstance(value, Selection):
        return f"{len(value)} samples {_content(value)}"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


def _scores(criterion: Criterion) -> str:
    """What a criterion gives for a fixed batch of logits, or of two views, rounded."""
    losses = torch.linspace(0.1, 2.0, _ROWS)
    logits = 4 * uniform(0, 0, torch.arange(_ROWS)[:, None], torch.arange(_CLASSES))
    targets = torch.arange(_ROWS) % _CLASSES
    for outputs in (logits, (logits, logits.flip(0)), logits[:, 0]):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(0)
                scores = copy.deepcopy(criterion)(losses, outputs, targets)
            return " ".join(f"{value:.4g}" for value in torch.as_tensor(scores).flatten().tolist())
        except Exception:
            continue
    return "unknown"


def _selected(policy: Policy, size: int) -> str:
    """A digest of what a policy selects from a fixed book."""
    try:
        book = policy.book(size)
        book.score.copy_(uniform(0, 0, torch.arange(size)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            selection = copy.deepcopy(policy)(book, max(1, size // 3), Key(0, 0))
        return _content(selection)
    except Exception:
        return "unknown"


def _content(selection: Selection) -> str:
    return _digest([selection.index, selection.weight]) + " weighted by batch" * selection.by_batch


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _shown(name: str) -> str:
    if name in _RECIPE:
        return f"{_RECIPE[name]} ({name})"
    return name.split(".")[-1]


def _value(value: Any) -> str:
    return "absent" if value is None else str(value)
