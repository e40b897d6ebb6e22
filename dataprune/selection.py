"""A selection of samples, in memory and in files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import __version__, files
from .content import fingerprint
from .errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Samples to train, and the multipliers of their losses; its length is the number of samples, K.

    Attributes:
        index: (K,) int64 positions in the dataset, unique.
        weight: (K,) float32 loss multipliers; ones unless the method re-weights.
        by_batch: whether every loss of a batch is multiplied by the mean weight of the batch, not by its own weight.
    """

    index: Int[Tensor, " k"]
    weight: Float[Tensor, " k"]
    by_batch: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> int:
        """The position at a place, as a Python number: torch's `Subset(dataset, selection)` asks for it."""
        return int(self.index[place])

    __iter__ = None  # `index, weight = selection` is a TypeError, also where there are two samples

    def __repr__(self) -> str:
        weighted = "" if bool((self.weight == 1).all()) else ", weighted" + " by batch" * self.by_batch
        return f"Selection({len(self)} samples{weighted})"

    def numpy(self) -> np.ndarray:
        """(K,) int64 positions."""
        return self.index.numpy()

    @classmethod
    def of(cls, index: Int[Tensor, " k"] | np.ndarray | Sequence[int]) -> Selection:
        """A selection of these positions in the dataset (else TypeError), which weights all its samples alike."""
        positions = torch.as_tensor(index)
        if positions.ndim != 1:
            raise ValueError(f"positions must be (K,), got shape {tuple(positions.shape)}")
        whole = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
        if not whole and len(positions):
            raise TypeError(f"positions are whole numbers, got {positions.dtype} (of a mask: mask.nonzero()[:, 0])")
        return cls(positions.to(torch.int64), torch.ones(len(positions)))

    def retention(self, labels: Int[Tensor, " n"]) -> dict[int, tuple[int, int]]:
        """How many samples of each class are selected, and how many there are, of the whole dataset's class ids.

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
        notes["by_batch"] = self.by_batch
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
        """Read what `save` wrote; DataError if it is not a selection, or was made for another dataset than this."""
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
        """What `save` was given as metadata, and what it added: by_batch, versions, fingerprint, size, retention."""
        return _read(path)[1]


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


def _read(path: str | os.PathLike[str]) -> tuple[Selection, dict[str, Any]]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            notes = json.loads((file.metadata() or {})["dataprune"])
            selection = Selection(file.get_tensor("index"), file.get_tensor("weight"), notes.get("by_batch") is True)
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a saved selection ({error})") from error
    if problem := _problem(selection.index, selection.weight):
        raise DataError(f"{path} is not a saved selection ({problem})")
    return selection, notes


def _problem(index: Tensor, weight: Tensor) -> str | None:
    """What is wrong with the content of a file."""
    if index.dtype != torch.int64 or index.ndim != 1 or weight.shape != index.shape or not weight.is_floating_point():
        return (
            f"positions are {index.dtype} {tuple(index.shape)} and weights {weight.dtype} {tuple(weight.shape)}, where "
            "int64 (K,) and float32 (K,) are needed"
        )
    if len(index) and int(index.min()) < 0:
        return f"position {int(index.min())} is negative"
    if len(index.unique()) < len(index):
        return f"{len(index)} positions, only {len(index.unique())} of them different"
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        return "a weight is negative or not finite"
    return None
