"""Epochs of changing length under the real Trainer of Lightning. First what it does without the callback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader

pytest.importorskip(
    "lightning", reason="the extra lightning is not installed: pip install -c constraints.txt -e '.[lightning]'"
)

from integrations.lightning_tiny import (
    BATCH,
    SIZE,
    Tiny,
    annealed,
    every_step,
    growing,
    infobatch,
    items,
    loader,
    quiet,
    shrinking,
    train,
    trainer,
)
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger

import dataprune
from dataprune import CheckpointError
from dataprune.integrations.lightning import PruneCallback, check_version
from dataprune.pruner import Pruner

PLANS = [(shrinking, [48, 15, 15, 15]), (growing, [12, 24, 36, 48]), (annealed, [48, 15, 15, 48])]


def sizes(module: Any) -> list[int]:
    return [len(epoch) for epoch in module.epochs()]


def same_weights(model: Any, other: Any) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


# -- the traps ---------------------------------------------------------------------------------------------------------


def test_stock_lightning_truncates_growing_epochs() -> None:
    assert sizes(train(growing(), stock=True)) == [12, 16, 16, 16]


def test_stock_lightning_that_reloads_its_loader_trains_whole_epochs() -> None:
    naive = train(growing(), stock=True, reload_dataloaders_every_n_epochs=1)
    assert sizes(naive) == [12, 24, 36, 48]


def test_stock_lightning_estimates_steps_from_the_first_epoch() -> None:
    naive = train(shrinking(), stock=True)
    assert naive.trainer.estimated_stepping_batches == 24 and naive.trainer.global_step == 12


def test_stock_lightning_resumes_without_scores(tmp_path: Path) -> None:
    whole = train(shrinking(), stock=True, callbacks=(every_step(tmp_path),))
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        again = train(shrinking(), stock=True, resume=tmp_path / "3.ckpt")
    assert again.seen[:3] == whole.seen[:3]  # the beginning of the epoch, a second time
    assert not same_weights(again, whole)


# -- epochs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "planned"), PLANS)
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_planned_sample_is_trained_and_the_schedule_ends_at_zero(
    plan: Any, planned: list[int], accumulate: int, drop_last: bool
) -> None:
    pruner = plan()
    ours = train(pruner, accumulate_grad_batches=accumulate, drop_last=drop_last)
    assert sizes(ours) == [size // BATCH * BATCH if drop_last else size for size in planned]
    for epoch in ours.epochs():
        assert len(set(epoch)) == len(epoch)
    steps = pruner.planned_steps(BATCH, accumulate=accumulate, drop_last=drop_last)
    assert ours.trainer.global_step == steps and ours.rate() == 0.0


@pytest.mark.parametrize("reload", [0, 1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_reloading_and_workers_change_nothing(reload: int, workers: int) -> None:
    alone = train(annealed())
    pruner = annealed()

    class Own(Tiny):
        def train_dataloader(self) -> Any:
            return dataprune.prune_loader(loader(num_workers=workers, persistent_workers=workers > 0), pruner)

    ours = train(pruner, module=Own(pruner, 16), reload_dataloaders_every_n_epochs=reload)
    assert ours.epochs() == alone.epochs() and same_weights(ours, alone)


def test_a_loader_with_a_custom_batch_sampler() -> None:
    for workers in (0, 1):
        pruner = growing()
        batches = BatchSampler(dataprune.PruneSampler(pruner), BATCH, drop_last=False)
        data = DataLoader(
            dataprune.Indexed(items()),
            batch_sampler=batches,
            collate_fn=dataprune.IndexedCollate(),
            num_workers=workers,
        )
        ours = train(pruner, data=data)
        assert sizes(ours) == [12, 24, 36, 48] and ours.epochs() == train(growing()).epochs()


def test_full_is_the_stock_run_to_the_last_bit() -> None:
    options = {"shuffle": False, "size": 45}
    stock = train(None, data=loader(**options), dropout=0.1)
    pruner = dataprune.full(45, epochs=4)
    ours = train(pruner, data=dataprune.prune_loader(loader(**options), pruner), module=Tiny(pruner, 24, 0.1))
    assert ours.values == stock.values and same_weights(ours, stock)


@pytest.mark.parametrize("by_batch", [False, True])
def test_weights_are_those_of_the_plain_loop(by_batch: bool) -> None:
    index = torch.arange(0, SIZE, 2)
    selection = dataprune.Selection(index, (index % 7).float(), by_batch)
    pruner = dataprune.methods.fixed(SIZE, selection=selection, epochs=4)
    ours = train(pruner)
    model, step, steps = Tiny(None, 0), 0, pruner.planned_steps(BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = items().tensors
    for _, batch in ours.seen:
        at = torch.tensor(batch)
        weight, losses = (at % 7).float(), F.cross_entropy(model.layers(x[at]), y[at], reduction="none")
        loss = weight.mean() * losses.mean() if by_batch else (weight * losses).mean()
        assert ours.values[step] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        step += 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert step == steps


def test_infobatch_decides_its_lengths_on_the_way() -> None:
    pruner = infobatch()
    ours = train(pruner)
    assert sizes(ours)[0] == sizes(ours)[-1] == SIZE and min(sizes(ours)) < SIZE
    assert ours.trainer.global_step == sum(-(-size // BATCH) for size in sizes(ours))
    assert bool(pruner.book.score.isfinite().all())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16(precision: Any) -> None:
    pruner = shrinking()
    ours = train(pruner, precision=precision)
    assert sizes(ours) == [48, 15, 15, 15]
    assert pruner.book.score.dtype == torch.float32 and bool(pruner.book.score.isfinite().all())


@pytest.mark.parametrize(("every", "times"), [(1.0, [2, 3, 5, 6]), (0.5, [1, 2, 1, 2, 3, 2, 4, 3, 6])])
def test_validation_follows_the_length_of_each_epoch(every: float, times: list[int]) -> None:
    ours = train(growing(), validate=True, val_check_interval=every)
    assert [batch for _, batch in ours.validated] == times
    assert ours.epochs() == train(growing()).epochs()


class Leaves(Callback):
    """Leaves epoch 1 after its first batch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            pl_module.leave = True


