"""Random adversity for a `World`: everything that may go wrong between operator, API store, agents and hardware, by name.

Each action is small and always legal; `Explorer.play(name, pick)` performs one, `pick` choosing among candidates, so that
the same actions serve a seeded random walk and hypothesis' stateful search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from splitwatt_core.contract import NodePower
from support.world import DEFAULT_W, RACKS, Agent, Gpu, Node, World

Pick = Callable[[int], int]
"""pick(n) gives a number in 0 .. n-1."""

LIMITS_W: Final = (400, 500, 600, 700, 900, 1100, 1400, 2000)
MAX_LEADERS: Final = 6


class Explorer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.backups: list[NodePower] = []
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
            agent.tick()

    def agent_guards(self, pick: Pick) -> None:
        agent = self._agent(pick)
        if agent.alive:
            agent.tick({uuid: 200 + 50 * pick(6) for uuid in agent.node.gpus})

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
        if not agent.alive and agent.node.present:
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
        if node.present:
            self.world.reset(node.name, gpu.uuid)

    def reboot(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        if node.present:
            self.world.reboot(node.name)

    def setter_lies(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        gpu.lies = not gpu.lies

    def outside_limiter(self, pick: Pick) -> None:
        _, gpu = self._gpu(pick)
        gpu.outside_w = None if gpu.outside_w is not None else 200 + 100 * pick(5)

    # ----------------------------------------------------------------------------------------------------- the people

    def limit_changes(self, pick: Pick) -> None:
        racks = {rack: LIMITS_W[pick(len(LIMITS_W))] for rack in RACKS}
        self.world.set_limit(LIMITS_W[pick(len(LIMITS_W))], **racks)

    def node_moves(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        self.world.move(node.name, RACKS[pick(len(RACKS))])

    def node_leaves(self, pick: Pick) -> None:
        """Powered off: it draws nothing, and its object may stay for ever."""
        node, _ = self._gpu(pick)
        self.world.agents[node.name].crash()
        node.present = False
        for gpu in node.gpus.values():
            gpu.true_w, gpu.surprised = 0, False

    def node_returns(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        if not node.present:
            node.present = True
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
        """A quiet second in which everything arrives."""
        self.world.tell_nodes()
        self.world.active.settle(1)

    # -------------------------------------------------------------------------------------------------------- playing

    def play(self, name: str, pick: Pick) -> None:
        getattr(self, name)(pick)
        self.world.check()

    def recover(self) -> None:
        """After everything is put right the fleet must hold its limit again: true sum and charge both."""
        world = self.world
        for node in world.nodes.values():
            if not node.present:
                node.present = True
                world.reboot(node.name)
            for gpu in node.gpus.values():
                gpu.lies, gpu.outside_w = False, None
            agent = world.agents[node.name]
            agent.hang_next = False
            while agent.hung:
                agent.complete()
            if not agent.alive:
                agent.start()
        for operator in world.operators[:-1]:
            operator.sent.clear()
        world.tell_nodes()
        if world.active.resigned:
            world.elect()
        world.active.settle(30)
        world.check()
        gpus = [g for n in world.nodes.values() for g in n.gpus.values()]
        floor_w = 200 * len(gpus)
        assert world.true_sum_w() <= max(world.limit_w, floor_w), f"{world.true_sum_w()} W true of {world.limit_w} W"
        assert world.charged_w() <= max(world.limit_w, floor_w), f"{world.charged_w()} W charged of {world.limit_w} W"
        assert all(g.true_w <= DEFAULT_W for g in gpus)


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
    "limit_changes": 3,
    "node_moves": 1,
    "node_leaves": 1,
    "node_returns": 2,
    "object_deleted": 1,
    "object_saved": 2,
    "object_restored": 1,
    "time_passes": 14,
    "calm": 3,
}
ACTIONS: Final = tuple(WEIGHTS)
