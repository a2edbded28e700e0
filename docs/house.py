"""Draws the house from its imports: the pictures and the table of rooms in docs/architecture.md, between its marks.

    make house            # writes them
    python docs/house.py --check   # exits with 1 when the page is not what the code says

A room is a package, or a package within the core, the operator or the simulator. What a room is for is the first sentence
of its `__init__.py`. An arrow means "imports"; one that longer ways already imply is not drawn.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import grimp

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "architecture.md"
OPENED: Final = ("splitwatt_core", "splitwatt_operator", "splitwatt_sim", "splitwatt_papers")
"""Packages whose inner rooms are drawn and listed, too."""

Arrows = Mapping[str, frozenset[str]]


class HouseError(Exception):
    """A sentence that says what to mend in the code or on the page."""


def packages() -> dict[str, Path]:
    """Every package of ours by name, with its folder, in the order of their folders."""
    found = (init.parent for init in sorted(ROOT.glob("*/splitwatt_*/__init__.py")) if init.parent.parent.name != "tests")
    return {folder.name: folder for folder in found}


def inner_rooms(folder: Path) -> list[Path]:
    return sorted(init.parent for init in folder.glob("*/__init__.py"))


def sentence_of(folder: Path) -> str:
    """The first sentence of a room's docstring. Raises HouseError naming a room without one."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    if not first:
        raise HouseError(
            f"{(folder / '__init__.py').relative_to(ROOT)} needs a docstring: one sentence that says what may be in it"
        )
    return first


def reduced(arrows: Arrows) -> Arrows:
    """The same arrows without those that longer ways imply. Raises HouseError on a circle."""
    reach: dict[str, frozenset[str]] = {}

    def below(name: str, way: tuple[str, ...]) -> frozenset[str]:
        if name in way:
            raise HouseError(f"rooms import each other in a circle: {' -> '.join((*way[way.index(name) :], name))}")
        if name not in reach:
            reach[name] = arrows[name].union(*(below(other, (*way, name)) for other in arrows[name]))
        return reach[name]

    for name in arrows:
        below(name, ())
    return {
        name: frozenset(o for o in others if not any(o in reach[via] for via in others if via != o))
        for name, others in arrows.items()
    }


def mermaid(arrows: Arrows, labels: Mapping[str, str]) -> str:
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"  {name}[{labels[name]}]" for name in sorted(arrows)]
    lines += [f"  {name} --> {other}" for name, others in sorted(reduced(arrows).items()) for other in sorted(others)]
    return "\n".join([*lines, "```"])


def arrows_between(graph: grimp.ImportGraph, rooms: Iterable[str]) -> Arrows:
    """Which rooms (dotted names) import from which, as short names."""
    rooms = sorted(rooms)
    modules = {room: {room, *graph.find_descendants(room)} for room in rooms}
    owner = {module: room for room, inside in modules.items() for module in inside}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for room, inside in modules.items():
        for module in inside:
            for imported in graph.find_modules_directly_imported_by(module):
                if imported in owner and owner[imported] != room:
                    found[room].add(owner[imported])
    return {_short(room): frozenset(map(_short, others)) for room, others in found.items()}


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1].removeprefix("splitwatt_")


def drawn() -> dict[str, str]:
    """What stands between each pair of marks of the page."""
    folders = packages()
    graph = grimp.build_graph(*folders, cache_dir=None)
    outer = arrows_between(graph, folders)
    parts = {"house": mermaid(outer, {_short(n): _short(n) for n in folders})}
    rows = ["| folder | what may be in it |", "|---|---|"]
    for name, folder in folders.items():
        rows.append(f"| `{folder.relative_to(ROOT)}` | {sentence_of(folder)} |")
        if name in OPENED:
            rooms = inner_rooms(folder)
            rows += [f"| `{room.relative_to(ROOT)}` | {sentence_of(room)} |" for room in rooms]
            floor = [m for m in graph.find_children(name) if not (folder / _short(m)).is_dir() and _short(m) != "__main__"]
            inner = arrows_between(graph, [*(f"{name}.{room.name}" for room in rooms), *floor])
            parts[_short(name)] = mermaid(inner, {room: room for room in inner})
    parts["rooms"] = "\n".join(rows)
    return parts


def page_with(text: str, parts: Mapping[str, str]) -> str:
    """The page with every part set between its marks. Raises HouseError naming marks that are missing."""
    for name, part in parts.items():
        begin, end = f"<!-- house:{name} -->\n", f"<!-- /house:{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise HouseError(
                f"docs/architecture.md lacks the marks {begin.strip()} … {end}: put them where the part should stand"
            )
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    before = PAGE.read_text(encoding="utf-8")
    try:
        after = page_with(before, drawn())
    except HouseError as error:
        sys.stderr.write(f"make house: {error}\n")
        return 1
    if "--check" in arguments:
        if before != after:
            sys.stderr.write("docs/architecture.md does not show the house as it is: run make house and commit the page\n")
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
