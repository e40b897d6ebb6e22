"""One training run: from settings to a folder with its record, resumable at any instant."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .. import distributed, progress
from ..errors import CheckpointError, UsageError, suggest
from ..loading import prune_loader
from ..methods import METHODS
from ..pruner import Pruner
from . import data as datasets
from . import models, optimizers, runs
from .augment import augment, normalize
from .data import Data, Images
from .evaluate import accuracy, recalibrate_batch_norm
from .settings import Settings

Report = Callable[[dict[str, Any]], None]  # called with every epoch's line of the history

CHECKPOINT_SECONDS = 30.0

SHAPES: dict[str, Callable[[], progress.Shape]] = {
    "cosine": progress.cosine,
    "one-cycle": progress.one_cycle,
    "step": progress.step,
    "linear": progress.linear,
    "exponential": progress.exponential,
    "constant": progress.constant,
}


def build_pruner(settings: Settings, size: int) -> Pruner:
    """The settings' method over `size` samples.

    Raises:
        UsageError: for an unknown method, or an option that it does not have.
    """
    if settings.method not in METHODS:
        raise UsageError(suggest(settings.method, METHODS, what="method"))
    recipe, arguments = METHODS[settings.method], settings.recipe_arguments()
    known = [name for name in recipe.__kwdefaults__ or {} if name not in ("epochs", "seed")]
    for name in arguments:
        if name not in known:
            raise UsageError(suggest(name, known, what=f"option of {settings.method}"))
    try:
        return recipe(size, epochs=settings.epochs, seed=settings.seed, **arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is: this rank's GPU, else the CPU.

    Raises:
        UsageError: if there is no such device.
    """
    try:
        if name is None:
            local = distributed.local_rank() % max(torch.cuda.device_count(), 1)
            return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def fit(
    settings: Settings,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    save_model: bool = True,
    test: bool = True,
) -> dict[str, Any]:
    """Train, or go on training, the run whose folder is `out`; a finished run is only read.

    Args:
        settings: what to train; must be those of the folder, where it has a run.
        out: the run's folder.
        data: the settings' data, where it is loaded already.
        report: called after every epoch.
        save_model: whether the weights are kept at the end, as `model.safetensors`.
        test: whether the test set is read, once, at the end.
    Returns:
        What `metrics.json` holds.
    Raises:
        UsageError: for settings that cannot be meant, or another run's folder.
        CheckpointError: if the checkpoint is damaged.
    """
    settings.validate()
    device = choose_device(settings.device)
    own_group = distributed.connect(device)
    try:
        with torch.random.fork_rng():
            finished = _finished(settings, out)
            if finished is not None:
                return finished
            run = _Run(settings, out, device, data)
            run.train(report)
            return run.finish(save_model, test)
    finally:
        if own_group:
            distributed.disconnect()


