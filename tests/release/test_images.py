"""Each image copies what it runs, and no more: the build stages are read, and what they copy is followed by imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.imports import REPOSITORY, modules, packages, reached, within

RUNS = {
    "agent": ["splitwatt_agent"],
    "operator": ["splitwatt_operator"],
    "sim": ["splitwatt_cli", "splitwatt_sim"],
    "engine": ["splitwatt_twin.pod"],
}


def _ours(starts: list[str]) -> set[str]:
    """Top-level packages that these modules lead to."""
    return {module.split(".")[0] for module in reached(starts)}


@pytest.mark.parametrize("image", RUNS)
def test_an_image_copies_what_it_runs(image: str) -> None:
    text = (REPOSITORY / "images" / f"Containerfile.{image}").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (\S+/\S+) \1$", text, re.MULTILINE)
    assert copied and all((REPOSITORY / path).is_dir() for path in copied)
    assert {Path(path).name for path in copied} == _ours([m for start in RUNS[image] for m in within(start)])
    assert {REPOSITORY / path for path in copied} <= set(packages().values())


def test_every_image_is_looked_at() -> None:
    assert sorted(RUNS) == sorted(file.suffix[1:] for file in (REPOSITORY / "images").glob("Containerfile.*"))


@pytest.mark.parametrize("image", ["agent", "operator", "engine"])
def test_an_entry_point_exists(image: str) -> None:
    text = (REPOSITORY / "images" / f"Containerfile.{image}").read_text(encoding="utf-8")
    run = re.search(r'^ENTRYPOINT \["python", "-m", "([\w.]+)"\]$', text, re.MULTILINE)
    assert run is not None and f"{run[1]}.__main__" in modules()
