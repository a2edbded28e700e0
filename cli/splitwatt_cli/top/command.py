"""`splitwatt top`."""

from __future__ import annotations

import argparse
import asyncio
import math
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from splitwatt_client import ApiError, Connection
from splitwatt_core import names

from splitwatt_cli import access, prometheus
from splitwatt_cli.doctor.gather import end_point
from splitwatt_cli.prometheus import PrometheusError
from splitwatt_cli.show import ago, table, watts
from splitwatt_cli.snapshot import SiteSnapshot, take_installed
from splitwatt_cli.top.view import BUDGET_METRICS, Samples, TopMoment, moment_of

BAR: Final = 20
FULL: Final = 0.98
"""Of the limit in force: the share from which a bar is red, as the alert MarginSmall has it."""


class TopCommand:
    help = "budgets, caps, draw, roles and what happens, live; --once for one picture"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        access.add_arguments(parser)
        prometheus.add_arguments(parser)
        parser.add_argument(
            "--once", action="store_true", help="one picture, then end; also where nobody looks, and with -o json"
        )
        parser.add_argument("--every", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (%(default)s)")

    def run(self, args: argparse.Namespace) -> int:
        return access.ask("top", lambda: self._ask(args))

    async def _ask(self, args: argparse.Namespace) -> int:
        out = access.console(args)
        async with access.connect(args) as connection:
            moment = await look(connection, args)
            if args.output == "json":
                access.print_json("Top", moment.wire())
            elif args.once or not out.is_terminal:
                out.print(picture(moment))
            else:
                await _live(out, connection, args, moment)
        return access.OK


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.5 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 0.5 and 3600 seconds")
    return value


async def _live(out: Console, connection: Connection, args: argparse.Namespace, moment: TopMoment) -> None:
    """Until Ctrl-C. An API server that does not answer for a while is said; what was seen last stays."""
    with Live(picture(moment), console=out, screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(args.every)
            trouble = ""
            try:
                moment = await look(connection, args)
            except ApiError as error:
                trouble = str(error)
            live.update(picture(moment, trouble), refresh=True)


async def look(connection: Connection, args: argparse.Namespace) -> TopMoment:
    seen = await take_installed(connection, namespace=args.operator_namespace)
    return moment_of(seen, await _samples(connection, args, seen))


async def _samples(connection: Connection, args: argparse.Namespace, seen: SiteSnapshot) -> Samples:
    try:
        asked = end_point(connection, args, seen)
        if asked is None:
            return Samples()
        queries = [*BUDGET_METRICS.values(), f"sum by (role) ({names.M_GPU_POWER_WATTS})"]
        *answers, roles = await asyncio.gather(*map(asked.query, queries))
    except PrometheusError as error:
        return Samples(problem=str(error))
    budgets: dict[str, dict[str, float]] = {}
    for key, rows in zip(BUDGET_METRICS, answers, strict=True):
        for row in rows:
            if not math.isnan(row.value):  # nobody knows
                budgets.setdefault(row.labels.get(names.L_BUDGET, ""), {})[key] = row.value
    return Samples(budgets, {row.labels.get(names.L_ROLE, ""): row.value for row in roles})


def picture(moment: TopMoment, trouble: str = "") -> RenderableType:
    operator = moment.operator
    heard = "" if operator.renewed_s is None else f", heard {ago(operator.renewed_s)} ago"
    head = f"operator {operator.holder} is active{heard}" if operator.active else "no operator is active"
    numbers = ("limit W", "caps", "charge", "draw")
    rows = table("budget", *numbers, "draw of limit", "posture", right=numbers)
    for b in moment.budgets:
        limit = watts(b.in_force_w if b.in_force_w is not None else b.limit_w)
        rows.add_row(
            "  " * b.depth + b.name, limit, watts(b.caps_w), watts(b.charge_w), watts(b.draw_w), _bar(b.share), b.posture
        )
    roles = table("role", "GPUs", "mean cap W", "mean draw W", right=("GPUs", "mean cap W", "mean draw W"))
    for r in moment.roles:
        draw = "-" if r.draw_w is None else watts(r.draw_w / r.gpus)
        roles.add_row(r.role, str(r.gpus), watts(r.cap_w / r.gpus), draw)
    parts: list[RenderableType] = [Text(f"{head}; numbers of {moment.source}", style="" if operator.active else "bold red")]
    if trouble:
        parts.append(Text(f"not answered now: {trouble}", style="bold red"))
    parts += [Text(""), rows, Text(""), roles]
    if moment.events:
        parts += [Text(""), *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in moment.events)]
    return Group(*parts)


def _bar(share: float | None) -> Text:
    if share is None:
        return Text("unknown", style="dim")
    filled = min(BAR, round(share * BAR))
    style = "red" if share > FULL else "green"
    return Text.assemble(("█" * filled, style), ("░" * (BAR - filled), "dim"), f" {share:4.0%}")


COMMAND: Final = TopCommand()
