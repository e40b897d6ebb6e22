"""The scale `paper` of every file has the settings that its paper gives, or declares the difference under `differs`.

`PAPERS` holds what the papers say, by file; what a paper does not say is not in it. It is compared with what the runs
of the file resolve to. A setting may depend on the run: then it is a function of its `Key`, which returns `NOT_SAID`
where the paper says nothing.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("matplotlib", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("sklearn", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")

from dataprune import coresets, dynamics
from dataprune.lab.sweeps import papers
from dataprune.lab.sweeps.papers import experiment
from dataprune.lab.sweeps.papers.experiment import Cell, Experiment, Key
from dataprune.lab.training.build import build_rate, load_data
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.contrastive import finetuning
from dataprune.lab.training.yaml_file import read_yaml
from dataprune.methods import METHODS

NOT_SAID = object()
Said = Any | Callable[[Key], Any]
SIZES = {"uoft-cs/cifar10": 50_000, "cifar100": 50_000, "ILSVRC/imagenet-1k": 1_281_167}  # training samples
# the same of Table B.1 of EMP
GLUE = {"cola": 8_500, "sst2": 67_000, "mrpc": 3_700, "stsb": 7_000, "qqp": 364_000, "mnli": 393_000, "qnli": 105_000,
        "rte": 2_500}  # fmt: skip
OURS = ("short", "rs2", "loss", "memory")  # arms that no paper has


def of_arms(value: Any, arms: Iterable[str]) -> Callable[[Key], Any]:
    """A setting that is said of the arms whose names begin so."""
    return lambda key: value if key.arm.startswith(tuple(arms)) else NOT_SAID


def but(value: Any, *arms: str) -> Callable[[Key], Any]:
    """A setting that is said of all arms but those whose names begin so, and ours."""
    return lambda key: NOT_SAID if key.arm.startswith((*OURS, *arms)) else value


CIFARS = {"CIFAR-10": "uoft-cs/cifar10", "CIFAR-100": "cifar100"}
BOTH = {"panels": ["CIFAR-10", "CIFAR-100"], "data": lambda key: CIFARS[key.panel]}
CIFAR10 = {"panels": ["CIFAR-10"], "data": "uoft-cs/cifar10"}
CIFAR100 = {"panels": ["CIFAR-100"], "data": "cifar100"}

# -- EMP, Xiao et al.: tables B.2 to B.5, section 4, appendix C, algorithms 1 and 2 ------------------------------------

EMPS = ("emp", "beta", "features", "projections")  # arms of EMP
DYNAMIC = ["epsilon_greedy", "ucb", "infobatch"]
RATES = {"keep": [0.7, 0.5, 0.3]}


def annealed(key: Key) -> Any:
    """Whether the last epochs are full: those of EMP are, "similar to InfoBatch" (section 4.1)."""
    if key.arm.startswith(OURS):
        return NOT_SAID
    return key.arm.startswith((*EMPS, "infobatch")) and not key.arm.endswith("not annealed")


def warmup(key: Key) -> Any:
    """Full epochs at the start: EMP's algorithms have one; a coreset and random samples need none."""
    if key.arm.startswith(EMPS):
        return 1
    return NOT_SAID if key.arm.startswith((*OURS, "full", *DYNAMIC)) else 0


# "each of our experiments was run 5 times" (section 4); β is "consistently at 5" (appendix C), but in Figure 10
EMP = {"seeds": 5, "annealed": annealed, "warmup": warmup, "option beta": of_arms(5.0, EMPS)}
BETAS = {"keep": [0.3], "option beta": lambda key: NOT_SAID if key.arm in OURS else float(key.arm.split()[1])}
B2 = EMP | {
    "samples": 50_000, "model": "resnet18", "epochs": 200, "batch_size": 128, "optimizer": "lars", "first lr": 0.2,
    "lr": 5.2, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "one-cycle", "label_smoothing": 0,
}  # fmt: skip
B3 = EMP | {
    "samples": 1_281_167, "image_size": 224, "resized_crop": True, "model": "resnet50_imagenet", "epochs": 90,
    "batch_size": 256, "optimizer": "sgd", "lr": 0.1, "first lr": 0.1, "momentum": 0.9, "nesterov": False,
    "weight_decay": 1e-4, "schedule": "step", "label_smoothing": 0,
}  # fmt: skip
B4 = EMP | {
    "model": "bert-base-uncased", "epochs": 10, "batch_size": 32, "optimizer": "adam", "lr": 2e-5, "first lr": 2e-5,
    "schedule": "linear", "label_smoothing": 0, "annealed": but(False),
}  # fmt: skip
SIMCLR = {
    "task": "contrastive", "model": "resnet50", "epochs": 100, "batch_size": 256, "optimizer": "adam", "lr": 1e-3,
    "first lr": 1e-3, "weight_decay": 1e-6, "schedule": "exponential", "temperature": 0.5, "views": "paper",
    "projection": "linear",
}  # fmt: skip
B5 = EMP | SIMCLR | {
    "samples": 50_000, "tuned epochs": 100, "tuned lr": 1e-3, "tuned batch_size": 32, "tuned optimizer": "adam",
    "tuned weight_decay": 1e-6,
}  # fmt: skip

