"""One operator process and one set of agents for each file that asks for a `site`; the site is each test's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.processes import ProcessGroup
from support.serving_site import OperatorProcess, ScriptedAgents, Site


@pytest.fixture(scope="module")
def operator(crds: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    folder: Path = tmp_path_factory.mktemp("serving")
    name = f"operator-{uuid.uuid4().hex[:8]}"
    crds.kubectl("create", "namespace", name)
    with ProcessGroup(folder) as group:
        process = OperatorProcess(crds, group, name)
        process.start()
        yield process
    crds.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def agents(crds: ControlPlane) -> Iterator[ScriptedAgents]:
    threads = ScriptedAgents(crds)
    yield threads
    threads.close()


@pytest.fixture
def site(crds: ControlPlane, operator: OperatorProcess, agents: ScriptedAgents, namespace: str) -> Iterator[Site]:
    made = Site(crds, agents, namespace, f"r{uuid.uuid4().hex[:8]}")
    yield made
    made.clear()
    assert operator.process.running, operator.log()[-4000:]
