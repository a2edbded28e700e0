"""What a run under the power law is given: budgets, servers, a meter, an actuator, and limits that change. Frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.clusters import Role
from splitwatt_core.gpus.profiles import Profile

from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL
from splitwatt_sim.servers.catalogue import Catalogue

CORE_ROLE: Final = {PREFILL: Role.PREFILL, MIXED: Role.MIXED, DECODE: Role.DECODE}
"""By which the law knows what a server wants."""


@dataclass(frozen=True, slots=True)
class Server:
    """One node: a server of 8 equal GPUs that runs one tensor-parallel replica. `pool`: its number in the scenario.
    `ceiling_w`: the most that a GPU's cap may be, None: the GPU's own maximum."""

    name: str
    pool: int
    leaf: str
    role: int
    gpu: str
    profile: Profile
    priority: int
    ceiling_w: int | None = None


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """`delay_s`: age of the newest sample. `noise_percent`: standard deviation, relative. `outages`: from, to in seconds of
    the run, in which the meter gives no answer."""

    delay_s: float = 2.0
    noise_percent: float = 1.0
    outages: tuple[tuple[float, float], ...] = ()
    seed: int = 1


@dataclass(frozen=True, slots=True)
class LimitChange:
    """The owner of a budget writes another limit at a second of the run."""

    at_s: float
    budget: str
    limit_w: int


@dataclass(frozen=True, slots=True)
class PowerSetup:
    """`servers` stand in the order of the fleet's machines, by role. `latency_s`: from a grant to the limit in the GPU.
    `catalogue` None: the built-in GPUs."""

    model: str
    budgets: tuple[BudgetSpec, ...]
    servers: tuple[Server, ...]
    meter: MeterSettings = MeterSettings()
    latency_s: float = 0.3
    breaker_k_s: float = 214.0
    changes: tuple[LimitChange, ...] = ()
    catalogue: Catalogue | None = None
