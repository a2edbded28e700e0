"""The API server's store of NodePowers, in memory: versions, uids, conflicts, and the rule that a term never falls.

It stands where a real one does not fit: in virtual time, in a benchmark of the core, in a search for broken rules. A write
is refused as the real one refuses it, with 409 where the object has changed, and 422 where CEL says no.
"""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.facts import Outcome, Rejected, SpecWrite, Written
from splitwatt_core.protocol.contract import MAX_BUDGETS_PER_NODE, NodePower, Spec, Status


class ObjectStore:
    """Objects by name; versions are numbered over all of them. `log` is what a watch would tell, for those who ask for it:
    name, the new version or None, and the uid of what was deleted."""

    def __init__(self, *, logged: bool = False) -> None:
        self.objects: dict[str, NodePower] = {}
        self.log: list[tuple[str, NodePower | None, str]] = []
        self.version = 0
        self.fence = True
        """Whether CEL holds; a fault when it is taken away."""
        self._logged = logged
        self._uids = 0

    def create(self, name: str, *, spec: Spec | None = None, status: Status | None = None) -> NodePower | None:
        """None where it exists already. Every birth has a uid of its own."""
        if name in self.objects:
            return None
        self._uids += 1
        return self._put(NodePower(name, f"uid-{self._uids}", 0, spec, status or Status()))

    def delete(self, name: str) -> None:
        gone = self.objects.pop(name, None)
        if gone is not None:
            self.version += 1
            self._tell(name, None, gone.uid)

    def annotate(self, name: str, *, release: frozenset[str]) -> None:
        """A person's word on an object (R33)."""
        self._put(replace(self.objects[name], release=release))

    def write_spec(self, write: SpecWrite) -> Outcome:
        """Only on the version it was decided on (R1)."""
        stored = self.objects.get(write.name)
        if stored is None or (stored.uid, stored.resource_version) != (write.uid, write.resource_version):
            return Rejected("409: the object has changed")
        if self.fence and stored.spec is not None and write.spec.term < stored.spec.term:
            return Rejected("422: a term never falls")
        if len(write.spec.budgets) > MAX_BUDGETS_PER_NODE:
            return Rejected(f"422: spec.budgets must have at most {MAX_BUDGETS_PER_NODE} items")
        return Written(self._put(replace(stored, spec=write.spec)))

    def write_status(self, name: str, uid: str, version: int, status: Status) -> NodePower | None:
        """The new version, None where the object has changed (R14)."""
        stored = self.objects.get(name)
        if stored is None or (stored.uid, stored.resource_version) != (uid, version):
            return None
        return self._put(replace(stored, status=status))

    def _put(self, node_power: NodePower) -> NodePower:
        self.version += 1
        stored = self.objects[node_power.name] = replace(node_power, resource_version=self.version)
        self._tell(stored.name, stored, "")
        return stored

    def _tell(self, name: str, stored: NodePower | None, gone_uid: str) -> None:
        if self._logged:
            self.log.append((name, stored, gone_uid))
