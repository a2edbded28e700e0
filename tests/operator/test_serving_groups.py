"""Replicas over several nodes on a real API server: the operator's LeaderWorkerSet, and pods as its controller makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving_site import PAIR_W, Site, idle_w
from support.upstream import install, uninstall
from support.waiting import eventually

SET = "leaderworkersets.leaderworkerset.x-k8s.io"
LABEL = "leaderworkerset.sigs.k8s.io"
POD_W = PAIR_W // 2
WIDE: dict[str, Any] = {"engine": {"type": "VLLM"}}


@pytest.fixture
def sets(site: Site) -> Iterator[Site]:
    """A site whose API server serves no LeaderWorkerSet yet, whatever the test before did."""
    uninstall(site.plane, "LeaderWorkerSet")
    yield site
    uninstall(site.plane, "LeaderWorkerSet")


def wide(site: Site, nodes: int) -> dict[str, Any]:
    pool = {"replicas": 1, "gpusPerReplica": 8, "nodeSelector": {"splitwatt.io/pool": site.rack}}
    return {**WIDE, "decode": {**pool, "nodesPerReplica": nodes}}


def sets_of(site: Site) -> list[dict[str, Any]]:
    path = f"/apis/leaderworkerset.x-k8s.io/v1/namespaces/{site.namespace}/leaderworkersets"
    answer = site.plane.http.get(path)
    if answer.status_code == 429:  # a definition that was made anew is not stored yet
        return []
    found: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return found


def make_group(site: Site, number: int, *, only: int | None = None) -> None:
    """Pods of one group of decode's, as LeaderWorkerSet's controller and webhook make them: templates and labels."""
    [found] = eventually("the LeaderWorkerSet", lambda: sets_of(site))
    whole, its_name = found["spec"]["leaderWorkerTemplate"], found["metadata"]["name"]
    for index in range(whole["size"]):
        if only not in (None, index):
            continue
        template = json.loads(json.dumps(whole["workerTemplate" if index else "leaderTemplate"]))
        name = f"{its_name}-{number}" + (f"-{index}" if index else "")
        labels = {f"{LABEL}/name": its_name, f"{LABEL}/group-index": str(number), f"{LABEL}/worker-index": str(index)}
        meta = {
            "name": name,
            "namespace": site.namespace,
            "labels": {**template["metadata"]["labels"], **labels, f"{LABEL}/group-key": f"key-{site.rack}-{number}"},
            "annotations": {**template["metadata"]["annotations"], f"{LABEL}/size": str(whole["size"])},
        }
        site.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})


def gated(site: Site) -> list[str]:
    """Of the groups' pods, those behind the gate, as group and index."""
    pods = [
        pod for pod in site.list("pods") if f"{LABEL}/name" in pod["metadata"]["labels"] and pod["spec"].get("schedulingGates")
    ]
    return sorted("-".join(pod["metadata"]["labels"][f"{LABEL}/{what}-index"] for what in ("group", "worker")) for pod in pods)


def says(site: Site, number: int, *, ready: int) -> None:
    """Of a set with so many replicas, as its controller would."""
    for found in sets_of(site):
        if found["spec"]["replicas"] == number:
            status = {"replicas": number, "readyReplicas": ready, "updatedReplicas": number}
            patch = json.dumps({"status": {**status, "observedGeneration": found["metadata"]["generation"]}})
            name = found["metadata"]["name"]
            site.kubectl("patch", SET, name, "--subresource=status", "--type=merge", "-p", patch)


def test_without_the_definition_one_sentence_says_what_to_install(sets: Site) -> None:
    sets.add_nodes(2)
    sets.limit(idle_w(2) + 2 * POD_W)
    sets.cluster("chat", **wide(sets, 2))
    row = sets.await_condition("chat", "DecodeReady", "False", "NoLeaderWorkerSet")
    assert "serves no LeaderWorkerSet" in row["message"] and "or set nodesPerReplica to 1" in row["message"]
    assert row["message"] in sets.await_condition("chat", "Ready", "False", "ObjectsNotApplied")["message"]
    assert sets.get("deployment", "chat-prefill") is not None


def test_a_group_leaves_the_gate_whole_once_there_are_watts_for_all_of_it(sets: Site) -> None:
    install(sets.plane, "LeaderWorkerSet")
    sets.add_nodes(3)
    sets.limit(idle_w(3) + 3 * POD_W - POD_W // 2)  # for prefill's pod and one of decode's two
    sets.cluster("chat", **wide(sets, 2))
    make_group(sets, 0, only=0)
    row = sets.await_condition("chat", "PowerAdmitted", "False", "WaitingForPods")
    assert "decode" in row["message"]
    make_group(sets, 0, only=1)
    sets.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    assert gated(sets) == ["0-0", "0-1"]

    sets.limit(idle_w(3) + 3 * POD_W + 100)
    sets.await_condition("chat", "PowerAdmitted", "True")
    eventually("both pods have left the gate", lambda: not gated(sets))
    status = eventually("one replica is admitted", lambda: _admitted_one(sets))
    assert status["decode"]["labelSelector"].endswith("splitwatt.io/role=decode")

    says(sets, 1, ready=1)
    assert sets.await_condition("chat", "DecodeReady", "True")["message"] == "1 of 1 replicas are ready."

    nodes = {p["spec"].get("nodeName") for p in sets.list("pods") if f"{LABEL}/name" in p["metadata"]["labels"]}

    def decode_gpus() -> int:
        lines = [gpu for node in range(3) for gpu in sets.lines(node)]
        return sum(gpu.get("phase") == "Decode" for gpu in lines)

    eventually("the GPUs of both nodes are decode's", lambda: decode_gpus() == 16)
    assert len(nodes) == 2


def _admitted_one(site: Site) -> dict[str, Any] | None:
    status: dict[str, Any] = (site.get("ic", "chat") or {}).get("status", {})
    return status if (status.get("decode") or {}).get("admittedReplicas") == 1 else None


def test_a_pool_comes_back_to_one_node(sets: Site) -> None:
    install(sets.plane, "LeaderWorkerSet")
    sets.add_nodes(2)
    sets.limit(idle_w(2) + 2 * POD_W)
    sets.cluster("chat", **wide(sets, 2))
    [found] = eventually("the LeaderWorkerSet", lambda: sets_of(sets))
    assert sets.get("deployment", "chat-decode") is None
    assert sets.get("pdb", "chat-decode-workers") is not None
    sets.kubectl("patch", SET, found["metadata"]["name"], "--type=merge", "-p", '{"spec":{"replicas":7}}')
    eventually("replicas are back", lambda: [each["spec"]["replicas"] for each in sets_of(sets)] == [1])
    says(sets, 1, ready=0)
    sets.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"decode":{"nodesPerReplica":1}}}')
    eventually("it is told to go", lambda: [each["spec"]["replicas"] for each in sets_of(sets)] == [0])
    says(sets, 0, ready=0)
    eventually("the LeaderWorkerSet is gone", lambda: not sets_of(sets))
    eventually("and there is a Deployment", lambda: sets.get("deployment", "chat-decode"))
    eventually("and no budget for workers", lambda: sets.get("pdb", "chat-decode-workers") is None)
