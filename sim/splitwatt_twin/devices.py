"""The device plugin's part: which GPUs of a node belong to which pod.

Invariant: a GPU belongs to at most one pod, and a pod gets all the GPUs it asks for or none. The choice is deterministic
(lowest free indices, pods in the order they were created), so the same cluster gets the same GPUs in every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitwatt_twin.requests import PodKey


class NodeDevices:
    """GPUs 0..len(uuids)-1 of one node."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self.uuids = tuple(uuids)
        self._held: dict[PodKey, tuple[int, ...]] = {}

    @property
    def held(self) -> Mapping[PodKey, tuple[int, ...]]:
        return self._held

    def free(self) -> tuple[int, ...]:
        taken = {gpu for gpus in self._held.values() for gpu in gpus}
        return tuple(gpu for gpu in range(len(self.uuids)) if gpu not in taken)

    def assign(self, pod: PodKey, count: int) -> tuple[int, ...] | None:
        """The pod's GPUs, the same ones at every call; None when the node has too few free ones, or `count` is below 1."""
        if (held := self._held.get(pod)) is not None:
            return held
        free = self.free()
        if not 1 <= count <= len(free):
            return None
        self._held[pod] = free[:count]
        return self._held[pod]

    def release(self, pod: PodKey) -> tuple[int, ...]:
        """The GPUs that became free; empty when the pod held none."""
        return self._held.pop(pod, ())

    def device_ids(self, pod: PodKey) -> tuple[str, ...]:
        return tuple(self.uuids[gpu] for gpu in self._held.get(pod, ()))
