"""Joint pruning: equal to its steps done by hand, masks that hold, going on after any interruption, honest tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from dataprune import Selection, network
from dataprune.dynamics import load_scores
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.data.augment import normalize
from dataprune.lab.models import build
from dataprune.lab.sweeps.joint import run as joining
from dataprune.lab.sweeps.joint import stages
from dataprune.lab.sweeps.joint.grid import Cell, Grid
from dataprune.lab.sweeps.joint.run import joint
from dataprune.lab.sweeps.joint.summary import check_whole, detectable, missing, paired, summarize
from dataprune.lab.training import run as fitting
from dataprune.lab.training import run_folder, setup


def grid(**changes: Any) -> Grid:
    own = {name: changes.pop(name) for name in list(changes) if name not in Grid.__dataclass_fields__}
    settings = tiny.settings(**{"model": "mlp", "epochs": 2, "warmup": 0, "method": "", "keep": None, **own})
    given: dict[str, Any] = {
        "ratios": (0.2, 0.5), "amounts": (0.0, 0.6), "seeds": (0,), "score_epochs": 3, "finetune_epochs": 2,
    }  # fmt: skip
    return Grid(settings, **(given | changes))


def table(out: Path) -> dict[str, torch.Tensor]:
    """The columns of a scoring run's table, with pyarrow and without."""
    return load_scores(next(out.glob("scores.*"))).scores


def kept_models(out: Path, cell: Cell) -> dict[str, torch.Tensor]:
    return load_file(out / "cells" / cell.name / "model.safetensors")


# -- the pipeline is its steps ----------------------------------------------------------------------------------------


def test_scores_count_what_is_forgotten_between_the_ends_of_epochs(tmp_path: Path) -> None:
    """In dataset order, from right to wrong alone: what the published code gets wrong in two ways."""
    data, settings = tiny.data(), grid(epochs=6, lr=0.3).scoring(0)
    settings, held, right = replace(settings, epochs=6), [], []

    def look(line: dict[str, Any]) -> None:
        with torch.no_grad():
            found = [  # one at a time: each prediction is that of its own image, whatever the order
                int(held[-1](normalize(image[None], data.mean, data.std, torch.float32)).argmax()) == int(label)
                for image, label in zip(data.train.images, data.train.labels)
            ]
        right.append(found)

    fitting.fit(settings, tmp_path / "plain", data=data, report=look, prepare=held.append)
    metrics, scores = stages.score(settings, tmp_path / "scored", data)
    history = np.array(right)
    forgotten = np.zeros(400)
    for before, after in pairwise(history):
        forgotten += before & ~after
    assert forgotten.max() >= 2  # or nothing is tested
    assert scores["forgetting"].tolist() == forgotten.tolist()
    never = ~history.any(axis=0)
    assert scores["forgetting_last"].tolist() == np.where(never, 6, forgotten).tolist()
    assert tiny.history(tmp_path / "plain") == tiny.history(tmp_path / "scored")  # looking changes nothing
    assert metrics["accuracy"] is None  # the test set was not read