class Leaving(Tiny):
    """Can be told to leave an epoch."""

    leave = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        leave, self.leave = self.leave, False
        return -1 if leave else None


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_left_early_is_no_error(workers: int) -> None:
    pruner = annealed()
    data = dataprune.prune_loader(loader(num_workers=workers), pruner)
    ours = train(pruner, module=Leaving(pruner, 16), data=data, callbacks=(Leaves(),))
    assert sizes(ours) == [48, 8, 15, 48]


def test_early_stopping() -> None:
    stop = EarlyStopping("val_loss", patience=0, mode="max", min_delta=10)
    ours = train(shrinking(), validate=True, callbacks=(stop,))
    assert sizes(ours) == [48, 15, 0, 0]


def test_fast_dev_run_is_one_batch() -> None:
    assert [len(ids) for _, ids in train(shrinking(), fast_dev_run=True).seen] == [8]


def test_logs(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    ours = train(annealed(), logger=logger, log_every_n_steps=1)
    last = ours.trainer.callback_metrics
    assert last["kept"] == 1 and last["samples_trained"] == 48 + 15 + 15 + 48
    assert last["samples_saved"] == pytest.approx(1 - 126 / 192)
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("kept")
    assert [float(row.split(",")[column]) for row in rows] == [1.0, 0.3125, 0.3125, 1.0]


@pytest.mark.parametrize("make", [lambda i, x, y: {"index": i, "x": x, "y": y}, lambda i, x, y: {"x": x, "i": (i, y)}])
def test_a_batch_that_a_hook_makes_a_dictionary(make: Any) -> None:
    class Hooked(Tiny):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            index, (x, y) = batch
            return make(index, x, y)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            index, y = (batch["index"], batch["y"]) if "y" in batch else batch["i"]
            return super().training_step((index, (batch["x"], y)), batch_idx)

    pruner = shrinking()
    ours = train(pruner, module=Hooked(pruner, 12))
    assert sizes(ours) == [48, 15, 15, 15]
    assert ours.trainer.callback_metrics["samples_trained"] == 93


class TwoPasses(Tiny):
    """SAM's two passes over a batch, by hand."""

    def __init__(self, pruner: Pruner):
        super().__init__(pruner, 12)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, (x, y) = batch
        self.seen.append((self.current_epoch, index.tolist()))
        optimizer: Any = self.optimizers()
        for first in (True, False):
            optimizer.zero_grad()
            logits = self.layers(x)
            losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
            assert self.pruner is not None
            self.manual_backward(self.pruner.loss(index, losses, logits, y, record=first))
            with torch.no_grad():
                for parameter in self.layers.parameters():
                    assert parameter.grad is not None
                    parameter.add_(parameter.grad, alpha=0.01 if first else -0.01)
        optimizer.step()


def test_two_passes_over_a_batch() -> None:
    pruner = shrinking()
    ours = train(pruner, module=TwoPasses(pruner))
    assert sizes(ours) == [48, 15, 15, 15]
    assert ours.trainer.callback_metrics["samples_trained"] == 93


class Look(Callback):
    """Goes through the training loader wherever it is called."""

    def look(self, trainer: Any, pl_module: Any) -> None:
        for index, (x, _) in trainer.train_dataloader:
            assert len(index) == len(x)

    on_train_epoch_start = on_train_epoch_end = look

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        next(iter(trainer.train_dataloader))
        if trainer.global_step % 4 == 1:
            self.look(trainer, pl_module)


@pytest.mark.parametrize("plan", [shrinking, growing, infobatch, lambda: dataprune.rs2(SIZE, keep=0.25, epochs=4)])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_look_at_the_training_loader_changes_nothing(plan: Any, workers: int) -> None:
    def run(*callbacks: Callback) -> Any:
        pruner = plan()
        return train(pruner, data=dataprune.prune_loader(loader(num_workers=workers), pruner), callbacks=callbacks)

    alone, looked = run(), run(Look())
    assert looked.seen == alone.seen and same_weights(looked, alone)
    assert torch.equal(looked.pruner.book.score, alone.pruner.book.score)


def test_a_training_step_that_records_nothing() -> None:
    pruner = shrinking()

    class Forgets(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layers(batch[1][0]).sum()

    with pytest.raises(dataprune.PlanError, match=r"training_step never called pruner\.loss"):
        train(pruner, module=Forgets(pruner, 12))


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [shrinking, growing, annealed, infobatch])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_after_any_step_is_the_uninterrupted_run(tmp_path: Path, plan: Any, accumulate: int) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    pruner = plan()
    whole = train(pruner, callbacks=(every_step(tmp_path),), **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert len(checkpoints) == whole.trainer.global_step
    for path in checkpoints:
        again = plan()
        resumed = train(again, resume=path, **options)
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], path
        assert resumed.trainer.global_step == whole.trainer.global_step, path
        assert resumed.trainer.current_epoch == whole.trainer.current_epoch == 4
        assert same_weights(resumed, whole) and resumed.rate() == whole.rate()
        for name, value in pruner.state_dict().items():
            restored = again.state_dict()[name]
            if name == "exhausted" and path == checkpoints[-1]:
                continue  # no epoch ends any more
            assert torch.equal(restored, value) if isinstance(value, torch.Tensor) else restored == value, name
        for name in ("kept", "samples_trained", "samples_saved"):
            if path != checkpoints[-1]:
                assert resumed.trainer.callback_metrics[name] == whole.trainer.callback_metrics[name]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["validation", "half", "epoch"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reload", [0, 1])
def test_resuming_after_validation_and_epochs(tmp_path: Path, moment: str, workers: int, reload: int) -> None:
    options: dict[str, Any] = {"validate": True, "val_check_interval": 0.5 if moment == "half" else 1.0}
    options["reload_dataloaders_every_n_epochs"] = reload
    saves = every_step(tmp_path, every_n_train_steps=None, every_n_epochs=1, save_on_train_epoch_end=moment == "epoch")

    def data(pruner: Pruner) -> Any:
        return dataprune.prune_loader(loader(num_workers=workers), pruner)

    pruner = growing()
    whole = train(pruner, data=data(pruner), callbacks=(saves,), **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert len(checkpoints) == (9 if moment == "half" else 4)
    for path in checkpoints:
        again = growing()
        resumed = train(again, data=data(again), resume=path, **options)
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], path
        assert len(resumed.seen) == len(whole.seen) - int(path.stem)
        assert resumed.trainer.global_step == whole.trainer.global_step
        assert resumed.validated == whole.validated[len(whole.validated) - len(resumed.validated) :]
        assert same_weights(resumed, whole)


def test_the_checkpoint_has_the_state_and_loads_with_weights_only(tmp_path: Path) -> None:
    pruner = shrinking()
    train(pruner, callbacks=(every_step(tmp_path),))
    saved = torch.load(tmp_path / "7.ckpt", weights_only=True)["callbacks"]["PruneCallback"]
    assert saved["pruner"]["epoch"] == 1 and saved["savings"]["trained"] == 56


def test_testing_a_checkpoint_leaves_the_pruner_alone(tmp_path: Path) -> None:
    train(shrinking(), callbacks=(every_step(tmp_path),))
    pruner = shrinking()
    with quiet():
        running = trainer(pruner, [PruneCallback(pruner)])
        module = Tiny(pruner, 12)
        running.validate(module, loader(16, shuffle=False), ckpt_path=tmp_path / "7.ckpt", verbose=False)
        assert pruner.selected is None and pruner.loads == 0
        running.fit(module, dataprune.prune_loader(loader(), pruner))
    assert sizes(module) == [48, 15, 15, 15]


def test_a_finished_run(tmp_path: Path) -> None:
    pruner = shrinking()
    saves = every_step(tmp_path, every_n_train_steps=None, every_n_epochs=1, save_on_train_epoch_end=True)
    train(pruner, callbacks=(saves,))
    again = shrinking()
    assert train(again, resume=tmp_path / "12.ckpt").seen == []
    assert again.epoch == 4 and torch.equal(again.book.score, pruner.book.score)


@pytest.mark.parametrize("at", [3, 6, 8])
def test_a_longer_run_takes_up_a_shorter_one(tmp_path: Path, at: int) -> None:
    def run(epochs: int, **options: Any) -> Any:
        pruner = dataprune.rs2(SIZE, keep=0.25, epochs=epochs)
        return train(pruner, module=Tiny(pruner, 12), **options)

    run(4, callbacks=(every_step(tmp_path),))
    whole, longer = run(6), run(6, resume=tmp_path / f"{at}.ckpt")
    assert longer.trainer.global_step == 12 and longer.rate() == 0.0
    assert longer.seen == whole.seen[at:] and same_weights(longer, whole)


def test_a_checkpoint_without_the_callback(tmp_path: Path) -> None:
    train(shrinking(), stock=True, callbacks=(every_step(tmp_path),))
    for step in (3, 6, 8):
        with pytest.raises(CheckpointError, match="has no state of PruneCallback"):
            train(shrinking(), resume=tmp_path / f"{step}.ckpt")


def test_a_checkpoint_of_another_pruner(tmp_path: Path) -> None:
    train(shrinking(), callbacks=(every_step(tmp_path),))
    with pytest.raises(CheckpointError, match="other arguments"):
        train(annealed(), resume=tmp_path / "7.ckpt")
    with pytest.raises(CheckpointError, match="not one that PruneCallback wrote"):
        PruneCallback(shrinking()).load_state_dict({})


def test_a_checkpoint_of_a_run_with_other_steps(tmp_path: Path) -> None:
    train(shrinking(), callbacks=(every_step(tmp_path),))
    with pytest.raises(CheckpointError, match=r"other steps per epoch \(accumulate_grad_batches 1 -> 2\)"):
        train(shrinking(), resume=tmp_path / "7.ckpt", accumulate_grad_batches=2)


def test_a_pruner_that_was_used() -> None:
    pruner = shrinking()
    train(pruner, max_epochs=4)
    with pytest.raises(ValueError, match="has begun to train already: build a new one for each fit"):
        train(pruner)
    half = shrinking()
    half.update(half.order(0, 0, 1)[:8], torch.rand(8), torch.randn(8, 3))
    with pytest.raises(ValueError, match="has begun to train already"):
        train(half)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"limit_train_batches": 0.5}, "limit_train_batches=0.5 would cut off"),
        ({"limit_train_batches": 1}, "limit_train_batches=1 would cut off"),
        ({"overfit_batches": 2}, "overfit_batches=2 replaces the pruner's sampler"),
        ({"max_epochs": 3}, r"Trainer\(max_epochs=4\)"),
        ({"max_steps": 5}, "max_steps=5, but the pruner's plan has 12 steps"),
        ({"max_steps": 100}, "max_steps=100, but the pruner's plan has 12 steps"),
        ({"val_check_interval": 4, "validate": True}, "val_check_interval=4, but an epoch of the pruner has 2 batches"),
    ],
)
def test_flags_that_cut_epochs_off(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(shrinking(), **flags)


def test_validation_may_count_batches_across_epochs() -> None:
    ours = train(shrinking(), validate=True, val_check_interval=4, check_val_every_n_epoch=None)
    assert len(ours.validated) == 3


def test_as_many_max_steps_as_planned() -> None:
    ours = train(shrinking(), max_steps=12)
    assert sizes(ours) == [48, 15, 15, 15] and ours.rate() == 0.0


class Changes(Callback):
    """Accumulation of one's own."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch % 2


@pytest.mark.parametrize(
    "changes", [GradientAccumulationScheduler({2: 2}), GradientAccumulationScheduler({0: 2}), Changes()]
)
def test_accumulation_that_changes_under_a_schedule_of_steps(changes: Callback) -> None:
    with pytest.raises(ValueError, match=r"changes while training \(\[1, 2\], .* a schedule of interval 'epoch'"):
        train(shrinking(), callbacks=(changes,))


@pytest.mark.parametrize("changes", [GradientAccumulationScheduler({1: 2}), Changes()])
def test_accumulation_that_changes_without_one(changes: Callback) -> None:
    class Constant(Tiny):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pruner = growing()
    ours = train(pruner, module=Constant(pruner, 0), callbacks=(changes,))
    assert sizes(ours) == [12, 24, 36, 48]
    assert ours.trainer.global_step == 2 + 2 + (3 if isinstance(changes, GradientAccumulationScheduler) else 5) + 3


def test_accumulation_that_never_changes() -> None:
    assert sizes(train(shrinking(), callbacks=(GradientAccumulationScheduler({0: 1}),))) == [48, 15, 15, 15]


def test_loaders_that_are_not_the_pruners() -> None:
    with pytest.raises(TypeError, match="the training loader is not pruned"):
        train(shrinking(), data=loader())
    with pytest.raises(ValueError, match="have different pruners"):
        train(shrinking(), data=dataprune.prune_loader(loader(), shrinking()))
    pruner = shrinking()
    with pytest.raises(TypeError, match="one DataLoader is needed"):
        train(pruner, data=[dataprune.prune_loader(loader(), pruner)])
    with pytest.raises(ValueError, match="shares samples among 2 ranks"):
        train(pruner, data=dataprune.prune_loader(loader(), pruner, rank=0, world_size=2))
    with pytest.raises(TypeError, match=r"must be a dataprune\.Pruner"):
        PruneCallback(loader())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forwards what an epoch leaves out, which a Trainer does not"):
        PruneCallback(dataprune.kakurenbo(8, keep=0.5, epochs=4))


def test_a_schedule_over_lightnings_estimate_is_warned_of() -> None:
    class Estimates(Tiny):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    pruner = shrinking()
    with pytest.warns(UserWarning, match="spans 24 steps, .* but 12 are planned"):
        train(pruner, module=Estimates(pruner, 0))


def test_without_lightning() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "import dataprune\nfrom dataprune.integrations.lightning import PruneCallback\n"
        "PruneCallback(dataprune.full(4, epochs=1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ImportError: PruneCallback needs lightning: pip install -c constraints.txt -e '.[lightning]'" in done.stderr


def test_attributes_set_in_lightning_exist() -> None:
    running = trainer(None, [])
    check_version(running)
    assert running._accelerator_connector.use_distributed_sampler is False
    assert {"val_check_batch", "val_check_interval", "distributed_sampler_kwargs"} <= set(dir(running))
    del running.fit_loop.max_batches
    with pytest.raises(ImportError, match="has no max_batches"):
        check_version(running)
