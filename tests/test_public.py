"""What `import dataprune` brings."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dataprune

HEAVY = [
    "torchvision",
    "pandas",
    "sklearn",
    "scipy",
    "transformers",
    "lightning",
    "datasets",
    "matplotlib",
    "typer",
    "rich",
]
RECIPES = [
    "full",
    "static_random",
    "random",
    "rs2",
    "elfl",
    "loss",
    "epsilon_greedy",
    "ucb",
    "infobatch",
    "emp",
    "emp_reverse",
    "memory",
]


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_public_names_resolve() -> None:
    assert len(set(dataprune.__all__)) == len(dataprune.__all__)
    for name in dataprune.__all__:
        assert getattr(dataprune, name) is not None
    assert set(dataprune.__all__) <= set(dir(dataprune))


def test_the_names_of_the_design_are_public() -> None:
    names = [
        "Selection",
        "ScoreBook",
        "Pruner",
        "PruneSampler",
        "Indexed",
        "Catalog",
        "prune_stream",
        "prune_loader",
        "METHODS",
        *RECIPES,
    ]
    assert set(names) <= set(dataprune.__all__)
    for module in ("criteria", "layerwise", "policies", "schedules", "learning_rate", "methods"):
        assert getattr(dataprune, module).__name__ == f"dataprune.{module}"


def test_every_method_is_public_under_its_name() -> None:
    assert set(RECIPES) <= set(dataprune.METHODS)
    for name, recipe in dataprune.METHODS.items():
        assert getattr(dataprune, name) is recipe
        assert name in dataprune.__all__


def test_every_method_names_its_source() -> None:
    for name, recipe in dataprune.METHODS.items():
        assert "Source:" in (recipe.__doc__ or ""), name


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="epm"):
        _ = dataprune.epm


def test_import_brings_torch_and_nothing_heavier() -> None:
    code = f"""
import sys
import dataprune
for name in dataprune.__all__:
    getattr(dataprune, name)
print([name for name in {HEAVY!r} if name in sys.modules], "torch" in sys.modules)
"""
    assert fresh(code).strip() == "[] True"


def test_the_package_alone_does_not_wait_for_torch() -> None:
    assert fresh("import sys, dataprune; print('torch' in sys.modules, dataprune.__version__)").startswith("False 0.")
