"""The command itself: what is registered, which flags it has, and how a question ends that cannot be asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from splitwatt_cli import access
from support.commands import OURS, PROJECT, command, parser_of


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_there_and_takes_kubectls_flags(name: str) -> None:
    names = ["budget", "x"] if name == "explain" else []
    args = parser_of(name).parse_args([*names, "--kubeconfig=a", "--context=b", "--operator-namespace=d", "-o", "json"])
    assert (args.kubeconfig, args.context, args.output) == ("a", "b", "json")
    assert command(name).help


def test_a_kubeconfig_is_looked_for_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert access.kubeconfig_of("mine", {"KUBECONFIG": "other"}) == Path("mine")
    assert access.kubeconfig_of(None, {"KUBECONFIG": "one:two"}) == Path("one:two")
    assert access.kubeconfig_of(None, {}) == tmp_path / ".kube/config", "so that the sentence names what is missing"
    assert access.kubeconfig_of(None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").write_text("{}")
    assert access.kubeconfig_of(None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == tmp_path / ".kube/config"


@pytest.mark.parametrize("name", ["status", "explain"])
def test_no_cluster_is_one_sentence_and_code_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["budget", "x"] if name == "explain" else []
    args = parser_of(name).parse_args([*names, f"--kubeconfig={tmp_path / 'none'}"])
    assert command(name).run(args) == access.UNASKED
    error = capsys.readouterr().err
    assert error.startswith(f"splitwatt {name}: cannot use kubeconfig") and error.count("\n") == 1


def test_kubectl_finds_the_same_command_as_its_plugin() -> None:
    scripts = PROJECT["scripts"]
    assert scripts["kubectl-splitwatt"] == scripts["splitwatt"]


def test_a_command_loads_nothing_of_the_others() -> None:
    """At night nobody waits for the simulator's compiler."""
    code = "import sys, splitwatt_cli.main as m; m.load_commands('status'); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
