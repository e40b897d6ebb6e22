"""Every code block of README and of the site runs, in order, a page in one folder and one namespace.

Comments in a page's source say how, each on a line before its block:

    <!-- hidden                   Python that runs there and is not shown, up to the closing arrow
    <!-- run with: --epochs 2     options that every `dataprune` command of the block gets besides, to be quick
    <!-- not run: it downloads    a block that cannot run here, and why
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Frameworks that leave threads or global state behind run in a process of their own.
APART = re.compile(r"^(?:import|from) (?:ray|lightning|accelerate|transformers)\b", re.MULTILINE)
BLOCK = re.compile(
    r"^<!-- hidden\n(?P<hidden>.*?)^-->"
    r"|(?:^<!-- (?P<how>run with|not run): (?P<what>.*?) -->\n)?"
    r"^```(?: \{\.)?(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "sh", "text", "yaml", "bibtex"}


@dataclass(frozen=True)
class Block:
    """A block of code, and the comment before it."""

    language: str
    code: str
    extra: str = ""  # options for its commands
    reason: str = ""  # why it does not run

    @property
    def runs(self) -> bool:
        return self.language in ("python", "sh") and not self.reason


def blocks(page: Path) -> list[Block]:
    """The blocks of a page. Those of the findings took hours: they are checked, not run."""
    parts = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["hidden"]:
            parts.append(Block("python", match["hidden"]))
            continue
        how, what = match["how"], match["what"] or ""
        reason = what if how == "not run" else "takes hours" if page.parent.name == "findings" else ""
        if match["code"].startswith("--8<--"):
            reason = "a file of examples/, which has tests of its own"
        parts.append(Block(match["language"], match["code"], what if how == "run with" else "", reason))
    return parts


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def is_slow(page: Path) -> bool:
    running = [block for block in blocks(page) if block.runs]
    return any(block.language == "sh" or APART.search(block.code) for block in running)


def runnable(slow: bool) -> list[Path]:
    return [page for page in PAGES if is_slow(page) == slow and any(block.runs for block in blocks(page))]


def check_prints(code: str, printed: list[str]) -> None:
    """What a comment after `print` says, up to its first comma or colon, is how the printed line begins."""
    promised = re.findall(r"^ *print\(.*\)  # ([^,:\n]*)", code, flags=re.MULTILINE)
    if len(promised) == code.count("print("):
        for line, promise in zip(printed, promised, strict=True):
            assert line.startswith(promise.strip()), (line, promise)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's loader calls it
@pytest.mark.parametrize("page", runnable(slow=False), ids=name)
def test_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, block in enumerate(blocks(page)):
            if block.runs:
                exec(compile(block.code, f"{name(page)}, block {number}", "exec"), namespace)
                check_prints(block.code, capsys.readouterr().out.splitlines())


def program(page: Path) -> str:
    """A page as one Python program, its shell blocks run by bash."""
    parts = ["import subprocess"]
    for block in blocks(page):
        if block.runs and block.language == "python":
            parts.append(block.code)
        elif block.runs:
            command = f'function dataprune {{ "{sys.executable}" -m dataprune "$@" {block.extra}; }}\n{block.code}'
            parts.append(f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {command!r}], check=True)")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(slow=True), ids=name)
def test_a_page_with_commands_runs(page: Path, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(program(page), encoding="utf-8")
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | settings,
        timeout=580,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def commands(block: Block) -> list[list[str]]:
    """The `dataprune` commands of a shell block, as lists of words."""
    if block.language != "sh":
        return []
    lines = block.code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("dataprune") + 1 :] for line in words if "dataprune" in line[:3]]


@pytest.fixture(scope="module")
def group() -> Any:
    """The command line, as typer hands it to click."""
    typer = pytest.importorskip("typer", reason="the extra cli is not installed")
    return typer.main.get_command(importlib.import_module("dataprune.cli").app)


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(commands, blocks(page)))], ids=name)
def test_commands_have_the_options_they_name(page: Path, group: Any) -> None:
    """Those that are not run here too."""
    for block in blocks(page):
        for name_of_command, *arguments in commands(block):
            command = group.commands[name_of_command]
            context = command.make_context(name_of_command, [], resilient_parsing=True)
            command.make_parser(context).parse_args([*arguments, *shlex.split(block.extra)])


def test_the_page_of_commands_has_them_all(group: Any) -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `dataprune (\w+)` \|", text, flags=re.MULTILINE)) == set(group.commands)


def test_blocks_name_their_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, (name(page), block.language or "no language", block.code[:60])


def test_no_page_loads_from_elsewhere() -> None:
    """Images, scripts and styles are files of the repository."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|link|iframe)[^>]*https?:", text), name(page)
