"""No file of ours is longer than a reader can hold in mind (CONTRIBUTING.md)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "crds", "operator", "agents", "shell", "cli", "sim", "papers", "panels", "train", "memory", "docs", "tests")
MAX_LINES = 450


def test_no_file_is_longer_than_450_lines() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
