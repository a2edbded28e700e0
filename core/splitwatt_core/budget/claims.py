"""Which budgets a node counts in, and which of them it may leave (docs/protocol.md, R9, R31-R33).

A node counts in its leaf and in every budget above it: on a *way*. Its NodePower names the present way, and after it every other
one on which the node was known to stand; a budget on two ways is named on both. A name leaves that list only by a *claim*, once
fresh reads say the same and a grant made after that is acknowledged, or because a person releases it. A claim is another leaf
that selects the node, or another parent that its leaf (or a budget above) names. A label, a leaf or a parent that is missing
claims nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from splitwatt_core.budget.tree import BudgetSpec, Tree, loss_factor
from splitwatt_core.protocol.contract import MAX_BUDGETS_PER_NODE, NO_GRANT, RELEASE_ALL, NodePower
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

Way = tuple[str, ...]
"""A leaf and the budgets above it, in order."""
DROPPED: Final = -1
"""In a node's moves: the move out of this budget is acknowledged; the next write drops it, and only then it stops counting."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the leaves of one node declare of it: losses in percent of GPU watts, and watts at the meter besides its GPUs, or
    in all while it has no agent."""

    overhead_percent: int = 0
    non_gpu_w: int = 0
    unmanaged_w: int = 0

    @classmethod
    def declared(cls, leaf: BudgetSpec) -> Rates:
        return cls(leaf.overhead_percent, leaf.non_gpu_w_per_node, leaf.unmanaged_w_per_node)

    @property
    def loss_factor(self) -> float:
        return loss_factor(self.overhead_percent)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one node counts. `leaves`: the leaf that it stands in first, then every other budget that counts it off that leaf's
    way up, leaf or not. `names`: what its spec is to name (R31), way by way; `leaving`: those of them that it leaves by a claim;
    `unread`: those whose claim no fresh read has confirmed yet. `claimed`: a leaf selects it now; else nothing is raised on it.
    `rates`: the highest that any leaf of it declares. `allocatable_gpus`: what its Node offers to pods."""

    node: NodeAccount
    leaves: tuple[str, ...]
    names: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    claimed: bool = True
    unread: frozenset[str] = frozenset()
    rates: Rates = Rates()
    allocatable_gpus: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What leads a node away from a budget that counts it: its labels, and the budgets on its new way, each with uid and
    generation. It counts from when fresh reads of all of them found the same (R32): the watches of Nodes and of budgets may
    each be late, and together tell of a claim that nobody ever made."""

    node: str
    labels: Mapping[str, str]
    budgets: tuple[tuple[str, str, int], ...]


def managed(node: NodeAccount) -> bool:
    """Whether the node's GPUs are known, so that they are charged one by one instead of at the leaf's flat rate (R8)."""
    return any(gpu.default_w > 0 for gpu in node.gpus.values())


def ways(leaves: Sequence[str], tree: Tree) -> tuple[str, ...]:
    """The budgets above these leaves, each leaf's own way in order, every name once."""
    return tuple(dict.fromkeys(name for leaf in leaves for name in tree.chain(leaf)))


def split_ways(names: Sequence[str], leaves: Collection[str], named: Mapping[str, str | None]) -> tuple[Way, ...]:
    """What a spec names, as the ways that it is: each begins with a leaf. `named`: by budget the parent that it names. Who
    follows a budget that names it is above it still, though it got a nodeSelector by mistake and looks like a leaf now."""
    found: list[list[str]] = []
    for name in names:
        if not found or (name in leaves and named.get(found[-1][-1]) != name):
            found.append([])
        found[-1].append(name)
    return tuple(tuple(way) for way in found)


def joined(found: Iterable[Way]) -> tuple[str, ...]:
    """These ways for a spec, the first first. What another one begins with is no way of its own: it ends where a parent is
    missing. Of more than a spec can name every budget stands once: none is forgotten, though not on which way it was."""
    kept: list[Way] = []
    for way in dict.fromkeys(found):
        if any(other[: len(way)] == way for other in kept):
            continue
        begun = next((i for i, other in enumerate(kept) if way[: len(other)] == other), None)
        if begun is None:
            kept.append(way)
        else:
            kept[begun] = way
    names = tuple(name for way in kept for name in way)
    return names if len(names) <= MAX_BUDGETS_PER_NODE else tuple(dict.fromkeys(names))


def fitting(names: Sequence[str], *, way: Way, gone: Collection[str]) -> tuple[str, ...]:
    """As many of `names` as a spec can hold, for one that the API server refuses lowers no cap. The present `way` stays; what is
    left out first are budgets that are `gone`, and of alike ones those that were left longest ago. They count on with whoever
    knows of them; a successor counts what is named, and what labels say."""
    excess = len(names) - MAX_BUDGETS_PER_NODE
    if excess <= 0:
        return tuple(names)
    loose = [name for name in reversed(names) if name not in way]
    left_out = set(sorted(loose, key=lambda name: name not in gone)[:excess])
    return tuple(name for name in names if name not in left_out)


def claimed_away(way: Way, claim: Way) -> bool:
    """Whether who stood on `way` is claimed for another: where the two part, `claim` names another budget. Where it ends first it
    names none, and a parent that is left out lets nothing go."""
    return any(was != now for was, now in zip(way, claim, strict=False))


