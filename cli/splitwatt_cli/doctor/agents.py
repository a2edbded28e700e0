"""Does an agent run on every GPU node, is it scraped, often enough, and does it see whose each GPU is? Pure.

"No agent" and "not scraped" look the same in Prometheus. They are told apart by the scrape target itself (there, and silent) and
by the NodePower, in which an agent that lives writes once a minute at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_client import Object
from splitwatt_core.conditions import counted, some
from splitwatt_core.names import GPU_RESOURCE
from splitwatt_core.protocol.contract import SIGN_OF_LIFE_S
from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S

from splitwatt_cli.conditions import condition
from splitwatt_cli.doctor.clocks import said_at
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import named, unix_s

LIVED_S: Final = 1.5 * SIGN_OF_LIFE_S
"""An agent that lives has written its status within this time."""
SILENT_FLAG: Final = "--agent-silence-seconds="


@dataclass(frozen=True, slots=True)
class Agents:
    """Nodes with GPUs, by what is wrong with their agent."""

    missing: Sequence[str]
    down: Sequence[str]
    unscraped: Sequence[str]


def gpu_nodes(facts: SiteFacts) -> list[str]:
    """Nodes that say they have GPUs, and those of which an agent reported some."""
    found = {
        node["metadata"]["name"]
        for node in facts.seen.nodes
        if str(((node.get("status") or {}).get("allocatable") or {}).get(GPU_RESOURCE) or "0") != "0"
    }
    there = named(facts.seen.nodes)
    found |= {
        obj["metadata"]["name"]
        for obj in facts.seen.node_powers
        if (obj.get("status") or {}).get("gpus") and obj["metadata"]["name"] in there
    }
    return sorted(found)


def agents_of(facts: SiteFacts) -> Agents:
    contracts, telemetry = named(facts.seen.node_powers), facts.telemetry
    now_s = facts.server_s
    missing, down, unscraped = [], [], []
    for node in gpu_nodes(facts):
        if telemetry.age_s.get(node, float("inf")) <= _fresh_s(facts, node):
            continue
        if node in telemetry.down:
            down.append(node)
        elif _lived(contracts.get(node), now_s):
            if not telemetry.problem:
                unscraped.append(node)
        else:
            missing.append(node)
    return Agents(missing, down, unscraped)


def _fresh_s(facts: SiteFacts, node: str) -> float:
    return max(3.0 * facts.telemetry.gap_s.get(node, 0.0), 15.0)


def _lived(node_power: Object | None, now_s: float) -> bool:
    """By the API server's clock of its last status where that is told, for the node's own may be off."""
    if node_power is None:
        return False
    times = [
        unix_s(row.get("time")) for row in node_power["metadata"].get("managedFields") or () if row.get("subresource") == "status"
    ]
    newest_s = max((t for t in (*times, *([] if times else [unix_s(said_at(node_power))])) if t is not None), default=None)
    return newest_s is not None and now_s - newest_s <= LIVED_S


def check_present(facts: SiteFacts) -> Iterator[Finding]:
    agents, namespace = agents_of(facts), facts.seen.namespace
    look = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=agent -o wide"
    if agents.missing:
        text = f"no agent on {counted(len(agents.missing), 'GPU node')}, which nobody caps: {some(agents.missing)}"
        fix = f"kubectl -n {namespace} describe daemonset splitwatt-agent   # agent.nodeSelector, tolerations, the driver"
        yield Finding(Gravity.BROKEN, "NoAgent", "agents", text, fix)
    if agents.down:
        text = (
            f"no agent answers on {counted(len(agents.down), 'GPU node')}: {some(agents.down)}; it is down, or its port is closed"
        )
        yield Finding(Gravity.BROKEN, "NoAgent", "agents", text, look)


def check_scraped(facts: SiteFacts) -> Iterator[Finding]:
    telemetry = facts.telemetry
    if telemetry.problem:
        fix = "splitwatt doctor --prometheus URL   # as the operator's --prometheus-url, or one that you can reach"
        severity = Gravity.WARNING if not telemetry.where else Gravity.BROKEN
        yield Finding(severity, "NoPrometheus", "Prometheus", telemetry.problem, fix)
        return
    unscraped = agents_of(facts).unscraped
    if unscraped:
        every = " any of" if len(unscraped) == len(gpu_nodes(facts)) else ""
        text = f"does not scrape{every} the agents on {counted(len(unscraped), 'node')}, which do run: {some(unscraped)}"
        fix = f"kubectl -n {facts.seen.namespace} get podmonitor splitwatt-agent -o yaml   # labels that Prometheus selects by"
        yield Finding(Gravity.BROKEN, "NotScraped", "Prometheus", text, fix)
    silent_s = silence_s(facts.seen.deployments)
    slow = {node: gap_s for node, gap_s in telemetry.gap_s.items() if 2.0 * gap_s > silent_s}
    if slow:
        worst = max(slow, key=lambda node: slow[node])
        text = (
            f"scrapes {counted(len(slow), 'agent')} every {slow[worst]:.0f} s ({some(sorted(slow))}): a sample older than "
            f"{silent_s:.0f} s shows no life, so two missed ones stop every raise there"
        )
        fix = "helm upgrade ... --reuse-values --set metrics.podMonitor.interval=1s   # or a longer operator.agentSilenceSeconds"
        yield Finding(Gravity.WARNING, "ScrapedSeldom", "Prometheus", text, fix)


def silence_s(deployments: Sequence[Object]) -> float:
    """What the operator was told, or its default."""
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            for argument in container.get("args") or ():
                if argument.startswith(SILENT_FLAG):
                    return float(argument.removeprefix(SILENT_FLAG))
    return AGENT_METRICS_SILENT_S


def check_pod_resources(facts: SiteFacts) -> Iterator[Finding]:
    """By the agents' metric, or by their condition where Prometheus is not asked."""
    stale = {
        obj["metadata"]["name"]
        for obj in facts.seen.node_powers
        if (ready := condition(obj, "Ready")) is not None and ready.reason == "WorkloadsStale"
    }
    closed = sorted(facts.telemetry.closed | stale)
    if closed:
        text = f"kubelet's PodResources cannot be read on {counted(len(closed), 'node')}: {some(closed)}"
        fix = "ls -l /var/lib/kubelet/pod-resources   # on the node; then helm upgrade ... --set agent.podResourcesDir=FOLDER"
        yield Finding(Gravity.BROKEN, "PodResourcesClosed", "agents", f"{text}; nobody knows whose its GPUs are", fix)
