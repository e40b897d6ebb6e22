"""The scale `paper` of every file has the settings that its paper gives, or declares the difference under `differs`.

`PAPERS` holds what the papers say, by file; what a paper does not say is not in it. It is compared with what the runs of
the file resolve to. A setting may depend on the run: then it is a function of its `Key`, which returns `NOT_SAID` where
the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("matplotlib", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("sklearn", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")

from dataprune import coresets
from dataprune.lab.sweeps import papers
from dataprune.lab.sweeps.papers import experiment
from dataprune.lab.sweeps.papers.experiment import Cell, Experiment, Key
from dataprune.lab.training.build import build_rate
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.contrastive import finetuning

NOT_SAID = object()
Said = Any | Callable[[Key], Any]
SIZES = {"uoft-cs/cifar10": 50_000, "cifar100": 50_000, "ILSVRC/imagenet-1k": 1_281_167}  # training samples
# Table B.1 of EMP; the paper has no WNLI in its Table 3
GLUE = {"cola": 8_500, "sst2": 67_000, "mrpc": 3_700, "stsb": 7_000, "qqp": 364_000, "mnli": 393_000, "qnli": 105_000,
        "rte": 2_500}  # fmt: skip
OURS = ("short", "rs2", "loss", "memory")  # arms that no paper has
EMPS = ("emp", "beta", "features", "projections")  # how the arms of EMP begin


# -- EMP, Xiao et al.: Tables B.2 to B.5, sections 4 and C, Algorithms 1 and 2 -------------------------------------------


def annealed(key: Key) -> Any:
    """Whether the last epochs are full: those of EMP are, "similar to InfoBatch" (section 4.1)."""
    if key.arm.endswith("not annealed"):
        return False
    return NOT_SAID if key.arm in OURS else key.arm.startswith((*EMPS, "infobatch"))


def warmup(key: Key) -> Any:
    """Full epochs at the start: Algorithms 1 and 2 have one; a coreset and random samples need none."""
    if key.arm.startswith(EMPS):
        return 1
    return NOT_SAID if key.arm.split(",")[0] in (*OURS, "full", "infobatch", "epsilon_greedy", "ucb") else 0


def beta(key: Key) -> Any:
    """That in the arm's name."""
    return float(key.arm.split()[1]) if key.arm.startswith("beta") else NOT_SAID


# β is "consistently at 5" (section C); Figure 10 varies it
EMP = {"seeds": 5, "annealed": annealed, "warmup": warmup, "option beta": 5.0}
B2 = EMP | {
    "samples": 50_000, "model": "resnet18", "epochs": 200, "batch_size": 128, "optimizer": "lars", "first lr": 0.2, "lr": 5.2,
    "momentum": 0.9, "weight_decay": 5e-4, "schedule": "one-cycle", "label_smoothing": 0,
}  # fmt: skip
B3 = EMP | {
    "samples": 1_281_167, "model": "resnet50_imagenet", "epochs": 90, "batch_size": 256, "optimizer": "sgd", "lr": 0.1,
    "first lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "schedule": "step", "label_smoothing": 0,
    "image_size": 224, "crop": True,
}  # fmt: skip
B4 = EMP | {
    "model": "bert-base-uncased", "epochs": 10, "batch_size": 32, "optimizer": "adam", "lr": 2e-5, "first lr": 2e-5,
    "schedule": "linear", "label_smoothing": 0, "annealed": False,
}  # fmt: skip
B5 = EMP | {
    "task": "contrastive", "samples": 50_000, "model": "resnet50", "epochs": 100, "batch_size": 256, "optimizer": "adam",
    "lr": 1e-3, "first lr": 1e-3, "weight_decay": 1e-6, "schedule": "exponential", "temperature": 0.5, "views": "paper",
    "projection": "linear", "tuned epochs": 100, "tuned lr": 1e-3, "tuned batch_size": 32, "tuned optimizer": "adam",
    "tuned weight_decay": 1e-6,
}  # fmt: skip
CIFARS = {"panels": ["CIFAR-10", "CIFAR-100"], "data": lambda key: {"CIFAR-10": "uoft-cs/cifar10", "CIFAR-100": "cifar100"}[key.panel]}
RATES = {"keep": [0.7, 0.5, 0.3]}
DYNAMIC = ["full", "random", "epsilon_greedy", "ucb", "infobatch"]
# -- TDDS, Zhang et al.: section 5.1 and 5.3; Nesterov momentum, flips and crops: the authors' public code ----------------

