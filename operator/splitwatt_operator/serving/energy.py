"""What a token costs in joules, by cluster and role, of the last minute in Prometheus.

Agents know GPUs, engines know tokens, and only NodePowers say which pod holds a GPU: here the three meet. Watts are means of all
power samples, by GPU whatever role it had meanwhile; whoever has no sample from a minute ago was not there for the whole of
it and has no part. The rule is `splitwatt_core.serving.energy`. No data, no answer and zero are different: there is no figure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from splitwatt_api.promql import with_matchers
from splitwatt_core.admission.pods import Pod
from splitwatt_core.clusters import ClusterName, LabelOwners, Role
from splitwatt_core.names import (
    L_GPU,
    L_NAMESPACE,
    L_NODE,
    L_POD,
    M_GPU_POWER_WATTS,
    M_VLLM_GENERATION_TOKENS,
    M_VLLM_PROMPT_TOKENS,
)
from splitwatt_core.protocol.contract import NodePower
from splitwatt_core.serving.energy import WRITES_ANSWERS, joules_per_token

from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, Sample

log = logging.getLogger(__name__)

PERIOD_S: Final = 15.0
WINDOW: Final = "1m"

PodKey = tuple[str, str]
"""Namespace and name."""
GpuKey = tuple[str, str]
"""Node and UUID."""


def power_query(matchers: Sequence[str] = ()) -> str:
    """Mean watts by node and GPU. A GPU whose role changed has two series, each with its own samples of the one minute."""
    series = with_matchers(M_GPU_POWER_WATTS, matchers)
    by = f"sum by ({L_NODE}, {L_GPU})"
    mean = f"{by} (sum_over_time({series}[{WINDOW}])) / {by} (count_over_time({series}[{WINDOW}]))"
    return f"{mean} and {by} ({series} offset {WINDOW})"


def token_query(metric: str, matchers: Sequence[str] = ()) -> str:
    """Tokens per second by pod; engines of one pod count together."""
    series = with_matchers(metric, matchers)
    by = f"sum by ({L_NAMESPACE}, {L_POD})"
    return f"{by} (rate({series}[{WINDOW}])) and {by} ({series} offset {WINDOW})"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One round's answers: mean watts by GPU; prompt and answer tokens per second by pod."""

    power_w: Mapping[GpuKey, float] = field(default_factory=dict)
    read_per_s: Mapping[PodKey, float] = field(default_factory=dict)
    written_per_s: Mapping[PodKey, float] = field(default_factory=dict)


def prices(
    drawn: Drawn, pods: Iterable[Pod], nodes: Iterable[NodePower], owners: LabelOwners
) -> dict[ClusterName, dict[Role, float]]:
    """Joules per token of every role whose replicas have both watts and tokens, or neither, as one that starts. A GPU that pods
    share is nobody's, and a replica of several pods has watts only where each of them has; its engine speaks for all."""
    held: dict[PodKey, list[float | None]] = {}
    for node in nodes:
        for gpu in node.status.gpus:
            for owner in gpu.owners:
                watts = drawn.power_w.get((node.name, gpu.uuid)) if len(gpu.owners) == 1 else None
                held.setdefault((owner.namespace, owner.pod), []).append(watts)
    power_w: dict[tuple[ClusterName, Role], dict[str, float]] = {}
    tokens: dict[tuple[ClusterName, Role], dict[str, float]] = {}
    dark: set[tuple[ClusterName, Role, str]] = set()
    for pod in pods:
        name = owners.of(pod.name.namespace, pod.label)
        if name is None or pod.role is None or pod.ended or pod.gated:
            continue
        key, of, replica = (pod.name.namespace, pod.name.name), (name, pod.role), pod.group or pod.name.name
        found = [watts for watts in held.get(key, ()) if watts is not None]
        if found and len(found) == len(held[key]) == pod.gpus:
            watts_of = power_w.setdefault(of, {})
            watts_of[replica] = watts_of.get(replica, 0.0) + sum(found)
        else:
            dark.add((*of, replica))
        made = (drawn.written_per_s if WRITES_ANSWERS[pod.role] else drawn.read_per_s).get(key)
        if made is not None:
            tokens_of = tokens.setdefault(of, {})
            tokens_of[replica] = tokens_of.get(replica, 0.0) + made
    for name, role, replica in dark:
        power_w.get((name, role), {}).pop(replica, None)
    priced: dict[ClusterName, dict[Role, float]] = {}
    for (name, role), by_replica in power_w.items():
        price_j = joules_per_token(by_replica, tokens.get((name, role), {}))
        if price_j is not None:
            priced.setdefault(name, {})[role] = price_j
    return priced


class EnergyMeter:
    """`run` until cancelled: shows the prices of each round, and none after a failed one."""

    def __init__(self, prometheus: PrometheusClient | None, view: View, metrics: Metrics) -> None:
        self._prometheus = prometheus
        self._view = view
        self._metrics = metrics

    async def run(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(PERIOD_S)

    async def read(self) -> None:
        if self._prometheus is None:
            return
        found: Mapping[ClusterName, Mapping[Role, float]] = {}
        try:
            drawn = await self._ask(self._prometheus)
            found = prices(drawn, self._view.pods.facts.values(), self._view.node_powers.facts.values(), self._view.owners)
        except QueryError as error:
            log.warning("joules per token unknown: %s", error)
        except Exception:  # a price is not worth a fleet without control
            log.exception("joules per token unknown")
        self._metrics.show_prices(found)

    @staticmethod
    async def _ask(prometheus: PrometheusClient) -> Drawn:
        """Raises QueryError."""
        power, read, written = await asyncio.gather(
            prometheus.vector(power_query(prometheus.matchers), whole=True),
            prometheus.vector(token_query(M_VLLM_PROMPT_TOKENS, prometheus.matchers), whole=True),
            prometheus.vector(token_query(M_VLLM_GENERATION_TOKENS, prometheus.matchers), whole=True),
        )
        return Drawn(_by(power, L_NODE, L_GPU), _by(read, L_NAMESPACE, L_POD), _by(written, L_NAMESPACE, L_POD))


def _by(samples: Iterable[Sample], first: str, second: str) -> dict[tuple[str, str], float]:
    return {(s.labels.get(first, ""), s.labels.get(second, "")): s.value for s in samples if s.value >= 0.0}