def test_a_cell_is_its_steps_by_hand(tmp_path: Path) -> None:
    data, cell = tiny.data(), Cell("high", 0.2, 0.6, 3)
    chosen = grid(ratios=(0.2,), amounts=(0.6,), seeds=(3,), shift=0, flip=False, lr=0.1)
    result = joint(chosen, tmp_path / "joint", data=data, save_models=True)

    # scoring and the coreset: the 80 samples of highest count, whichever of the equals
    scores = stages.score(chosen.scoring(3), tmp_path / "scored", data)[1]["forgetting"]
    coreset = tmp_path / "joint/coresets/high-keep0.2-seed3.safetensors"
    index = Selection.load(coreset, data.train).index
    assert len(index) == 80
    rest = torch.ones(400, dtype=torch.bool).index_fill(0, index, False)
    assert scores[index].min() >= scores[rest].max()

    # training on the coreset
    settings = replace(chosen.settings, method="fixed", keep=None, selection=str(coreset), seed=3, epochs=2)
    fitting.fit(settings, tmp_path / "trained", data=data)
    trained = load_file(tmp_path / "trained/model.safetensors")

    # pruning the smallest of each layer, and fine-tuning with the mask multiplied in by hand
    masks = {}
    for name in ("hidden.0.weight", "fc.weight"):
        size = trained[name].numel()
        order = trained[name].abs().flatten().argsort()
        masks[name] = torch.ones(size).index_fill(0, order[: math.floor(0.6 * size + 0.5)], 0).view_as(trained[name])
    tuning = chosen.tuning(cell, coreset)
    assert (tuning.method, tuning.epochs, tuning.lr) == ("full", 2, 0.1) and tuning.seed != 3
    model = build.build("mlp", data.shape, 4, 7)
    model.load_state_dict(trained)
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    pruner = setup.build_pruner(tuning, 400)
    rate, steps, step = setup.rate(tuning), 2 * 25, 0
    for epoch in range(2):
        for at in pruner.batches(epoch, 16):
            for name, mask in masks.items():
                weights[name].data *= mask
            optimizer.param_groups[0]["lr"] = 0.1 * rate((step + 0.5) / steps)
            inputs = normalize(data.train.images[at], data.mean, data.std, torch.float32)
            optimizer.zero_grad()
            losses = F.cross_entropy(model(inputs), data.train.labels[at], reduction="none")
            pruner.loss(at, losses).backward()
            for name, mask in masks.items():
                gradient = weights[name].grad
                assert gradient is not None
                gradient *= mask
            optimizer.step()
            step += 1
    found = kept_models(tmp_path / "joint", cell)
    assert found.keys() == trained.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.data * masks.get(name, 1), rtol=1e-5, atol=1e-6)
    row = next(row for row in result["cells"] if row["arm"] == "high")
    for name, mask in masks.items():
        weights[name].data *= mask
    logits = model(normalize(data.test.images, data.mean, data.std, torch.float32))
    assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == data.test.labels).float().mean()))


def test_masks_are_those_of_the_trained_model_and_hold(tmp_path: Path) -> None:
    """Another thing that the published code gets wrong: it takes them off before it fine-tunes."""
    chosen = grid(ratios=(0.2,), amounts=(0.0, 0.35, 0.9), model="small_cnn", weight_decay=0.01)
    result = joint(chosen, tmp_path, data=tiny.data(), save_models=True)
    for cell, row in zip(chosen.cells(), result["cells"], strict=True):
        assert (row["arm"], row["ratio"], row["amount"], row["seed"]) == cell
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
    result = joint(grid(scope=scope, ratios=(0.2,), amounts=(0.6,)), tmp_path, data=tiny.data())
    for row in result["cells"]:
        shares = list(row["layers"].values())
        assert row["sparsity"] == pytest.approx(0.6, abs=1e-3)
        assert (max(shares) - min(shares) < 0.01) == (scope == "layer")


def test_all_arms_of_a_seed_begin_alike_and_share_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[str, list[torch.Tensor]] = {}
    plain = fitting.fit

    def watched(settings: Any, out: Path, **more: Any) -> Any:
        prepare = more.pop("prepare")

        def look(model: nn.Module) -> None:
            first = next(model.parameters()).detach().clone()
            assert str(out) not in begun
            begun[str(out.relative_to(tmp_path))] = [first]
            prepare(model)
            begun[str(out.relative_to(tmp_path))].append(next(model.parameters()).detach().clone())

        return plain(settings, out, prepare=look, **more)

    monkeypatch.setattr(stages, "fit", watched)
    chosen = grid(ratios=(0.2,), seeds=(0, 1))
    joint(chosen, tmp_path, data=tiny.data())
    trained = {name: start for name, start in begun.items() if not name.startswith("cells")}
    assert len(trained) == 2 * (1 + 1 + 3) and len(begun) - len(trained) == 2 * 4 * 2
    for seed in (0, 1):
        first = {tuple(start[1].flatten().tolist()) for name, start in trained.items() if name.endswith(f"seed{seed}")}
        assert len(first) == 1
    for cell in chosen.cells():  # a pruned model begins with the trained one's weights
        weights = load_file(tmp_path / "training" / cell.trained / "model.safetensors")
        assert torch.equal(begun[f"cells/{cell.name}"][1], weights["hidden.0.weight"])


