"""How fast the clusters answer, from their engines' own histograms in Prometheus.

TTFT is judged on all engines, by the rule in `splitwatt_core.serving.latency`; TBT on those that write answers. One query each
for vLLM's names and for SGLang's serves all clusters. vllm-router 0.1.17 shows no first token: its request durations are of whole
answers, and of streams to their first byte, which an engine sends before any token. No data, no answer and zero are different:
without samples there is no
number, and SLOAttained is Unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from splitwatt_api.promql import with_matchers
from splitwatt_core.clusters import LABEL_ROUTERS, ClusterName, ClusterSpec, LabelOwners, Role
from splitwatt_core.names import L_CLUSTER, L_NAMESPACE, L_POD, L_ROLE, M_SGLANG_TBT, M_SGLANG_TTFT, M_VLLM_TBT, M_VLLM_TTFT
from splitwatt_core.serving.latency import LEVELS, Ttft, ttft_of

from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, Sample

log = logging.getLogger(__name__)

PERIOD_S: Final = 10.0
WINDOW: Final = "1m"
"""Long enough for a 99th percentile of some requests a second, short enough to show what a cut of power did."""
LONGEST_S: Final = 86_400.0
"""No request takes longer than a day: what reads so is no latency."""
LEVEL: Final = "splitwatt_level"
"""Label that tells the quantiles of a query apart."""
POD_NAME: Final = "(.+)-({roles})(?:-[0-9a-f]{{8}})?-[a-z0-9]+-[a-z0-9]+"
"""Of a rendered Deployment's pods: cluster and role, and of a later revision its name, where a scrape does not copy the pods'
labels."""
WRITERS: Final = (Role.DECODE, Role.MIXED)
"""Whose engines write answers."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the last minute. `first_s`: seconds to the first token by role and quantile, of those roles that requests came to.
    None: no requests, or nobody measures."""

    first_s: Mapping[Role, Mapping[float, float]] = field(default_factory=dict)
    tbt_p99_ms: int | None = None

    def ttft(self, spec: ClusterSpec) -> Ttft | None:
        return ttft_of(self.first_s, handed_on=spec.router.type in LABEL_ROUTERS)


def quantile_query(metric: str, roles: Sequence[Role], levels: Sequence[float], matchers: Sequence[str] = ()) -> str:
    """Quantiles in seconds, by namespace, cluster, role and level; `matchers`: those of every query."""
    either = "|".join(role.value for role in roles)
    pod = POD_NAME.format(roles=either)
    labelled = with_matchers(f'{metric}_bucket{{{L_ROLE}=~"{either}"}}', matchers)
    bare = with_matchers(f'{metric}_bucket{{{L_ROLE}="",{L_POD}=~"{pod}"}}', matchers)
    named = f"rate({bare}[{WINDOW}])"
    for label, group in ((L_CLUSTER, "$1"), (L_ROLE, "$2")):
        named = f'label_replace({named}, "{label}", "{group}", "{L_POD}", "{pod}")'
    buckets = f"sum by ({L_NAMESPACE}, {L_CLUSTER}, {L_ROLE}, le) (rate({labelled}[{WINDOW}]) or {named})"
    parts = (f'label_replace(histogram_quantile({level}, {buckets}), "{LEVEL}", "{level}", "", "")' for level in levels)
    return " or ".join(parts)


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
            ours = self._prometheus
            first, gaps, sglang_first, sglang_gaps = await asyncio.gather(
                self._seconds(ours, M_VLLM_TTFT, tuple(Role), LEVELS),
                self._seconds(ours, M_VLLM_TBT, WRITERS, (0.99,)),
                self._seconds(ours, M_SGLANG_TTFT, tuple(Role), LEVELS),
                self._seconds(ours, M_SGLANG_TBT, WRITERS, (0.99,)),
            )
            first, gaps = sglang_first | first, sglang_gaps | gaps
            self.latencies = {name: _latency(first.get(name, {}), gaps.get(name, {})) for name in first.keys() | gaps.keys()}
        except QueryError as error:
            log.warning("latencies unknown: %s", error)
            self.latencies = {}
        except Exception:  # what engines say of themselves is not worth a fleet without control
            log.exception("latencies unknown")
            self.latencies = {}
        for name in before.keys() | self.latencies.keys():
            if before.get(name) != self.latencies.get(name):
                self._changed(name)

    async def _seconds(
        self, prometheus: PrometheusClient, metric: str, roles: Sequence[Role], levels: Sequence[float]
    ) -> dict[ClusterName, dict[Role, dict[float, float]]]:
        samples = await prometheus.vector(quantile_query(metric, roles, levels, prometheus.matchers))
        owners = self._owners()
        found: dict[ClusterName, dict[Role, dict[float, float]]] = {}
        for sample in samples:
            name = owners.of(sample.labels.get(L_NAMESPACE, ""), sample.labels.get(L_CLUSTER, ""))
            of = _role_and_level(sample)
            if name is None or of is None:
                continue
            if 0.0 <= sample.value <= LONGEST_S:
                found.setdefault(name, {}).setdefault(of[0], {})[of[1]] = sample.value
            else:
                log.warning("no latency of its %s engines: %g s", of[0].value, sample.value, extra={"cluster": str(name)})
        return found


def _role_and_level(sample: Sample) -> tuple[Role, float] | None:
    try:
        return Role(sample.labels.get(L_ROLE, "")), float(sample.labels.get(LEVEL, ""))
    except ValueError:
        return None


def _latency(first: Mapping[Role, Mapping[float, float]], gaps: Mapping[Role, Mapping[float, float]]) -> Latency:
    """Of two kinds of engines the slower one's TBT counts, which the 99th percentile of all is at most."""
    seconds = [gaps[role][0.99] for role in WRITERS if 0.99 in gaps.get(role, {})]
    return Latency(first, round(1000 * max(seconds)) if seconds else None)
