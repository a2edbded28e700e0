"""The API server goes away and comes back: the reign ends by the operator's own clock, and nothing is forgotten.

These tests have a control plane of their own, for its controllers need a while to recover as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane

CRDS = sorted((Path(__file__).resolve().parents[3] / "crds").glob("*.yaml"))


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane-of-outages")) as plane:
        yield plane


@pytest.fixture(scope="module")
def crds(control_plane: ControlPlane) -> ControlPlane:
    for file in CRDS:
        control_plane.kubectl("apply", "--server-side", "-f", file)
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", file)
    return control_plane


@pytest.fixture(autouse=True)
def controllers_as_new(control_plane: ControlPlane) -> Iterator[None]:
    yield
    control_plane.restart(Component.CONTROLLER_MANAGER)


def test_the_api_server_goes_away_and_comes_back(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator()
    datacenter.eventually("a stamp", lambda: (datacenter.node_power(node.name) or {}).get("spec"))
    before = operator.reigns()
    datacenter.plane.stop(Component.API_SERVER)
    try:
        # Longer than the Lease lasts, so the reign must end by the operator's own clock.
        datacenter.eventually("the reign ends", lambda: "reign over" in operator.text)
        assert operator.process.running
        assert operator.healthy()
    finally:
        datacenter.plane.start(Component.API_SERVER)
    datacenter.eventually("a new reign", lambda: len(operator.reigns()) > len(before))
    assert operator.reigns()[-1] > before[-1]
    datacenter.eventually(
        "the node is stamped anew", lambda: datacenter.node_power(node.name)["spec"]["term"] == operator.reigns()[-1]
    )
    # The watches came back too: a change is heard.
    datacenter.budget("leaf", limitWatts=41000)
    datacenter.eventually("the change is heard", lambda: operator.decisions(budget)[-1]["limit_w"] == 41000)


def test_what_is_deleted_while_nobody_listens_is_noticed(datacenter: Any) -> None:
    """The new API server does not know the watches' place in history, so they list anew, which tells of no deletion."""
    datacenter.add_nodes("n1")
    stays = datacenter.budget("stays", limitWatts=40000)
    goes = datacenter.budget("goes", leaf=False, limitWatts=40000)
    operator = datacenter.active_operator()
    datacenter.eventually("both are known", lambda: operator.decisions(stays) and operator.decisions(goes))
    datacenter.plane.stop(Component.API_SERVER)
    datacenter.plane.start(Component.API_SERVER)
    datacenter.plane.http.delete(f"/apis/splitwatt.io/v1alpha1/powerbudgets/{goes}").raise_for_status()

    def forgotten() -> bool:
        return operator.metric("splitwatt_budget_limit_watts", budget=goes) is None

    datacenter.eventually("the deleted budget is forgotten", forgotten)
    assert operator.metric("splitwatt_budget_limit_watts", budget=stays) == 40000
