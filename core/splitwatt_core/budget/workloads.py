"""Whose GPUs are whose, where no InferenceCluster says it: pods of other people's serving, classed by labels and rules.

Precedence: an InferenceCluster of ours; a rule on the root budget above the GPU (`spec.workloads`, the first that matches); a
known label of the pod; nothing, and then the pod is a stranger. A rule is the site's word and may say a priority; a label is
the word of whoever owns the pod, and says phase, model and group alone, so nobody outranks a neighbour by labelling himself.
Whatever is said, caps stay within the budget: it only says who gets how much of it.

Protected: nothing rises because a word is missing. A label that vanishes from a pod or from its namespace counts on, as it was,
for as long as the pod is there, and a new operator keeps what the GPU's line tells. A pod of which nothing was read yet keeps
its GPUs' caps, and so does one that a rule may match whose namespace's labels nobody could read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from splitwatt_core.budget import known_labels
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.tree import WorkloadRule
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.protocol.contract import Grant, Phase, Workload

PodKey = tuple[str, str]
"""Namespace and name."""
MAX_PAST_OWNERS: Final = 4096
"""Pods that no GPU is said to be the own of any more, and whose labels are remembered; beyond it the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class OwnerFact:
    """A pod that holds GPUs and is not of an InferenceCluster. `uid`: "" where there is no such pod. `namespace_labels` None:
    nobody could read them."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] | None = None

    @property
    def key(self) -> PodKey:
        return self.namespace, self.name

    def after(self, before: OwnerFact | None) -> OwnerFact:
        """What counts of it, once `before` was known: no label of the same pod vanishes, and a role label whose new value says
        nothing is as it was. A pod that is gone while a GPU is still said to be its own is as it was."""
        if before is None or (self.uid and before.uid != self.uid):
            return self
        if not self.uid:
            return before
        labels = {**before.labels, **self.labels}
        for known in known_labels.ROLE_LABELS:
            was = before.labels.get(known.key, "")
            if was in known.phases and labels[known.key] not in known.phases:
                labels[known.key] = was
        spaces = (before.namespace_labels, self.namespace_labels)
        told = [labels_of for labels_of in spaces if labels_of is not None]
        merged = {key: value for labels_of in told for key, value in labels_of.items()}
        return replace(self, labels=labels, namespace_labels=merged if told else None)


def pod_fact_of(owner: OwnerFact, rules: Sequence[WorkloadRule]) -> PodFact | None:
    """What caps of its GPUs are decided by, below a root with these rules. None: a stranger that is no part of a group."""
    roles = list(known_labels.roles_of(owner.labels))
    said = roles[0][1] if roles else Phase.UNASSIGNED
    mixed = bool(roles) and owner.labels[roles[0][0].key] in roles[0][0].both
    group = known_labels.group_of(owner.labels)
    for number, rule in enumerate(rules):
        if rule.pods is not None and not rule.pods.matches(owner.labels):
            continue
        if rule.namespaces is not None:
            if owner.namespace_labels is None:
                return unread(owner.key)
            if not rule.namespaces.matches(owner.namespace_labels):
                continue
        return PodFact(
            owner.namespace,
            owner.name,
            said if rule.phase is None else rule.phase,
            PRIORITY_LOW if rule.priority is None else rule.priority,
            rule.model or known_labels.model_of(owner.labels),
            group=group,
            conflict=_conflict(roles, rule=rule, number=number),
            mixed=mixed and rule.phase is None,
        )
    if not roles and not group:
        return None
    model = known_labels.model_of(owner.labels) if roles else ""
    return PodFact(owner.namespace, owner.name, said, PRIORITY_LOW, model, group=group, conflict=_conflict(roles), mixed=mixed)


def as_written(fact: PodFact | None, key: PodKey, line: Grant | None) -> PodFact | None:
    """Of the pod that an operator finds on a GPU as it begins, and that nothing classes now, though a former one wrote a class
    into the GPU's `line`: what classed it may have vanished since, so it keeps that class, as if its cluster were gone."""
    if fact is not None and (fact.unread or fact.phase is not Phase.UNASSIGNED):
        return fact
    if line is None or line.power_class is None or line.phase is Phase.UNASSIGNED:
        return fact
    told = "its labels and rules say no phase any more: until it ends, or a rule classes it, it is held as it was classed before"
    return PodFact(*key, line.phase, PRIORITY_LOW, orphan=True, group="" if fact is None else fact.group, conflict=told)


