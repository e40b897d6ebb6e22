"""How near an epoch of pruned training comes to its share of a full one, and what the pruner takes of a step.

    python benchmarks/fast_path.py [--device cuda] [--data cifar100] [--model resnet18] [--keep 0.3] [--out FILE]

Runs of `lab.training.run` take turns in one process, epoch by epoch, so that a slow moment of the machine slows
them all: one that trains all samples without a pruner, one that trains as many random samples as `keep` leaves, without
a pruner either, and one for each method. Their first epoch, in which the model is compiled, is not counted.

An epoch is all of it: the selection, loading and augmentation, every step, and what is noted for the report; there is
no evaluation. *Ideal* is the time of the full epoch without a pruner, times the share of its samples that were trained:
what a last batch dropped is counted on neither side. *Efficiency* is ideal / measured, and *pruner* the time beyond
that of the run on random samples, as a share of the method's own epoch; both are medians over the rounds, of one
round's times each, and so is the interval, in which the median lies with 95 % confidence. *Calls* is the host's time
inside `Pruner.loss`, beyond what the plain mean of the losses takes, and in `select` and `stats`, as a share likewise:
on a CPU the sharper number, for it is no difference of two long times.

On a GPU: CIFAR-100 held there, bfloat16, channels last, compiled, and the clock on the wall. On a CPU: a few hundred of
its images, one thread, and the processor's seconds, which other processes on the machine do not lengthen; seconds on
the wall are in the file. There `small_cnn`, whose steps are short, is the worst case. The data is that under
$DATAPRUNE_DATA; `--data synthetic` needs none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dataprune import Pruner, Selection, criteria, methods, policies, schedules
from dataprune.lab.data import named as datasets
from dataprune.lab.data.named import Data, Images
from dataprune.lab.training import run as training
from dataprune.lab.training.device import choose_device
from dataprune.lab.training.epoch_history import EpochRecord
from dataprune.lab.training.run_folder import Environment
from dataprune.lab.training.settings import Settings

FULL, RANDOM = "full, no pruner", "random, no pruner"
METHODS = "rs2,loss,emp,infobatch"
# samples (None: all), batch size, rounds; on a CPU other models are as small_cnn. Short epochs and many rounds are what
# makes a median steady on a machine that has other work
ON_CPU = {"resnet18": (128, 8, 12), "small_cnn": (512, 32, 60)}
ON_GPU = (None, 128, 10)
USED = ("data", "batch_size", "optimizer", "lr", "shift", "flip", "threads", "bf16", "channels_last", "compile")


class Without(Pruner):
    """No pruner: random samples, drawn before training, of whose losses nothing is kept."""

    def __init__(self, size: int, *, keep: float, epochs: int, seed: int):
        super().__init__(size, criteria.loss, policies.uniform(), schedules.constant(keep), epochs=epochs, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self._drawn = [
            Selection.of(torch.randperm(size, generator=generator)[:count].sort().values) for count in self.counts
        ]

    def select(self, epoch: int) -> Selection:
        self._epoch = self._epoch.next(epoch)
        return self._drawn[epoch]

    def loss(self, index: Any, losses: torch.Tensor, outputs: Any = None, targets: Any = None) -> torch.Tensor:
        return losses.mean()

    def stats(self) -> dict[str, Any]:
        return {"epoch": self.selected, "reached_keep": 1.0, "overlap": None, "never_seen": 0, "draws": []}


@dataclass
class Epoch:
    """What an epoch took. `calls` are the processor's seconds within the pruner, of the thread that trains."""

    wall: float
    processor: float
    samples: int
    calls: dict[str, float] = field(default_factory=dict)


