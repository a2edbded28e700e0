"""What the running operator's /metrics says of budgets and clusters on a real API server, and no more once one went."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core import names
from support.asking import HTTP
from support.registries import exported
from support.serving_site import PAIR_W, OperatorProcess, Site, idle_w
from support.waiting import eventually

Series = dict[str, list[tuple[Mapping[str, str], float]]]


def told(operator: OperatorProcess) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(HTTP.get(f"{operator.url}/metrics", timeout=10.0).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(operator: OperatorProcess, name: str, **labels: str) -> float | None:
    return next((value for has, value in told(operator).get(name, []) if labels.items() <= has.items()), None)


def test_a_cluster_with_one_pod_at_the_gate_and_its_budget_are_told(site: Site, operator: OperatorProcess) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + PAIR_W)
    site.cluster("chat", slo={"ttftP99Milliseconds": 400})
    site.await_condition("chat", "Ready", "True")
    where = {"namespace": site.namespace, "cluster": "chat"}

    def pods(state: str) -> float | None:
        return value(operator, names.M_CLUSTER_PODS, **where, role="decode", state=state)

    site.kubectl("scale", "ic", "chat", "--replicas=2")
    eventually("the second decode pod waits at the gate", lambda: (pods("Wanted"), pods("Admitted"), pods("Ready")) == (2, 1, 1))
    assert value(operator, names.M_CLUSTER_SLO_SECONDS, **where, latency="TTFT") == 0.4
    eventually("it is told", lambda: value(operator, names.M_CLUSTER_CONDITION, **where, condition="PowerAdmitted") == 0)

    budget = {"budget": site.rack}
    grants = [gpu["capWatts"] for node in site._nodes for gpu in (site.get("np", node) or {})["spec"]["gpus"]]
    assert value(operator, names.M_BUDGET_GPUS, **budget) == len(grants) > 0
    eventually(
        "caps are summed up", lambda: (value(operator, names.M_BUDGET_CAP_WATTS, **budget) or 0) >= min(grants) * len(grants)
    )
    assert value(operator, names.M_BUDGET_CONDITION, **budget, condition="Feasible") == 1
    assert value(operator, names.M_BUDGET_SHORT_WATTS, **budget) == 0

    site.kubectl("delete", "ic", "chat")
    eventually("nothing is told of a cluster that went", lambda: pods("Wanted") is None)


def test_a_running_operator_exports_nothing_that_its_registry_does_not_name(site: Site, operator: OperatorProcess) -> None:
    unknown = {name for name in told(operator) if name not in exported() and not name.endswith("_created")}
    assert unknown == set()
