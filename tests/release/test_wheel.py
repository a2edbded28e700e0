"""The wheel in an environment that has nothing but what it declares: the commands that need no cluster run there.

No network: the wheel is built by the hatchling that is installed, and what an extra requires, with all that requires, is
linked from the running environment into an empty one. A declaration that is missing is then an import that fails.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from splitwatt_core import __version__
from support.imports import REPOSITORY

PIP: Final = (sys.executable, "-m", "pip")
PATIENCE_S: Final = 300


def _run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = _run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, REPOSITORY)
    assert built.returncode == 0, built.stderr
    [file] = folder.glob("*.whl")
    return file


class Environment:
    """An empty one with the wheel and what these extras declare."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        venv.create(folder, with_pip=False)
        self.bin = folder / "bin"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        put = _run(*PIP, "--python", self.bin / "python", "install", "--no-index", "--no-deps", "--no-compile", wheel)
        assert put.returncode == 0, put.stderr
        [metadata] = self.site.glob("splitwatt-*.dist-info")
        self.linked: set[str] = set()
        self._bring(Distribution.at(metadata), set(extras))

    def _bring(self, found: Distribution, extras: set[str]) -> None:
        for line in found.requires or []:
            requirement = Requirement(line)
            wanted = any(requirement.marker.evaluate({"extra": e}) for e in extras or {""}) if requirement.marker else True
            name = canonicalize_name(requirement.name)
            if not wanted or name in self.linked:
                continue
            self.linked.add(name)
            needed = distribution(requirement.name)
            self._link(needed)
            self._bring(needed, set(requirement.extras))

    def _link(self, needed: Distribution) -> None:
        tops = {file.parts[0] for file in needed.files or [] if file.parts[0] not in {"..", "__pycache__"}}
        assert tops, f"{needed.name} lists no files"
        for top in tops:
            target, source = self.site / top, Path(str(needed.locate_file(top)))
            if not target.exists() and source.exists():
                target.symlink_to(source)


@pytest.fixture(scope="module")
def planner(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("planner") / "env", wheel, "sim")


def test_the_wheel_says_what_it_is(planner: Environment) -> None:
    assert _run(planner.bin / "splitwatt", "--version").stdout == f"splitwatt {__version__}\n"
    text = next(planner.site.glob("splitwatt-*.dist-info/METADATA")).read_text(encoding="utf-8")
    for line in (
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Author: Splitwatt authors",
        "Requires-Python: >=3.11",
    ):
        assert f"\n{line}\n" in text
    assert list(planner.site.glob("splitwatt-*.dist-info/licenses/LICENSE"))


def test_it_plans(planner: Environment, tmp_path: Path) -> None:
    options = "--watts 45000 --gpus H100 --seconds 20 --step 20 --check 1 --jobs 1".split()  # noqa: SIM905 - as one types it
    done = _run(planner.bin / "splitwatt", "plan", *options, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "plan.yaml").read_text(encoding="utf-8").count("kind: InferenceCluster") == 1


def test_it_simulates(planner: Environment, tmp_path: Path) -> None:
    done = _run(planner.bin / "splitwatt", "simulate", REPOSITORY / "examples/simulate/scenario.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout


def test_a_command_whose_extra_is_not_there_says_which(planner: Environment) -> None:
    assert {"kubernetes", "aiohttp", "cryptography"}.isdisjoint(planner.linked), "else this shows nothing"
    done = _run(planner.bin / "splitwatt", "demo")
    assert done.returncode == 2 and "install the extra that brings it: pip install 'splitwatt[lab]'" in done.stderr


@pytest.mark.parametrize(
    ("extra", "module", "lacks"),
    [
        ("agent", "splitwatt_agent", {"numpy", "kopf"}),
        ("operator", "splitwatt_operator", {"nvidia-ml-py", "matplotlib"}),
        ("engine", "splitwatt_twin.pod", {"numpy", "kubernetes", "grpclib"}),
    ],
)
def test_a_process_starts_on_its_extra_alone(extra: str, module: str, lacks: set[str], wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", wheel, extra)
    assert environment.linked and lacks.isdisjoint(environment.linked)
    done = _run(environment.bin / "python", "-m", module, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
