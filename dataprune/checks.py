"""Errors raised where the mistake is made: what a batch, a selection, the ranks and a trained epoch must be."""

from __future__ import annotations

import math
import sys
import warnings
import zlib
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import distributed
from .errors import CheckpointError, PlanError
from .selection import Selection

if TYPE_CHECKING:
    from .epoch import Epoch

_LOOKS = 8  # rows of outputs that must be probabilities before they are refused: one may be so by chance
_ROUNDING = 2**-8  # of the sum of probabilities in bfloat16
_SHOWN = 5  # positions named in a message
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_batch(index: Tensor, losses: Tensor) -> None:
    """Raise unless both are (B,): whole numbers, and one loss per sample."""
    if not isinstance(index, Tensor) or not isinstance(losses, Tensor):
        raise TypeError(
            f"index and losses must be tensors, got {type(index).__name__} and {type(losses).__name__}: a pruned "
            "loader yields (index, batch), so `for step, (index, batch) in enumerate(loader)`"
        )
    if losses.ndim == 0:
        raise ValueError(
            "losses is a single number, one per sample is needed: compute the loss with reduction='none', and average "
            "over anything but the batch"
        )
    if not losses.is_floating_point():
        raise TypeError(f"losses must be floating point, got {losses.dtype}")
    if index.dtype not in WHOLE:
        raise TypeError(f"index must hold whole numbers (torch.int64), got {index.dtype}")
    if index.ndim != 1 or losses.shape != index.shape:
        raise ValueError(
            f"index {tuple(index.shape)} and losses {tuple(losses.shape)} must both be (B,): one position and one loss "
            "per sample (a collate_fn that drops samples must drop their positions: it may drop those that are None)"
        )


def check_floating(name: str, value: object, what: str = "") -> None:
    """Raise TypeError unless `value` is a floating-point tensor; `what` goes on to say of what."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor{what}, got {kind}")


def check_index(index: Tensor, size: int) -> tuple[int, int]:
    """Raise IndexError unless positions on the CPU are in [0, size); returns the lowest and the highest."""
    if not index.numel():
        return size, -1
    low, high = map(int, torch.aminmax(index))
    if low < 0 or high >= size:
        raise IndexError(
            f"index holds {low} to {high}, but the dataset has positions 0 to {size - 1}: pass the positions that came "
            "with the batch"
        )
    return low, high


def check_scores(score: Tensor) -> None:
    """Raise ValueError where scores on the CPU are not finite in float32, as they are kept."""
    # the sum is the quick look; it may overflow, so the rest has the last word
    if not math.isfinite(score.float().sum()) and (bad := int((~score.float().isfinite()).sum())):
        raise ValueError(
            f"{bad} of {len(score)} scores are NaN or infinite (or beyond float32): the losses or outputs of this "
            "batch are. Training has diverged: lower the learning rate, or leave the batch out before recording it; a "
            "CTC loss is infinite where a target is longer than its input (zero_infinity=True)"
        )


def fits(shape: Sequence[int], expected: Sequence[int] | None) -> bool:
    """Whether a tensor's shape is the expected one, in which -1 stands for any number."""
    return (
        expected is not None
        and len(shape) == len(expected)
        and all(wanted in (-1, given) for given, wanted in zip(shape, expected, strict=True))
    )


class Logits:
    """Looks at the first outputs of a run: probabilities in the place of logits are refused.

    The softmax of a softmax is nearly uniform, so that scores lose their meaning without an error. Outputs on a GPU are
    read by `problem` alone, which waits for it.
    """

    def __init__(self, expected: bool = True):
        self._rows = 0 if expected else _LOOKS
        self._probable: Tensor | None = None  # (), bool: whether all rows so far are probabilities

    def look(self, outputs: Any) -> None:
        """Take in outputs; raise ValueError if they, on the CPU, are probabilities. What is not (B, C) or (B, S, C), or
        comes after the first rows, is passed over.
        """
        if self._rows >= _LOOKS or not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return
        if outputs.ndim not in (2, 3) or outputs.shape[-1] < 2 or outputs.numel() == 0:
            return
        outputs = outputs.detach()
        low, high = torch.aminmax(outputs)
        probable = (low >= 0) & (high <= 1)
        probable &= torch.stack([_sum_to_one(outputs, dim) for dim in (-1, 1)[: outputs.ndim - 1]]).any()
        self._probable = probable if self._probable is None else self._probable & probable
        self._rows += outputs[..., 0].numel()
        if outputs.is_cpu and (error := self.problem()):
            raise error

    def problem(self) -> ValueError | None:
        """The error to raise where the first outputs were probabilities."""
        if self._probable is None:
            return None
        if not bool(self._probable):
            self._probable, self._rows = None, _LOOKS
        elif self._rows >= _LOOKS:
            self._probable, self._rows = None, 0
            return ValueError(
                "outputs are probabilities (every row is in [0, 1] and sums to 1), logits are needed: their softmax is "
                "taken here, and that of probabilities is nearly uniform. Pass what the model returns before its "
                "softmax; the logarithms of probabilities will do"
            )
        return None


