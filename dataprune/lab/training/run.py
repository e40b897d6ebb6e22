"""One training run: from settings to a folder with its record, resumable at any instant."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import distributed, files, learning_rate
from ...dynamics import Recorder, save_scores
from ...errors import CheckpointError
from ...modules import last_layer
from ...selection import Selection, fingerprint
from ..data.named import Data
from . import run_folder, tasks
from .batches import Batches
from .build import build_optimizer, build_pruner, build_rate, build_statistics, check, load_data
from .device import choose_device, connected, reseed, stream, use_threads
from .epoch_history import EpochRecord, Trajectories
from .evaluate import recalibrate_batch_norm
from .run_folder import Environment, InputFormat, RunRecord
from .settings import Settings, require

OnEpoch = Callable[[nn.Module, EpochRecord], None]

CHECKPOINT_SECONDS = 30.0


def run(
    settings: Settings,
    out: Path,
    *,
    data: Data | None = None,
    model: nn.Module | None = None,
    on_epoch: OnEpoch | None = None,
    save_model: bool = True,
    test: bool = True,
) -> RunRecord:
    """Train the run whose folder is `out`, or resume it; a finished run is only read.

    If another process trains in that folder, this one waits for it.

    The record's `seconds` are those of training, selection and `recalibrate_bn`: all that a method costs, with the
    loading of batches and a first step's compilation. Evaluation is in `evaluate_seconds`; writing checkpoints and
    recording scores for the report are in neither. Work lost to an interruption is not counted.

    Args:
        settings: what to train; must be those of the folder, if it has a run.
        out: the run's folder.
        data: the settings' data, if it is loaded already.
        model: trained in place of the settings' model; weights may be loaded into it and masks put on it. A resumed run
            must be given a model with the same parameters and masks; their values are then the checkpoint's.
        on_epoch: called after every epoch with the model and the epoch's record.
        save_model: whether the weights are kept at the end, as `model.safetensors`, of language in `model/`.
        test: whether the test set is read, once, at the end.
    Returns:
        What `metrics.json` holds.
    Raises:
        UsageError: for invalid or contradictory settings, or another run's folder.
        CheckpointError: if the checkpoint is damaged.
        DataError: if the data is missing or broken.
        ValueError: if training diverges.
        OSError: if the folder cannot be written; what was written before stays.
    """
    check(settings)
    record = run_folder.finished(out, settings)
    if record is not None:
        return record
    device = choose_device(settings.device)
    with connected(device):
        data = load_data(settings) if data is None else data
        use_threads(settings.threads, data.shape)
        training = _Run(settings, out, device, data, model)
        try:
            with run_folder.claimed(out):
                distributed.barrier()
                record = run_folder.finished(out, settings)  # by a process that this one waited for
                if record is not None:
                    return record
                training.resume()
                training.train(on_epoch)
                return training.finish(save_model, test)
        finally:
            training.release()


class _Run:
    """The state of a run while it trains."""

    def __init__(self, settings: Settings, out: Path, device: torch.device, data: Data, model: nn.Module | None = None):
        self.settings, self.out, self.device, self.data = settings, out, device, data
        size, ranks = len(data.train), distributed.world_size()
        self.method, selection = settings.method, None
        if settings.selection is not None:
            selection = Selection.load(settings.selection, data.train)
            self.method = Selection.metadata(settings.selection).get("method", settings.method)
        self.pruner = build_pruner(settings, size, data.train.labels, selection)
        statistics = build_statistics(settings)
        self.recorder = Recorder(size, statistics) if statistics else None
        whole = self.recorder is None  # a statistic needs every sample in every epoch, the last few too
        planned = self.pruner.planned_steps(settings.batch_size, world_size=ranks, drop_last=whole)
        require(
            settings.steps is None or settings.steps <= planned,
            f"--steps {settings.steps} are more than {settings.epochs} epochs have ({planned}): raise --epochs, or the "
            "learning rate would end before its schedule does",
        )
        self.limit = sys.maxsize if settings.steps is None else settings.steps
        self.task = tasks.of(settings, data)
        self.model = self.task.model() if model is None else model
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.to(device)
        self.optimizer = build_optimizer(settings, self.model.parameters())
        self.forward: nn.Module = self.model
        if ranks > 1:
            self.forward = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        if settings.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        self.rate = build_rate(settings)
        self.progress = learning_rate.Progress(self.pruner, settings.batch_size, world_size=ranks, drop_last=whole)
        self.batches = Batches(data, settings, self.pruner, device, self.task.inputs, drop_last=whole)
        self.features: list[Tensor] = []  # input of the last layer in the running step, where a statistic reads it
        if any(statistic.features for statistic in statistics.values()):
            layer = last_layer(self.model, torch.zeros(2, *data.shape, device=device))
            layer.register_forward_pre_hook(lambda _, inputs: self.features.append(inputs[0].detach()))
        self.step = 0
        self.open = False  # whether an epoch has begun that has no record in the history yet
        self.history: list[EpochRecord] = []
        self.selected = torch.zeros(size, dtype=torch.int32)  # epochs that each sample was selected for
        self.trajectories = Trajectories(size)
        self.seconds = {"train": 0.0, "select": 0.0, "evaluate": 0.0}
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples, of the open epoch
        self._saved = time.monotonic()

    def train(self, on_epoch: OnEpoch | None) -> None:
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
            batches = self.batches.of_epoch(epoch)
            while self.step < self.limit and (batch := next(batches, None)) is not None:
                self._train_step(*batch)
                if every and self.step % every == 0:
                    self.seconds["train"] += self._since(started)
                    self._checkpoint()
                    started = time.perf_counter()
            self.seconds["train"] += self._since(started)
            self._close(epoch)
            if on_epoch is not None:
                on_epoch(self.model, self.history[-1])
            if distributed.agreed(not every and time.monotonic() - self._saved > CHECKPOINT_SECONDS):
                self._checkpoint()

    def finish(self, save_model: bool, test: bool) -> RunRecord:
        """Evaluate, and write the record, the weights and the tables."""
        self.pruner.sync()
        self.trajectories.note_scores(self.pruner.book.score)
        if distributed.rank() == 0:
            record = self._record(test)
            if save_model:
                self.task.save(self.model, self.out)
            switches, drawn = self.trajectories.switches, self.pruner.book.drawn
            counts = {"selected": _small(self.selected), "drawn": _small(drawn), "switches": _small(switches)}
            files.write_bytes(self.out / "selection_counts.safetensors", save(counts))
            files.write_bytes(self.out / "trajectories.safetensors", save(self.trajectories.tables()))
            if self.recorder is not None:
                record = self._write_scores(self.recorder.scores(), record)
            files.write_json(self.out / "metrics.json", record.as_dict())
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        distributed.barrier()
        return RunRecord.of(files.read_json(self.out / "metrics.json"))

    def release(self) -> None:
        """Drop DistributedDataParallel before the process group is left.

        If its reducer held the last reference to the group, it would destroy the group while holding the interpreter
        lock, and wait for the group's thread, which may itself wait for that lock.
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
        # dropout draws by the position in the run, so that a resumed run draws the same
        reseed(self.device, stream(settings.seed, "model", self.step, distributed.rank()))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            output = self.forward(**inputs) if isinstance(inputs, dict) else self.forward(*inputs)
        losses, outputs, right = self.task.losses(output, labels)
        self.trajectories.record(losses)
        loss = self.pruner.loss(index, losses, outputs, labels)
        if self.recorder is not None:
            self.recorder.update(index, outputs, labels, self.features.pop() if self.features else None)
            loss = loss * (len(labels) / settings.batch_size)  # so that samples of a small last batch do not count more
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            right = losses.new_zeros(()) if right is None else right
            # filled: a tensor made of a number would be copied to the device, and the copy waits for it
            samples = losses.new_full((), len(labels), dtype=torch.float64)
            sums = torch.stack([losses.sum().double(), right.double(), samples])
            self.sums += distributed.world_size() * sums  # an estimate: other ranks have as many, with similar losses

    def _since(self, started: float) -> float:
        """Seconds, with the device's work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _close(self, epoch: int) -> None:
        """Append the epoch's record to the history."""
        loss, right, samples = self.sums.tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}: training has diverged, lower the learning rate")
        self.sums.zero_()
        if self.recorder is not None:
            self.recorder.end_epoch()
        selection, stats = self.pruner.select(epoch), self.pruner.stats()
        self.selected[selection.index] += 1
        self.trajectories.close(selection.index)
        record = EpochRecord(
            epoch=epoch,
            samples=int(samples),
            steps=self.step,
            lr=self.optimizer.param_groups[0]["lr"],
            loss=loss / samples if samples else None,
            train_accuracy=right / samples if samples and self.task.classifies else None,
            selected=len(selection),
            reached_keep=stats["reached_keep"],
            overlap=stats["overlap"],
            never_seen=stats["never_seen"],
            val_accuracy=None if self.data.val is None else self._accuracy(self.data.val),
        )
        self.history.append(record)
        self.open = False
        if distributed.rank() == 0:
            files.append_json(self.out / "history.jsonl", record.as_dict())

    def _accuracy(self, part: Any) -> float | None:
        """Evaluate on rank 0, whose batch-norm statistics every step broadcasts."""
        if distributed.rank() != 0:
            return None
        started = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            value = self.task.validate(self.model, part, self.device)
        self.seconds["evaluate"] += time.perf_counter() - started
        return value

    def _test(self) -> dict[str, Any]:
        started = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            metrics = self.task.test(self.model, self.device)
        self.seconds["evaluate"] += time.perf_counter() - started
        return metrics

    def _recalibrate(self) -> float:
        """Re-estimate batch-norm statistics; return the seconds."""
        if not self.settings.recalibrate_bn:
            return 0.0
        started = time.perf_counter()
        reseed(self.device, stream(self.settings.seed, "recalibrate"))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            inputs = (pixels for (pixels,) in self.batches.random(self.settings.recalibrate_bn))
            recalibrate_batch_norm(self.model, inputs)
        return self._since(started)

    def _record(self, test: bool) -> RunRecord:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise ValueError("the weights are NaN or infinite: training has diverged, lower the learning rate")
        recalibration = self._recalibrate()
        pruned = [line for line in self.history if self.pruner.counts[line.epoch] < self.pruner.size]
        reached = sum(line.reached_keep for line in pruned) / len(pruned) if pruned else 1.0
        val = None if self.data.val is None else self._accuracy(self.data.val)
        metrics = self._test() if test else {}
        data, seconds = self.data, self.seconds
        return RunRecord(
            method=self.method,
            seed=self.settings.seed,
            accuracy=metrics.pop("accuracy", None),
            metric=metrics.pop("metric", None),
            metrics=metrics,
            val_accuracy=val,
            samples=sum(line.samples for line in self.history),
            steps=self.step,
            seconds=seconds["train"] + seconds["select"] + recalibration,
            train_seconds=seconds["train"],
            select_seconds=seconds["select"],
            recalibrate_seconds=recalibration,
            evaluate_seconds=seconds["evaluate"],
            reached_keep=reached,
            epochs=len(self.history),
            train_samples=self.pruner.size,
            test_samples=len(data.test),
            note=data.note,
            input=None if self.settings.glue else InputFormat(data.shape, data.mean, data.std, len(data.classes)),
            parameters=sum(p.numel() for p in self.model.parameters()),
            world_size=distributed.world_size(),
            machine=Environment.current(self.device),
        )

    def _write_scores(self, scores: dict[str, Tensor], record: RunRecord) -> RunRecord:
        """Write the table of scores; return the record that names it."""
        path = self.out / ("scores.parquet" if find_spec("pyarrow") else "scores.csv")
        notes = {"settings": self.settings.as_dict(), "fingerprint": fingerprint(self.data.train)}
        save_scores(path, scores, labels=self.data.train.labels, notes=notes)
        return replace(record, scores=path.name, fingerprint=notes["fingerprint"])

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
                "history": json.dumps([line.as_dict() for line in self.history]),
                "selected": self.selected,
                "trajectories": self.trajectories.state_dict(),
                "recorder": None if self.recorder is None else self.recorder.state_dict(),
            }
            run_folder.write_checkpoint(self.out / "checkpoint.pt", state)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Load the folder's checkpoint if it has one, and write the folder's first files."""
        path = self.out / "checkpoint.pt"
        if path.exists():
            self._load(path)
        distributed.barrier()
        if distributed.rank() == 0:
            files.write_json(self.out / "config.json", self.settings.as_dict())
            lines = "".join(json.dumps(line.as_dict()) + "\n" for line in self.history)
            files.write_text(self.out / "history.jsonl", lines)
        distributed.barrier()

    def _load(self, path: Path) -> None:
        state = run_folder.read_checkpoint(path)
        try:
            different = self.settings.differs(json.loads(state["settings"]))
            if different:
                raise ValueError(f"it is of a run with other settings, {', '.join(different)}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.pruner.load_state_dict(state["pruner"])
            self.progress.load_state_dict(state["progress"])
            self.step, self.open = state["step"], state["open"]
            self.seconds, self.selected = state["seconds"], state["selected"]
            self.sums.copy_(state["sums"])
            self.trajectories.load_state_dict(state["trajectories"])
            self.history = [EpochRecord(**line) for line in json.loads(state["history"])]
            if self.recorder is not None:
                self.recorder.load_state_dict(state["recorder"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this run ({error}): delete it to start this run from its beginning"
            ) from error


def _small(counts: Tensor) -> Tensor:
    """Cast counts to the smallest type that holds them: a sweep keeps one such file per run."""
    most = int(counts.max())
    return counts.to(torch.uint8 if most < 256 else torch.int16 if most < 32768 else torch.int32)
