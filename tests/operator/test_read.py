"""Objects of the API server, read whole into facts."""

from __future__ import annotations

from typing import Any

from splitwatt_core.admission.scheduling import NodeRules, NodeTerm, Toleration
from splitwatt_core.budget.facts import NodeFact, Taint
from splitwatt_core.budget.tree import Requirement, Selector
from splitwatt_core.clusters import Role
from splitwatt_operator.cluster import read
from support.objects import Objects


def test_a_pod_is_read_whole() -> None:
    objects = Objects()
    terms = [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["64"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
    ]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    tolerations = [{"key": "team", "value": "a", "effect": "NoSchedule"}, {"operator": "Exists"}]
    meta = {"annotations": {"splitwatt.io/power-budget": "rack-a"}, "deletionTimestamp": "2026-01-01T00:00:09Z"}
    obj = objects.pod(
        "p", "decode", meta=meta, affinity=affinity, nodeName="n1", schedulingGates=[{"name": "other"}], tolerations=tolerations
    )
    pod = read.pod(obj)
    assert (pod.name, pod.role, pod.label, pod.gpus, pod.leaf, pod.node) == (("s", "p"), Role.DECODE, "chat", 8, "rack-a", "n1")
    assert (pod.gated, pod.terminating, pod.ended, pod.version) == (False, True, False, 1)
    assert pod.rules == NodeRules(
        selector=Selector({"pool": "p"}),
        terms=(
            NodeTerm((Requirement("zone", "In", ("a",)),)),
            NodeTerm((Requirement("cores", "Gt", ("64",)),)),
            NodeTerm(fields=(Requirement("metadata.name", "In", ("n1",)),)),
        ),
        tolerations=(Toleration("team", "Equal", "a", "NoSchedule"), Toleration(operator="Exists")),
    )
    assert (pod.other_gates, pod.waits_for) == (("other",), ("other",))
    volcano = "scheduling.volcano.sh/queue-allocation-gate"
    kept = read.pod(objects.pod("v", "decode", schedulingGates=[{"name": volcano}, {"name": "splitwatt.io/power"}]))
    assert (kept.gated, kept.other_gates, kept.waits_for) == (True, (volcano,), ())
    assert read.pod({**obj, "status": {"phase": "Succeeded"}}).ended
    assert read.pod(objects.pod("q", "router")).role is None
    assert read.pod(objects.pod("r", "decode")).gated
    labels = {**obj["metadata"]["labels"], "leaderworkerset.sigs.k8s.io/group-key": "8ce3"}
    part = {**obj, "metadata": {**obj["metadata"], "labels": labels}}
    assert (pod.group, read.pod(part).group) == ("", "leaderworkerset.sigs.k8s.io/group-key/8ce3")


def test_gpus_are_counted_as_the_scheduler_does() -> None:
    def container(gpus: int) -> dict[str, Any]:
        return {"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}

    assert read.gpus_of({"containers": [container(2), {}, container(4)], "initContainers": [container(5)]}) == 6
    assert read.gpus_of({"containers": [container(2)], "initContainers": [container(5)]}) == 5
    sidecar = {**container(3), "restartPolicy": "Always"}
    assert read.gpus_of({"containers": [container(2)], "initContainers": [sidecar]}) == 5
    assert read.gpus_of({"containers": [container(2)], "initContainers": [container(4), sidecar]}) == 5
    assert read.gpus_of({"containers": [container(2)], "initContainers": [sidecar, container(4)]}) == 7
    assert read.gpus_of({"containers": [container(2)], "overhead": {"nvidia.com/gpu": "1"}}) == 3


def test_a_node_is_read_whole() -> None:
    objects = Objects()
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    obj = objects.node("n1", ready="Unknown", unschedulable=True, taints=[taint], providerID="aws:///z/i-1")
    labels = {"rack": "a", "pool": "p"}
    assert read.node(obj) == NodeFact("n1", labels, "b", 8, False, True, (Taint("team", "NoSchedule", "a"),), "aws:///z/i-1")


def test_errors_become_one_line() -> None:
    assert read.sentence_of(KeyError("bootID")) == "'bootID' is missing"
    assert read.sentence_of(ValueError("two\n  lines")) == "two lines"
