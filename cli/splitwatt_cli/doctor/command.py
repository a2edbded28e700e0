"""`splitwatt doctor`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from rich.console import Console
from rich.text import Text
from splitwatt_core.conditions import counted

from splitwatt_cli import access, prometheus
from splitwatt_cli.doctor.agents import gpu_nodes
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.doctor.gather import end_point, gather
from splitwatt_cli.doctor.rights import needed
from splitwatt_cli.doctor.verdict import diagnose
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.show import print_findings


class DoctorCommand:
    help = "look for every known way in which an installation goes wrong, each with its fix; exit code 1 when something is broken"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        access.add_arguments(parser)
        prometheus.add_arguments(parser)
        parser.add_argument(
            "--breaker", action="append", type=_breaker, default=[], metavar="BUDGET=WATTS",
            help="rating of the breaker above a budget (or its annotation splitwatt.io/breaker-watts); may be repeated",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        return access.ask("doctor", lambda: self._ask(args))

    async def _ask(self, args: argparse.Namespace) -> int:
        async with access.connect(args) as connection:
            facts = await gather(
                connection,
                namespace=args.operator_namespace,
                prometheus_of=partial(end_point, connection, args),
                breakers_w=dict(args.breaker),
            )
        findings = diagnose(facts)
        if args.output == "json":
            access.print_json("Diagnosis", wire(facts, findings))
        else:
            show(access.console(args), facts, findings)
        return access.BROKEN if any(f.severity is Gravity.BROKEN for f in findings) else access.OK


def _breaker(text: str) -> tuple[str, int]:
    name, _, watts = text.partition("=")
    if not name or not watts.isdigit() or int(watts) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be BUDGET=WATTS, for example rack-a1=32000")
    return name, int(watts)


def wire(facts: SiteFacts, findings: list[Finding]) -> dict[str, object]:
    return {
        "healthy": not any(f.severity is Gravity.BROKEN for f in findings),
        "installed": facts.installed,
        "kubernetes": facts.version,
        "findings": [finding.wire() for finding in findings],
    }


def show(out: Console, facts: SiteFacts, findings: list[Finding]) -> None:
    if findings:
        print_findings(out, findings)
    if not any(f.severity in (Gravity.BROKEN, Gravity.WARNING) for f in findings):
        out.print(Text("nothing is wrong", style="bold green"))
    out.print(Text(f"looked at: {'; '.join(looked_at(facts))}", style="dim"))


def looked_at(facts: SiteFacts) -> list[str]:
    """What the verdict rests on: a check that could not look has found nothing wrong."""
    seen, telemetry = facts.seen, facts.telemetry
    told = [
        f"Kubernetes {facts.version}",
        f"{counted(len(seen.definitions), 'CRD')}",
        f"{counted(len(gpu_nodes(facts)), 'GPU node')}",
    ]
    if facts.installed:
        rights = "no rights" if facts.rights_problem else f"{len(needed(seen.namespace))} rights of 2 accounts"
        told += [rights, counted(len(seen.budgets), "budget"), counted(len(seen.clusters), "cluster")]
    if telemetry.problem:
        told.append("no Prometheus")
    else:
        told.append(f"Prometheus with {counted(len(telemetry.age_s), 'agent')} and {counted(len(telemetry.meters), 'meter')}")
    return told


COMMAND: Final = DoctorCommand()