T_AND_K = {0.7: (90, 10), 0.5: (70, 10), 0.3: (60, 20), 0.2: (20, 10), 0.1: (10, 5)}  # CIFAR-100; else in a supplement
CUTOFFS = {  # of CCS, Zheng et al., by its own paper
    "CIFAR-10": {0.7: 0.0, 0.5: 0.0, 0.3: 0.1}, "CIFAR-100": {0.7: 0.1, 0.5: 0.2, 0.3: 0.2},
}  # fmt: skip


def of_tdds(place: int) -> Said:
    def said(key: Key) -> Any:
        is_tdds = key.arm not in ("epoch 10", "epoch 100") and not key.arm.startswith("T ")
        return T_AND_K[key.keep][place] if key.panel != "CIFAR-10" and is_tdds else NOT_SAID

    return said


SGD = {
    "optimizer": "sgd", "lr": 0.1, "first lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine",
    "label_smoothing": 0, "warmup": lambda key: NOT_SAID if key.arm in (*OURS, "full") else 0, "annealed": False,
}  # fmt: skip
TDDS = SGD | {
    "samples": 50_000, "model": "resnet18", "epochs": 200, "nesterov": True, "shift": 4, "shift_mode": "constant", "flip": True,
    "batch_size": lambda key: 128 if key.arm == "full" else {0.2: 64, 0.1: 32}.get(key.keep, 128), "score batch_size": 128,
    "score epochs": 200, "score model": "resnet18", "option until": of_tdds(0), "option window": of_tdds(1),
    "option decay": lambda key: 0.9 if key.arm == "tdds" else NOT_SAID,
}  # fmt: skip
CIFAR100 = {"panels": ["CIFAR-100"], "data": "cifar100"}
STATIC = ["full", "static_random", "entropy", "forgetting", "el2n", "aum", "moderate"]
ALL_RATES = {"keep": [0.7, 0.5, 0.3, 0.2, 0.1]}
IMAGENET = {"samples": 1_281_167, "data": "ILSVRC/imagenet-1k", "image_size": 224, "crop": True, "label_smoothing": 0}

# -- "Drop it like it's hot", Gupta et al.: section 4; optimizer, networks and images: the authors' public code -----------

DROP = {
    "score_epochs": 10, "epochs": 10, "finetune_epochs": 10, "ratios": [0.1, 0.2, 0.3, 0.4, 0.5],
    "amounts": [0, 0.2, 0.4, 0.6, 0.8], "scope": "layer", "finetune_on": "all", "finetune_lr": None, "reinitialize": False,
    "optimizer": "adam", "lr": 1e-3, "weight_decay": 0, "batch_size": 64, "schedule": "constant", "lr_warmup": 0, "shift": 0,
    "flip": False, "label_smoothing": 0,
}  # fmt: skip
SELECTED = DROP | {"data": "cifar100", "model": "resnet18_imagenet"}