# -- TDDS, Zhang et al.: sections 5.1 and 5.3; Nesterov, flips, crops, form of the weights: the authors' public code ---

T_AND_K = {0.7: (90, 10), 0.5: (70, 10), 0.3: (60, 20), 0.2: (20, 10), 0.1: (10, 5)}  # of CIFAR-100
CUTOFFS = {  # of CCS: Zheng et al., arXiv:2210.15809
    "CIFAR-10": {0.7: 0.0, 0.5: 0.0, 0.3: 0.1}, "CIFAR-100": {0.7: 0.1, 0.5: 0.2, 0.3: 0.2},
}  # fmt: skip
BASELINES = ["static_random", "entropy", "forgetting", "el2n", "aum", "moderate"]
ALL_RATES = {"keep": [0.7, 0.5, 0.3, 0.2, 0.1]}


def of_tdds(place: int) -> Callable[[Key], Any]:
    """T (0) or K (1); those of CIFAR-10 and ImageNet are in a supplement."""

    def said(key: Key) -> Any:
        is_tdds = key.arm == "el2n + outer" or key.arm not in (*BASELINES, *OURS, "full", "dyn_unc", "ccs")
        return T_AND_K[key.keep][place] if key.panel != "CIFAR-10" and is_tdds else NOT_SAID

    return said


def smaller(batch_size: int) -> Callable[[Key], Any]:
    """Half the batch at 80 % pruned, a quarter at 90 %."""
    return lambda key: batch_size // (1 if key.arm == "full" else {0.2: 2, 0.1: 4}.get(key.keep, 1))


def scored(**settings: Any) -> dict[str, Said]:
    """Settings of the run that scores for static methods."""
    return {f"score {name}": but(value, "full", "static_random") for name, value in settings.items()}


SGD = {
    "optimizer": "sgd", "lr": 0.1, "first lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine",
    "label_smoothing": 0, "warmup": but(0, "full"), "annealed": but(False),
}  # fmt: skip
TDDS = SGD | scored(epochs=200, model="resnet18", batch_size=128) | {
    "samples": 50_000, "model": "resnet18", "epochs": 200, "nesterov": True, "shift": 4, "shift_mode": "constant",
    "flip": True, "batch_size": smaller(128), "option until": of_tdds(0), "option window": of_tdds(1),
    "option decay": of_arms(0.9, ["tdds"]), "option weights": of_arms("raw", ["tdds"]),
}  # fmt: skip
IMAGENET = SGD | {
    "samples": 1_281_167, "data": "ILSVRC/imagenet-1k", "panels": ["ImageNet-1K"], "image_size": 224,
    "resized_crop": True, "option weights": of_arms("raw", ["tdds"]),
}  # fmt: skip
DECAYS = {"plain mean": None, "decay 0.85": 0.85, "decay 0.9": 0.9, "decay 0.95": 0.95}
NETWORKS = {
    "ResNet-50": "resnet50", "VGG-16": "vgg16", "MobileNet-v2": "mobilenet_v2", "ShuffleNet": "shufflenet_v2",
}  # fmt: skip

# -- "Drop it like it's hot", Gupta et al.: section 4; optimizer, networks, images: the authors' public code -----------

