"""The operator's shell on a real API server: one reigns, terms rise, wrong budgets get a sentence and stop no other."""

from __future__ import annotations

import json
import signal
from typing import Any

from splitwatt_core.protocol.contract import MAX_TERM

API = "/apis/splitwatt.io/v1alpha1"


def test_nodes_of_a_leaf_get_a_stamped_node_power_without_grants(datacenter: Any) -> None:
    first, second = datacenter.add_nodes("n1", "n2")
    budget = datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator()
    [term] = operator.reigns()
    for node in (first, second):
        stamped = datacenter.eventually("a stamp", lambda name=node.name: (datacenter.node_power(name) or {}).get("spec"))
        assert stamped["term"] == term
        assert stamped["forUID"] == datacenter.node_power(node.name)["metadata"]["uid"]
        assert stamped["budgets"] == [budget]
        assert stamped["gpus"] == []
    # No agent speaks for these nodes: each counts with its rating.
    row = datacenter.eventually("a decision", lambda: operator.decisions(budget))[-1]
    assert row["charge_w"] == 2 * 10000
    assert row["limit_w"] == row["in_force_w"] == 40000
    status = datacenter.eventually("a status", lambda: datacenter.status(budget))
    assert status["nodes"] == 2
    assert status["posture"] == "Adopting"
    assert operator.metric("splitwatt_budget_limit_watts", budget=budget) == 40000
    assert operator.metric("splitwatt_operator_active") == 1