PAPERS: dict[str, dict[str, Said]] = {
    "emp_figure1": B2 | {"keep": [0.1], "arms": ["infobatch", "epsilon_greedy", "ucb", "emp"]},
    "emp_figure3": B2 | CIFARS | {"keep": [0.1], "arms": ["ELFL", "infobatch", "emp"], "show": "loss"},
    "emp_figure6": B2 | {"panels": ["CIFAR-10"], "data": "uoft-cs/cifar10", "arms": [*DYNAMIC, "emp"]},
    "emp_figure7": B2 | {"panels": ["CIFAR-100"], "data": "cifar100", "arms": [*DYNAMIC, "emp"], "model": "resnet32"},
    "emp_figure8": B2 | CIFARS | {"arms": ["emp", "infobatch", "emp, not annealed", "infobatch, not annealed"]},
    "emp_figure8_contrastive": B5 | CIFARS,
    "emp_figure9": B2 | CIFARS | {"label_noise": 0.2, "arms": [*DYNAMIC, "emp"]},
    "emp_figure10": B2 | CIFARS | {"keep": [0.3], "option beta": beta},
    "emp_figure10_contrastive": B5 | CIFARS | {"keep": [0.3], "option beta": beta},
    "emp_figure11": B2 | {"panels": ["CIFAR-10"], "data": "uoft-cs/cifar10", "keep": [0.5], "arms": ["infobatch", "emp", "emp_reverse"]},
    "emp_reverse": B2,
    "emp_table1": B2 | CIFARS | RATES | {
        "arms": ["full", "static_random", "contextual_diversity", "herding", "k_center", "least_confidence", "margin", "grand-4",
                 "deepfool", "craig", "glister", "el2n-2", "el2n-20", "dp", "random", "epsilon_greedy", "ucb", "infobatch", "emp"],
        "score runs": lambda key: {"grand-4": 4, "el2n-2": 2, "el2n-20": 20}.get(key.arm, 1),
    },
    "emp_table2": B3 | {
        "panels": ["ImageNet-1k"], "keep": [0.7, 0.3], "arms": ["full", "static_random", *DYNAMIC[1:], "emp"],
        "lr_warmup": 0,
    },
    "emp_table3": B4 | RATES | {
        "panels": ["RTE", "CoLA", "SST-2", "STS-B", "MRPC", "QNLI", "MNLI", "QQP"], "arms": ["full", *DYNAMIC[2:], "emp"],
    },
    "emp_table4": B5 | CIFARS | RATES | {"arms": ["full", *DYNAMIC[2:], "emp_contrastive"]},
    "emp_table5": B5 | CIFARS | RATES | {"score_on": lambda key: key.arm},
    "tdds_figure1": TDDS | {
        "panels": ["CIFAR-10"], "data": "uoft-cs/cifar10", "option reduce": "last",
        "option epochs": lambda key: int(key.arm.split()[1]),
    },
    "tdds_figure4": TDDS | CIFAR100 | ALL_RATES | {"arms": [f"T {t}, K {k}" for t, k in T_AND_K.values()]},
    "tdds_figure5": TDDS | CIFAR100 | {"keep": [0.3, 0.2, 0.1], "arms": ["plain mean", "decay 0.85", "decay 0.9", "decay 0.95"]},
    "tdds_figure6": TDDS | CIFAR100 | ALL_RATES | {"arms": ["tdds", "cross-entropy", "unweighted"]},
    "tdds_table1": TDDS | CIFARS | ALL_RATES | {"arms": [*STATIC, "dyn_unc", "tdds"]},
    "tdds_table2": TDDS | CIFARS | RATES | {
        "arms": [*STATIC, "ccs", "tdds"], "batch_size": 128,
        "epochs": lambda key: 200 if key.arm == "full" else round(200 / key.keep),
        "option cutoff": lambda key: CUTOFFS[key.panel][key.keep] if key.arm == "ccs" else NOT_SAID,
    },
    "tdds_table3": SGD | IMAGENET | {
        "panels": ["ImageNet-1K"], "keep": [0.3, 0.2, 0.1], "arms": [*STATIC, "tdds"], "model": "resnet34_imagenet",
        "epochs": 60, "score epochs": 90, "score batch_size": 256, "score model": "resnet34_imagenet",
        "batch_size": lambda key: 256 if key.arm == "full" else {0.2: 128, 0.1: 64}.get(key.keep, 256),
    },
    "tdds_table4": SGD | IMAGENET | {
        "panels": ["ImageNet-1K"], "keep": [0.75, 0.7, 0.6, 0.5], "model": "swin_t_imagenet", "epochs": 300, "batch_size": 1024,
        "score epochs": 300, "arms": ["full", "static_random", "forgetting", "moderate", "dyn_unc", "tdds"],
    },
    "tdds_table5": TDDS | CIFAR100 | ALL_RATES | {"arms": ["el2n", "el2n + outer", "tdds"]},
    "tdds_cross_architecture": TDDS | {
        "panels": ["ResNet-50", "VGG-16", "MobileNet-v2", "ShuffleNet"], "data": "cifar100", "model": lambda key: {
            "ResNet-50": "resnet50", "VGG-16": "vgg16", "MobileNet-v2": "mobilenet_v2", "ShuffleNet": "shufflenet_v2",
        }[key.panel],
    },
    "drop_table1": SELECTED | {
        "published": {
            "low": {0.1: {0.4: 2.88, 0.6: 2.5, 0.8: 2.49}, 0.2: {0.4: 1.74, 0.6: 1.7, 0.8: 2.52}, 0.3: {0.4: -0.19, 0.6: 0.82, 0.8: 1.021}},
            "high": {0.1: {0.4: 2.39, 0.6: 1.678, 0.8: 1.39}, 0.2: {0.4: 2.27, 0.6: 0.35, 0.8: 1.76}, 0.3: {0.4: 0.41, 0.6: 0.81, 0.8: 0.89}},
        },
    },
    "drop_figure1": SELECTED,
    "drop_figure2": SELECTED,
    "drop_cifar10_resnet18": DROP | {"data": "uoft-cs/cifar10", "model": "resnet18_imagenet"},
    "drop_cifar10_resnet50": DROP | {"data": "uoft-cs/cifar10", "model": "resnet50_imagenet"},
    "drop_mnist_lenet": DROP | {"data": "mnist", "model": "lenet"},
    "drop_mnist_mlp": DROP | {"data": "mnist", "model": "mlp"},
}  # fmt: skip
SCRIPTS = {  # kind: script, whose settings are those of their `Study`
    name: {key: B5[key] for key in ("task", "model", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule",
           "temperature", "views", "projection")} | {"data": "uoft-cs/cifar10"}
    for name in ("emp_figure4", "emp_figure5")
}  # fmt: skip
BESIDE = ("which_budgets", "which_budgets_language")  # questions of this library