class Run:
    """A run of `training.run` in a thread of its own, which goes on by one epoch when it is its turn.

    Args:
        name: FULL, RANDOM, or a method.
        settings: of all runs; `epochs` is one more than there are rounds.
        data: of all runs.
        out: an empty folder.
    """

    def __init__(self, name: str, settings: Settings, data: Data, out: Path):
        self.name = name
        self.epochs: list[Epoch] = []
        self._calls: dict[str, float] = {}
        self._turn, self._over = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        method = f"{name} (timed)"
        methods.METHODS[method] = self.recipe
        arguments = (replace(settings, method=method, warmup=0, anneal=0.0), data, out)
        threading.Thread(target=self._train, args=arguments, daemon=True).start()

    def go_on(self) -> None:
        """Train the next epoch; after the last, end."""
        self._turn.release()
        self._over.acquire()
        if self._error is not None:
            raise self._error

    def recipe(
        self, size: int, *, keep: float = 1.0, epochs: int, seed: int = 0, warmup: int = 0, anneal: float = 0.0
    ) -> Pruner:
        """The run's pruner, without full epochs at either end, its calls timed."""
        if self.name in (FULL, RANDOM):
            made: Pruner = Without(size, keep=1.0 if self.name == FULL else keep, epochs=epochs, seed=seed)
        else:
            made = methods.METHODS[self.name](size, keep=keep, epochs=epochs, seed=seed, warmup=warmup, anneal=anneal)
        for name in ("loss", "select", "stats"):
            setattr(made, name, self._timed(name, getattr(made, name)))
        return made

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self._calls[name] = self._calls.get(name, 0.0) + time.thread_time() - started

        return timed

    def _train(self, settings: Settings, data: Data, out: Path) -> None:
        try:
            self._begin()
            training.run(settings, out, data=data, on_epoch=self._end, save_model=False, test=False)
        except BaseException as error:
            self._error = error
        self._over.release()

    def _begin(self) -> None:
        self._turn.acquire()
        self._calls.clear()
        self._started = time.perf_counter(), time.process_time()  # all other threads wait for their turns

    def _end(self, model: torch.nn.Module, line: EpochRecord) -> None:
        wall, processor = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self.epochs.append(Epoch(wall, processor, line.samples, dict(self._calls)))
        self._over.release()
        self._begin()


def measure(settings: Settings, data: Data, names: list[str], rounds: int) -> dict[str, list[Epoch]]:
    """The epochs of every run, in rounds; the first round, which warms up, left out."""
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(settings, epochs=rounds + 1)
        every = [Run(name, settings, data, Path(folder) / str(place)) for place, name in enumerate(names)]
        for number in range(rounds + 2):  # in the last they end
            first = number % len(every)
            for run in (*every[first:], *every[:first]):
                run.go_on()
    return {run.name: run.epochs[1:] for run in every}


def summary(name: str, found: dict[str, list[Epoch]], clock: str) -> dict[str, Any]:
    """A method's row: medians over the rounds."""
    mine, full, random = found[name], found[FULL], found[RANDOM]

    def per_sample(epoch: Epoch, by: str) -> float:
        return getattr(epoch, by) / epoch.samples

    def efficiency(by: str) -> list[float]:
        return [per_sample(whole, by) / per_sample(one, by) for one, whole in zip(mine, full, strict=True)]

    def beyond(one: Epoch, other: Epoch) -> float:
        return 1 - per_sample(other, clock) / per_sample(one, clock)

    def beyond_mean(one: Epoch, other: Epoch) -> float:
        return one.calls["loss"] - other.calls["loss"] / other.samples * one.samples

    def in_calls(one: Epoch, other: Epoch) -> float:
        return (beyond_mean(one, other) + one.calls["select"] + one.calls["stats"]) / getattr(one, clock)

    pairs = list(zip(mine, random, strict=True))
    pruned = name not in (FULL, RANDOM)
    return {
        "method": name,
        "share_trained": _median(one.samples / whole.samples for one, whole in zip(mine, full, strict=True)),
        "epoch_seconds": _median(getattr(one, clock) for one in mine),
        "ideal_seconds": _median(per_sample(w, clock) * one.samples for one, w in zip(mine, full, strict=True)),
        "efficiency": _median(efficiency(clock)),
        "efficiency_interval": _interval(efficiency(clock)),
        "efficiency_on_the_wall": _median(efficiency("wall")),
        "pruner_share": _median(beyond(*pair) for pair in pairs) if pruned else None,
        "calls_share": _median(in_calls(*pair) for pair in pairs) if pruned else None,
        "loss_seconds_per_sample": _median(beyond_mean(*pair) / pair[0].samples for pair in pairs) if pruned else None,
        "select_seconds": _median(one.calls["select"] for one in mine) if pruned else None,
        "rounds": len(mine),
    }


