"""What /metrics says of budgets and clusters: no ghost, and no number where nothing is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from splitwatt_core import names
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.tree import new_limit
from splitwatt_core.clusters import ClusterName, SloSpec, cluster_label
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import Condition, condition_to_wire
from splitwatt_core.protocol.contract import Grant, Spec
from splitwatt_operator.metrics import Metrics
from support.served import cluster

CONDITIONS = (
    Condition("WithinBudget", False, "MeasuredAboveLimit", ""),
    Condition("CapsEnforced", True, "ReadBack", ""),
    Condition("Feasible", None, "NoNodes", ""),
)


def said(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def report(**changes: Any) -> BudgetReport:
    plain = BudgetReport("a", new_limit(900, 1.0), 0.0, None, Posture.NORMAL, 2, 16, 0.0, None, CONDITIONS)
    return replace(plain, **changes)


def test_a_budgets_conditions_are_one_zero_or_nothing_that_can_be_compared() -> None:
    metrics = Metrics()
    metrics.show_budgets({"a": report(short_w=40.0)})
    told = {c.type: said(metrics, names.M_BUDGET_CONDITION, budget="a", condition=c.type) for c in CONDITIONS}
    assert told["WithinBudget"] == 0.0 and told["CapsEnforced"] == 1.0
    assert told["Feasible"] is not None and math.isnan(told["Feasible"])
    assert said(metrics, names.M_BUDGET_SHORT_WATTS, budget="a") == 40.0
    assert said(metrics, names.M_BUDGET_GPUS, budget="a") == 16.0
    metrics.show_budgets({})
    assert said(metrics, names.M_BUDGET_CONDITION, budget="a", condition="CapsEnforced") is None


def test_a_budgets_caps_are_those_of_all_below_with_losses_each_node_once() -> None:
    def spec(node: str, *budgets: str, caps_w: tuple[int, ...], overhead: int | None) -> Spec:
        grants = tuple(Grant(f"{node}-{at}", 1, cap_w, cap_w, cap_w) for at, cap_w in enumerate(caps_w))
        return Spec(term=1, for_uid=node, budgets=budgets, overhead_percent=overhead, gpus=grants)

    metrics = Metrics()
    metrics.caps_from(lambda: (
        spec("n1", "rack-1", "row", caps_w=(400, 300), overhead=10),
        spec("n2", "rack-2", "row", "rack-2", "row", caps_w=(200,), overhead=None),
        spec("n3", "gone", caps_w=(700,), overhead=0),
    ))  # fmt: skip
    metrics.show_budgets({name: report(name=name) for name in ("row", "rack-1", "rack-2", "empty")})
    found = {name: said(metrics, names.M_BUDGET_CAP_WATTS, budget=name) for name in ("row", "rack-1", "rack-2", "empty", "gone")}
    assert found == {"row": 970.0, "rack-1": 770.0, "rack-2": 200.0, "empty": 0.0, "gone": None}
    metrics.end_reign()
    assert said(metrics, names.M_BUDGET_CAP_WATTS, budget="row") is None


def test_a_cluster_shows_who_waits_at_the_gate_and_what_is_promised() -> None:
    metrics, spec = Metrics(), replace(cluster("chat"), slo=SloSpec(ttft_p99_ms=400))
    status = {
        "conditions": [condition_to_wire(Condition("PowerAdmitted", False, "InsufficientPower", ""))],
        "prefill": {"replicas": 1, "readyReplicas": 1, "admittedReplicas": 1},
        "decode": {"replicas": 1, "readyReplicas": 0, "admittedReplicas": 0},
    }
    metrics.show_cluster(spec.id, spec, status)
    where = {"namespace": "s", "cluster": "chat"}

    def pods(role: str) -> list[float | None]:
        states = ("Wanted", "Admitted", "Ready")
        return [said(metrics, names.M_CLUSTER_PODS, **where, role=role, state=state) for state in states]

    assert pods("prefill") == [1.0, 1.0, 1.0] and pods("decode") == [1.0, 0.0, 0.0]
    assert said(metrics, names.M_CLUSTER_SLO_SECONDS, **where, latency="TTFT") == 0.4
    assert said(metrics, names.M_CLUSTER_SLO_SECONDS, **where, latency="TBT") is None, "nothing was promised"
    assert said(metrics, names.M_CLUSTER_CONDITION, **where, condition="PowerAdmitted") == 0.0


def test_a_clusters_label_is_the_one_of_its_engines_and_one_never_readable_says_so() -> None:
    metrics, long = Metrics(), ClusterName("s", "chat" * 20)
    status = {"conditions": [condition_to_wire(Condition("Ready", False, "InvalidSpec", "spec.prefill is missing"))]}
    metrics.show_cluster(long, None, status)
    where = {"namespace": "s", "cluster": cluster_label(long.name)}
    assert said(metrics, names.M_CLUSTER_CONDITION, **where, condition="Ready") == 0.0
    assert said(metrics, names.M_CLUSTER_PODS, **where, role="decode", state="Wanted") is None
    metrics.forget_cluster(long)
    assert said(metrics, names.M_CLUSTER_CONDITION, **where, condition="Ready") is None


def test_who_does_not_reign_any_more_shows_nothing_that_another_decides() -> None:
    metrics, spec = Metrics(), cluster("chat")
    metrics.active.set(1)
    metrics.show_budgets({"a": report()})
    metrics.show_cluster(spec.id, spec, {})
    metrics.end_reign()
    assert said(metrics, names.M_OPERATOR_ACTIVE) == 0.0
    assert said(metrics, names.M_BUDGET_CHARGE_WATTS, budget="a") is None
    assert said(metrics, names.M_CLUSTER_PODS, namespace="s", cluster="chat", role="decode", state="Wanted") is None
