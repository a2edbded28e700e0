"""GPUs that two nodes report under one UUID, which only one of them can have.

As long as both list it, it is charged in both places: nobody can tell from here who errs, and a place that counted it not
would give its watts away. Neither is granted to. Where one stops to list it and the other goes on, it was never the first
one's: an agent keeps every GPU of its boot in its list, one that is lost too, so a list without it denies it. Then its charge
there goes, which for any other GPU that leaves a running machine it must not.

Protected: the charge of a GPU never goes because somebody else claims it, only because its own node denies it as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from splitwatt_core.protocol.node_account import NodeAccount


class Doubles:
    """Which nodes have an account of each UUID. `see` after every change of a node's accounts."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, None]] = {}
        self._of_node: dict[str, frozenset[str]] = {}

    def see(self, account: NodeAccount, nodes: Mapping[str, NodeAccount]) -> None:
        """`nodes`: all of them by name, this one too."""
        held = frozenset(account.gpus)
        for uuid in self._of_node.get(account.name, frozenset()) - held:
            self._drop(uuid, account.name)
        for uuid in held:
            holders = self._holders.setdefault(uuid, {})
            holders[account.name] = None
            if len(holders) > 1:
                self._settle(uuid, [nodes[name] for name in holders if name in nodes])
        self._of_node[account.name] = frozenset(account.gpus)

    def forget(self, name: str, nodes: Mapping[str, NodeAccount]) -> None:
        """The node is gone for good, with its accounts. `nodes`: the others."""
        for uuid in self._of_node.pop(name, frozenset()):
            self._drop(uuid, name)
            self._settle(uuid, [nodes[other] for other in self._holders.get(uuid, ())])

    def _drop(self, uuid: str, name: str) -> None:
        holders = self._holders.get(uuid, {})
        holders.pop(name, None)
        if not holders:
            self._holders.pop(uuid, None)

    def _settle(self, uuid: str, holders: list[NodeAccount]) -> None:
        own = {node.name: node.own for node in holders}
        listing = [node for node in holders if uuid in (own[node.name] or ())]
        for node in holders:
            if listing and own[node.name] is not None and node not in listing:
                node.release(uuid)
                self._drop(uuid, node.name)
        for node in listing:
            others = " and ".join(other.name for other in listing if other is not node)
            if others:
                node.gpus[uuid].doubt(f"is listed by {others} as well, and charged in both places")
            elif node.gpus[uuid].oddity:
                node.look_again()
