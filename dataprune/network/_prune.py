"""Pruning of a model at once or gradually, and masks applied to another one: of single weights or of channels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, check_known
from . import channels
from . import layers as _layers
from .layers import Exclude, Masks, check_hooked, install

Schedule = Callable[[int], float]  # optimizer steps taken -> share of the weights that is zero, in [0, 1)

_log = logging.getLogger("dataprune.network")


def prune(
    model: nn.Module,
    amount: float,
    *,
    scope: str = "layer",
    granularity: str = "weight",
    exclude: Exclude = (),
    example_inputs: Any = None,
    seed: int = 0,
) -> Masks:
    """Prune the convolutions and linear layers of a model in place, smallest magnitudes first.

    With `granularity="weight"` the smallest |w| get a mask of `torch.nn.utils.prune`, and are exactly zero in every
    later forward pass, whatever optimizer, momentum or weight decay do to the values under the mask. `amount` is the
    share of zeros after the call, to the nearest weight, of each layer or of all together. Weights that are pruned
    already stay pruned and count, so that pruning again to the same amount changes nothing. Parameters stay the same
    objects, so that an optimizer built before the call can go on.

    With `granularity="channel"` output channels are removed, and everything that depends on them: parameters, FLOPs
    and time fall. Layers whose channels are added up or normalised together lose the same channels; those that give
    the model's output keep all channels. `amount` is the share of channels removed by this call, of each set of coupled
    layers or of all together. The parameters are new: build the optimizer afterwards.

    Args:
        amount: share to prune, in [0, 1); 0 changes nothing.
        scope: "layer" ranks within each layer, and leaves it one weight or channel at least. "global" ranks across
            layers: weights as they are, channels relative to the mean of their layer.
        exclude: layers, by name or as modules with all in them, that keep all their weights or output channels.
        example_inputs: a batch: a tensor, a tuple of positional or a dict of keyword arguments. Needed for channels
            only, whose dependencies are found by a forward pass.
        seed: decides between equal magnitudes.
    Returns:
        Masks of every layer with pruned weights; or, for channels, one mask for each set of coupled layers that lost
        some in this call, under the name of one of them.
    Raises:
        TypeError: if the amount is not a number, or `example_inputs` are needed and missing.
        ValueError: if an argument is out of range, there is no layer to prune, a weight is not finite, a layer would
            lose its last channel, or a model to lose channels has masks.
        ImportError: if torch-pruning is needed and missing.
    Example:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> model.weight.data = torch.tensor([[0.1, -0.4, 0.3, -0.2]])
        >>> prune(model, 0.5).keep["weight"]
        tensor([[False,  True,  True, False]])

    Source: Han et al. 2015, arXiv:1506.02626, for weights; as a step between coreset training and fine-tuning, Gupta et
        al., "Drop it like it's hot: network pruning with data selection", Section 4.4. Differs: the masks stay on while
        the model is fine-tuned. Channels: L1 norm of the filters, Li et al. 2017, arXiv:1608.08710, and dependencies as
        in Fang et al. 2023, arXiv:2301.12900. Differs: a filter's norm is divided by the layer's mean norm and averaged
        over coupled layers.
    """
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise TypeError(f"amount is the share to prune, a number in [0, 1), got {type(amount).__name__}")
    if not 0 <= amount < 1:
        raise ValueError(f"amount is the share to prune, in [0, 1), got {amount}; 0.8 prunes four fifths")
    check_known(scope, ("layer", "global"), what="scope")
    check_known(granularity, ("weight", "channel"), what="granularity")
    layers = _layers.prunable(model, exclude)
    _layers.check(layers)
    generator = torch.Generator().manual_seed(seed)
    if granularity == "channel":
        return Masks(channels.prune(model, amount, scope, layers, example_inputs, generator))
    check_hooked(model, layers)
    values, pruned = zip(*map(_layers.magnitudes, layers.values()))
    drops = _layers.smallest(values, amount, scope, generator, pruned=pruned, leave=1)
    for (name, layer), value, drop in zip(layers.items(), values, drops):
        keep = ~drop.to(value.device).view_as(_layers.effective(layer))
        if _layers.masked(layer) or not keep.all():
            install(layer, keep)
        if not keep.any():
            _log.warning("layer %r has no weight left: use scope='layer', a smaller amount, or exclude it", name)
    masked = {name: layer for name, layer in _layers.prunable(model).items() if _layers.masked(layer)}
    return Masks({_layers.weight_name(name): layer.get_buffer("weight_mask").bool() for name, layer in masked.items()})


def apply(model: nn.Module, masks: Masks, *, example_inputs: Any = None) -> None:
    """Apply masks to a model, so that it has the same sparsity as the model the masks came from, and loads its state.

    A mask replaces the layer's present one; layers without a mask in `masks` are not changed, nor are the weights under
    a mask. `example_inputs` and the errors for channels are those of `prune`.

    Args:
        model: model of the same architecture, unpruned if `masks` are of channels; changed in place.
        masks: from `prune` or `Masks.of`.
    Raises:
        ValueError: if a layer is missing or has another shape, or channels were removed already.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> apply(model, Masks({"0.weight": torch.tensor([[True, False]])}))
        >>> sorted(model.state_dict())
        ['0.bias', '0.weight_mask', '0.weight_orig']
    """
    layers = {_layers.weight_name(name): layer for name, layer in _layers.prunable(model).items()}
    of_channels = all(keep.ndim == 1 for keep in masks.keep.values())
    for name, keep in masks.keep.items():
        check_known(name, layers, what="weight in these masks")
        shape = tuple(_layers.effective(layers[name]).shape)
        if not of_channels and tuple(keep.shape) != shape:
            raise ValueError(f"the mask of {name!r} is {tuple(keep.shape)}, the weight {shape}: another architecture")
    if not masks.keep:
        return
    if of_channels:
        channels.remove(model, masks.keep, example_inputs)
        return
    masked = {name: layers[name] for name in masks.keep}
    _layers.check(masked)
    check_hooked(model, masked)
    for name, keep in masks.keep.items():
        install(layers[name], keep)


def cubic(final: float, steps: int, *, initial: float = 0.0, start: int = 0, every: int = 1) -> Schedule:
    """Prune quickly at first, and ever more slowly towards the final share.

    Args:
        final: share pruned from step `start` + `steps` on, in [0, 1).
        steps: optimizer steps from `initial` to `final`, at least 1.
        initial: share pruned at step `start`, in [0, 1).
        start: step at which pruning starts; nothing is pruned before.
        every: steps between two prunings; the share stays the same in between.
    Raises:
        ValueError: if a share is outside [0, 1), initial is above final, or a number of steps is out of range.
    Example:
        >>> [round(cubic(0.8, 4, start=2)(step), 3) for step in range(8)]
        [0.0, 0.0, 0.0, 0.463, 0.7, 0.788, 0.8, 0.8]

    Source: Zhu and Gupta 2017, arXiv:1710.01878, Eq. 1, `steps` being n·Δt and `every` Δt. Differs: nothing.
    """
    for name, value in (("final", final), ("initial", initial)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is the share pruned, in [0, 1), got {value}")
    if initial > final:
        raise ValueError(f"initial is above final ({initial} > {final}): pruned weights are not restored")
    for name, value, least in (("steps", steps, 1), ("start", start, 0), ("every", every, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")

    def schedule(step: int) -> float:
        if step < start:
            return 0.0
        if step >= start + steps:
            return final
        done = (step - start) // every * every / steps
        return final + (initial - final) * (1 - done) ** 3

    return schedule


class Gradual:
    """Prunes single weights of a model step by step, with masks, following a schedule.

    Args:
        schedule: optimizer steps taken -> share of the weights pruned; pruned weights stay pruned if it falls.
        scope: as `exclude` and `seed` and their errors, that of `prune`.
    Attributes:
        steps: steps taken so far.
        amount: share of the last pruning; 0.0 before the first.
    Example:
        >>> model = nn.Linear(10, 10)
        >>> gradual = Gradual(model, cubic(0.5, steps=2))
        >>> for _ in range(2):  # after every optimizer.step()
        ...     gradual.step()
        >>> int((model.weight == 0).sum())
        50

    Source: Zhu and Gupta 2017, arXiv:1710.01878. Differs: nothing.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, *, scope: str = "layer", exclude: Exclude = (), seed: int = 0
    ):
        self.steps, self.amount = 0, 0.0
        self._model, self._schedule, self._scope, self._seed = model, schedule, scope, seed
        self._exclude = exclude if isinstance(exclude, (str, nn.Module)) else tuple(exclude)
        prune(model, 0.0, scope=scope, exclude=self._exclude)  # raises for wrong arguments now, not during training

    def step(self) -> None:
        """Prune if the schedule's share has risen; call it after every `optimizer.step()`."""
        self.steps += 1
        amount = self._schedule(self.steps)
        if amount > self.amount:
            prune(self._model, amount, scope=self._scope, exclude=self._exclude, seed=self._seed)
            self.amount = amount

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule; the masks are in the model's own state."""
        return {"steps": self.steps, "amount": self.amount}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position in the schedule; apply the masks with `apply` and load the model's state separately."""
        if set(state) != {"steps", "amount"}:
            raise CheckpointError(f"not the state of a Gradual: it holds {', '.join(map(str, state)) or 'nothing'}")
        self.steps, self.amount = state["steps"], state["amount"]
