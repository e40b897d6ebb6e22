"""From a scoring run to a coreset, and training on it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dataprune import CheckpointError, DataError, Selection, UsageError, coresets, dynamics, files
from dataprune.lab.data.augment import normalize
from dataprune.lab.models import build
from dataprune.lab.training import run as training
from dataprune.lab.training import run_folder, score_pass, select, trained
from dataprune.lab.training.build import build_pruner, build_rate

SETTINGS = tiny.settings(
    model="mlp", method="full", keep=None, epochs=4, statistics=",".join(dynamics.STATISTICS), batch_size=24,
    option=("tdds.window=3", "dual.window=3", "dyn_unc.window=3"), shift=0, flip=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored")
    training.run(SETTINGS, out, data=tiny.data(val=40))
    return out


def test_every_sample_is_presented_in_every_epoch(scored: Path) -> None:
    """360 samples are 15 batches of 24; of 350, the last has 14, and is trained too."""
    assert {line["samples"] for line in tiny.history(scored)} == {360}
    table = dynamics.load_scores(scored / files.read_json(scored / "metrics.json")["scores"])
    assert list(table.scores) == list(dynamics.STATISTICS)
    assert all(bool(column.isfinite().all()) for column in table.scores.values())
    assert torch.equal(table.labels, tiny.data(val=40).train.labels)  # type: ignore[arg-type]


def test_a_last_batch_is_trained_by_its_share(tmp_path: Path) -> None:
    metrics = training.run(replace(SETTINGS, epochs=2, statistics="aum", option=()), tmp_path, data=tiny.data(val=50))
    assert metrics.steps == 2 * 15 and metrics.samples == 2 * 350


def test_scores_are_those_of_a_plain_loop(scored: Path) -> None:
    """The first epoch, by hand: the same batches, weights and rates."""
    data = tiny.data(val=40)
    model = build.build("mlp", data.shape, 4, SETTINGS.seed)
    pruner = build_pruner(SETTINGS, 360)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate, step, steps = build_rate(SETTINGS), 0, 60
    probabilities = np.zeros((4, 360, 4))
    for epoch in range(4):
        for index in pruner.batches(epoch, 24, drop_last=False):
            logits = model(normalize(data.train.images[index], data.mean, data.std))  # type: ignore[union-attr]
            probabilities[epoch, index] = logits.detach().double().softmax(1).numpy()
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * rate((step + 0.5) / steps)
            optimizer.zero_grad()
            F.cross_entropy(logits, data.train.labels[index]).backward()
            optimizer.step()
            step += 1
    labels = data.train.labels.numpy()
    errors = np.linalg.norm(probabilities - np.eye(4)[labels], axis=2).mean(axis=0)
    scores = dynamics.load_scores(scored / "scores.parquet").scores
    np.testing.assert_allclose(scores["el2n"].numpy(), errors, rtol=2e-3, atol=1e-4)
    last = -np.log(probabilities[3, np.arange(360), labels])
    np.testing.assert_allclose(scores["loss"].numpy(), last, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", coresets.METHODS)
def test_every_static_method_selects_from_a_run(name: str, scored: Path) -> None:
    options = {"statistic": "loss"} if name in ("top", "bottom", "stratified") else {}
    selection, notes = select.select(name, scored, keep=0.1, options=options, data=tiny.data(val=40))
    assert len(selection.index) == 36 == len(set(selection.index.tolist()))
    assert notes["settings"] == json.loads((scored / "config.json").read_text())
    path = scored / f"{name}.safetensors"
    select.write(path, selection, notes)
    again = Selection.load(path, tiny.data(val=40).train)
    assert torch.equal(again.index, selection.index) and torch.equal(again.weight, selection.weight)
    assert Selection.metadata(path)["size"] == 360
    with pytest.raises(DataError, match="another dataset"):
        Selection.load(path, tiny.data().train)


def test_extraction_is_done_once_and_kept(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, notes = select.select("k_center", scored, keep=0.1, data=tiny.data(val=40))
    monkeypatch.setattr(coresets, "extract", lambda *_: pytest.fail("extracted again"))
    second, more = select.select("k_center", scored, keep=0.1)  # nor is the data read
    assert torch.equal(first.index, second.index) and "labels" in more and notes["size"] == more["size"]


def test_a_run_on_a_coreset(scored: Path, tmp_path: Path) -> None:
    selection, notes = select.select("tdds", scored, keep=0.2, data=tiny.data(val=40))
    path = tmp_path / "c.safetensors"
    select.write(path, selection, notes)
    run = tiny.settings(model="mlp", method="", keep=None, selection=str(path), epochs=5)
    metrics = training.run(run, tmp_path / "run", data=tiny.data(val=40))
    assert metrics.method == "tdds" and metrics.samples == 5 * (72 // 16) * 16
    assert metrics.reached_keep == pytest.approx(0.2)
    assert training.run(run, tmp_path / "run", data=tiny.data(val=40)) == metrics
    path.unlink()
    with pytest.raises(UsageError, match="cannot read the coreset"):
        training.run(run, tmp_path / "run", data=tiny.data(val=40))


def test_a_run_on_a_coreset_weighted_by_batch_is_the_plain_loop(scored: Path, tmp_path: Path) -> None:
    data = tiny.data(val=40)
    selection, notes = select.select("tdds", scored, keep=0.2, data=data)
    assert selection.by_batch and notes["by_batch"]
    select.write(tmp_path / "c.safetensors", selection, notes)
    run = tiny.settings(
        model="mlp", method="", keep=None, selection=str(tmp_path / "c.safetensors"), epochs=3, shift=0, flip=False
    )
    record = training.run(run, tmp_path / "run", data=data)
    model, pruner = build.build("mlp", data.shape, 4, 0), build_pruner(run, 360)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate, step, weight = build_rate(run), 0, torch.zeros(360)
    weight[selection.index] = selection.weight
    for epoch in range(3):
        for index in pruner.batches(epoch, 16):
            logits = model(normalize(data.train.images[index], data.mean, data.std))  # type: ignore[union-attr]
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * rate((step + 0.5) / (3 * 4))
            optimizer.zero_grad()
            pruner.update(index, F.cross_entropy(logits, data.train.labels[index], reduction="none").detach())
            (weight[index].mean() * F.cross_entropy(logits, data.train.labels[index])).backward()
            optimizer.step()
            step += 1
    assert record.steps == step == 12
    saved = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_another_datas_coreset_is_refused(scored: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    select.write(path, *select.select("el2n", scored, keep=0.2, data=tiny.data(val=40)))
    run = tiny.settings(model="mlp", method="", keep=None, selection=str(path))
    with pytest.raises(DataError, match="another dataset"):
        training.run(run, tmp_path / "run", data=tiny.data())
    path.write_bytes(b"no coreset")
    with pytest.raises(DataError, match="not a saved selection"):
        training.run(run, tmp_path / "run2", data=tiny.data(val=40))


def test_tables_and_features_of_a_user(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 4, generator=draw), torch.arange(50) % 2
    dynamics.save_scores(tmp_path / "own.csv", {"own": features[:, 0]}, labels=labels)
    selection, notes = select.select("top", tmp_path / "own.csv", keep=0.2, options={"statistic": "own"})
    assert torch.equal(selection.index, coresets.top(features[:, 0], keep=0.2).index) and notes["size"] == 50
    file = tmp_path / "f.safetensors"
    save_file({"features": features, "labels": labels}, file)
    herded, _ = select.select("herding", file, keep=0.2)
    assert torch.equal(herded.index, coresets.herding(features, keep=0.2, labels=labels).index)
    with pytest.raises(UsageError, match="craig needs `logits`"):
        select.select("craig", file, keep=0.2)
    with pytest.raises(UsageError, match="el2n needs scores"):
        select.select("el2n", file, keep=0.2)
    with pytest.raises(UsageError, match="k_center needs features"):
        select.select("k_center", tmp_path / "own.csv", keep=0.2)
    with pytest.raises(UsageError, match="unknown score 'aum'"):
        select.select("ccs", tmp_path / "own.csv", keep=0.2)
    save_file({"labels": labels}, file)
    with pytest.raises(UsageError, match="holds no `features`"):
        select.select("k_center", file, keep=0.2)
    file.write_bytes(b"x")
    with pytest.raises(DataError, match="no readable safetensors"):
        select.select("k_center", file, keep=0.2)


def test_runs_that_cannot_be_selected_from(scored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run of"):
        select.select("el2n", tmp_path, keep=0.2)
    files.write_json(tmp_path / "config.json", SETTINGS.as_dict())
    with pytest.raises(UsageError, match="not finished"):
        select.select("el2n", tmp_path, keep=0.2)
    plain = tmp_path / "plain"
    training.run(tiny.settings(model="mlp", epochs=1, keep=1.0), plain, data=tiny.data())
    with pytest.raises(UsageError, match="a run without scores"):
        select.select("el2n", plain, keep=0.2)
    with pytest.raises(DataError, match="no longer what"):
        other = tmp_path / "other"
        training.run(SETTINGS, other, data=tiny.data())
        select.select("k_center", other, keep=0.2, data=tiny.data(val=40))
    with pytest.raises(UsageError, match="needs a validation split"):
        select.select("glister", other, keep=0.2, data=tiny.data())
    (other / "extracted.safetensors").unlink()
    (other / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        select.select("k_center", other, keep=0.2, data=tiny.data())


def test_without_pyarrow_the_table_is_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    training.run(replace(SETTINGS, statistics="aum", option=()), tmp_path, data=tiny.data(val=40))
    assert (tmp_path / "scores.csv").exists()
    selection, notes = select.select("ccs", tmp_path, keep=0.2, data=tiny.data(val=40))
    assert len(selection.index) == 72 and notes["fingerprint"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_scoring_run_resumes(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, epochs=4, checkpoint_every=7, workers=workers)
    data = tiny.data(val=50)  # with a ragged last batch
    tiny.check_resume(settings, data, tmp_path, 40, monkeypatch)
    whole, cut = (dynamics.load_scores(tmp_path / name / "scores.parquet").scores for name in ("whole", "cut"))
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


def test_a_folder_alone_imports_no_code(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded folder may name any module as its model; only the caller's own name is imported."""
    folder = tmp_path / "run"
    shutil.copytree(scored, folder)
    files.write_json(folder / "config.json", {**files.read_json(folder / "config.json"), "model": "payload:make"})
    (folder / "extracted.safetensors").unlink(missing_ok=True)
    (tmp_path / "payload.py").write_text("from dataprune.lab.models.build import mlp as make\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = tiny.data(val=40)
    for name in ("k_center", "craig", "deepfool"):
        with pytest.raises(UsageError, match="if you trust it, give --model payload:make"):
            select.select(name, folder, keep=0.1, data=data)
    with pytest.raises(UsageError, match="give --model payload:make"):
        score_pass.score("nowhere", ["el2n"], folder, tmp_path / "out")
    with pytest.raises(UsageError, match=r"--model mlp: the run in .* trained payload:make"):
        trained.load(folder, "cpu", "mlp")
    with pytest.raises(UsageError, match="--model is for the folder of a scoring run"):
        select.select("el2n", folder / "scores.parquet", keep=0.1, model="payload:make")
    select.select("el2n", folder, keep=0.1, data=data)  # reads scores alone
    assert "payload" not in sys.modules
    selection, _ = select.select("k_center", folder, keep=0.1, data=data, model="payload:make")
    assert len(selection) == 36 and sys.modules.pop("payload")
