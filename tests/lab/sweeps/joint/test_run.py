"""Joint pruning: equal to its steps done by hand, masks that hold, and what is recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_joint import grid
from torch import nn

from dataprune import Selection, coresets, files, network
from dataprune.dynamics import load_scores
from dataprune.errors import UsageError
from dataprune.lab.data.augment import normalize
from dataprune.lab.models import build
from dataprune.lab.sweeps import engines
from dataprune.lab.sweeps.joint import stages
from dataprune.lab.sweeps.joint.grid import Cell
from dataprune.lab.sweeps.sweep import carry_out, on_coreset
from dataprune.lab.training import run as training
from dataprune.lab.training.build import build_pruner, build_rate


def kept_models(out: Path, cell: Cell) -> dict[str, torch.Tensor]:
    return load_file(out / "cells" / cell.name / "model.safetensors")


def test_a_cell_is_its_steps_by_hand(tmp_path: Path) -> None:
    data, cell = tiny.data(), Cell("high", 0.2, 0.6, 3)
    sweep = grid(ratios=(0.2,), amounts=(0.6,), seeds=(3,), shift=0, flip=False, lr=0.1, save_models=True)
    result = carry_out(sweep, tmp_path / "joint", data=data)

    # scoring and the coreset: the 80 samples of highest count, whichever of the equals
    engines.perform(engines.Job("scoring", 3, sweep.scoring(3), tmp_path / "scored", watch="forgetting"), data)
    scores = stages.forgotten(sweep.scoring(3), tmp_path / "scored", data)["forgetting"]
    coreset = tmp_path / "joint/coresets/high-keep0.2-seed3.safetensors"
    index = Selection.load(coreset, data.train).index
    assert len(index) == 80
    rest = torch.ones(400, dtype=torch.bool).index_fill(0, index, False)
    assert scores[index].min() >= scores[rest].max()

    # training on the coreset
    settings = on_coreset(sweep.settings, coreset, seed=3, epochs=2)
    training.run(settings, tmp_path / "trained", data=data)
    trained = load_file(tmp_path / "trained/model.safetensors")

    # pruning the smallest of each layer, and fine-tuning with the mask multiplied in by hand
    masks = {}
    for name in ("hidden.0.weight", "fc.weight"):
        size = trained[name].numel()
        order = trained[name].abs().flatten().argsort()
        masks[name] = torch.ones(size).index_fill(0, order[: math.floor(0.6 * size + 0.5)], 0).view_as(trained[name])
    tuning = sweep.tuning(cell, coreset)
    assert (tuning.method, tuning.epochs, tuning.lr) == ("full", 2, 0.1) and tuning.seed != 3
    model = build.build("mlp", data.shape, 4, 7)
    model.load_state_dict(trained)
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    pruner = build_pruner(tuning, 400)
    rate, steps, step = build_rate(tuning), 2 * 25, 0
    for epoch in range(2):
        for at in pruner.batches(epoch, 16):
            for name, mask in masks.items():
                weights[name].data *= mask
            optimizer.param_groups[0]["lr"] = 0.1 * rate((step + 0.5) / steps)
            inputs = normalize(data.train.images[at], data.mean, data.std)
            optimizer.zero_grad()
            losses = F.cross_entropy(model(inputs), data.train.labels[at], reduction="none")
            pruner.loss(at, losses).backward()
            for name, mask in masks.items():
                gradient = weights[name].grad
                assert gradient is not None
                gradient *= mask
            optimizer.step()
            step += 1
    kept = kept_models(tmp_path / "joint", cell)
    assert kept.keys() == trained.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(kept[name], weight.data * masks.get(name, 1), rtol=1e-5, atol=1e-6)
    row = next(row for row in result["cells"] if row["arm"] == "high")
    for name, mask in masks.items():
        weights[name].data *= mask
    logits = model(normalize(data.test.images, data.mean, data.std))
    assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == data.test.labels).float().mean()))


@pytest.mark.slow
def test_masks_are_those_of_the_trained_model_and_hold(tmp_path: Path) -> None:
    """Another thing that the published code gets wrong: it takes them off before it fine-tunes."""
    short = {"epochs": 1, "score_epochs": 2, "finetune_epochs": 1}
    sweep = grid(
        ratios=(0.2,), amounts=(0.0, 0.35, 0.9), model="small_cnn", weight_decay=0.01, save_models=True, **short
    )
    result = carry_out(sweep, tmp_path, data=tiny.data())
    for cell, row in zip(sweep.cells(), result["cells"], strict=True):
        assert Cell(row["arm"], row["ratio"], row["amount"], row["seed"]) == cell
        trained = load_file(tmp_path / "training" / cell.trained / "model.safetensors")
        final = kept_models(tmp_path, cell)
        assert not [name for name in final if "mask" in name or "orig" in name]
        zeros = weights = 0
        for layer, share in row["layers"].items():
            before, after = trained[f"{layer}.weight"].flatten(), final[f"{layer}.weight"].flatten()
            count = math.floor(cell.amount * len(before) + 0.5)
            smallest = before.abs().argsort()[:count]
            assert bool((after[smallest] == 0).all()) and int((after == 0).sum()) == count
            assert share == pytest.approx(count / len(before))
            assert count == 0 or bool((before[smallest] != 0).any())
            zeros, weights = zeros + count, weights + len(before)
        assert row["sparsity"] == pytest.approx(zeros / weights)
    assert len(row["layers"]) == 5


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_scope_decides_where_weights_are_ranked(scope: str, tmp_path: Path) -> None:
    result = carry_out(grid(scope=scope, ratios=(0.2,), amounts=(0.6,)), tmp_path, data=tiny.data())
    for row in result["cells"]:
        shares = list(row["layers"].values())
        assert row["sparsity"] == pytest.approx(0.6, abs=1e-3)
        assert (max(shares) - min(shares) < 0.01) == (scope == "layer")


@pytest.mark.slow
def test_all_arms_of_a_seed_begin_alike_and_share_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[str, torch.Tensor] = {}
    plain = training.run

    def watched(settings: Any, out: Path, **more: Any) -> Any:
        first = next(more["model"].parameters()).detach().clone()
        assert str(out.relative_to(tmp_path)) not in begun
        begun[str(out.relative_to(tmp_path))] = first
        return plain(settings, out, **more)

    monkeypatch.setattr(engines, "run", watched)
    sweep = grid(ratios=(0.2,), seeds=(0, 1))
    carry_out(sweep, tmp_path, data=tiny.data())
    trained = {name: start for name, start in begun.items() if not name.startswith("cells")}
    assert len(trained) == 2 * (1 + 1 + 3) and len(begun) - len(trained) == 2 * 4 * 2
    for seed in (0, 1):
        first = {tuple(start.flatten().tolist()) for name, start in trained.items() if name.endswith(f"seed{seed}")}
        assert len(first) == 1
    for cell in sweep.cells():  # a pruned model begins with the trained one's weights
        weights = load_file(tmp_path / "training" / cell.trained / "model.safetensors")
        assert torch.equal(begun[f"cells/{cell.name}"], weights["hidden.0.weight"])


def test_reinitialized_models_keep_the_masks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[nn.Module] = []
    watch = stages.watch

    def watched(kind: Any, model: nn.Module, *arguments: Any) -> Any:
        if kind == "accuracy":
            started.append(build.build("mlp", (1, 8, 8), 4, 99))
            network.apply(started[-1], network.Masks.of(model.state_dict()))
            started[-1].load_state_dict(model.state_dict())
        return watch(kind, model, *arguments)

    monkeypatch.setattr(stages, "watch", watched)
    cell = Cell("base", None, 0.6, 0)
    sweep = grid(reinitialize=True, ratios=(0.5,), amounts=(0.6,), save_models=True)
    carry_out(sweep, tmp_path, data=tiny.data())
    trained = load_file(tmp_path / "training/base-seed0/model.safetensors")
    begun = dict(started[1].named_parameters())  # the first is that of training
    fresh = build.build("mlp", (1, 8, 8), 4, sweep.tuning(cell, tmp_path).seed)
    first = build.build("mlp", (1, 8, 8), 4, 0)
    for name in ("hidden.0.weight", "fc.weight"):
        size = trained[name].numel()
        smallest = trained[name].abs().flatten().argsort()[: math.floor(0.6 * size + 0.5)]
        assert bool((kept_models(tmp_path, cell)[name].flatten()[smallest] == 0).all())
        assert torch.equal(begun[name + "_orig"], fresh.get_parameter(name))
        assert not torch.equal(begun[name + "_orig"], first.get_parameter(name))  # nor is it where training began


def test_dynamic_methods_take_the_place_of_coresets(tmp_path: Path) -> None:
    options = ("emp.beta=2",)
    sweep = grid(data_methods=("emp", "rs2"), ratios=(0.3,), finetune_on="coreset", option=options, epochs=4)
    result = carry_out(sweep, tmp_path, data=tiny.data())
    assert result["grid"]["arms"] == ["emp", "rs2"] and result["scoring"] == []
    assert not (tmp_path / "scoring").exists() and not (tmp_path / "coresets").exists()
    for row in result["cells"]:
        kept = 400 if row["arm"] == "base" else 112  # whole batches of 16 of 120
        assert row["samples"] == {"training": 4 * kept, "fine_tuning": 2 * kept}
        assert row["flops"]["scoring"] == 0
    stored = files.read_json(tmp_path / "cells/emp-keep0.3-seed0-amount0.6/config.json")
    assert (stored["method"], stored["keep"], stored["option"]) == ("emp", 0.3, list(options))
    stored = files.read_json(tmp_path / "training/base-seed0/config.json")
    assert (stored["method"], stored["option"]) == ("full", [])


def test_fine_tuning_on_the_coreset_trains_its_samples_alone(tmp_path: Path) -> None:
    carry_out(grid(finetune_on="coreset", finetune_lr=0.01), tmp_path, data=tiny.data())
    for arm in ("low", "random"):
        name = f"{arm}-keep0.2-seed0"
        counts = load_file(tmp_path / "cells" / f"{name}-amount0.6" / "selection_counts.safetensors")["selected"]
        index = Selection.load(tmp_path / "coresets" / f"{name}.safetensors").index
        assert counts.nonzero().squeeze(1).tolist() == index.tolist()
    assert files.read_json(tmp_path / "cells/low-keep0.2-seed0-amount0/config.json")["lr"] == 0.01


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A grid that was carried out, and its result; tests leave the folder as it is."""
    out = tmp_path_factory.mktemp("finished")
    return out, carry_out(grid(), out, data=tiny.data())