def test_reinitialized_models_keep_the_masks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[nn.Module] = []
    begin = stages._Curve.begin

    def watched(self: Any, model: nn.Module) -> None:
        started.append(build.build("mlp", (1, 8, 8), 4, 99))
        network.apply(started[-1], network.Masks.of(model.state_dict()))
        started[-1].load_state_dict(model.state_dict())
        begin(self, model)

    monkeypatch.setattr(stages._Curve, "begin", watched)
    cell = Cell("base", None, 0.6, 0)
    chosen = grid(reinitialize=True, ratios=(0.5,), amounts=(0.6,))
    joint(chosen, tmp_path, data=tiny.data(), save_models=True)
    trained = load_file(tmp_path / "training/base-seed0/model.safetensors")
    mine = dict(started[0].named_parameters())
    fresh = build.build("mlp", (1, 8, 8), 4, chosen.tuning(cell, tmp_path).seed)
    first = build.build("mlp", (1, 8, 8), 4, 0)
    for name in ("hidden.0.weight", "fc.weight"):
        size = trained[name].numel()
        smallest = trained[name].abs().flatten().argsort()[: math.floor(0.6 * size + 0.5)]
        assert bool((kept_models(tmp_path, cell)[name].flatten()[smallest] == 0).all())
        assert torch.equal(mine[name + "_orig"], fresh.get_parameter(name))
        assert not torch.equal(mine[name + "_orig"], first.get_parameter(name))  # nor is it where training began


def test_dynamic_methods_take_the_place_of_coresets(tmp_path: Path) -> None:
    options = ("emp.beta=2",)
    chosen = grid(data_methods=("emp", "rs2"), ratios=(0.3,), finetune_on="coreset", option=options, epochs=4)
    result = joint(chosen, tmp_path, data=tiny.data())
    assert result["grid"]["arms"] == ["emp", "rs2"] and result["scoring"] == []
    assert not (tmp_path / "scoring").exists() and not (tmp_path / "coresets").exists()
    for row in result["cells"]:
        kept = 400 if row["arm"] == "base" else 112  # whole batches of 16 of 120
        assert row["samples"] == {"training": 4 * kept, "fine_tuning": 2 * kept}
        assert row["flops"]["scoring"] == 0
    stored = run_folder.read_json(tmp_path / "cells/emp-keep0.3-seed0-amount0.6/config.json")
    assert (stored["method"], stored["keep"], stored["option"]) == ("emp", 0.3, list(options))
    stored = run_folder.read_json(tmp_path / "training/base-seed0/config.json")
    assert (stored["method"], stored["option"]) == ("full", [])


def test_fine_tuning_on_the_coreset_trains_its_samples_alone(tmp_path: Path) -> None:
    joint(grid(finetune_on="coreset", finetune_lr=0.01), tmp_path, data=tiny.data())
    for arm in ("low", "random"):
        name = f"{arm}-keep0.2-seed0"
        counts = load_file(tmp_path / "cells" / f"{name}-amount0.6" / "selection_counts.safetensors")["selected"]
        index = Selection.load(tmp_path / "coresets" / f"{name}.safetensors").index
        assert counts.nonzero().squeeze(1).tolist() == index.tolist()
    assert run_folder.read_json(tmp_path / "cells/low-keep0.2-seed0-amount0/config.json")["lr"] == 0.01


# -- what is recorded -------------------------------------------------------------------------------------------------


def test_flops_of_a_cell_are_those_of_all_its_stages(tmp_path: Path) -> None:
    result = joint(grid(), tmp_path, data=tiny.data())
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


