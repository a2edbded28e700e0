"""The API server, or a kind that it serves, goes away and comes back: the reign rests, and goes on with what it knows.

These tests have a control plane of their own, for its controllers need a while to recover as well.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane

CRDS = sorted((Path(__file__).resolve().parents[3] / "crds").glob("*.yaml"))
FREEZE_S = 25.0
GONE_S = 15.0
UNIFORM = {"type": "Uniform", "unassignedGpus": "Hold"}


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
    before, spec = operator.reigns(), datacenter.node_power(node.name)["spec"]
    datacenter.plane.stop(Component.API_SERVER)
    try:
        # Longer than the Lease lasts, so the reign must rest by the operator's own clock.
        datacenter.eventually("the reign rests", lambda: "reign over" in operator.text)
        assert operator.process.running
        assert operator.healthy()
        assert operator.metric("splitwatt_operator_active") == 0
        decided = len(operator.decisions(budget))
        time.sleep(2.0)
        assert len(operator.decisions(budget)) == decided, "nothing is decided without the Lease"
    finally:
        datacenter.plane.start(Component.API_SERVER)
    datacenter.eventually("it reigns again", lambda: len(operator.reigns()) > len(before))
    # Nobody took the Lease meanwhile: it is the same reign, and no node needs a new stamp.
    assert set(operator.reigns()) == set(before)
    assert operator.metric("splitwatt_operator_active") == 1
    # The watches came back too: a change is heard.
    datacenter.budget("leaf", limitWatts=41000)
    datacenter.eventually("the change is heard", lambda: operator.decisions(budget)[-1]["limit_w"] == 41000)
    assert datacenter.node_power(node.name)["spec"] == spec


def test_an_api_server_that_freezes_while_grants_are_under_way(datacenter: Any) -> None:
    """Lost renewals, writes of unknown outcome and wakes all meet; the reign goes on with its term and its memory."""
    datacenter.add_gpu_nodes("n1", "n2", gpus=2)
    budget = datacenter.budget("leaf", limitWatts=30000, policy=UNIFORM, limitGraceSeconds=1)
    operator = datacenter.active_operator()
    datacenter.await_condition(budget, "Ready", "True")
    [term] = set(operator.reigns())
    datacenter.budget_limit(budget, 5200)
    datacenter.eventually("the change is heard", lambda: operator.decisions(budget)[-1]["limit_w"] == 5200)
    datacenter.plane.group[Component.API_SERVER].send(signal.SIGSTOP)
    try:
        time.sleep(FREEZE_S)
        assert operator.healthy()
    finally:
        datacenter.plane.group[Component.API_SERVER].send(signal.SIGCONT)
    datacenter.eventually("it reigns again", lambda: len(operator.reigns()) > 1)
    thawed_s = time.monotonic()
    datacenter.eventually("the caps fit", lambda: charge_w(datacenter) <= 5200)
    assert time.monotonic() - thawed_s < 30.0
    assert set(operator.reigns()) == {term}
    assert {datacenter.node_power(node)["spec"]["term"] for node in datacenter.twins} == {term}
    assert "Traceback" not in operator.text


def charge_w(datacenter: Any) -> float:
    """Σ caps at the meter, as I1 counts it (two nodes)."""
    return 4000 + 1.04 * sum(datacenter.caps_w())


@contextmanager
def without_kind(datacenter: Any, plural: str) -> Iterator[None]:
    """Its CustomResourceDefinition is deleted, with all its objects, and made again at the end."""
    plane, name = datacenter.plane, f"{plural}.splitwatt.io"
    [file] = [file for file in CRDS if f"plural: {plural}" in file.read_text()]
    plane.kubectl("delete", "crd", name, "--timeout=60s")
    try:
        yield
    finally:
        plane.kubectl("apply", "--server-side", "-f", file)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", file)


def refusals(operator: Any) -> float:
    """Writes of NodePowers that were refused, whatever for."""
    found = (operator.metric("splitwatt_api_refusals_total", kind="NodePower", code=str(code)) for code in (404, 405, 409, 422))
    return sum(count or 0.0 for count in found)


def observed(datacenter: Any, node: str) -> bool:
    seen = datacenter.node_power(node)
    return bool(seen.get("status", {}).get("observedUID") == seen["metadata"]["uid"])


@pytest.mark.parametrize("gone_s", [0.0, GONE_S])
def test_node_powers_whose_kind_was_deleted_and_made_again(datacenter: Any, gone_s: float) -> None:
    datacenter.add_gpu_nodes("n1", "n2", gpus=2)
    budget = datacenter.budget("leaf", limitWatts=30000, policy=UNIFORM, limitGraceSeconds=1)
    operator = datacenter.active_operator()
    datacenter.await_condition(budget, "Ready", "True")
    before = {node: datacenter.node_power(node)["metadata"]["uid"] for node in datacenter.twins}
    with without_kind(datacenter, "nodepowers"):
        time.sleep(gone_s)
        datacenter.budget_limit(budget, 5200)
        datacenter.eventually("other kinds are heard", lambda: operator.decisions(budget)[-1]["limit_w"] == 5200)
    back_s = time.monotonic()
    datacenter.eventually("the cut is obeyed", lambda: charge_w(datacenter) <= 5200)
    assert time.monotonic() - back_s < 45.0
    for node, uid in before.items():
        assert datacenter.node_power(node)["metadata"]["uid"] != uid
        datacenter.eventually("its agent speaks of the new object", partial(observed, datacenter, node))
    datacenter.budget_limit(budget, 4900)
    datacenter.eventually("the next one as well", lambda: charge_w(datacenter) <= 4900)
    datacenter.await_condition(budget, "CapsEnforced", "True")
    assert refusals(operator) < 40
    assert operator.healthy()
    assert len(operator.reigns()) == 1, "it never had to begin anew"


@pytest.mark.parametrize("plural", ["powerbudgets", "inferenceclusters", "powerprofiles", "rolescales"])
def test_another_kind_that_was_deleted_and_made_again(datacenter: Any, plural: str) -> None:
    datacenter.add_gpu_nodes("n1", "n2", gpus=2)
    budget = datacenter.budget("leaf", limitWatts=30000, policy=UNIFORM, limitGraceSeconds=1)
    operator = datacenter.active_operator()
    datacenter.await_condition(budget, "Ready", "True")
    caps_w = datacenter.caps_w()
    with without_kind(datacenter, plural):
        datacenter.eventually("it is said", lambda: f"does not serve it: {plural}" in operator.text)
        if plural != "powerbudgets":
            datacenter.budget_limit(budget, 5200)
            datacenter.eventually("other kinds are heard", lambda: charge_w(datacenter) <= 5200)
        else:
            time.sleep(GONE_S)
            assert all(now_w <= then_w for now_w, then_w in zip(datacenter.caps_w(), caps_w, strict=True))
    datacenter.budget("leaf", limitWatts=4900, policy=UNIFORM, limitGraceSeconds=1)
    datacenter.eventually("the cut is obeyed", lambda: charge_w(datacenter) <= 4900)
    heard = f"{plural} is served again"
    datacenter.eventually("it is watched again", lambda: heard in operator.text)
    assert operator.healthy()
    assert len(operator.reigns()) == 1


def test_an_operator_that_begins_where_nobody_knows_role_scales_keeps_the_budgets(datacenter: Any) -> None:
    """A newer operator beside definitions of the release before: limits are worth more than a scale."""
    datacenter.add_gpu_nodes("n1", "n2", gpus=2)
    with without_kind(datacenter, "rolescales"):
        budget = datacenter.budget("leaf", limitWatts=5200, policy=UNIFORM, limitGraceSeconds=1)
        operator = datacenter.active_operator()
        datacenter.await_condition(budget, "Ready", "True")
        assert charge_w(datacenter) <= 5200 and "none is waited for" in operator.text
    datacenter.eventually("it is watched", lambda: "rolescales is served again" in operator.text)
    assert operator.healthy()


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
