"""How findings and numbers look on a terminal: colours say nothing that words do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import unix_s

MARKS: Final = {Gravity.BROKEN: ("✗", "bold red"), Gravity.WARNING: ("!", "yellow"), Gravity.NOTE: ("·", "dim")}


def watts(value: float | None) -> str:
    """Whole numbers; a dash where nobody knows."""
    return "-" if value is None else f"{value:.0f}"


def ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def print_findings(out: Console, findings: Sequence[Finding], *, most: int | None = None) -> None:
    """Each with its command below it. `most`: of them, and how many more there are."""
    shown = findings if most is None else findings[:most]
    for finding in shown:
        mark, style = MARKS[finding.severity]
        since_s = unix_s(finding.since)
        since = f" (for {ago(time.time() - since_s)})" if since_s is not None else ""
        out.print(Text.assemble((f"{mark} ", style), (finding.line, style if finding.severity is Gravity.BROKEN else ""), since))
        if finding.fix:
            out.print(Text(f"    {finding.fix}", style="dim"))
    if len(shown) < len(findings):
        out.print(Text(f"  and {len(findings) - len(shown)} more: -o json lists all", style="dim"))


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True, overflow="ellipsis")
    return made