DROP = {
    "score_epochs": 10, "epochs": 10, "finetune_epochs": 10, "ratios": [0.1, 0.2, 0.3, 0.4, 0.5],
    "amounts": [0, 0.2, 0.4, 0.6, 0.8], "scope": "layer", "finetune_on": "all", "finetune_lr": None,
    "reinitialize": False, "data_methods": (), "optimizer": "adam", "lr": 1e-3, "weight_decay": 0, "batch_size": 64,
    "schedule": "constant", "lr_warmup": 0, "shift": 0, "flip": False, "resized_crop": False, "label_smoothing": 0,
}  # fmt: skip
RESNET18 = DROP | {"data": "cifar100", "model": "resnet18_imagenet"}
TABLE1 = {  # points above the base, by data ratio and share of the weights
    "low": {0.1: {0.4: 2.88, 0.6: 2.5, 0.8: 2.49}, 0.2: {0.4: 1.74, 0.6: 1.7, 0.8: 2.52},
            0.3: {0.4: -0.19, 0.6: 0.82, 0.8: 1.021}},
    "high": {0.1: {0.4: 2.39, 0.6: 1.678, 0.8: 1.39}, 0.2: {0.4: 2.27, 0.6: 0.35, 0.8: 1.76},
             0.3: {0.4: 0.41, 0.6: 0.81, 0.8: 0.89}},
}  # fmt: skip

PAPERS: dict[str, dict[str, Said]] = {
    "emp_figure1": B2 | {"keep": [0.1], "arms": [*DYNAMIC, "emp"]},
    "emp_figure3": B2 | BOTH | {"keep": [0.1], "arms": ["ELFL", "infobatch", "emp"], "show": "loss"},
    "emp_figure6": B2 | CIFAR10 | {"arms": ["full", "random", *DYNAMIC, "emp"]},
    "emp_figure7": B2 | CIFAR100 | {"arms": ["full", "random", *DYNAMIC, "emp"], "model": "resnet32"},
    "emp_figure8": B2 | BOTH | {"arms": ["emp", "infobatch", "emp, not annealed", "infobatch, not annealed"]},
    "emp_figure8_contrastive": B5 | BOTH,
    "emp_figure9": B2 | BOTH | {"label_noise": 0.2, "arms": ["full", "random", *DYNAMIC, "emp"]},
    "emp_figure10": B2 | BOTH | BETAS,
    "emp_figure10_contrastive": B5 | BOTH | BETAS,
    "emp_figure11": B2 | CIFAR10 | {"keep": [0.5], "arms": ["infobatch", "emp", "emp_reverse"]},
    "emp_reverse": B2,
    "emp_table1": B2 | BOTH | RATES | {
        "arms": ["full", "static_random", "contextual_diversity", "herding", "k_center", "least_confidence", "margin",
                 "grand-4", "deepfool", "craig", "glister", "el2n-2", "el2n-20", "dp", "random", *DYNAMIC, "emp"],
        "score runs": lambda key: {"grand-4": 4, "el2n-2": 2, "el2n-20": 20}.get(key.arm, NOT_SAID),
        "gradients": of_arms("all layers", ["grand", "dp"]),
    },
    "emp_table2": B3 | RATES | {
        "panels": ["ImageNet-1k"], "data": "ILSVRC/imagenet-1k", "keep": [0.7, 0.3], "lr_warmup": 0,
        "arms": ["full", "static_random", "random", *DYNAMIC, "emp"],
    },
    "emp_table3": B4 | RATES | {
        "panels": ["RTE", "CoLA", "SST-2", "STS-B", "MRPC", "QNLI", "MNLI", "QQP"], "arms": ["full", *DYNAMIC, "emp"],
        "task": lambda key: f"glue/{key.panel.lower().replace('-', '')}",
    },
    "emp_table4": B5 | BOTH | RATES | {"arms": ["full", *DYNAMIC, "emp_contrastive"]},
    "emp_table5": B5 | BOTH | RATES | {"score_on": lambda key: key.arm},
    "tdds_figure1": TDDS | CIFAR10 | {
        "arms": ["epoch 10", "epoch 100"], "parts": ["a", "b"], "option epochs": lambda key: int(key.arm.split()[1]),
        "option reduce": "last",
    },
    "tdds_figure4": TDDS | CIFAR100 | ALL_RATES | {
        "arms": [f"T {t}, K {k}" for t, k in T_AND_K.values()],
        "option until": lambda key: int(key.arm.split(",")[0][2:]),
        "option window": lambda key: int(key.arm.split()[3]), "option weights": "raw",
    },
    "tdds_figure5": TDDS | CIFAR100 | {
        "keep": [0.3, 0.2, 0.1], "arms": [*DECAYS], "option decay": lambda key: DECAYS[key.arm],
        "option weights": "raw",
    },
    "tdds_figure6": TDDS | CIFAR100 | ALL_RATES | {
        "arms": ["tdds", "cross-entropy", "unweighted"], "option difference": of_arms("ce", ["cross-entropy"]),
        "option weights": lambda key: {"unweighted": "none", "tdds": "raw"}.get(key.arm, NOT_SAID),
    },
    "tdds_table1": TDDS | BOTH | ALL_RATES | {"arms": ["full", *BASELINES, "dyn_unc", "tdds"]},
    "tdds_table2": TDDS | BOTH | RATES | {
        "arms": ["full", *BASELINES, "ccs", "tdds"], "batch_size": 128,
        "epochs": lambda key: 200 if key.arm == "full" else round(200 / key.keep),
        "option cutoff": lambda key: CUTOFFS[key.panel][key.keep] if key.arm == "ccs" else NOT_SAID,
    },
    "tdds_table3": IMAGENET | scored(epochs=90, model="resnet34_imagenet", batch_size=256) | {
        "keep": [0.3, 0.2, 0.1], "arms": ["full", *BASELINES, "tdds"], "model": "resnet34_imagenet", "epochs": 60,
        "batch_size": smaller(256),
    },
    "tdds_table4": IMAGENET | scored(epochs=300) | {
        "keep": [0.75, 0.7, 0.6, 0.5], "model": "swin_t_imagenet", "epochs": 300, "batch_size": 1024,
        "arms": ["full", "static_random", "forgetting", "moderate", "dyn_unc", "tdds"],
    },
    "tdds_table5": TDDS | CIFAR100 | ALL_RATES | {
        "arms": ["el2n", "el2n + outer", "tdds"], "option difference": of_arms("el2n", ["el2n + outer"]),
    },
    "tdds_cross_architecture": TDDS | {
        "panels": [*NETWORKS], "data": "cifar100", "model": lambda key: NETWORKS[key.panel],
    },
    "drop_table1": RESNET18 | {"published": TABLE1},
    "drop_figure1": RESNET18,
    "drop_figure2": RESNET18,
    "drop_cifar10_resnet18": RESNET18 | {"data": "uoft-cs/cifar10"},
    "drop_cifar10_resnet50": RESNET18 | {"data": "uoft-cs/cifar10", "model": "resnet50_imagenet"},
    "drop_mnist_lenet": DROP | {"data": "mnist", "model": "lenet"},
    "drop_mnist_mlp": DROP | {"data": "mnist", "model": "mlp"},
    "emp_figure4": SIMCLR | {"data": "uoft-cs/cifar10", "samples": 50},  # that are left out
    "emp_figure5": SIMCLR | {"data": "uoft-cs/cifar10", "samples": 5},  # repetitions
}  # fmt: skip
BESIDE = {"which_budgets", "which_budgets_language"}  # questions of this library


