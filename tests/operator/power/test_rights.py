"""The operator and the agents under the chart's own service accounts: every right they need is there.

The real chart is installed by the real Helm into a control plane of its own; a missing verb would show as "forbidden" in a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE, install_chart

CHART = Path(__file__).resolve().parents[3] / "helm" / "splitwatt"


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane-of-rights")) as plane:
        yield plane


@pytest.fixture(scope="module")
def crds(control_plane: ControlPlane) -> ControlPlane:
    install_chart(control_plane, CHART, values={"agent": {"stream": {"enabled": True, "port": 9403}}})
    return control_plane


@pytest.fixture
def namespace(crds: ControlPlane) -> str:
    return NAMESPACE


def test_the_charts_rights_are_enough(datacenter: Any, make_namespace: Any) -> None:
    plane = datacenter.plane
    datacenter.streams = True
    datacenter.agent_kubeconfig = lambda node: plane.token_kubeconfig(NAMESPACE, "splitwatt-agent", node)
    with datacenter.metered():
        datacenter.add_gpu_nodes("n1", "n2")
        selector = f'rack_power_watts{{rack="{datacenter.rack}"}}'
        budget = datacenter.budget("leaf", limitWatts=9000, meter={"selector": selector})
        operator = datacenter.active_operator(kubeconfig=plane.token_kubeconfig(NAMESPACE, "splitwatt-operator"))
        datacenter.await_condition(budget, "Ready", "True")
        datacenter.eventually("it is let in by both agents", lambda: operator.metric("splitwatt_agent_streams") == 2)
        serving = make_namespace()
        pool = {"replicas": 1, "gpusPerReplica": 2}
        cluster = {
            "apiVersion": "splitwatt.io/v1alpha1",
            "kind": "InferenceCluster",
            "metadata": {"name": "chat", "namespace": serving},
            "spec": {
                "model": {"name": "meta-llama/Llama-3.1-70B-Instruct"},
                "engine": {"type": "Emulated"},
                "prefill": pool,
                "decode": pool,
            },
        }
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(cluster))
        path = f"/apis/splitwatt.io/v1alpha1/namespaces/{serving}/inferenceclusters/chat"

        def admitted() -> bool:
            rows = datacenter.get(path).get("status", {}).get("conditions", [])
            return any(row["type"] == "PowerAdmitted" and row["status"] == "True" for row in rows)

        datacenter.eventually("the cluster is admitted", admitted)
        # What somebody takes out is put right, and what a person asks for is scaled: both are changes of rendered objects.
        deployment = f"/apis/apps/v1/namespaces/{serving}/deployments/chat-decode"
        rendered = datacenter.get(deployment)["metadata"]
        merge = {"Content-Type": "application/merge-patch+json"}
        plane.http.patch(
            deployment, json={"metadata": {"labels": None, "ownerReferences": None}}, headers=merge
        ).raise_for_status()

        def put_right() -> bool:
            now = datacenter.get(deployment)["metadata"]
            return all(now.get(part) == rendered[part] for part in ("labels", "ownerReferences"))

        datacenter.eventually("owner and labels are back", put_right)
        plane.http.patch(path, json={"spec": {"decode": {"replicas": 2}}}, headers=merge).raise_for_status()
        scale = f"/apis/splitwatt.io/v1alpha1/namespaces/{serving}/rolescales/chat-prefill"
        datacenter.eventually("prefill has a scale", lambda: "status" in datacenter.get(scale))
        plane.kubectl("-n", serving, "scale", "rolescale", "chat-prefill", "--replicas=2")
        prefill = f"/apis/apps/v1/namespaces/{serving}/deployments/chat-prefill"
        datacenter.eventually("prefill is scaled", lambda: datacenter.get(prefill)["spec"]["replicas"] == 2)
        plane.http.patch(path, json={"spec": {"prefill": {"replicas": 3}}}, headers=merge).raise_for_status()
        datacenter.eventually("the cluster's word is newer", lambda: datacenter.get(scale)["spec"]["replicas"] == 3)
        datacenter.eventually("decode is scaled", lambda: datacenter.get(deployment)["spec"]["replicas"] == 2)
        datacenter.budget_limit(budget, 8000)
        datacenter.eventually("an Event is recorded", lambda: datacenter.events("LimitLowered"))
        # Nodes that go are read afresh before a person's word releases their charge.
        gone = next(iter(datacenter.twins))
        plane.http.delete(f"/api/v1/nodes/{gone}")
        datacenter.await_condition(budget, "Ready", "True", "NodesGone")
        plane.kubectl("annotate", "np", gone, f"splitwatt.io/release={budget}")
        datacenter.eventually("its NodePower is deleted", lambda: datacenter.node_power(gone) is None)
        datacenter.eventually("the node is forgotten", lambda: datacenter.status(budget).get("nodes") == 1)
        plane.http.delete(path)
        # The role's deletion of what it owns, by the garbage collector.
        deployments = f"/apis/apps/v1/namespaces/{serving}/deployments"
        datacenter.eventually("its objects go with it", lambda: not datacenter.get(deployments)["items"])
    for process in [operator.process, *(datacenter.group[f"agent-{node}"] for node in datacenter.twins)]:
        refused = [line for line in process.log.read_text().splitlines() if "forbidden" in line.lower()]
        assert refused == []
