"""The command line: exit codes, one-line errors, results on stdout and the rest on stderr."""

from __future__ import annotations

import errno
import inspect
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import yaml
from typer.testing import CliRunner

import dataprune
from dataprune import Selection, coresets, dynamics
from dataprune.cli import app
from dataprune.lab.data.named import Data
from dataprune.lab.training import run as fitting
from dataprune.lab.training import run_folder

QUICK = ["--model", "mlp", "--epochs", "4", "--train-size", "320", "--keep", "0.3", "--lr", "0.05", "--device", "cpu"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def run(*arguments: Any, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    root = Path(dataprune.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **more)


def fails(code: int, message: str, *arguments: Any) -> None:
    """One line on stderr that holds `message`, nothing on stdout, and the exit code."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], result.stderr


# -- help and imports -------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dataprune', {}]\n"
        "from dataprune.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('heavy:', [name for name in ('torch', 'numpy', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    for arguments in ("'--help'", "'compare', '--help'"):
        done = run("-c", code.format(arguments))
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_no_arguments_show_the_help_and_version_the_version() -> None:
    result = call()
    assert result.exit_code == 0 and "compare" in result.stdout
    assert call("--version").stdout == f"dataprune {dataprune.__version__}\n"


def test_every_option_explains_itself() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            assert parameter.annotation.__metadata__[0].help, parameter.name


def test_methods_are_listed() -> None:
    rows = json.loads(call("methods", "--json").stdout)
    for kind, methods in (("dynamic", dataprune.METHODS), ("static", coresets.METHODS)):
        assert [row["method"] for row in rows if row["kind"] == kind] == list(methods)
    assert all(row["keeps"] and row["source"] for row in rows)
    table = call("methods")
    assert table.exit_code == 0 and "arXiv:2408.16031" in table.stdout and table.stderr == ""


# -- results ----------------------------------------------------------------------------------------------------------


def test_train_as_a_module_prints_its_result_on_stdout(tmp_path: Path) -> None:
    done = run("-m", "dataprune", "train", *QUICK, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/metrics.json").read_text())
    again = call("train", *QUICK, "--out", tmp_path / "out")  # a finished run is only read
    assert again.exit_code == 0 and again.stderr.startswith("note: this run was finished before")
    assert again.stdout.startswith("emp: accuracy 0.") and again.stdout.endswith(f"run: {tmp_path / 'out'}\n")


def test_train_finds_its_own_folder_again(tmp_path: Path) -> None:
    first = call("train", *QUICK, "--json")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train-digits-emp-seed0-")
    assert call("train", *QUICK, "--json").stdout == first.stdout
    assert call("train", *QUICK, "--seed", 1).exit_code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_compare_prints_a_table_or_json(tmp_path: Path) -> None:
    arguments = ["compare", *QUICK, "--methods", "full, short,emp", "--seeds", 2, "--out", tmp_path / "out"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "speed-up" in result.stdout and "2 seeds" in result.stdout and "accuracy.svg" in result.stdout
    assert "…" not in result.stdout
    as_json = call(*arguments, "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "out/compare.json").read_text())
    assert as_json.stderr == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json",
        "accuracy.svg",
        "accuracy.png",
        "figures",
        "report.html",
        "report.md",
        "runs",
    }


def test_report_of_single_runs_and_of_what_is_none(tmp_path: Path) -> None:
    for method in ("full", "emp"):
        assert call("train", *QUICK, "--method", method, "--out", tmp_path / method).exit_code == 0
    result = call("report", tmp_path / "full", tmp_path / "emp", "--out", tmp_path / "out", "--watts", 90)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report: {tmp_path}/out/report.html, as Markdown: {tmp_path}/out/report.md\n"
    page = (tmp_path / "out/report.html").read_text()
    assert "digits, mlp" in page and "time × 90 W (given with --watts)" in page
    result = call("report", tmp_path / "emp", "--json")
    assert json.loads(result.stdout)["page"] == str(tmp_path / "emp/report.html")
    assert "there is no run of full to compare with" in (tmp_path / "emp/report.html").read_text()
    fails(2, "nowhere is no folder: give folders of `dataprune compare` or `train`", "report", "nowhere")
    fails(2, "--watts must be a positive number, got -1", "report", tmp_path / "emp", "--watts", -1)
    fails(2, "Missing argument 'RUNS...'", "report")
    (tmp_path / "emp/metrics.json").write_text("{")
    fails(1, "metrics.json is damaged", "report", tmp_path / "emp")


def test_a_comparison_outlives_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.lab.report import page

    def failing(*arguments: Any, **more: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(page, "write", failing)
    result = call("compare", *QUICK, "--methods", "emp", "--seeds", 1, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0 and json.loads(result.stdout)["summary"][0]["method"] == "emp"
    assert result.stderr == (
        f"note: the report could not be written (no space); once that is mended: dataprune report {tmp_path / 'out'}\n"
    )


def test_what_is_noteworthy_of_the_data_goes_to_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.lab.training import setup

    load = setup.load_data

    def noted(settings: Any) -> Data:
        return load(settings)._replace(note="digits have no test split")

    monkeypatch.setattr(setup, "load_data", noted)
    for command in (["train"], ["compare", "--methods", "emp", "--seeds", 1]):
        result = call(*command, *QUICK, "--json")
        assert result.stderr == "note: digits have no test split\n"
        json.loads(result.stdout)


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_on_stderr() -> None:
    result = call("train", "--model", "mlp", "--epochs", 2, "--train-size", 320, "--keep", 0.3, "--json")
    assert result.stderr.startswith("warning: with 2 epochs") and len(result.stderr.splitlines()) == 1
    json.loads(result.stdout)


def test_score_then_select_then_train(tmp_path: Path) -> None:
    scored = call("score", *QUICK[:6], "--lr", "0.05", "--statistics", "forgetting,el2n,aum", "--out", "s")
    assert scored.exit_code == 0 and "scores: s/scores." in scored.stdout, scored.output
    chosen = call("select", "--scores", "s", "--method", "ccs", "--keep", "0.3", "--option", "cutoff=0.1")
    assert chosen.exit_code == 0 and "ccs: 96 of 320 samples" in chosen.stdout and "kept per class" in chosen.stdout
    file = Path("s/ccs-keep0.3-seed0-cutoff0.1.safetensors")
    again = call("select", "--scores", "s", "--method", "k_center", "--keep", "0.3", "--json")
    assert json.loads(again.stdout)["samples"] == 96
    coreset = Selection.metadata(file)
    assert coreset["method"] == "ccs" and coreset["options"] == {"cutoff": 0.1} and coreset["size"] == 320
    assert sum(kept for _, kept, _ in coreset["retention"]) == 96
    trained = call("train", *QUICK[:6], "--selection", file, "--device", "cpu", "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["samples"] == 4 * 96 and json.loads(trained.stdout)["method"] == "fixed"
    longer = call("train", *QUICK[:6], "--selection", file, "--strategy", "P", "--json")
    assert json.loads(longer.stdout)["samples"] == 13 * 96  # 4 / 0.3 epochs
    small = call("train", *QUICK[:6], "--selection", file, "--small-batches", "--json")
    assert json.loads(small.stdout)["steps"] == json.loads(trained.stdout)["steps"]  # 30 % is not small
    fails(1, "made for another dataset", "train", *QUICK[:4], "--train-size", "321", "--selection", file)
    fails(1, "made for another dataset", "train", *QUICK[:6], "--label-noise", "0.01", "--selection", file)


# -- wrong calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comapre"], "Did you mean 'compare'"),
        (["train", "--kep", "1"], "--kep"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--keep", "0"], "--keep is a fraction in (0, 1], got 0.0"),
        (["train", "--keep", "1.2"], "--keep is a fraction in (0, 1], got 1.2"),
        (["train", "--method", "epm"], "did you mean 'emp'?"),
        (["train", "--data", "digts"], "did you mean 'digits'?"),
        (["train", "--model", "lenett"], "did you mean 'lenet'?"),
        (["train", "--model", "no_such_module:f"], "no_such_module"),
        (["train", "--option", "betta=1"], "did you mean 'beta'?"),
        (["train", "--optimizer", "sdg"], "did you mean 'sgd'?"),
        (["train", "--device", "tpu"], "no device 'tpu'"),
        (["train", "--keep", "0.01"], "fewer than one batch of 32"),
        (["train", "--steps", "100000"], "raise --epochs"),
        (["compare", "--methods", "emp,infobach"], "did you mean 'infobatch'?"),
        (["compare", "--methods", ","], "at least one method"),
        (["compare", "--seeds", "0"], "--seeds"),
        (["compare", "--keep", "0.01"], "fewer than one batch of 32"),
        (["compare", "--tune-lr", "0.1,x"], "--tune-lr takes comma-separated numbers"),
        (["compare", "--tune-lr", "0.1,0.2"], "add --val-fraction"),
        (["compare", "--methods", "k_centre"], "did you mean 'k_center'?"),
        (["compare", "--methods", "glister"], "add --val-fraction"),
        (["compare", "--methods", "ccs", "--option", "ccs.cutof=0.1"], "did you mean 'cutoff'?"),
        (["compare", "--methods", "tdds", "--score-epochs", "5"], "--option tdds.window=3"),
        (["compare", "--methods", "top"], "top reads a score: say which, with --option top.statistic=NAME"),
        (["train", "--selection", "nowhere.safetensors"], "cannot read the coreset nowhere.safetensors"),
        (["train", "--strategy", "P"], "give --selection FILE"),
        (["train", "--method", "fixed"], "needs --selection FILE"),
        (["train", "--method", "emp", "--selection", "x"], "leave --method emp out"),
        (["train", "--selection", "x", "--keep", "0.1"], "leave --keep and --budget out"),
        (["score", "--statistics", "aumm"], "did you mean 'aum'?"),
        (["score", "--statistics", "aum,aum"], "aum is named twice"),
        (["score", "--option", "tdds.windw=3"], "did you mean 'window'?"),
        (["score", "--option", "tdds.window=1"], "window must be a whole number of at least 2"),
        (["score", "--statistics", "tdds", "--epochs", "6"], "--option tdds.window=3"),
        (["select", "--scores", "nowhere", "--method", "el2n", "--keep", "0.1"], "there is no nowhere"),
        (["select", "--scores", ".", "--method", "el2n", "--keep", "0.1"], "no run of `dataprune score`"),
        (["select", "--scores", ".", "--method", "el3n", "--keep", "0.1"], "did you mean 'el2n'?"),
        (["select", "--scores", ".", "--method", "el2n"], "--keep"),
        (["compare", "--engine", "rey"], "did you mean 'ray'"),
        (["compare", "--address", "10.0.0.1:6379"], "add --engine ray"),
    ],
)
def test_a_wrong_call_is_told_in_a_line(arguments: list[str], message: str) -> None:
    fails(2, message, *arguments)


def test_an_empty_or_unreadable_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(1, "empty", "train", "--data", tmp_path / "empty")
    fails(1, "none", "train", "--data", tmp_path / "none")
    if os.geteuid():
        (tmp_path / "empty").chmod(0)
        fails(1, "empty", "train", "--data", tmp_path / "empty")


def test_out_is_a_file_or_holds_another_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    fails(2, "is a file", "train", *QUICK, "--out", tmp_path / "file")
    fails(2, "is a file", "compare", *QUICK, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert call("train", *QUICK, "--out", tmp_path / "out").exit_code == 0
    fails(2, "other settings (lr)", "train", *QUICK, "--lr", 0.2, "--out", tmp_path / "out")


def test_damaged_files(tmp_path: Path) -> None:
    assert call("train", *QUICK, "--out", tmp_path).exit_code == 0
    (tmp_path / "metrics.json").write_text('{"method": "em')
    fails(1, "metrics.json is damaged", "train", *QUICK, "--out", tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    fails(1, "checkpoint.pt is damaged", "train", *QUICK, "--out", tmp_path)
    (tmp_path / "config.json").write_text("{")
    fails(1, "config.json is damaged", "train", *QUICK, "--out", tmp_path)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = ["-m", "dataprune", "train", "--out", tmp_path / "file"]
    for more, traceback in (([], False), (["--debug"], True)):
        done = run(*wrong, *more)
        assert done.returncode == (1 if traceback else 2) and done.stdout == ""
        assert ("Traceback" in done.stderr) == traceback and "is a file" in done.stderr


def test_a_run_that_diverges(tmp_path: Path) -> None:
    fails(1, "lower the learning rate", "train", *QUICK, "--lr", "1e6")


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting._Run, "_train_step", stop)
    for command in ("train", "compare"):
        result = call(command, *QUICK)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr == "interrupted: the same command goes on from its last checkpoint, if it has one\n"


# -- full disks -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, write: Any = run_folder.write) -> None:
        if path.name == "selection_counts.safetensors":
            raise run_folder._unwritten(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write(path, content)

    compare = ["compare", *QUICK, "--methods", "full,emp", "--seeds", 1, "--out", tmp_path / "out"]
    assert call(*compare[:-4], "--seeds", 1, "--out", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write", full)
        fails(1, "No space left on device", *compare)
    assert call(*compare).exit_code == 0


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.argv = ['dataprune', *sys.argv[1:]]\n"
        "from dataprune.cli import main; main()"
    )
    arguments = ["train", *QUICK, "--checkpoint-every", "5", "--out", out]
    done = run("-B", "-c", code, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "File too large" in done.stderr
    assert not list(out.glob("*.part")) and run_folder.read_json(out / "config.json")["epochs"] == 4
    assert call(*arguments).exit_code == 0


# -- YAML -------------------------------------------------------------------------------------------------------------


def config(**values: Any) -> str:
    Path("config.yaml").write_text(yaml.safe_dump(values))
    return "config.yaml"


def test_a_file_holds_options_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    file = config(
        model="mlp", epochs=4, train_size=320, keep=0.5, **{"weight-decay": 0.0}, flip=True, option=["beta=3"]
    )
    assert call("train", "--config", file, "--keep", "0.3", "--no-flip", "--out", tmp_path / "out").exit_code == 0
    found = run_folder.read_json(tmp_path / "out/config.json")
    kept = {name: found[name] for name in ("model", "epochs", "train_size", "keep", "weight_decay", "flip", "option")}
    assert kept == {
        "model": "mlp", "epochs": 4, "train_size": 320, "keep": 0.3, "weight_decay": 0.0, "flip": False,
        "option": ["beta=3"],
    }  # fmt: skip


@pytest.mark.parametrize("option", ["emp.beta=3", ["emp.beta=3"], {"emp.beta": 3}])
def test_lists_in_a_file(option: Any, tmp_path: Path) -> None:
    file = config(
        methods=["short", "emp"], seeds=1, option=option, model="mlp", epochs=4, train_size=320, keep=0.4,
        val_fraction=0.2, tune_lr=[0.01, 0.05],
    )  # fmt: skip
    result = call("compare", "--config", file, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["method"] for row in json.loads(result.stdout)["runs"]] == ["short", "emp"]
    assert run_folder.read_json(tmp_path / "out/runs/emp-seed0/config.json")["option"][0] == "emp.beta=3"


def test_numbers_in_a_file_may_be_lists() -> None:
    same: dict[str, Any] = {"model": "mlp", "train_size": 320, "seeds": 1}
    lists = config(ratios=[0.5], amounts=[0, 0.5, 1.5], **same)
    fails(2, "--amounts are shares of the weights in [0, 1), got 1.5", "joint", "--config", lists)
    fails(2, "--ratios are fractions of the data in (0, 1), got 2", "joint", "--config", config(ratios=2, **same))


def test_a_file_that_names_what_there_is_not() -> None:
    fails(2, "unknown option 'modle'; did you mean 'model'?", "train", "--config", config(modle="mlp"))
    result = call("train", "--config", config(modle="mlp"))
    for internal in ("json", "debug", "config", "help", "_"):
        assert internal not in result.stderr.partition("(known:")[2].partition(")")[0]
    fails(2, "give the file to `dataprune compare`", "train", "--config", config(methods=["emp"]))
    fails(2, "give the file to `dataprune train`", "compare", "--config", config(method="emp"))
    fails(2, "unknown option 'json'", "train", "--config", config(json=True))
    fails(2, "lr takes a single value", "train", "--config", config(lr=[0.1, 0.2]))
    fails(2, "--epochs", "train", "--config", config(epochs="many"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    fails(2, "No such file", "train", "--config", "none.yaml")
    Path("config.yaml").write_text("a: [1")
    fails(2, "cannot read config.yaml", "train", "--config", "config.yaml")
    Path("config.yaml").write_text("- a\n- b\n")
    fails(2, "option: value", "train", "--config", "config.yaml")
    Path("config.yaml").write_bytes(b"\xff\xfe\x00")
    fails(2, "cannot read config.yaml", "train", "--config", "config.yaml")
    Path("config.yaml").write_text("")
    assert call("train", *QUICK, "--config", "config.yaml").exit_code == 0


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ddp
def test_torchrun_prints_once(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "dataprune", "train"]
    done = run(*launch, *QUICK, "--batch-size", 16, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 2
    wrong = run(*launch, *QUICK, "--keep", 7)
    assert wrong.returncode != 0 and wrong.stdout == ""
    assert wrong.stderr.count("error: --keep is a fraction") == 1


def test_a_selectors_options_are_its_own(tmp_path: Path) -> None:
    dynamics.save_scores("t.csv", {"aum": torch.rand(50)})
    given = ["select", "--scores", "t.csv", "--method", "ccs", "--keep", "0.2"]
    assert "t.csv" not in call(*given, "--option", "ccs.cutoff=0.2").stdout
    assert Selection.metadata("ccs-keep0.2-seed0-cutoff0.2.safetensors")["options"] == {"cutoff": 0.2}
    fails(2, "--option craig.cutoff is not for ccs", *given, "--option", "craig.cutoff=0.2")
    fails(2, "a value of the wrong kind", *given, "--option", "cutoff=abc")
    fails(2, "unknown option of aum 'statistic'", *given[:3], "--method", "aum", "--keep", "0.2", "--statistic", "aum")
    fails(2, "--method top --statistic loss", *given[:3], "--method", "loss", "--keep", "0.2")
    fails(2, "is a folder", *given, "--out", tmp_path)
    fails(2, "ccs is a static method", "train", "--method", "ccs")
    call(*given)
    fails(
        2,
        "leave it out with --selection",
        "train",
        "--selection",
        "ccs-keep0.2-seed0.safetensors",
        "--option",
        "beta=2",
    )
    fails(1, "made for 50 samples", "train", *QUICK[:6], "--selection", "ccs-keep0.2-seed0.safetensors")
