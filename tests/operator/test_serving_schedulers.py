"""Admission beside other schedulers: their gates, taints and autoscalers on real pods, with the real API server and scheduler.

Kueue, Volcano and the autoscalers themselves do not run here: the tests do to pods and nodes what these do, as their sources
have it (docs/admission.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from splitwatt_core.names import LABEL_POOL
from support.serving_site import GPUS, PAIR_W, Site, idle_w
from support.waiting import eventually

OURS, KUEUE = "splitwatt.io/power", "kueue.x-k8s.io/admission"
VOLCANO = "scheduling.volcano.sh/queue-allocation-gate"
REQUIRED, PREFERRED = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"


def pools(site: Site, **pod: Any) -> dict[str, Any]:
    """Both roles with this laid over their pods."""
    pool = {
        "replicas": 1,
        "gpusPerReplica": GPUS,
        "nodeSelector": {LABEL_POOL: site.rack},
        "template": {"spec": pod},
    }
    return {"prefill": pool, "decode": pool}


def gates(pod: Mapping[str, Any]) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]


def patch(site: Site, pod: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    site.kubectl("patch", "pod", pod["metadata"]["name"], "--type=merge", "-p", json.dumps({"spec": spec}))


def test_kueues_quota_is_decided_first(site: Site) -> None:
    site.add_nodes(2)
    for i in range(2):
        site.plane.kubectl("label", "node", f"{site.rack}-n{i}", "flavor=gold")
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat", **pools(site, schedulingGates=[{"name": KUEUE}]))
    row = site.await_condition("chat", "PowerAdmitted", "False", "WaitingForOtherGates")
    assert f"behind {KUEUE}" in row["message"]
    pods = site.pods("chat")
    assert all(set(gates(pod)) == {OURS, KUEUE} for pod in pods)
    assert not any("splitwatt.io/power-budget" in pod["metadata"].get("annotations", {}) for pod in pods)
    # As Kueue admits: it adds the flavour's node selector and takes its own gate, of one pod first.
    for waits, pod in enumerate(sorted(pods, key=lambda p: p["metadata"]["name"]), start=1):
        patch(site, pod, {"nodeSelector": {"flavor": "gold"}, "schedulingGates": [{"name": OURS}]})
        if waits == 1:
            site.await_condition("chat", "PowerAdmitted", "False", "WaitingForOtherGates")
            assert all(OURS in gates(pod) for pod in site.pods("chat")), "a pair waits for both"
    site.await_condition("chat", "Ready", "True")
    for pod in site.pods("chat"):
        [wish] = pod["spec"]["affinity"]["nodeAffinity"][PREFERRED]
        [field] = wish["preference"]["matchFields"]
        assert field["values"] == [pod["spec"]["nodeName"]], "the scheduler did what the plan counts on"


def test_volcanos_gate_is_lifted_last_as_volcano_does(site: Site) -> None:
    """Its scheduler takes its gate only from pods that have no other one, and binds them itself."""
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat", **pools(site, schedulingGates=[{"name": VOLCANO}], schedulerName="volcano"))
    site.await_condition("chat", "PowerAdmitted", "True")
    pods = eventually(
        "our gate is lifted", lambda: [p for p in site.pods("chat") if gates(p) == [VOLCANO]][1:] and site.pods("chat")
    )
    for pod in pods:
        patch(site, pod, {"schedulingGates": None})
        affinity = pod["spec"]["affinity"]["nodeAffinity"]
        [node] = affinity[PREFERRED][0]["preference"]["matchFields"][0]["values"]
        assert affinity[REQUIRED]["nodeSelectorTerms"], "Volcano is held to the leaf as any scheduler is"
        meta = {"name": pod["metadata"]["name"], "namespace": site.namespace}
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": meta, "target": target}
        path = f"/api/v1/namespaces/{site.namespace}/pods/{meta['name']}/binding"
        assert site.plane.http.post(path, json=body).status_code == 201
    site.await_condition("chat", "Ready", "True")


def test_a_taint_that_is_not_tolerated_is_named_and_a_toleration_admits(site: Site) -> None:
    site.add_nodes(2)
    for i in range(2):
        site.plane.kubectl("taint", "node", f"{site.rack}-n{i}", "team=a:NoSchedule")
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    row = site.await_condition("chat", "PowerAdmitted", "False", "UntoleratedTaint")
    assert "team=a:NoSchedule" in row["message"]
    assert all(gates(pod) == [OURS] for pod in site.pods("chat")), "nothing is reserved where nothing can run"
    toleration = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
    router = {"template": {"spec": {"tolerations": [toleration]}}}
    site.cluster("chat", router=router, **pools(site, tolerations=[toleration]))
    site.await_condition("chat", "Ready", "True")


def unschedulable(pod: Mapping[str, Any]) -> bool:
    """What Karpenter and cluster-autoscaler look for."""
    rows = pod.get("status", {}).get("conditions", [])
    return any(r["type"] == "PodScheduled" and r["status"] == "False" and r["reason"] == "Unschedulable" for r in rows)


def test_an_elastic_leaf_scales_from_zero(site: Site) -> None:
    node_w = 10_000
    site.limit(2 * node_w)
    site.cluster("chat")
    row = site.await_condition("chat", "PowerAdmitted", "False", "NoMatchingNodes")
    assert "No autoscaler sees a pod behind the power gate" in row["message"]
    elastic = {"maxNodes": 2, "gpusPerNode": GPUS, "nodeLabels": {LABEL_POOL: site.rack}}
    site.limit(2 * node_w, elastic=elastic)
    site.await_condition("chat", "PowerAdmitted", "True")
    eventually("an autoscaler sees both pods", lambda: sum(unschedulable(pod) for pod in site.pods("chat")) == 2)
    site.add_nodes(2)
    site.await_condition("chat", "Ready", "True")
    budget = site.get("pb", site.rack)
    assert budget is not None and idle_w(2) <= budget["status"]["chargeWatts"] <= 2 * node_w
    site.cluster("late", priority="Low")
    row = site.await_condition("late", "PowerAdmitted", "False", "InsufficientGPUs")
    assert "raise its spec.elastic.maxNodes (2)" in row["message"]


def autoscaler(site: Site, called: str, **target: str) -> None:
    """A real HorizontalPodAutoscaler, which the real controller acts on: without any metric it keeps to its minimum."""
    meta = {"name": called, "namespace": site.namespace}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3}
    site.apply({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec})


def test_an_autoscaler_on_a_rendered_deployment_is_told_where_to_aim(site: Site) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    autoscaler(site, "decode-scaler", apiVersion="apps/v1", kind="Deployment", name="chat-decode")
    row = site.await_condition("chat", "ScaledElsewhere", "True", "Autoscaler")
    for words in ("HorizontalPodAutoscaler decode-scaler", "kind: InferenceCluster, name: chat"):
        assert words in row["message"]
    site.kubectl("delete", "hpa", "decode-scaler")
    eventually("nothing more is said", lambda: site.condition("chat", "ScaledElsewhere") == {})
    # What the sentence says works: decode is scaled through the InferenceCluster, and nobody fights.
    autoscaler(site, "cluster-scaler", apiVersion="splitwatt.io/v1alpha1", kind="InferenceCluster", name="chat")
    eventually("decode has two replicas", lambda: site.running("chat", "decode") == 2)
    assert site.condition("chat", "ScaledElsewhere") == {}
