"""An agent writes the status of its own node alone, by its real token; RBAC, which knows no owners, gives it every node's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from splitwatt_core.protocol.contract import Status as NodeStatus
from splitwatt_core.protocol.contract import status_to_wire
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE
from support.callers import caller, refused, taken

from .conftest import NODES

OURS = "/apis/splitwatt.io/v1alpha1"


@pytest.fixture
def node_powers(installed: ControlPlane) -> Iterator[ControlPlane]:
    for name in NODES:
        body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": name}}
        installed.kubectl("create", "-f", "-", stdin=json.dumps(body))
    yield installed
    installed.kubectl("delete", "nodepowers", *NODES)


def of_node(plane: ControlPlane, name: str) -> dict[str, Any]:
    node = plane.http.get(f"/api/v1/nodes/{name}").json()
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}


def of_pod_on(plane: ControlPlane, node: str) -> dict[str, Any]:
    """A pod of the agents' account on a node, as the DaemonSet would make it."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"agent-{node}", "namespace": NAMESPACE},
        "spec": {"serviceAccountName": "splitwatt-agent", "nodeName": node, "containers": [{"name": "a", "image": "a"}]},
    }
    made = plane.http.post(f"/api/v1/namespaces/{NAMESPACE}/pods", json=pod).raise_for_status().json()
    return {"apiVersion": "v1", "kind": "Pod", "name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}


def status_of(name: str) -> dict[str, Any]:
    status = status_to_wire(NodeStatus(observed_term=1))
    return {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": name}, "status": status}


@pytest.mark.parametrize("binding", [of_node, of_pod_on], ids=["bound to a node", "bound to a pod"])
def test_an_agent_writes_its_own_nodes_status_alone(
    node_powers: ControlPlane, binding: Callable[[ControlPlane, str], dict[str, Any]]
) -> None:
    agent = caller(node_powers, "splitwatt-agent", bound_to=binding(node_powers, "n1"))
    answer = taken(agent.patch(f"{OURS}/nodepowers/n1/status", status_of("n1")))
    assert answer["status"]["observedTerm"] == 1
    says = "the agent of node n1 may write only the NodePower of that name, not n2"
    refused(agent.patch(f"{OURS}/nodepowers/n2/status", status_of("n2")), says)


def test_an_agent_writes_no_spec_not_even_its_own(node_powers: ControlPlane) -> None:
    agent = caller(node_powers, "splitwatt-agent", bound_to=of_node(node_powers, "n1"))
    before = node_powers.http.get(f"{OURS}/nodepowers/n1").json().get("spec")
    whole = {**status_of("n1"), "spec": {"term": 9, "mode": "Strict", "forUID": "x"}}
    for name in ("n1", "n2", "n3"):
        refused(agent.patch(f"{OURS}/nodepowers/{name}", {**whole, "metadata": {"name": name}}), "cannot patch resource")
    refused(agent.http.put(f"{OURS}/nodepowers/n1", json=whole), "cannot update resource")
    refused(agent.http.delete(f"{OURS}/nodepowers/n1"), "cannot delete resource")
    # Through the status a spec does not come either.
    agent.patch(f"{OURS}/nodepowers/n1/status", whole)
    assert node_powers.http.get(f"{OURS}/nodepowers/n1").json().get("spec") == before


def test_a_token_of_no_node_speaks_for_none(node_powers: ControlPlane) -> None:
    answer = caller(node_powers, "splitwatt-agent").patch(f"{OURS}/nodepowers/n1/status", status_of("n1"))
    refused(answer, "the agent's token names no node")


def test_others_are_not_bound_by_the_agents_policy(node_powers: ControlPlane) -> None:
    node_powers.kubectl("label", "nodepower", "n1", "note=by-the-administrator")
