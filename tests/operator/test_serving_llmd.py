"""llm-d's router on a real API server: without the definition of InferencePool, with it, and when it goes again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.serving_site import PAIR_W, Site, idle_w
from support.upstream import install, uninstall
from support.waiting import eventually

POOL = "inferencepools.inference.networking.k8s.io"
LLMD = {"router": {"type": "LLMD"}}


@pytest.fixture
def pools(site: Site) -> Iterator[Site]:
    """A site whose API server serves no InferencePool, whatever the test before did."""
    uninstall(site.plane, "InferencePool")
    yield site
    uninstall(site.plane, "InferencePool")


def test_without_the_definition_one_condition_says_what_to_install_and_all_else_is_done(pools: Site) -> None:
    pools.add_nodes(4)
    pools.limit(idle_w(4) + 2 * PAIR_W)
    pools.cluster("chat", **LLMD)
    pools.cluster("plain")
    row = pools.await_condition("chat", "RouterReady", "False", "NoInferencePool")
    assert "serves no InferencePool" in row["message"] and "kubectl apply -f https://" in row["message"]
    assert pools.await_condition("chat", "Ready", "False", "RouterNotReady")["message"] == row["message"]
    assert [e for e in pools.events("ObjectNotApplied") if e["note"] == row["message"]]
    for kind in ("PrefillReady", "DecodeReady", "PowerAdmitted"):
        pools.await_condition("chat", kind, "True")
    pools.await_condition("plain", "Ready", "True")
    assert (pools.get("deployment", "chat-router") or {})["spec"]["replicas"] == 1

    install(pools.plane, "InferencePool")
    pools.kubectl("annotate", "ic", "chat", "again=yes")
    pools.await_condition("chat", "RouterReady", "True")
    pools.await_condition("chat", "Ready", "True")


def test_a_pool_is_made_kept_and_removed_with_its_router(pools: Site) -> None:
    install(pools.plane, "InferencePool")
    pools.add_nodes(2)
    pools.limit(idle_w(2) + PAIR_W)
    pools.cluster("chat", **LLMD)
    pools.await_condition("chat", "Ready", "True")
    pool = pools.get(POOL, "chat")
    assert pool is not None and pool["spec"]["endpointPickerRef"]["name"] == "chat-router"
    decode = pools.pods("chat", "decode")[0]["spec"]
    assert [c["name"] for c in decode["initContainers"]] == ["routing-sidecar"]

    pools.kubectl("patch", POOL, "chat", "--type=merge", "-p", '{"spec":{"targetPorts":[{"number":1}]}}')
    pools.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"router":{"replicas":2}}}')  # it is looked at
    eventually("the port is back", lambda: (pools.get(POOL, "chat") or {})["spec"]["targetPorts"] == [{"number": 8000}])
    assert any("InferencePool chat" in e["note"] for e in pools.events("DriftRepaired"))

    pools.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"router":{"type":"VLLM"}}}')
    eventually("the pool is gone", lambda: pools.get(POOL, "chat") is None)
    eventually("and so is the picker's Service", lambda: pools.get("service", "chat-router") is None)
    pools.await_condition("chat", "Ready", "True")
    assert not pools.pods("chat", "decode")[0]["spec"].get("initContainers")


def test_somebody_elses_pool_of_the_same_name_is_left_alone(pools: Site) -> None:
    install(pools.plane, "InferencePool")
    pools.add_nodes(2)
    pools.limit(idle_w(2) + PAIR_W)
    spec = {
        "selector": {"matchLabels": {"app": "theirs"}},
        "targetPorts": [{"number": 1}],
        "endpointPickerRef": {"name": "theirs", "port": {"number": 1}},
    }
    meta = {"name": "chat", "namespace": pools.namespace}
    theirs = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": meta, "spec": spec}
    pools.plane.kubectl("apply", "-f", "-", stdin=json.dumps(theirs))
    pools.cluster("chat", **LLMD)
    row = pools.await_condition("chat", "RouterReady", "False", "NoInferencePool")
    assert row["message"] == "InferencePool chat exists already and is not ours: rename it or this InferenceCluster."
    pools.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"router":{"type":"None"}}}')
    pools.await_condition("chat", "Ready", "True")
    assert (pools.get(POOL, "chat") or {})["spec"]["selector"] == spec["selector"]
