"""Replicas over several nodes under LeaderWorkerSet's own controller: real StatefulSets and scheduling, on kwok's nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.budget.known_labels import group_of
from splitwatt_core.names import LABEL_CLUSTER, LABEL_REVISION
from support.lws_controller import LABEL, controlled
from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually

from .test_rollouts import Watcher, engine_args

POD_W = PAIR_W // 2
ROLLED_S = 240.0
"""A LeaderWorkerSet is looked at every five seconds, and each step of a rollout takes a look or two."""
SETS = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets"


@pytest.fixture(scope="module", autouse=True)
def controller(crds: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("lws")
    with controlled(crds, folder) as process:
        yield
        assert process.running, process.log.read_text()[-4000:]


def wide(site: Site, replicas: int) -> None:
    """`replicas` of prefill on a node each, and as many of decode on two."""
    pool = {"replicas": replicas, "gpusPerReplica": 8, "nodeSelector": {"splitwatt.io/pool": site.rack}}
    site.cluster("chat", engine={"type": "VLLM"}, prefill=pool, decode={**pool, "nodesPerReplica": 2})


def sets_of(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.plane.http.get(SETS.format(site.namespace)).raise_for_status().json()["items"]
    return found


def halves(site: Site) -> Mapping[tuple[str, str], list[dict[str, Any]]]:
    """Pods of groups by set and group, leaders and workers, those that go left out."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for pod in site.plane.http.get(f"/api/v1/namespaces/{site.namespace}/pods").raise_for_status().json()["items"]:
        labels = pod["metadata"]["labels"]
        if f"{LABEL}/name" in labels and not pod["metadata"].get("deletionTimestamp"):
            groups.setdefault((labels[f"{LABEL}/name"], labels[f"{LABEL}/group-index"]), []).append(pod)
    return groups


def gated(pods: list[dict[str, Any]]) -> int:
    return sum(bool(pod["spec"].get("schedulingGates")) for pod in pods)


def decode_gpus(site: Site, nodes: int) -> int:
    return sum(gpu.get("phase") == "Decode" for node in range(nodes) for gpu in site.lines(node))


def test_a_group_waits_whole_and_starts_whole(site: Site) -> None:
    site.add_nodes(3)
    site.limit(idle_w(3) + 3 * POD_W - POD_W // 2)  # for prefill's pod and one of decode's two
    wide(site, 1)
    eventually("both pods of the group are there", lambda: [len(pods) for pods in halves(site).values()] == [2])
    told = site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    assert "fit one by one, but not together" in told["message"]
    assert [gated(pods) for pods in halves(site).values()] == [2], "no half of it left the gate"

    site.limit(idle_w(3) + 3 * POD_W + 100)
    site.await_condition("chat", "PowerAdmitted", "True")
    row = site.await_condition("chat", "DecodeReady", "True")
    assert row["message"] == "1 of 1 replicas are ready."
    [pods] = halves(site).values()
    assert gated(pods) == 0 and len({pod["spec"]["nodeName"] for pod in pods}) == 2
    [group] = sets_of(site)
    service = site.get("service", group["metadata"]["name"])
    assert service is not None and service["spec"]["publishNotReadyAddresses"], "workers find a leader before it is ready"
    for pod in pods:
        env = {row["name"]: row.get("value") for row in pod["spec"]["containers"][0]["env"]}
        leader = f"{group['metadata']['name']}-0.{group['metadata']['name']}.{site.namespace}"
        assert (
            env["LWS_LEADER_ADDRESS"] == leader and env["LWS_WORKER_INDEX"] == pod["metadata"]["labels"][f"{LABEL}/worker-index"]
        )

    assert len({group_of(pod["metadata"]["labels"]) for pod in pods} - {""}) == 1, "by its webhook's label: one consumer of watts"
    eventually("the GPUs of both are decode's", lambda: decode_gpus(site, 3) == 16)


def test_groups_are_rolled_in_pairs_and_are_scaled_by_the_clusters_scale(site: Site) -> None:
    site.add_nodes(6)
    site.limit(idle_w(6) + 6 * POD_W + 100)
    wide(site, 2)
    for role in ("Prefill", "Decode", "Router"):
        site.await_condition("chat", f"{role}Ready", "True")
    [before] = sets_of(site)
    with Watcher(site, most=2) as watcher:
        engine_args(site, "--max-num-seqs=64")
        site.await_condition("chat", "RollingOut", "True", "PairsKept")

        def rolled() -> bool:
            now = sets_of(site)
            return (
                len(now) == 1
                and now[0]["metadata"]["name"] != before["metadata"]["name"]
                and not site.condition("chat", "RollingOut")
            )

        eventually("rolled", rolled, within_s=ROLLED_S)
        for role in ("Prefill", "Decode", "Router"):
            site.await_condition("chat", f"{role}Ready", "True")
    assert watcher.looks > 20 and not watcher.wrong, watcher.wrong[:5]
    assert len(set(watcher.served_by)) == 2, "the former ones first, then these"
    revision = sets_of(site)[0]["metadata"]["labels"][LABEL_REVISION]
    pods = [pod for group in halves(site).values() for pod in group]
    assert len(pods) == 4 and {pod["metadata"]["labels"][LABEL_REVISION] for pod in pods} == {revision}
    assert {pod["metadata"]["labels"][LABEL_CLUSTER] for pod in pods} == {"chat"}

    site.kubectl("scale", "ic", "chat", "--replicas=1")
    eventually("one group is left", lambda: [len(pods) for pods in halves(site).values()] == [2])
    status = (site.get("ic", "chat") or {})["status"]["decode"]
    assert status["wantedReplicas"] == 1
    site.kubectl("patch", "rolescale", "chat-prefill", "--type=merge", "-p", json.dumps({"spec": {"replicas": 1}}))
    eventually("so is prefill", lambda: len(site.pods("chat", "prefill")) == 1)
