"""The real Helm on the real chart; a control plane of its own, for installing claims cluster-wide names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE, install_chart
from splitwatt_lab.toolbuild import Console, ensure_tools

CHART = Path(__file__).resolve().parents[2] / "helm" / "splitwatt"
NODES = ("n1", "n2")


class Helm(Protocol):
    def __call__(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster and without anything of the user's."""
    program, home = ensure_tools(Console())["helm"], tmp_path_factory.mktemp("helm")

    def run(*arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments), *(["--values=-"] if values is not None else [])],
            input=None if values is None else json.dumps(values),
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


class Render(Protocol):
    def __call__(self, *arguments: str, values: Mapping[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]: ...


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The chart's objects by (kind, name)."""

    def run(*arguments: str, values: Mapping[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
        result = helm("template", "splitwatt", CHART, f"--namespace={NAMESPACE}", *arguments, values=values or {})
        assert result.returncode == 0, result.stderr
        documents = [document for document in yaml.safe_load_all(result.stdout) if document]
        found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        assert len(found) == len(documents)
        return found

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with two nodes and the chart, as the lab installs it."""
    with ControlPlane(tmp_path_factory.mktemp("chart-plane"), progress=Console()) as plane:
        install_chart(plane, CHART)
        nodes.create(plane, [nodes.NodeSpec(name=name, labels={}, boot_id=nodes.new_boot_id()) for name in NODES])
        yield plane
