"""The table of the core's modules names each of them once, so that a reader who looks one up finds it, and nothing that moved."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "splitwatt_core"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_each_module_of_the_core_answers_one_question() -> None:
    table = TEXT.split("## What the core's modules do")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = [name for cell in first_cells for name in re.findall(r"`([a-z_.]+)`", cell) if not name.endswith(".json")]
    paths = [path.relative_to(CORE).with_suffix("") for path in CORE.rglob("*.py") if path.stem != "__init__"]
    namesakes = Counter(path.stem for path in paths)
    there = [path.stem if namesakes[path.stem] == 1 else ".".join(path.parts) for path in paths]
    assert len(there) > 40
    assert sorted(told) == sorted(there)
