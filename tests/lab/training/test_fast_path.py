"""Inside an epoch nothing waits for the device.

Without a GPU the steps are taken on torch's meta device: it computes shapes only, so that whatever would read a value
has none to read, and every copy to or from the CPU can be seen. With a GPU torch itself watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataprune.lab.data.named import Data, Images
from dataprune.lab.training import run as training
from dataprune.lab.training.settings import Settings

FAR = torch.device("meta")
READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "equal", "_unique2",
         "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}  # fmt: skip
MAKES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


class Waits(Exception):
    pass


class Operations(TorchDispatchMode):
    """Raises at what a host must wait for a device for.

    Args:
        sends: whether copies to the device that do not block are let through.
    """

    def __init__(self, sends: bool):
        super().__init__()
        self.sends = sends

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = any(tensor.device == FAR for tensor in given)
        if far and name in READS:
            raise Waits(f"{name} reads what is on the device")
        if far and name in ("index", "index_put", "index_put_", "_index_put_impl_") and _masked(args[1]):
            raise Waits(f"{name} by a mask counts what is on the device")
        result = function(*args, **kwargs)
        tensors = [*given, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))]
        if any(tensor.device == FAR for tensor in tensors) and any(_copied(tensor) for tensor in tensors):
            sent = name in ("copy_", "_to_copy") and given[-1].is_cpu
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if blocks or not (sent and self.sends):
                raise Waits(f"{name} moves {[tuple(tensor.shape) for tensor in tensors]} between the devices")
        return result


class Calls(TorchFunctionMode):
    """Raises where a tensor on the device is made of Python's numbers, a copy that operations do not show."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in MAKES and result.device == FAR:
            raise Waits(f"{function.__name__} copies its numbers to the device")
        return result


def _masked(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _copied(tensor: Tensor) -> bool:
    """Whether it is on the CPU and holds something; one without dimensions travels with an operation's arguments."""
    return tensor.is_cpu and tensor.numel() > 0


@contextlib.contextmanager
def watched(*, sends: bool = False) -> Iterator[None]:
    with Calls(), Operations(sends):
        yield


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).all()),
    "to a list": lambda x: x.tolist(),
    "a mask": lambda x: x[x > 0],
    "into a mask": lambda x: x.index_put_((x > 0,), torch.zeros((), device=FAR)),
    "nonzero": lambda x: (x > 0).nonzero(),
    "where without values": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "to the CPU": lambda x: x.cpu(),
    "to the CPU without blocking": lambda x: x.to("cpu", non_blocking=True),
    "copied to the CPU": lambda x: torch.empty(4).copy_(x),
    "from the CPU": lambda x: torch.ones(4).to(FAR),
    "copied from the CPU": lambda x: x.copy_(torch.ones(4)),
    "an index on the CPU": lambda x: x[torch.tensor([1, 2])],
    "new_tensor": lambda x: x.new_tensor(3),
    "tensor": lambda x: torch.tensor([1.0], device=FAR),
}


@pytest.mark.parametrize("what", WAITING)
def test_synchronisation_is_detected(what: str) -> None:
    values = torch.ones(4, device=FAR)
    with pytest.raises((Waits, NotImplementedError, RuntimeError)), watched(sends=True):
        WAITING[what](values)


def test_asynchronous_operations_pass() -> None:
    values = torch.ones(4, device=FAR)
    with watched(sends=True):
        values.copy_(torch.ones(4).to(FAR, non_blocking=True), non_blocking=True)
    with pytest.raises(Waits), watched():
        torch.ones(4).to(FAR, non_blocking=True)
    with watched():
        values[torch.zeros(2, dtype=torch.int64, device=FAR)] = 1.0
        torch.where(values > 0, values, 1.0).new_full((), 3.0)


def begun(settings: Settings, out: Path, device: torch.device, data: Data) -> training._Run:
    """A run that has selected its first epoch, from scores that any method can prune by."""
    run = training._Run(settings, out, device, data)
    run.forward.train()
    run.pruner.book.score.uniform_(generator=torch.Generator().manual_seed(0))
    run.pruner.select(0)
    return run


def pictures(size: int = 96) -> Data:
    """Like `tiny.data`, but colour images of 32 by 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    part = Images(images, torch.arange(size) % 4)
    return Data("pictures", part, None, part, list("abcd"), (3, 32, 32), (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))


CASES: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "rs2": {"method": "rs2", "optimizer": "adam"},
    "loss": {"method": "loss", "optimizer": "lars", "warmup": 0},
    "emp": {"method": "emp", "optimizer": "adamw", "warmup": 0, "shift_mode": "reflect"},
    "memory": {"method": "memory", "warmup": 0, "label_smoothing": 0.1},
    "ucb": {"method": "ucb", "warmup": 0, "schedule": "one-cycle"},
    "infobatch": {"method": "infobatch", "warmup": 0},
    "statistics": {"method": "full", "statistics": "forgetting,el2n,grand,aum,entropy,margin,loss,dual,tdds",
                   "option": ("dual.window=3", "tdds.window=3")},
    "contrastive": {"method": "emp_contrastive", "task": "contrastive", "shift": 0, "flip": False,
                    "warmup": 0},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_epochs_steps_wait_for_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none of this device
    settings = tiny.settings(channels_last=True, **CASES[case])
    data = pictures(400) if case == "contrastive" else tiny.data()
    run = begun(settings, tmp_path / "run", FAR, data)
    batches = run.batches.of_epoch(0)
    batch: Any = next(batches)  # with it the order of the whole epoch was sent, when the device had nothing to do
    with watched(sends=case == "contrastive"):  # the views' mean and deviation; otherwise nothing at all is copied
        while batch is not None:
            run._train_step(*batch)
            batch = next(batches, None)
    assert run.step >= 3
    assert (case == "infobatch") == (run.pruner._weight is not None)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the watching itself, which is a prototype, and of the compiler
@pytest.mark.parametrize("method", ["full", "rs2", "loss", "emp", "infobatch"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_epochs_steps_wait_for_nothing_on_a_gpu(method: str, compiled: bool, tmp_path: Path) -> None:
    settings = tiny.settings(
        model="resnet18", method=method, bf16=True, channels_last=True, compile=compiled, warmup=0, epochs=3
    )
    device = torch.device("cuda", torch.cuda.current_device())
    run = begun(settings, tmp_path / "run", device, pictures(400))
    for batch in run.batches.of_epoch(0):  # compiles, and makes the buffers
        run._train_step(*batch)
    run.pruner.select(1)
    batches = run.batches.of_epoch(1)
    next_batch: Any = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        while next_batch is not None:
            run._train_step(*next_batch)
            next_batch = next(batches, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run._close(1)
    assert run.history[-1].steps == run.step > 0
