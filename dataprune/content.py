"""What samples and batches hold: fingerprints of datasets, and whether a collate_fn keeps the order of samples."""

from __future__ import annotations

import copy
import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_OPAQUE = b"\0object of type "  # stands for what cannot be looked into
_NESTED = (Tensor, np.ndarray, Mapping, Sequence)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_PARTS = 1000  # datasets or transforms in a list or dictionary; a longer one holds samples
_PROBES = 16  # samples of a dataset that its fingerprint reads


def fingerprint(dataset: Any) -> str:
    """A short text that tells datasets apart: a hash of the length and of sixteen samples spread over it.

    Where the dataset holds its labels as `labels` or `targets` (a tensor, an array, a list of numbers), all of them
    count, so that a few changed labels show. Samples are read under fixed seeds of torch, numpy and python, which are
    then restored. Where a dataset draws from a generator of its own, two reads of a sample differ: then the content
    does not count, only length, labels and structure, and a warning says so. A dataset may have a text attribute
    `fingerprint`, which is then used.

    Args:
        dataset: map-style dataset with `__len__` and `__getitem__`.
    """
    declared = getattr(dataset, "fingerprint", None)
    if isinstance(declared, str):
        return declared
    size = len(dataset)
    digest = hashlib.sha256(str(size).encode())
    digest.update(_all_labels(dataset, size))
    probes = sorted({round(i * (size - 1) / (_PROBES - 1)) for i in range(_PROBES)} if size else ())
    # what reading changes must stay as it is: a file opened at the first sample would be shared with workers
    dataset = _with_copied_parts(dataset, {})
    first, second = [_read(dataset, probe) for probe in probes], [_read(dataset, probe) for probe in probes]
    if any(list(leaves(a)) != list(leaves(b)) for a, b in zip(first, second)):
        warnings.warn(
            f"two reads of a sample of {type(dataset).__name__} differ, as where it draws from a generator of its own: "
            "only its length, labels and structure are fingerprinted. Give it an attribute `fingerprint`, a text that "
            "names its content and order",
            UserWarning,
            stacklevel=2,
        )
        for sample in first:
            digest.update(_structure(sample).encode())
    else:
        for sample in first:
            for leaf in leaves(sample):
                digest.update(leaf)
    return digest.hexdigest()[:32]


def reorders(collate: Callable[[list[Any]], Any], items: list[Any]) -> bool | None:
    """Whether a collate_fn changes the order of the samples, so that positions would belong to others.

    It is called on copies of the items, in order, in order again and in reverse; random states are restored. A batch
    that differs from itself in one order, by masking or mixing at random, says nothing.

    Args:
        collate: makes a batch of a list of items.
        items: of one batch.
    Returns:
        None where these items cannot tell, as where all are equal.
    """
    if len(items) < 2 or _digests(items) == _digests(items[::-1]):
        return None
    with _restored_randomness():
        try:
            given = copy.deepcopy(items)
            listed = list(given)
            forward = collate(listed)
            if len(listed) != len(given) or any(a is not b for a, b in zip(listed, given)):
                return True  # the list itself was sorted, or shortened
            again, backward = collate(copy.deepcopy(items)), collate(copy.deepcopy(items)[::-1])
        except Exception:  # what is wrong with the batch shows where it is collated for the loop
            return None
    content = list(leaves(forward))
    if content != list(leaves(again)) or any(leaf.startswith(_OPAQUE) for leaf in content):
        return False
    if content == list(leaves(backward)):
        return rows(forward) == len(items)
    columns = zip(_columns(forward, len(items)), _columns(backward, len(items)))
    verdicts = {_kept(a, b) for a, b in columns}
    return False in verdicts and True not in verdicts


