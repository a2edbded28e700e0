"""The one Containerfile: each image copies what it runs and no more, and what others made is laid in first. Read, not built."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from splitwatt_core import __version__
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, RoleSpec
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_lab.images.catalogue import CONTAINERFILE, IMAGES
from support.imports import REPOSITORY, modules, packages, reached, within

RUNS: Final = {
    "agent": ["splitwatt_agent"],
    "operator": ["splitwatt_operator"],
    "sim": ["splitwatt_cli", "splitwatt_sim"],
    "engine": ["splitwatt_twin.pod"],
}
OTHERS: Final = ("router",)
"""Images in which nothing of ours runs: none of our packages is copied."""
TEXT: Final = (REPOSITORY / CONTAINERFILE).read_text(encoding="utf-8")
PROJECT: Final[dict[str, Any]] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def stage(name: str) -> str:
    """Its lines."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def copied(text: str) -> list[str]:
    """Paths in the repository; what comes from another stage is none."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("COPY ") and "--from=" not in line]
    return [source for words in lines for source in words[:-1]]


def ours(starts: list[str]) -> set[str]:
    """Top-level packages that these modules lead to."""
    return {module.split(".")[0] for module in reached(starts)}


def test_every_image_is_looked_at() -> None:
    assert sorted([*RUNS, *OTHERS]) == sorted(image.name for image in IMAGES)


@pytest.mark.parametrize("image", RUNS)
def test_an_image_copies_what_it_runs(image: str) -> None:
    folders = [path for path in copied(stage("package") + stage(f"{image}-package")) if "/" in path]
    assert {Path(path).name for path in folders} == ours([m for start in RUNS[image] for m in within(start)])
    assert {REPOSITORY / path for path in folders} <= set(packages().values())


@pytest.mark.parametrize("image", [*RUNS, *OTHERS])
def test_an_edit_of_a_source_installs_nothing_anew(image: str) -> None:
    """The layer of what others made reads the pins alone, and takes all of them from constraints.txt."""
    assert copied(stage("requirements")) == ["pyproject.toml", "images/requirements.py"]
    assert copied(stage("tools")) == ["constraints.txt"]
    assert copied(stage(f"{image}-libraries")) == ["images/trim.py"]
    assert f"COPY --from=requirements /requirements/{image}.txt ./" in stage(f"{image}-libraries")
    installs = re.findall(r'^RUN \["/tools/bin/pip", "install", (.*)\]$', TEXT, re.MULTILINE)
    assert len(installs) == 1 + 2 * len(RUNS) + len(OTHERS)
    assert all('"-c", "constraints.txt"' in line or '"--no-deps", "--no-build-isolation"' in line for line in installs)
    if image in RUNS:
        assert stage(image).index(f"{image}-libraries") < stage(image).index(f"{image}-package")
    else:
        assert "-package" not in stage(image)


def test_requirements_are_those_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((REPOSITORY / "pyproject.toml").read_bytes())
    script = REPOSITORY / "images" / "requirements.py"
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=60)
    extras = PROJECT["project"]["optional-dependencies"]
    for image in [*RUNS, *OTHERS]:
        lines = (tmp_path / f"{image}.txt").read_text(encoding="utf-8").splitlines()
        assert lines == extras[image]
        assert "splitwatt" not in {Requirement(line).name for line in lines}, "pip would look for our own package elsewhere"
    assert (tmp_path / "build.txt").read_text(encoding="utf-8").split() == PROJECT["build-system"]["requires"]


@pytest.mark.parametrize("image", ["agent", "operator", "engine"])
def test_an_entry_point_exists(image: str) -> None:
    run = re.search(r'^ENTRYPOINT \["python", "-m", "([\w.]+)"\]$', stage(image), re.MULTILINE)
    assert run is not None and f"{run[1]}.__main__" in modules()


def test_the_planner_is_started_by_a_program_of_the_image() -> None:
    """pip's own names the Python of the build stage, which is not there any more."""
    assert "COPY images/splitwatt /usr/local/bin/splitwatt" in stage("sim") and 'ENTRYPOINT ["splitwatt"]' in stage("sim")
    said = subprocess.run(
        [sys.executable, REPOSITORY / "images" / "splitwatt", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == f"splitwatt {__version__}\n"
    assert (REPOSITORY / "images" / "splitwatt").stat().st_mode & 0o111 == 0o111


def test_the_routers_image_has_the_program_that_is_rendered() -> None:
    """Its name stands instead of the image's own entry point, so that the publisher's image and ours may be exchanged."""
    pool, engine = RoleSpec(replicas=1, gpus_per_replica=1), EngineSpec(EngineType.EMULATED)
    cluster = ClusterSpec(namespace="n", name="c", uid="u", generation=1, model="m", engine=engine, prefill=pool, decode=pool)
    (deployment,) = [
        each
        for each in render(cluster, RenderContext())
        if each["metadata"]["name"] == "c-router" and each["kind"] == "Deployment"
    ]
    (program,) = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"COPY images/{program} /usr/local/bin/{program}\n" in stage("router") and f'ENTRYPOINT ["{program}"]' in stage(
        "router"
    )
    said = subprocess.run(
        [sys.executable, REPOSITORY / "images" / program, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.startswith(f"usage: {program} ")
    assert (REPOSITORY / "images" / program).stat().st_mode & 0o111 == 0o111


def test_all_but_the_agent_run_as_nobody() -> None:
    users = {image: re.findall(r"^USER (\S+)$", stage(image), re.MULTILINE) for image in [*RUNS, *OTHERS]}
    assert users == {image: ["0:0"] if image == "agent" else ["65532:65532"] for image in users}


def test_a_build_is_sent_what_it_copies_and_nothing_else() -> None:
    """Not .git, not .venv, not its own output: the first line leaves everything out, and each exception is for a line here."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    sources = copied(TEXT)
    assert len(sources) > 20
    tops = {path.split("/")[0] for path in sources}
    assert not [top for top in tops if not any(fnmatch.fnmatch(top, pattern.rstrip("*") + "*") for pattern in kept)]
    assert not [pattern for pattern in kept if not any(fnmatch.fnmatch(top, pattern) for top in tops)]
