"""A small adversarial world around the core's real code: an API store that delays, reorders and loses, operators that are
replaced in mid-flight, agents that crash and hang, nodes that reboot. Nothing here decides anything about power: keepers
and enforcers do, and `check` compares what they believe with the truth.

Truth kept (PROTOCOL): charge >= the true management limit of every GPU, except after a surprise nobody could have seen;
and no decision raises the sum of charges above the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from splitwatt_core.budgets import BudgetSpec, LimitState, MeterSpec, Selector
from splitwatt_core.contract import GRANTS_PER_TERM, Mode, NodePower, Spec, Status
from splitwatt_core.enforcer import Actions, Enforcer, GpuIdentity, Readback, Record
from splitwatt_core.facts import MeterReading, NodeFact, Outcome, Plan, Rejected, SpecWrite, Unknown, Written
from splitwatt_core.keeper import Keeper
from splitwatt_core.phase_aware import PhaseAware
from splitwatt_core.policy import Policy
from splitwatt_core.uniform import Uniform

DEFAULT_W, MIN_W = 700, 200
RACKS = ("a", "b")


@dataclass(slots=True)
class Gpu:
    """The hardware. `surprised`: a reset or reboot raised its limit behind everybody's back."""

    uuid: str
    true_w: int = DEFAULT_W
    surprised: bool = False
    surprised_at: int = 0
    lies: bool = False
    refuses: bool = False
    outside_w: int | None = None

    @property
    def enforced_w(self) -> int:
        return self.true_w if self.outside_w is None else min(self.true_w, self.outside_w)


@dataclass(slots=True)
class Node:
    name: str
    rack: str
    gpus: dict[str, Gpu]
    boot: int = 0
    present: bool = True
    reports: list[tuple[int, int]] = field(default_factory=list)
    """(version of the object, world's count when its status was read from the hardware)."""

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boot}"


class Store:
    """The API server's etcd for NodePowers: versions, uids, conflicts, and the CEL rule that a term never falls."""

    def __init__(self) -> None:
        self.version = 0
        self.uids = 0
        self.objects: dict[str, NodePower] = {}
        self.log: list[tuple[str, NodePower | None, str]] = []  # name, new version or None, uid of what was deleted
        self.fence = True

    def _put(self, obj: NodePower) -> NodePower:
        self.version += 1
        obj = replace(obj, resource_version=self.version)
        self.objects[obj.name] = obj
        self.log.append((obj.name, obj, ""))
        return obj

    def create(self, name: str, *, spec: Spec | None = None, status: Status | None = None) -> NodePower | None:
        if name in self.objects:
            return None
        self.uids += 1
        return self._put(NodePower(name, f"uid-{self.uids}", 0, spec, status or Status()))

    def delete(self, name: str) -> None:
        gone = self.objects.pop(name, None)
        if gone is not None:
            self.version += 1
            self.log.append((name, None, gone.uid))

    def write_spec(self, write: SpecWrite) -> Outcome:
        obj = self.objects.get(write.name)
        if obj is None or obj.uid != write.uid or obj.resource_version != write.resource_version:
            return Rejected("409")
        if self.fence and obj.spec is not None and write.spec.term < obj.spec.term:
            return Rejected("422 term never falls")
        return Written(self._put(replace(obj, spec=write.spec)))

    def write_status(self, name: str, uid: str, version: int, status: Status) -> NodePower | None:
        obj = self.objects.get(name)
        if obj is None or obj.uid != uid or obj.resource_version != version:
            return None
        return self._put(replace(obj, status=status))


@dataclass(slots=True)
class Sent:
    """A write under way. `told`: the operator was already told that its outcome is unknown."""

    write: SpecWrite
    told: bool = False


