"""One start of an operator in `support.world`: the core's own keeper, its place in the watch, its writes under way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from splitwatt_core.budget.claims import managed
from splitwatt_core.budget.facts import MeterReading, NodeFact, Outcome, Plan, SpecWrite, Unknown
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.columns import Posture
from support.machines import PROFILE, Node

if TYPE_CHECKING:
    from support.world import World


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
        self.born_s = world.now_s
        self.holds_lease = True
        self.resigned = False
        self.seen = len(world.store.log)
        self.keeper = Keeper(term=term, policies=world.policies, profiles=(PROFILE,))
        self.sent: list[Sent] = []
        self.last: Plan = Plan()
        if world.contract_uid:
            self.keeper.on_contract_crd(world.contract_uid)
        for spec in world.budgets.values():
            uid, kept, adopted = world.limits.get(spec.name, ("", None, False))
            known = uid == spec.uid
            noted = world.noted.get(spec.name, "") if known else ""
            below = world.below.get(spec.name, ()) if known else ()
            self.keeper.on_budget(
                replace(spec, limit_state=kept if known else None, adopted=adopted and known, below=below, contract_uid=noted),
                world.now_s,
            )
        for pod in world.pods.values():
            self.keeper.on_pod(pod)
        for node in world.nodes.values():
            self.see_node(node)
        for obj in list(world.store.objects.values()):  # the first list is consistent
            self.keeper.on_node_power(obj, world.now_s)

    def see_node(self, node: Node) -> None:
        if node.present:
            rack = self.world.labels.get(node.name, node.rack)
            labels = {} if rack is None else {"rack": rack}
            self.keeper.on_node(NodeFact(node.name, labels, node.boot_id), self.world.now_s)
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

    def read_telemetry(self) -> None:
        world = self.world
        for node in world.nodes.values():
            if world.agents[node.name].alive:
                drawn_w = sum(gpu.draw_w for gpu in node.gpus.values())
                self.keeper.on_agent_power(node.name, float(drawn_w), world.now_s)
        for name in world.budgets:
            if name not in world.dark:
                self.keeper.on_meter(name, MeterReading(world.meter_w(name), world.now_s, 1), world.now_s)

    def step(self) -> Plan:
        """Decide; writes go on their way, creations happen at once."""
        now_s = self.world.now_s
        self.read_telemetry()
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
        for name, report in plan.budgets.items():
            if name in self.world.budgets:
                adopted = report.posture is not Posture.ADOPTING
                self.world.limits[name] = (self.world.budgets[name].uid, report.limit, adopted)
                self.world.below[name], self.world.noted[name] = report.below, report.contract_uid
        for name in plan.create:
            self.keeper.on_created(name, self.world.store.create(name), now_s)
        self.sent.extend(Sent(write) for write in plan.writes)
        for name in plan.verify:
            if name not in self.world.store.objects and not self.world.nodes[name].present:
                self.keeper.on_absence_verified(name, now_s, self.world.contract_uid)
        return plan

    def charged_sums(self) -> dict[str, float]:
        """Watts at the meter charged below each budget, every node once in each."""
        keeper, lines = self.keeper, self.world.lines
        moves = {name: dict(of_node) for name, of_node in keeper.roster.moves.items()}
        keeper._settle_tombstones(self.world.now_s)
        standing, tree = keeper.standing, keeper.tree
        placed, _ = keeper.roster.placements(standing, tree=tree, observing=tree.observing(standing))
        keeper.roster.moves = moves  # looking must not move anything on
        sums = dict.fromkeys(standing, 0.0)
        for name in sums:
            for up in keeper.tree.chain(name):
                sums[up] += lines[name].fixed_w
        for p in placed:
            keeper._refresh(p.node, self.world.now_s)
            gpu_w = sum(gpu.charge_w for gpu in p.node.gpus.values())
            counted: set[str] = set()
            here = [lines[name] for name in p.leaves if lines[name].leaf]
            for leaf in p.leaves:
                of = [lines[leaf]] if lines[leaf].leaf else here
                rest_w = max(line.non_gpu_w if managed(p.node) else self.world.flat_w(line) for line in of)
                watts = max(line.loss_factor for line in of) * gpu_w + rest_w
                for name in keeper.tree.chain(leaf):
                    if name not in counted:
                        counted.add(name)
                        sums[name] += watts
        return sums

    def check_decision(self, before_w: dict[str, float], plan: Plan) -> None:
        """I1: no decision lifts a sum of charges above its limit."""
        if not plan.writes:
            return
        observing = self.keeper.tree.observing(self.keeper.standing)
        for write in plan.writes:
            seen = self.keeper.roster.nodes[write.name].object
            old = seen.spec.gpus if seen is not None and seen.spec is not None else ()
            if not observing.isdisjoint(write.spec.budgets[:1]):
                new = {(g.uuid, g.grant) for g in write.spec.gpus} - {(g.uuid, g.grant) for g in old}
                assert not new, f"{write.name}: Observe grants nothing, but {new}"
        for name, after_w in self.charged_sums().items():
            if name not in plan.budgets:
                continue  # a tombstone: its sum is held, not reported
            limit_w = plan.budgets[name].limit.aim_w
            assert after_w <= max(before_w[name], limit_w) + 1e-6, (
                f"{name}: lifted from {before_w[name]} W to {after_w} W of {limit_w} W"
            )
            assert abs(before_w[name] - plan.budgets[name].charge_w) < 1e-6, (
                f"{name}: counted {before_w[name]} W, reported {plan.budgets[name].charge_w} W"
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
