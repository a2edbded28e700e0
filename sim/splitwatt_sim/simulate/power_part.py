"""The `power:` section of a scenario: budgets over pools, a policy, and what makes holding them hard.

    power:
      policy: PhaseAware
      budgets:
        - {name: row, limitWatts: 100000}
        - {name: rack-a, parent: row, limitWatts: 60000, pools: [prefill, decode]}
        - {name: rack-b, parent: row, limitWatts: 60000, pools: [prefill, decode]}
      meter: {delaySeconds: 2, noisePercent: 1, outages: [[60, 80]]}
      events: [{atSeconds: 120, budget: row, limitWatts: 80000}]

Field names and meanings are those of a PowerBudget where it has them. Servers of a pool that several budgets name are dealt
out among them in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field
from splitwatt_api.convert_cluster import PRIORITY
from splitwatt_api.inference_cluster import PriorityWord
from splitwatt_core.budget.tree import MAX_LIMIT_W, BudgetSpec, MeterSpec, Selector, Tree, build_tree
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import Mode
from splitwatt_truth.breaker import NOMINAL_K_S

from splitwatt_sim.power.run import LEAF_LABEL
from splitwatt_sim.power.setup import LimitChange, MeterSettings, PowerSetup, Server
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.kinds import GPUS, LOSSES, SERVER_REST_W
from splitwatt_sim.simulate.parts import Part, ScenarioError

MAX_BUDGETS: Final = 64
MAX_EVENTS: Final = 1_000
MAX_OUTAGES: Final = 100
LOSSES_PERCENT: Final = round(100 * LOSSES)

Watts = Annotated[int, Field(ge=0, le=MAX_LIMIT_W, strict=True)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT_W, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Seconds = Annotated[float, Field(ge=0, le=1e7)]


class PowerMode(StrEnum):
    """Observe: decide and report, grant nothing. The run without a power law, to compare with."""

    OBSERVE = "Observe"
    STRICT = "Strict"


class BudgetPart(Part):
    """Without `pools` and without a budget below it: all pools, where it is the only budget."""

    name: Name
    limit_watts: Limit
    parent: Name | None = None
    pools: Annotated[tuple[Name, ...], Field(max_length=MAX_BUDGETS)] = ()
    non_gpu_watts_per_node: Watts = SERVER_REST_W
    fixed_watts: Watts = 0
    overhead_percent: Annotated[int, Field(ge=0, le=100, strict=True)] = LOSSES_PERCENT
    reserve_watts: Watts = 0


class MeterPart(Part):
    """Older samples than 5 s count as none, so a delay of more than 4 s would leave the keeper blind."""

    delay_seconds: Annotated[float, Field(ge=0, le=4)] = 2.0
    noise_percent: Annotated[float, Field(ge=0, le=20)] = 1.0
    outages: Annotated[tuple[tuple[Seconds, Seconds], ...], Field(max_length=MAX_OUTAGES)] = ()


class ActuatorPart(Part):
    latency_seconds: Annotated[float, Field(ge=0, le=20)] = 0.3


class BreakerPart(Part):
    k_seconds: Annotated[float, Field(gt=0, le=1e5)] = NOMINAL_K_S


class EventPart(Part):
    """The owner of a budget writes another limit."""

    at_seconds: Seconds
    budget: Name
    limit_watts: Limit


class PowerPart(Part):
    policy: str = "PhaseAware"
    mode: PowerMode = PowerMode.STRICT
    budgets: Annotated[tuple[BudgetPart, ...], Field(min_length=1, max_length=MAX_BUDGETS)]
    meter: MeterPart = MeterPart()
    actuator: ActuatorPart = ActuatorPart()
    breaker: BreakerPart = BreakerPart()
    events: Annotated[tuple[EventPart, ...], Field(max_length=MAX_EVENTS)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What the power law has to know of a pool. `cap_watts`: the most that a GPU's cap may be."""

    name: str
    role: int
    gpu: str
    profile: Profile
    servers: int
    priority: PriorityWord | int
    cap_watts: int | None


def setup_of(part: PowerPart, pools: Sequence[PoolFacts], *, model: str, seed: int, catalogue: Catalogue) -> PowerSetup:
    """Raises ScenarioError that names the field."""
    if part.policy not in POLICIES:
        raise ScenarioError(f"power.policy: {part.policy} is unknown; use one of {', '.join(POLICIES)}")
    twice = [name for name, count in Counter(pool.name for pool in pools).items() if count > 1]
    if twice:
        raise ScenarioError(f"pools: two are called {twice[0]}; give each a name of its own")
    leaves = _leaves(part.budgets, pools)
    specs = tuple(_spec(budget, part, leaf=budget.name in leaves) for budget in part.budgets)
    tree = build_tree({spec.name: spec for spec in specs})
    if tree.fault:
        name = sorted(tree.fault)[0]
        raise ScenarioError(f"power.budgets: the parents of {name} lead back to it; remove one of them")
    servers = _servers(pools, leaves)
    _check_floors(specs, tree, servers)
    known = {spec.name for spec in specs}
    for event in part.events:
        if event.budget not in known:
            raise ScenarioError(f"power.events: there is no budget {event.budget}; name one of {', '.join(sorted(known))}")
    for begins_s, ends_s in part.meter.outages:
        if begins_s >= ends_s:
            raise ScenarioError(f"power.meter.outages: [{begins_s:g}, {ends_s:g}] must end after it begins")
    return PowerSetup(
        model=model,
        budgets=specs,
        servers=servers,
        meter=MeterSettings(part.meter.delay_seconds, part.meter.noise_percent, part.meter.outages, seed),
        latency_s=part.actuator.latency_seconds,
        breaker_k_s=part.breaker.k_seconds,
        changes=tuple(LimitChange(e.at_seconds, e.budget, e.limit_watts) for e in part.events),
        catalogue=catalogue,
    )


