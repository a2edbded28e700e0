"""Gates that count as lifted before the watch shows it: assume, then apply.

From before a patch is sent until the pod itself is seen without its gate, the admission stands and its watts are taken. A
refusal ends that, for nothing was stored; but not after an attempt of unknown outcome, for what refuses the next attempt
may be that very one, which was stored. Then only the pod tells. Each attempt is bound to a version of the pod: one that is
seen newer and still gated cannot be met by any attempt so far, so the admission is off and is decided anew. Until then the
same patch is sent again, and never another in its place.

Times are of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from splitwatt_core.admission.pods import Pod
from splitwatt_core.admission.snapshot import Admission

RECHECK_S: Final = 2.0
"""A patch of unknown outcome is sent again after this pause."""
NOT_SENT: Final = -1


@dataclass(slots=True)
class _Lift:
    """`version`: of the pod, the newest that an attempt was bound to. `unsure`: an attempt may have been stored."""

    admission: Admission
    sent_s: float = float("-inf")
    version: int = NOT_SENT
    unsure: bool = False


class Assumed:
    """By pod uid, what was decided and what became of it."""

    def __init__(self) -> None:
        self._lifts: dict[str, _Lift] = {}

    def __len__(self) -> int:
        return len(self._lifts)

    def leaves(self) -> Mapping[str, str]:
        """For `Site.assumed`."""
        return {uid: lift.admission.leaf for uid, lift in self._lifts.items()}

    def take(self, admissions: Iterable[Admission]) -> None:
        """From now on they count as done."""
        self._lifts.update({admission.need.uid: _Lift(admission) for admission in admissions})

    def settle(self, pods: Iterable[Pod]) -> None:
        """Forget those of which the pods tell: without its gate a pod speaks for itself, one that is gone needs nothing, and
        one that is gated and newer than every attempt was not met."""
        behind = {pod.uid: pod.version for pod in pods if pod.gated}
        for uid, lift in list(self._lifts.items()):
            version = behind.get(uid)
            if version is None or (lift.version != NOT_SENT and version > lift.version):
                del self._lifts[uid]

    def due(self, now_s: float) -> list[Admission]:
        """What is to be sent now, or again."""
        return [lift.admission for lift in self._lifts.values() if now_s - lift.sent_s >= RECHECK_S]

    def sent(self, uid: str, *, version: int, now_s: float) -> None:
        """An attempt goes out, bound to this version of the pod."""
        lift = self._lifts[uid]
        lift.version, lift.sent_s = max(version, lift.version), now_s

    def unsent(self, uid: str) -> None:
        """No attempt left. If none ever did, the admission is off: when one may, the room that it was decided on may be gone."""
        lift = self._lifts.get(uid)
        if lift is not None and lift.version == NOT_SENT:
            del self._lifts[uid]

    def unknown(self, uid: str) -> None:
        """Nobody knows what became of the last attempt."""
        if uid in self._lifts:
            self._lifts[uid].unsure = True

    def refused(self, uid: str) -> bool:
        """The last attempt was not stored. True: nor was any, and the watts are free again. False: read the pod afresh."""
        lift = self._lifts.get(uid)
        if lift is not None and lift.unsure:
            return False
        self._lifts.pop(uid, None)
        return True