def test_flops_of_a_cell_are_those_of_all_its_stages(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    hidden, last = 2 * 64 * 256, 2 * 256 * 4
    for row in result["cells"]:
        flops, kept = row["flops"], {None: 400, 0.2: 80, 0.5: 192}[row["ratio"]]
        assert flops["training"] == 3 * (hidden + last) * 2 * kept
        scored = row["arm"] in ("low", "high")
        # three epochs trained, and all samples predicted after each
        assert flops["scoring"] == scored * (3 * (hidden + last) * 3 * 400 + (hidden + last) * 3 * 400)
        left = {name: 1 - share for name, share in row["layers"].items()}
        sparse = hidden * left["hidden.0"] + last * left["fc"]
        assert flops["fine_tuning"] == pytest.approx(3 * sparse * 2 * 400)
        whole = flops["scoring"] + flops["training"]
        assert flops["total"] == pytest.approx(whole + flops["fine_tuning"])
        assert flops["total_dense"] == pytest.approx(whole + 3 * (hidden + last) * 2 * 400)


def test_the_documented_form(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    assert result == files.read_json(out / "joint.json")
    assert (result["model"], result["train_samples"], result["test_samples"]) == ("mlp", 400, 50)
    assert result["grid"] == {
        "arms": ["low", "high", "random"], "ratios": [0.2, 0.5], "amounts": [0.0, 0.6], "seeds": [0],
    }  # fmt: skip
    counts = load_scores(next((out / "scoring/seed0").glob("scores.*"))).scores["forgetting"]
    (scoring,) = result["scoring"]
    assert scoring["forgotten"] == np.bincount(counts.int().numpy()).tolist() and sum(scoring["forgotten"]) == 400
    for row in result["cells"]:
        assert len(row["curve"]) == 3 and row["curve"][0] == row["pruned_accuracy"]
        assert row["curve"][-1] == row["accuracy"]
        assert row["amount"] or row["pruned_accuracy"] == row["trained_accuracy"]
        folder = out / "cells" / Cell(row["arm"], row["ratio"], row["amount"], row["seed"]).name
        assert files.read_json(folder / "cell.json") == row
        assert files.read_json(folder / "metrics.json")["accuracy"] == row["accuracy"]
        noted = files.read_json(folder / "pruning.json")
        assert (noted["amount"], noted["scope"], noted["reinitialize"]) == (row["amount"], "layer", False)
        assert not (folder / "model.safetensors").exists()
    for row in result["training"]:
        assert len(row["curve"]) == 2 and row["curve"][-1] == row["accuracy"]
    assert len(result["training"]) == 7


def test_coresets_have_the_lowest_and_the_highest_counts_and_random_samples(finished: tuple[Path, Any]) -> None:
    counts = load_scores(next((finished[0] / "scoring/seed0").glob("scores.*"))).scores["forgetting"]
    for ratio, kept in ((0.2, 80), (0.5, 200)):
        low, high, random = (
            Selection.load(finished[0] / f"coresets/{arm}-keep{ratio}-seed0.safetensors").index
            for arm in ("low", "high", "random")
        )
        ordered = counts.sort().values
        assert counts[low].sort().values.tolist() == ordered[:kept].tolist()
        assert counts[high].sort().values.tolist() == ordered[-kept:].tolist()
        assert torch.equal(random, coresets.random(400, keep=ratio, seed=0).index)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        carry_out(grid(), tmp_path / "file", data=tiny.data())


def ranked(rank: int, world_size: int, out: str) -> dict[str, Any]:
    quick = grid(
        batch_size=8, ratios=(0.2,), amounts=(0.6,), epochs=1, score_epochs=2, finetune_epochs=1, save_models=True
    )
    return carry_out(quick, Path(out), data=tiny.data())


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_prune_alike(pool: Any, tmp_path: Path) -> None:
    first, second = pool.run(ranked, str(tmp_path), world_size=2)
    assert first == second == files.read_json(tmp_path / "joint.json")
    assert len(first["cells"]) == 4 and sum(first["scoring"][0]["forgotten"]) == 400
    for row in first["cells"]:
        assert row["sparsity"] == pytest.approx(row["amount"], abs=1e-3)
        assert row["accuracy"] == row["curve"][-1]
