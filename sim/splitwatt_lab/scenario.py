"""What happens in the demo, and when: the manifests it applies and the five things that go wrong on purpose.

The manifests are the files in `examples/`, with emulated engines in place of vLLM, applied as they are where the site has
their shape (2 racks of 4 nodes of 8 GPUs); for another shape the same files are scaled by stated rules.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from splitwatt_core.clusters import RouterType
from splitwatt_core.names import L_RACK, LABEL_RACK, M_RACK_POWER_WATTS

from splitwatt_lab.errors import LabError
from splitwatt_lab.site import POOLS, SiteSpec, repository
from splitwatt_lab.wiring import Feed, Wiring

Manifest = dict[str, Any]

EXAMPLE_RACKS: Final = 2
EXAMPLE_NODES: Final = 4
EXAMPLE_GPUS: Final = 8
CUT_RATIO: Final = 0.8
"""Rack a1's limit is cut by 20 %."""
AGENT_DOWN_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds after the first request is served. The rate triples between `rise_s` and `risen_s`."""

    end_s: float
    rise_s: float
    risen_s: float
    cut_s: float
    second_cluster_s: float
    kill_s: float

    @classmethod
    def of(cls, minutes: float) -> Timeline:
        end_s = 60.0 * minutes
        return cls(end_s, 0.15 * end_s, 0.35 * end_s, 0.40 * end_s, 0.55 * end_s, 0.70 * end_s)

    @property
    def rate(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, 1.0), (self.rise_s, 1.0), (self.risen_s, 3.0))


def _documents(name: str) -> list[Manifest]:
    text = (repository() / "examples" / name).read_text()
    return [doc for doc in yaml.safe_load_all(text) if doc]


def budgets(spec: SiteSpec, policy: str) -> list[Manifest]:
    """The row and its racks. Each rack's limit grows with its nodes and GPUs, the row's with its racks; the ratio of limit
    to what caps could need stays that of the example. `policy` goes to the root."""
    docs = _documents("budgets.yaml")
    root = next(d for d in docs if "parent" not in d["spec"])
    leaf = next(d for d in docs if "parent" in d["spec"])
    base = leaf["spec"]
    rest_w = base["nonGpuWattsPerNode"] * EXAMPLE_NODES + base["fixedWatts"]
    per_gpu_w = (base["limitWatts"] - rest_w) / (EXAMPLE_NODES * EXAMPLE_GPUS)
    share = base["nonGpuWattsPerNode"] + per_gpu_w * spec.gpus_per_node
    rack_w = round(base["fixedWatts"] + share * spec.nodes_per_rack)
    scale = spec.racks * rack_w / (EXAMPLE_RACKS * base["limitWatts"])
    leaves = []
    for rack in spec.rack_names:
        doc = copy.deepcopy(leaf)
        doc["metadata"]["name"] = f"rack-{rack}"
        doc["spec"]["limitWatts"] = rack_w
        doc["spec"]["nodeSelector"]["matchLabels"][LABEL_RACK] = rack
        doc["spec"]["meter"]["selector"] = f'{M_RACK_POWER_WATTS}{{{L_RACK}="{rack}"}}'
        leaves.append(doc)
    top = copy.deepcopy(root)
    top["spec"]["limitWatts"] = round(root["spec"]["limitWatts"] * scale)
    top["spec"]["reserveWatts"] = round(root["spec"].get("reserveWatts", 0) * scale)
    top["spec"]["policy"]["type"] = policy
    top["spec"]["mode"] = "Strict"  # the example begins with Observe
    return [top, *leaves]


def limits_w(spec: SiteSpec) -> dict[str, int]:
    """What `budgets` sets, by budget."""
    return {doc["metadata"]["name"]: doc["spec"]["limitWatts"] for doc in budgets(spec, "Uniform")}


def wiring(spec: SiteSpec) -> Wiring:
    """What hangs behind the feeds that `budgets` sets limits for."""
    row = next(d["metadata"]["name"] for d in _documents("budgets.yaml") if "parent" not in d["spec"])
    nodes = spec.nodes()
    racks = [Feed(f"rack-{r}", row, tuple(node.name for node in nodes if node.rack == r)) for r in spec.rack_names]
    return Wiring([Feed(row), *racks])


def clusters(spec: SiteSpec) -> tuple[Manifest, Manifest]:
    """The conversation service and the low-priority one. The example's replicas (2 prefill and 3 decode of 8 nodes) are
    kept in proportion to the site's nodes of each pool; GPUs per replica are a node's. Raises LabError."""
    pools = [sum(node.pool == pool for node in spec.nodes()) for pool in POOLS]
    chat, batch = _documents("chat.yaml")[-1], _documents("batch.yaml")[-1]
    for doc in (chat, batch):
        doc["spec"]["engine"] = {"type": "Emulated"}
        for role in ("prefill", "decode"):
            doc["spec"][role]["gpusPerReplica"] = min(doc["spec"][role]["gpusPerReplica"], spec.gpus_per_node)
    half = EXAMPLE_RACKS * EXAMPLE_NODES // 2
    for role, available in zip(("prefill", "decode"), pools, strict=True):
        wanted = chat["spec"][role]["replicas"]
        chat["spec"][role]["replicas"] = max(1, wanted * available // half)
    if spec.mixed:
        _move(chat["spec"], spec.mixed)
    return chat, batch


def _move(chat: dict[str, Any], servers: int) -> None:
    """So many of the conversation service's prefill servers do both phases, beside its two pools; the watts of all floors stay.
    The twin's own router knows a third pool; vllm-router does not. Raises LabError."""
    prefill = chat["prefill"]
    if servers >= prefill["replicas"]:
        raise LabError(
            f"--mixed {servers} leaves no prefill server: {prefill['replicas'] - 1} of the chat service's {prefill['replicas']} "
            "may be mixed; give fewer, or more --nodes-per-rack"
        )
    chat["mixed"] = {**prefill, "replicas": servers}
    chat["prefill"] = {**prefill, "replicas": prefill["replicas"] - servers}
    chat["router"] = {"type": RouterType.NONE.value}


def busiest_rack(spec: SiteSpec, nodes_of_pods: Iterable[str]) -> str:
    """Where most pods run, by the node of each ("" for one that waits); of alike ones the first."""
    racks = {node.name: node.rack for node in spec.nodes()}
    serving = Counter(racks.get(node, "") for node in nodes_of_pods)
    return max(spec.rack_names, key=lambda rack: serving[rack])


def namespaces(docs: list[Manifest]) -> list[Manifest]:
    names = sorted({doc["metadata"]["namespace"] for doc in docs})
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]


def to_yaml(docs: list[Manifest]) -> str:
    return yaml.safe_dump_all(docs, sort_keys=False)


def example_paths() -> tuple[Path, ...]:
    return tuple(repository() / "examples" / name for name in ("budgets.yaml", "chat.yaml", "batch.yaml"))
