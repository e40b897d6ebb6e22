"""A selection of samples, and the fingerprint of the dataset it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import __version__, files
from .errors import DataError

_PROBES = 16  # samples of a dataset that its fingerprint reads


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Samples to train, and the multipliers of their losses; its length is the number of samples, K.

    Attributes:
        index: (K,) int64 positions in the dataset, unique.
        weight: (K,) float32 loss multipliers; ones unless the method re-weights.
    """

    index: Int[Tensor, " k"]
    weight: Float[Tensor, " k"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> int:
        """The position at a place, as a Python number: torch's `Subset(dataset, selection)` asks for it."""
        return int(self.index[place])

    __iter__ = None  # `index, weight = selection` is a TypeError, also where there are two samples

    def __repr__(self) -> str:
        weighted = "" if bool((self.weight == 1).all()) else ", weighted"
        return f"Selection({len(self)} samples{weighted})"

    def numpy(self) -> np.ndarray:
        """(K,) int64 positions."""
        return self.index.numpy()

    @classmethod
    def of(cls, index: Int[Tensor, " k"]) -> Selection:
        """A selection that weights all its samples alike."""
        return cls(index, torch.ones(len(index)))

    def retention(self, labels: Int[Tensor, " n"]) -> dict[int, tuple[int, int]]:
        """How many samples of each class are selected, and how many there are.

        Args:
            labels: class ids of the whole dataset.
        Example:
            >>> Selection.of(torch.tensor([0, 1])).retention(torch.tensor([5, 7, 7]))
            {5: (1, 1), 7: (1, 2)}
        """
        classes, place = torch.unique(labels.cpu(), return_inverse=True)
        total = torch.bincount(place, minlength=len(classes))
        kept = torch.bincount(place[self.index], minlength=len(classes))
        return dict(zip(classes.tolist(), zip(kept.tolist(), total.tolist())))

    def save(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any] | None = None,
        *,
        dataset: Any = None,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Write a safetensors file, whole or not at all. The versions of this library and of torch are noted in it.

        Args:
            path: file to write; its folder must exist.
            metadata: what should travel with it (method, keep, seed ...): anything JSON can hold.
            dataset: map-style dataset the positions refer to; its size and fingerprint are stored, and `load` checks
                them. The fingerprint alone may stand for it, as text.
            labels: class ids of the whole dataset; then `retention` is stored, as lists [class, kept, of].
        """
        notes = dict(metadata or {})
        notes["versions"] = {"dataprune": __version__, "torch": torch.__version__}
        if dataset is not None:
            notes["fingerprint"] = dataset if isinstance(dataset, str) else fingerprint(dataset)
            if not isinstance(dataset, str):
                notes["size"] = len(dataset)
                if len(self.index) and int(self.index.max()) >= len(dataset):
                    raise ValueError(
                        f"the selection has position {int(self.index.max())}, the dataset {len(dataset)} samples"
                    )
        if labels is not None:
            notes["size"] = len(labels)
            notes["retention"] = [[name, *numbers] for name, numbers in self.retention(labels).items()]
        payload = save(
            {"index": self.index.contiguous(), "weight": self.weight.contiguous()},
            metadata={"dataprune": json.dumps(notes)},
        )
        files.write_bytes(path, payload)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: Any = None) -> Selection:
        """Read what `save` wrote.

        Args:
            path: the file.
            dataset: refuse the file unless it was made for this dataset.
        Raises:
            DataError: if the file is not a selection, or belongs to a dataset with another fingerprint.
        """
        selection, notes = _read(path)
        if dataset is None:
            return selection
        if len(selection.index) and int(selection.index.max()) >= len(dataset):
            raise DataError(
                f"{path} selects position {int(selection.index.max())}, but the dataset has {len(dataset)} samples: "
                "it was made for another dataset"
            )
        if notes.get("size", len(dataset)) != len(dataset):
            raise DataError(
                f"{path} was made for {notes['size']} samples, the dataset has {len(dataset)}: it was made for another "
                "dataset"
            )
        stored = notes.get("fingerprint")
        if stored is None:
            warnings.warn(f"{path} stores no fingerprint, so that only its size could be checked", stacklevel=2)
        elif stored != fingerprint(dataset):
            raise DataError(
                f"{path} was made for another dataset: the fingerprints differ (another subset, split or set of labels "
                "makes another). Select again on this one"
            )
        return selection

    @staticmethod
    def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
        """What `save` was given as metadata, and what it added: versions, fingerprint, size, retention."""
        return _read(path)[1]


def fingerprint(dataset: Any) -> str:
    """A short text that tells datasets apart: a hash of the length and of sixteen samples spread over it.

    Where the dataset holds its labels as `labels` or `targets` (a tensor, an array, a list of numbers), all of them
    count, so that a few changed labels show. Samples are read twice; what differs between the two reads (random
    augmentation) does not count. The global random state is left as it was. A dataset may have a text attribute
    `fingerprint` of its own, which is then used.

    Args:
        dataset: map-style dataset with `__len__` and `__getitem__`.
    """
    declared = getattr(dataset, "fingerprint", None)
    if isinstance(declared, str):
        return declared
    size = len(dataset)
    digest = hashlib.sha256(str(size).encode())
    digest.update(_all_labels(dataset, size))
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        for probe in sorted({round(i * (size - 1) / (_PROBES - 1)) for i in range(_PROBES)} if size else ()):
            first, second = list(_leaves(dataset[probe])), list(_leaves(dataset[probe]))
            for leaf, again in zip(first, second, strict=False):
                digest.update(leaf if leaf == again else b"?")
    random.setstate(states[0])
    np.random.set_state(states[1])
    return digest.hexdigest()[:32]


def pack(index: Int[Tensor, " k"], size: int) -> Tensor:
    """Positions as a bit per sample (uint8) where they ascend, else as they are (int64)."""
    if len(index) > 1 and not bool((index[1:] > index[:-1]).all()):
        return index.clone()
    mask = np.zeros(size, dtype=np.bool_)
    mask[index.numpy()] = True
    return torch.from_numpy(np.packbits(mask))


def unpack(packed: Tensor, size: int) -> Int[Tensor, " k"]:
    """What `pack` was given."""
    if packed.dtype == torch.int64:
        return packed.clone()
    return torch.from_numpy(np.flatnonzero(np.unpackbits(packed.numpy(), count=size)))


def _all_labels(dataset: Any, size: int) -> bytes:
    labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    if not isinstance(labels, np.ndarray | list) or len(labels) != size:
        return b""
    plain = isinstance(labels, np.ndarray) or all(isinstance(label, int | float) for label in labels)
    return np.asarray(labels).tobytes() if plain and np.asarray(labels).dtype.kind in "iufb" else b""


def _leaves(item: Any) -> Iterator[bytes]:
    """The parts of a sample, each as bytes."""
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            yield str(key).encode()
            yield from _leaves(item[key])
    elif isinstance(item, bytes):
        yield item
    elif isinstance(item, Sequence) and not isinstance(item, str):
        for part in item:
            yield from _leaves(part)
    elif isinstance(item, Tensor):
        yield str((item.dtype, tuple(item.shape))).encode()
        yield item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif not isinstance(item, str) and hasattr(item, "tobytes"):  # numpy arrays and Pillow images
        yield item.tobytes()
    else:  # what is no plain value may print its address: then its type must do
        plain = item is None or isinstance(item, (str, int, float, complex))
        yield (repr(item) if plain else type(item).__name__).encode()


def _read(path: str | os.PathLike[str]) -> tuple[Selection, dict[str, Any]]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            notes = json.loads((file.metadata() or {})["dataprune"])
            return Selection(file.get_tensor("index"), file.get_tensor("weight")), notes
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a saved selection ({error})") from error
