"""One training run: from settings to a folder with its record, resumable at any instant."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import distributed, learning_rate
from ...dynamics import Recorder, save_scores
from ...errors import CheckpointError, UsageError
from ...modules import last_layer
from ...selection import Selection, fingerprint
from ..data.named import Data
from . import optimizers, run_folder, setup, tasks
from .batches import Feed
from .epoch_history import Trajectories
from .evaluate import recalibrate_batch_norm
from .settings import Settings

Report = Callable[[dict[str, Any]], None]  # called with every epoch's line of the history

CHECKPOINT_SECONDS = 30.0


def fit(
    settings: Settings,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    save_model: bool = True,
    test: bool = True,
    prepare: Callable[[nn.Module], None] | None = None,
) -> dict[str, Any]:
    """Train, or go on training, the run whose folder is `out`; a finished run is only read.

    Where another process trains in that folder, this one waits for it.

    The record's `seconds` are those of training, of selection and of `recalibrate_bn`: all that a method costs, the
    loading of batches and a first step's compilation included. Evaluation is in `evaluate_seconds`; writing checkpoints
    and noting scores for the report are in neither. What an interruption threw away is counted once.

    Args:
        settings: what to train; must be those of the folder, where it has a run.
        out: the run's folder.
        data: the settings' data, where it is loaded already.
        report: called after every epoch.
        save_model: whether the weights are kept at the end, as `model.safetensors`, of language in `model/`.
        test: whether the test set is read, once, at the end.
        prepare: called with the model right after it is built: to load weights, to put masks on it, or to keep hold of
            it for `report`. It is called again when a run is resumed, and must leave the same parameters and masks;
            their values are then the checkpoint's.
    Returns:
        What `metrics.json` holds.
    Raises:
        UsageError: for settings that cannot be meant, or another run's folder.
        CheckpointError: if the checkpoint is damaged.
        DataError: if the data is missing or broken.
        ValueError: if training diverges.
        OSError: if the folder cannot be written; what was written before stays.
    """
    setup.check(settings)
    done = run_folder.finished(out, settings)
    if done is not None:
        return done
    device = setup.choose_device(settings.device)
    with setup.connected(device):
        data = setup.load_data(settings) if data is None else data
        setup.use_threads(settings, data)
        run = _Run(settings, out, device, data, prepare)
        try:
            with run_folder.claimed(out):
                distributed.barrier()
                done = run_folder.finished(out, settings)  # by a process that this one waited for
                if done is not None:
                    return done
                run.resume()
                run.train(report)
                return run.finish(save_model, test)
        finally:
            run.release()


class _Run:
    """What a run is made of while it trains."""

    def __init__(
        self,
        settings: Settings,
        out: Path,
        device: torch.device,
        data: Data,
        prepare: Callable[[nn.Module], None] | None = None,
    ):
        self.settings, self.out, self.device, self.data = settings, out, device, data
        size, ranks = len(data.train), distributed.world_size()
        selection = setup.load_selection(settings, data.train)
        self.method = settings.method  # in the record; a coreset's run is called by the method that selected it
        if settings.selection is not None:
            self.method = Selection.metadata(settings.selection).get("method", settings.method)
        self.pruner = setup.build_pruner(settings, size, data.train.labels, selection)
        statistics = setup.statistics(settings)
        self.recorder = Recorder(size, statistics) if statistics else None
        whole = self.recorder is None  # a statistic needs every sample in every epoch, the last few too
        planned = self.pruner.planned_steps(settings.batch_size, world_size=ranks, drop_last=whole)
        if settings.steps is not None and settings.steps > planned:
            raise UsageError(
                f"--steps {settings.steps} are more than {settings.epochs} epochs have ({planned}): raise --epochs, or "
                "the learning rate would stop on its way"
            )
        self.limit = sys.maxsize if settings.steps is None else settings.steps
        self.task = tasks.of(settings, data)
        model = self.task.model()
        if prepare is not None:
            prepare(model)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(device)
        self.optimizer = optimizers.build(
            settings.optimizer,
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        self.forward: nn.Module = self.model
        if ranks > 1:
            self.forward = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        if settings.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        self.rate = setup.rate(settings)
        self.progress = learning_rate.Progress(self.pruner, settings.batch_size, world_size=ranks, drop_last=whole)
        self.feed = Feed(data, settings, self.pruner, device, self.task.inputs, drop_last=whole)
        self.features: list[Tensor] = []  # what the last layer read in the running step, where a statistic needs it
        if any(one.features for one in statistics.values()):
            layer = last_layer(self.model, torch.zeros(2, *data.shape, device=device))
            layer.register_forward_pre_hook(lambda _, inputs: self.features.append(inputs[0].detach()))
        self.step = 0
        self.open = False  # whether an epoch has begun that has no line in the history yet
        self.history: list[dict[str, Any]] = []
        self.selected = torch.zeros(size, dtype=torch.int32)  # epochs that each sample was selected for
        self.trajectories = Trajectories(size)
        self.seconds = {"train": 0.0, "select": 0.0, "evaluate": 0.0}
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples, of the open epoch
        self._saved = time.monotonic()

    def train(self, report: Report | None) -> None:
        self.forward.train()
        every = self.settings.checkpoint_every
        for epoch in range(len(self.history), self.settings.epochs):
            if self.step >= self.limit and not self.open:
                break
            started = time.perf_counter()
            self.pruner.select(epoch)
            selected = time.perf_counter()
            self.seconds["select"] += selected - started
            self.trajectories.note_scores(self.pruner.book.score)
            started, self.open = time.perf_counter(), True
            batches = self.feed.batches(epoch)
            while self.step < self.limit and (batch := next(batches, None)) is not None:
                self._train_step(*batch)
                if every and self.step % every == 0:
                    self.seconds["train"] += self._since(started)
                    self._checkpoint()
                    started = time.perf_counter()
            self.seconds["train"] += self._since(started)
            self._close(epoch)
            if report is not None:
                report(self.history[-1])
            if distributed.agreed(not every and time.monotonic() - self._saved > CHECKPOINT_SECONDS):
                self._checkpoint()

    def finish(self, save_model: bool, test: bool) -> dict[str, Any]:
        """Evaluate, and write what remains of the run."""
        self.pruner.sync()
        self.trajectories.note_scores(self.pruner.book.score)
        record: dict[str, Any] = {}
        if distributed.rank() == 0:
            record = self._record(test)
            if save_model:
                self.task.save(self.model, self.out)
            switches, drawn = self.trajectories.switches, self.pruner.book.drawn
            counts = {"selected": _small(self.selected), "drawn": _small(drawn), "switches": _small(switches)}
            run_folder.write(self.out / "selection_counts.safetensors", save(counts))
            run_folder.write(self.out / "trajectories.safetensors", save(self.trajectories.tables()))
            if self.recorder is not None:
                record |= self._write_scores(self.recorder.scores())
            run_folder.write_json(self.out / "metrics.json", record)
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        distributed.barrier()
        return record or run_folder.read_json(self.out / "metrics.json")

    def release(self) -> None:
        """Let go of DistributedDataParallel, before the process group is left.

        Were its reducer the last to hold the group, it would destroy it with the interpreter lock in hand, and wait for
        the group's thread, which may be waiting for that lock.
        """
        self.forward = self.model
        if distributed.world_size() > 1:
            gc.collect()  # what a compiled model keeps in cycles

    def _train_step(self, index: Tensor, inputs: Any, labels: Tensor) -> None:
        settings = self.settings
        before, after = self.progress.done, self.progress.step()
        # the share at the middle of the step, so that neither the first nor the last is spent at rate 0
        done = (before + after) / 2 if settings.steps is None else (self.step + 0.5) / settings.steps
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self.rate(done)
        # what the model draws (dropout) follows from the place in the run, so that a resumed run draws the same
        setup.reseed(self.device, setup.stream(settings.seed, "model", self.step, distributed.rank()))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            output = self.forward(**inputs) if isinstance(inputs, dict) else self.forward(*inputs)
        losses, outputs, right = self.task.losses(output, labels)
        self.trajectories.record(losses)
        loss = self.pruner.loss(index, losses, outputs, labels)
        if self.recorder is not None:
            self.recorder.update(index, outputs, labels, self.features.pop() if self.features else None)
            loss = loss * (len(labels) / settings.batch_size)  # or the few of a last batch would count more than others
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            right = losses.new_zeros(()) if right is None else right
            # filled: a tensor made of a number would be copied to the device, and the copy waits for it
            samples = losses.new_full((), len(labels), dtype=torch.float64)
            sums = torch.stack([losses.sum().double(), right.double(), samples])
            self.sums += distributed.world_size() * sums  # the other ranks' are much the same, and as many

    def _since(self, started: float) -> float:
        """Seconds, the device's work included."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _close(self, epoch: int) -> None:
        """Write the epoch's line of the history."""
        loss, right, samples = self.sums.tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}: training has diverged, lower the learning rate")
        self.sums.zero_()
        if self.recorder is not None:
            self.recorder.end_epoch()
        selection, stats = self.pruner.select(epoch), self.pruner.stats()
        self.selected[selection.index] += 1
        self.trajectories.close(selection.index)
        line = {
            "epoch": epoch,
            "samples": int(samples),
            "steps": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss / samples if samples else None,
            "train_accuracy": right / samples if samples and self.task.counts else None,
            "selected": len(selection.index),
            "reached_keep": stats["reached_keep"],
            "overlap": stats["overlap"],
            "never_seen": stats["never_seen"],
        }
        if self.data.val is not None:
            line["val_accuracy"] = self._accuracy(self.data.val)
        self.history.append(line)
        self.open = False
        if distributed.rank() == 0:
            run_folder.append(self.out / "history.jsonl", line)

    def _accuracy(self, part: Any) -> float | None:
        """Rank 0 evaluates: its batch-norm statistics are those that every step broadcasts."""
        if distributed.rank() != 0:
            return None
        started = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            value = self.task.validate(self.model, part, self.device)
        self.seconds["evaluate"] += time.perf_counter() - started
        return value

    def _test(self) -> dict[str, float]:
        started = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            found = self.task.test(self.model, self.device)
        self.seconds["evaluate"] += time.perf_counter() - started
        return found

    def _recalibrate(self) -> float:
        """Seconds it took."""
        if not self.settings.recalibrate_bn:
            return 0.0
        started = time.perf_counter()
        setup.reseed(self.device, setup.stream(self.settings.seed, "recalibrate"))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            inputs = (one for (one,) in self.feed.random(self.settings.recalibrate_bn))
            recalibrate_batch_norm(self.model, inputs)
        return self._since(started)

    def _record(self, test: bool) -> dict[str, Any]:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise ValueError("the weights are NaN or infinite: training has diverged, lower the learning rate")
        recalibration = self._recalibrate()
        pruned = [line for line in self.history if self.pruner.counts[line["epoch"]] < self.pruner.size]
        reached = sum(line["reached_keep"] for line in pruned) / len(pruned) if pruned else 1.0
        val = None if self.data.val is None else self._accuracy(self.data.val)
        return {
            "method": self.method,
            "seed": self.settings.seed,
            **(self._test() if test else {"accuracy": None}),
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
            "note": self.data.note,
            **({} if self.settings.glue else {"input": self._input()}),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "world_size": distributed.world_size(),
            "machine": run_folder.machine(self.device),
        }

    def _input(self) -> dict[str, Any]:
        """What the weights were trained on, for who has them without the data."""
        data = self.data
        return {"shape": list(data.shape), "mean": list(data.mean), "std": list(data.std), "classes": len(data.classes)}

    def _write_scores(self, scores: dict[str, Tensor]) -> dict[str, str]:
        """What the record says of the table."""
        path = self.out / ("scores.parquet" if find_spec("pyarrow") else "scores.csv")
        notes = {"settings": self.settings.as_dict(), "fingerprint": fingerprint(self.data.train)}
        save_scores(path, scores, labels=self.data.train.labels, notes=notes)
        return {"scores": path.name, "fingerprint": notes["fingerprint"]}

    def _checkpoint(self) -> None:
        self.pruner.sync()
        if distributed.rank() == 0:
            state = {
                "settings": json.dumps(self.settings.as_dict()),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pruner": self.pruner.state_dict(),
                "progress": self.progress.state_dict(),
                "step": self.step,
                "open": self.open,
                "sums": self.sums,
                "seconds": self.seconds,
                "history": json.dumps(self.history),
                "selected": self.selected,
                "trajectories": self.trajectories.state_dict(),
                "recorder": None if self.recorder is None else self.recorder.state_dict(),
            }
            run_folder.write_checkpoint(self.out / "checkpoint.pt", state)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Take up the folder's checkpoint, or begin a folder."""
        path = self.out / "checkpoint.pt"
        if path.exists():
            self._load(path)
        distributed.barrier()
        if distributed.rank() == 0:
            run_folder.write_json(self.out / "config.json", self.settings.as_dict())
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            run_folder.write(self.out / "history.jsonl", lines.encode())
        distributed.barrier()

    def _load(self, path: Path) -> None:
        state = run_folder.read_checkpoint(path)
        try:
            other = self.settings.differs(json.loads(state["settings"]))
            if other:
                raise ValueError(f"it is of a run with other settings, {', '.join(other)}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.pruner.load_state_dict(state["pruner"])
            self.progress.load_state_dict(state["progress"])
            self.step, self.open = state["step"], state["open"]
            self.seconds, self.selected = state["seconds"], state["selected"]
            self.sums.copy_(state["sums"])
            self.trajectories.load_state_dict(state["trajectories"])
            self.history = json.loads(state["history"])
            if self.recorder is not None:
                self.recorder.load_state_dict(state["recorder"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this run ({error}): delete it to start this run from its beginning"
            ) from error


def _small(counts: Tensor) -> Tensor:
    """The same whole numbers in the smallest type that holds them: a sweep keeps one such file per run."""
    most = int(counts.max())
    return counts.to(torch.uint8 if most < 256 else torch.int16 if most < 32768 else torch.int32)
