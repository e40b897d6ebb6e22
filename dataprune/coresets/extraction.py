"""Extraction of features, logits and labels of a whole dataset in one pass of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from ..content import reorders
from ..modules import device_of, has_bias, inference, linear_layers, trace_last_layer
from .budget import check_labels


@dataclass(frozen=True, eq=False)
class Extracted:
    """Features, logits and labels of a dataset, in its order, on the CPU."""

    features: Float[Tensor, "n d"]  # input of the last linear layer, float32 or float64
    logits: Float[Tensor, "n c"]  # its output
    labels: Integer[Tensor, " n"]  # int64 class ids
    bias: bool = True  # whether that layer has one

    def errors(self) -> Float[Tensor, "n c"]:
        """Compute softmax(logits) − onehot(labels); ValueError if labels are no class ids of these logits."""
        size, classes = self.logits.shape
        labels = check_labels(self.labels, size)
        if size and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ValueError(
                f"labels must be in [0, {classes}), as logits have {classes} columns, got {int(labels.min())} to "
                f"{int(labels.max())}"
            )
        result = self.logits.softmax(1)
        result[torch.arange(len(result)), self.labels] -= 1
        return result


def extract(model: nn.Module, loader: Iterable[Any]) -> Extracted:
    """Run a model over a dataset, and collect the input and output of its last linear layer, and the labels.

    The layer is the `nn.Linear` whose output the model returns as logits, found by forward hooks at the first batch. A
    batch is (inputs, ..., labels), and the model is called with all but the labels, or a mapping with `labels` or
    `label`, and the model is called with the others by name. After the labels may stand the samples' positions, which
    are left out. The model may return a tensor, an object or a mapping with `logits`, or a tuple that begins with them.

    The pass runs in evaluation mode without gradients, on the model's device; modes and torch's random state are
    restored.

    Args:
        model: ends in a linear layer.
        loader: a DataLoader that goes through the dataset once and in order; or any iterable of batches, in its order.
    Raises:
        TypeError: if the loader shuffles, chooses samples or streams, its collate_fn reorders them, or a batch or an
            output has an unknown form.
        ValueError: if no linear layer produces the logits, the labels do not fit, or samples are missing.
    Example:
        >>> batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
        >>> extract(nn.Linear(3, 2), batches).features.shape
        torch.Size([2, 3])
    """
    size = check_order(loader) if isinstance(loader, DataLoader) else None
    layers = linear_layers(getattr(model, "_orig_mod", model))  # hooks inside a compiled model may not run
    parts = _forward(getattr(model, "_orig_mod", model), layers, loader)
    columns = [torch.cat(values) for values in zip(*parts)] if size is None else _joined(parts, size)
    if not columns:
        raise ValueError("the loader yields no batch")
    features, logits, labels = columns
    return Extracted(features, logits, labels, has_bias(layers[0]))


def _forward(model: nn.Module, layers: list[nn.Module], loader: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Features, logits and labels of each batch, on the CPU; of `layers` only the last layer remains."""
    done, numbered = 0, False
    with inference(model):
        for batch in loader:
            if done == 0:
                numbered = _ends_with_positions(batch, 0) and len(batch[-1]) > 1
            elif numbered and not _ends_with_positions(batch, done):
                raise ValueError(
                    "the first batch ends with the samples' positions, a later one does not: yield neither"
                )
            labels, arguments, named = _split(batch[:-1] if numbered else batch, device_of(model))
            layer, features, logits = trace_last_layer(model, layers, arguments, named)
            layers[:] = [layer]
            done += len(logits)
            if len(arguments) > 1 and labels.ndim == 1 and len(labels) and int(labels.max()) >= logits.shape[1]:
                raise ValueError(
                    f"the last part of a batch is taken for labels, but holds {int(labels.max())} where the model has "
                    f"{logits.shape[1]} classes: let the dataset yield (inputs, labels), without an index"
                )
            if labels.shape != (len(logits),):
                raise ValueError(f"labels must be (B,) = ({len(logits)},) class ids, got {tuple(labels.shape)}")
            yield [value.to("cpu", _dtype(value)) for value in (features, logits, labels)]


