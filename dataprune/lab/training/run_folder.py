"""The folder of a run: its record, its lock and its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, SoftFileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from ... import __version__, distributed, files
from ...dynamics import save_scores
from ...errors import CheckpointError, UsageError
from ..data.named import Data
from .settings import Settings

SCHEMA = 2  # of a run's checkpoint
PASSES = 3  # forward passes that cost as much as training on a sample: the backward pass costs two
_PATIENCE = 60.0  # seconds between two signs of life while a lock is waited for
SWEEP = "sweep.json"  # identity of a sweep, in its folder
RECORDED = {  # fields of a record that tables show
    "method", "seed", "accuracy", "val_accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep",
}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """Versions and hardware that a run was made with."""

    device: str = ""
    hardware: str = ""
    cpus: int | None = None
    threads: int | None = None
    process: int | None = None
    python: str = ""
    torch: str = ""
    dataprune: str = ""
    commit: str = ""  # of the clone that it ran from, with + where files differ from it
    system: str = ""

    @classmethod
    def current(cls, device: torch.device) -> Environment:
        """Of this process."""
        gpu = device.type == "cuda"
        return cls(
            device=str(device),
            hardware=torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine(),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            threads=torch.get_num_threads(),
            process=os.getpid(),
            python=platform.python_version(),
            torch=torch.__version__,
            dataprune=__version__,
            commit=commit(),
            system=f"{platform.system()} {platform.release()}",
        )


@cache
def commit() -> str:
    """The commit of the clone that this package is in, with + where its files differ; "" for an installed package."""
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):  # an environment inside somebody's repository
            return ""
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "."))
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class InputFormat:
    """Input shape (C, H, W), normalisation and classes, so the weights can be used without the dataset."""

    shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: int
    names: tuple[str, ...] | None = None  # of the classes, as the outputs are ordered; their ids where they have none

    @classmethod
    def of(cls, data: Data) -> InputFormat:
        """Of the data that a model is trained on."""
        return cls(data.shape, data.mean, data.std, len(data.classes), tuple(data.classes))


@dataclass(frozen=True)
class RunRecord:
    """What metrics.json holds of a finished run; `seconds` are those of training, selection and recalibration."""

    method: str  # of a coreset's run the method that selected it
    seed: int
    accuracy: float | None  # the task's main metric on the test set; None where that was not read
    val_accuracy: float | None
    samples: int  # back-propagated
    steps: int
    seconds: float
    train_seconds: float
    select_seconds: float
    recalibrate_seconds: float
    evaluate_seconds: float  # not among `seconds`
    reached_keep: float  # mean fraction kept in pruned epochs
    epochs: int
    train_samples: int  # size of the training set, N
    test_samples: int
    note: str  # about the data's splits
    parameters: int
    world_size: int
    machine: Environment
    metrics: dict[str, float] = field(default_factory=dict)  # further ones by name, such as `knn_accuracy` or `f1`
    metric: str | None = None  # name of the main metric, where that is not accuracy
    input: InputFormat | None = None  # None for language
    scores: str | None = None  # file of the table of scores, of a scoring run
    fingerprint: str | None = None  # of the scored dataset
    forwarded_samples: int = (
        0  # forwarded without gradients to be scored, `PASSES` of them cost as much as a trained one
    )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: metrics beside the other fields, without optional fields that are None."""
        values = asdict(self)
        metrics = values.pop("metrics")
        optional = {entry.name for entry in fields(self) if entry.default is None}
        return {**{k: v for k, v in values.items() if v is not None or k not in optional}, **metrics}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> RunRecord:
        """The record that `as_dict` gave; TypeError if a field is missing."""
        names = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in stored.items() if name in names}
        values["metrics"] = {name: value for name, value in stored.items() if name not in names}
        values["machine"] = Environment(**values.get("machine", {}))
        if form := values.get("input"):
            values["input"] = InputFormat(**form)
        return cls(**values)


