"""Why a foreign pod that asked for power admission waits, as an Event on the pod: it has no status of ours to read it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_core.admission import foreign
from splitwatt_core.admission.standing import ClusterStanding
from splitwatt_core.clusters import ClusterName

from splitwatt_operator.cluster.read import subject_of
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.recorder import Recorder

REPEAT_S: Final = 600.0
"""The numbers of a reason change all the time: it is said again after this pause, or when the reason is another."""


class Askers:
    """One per reign."""

    def __init__(self, store: Store, recorder: Recorder) -> None:
        self._store = store
        self._recorder = recorder
        self._told: dict[ClusterName, tuple[str, float]] = {}

    def tell(self, standings: Mapping[ClusterName, ClusterStanding], now_s: float) -> None:
        """`now_s` monotonic."""
        waiting = {
            name: (pod, standing.verdict)
            for name, standing in standings.items()
            if not standing.verdict.admitted and (pod := foreign.pod_of(name)) is not None
        }
        self._told = {name: told for name, told in self._told.items() if name in waiting}
        for name, (pod, verdict) in waiting.items():
            reason, told_s = self._told.get(name, ("", 0.0))
            obj = self._store.get(Kind.POD, pod.name, pod.namespace)
            if obj is None or (reason == verdict.reason and now_s - told_s < REPEAT_S):
                continue
            self._told[name] = (verdict.reason, now_s)
            self._recorder.note(subject_of(obj), reason=verdict.reason, message=verdict.message, warning=True)
