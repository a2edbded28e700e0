"""From pods to running engines: devices are assigned, engines start when their pod is Ready and end with it.

Invariant: a pod of ours that is bound to one of our nodes holds its GPUs from the moment it is seen until it is gone
(also while it is not Ready, as with a kubelet), and has an engine exactly while it is Ready and none of its GPUs is
lost. A pod for which no GPUs are free waits, and gets them in the order of creation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from splitwatt_core.clusters import Role

from splitwatt_twin.devices import NodeDevices
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import Engine, EngineFleet, parts_of
from splitwatt_twin.gpus import GpuGroup, NodeGpus
from splitwatt_twin.kv import MIN_KV_TOKENS, kv_capacity_tokens, link_of, shape_of
from splitwatt_twin.metrics import ReplicaView
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.podview import PodView, view
from splitwatt_twin.requests import ClusterKey, PodKey
from splitwatt_twin.stats import EngineStats

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Node:
    gpus: NodeGpus
    devices: NodeDevices


@dataclass(slots=True)
class _Replica:
    pod: PodView
    group: GpuGroup | None = None
    engine: Engine | MixedEngine | None = None


class Replicas:
    """Fed with pods as the API server shows them. `catch_up` brings the fleet to the present before anything changes."""

    def __init__(self, *, nodes: Mapping[str, Node], fleet: EngineFleet, catch_up: Callable[[], None]) -> None:
        self._nodes = nodes
        self._fleet = fleet
        self._catch_up = catch_up
        self._replicas: dict[PodKey, _Replica] = {}
        self._engines: dict[Engine, _Replica] = {}

    # ---------------------------------------------------------------------------------------------------------- pods

    def synced(self, pods: Iterable[Mapping[str, Any]]) -> None:
        """The whole truth: what is not in it does not exist."""
        views = {v.key: v for pod in pods if (v := view(pod)) is not None}
        for key in [key for key in self._replicas if key not in views]:
            self.gone(key)
        for pod in sorted(views.values(), key=lambda v: (v.created, v.key)):
            self._seen(pod)

    def changed(self, pod: Mapping[str, Any]) -> None:
        seen = view(pod)
        if seen is None:
            self.gone(PodKey(pod["metadata"]["namespace"], pod["metadata"]["name"]))
        else:
            self._seen(seen)

    def deleted(self, pod: Mapping[str, Any]) -> None:
        key = PodKey(pod["metadata"]["namespace"], pod["metadata"]["name"])
        known = self._replicas.get(key)
        if known is not None and known.pod.uid == pod["metadata"]["uid"]:
            self.gone(key)

    def _seen(self, pod: PodView) -> None:
        if pod.node not in self._nodes:
            return
        known = self._replicas.get(pod.key)
        if known is not None and known.pod.uid != pod.uid:
            self.gone(pod.key)
            known = None
        if known is None:
            known = self._replicas[pod.key] = _Replica(pod)
        known.pod = pod
        self._settle(known)

    def gone(self, key: PodKey) -> None:
        replica = self._replicas.pop(key, None)
        if replica is None:
            return
        self._stop(replica)
        node = self._nodes[replica.pod.node]
        if node.devices.release(key):
            waiting = [r for r in self._replicas.values() if r.group is None and r.pod.node == replica.pod.node]
            for other in sorted(waiting, key=lambda r: (r.pod.created, r.pod.key)):
                self._settle(other)

    # ------------------------------------------------------------------------------------------------------- engines

    def _settle(self, replica: _Replica) -> None:
        pod = replica.pod
        if replica.group is None:
            node = self._nodes[pod.node]
            gpus = node.devices.assign(pod.key, pod.gpus)
            if gpus is None:
                log.warning(
                    "pod %s wants %d GPUs of node %s, where %d are free; it waits for others to end",
                    pod.key, pod.gpus, pod.node, len(node.devices.free()),
                )  # fmt: skip
                return
            replica.group = GpuGroup(node.gpus, gpus)
        wanted = pod.ready and replica.group.healthy
        if wanted and replica.engine is None:
            self._start(replica, replica.group)
        elif not wanted and replica.engine is not None:
            self._stop(replica)

    def _start(self, replica: _Replica, group: GpuGroup) -> None:
        pod, stats = replica.pod, EngineStats()
        shape = shape_of(pod.model)
        engine: Engine | MixedEngine
        if pod.role is Role.PREFILL:
            engine = PrefillEngine(name=pod.key.name, pace=group, stats=stats)
        else:
            capacity = kv_capacity_tokens(shape, gpus=len(group.gpus), memory_bytes=group.memory_bytes)
            if capacity < MIN_KV_TOKENS:
                log.warning(
                    "pod %s: %s leaves no room for a KV cache on %d GPUs; emulated with %d tokens",
                    pod.key, shape.name, len(group.gpus), MIN_KV_TOKENS,
                )  # fmt: skip
            engine = decode = DecodeEngine(
                name=pod.key.name, pace=group, kv_capacity_tokens=max(MIN_KV_TOKENS, capacity), stats=stats
            )  # fmt: skip
            if pod.role is Role.MIXED:
                engine = MixedEngine(PrefillEngine(name=pod.key.name, pace=group, stats=stats), decode)
        self._catch_up()
        replica.engine = engine
        self._engines |= dict.fromkeys(parts_of(engine), replica)
        self._fleet.add(pod.cluster, engine, link=link_of(shape, profile_name=group.profile.name))
        log.info("pod %s serves %s as %s on %s GPUs %s", pod.key, pod.cluster, pod.role, pod.node, group.gpus)

    def _stop(self, replica: _Replica) -> None:
        if replica.engine is None:
            return
        engine, replica.engine = replica.engine, None
        self._catch_up()
        self._fleet.remove(engine)
        for part in parts_of(engine):
            del self._engines[part]
        if replica.group is not None:
            replica.group.rest()
        log.info("pod %s serves no longer", replica.pod.key)

    def check_health(self) -> None:
        """Engines end on lost GPUs and start again when the GPUs are back."""
        for replica in list(self._replicas.values()):
            if replica.group is not None and (replica.engine is not None) != (replica.pod.ready and replica.group.healthy):
                self._settle(replica)

    def drive(self, engine: Engine) -> None:
        """Puts the engine's present work on its GPUs."""
        replica = self._engines.get(engine)
        if replica is not None and replica.group is not None:
            shown = replica.engine.at_work if isinstance(replica.engine, MixedEngine) else engine
            replica.group.work(shown)

    def rest(self) -> None:
        """All GPUs idle: the process ends."""
        for replica in self._replicas.values():
            if replica.group is not None:
                replica.group.rest()

    # --------------------------------------------------------------------------------------------------------- views

    def clusters(self) -> set[ClusterKey]:
        """Those that have any pod on our nodes."""
        return {replica.pod.cluster for replica in self._replicas.values()}

    def views(self) -> list[ReplicaView]:
        return [
            ReplicaView(pod=r.pod.key, cluster=r.pod.cluster, role=r.pod.role.value, model=r.pod.model, engine=r.engine)
            for r in self._replicas.values()
            if r.engine is not None
        ]
