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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError, suggest
from ..pruner import Pruner

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")
_WRITTEN = "tracked.json"  # in a run's folder: how many epochs each tracker has


class Tracker:
    """Where values go. Anything with a method `log(values, step)` serves as well.

    Args:
        log: called with numbers by name, and the step.
        close: called once, at the end.
    """

    def __init__(self, log: Callable[[dict[str, float], int], Any], close: Callable[[], Any] = lambda: None):
        self._log, self._close = log, close
        self._closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name; those that are None are left out."""
        self._log({name: float(value) for name, value in values.items() if value is not None}, step)

    def close(self) -> None:
        """Write what waits. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
    """MLflow; a run of this name in the experiment is gone on with.

    Args:
        experiment: its name.
        uri: of the tracking server, or sqlite:///FILE; by default what MLflow is set to.
        name: of the run.
        config: the run's parameters.
    """
    client = _package("mlflow").MlflowClient(tracking_uri=uri)
    existing = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if existing is None else existing.experiment_id
    quoted = (name or "").replace("'", "")
    runs = client.search_runs([number], f"attributes.run_name = '{quoted}'") if quoted else []
    run = (runs[0] if runs else client.create_run(number, run_name=quoted or None)).info.run_id

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
    values: dict[str, float | None] = {
        "kept": stats["reached_keep"],
        "overlap": stats["overlap"],
        "never_seen": stats["never_seen"],
        **more,
    }
    if samples is not None:
        values["samples_trained"] = samples
        if stats["epoch"] is not None:
            values["samples_saved"] = 1 - samples / (pruner.size * (stats["epoch"] + 1))
    return {name: float(value) for name, value in values.items() if value is not None}


# -- the command line --------------------------------------------------------------------------------------------------


class Followed:
    """Trackers that follow the history of a run's folder: every epoch once, whatever was interrupted between.

    Args:
        names: comma-separated, of NAMES; "" for none.
        out: the run's folder; MLflow's and TensorBoard's files lie in it.
        config: of the run, where the tracker keeps one.
    Raises:
        UsageError: for a name that is none, or a package that is missing.
    """

    def __init__(self, names: str, out: Path, config: dict[str, Any] | None = None):
        self._out, self._config, self._trackers = out, config or {}, contextlib.ExitStack()
        self._open: dict[str, Tracker] = {}
        self._names = [name.strip() for name in names.split(",") if name.strip()]
        for name in self._names:
            if name not in NAMES:
                raise UsageError(suggest(name, NAMES, what="tracker"))
            try:
                with _off_stdout():
                    _package(name)
            except ImportError as error:
                raise UsageError(str(error)) from error

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, *error: object) -> None:
        with _off_stdout():
            self._trackers.close()

    def catch_up(self) -> None:
        """Log the epochs in the history that a tracker does not have yet."""
        history, path = self._out / "history.jsonl", self._out / _WRITTEN
        if not self._names or not history.exists():
            return
        lines = [json.loads(line) for line in history.read_text().splitlines()]
        written = json.loads(path.read_text()) if path.exists() else {}
        for name in self._names:
            # what was logged and not yet in a checkpoint when the run was interrupted comes again, and is the same
            new = lines[written.get(name, 0) :]
            if not new:
                continue
            with _off_stdout():
                if name not in self._open:
                    self._open[name] = self._trackers.enter_context(_of_run(name, self._out, self._config))
                for line in new:
                    self._open[name].log(line, line["steps"])
            written[name] = len(lines)
            files.write_text(path, json.dumps(written))


def _off_stdout() -> contextlib.AbstractContextManager[Any]:
    """What trackers print must not mix with a command's result."""
    return contextlib.redirect_stdout(sys.stderr)


def _of_run(name: str, out: Path, config: dict[str, Any]) -> Tracker:
    if name == "tensorboard":
        return tensorboard(out / "tensorboard")
    if name == "wandb":
        return wandb("dataprune", name=out.name, id=out.name, resume="allow", dir=str(out), config=config)
    if name == "trackio":
        return trackio(
            "dataprune", name=out.name, resume="allow", config=config, auto_log_cpu=False, auto_log_gpu=False
        )
    uri = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{out.absolute() / 'mlflow.db'}"
    return mlflow("dataprune", uri=uri, name=out.name, config=config)


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
