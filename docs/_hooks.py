"""mkdocs hooks: a reference page for every public module, menu entries for whole folders, links to the repository.

A page of reference is never written by hand, so a module that is renamed needs no change here.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "dataprune"
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")
# What the command line runs (its interface is the options), and parts that users do not import.
INTERNAL = {
    "lab",
    "cli",
    "__main__",
    "checks",
    "distributed",
    "epoch",
    "files",
    "modules",
    "radix",
    "shard_files",
    "trainers",
}


def exports(file: Path) -> bool:
    """Whether a module says in `__all__` what it offers."""
    assigned = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    return any(isinstance(name, ast.Name) and name.id == "__all__" for node in assigned for name in node.targets)


def public_modules(package: Path = PACKAGE, prefix: str = "") -> list[str]:
    """Dotted names below `dataprune`; a package that exports names is one page, any other a page a module."""
    names = []
    for file in sorted(package.iterdir()):
        if file.stem in INTERNAL or file.stem.startswith("_") or file.suffix not in ("", ".py"):
            continue
        if file.is_file():
            names.append(prefix + file.stem)
        elif exports(file / "__init__.py"):
            names.append(prefix + file.name)
        else:
            names += public_modules(file, f"{prefix}{file.name}.")
    return names


def expanded(entries: list[Any]) -> list[Any]:
    """The menu with `folder/*` replaced by the folder's pages: its index first, the rest by name."""
    result = []
    for entry in entries:
        if isinstance(entry, dict):
            result += [{title: expanded(part) if isinstance(part, list) else part} for title, part in entry.items()]
        elif entry == "reference/*":
            result += [f"reference/{name}.md" for name in public_modules()]
        elif entry.endswith("/*"):
            pages = [page.relative_to(DOCS).as_posix() for page in (DOCS / entry[:-2]).glob("*.md")]
            result += sorted(pages, key=lambda page: (Path(page).stem not in ("index", "README"), page))
        else:
            result.append(entry)
    return result


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand the menu."""
    assert config.nav is not None
    config.nav = expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of reference."""
    for name in public_modules():
        text = f"# {name}\n\n::: dataprune.{name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name a file of the repository where a page links to it, and keep a mean and its deviation on one line."""

    def name_file(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = os.path.relpath(DOCS / page.file.src_uri / ".." / target, ROOT)
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which is not in the repository")
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(name_file, markdown).replace(" ± ", "\u00a0±\u00a0")