class Operator:
    """One start: a keeper, its place in the watch, its writes under way."""

    def __init__(self, world: World, term: int) -> None:
        self.world = world
        self.term = term
        self.holds_lease = True
        self.resigned = False
        self.seen = len(world.store.log)
        self.keeper = Keeper(term=term, policies=world.policies, profiles=())
        self.sent: list[Sent] = []
        self.last: Plan = Plan()
        for spec in world.budgets.values():
            kept = world.limits.get(spec.name)
            self.keeper.on_budget(replace(spec, limit_state=kept, adopted=kept is not None), world.now_s)
        for node in world.nodes.values():
            self.see_node(node)
        for obj in list(world.store.objects.values()):  # the first list is consistent
            self.keeper.on_node_power(obj, world.now_s)

    def see_node(self, node: Node) -> None:
        if node.present:
            self.keeper.on_node(NodeFact(node.name, {"rack": node.rack}, node.boot_id), self.world.now_s)
        else:
            self.keeper.on_node_gone(node.name, self.world.now_s)

    def watch(self, events: int = 1000) -> None:
        """Deliver the next watch events, in order: an operator that is not asked to lags behind."""
        for name, obj, uid in self.world.store.log[self.seen : self.seen + events]:
            self.seen += 1
            if obj is None:
                self.keeper.on_node_power_gone(name, self.world.now_s, uid)
            else:
                self.keeper.on_node_power(obj, self.world.now_s)

    def step(self) -> Plan:
        """Decide; writes go on their way, creations happen at once."""
        now_s = self.world.now_s
        for node in self.world.nodes.values():
            if node.present and self.world.agents[node.name].alive:
                self.keeper.on_agent_power(node.name, 100.0, now_s)
        for name in self.world.budgets:
            self.keeper.on_meter(name, MeterReading(1.0, now_s, 1), now_s)
        before_w = self.charged_sums()
        plan = self.last = self.keeper.step(now_s)
        self.check_decision(before_w, plan)
        if plan.resign is not None:
            self.resigned, self.holds_lease = True, False
        if not self.holds_lease:  # R2: nothing is sent without the Lease
            for write in plan.writes:
                self.keeper.on_outcome(write, Unknown("lease lost before sending"), now_s)
            for name in plan.create:
                self.keeper.on_created(name, None, now_s)
            return plan
        self.world.limits.update({name: report.limit for name, report in plan.budgets.items()})
        for name in plan.create:
            self.keeper.on_created(name, self.world.store.create(name), now_s)
        self.sent.extend(Sent(write) for write in plan.writes)
        for name in plan.verify:
            if name not in self.world.store.objects and not self.world.nodes[name].present:
                self.keeper.on_absence_verified(name, now_s)
        return plan

    def charged_sums(self) -> dict[str, float]:
        """GPU watts charged below each budget, every node in its first leaf."""
        placed, _ = self.keeper.roster.placements(self.keeper.budgets)
        sums: dict[str, float] = dict.fromkeys(self.world.budgets, 0.0)
        for p in placed:
            for gpu in p.node.gpus.values():
                gpu_w = max(gpu.charge_w, gpu.bound_w(trusted=p.node.trusted(self.world.now_s)))
                for name in {p.leaves[0], "row"}:
                    sums[name] += gpu_w
        return sums

    def check_decision(self, before_w: dict[str, float], plan: Plan) -> None:
        """I1: no decision lifts a sum of charges above its limit."""
        if not plan.writes:
            return
        for name, after_w in self.charged_sums().items():
            limit_w = plan.budgets[name].limit.target_w
            assert after_w <= max(before_w[name], limit_w), (
                f"{name}: lifted from {before_w[name]} W to {after_w} W of {limit_w} W"
            )

    def arrive(self, index: int = 0, *, answer: bool = True) -> Outcome | None:
        """A write reaches the store; its answer reaches the operator, or not."""
        if not self.sent:
            return None
        sent = self.sent.pop(index % len(self.sent))
        outcome = self.world.store.write_spec(sent.write)
        if not sent.told:
            self.keeper.on_outcome(sent.write, outcome if answer else Unknown("lost answer"), self.world.now_s)
        return outcome

    def time_out(self, index: int = 0) -> None:
        """The operator gives up waiting, but the write is still under way and may land later."""
        if self.sent:
            sent = self.sent[index % len(self.sent)]
            if not sent.told:
                sent.told = True
                self.keeper.on_outcome(sent.write, Unknown("time-out"), self.world.now_s)

    def settle(self, rounds: int = 6) -> None:
        """Let everything that is under way arrive, with agents answering, for a few seconds."""
        for _ in range(rounds):
            self.world.now_s += 0.6
            self.watch()
            self.step()
            while self.sent:
                self.arrive()
            for agent in self.world.agents.values():
                agent.run()
            self.watch()

    def charge_w(self, node: str, uuid: str) -> int | None:
        account = self.keeper.roster.nodes.get(node)
        if account is None:
            return None
        gpu = account.gpus.get(uuid)
        return None if gpu is None else gpu.charge_w


@dataclass(slots=True)
class Pending:
    """A status on its way, tied to the version it was written on."""

    uid: str
    version: int
    status: Status
    read_at: int


