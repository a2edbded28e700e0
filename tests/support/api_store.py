"""The API server of `support.world`: the shared store, and the kind itself, which may be deleted and made again."""

from __future__ import annotations

from collections import Counter

from splitwatt_core.protocol.contract import NodePower, Spec, Status
from splitwatt_truth.store import ObjectStore


class ApiStore(ObjectStore):
    """`kinds` counts how often the NodePower CRD was made; its uid comes with it. What goes with a CRD is told to no watch
    that the world knows of: whoever watched has to list anew."""

    def __init__(self) -> None:
        super().__init__(logged=True)
        self.kinds = 1
        self.served = True
        self.deleted: set[str] = set()
        """Whose object a person deleted and nobody made again: a release, once the Node is gone as well (R33)."""
        self.released: dict[str, frozenset[str]] = {}
        """What a person said of whom last."""
        self.deaths: Counter[str] = Counter()
        """How often a person deleted whose object, to restore it or not."""

    @property
    def kind_uid(self) -> str:
        """ "" while it is not served."""
        return f"crd-{self.kinds}" if self.served else ""

    def lose_kind(self) -> None:
        self.served = False
        self.objects.clear()

    def make_kind(self) -> None:
        if not self.served:
            self.kinds, self.served = self.kinds + 1, True

    def create(self, name: str, *, spec: Spec | None = None, status: Status | None = None) -> NodePower | None:
        if not self.served:
            return None
        self.deleted.discard(name)
        return super().create(name, spec=spec, status=status)

    def annotate(self, name: str, *, release: frozenset[str]) -> None:
        self.released[name] = release
        super().annotate(name, release=release)

    def delete(self, name: str) -> None:
        if name in self.objects:
            self.deleted.add(name)
            self.deaths[name] += 1
        super().delete(name)

    def take_back(self, seen: NodePower) -> None:
        """The operator removes a release from the object that it saw."""
        stored = self.objects.get(seen.name)
        if stored is not None and stored.uid == seen.uid:
            super().annotate(seen.name, release=frozenset())

    def remove(self, seen: NodePower) -> None:
        """The operator's own delete of the version that it saw."""
        stored = self.objects.get(seen.name)
        if stored is not None and (stored.uid, stored.resource_version) == (seen.uid, seen.resource_version):
            super().delete(seen.name)
