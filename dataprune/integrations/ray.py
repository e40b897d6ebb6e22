"""Ray Train on what a pruner selects: a loader that Ray prepares, whose sampler it leaves alone."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from ..errors import needs
from ..loading import prune_loader
from ..pruner import Pruner


def prepare_data_loader(loader: DataLoader, pruner: Pruner, **options: Any) -> DataLoader:
    """Your loader, pruned and prepared: `dataprune.prune_loader`, then Ray's function of this name, in one call.

    Ray's own puts a DistributedSampler over the whole dataset in the place of any other sampler, unless it is told
    `add_dist_sampler=False`: nothing would be pruned. Call it in the training function, where the ranks are known.

    Args:
        loader: as for `dataprune.prune_loader`; one that Ray has not prepared.
        pruner: built alike in every worker, with size=len(loader.dataset).
        options: of `ray.train.torch.prepare_data_loader`: move_to_device, auto_transfer.
    Returns:
        A loader that yields (index, batch) on the worker's device.
    Raises:
        TypeError, ValueError: as `dataprune.prune_loader`; also for `add_dist_sampler`, or a loader that is prepared.
        ImportError: without Ray.
    """
    with needs("Ray Train needs Ray", "ray"):
        from ray.train.torch import prepare_data_loader as prepare
    if "add_dist_sampler" in options:
        raise TypeError("add_dist_sampler is always False here: Ray's sampler would undo the pruning")
    if type(loader).__module__.partition(".")[0] == "ray":
        raise TypeError(
            "Ray has prepared this loader already, and replaced its sampler: give the loader that "
            "ray.train.torch.prepare_data_loader was given, in its place"
        )
    return prepare(prune_loader(loader, pruner), add_dist_sampler=False, **options)
