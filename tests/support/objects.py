"""Kubernetes objects as the API server gives them, put into a store with its view."""

from __future__ import annotations

from typing import Any

from splitwatt_core.clusters import cluster_label
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.cluster.view import View

H100_MODEL = "NVIDIA H100 80GB HBM3"
POOL = {"replicas": 1, "gpusPerReplica": 8, "nodeSelector": {"pool": "p"}}
NAMESPACED = (Kind.CLUSTER, Kind.ROLE_SCALE, Kind.POD, Kind.DEPLOYMENT, Kind.GROUP)
CORE = (Kind.NODE, Kind.POD)


class Objects:
    """Every `put` is a newer version. `uid` stays that of the name until the object is removed and put anew."""

    def __init__(self) -> None:
        self.store = Store()
        self.view = View(self.store)
        self._version = 0
        self._births: dict[tuple[Kind, str], int] = {}

    def put(self, kind: Kind, name: str, *, meta: Any = None, **rest: Any) -> dict[str, Any]:
        self._version += 1
        birth = self._births.setdefault((kind, name), self._version)
        metadata = {
            "name": name,
            "uid": f"uid-{kind.value}-{name}-{birth}",
            "resourceVersion": str(self._version),
            "generation": self._version,
            "creationTimestamp": f"2026-01-01T00:00:{birth % 60:02}Z",
        }
        if kind in NAMESPACED:
            metadata["namespace"] = "s"
        obj = {
            "apiVersion": "v1" if kind in CORE else "splitwatt.io/v1alpha1",
            "kind": kind.value,
            "metadata": {**metadata, **(meta or {})},
            **rest,
        }
        assert self.store.apply(kind, obj)
        return obj

    def reborn(self, kind: Kind, name: str) -> None:
        """It was deleted, and no watch told: the next `put` is another object of the name."""
        del self._births[kind, name]

    def remove(self, kind: Kind, name: str) -> None:
        self._version += 1
        self.reborn(kind, name)
        assert self.store.remove(kind, Key("s" if kind in NAMESPACED else "", name), version=self._version)

    def budget(self, name: str, rack: str, **spec: Any) -> dict[str, Any]:
        leaf = {"nodeSelector": {"matchLabels": {"rack": rack}}, "unmanagedWattsPerNode": 9000, "overheadPercent": 4}
        mode = {} if "parent" in spec else {"mode": "Strict"}
        return self.put(Kind.BUDGET, name, spec={"limitWatts": 20000, **mode, "nonGpuWattsPerNode": 0, **leaf, **spec})

    def node(self, name: str, *, ready: str = "True", **spec: Any) -> dict[str, Any]:
        status = {
            "allocatable": {"nvidia.com/gpu": "8"},
            "nodeInfo": {"bootID": "b"},
            "conditions": [{"type": "Ready", "status": ready}],
        }
        return self.put(Kind.NODE, name, meta={"labels": {"rack": "a", "pool": "p"}}, spec=spec, status=status)

    def node_power(self, name: str, *, pod: str | None = None, **rest: Any) -> dict[str, Any]:
        gpu: dict[str, Any] = {
            "model": H100_MODEL,
            "minCapWatts": 200,
            "maxCapWatts": 700,
            "defaultCapWatts": 700,
            "health": "OK",
        }
        if pod is not None:
            gpu["workload"] = {"namespace": "s", "pod": pod}
        return self.put(Kind.NODE_POWER, name, status={"gpus": [{"uuid": f"GPU-{name}", **gpu}], "bootID": "b"}, **rest)

    def cluster(self, name: str = "chat", *, prefill: Any = None, **spec: Any) -> dict[str, Any]:
        whole = {
            "model": {"name": "m"},
            "engine": {"type": "Emulated"},
            "prefill": {**POOL, **(prefill or {})},
            "decode": POOL,
            **spec,
        }
        return self.put(Kind.CLUSTER, name, spec=whole)

    def pod(self, name: str, role: str, *, of: str = "chat", meta: Any = None, **spec: Any) -> dict[str, Any]:
        labels = {"splitwatt.io/cluster": cluster_label(of), "splitwatt.io/role": role}
        whole = {
            "schedulingGates": [{"name": "splitwatt.io/power"}],
            "nodeSelector": {"pool": "p"},
            "containers": [{"name": "engine", "resources": {"requests": {"nvidia.com/gpu": "8"}}}],
            **spec,
        }
        return self.put(Kind.POD, name, meta={"labels": labels, **(meta or {})}, spec=whole, status={"phase": "Pending"})
