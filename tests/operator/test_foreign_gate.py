"""Foreign pods that ask for power admission by our gate: the operator as a process, a real API server and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER, LABEL_CLUSTER, LABEL_RACK
from support.serving_site import CLIFF_W, GPUS, MIN_W, PAIR_W, OperatorProcess, Site, idle_w
from support.waiting import eventually

ONE_W = GPUS * (CLIFF_W - MIN_W)
"""What one of these pods has reserved."""


def ask(site: Site, name: str, labels: Mapping[str, str], *, asks: bool = True) -> None:
    """A pod of somebody else's for all GPUs of a node of this site, behind our gate. `asks`: with the empty cluster label."""
    gpus = {"nvidia.com/gpu": str(GPUS)}
    container = {"name": "engine", "image": "none", "resources": {"requests": gpus, "limits": gpus}}
    own = {LABEL_CLUSTER: ""} if asks else {}
    meta = {"name": name, "namespace": site.namespace, "labels": {**labels, **own}}
    spec = {"nodeSelector": {LABEL_RACK: site.rack}, "schedulingGates": [{"name": GATE_POWER}], "containers": [container]}
    site.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


def pod(site: Site, name: str) -> dict[str, Any]:
    found = site.get("pod", name)
    assert found is not None
    return found


def gated(site: Site, name: str) -> bool:
    return bool(pod(site, name)["spec"].get("schedulingGates"))


def node_of(site: Site, name: str) -> str:
    found: str = eventually(f"{name} is bound", lambda: pod(site, name)["spec"].get("nodeName"))
    return found


def said(site: Site, reason: str, name: str) -> str:
    def found() -> str | None:
        notes = [e["note"] for e in site.events(reason) if e["regarding"] == {**e["regarding"], "kind": "Pod", "name": name}]
        return notes[0] if notes else None

    note: str = eventually(f"an Event {reason} on {name}", found)
    return note


def test_it_waits_for_its_floor_is_told_why_and_goes_where_the_watts_are(site: Site, operator: OperatorProcess) -> None:
    site.add_nodes(3)
    site.limit(idle_w(3) + ONE_W)
    ask(site, "first", {"llm-d.ai/role": "decode"})
    assert node_of(site, "first").startswith(site.rack)
    assert pod(site, "first")["metadata"]["annotations"][ANNOTATION_BUDGET] == site.rack
    assert f"first in {site.rack} (1200 W)" in said(site, "PowerReserved", "first")

    ask(site, "second", {"nvidia.com/dynamo-component-type": "prefill"})
    ask(site, "train", {"app": "train"})
    assert "prefill 1200 W (8 GPUs) in" in said(site, "InsufficientPower", "second")
    assert "set the label llm-d.ai/role" in said(site, "NoPhase", "train")
    operator.crash()
    operator.start()
    site.cluster("chat")
    site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    assert gated(site, "second") and gated(site, "train"), "a new operator knows what the first pod holds"

    rule = {"podSelector": {"matchLabels": {"app": "train"}}, "phase": "Decode", "priority": 1000}
    here = {**rule, "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": site.namespace}}}
    site.limit(idle_w(3) + 2 * ONE_W, workloads=[here])
    assert node_of(site, "train") != node_of(site, "first"), "a rule gave it a phase and the first rank"
    assert gated(site, "second")
    eventually(
        "it is capped by its rule", lambda: sum(line.get("phase") == "Decode" for i in range(3) for line in site.lines(i)) == 16
    )
    site.kubectl("delete", "pod", "train", "--force", "--grace-period=0")
    site.kubectl("delete", "ic", "chat")
    node_of(site, "second")


def test_nobody_else_is_gated_or_let_in(site: Site) -> None:
    """A pod with no gate runs at once; a gate alone, without the label by which a pod asks, is left as it is."""
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.foreign("plain", node=0, **{"llm-d.ai/role": "decode"})
    ask(site, "silent", {"llm-d.ai/role": "decode"}, asks=False)
    ask(site, "asks", {"llm-d.ai/role": "decode"})
    node_of(site, "asks")
    assert gated(site, "silent")
    for name in ("plain", "silent"):
        assert ANNOTATION_BUDGET not in pod(site, name)["metadata"].get("annotations", {})
