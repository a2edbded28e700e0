"""All checks in the order of causes: what stands first makes what follows fail. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from splitwatt_core.conditions import counted

from splitwatt_cli.doctor import agents, budgets, clocks, definitions, engines, meters, rights
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.finding import Finding, Gravity, worst_first
from splitwatt_cli.snapshot import LEASE
from splitwatt_cli.status.standing import operator_of

MIN_MINOR: Final = 32
"""Of Kubernetes 1: tokens of pods name their node since then, which binds agents to theirs."""


def check_version(facts: SiteFacts) -> Iterator[Finding]:
    major, _, minor = facts.version.lstrip("v").partition(".")
    digits = "".join(c for c in minor.split(".")[0] if c.isdigit())
    if major == "1" and digits and int(digits) < MIN_MINOR:
        text = f"is {facts.version}; Splitwatt needs 1.{MIN_MINOR} or newer"
        yield Finding(Gravity.BROKEN, "OldKubernetes", "Kubernetes", text, "upgrade the control plane first")


def check_operator(facts: SiteFacts) -> Iterator[Finding]:
    seen = facts.seen
    if "leases" in seen.unread or operator_of(seen).active:
        return
    renewed_s = operator_of(seen).renewed_s
    since = f"there is no Lease {LEASE}" if renewed_s is None else f"its Lease was renewed {renewed_s:.0f} s ago"
    text = f"no operator is active: {since}; caps hold, and nothing follows a changed limit"
    fix = f"kubectl -n {seen.namespace} logs deploy/splitwatt-operator --tail=50   # or describe it, where no pod runs"
    yield Finding(Gravity.BROKEN, "NobodyReigns", "operator", text, fix)


def check_nodes(facts: SiteFacts) -> Iterator[Finding]:
    """Before an installation: is there anything to cap?"""
    if "nodes" not in facts.seen.unread and not agents.gpu_nodes(facts):
        text = f"none of {counted(len(facts.seen.nodes), 'node')} offers nvidia.com/gpu: no device plugin, or no GPU"
        if not facts.seen.nodes:
            text = "there is no node yet, so nothing has a GPU"
        yield Finding(
            Gravity.WARNING,
            "NoGPUs",
            "nodes",
            text,
            "kubectl get nodes -o custom-columns=N:.metadata.name,G:.status.allocatable",
        )


CHECKS: Final[Sequence[Callable[[SiteFacts], Iterator[Finding]]]] = (
    check_version,
    definitions.check,
    rights.check,
    clocks.check,
    check_operator,
    check_nodes,
    budgets.check_labels,
    agents.check_present,
    agents.check_scraped,
    agents.check_pod_resources,
    meters.check,
    budgets.check_feasible,
    budgets.check_breakers,
    engines.check,
)
BEFORE: Final = (check_version, definitions.check, check_nodes, agents.check_scraped)
"""What can be told before anything is installed."""


def diagnose(facts: SiteFacts) -> list[Finding]:
    """Worst first, of equally bad ones causes first."""
    if not facts.installed:
        return worst_first(finding for check in BEFORE for finding in check(facts))
    return worst_first(finding for check in CHECKS for finding in check(facts))