def _spec(budget: BudgetPart, part: PowerPart, *, leaf: bool) -> BudgetSpec:
    return BudgetSpec(
        name=budget.name,
        uid=budget.name,
        generation=1,
        limit_w=budget.limit_watts,
        parent=budget.parent,
        mode=Mode(part.mode.value),
        policy=part.policy,
        reserve_w=budget.reserve_watts,
        selector=Selector({LEAF_LABEL: budget.name}) if leaf else None,
        non_gpu_w_per_node=budget.non_gpu_watts_per_node if leaf else 0,
        fixed_w=budget.fixed_watts,
        overhead_percent=budget.overhead_percent if leaf else 0,
        meter=MeterSpec("simulated"),
    )


def _leaves(budgets: Sequence[BudgetPart], pools: Sequence[PoolFacts]) -> Mapping[str, tuple[str, ...]]:
    """Pools by leaf budget."""
    names = [budget.name for budget in budgets]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ScenarioError(f"power.budgets: two are called {twice[0]}; give each a name of its own")
    parents = {budget.parent for budget in budgets} - {None}
    for budget in budgets:
        if budget.parent is not None and budget.parent not in names:
            raise ScenarioError(
                f"power.budgets: the parent of {budget.name}, {budget.parent}, does not exist; add it or name another"
            )
    known = {pool.name for pool in pools}
    leaves: dict[str, tuple[str, ...]] = {}
    for budget in budgets:
        if budget.name in parents:
            if budget.pools:
                raise ScenarioError(
                    f"power.budgets: {budget.name} has budgets below it, so it must not name pools; move them to one of these"
                )
            continue
        if not budget.pools and len(budgets) > 1:
            raise ScenarioError(f"power.budgets: {budget.name} has neither pools nor budgets below it; name its pools")
        unknown = [name for name in budget.pools if name not in known]
        if unknown:
            raise ScenarioError(
                f"power.budgets: {budget.name} names the pool {unknown[0]}, which does not exist; "
                f"name some of {', '.join(sorted(known))}"
            )
        leaves[budget.name] = tuple(dict.fromkeys(budget.pools)) or tuple(pool.name for pool in pools)
    return leaves


def _servers(pools: Sequence[PoolFacts], leaves: Mapping[str, tuple[str, ...]]) -> tuple[Server, ...]:
    """All servers in the order of the fleet's machines; a pool's are dealt out among the leaves that name it."""
    servers: list[Server] = []
    for number, pool in enumerate(pools):
        places = [leaf for leaf, named in leaves.items() if pool.name in named]
        if not places:
            raise ScenarioError(f"power.budgets: no budget has the pool {pool.name}; name it in the pools of one")
        if len(places) > pool.servers:
            raise ScenarioError(
                f"power.budgets: {len(places)} budgets share the {pool.servers} servers of pool {pool.name}; "
                "name it in fewer of them"
            )
        priority = PRIORITY[pool.priority] if isinstance(pool.priority, PriorityWord) else pool.priority
        for i in range(pool.servers):
            leaf = places[i % len(places)]
            servers.append(Server(f"{pool.name}-{i}", number, leaf, pool.role, pool.gpu, pool.profile, priority, pool.cap_watts))
    return tuple(sorted(servers, key=lambda server: server.role))


def _check_floors(specs: Sequence[BudgetSpec], tree: Tree, servers: Sequence[Server]) -> None:
    """A limit that minimum caps cannot meet is a mistake at the beginning; as an event it is an emergency, and is run."""
    by_name = {spec.name: spec for spec in specs}
    floor_w = dict.fromkeys(by_name, 0.0)
    for spec in specs:
        for up in tree.chain(spec.name):
            floor_w[up] += spec.fixed_w
    for server in servers:
        leaf = by_name[server.leaf]
        for up in tree.chain(server.leaf):
            floor_w[up] += leaf.loss_factor * GPUS * server.profile.min_cap_w + leaf.non_gpu_w_per_node
    for spec in specs:
        needs_w = floor_w[spec.name] + spec.reserve_w
        if needs_w > spec.limit_w:
            raise ScenarioError(
                f"power.budgets: {spec.name} has {spec.limit_w} W, but its servers need {needs_w:.0f} W at their lowest caps, "
                "reserve included; raise limitWatts or take servers out"
            )
