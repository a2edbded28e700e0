"""How each cluster stands once a plan is carried out: its verdict, its pods past the gate, and the watts promised to them.

Protected: what people are told is promised is what `room` reserves by, the floor on a pod's own node, or on the dearest of
its leaf while it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitwatt_core.admission.room import House
from splitwatt_core.admission.snapshot import AdmissionPlan, AdmissionSnapshot, AdmissionVerdict, HeldPod
from splitwatt_core.clusters import ClusterName, Role


@dataclass(frozen=True, slots=True)
class ClusterStanding:
    """One cluster as admission sees it. `admitted`: pods past their gates that stay, by role. `floor_w`: meter watts of the
    floors of all pods past their gates."""

    verdict: AdmissionVerdict
    admitted: Mapping[Role, int]
    floor_w: float


def standings(snapshot: AdmissionSnapshot, plan: AdmissionPlan) -> dict[ClusterName, ClusterStanding]:
    """Of every cluster that the plan judged. Cost: pods past their gates, and nodes once for each kind of those unbound."""
    house = House(snapshot)
    admitted: dict[ClusterName, dict[Role, int]] = {name: {} for name in plan.verdicts}
    floor_w = dict.fromkeys(plan.verdicts, 0.0)
    for held in (*snapshot.held, *(HeldPod(a.need, a.leaf) for a in plan.admissions)):
        cluster, role = held.need.cluster, held.need.role
        if cluster is None or cluster not in plan.verdicts:
            continue
        floor_w[cluster] += house.floor_w(held)
        if not held.terminating:
            admitted[cluster][role] = admitted[cluster].get(role, 0) + 1
    return {name: ClusterStanding(verdict, admitted[name], floor_w[name]) for name, verdict in plan.verdicts.items()}
