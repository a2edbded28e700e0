"""`make images` without an engine: what it says, and whom it would ask. With one: make images ARGS=--check."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from splitwatt_lab.errors import LabError
from splitwatt_lab.images import bases, engines
from splitwatt_lab.images.command import main, parse

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts programs on an empty PATH: `exit_code` is theirs, `says` their words."""
    monkeypatch.setenv("PATH", str(tmp_path))
    shell = shutil.which("sh", path="/bin:/usr/bin")

    def put(*names: str, says: str = "", exit_code: int = 0) -> None:
        for name in names:
            (tmp_path / name).write_text(f"#!{shell}\necho '{says}'\nexit {exit_code}\n")
            (tmp_path / name).chmod(0o755)

    return put


def test_a_docker_without_its_daemon_is_passed_over(install: Install) -> None:
    install("podman", "buildah")
    install("docker", says="null", exit_code=1)
    assert engines.find("").name == "podman"
    install("docker", says='{"Version": "20.10.24"}')
    assert engines.find("").name == "docker"
    assert engines.find("buildah").name == "buildah"


def test_without_an_engine_a_sentence_says_what_to_install(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert capsys.readouterr().err == "no container engine is here: install podman, buildah, or docker with its daemon\n"
    for wanted, says in (("kaniko", "is none of docker, podman, buildah"), ("podman", "is not on PATH")):
        with pytest.raises(LabError, match=says):
            engines.find(wanted)


def test_containers_of_buildahs_images_are_podmans_to_start(install: Install) -> None:
    install("buildah")
    with pytest.raises(LabError, match="install podman"):
        engines.find("buildah").runner()
    install("podman")
    assert engines.find("buildah").runner().name == "podman"


def test_a_base_that_cannot_be_pulled_names_the_ways_out(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("podman", says="connection refused", exit_code=125)
    assert main(["--base", "registry.example/python:3.11"]) == 1
    said = capsys.readouterr().err
    assert "pulling registry.example/python:3.11 failed" in said and "connection refused" in said
    assert "make images ARGS=--own-base" in said and "BASE= and BUILD_BASE=" in said


def test_an_own_base_wants_mmdebstrap(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("podman")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["--own-base"]) == 1
    assert "apt-get install mmdebstrap" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_what_contradicts_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--own-base", "--base", "a"], ["--fresh-base", "--build-base", "a"], ["--only", "vllm"]):
        with pytest.raises(SystemExit) as end:
            parse(arguments)
        assert end.value.code == 2
    assert "give one of the two" in capsys.readouterr().err


def test_variables_of_make_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"ENGINE": "buildah", "REGISTRY": "registry.example/team", "BASE": "a", "IMAGE_ARGS": "--volume '/a b:/c' --squash"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    given = parse([])
    assert (given.engine, given.registry, given.base, given.build_base) == ("buildah", "registry.example/team", "a", "")
    assert given.image_args == ["--volume", "/a b:/c", "--squash"]
    assert parse(["--image-args=", "--registry=r"]).image_args == []


def test_a_base_of_other_packages_is_another_base() -> None:
    runtime = bases.RUNTIME
    other = bases.DebianBase(runtime.name, runtime.variant, [*runtime.packages, "curl"])
    assert other.key != runtime.key and other.image != runtime.image and other.tar != runtime.tar
    assert bases.DebianBase(runtime.name, runtime.variant, list(reversed(runtime.packages))).key == runtime.key