def test_a_restart_takes_the_next_term_whatever_a_forged_status_says(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator()
    [first] = operator.reigns()
    datacenter.eventually("a stamp", lambda: (datacenter.node_power(node.name) or {}).get("spec"))
    forged = {"observedUID": datacenter.node_power(node.name)["metadata"]["uid"], "observedTerm": MAX_TERM}
    response = datacenter.plane.http.patch(
        f"{API}/nodepowers/{node.name}/status",
        content=json.dumps({"status": forged}),
        headers={"Content-Type": "application/merge-patch+json"},
    )
    response.raise_for_status()
    row = datacenter.await_condition(budget, "Steered", "False", "ContradictoryStatus")
    assert f"{node.name} says that its agent obeyed term {MAX_TERM}" in row["message"]
    assert operator.process.running and operator.reigns() == [first]
    operator.process.kill()
    datacenter.vacate()
    successor = datacenter.active_operator()
    [second] = successor.reigns()
    assert second == first + 1
    assert datacenter.lease()["spec"]["leaseTransitions"] == second
    datacenter.eventually("a new stamp", lambda: datacenter.node_power(node.name)["spec"]["term"] == second)


def test_a_graceful_end_gives_the_lease_up_and_changes_no_spec(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator()
    datacenter.eventually("a stamp", lambda: (datacenter.node_power(node.name) or {}).get("spec"))
    before = datacenter.node_power(node.name)["spec"]
    operator.process.send(signal.SIGTERM)
    assert operator.process.wait(30.0) == 0
    assert datacenter.lease()["spec"].get("holderIdentity", "") == ""
    assert datacenter.node_power(node.name)["spec"] == before


def test_a_second_operator_waits_and_takes_over(datacenter: Any) -> None:
    first = datacenter.active_operator()
    second = datacenter.operator()
    holder = datacenter.lease()["spec"]["holderIdentity"]
    datacenter.eventually("the second waits", lambda: "waiting for the Lease" in second.text)
    assert second.reigns() == []
    assert second.metric("splitwatt_operator_active") == 0
    assert first.metric("splitwatt_operator_active") == 1
    assert datacenter.lease()["spec"]["holderIdentity"] == holder
    first.process.send(signal.SIGTERM)
    datacenter.eventually("the second reigns", second.reigns)
    assert second.reigns()[0] > first.reigns()[0]


def test_a_higher_term_ends_the_process(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    datacenter.budget("leaf", limitWatts=40000)
    operator = datacenter.active_operator()
    datacenter.eventually("a stamp", lambda: (datacenter.node_power(node.name) or {}).get("spec"))
    response = datacenter.plane.http.patch(
        f"{API}/nodepowers/{node.name}",
        content=json.dumps({"spec": {"term": operator.reigns()[0] + 7}}),
        headers={"Content-Type": "application/merge-patch+json"},
    )
    response.raise_for_status()
    assert operator.process.wait(60.0) == 3
    assert "superseded" in operator.text
    successor = datacenter.active_operator()
    assert successor.reigns()[0] > operator.reigns()[0] + 7


def test_a_taken_lease_ends_the_process(datacenter: Any) -> None:
    operator = datacenter.active_operator()
    lease = datacenter.lease()
    stolen = {"holderIdentity": "somebody-else", "leaseTransitions": lease["spec"]["leaseTransitions"] + 1}
    response = datacenter.plane.http.patch(
        f"/apis/coordination.k8s.io/v1/namespaces/{datacenter.namespace}/leases/splitwatt-operator",
        content=json.dumps({"spec": stolen}),
        headers={"Content-Type": "application/merge-patch+json"},
    )
    response.raise_for_status()
    assert operator.process.wait(60.0) == 3
    assert datacenter.lease()["spec"]["holderIdentity"] == "somebody-else"


def test_wrong_budgets_get_a_sentence_and_the_others_go_on(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    good = datacenter.budget("good", limitWatts=40000)
    operator = datacenter.active_operator()
    datacenter.await_condition(good, "Feasible", "True")
    circle_a = datacenter.budget("circle-a", leaf=False, limitWatts=9000, parent=datacenter.name("circle-b"))
    circle_b = datacenter.budget("circle-b", leaf=False, limitWatts=9000, parent=datacenter.name("circle-a"))
    orphan = datacenter.budget("orphan", leaf=False, limitWatts=9000, parent=datacenter.name("nobody"))
    for name in (circle_a, circle_b):
        datacenter.eventually(
            "the cycle is named", lambda name=name: "cycle" in datacenter.condition(name, "Ready").get("message", "")
        )
        assert datacenter.condition(name, "Ready")["reason"] == "InvalidTree"
    row = datacenter.await_condition(orphan, "Ready", "False", "InvalidTree")
    assert datacenter.name("nobody") in row["message"]
    small = datacenter.budget("good", limitWatts=5000)
    row = datacenter.await_condition(small, "Feasible", "False", "MinimumCapsAboveLimit")
    assert "5000 W" in row["message"]
    datacenter.budget("good", limitWatts=40000)
    datacenter.await_condition(good, "Feasible", "True")
    assert operator.process.running


def test_two_leaves_that_claim_one_node_both_say_so(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    left = datacenter.budget("left", limitWatts=40000)
    datacenter.active_operator()
    datacenter.eventually("a stamp", lambda: (datacenter.node_power(node.name) or {}).get("spec"))
    right = datacenter.budget("right", limitWatts=40000)
    for name in (left, right):
        row = datacenter.await_condition(name, "Ready", "False", "OverlappingSelectors")
        assert node.name in row["message"]
    # While both claim it, it counts in both.
    datacenter.eventually("both count it", lambda: datacenter.status(right).get("chargeWatts") == 10000)
    datacenter.plane.http.delete(f"{API}/powerbudgets/{right}")
    datacenter.eventually(
        "the clash is over", lambda: datacenter.condition(left, "Ready").get("reason") != "OverlappingSelectors"
    )


def test_a_changed_limit_is_decided_on_at_once(datacenter: Any) -> None:
    datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000, limitGraceSeconds=3)
    operator = datacenter.active_operator()
    datacenter.eventually("a decision", lambda: operator.decisions(budget))
    datacenter.budget("leaf", limitWatts=45000, limitGraceSeconds=3)
    raised = datacenter.eventually("the raise", lambda: [row for row in operator.decisions(budget) if row["limit_w"] == 45000])[0]
    assert raised["in_force_w"] == 45000
    datacenter.budget("leaf", limitWatts=30000, limitGraceSeconds=3)
    lowered = datacenter.eventually("the cut", lambda: [row for row in operator.decisions(budget) if row["limit_w"] == 30000])[0]
    assert lowered["in_force_w"] == 45000
    in_force = datacenter.eventually(
        "the cut in force", lambda: [row for row in operator.decisions(budget) if row["in_force_w"] == 30000]
    )[0]
    assert in_force["time_s"] - lowered["time_s"] >= 2.9
    datacenter.eventually("it is persisted", lambda: datacenter.status(budget).get("limitInForceWatts") == 30000)
    datacenter.eventually("an Event", lambda: [e for e in datacenter.events("LimitLowered") if e["regarding"]["name"] == budget])
