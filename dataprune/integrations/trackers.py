"""Experiment trackers behind one method: `tracker.log(values, step)`.

    with trackers.tensorboard("runs/mine") as tracker:
        ...
        tracker.log(trackers.values(pruner, samples=samples, loss=loss.item()), step)

Each tracker imports its package when it is made, so that none of them is needed for the others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError, check_known
from ..pruner import Pruner

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")
_WRITTEN = "tracked.json"  # in a run's folder: how many epochs each tracker has


class Tracker(contextlib.ExitStack):
    """Where values go: `log` is called with numbers by name and the step, `close` once, at exit or by `close()`.

    Anything with a method `log(values, step)` serves as well.
    """

    def __init__(self, log: Callable[[dict[str, float], int], Any], close: Callable[[], Any] = lambda: None):
        super().__init__()
        self._log = log
        self.callback(close)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log numbers by name; those that are None are left out."""
        self._log({name: float(value) for name, value in values.items() if value is not None}, step)


def tensorboard(folder: str | Path) -> Tracker:
    """TensorBoard's event files in a folder; `tensorboard --logdir FOLDER` shows them."""
    _package("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def wandb(project: str, **options: Any) -> Tracker:
    """Weights & Biases; `options` go to `wandb.init` (name, config, dir; mode="offline" sends nothing)."""
    run = _package("wandb").init(project=project, **options)
    return Tracker(lambda values, step: run.log(values, step=step), run.finish)


def trackio(project: str, **options: Any) -> Tracker:
    """Trackio, which keeps everything on this machine; `options` go to `trackio.init` (name, config, resume)."""
    package = _package("trackio")
    run = package.init(project=project, **options)
    return Tracker(lambda values, step: run.log(values, step=step), package.finish)


def mlflow(
    experiment: str, *, uri: str | None = None, name: str | None = None, config: dict[str, Any] | None = None
) -> Tracker:
    """MLflow; a run of this name in the experiment is continued.

    Args:
        uri: of the tracking server, or sqlite:///FILE; by default what MLflow is set to.
        config: the run's parameters.
    """
    client = _package("mlflow").MlflowClient(tracking_uri=uri)
    existing = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if existing is None else existing.experiment_id
    name = (name or "").replace("'", "")
    runs = client.search_runs([number], f"attributes.run_name = '{name}'") if name else []
    run = (runs[0] if runs else client.create_run(number, run_name=name or None)).info.run_id
    if not runs:
        for key, value in (config or {}).items():
            client.log_param(run, key, value)

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            client.log_metric(run, key, value, step=step)

    return Tracker(log, lambda: client.set_terminated(run))


def values(pruner: Pruner, *, samples: int | None = None, **more: float | None) -> dict[str, float]:
    """What a plain loop logs: how the selection goes, and numbers of its own.

    Args:
        pruner: its `kept` (share of the data in the selection), `overlap` with the one before, `never_seen`.
        samples: trained so far, on all ranks: then also `samples_saved`, the share that full epochs would have trained
            besides; call it at the end of an epoch.
        more: as they are; None is left out.
    """
    stats = pruner.stats()
    values = {"kept": stats["reached_keep"], "overlap": stats["overlap"], "never_seen": stats["never_seen"], **more}
    if samples is not None:
        values["samples_trained"] = samples
        if stats["epoch"] is not None:
            values["samples_saved"] = 1 - samples / (pruner.size * (stats["epoch"] + 1))
    return {name: float(value) for name, value in values.items() if value is not None}


# -- the command line --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def following(names: str, out: Path, config: dict[str, Any] | None = None) -> Iterator[Callable[[], None]]:
    """Follow the history of a run's folder: every tracker logs every epoch once, also where the run was interrupted.

    `names` are comma-separated, of NAMES; UsageError for one that is unknown or cannot be imported. Yields a function
    that logs the epochs that a tracker does not have yet.
    """
    requested = [name.strip() for name in names.split(",") if name.strip()]
    for name in requested:
        check_known(name, NAMES, what="tracker")
        try:
            with _off_stdout():
                _package(name)
        except ImportError as error:
            raise UsageError(str(error)) from error
    trackers: dict[str, Tracker] = {}
    stack = contextlib.ExitStack()
    history, path = out / "history.jsonl", out / _WRITTEN

    def catch_up() -> None:
        if not requested or not history.exists():
            return
        lines = [json.loads(line) for line in history.read_text().splitlines()]
        written = json.loads(path.read_text()) if path.exists() else {}
        for name in requested:
            # epochs that were logged and not yet in a checkpoint when the run was interrupted come again, unchanged
            new = lines[written.get(name, 0) :]
            if not new:
                continue
            with _off_stdout():
                if name not in trackers:
                    trackers[name] = stack.enter_context(_of_run(name, out, config or {}))
                for line in new:
                    trackers[name].log(line, line["steps"])
            written[name] = len(lines)
            files.write_text(path, json.dumps(written))

    try:
        yield catch_up
    finally:
        with _off_stdout():
            stack.close()


def _off_stdout() -> contextlib.AbstractContextManager[Any]:
    """What trackers print must not mix with a command's result."""
    return contextlib.redirect_stdout(sys.stderr)


def _of_run(name: str, out: Path, config: dict[str, Any]) -> Tracker:
    """The tracker of a run of the command line."""
    uri = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{out.absolute() / 'mlflow.db'}"
    options = {"name": out.name, "resume": "allow", "config": config}
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: tensorboard(out / "tensorboard"),
        "wandb": lambda: wandb("dataprune", id=out.name, dir=str(out), **options),
        "trackio": lambda: trackio("dataprune", auto_log_cpu=False, auto_log_gpu=False, **options),
        "mlflow": lambda: mlflow("dataprune", uri=uri, name=out.name, config=config),
    }
    return makers[name]()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"logging to {name} needs its package: pip install {name}") from error
        raise ImportError(
            f"{name} is installed but cannot be imported ({error}): its version and those of its packages do not fit, "
            f"pip install -U {name}"
        ) from error