def check_folder(out: Path) -> None:
    """Raise UsageError if a file is in the place of a folder of results."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose a folder with --out")


def folder(out: Path) -> None:
    """Make a folder of results unless it exists."""
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {out}: {error.strerror}; choose another --out") from error


def finished(out: Path, settings: Settings) -> RunRecord | None:
    """Read the record of a finished run, None if it is not finished; UsageError for the folder of something else.

    What a kill between the record and the end has left in the folder is removed. Collective, for sweeps that share a
    folder: all ranks go the same way.
    """
    check_folder(out)
    if (out / SWEEP).exists():
        raise UsageError(f"{out} holds a {files.read_json(out / SWEEP).get('kind', 'sweep')}: choose another --out")
    if (out / "config.json").exists():
        different = settings.differs(files.read_json(out / "config.json"))
        if different:
            raise UsageError(
                f"{out} holds a run with other settings ({', '.join(different)}): choose another --out, or delete it"
            )
    # as the first rank finds it: another process may finish the run while the ranks look
    record = _read_record(out) if distributed.agreed((out / "metrics.json").exists()) else None
    if record is not None:
        for name in ("checkpoint.pt", ".lock"):
            with contextlib.suppress(OSError):  # such as a folder that may only be read
                (out / name).unlink(missing_ok=True)
    return record


def read(out: Path) -> tuple[Settings, RunRecord | None]:
    """Read the settings of a folder's run, and its record where it is finished; UsageError if there is no run."""
    if not (out / "config.json").exists():
        raise UsageError(f"{out} holds no run of `dataprune train` or `score`")
    return Settings.of(files.read_json(out / "config.json")), _read_record(out)


def _read_record(out: Path) -> RunRecord | None:
    path = out / "metrics.json"
    if not path.exists():
        return None
    try:
        record = RunRecord.of(files.read_json(path))
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and run again") from error
    if record.scores is not None and not (out / record.scores).exists():
        raise CheckpointError(f"{out} has lost its {record.scores}: delete the folder, and score again")
    return record


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Lock a run's folder, on the first rank for all; a second process warns, and waits until the first ends."""
    with locked(out, ".lock", f"another process trains in {out}: waiting for it to end"):
        yield
        if distributed.rank() == 0:
            # waiters find a finished run, so deleting the lock file is safe
            (out / ".lock").unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path, name: str, waiting: str = "") -> Iterator[None]:
    """Lock a file in a folder, which is made, on the first rank for all, until the block or the process ends.

    A process that must wait warns with the text `waiting`, and all of its ranks wait; without the text only the first
    does. Where the file system has no locks, a warning says what holds.
    """
    if distributed.rank() != 0:
        while waiting and not distributed.agreed(False):
            pass
        yield
        return
    folder(out)
    lock = FileLock(out / name)
    blocked, without = False, "locks: nothing keeps a second process out, so give no command twice at a time"
    try:
        lock.acquire(timeout=0 if waiting else -1)
    except Timeout:
        blocked = True
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise files.unwritable(out, error) from error
    if isinstance(lock, SoftFileLock):  # what filelock makes of it where there is no flock
        without = f"flock: the file {name} is the lock; where no process runs there, delete it"
    if not (blocked or lock.is_locked) or isinstance(lock, SoftFileLock):
        warnings.warn(f"{out} is on a file system without {without}", stacklevel=5)
    if blocked:
        warnings.warn(waiting, stacklevel=5)
        while not lock.is_locked:
            distributed.agreed(False)  # the other ranks would not wait for ever
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_PATIENCE)
    if waiting:
        distributed.agreed(True)
    try:
        yield
    finally:
        lock.release()


def write_counts(out: Path, **counts: Tensor) -> None:
    """Write how often each sample was selected, drawn and so on, in the smallest type: a sweep has a file per run."""
    smallest = {}
    for name, values in counts.items():
        most = int(values.max())
        smallest[name] = values.to(torch.uint8 if most < 256 else torch.int16 if most < 32768 else torch.int32)
    files.write_bytes(out / "selection_counts.safetensors", save(smallest))


def write_scores(out: Path, scores: dict[str, Tensor], labels: Tensor, notes: dict[str, Any]) -> str:
    """Write the table of scores, as parquet where pyarrow is installed; return the file's name."""
    path = out / ("scores.parquet" if find_spec("pyarrow") else "scores.csv")
    save_scores(path, scores, labels=labels, notes=notes)
    return path.name


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state."""
    files.write_state(path, {"schema": SCHEMA, **state})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training state; CheckpointError if the file is damaged, or of another schema."""
    advice = "delete it to start this run from its beginning"
    state = files.read_state(path, advice)
    if not isinstance(state, dict) or "schema" not in state:
        raise CheckpointError(f"{path} is no checkpoint of a run: {advice}")
    if state["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {state['schema']}, this version reads schema {SCHEMA}: resume with the version that "
            "wrote it, or delete it to start again"
        )
    return state
