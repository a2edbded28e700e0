"""An InferenceCluster whose decode replicas are two pods each, by LeaderWorkerSet's own controller: they start together or not at
all, and are rolled in pairs. Halves go to two nodes where there are two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from ground import lws, rack, serving
from ground.site import Site
from splitwatt_core.names import LABEL_CLUSTER, LABEL_REVISION, LABEL_ROLE, LABEL_WORKER
from splitwatt_lab.judge import Judge

NAME = "wide"
CLUSTER = (f"ic/{NAME}", "-n", serving.NAMESPACE)
COMMAND = ["python", "-m", "splitwatt_twin.pod"]
"""Of the image `splitwatt-engine`. An overlay with `null` would leave vLLM's: it is dropped before the object is stored."""
FLOOR_ABOVE_W = 350 - rack.LEAST_W
"""Of an H100's floor in either phase."""
LOOSE_W = 2800
STARTED_S, ROLLED_S = 180.0, 400.0
DRAIN_S = 30


def wide(site: Site, replicas: int) -> Mapping[str, Any]:
    """Of a type whose replicas may span nodes, with the emulated engine in its place, one GPU a pod: each half of a replica is an
    engine, and the leader answers."""
    cluster: dict[str, Any] = json.loads(
        json.dumps(serving.inference_cluster(site, NAME, prefill=replicas, decode=replicas, gpus=1))
    )
    spec = cluster["spec"]
    spec["engine"]["type"] = "VLLM"
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {LABEL_CLUSTER: NAME}}}
    preferred = [{"weight": 100, "podAffinityTerm": apart}]
    for pool in (spec["prefill"], spec["decode"]):
        pool["drainSeconds"] = DRAIN_S
        pool["template"]["spec"]["containers"] = [{"name": "engine", "command": COMMAND}]
    spec["decode"]["nodesPerReplica"] = 2
    spec["decode"]["template"]["spec"] |= {
        "containers": [{"name": "engine", "command": COMMAND, "args": [serving.MODEL, "--port", "8000"]}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
    }
    return cluster


@pytest.fixture
def with_sets(installed: Site) -> Iterator[Site]:
    """The controller, and no other cluster."""
    site = installed
    site.judge()
    serving.make_namespace(site)
    site.cluster.kubectl("delete", "ic", "--all", "-A", "--timeout=60s")
    lws.install(site)
    yield site
    site.cluster.kubectl("delete", "ic", NAME, "-n", serving.NAMESPACE, "--ignore-not-found")
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))


def sets(site: Site) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = site.get("leaderworkersets", "-n", serving.NAMESPACE)["items"]
    return found


def halves(site: Site) -> Sequence[dict[str, Any]]:
    """Pods of decode's replicas that are not told to go."""
    pods = site.get("pods", "-n", serving.NAMESPACE, "-l", lws.SET_LABEL)["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def gated(pods: Sequence[Mapping[str, Any]]) -> Sequence[bool]:
    return [bool(pod["spec"].get("schedulingGates")) for pod in pods]


def pairs(site: Site) -> set[str]:
    """Revisions that have a prefill engine and a decode replica, leader and worker, that are ready."""
    parts: dict[str, set[str]] = {}
    for pod in serving.living(site, LABEL_REVISION):
        labels = pod["metadata"]["labels"]
        part = labels.get(LABEL_ROLE) or f"worker of {labels.get(LABEL_WORKER, '?')}"
        if any(row["type"] == "Ready" and row["status"] == "True" for row in pod["status"].get("conditions", ())):
            parts.setdefault(labels[LABEL_REVISION], set()).add(part)
    return {revision for revision, its in parts.items() if {"prefill", "decode", "worker of decode"} <= its}


@pytest.mark.timeout(1500)
def test_a_replica_of_two_pods_starts_whole_and_is_rolled_in_pairs(with_sets: Site, judged: Judge) -> None:
    site = with_sets
    site.limit(rack.NAME, rack.limit_w(site, above_least_w=2 * FLOOR_ABOVE_W + FLOOR_ABOVE_W // 2))
    site.apply(wide(site, 1))
    site.await_("both halves are there", lambda: len(halves(site)) == 2, timeout_s=STARTED_S)
    site.await_(
        "it waits for watts",
        lambda: site.condition(*CLUSTER, condition="PowerAdmitted").get("reason") == "InsufficientPower",
        timeout_s=STARTED_S,
    )
    assert gated(halves(site)) == [True, True], "no half of it left the gate"

    limit_w = rack.limit_w(site, above_least_w=3 * FLOOR_ABOVE_W + 10)
    site.limit(rack.NAME, limit_w)
    took_s = site.await_ready(*CLUSTER, timeout_s=STARTED_S)
    pods = halves(site)
    nodes = {pod["spec"]["nodeName"] for pod in pods}
    print(f"both halves on {len(nodes)} of {len(site.cluster.nodes())} nodes, ready {took_s:.0f} s after the patch")
    assert gated(pods) == [False, False] and len(nodes) == min(2, len(site.cluster.nodes()))
    leaders = serving.gpus_of(site, NAME, "decode")
    assert sum(len(slots) for slots in leaders.values()) == 1, "the leader alone is known as an engine"
    assert rack.may_draw_w(site) <= limit_w

    site.limit(rack.NAME, rack.limit_w(site, above_least_w=LOOSE_W))
    site.apply(wide(site, 2))
    site.await_ready(*CLUSTER, timeout_s=STARTED_S)
    site.await_("two of each", lambda: len(halves(site)) == 4 and len(pairs(site)) == 1, timeout_s=STARTED_S)
    [before] = pairs(site)
    seen: list[set[str]] = []

    def rolled() -> bool:
        seen.append(pairs(site))
        over = not site.condition(*CLUSTER, condition="RollingOut")
        return over and len(sets(site)) == 1 and before not in seen[-1] and len(seen[-1]) == 1

    spec = {"spec": {"engine": {"args": ["--block-size=32"]}}}
    site.cluster.kubectl("patch", *CLUSTER, "--type=merge", "-p", json.dumps(spec))
    took_s = site.await_("another revision alone", rolled, timeout_s=ROLLED_S)
    print(f"two and two rolled in {took_s:.0f} s, {len(seen)} looks")
    assert all(seen), "some revision had a pair at every look"
    site.await_ready(*CLUSTER, timeout_s=STARTED_S)
    assert len(halves(site)) == 4 and {pod["metadata"]["labels"][LABEL_CLUSTER] for pod in halves(site)} == {NAME}