def _sum_to_one(outputs: Tensor, dim: int) -> Tensor:
    return ((outputs.sum(dim, dtype=torch.float32) - 1).abs() <= _ROUNDING).all()


def check_positions(selection: Selection, size: int, *, what: str) -> None:
    """Raise ValueError unless a selection has unique positions in the dataset, at least one, and a weight for each."""
    index = selection.index.numpy()
    if index.dtype != np.int64 or index.ndim != 1:
        raise ValueError(f"{what} must be (K,) int64 positions, got {selection.index.dtype} {tuple(index.shape)}")
    if len(index) == 0 or len(selection.weight) != len(index):
        raise ValueError(f"{what} has {len(index)} positions and {len(selection.weight)} weights")
    if index.min() < 0 or index.max() >= size:
        raise ValueError(f"{what} has positions {index.min()} to {index.max()}, the dataset {size} samples")
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[index] = True
    unique = int(np.count_nonzero(chosen))
    if unique != len(index):
        raise ValueError(f"{what} has {len(index)} positions, but only {unique} different ones")


def check_selection(selection: Selection, size: int, count: int, *, exact: bool) -> None:
    """Raise ValueError unless what a policy returned is a selection, of as many samples as asked for."""
    check_positions(selection, size, what="the policy's selection")
    if exact and len(selection.index) != count:
        raise ValueError(
            f"the policy returned {len(selection.index)} positions where {count} were asked for: a policy that decides "
            "itself how many it keeps says so with an attribute `exact = False`"
        )


def check_schema(state: Any, owner: str, schema: int, part: str) -> None:
    """Raise CheckpointError unless this is a state of a pruner or recorder, which has a `part`, of this schema."""
    if not isinstance(state, dict) or "schema" not in state or part not in state:
        raise CheckpointError(f"this is not the state of a {owner}: pass what `state_dict()` returned")
    if state["schema"] != schema:
        raise CheckpointError(
            f"this state has schema {state['schema']}, this version reads schema {schema}: resume with the version "
            "that wrote it, or start again"
        )