# -- what the files resolve to -----------------------------------------------------------------------------------------


def of_run(settings: Settings) -> dict[str, Any]:
    """All settings of a run, and its first learning rate to the digit that the papers print."""
    first = settings.lr * build_rate(settings)(0.0)
    return {**vars(settings), "first lr": float(f"{first:.1g}")}


def of_cell(planned: Experiment, cell: Cell) -> dict[str, Any]:
    """What one run of an experiment has, by the code that would carry it out."""
    comparison, method, seed = cell.comparison, cell.method, cell.key.seed
    settings = comparison.settings
    size = GLUE[settings.glue] if settings.glue else round(SIZES[settings.data] * (1 - settings.val_fraction))
    static = method in comparison.static
    run = comparison.run_settings(method, seed, size, Path("coreset.safetensors") if static else None)
    full = comparison.plan(size).full
    values = of_run(run) | {name: getattr(planned, name) for name in ("keep", "panels", "arms", "show", "seeds")}
    values["parts"] = ["b"] if planned.show == "accuracy" else [planned.show]  # of TDDS's Figure 1
    values |= {"samples": size, "warmup": full.index(False), "annealed": full[-1] and method != "full"}
    if static:
        values |= {
            f"score {name}": getattr(comparison.scoring(seed), name) for name in ("epochs", "model", "batch_size")
        }
        values |= {"score runs": comparison.score_runs, "gradients": "last layer"}
    if comparison.finetune_epochs:
        tuned = vars(finetuning(settings, comparison.finetune_epochs))
        values |= {f"tuned {name}": value for name, value in tuned.items()}
    options = defaults(method) | settings.options().get(method, {})
    return values | {f"option {name}": value for name, value in options.items()}


