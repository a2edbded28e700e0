"""`splitwatt explain budget|node|ic NAME`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from splitwatt_cli import access
from splitwatt_cli.access import UnaskedError
from splitwatt_cli.conditions import judged, name_of
from splitwatt_cli.explain.explained import Explanation, explain_budget, explain_cluster, explain_node
from splitwatt_cli.finding import Gravity
from splitwatt_cli.show import table
from splitwatt_cli.snapshot import SiteSnapshot, take_installed

KINDS: Final = {"budget": "budget", "pb": "budget", "node": "node", "np": "node", "ic": "ic"}
MOST_DECISIONS: Final = 5
MOST_ID_CHARS: Final = 12
"""Of a GPU's UUID, on a screen."""
MOST_LOG_BYTES: Final = 1 << 20
"""Of the end of a decision log: it may be gigabytes long."""


class ExplainCommand:
    help = "why a budget, node or InferenceCluster is as it is, and what would have to change; exit code 1 when it is broken"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("kind", choices=tuple(KINDS), help="what it is")
        parser.add_argument("name", help="its name; of an InferenceCluster also NAMESPACE/NAME")
        access.add_arguments(parser, namespace="of the InferenceCluster (default: wherever one has this name)")
        parser.add_argument("--decision-log", type=Path, metavar="FILE", help="what the operator writes under that flag")

    def run(self, args: argparse.Namespace) -> int:
        return access.ask("explain", lambda: self._ask(args))

    async def _ask(self, args: argparse.Namespace) -> int:
        decisions = () if args.decision_log is None else read_decisions(args.decision_log, args.name)
        async with access.connect(args) as connection:
            seen = await take_installed(connection, namespace=args.operator_namespace)
        told, broken = explain(seen, KINDS[args.kind], args.name, namespace=args.namespace, decisions=decisions)
        if args.output == "json":
            access.print_json("Explanation", told.wire())
        else:
            show(access.console(args), told)
        return access.BROKEN if broken else access.OK


def explain(
    seen: SiteSnapshot, kind: str, name: str, *, namespace: str | None, decisions: Sequence[Mapping[str, Any]] = ()
) -> tuple[Explanation, bool]:
    """The explanation, and whether the object is broken. Raises UnaskedError where there is no such object."""
    if kind == "ic":
        within, _, short = name.rpartition("/")
        wanted = within or namespace
        found = [o for o in seen.clusters if o["metadata"]["name"] == short and wanted in (None, "", o["metadata"]["namespace"])]
        if len(found) > 1:
            raise UnaskedError(f"{short} is in several namespaces: {', '.join(map(name_of, found))}; say which with -n")
        told = explain_cluster(seen, found[0]) if found else None
        objects: Sequence[Mapping[str, Any]] = found
    else:
        told = explain_budget(seen, name, decisions) if kind == "budget" else explain_node(seen, name)
        objects = [o for o in (seen.budgets if kind == "budget" else seen.node_powers) if o["metadata"]["name"] == name]
    if told is None:
        every = {"ic": seen.clusters, "budget": seen.budgets, "node": seen.node_powers}[kind]
        plural = {"ic": "inferenceclusters", "budget": "powerbudgets", "node": "nodepowers"}[kind]
        why = seen.unread.get(plural) or f"there are {', '.join(sorted(map(name_of, every))) or 'none'}"
        raise UnaskedError(f"there is no {kind} {name}: {why}")
    broken = any(severity is Gravity.BROKEN for obj in objects for severity, _ in judged(obj))
    return told, broken


def read_decisions(path: Path, budget: str) -> list[dict[str, Any]]:
    """The last lines of the operator's decision log about this budget, newest first. Raises UnaskedError."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - MOST_LOG_BYTES))
            lines = file.read().splitlines()
    except OSError as error:
        raise UnaskedError(f"cannot read --decision-log {path} ({error.strerror}); name the operator's file") from error
    rows: list[dict[str, Any]] = []
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the first may be cut in two, and the last may be half written
        if isinstance(row, dict) and row.get("budget") == budget:
            rows.append(row)
    reasons = next((row["reasons"] for row in rows if "reasons" in row), None)  # written where they change
    if reasons is not None:
        rows[0]["reasons"] = reasons
    return rows[:MOST_DECISIONS]


def show(out: Console, told: Explanation) -> None:
    out.print(Text(told.subject, style="bold"))
    out.print(Text(told.answer))
    if told.facts:
        out.print()
        rows = table("", "")
        rows.show_header = False
        for name, value in told.facts:
            rows.add_row(Text(name, style="dim"), value)
        out.print(rows)
    _section(out, "because", told.because)
    _section(out, "what would have to change", told.to_change)
    if told.rows:
        out.print()
        keys = [key for key in told.rows[0] if key != ("why" if "gpu" in told.rows[0] else "code")]  # a GPU's why is above
        grid = table(*keys)
        for row in told.rows:
            cells = ("-" if row.get(key) in (None, "") else str(row[key]) for key in keys)
            grid.add_row(*(text[:MOST_ID_CHARS] if key == "gpu" else text for key, text in zip(keys, cells, strict=True)))
        out.print(grid)
    _section(out, "decisions", [_decision(row) for row in told.decisions])
    _section(out, "events, newest first", [f"{row['time'][:19]}  {row['reason']}: {row['note']}" for row in told.events])


def _section(out: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        out.print()
        out.print(Text(title, style="dim"))
        for line in lines:
            out.print(Text(f"  {line}"))


def _decision(row: Mapping[str, Any]) -> str:
    draw = "unknown" if row.get("measured_w") is None else f"{row['measured_w']:.0f} W"
    at = time.strftime("%H:%M:%S", time.localtime(row["time_s"]))
    told = f"{at}  {row['posture']}: limit {row['in_force_w']} W, charge {row['charge_w']:.0f} W, draw {draw}"
    reasons = "; ".join(f"{r['gpus']} {r['phase']} at {r['mean_cap_w']:.0f} W: {r['text']}" for r in row.get("reasons") or ())
    return f"{told}. {reasons}" if reasons else told


COMMAND: Final = ExplainCommand()
