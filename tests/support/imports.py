"""What the project's modules import, read from their source: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ROOTS: Final = ("core", "crds", "operator", "agents", "sim", "cli", "papers", "panels", "shell", "train", "memory")
"""Folders that hold packages. One that is not there is passed over."""


@cache
def modules() -> dict[str, Path]:
    """Every module of every package, by its dotted name; a package is its `__init__`."""
    found: dict[str, Path] = {}
    for root in ROOTS:
        for file in sorted((REPOSITORY / root).glob("splitwatt_*/**/*.py")):
            parts = file.relative_to(REPOSITORY / root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def packages() -> dict[str, Path]:
    """Folder of each top-level package."""
    return {name: file.parent for name, file in modules().items() if "." not in name}


def within(package: str) -> list[str]:
    """The package's modules, itself among them."""
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports when it runs, at its top or inside a function; what only types need is left out."""
    names: set[str] = set()
    for node in _run(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                continue  # a neighbour in the tests; packages have none
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _run(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _run(child)


def reached(starts: Iterable[str]) -> set[str]:
    """These modules and all of ours that they lead to."""
    seen: set[str] = set()
    ahead = list(starts)
    while ahead:
        module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imported(modules()[module]):
            parts = name.split(".")
            ahead += [parent for i in range(1, len(parts) + 1) if (parent := ".".join(parts[:i])) in modules()]
    return seen


def outside(starts: Iterable[str]) -> dict[str, str]:
    """What they and all of ours that they lead to import of others: top-level name -> a module that imports it."""
    tops = {name.split(".")[0]: module for module in reached(starts) for name in imported(modules()[module])}
    return {top: module for top, module in tops.items() if not top.startswith("splitwatt_")}
