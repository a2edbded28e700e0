"""The watts of an oversubscribed room: what is known of the published one, and what caps a budget has room for.

Theory. A fleet of n GPUs fits a budget of B watts for certain when

    sum over GPUs of (declared rest + (1 + losses) * cap)  <=  B,

the rest being everything beside the GPU: its share of hosts, fans, switches, conversion of their watts. Published are B, two
counts of GPUs and one share of B that was drawn (`Published`), and no figure of the rest. It can be told from the share only
by assuming what a GPU draws:

    rest = share * B / n - (1 + losses) * mean draw of a GPU.

Two readings of the static fleet follow. With the GPU's largest cap its charge may come out below B / 140. Then either their
GPU has a larger limit than our profile's, or B / 140 holds a margin that nothing draws. Both leave the same watts per GPU.

Protects: caps come from the operator's own policies (`Policy.decide`), never from a copy of their arithmetic, and `RoomReading`
refuses to call caps fitting that its sum does not bear out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from splitwatt_core.columns import BudgetColumns, GpuColumns, PhaseCode, Posture
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.policies.signature import Policy, PowerSnapshot
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.servers.kinds import GPUS, LOSSES

SLACK_W: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Published:
    """NVIDIA DPS / MaxLPS, closed, as its vendor publishes it (docs/facts.md, others): one budget, before and after."""

    budget_w: float = 264_400.0
    static_gpus: int = 140
    gpus: int = 192
    tokens_gain: float = 0.492
    ttft_p99_worse: float = 0.17
    share_used: float = 0.752

    @property
    def static_w(self) -> float:
        """Of the budget for each GPU of the static fleet, all in."""
        return self.budget_w / self.static_gpus

    @property
    def drawn_w(self) -> float:
        """Mean all-in draw for each GPU at the published operating point."""
        return self.share_used * self.budget_w / self.gpus

    def rest_w(self, gpu_w: float) -> float:
        """The rest that is left of `drawn_w` when a GPU draws this in the mean."""
        return self.drawn_w - (1 + LOSSES) * gpu_w


PUBLISHED: Final = Published()


@dataclass(frozen=True, slots=True)
class Caps:
    """Watts per GPU by pool; `decode_w` of an unsplit fleet counts nothing."""

    prefill_w: int
    decode_w: int


@dataclass(frozen=True, slots=True)
class RoomReading:
    """How a room is read. rest_w: drawn beside each GPU. rest_spare: how much more is declared, as a share of it. rooms: how
    many published budgets are taken together; two of them hold a whole number of servers before (35)."""

    rest_w: float
    rest_spare: float = 0.0
    rooms: int = 2

    @property
    def budget_w(self) -> float:
        return self.rooms * PUBLISHED.budget_w

    @property
    def static_servers(self) -> int:
        """Whole servers of the static fleet."""
        return self.rooms * PUBLISHED.static_gpus // GPUS

    @property
    def declared_w(self) -> float:
        return self.rest_w * (1 + self.rest_spare)

    def charge_w(self, pools: Sequence[tuple[int, float]]) -> float:
        """What the budget counts for pools of (servers, cap)."""
        return sum(servers * GPUS * (self.declared_w + (1 + LOSSES) * cap_w) for servers, cap_w in pools)

    def allowance_w(self, servers: int) -> float:
        """At the meter, left for the GPUs of so many servers; below 0 where not even their rest fits."""
        return self.budget_w - servers * GPUS * self.declared_w

    def most_servers(self, cap_w: float) -> int:
        """That fit with every GPU at this cap."""
        return int((self.budget_w + SLACK_W) // (GPUS * (self.declared_w + (1 + LOSSES) * cap_w)))

    def per_room(self, servers: int) -> float:
        """GPUs for each published budget."""
        return servers * GPUS / self.rooms

    def share(self, gpus_w: float, servers: int) -> float:
        """Of the budget, drawn while the GPUs of so many servers draw `gpus_w` together."""
        return (servers * GPUS * self.rest_w + (1 + LOSSES) * gpus_w) / self.budget_w


def static_margin_w(rest_w: float, max_cap_w: float) -> float:
    """Watts per GPU of the static fleet that a GPU at its largest cap and its rest leave over; below 0: the static fleet
    itself cannot hold such GPUs at that cap."""
    return PUBLISHED.static_w - rest_w - (1 + LOSSES) * max_cap_w


def caps_for(policy: Policy, reading: RoomReading, profile: Profile, *, prefill_servers: int, decode_servers: int) -> Caps | None:
    """What the policy gives the two pools of one budget (`decode_servers` 0: an unsplit fleet, which it takes for prefill);
    None where even minimum caps do not fit. Raises AssertionError if the caps' sum exceeds the budget."""
    servers = prefill_servers + decode_servers
    decision = policy.decide(_snapshot(reading, profile, prefill_servers, decode_servers), 0.0)
    if decision.short_w[0] > 0:
        return None
    prefill, decode = decision.cap_w[: prefill_servers * GPUS], decision.cap_w[prefill_servers * GPUS :]
    assert len(set(prefill.tolist())) == 1 and len(set(decode.tolist())) <= 1, "equal GPUs of a budget stand equal"
    caps = Caps(int(prefill[0]), int(decode[0]) if decode_servers else int(prefill[0]))
    charge_w = reading.charge_w([(prefill_servers, caps.prefill_w), (decode_servers, caps.decode_w)])
    assert charge_w <= reading.budget_w + SLACK_W, f"{servers} servers are charged {charge_w:.0f} W"
    return caps


def _snapshot(reading: RoomReading, profile: Profile, prefill_servers: int, decode_servers: int) -> PowerSnapshot:
    """One budget, one priority, every server a group of GPUs that share a cap."""
    rows = {PhaseCode.PREFILL: profile.phase(Phase.PREFILL), PhaseCode.DECODE: profile.phase(Phase.DECODE)}
    servers = prefill_servers + decode_servers
    codes = [PhaseCode.PREFILL] * (prefill_servers * GPUS) + [PhaseCode.DECODE] * (decode_servers * GPUS)
    phases = [row for code in codes if (row := rows[code]) is not None]
    n = servers * GPUS
    assert len(phases) == n, f"{profile.name} describes both phases"
    return PowerSnapshot(
        budgets=BudgetColumns(
            names=("room",),
            parent=np.array([-1], np.int32),
            allowance_w=np.array([reading.allowance_w(servers)]),
            posture=np.array([Posture.NORMAL], np.int8),
        ),
        gpus=GpuColumns(
            leaf=np.zeros(n, np.int32),
            group=np.repeat(np.arange(servers, dtype=np.int32), GPUS),
            phase=np.array(codes, np.int8),
            priority=np.zeros(n, np.int16),
            loss_factor=np.full(n, 1 + LOSSES),
            min_w=np.full(n, float(profile.min_cap_w)),
            max_w=np.full(n, float(profile.default_cap_w)),
            natural_w=np.array([row.natural_w for row in phases], np.float64),
            cliff_w=np.array([row.cliff_w for row in phases], np.float64),
            cap_w=np.full(n, float(profile.default_cap_w)),
        ),
    )
