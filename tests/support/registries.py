"""Every metric that operator, agent, engine and lab export, asked of their own registries, with the labels of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_agent.metrics import AgentCollector
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.state import ControlState
from splitwatt_agent.workloads import WorkloadPoll
from splitwatt_client import Connection
from splitwatt_operator.metrics import Metrics
from splitwatt_twin.metrics import Snapshot, TwinCollector

RECORDED: Final = Path(__file__).resolve().parents[1] / "operator" / "recorded"
"""What real engines said, as a test of the prober has it."""
SCRAPED: Final = frozenset({"job", "instance", "namespace", "pod"})
"""Labels that Prometheus puts on whatever it scrapes from a pod."""
OF_ENGINES: Final = frozenset({"cluster", "role"})
"""And what the PodMonitor of engines copies from their pods' labels."""


def samples_of(family: Metric) -> set[str]:
    """Names under which a family is queried."""
    match family.type:
        case "counter":
            return {f"{family.name}_total"}
        case "histogram":
            return {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
    return {family.name}


def operator() -> Mapping[str, frozenset[str]]:
    metrics = Metrics()
    found: dict[str, frozenset[str]] = {}
    for family in metrics.registry.collect():
        owner = metrics.registry._names_to_collectors.get(family.name)
        labels = frozenset(getattr(owner, "_labelnames", None) or getattr(family, "_labelnames", None) or ())
        found |= dict.fromkeys(samples_of(family), labels | {"le"} if family.type == "histogram" else labels)
    return found


def agent() -> Mapping[str, frozenset[str]]:
    control: Any = SimpleNamespace(state=ControlState(ticked_s=0.0))
    link = NodePowerLink(Connection(), control, node="n")
    nothing: Any = SimpleNamespace()
    poll = WorkloadPoll(Path("kubelet.sock"), control, port=nothing, slices=nothing)
    return _labelled(AgentCollector(control, link, poll, node="n").collect())


def lab() -> Mapping[str, frozenset[str]]:
    """The emulated engines have vLLM's names."""
    return _labelled(TwinCollector(lambda: Snapshot(replicas=(), clusters=(), meters=(), load_s=0.0, late_s=0.0)).collect())


def vllm() -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for page in sorted(RECORDED.glob("*.txt")):
        for family in text_string_to_metric_families(page.read_text(encoding="utf-8")):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, frozenset()) | sample.labels.keys()
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


@cache
def exported() -> Mapping[str, frozenset[str]]:
    """Each name that can be queried, with the labels that its series carry in Prometheus."""
    found: dict[str, frozenset[str]] = {}
    for part in (operator(), agent(), lab(), vllm()):
        for name, labels in part.items():
            found[name] = found.get(name, frozenset()) | labels | SCRAPED
    engines = {name: labels | OF_ENGINES for name, labels in found.items() if name.startswith("vllm:")}
    return {**found, **engines, "up": SCRAPED}


def _labelled(families: Iterable[Any]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for family in families:
        labels = frozenset(family._labelnames) | ({"le"} if family.type == "histogram" else set())
        found |= dict.fromkeys(samples_of(family), labels)
    return found