def test_the_documented_form(tmp_path: Path) -> None:
    result = joint(grid(), tmp_path, data=tiny.data())
    assert result == run_folder.read_json(tmp_path / "joint.json")
    assert (result["model"], result["train_samples"], result["test_samples"]) == ("mlp", 400, 50)
    assert result["grid"] == {
        "arms": ["low", "high", "random"], "ratios": [0.2, 0.5], "amounts": [0.0, 0.6], "seeds": [0],
    }  # fmt: skip
    counts = table(tmp_path / "scoring/seed0")["forgetting"]
    (scoring,) = result["scoring"]
    assert scoring["forgotten"] == np.bincount(counts.int().numpy()).tolist() and sum(scoring["forgotten"]) == 400
    for row in result["cells"]:
        assert len(row["curve"]) == 3 and row["curve"][0] == row["pruned_accuracy"]
        assert row["curve"][-1] == row["accuracy"]
        assert row["amount"] or row["pruned_accuracy"] == row["trained_accuracy"]
        folder = tmp_path / "cells" / Cell(row["arm"], row["ratio"], row["amount"], row["seed"]).name
        assert run_folder.read_json(folder / "cell.json") == row
        assert run_folder.read_json(folder / "metrics.json")["accuracy"] == row["accuracy"]
        noted = run_folder.read_json(folder / "pruning.json")
        assert (noted["amount"], noted["scope"], noted["reinitialize"]) == (row["amount"], "layer", False)
        assert not (folder / "model.safetensors").exists()
    for row in result["training"]:
        assert len(row["curve"]) == 2 and row["curve"][-1] == row["accuracy"]
    assert len(result["training"]) == 7


# -- going on ---------------------------------------------------------------------------------------------------------


class Interrupted:
    """Raises KeyboardInterrupt at one call of a function, once."""

    def __init__(self, function: Callable[..., Any], at: int):
        self.function, self.left = function, at

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*args, **more)


INTERRUPTIONS = [  # an owner, a function's name, and the call that is interrupted
    *((fitting._Run, "_train_step", at) for at in (30, 110, 230)),
    *((run_folder, "write", at) for at in (2, 25)),
    (stages._Curve, "_accuracy", 4),
    (stages, "save_scores", 1),
    (Path, "unlink", 3),
    *(
        pytest.param(*one, marks=pytest.mark.slow)
        for one in (
            *((fitting._Run, "_train_step", at) for at in (1, 85, 145, 300)),
            *((run_folder, "write", at) for at in (1, 4, 9, 12, 17, 40, 60, 77)),
            *((stages._Curve, "_accuracy", at) for at in (1, 9)),
            (stages._Predictions, "scores", 1),
            (Selection, "save", 2),
        )
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    joint(grid(**RESUMED), out, data=tiny.data())
    return out


RESUMED: dict[str, Any] = {"ratios": (0.2,), "amounts": (0.0, 0.6), "checkpoint_every": 7}


@pytest.mark.parametrize(("owner", "name", "at"), INTERRUPTIONS)
def test_an_interrupted_grid_goes_on(
    owner: Any, name: str, at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(owner, name)
    stop = Interrupted(function, at)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        bound = (lambda self, *args, **more: stop(self, *args, **more)) if isinstance(owner, type) else stop
        patch.setattr(owner, name, bound)
        joint(grid(**RESUMED), tmp_path, data=tiny.data())
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*/metrics.json")}
    joint(grid(**RESUMED), tmp_path, data=tiny.data())
    assert (tmp_path / "joint.json").read_text() == (whole / "joint.json").read_text()
    for path, content in before.items():
        assert path.read_bytes() == content  # what was finished was not made again
    assert table(tmp_path / "scoring/seed0").keys() == table(whole / "scoring/seed0").keys()
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.name != "model.safetensors"}
    assert names <= {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}


def test_an_interruption_loses_at_most_the_running_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, step = grid(), fitting._Run._train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop = Interrupted(step, 400)
        patch.setattr(fitting._Run, "_train_step", lambda self, *args: stop(self, *args))
        joint(chosen, tmp_path, data=tiny.data())
    result = run_folder.read_json(tmp_path / "joint.json")
    done = len(list(tmp_path.glob("cells/*/cell.json")))
    assert len(result["cells"]) == done > 2
    gaps = missing(result)
    assert len(gaps) == 14 - done and gaps[-1] == "random ratio 0.5 amount 0.6 seed 0"
    with pytest.raises(
        UsageError, match=rf"^{14 - done} of 14 cells are missing \(.* \.\.\.\): give the command again"
    ):
        check_whole(result)
    made: list[str] = []
    joint(chosen, tmp_path, data=tiny.data(), report=lambda name, line: made.append(name))
    cells = {name for name in made if "amount" in name}
    assert len(cells) == 14 - done


def test_a_grid_grows_without_doing_anything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.data()
    small = joint(grid(ratios=(0.5,), amounts=(0.6,)), tmp_path, data=data)
    made: set[str] = set()
    wide = joint(grid(seeds=(0, 1)), tmp_path, data=data, report=lambda name, line: made.add(name))
    assert all(row in wide["cells"] for row in small["cells"])
    assert "base-seed0" not in made and "base-seed0-amount0" in made and "base-seed1" in made
    assert "base-seed0-amount0.6" not in made and "scoring-seed0" not in made
    monkeypatch.setattr(fitting, "_Run", None)  # nothing is left to train
    assert joint(grid(seeds=(0, 1)), tmp_path, data=data) == wide
    assert joint(grid(ratios=(0.5,), amounts=(0.6,)), tmp_path, data=data) == small


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"scope": "global"}, "scope"),
        ({"lr": 0.01}, "finetune_lr, lr"),
        ({"reinitialize": True}, "reinitialize"),
        ({"finetune_epochs": 3}, "finetune_epochs"),
        ({"data_methods": ("random",)}, "data_side"),
    ],
)
def test_another_grids_folder_is_refused(changes: dict, names: str, tmp_path: Path) -> None:
    small = {"ratios": (0.5,), "amounts": (0.6,)}
    result = joint(grid(**small), tmp_path, data=tiny.data())
    with pytest.raises(UsageError, match=rf"is of other runs \({names}\): choose another --out"):
        joint(grid(**{**small, **changes}), tmp_path, data=tiny.data())
    assert run_folder.read_json(tmp_path / "joint.json") == result


