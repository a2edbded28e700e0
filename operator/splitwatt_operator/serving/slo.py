"""How fast the clusters answer, from their engines' own histograms in Prometheus.

TTFT is judged on the prefill engines, which see a request arrive, TBT on the decode engines, and both on mixed ones. One query
each for vLLM's names and for SGLang's serves all clusters. No data, no answer and zero are different: without samples there is no
number, and SLOAttained is Unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_api.promql import with_matchers
from splitwatt_core.clusters import ClusterName, LabelOwners, Role
from splitwatt_core.names import L_CLUSTER, L_NAMESPACE, L_ROLE, M_SGLANG_TBT, M_SGLANG_TTFT, M_VLLM_TBT, M_VLLM_TTFT

from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError

log = logging.getLogger(__name__)

PERIOD_S: Final = 10.0
WINDOW: Final = "1m"
"""Long enough for a 99th percentile of some requests a second, short enough to show what a cut of power did."""
LONGEST_S: Final = 86_400.0
"""No request takes longer than a day: what reads so is no latency."""


@dataclass(frozen=True, slots=True)
class Latency:
    """99th percentiles of the last minute in milliseconds; None: no requests, or nobody measures."""

    ttft_p99_ms: int | None = None
    tbt_p99_ms: int | None = None


def p99_query(metric: str, role: Role, matchers: Sequence[str] = ()) -> str:
    """The 99th percentile in seconds, by namespace and cluster, over engines of this role and mixed ones; `matchers`: those of
    every query."""
    buckets = with_matchers(f'{metric}_bucket{{{L_ROLE}=~"{role.value}|{Role.MIXED.value}"}}', matchers)
    rate = f"rate({buckets}[{WINDOW}])"
    return f"histogram_quantile(0.99, sum by ({L_NAMESPACE}, {L_CLUSTER}, le) ({rate}))"


class SloMeter:
    """`run` until cancelled. `latencies` of the last round; empty after a failed one."""

    def __init__(
        self, prometheus: PrometheusClient | None, owners: Callable[[], LabelOwners], changed: Callable[[ClusterName], None]
    ) -> None:
        """`owners`: whose each value of the metrics' cluster label is now."""
        self._prometheus = prometheus
        self._owners = owners
        self._changed = changed
        self.latencies: Mapping[ClusterName, Latency] = {}

    async def run(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(PERIOD_S)

    async def read(self) -> None:
        if self._prometheus is None:
            return
        before = self.latencies
        try:
            ttft, tbt, sglang_ttft, sglang_tbt = await asyncio.gather(
                self._p99_ms(self._prometheus, M_VLLM_TTFT, Role.PREFILL),
                self._p99_ms(self._prometheus, M_VLLM_TBT, Role.DECODE),
                self._p99_ms(self._prometheus, M_SGLANG_TTFT, Role.PREFILL),
                self._p99_ms(self._prometheus, M_SGLANG_TBT, Role.DECODE),
            )
            ttft, tbt = sglang_ttft | ttft, sglang_tbt | tbt
            self.latencies = {name: Latency(ttft.get(name), tbt.get(name)) for name in ttft.keys() | tbt.keys()}
        except QueryError as error:
            log.warning("latencies unknown: %s", error)
            self.latencies = {}
        except Exception:  # what engines say of themselves is not worth a fleet without control
            log.exception("latencies unknown")
            self.latencies = {}
        for name in before.keys() | self.latencies.keys():
            if before.get(name) != self.latencies.get(name):
                self._changed(name)

    async def _p99_ms(self, prometheus: PrometheusClient, metric: str, role: Role) -> dict[ClusterName, int]:
        samples, owners = await prometheus.vector(p99_query(metric, role, prometheus.matchers)), self._owners()
        rows = [(owners.of(s.labels.get(L_NAMESPACE, ""), s.labels.get(L_CLUSTER, "")), s.value) for s in samples]
        for name, value in rows:
            if name is not None and not 0.0 <= value <= LONGEST_S:
                log.warning("no latency of its %s engines: %g s", role.value, value, extra={"cluster": str(name)})
        return {name: round(1000 * value) for name, value in rows if name is not None and 0.0 <= value <= LONGEST_S}
