"""Pods of other people's serving that ask for power admission themselves: by our gate, and the cluster label with nothing in it.

No InferenceCluster speaks for such a pod, so the site's rules and known labels say its phase and rank, as they will say them
once it holds GPUs (`budget.workloads`). It stands for itself: a want of one replica, named by `asker_of`.

Protected: the floor that is reserved is the one by which the keeper will cap it. Whom nothing gives a phase is not let in, for
a stranger's floor is whatever it finds. Rules are a root's own, so it goes only below roots that give it a phase; where these
differ it has the dearest floor and the lowest rank of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.snapshot import AdmissionVerdict
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.budget.workloads import OwnerFact, pod_fact_of
from splitwatt_core.clusters import PRIORITY_LOW, ClusterName, Role
from splitwatt_core.protocol.contract import Phase

_ASKER: Final = "pod/"
"""No object's name has a slash."""


def asker_of(pod: PodName) -> ClusterName:
    """What admission knows a foreign pod by, where it knows others by their InferenceCluster."""
    return ClusterName(pod.namespace, f"{_ASKER}{pod.name}")


def pod_of(asker: ClusterName) -> PodName | None:
    """None: it is an InferenceCluster."""
    return PodName(asker.namespace, asker.name.removeprefix(_ASKER)) if asker.name.startswith(_ASKER) else None


@dataclass(frozen=True, slots=True)
class Classed:
    """What a foreign pod is below the roots where it may go. `facts`: what caps will be decided by there, all different.
    `roots`: their names."""

    facts: tuple[PodFact, ...]
    roots: frozenset[str]

    @property
    def role(self) -> Role:
        """One that runs either phase counts as prefill, which draws most."""
        return Role.PREFILL if any(fact.phase is Phase.PREFILL for fact in self.facts) else Role.DECODE

    @property
    def priority(self) -> int:
        return min(fact.priority for fact in self.facts)


def classed(pod: Pod, roots: Iterable[BudgetSpec], *, around: Mapping[str, str] | None) -> Classed | AdmissionVerdict:
    """Of a pod with `labels`, below these roots; or why it may go below none. `around`: its namespace's labels, None: unread."""
    owner = OwnerFact(pod.name.namespace, pod.name.name, pod.uid, pod.labels or {}, around)
    facts: dict[PodFact, None] = {}
    allowed, unread = set(), False
    for root in roots:
        fact = pod_fact_of(owner, root.workloads)
        if fact is not None and fact.unread:
            unread = True
        elif fact is not None and fact.phase is not Phase.UNASSIGNED:
            facts[fact] = None
            allowed.add(root.name)
    if facts:
        return Classed(tuple(facts), frozenset(allowed))
    if unread:
        return AdmissionVerdict(
            False,
            "NamespaceNotRead",
            f"A rule may choose it by the labels of namespace {owner.namespace}, which nobody could read yet: see that the "
            "operator may list namespaces.",
        )
    return AdmissionVerdict(
        False,
        "NoPhase",
        "No known label and no rule says its phase, so nobody knows its floor: set the label llm-d.ai/role, or write a rule with "
        "a phase into spec.workloads of the root PowerBudget.",
    )


def as_held(pod: Pod, root: BudgetSpec | None, *, around: Mapping[str, str] | None) -> Classed:
    """Of a pod past its gate, in a leaf below `root`. What classed it may be gone: then it counts as prefill, like a stranger."""
    found = classed(pod, () if root is None else (root,), around=around)
    if isinstance(found, Classed):
        return found
    return Classed((PodFact(*pod.name, Phase.PREFILL, PRIORITY_LOW),), frozenset())
