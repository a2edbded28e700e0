"""The places in the code that a page of docs/ names, as `room/file.py: Name` or `room/file.py: Class.member`."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = {
    "core": "core/splitwatt_core",
    "operator": "operator/splitwatt_operator",
    "agent": "agents/splitwatt_agent",
    "api": "crds/splitwatt_api",
    "client": "crds/splitwatt_client",
    "sim": "sim/splitwatt_sim",
    "lab": "sim/splitwatt_lab",
    "truth": "sim/splitwatt_truth",
    "twin": "sim/splitwatt_twin",
    "nvml_twin": "sim/splitwatt_nvml_twin",
}
STOP: Final = re.compile(r"`([a-z_]+)/([a-z_/]+\.py)(?:: ([A-Za-z_.]+))?`")
"""Room, file, and the name in it or ""."""


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, constants, classes, and these with their members as `Class.member`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found.update(_named(node))
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{name}" for member in node.body for name in _named(member))
    return frozenset(found)


def _named(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def stops_of(page: str) -> list[tuple[str, str, str]]:
    """All that the text names, in its order."""
    return STOP.findall(page)


def missing(page: str) -> list[str]:
    """Those of them that are not there."""
    return [
        f"{room}/{file}: {name}"
        for room, file, name in stops_of(page)
        if room not in ROOMS
        or not (path := REPOSITORY / ROOMS[room] / file).is_file()
        or (name != "" and name not in names_in(path))
    ]