class Agent:
    """One agent process after the other on one node. The disk (`record`) outlives them."""

    def __init__(self, world: World, node: Node) -> None:
        self.world = world
        self.node = node
        self.record = Record()
        self.alive = True
        self.hung: list[tuple[str, int]] = []
        self.hang_next = False
        self.statuses: list[Pending] = []
        self.read_at = 0
        self.start()

    def start(self) -> None:
        identities = {u: GpuIdentity(u, "X", MIN_W * 1000, DEFAULT_W * 1000, DEFAULT_W * 1000) for u in self.node.gpus}
        self.enforcer = Enforcer(gpus=identities, record=self.record)
        self.seen = len(self.world.store.log)
        self.version: NodePower | None = None
        self.alive = True
        self.synced = False

    def crash(self) -> None:
        self.alive = False
        self.hung.clear()

    def read(self) -> None:
        """A consistent read."""
        self.version = self.world.store.objects.get(self.node.name)
        self.enforcer.observe(self.version, consistent=True)
        self.seen = len(self.world.store.log)
        self.synced = True

    def watch(self, events: int = 1000) -> None:
        if not self.synced:
            return
        for name, obj, _uid in self.world.store.log[self.seen : self.seen + events]:
            self.seen += 1
            if name == self.node.name:
                self.version = obj
                self.enforcer.observe(obj, consistent=False)

    def readbacks(self) -> dict[str, Readback]:
        return {u: Readback(g.true_w * 1000, g.enforced_w * 1000) for u, g in self.node.gpus.items()}

    def tick(self, guard_w: dict[str, int] | None = None) -> Actions:
        self.read_at = self.world.count
        actions = self.enforcer.tick(self.world.now_s, self.readbacks(), guard_w=guard_w)
        if actions.persist is not None:
            self.record = actions.persist
            self.enforcer.persisted()
        for call in actions.set_caps:
            self.enforcer.setter_started(call.uuid, self.world.now_s)
            if self.hang_next:
                self.hang_next = False
                self.hung.append((call.uuid, call.cap_mw))
            else:
                self.set(call.uuid, call.cap_mw)
                self.enforcer.setter_finished(call.uuid, self.world.now_s, None)
        return actions

    def set(self, uuid: str, cap_mw: int) -> None:
        gpu = self.node.gpus[uuid]
        if not gpu.lies:
            gpu.true_w, gpu.surprised = cap_mw // 1000, False

    def complete(self, index: int = 0) -> None:
        """A hung setter call completes after all."""
        if self.hung:
            uuid, cap_mw = self.hung.pop(index % len(self.hung))
            self.set(uuid, cap_mw)
            self.enforcer.setter_finished(uuid, self.world.now_s, None)

    def send_status(self) -> None:
        """Put a status on its way, on the version the agent knows."""
        if self.version is None or not self.enforcer.observed_uid:
            return
        status = Status(
            observed_uid=self.enforcer.observed_uid,
            observed_term=self.enforcer.observed_term,
            boot_id=self.node.boot_id,
            gpus=self.enforcer.status({}),
        )
        if status != self.version.status:
            self.statuses.append(Pending(self.version.uid, self.version.resource_version, status, self.read_at))

    def deliver_status(self, index: int = 0) -> bool:
        if not self.statuses:
            return False
        p = self.statuses.pop(index % len(self.statuses))
        written = self.world.store.write_status(self.node.name, p.uid, p.version, p.status)
        if written is not None:
            self.node.reports.append((written.resource_version, p.read_at))
        return written is not None

    def run(self) -> None:
        """One healthy round: read, set, read back, report."""
        if not self.alive:
            return
        if not self.synced:
            self.read()
        self.watch()
        for _ in range(3):
            self.tick()
        self.send_status()
        while self.statuses:
            self.deliver_status()
        self.watch()