# -- what the files resolve to --------------------------------------------------------------------------------------------


def of_run(settings: Settings) -> dict[str, Any]:
    """All settings of a run, and the first learning rate to the digits that the papers print."""
    first = settings.lr * build_rate(settings)(0.0)
    return {"crop": False, "projection": "mlp", **vars(settings), "first lr": float(f"{first:.1g}")}


def of_cell(planned: Experiment, cell: Cell) -> dict[str, Any]:
    """What one run of an experiment has, of the code path that would carry it out."""
    comparison, method, seed = cell.comparison, cell.method, cell.key.seed
    settings = comparison.settings
    size = GLUE[settings.glue] if settings.glue else round(SIZES[settings.data] * (1 - settings.val_fraction))
    static = method in comparison.static
    run = comparison.run_settings(method, seed, size, Path("coreset.safetensors") if static else None)
    full = comparison.plan(size).full
    options = dict(settings.options().get(method, {}))
    values = of_run(run) | {
        "keep": list(planned.keep), "panels": list(planned.panels), "arms": list(planned.arms), "show": planned.show,
        "seeds": planned.seeds, "samples": size, "warmup": full.index(False) if False in full else len(full),
        "annealed": full[-1] and method != "full", "label_noise": settings.label_noise,
    }  # fmt: skip
    if static:
        scoring = comparison.scoring(seed)
        values |= {"score epochs": scoring.epochs, "score model": scoring.model, "score batch_size": scoring.batch_size}
        values |= {"score runs": comparison.score_runs}
    if method in coresets.METHODS and coresets.METHODS[method].statistic == "tdds":
        options = {"decay": 0.9, **options}
    if method == "ccs":
        options = {"cutoff": 0.0, **options}
    if method.startswith("emp"):
        options = {"beta": 5.0, **options}
    if comparison.finetune_epochs:
        tuned = finetuning(settings, comparison.finetune_epochs)
        values |= {f"tuned {name}": getattr(tuned, name) for name in ("epochs", "lr", "batch_size", "optimizer", "weight_decay")}
    return values | {f"option {name}": value for name, value in options.items()}


def deviations(name: str) -> Iterator[str]:
    """Settings of a file's scale `paper` that are not the paper's, some more than once."""
    title, content = experiment.content(name)
    if content.get("kind") == "joint":
        own, grid = papers.grid_of(title, content, "paper")
        values = {**of_run(grid.settings), **vars(grid), "published": own.get("published")}
        yield from differing(PAPERS[name], values, Key("", 0, "", 0))
        return
    planned = experiment.read(name, "paper")
    for key in planned.runs():
        if key.seed == 0:
            yield from differing(PAPERS[name], of_cell(planned, Cell(key, planned.comparison(*key))), key)


def differing(said: Mapping[str, Said], values: Mapping[str, Any], key: Key) -> Iterator[str]:
    for setting, value in said.items():
        value = value(key) if callable(value) else value
        if value is NOT_SAID or (setting not in values and setting.startswith(("option ", "score ", "tuned "))):
            continue
        found = values.get(setting)
        same = set(value) <= set(found) if setting in ("arms", "panels") else found == value  # more are ours
        if not same:
            yield setting


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings(name: str) -> None:
    declared = experiment.at_scale(*experiment.content(name), "paper").get("differs", {})
    assert dict.fromkeys(deviations(name)) == dict.fromkeys(declared)
