"""Features before the last linear layer, logits and labels of a whole dataset, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from ..modules import device_of, inference, linear_layers, trace_last_layer
from .inputs import check_labels


class Extracted(NamedTuple):
    """What a model makes of a dataset, in the dataset's order, on the CPU.

    Attributes:
        features: (N, D) input of the last linear layer, float32 or float64.
        logits: (N, C) its output.
        labels: (N,) int64 class ids.
    """

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]

    def errors(self) -> Float[Tensor, "n c"]:
        """softmax(logits) − onehot(labels), which the selection from gradients takes.

        Raises:
            ValueError: if labels are no class ids of these logits.
        """
        size, classes = self.logits.shape
        labels = check_labels(self.labels, size)
        if labels is not None and size and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ValueError(
                f"labels must be in [0, {classes}), as logits have {classes} columns, got {int(labels.min())} to "
                f"{int(labels.max())}"
            )
        result = self.logits.softmax(1)
        result[torch.arange(len(result)), self.labels] -= 1
        return result


def extract(model: nn.Module, loader: Iterable[Any]) -> Extracted:
    """Run a model over a dataset and keep what enters its last linear layer, what comes out, and the labels.

    The layer is the `nn.Linear` whose output the model returns as logits, found by forward hooks at the first batch. A
    batch is (inputs, ..., labels), and the model is called with all but the labels, or a mapping with `labels` or
    `label`, and the model is called with the others by name. The model may return a tensor, an object or a mapping with
    `logits`, or a tuple that begins with them.

    The model is in evaluation mode during the pass, on the device on which it is, and every module's mode is restored;
    no gradient is recorded, and torch's random state is left as it was. It keeps N·(C + D) values.

    Args:
        model: ends in a linear layer.
        loader: a DataLoader that goes through the dataset once and in its order; of any other iterable of batches, the
            order is that in which they come.
    Raises:
        TypeError: if the loader shuffles, chooses samples or streams, or a batch or an output is of no known form.
        ValueError: if no linear layer produces the logits, the labels do not fit, or not every sample came.
    Example:
        >>> batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
        >>> extract(nn.Linear(3, 2), batches).features.shape
        torch.Size([2, 3])
    """
    size = check_order(loader) if isinstance(loader, DataLoader) else None
    model = getattr(model, "_orig_mod", model)  # hooks inside a compiled model may not run
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    whole: tuple[Tensor, Tensor, Tensor] | None = None
    done = 0
    layers = linear_layers(model)
    # iterating a DataLoader draws from the global generator
    with inference(model):
        for batch in loader:
            labels, arguments, named = _split(batch, device_of(model))
            layer, features, logits = trace_last_layer(model, layers, arguments, named)
            layers = [layer]
            if labels.shape != (len(logits),):
                raise ValueError(f"labels must be (B,) = ({len(logits)},) class ids, got {tuple(labels.shape)}")
            rows = tuple(value.to("cpu", _dtype(value)) for value in (features, logits, labels))
            if size is None:
                parts.append(rows)  # type: ignore[arg-type]
                continue
            if whole is None:
                whole = tuple(value.new_empty(size, *value.shape[1:]) for value in rows)  # type: ignore[assignment]
            if done + len(labels) > size:
                raise ValueError(f"the loader yields more samples than the {size} of its dataset")
            for store, value in zip(whole or (), rows):
                store[done : done + len(labels)] = value
            done += len(labels)
    if size is None and parts:
        return Extracted(*(torch.cat(column) for column in zip(*parts)))
    if whole is None:
        raise ValueError("the loader yields no batch")
    if done != size:
        raise ValueError(f"the loader yielded {done} of its dataset's {size} samples: all are needed")
    return Extracted(*whole)


def check_order(loader: DataLoader) -> int:
    """The dataset's length, if the loader goes through it once and in order.

    Raises:
        TypeError: if it does not, or cannot be known to.
    """
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
    size = len(loader.dataset)  # type: ignore[arg-type]
    if loader.drop_last and size % (loader.batch_size or 1):
        raise TypeError(f"the loader drops the last {size % (loader.batch_size or 1)} samples: set drop_last=False")
    return size


def _split(batch: Any, device: torch.device) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Labels, and the model's positional and named arguments on its device."""
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
