"""Faults of objects in the API server: deleted, moved, mistaken, malformed, forged, or far too many."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core.names import LABEL_RACK

from splitwatt_lab import nodes as lab_nodes
from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.observer import API
from splitwatt_lab.faults.processes import kill, start
from splitwatt_lab.faults.scene import FaultBase, Json
from splitwatt_lab.nodes import NodeSpec

BUDGETS: Final = f"{API}/powerbudgets"
NODE_POWERS: Final = f"{API}/nodepowers"
CRD: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodepowers.splitwatt.io"
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
AT_ONCE: Final = 4
_GONE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDeleted(FaultBase):
    """An object of ours is deleted, and applied again as it was when healed. `name` among the ground's manifests."""

    name: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        doc = ground.base[self.name]
        if doc["kind"] == "PowerBudget":
            ground.delete(f"{BUDGETS}/{self.name}")
        else:
            ground.delete(f"{API}/namespaces/{doc['metadata']['namespace']}/inferenceclusters/{self.name}")

    def heal(self, ground: Ground) -> None:
        ground.apply(ground.base[self.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePowerDeleted(FaultBase):
    node: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.delete(f"{NODE_POWERS}/{self.node}")

    def heal(self, ground: Ground) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class CrdDeleted(FaultBase):
    """The CustomResourceDefinition of NodePower, and with it every NodePower; made again when healed."""

    def lay(self, ground: Ground, rng: random.Random) -> None:
        found = ground.site.get(CRD)
        kept = {k: v for k, v in found["metadata"].items() if k in ("name", "labels", "annotations")}
        manifest = {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": kept, "spec": found["spec"]}
        ground.base["nodepowers-crd"] = manifest
        ground.delete(CRD)

    def heal(self, ground: Ground) -> None:
        if ground.until(lambda: ground.plane.http.get(CRD).status_code == 404, within_s=_GONE_S) is None:
            raise LabError("the CRD of NodePower does not go")
        response = ground.plane.http.post(CRD.rpartition("/")[0], json=ground.base.pop("nodepowers-crd"))
        if response.is_error:
            raise LabError(f"the CRD of NodePower cannot be made again: {response.json().get('message')}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDeleted(FaultBase):
    """The Node object goes; with `agent_dead` the machine's agent too, though the machine draws on. Healed: the same Node."""

    node: str
    agent_dead: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        if self.agent_dead:
            kill(ground, f"agent-{self.node}")
        lab_nodes.delete(ground.plane, [self.node])

    def heal(self, ground: Ground) -> None:
        spec = next(spec for spec in ground.site.node_specs if spec.name == self.node)
        boot_id = ground.site.boot_file(self.node).read_text().strip()
        lab_nodes.create(ground.plane, [NodeSpec(spec.name, spec.rack, spec.pool, spec.gpus, boot_id)])
        ground.site.renew_token(self.node)
        kill(ground, f"agent-{self.node}")
        start(ground, f"agent-{self.node}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched(FaultBase):
    """A PowerBudget's spec is changed (None removes a field), and applied as it was when healed."""

    name: str
    spec: Mapping[str, Any]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.patch(f"{BUDGETS}/{self.name}", {"spec": dict(self.spec)})

    def heal(self, ground: Ground) -> None:
        was = ground.base[self.name]["spec"]
        ground.patch(f"{BUDGETS}/{self.name}", {"spec": {key: was.get(key) for key in self.spec}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelled(FaultBase):
    """A node's rack label is changed, or removed (None), and put back when healed."""

    node: str
    rack: str | None

    def lay(self, ground: Ground, rng: random.Random) -> None:
        lab_nodes.set_labels(ground.plane, self.node, {LABEL_RACK: self.rack})

    def heal(self, ground: Ground) -> None:
        rack = next(spec.rack for spec in ground.site.node_specs if spec.name == self.node)
        lab_nodes.set_labels(ground.plane, self.node, {LABEL_RACK: rack})


@dataclass(frozen=True, slots=True, kw_only=True)
class Added(FaultBase):
    """More PowerBudgets beside the real ones, deleted when healed. `make` gives their names and specs."""

    make: Callable[[], Mapping[str, Json]]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        def post(item: tuple[str, Json]) -> None:
            name, spec = item
            body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": name}, "spec": spec}
            response = ground.plane.http.post(BUDGETS, json=body)
            if response.status_code >= 500:
                raise LabError(f"the API server failed at {name}: {response.text[:200]}")
            if response.is_error:
                raise LabError(f"PowerBudget {name} was refused: {response.json().get('message')}")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(post, self.make().items()))

    def heal(self, ground: Ground) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: ground.delete(f"{BUDGETS}/{name}"), self.make()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed(FaultBase):
    """`count` objects with one random field replaced by nonsense; the API server refuses most, the rest must do no harm."""

    count: int = 2000

    def lay(self, ground: Ground, rng: random.Random) -> None:
        bodies = [self._spoiled(ground, rng, k) for k in range(self.count)]

        def post(body: Json) -> int:
            content = json.dumps(body)
            return ground.plane.http.post(BUDGETS, content=content, headers={"Content-Type": "application/json"}).status_code

        with ThreadPoolExecutor(AT_ONCE) as pool:
            codes = list(pool.map(post, bodies))
        if failed := [code for code in codes if code >= 500]:
            raise LabError(f"the API server failed at {len(failed)} of {self.count} malformed objects")

    @staticmethod
    def _spoiled(ground: Ground, rng: random.Random, serial: int) -> Json:
        doc = copy.deepcopy(ground.base[rng.choice(["row-a", "rack-a1"])])
        doc["metadata"] = {"name": f"junk-{serial}"}
        doc["spec"].pop("nodeSelector", None)
        field = rng.choice([*doc["spec"], "parent", "limitGraceSeconds", "settleMilliseconds", "unheardOf"])
        doc["spec"][field] = rng.choice(
            [None, -1, 0, 2**31, 2**63, 10**30, "x", "", [], {}, [[]], True, "\x00", "9" * 5000, -0.5]
        )
        return doc

    def heal(self, ground: Ground) -> None:
        names = [obj["metadata"]["name"] for obj in ground.site.get(BUDGETS)["items"]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda n: ground.delete(f"{BUDGETS}/{n}"), [name for name in names if name.startswith("junk-")]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSpoiled(FaultBase):
    """The node's kubelet writes a renewTime that no calendar holds."""

    node: str
    renew_time: str = "0000-01-01T00:00:00.000000Z"

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.patch(f"{LEASES}/{self.node}", {"spec": {"renewTime": self.renew_time}})

    def heal(self, ground: Ground) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        ground.patch(f"{LEASES}/{self.node}", {"spec": {"renewTime": now}})


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusForged(FaultBase):
    """The agent is dead and somebody writes its status: `forge` changes the rows of its GPUs."""

    node: str
    forge: Callable[[list[Json]], list[Json]]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        kill(ground, f"agent-{self.node}")
        found = ground.site.get(f"{NODE_POWERS}/{self.node}")
        rows = self.forge(copy.deepcopy(found["status"]["gpus"]))
        response = ground.plane.http.patch(
            f"{NODE_POWERS}/{self.node}/status",
            content=json.dumps({"status": {"gpus": rows}}),
            headers={"Content-Type": "application/merge-patch+json"},
        )
        if response.is_error and response.status_code != 422:  # refused by the schema: the best that can happen
            raise LabError(f"the status of {self.node} was refused: {response.json().get('message')}")

    def heal(self, ground: Ground) -> None:
        start(ground, f"agent-{self.node}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesWithoutAgent(FaultBase):
    """New nodes appear in a rack and no agent ever speaks for them; deleted and released when healed."""

    rack: str
    count: int = 1

    def lay(self, ground: Ground, rng: random.Random) -> None:
        lab_nodes.create(ground.plane, [NodeSpec(name, rack=self.rack, gpus=8) for name in self._names()])

    def heal(self, ground: Ground) -> None:
        lab_nodes.delete(ground.plane, self._names())
        for name in self._names():  # the explicit release: a NodePower outlives its Node
            ground.delete(f"{NODE_POWERS}/{name}")

    def _names(self) -> list[str]:
        return [f"{self.rack}-new{k + 1}" for k in range(self.count)]
