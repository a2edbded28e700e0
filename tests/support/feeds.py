"""Truth T3, kept by the world and by nobody's ledger: what may still draw on a feed counts there until a person releases it by
name, or a leaf of another feed claims it and a grant made after that is acknowledged.

A *way* is a leaf and all budgets above it, as they once stood. A node owes every way that a deciding operator knew it on. It
is quit of one when it was claimed away from it, by another leaf or by another parent on the way up, and all its GPUs
acknowledged grants decided later. A missing label, leaf or parent claims nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from splitwatt_core.budget.facts import SpecWrite
from splitwatt_core.protocol.contract import RELEASE_ALL, Mode

if TYPE_CHECKING:
    from support.machines import Node
    from support.world import World

Way = tuple[str, ...]


def claimed_away(old: Way, new: Way) -> bool:
    """Whether a node that stands on `new` has left `old`: for another leaf, or where another parent is named."""
    return any(here != there for here, there in zip(old, new, strict=False))


@dataclass(slots=True)
class Feeds:
    """`owed[node][way]`: the moment at which the node was claimed away from it, None while it was not. Moments count claims
    and decisions, so that of any two it is known which came first."""

    owed: dict[str, dict[Way, int | None]] = field(default_factory=dict)
    moment: int = 0
    decided: dict[int, int] = field(default_factory=dict)
    """When each grant number was given out."""
    named: dict[tuple[str, Way], int] = field(default_factory=dict)
    """Nodes and ways that a spec has named, or had the time to: a grant made there was acknowledged. With how often a person
    had deleted the node's object then: what named a way went with it, or a backup stands in its place."""
    begun: dict[tuple[str, Way], int] = field(default_factory=dict)
    """When each way was first owed."""
    newest_w: dict[str, int] = field(default_factory=dict)
    """By GPU: the cap that was given out last, whatever became of it; it may be sent again."""

    def ways(self, name: str) -> Iterable[Way]:
        return self.owed.get(name, {})

    def below(self, name: str, budget: str) -> list[Way]:
        return [way for way in self.ways(name) if budget in way]

    # ------------------------------------------------------------------------------------------------- what happens

    def look(self, world: World) -> None:
        """Something may have changed: claims begin, and what was acknowledged since ends them."""
        for name, node in world.nodes.items():
            owed = self.owed.setdefault(name, {})
            now, named = claims(world, node), claims(world, node, gone=True)
            seen = world.store.objects.get(name)
            budgets = set(seen.spec.budgets) if seen is not None and seen.spec is not None else set()
            for way in owed:
                begun = self.begun.setdefault((name, way), self.moment)
                if budgets.issuperset(way) or self._acknowledged(world, node, begun):
                    self.named[name, way] = world.store.deaths[name]
            for way, since in list(owed.items()):
                if now and not any(claimed_away(way, new) for new in now):
                    # It stands there, or came back to where no parent is named. A parent that is deleted meanwhile takes no
                    # claim back that was made while it was there: its leaf names it still.
                    if since is None or not any(claimed_away(way, new) for new in named):
                        owed[way] = None
                    elif self._quit(world, node, way, since, now):
                        del owed[way]
                        self._forget(name, way)
                elif since is None:
                    if now:
                        self.moment += 1
                        owed[way] = self.moment
                elif self._quit(world, node, way, since, now):
                    del owed[way]
                    self._forget(name, way)
            self._release(world, node, owed, claimed=bool(now))

    def tell(self, world: World, labels: Mapping[str, str | None]) -> None:
        """The operator in charge decides, and last heard of these labels: what is true of them is owed from now on."""
        for name, label in labels.items():
            node = world.nodes[name]
            if label is not None and label == world.label(node):
                for way in claims(world, node):
                    self.owed.setdefault(name, {})[way] = None

    def decide(self, writes: Iterable[SpecWrite]) -> None:
        self.moment += 1
        for write in writes:
            for grant in write.spec.gpus:
                self.decided.setdefault(grant.grant, self.moment)
                self.newest_w[grant.uuid] = grant.cap_w

    def succeed(self, world: World) -> None:
        """Another operator starts: of ways that nothing names now, and that no spec named since a person last deleted the object,
        it can know nothing."""
        for name, owed in self.owed.items():
            now = claims(world, world.nodes[name])
            deaths = world.store.deaths[name]
            for way in [way for way in owed if way not in now and self.named.get((name, way)) != deaths]:
                del owed[way]
                self._forget(name, way)

    def confirm(self, world: World) -> None:
        """A person says that no machine is missing, wherever one stood before: no successor has to know what nothing names now.
        Who lived through the loss knows it still, and counts it on."""
        for name, owed in self.owed.items():
            now = claims(world, world.nodes[name])
            seen = world.store.objects.get(name)
            budgets = set(seen.spec.budgets) if seen is not None and seen.spec is not None else set()
            for way in [way for way in owed if way not in now and not budgets.issuperset(way)]:
                self.named.pop((name, way), None)
                if world.active.blind:
                    del owed[way]
                    self._forget(name, way)

    @staticmethod
    def _release(world: World, node: Node, owed: dict[Way, int | None], *, claimed: bool) -> None:
        """R33: a person deletes the NodePower of a node that no leaf claims, or says by name that it draws there no more. A claim
        after that takes the word back."""
        word = world.store.released.get(node.name, frozenset())
        if claimed:
            world.store.released.pop(node.name, None)
        elif node.name in world.store.deleted or RELEASE_ALL in word:
            owed.clear()
        else:
            for way in [way for way in owed if not word.isdisjoint(way)]:
                del owed[way]

    def _quit(self, world: World, node: Node, way: Way, since: int, now: list[Way]) -> bool:
        seen = world.store.objects.get(node.name)
        silent = not node.managed or (seen is not None and seen.status.observed_uid != seen.uid)
        if silent or any(world.lines[w[-1]].mode is Mode.OBSERVE for w in (way, *now)):
            return True  # no grant to wait for: who starts now knows of no agent that could hold one
        return self._acknowledged(world, node, since)

    def _forget(self, name: str, way: Way) -> None:
        self.named.pop((name, way), None)
        self.begun.pop((name, way), None)

    def _acknowledged(self, world: World, node: Node, since: int) -> bool:
        """Whether all its GPUs acknowledged grants that were decided after that moment."""
        seen = world.store.objects.get(node.name)
        if seen is None or seen.status.observed_uid != seen.uid:
            return False
        acked = {row.uuid: row.acked_grant for row in seen.status.gpus}
        return all(self.decided.get(acked.get(uuid, 0), -1) > since for uuid in node.gpus)


def claims(world: World, node: Node, *, gone: bool = False) -> list[Way]:
    """The ways that its label names now, each up to the root or to a parent that is missing; `gone`: with that one's name, where
    a budget names it."""
    label = world.label(node)
    if label is None:
        return []
    return [tuple(world.declared(name, gone=gone)) for name, line in world.lines.items() if line.selects(name, label)]