def defaults(method: str) -> dict[str, Any]:
    """Default options of a method."""
    static = coresets.METHODS.get(method)
    functions = [METHODS[method]] if method in METHODS else []
    functions += [static.select] if static else []
    functions += [dynamics.STATISTICS[static.statistic]] if static and static.statistic else []
    weights = {"weights": "mean-one" if static.weights else "none"} if static else {}
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    return {one.name: one.default for one in parameters if one.default is not one.empty} | weights


def of_script(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a script, which loads no data here."""
    study, script = importlib.import_module("emp_figure4"), importlib.import_module(name)
    digits = load_data(Settings(train_size=10, test_size=1))
    monkeypatch.setattr(study, "load_data", lambda settings: digits)
    settings = study.Study("paper", pairs=1).settings
    return of_run(settings) | {"samples": script.REMOVED["paper"] if name == "emp_figure4" else script.REPEATS["paper"]}


def resolved(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Key, dict[str, Any]]]:
    """What the runs of a file's scale `paper` have; of each run the first seed."""
    title, content = experiment.content(name)
    if content.get("kind") == "script":
        yield Key("", 0, "", 0), of_script(name, monkeypatch)
    elif content.get("kind") == "joint":
        own, grid = papers.grid_of(title, content, "paper")
        yield Key("", 0, "", 0), {**of_run(grid.settings), **vars(grid), "published": own.get("published")}
    else:
        planned = experiment.read(name, "paper")
        for key in planned.runs():
            if key.seed == 0:
                yield key, of_cell(planned, Cell(key, planned.comparison(*key)))


def differing(said: Mapping[str, Said], key: Key, values: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a run that are not the paper's; more panels and arms than the paper has are ours."""
    for setting, value in said.items():
        wanted, found = value(key) if callable(value) else value, values.get(setting)
        if wanted is NOT_SAID:
            continue
        same = set(wanted) <= set(found or ()) if setting in ("arms", "panels") else wanted == found
        if not same:
            yield setting.removeprefix("option ")


@pytest.mark.parametrize(
    ("name", "others"),
    [("joint_cifar100", set()), ("joint_mnist", {"optimizer", "lr", "schedule", "lr_warmup", "weight_decay"})],
)
def test_files_of_joint_have_them_too_or_say_so(name: str, others: set[str]) -> None:
    path = experiment.FOLDERS[1] / f"{name}.yaml"
    content = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    settings = experiment.settings_of({key: value for key, value in content.items() if key in vars(Settings())})
    values = {**content, **of_run(settings)}
    said = {key: value for key, value in RESNET18.items() if key in values.keys() - {"ratios", "amounts"}}
    if name == "joint_mnist":
        said |= {"data": "mnist", "model": "small_cnn"}  # the model is given with --model
        assert "SGD, its rate and its cosine are ours" in path.read_text()
    assert set(differing(said, Key("", 0, "", 0), values)) == others


def test_every_file_is_compared() -> None:
    assert PAPERS.keys() | BESIDE == papers.available().keys()


@pytest.mark.parametrize("name", PAPERS)
def test_the_settings_are_the_papers_or_declared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = experiment.at_scale(*experiment.content(name), "paper").get("differs", {})
    runs = resolved(name, monkeypatch)
    found = {setting: key for key, values in runs for setting in differing(PAPERS[name], key, values)}
    assert found.keys() == declared.keys(), found


@pytest.mark.parametrize(
    ("name", "old", "new", "setting"),
    [
        ("emp_figure1", "lr: 5.2", "lr: 0.52", "lr"),
        ("emp_table1", "score-runs: 20", "score-runs: 2", "score runs"),
        ("emp_table1", "herding: {warmup: 0, anneal: 0}", "herding: {}", "epochs"),
        ("emp_table4", "finetune-epochs: 100", "finetune-epochs: 10", "tuned epochs"),
        ("tdds_figure5", "tdds.until: 60", "tdds.until: 70", "until"),
        ("tdds_table2", "ccs.cutoff: 0.1", "ccs.cutoff: 0.2", "cutoff"),
        ("drop_table1", "0.8: 1.021", "0.8: 1.21", "published"),
    ],
)
def test_a_changed_file_is_noticed(
    name: str, old: str, new: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = papers.available()[name].read_text()
    assert old in text
    (tmp_path / f"{name}.yaml").write_text(text.replace(old, new))
    changed = resolved(str(tmp_path / f"{name}.yaml"), monkeypatch)
    assert any(setting in differing(PAPERS[name], key, values) for key, values in changed)
