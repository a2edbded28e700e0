"""Every command of every runbook, as it is written, on a real API server with the chart and the examples: none is refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.generate import ROOT
from splitwatt_panels.model import Alert

from .conftest import with_namespace

NAMED: Mapping[str, str] = {"BUDGET": "rack-a1", "NODE": "n1", "NAME": "chat", "NAMESPACE": "serving"}
ON_THE_NODE = "nvidia-smi"


def commands(page: Path) -> list[str]:
    """Lines of its shell blocks, with names put in and comments left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [re.sub(rf"\b({'|'.join(NAMED)})\b", lambda m: NAMED[m[1]], line) for line in lines]


@pytest.fixture(scope="module")
def site(installed: ControlPlane) -> Iterator[ControlPlane]:
    """Leaves the others' control plane as it was."""
    with_namespace(installed, NAMED["NAMESPACE"])
    for name in ("budgets.yaml", "chat.yaml"):
        installed.kubectl("apply", "-f", str(ROOT / "examples" / name))
    node = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": NAMED["NODE"]}}
    installed.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    yield installed
    installed.kubectl("delete", "powerbudgets,inferenceclusters,nodepowers", "--all", "--all-namespaces")


@pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])
def test_every_command_of_a_runbook_is_taken(site: ControlPlane, alert: Alert) -> None:
    page = ROOT / alert.runbook
    tried = 0
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == ON_THE_NODE:
            continue
        assert words[0] == "kubectl", f"{page.name} begins with neither kubectl nor {ON_THE_NODE}: {line}"
        site.kubectl(*words[1:])
        tried += 1
    assert tried, "a runbook begins with a command"
