"""The API server's side of the protocol's world: versions, uids, conflicts, and the rule that a term never falls."""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.facts import Outcome, Rejected, SpecWrite, Written
from splitwatt_core.protocol.contract import NodePower, Spec, Status


class Store:
    """The API server's etcd for NodePowers: versions, uids, conflicts, and the CEL rule that a term never falls."""

    def __init__(self) -> None:
        self.version = 0
        self.uids = 0
        self.objects: dict[str, NodePower] = {}
        self.log: list[tuple[str, NodePower | None, str]] = []  # name, new version or None, uid of what was deleted
        self.fence = True

    def _put(self, obj: NodePower) -> NodePower:
        self.version += 1
        obj = replace(obj, resource_version=self.version)
        self.objects[obj.name] = obj
        self.log.append((obj.name, obj, ""))
        return obj

    def create(self, name: str, *, spec: Spec | None = None, status: Status | None = None) -> NodePower | None:
        if name in self.objects:
            return None
        self.uids += 1
        return self._put(NodePower(name, f"uid-{self.uids}", 0, spec, status or Status()))

    def delete(self, name: str) -> None:
        gone = self.objects.pop(name, None)
        if gone is not None:
            self.version += 1
            self.log.append((name, None, gone.uid))

    def write_spec(self, write: SpecWrite) -> Outcome:
        obj = self.objects.get(write.name)
        if obj is None or obj.uid != write.uid or obj.resource_version != write.resource_version:
            return Rejected("409")
        if self.fence and obj.spec is not None and write.spec.term < obj.spec.term:
            return Rejected("422 term never falls")
        return Written(self._put(replace(obj, spec=write.spec)))

    def write_status(self, name: str, uid: str, version: int, status: Status) -> NodePower | None:
        obj = self.objects.get(name)
        if obj is None or obj.uid != uid or obj.resource_version != version:
            return None
        return self._put(replace(obj, status=status))
