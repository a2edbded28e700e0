"""What may vanish beside what may go wrong: leaves, roots, parents, labels, Nodes, the NodePower CRD, and agents that die between
a grant and its acknowledgement. More actions for `support.explorer`, of the same kind.
"""

from __future__ import annotations

from typing import Final

from support.explorer import WEIGHTS, Explorer, Pick, need
from support.lines import Line
from support.world import OTHER_ROOT, ROOT, World

RENAMED: Final = "-renamed"


class VanishingExplorer(Explorer):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.parents = {name: line.parent for name, line in world.lines.items()}

    def _leaf(self, pick: Pick) -> str:
        leaves = [name for name, line in self.world.lines.items() if line.leaf and line.exists]
        need(leaves)
        return leaves[pick(len(leaves))]

    # ---------------------------------------------------------------------------------------------------- the budgets

    def leaf_deleted(self, pick: Pick) -> None:
        self.world.lines[self._leaf(pick)].exists = False
        self.world.tell_budgets()

    def leaf_renamed(self, pick: Pick) -> None:
        """Pruned under one name and applied under another, which selects the same rack; or back."""
        name = self._leaf(pick)
        other = name.removesuffix(RENAMED) if name.endswith(RENAMED) else name + RENAMED
        line = self.world.lines[name]
        if other in self.world.lines:
            twin = self.world.lines[other]
            twin.exists, twin.birth = True, twin.birth + 1
        else:
            self.world.add_line(other, like=name, rack=line.rack or name)
        line.exists = False
        self.world.tell_budgets()

    def root_deleted(self, pick: Pick) -> None:
        need(self.world.lines[ROOT].exists)
        self.world.lines[ROOT].exists = False
        self.world.tell_budgets()

    def budgets_created(self, pick: Pick) -> None:
        """Those that were deleted come back, as new objects; not where another leaf has taken the rack over."""
        lines = self.world.lines
        taken = {other.rack for other in lines.values() if other.exists}
        gone = [line for name, line in lines.items() if not line.exists and not line.rack and name not in taken]
        need(gone)
        for line in gone:
            line.exists, line.birth = True, line.birth + 1
        self.world.tell_budgets()

    def _of_rack(self, pick: Pick) -> list[Line]:
        """A rack's leaf, under every name that it ever had."""
        name = self._leaf(pick)
        rack = self.world.lines[name].rack or name
        return [line for n, line in self.world.lines.items() if line.leaf and (line.rack or n) == rack]

    def parent_changed(self, pick: Pick) -> None:
        """To the other row, or back."""
        for line in self._of_rack(pick):
            line.parent, line.left_out = (ROOT if line.parent == OTHER_ROOT else OTHER_ROOT), None
        self.world.tell_budgets()

    def parent_left_out(self, pick: Pick) -> None:
        lines = [line for line in self._of_rack(pick) if line.parent is not None]
        need(lines)
        for line in lines:
            line.left_out, line.parent = line.parent, None
        self.world.tell_budgets()

    def parents_put_back(self, pick: Pick) -> None:
        lines = [line for line in self.world.lines.values() if line.left_out is not None]
        need(lines)
        for line in lines:
            line.parent, line.left_out = line.left_out, None
        self.world.tell_budgets()

    # ------------------------------------------------------------------------------------------------------- the nodes

    def label_removed(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        need(self.world.labels.get(node.name, node.rack) is not None)
        self.world.labels[node.name] = None

    def labels_put_back(self, pick: Pick) -> None:
        need(self.world.labels)
        self.world.labels.clear()

    def node_moves(self, pick: Pick) -> None:
        """To another rack, with the label that says so; the operator hears of it at once, or later."""
        node, rack = self._another_rack(pick)
        self.world.move(node.name, rack)
        if pick(2):
            self.world.active.see_node(node)

    def ghost_released(self, pick: Pick) -> None:
        node, _ = self._gpu(pick)
        need(self.world.release(node.name))

    # --------------------------------------------------------------------------------------------------------- the kind

    def kind_deleted(self, pick: Pick) -> None:
        need(self.world.store.served)
        self.world.lose_kind()

    def kind_made(self, pick: Pick) -> None:
        need(not self.world.store.served)
        self.world.make_kind()

    def kind_read(self, pick: Pick) -> None:
        """The operator hears of the kind that is served now, whatever else it has heard."""
        need(self.world.contract_uid not in ("", self.world.active.keeper._contract.uid))
        self.world.active.see_kind()

    def nodes_confirmed(self, pick: Pick) -> None:
        need(self.world.contract_uid)
        need(any(line.confirmed_uid != self.world.contract_uid for line in self.world.lines.values() if line.parent is None))
        self.world.confirm()

    # ------------------------------------------------------------------------------------------------------- the agents

    def agent_dies_in_turn(self, pick: Pick) -> None:
        agent = self._alive(pick)
        need(agent.synced)
        agent.watch()
        agent.die_in_turn(durable=pick(2) == 0, called=pick(2) == 0)

    def recover(self, *, whole: bool = True) -> None:
        world = self.world
        world.make_kind()
        for name, line in world.lines.items():
            line.parent, line.left_out = self.parents[line.rack or name], None
            line.exists = line.exists and not line.rack
        world.labels.clear()
        world.confirm()
        super().recover(whole=whole)


VANISHING: Final[dict[str, int]] = {
    "leaf_deleted": 2,
    "leaf_renamed": 2,
    "root_deleted": 1,
    "parent_changed": 2,
    "parent_left_out": 1,
    "parents_put_back": 3,
    "label_removed": 2,
    "labels_put_back": 3,
    "ghost_released": 1,
    "kind_deleted": 1,
    "kind_made": 3,
    "kind_read": 1,
    "nodes_confirmed": 1,
    "agent_dies_in_turn": 4,
}
ALL_WEIGHTS: Final = {**WEIGHTS, **VANISHING}