@dataclass(slots=True)
class World:
    nodes_per_rack: int = 1
    gpus_per_node: int = 1
    limit_w: int = 900
    policy: str = "Uniform"
    now_s: float = 1000.0
    store: Store = field(default_factory=Store)
    nodes: dict[str, Node] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    budgets: dict[str, BudgetSpec] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    limits: dict[str, LimitState] = field(default_factory=dict)
    """What PowerBudget statuses say: written by the holder of the Lease alone."""
    terms: int = 0
    count: int = 0
    term_step: int = 1
    policies: dict[str, Policy] = field(default_factory=lambda: {"Uniform": Uniform(), "PhaseAware": PhaseAware()})

    def __post_init__(self) -> None:
        self.set_limit(self.limit_w)
        for rack in RACKS:
            for k in range(self.nodes_per_rack):
                self.add_node(f"{rack}{k}", rack)

    def add_node(self, name: str, rack: str) -> None:
        node = Node(name, rack, {f"{name}-g{i}": Gpu(f"{name}-g{i}") for i in range(self.gpus_per_node)})
        self.nodes[name] = node
        self.agents[name] = Agent(self, node)

    def set_limit(self, limit_w: int, **rack_limit_w: int) -> None:
        """The row's limit; each rack may use all of it unless told otherwise: `set_limit(900, a=600, b=300)`."""
        self.limit_w = limit_w
        root = BudgetSpec(
            name="row",
            uid="row",
            generation=1,
            limit_w=limit_w,
            mode=Mode.STRICT,
            policy=self.policy,
            meter=MeterSpec("m"),
        )
        self.budgets = {"row": root}
        for rack in RACKS:
            self.budgets[rack] = BudgetSpec(
                name=rack,
                uid=rack,
                generation=1,
                limit_w=rack_limit_w.get(rack, limit_w),
                parent="row",
                selector=Selector({"rack": rack}),
                unmanaged_w_per_node=DEFAULT_W * self.gpus_per_node,
                meter=MeterSpec("m"),
            )
        for operator in self.operators:
            for spec in self.budgets.values():
                operator.keeper.on_budget(spec, self.now_s)

    # ------------------------------------------------------------------------------------------------- what may happen

    def elect(self, *, keep_old_lease: bool = False) -> Operator:
        """A new operator start. The old one keeps running, without the Lease unless told otherwise."""
        for old in self.operators:
            old.holds_lease = old.holds_lease and keep_old_lease
        self.terms += self.term_step
        operator = Operator(self, self.terms)
        self.operators.append(operator)
        return operator

    @property
    def active(self) -> Operator:
        return self.operators[-1]

    def reboot(self, name: str) -> None:
        """All limits back to default, a new boot id, a new agent; Kubernetes' Node object tells the operator later."""
        node, agent = self.nodes[name], self.agents[name]
        agent.crash()
        node.boot += 1
        for gpu in node.gpus.values():
            self._surprise(gpu)
        agent.start()

    def reset(self, name: str, uuid: str) -> None:
        self._surprise(self.nodes[name].gpus[uuid])

    def _surprise(self, gpu: Gpu) -> None:
        self.count += 1
        gpu.true_w, gpu.surprised, gpu.surprised_at = DEFAULT_W, True, self.count

    def move(self, name: str, rack: str) -> None:
        self.nodes[name].rack = rack

    def tell_nodes(self) -> None:
        for operator in self.operators:
            for node in self.nodes.values():
                operator.see_node(node)

    # -------------------------------------------------------------------------------------------------------- judgement

    def stamped(self) -> bool:
        """The active operator's ledger is complete: every present node carries its term (R3)."""
        accounts = self.active.keeper.roster.nodes
        return all(n in accounts and accounts[n].stamped for n, node in self.nodes.items() if node.present)

    def check(self) -> None:
        """charge >= truth for every GPU, as the active operator believes; and the true sum within the limit."""
        if not self.operators or not self.stamped():
            return
        for node in self.nodes.values():
            for gpu in node.gpus.values():
                charge_w = self.active.charge_w(node.name, gpu.uuid)
                if gpu.surprised:
                    if not self.reported(node, gpu):
                        continue
                    gpu.surprised = False
                if charge_w is None:
                    assert not self.present_and_known(node), f"{gpu.uuid} is charged nothing, truth {gpu.true_w} W"
                    continue
                assert charge_w >= gpu.true_w, f"{gpu.uuid}: charged {charge_w} W, true limit {gpu.true_w} W"

    def reported(self, node: Node, gpu: Gpu) -> bool:
        """The active operator read of the surprise: from now on it must count."""
        account = self.active.keeper.roster.nodes.get(node.name)
        if account is None or account.object is None:
            return False
        seen = account.object.resource_version
        return any(read_at >= gpu.surprised_at for version, read_at in node.reports if version <= seen)

    def present_and_known(self, node: Node) -> bool:
        account = self.active.keeper.roster.nodes.get(node.name)
        return node.present and account is not None and bool(account.gpus)

    def true_sum_w(self) -> int:
        return sum(g.true_w for n in self.nodes.values() for g in n.gpus.values())

    def charged_w(self) -> float:
        return self.active.last.budgets["row"].charge_w


def grant_of(term: int, number: int) -> int:
    return term * GRANTS_PER_TERM + number
