"""A cluster that grows on a real API server with real controllers, whose roles' pods are seen at different moments.

A policy of the API server refuses the pods of one role, until the other's are there; its controller goes on trying.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from splitwatt_core.admission.unborn import BIRTH_GRACE_S
from splitwatt_core.names import LABEL_ROLE
from splitwatt_operator.cluster.read import unix_s
from support.serving_site import PAIR_W, Site, idle_w
from support.waiting import eventually

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
RACE_S = 3.0
"""What a slow machine makes of it is no race."""
TRIES = 4


@contextmanager
def refused(site: Site, role: str) -> Iterator[None]:
    """Nobody creates pods of this role."""
    name = f"no-{role}-{site.namespace}"
    space = {"matchLabels": {"kubernetes.io/metadata.name": site.namespace}}
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    refuses = f"object.metadata.?labels[?'{LABEL_ROLE}'].orValue('') != '{role}'"
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    policy = {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": refuses}]}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": space}}
    site.apply({**kind, "kind": "ValidatingAdmissionPolicy", "spec": policy})
    site.apply({**kind, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding})
    pod = {"spec": {"containers": [{"name": "c", "image": "none"}]}, "metadata": {"name": "tried", "labels": {LABEL_ROLE: role}}}
    path = f"/api/v1/namespaces/{site.namespace}/pods?dryRun=All"
    eventually("it refuses", lambda: site.plane.http.post(path, json=pod).status_code == 422)
    try:
        yield
    finally:
        for plural in ("ybindings", "ies"):
            site.plane.http.delete(f"{POLICIES}{plural}/{name}")


def scaled(site: Site, count: int) -> None:
    both = {role: {"replicas": count} for role in ("prefill", "decode")}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps({"spec": both}))


def let_in(pods: Sequence[dict[str, Any]]) -> int:
    return sum("schedulingGates" not in pod["spec"] for pod in pods)


def born_s(pods: Sequence[dict[str, Any]]) -> list[float]:
    return sorted(unix_s(pod["metadata"]["creationTimestamp"]) for pod in pods)


def test_three_of_a_role_that_are_seen_first_leave_the_watts_of_the_other(site: Site) -> None:
    """Watts for two and two, and three and three are asked for."""
    site.add_nodes(6)
    site.limit(idle_w(6) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    for _ in range(TRIES):
        with refused(site, "decode"):
            scaled(site, 3)
            eventually("prefill's are there", lambda: len(site.pods("chat", "prefill")) == 3)
        eventually("decode's are there", lambda: len(site.pods("chat", "decode")) == 3)
        late_s = born_s(site.pods("chat", "decode"))[1] - born_s(site.pods("chat", "prefill"))[-1]
        if late_s < RACE_S:
            break
        scaled(site, 1)  # the machine was too slow to make it a race
        eventually("one of each", lambda: all(len(site.pods("chat", role)) == 1 for role in ("prefill", "decode")))
    else:
        raise AssertionError(f"decode's pods came {late_s:.0f} s late, {TRIES} times")
    eventually("two of each", lambda: all(site.running("chat", role) == 2 for role in ("prefill", "decode")))
    site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    assert [let_in(site.pods("chat", role)) for role in ("prefill", "decode")] == [2, 2]


def test_who_is_never_created_is_waited_for_a_moment_and_no_longer(site: Site) -> None:
    site.add_nodes(6)
    site.limit(idle_w(6) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    with refused(site, "decode"):
        scaled(site, 3)
        row = site.await_condition("chat", "PowerAdmitted", "False", "WaitingForPods")
        assert "Waits a moment for the next decode pod to be created" in row["message"]
        assert let_in(site.pods("chat", "prefill")) == 2, "of a pair more it is half already"
        eventually("prefill goes on without", lambda: let_in(site.pods("chat", "prefill")) == 3)
        took_s = time.time() - born_s(site.pods("chat", "prefill"))[-1]
        assert BIRTH_GRACE_S - 1 <= took_s < BIRTH_GRACE_S + 5, took_s
        assert len(site.pods("chat", "decode")) == 1
