"""The API server's part of a simulated site: NodePowers with versions, and writes that are refused when they come late."""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.facts import Outcome, Rejected, SpecWrite, Written
from splitwatt_core.protocol.contract import NodePower, Status


class Site:
    """Objects by name. Every change makes a new version, numbered over all objects."""

    def __init__(self) -> None:
        self._version = 0
        self.objects: dict[str, NodePower] = {}

    def _put(self, node_power: NodePower) -> NodePower:
        self._version += 1
        stored = replace(node_power, resource_version=self._version)
        self.objects[stored.name] = stored
        return stored

    def create(self, name: str) -> NodePower:
        assert name not in self.objects, "the keeper asks for each object once"
        return self._put(NodePower(name, f"uid-{name}", 0))

    def write_spec(self, write: SpecWrite) -> Outcome:
        """Only on the version it was decided on (R1)."""
        stored = self.objects[write.name]
        if stored.resource_version != write.resource_version:
            return Rejected("409: the object has changed")
        return Written(self._put(replace(stored, spec=write.spec)))

    def write_status(self, name: str, status: Status) -> NodePower | None:
        """The new version, None where nothing changed."""
        stored = self.objects[name]
        return None if stored.status == status else self._put(replace(stored, status=status))
