"""Random adversity for a `World`: everything that may go wrong between operator, API store, agents and hardware, by name.

Each action is small and always legal; `Explorer.play(name, pick)` performs one, `pick` choosing among candidates, so that
the same actions serve a seeded random walk and hypothesis' stateful search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.protocol.contract import Mode, NodePower, Phase, Workload
from support.sums import charged_sums
from support.world import DEFAULT_W, RACKS, ROOT, Agent, Gpu, Node, World

Pick = Callable[[int], int]
"""pick(n) gives a number in 0 .. n-1."""

LIMITS_PERCENT: Final = (90, 120, 150, 200, 250, 300, 400, 600)
"""Of what a budget's nodes need at the least."""
MAX_LEADERS: Final = 6
RECOVERY_ROUNDS: Final = 24
PRIORITIES: Final = (0, 0, 5)


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
        self.world.active.watch(1 + pick(3))

    def watch_all(self, pick: Pick) -> None:
        self.world.active.watch()

    def write_arrives(self, pick: Pick) -> None:
        operator = self.world.operators[-1 - pick(min(2, len(self.world.operators)))]
        operator.arrive(pick(8))

    def answer_lost(self, pick: Pick) -> None:
        operator = self.world.operators[-1 - pick(min(2, len(self.world.operators)))]
        operator.arrive(pick(8), answer=False)

    def write_times_out(self, pick: Pick) -> None:
        self.world.active.time_out(pick(8))

    def new_leader(self, pick: Pick) -> None:
        self.world.elect()
        del self.world.operators[:-MAX_LEADERS]

    def nodes_told(self, pick: Pick) -> None:
        node = list(self.world.nodes.values())[pick(len(self.world.nodes))]
        self.world.active.see_node(node)

    # ----------------------------------------------------------------------------------------------------- the agents

    def _agent(self, pick: Pick) -> Agent:
        return list(self.world.agents.values())[pick(len(self.world.agents))]

    def agent_runs(self, pick: Pick) -> None:
        self._agent(pick).run()

    def agent_reads(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.read()

    def agent_watches(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.watch(1 + pick(3))

    def agent_ticks(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.turn()

    def agent_guards(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.turn({uuid: 200 + 50 * pick(6) for uuid in agent.node.gpus})

    def status_written(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.send_status()

    def status_lands(self, pick: Pick) -> None:
        self._agent(pick).deliver_status(pick(4))

    def status_lost(self, pick: Pick) -> None:
        self._agent(pick).statuses.clear()

    def agent_crashes(self, pick: Pick) -> None:
        self._agent(pick).crash()

    def agent_starts(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if not agent.alive and agent.node.powered:
            agent.start()

    def setter_hangs(self, pick: Pick) -> None:
        self._agent(pick).hang_next = True

    def setter_completes(self, pick: Pick) -> None:
        self._agent(pick).complete(pick(4))

    # --------------------------------------------------------------------------------------------------- the hardware

    def _gpu(self, pick: Pick) -> tuple[Node, Gpu]:
        node = list(self.world.nodes.values())[pick(len(self.world.nodes))]
        return node, list(node.gpus.values())[pick(len(node.gpus))]

    def reset(self, pick: Pick) -> None:
        node, gpu = self._gpu(pick)
        if node.powered:
            self.world.reset(node.name, gpu.uuid)

    def reboot(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        if node.powered:
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
        line = self.world.lines[ROOT]
        line.mode = Mode.OBSERVE if pick(4) == 0 else Mode.STRICT
        self.world.tell_budgets()

    def budget_deleted(self, pick: Pick) -> None:
        line = list(self.world.lines.values())[pick(len(self.world.lines))]
        line.exists = False
        self.world.tell_budgets()

    def budgets_created(self, pick: Pick) -> None:
        """Those that were deleted come back, as new objects."""
        for line in self.world.lines.values():
            if not line.exists:
                line.exists, line.birth = True, line.birth + 1
        self.world.tell_budgets()

    def meter_goes_dark(self, pick: Pick) -> None:
        name = list(self.world.lines)[pick(len(self.world.lines))]
        self.world.dark.add(name)

    def meters_return(self, pick: Pick) -> None:
        self.world.dark.clear()

    def undeclared_watts(self, pick: Pick) -> None:
        self.world.undeclared_w = max(0, 40 * pick(6) - 120)

    def load_changes(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        gpu.wants_w = 100 + 100 * pick(7)

    def pod_starts(self, pick: Pick) -> None:
        """One or two free GPUs of a node, as kubelet would give them. The operator hears of it now, or with the next list."""
        node, _ = self._gpu(pick)
        free = [uuid for uuid in node.gpus if uuid not in node.workloads]
        if not free or not node.present or not node.managed:
            return
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
            return
        for uuid in [u for u, workload in node.workloads.items() if workload == ended]:
            del node.workloads[uuid]
        self.world.pods.pop((ended.namespace, ended.pod), None)
        self.world.active.keeper.on_pod_gone(ended.namespace, ended.pod)

    def node_moves(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        self.world.move(node.name, RACKS[pick(len(RACKS))])

    def node_leaves(self, pick: Pick) -> None:
        """Powered off: it draws nothing, and its object may stay for ever."""
        node, _ = self._gpu(pick)
        self.world.agents[node.name].lose_power()
        node.present = node.powered = False
        for gpu in node.gpus.values():
            gpu.true_w, gpu.surprised, gpu.was_w = 0, False, 0

    def node_vanishes(self, pick: Pick) -> None:
        """Its Node object is deleted, but the machine and its agent live on."""
        node, _ = self._gpu(pick)
        node.present = False

    def node_returns(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        node.present = True
        if not node.powered:
            node.powered = True
            self.world.reboot(node.name)

    def object_deleted(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        self.world.store.delete(node.name)

    def object_saved(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        obj = self.world.store.objects.get(node.name)
        if obj is not None:
            self.backups = [*self.backups[-5:], obj]

    def object_restored(self, pick: Pick) -> None:
        if self.backups:
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

    def play(self, name: str, pick: Pick) -> None:
        getattr(self, name)(pick)
        self.world.check()

    def _tell_pods(self) -> None:
        for pod in self.world.pods.values():
            self.world.active.keeper.on_pod(pod)

    def recover(self) -> None:
        """After everything is put right every budget must hold its limit again: what may be drawn, and what is charged."""
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
        self.budgets_created(lambda n: 0)
        for operator in world.operators[:-1]:
            operator.sent.clear()
        world.tell_nodes()
        self._tell_pods()
        if world.active.resigned:
            world.elect()
        world.active.settle(RECOVERY_ROUNDS)
        world.check()
        assert world.stamped()
        owed_w = charged_sums(world.active)
        for name, line in world.lines.items():
            if not line.exists:
                continue
            most_w = max(line.limit_w, world.floor_w(name)) + 1e-6
            charge_w = world.active.last.budgets[name].charge_w
            assert world.allowed_w(name) <= most_w, f"{name}: {world.allowed_w(name)} W may be drawn of {most_w} W"
            assert charge_w <= most_w, f"{name}: {charge_w} W charged of {most_w} W"
            assert charge_w <= owed_w[name] + 1e-6, f"{name}: {charge_w} W charged, {owed_w[name]} W may be drawn there"
        assert all(g.true_w <= DEFAULT_W for n in world.nodes.values() for g in n.gpus.values())


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
    "mode_changes": 2,
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