def test_what_was_deleted_or_damaged_is_named(tmp_path: Path) -> None:
    data = tiny.data()
    joint(grid(ratios=(0.5,), amounts=(0.6,)), tmp_path, data=data)
    weights = tmp_path / "training/low-keep0.5-seed0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(
        CheckpointError, match=r"low-keep0.5-seed0-amount0.3: .*model.safetensors is missing or damaged"
    ):
        joint(grid(ratios=(0.5,), amounts=(0.6, 0.3)), tmp_path, data=data)
    settings = grid().scoring(5)
    (tmp_path / "scored").mkdir()
    stages.score(settings, tmp_path / "scored", data)
    next((tmp_path / "scored").glob("scores.*")).unlink()
    with pytest.raises(CheckpointError, match="holds 0 of 3 epochs: delete"):
        stages.score(settings, tmp_path / "scored", data)


def test_one_folder_is_of_one_pruning(tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings(model="mlp", method="full", keep=None)
    stages.train(settings, tmp_path / "trained", data)
    stages.finetune(settings, tmp_path / "cell", data, tmp_path / "trained", stages.Pruning(0.5))
    with pytest.raises(UsageError, match="was pruned otherwise"):
        stages.finetune(settings, tmp_path / "cell", data, tmp_path / "trained", stages.Pruning(0.6))


# -- what cannot be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amounts": (0.5, 1.0)}, r"--amounts are shares of the weights in \[0, 1\), got 1"),
        ({"amounts": (-0.1,)}, "got -0.1"),
        ({"amounts": (float("nan"),)}, "got nan"),
        ({"amounts": (0.5, 0.5)}, "--amounts names a number twice"),
        ({"ratios": (0.0,)}, r"--ratios are fractions of the data in \(0, 1\), got 0"),
        ({"ratios": (1.0,)}, r"in \(0, 1\), got 1"),
        ({"ratios": ()}, "at least"),
        ({"seeds": ()}, "at least"),
        ({"score_epochs": 1}, "two epochs at least"),
        ({"finetune_epochs": 0}, "--finetune-epochs"),
        ({"finetune_on": "none"}, "unknown --finetune-on 'none'"),
        ({"finetune_lr": 0.0}, "--finetune-lr must be positive"),
        ({"scope": "layers"}, "did you mean 'layer'"),
        ({"data_methods": ("epm",)}, "did you mean 'emp'"),
        ({"data_methods": ("emp", "emp")}, "names a method twice"),
        ({"option": ("beta=3",)}, "--option is for the methods of --data-method"),
        ({"model": "lenett"}, "did you mean 'lenet'"),
    ],
)
def test_what_cannot_be_meant(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid(**changes).validate()


def nothing_to_prune(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, classes)), nn.Flatten(), nn.BatchNorm1d(classes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": f"{__name__}:nothing_to_prune"}, "nothing to prune: Sequential has no convolution"),
        ({"ratios": (0.02,)}, "0.02 of 400 samples are 8, less than a batch of 16"),
        ({"data_methods": ("emp",), "option": ("betta=3",)}, "did you mean 'beta'"),
        ({"data_methods": ("rs2",), "ratios": (0.01,)}, "fewer than one batch"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    changes: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_import", lambda name: nothing_to_prune)
    with pytest.raises(UsageError, match=message):
        joint(grid(**changes), tmp_path / "run", data=tiny.data())
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        joint(grid(), tmp_path / "file", data=tiny.data())
    with pytest.raises(UsageError, match="there is no"):
        joining.load(tmp_path)


# -- the table --------------------------------------------------------------------------------------------------------


def made_up(seeds: int = 3) -> dict[str, Any]:
    """A result of round numbers."""
    dice = np.random.default_rng(0)
    places = {"arms": ["low", "high"], "ratios": [0.1, 0.5], "amounts": [0.0, 0.8], "seeds": list(range(seeds))}
    arms = [("base", None), *((arm, ratio) for arm in places["arms"] for ratio in places["ratios"])]
    cells = [
        {"arm": arm, "ratio": ratio, "amount": amount, "seed": seed, "accuracy": float(dice.uniform(0.8, 0.9)),
         "curve": [0.5, 0.6, 0.7], "flops": {"total": float(dice.integers(100, 200))}}
        for seed in places["seeds"] for arm, ratio in arms for amount in places["amounts"]
    ]  # fmt: skip
    training = [
        {"arm": arm, "ratio": ratio, "seed": seed, "curve": [0.4, 0.6]}
        for seed in places["seeds"]
        for arm, ratio in arms
    ]
    result = {"data": "tiny", "model": "mlp", "epochs": 2, "finetune_epochs": 2, "grid": places, "training": training}
    result |= {"cells": cells}
    return result | {"summary": summarize(result)}


def test_the_summary_is_arithmetic() -> None:
    scipy = pytest.importorskip("scipy.stats")
    result = made_up()
    assert [(line["arm"], line["ratio"], line["amount"]) for line in result["summary"]] == [
        (arm, ratio, amount) for arm in ("low", "high") for ratio in (0.1, 0.5) for amount in (0.0, 0.8)
    ]
    for line in result["summary"]:

        def of(arm: str, ratio: float | None, amount: float = line["amount"]) -> np.ndarray:
            rows = [row for row in result["cells"] if (row["arm"], row["ratio"], row["amount"]) == (arm, ratio, amount)]
            return np.array([[row["accuracy"], row["flops"]["total"]] for row in rows])

        mine, base = of(line["arm"], line["ratio"]), of("base", None)
        assert line["difference_mean"] == pytest.approx((mine - base)[:, 0].mean())
        assert line["difference_std"] == pytest.approx((mine - base)[:, 0].std(ddof=1))
        assert line["accuracy_mean"] == pytest.approx(mine[:, 0].mean())
        assert line["accuracy_std"] == pytest.approx(mine[:, 0].std(ddof=1))
        assert line["base_mean"] == pytest.approx(base[:, 0].mean())
        assert line["base_std"] == pytest.approx(base[:, 0].std(ddof=1))
        assert (line["flops"], line["base_flops"]) == pytest.approx((mine[:, 1].mean(), base[:, 1].mean()))
        assert line["p"] == pytest.approx(scipy.ttest_rel(mine[:, 0], base[:, 0]).pvalue)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13, 30])
