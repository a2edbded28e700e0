"""Do all clocks show the same? Ages of samples, graces and Leases are told by them. Pure.

Nobody's clock need be asked: the API server notes in `managedFields` when a write came, by its own clock, and the writer notes
in the object when it wrote, by its own. The server's note has whole seconds, hence the slack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from splitwatt_client import Object
from splitwatt_core.conditions import counted, some
from splitwatt_core.names import FIELD_MANAGER_AGENT, FIELD_MANAGER_OPERATOR

from splitwatt_cli.conditions import condition
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import unix_s

SLACK_S: Final = 3.0
"""A second of rounding, and what a write takes on a busy machine. Samples are believed for 5 s by default."""
_SAID_AT: Final = re.compile(r" Said at (\S+?)\.$")


def ahead_s(obj: Object, *, manager: str, wrote_at: str | None, subresource: str | None = None) -> float | None:
    """How many seconds the writer's clock is ahead of the API server's; None where either did not say."""
    rows = [
        row for row in obj["metadata"].get("managedFields") or ()
        if row.get("manager") == manager and (subresource is None or row.get("subresource", "") == subresource)
    ]  # fmt: skip
    came_s = max((at for row in rows if (at := unix_s(row.get("time"))) is not None), default=None)
    said_s = unix_s(wrote_at)
    return None if came_s is None or said_s is None else said_s - (came_s + 0.5)


def said_at(node_power: Object) -> str | None:
    """When an agent wrote its status, by its own clock."""
    ready = condition(node_power, "Ready")
    found = None if ready is None else _SAID_AT.search(ready.message)
    return None if found is None else found[1]


def check(facts: SiteFacts) -> Iterator[Finding]:
    seen = facts.seen
    if seen.lease is not None:
        wrote_at = (seen.lease.get("spec") or {}).get("renewTime")
        off_s = ahead_s(seen.lease, manager=FIELD_MANAGER_OPERATOR, wrote_at=wrote_at)
        if off_s is not None and abs(off_s) > SLACK_S:
            text = f"the operator's clock is {_off(off_s)} the API server's: samples look older or younger than they are"
            holder = (seen.lease.get("spec") or {}).get("holderIdentity") or "of the operator"
            fix = f"chronyc tracking   # on the node of pod {holder}; start or mend its time service"
            yield Finding(Gravity.BROKEN, "ClockOff", "operator", text, fix)
    off = {}
    for obj in seen.node_powers:
        off_s = ahead_s(obj, manager=FIELD_MANAGER_AGENT, wrote_at=said_at(obj), subresource="status")
        if off_s is not None and abs(off_s) > SLACK_S:
            off[obj["metadata"]["name"]] = off_s
    if off:
        worst = max(off, key=lambda name: abs(off[name]))
        text = (
            f"clocks of {counted(len(off), 'node')} are off, {worst}'s {_off(off[worst])} the API server's: {some(sorted(off))}"
        )
        yield Finding(Gravity.WARNING, "ClockOff", "nodes", text, "chronyc tracking   # on those nodes; mend their time service")
    server, prometheus = facts.server, facts.telemetry.clock
    if server is not None and prometheus is not None:
        off_s = prometheus.ahead_s - server.ahead_s
        if abs(off_s) > SLACK_S + server.slack_s + prometheus.slack_s:
            text = f"Prometheus' clock is {_off(off_s)} the API server's: samples look older or younger than they are"
            yield Finding(Gravity.BROKEN, "ClockOff", "Prometheus", text, "chronyc tracking   # on Prometheus' node")
    if server is not None and abs(server.ahead_s) > SLACK_S + server.slack_s:
        text = f"this machine's clock is {_off(-server.ahead_s)} the API server's: ages printed here are off by that"
        yield Finding(Gravity.NOTE, "ClockOff", "this machine", text, "chronyc tracking")


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
