"""The table of the core's modules names each of them once, in its room, so that a reader who looks one up finds it."""

from __future__ import annotations

import re

from support.stops import REPOSITORY

CORE = REPOSITORY / "core" / "splitwatt_core"
TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
GROUND_FLOOR = "ground floor"


def test_each_module_of_the_core_answers_one_question() -> None:
    table = TEXT.split("## What the core's modules do")[1].split("\n## ")[0]
    told: list[str] = []
    room = ""
    for line in table.splitlines():
        if re.match(r"\| (`[a-z/]+` |ground floor )?\| `", line):
            first, modules = (cell.strip(" `") for cell in line.split("|")[1:3])
            room = first or room
            names = [name for name in re.findall(r"[a-z_.]+", modules) if not name.endswith(".json")]
            told.extend(name if room == GROUND_FLOOR else f"{room}/{name}" for name in names)
    there = [path.relative_to(CORE).with_suffix("").as_posix() for path in CORE.rglob("*.py") if path.stem != "__init__"]
    assert len(there) > 40
    assert sorted(told) == sorted(there)
