"""What a run's record says of where it was made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dataprune.lab.training import run_folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_record_names_the_commit_of_the_clone_it_ran_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        person = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *person, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "dataprune"
    (package / "lab/training").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(package / "lab/training/run_folder.py"))
    commit = run_folder.commit.__wrapped__
    assert commit() == ""  # no repository
    git("init", "-q")
    (tmp_path / "other.txt").write_text("")
    git("add", "other.txt")
    git("commit", "-qm", "other")
    assert commit() == ""  # a repository that the package is only installed in
    git("add", "dataprune")
    git("commit", "-qm", "package")
    assert commit() == git("rev-parse", "HEAD")[:12]
    (tmp_path / "other.txt").write_text("changed")
    assert not commit().endswith("+")
    (package / "__init__.py").write_text("changed = True")
    assert commit() == git("rev-parse", "HEAD")[:12] + "+"
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


def test_the_environment_of_a_run_has_it() -> None:
    assert run_folder.Environment.current(torch.device("cpu")).commit == run_folder.commit()