class _Run:
    """What a run is made of while it trains."""

    def __init__(self, settings: Settings, out: Path, device: torch.device, data: Data | None):
        self.settings, self.out, self.device = settings, out, device
        self.data = data or load_data(settings)
        size = len(self.data.train)
        self.pruner = build_pruner(settings, size)
        ranks = distributed.world_size()
        smallest = -(-min(self.pruner.counts) // ranks)
        if smallest < settings.batch_size:
            raise UsageError(
                f"an epoch keeps {smallest} samples per rank, fewer than one batch of {settings.batch_size}: raise "
                "--keep or lower --batch-size"
            )
        model = models.build(settings.model, self.data.shape, len(self.data.classes), settings.seed)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(device)
        self.optimizer = optimizers.build(
            settings.optimizer,
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.forward: nn.Module = self.model
        if ranks > 1:
            self.forward = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        if settings.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        shape = SHAPES[settings.schedule]()
        self.shape = shape if settings.schedule == "one-cycle" else progress.warmed_up(shape, settings.lr_warmup)
        self.progress = progress.Progress(self.pruner, settings.batch_size, world_size=ranks, drop_last=True)
        self.planned = self.pruner.planned_steps(settings.batch_size, world_size=ranks, drop_last=True)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.selected = torch.zeros(size, dtype=torch.int32)  # epochs that each sample was selected for
        self.seconds = {"train": 0.0, "select": 0.0, "evaluate": 0.0}
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples, of the running epoch
        self.loader: DataLoader | None = None
        if settings.workers or not isinstance(self.data.train, Images):
            self.loader = self._loader()
        self.train_set = self.data.train
        if isinstance(self.train_set, Images) and self.loader is None:
            self.train_set = self.train_set.to(device)
        self._saved = time.monotonic()
        self.resumed = self._resume()

    # -- training ---------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Steps after which the run ends."""
        return self.planned if self.settings.steps is None else self.settings.steps

    def train(self, report: Report | None) -> None:
        pruner, settings = self.pruner, self.settings
        self.forward.train()
        for epoch in range(len(self.history), settings.epochs):
            if self.step >= self.limit:
                break
            started = time.perf_counter()
            pruner.select(epoch)
            selected = time.perf_counter()
            self.seconds["select"] += selected - started
            started = selected
            for index, images, labels in self._batches(epoch):
                self._train_step(epoch, index, images, labels)
                every = settings.checkpoint_every
                if every and self.step % every == 0:
                    self.seconds["train"] += time.perf_counter() - started
                    self._checkpoint()
                    started = time.perf_counter()
                if self.step >= self.limit:
                    break
            self._close_epoch(epoch, started)
            if report is not None:
                report(self.history[-1])
            due = not settings.checkpoint_every and time.monotonic() - self._saved > CHECKPOINT_SECONDS
            if distributed.agreed(due):
                self._checkpoint()

    def finish(self, save_model: bool, test: bool) -> dict[str, Any]:
        """Evaluate, and write what remains of the run."""
        self.pruner.sync()
        record: dict[str, Any] = {}
        if distributed.rank() == 0:
            record = self._record(test)
            if save_model:
                weights = {name: value.contiguous().cpu() for name, value in self.model.state_dict().items()}
                runs.write(self.out / "model.safetensors", save(weights))
            counts = {"selected": _small(self.selected), "drawn": _small(self.pruner.book.drawn)}
            runs.write(self.out / "selection_counts.safetensors", save(counts))
            runs.write_json(self.out / "metrics.json", record)
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        distributed.barrier()
        return record or runs.read_json(self.out / "metrics.json")

    # -- inside -----------------------------------------------------------------------------------------------------

    def _train_step(self, epoch: int, index: Tensor, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        rate = settings.lr * self.shape(self._done())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # what the model draws (dropout) follows from the place in the run, so that a resumed run draws the same
        torch.manual_seed(_stream(settings.seed, "model", self.step, distributed.rank()))
        pixels = augment(
            images, index.to(self.device), seed=settings.seed, epoch=epoch,
            shift=settings.shift, mode=settings.shift_mode, flip=settings.flip,
        )  # fmt: skip
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            logits = self.forward(self._prepare(pixels))
        losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=settings.label_smoothing)
        loss = self.pruner.loss(index, losses, logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.progress.step()
        with torch.no_grad():
            right = (logits.argmax(dim=1) == labels).sum()
            self.sums += torch.stack(
                [losses.detach().sum().double(), right.double(), right.new_tensor(len(labels)).double()]
            )

    def _done(self) -> float:
        """Share of the run at the middle of the coming step, so that neither the first nor the last is spent at rate 0."""
        exact = getattr(self.pruner.policy, "exact", True)
        if self.settings.steps is not None or exact:
            return (self.step + 0.5) / self.limit
        return self.progress.done

    def _prepare(self, pixels: Tensor) -> Tensor:
        inputs = normalize(pixels, self.data.mean, self.data.std, torch.float32)
        return inputs.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else inputs

    def _loader(self) -> DataLoader:
        workers = self.settings.workers
        loader = DataLoader(
            self.data.train,
            batch_size=self.settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        return prune_loader(loader, self.pruner)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Index, pixels and labels of every batch that is left of the epoch."""
        if self.loader is not None:
            self.loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for index, (images, labels) in self.loader:
                yield index, images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            return
        assert isinstance(self.train_set, Images)
        for index in self.pruner.batches(epoch, self.settings.batch_size, device=self.device):
            yield index, self.train_set.images[index], self.train_set.labels[index]

    def _close_epoch(self, epoch: int, started: float) -> None:
        loss, right, samples = self.sums.tolist()  # waits for the device
        self.sums.zero_()
        seconds = time.perf_counter() - started
        self.seconds["train"] += seconds
        selection, stats = self.pruner.select(epoch), self.pruner.stats()
        self.selected[selection.index] += 1
        line = {
            "epoch": epoch,
            "samples": int(samples) * distributed.world_size(),
            "steps": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss / samples if samples else None,
            "train_accuracy": right / samples if samples else None,
            "selected": len(selection.index),
            "reached_keep": stats["reached_keep"],
            "overlap": stats["overlap"],
            "never_seen": stats["never_seen"],
        }
        if self.data.val is not None:
            line["val_accuracy"] = self._accuracy(self.data.val)
        self.history.append(line)
        if distributed.rank() == 0:
            with open(self.out / "history.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def _accuracy(self, part: Any) -> float | None:
        """Rank 0 evaluates: its batch-norm statistics are those that every step broadcasts."""
        started = time.perf_counter()
        value = None
        if distributed.rank() == 0:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
                value = accuracy(self.model, part, self._prepare, self.device, workers=self.settings.workers)
        self.seconds["evaluate"] += time.perf_counter() - started
        return value

    def _recalibrate(self) -> float:
        """Seconds it took."""
        started = time.perf_counter()
        train, seed, size = self.data.train, self.settings.seed, self.settings.batch_size
        generator = torch.Generator().manual_seed(_stream(seed, "recalibrate"))
        chosen = torch.randperm(len(train), generator=generator)[: self.settings.recalibrate_bn]
        whole = chosen[: max(len(chosen) // size, 1) * size]

        def inputs() -> Iterator[Tensor]:
            for index in whole.split(size):
                images = (
                    train.images[index] if isinstance(train, Images) else torch.stack([train[int(i)][0] for i in index])
                )
                pixels = augment(
                    images.to(self.device), index.to(self.device), seed=seed, epoch=self.settings.epochs,
                    shift=self.settings.shift, mode=self.settings.shift_mode, flip=self.settings.flip,
                )  # fmt: skip
                yield self._prepare(pixels)

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            recalibrate_batch_norm(self.model, inputs())
        return time.perf_counter() - started

    def _record(self, test: bool) -> dict[str, Any]:
        recalibration = self._recalibrate() if self.settings.recalibrate_bn else 0.0
        pruned = [line for line in self.history if self.pruner.counts[line["epoch"]] < self.pruner.size]
        reached = sum(line["reached_keep"] for line in pruned) / len(pruned) if pruned else 1.0
        val = None if self.data.val is None else self._accuracy(self.data.val)
        return {
            "method": self.settings.method,
            "seed": self.settings.seed,
            "accuracy": self._accuracy(self.data.test) if test else None,
            "val_accuracy": val,
            "samples": sum(line["samples"] for line in self.history),
            "steps": self.step,
            "seconds": self.seconds["train"] + self.seconds["select"] + recalibration,
            "train_seconds": self.seconds["train"],
            "select_seconds": self.seconds["select"],
            "recalibrate_seconds": recalibration,
            "evaluate_seconds": self.seconds["evaluate"],
            "reached_keep": reached,
            "epochs": len(self.history),
            "train_samples": self.pruner.size,
            "test_samples": len(self.data.test),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "world_size": distributed.world_size(),
            "machine": runs.machine(self.device),
        }

    # -- resuming ---------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        self.pruner.sync()
        if distributed.rank() == 0:
            state = {
                "key": self.settings.key(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pruner": self.pruner.state_dict(),
                "progress": self.progress.state_dict(),
                "step": self.step,
                "sums": self.sums,
                "seconds": self.seconds,
                "history": json.dumps(self.history),
                "selected": self.selected,
            }
            runs.write_checkpoint(self.out / "checkpoint.pt", state)
        self._saved = time.monotonic()

    def _resume(self) -> bool:
        """Take up the folder's checkpoint, or begin a folder."""
        path = self.out / "checkpoint.pt"
        resumed = path.exists()
        if resumed:
            state = runs.read_checkpoint(path)
            if state["key"] != self.settings.key():
                raise CheckpointError(f"{path} is of a run with other settings: choose another --out")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.pruner.load_state_dict(state["pruner"])
            self.progress.load_state_dict(state["progress"])
            self.step, self.seconds, self.selected = state["step"], state["seconds"], state["selected"]
            self.sums.copy_(state["sums"])
            self.history = json.loads(state["history"])
        distributed.barrier()
        if distributed.rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            runs.write_json(self.out / "config.json", {"key": self.settings.key(), **self.settings.as_dict()})
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            runs.write(self.out / "history.jsonl", lines.encode())
        distributed.barrier()
        return resumed


def load_data(settings: Settings) -> Data:
    """The data that the settings name."""
    return datasets.load(
        settings.data,
        folder=settings.data_folder,
        train_size=settings.train_size,
        val_fraction=settings.val_fraction,
        label_noise=settings.label_noise,
        image_size=settings.image_size,
    )


def _finished(settings: Settings, out: Path) -> dict[str, Any] | None:
    """The record of a run that is done; UsageError where the folder belongs to another."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose a folder with --out")
    if (out / "config.json").exists():
        found = runs.read_json(out / "config.json")
        if found.get("key") != settings.key():
            mine = settings.as_dict()
            other = [name for name in mine if found.get(name) != mine[name]]
            raise UsageError(
                f"{out} holds a run with other settings ({', '.join(other) or 'of another version'}): choose another --out, "
                "or delete it"
            )
    if (out / "metrics.json").exists():
        return runs.read_json(out / "metrics.json")
    return None


def _stream(*parts: Any) -> int:
    """A seed of its own for each purpose."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _small(counts: Tensor) -> Tensor:
    """The same whole numbers in the smallest type that holds them: a sweep keeps one such file per run."""
    most = int(counts.max())
    return counts.to(torch.uint8 if most < 256 else torch.int16 if most < 32768 else torch.int32)
