"""One start of an operator in `support.world`: the core's own keeper, its place in the watch, its writes under way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from splitwatt_core.budget.facts import MeterReading, NodeFact, Outcome, Plan, Rejected, SpecWrite, Unknown
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.writer import rebased
from splitwatt_core.columns import Posture
from support.machines import PROFILE, Node
from support.sums import charged_sums

if TYPE_CHECKING:
    from support.world import World


TOLERANCE_W: Final = 1e-6


@dataclass(slots=True)
class Sent:
    """A write under way. `told`: the operator was already told that its outcome is unknown."""

    write: SpecWrite
    told: bool = False
    decided: SpecWrite | None = None
    """What the keeper asked for, where `write` is that on a newer version."""

    @property
    def asked(self) -> SpecWrite:
        return self.decided or self.write


class Operator:
    """One start: a keeper, its place in the watch, its writes under way."""

    def __init__(self, world: World, term: int) -> None:
        self.world = world
        self.term = term
        self.born_s = world.now_s
        self.holds_lease = True
        self.resigned = False
        self.seen = len(world.store.log)
        self.kinds = world.store.kinds
        self.keeper = Keeper(term=term, policies=world.policies, profiles=(PROFILE,))
        self.sent: list[Sent] = []
        self.last: Plan = Plan()
        self.told: dict[str, str | None] = {}
        """By node: the label that it last heard of."""
        self.told_released: dict[str, bool] = {}
        """By node: whether a person wants its default limits back."""
        self._heard: dict[str, tuple[str | None, bool, str]] = {}
        self.see_kind()
        self.blind = False
        """It starts under another CRD than its predecessor noted: it need not know everybody, and may raise nobody."""
        for spec in world.budgets.values():
            uid, kept, adopted = world.limits.get(spec.name, ("", None, False))
            known = uid == spec.uid
            below = world.below.get(spec.name, ()) if known else ()
            noted = world.noted.get(spec.name, "") if known else ""
            self.blind = self.blind or noted not in ("", world.contract_uid)
            told = replace(spec, limit_state=kept if known else None, adopted=adopted and known, below=below, contract_uid=noted)
            self.keeper.on_budget(told, world.now_s)
        for pod in world.pods.values():
            self.keeper.on_pod(pod)
        for node in world.nodes.values():
            self.see_node(node)
        for obj in list(world.store.objects.values()):  # the first list is consistent
            self.keeper.on_node_power(obj, world.now_s)

    def tells_news(self, node: Node) -> bool:
        """Whether it has not heard of the Node as it is."""
        return self._heard.get(node.name) != (self.world.label(node), node.present, node.boot_id)

    def see_node(self, node: Node) -> None:
        label = self.told[node.name] = self.world.label(node)
        self._heard[node.name] = label, node.present, node.boot_id
        if node.present:
            labels = self.world.node_labels(node)
            self.told_released[node.name] = node.name in self.world.released
            self.keeper.on_node(NodeFact(node.name, labels, node.boot_id), self.world.now_s)
        else:
            self.keeper.on_node_gone(node.name, self.world.now_s)

    def see_kind(self) -> None:
        if self.world.contract_uid:
            self.keeper.on_contract_crd(self.world.contract_uid)

    @property
    def behind(self) -> bool:
        """Whether its watch has something to tell."""
        store = self.world.store
        return self.seen < len(store.log) or (store.served and self.kinds != store.kinds)

    def watch(self, events: int = 1000) -> None:
        """Deliver the next watch events, in order: an operator that is not asked to lags behind."""
        if self.kinds != self.world.store.kinds or not self.world.store.served:
            self._list_anew()
        for name, obj, uid in self.world.store.log[self.seen : self.seen + events]:
            self.seen += 1
            if obj is None:
                self.keeper.on_node_power_gone(name, self.world.now_s, uid)
            else:
                self.keeper.on_node_power(obj, self.world.now_s)

    def _list_anew(self) -> None:
        """The kind was deleted: nothing is heard until it is served again, and then only who is left."""
        store, now_s = self.world.store, self.world.now_s
        if not store.served:
            return
        self.kinds, self.seen = store.kinds, len(store.log)
        for name in [n for n in self.keeper.roster.nodes if n not in store.objects]:
            self.keeper.on_node_power_gone(name, now_s)
        for obj in list(store.objects.values()):
            self.keeper.on_node_power(obj, now_s)

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
        self.world.feeds.look(self.world)
        if self.step_is_judged():
            self.world.feeds.tell(self.world, self.told)
        before_w = charged_sums(self)
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
                self.world.below[name] = report.below
                self.world.noted[name] = report.contract_uid
        for name in plan.create:
            made = self.world.store.create(name)
            if made is not None:
                self.see_kind()
            self.keeper.on_created(name, made, now_s)
        self.sent.extend(Sent(write) for write in plan.writes)
        for released in plan.release:
            if not self.world.reads_late and not self.world.nodes[released.name].present:
                self.world.store.remove(released)
        for void in plan.take_back:
            if not self.world.reads_late and self.world.nodes[void.name].present:
                self.world.store.take_back(void)
        for claim in plan.confirm:
            if self.world.reads(claim):
                self.keeper.on_claim_confirmed(claim)
        for name in plan.verify:
            if name not in self.world.store.objects and not self.world.nodes[name].present:
                self.keeper.on_absence_verified(name, now_s, self.world.contract_uid)
        return plan

    def step_is_judged(self) -> bool:
        """The world knows what the operator in charge was told; of its predecessors it does not."""
        return self.holds_lease and self.world.active is self

    def check_decision(self, before_w: dict[str, float], plan: Plan) -> None:
        """I1 and T3: what feeds carry is in every sum, and no decision lifts a sum above its limit."""
        if not self.step_is_judged():
            return
        for name, owed_w in before_w.items():
            charge_w = plan.budgets[name].charge_w
            assert self.blind or charge_w > owed_w - TOLERANCE_W, (
                f"{name}: {owed_w} W may be drawn there, {charge_w} W are counted"
            )
        self._check_writes(plan)
        self.world.feeds.decide(plan.writes)
        if not plan.writes:
            return
        for name, after_w in charged_sums(self).items():
            limit_w = plan.budgets[name].limit.aim_w
            assert after_w <= max(before_w[name], limit_w) + TOLERANCE_W, (
                f"{name}: lifted from {before_w[name]} W to {after_w} W of {limit_w} W"
            )

    def _check_writes(self, plan: Plan) -> None:
        """Nothing is granted under Observe but to a node that is to be released, and nothing raised that no leaf claims."""
        observing = self.keeper.tree.observing(self.keeper.standing)
        for write in plan.writes:
            seen = self.keeper.roster.nodes[write.name].object
            old = {g.uuid: g for g in seen.spec.gpus} if seen is not None and seen.spec is not None else {}
            new = [g for g in write.spec.gpus if g.uuid not in old or g.grant != old[g.uuid].grant]
            if not observing.isdisjoint(write.spec.budgets[:1]) and not self.told_released.get(write.name, False):
                assert not new, f"{write.name}: Observe grants nothing, but {new}"
            if not any(line.selects(leaf, self.told[write.name]) for leaf, line in self.world.lines.items()):
                before_w = self.world.feeds.newest_w
                raised = [g for g in new if g.uuid in old and g.cap_w > max(old[g.uuid].cap_w, before_w.get(g.uuid, 0))]
                assert not raised, f"{write.name}: no leaf claims it, and its caps are raised: {raised}"

    def arrive(self, index: int = 0, *, answer: bool = True) -> Outcome | None:
        """A write reaches the store; its answer reaches the operator, or not."""
        if not self.sent:
            return None
        sent = self.sent.pop(index % len(self.sent))
        store = self.world.store
        outcome = store.write_spec(sent.write)
        if isinstance(outcome, Rejected) and answer and not sent.told and (found := store.objects.get(sent.write.name)):
            self.keeper.on_node_power(found, self.world.now_s)
            if self.holds_lease and (again := rebased(sent.write, found)) is not None:
                self.sent.append(Sent(again, decided=sent.asked))  # it is under way again, and meets what comes between
                return None
        if not sent.told:
            self.keeper.on_outcome(sent.asked, outcome if answer else Unknown("lost answer"), self.world.now_s)
        return outcome

    def time_out(self, index: int = 0) -> None:
        """The operator gives up waiting, but the write is still under way and may land later."""
        if self.sent:
            sent = self.sent[index % len(self.sent)]
            if not sent.told:
                sent.told = True
                self.keeper.on_outcome(sent.asked, Unknown("time-out"), self.world.now_s)

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