def _joined(parts: Iterable[list[Tensor]], size: int) -> list[Tensor]:
    """Join batches of `size` samples in all, in memory that is allocated once."""
    columns: list[Tensor] = []
    done = 0
    for rows in parts:
        columns = columns or [value.new_empty(size, *value.shape[1:]) for value in rows]
        end = done + len(rows[0])
        if end > size:
            raise ValueError(f"the loader yields more samples than the {size} of its dataset")
        for column, value in zip(columns, rows):
            column[done:end] = value
        done = end
    if columns and done != size:
        raise ValueError(f"the loader yielded {done} of its dataset's {size} samples: all are needed")
    return columns


def check_order(loader: DataLoader) -> int:
    """Return the length of a loader's dataset; TypeError unless it surely goes through it once and in order."""
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "the loader streams an IterableDataset, which has no positions to select: use a map-style dataset"
        )
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", None)
    plain = batches is None or (isinstance(batches, BatchSampler) and type(batches).__name__ == "BatchSampler")
    # by name as well: StatefulDataLoader brings samplers of its own
    sequential = isinstance(sampler, SequentialSampler) or type(sampler).__name__ == "SequentialSampler"
    if not plain or not sequential or not getattr(loader, "in_order", True):
        culprit = sampler if plain else batches
        raise TypeError(
            f"the loader ({type(culprit).__name__}) may not go through the dataset in its order, so that results would "
            "belong to other samples: build one with shuffle=False, and without a sampler"
        )
    size = len(cast(Sized, loader.dataset))
    _check_collate(loader, size)
    if loader.drop_last and size % (loader.batch_size or 1):
        raise TypeError(f"the loader drops the last {size % (loader.batch_size or 1)} samples: set drop_last=False")
    return size


def _check_collate(loader: DataLoader, size: int) -> None:
    """Raise TypeError if a collate_fn changes the order of the samples."""
    if loader.batch_sampler is None or loader.collate_fn is default_collate:
        return
    dataset = copy.copy(loader.dataset)  # a file that it opens at the first sample must not be shared with workers
    with torch.random.fork_rng(devices=[]):
        items = [dataset[place] for place in range(min(size, loader.batch_size or 2))]
    if reorders(loader.collate_fn, items):
        raise TypeError(
            "the loader's collate_fn changes the order of the samples, so that results would belong to others: let it "
            "keep the order of its list, as one without sorting does"
        )


def _ends_with_positions(batch: Any, done: int) -> bool:
    """Whether labels and the samples' positions end a batch that `done` samples came before."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 3:
        return False
    columns = all(isinstance(part, Tensor) and part.ndim == 1 and part.dtype == torch.int64 for part in batch[-2:])
    return columns and torch.equal(batch[-1].cpu(), torch.arange(done, done + len(batch[-1])))


def _split(batch: Any, device: torch.device) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Split a batch into labels, and positional and keyword arguments of the model on its device."""
    if isinstance(batch, Mapping):
        name = next((name for name in ("labels", "label") if name in batch), None)
        if name is None:
            raise TypeError(f"the batch has neither `labels` nor `label`, but {', '.join(map(str, batch))}")
        named = {key: _move(value, device) for key, value in batch.items() if key != name}
        return torch.as_tensor(batch[name]), (), named
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], (tuple, list, Mapping)):
        raise TypeError("the batch is (index, batch), as of a pruned loader: build a loader on the dataset itself")
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return torch.as_tensor(batch[-1]), tuple(_move(value, device) for value in batch[:-1]), {}
    raise TypeError(f"a batch must be (inputs, ..., labels) or a mapping with `labels`, got {type(batch).__name__}")


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if hasattr(value, "to") else value


def _dtype(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else torch.int64
