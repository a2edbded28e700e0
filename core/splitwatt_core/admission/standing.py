"""How each cluster stands once a plan is carried out: its verdict, its pods past the gate, and the watts promised to them.

Protected: what people are told is promised is what `room` reserves by, the floor on a pod's own node, or on the dearest of
its leaf while it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitwatt_core.admission.replicas import standing
from splitwatt_core.admission.room import House
from splitwatt_core.admission.snapshot import AdmissionPlan, AdmissionSnapshot, AdmissionVerdict, HeldPod
from splitwatt_core.clusters import ClusterName, Role


@dataclass(frozen=True, slots=True)
class ClusterStanding:
    """One cluster as admission sees it. `admitted`: replicas past their gates that stay, by role. `floor_w`: meter watts of the
    floors of all pods past their gates."""

    verdict: AdmissionVerdict
    admitted: Mapping[Role, int]
    floor_w: float


def standings(snapshot: AdmissionSnapshot, plan: AdmissionPlan) -> dict[ClusterName, ClusterStanding]:
    """Of every cluster that the plan judged. Cost: pods past their gates, and nodes once for each kind of those unbound."""
    house = House(snapshot)
    past: dict[ClusterName, dict[Role, list[HeldPod]]] = {name: {} for name in plan.verdicts}
    floor_w = dict.fromkeys(plan.verdicts, 0.0)
    for held in (*snapshot.held, *(HeldPod(a.need, a.leaf) for a in plan.admissions)):
        cluster, role = held.need.cluster, held.need.role
        if cluster is None or cluster not in plan.verdicts:
            continue
        floor_w[cluster] += house.floor_w(held)
        past[cluster].setdefault(role, []).append(held)
    wants = {want.cluster: want for want in snapshot.clusters}
    admitted: dict[ClusterName, dict[Role, int]] = {}
    for name, by_role in past.items():
        nodes = {role: wants[name].nodes_of(role) if name in wants else 1 for role in by_role}
        counts = {role: standing(pods, nodes=nodes[role]) for role, pods in by_role.items()}
        admitted[name] = {role: count for role, count in counts.items() if count}
    return {name: ClusterStanding(verdict, admitted[name], floor_w[name]) for name, verdict in plan.verdicts.items()}
