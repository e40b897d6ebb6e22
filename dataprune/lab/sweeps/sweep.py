"""A sweep: many runs in one folder, written to its results file row by row and resumable at any instant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ... import distributed, files
from ...errors import UsageError
from ..data.named import Data
from ..training import run_folder
from ..training.build import load_data
from ..training.settings import Settings
from . import engines
from .engines import Engine, Report, Steps

_EARLIER = {"equal": "steps"}  # what folders begun by earlier versions have without saying so
Key = tuple[Any, ...]  # of a row, which no other row of the sweep has


class Places:
    """Where the runs of a sweep are stored: one folder, by the names of arms and seeds."""

    def __init__(self, out: Path):
        self.out = out

    def run(self, arm: str, settings: Settings) -> Path:
        """Folder of a run."""
        return self.out / "runs" / f"{arm}-seed{settings.seed}"

    def tuning(self, arm: str, settings: Settings) -> Path:
        """Folder of a run that tries a learning rate."""
        return self.out / "tuning" / f"{arm}-lr{settings.lr:g}"

    def scoring(self, settings: Settings) -> Path:
        """Folder of a run that scores."""
        return self.out / "scoring" / f"seed{settings.seed}"

    def coreset(self, name: str, keys: Mapping[str, Any]) -> Path:
        """File of a coreset; `keys` are what else decides it."""
        return self.out / "coresets" / f"{name}.safetensors"


class Cache(Places):
    """Runs that several sweeps share, stored by what their settings compute.

    `kept` names what a run leaves beside its record: a run without weights cannot serve a sweep that reads them.
    """

    def __init__(self, out: Path, kept: str = ""):
        super().__init__(out)
        self.kept = kept

    def run(self, arm: str, settings: Settings) -> Path:
        return self.out / "runs" / (settings.key() + self.kept)

    def scoring(self, settings: Settings) -> Path:
        return self.out / "runs" / settings.key()

    def coreset(self, name: str, keys: Mapping[str, Any]) -> Path:
        return self.out / "coresets" / f"{digest(keys)}.safetensors"


def on_coreset(settings: Settings, coreset: Path, **changes: Any) -> Settings:
    """Settings of a run on a coreset: no schedule, and no options of a dynamic method."""
    changes = {"keep": None, "option": (), **changes}
    return without_schedule(settings, method="fixed", selection=str(coreset), **changes)


def without_schedule(settings: Settings, **changes: Any) -> Settings:
    """Settings of a run that is the same in every epoch, with `changes`."""
    return replace(settings, budget=None, warmup=Settings.warmup, anneal=Settings.anneal, **changes)


def digest(values: Mapping[str, Any]) -> str:
    """A short hash of JSON values, for the names of folders and files."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class Sweep(Protocol):
    """What `carry_out` needs to know. A sweep checks its settings when it is made, before any data is read."""

    kind: ClassVar[str]  # what messages call it
    file: ClassVar[str]  # name of the results file in the sweep's folder

    @property
    def settings(self) -> Settings: ...  # those that decide the data, and where the runs are trained
    @property
    def identity(self) -> Mapping[str, Any]: ...  # what must agree to continue in a folder, see `claim`

    def steps(self, data: Data, places: Places) -> Mapping[Key, Steps]:
        """How each row is made, in the order of the rows; UsageError for what does not fit the data."""
        ...

    def kept(self, content: Mapping[str, Any]) -> Mapping[Key, dict[str, Any]]:
        """Rows of a results file of the same identity that stay until this call makes them anew."""
        ...

    def summary(self, data: Data, rows: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
        """Content of the results file."""
        ...


def carry_out(
    sweep: Sweep,
    out: Path,
    *,
    data: Data | None = None,
    engine: Engine = engines.local,
    report: Report | None = None,
    places: Places | None = None,
) -> dict[str, Any]:
    """Carry a sweep out, or continue it: finished runs are not repeated.

    The results file is written into the folder `out` after every row; its content, see `Sweep.summary`, is returned.

    Args:
        sweep: what to run, such as a `Comparison` or a `Grid`.
        data: the settings' data, where it is loaded already.
        engine: where the runs are carried out: `engines.local`, `engines.processes(4)`, `engine_ray.on_ray()`.
        report: called after every epoch; where runs are carried out elsewhere, for all epochs of a run at its end.
    Raises:
        UsageError: if the folder holds another sweep; else as `run`.
    """
    data = load_data(sweep.settings) if data is None else data
    path = out / sweep.file
    with engine(sweep.settings, data, report) as drive:
        planned = sweep.steps(data, places or Places(out))
        claim(out, sweep.kind, sweep.identity, sweep.file)
        _kept(sweep, path, data)  # a damaged file is refused before anything is trained
        distributed.barrier()  # every rank has read the file

        keys, made, content = list(planned), dict[Key, dict[str, Any]](), {}
        for position, row in drive(list(planned.values())):
            made[keys[position]] = row
            with locked(out):  # another call may have added rows since
                rows = {**_kept(sweep, path, data), **made}
                order = [*(key for key in rows if key not in planned), *(key for key in planned if key in rows)]
                content = sweep.summary(data, {key: rows[key] for key in order})
                if distributed.rank() == 0:
                    files.write_json(path, content)
    return content


def _kept(sweep: Sweep, path: Path, data: Data) -> dict[Key, dict[str, Any]]:
    if not path.exists():
        return {}
    content = files.read_json(path)
    with files.undamaged(path):
        rows = dict(sweep.kept(content))
        sweep.summary(data, rows)
    return rows


def claim(out: Path, kind: str, identity: Mapping[str, Any], file: str) -> None:
    """Write a sweep's identity into its folder; UsageError where it differs from the one that is there.

    The identity has JSON values by name; a name that only one side has is not compared, and is added. A folder that has
    the results file `file` needs an identity.
    """
    run_folder.check_folder(out)
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a single run: choose another --out")
    path = out / run_folder.SWEEP
    new: dict[str, Any] = json.loads(json.dumps({"kind": kind, **identity}))
    with locked(out):
        old = files.read_json(path) if path.exists() else {}
        if not old and (out / file).exists():
            raise UsageError(f"{out} has {file} but no {run_folder.SWEEP}: choose another --out, or delete the folder")
        if old:
            old = {**{name: value for name, value in _EARLIER.items() if name in new}, **old}
        differences = [text for name in old if name in new for text in _differences(name, old[name], new[name])]
        if differences:
            text = "; ".join(differences)
            raise UsageError(f"{out} holds another {kind} ({text}): choose another --out, or delete it")
        distributed.barrier()
        if distributed.rank() == 0:
            files.write_json(path, {**old, **new})


def locked(out: Path) -> AbstractContextManager[None]:
    """Lock a sweep's folder while its files are read, changed and written: several calls may work in it."""
    return run_folder.locked(out, ".sweep.lock")


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{name} was {json.dumps(old)}, now {json.dumps(new)}"
