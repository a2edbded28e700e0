"""The operator's /metrics. Gauges of a budget that is gone are removed, so that no dashboard shows a ghost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from splitwatt_core import names
from splitwatt_core.budget.keeper import BudgetReport
from splitwatt_core.budget.observing import Hand
from splitwatt_core.clusters import ClusterName, ClusterSpec, Role, cluster_label
from splitwatt_core.conditions import condition_from_wire
from splitwatt_core.protocol.contract import Spec

from splitwatt_operator.would_metrics import WouldMetrics


def _fresh(report: BudgetReport) -> float:
    return float(any(c.status for c in report.conditions if c.type == "TelemetryFresh"))


def _said(status: bool | None) -> float:
    """A condition: 1 True, 0 False, and NaN while it is Unknown, which is neither."""
    return float("nan") if status is None else float(status)


def _measured(report: BudgetReport) -> float:
    """Without a reading the gauge says NaN, never zero watts (I5)."""
    return float("nan") if report.measured_w is None else report.measured_w


_OF_BUDGETS: Final[Sequence[tuple[str, str, Callable[[BudgetReport], float]]]] = (
    (names.M_BUDGET_LIMIT_WATTS, "Limit in the spec, at the meter", lambda r: r.limit.spec_w),
    (names.M_BUDGET_LIMIT_IN_FORCE_WATTS, "Limit that is judged by now", lambda r: r.limit.in_force_w),
    (names.M_BUDGET_CHARGE_WATTS, "What the ledger counts, at the meter", lambda r: r.charge_w),
    (names.M_BUDGET_MEASURED_WATTS, "What the budget's meter shows", _measured),
    (names.M_BUDGET_SHORT_WATTS, "Watts that miss even with every GPU at its minimum, 0: none", lambda r: r.short_w),
    (names.M_BUDGET_GPUS, "GPUs that count here and below", lambda r: r.gpus),
    (names.M_BUDGET_POSTURE, "0 Adopting, 1 Normal, 2 Trim, 3 Shed, 4 Brake", lambda r: int(r.posture)),
    (names.M_BUDGET_TELEMETRY_FRESH, "1 while the budget's meter can be trusted", _fresh),
)


class _Budgets(Collector):
    """The gauges of all budgets, made of their last reports when somebody scrapes: a gauge object for each of hundreds costs a
    scrape several times as much, and every decision as well."""

    def __init__(self) -> None:
        self.reports: Mapping[str, BudgetReport] = {}
        self.specs: Callable[[], Iterable[Spec]] = tuple

    def collect(self) -> Iterator[Metric]:
        for name, text, value in _OF_BUDGETS:
            family = GaugeMetricFamily(name, text, labels=[names.L_BUDGET])
            for budget, report in self.reports.items():
                family.add_metric([budget], value(report))
            yield family
        conditions = GaugeMetricFamily(
            names.M_BUDGET_CONDITION, "A condition of the status: 1 True, 0 False", labels=[names.L_BUDGET, names.L_CONDITION]
        )
        for budget, report in self.reports.items():
            for condition in report.conditions:
                conditions.add_metric([budget, condition.type], _said(condition.status))
        yield conditions
        caps = GaugeMetricFamily(
            names.M_BUDGET_CAP_WATTS, "Granted caps of the GPUs here and below, with losses", labels=[names.L_BUDGET]
        )
        for budget, cap_w in self._cap_sums().items():
            caps.add_metric([budget], cap_w)
        yield caps

    def _cap_sums(self) -> Mapping[str, float]:
        """A budget on two ways counts a node once."""
        sums = dict.fromkeys(self.reports, 0.0)
        for spec in self.specs() if sums else ():
            cap_w = sum(grant.cap_w for grant in spec.gpus) * (100 + (spec.overhead_percent or 0)) / 100
            for budget in set(spec.budgets) & sums.keys():
                sums[budget] += cap_w
        return sums


class _Clusters(Collector):
    """The gauges of all InferenceClusters, made of their last statuses. Their label is the one that their engines carry."""

    def __init__(self) -> None:
        self.seen: dict[ClusterName, tuple[ClusterSpec | None, Mapping[str, Any]]] = {}
        self.prices: Mapping[ClusterName, Mapping[Role, float]] = {}

    def collect(self) -> Iterator[Metric]:
        of = [names.L_NAMESPACE, names.L_CLUSTER]
        conditions = GaugeMetricFamily(
            names.M_CLUSTER_CONDITION, "A condition of the status: 1 True, 0 False", labels=[*of, names.L_CONDITION]
        )
        pods = GaugeMetricFamily(
            names.M_CLUSTER_PODS, "Pods of a role: Wanted, Admitted past their power gate, Ready",
            labels=[*of, names.L_ROLE, names.L_STATE],
        )  # fmt: skip
        slo = GaugeMetricFamily(
            names.M_CLUSTER_SLO_SECONDS, "What 99 of 100 requests are promised: TTFT, TBT", labels=[*of, names.L_LATENCY]
        )
        for name, (spec, status) in self.seen.items():
            labels = [name.namespace, cluster_label(name.name)]
            for condition in map(condition_from_wire, status.get("conditions", ())):
                conditions.add_metric([*labels, condition.type], _said(condition.status))
            if spec is None:
                continue
            for role in spec.roles:
                told = status.get(role.value, {})
                pods.add_metric([*labels, role.value, "Wanted"], spec.role(role).replicas)
                pods.add_metric([*labels, role.value, "Admitted"], told.get("admittedReplicas", 0))
                pods.add_metric([*labels, role.value, "Ready"], told.get("readyReplicas", 0))
            for latency, limit_ms in (("TTFT", spec.slo.ttft_p99_ms), ("TBT", spec.slo.tbt_p99_ms)):
                if limit_ms is not None:
                    slo.add_metric([*labels, latency], limit_ms / 1000)
        price = GaugeMetricFamily(
            names.M_CLUSTER_JOULES_PER_TOKEN,
            "Joules of a role's GPUs for each of its tokens, last minute: of prompts at prefill, of answers elsewhere",
            labels=[*of, names.L_ROLE],
        )
        for name, by_role in self.prices.items():
            for role, price_j in by_role.items() if name in self.seen else ():
                price.add_metric([name.namespace, cluster_label(name.name), role.value], price_j)
        yield from (conditions, pods, slo, price)


class Metrics:
    """One registry of its own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._budgets = _Budgets()
        registry.register(self._budgets)
        self._would = WouldMetrics()
        registry.register(self._would)
        self._clusters = _Clusters()
        registry.register(self._clusters)
        self.api_writes = Counter(names.M_API_WRITES, "Writes sent to the API server", (names.L_KIND,), registry=registry)
        self.api_refusals = Counter(
            names.M_API_REFUSALS, "Writes that the API server refused", (names.L_KIND, names.L_CODE), registry=registry
        )
        self.query_failures = Counter(names.M_QUERY_FAILURES, "Prometheus queries without an answer", registry=registry)
        self._report_failures = Counter(
            names.M_REPORT_FAILURES, "Reports that could not be made or were refused", (names.L_KIND,), registry=registry
        )
        self.events_dropped = Counter(names.M_EVENTS_DROPPED, "Events not sent, for their number", registry=registry)
        self.decision_s = Histogram(
            names.M_DECISION_SECONDS,
            "Time of one decision over all budgets",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            registry=registry,
        )
        self.streams = gauge(names.M_AGENT_STREAMS, "Agents whose own samples are read at this moment")
        self._brakes = Counter(
            names.M_BRAKES, "Brakes over agents' own connections: Held, Over (a later grant was there first), GivenUp",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.active = gauge(names.M_OPERATOR_ACTIVE, "1 in the replica that holds the Lease")
        self.term = gauge(names.M_OPERATOR_TERM, "Fencing term of this replica's reign, 0 before the first")

    def count_write(self, kind: str) -> None:
        """`kind` is the Kubernetes kind, with its subresource after a slash."""
        self.api_writes.labels(kind).inc()

    def count_refusal(self, kind: str, status: int) -> None:
        """`status` is the HTTP status."""
        self.api_refusals.labels(kind, str(status)).inc()

    def count_brake(self, outcome: str) -> None:
        self._brakes.labels(outcome).inc()

    def count_report_failure(self, kind: str) -> None:
        """`kind`: of the object whose status it was, or what else was to be told."""
        self._report_failures.labels(kind).inc()

    def show_budgets(self, reports: Mapping[str, BudgetReport]) -> None:
        self._budgets.reports = self._would.reports = reports

    def caps_from(self, specs: Callable[[], Iterable[Spec]]) -> None:
        """Where the specs of all NodePowers are found when somebody scrapes."""
        self._budgets.specs = specs

    def would_from(self, hand: Callable[[], Hand]) -> None:
        """Where what Observe would grant is found when somebody scrapes."""
        self._would.hand = hand

    def show_cluster(self, name: ClusterName, spec: ClusterSpec | None, status: Mapping[str, Any]) -> None:
        """`status` as it is to be written; `spec` by which it is served, None where none could ever be read."""
        self._clusters.seen[name] = (spec, status)

    def show_prices(self, prices: Mapping[ClusterName, Mapping[Role, float]]) -> None:
        """Joules per token, where they are known now."""
        self._clusters.prices = prices

    def forget_cluster(self, name: ClusterName) -> None:
        self._clusters.seen.pop(name, None)

    def end_reign(self) -> None:
        """What another replica decides from now on is not ours to show."""
        self.active.set(0)
        self._budgets.reports = self._would.reports = {}
        self._clusters.seen, self._clusters.prices = {}, {}
