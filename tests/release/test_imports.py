"""Each extra declares what its package imports, and nothing that it does not. Read from the source, by `ast`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.imports import REPOSITORY, imported, outside, packages, within
from support.some import some

PROJECT: Final[dict[str, Any]] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
REAL_VLLM: Final = REPOSITORY / "e2e" / "vllm"
EXTRAS: Final[dict[str, list[str]]] = PROJECT["project"]["optional-dependencies"]
STARTS: Final = {
    "agent": ["splitwatt_agent"],
    "operator": ["splitwatt_operator"],
    "cli": ["splitwatt_cli"],
    "sim": ["splitwatt_sim"],
    "memory": ["splitwatt_memory"],
    "engine": ["splitwatt_twin.pod"],
    "twin": ["splitwatt_twin", "splitwatt_nvml_twin"],
    "lab": ["splitwatt_lab"],
    "papers": ["splitwatt_papers"],
    "panels": ["splitwatt_panels"],
    "train": ["splitwatt_prune"],
}
NOT_IMPORTED: Final = {
    "nvidia-nvml-dev": "brings nvml.h, which the C compiler reads",
}
BESIDE: Final = {"torch": ["torch"], "sklearn": ["scikit-learn"]}
"""What `make test-train` brings and `make setup` does not: top-level name -> distributions."""


def _declared(extra: str, *, whole: bool) -> set[str]:
    """Distributions an extra names; with `whole` also those of the extras that it names."""
    found: set[str] = set()
    for line in [*PROJECT["project"]["dependencies"], *EXTRAS[extra]]:
        requirement = Requirement(line)
        if requirement.name == "splitwatt-papers":
            found |= _declared("sim", whole=True) if whole else set()  # its own pyproject.toml says so
        elif requirement.name != "splitwatt":
            found.add(canonicalize_name(requirement.name))
        elif whole:
            found |= {name for other in requirement.extras for name in _declared(other, whole=True)}
    return found


@cache
def _installed() -> Mapping[str, list[str]]:
    return {**packages_distributions(), **BESIDE}


def _distributions(top: str) -> set[str]:
    if top in sys.stdlib_module_names:
        return set()
    known = _installed()
    assert top in known, f"nothing that is installed brings `{top}`: run make setup"
    return {canonicalize_name(name) for name in known[top]}


@pytest.mark.parametrize("extra", STARTS)
def test_an_extra_declares_what_its_package_imports(extra: str) -> None:
    starts = [module for package in STARTS[extra] for module in within(package)]
    assert starts
    declared = _declared(extra, whole=True)
    used: set[str] = set()
    for top, module in some(sorted(outside(starts).items())):
        names = _distributions(top)
        assert not names or names & declared, f"{module} imports {top}: name one of {sorted(names)} in the extra `{extra}`"
        used |= names
    idle = _declared(extra, whole=False) - used - NOT_IMPORTED.keys()
    assert not idle, f"nothing imports {sorted(idle)}: take it out of the extra `{extra}`"


def test_what_runs_beside_real_vllm_imports_what_is_installed_there() -> None:
    there = {line.split("==")[0] for line in (REAL_VLLM / "requirements.txt").read_text().splitlines()}
    tops = {name.split(".")[0] for file in REAL_VLLM.glob("*.py") for name in imported(file)} - set(sys.stdlib_module_names)
    assert "torch" in tops and tops <= there


def test_development_brings_what_the_tests_import() -> None:
    declared = _declared("dev", whole=True)
    checked = 0
    folders = [REPOSITORY / name for name in PROJECT["tool"]["pytest"]["ini_options"]["pythonpath"]]
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        if file.parent == REAL_VLLM:
            continue  # it runs where its own requirements are installed
        for top in {name.split(".")[0] for name in imported(file)}:
            beside = (file.parent / f"{top}.py").exists() or any((folder / top).is_dir() for folder in folders)
            if top.startswith("splitwatt_") or beside:
                continue
            names = _distributions(top)
            assert top in BESIDE or not names or names & declared, (
                f"{file.name} imports {top}: name one of {sorted(names)} in the extra `dev`"
            )
            checked += bool(names)
    assert checked > 100


def test_every_package_is_typed_and_travels_in_a_wheel() -> None:
    wheels = [REPOSITORY / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    apart = {"splitwatt_papers"}  # a distribution of its own
    assert sorted(folder.name for folder in wheels) == sorted(packages().keys() - apart)
    assert all(folder.is_dir() for folder in wheels)
    assert [name for name, folder in packages().items() if not (folder / "py.typed").exists()] == []


def test_extras_agree_on_versions() -> None:
    """Else no environment could hold two of them; and constraints.txt says the same."""
    pins = {line for extra in EXTRAS.values() for line in extra if "==" in line}
    names = [Requirement(line).name for line in pins]
    assert len(names) == len(set(names)), sorted(names)
    beside = (REPOSITORY / "train" / "requirements.txt").read_text(encoding="utf-8")
    lines = [*(REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split(), *beside.split()]
    tested = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    for line in some(pins - set(EXTRAS["aic"])):
        requirement = Requirement(line)
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), f"constraints.txt differs: {line}"
