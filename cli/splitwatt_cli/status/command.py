"""`splitwatt status`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from splitwatt_cli import access
from splitwatt_cli.finding import Gravity
from splitwatt_cli.show import ago, print_findings, table, watts
from splitwatt_cli.snapshot import take_installed
from splitwatt_cli.status.standing import ClusterRow, NodeRow, SiteStanding, standing_of

MOST_FINDINGS: Final = 8
MOST_NODES: Final = 8
"""Of nodes that are not as they should be: one screen."""


class StatusCommand:
    help = "one screen: what is wrong first, then budgets, nodes, clusters and the operator; exit code 1 when something is broken"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        access.add_arguments(parser, namespace="of the InferenceClusters to show (default: all)")

    def run(self, args: argparse.Namespace) -> int:
        return access.ask("status", lambda: self._ask(args))

    async def _ask(self, args: argparse.Namespace) -> int:
        async with access.connect(args) as connection:
            seen = await take_installed(connection, namespace=args.operator_namespace)
        standing = standing_of(seen, namespace=args.namespace)
        if args.output == "json":
            access.print_json("Status", standing.wire())
        else:
            show(access.console(args), standing)
        return access.BROKEN if any(f.severity is Gravity.BROKEN for f in standing.findings) else access.OK


def show(out: Console, standing: SiteStanding) -> None:
    operator = standing.operator
    heard = "" if operator.renewed_s is None else f", heard {ago(operator.renewed_s)} ago"
    word = f"operator {operator.holder} is active (term {operator.term}{heard})" if operator.active else "no operator is active"
    told = [f for f in standing.findings if f.severity is not Gravity.NOTE]
    if told:
        print_findings(out, told, most=MOST_FINDINGS)
    else:
        out.print(Text("nothing is wrong", style="bold green"))
    if standing.budgets:
        out.print()
        _show_budgets(out, standing)
    out.print()
    _show_nodes(out, standing.nodes)
    if standing.clusters:
        out.print()
        _show_clusters(out, standing.clusters)
    out.print()
    out.print(Text(word, style="" if operator.active else "bold red"))


def _show_budgets(out: Console, standing: SiteStanding) -> None:
    numbers = ("limit W", "in force", "charge", "draw", "GPUs")
    rows = table("budget", *numbers, "posture", "", right=numbers)
    for b in standing.budgets:
        figures = (watts(b.limit_w), watts(b.in_force_w), watts(b.charge_w), watts(b.measured_w), str(b.gpus))
        rows.add_row("  " * b.depth + b.name, *figures, b.posture, b.ready)
    out.print(rows)


def _show_nodes(out: Console, nodes: Sequence[NodeRow]) -> None:
    gpus, healthy = sum(n.gpus for n in nodes), sum(n.healthy for n in nodes)
    caps_w = sum(n.caps_w or 0 for n in nodes)
    out.print(f"{len(nodes)} nodes: {healthy} of {gpus} GPUs obey, caps come to {caps_w} W")
    odd = [n for n in nodes if n.ready not in ("Enforcing", "NoGrants")]
    if odd:
        rows = table("node", "budget", "GPUs", "obey", "caps W", "", right=("GPUs", "obey", "caps W"))
        for n in odd[:MOST_NODES]:
            rows.add_row(n.name, n.leaf, str(n.gpus), str(n.healthy), watts(n.caps_w), n.ready or "no agent yet")
        out.print(rows)
        if len(odd) > MOST_NODES:
            out.print(Text(f"  and {len(odd) - MOST_NODES} more", style="dim"))


def _show_clusters(out: Console, clusters: Sequence[ClusterRow]) -> None:
    rows = table("cluster", "ready / admitted / wanted", "TTFT P99", "TBT P99 ms", "", right=("TTFT P99", "TBT P99 ms"))
    for c in clusters:
        roles = "  ".join(f"{role} {ready}/{admitted}/{wanted}" for role, (ready, admitted, wanted) in c.roles.items())
        rows.add_row(c.name, roles, _of(c.ttft_ms, c.ttft_limit_ms), _of(c.tbt_ms, c.tbt_limit_ms), c.ready)
    out.print(rows)


def _of(value: int | None, limit: int | None) -> str:
    told = "-" if value is None else str(value)
    return told if limit is None else f"{told} of {limit}"


COMMAND: Final = StatusCommand()
