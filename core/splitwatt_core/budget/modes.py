"""What a tree or a node does in its mode, and the word that is said when a person changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from splitwatt_core.budget.demand import Demand
from splitwatt_core.budget.facts import Note
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.conditions import counted
from splitwatt_core.names import LABEL_MODE
from splitwatt_core.protocol.contract import Mode, Phase
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

DOES: Final[Mapping[Mode, str]] = {
    Mode.OBSERVE: "nothing more is granted: caps and clock locks stay as they are, and the limit is not held",
    Mode.STRICT: "the limit is held by caps",
    Mode.OVERSUBSCRIBED: "the limit is held by caps, some of them leased",
    Mode.RELEASE: "default limits and clocks are given back as far as the limit allows",
}


def mode_changed(spec: BudgetSpec, before: Mode) -> Note:
    """An Event on the root."""
    return Note("PowerBudget", spec.name, "ModeChanged", f"mode {before.value} -> {spec.mode.value}: {DOES[spec.mode]}")


def deleted(spec: BudgetSpec, accounts: Iterable[NodeAccount]) -> Note | None:
    """An Event on a budget that is gone: what stays, and the way out. None where it held nothing down."""
    low = [gpu for node in accounts if _counts_in(node, spec.name) for gpu in node.gpus.values() if left_low(gpu)]
    if not low:
        return None
    way = (
        "with mode: Release" if spec.parent is None else f"and set mode: Release at its root, or label nodes {LABEL_MODE}=Release"
    )
    text = (
        f"deleted, and nothing is raised for it: {counted(len(low), 'GPU')} keep caps below their default limit or locked "
        f"clocks; to have these given back apply it again {way}"
    )
    return Note("PowerBudget", spec.name, "CapsStay", text, warning=True)


def _counts_in(node: NodeAccount, budget: str) -> bool:
    return node.object is not None and node.object.spec is not None and budget in node.object.spec.budgets


def left_low(account: GpuAccount) -> bool:
    """A grant of ours holds it below its default limit, or locks its clock."""
    row = account.row
    return row is not None and (row.cap_w < default_w(account) or row.max_clock_mhz is not None)


def mode_on(node: NodeAccount, root: BudgetSpec, tree: Tree) -> Mode | None:
    """What rules a node: its own word, else its tree's. None below a budget whose place in its tree is wrong: nobody knows."""
    if root.name in tree.fault:
        return None
    return Mode.RELEASE if node.released else root.mode


def releases(node: NodeAccount, root: BudgetSpec, tree: Tree) -> bool:
    return mode_on(node, root, tree) is Mode.RELEASE


def default_w(account: GpuAccount) -> int:
    """The limit that a GPU is given back: its default, within its legal range."""
    return min(max(account.default_w, account.min_w), max(account.max_w, account.min_w))


def as_it_is(account: GpuAccount, wants: Demand) -> Demand:
    """What the policy is shown of a GPU that gets its default back: it keeps the cap that it has, and gives like the lowest rank
    where a sum asks for it. So the policy deals nobody else's watts to it, and none of its own to others."""
    held_w = min(max(account.present_cap_w, account.min_w), default_w(account))
    return replace(wants, phase=Phase.PREFILL, priority=PRIORITY_LOW, ceiling_w=held_w, natural_w=held_w, cliff_w=held_w)