def check_state(state: dict[str, Any], size: int, epochs: int, values: tuple[int, ...] = ()) -> None:
    """Raise CheckpointError unless a pruner's state is whole: every entry of its type, shape and range."""
    index = state.get("pending_index")
    pending = index.shape if isinstance(index, Tensor) and index.ndim == 1 else None
    tensors = {
        "score": (torch.float32, (size,)),
        "drawn": (torch.int32, (size,)),
        "owner": (torch.int16, (size,)),
        "pending_index": (torch.int64, pending),
        "pending_score": (torch.float32, pending and (*pending, *values)),  # -1: any number
    }
    for name, (dtype, shape) in tensors.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or value.dtype != dtype or not fits(value.shape, shape):
            actual = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"the saved state is damaged: `{name}` is {actual}, a tensor of {size} samples is needed"
            )
    packed, weight = state.get("selection", ""), state.get("weight", "")
    selected = 0
    if isinstance(packed, Tensor) and packed.ndim == 1:
        if packed.dtype == torch.int64 and in_range(packed, size):
            selected = len(packed)
        elif packed.dtype == torch.uint8 and len(packed) == -(-size // 8):
            selected = int(np.unpackbits(packed.numpy(), count=size).sum())
    plain = {
        "seed": "seed" in state,
        "data": state.get("data", "") is None or (isinstance(state.get("data"), str) and state["data"] != ""),
        "epoch": state.get("epoch", "") is None or is_whole(state.get("epoch"), 0, epochs),
        "overlap": state.get("overlap", "") is None or isinstance(state.get("overlap"), float),
        "tail": state.get("tail", "") is None or is_whole(state.get("tail"), 0),
        "exhausted": isinstance(state.get("exhausted"), bool),
        "largest": is_whole(state.get("largest"), 0),
        "rank": is_whole(state.get("rank"), 0),
        "world_size": is_whole(state.get("world_size"), 1),
        "pending_index": in_range(state["pending_index"], size),
        "selection": selected > 0 or (packed is None and state.get("epoch") is None),
        "weight": weight is None or (isinstance(weight, Tensor) and weight.shape == (selected,)),
        "by_batch": isinstance(state.get("by_batch", False), bool),  # only there where it is true
    }
    for name, right in plain.items():
        if not right:
            raise CheckpointError(
                f"the saved state is damaged or of another run: `{name}` does not fit {size} samples and {epochs} "
                "epochs"
            )


def is_whole(value: Any, low: int, below: int | None = None) -> bool:
    """Whether a value of a state is a whole number in [low, below)."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value and (below is None or value < below)


def in_range(index: Tensor, size: int) -> bool:
    """Whether all positions are in [0, size)."""
    return len(index) == 0 or (int(index.min()) >= 0 and int(index.max()) < size)


def check_data(saved: str | None, current: str) -> None:
    """Raise CheckpointError where the positions of scores refer to a dataset with another fingerprint."""
    if saved is not None and saved != current:
        raise CheckpointError(
            "the scores are of other data, or of the same samples in another order: they would go to other samples. "
            "For other data build another pruner. Sort the files, fix the seed of a random split; where only a "
            "transform has changed, give the dataset an attribute `fingerprint`, a text, before the run begins"
        )


def check_size(samples: int, size: int) -> None:
    """Raise ValueError unless a dataset has as many samples as the pruner was built for."""
    if samples != size:
        raise ValueError(
            f"the dataset has {samples} samples, the pruner was built for {size}: build it with size=len(dataset). A "
            "dataset that grows or shrinks while training needs a new pruner and a new loader"
        )


def check_batch_size(what: str, samples: int, batch_size: int) -> None:
    """Raise ValueError where an epoch's samples per rank are fewer than one batch, which would be dropped."""
    if samples < batch_size:
        raise ValueError(
            f"{what} keeps {samples} samples per rank, fewer than one batch of {batch_size}, and drop_last drops it: "
            "keep more, use a smaller batch_size or drop_last=False"
        )


def check_epoch(epoch: Any, epochs: int) -> None:
    """Raise ValueError unless it is a whole number in [0, epochs)."""
    if isinstance(epoch, bool) or not isinstance(epoch, Integral) or not 0 <= int(epoch) < epochs:
        raise ValueError(
            f"epoch {epoch!r} is outside this pruner's {epochs} epochs (0 to {epochs - 1}): build it with epochs=... "
            "of the whole run"
        )


def check_open(closed: bool, epochs: int) -> None:
    """Raise PlanError where a run is over, and its last epoch is handed out once more to be looked at."""
    if closed:
        raise PlanError(
            f"all {epochs} epochs of this pruner have been trained, and the loader yields the last one again: build "
            "the pruner with epochs=... of the whole run, and evaluate without pruner.loss, which uses up an epoch"
        )


def check_ranks(headers: list[list[int]]) -> None:
    """Raise PlanError unless all ranks are at the same place, with the same plan, selection and book.

    A rank's header is epoch, the checksums of plan, selection and book, and last whether it has a problem.
    """
    wrong = (
        "call select or sync for different epochs: call them on every rank, in the same order (-1 is sync)",
        "have pruners with different arguments: build it alike on every rank, with the same seed",
        "hold different selections: the policy must depend on the book, the count and its key alone",
        "hold different score books: load the same state on every rank, and record on all of them",
    )
    for rank, header in enumerate(headers):
        if header[-1]:
            raise PlanError(
                f"rank {rank} recorded positions outside the dataset or scores that are not finite: see its error"
            )
    for place, what in enumerate(wrong):
        values = [header[place] for header in headers]
        if len(set(values)) > 1:
            raise PlanError(f"the ranks {what}; got {values}")


def check_planned(recorded: int, most: int) -> None:
    """Raise PlanError where a rank has recorded more than an epoch has at most, and no epoch was ever selected."""
    if recorded > most:
        raise PlanError(
            f"{recorded} samples were recorded, more than an epoch has, and none was selected: nothing is pruned. A "
            "framework has replaced the sampler; keep PruneSampler as the loader's sampler (Lightning: "
            "use_distributed_sampler=False; Ray: add_dist_sampler=False). In a loop without a sampler, call "
            "pruner.select(epoch) or iterate pruner.batches(epoch, batch_size)"
        )


def warn(message: str) -> None:
    """Warn at the line of the user's program, the first outside this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def warn_unrecorded(what: str) -> None:
    """Warn that no batch was ever recorded, for a method that selects by scores."""
    warn(
        f"{what}, but none was recorded, and this method selects by scores: all are chosen at random. Call "
        "pruner.loss(index, losses, outputs, targets) in every step. (Hugging Face: a compute_loss of your own belongs "
        "into a base class that stands after PrunedTrainerMixin)"
    )


def warn_unweighed() -> None:
    """Warn that a method re-weights, and the loop does not."""
    warn(
        "this epoch's selection weights its samples, but the loop only records (pruner.update): the weights are lost, "
        "and the gradient is biased. Back-propagate pruner.loss(index, losses, outputs, targets), or multiply the "
        "losses by pruner.weight(index) before their mean"
    )


def warn_unreadable(positions: Tensor) -> None:
    """Warn of samples that two epochs handed out and none recorded."""
    warn(
        f"{len(positions)} samples were handed out in two epochs and recorded in none (positions {_shown(positions)}): "
        "the collate_fn drops them because they cannot be read, or the loop skips their batches. They are "
        "selected at random from now on, not first as other unseen samples; repair them, or leave them out of the data"
    )


def _shown(positions: Tensor) -> str:
    return ", ".join(map(str, positions[:_SHOWN].tolist())) + (" ..." if len(positions) > _SHOWN else "")


def check_run(current: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise CheckpointError where what the steps of an epoch depend on, by name, differs from the checkpoint's run."""
    changed = [f"{name} {saved[name]} -> {current[name]}" for name in current if saved[name] != current[name]]
    if changed:
        raise CheckpointError(
            f"the checkpoint is of a run with other steps per epoch ({', '.join(changed)}): resume it with the same"
        )


def check_trained(epoch: Epoch, planned: int, missing: Tensor) -> None:
    """Raise PlanError unless an epoch trained what was planned; a ragged tail and an abandoned epoch are fine."""
    ranks = distributed.world_size()
    tolerated = ranks * epoch.largest  # a ragged tail, and the padding of frameworks that fill their last batches up
    # a batch left out on purpose is the user's business; sharding twice loses half of the epoch or more
    if epoch.exhausted and len(missing) >= tolerated and 4 * len(missing) >= planned:
        raise PlanError(
            f"epoch {epoch.number} handed out {planned} samples but {len(missing)} of them were never recorded "
            f"(positions {_shown(missing)}): the collate_fn drops samples that cannot be read; the loop skips batches, "
            "some of them do not go through pruner.loss or pruner.update, or the next epoch is begun before they are "
            "recorded, as by a thread that fetches ahead; or a framework shards what PruneSampler has sharded already "
            "(give it rank=0, world_size=1, or switch the framework's sharding off)"
        )
    if ranks > 1 and epoch.foreign >= tolerated > 0:
        raise PlanError(
            f"{epoch.foreign} samples of epoch {epoch.number} were trained by more than one of {ranks} ranks: a "
            "framework has replaced the sampler with one that does not shard. Keep PruneSampler as the loader's "
            "sampler (Lightning: use_distributed_sampler=False; Ray: add_dist_sampler=False)"
        )


def check_forwarded(epoch: int | None, left_out: int, missing: int) -> None:
    """Raise PlanError where a method needs the scores of what an epoch left out, and much of that was not recorded."""
    if missing and 4 * missing >= left_out:
        raise PlanError(
            f"epoch {epoch} left out {left_out} samples, and {missing} of them were not forwarded: this method "
            "(kakurenbo, ies) needs their scores too. After the steps of an epoch, with torch.no_grad(): for index in "
            "pruner.left_out(epoch, batch_size): pruner.update(index, losses, outputs, targets)"
        )


def checksum(*tensors: Tensor) -> int:
    """CRC-32 of the bytes of tensors on the CPU."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, value)
    return value
