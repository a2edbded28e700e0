"""Where the control plane's programs come from, and what a person is told when they come from nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from splitwatt_lab import toolbuild, toolchain
from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import BuildStep, Console, ensure_tools
from splitwatt_lab.toolchain import STAGES_FOLDER, TOOLS, Tool, stage_names
from support.some import some

NAMES = [tool.name for tool in TOOLS]


def script(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def programs(folder: Path, names: list[str], *, stages: bool = True) -> Path:
    for name in names:
        script(folder / name)
    if stages:
        (folder / STAGES_FOLDER).mkdir(parents=True, exist_ok=True)
        for stage in stage_names():
            (folder / STAGES_FOLDER / stage).write_text("kind: Stage\n")
    return folder


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache, an empty PATH and no KUBEBUILDER_ASSETS; returns the folder that is on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(toolchain.ASSETS_VARIABLE, raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_kubebuilder_assets_is_used_whole(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = programs(tmp_path / "assets", NAMES)
    monkeypatch.setenv(toolchain.ASSETS_VARIABLE, str(assets))
    tools = ensure_tools()
    assert {tools[name].parent for name in NAMES} == {assets}
    assert [stage.name for stage in tools.stages] == stage_names()


def test_kubebuilder_assets_wins_over_the_cache(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(toolchain.tools_directory(), NAMES)
    assets = programs(tmp_path / "assets", NAMES)
    monkeypatch.setenv(toolchain.ASSETS_VARIABLE, str(assets))
    assert ensure_tools()["etcd"] == assets / "etcd"


def test_what_is_missing_in_kubebuilder_assets_is_one_sentence(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(toolchain.tools_directory(), NAMES)
    assets = programs(tmp_path / "assets", [name for name in NAMES if name not in ("helm", "kwok")])
    monkeypatch.setenv(toolchain.ASSETS_VARIABLE, str(assets))
    with pytest.raises(LabError) as missing:
        ensure_tools()
    assert str(missing.value) == (
        f"KUBEBUILDER_ASSETS is set to {assets} but kwok and helm are not there; put them there or unset KUBEBUILDER_ASSETS"
    )


def test_a_file_that_cannot_run_is_missing(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = programs(tmp_path / "assets", NAMES)
    (assets / "etcd").chmod(0o644)
    monkeypatch.setenv(toolchain.ASSETS_VARIABLE, str(assets))
    with pytest.raises(LabError, match="but etcd is not there"):
        ensure_tools()


def test_the_cache_wins_over_path(bare: Path) -> None:
    programs(toolchain.tools_directory(), NAMES)
    for tool in TOOLS:
        script(bare / tool.name, f"echo {tool.version}")
    assert {path.parent for path in ensure_tools().paths.values()} == {toolchain.tools_directory()}


def test_path_is_used_only_at_the_pinned_minor_version(bare: Path) -> None:
    kubectl = next(tool for tool in TOOLS if tool.name == "kubectl")
    major, minor, _ = kubectl.version.split(".")
    script(bare / "kubectl", f'[ "$*" = "version --client" ] && echo "Client Version: {major}.{minor}.99"')
    assert toolchain.found(kubectl) == bare / "kubectl"
    script(bare / "kubectl", "echo Client Version: v1.20.2")
    assert toolchain.found(kubectl) is None
    script(bare / "kubectl", f"echo {kubectl.version}; exit 1")
    assert toolchain.found(kubectl) is None, "a program that fails to say its version is not trusted"


def test_without_go_one_sentence_says_what_to_install(bare: Path) -> None:
    programs(toolchain.tools_directory(), [name for name in NAMES if name not in ("helm", "etcd")])
    with pytest.raises(LabError) as missing:
        ensure_tools()
    assert str(missing.value) == (
        "etcd, helm must be built but there is no `go` on PATH; "
        "install Go 1.26 or newer, or set KUBEBUILDER_ASSETS to a folder with the programs"
    )


def test_the_command_prints_that_sentence_and_fails(bare: Path) -> None:
    command = [sys.executable, "-m", "splitwatt_lab.toolbuild"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "install Go" in result.stderr


FAKE_GO = """
    case "$1" in
    build)
      [ "$CGO_ENABLED" = 0 ] || exit 7
      [ -e "{folder}/fail" ] && {{ echo "pkg/x.go:1:1: syntax error"; exit 1; }}
      while [ "$1" != -o ]; do echo "$1" >> "{folder}/arguments"; shift; done
      echo "$3" >> "{folder}/packages"
      /bin/cp "{folder}/program" "$2"
      ;;
    mod) echo '{{"Dir": "{folder}/module"}}' ;;
    esac
