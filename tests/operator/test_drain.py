"""Nodes are drained while replicas wait for watts: the real eviction API and its disruption controller, and kwok's nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually

ROLES = ("prefill", "decode")


def patched(site: Site, **counts: int) -> None:
    both = {role: {"replicas": count} for role, count in counts.items()}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": both}))


def evicted(site: Site, pod: str) -> int:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": site.namespace}}
    return site.plane.http.post(f"/api/v1/namespaces/{site.namespace}/pods/{pod}/eviction", json=body).status_code


def serving(site: Site, role: str) -> list[tuple[str, str]]:
    """Names and nodes of the pods that run."""
    pods = [pod for pod in site.pods("chat", role) if pod.get("status", {}).get("phase") == "Running"]
    return sorted((pod["metadata"]["name"], pod["spec"]["nodeName"]) for pod in pods)


def allowed(site: Site, role: str) -> int:
    """Pods that may be evicted now, as the disruption controller has it of the budget that stands."""
    budget = site.get("poddisruptionbudgets", f"chat-{role}") or {"metadata": {"generation": 0}}
    status = budget.get("status", {})
    return int(status["disruptionsAllowed"]) if status.get("observedGeneration") == budget["metadata"]["generation"] else 0


@pytest.fixture
def two_of_three(site: Site) -> Iterator[Site]:
    """Three of each are asked for, and there are watts for two. A node for each of them all, and two more."""
    site.add_nodes(6)
    site.limit(idle_w(6) + 2 * PAIR_W)
    site.cluster("chat")
    patched(site, prefill=3, decode=3)
    eventually("two of each", lambda: all(len(serving(site, role)) == 2 for role in ROLES))
    eventually("one of each waits", lambda: all(len(site.pods("chat", role)) == 3 for role in ROLES))
    yield site


def test_a_node_is_drained_while_replicas_wait_for_watts_and_one_replica_goes_at_a_time(two_of_three: Site) -> None:
    site = two_of_three
    eventually("one may go", lambda: all(allowed(site, role) == 1 for role in ROLES))
    (first, _), (second, _) = serving(site, "decode")
    assert evicted(site, first) == 201
    assert evicted(site, second) == 429, "the only one that is left"
    eventually("two of each again", lambda: all(len(serving(site, role)) == 2 for role in ROLES))
    eventually("one may go again", lambda: allowed(site, "decode") == 1)
    name, node = serving(site, "decode")[0]
    site.plane.kubectl("drain", node, "--delete-emptydir-data", "--timeout=60s")
    assert name not in dict(serving(site, "decode"))
    eventually("it came back elsewhere", lambda: all(node != at for _, at in serving(site, "decode")))
    eventually("two of each again", lambda: all(len(serving(site, role)) == 2 for role in ROLES))


def test_what_was_asked_for_and_ran_counts_and_what_is_asked_for_no_more_does_not(two_of_three: Site) -> None:
    site = two_of_three
    site.limit(idle_w(6) + 3 * PAIR_W)
    eventually("three of each", lambda: all(len(serving(site, role)) == 3 for role in ROLES))
    eventually("one may go", lambda: allowed(site, "decode") == 1)
    [(first, _), (second, _), (third, _)] = serving(site, "decode")
    assert [evicted(site, pod) for pod in (first, second, third)] == [201, 429, 429]
    patched(site, decode=1)
    eventually("one is left, and may go", lambda: len(serving(site, "decode")) == 1 and allowed(site, "decode") == 1)