def test_the_paired_test_is_students(count: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0.3 * seed, 1, count)
        assert paired(values.tolist()) == pytest.approx(scipy.ttest_1samp(values, 0).pvalue, rel=1e-6)
    limit = scipy.t.ppf(0.975, count - 1) / math.sqrt(count)
    assert detectable(count) == pytest.approx(limit, rel=1e-6)


def test_where_nothing_can_be_tested_there_is_no_p() -> None:
    assert paired([0.1]) is None and paired([0.1, 0.1, 0.1]) is None and paired([0.0, 0.0]) is None
    assert detectable(1) is None
    assert {line["p"] for line in made_up(1)["summary"]} == {None}
    assert {line["difference_std"] for line in made_up(1)["summary"]} == {0.0}


def test_lines_wait_for_all_their_seeds() -> None:
    result = made_up()
    gone = ("low", 0.5, 0.8, 1)
    result["cells"] = [row for row in result["cells"] if (row["arm"], row["ratio"], row["amount"], row["seed"]) != gone]
    assert len(summarize(result)) == 7 and missing(result) == ["low ratio 0.5 amount 0.8 seed 1"]
    result["cells"] = [row for row in result["cells"] if (row["arm"], row["seed"]) != ("base", 2)]
    assert summarize(result) == []
    with pytest.raises(
        UsageError, match=r"^3 of 30 cells are missing \(low .*, base .* seed 2, base .* seed 2\): give"
    ):
        check_whole(result)


