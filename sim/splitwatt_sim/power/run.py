"""A fleet under the operator's own power law, in virtual time: one loop of moments around the core's keeper and enforcers.

Theory. Between two moments nothing but the fleet engine moves. Moments are: every second (meters, agents' samples, a step
of the keeper), a limit that its owner changes, setter calls that return, draw that has followed a cap, and a step that the
keeper asked for or that an acknowledgement woke, as the operator's own budget loop has it. In one moment hardware comes
first, then owners, then telemetry, then the keeper.

The site is adopted before the first request: GPUs begin at their default limits, idle, and the keeper has WARM_UP_S to bring
them below every limit. Nothing here decides anything about power; the same rules that run on a cluster do.

Not simulated here: failures of any kind but a meter that gives nothing, the node guard (nothing fails that it could guard
against), and time on the network beyond the actuator's latency.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from splitwatt_core.budget.facts import NodeFact, Note, Plan, PodFact
from splitwatt_core.budget.keeper import MIN_GAP_S, Keeper
from splitwatt_core.clusters import Role
from splitwatt_core.columns import Posture
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.policies.signature import Policy
from splitwatt_core.protocol.enforcer import Actions
from splitwatt_truth.breaker import PESSIMISTIC_K_S
from splitwatt_truth.store import ObjectStore

from splitwatt_sim.fleet.run import COMING, MAX_COMING, FleetError, FleetRun
from splitwatt_sim.power.engine import CrowdedError, PowerEngine, check_recorded
from splitwatt_sim.power.judge import FloatArray, Lines, PowerJudge, PowerSeries
from splitwatt_sim.power.meter import SimulatedMeter
from splitwatt_sim.power.plant import DRAW_LAG_S, NAMESPACE, SimulatedNode
from splitwatt_sim.power.setup import CORE_ROLE, LimitChange, PowerSetup
from splitwatt_sim.servers.kinds import GPUS, SERVER_REST_W
from splitwatt_sim.traces.arrivals import Arrivals

WARM_UP_S: Final = 30.0
MAX_NOTES: Final = 1_000
LEAF_LABEL: Final = "splitwatt.io/leaf"
HARDWARE, OWNERS, TELEMETRY, KEEPER = range(4)
TERM: Final = 1


@dataclass(frozen=True, slots=True)
class Told:
    """Something the keeper would make a Kubernetes Event of, at a second of the run."""

    at_s: float
    note: Note


@dataclass(frozen=True, slots=True)
class PowerRun:
    """`fleet`: as without the power law, but energy counts to the end of the last second. `steps`: of the keeper."""

    fleet: FleetRun
    series: PowerSeries
    told: tuple[Told, ...]
    steps: int


Watcher = Callable[["PowerLoop"], None]


def run_power(
    setup: PowerSetup,
    arrivals: Arrivals,
    *,
    policies: Mapping[str, Policy] = POLICIES,
    watch: Watcher | None = None,
    progress: Callable[[int], None] | None = None,
) -> PowerRun:
    """Deterministic. `watch` is called after every moment, `progress` with every second that is over. Raises FleetError."""
    check_recorded(len(setup.servers), arrivals)  # before the keeper has its half minute without load
    coming = COMING
    while coming <= MAX_COMING:
        try:
            return PowerLoop(setup, arrivals, policies=policies, coming=coming).run(watch, progress)
        except CrowdedError:
            coming *= 4
    raise FleetError(f"over {MAX_COMING} sequences wait for one decode machine: lower the rate or add machines")


class PowerLoop:
    """One run. `now_s` is the clock of all facts; requests begin at WARM_UP_S."""

    def __init__(self, setup: PowerSetup, arrivals: Arrivals, *, policies: Mapping[str, Policy], coming: int = COMING) -> None:
        self._setup, self._arrivals, self._coming = setup, arrivals, coming
        self.now_s = 0.0
        self.keeper = Keeper(term=TERM, policies=policies)
        self.store = ObjectStore()
        self.nodes = [SimulatedNode(server) for server in setup.servers]
        self._agents = [node.agent() for node in self.nodes]
        self._number = {server.name: m for m, server in enumerate(setup.servers)}
        self.caps = [node.cap() for node in self.nodes]
        """Watts and MHz that bind each server's draw now; they follow the limits in its GPUs."""
        lines = Lines(setup.budgets, setup.servers)
        self._lines = lines
        self._meters = {name: SimulatedMeter(setup.meter, number=b, begins_s=0.0) for b, name in enumerate(lines.names)}
        self._budgets = {budget.name: budget for budget in setup.budgets}
        self.judge = PowerJudge(lines)
        self.engine: PowerEngine | None = None
        self.plan = Plan()
        self.steps = 0
        self._told: list[Told] = []
        self._heap: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = 0
        self._step_due_s = float("inf")
        self._stepped_s = float("-inf")
        self._idle_w = np.array([float(GPUS * server.profile.idle_w + SERVER_REST_W) for server in setup.servers])

    @property
    def run_s(self) -> float:
        """Seconds since requests began; below 0 before."""
        return self.now_s - WARM_UP_S

    def run(self, watch: Watcher | None, progress: Callable[[int], None] | None) -> PowerRun:
        self._begin()
        second = 0
        while True:
            moment_s = self._heap[0][0]
            if self.engine is not None:
                self.engine.advance(moment_s - WARM_UP_S)
            self.now_s = moment_s
            while self._heap and self._heap[0][0] == moment_s:
                heapq.heappop(self._heap)[3]()
            if self.run_s == 0.0:
                self.judge.start()
            self.judge.look(self.now_s, charges_w=self.charges_w(), management_w=self.management_w())
            if watch is not None:
                watch(self)
            if self.engine is not None and self.run_s >= second + 1:
                second += 1
                if progress is not None:
                    progress(second)
                if self.engine.finished:
                    break
        series = self.judge.series(k_s=self._setup.breaker_k_s, pessimistic_k_s=PESSIMISTIC_K_S)
        return PowerRun(self.engine.result(second), series, tuple(self._told), self.steps)

    # ---------------------------------------------------------------------------------------------------------- moments

    def _at(self, at_s: float, rank: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_s, rank, self._count, action))

    def _begin(self) -> None:
        for budget in self._budgets.values():
            self.keeper.on_budget(budget, self.now_s)
        for node in self.nodes:
            server = node.server
            self.keeper.on_node(NodeFact(server.name, {LEAF_LABEL: server.leaf}, node.boot_id), self.now_s)
            role = CORE_ROLE[server.role]
            self.keeper.on_pod(
                PodFact(
                    NAMESPACE, server.name, role.phase, server.priority, self._setup.model, server.ceiling_w,
                    mixed=role is Role.MIXED,
                )
            )  # fmt: skip
        for change in self._setup.changes:
            self._at(WARM_UP_S + change.at_s, OWNERS, partial(self._change_limit, change))
        self._at(0.0, TELEMETRY, self._second)

    def _second(self) -> None:
        """Telemetry of the second that is over; the keeper's step follows in the same moment."""
        if self.now_s == WARM_UP_S:
            self._open()
        if self.now_s > 0:
            servers_w = self._idle_w if self.run_s <= 0 else self._drawn_w()
            if self.run_s <= 0:
                true_w = self._lines.true_w(servers_w)
            else:
                true_w = self.judge.end_second(self.now_s, servers_w=servers_w, management_w=self.management_w())
            for (name, meter), watts in zip(self._meters.items(), true_w.tolist(), strict=True):
                meter.sample(watts)
                self.keeper.on_meter(name, meter.read(self.now_s, run_s=self.run_s), self.now_s)
            for node, watts in zip(self.nodes, servers_w.tolist(), strict=True):
                self.keeper.on_agent_power(node.server.name, watts - SERVER_REST_W, self.now_s)
        self._at(self.now_s, KEEPER, partial(self._step, self.now_s))
        self._step_due_s = self.now_s
        self._at(self.now_s + 1.0, TELEMETRY, self._second)

    def _open(self) -> None:
        """Requests begin."""
        short = {name: r.posture for name, r in self.plan.budgets.items() if r.posture is Posture.ADOPTING}
        if short:
            raise FleetError(
                f"budgets {', '.join(short)} were not in force after {WARM_UP_S:.0f} s without load: lower latencySeconds"
            )
        self.engine = PowerEngine(
            self._setup.model,
            self._setup.servers,
            self.caps,
            self._arrivals,
            coming=self._coming,
            catalogue=self._setup.catalogue,
        )

    def _drawn_w(self) -> FloatArray:
        assert self.engine is not None
        return self.engine.second_w(int(self.run_s) - 1)

    def _change_limit(self, change: LimitChange) -> None:
        old = self._budgets[change.budget]
        self._budgets[change.budget] = changed = replace(old, limit_w=change.limit_w, generation=old.generation + 1)
        self.keeper.on_budget(changed, self.now_s)
        self._wake(self.now_s)

    # ------------------------------------------------------------------------------------------------------- the keeper

    def _wake(self, at_s: float) -> None:
        """A step is due then, unless one comes earlier anyway."""
        at_s = max(at_s, self._stepped_s + MIN_GAP_S)
        if at_s < self._step_due_s and at_s < np.floor(self.now_s) + 1.0:
            self._step_due_s = at_s
            self._at(at_s, KEEPER, partial(self._step, at_s))

    def _step(self, due_s: float) -> None:
        if due_s != self._step_due_s:
            return  # an earlier step took its place
        self._step_due_s = float("inf")
        self._stepped_s = self.now_s
        self.steps += 1
        plan = self.plan = self.keeper.step(self.now_s)
        assert plan.resign is None, plan.resign
        self.judge.limits(plan.budgets)
        if self.run_s >= 0 and len(self._told) < MAX_NOTES:
            self._told.extend(Told(self.run_s, note) for note in plan.notes if note.kind == "PowerBudget")
        for name in plan.create:
            created = self.store.create(name)
            assert created is not None, "the keeper asks for each object once"
            self.keeper.on_created(name, created, self.now_s)
            self._reach(self._number[name])
        for write in plan.writes:
            self.keeper.on_outcome(write, self.store.write_spec(write), self.now_s)
            self._reach(self._number[write.name])
        self._wake(plan.wake_s)

    # ------------------------------------------------------------------------------------------------ nodes and agents

    def _reach(self, m: int) -> None:
        """The agent reads its object's newest version."""
        self._agents[m].observe(self.store.objects[self.nodes[m].server.name], consistent=True)
        self._look(m)

    def _look(self, m: int) -> None:
        """The agent reads every GPU back; the calls it makes go on their way, and what it found is reported."""
        node, agent = self.nodes[m], self._agents[m]
        calls = agent.look(self.now_s, node.readbacks())
        if calls.set_caps or calls.clocks:
            self._at(self.now_s + self._setup.latency_s, HARDWARE, partial(self._return, m, calls))
        status = agent.status(node.boot_id, node.workloads)
        stored = self.store.objects.get(node.server.name)
        if stored is None or not status.observed_uid or status == stored.status:
            return
        written = self.store.write_status(stored.name, stored.uid, stored.resource_version, status)
        assert written is not None, "nothing comes between in one moment"
        self.keeper.on_node_power(written, self.now_s)
        self._wake(self.now_s + MIN_GAP_S)

    def _return(self, m: int, calls: Actions) -> None:
        node, agent = self.nodes[m], self._agents[m]
        node.perform(calls)
        agent.returned(calls.set_caps, self.now_s)
        self._at(self.now_s + DRAW_LAG_S, HARDWARE, partial(self._bind, m, node.cap()))
        self._look(m)

    def _bind(self, m: int, cap: tuple[int, int]) -> None:
        """Draw has followed the limit that was set a while ago."""
        self.caps[m] = cap
        if self.engine is not None:
            self.engine.set_cap(m, *cap)

    # ------------------------------------------------------------------------------------------------------- the truth

    def charges_w(self) -> FloatArray:
        """float64[M]: what the ledger counts for the GPUs of each server."""
        accounts = self.keeper.roster.nodes
        return np.array(
            [float(sum(gpu.charge_w for gpu in accounts[server.name].gpus.values())) for server in self._setup.servers]
        )

    def management_w(self) -> FloatArray:
        """float64[M]: the management limits of each server's GPUs, summed."""
        return np.array([float(node.management_w) for node in self.nodes])