def rows(batch: Any) -> int | None:
    """Samples in a batch, by its first tensor, array or list; None where it holds none."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return len(batch) if batch.ndim else None
    if isinstance(batch, Mapping):
        parts: list[Any] = list(batch.values())
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        parts = list(batch)
        if parts and (isinstance(parts[0], (str, bytes)) or not isinstance(parts[0], _NESTED)):
            return len(parts)
    else:
        return None
    return next((count for part in parts if (count := rows(part)) is not None), None)


def leaves(item: Any) -> Iterator[bytes]:
    """The parts of a sample or batch, each as bytes."""
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            yield str(key).encode()
            yield from leaves(item[key])
    elif isinstance(item, bytes):
        yield item
    elif isinstance(item, Sequence) and not isinstance(item, str):
        for part in item:
            yield from leaves(part)
    elif isinstance(item, Tensor):
        yield str((item.dtype, tuple(item.shape))).encode()
        yield item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif not isinstance(item, str) and hasattr(item, "tobytes"):  # numpy arrays and Pillow images
        yield item.tobytes()
    elif is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            yield from leaves(getattr(item, field.name))
    else:  # what is no plain value may print its address: then its type must do
        plain = item is None or isinstance(item, (str, int, float, complex))
        yield repr(item).encode() if plain else _OPAQUE + type(item).__name__.encode()


def _with_copied_parts(whole: Any, copies: dict[int, Any]) -> Any:
    """A shallow copy, whose datasets, transforms and generators are copies, too; `copies` has them by `id`."""
    copied = copies[id(whole)] = copy.copy(whole)
    if copied is not whole and hasattr(copied, "__dict__"):
        vars(copied).update({name: _copied(part, copies) for name, part in vars(copied).items()})
    return copied


def _copied(part: Any, copies: dict[int, Any]) -> Any:
    if id(part) in copies:
        return copies[id(part)]
    if isinstance(part, _GENERATORS):
        return copies.setdefault(id(part), copy.deepcopy(part))
    if type(part) in (list, tuple) and len(part) <= _PARTS:
        return type(part)(_copied(each, copies) for each in part)
    if type(part) is dict and len(part) <= _PARTS:
        return {name: _copied(each, copies) for name, each in part.items()}
    kind = type(part)
    # a pickling of its own may write files or connect again
    plain = kind.__reduce__ is object.__reduce__ and kind.__getstate__ is object.__getstate__
    holds_state = hasattr(part, "__dict__") and not isinstance(part, (Tensor, type))
    if isinstance(part, Dataset) or (holds_state and plain and (callable(part) or hasattr(kind, "__getitem__"))):
        return _with_copied_parts(part, copies)
    return part


def _read(dataset: Any, place: int) -> Any:
    with _restored_randomness():
        torch.manual_seed(place)
        np.random.seed(place)
        random.seed(place)
        return dataset[place]


@contextmanager
def _restored_randomness() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _structure(item: Any) -> str:
    """Names of types, with a mapping's keys."""
    if isinstance(item, Mapping):
        return "{" + ",".join(f"{key}:{_structure(item[key])}" for key in sorted(item, key=str)) + "}"
    if isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        return "[" + ",".join(_structure(part) for part in item) + "]"
    return f"{type(item).__name__} {item.dtype}" if isinstance(item, (Tensor, np.ndarray)) else type(item).__name__


def _all_labels(dataset: Any, size: int) -> bytes:
    labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    if not isinstance(labels, np.ndarray | list) or len(labels) != size:
        return b""
    plain = isinstance(labels, np.ndarray) or all(isinstance(label, int | float) for label in labels)
    return np.asarray(labels).tobytes() if plain and np.asarray(labels).dtype.kind in "iufb" else b""


def _digests(items: Sequence[Any]) -> list[bytes]:
    return [hashlib.sha256(b"\0".join(leaves(item))).digest() for item in items]


def _columns(batch: Any, size: int) -> Iterator[list[bytes]]:
    """Parts of a batch that hold one row for each of its samples, as digests of the rows."""
    if isinstance(batch, Tensor):
        batch = batch.detach().cpu().numpy() if batch.dtype != torch.bfloat16 else batch.detach().cpu().float().numpy()
    if isinstance(batch, np.ndarray):
        # a permutation says where samples went, as in a PackedSequence, and is no part of them
        if batch.shape[:1] == (size,) and not np.array_equal(np.sort(batch), np.arange(size)):
            yield _digests([row.tobytes() for row in batch])
    elif isinstance(batch, Mapping):
        for key in sorted(batch, key=str):
            yield from _columns(batch[key], size)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        if len(batch) == size:
            yield _digests(batch)
        for part in batch:
            yield from _columns(part, size)


def _kept(forward: list[bytes], backward: list[bytes]) -> bool | None:
    """Whether rows are reversed where the items were; None where they say nothing of the order."""
    if sorted(forward) != sorted(backward) or forward == backward or forward == forward[::-1]:
        return None
    return forward == backward[::-1]