def test_the_table_says_what_the_summary_says() -> None:
    pytest.importorskip("rich")
    from dataprune.lab.report import tables

    result = made_up()
    shown = tables.joint(result)
    columns = {str(column.header): list(column.cells) for column in shown.columns}
    assert list(columns) == ["ratio", "amount", "base %", "low − base", "high − base", "FLOPs, low", "FLOPs, high"]
    assert columns["ratio"] == ["0.1", "0.1", "0.5", "0.5"] and columns["amount"] == ["0", "0.8", "0", "0.8"]
    line = next(x for x in result["summary"] if (x["arm"], x["ratio"], x["amount"]) == ("high", 0.5, 0.0))
    mean, deviation = 100 * line["difference_mean"], 100 * line["difference_std"]
    assert columns["high − base"][2] == f"{mean:+.2f} ± {deviation:.2f} ({line['p']:.2f})"
    line["p"] = 0.001
    assert list(tables.joint(result).columns[4].cells)[2].endswith(" (<0.01)")
    assert columns["FLOPs, high"][2] == f"{line['flops'] / line['base_flops']:.2f}x"
    caption = str(shown.caption)
    assert "over 3 seeds: a mean difference must be 2.5 times its s.d. for p < 0.05; of 8 such tests" in caption
    assert columns["base %"][0].count("±") == 1
    single = tables.joint(made_up(1))
    assert "p of a paired" not in str(single.caption) and "±" not in next(iter(single.columns[3].cells))
    del result["cells"][-1]
    with pytest.raises(UsageError, match="1 of 30 cells are missing"):
        tables.joint(result)


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_written_and_repeat(seeds: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dataprune.lab.report import joint_plots, plots

    for draw in (joint_plots.fine_tuning, joint_plots.before_and_after, joint_plots.flops):
        files = plots.write(draw(made_up(seeds)), tmp_path / "one")
        assert [file.suffix for file in files] == [".svg", ".png"]
        assert b"<svg" in files[0].read_bytes() and files[1].read_bytes().startswith(b"\x89PNG")
        again = plots.write(draw(made_up(seeds)), tmp_path / "two")
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    pytest.importorskip("typer")
    pytest.importorskip("sklearn")
    from typer.testing import CliRunner

    from dataprune.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["joint", *map(str, arguments)])


QUICK = ("--model", "mlp", "--train-size", 320, "--test-size", 60, "--epochs", 2, "--score-epochs", 2, "--ratios", 0.2,
         "--finetune-epochs", 1, "--amounts", "0,0.5", "--lr", 0.05, "--device", "cpu")  # fmt: skip


def test_the_command_finds_its_own_folder_again(call: Any, tmp_path: Path) -> None:
    first = call(*QUICK, "--seeds", 1)
    assert first.exit_code == 0, first.output
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("joint-digits-") and "high − base" in first.stdout and "joint.json" in first.stdout
    names = ("fine_tuning", "before_and_after", "flops", "sparsity")
    figures = [out / f"{name}{suffix}" for name in names for suffix in (".svg", ".png")]
    assert all(file.exists() for file in figures)
    second = call(*QUICK, "--seeds", 2, "--json")
    assert second.exit_code == 0 and json.loads(second.stdout) == json.loads((out / "joint.json").read_text())
    assert json.loads(second.stdout)["grid"]["seeds"] == [0, 1]
    before = (out / "joint.json").read_bytes()
    shown = call("--table", "--out", out)
    assert shown.exit_code == 0 and "paired t-test over 2 seeds" in " ".join(shown.stdout.split())
    assert (out / "joint.json").read_bytes() == before


