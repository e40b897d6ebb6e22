"""The wheel has what the package needs, and works in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import dataprune

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that must not see this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=560, env=environment
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_papers_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dataprune").rglob("*.py")}
    assert modules <= names
    papers = {path.name for path in (ROOT / "experiments" / "papers").glob("*.yaml")}
    assert papers <= {Path(name).name for name in names} and papers
    assert not [name for name in names if not name.startswith("dataprune")]


@pytest.mark.slow
def test_the_wheel_runs_the_main_job_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", f"{wheel}[cli]")
    run(python, "-m", "pip", *install, cwd=tmp_path)
    assert "venv" in run(python, "-c", "import dataprune; print(dataprune.__file__)", cwd=tmp_path)
    small = "--data digits --train-size 400 --keep 0.3 --epochs 4 --seeds 2 --out first"
    run(tmp_path / "venv" / "bin" / "dataprune", "compare", *small.split(), cwd=tmp_path)
    assert (tmp_path / "first" / "report.html").exists()
    assert "emp_table1" in run(tmp_path / "venv" / "bin" / "dataprune", "reproduce", cwd=tmp_path)


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == dataprune.__version__
    assert f"version: {dataprune.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
