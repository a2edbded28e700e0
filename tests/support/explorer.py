"""Random adversity for a `World`: everything that may go wrong between operator, API store, agents and hardware, by name.

Each action is small and always legal; `Explorer.play(name, pick)` performs one, `pick` choosing among candidates, so that
the same actions serve a seeded random walk and hypothesis' stateful search. One that finds nothing to act on is no transition.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.protocol.contract import Mode, NodePower, Phase, Workload
from support.sums import charged_sums
from support.world import DEFAULT_W, RACKS, ROOT, Agent, Gpu, Node, Operator, World

Pick = Callable[[int], int]
"""pick(n) gives a number in 0 .. n-1."""

LIMITS_PERCENT: Final = (90, 120, 150, 200, 250, 300, 400, 600)
"""Of what a budget's nodes need at the least."""
MAX_LEADERS: Final = 6
RECOVERY_ROUNDS: Final = 24
PRIORITIES: Final = (0, 0, 5)
QUIET_ROUNDS: Final = 3
"""So many rounds in a row in which nothing is written, and a fleet has settled."""


class IdleError(Exception):
    """An action found nothing to act on, and changed nothing."""


def need(ready: object) -> None:
    if not ready:
        raise IdleError


class Explorer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.backups: list[NodePower] = []
        self.pods_started = 0
        world.elect()

    # --------------------------------------------------------------------------------------------------- the operator

    def step(self, pick: Pick) -> None:
        self.world.active.step()

    def old_leader_steps(self, pick: Pick) -> None:
        self.world.operators[pick(len(self.world.operators))].step()

    def watch_one(self, pick: Pick) -> None:
        need(self.world.active.behind)
        self.world.active.watch(1 + pick(3))

    def watch_all(self, pick: Pick) -> None:
        need(self.world.active.behind)
        self.world.active.watch()

    def _writer(self, pick: Pick) -> Operator:
        """Of the two newest one with a write under way."""
        writing = [operator for operator in self.world.operators[-2:] if operator.sent]
        need(writing)
        return writing[pick(len(writing))]

    def write_arrives(self, pick: Pick) -> None:
        self._writer(pick).arrive(pick(8))

    def answer_lost(self, pick: Pick) -> None:
        self._writer(pick).arrive(pick(8), answer=False)

    def write_times_out(self, pick: Pick) -> None:
        waiting = [i for i, sent in enumerate(self.world.active.sent) if not sent.told]
        need(waiting)
        self.world.active.time_out(waiting[pick(len(waiting))])

    def new_leader(self, pick: Pick) -> None:
        self.world.elect()
        del self.world.operators[:-MAX_LEADERS]

    def nodes_told(self, pick: Pick) -> None:
        node = list(self.world.nodes.values())[pick(len(self.world.nodes))]
        need(self.world.active.tells_news(node))
        self.world.active.see_node(node)

    # ----------------------------------------------------------------------------------------------------- the agents

    def _agent(self, pick: Pick) -> Agent:
        return list(self.world.agents.values())[pick(len(self.world.agents))]

    def _alive(self, pick: Pick) -> Agent:
        agent = self._agent(pick)
        need(agent.alive)
        return agent

    def agent_runs(self, pick: Pick) -> None:
        self._alive(pick).run()

    def agent_reads(self, pick: Pick) -> None:
        self._alive(pick).read()

    def agent_watches(self, pick: Pick) -> None:
        agent = self._alive(pick)
        need(agent.behind)
        agent.watch(1 + pick(3))

    def agent_ticks(self, pick: Pick) -> None:
        self._alive(pick).turn()

    def agent_guards(self, pick: Pick) -> None:
        agent = self._alive(pick)
        agent.turn({uuid: 200 + 50 * pick(6) for uuid in agent.node.gpus})

    def status_written(self, pick: Pick) -> None:
        need(self._alive(pick).send_status())

    def _reporting(self, pick: Pick) -> Agent:
        """One with a status under way."""
        reporting = [agent for agent in self.world.agents.values() if agent.statuses]
        need(reporting)
        return reporting[pick(len(reporting))]

    def status_lands(self, pick: Pick) -> None:
        self._reporting(pick).deliver_status(pick(4))

    def status_lost(self, pick: Pick) -> None:
        self._reporting(pick).statuses.clear()

    def agent_crashes(self, pick: Pick) -> None:
        self._alive(pick).crash()

    def agent_starts(self, pick: Pick) -> None:
        agent = self._agent(pick)
        need(agent.node.managed and not agent.alive and agent.node.powered and not agent.hung)
        agent.start()

    def setter_hangs(self, pick: Pick) -> None:
        agent = self._agent(pick)
        need(not agent.hang_next)
        agent.hang_next = True

    def setter_completes(self, pick: Pick) -> None:
        agent = self._agent(pick)
        need(agent.hung)
        agent.complete(pick(4))

    # --------------------------------------------------------------------------------------------------- the hardware

    def _gpu(self, pick: Pick) -> tuple[Node, Gpu]:
        node = list(self.world.nodes.values())[pick(len(self.world.nodes))]
        return node, list(node.gpus.values())[pick(len(node.gpus))]

    def reset(self, pick: Pick) -> None:
        node, gpu = self._gpu(pick)
        need(node.powered)
        self.world.reset(node.name, gpu.uuid)

    def reboot(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        need(node.powered)
        self.world.reboot(node.name)

    def setter_lies(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        gpu.lies = not gpu.lies

    def outside_limiter(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        gpu.outside_w = None if gpu.outside_w is not None else 200 + 100 * pick(5)

    # ----------------------------------------------------------------------------------------------------- the people

    def limit_changes(self, pick: Pick) -> None:
        """Every budget its own limit, from what it cannot do with to what it never needs."""
        least_w = {name: max(self.world.floor_w(name), 200.0) for name in self.world.lines}
        limits_w = {n: int(w) * LIMITS_PERCENT[pick(len(LIMITS_PERCENT))] // 100 for n, w in least_w.items()}
        self.world.set_limit(limits_w.pop(ROOT), **limits_w)

    def mode_changes(self, pick: Pick) -> None:
        line, before = self.world.lines[ROOT], self.world.lines[ROOT].mode
        line.mode = (Mode.OBSERVE, Mode.RELEASE, Mode.STRICT, Mode.STRICT)[pick(4)]
        need(line.mode is not before)
        self.world.tell_budgets()

    def node_released(self, pick: Pick) -> None:
        """A person labels a node, or takes the label off."""
        node, _ = self._gpu(pick)
        self.world.released ^= {node.name}

    def budget_deleted(self, pick: Pick) -> None:
        line = list(self.world.lines.values())[pick(len(self.world.lines))]
        need(line.exists)
        line.exists = False
        self.world.tell_budgets()

    def budgets_created(self, pick: Pick) -> None:
        """Those that were deleted come back, as new objects."""
        gone = [line for line in self.world.lines.values() if not line.exists]
        need(gone)
        for line in gone:
            line.exists, line.birth = True, line.birth + 1
        self.world.tell_budgets()

    def meter_goes_dark(self, pick: Pick) -> None:
        name = list(self.world.lines)[pick(len(self.world.lines))]
        need(name not in self.world.dark)
        self.world.dark.add(name)

    def meters_return(self, pick: Pick) -> None:
        need(self.world.dark)
        self.world.dark.clear()

    def undeclared_watts(self, pick: Pick) -> None:
        before_w, self.world.undeclared_w = self.world.undeclared_w, max(0, 40 * pick(6) - 120)
        need(self.world.undeclared_w != before_w)

    def load_changes(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        before_w, gpu.wants_w = gpu.wants_w, 100 + 100 * pick(7)
        need(gpu.wants_w != before_w)

    def pod_starts(self, pick: Pick) -> None:
        """One or two free GPUs of a node, as kubelet would give them. The operator hears of it now, or with the next list."""
        node, _ = self._gpu(pick)
        free = [uuid for uuid in node.gpus if uuid not in node.workloads]
        need(free and node.present and node.managed)
        self.pods_started += 1
        name, phase = f"pod-{self.pods_started}", (Phase.PREFILL, Phase.DECODE)[pick(2)]
        pod = PodFact("ns", name, phase, PRIORITIES[pick(len(PRIORITIES))], power_ceiling_w=500 if pick(4) == 0 else None)
        self.world.pods[("ns", name)] = pod
        for uuid in free[: 1 + pick(2)]:
            node.workloads[uuid] = Workload("ns", name)
        if pick(2):
            self.world.active.keeper.on_pod(pod)

    def pod_ends(self, pick: Pick) -> None:
        node, gpu = self._gpu(pick)
        ended = node.workloads.get(gpu.uuid)
        if ended is None:
            raise IdleError
        for uuid in [u for u, workload in node.workloads.items() if workload == ended]:
            del node.workloads[uuid]
        self.world.pods.pop((ended.namespace, ended.pod), None)
        self.world.active.keeper.on_pod_gone(ended.namespace, ended.pod)

    def node_moves(self, pick: Pick) -> None:
        node, rack = self._another_rack(pick)
        self.world.move(node.name, rack)

    def _another_rack(self, pick: Pick) -> tuple[Node, str]:
        node, _ = self._gpu(pick)
        rack = RACKS[pick(len(RACKS))]
        need(rack != node.rack or node.name in self.world.labels)
        return node, rack

    def node_leaves(self, pick: Pick) -> None:
        """Powered off: it draws nothing, and its object may stay for ever."""
        node, _ = self._gpu(pick)
        need(node.present or node.powered)
        self.world.agents[node.name].lose_power()
        node.present = node.powered = False
        for gpu in node.gpus.values():
            gpu.true_w, gpu.surprised, gpu.was_w = 0, False, 0

    def node_vanishes(self, pick: Pick) -> None:
        """Its Node object is deleted, but the machine and its agent live on."""
        node, _ = self._gpu(pick)
        need(node.present)
        node.present = False

    def node_returns(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        need(not (node.present and node.powered))
        node.present = True
        if not node.powered:
            node.powered = True
            self.world.reboot(node.name)

    def object_deleted(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        need(node.name in self.world.store.objects)
        self.world.store.delete(node.name)

    def object_saved(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        obj = self.world.store.objects.get(node.name)
        if obj is None:
            raise IdleError
        self.backups = [*self.backups[-5:], obj]

    def object_restored(self, pick: Pick) -> None:
        need(self.backups and self.world.store.served)
        backup = self.backups[pick(len(self.backups))]
        self.world.store.delete(backup.name)
        self.world.store.create(backup.name, spec=backup.spec, status=backup.status)

    def time_passes(self, pick: Pick) -> None:
        self.world.now_s += (0.05, 0.3, 0.6, 1.0, 4.0, 40.0)[pick(6)]

    def calm(self, pick: Pick) -> None:
        """A quiet second or a few, in which everything arrives."""
        self.world.tell_nodes()
        self._tell_pods()
        self.world.active.settle(1 + pick(3))

    # -------------------------------------------------------------------------------------------------------- playing

    def play(self, name: str, pick: Pick) -> bool:
        """Whether it was a transition."""
        try:
            getattr(self, name)(pick)
        except IdleError:
            return False
        self.world.check()
        return True

    def _tell_pods(self) -> None:
        for pod in self.world.pods.values():
            self.world.active.keeper.on_pod(pod)

    def recover(self, *, whole: bool = True) -> None:
        """After everything is put right every budget must hold its limit again within `RECOVERY_ROUNDS`: what may be drawn, and
        what is charged. `whole`: play all of them, to see that it stays so; else it is enough once the fleet has settled."""
        world = self.world
        for node in world.nodes.values():
            node.present = True
            if not node.powered:
                node.powered = True
                world.reboot(node.name)
            for gpu in node.gpus.values():
                gpu.lies, gpu.outside_w = False, None
            agent = world.agents[node.name]
            agent.hang_next = False
            while agent.hung:
                agent.complete()
            if not agent.alive:
                agent.start()
        world.lines[ROOT].mode, world.undeclared_w = Mode.STRICT, 0
        world.dark.clear()
        world.released.clear()
        with suppress(IdleError):
            self.budgets_created(lambda n: 0)
        world.tell_budgets()
        for operator in world.operators[:-1]:
            operator.sent.clear()
        world.tell_nodes()
        self._tell_pods()
        if world.active.resigned:
            world.elect()
        quiet = 0
        for _ in range(RECOVERY_ROUNDS):
            before = world.store.version
            world.active.settle(1)
            world.check()
            quiet = quiet + 1 if world.store.version == before else 0
            if not whole and quiet >= QUIET_ROUNDS and not self._missing():
                break
        missing = self._missing()
        assert not missing, missing
        assert all(g.true_w <= DEFAULT_W for n in world.nodes.values() for g in n.gpus.values())

    def _missing(self) -> str:
        """What is not right yet, "" where all is."""
        world = self.world
        if not world.stamped():
            return "not every node carries the term of the operator in charge"
        owed_w = charged_sums(world.active)
        for name, line in world.lines.items():
            if not line.exists:
                continue
            most_w = max(line.limit_w, world.floor_w(name)) + 1e-6
            charge_w = world.active.last.budgets[name].charge_w
            if world.allowed_w(name) > most_w:
                return f"{name}: {world.allowed_w(name)} W may be drawn of {most_w} W"
            if charge_w > most_w:
                return f"{name}: {charge_w} W charged of {most_w} W"
            if charge_w > owed_w[name] + 1e-6:
                return f"{name}: {charge_w} W charged, {owed_w[name]} W may be drawn there"
        return ""


WEIGHTS: Final[dict[str, int]] = {
    "step": 16,
    "old_leader_steps": 2,
    "watch_one": 8,
    "watch_all": 6,
    "write_arrives": 14,
    "answer_lost": 3,
    "write_times_out": 3,
    "new_leader": 2,
    "nodes_told": 5,
    "agent_runs": 12,
    "agent_reads": 3,
    "agent_watches": 8,
    "agent_ticks": 10,
    "agent_guards": 2,
    "status_written": 8,
    "status_lands": 10,
    "status_lost": 1,
    "agent_crashes": 2,
    "agent_starts": 4,
    "setter_hangs": 2,
    "setter_completes": 3,
    "reset": 1,
    "reboot": 1,
    "setter_lies": 1,
    "outside_limiter": 1,
    "limit_changes": 6,
    "node_moves": 1,
    "node_leaves": 1,
    "node_vanishes": 1,
    "node_returns": 2,
    "object_deleted": 1,
    "object_saved": 2,
    "object_restored": 1,
    "mode_changes": 3,
    "node_released": 1,
    "budget_deleted": 1,
    "budgets_created": 5,
    "meter_goes_dark": 1,
    "meters_return": 6,
    "undeclared_watts": 1,
    "load_changes": 3,
    "pod_starts": 3,
    "pod_ends": 2,
    "time_passes": 14,
    "calm": 9,
}
ACTIONS: Final = tuple(WEIGHTS)