def unread(key: PodKey) -> PodFact:
    """Of a pod of which nothing is known yet: its GPUs keep what they have."""
    return PodFact(*key, Phase.PREFILL, PRIORITY_LOW, unread=True)


def _conflict(roles: Sequence[tuple[known_labels.RoleLabel, Phase]], *, rule: WorkloadRule | None = None, number: int = 0) -> str:
    """What was said and does not count, as the end of a sentence about the pod; "" when all agree."""
    counts = roles[0][1] if roles else None
    if rule is not None and rule.phase is not None and counts not in (None, rule.phase):
        return f"label {roles[0][0].key} says {counts}, spec.workloads[{number}] says {rule.phase}, which counts"
    other = next((known for known, phase in roles[1:] if phase is not counts), None)
    if other is None or (rule is not None and rule.phase is not None):
        return ""
    return f"label {roles[0][0].key} says {counts}, which counts, label {other.key} says otherwise: take one off"


def unit_of(owner: Workload, pod: PodFact | None) -> PodKey:
    """Which GPUs get one common cap: those of one pod, or of all pods of one group. Pods of a group that rank differently, or
    that stand in other namespaces, are none: nobody gets into a neighbour's group, and rank, by naming it."""
    if pod is None or not pod.group:
        return owner.namespace, owner.pod
    return owner.namespace, f"{pod.group}/{pod.priority}"  # no pod's name has a slash


class Workloads:
    """The pods that hold GPUs, each as the rules of one root see it. Answers are kept until something of them changes.

    `awaits`: somebody reads every owner's labels, so that one of whom nothing was told yet is unread; else he is a stranger."""

    def __init__(self, *, awaits: bool = False) -> None:
        self._awaits = awaits
        self._owners: dict[PodKey, OwnerFact] = {}
        self._past: dict[PodKey, OwnerFact] = {}
        self._rules: dict[str, tuple[WorkloadRule, ...]] = {}
        self._known: dict[str, dict[PodKey, PodFact | None]] = {}

    def see(self, owner: OwnerFact) -> None:
        counts = owner.after(self._owners.get(owner.key) or self._past.pop(owner.key, None))
        if self._owners.get(owner.key) != counts:
            self._owners[owner.key] = counts
            self._forget(owner.key)

    def gone(self, key: PodKey) -> None:
        """No GPU is said to be its own any more. An agent that starts anew may say so for a moment, so what counted of it is
        remembered: the uid tells whether it is the same pod that comes back."""
        owner = self._owners.pop(key, None)
        if owner is not None:
            self._past[key] = owner
            while len(self._past) > MAX_PAST_OWNERS:
                self._past.pop(next(iter(self._past)))
        self._forget(key)

    def _forget(self, key: PodKey) -> None:
        for known in self._known.values():
            known.pop(key, None)

    def forget_root(self, root: str) -> None:
        self._rules.pop(root, None)
        self._known.pop(root, None)

    def of(self, key: PodKey, *, root: str, rules: tuple[WorkloadRule, ...]) -> PodFact | None:
        """As `pod_fact_of`, below this root. Below roots without rules all pods are alike."""
        name = root if rules else ""
        if self._rules.get(name) is not rules:
            if self._rules.get(name) != rules:
                self._known.pop(name, None)
            self._rules[name] = rules
        known = self._known.setdefault(name, {})
        if key not in known:
            owner = self._owners.get(key)
            known[key] = pod_fact_of(owner, rules) if owner is not None else unread(key) if self._awaits else None
        return known[key]