"""


@pytest.fixture
def fake_go(bare: Path, tmp_path: Path) -> Path:
    """A `go` that notes what it is asked and hands out a ready program: what is tested here is who calls it, and when."""
    folder = tmp_path / "go"
    script(folder / "program")
    script(bare / "go", textwrap.dedent(FAKE_GO.format(folder=folder)))
    for stage in toolchain.STAGE_FILES:
        path = folder / "module" / "kustomize" / "stage" / stage
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kind: Stage\n")
    return folder


def test_missing_programs_are_built_once_with_progress(fake_go: Path) -> None:
    steps: list[BuildStep] = []
    tools = ensure_tools(steps.append)
    assert (fake_go / "packages").read_text().split() == [tool.package for tool in TOOLS]
    arguments = (fake_go / "arguments").read_text()
    assert "-trimpath" in arguments and "-X k8s.io/component-base/version.gitVersion=v1.37.2" in arguments
    assert all(os.access(path, os.X_OK) for path in some(tools.paths.values()))
    assert [stage.name for stage in tools.stages] == stage_names()
    assert [(s.tool, s.number, s.total) for s in steps if s.done] == [(n, i, len(NAMES)) for i, n in enumerate(NAMES, 1)]

    ensure_tools(steps.append)
    assert len((fake_go / "packages").read_text().split()) == len(TOOLS), "the second time nothing is built"


def test_an_interrupted_build_leaves_no_half_program_and_goes_on_later(fake_go: Path) -> None:
    (fake_go / "fail").touch()
    with pytest.raises(LabError, match=r"building etcd v3\.\d+\.\d+ failed: pkg/x.go:1:1: syntax error"):
        ensure_tools()
    left = [path.name for path in toolchain.tools_directory().iterdir()]
    assert left == [".lock"]
    (fake_go / "fail").unlink()
    (toolchain.tools_directory() / ".build-killed").mkdir()
    assert ensure_tools()["etcd"].exists()
    assert not list(toolchain.tools_directory().glob(".build-*")), "what a killed build left is tidied up"


def test_two_builds_at_once_build_each_program_once(fake_go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbuild, "_TICK_S", 0.05)
    threads = [threading.Thread(target=ensure_tools) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted((fake_go / "packages").read_text().split()) == sorted(tool.package for tool in TOOLS)


def test_the_cache_is_keyed_by_every_pin_and_flag(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = toolchain.pins_hash()
    assert before == toolchain.pins_hash()
    monkeypatch.setattr(toolchain, "BUILD_FLAGS", ("-trimpath",))
    assert toolchain.pins_hash() != before
    monkeypatch.undo()
    copy = tmp_path / "pins"
    for file in toolchain.PINS.glob("*/go.*"):
        (copy / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / file.parent.name / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(toolchain, "PINS", copy)
    assert toolchain.pins_hash() == before
    with (copy / "helm" / "go.sum").open("a") as sums:
        sums.write("example.org/x v1.0.0 h1:x\n")
    assert toolchain.pins_hash() != before


def test_a_module_without_a_pin_is_named() -> None:
    with pytest.raises(LabError, match=r"go\.mod does not require example\.org/x"):
        _ = Tool("x", "etcd", "example.org/x", "example.org/x").version


@pytest.mark.parametrize(
    ("said", "minor"),
    [("Kubernetes v1.37.2", "1.37"), ("etcd Version: 3.7.3\nGit SHA: x", "3.7"), ("v4.3+g1", "4.3"), ("none", "")],
)
def test_versions_are_read_as_programs_say_them(said: str, minor: str) -> None:
    assert toolchain.minor(said) == minor


def test_progress_in_a_log_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for elapsed_s in range(70):
        console(BuildStep("kube-apiserver", 2, 7, float(elapsed_s)))
    console(BuildStep("kube-apiserver", 2, 7, 70.0, done=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[2/7] building kube-apiserver (0 s)",
        "[2/7] building kube-apiserver (30 s)",
        "[2/7] building kube-apiserver (60 s)",
        "[2/7] built kube-apiserver (70 s)",
    ]
