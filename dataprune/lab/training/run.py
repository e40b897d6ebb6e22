"""One training run: from settings to a folder with its record, resumable at any instant."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import distributed, files, learning_rate
from ...dynamics import Recorder
from ...errors import CheckpointError
from ...modules import evaluation
from ...schedules import epoch_steps
from ...selection import Selection, fingerprint
from ..data.named import Data
from . import optimizers, run_folder, tasks
from .batches import Batches
from .build import build_pruner, build_rate, build_statistics, check, load_data
from .choosing import Choosing, step_cost
from .device import choose_device, connected, reseed, stream, use_threads
from .epoch_history import EpochRecord, Trajectories
from .evaluate import last_layer_inputs, recalibrate_batch_norm
from .run_folder import Environment, InputFormat, RunRecord
from .settings import Settings, require

OnEpoch = Callable[[nn.Module, EpochRecord], None]
OnStep = Callable[[int, int, float | None], None]  # steps taken and planned in the epoch, its mean loss as last read

CHECKPOINT_SECONDS = 30.0
_LOSS_EVERY = 50  # steps between two readings of the loss for `OnStep`, each of which waits for the device


def run(
    settings: Settings,
    out: Path,
    *,
    data: Data | None = None,
    model: nn.Module | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    save_model: bool = True,
    test: bool = True,
) -> RunRecord:
    """Train the run whose folder is `out`, or resume it; a finished run is only read.

    If another process trains in that folder, this one waits for it. The record's `seconds` are those of training,
    selection and `recalibrate_bn`: all that a method costs, with the loading of batches and a first step's compilation.
    Evaluation is in `evaluate_seconds`; writing checkpoints and recording scores for the report are in neither. Work
    lost to an interruption is not counted.

    Args:
        settings: what to train; must be those of the folder, if it has a run.
        out: the run's folder.
        data: the settings' data, if it is loaded already.
        model: trained in place of the settings' model; it may have weights and masks. A resumed run must be given one
            with the same parameters and masks; their values are then the checkpoint's.
        on_epoch, on_step: called after every epoch, and after every step.
        save_model: whether the weights are kept at the end, as `model.safetensors`, of language in `model/`.
        test: whether the test set is read, once, at the end.
    Raises:
        ValueError: if training diverges; its subclasses for invalid settings, another run's folder, broken files.
    """
    check(settings)
    if (record := run_folder.finished(out, settings)) is not None:
        return record
    device = choose_device(settings.device)
    with connected(device):
        data = load_data(settings) if data is None else data
        use_threads(settings.threads, data.shape)
        training = _Run(settings, out, device, data, model)
        try:
            with run_folder.claimed(out):
                if (record := run_folder.finished(out, settings)) is not None:  # by a process that this one waited for
                    return record
                training.resume()
                training.train(on_epoch, on_step)
                return training.finish(save_model, test)
        finally:
            training.release()


class _Run:
    """The state of a run while it trains."""

    def __init__(self, settings: Settings, out: Path, device: torch.device, data: Data, model: nn.Module | None = None):
        self.settings, self.out, self.device, self.data = settings, out, device, data
        size = len(data.train)
        self.method, selection = settings.method, None
        if settings.selection is not None:
            selection = Selection.load(settings.selection, data.train)
            self.method = Selection.metadata(settings.selection).get("method", settings.method)
        self.pruner = build_pruner(settings, size, data.train.labels, selection)
        whole = not (statistics := build_statistics(settings))  # which need every sample in every epoch, the last too
        self.stepping: dict[str, Any] = {"world_size": distributed.world_size(), "drop_last": whole}
        steps, planned = settings.steps, self.pruner.planned_steps(settings.rows_read, **self.stepping)
        require(
            steps is None or steps <= math.ceil(planned * step_cost(settings)),
            f"--steps {steps} are more than {settings.epochs} epochs have ({planned}): raise --epochs, or the "
            "learning rate would end before its schedule does",
        )
        self.limit = sys.maxsize if steps is None else steps
        self.task = tasks.of(settings, data)
        self.model = self.task.model() if model is None else model
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.to(device)
        self.forward: Any = self.model
        if distributed.world_size() > 1:
            self.forward = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        if settings.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = optimizers.build(settings, self.model.parameters())
        self.rate = build_rate(settings)
        self.choosing = Choosing(settings, self.pruner, device, self.task, self.model) if settings.online else None
        self.progress = learning_rate.Progress(self.pruner, settings.rows_read, **self.stepping)
        self.batches = Batches(self.task, self.pruner, device, settings.rows_read, settings.workers, drop_last=whole)
        self.features = last_layer_inputs(self.model, data.shape, statistics)  # of the running step
        self.recorder = Recorder(size, statistics) if statistics else None
        self.step = 0
        self.forwarded = 0  # samples only forwarded to be scored, of all ranks together
        self.open = False  # whether an epoch has begun that has no record in the history yet
        self.loss: float | None = None  # mean of the epoch, as last read for `OnStep`
        self.history: list[EpochRecord] = []
        self.selected = torch.zeros(size, dtype=torch.int32)  # epochs that each sample was selected for
        self.trajectories = Trajectories(size)
        self.seconds = {"train": 0.0, "select": 0.0, "recalibrate": 0.0, "evaluate": 0.0}
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples, of the open epoch
        self._saved = time.monotonic()

    def train(self, on_epoch: OnEpoch | None, on_step: OnStep | None) -> None:
        self.forward.train()
        for epoch in range(len(self.history), self.settings.epochs):
            if self._spent() > self.limit and not self.open:
                break
            with self._timed("select"):
                selection = self.pruner.select(epoch)
            self.trajectories.note_scores(self.pruner.book.score)
            self.open = True
            self.loss = self.history[-1].loss if self.history else None
            steps = epoch_steps(len(selection), self.settings.rows_read, accumulate=1, **self.stepping)
            batches = self.batches.of_epoch(epoch)
            while self._train_steps(batches, steps, on_step):
                self._checkpoint()
            self._forward_left_out(epoch)
            self._close(epoch, selection)
            if on_epoch is not None:
                on_epoch(self.model, self.history[-1])
            late = time.monotonic() - self._saved > CHECKPOINT_SECONDS
            if distributed.agreed(late and not self.settings.checkpoint_every):
                self._checkpoint()

    def finish(self, save_model: bool, test: bool) -> RunRecord:
        """Evaluate, and write the record, the weights and the tables."""
        self.pruner.sync()
        self.trajectories.note_scores(self.pruner.book.score)
        if distributed.rank() == 0:
            record = self._record(test)
            if save_model:
                self.task.save(self.model, self.out)
            switches, drawn = self.trajectories.switches, self.selected if self.choosing else self.pruner.book.drawn
            run_folder.write_counts(self.out, selected=self.selected, drawn=drawn, switches=switches)
            files.write_bytes(self.out / "trajectories.safetensors", save(self.trajectories.tables()))
            if self.recorder is not None:
                notes = {"settings": self.settings.as_dict(), "fingerprint": fingerprint(self.data.train)}
                scores = run_folder.write_scores(self.out, self.recorder.scores(), self.data.train.labels, notes)
                record = replace(record, scores=scores, fingerprint=notes["fingerprint"])
            files.write_json(self.out / "metrics.json", record.as_dict())
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        distributed.barrier()
        return RunRecord.of(files.read_json(self.out / "metrics.json"))

    def release(self) -> None:
        """Drop DistributedDataParallel before the process group is left: its reducer must not destroy the group.

        It would wait for the group's thread while holding the interpreter lock, for which that thread may wait.
        """
        self.forward = self.model
        if distributed.world_size() > 1:
            gc.collect()  # what a compiled model keeps in cycles

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Add the seconds that this takes, with the device's work, to a part of the run's."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - started

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def _train_steps(self, batches: Iterator[tuple[Tensor, Any, Tensor]], planned: int, on_step: OnStep | None) -> bool:
        """Train until the epoch of so many steps ends, or a checkpoint is due; whether one is."""
        every = self.settings.checkpoint_every
        before = self.history[-1].steps if self.history else 0
        with self._timed("train"):
            while self._spent() <= self.limit and (batch := next(batches, None)) is not None:
                self._train_step(*batch)
                if on_step is not None:
                    if (self.step - before) % _LOSS_EVERY == 0:
                        self.loss = float(self.sums[0] / self.sums[2])
                    on_step(self.step - before, planned, self.loss)
                if every and self.step % every == 0:
                    return True
        return False

    def _spent(self, ahead: float = 1) -> float:
        """Steps, with some that are ahead; with `count_forwards` samples that are only forwarded are among them."""
        if not self.settings.count_forwards:
            return self.step + ahead
        batch = self.settings.batch_size * distributed.world_size()
        scored = 0 if self.choosing is None else ahead * self.choosing.scored
        return self.step + ahead + (self.forwarded + scored) / (run_folder.PASSES * batch)

    def _train_step(self, index: Tensor, inputs: Any, labels: Tensor) -> None:
        settings = self.settings
        before, after = self.progress.done, self.progress.step()
        # the share at the middle of the step, so that neither the first nor the last is spent at rate 0
        done = (before + after) / 2 if settings.steps is None else self._spent(0.5) / settings.steps
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self.rate(done) * self.progress.factor
        if self.choosing is not None:
            with self._autocast():
                inputs, labels = self.choosing.choose(index, inputs, labels, self.step)
            self.forwarded += self.choosing.scored
        # dropout draws by the position in the run, so that a resumed run draws the same
        reseed(self.device, stream(settings.seed, "model", self.step, distributed.rank()))
        with self._autocast():
            output = self.forward(**inputs) if isinstance(inputs, dict) else self.forward(*inputs)
        losses, outputs, right = self.task.losses(output, labels)
        self.trajectories.record(losses)
        loss = self.choosing.loss(losses) if self.choosing else self.pruner.loss(index, losses, outputs, labels)
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

    def _forward_left_out(self, epoch: int) -> None:
        """Record what the method reads of the samples that an epoch left out, unless there are no steps to come."""
        if self._spent() > self.limit:
            return
        with self._timed("select"), evaluation(self.model), torch.no_grad(), self._autocast():
            for index, inputs, labels in self.batches.left_out(epoch):
                output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
                losses, outputs, _ = self.task.losses(output, labels)
                self.pruner.update(index, losses, outputs, labels)
                self.forwarded += len(index) * distributed.world_size()

    def _close(self, epoch: int, selection: Selection) -> None:
        """Append the epoch's record to the history."""
        loss, right, samples = self.sums.tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}: training has diverged, lower the learning rate")
        self.sums.zero_()
        if self.recorder is not None:
            self.recorder.end_epoch()
        trained, stats = selection.index, self.pruner.stats()
        if self.choosing is not None:
            trained, stats = self.choosing.close(self.selected)
        self.selected[trained] += 1
        self.trajectories.close(selection.index)
        record = EpochRecord(
            epoch=epoch,
            samples=int(samples),
            steps=self.step,
            lr=self.optimizer.param_groups[0]["lr"],
            loss=loss / samples if samples else None,
            train_accuracy=right / samples if samples and self.task.classifies else None,
            selected=len(trained),
            **{name: stats[name] for name in ("reached_keep", "overlap", "never_seen")},
            val_accuracy=self._val_accuracy(),
        )
        self.history.append(record)
        self.open = False
        if distributed.rank() == 0:
            files.append_json(self.out / "history.jsonl", record.as_dict())

    def _val_accuracy(self) -> float | None:
        """Evaluate the validation split on rank 0, whose batch-norm statistics every step broadcasts."""
        if distributed.rank() != 0 or self.data.val is None:
            return None
        with self._timed("evaluate"), self._autocast():
            return self.task.validate(self.model, self.data.val, self.device)

    def _recalibrate(self) -> None:
        """Re-estimate batch-norm statistics, where the settings say so."""
        settings, seed = self.settings, stream(self.settings.seed, "recalibrate")
        if count := settings.recalibrate_bn:
            with self._timed("recalibrate"), self._autocast():
                reseed(self.device, seed)
                inputs = self.batches.random(count, settings.batch_size, seed=seed, epoch=settings.epochs)
                recalibrate_batch_norm(self.model, (pixels for (pixels,) in inputs))

    def _record(self, test: bool) -> RunRecord:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise ValueError("the weights are NaN or infinite: training has diverged, lower the learning rate")
        self._recalibrate()
        pruned = [line for line in self.history if self.choosing or self.pruner.counts[line.epoch] < self.pruner.size]
        val_accuracy = self._val_accuracy()
        metrics: dict[str, Any] = {}
        if test:
            with self._timed("evaluate"), self._autocast():
                metrics = self.task.test(self.model, self.device)
        seconds: dict[str, Any] = {f"{part}_seconds": value for part, value in self.seconds.items()}
        return RunRecord(
            method=self.method,
            seed=self.settings.seed,
            accuracy=metrics.pop("accuracy", None),
            metric=metrics.pop("metric", None),
            metrics=metrics,
            val_accuracy=val_accuracy,
            samples=sum(line.samples for line in self.history),
            steps=self.step,
            seconds=sum(value for part, value in self.seconds.items() if part != "evaluate"),
            **seconds,
            reached_keep=sum(line.reached_keep for line in pruned) / len(pruned) if pruned else 1.0,
            epochs=len(self.history),
            train_samples=self.pruner.size,
            test_samples=len(self.data.test),
            note=self.data.note,
            input=None if self.settings.glue else InputFormat.of(self.data),
            parameters=sum(p.numel() for p in self.model.parameters()),
            world_size=distributed.world_size(),
            forwarded_samples=self.forwarded,
            machine=Environment.current(self.device),
        )

    def _stateful(self) -> dict[str, Any]:
        """The parts whose states a checkpoint holds, by name."""
        names = ("model", "optimizer", "pruner", "progress", "trajectories", "recorder", "choosing")
        return {name: vars(self)[name] for name in names if vars(self)[name] is not None}

    def _checkpoint(self) -> None:
        self.pruner.sync()
        if self.choosing is not None:
            self.choosing.sync()
        if distributed.rank() == 0:
            state = {
                "settings": json.dumps(self.settings.as_dict()),
                **{name: part.state_dict() for name, part in self._stateful().items()},
                "step": self.step,
                "forwarded": self.forwarded,
                "open": self.open,
                "sums": self.sums,
                "seconds": self.seconds,
                "history": json.dumps([line.as_dict() for line in self.history]),
                "selected": self.selected,
            }
            run_folder.write_checkpoint(self.out / "checkpoint.pt", state)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Load the folder's checkpoint if it has one, and write the folder's first files."""
        if (path := self.out / "checkpoint.pt").exists():
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
            if different := self.settings.differs(json.loads(state["settings"])):
                raise ValueError(f"it is of a run with other settings, {', '.join(different)}")
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            self.step, self.open, self.selected = state["step"], state["open"], state["selected"]
            self.forwarded = state.get("forwarded", 0)
            self.seconds |= state["seconds"]
            self.sums.copy_(state["sums"])
            self.history = [EpochRecord(**line) for line in json.loads(state["history"])]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this run ({error}): delete it to start this run from its beginning"
            ) from error
