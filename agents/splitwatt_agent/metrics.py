"""What /metrics, /healthz and /readyz say: a collector turns the control loop's last state into samples when it is asked.

What it protects: a metric never claims to be fresh when its reading is not. A reading older than `STALE_S`, or one that
failed, is left out, so that Prometheus sees a gap; "no data" is never a zero, and never the last value repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from splitwatt_core import names
from splitwatt_core.protocol.contract import SIGN_OF_LIFE_S, Health, Phase

from splitwatt_agent.control import Control
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.state import ControlState
from splitwatt_agent.workloads import WorkloadPoll

log = logging.getLogger(__name__)

STALE_S: Final = 2.0
LINK_WEDGED_S: Final = 3 * SIGN_OF_LIFE_S
"""Of the status writer, which comes round once in a sign of life, a request and a pause."""
WEDGED_S: Final = 15.0
"""A control loop that has not come round for this long is not healthy."""
_GPU: Final = (names.L_NODE, names.L_GPU)
_GPU_ROLE: Final = (names.L_NODE, names.L_GPU, names.L_ROLE)


class AgentCollector(Collector):
    """Samples of one agent, from the state that the control loop has put up last. Ask it on the loop's thread."""

    def __init__(self, control: Control, link: NodePowerLink, poll: WorkloadPoll | None, *, node: str) -> None:
        self._control = control
        self._link = link
        self._poll = poll
        self._node = node

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        state = self._control.state
        fresh = time.monotonic() - state.read_at_s <= STALE_S and not state.trouble
        readings = state.readings if fresh else {}
        power = GaugeMetricFamily(names.M_GPU_POWER_WATTS, "Instant power draw.", labels=_GPU_ROLE)
        enforced = GaugeMetricFamily(names.M_GPU_ENFORCED_CAP_WATTS, "Enforced power limit.", labels=_GPU_ROLE)
        management = GaugeMetricFamily(names.M_GPU_MANAGEMENT_CAP_WATTS, "Power management limit.", labels=_GPU_ROLE)
        granted = GaugeMetricFamily(names.M_GPU_GRANTED_CAP_WATTS, "Cap of the newest accepted grant.", labels=_GPU_ROLE)
        energy = CounterMetricFamily(names.M_GPU_ENERGY_JOULES, "Energy since the driver was loaded.", labels=_GPU)
        clock = GaugeMetricFamily(names.M_GPU_SM_CLOCK_HERTZ, "SM clock.", labels=_GPU)
        capped = GaugeMetricFamily(names.M_GPU_POWER_CAPPED, "1 while the power limit holds clocks down.", labels=_GPU)
        healthy = GaugeMetricFamily(names.M_GPU_HEALTHY, "1 when the GPU can be read and obeys.", labels=_GPU)
        mismatch = CounterMetricFamily(
            names.M_GPU_CAP_MISMATCH, "Setter calls that reported success and left a higher limit.", labels=_GPU
        )
        floor = GaugeMetricFamily(names.M_GPU_FLOOR_WATTS, "What it draws above a cap that was set; 0: caps hold.", labels=_GPU)
        unacked = GaugeMetricFamily(
            names.M_GPU_UNACKED_SECONDS, "How long its newest grant waits to be read back; 0: it was.", labels=_GPU
        )
        for gpu in state.standing.gpus:
            uuid = gpu.uuid
            here = (self._node, uuid)
            grant = state.standing.granted.get(uuid)
            with_role = (*here, Phase.UNASSIGNED.value if grant is None else grant.phase)
            healthy.add_metric(here, 1.0 if gpu.health is Health.OK else 0.0)
            mismatch.add_metric(here, state.mismatches.get(uuid, 0))
            if grant is not None:
                granted.add_metric(with_role, grant.cap_w)
                since_s = state.unacked_since_s.get(uuid)
                unacked.add_metric(here, 0.0 if since_s is None else time.monotonic() - since_s)
            floor.add_metric(here, gpu.floor_w)
            reading = readings.get(uuid)
            if reading is None:
                continue
            back, facts = reading.readback, state.facts.get(uuid)
            for family, value_mw in (
                (power, back.power_mw), (enforced, back.enforced_mw), (management, back.management_mw)
            ):  # fmt: skip
                if value_mw is not None:
                    family.add_metric(with_role, value_mw / 1000)
            if facts is not None and facts.energy_mj is not None:
                energy.add_metric(here, facts.energy_mj / 1000)
            if facts is not None and facts.sm_clock_mhz is not None:
                clock.add_metric(here, facts.sm_clock_mhz * 1e6)
            if facts is not None and facts.power_capped is not None:
                capped.add_metric(here, float(facts.power_capped))
        yield from (power, enforced, management, granted, energy, clock, capped, healthy, mismatch, floor, unacked)
        yield from self._own(state)

    def _own(self, state: ControlState) -> Iterable[Metric]:
        node = (self._node,)
        errors = CounterMetricFamily(names.M_AGENT_NVML_ERRORS, "NVML calls that failed.", labels=(names.L_NODE, "call", "code"))
        for (call, code), count in state.nvml_errors.items():
            errors.add_metric((*node, call, code), count)
        writes = CounterMetricFamily(names.M_AGENT_STATUS_WRITES, "Status writes by outcome.", labels=(names.L_NODE, "outcome"))
        for outcome in ("Done", "Rejected", "Unknown"):
            writes.add_metric((*node, outcome), self._link.writes[outcome])
        live = GaugeMetricFamily(names.M_AGENT_WATCH_LIVE, "1 while the NodePower is watched.", labels=(names.L_NODE,))
        live.add_metric(node, float(self._link.live))
        conditions = GaugeMetricFamily(
            names.M_AGENT_CONDITION, "A condition of the NodePower: 1 True, 0 False.", labels=(names.L_NODE, names.L_CONDITION)
        )
        for condition in () if state.report is None else state.report.conditions:
            if condition.status is not None:
                conditions.add_metric((*node, condition.type), float(condition.status))
        yield from (errors, writes, live, conditions)
        if self._poll is not None:
            up = GaugeMetricFamily(
                names.M_AGENT_POD_RESOURCES_UP, "1 while kubelet's PodResources answers.", labels=(names.L_NODE,)
            )
            up.add_metric(node, float(self._poll.up))
            yield up


def health_of(control: Control, link: NodePowerLink) -> str | None:
    """One sentence when the control loop, or the writer of the status, is wedged. Waiting for a driver, or for an API server,
    is no wedge: both loops come round."""
    now_s = time.monotonic()
    if (silent_s := now_s - control.state.ticked_s) > WEDGED_S:
        return f"the control loop has not come round for {silent_s:.0f} s"
    if (silent_s := now_s - link.round_s) > LINK_WEDGED_S:
        return f"the status of the NodePower was neither written nor tried for {silent_s:.0f} s"
    return None


def unready(control: Control) -> str | None:
    """One sentence while no GPU is governed: no driver yet, or stepped aside. No reason to kill the agent, which waits."""
    state = control.state
    if state.paused_by:
        return f"paused by the node's label {state.paused_by}"
    return f"waiting for the driver: {state.trouble}" if state.trouble else None
