"""Which part of the package may import which: the library never what the command line runs, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dataprune

ROOT = Path(dataprune.__file__).parent
# each may import those before it
LAB = ["data", "models", "training", "report", "sweeps", "finetuning"]
LIBRARY = ["core", "online", "prompts", "finetuning", "dynamics", "coresets", "contrastive", "network", "integrations"]


def imports() -> Iterator[tuple[str, str]]:
    """(module, module it imports), both dotted and without `dataprune.`, wherever the import stands."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[:-1]
        module = ".".join(package if parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                target = [*base, *(node.module or "").split(".")] if node.module else [*base]
                for name in node.names:
                    yield module, ".".join([*target, name.name])


def part(module: str) -> str:
    """A package of the library or of the lab; single modules are the core, and `contrib` has further methods."""
    first, *rest = module.split(".")
    if first == "contrib":
        return "coresets" if rest[:1] == ["coresets"] else "core"
    if first == "lab":
        return f"lab.{rest[0]}" if rest else "lab"
    return first if (ROOT / first).is_dir() else "core"


def test_the_library_never_imports_what_the_command_line_runs() -> None:
    for module, target in imports():
        if part(module).startswith("lab"):
            assert part(target) != "cli", f"{module} imports {target}"
        elif part(module) != "cli" and module != "__main__":
            assert part(target) != "cli" and not part(target).startswith("lab"), f"{module} imports {target}"


def test_packages_import_those_below_them() -> None:
    for order in (LIBRARY, [f"lab.{name}" for name in LAB]):
        for module, target in imports():
            if module and part(module) in order and part(target) in order:
                assert order.index(part(target)) <= order.index(part(module)), f"{module} imports {target}"