def synthetic(size: int) -> Data:
    """Noise in the shape of CIFAR-100."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    part = Images(images, torch.randint(100, (size,), generator=generator))
    names = [str(number) for number in range(100)]
    return Data("synthetic", part, None, part.subset(torch.arange(1)), names, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _interval(values: list[float]) -> tuple[float, float]:
    """Where the median is with 95 % confidence, by the order of the values."""
    values, reach = sorted(values), 0.98 * math.sqrt(len(values))
    low, high = math.floor(len(values) / 2 - reach), math.ceil(len(values) / 2 + reach)
    return values[max(low, 0)], values[min(high, len(values) - 1)]


def main() -> None:
    arguments = _arguments()
    device = choose_device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    clock = "processor" if device.type == "cpu" else "wall"
    names = [FULL, RANDOM, *arguments.methods.split(",")]
    result: dict[str, Any] = {"machine": asdict(Environment.current(device)), "clock": clock, "keep": arguments.keep}
    result["load_before"], result["models"] = os.getloadavg(), []
    del result["machine"]["process"]
    for model in arguments.model.split(","):
        settings, size, rounds = _settings(arguments, device, model)
        data = _data(arguments.data, size)
        found = measure(settings, data, names, rounds)
        rows = [summary(name, found, clock) for name in names]
        show(f"{model}, {len(data.train)} samples, batch {settings.batch_size}, {device}, seconds of the {clock}", rows)
        used = {name: getattr(settings, name) for name in USED}
        result["models"].append({"model": model, "samples": len(data.train), "settings": used, "rows": rows})
    result["load_after"] = os.getloadavg()
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(title)
    head = ("trained", "epoch", "ideal", "efficiency", "95 %", "pruner", "calls")
    print(
        f"{'run':18}" + "".join(f" {name:>{width}}" for name, width in zip(head, (8, 9, 9, 11, 17, 8, 8), strict=True))
    )
    for row in rows:
        shares = [f"{row[name]:8.2%}" if row[name] is not None else " " * 8 for name in ("pruner_share", "calls_share")]
        low, high = row["efficiency_interval"]
        print(
            f"{row['method']:18} {row['share_trained']:8.1%} {row['epoch_seconds']:9.3f} {row['ideal_seconds']:9.3f} "
            f"{row['efficiency']:11.1%} {f'{low:.1%} to {high:.1%}':>17} {' '.join(shares)}",
            flush=True,
        )


def _settings(arguments: argparse.Namespace, device: torch.device, model: str) -> tuple[Settings, int | None, int]:
    """Of all runs of a model, how many samples they have (None is all), and how many rounds."""
    gpu = device.type != "cpu"
    size, batch_size, rounds = ON_GPU if gpu else ON_CPU.get(model, ON_CPU["small_cnn"])
    fast: dict[str, Any] = {
        name: gpu if getattr(arguments, name) is None else getattr(arguments, name)
        for name in ("bf16", "channels_last", "compile")
    }
    settings = Settings(
        data=arguments.data,
        model=model,
        keep=arguments.keep,
        batch_size=arguments.batch_size or batch_size,
        lr=0.01,
        shift=4,
        flip=True,
        device=str(device),
        threads=0 if gpu else 1,
        checkpoint_every=1 << 40,  # none, or its time would be the next epoch's
        **fast,
    )
    return settings, arguments.size or size, arguments.rounds or rounds


def _data(name: str, size: int | None) -> Data:
    return synthetic(size or 50_000) if name == "synthetic" else datasets.load(name, train_size=size, test_size=1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100", help="as for `dataprune train`, or synthetic")
    parser.add_argument("--model", default="resnet18", help="comma-separated")
    parser.add_argument("--methods", default=METHODS, help="comma-separated")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--size", type=int, help="training samples; on a GPU all of them by default")
    parser.add_argument("--batch-size", type=int, help="128 on a GPU by default")
    parser.add_argument("--rounds", type=int, help="epochs of each run that are counted")
    parser.add_argument("--device", help="a GPU if there is one by default")
    for name in ("bf16", "channels-last", "compile"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help="by default on a GPU only")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
