"""What Observe would do, as gauges: per GPU from the last decision, per budget from its report. Absent in every other mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from splitwatt_core import names
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.observing import ROLES, Hand

HERTZ_PER_MEGAHERTZ = 1_000_000


class WouldMetrics(Collector):
    """Made when somebody scrapes. `hand` is asked then: what each GPU would be granted by the last decision."""

    def __init__(self) -> None:
        self.reports: Mapping[str, BudgetReport] = {}
        self.hand: Callable[[], Hand] = dict

    def collect(self) -> Iterator[Metric]:
        of_gpu, of_budget = [names.L_NODE, names.L_GPU], [names.L_BUDGET]
        caps = GaugeMetricFamily(names.M_WOULD_CAP_WATTS, "Power limit that Strict would set", labels=of_gpu)
        locks = GaugeMetricFamily(names.M_WOULD_LOCK_HERTZ, "What Strict would lock the SM clock to", labels=of_gpu)
        for (node, uuid), would in self.hand().items() if self.reports else ():
            caps.add_metric([node, uuid], would.cap_w)
            if would.max_clock_mhz is not None:
                locks.add_metric([node, uuid], would.max_clock_mhz * HERTZ_PER_MEGAHERTZ)
        watts = GaugeMetricFamily(
            names.M_BUDGET_WOULD_CUT_WATTS,
            "GPU watts by which Strict would cut present limits",
            labels=[*of_budget, names.L_ROLE],
        )
        gpus = GaugeMetricFamily(names.M_BUDGET_WOULD_CUT_GPUS, "GPUs that Strict would cut", labels=[*of_budget, names.L_ROLE])
        pods = GaugeMetricFamily(names.M_BUDGET_WOULD_HOLD_PODS, "Pods that admission would have held", labels=of_budget)
        lacking = GaugeMetricFamily(
            names.M_BUDGET_WOULD_LACK_WATTS, "Watts that the floors of what runs lack, at the meter", labels=of_budget
        )
        for budget, report in self.reports.items():
            if (cut := report.would) is None:
                continue
            for role in ROLES:
                watts.add_metric([budget, role.value], cut.cut_w.get(role, 0.0))
                gpus.add_metric([budget, role.value], cut.gpus.get(role, 0))
            pods.add_metric([budget], len(cut.held))
            lacking.add_metric([budget], cut.lacking_w)
        yield from (caps, locks, watts, gpus, pods, lacking)
