"""Machines that came back under another name: the proof that what ran under the old one is over.

A Node that is gone may draw on, so its charge stays (R8). But one machine runs one boot at a time. Where another Node names
the same machine (`spec.providerID`) under another boot, is ready, and its kubelet has renewed its Lease since the old Node
went, the old boot is over. Its NodePower may go once fresh reads say the same, if everything that it counted counts under the
new name: all its GPUs are listed there, in every budget that the old one names.

Protected: an id that is empty or that two Nodes share proves nothing, and neither does a Node that only looks ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitwatt_core.budget.facts import NodeFact, Replaced
from splitwatt_core.protocol.contract import NodePower
from splitwatt_core.protocol.node_account import NodeAccount


@dataclass(slots=True)
class _Gone:
    last: NodeFact
    since_s: float


class Renamed:
    """What the Nodes that are there say of their machines, and what those that are gone said last."""

    def __init__(self) -> None:
        self._there: dict[str, NodeFact] = {}
        self._gone: dict[str, _Gone] = {}

    def see(self, node: NodeFact) -> None:
        self._there[node.name] = node
        self._gone.pop(node.name, None)

    def gone(self, name: str, now_s: float) -> None:
        last = self._there.pop(name, None)
        if last is not None and last.provider_id:
            self._gone[name] = _Gone(last, now_s)

    def forget(self, name: str) -> None:
        self._there.pop(name, None)
        self._gone.pop(name, None)

    def proven(self, nodes: Mapping[str, NodeAccount]) -> tuple[Replaced, ...]:
        """Those whose old boot is over, by what was seen so far. `nodes`: all accounts by name."""
        if not self._gone:
            return ()
        there: dict[str, list[NodeFact]] = {}
        for node in self._there.values():
            there.setdefault(node.provider_id, []).append(node)
        found = []
        for name, gone in self._gone.items():
            heirs = there.get(gone.last.provider_id, ())
            old = nodes[name].object if name in nodes else None
            if len(heirs) == 1 and old is not None and _over(gone, nodes[name], old, heirs[0], nodes[heirs[0].name]):
                found.append(Replaced(old, heirs[0]))
        return tuple(found)


def _over(gone: _Gone, ghost: NodeAccount, old: NodePower, heir: NodeFact, account: NodeAccount) -> bool:
    another_boot = heir.boot_id not in ("", gone.last.boot_id, old.status.boot_id)
    seen = account.object
    if not (another_boot and heir.ready and account.lease_s > gone.since_s and account.stamped) or seen is None:
        return False
    if account.own is None or not ghost.gpus.keys() <= account.own:
        return False
    return old.spec is not None and seen.spec is not None and set(old.spec.budgets) <= set(seen.spec.budgets)
