"""Why a gang waits: what is short, in which leaf, with the numbers.

A pod starts where one leaf has both its GPUs and its watts, so each leaf is judged by itself. A sentence names the leaf that
lacks least, and never calls a thing short there that is not. Watts are told before GPUs: where a leaf has the GPUs, the watts
of its own chain are what is missing, whatever other leaves have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from splitwatt_core.admission.foreign import pod_of
from splitwatt_core.admission.replicas import blocks_of
from splitwatt_core.admission.room import Choice, House, KeptBack, Room
from splitwatt_core.admission.snapshot import AdmissionSnapshot, AdmissionVerdict, NodeRoom, PodNeed
from splitwatt_core.budget.facts import Taint
from splitwatt_core.clusters import ClusterName
from splitwatt_core.columns import TOLERANCE_W
from splitwatt_core.conditions import counted, some


@dataclass(frozen=True, slots=True)
class Shortage:
    """What one leaf lacks for one pod. `budget`: the tightest from the leaf up, which has `left_w` of `need_w` meter watts; ""
    where watts are enough. `freest`: the most free GPUs on one of its `nodes` that the pod may use."""

    need: PodNeed
    leaf: str
    need_w: float
    budget: str
    left_w: float
    freest: int
    nodes: int

    @property
    def has_gpus(self) -> bool:
        return self.freest >= self.need.gpus

    @property
    def missing_w(self) -> float:
        return self.need_w - self.left_w if self.budget else 0.0

    @property
    def where(self) -> str:
        return f"PowerBudget {self.budget}" + ("" if self.budget == self.leaf else f", above {self.leaf},")


def refusal(snapshot: AdmissionSnapshot, room: Room, kept: KeptBack, pods: Sequence[PodNeed]) -> AdmissionVerdict:
    """Why these pods, which could not be placed, wait: for the first of them that no leaf has room for, else for whoever
    comes first, else for what they lack together."""
    for need in pods:
        verdict = _no_node(snapshot, room, need)
        if verdict is not None:
            return verdict
        if not room.could_place((need,)):
            return _short(shortages(room, need), _growth(room, need))
    blocks = list(blocks_of(pods))
    for block in blocks:
        if len(block) > 1 and not room.could_place(block):
            return _short_of_a_group(room, block)
    if room.could_place(pods):
        names = ", ".join(str(name) for name in _ahead(room.house, kept, pods))
        return AdmissionVerdict(False, "WaitingForTurn", f"Waits behind {names}, which comes first for the same watts or GPUs.")
    if len(blocks) < len(pods):
        told = (
            "The first prefill and the first decode replica fit one by one, but not together: watts or GPUs are short for both."
        )
        return AdmissionVerdict(False, "InsufficientPower", told)
    return _short_together(room, pods)


def shortages(room: Room, need: PodNeed) -> list[Shortage]:
    """Of every leaf that has nodes for the pod, and lacks something."""
    found = []
    for leaf, nodes in room.house.usable(need).items():
        need_w = room.house.reservation_w(need, leaf, need.gpus)
        short = room.short(leaf, need_w)
        row = Shortage(
            need=need,
            leaf=leaf,
            need_w=need_w,
            budget="" if short is None else short.name,
            left_w=0.0 if short is None else room.left_w[short.name],
            freest=room.freest(need, leaf),
            nodes=len(nodes),
        )
        if row.budget or not row.has_gpus:
            found.append(row)
    return found


# ------------------------------------------------------------------------------------------------------------ sentences


def _short(rows: Sequence[Shortage], growth: AdmissionVerdict) -> AdmissionVerdict:
    """Of one pod that no leaf has room for; `growth`: why no node is added for it."""
    if not rows:
        return growth
    powered = [row for row in rows if not row.budget]
    housed = [row for row in rows if row.has_gpus]
    if not housed:
        row = min(powered or rows, key=lambda row: (-row.freest, row.missing_w, row.leaf))
        also = f" {_also_text(row)}" if row.budget else ""
        return AdmissionVerdict(False, "InsufficientGPUs", f"{_gpus_text(row)}{also} {growth.message}")
    row = min(housed, key=_least)
    text = f"To keep its GPUs above the cliff, {_ask_text(row)} must be reserved; {_left_text(row, row.left_w, row.missing_w)}"
    if powered:
        other = max(powered, key=lambda row: (row.freest, row.leaf))
        text += (
            f" PowerBudget {other.leaf} has the watts, but on the freest of {counted(other.nodes, 'matching node')} there "
            f"{other.freest} of {other.need.gpus} GPUs are free."
        )
    return AdmissionVerdict(False, "InsufficientPower", text)


def _short_together(room: Room, pods: Sequence[PodNeed]) -> AdmissionVerdict:
    """Of pods that fit one by one: with the first in a leaf, what do the others lack? The leaf that comes closest is told."""
    first, rest = pods[0], pods[1:]
    closest: tuple[tuple[object, ...], Choice, Shortage] | None = None
    for choice in room.choices(first, KeptBack(), rest):
        room.take(choice)
        for need in rest:
            for row in shortages(room, need):
                key = (not row.has_gpus, *_least(row))
                if closest is None or key < closest[0]:
                    closest = key, choice, row
        room.give_back((choice,))
    if closest is None:
        return _growth(room, rest[0])
    _, choice, row = closest
    asked = f"{first.role.value} {choice.reservation_w:.0f} W ({counted(first.gpus, 'GPU')}) in {choice.leaf}"
    if not row.has_gpus:
        return AdmissionVerdict(
            False, "InsufficientGPUs", f"With the {first.role.value} replica in {choice.leaf}, {_gpus_text(row, start='the')}"
        )
    if row.budget not in {budget.name for budget in room.house.chain(choice.leaf)}:
        asked, left_w = "", row.left_w
    else:
        left_w = row.left_w + choice.reservation_w
    both = f"{asked} and {_ask_text(row)}" if asked else _ask_text(row)
    text = f"To keep their GPUs above the cliff, {both} must be reserved; {_left_text(row, left_w, row.missing_w)}"
    return AdmissionVerdict(False, "InsufficientPower", text)


def _short_of_a_group(room: Room, block: Sequence[PodNeed]) -> AdmissionVerdict:
    """Of a replica over several nodes, of which each pod would fit by itself."""
    need, house = block[0], room.house
    nodes = [node for nodes in house.usable(need).values() for node in nodes]
    slots = sum(max(0, room.free[node.name]) // max(1, need.gpus) for node in nodes)
    fit = len(room.fill(block, KeptBack()))
    return AdmissionVerdict(
        False,
        "InsufficientGPUs" if slots < len(block) else "InsufficientPower",
        f"A {need.role.value} replica is {len(block)} pods of {counted(need.gpus, 'GPU')}, which start together: there are GPUs "
        f"for {slots} of them, and GPUs and watts for {fit}.",
    )


def _growth(room: Room, need: PodNeed) -> AdmissionVerdict:
    """Why no autoscaler adds a node for the pod."""
    house = room.house
    coming = house.growing(need)
    if not coming:
        full = [b for b in house.budgets.values() if b.max_nodes is not None and b.name in house.usable(need)]
        text = (
            f"PowerBudget {full[0].name} may not get more nodes: raise its spec.elastic.maxNodes ({full[0].max_nodes})."
            if full
            else "No autoscaler sees a pod behind the power gate: where one shall add nodes, set spec.elastic on a leaf."
        )
        return AdmissionVerdict(False, "NoMatchingNodes", text)
    leaf = min(n.leaf for n in coming)
    tightest = room.tightest(leaf)
    if tightest is not None and room.left_w[tightest.name] < -TOLERANCE_W:
        return AdmissionVerdict(
            False,
            "InsufficientPower",
            f"PowerBudget {leaf} may grow for the {need.role.value} replica, but of what is kept free for nodes to come "
            f"{-room.left_w[tightest.name]:.0f} W are missing in PowerBudget {tightest.name}: raise its limit or lower "
            "spec.elastic.maxNodes.",
        )
    return AdmissionVerdict(
        False,
        "InsufficientGPUs",
        f"PowerBudget {leaf} may still get {counted(sum(n.leaf == leaf for n in coming), 'node')}, and pods that are on their "
        "way there need them all: raise its spec.elastic.maxNodes.",
    )


def _no_node(snapshot: AdmissionSnapshot, room: Room, need: PodNeed) -> AdmissionVerdict | None:
    """Where no leaf has a node for the pod, even empty: what to change."""
    house = room.house
    if house.usable(need) or house.growing(need):
        return None
    who = _who(need)
    matching = [n for n in snapshot.nodes if not n.to_come and need.reaches(n)]
    if not matching:
        labels = ", ".join(f"{k}={v}" for k, v in sorted(need.rules.selector.match_labels.items())) or "any label"
        asked = labels + (" and the required node affinity of its template" if need.rules.terms else "")
        return AdmissionVerdict(
            False,
            "NoMatchingNodes",
            f"{who} asks for nodes with {asked}, but no node of any leaf PowerBudget has them: change its "
            f"nodeSelector, label the nodes, or select them in a PowerBudget. {_growth(room, need).message}",
        )
    bare = [(n, taint) for n in matching if (taint := need.rules.untolerated(n.taints)) is not None and not n.closed]
    open_ = [n for n in matching if need.may_use(n)]
    if not open_:
        return _all_shut(need, matching, bare)
    largest = max(n.gpus for n in open_)
    if largest < need.gpus:
        return AdmissionVerdict(
            False,
            "NoMatchingNodes",
            f"{who} asks for {counted(need.gpus, 'GPU')} on one node, but the largest of {len(open_)} matching nodes "
            f"has {largest}: {'lower gpusPerReplica' if _cluster(need) else 'ask for fewer'} or add larger nodes.",
        )
    faults = {n.leaf: fault for n in open_ if n.name in house.nodes and (fault := house.budgets[n.leaf].fault)}
    if faults:
        leaf, fault = min(faults.items())
        return AdmissionVerdict(
            False,
            "InvalidTree",
            f"No pod is let into PowerBudget {leaf} while nobody knows what the budgets above it can spare. {fault}.",
        )
    return AdmissionVerdict(
        False,
        "NoAgentReport",
        f"None of {counted(len(open_), 'node')} for {_who(need, start=False)} has GPUs reported by its power agent yet.",
    )


def _all_shut(need: PodNeed, matching: Sequence[NodeRoom], bare: Sequence[tuple[NodeRoom, Taint]]) -> AdmissionVerdict:
    """Every node that has the labels is cordoned, not Ready, or tainted against the pod."""
    if bare:
        where = f"spec.{need.role.value}.template.spec" if _cluster(need) else "its spec"
        taints = some(sorted({str(taint) for _, taint in bare}))
        return AdmissionVerdict(
            False,
            "UntoleratedTaint",
            f"{_who(need)} does not tolerate {taints}, by which {some(sorted(node.name for node, _ in bare))} of "
            f"{counted(len(matching), 'matching node')} keep it away: add tolerations to {where}, or take "
            "the taints off.",
        )
    shut = some([f"{n.name} ({n.closed})" for n in sorted(matching, key=lambda n: n.name)])
    return AdmissionVerdict(
        False,
        "NodesUnavailable",
        f"No node for {_who(need, start=False)} takes pods: {shut}. Uncordon or repair one.",
    )


def _ahead(house: House, kept: KeptBack, pods: Iterable[PodNeed]) -> list[ClusterName]:
    """Whoever keeps back something that the pods could use."""
    found: dict[ClusterName, None] = {}
    for need in pods:
        for leaf, nodes in house.usable(need).items():
            owners = [kept.nodes.get(n.name) for n in nodes]
            owners += [kept.budgets.get(b.name) for b in house.chain(leaf)]
            found |= dict.fromkeys(name for name in owners if name is not None)
    return list(found)


def _least(row: Shortage) -> tuple[float, int, str]:
    return row.missing_w, -row.freest, row.leaf


def _ask_text(row: Shortage) -> str:
    return f"{row.need.role.value} {row.need_w:.0f} W ({counted(row.need.gpus, 'GPU')}) in {row.leaf}"


def _left_text(row: Shortage, left_w: float, missing_w: float) -> str:
    return f"{row.where} has {left_w:.0f} W left above all floors: {missing_w:.0f} W are missing."


def _gpus_text(row: Shortage, *, start: str = "The") -> str:
    return (
        f"{start} {row.need.role.value} replica needs {counted(row.need.gpus, 'free GPU')} on one node; in PowerBudget "
        f"{row.leaf} the freest of {counted(row.nodes, 'matching node')} has {row.freest}, and no other leaf has both GPUs and "
        "watts."
    )


def _also_text(row: Shortage) -> str:
    return f"It would need {row.need_w:.0f} W there as well, and {row.where} has {row.left_w:.0f} W left above all floors."


def _cluster(need: PodNeed) -> bool:
    """Of an InferenceCluster, not for itself."""
    return need.cluster is None or pod_of(need.cluster) is None


def _who(need: PodNeed, *, start: bool = True) -> str:
    """At the `start` of a sentence or within."""
    if _cluster(need):
        return f"{'The' if start else 'the'} {need.role.value} role"
    return f"{'Pod' if start else 'pod'} {need.pod.name}"