def test_the_command_reads_a_file(call: Any, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "model: mlp\ntrain-size: 320\nepochs: 1\nscore-epochs: 2\nfinetune-epochs: 1\nratios: 0.5\namounts: 0,0.5\n"
        "data-method: emp\nseeds: 1\nreinitialize: true\nfinetune-on: coreset\nwarmup: 0\n"
    )
    done = call("--config", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--json", "--lr", 0.05)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["grid"] == {"arms": ["emp"], "ratios": [0.5], "amounts": [0.0, 0.5], "seeds": [0]}
    assert result["reinitialize"] and result["finetune_on"] == "coreset" and result["epochs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--amounts", "0.2,1"), "--amounts are shares of the weights in [0, 1), got 1"),
        (("--amounts", "a"), "--amounts takes comma-separated numbers, got 'a'"),
        (("--ratios", "1.5"), "--ratios are fractions of the data in (0, 1), got 1.5"),
        (("--table", "--out", "nowhere"), "there is no nowhere/joint.json"),
        (("--data-method", "epm"), "did you mean 'emp'"),
    ],
)
def test_wrong_calls_end_in_one_line(call: Any, arguments: tuple, message: str) -> None:
    result = call(*arguments)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and result.stdout == "" and len(lines) == 1 and message in lines[0], result.output


def test_the_table_of_an_unfinished_grid_says_what_is_missing(call: Any, tmp_path: Path) -> None:
    result = made_up()
    del result["cells"][4]
    run_folder.write_json(tmp_path / "joint.json", result)
    shown = call("--table", "--out", tmp_path)
    assert shown.exit_code == 2 and shown.stdout == ""
    assert "1 of 30 cells are missing (low ratio 0.5 amount 0 seed 0)" in shown.stderr
    assert not list(tmp_path.glob("*.svg"))


# -- several processes ------------------------------------------------------------------------------------------------


def ranked(rank: int, world_size: int, out: str) -> dict[str, Any]:
    quick = grid(batch_size=8, ratios=(0.2,), amounts=(0.6,), epochs=1, score_epochs=2, finetune_epochs=1)
    return joining.joint(quick, Path(out), data=tiny.data(), save_models=True)


@pytest.mark.ddp
def test_two_ranks_prune_alike(pool: Any, tmp_path: Path) -> None:
    one, other = pool.run(ranked, str(tmp_path), world_size=2)
    assert one == other == run_folder.read_json(tmp_path / "joint.json")
    assert len(one["cells"]) == 4 and sum(one["scoring"][0]["forgotten"]) == 400
    for row in one["cells"]:
        assert row["sparsity"] == pytest.approx(row["amount"], abs=1e-3)
        assert row["accuracy"] == row["curve"][-1]


def test_a_model_with_masks_goes_through_fit(tmp_path: Path) -> None:
    """`prepare` is called again on a resumed run, and what it did is then the checkpoint's."""
    data, settings, seen = tiny.data(), tiny.settings(method="full", keep=None, checkpoint_every=5), []

    def prepare(model: nn.Module) -> None:
        seen.append(model)
        network.prune(model, 0.5)

    fitting.fit(settings, tmp_path / "whole", data=data, prepare=prepare)
    step = fitting._Run._train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop = Interrupted(step, 48)
        patch.setattr(fitting._Run, "_train_step", lambda self, *args: stop(self, *args))
        fitting.fit(settings, tmp_path / "parts", data=data, prepare=prepare)
    fitting.fit(settings, tmp_path / "parts", data=data, prepare=prepare)
    assert len(seen) == 3
    tiny.same_end(tmp_path / "whole", tmp_path / "parts")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        stages._load(build.build("mlp", (1, 8, 8), 4, 0), tmp_path / "empty.safetensors")
