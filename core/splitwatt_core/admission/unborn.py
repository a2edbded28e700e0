"""Replicas of a pair that are asked for and that nobody has created yet.

The pods of a pair's two roles are created by two controllers. Of a cluster that grows, those of one role may be seen moments
before those of the other; if they took all the watts, the cluster would stay lopsided for ever. So a replica to come keeps its
place in the order against younger pods of the other role that would overtake it: they may have what it does not need.

Only for a moment: a quota or a webhook may mean that it is never created. The pod that is overtaking waits for `BIRTH_GRACE_S` of
its own life, and then goes on without. A clock of ours that is further than that from the API server's waits for nobody.

A pod that is told to go stands for the one that follows it, which needs no more than is there: whoever is rolled waits for
nothing. So does one behind gates of others, who may say no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Final

from splitwatt_core.admission.replicas import Replica
from splitwatt_core.admission.snapshot import AdmissionSnapshot, ClusterWant, PodNeed
from splitwatt_core.clusters import PAIR, ClusterName, Role

BIRTH_GRACE_S: Final = 5.0
"""Of a pod's life, whose creation the API server tells in whole seconds: so it is 4 to 5."""


class Births:
    """What a snapshot shows beside those who wait: who stands for a replica to come, and what one would ask for."""

    def __init__(self, snapshot: AdmissionSnapshot) -> None:
        self._likes: dict[tuple[ClusterName | None, Role], PodNeed] = {}
        going: dict[tuple[ClusterName | None, Role], set[str]] = {}
        for need in (*snapshot.waiting, *(held.need for held in snapshot.held)):
            self._likes.setdefault((need.cluster, need.role), need)
        for need in (*(h.need for h in snapshot.held if h.terminating), *(blocked.need for blocked in snapshot.blocked)):
            going.setdefault((need.cluster, need.role), set()).add(need.group or need.uid)
        self._stand_ins = going

    def ahead_of(
        self, want: ClusterWant, known: Mapping[Role, int], lags: Mapping[Role, Sequence[tuple[float, Replica]]], now_s: float
    ) -> Iterator[tuple[float, Replica]]:
        """Replicas to come that would be overtaken, each with its lag, as pods like those that are there already. `known`: by
        role, replicas past the gate or before it. `lags`: of those before it, in order."""
        for role, other in (PAIR, PAIR[::-1]):
            replicas, like = want.replicas.get(role, 0), self._likes.get((want.cluster, role))
            born = known.get(role, 0) + len(self._stand_ins.get((want.cluster, role), ()))
            overtaking = [(lag, pods) for lag, pods in lags.get(other, ()) if replicas and lag > born / replicas]
            if like is None or not overtaking or not _young(overtaking[0][1], now_s):
                continue
            for ordinal in range(born, replicas):
                if (lag := ordinal / replicas) < overtaking[-1][0]:
                    yield lag, (replace(like, created_s=inf),) * want.nodes_of(role)


def _young(pods: Replica, now_s: float) -> bool:
    return abs(now_s - max(need.created_s for need in pods)) < BIRTH_GRACE_S