def begin_moves(
    account: NodeAccount,
    moves: dict[str, int],
    unread: set[str],
    *,
    selected: Sequence[str],
    known: Sequence[Sequence[str]],
    tree: Tree,
) -> None:
    """Note what a claim leaves of the budgets that are known to count the node: by its spec, and by the last look (R9, R32). A
    claim that leads back to a way that it was leaving keeps what is above there, named now or not. What it left already it
    leaves on where nothing claims it, also if that spec is gone by the next claim.
    `moves` of the node: by former budget the number of the first grant made after the claim, NO_GRANT while there is none.
    `unread`: those of them whose claim is still to be read afresh."""
    standing = ways(selected, tree)
    if not selected:
        left_before = set(told_leaving(account)).difference(moves)
        unread.update(left_before)
        moves.update(dict.fromkeys(left_before, NO_GRANT))
        return
    claim = tree.claim(selected[0])
    stood = {way for names in known for way in split_ways(names, tree.leaves, tree.named)}
    kept = {name for way in stood if not claimed_away(way, claim) for name in way}
    left = {name for way in stood for name in way}.difference(standing, kept)
    for former in sorted(left.difference(moves)):
        moves[former] = NO_GRANT
        unread.add(former)
    for back in [name for name in kept.intersection(moves) if moves[name] != DROPPED]:
        del moves[back]
        unread.discard(back)
    unread.difference_update(standing)


def end_moves(
    account: NodeAccount,
    moves: dict[str, int],
    unread: Set[str],
    *,
    selected: Sequence[str],
    written: Sequence[str],
    tree: Tree,
    observing: Set[str],
) -> None:
    """Drop the budgets whose move was acknowledged."""
    standing = ways(selected, tree)
    for former, since in list(moves.items()):
        if former in standing or (since == DROPPED and former not in written):
            del moves[former]
        elif former in unread:
            continue
        elif account.stamped and (former in observing or not observing.isdisjoint(selected)):
            moves[former] = DROPPED
        elif account.gpus:
            if since > NO_GRANT and all(gpu.acked >= since for gpu in account.gpus.values()):
                moves[former] = DROPPED
        elif account.stamped:
            moves[former] = DROPPED  # it has no GPU whose cap could be in doubt


def told_leaving(account: NodeAccount) -> tuple[str, ...]:
    """The budgets that the node's spec says it leaves."""
    spec = account.object.spec if account.object is not None else None
    return spec.leaving if spec is not None else ()


def releases(word: frozenset[str], names: Sequence[str]) -> frozenset[str]:
    """Those of `names`, a leaf and what else counts a node that nothing claims, that a person's word lets go of (R33). Whoever
    names the leaf means all."""
    if not word or not names:
        return frozenset()
    return frozenset(names) if RELEASE_ALL in word or names[0] in word else word.intersection(names)


def rates_of(leaves: Sequence[str], budgets: Mapping[str, BudgetSpec], seen: NodePower | None) -> Rates:
    """The highest that these leaves declare, and of those that are gone what the spec kept."""
    told = [Rates.declared(budgets[name]) for name in leaves if budgets[name].selector is not None]
    kept = seen.spec if seen is not None else None
    if kept is not None and len(told) < len(leaves):
        told.append(Rates(kept.overhead_percent or 0, kept.non_gpu_w or 0, kept.unmanaged_w or 0))
    return Rates(
        max((rates.overhead_percent for rates in told), default=0),
        max((rates.non_gpu_w for rates in told), default=0),
        max((rates.unmanaged_w for rates in told), default=0),
    )


def leads_up_to(name: str, placement: Placement, budgets: Mapping[str, BudgetSpec]) -> bool:
    """Whether the node stands in this budget through another one, which names it: then it is no leaf of that node, whatever it
    selects."""
    if budgets[name].selector is None:
        return True
    return len(placement.leaves) > 1 and any(budgets[n].parent == name for n in placement.names if n in budgets)


def rates_in(name: str, placement: Placement, budgets: Mapping[str, BudgetSpec]) -> Rates:
    """What a node counts by in one budget: what that declares as its leaf, else the highest that any leaf of the node does."""
    return placement.rates if leads_up_to(name, placement, budgets) else Rates.declared(budgets[name])


def node_rest_w(rates: Rates, node: NodeAccount) -> int:
    """Watts at the meter besides those of GPUs that are known one by one."""
    return rates.non_gpu_w if managed(node) else rates.unmanaged_w


def charged_w(rates: Rates, node: NodeAccount) -> float:
    """What one node counts for, at the meter: its rest, and the charges of its GPUs with losses."""
    return node_rest_w(rates, node) + rates.loss_factor * node.gpus_charge_w


def lowest_gpu_w(gpu: GpuAccount) -> int:
    """What it would be charged at its lowest legal cap. One that has no such cap is its charge, but where its status cannot be
    true: then that charge is in the way, and no limit is too low for it."""
    return max(gpu.min_w, gpu.floor_w) or (0 if gpu.oddity else gpu.charge_w)


def lowest_w(rates: Rates, node: NodeAccount) -> float:
    """`charged_w`, were each of its GPUs at its lowest legal cap."""
    return node_rest_w(rates, node) + rates.loss_factor * sum(map(lowest_gpu_w, node.gpus.values()))
