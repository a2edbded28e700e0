"""The papers are a distribution of their own, of splitwatt's version, and no image is sent them."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_both_are_of_one_version_and_the_extra_brings_the_papers() -> None:
    papers = project(ROOT / "papers")["project"]
    assert papers["version"] == version("splitwatt") == version("splitwatt-papers")
    assert papers["dependencies"] == [f"splitwatt[sim]=={papers['version']}"]
    assert project(ROOT)["project"]["optional-dependencies"]["papers"] == [papers["name"]]


def test_the_command_comes_with_the_papers_alone() -> None:
    (command,) = entry_points(group="splitwatt.commands", name="papers")
    assert command.dist is not None and command.dist.name == "splitwatt-papers"
    assert "papers" not in project(ROOT)["project"]["entry-points"]["splitwatt.commands"]


def test_neither_wheel_nor_image_has_the_papers() -> None:
    build = project(ROOT)["tool"]["hatch"]["build"]
    folders = [*build["targets"]["wheel"]["packages"], *build["dev-mode-dirs"]]
    assert len(folders) > 10 and not [folder for folder in folders if "papers" in folder]
    lines = [line.split() for line in (ROOT / "images" / "Containerfile").read_text(encoding="utf-8").splitlines()]
    here = [words[1:-1] for words in lines if words[:1] == ["COPY"] and not words[1].startswith("--from=")]
    sources = {source.strip("./") for words in here for source in words}
    assert "core/splitwatt_core" in sources, "else nothing is looked at here"
    assert "" not in sources and not [source for source in sources if source.startswith("papers")], "nor the whole tree"
