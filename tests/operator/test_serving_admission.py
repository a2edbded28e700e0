"""Pods of InferenceClusters on a real API server with real controllers and kwok's nodes: where power admits them.

Each test has a rack, a budget and a namespace of its own; one operator serves them all.
"""

from __future__ import annotations

from splitwatt_core.clusters import Role, cluster_label
from splitwatt_core.names import LABEL_RACK
from splitwatt_core.rendering.objects import object_name
from support.serving_site import CLIFF_W, GPUS, PAIR_W, OperatorProcess, Site, idle_w
from support.waiting import eventually


def test_a_cluster_becomes_ready_pods_in_its_budget(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    assert site.condition("chat", "PowerAdmitted")["reason"] == "Admitted"
    pods = site.pods("chat")
    assert sorted(p["metadata"]["labels"]["splitwatt.io/role"] for p in pods) == ["decode", "prefill"]
    assert {p["spec"]["nodeName"] for p in pods} == {f"{site.rack}-n0", f"{site.rack}-n1"}
    for pod in pods:
        assert "schedulingGates" not in pod["spec"]
        assert pod["metadata"]["annotations"]["splitwatt.io/power-budget"] == site.rack
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [term] = required["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": LABEL_RACK, "operator": "In", "values": [site.rack]}]
    found = site.get("ic", "chat")
    assert found is not None
    status = found["status"]
    assert status["observedGeneration"] == found["metadata"]["generation"]
    for role in ("prefill", "decode"):
        assert status[role] == {
            "replicas": 1,
            "readyReplicas": 1,
            "admittedReplicas": 1,
            "wantedReplicas": 1,
            "labelSelector": f"splitwatt.io/cluster=chat,splitwatt.io/role={role}",
        }
    assert status["powerFloorWatts"] == 2 * GPUS * CLIFF_W
    assert site.condition("chat", "SLOAttained")["status"] == "Unknown"
    events = site.events("PowerReserved")
    assert f"in {site.rack} (1200 W)" in events[0]["note"]
    assert not found["metadata"].get("finalizers")
    assert {s["metadata"]["name"] for s in site.list("services")} == {"chat", "chat-prefill", "chat-decode"}
    assert len(site.list("poddisruptionbudgets")) == 3


def test_a_long_name_is_served_like_any_other(site: Site) -> None:
    """The CRD admits 253 characters, a label value 63."""
    name = "chat-" + "x" * 95
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster(name)
    site.await_condition(name, "Ready", "True")
    assert site.condition(name, "PowerAdmitted")["reason"] == "Admitted"
    deployment = object_name(name, Role.DECODE)
    assert len(site.pods(cluster_label(name))) == 2
    found = site.get("ic", name)
    assert found is not None
    assert found["status"]["decode"]["admittedReplicas"] == 1
    assert found["status"]["powerFloorWatts"] == 2 * GPUS * CLIFF_W
    site.kubectl("scale", "deployment", deployment, "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", deployment) or {})["spec"]["replicas"] == 1)


def test_short_of_power_says_how_much_and_a_raised_limit_admits(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W - 600)
    site.cluster("chat")
    row = site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    for number in ("1200 W (8 GPUs)", f"PowerBudget {site.rack} has 1800 W left", "600 W are missing"):
        assert number in row["message"]
    assert site.await_condition("chat", "Ready", "False")["reason"] == "WaitingForPower"
    gates = [pod["spec"].get("schedulingGates") for pod in site.pods("chat")]
    assert gates == [[{"name": "splitwatt.io/power"}]] * 2, "both wait, though one alone would fit"
    events = site.events("InsufficientPower")
    assert events[0]["type"] == "Warning"
    site.limit(idle_w(2) + PAIR_W)
    site.await_condition("chat", "Ready", "True")


def test_a_bad_overlay_gets_the_servers_sentence_and_stops_nobody_else(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + 4 * PAIR_W)
    site.cluster("bad", template={"spec": {"containers": [{"name": "engine", "imagePullPolicy": "Sometimes"}]}})
    row = site.await_condition("bad", "Ready", "False", "ObjectsNotApplied")
    assert "Deployment bad-prefill" in row["message"]
    assert "imagePullPolicy" in row["message"] and "Sometimes" in row["message"]
    site.cluster("sly", template={"spec": {"nodeName": f"{site.rack}-n0"}})
    row = site.await_condition("sly", "Ready", "False", "InvalidSpec")
    assert "spec.prefill.template.spec.nodeName bypasses power admission" in row["message"]
    site.cluster("good")
    site.await_condition("good", "Ready", "True")
    site.cluster("sly")
    site.await_condition("sly", "PowerAdmitted", "False", "InsufficientGPUs")


def test_a_restarted_operator_reads_the_reservations_back(site: Site, operator: OperatorProcess) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    before = {pod["metadata"]["uid"] for pod in site.pods("chat")}
    operator.crash()
    site.cluster("late", priority="Low")
    operator.start()
    row = site.await_condition("late", "PowerAdmitted", "False", "InsufficientPower")
    assert f"PowerBudget {site.rack} has 100 W left" in row["message"]
    assert {pod["metadata"]["uid"] for pod in site.pods("chat")} == before
    site.kubectl("delete", "ic", "chat")
    site.await_condition("late", "Ready", "True")


def test_a_rollout_does_not_surge_and_is_admitted_again(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    before = {pod["metadata"]["uid"] for pod in site.pods("chat")}
    site.cluster("chat", engine={"type": "Emulated", "args": ["--max-num-seqs=64"]})

    def renewed() -> bool:
        pods = site.pods("chat")
        assert len(pods) <= 2
        return {p["metadata"]["uid"] for p in pods}.isdisjoint(before) and all(
            p.get("status", {}).get("phase") == "Running" for p in pods
        )

    eventually("both pods are renewed", renewed)
    site.await_condition("chat", "Ready", "True")
