"""The tour names files and functions as they are, so that nobody is sent to a door that has been walled up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
MAX_LINES = 150
ROOMS = {
    "core": "core/splitwatt_core",
    "operator": "operator/splitwatt_operator",
    "agent": "agents/splitwatt_agent",
    "api": "crds/splitwatt_api",
    "sim": "sim/splitwatt_sim",
}
STOP = re.compile(r"`([a-z]+)/([a-z_/]+\.py): ([A-Za-z_.]+)`")


def names_in(path: Path) -> set[str]:
    """Functions, classes and their methods, as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (m.name for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{name}" for name in methods)
    return found


def test_every_stop_of_the_tour_is_there() -> None:
    stops = STOP.findall(TOUR)
    assert len(stops) > 50
    missing = [
        f"{room}/{file}: {name}"
        for room, file, name in stops
        if not (ROOT / ROOMS[room] / file).is_file() or name not in names_in(ROOT / ROOMS[room] / file)
    ]
    assert missing == []


def test_the_tour_has_five_walks_and_is_short() -> None:
    assert len(re.findall(r"^## \d\. ", TOUR, re.MULTILINE)) == 5
    assert len(TOUR.splitlines()) < MAX_LINES
