"""Before anything is installed each command says one clear sentence: asked of a real API server that knows no Splitwatt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_cli import access
from splitwatt_lab.controlplane import ControlPlane
from support.commands import command, parser_of

SENTENCE = "Splitwatt is not installed on this cluster, for none of its CRDs is there; begin with splitwatt doctor"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its kubeconfig."""
    with ControlPlane(tmp_path_factory.mktemp("bare")) as plane:
        yield plane.kubeconfig


def test_the_doctor_says_that_nothing_is_installed_and_how_to_begin(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command("doctor").run(parser_of("doctor").parse_args([f"--kubeconfig={bare}"]))
    lines = capsys.readouterr().out.splitlines()
    assert code == access.BROKEN
    assert lines[0] == "✗ Splitwatt is not installed: none of its CRDs is there"
    assert lines[1].strip().startswith("helm install splitwatt ")
    assert lines[2] == "! nodes: there is no node yet, so nothing has a GPU"
    assert sum(line.startswith("✗") for line in lines) == 1, "what follows from it is not said again"
    assert lines[-1].startswith("looked at: Kubernetes v1.") and lines[-1].endswith("0 CRDs; 0 GPU nodes; no Prometheus")


def test_so_it_does_for_scripts(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("doctor").run(parser_of("doctor").parse_args([f"--kubeconfig={bare}", "-o", "json"])) == access.BROKEN
    told = json.loads(capsys.readouterr().out)
    assert not told["healthy"] and not told["installed"] and told["findings"][0]["check"] == "NotInstalled"


@pytest.mark.parametrize(("name", "arguments"), [("status", []), ("explain", ["budget", "rack-a1"]), ("top", ["--once"])])
def test_what_has_nothing_to_show_says_so_in_one_sentence(
    bare: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str]
) -> None:
    assert command(name).run(parser_of(name).parse_args([*arguments, f"--kubeconfig={bare}"])) == access.UNASKED
    told = capsys.readouterr()
    assert told.out == "" and told.err == f"splitwatt {name}: {SENTENCE}\n"
