"""The set *Operations*: whether the operator itself is well."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Drawing, Event, Panel, PanelRow, PanelSet, PanelStep, Query, Tone, Unit
from splitwatt_panels.promql import JOB, RANGE, operator, per_second

_ACTIVE: Final = operator(names.M_OPERATOR_ACTIVE)
_WRITES: Final = operator(names.M_API_WRITES)
_BUCKETS: Final = operator(f"{names.M_DECISION_SECONDS}_bucket")
_OURS: Final = f"and on (instance) {_ACTIVE}"
"""Other programs of a job export process_* too."""


def _decision(share: float) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({_BUCKETS}[{RANGE}])))"


_REIGN: Final = PanelRow(
    "Reign",
    (
        Panel(
            "Replicas that reign",
            Unit.COUNT,
            "Replicas of the operator that hold the Lease and decide.",
            "One. None: caps stay as they are, and nothing is raised or admitted. Two for a moment is a failover.",
            (Query(f"sum({_ACTIVE})", "active"),),
            Drawing.NUMBER,
            base=Tone.BAD,
            thresholds=(PanelStep(1, Tone.GOOD), PanelStep(2, Tone.WARNING)),
        ),
        Panel(
            "Term",
            Unit.COUNT,
            "The fencing term of each replica's reign.",
            "Each step is a new start of an operator. Many steps are a crash loop, or a Lease that cannot be renewed in time.",
            (Query(operator(names.M_OPERATOR_TERM), "{{instance}}"),),
        ),
        Panel(
            "Watch canary",
            Unit.PER_SECOND,
            "Renewals of the operator's own Lease that came back through its watches, per second.",
            "At 0 while it reigns, watches are blind: after 30 s the operator ends itself to see again.",
            (Query(per_second(operator(names.M_API_WRITES, 'kind="Lease"')), "renewals"),),
        ),
    ),
)

_LOOPS: Final = PanelRow(
    "Loops",
    (
        Panel(
            "Time of a decision",
            Unit.SECONDS,
            "How long one decision over all budgets takes: the middle one and the 99th of 100.",
            "The loop has one second. Beyond it cuts of limits are obeyed later.",
            (Query(_decision(0.5), "P50"), Query(_decision(0.99), "P99")),
            thresholds=(PanelStep(0.5, Tone.WARNING), PanelStep(1, Tone.BAD)),
        ),
        Panel(
            "Decisions",
            Unit.PER_SECOND,
            "Decisions per second: one, and more while things change.",
            "Below one the loop is starved of CPU, or does not reign.",
            (Query(per_second(operator(f"{names.M_DECISION_SECONDS}_count")), "decisions"),),
        ),
        Panel(
            "CPU",
            Unit.COUNT,
            "Cores that the operator uses.",
            "At its limit decisions come late: raise operator.resources.",
            (Query(f"rate({operator('process_cpu_seconds_total')}[{RANGE}]) {_OURS}", "{{instance}}"),),
        ),
        Panel(
            "Memory",
            Unit.BYTES,
            "Resident memory of the operator.",
            "Grows with the number of nodes and pods, not with time.",
            (Query(f"{operator('process_resident_memory_bytes')} {_OURS}", "{{instance}}"),),
        ),
    ),
)

_API: Final = PanelRow(
    "API server and telemetry",
    (
        Panel(
            "API writes",
            Unit.PER_SECOND,
            "Writes to the API server per second, by kind.",
            "NodePower writes carry grants. A rest that never ends in a quiet fleet is somebody who fights over a field.",
            (Query(per_second(_WRITES, "kind"), "{{kind}}"),),
        ),
        Panel(
            "Refused writes",
            Unit.PER_SECOND,
            "Writes that the API server refused per second, by kind and HTTP status.",
            "409 now and then is a race and is tried again. 403 is missing rights, 422 a version that does not fit.",
            (Query(per_second(operator(names.M_API_REFUSALS), "kind", "code"), "{{kind}} {{code}}", Event.RIGHT_TAKEN),),
        ),
        Panel(
            "Queries without an answer",
            Unit.PER_SECOND,
            "Prometheus queries of the operator that failed, per second.",
            "Meters grow stale by them: nothing is raised meanwhile.",
            (Query(per_second(operator(names.M_QUERY_FAILURES)), "failed"),),
            thresholds=(PanelStep(0.1, Tone.WARNING),),
        ),
        Panel(
            "Agents that speak for themselves",
            Unit.COUNT,
            "Agents whose own samples the operator reads at this moment.",
            "One that is missing is heard by Prometheus and its status alone, and braked by its grants alone.",
            (Query(operator(names.M_AGENT_STREAMS), "agents"),),
        ),
        Panel(
            "Brakes",
            Unit.PER_SECOND,
            "Brakes over the agents' own connections per second, by what became of them.",
            "Held: the limits were read back. Over: a later grant was there first. GivenUp: the agent did not answer; its grants "
            "say the same.",
            (Query(per_second(operator(names.M_BRAKES), "outcome"), "{{outcome}}", Event.RIGHT_TAKEN),),
        ),
        Panel(
            "Words that were not told",
            Unit.PER_SECOND,
            "Reports that could not be made or were refused, by kind, and Events left out for their number.",
            "Caps go out all the same, but statuses may be old.",
            (
                Query(per_second(operator(names.M_REPORT_FAILURES), "kind"), "{{kind}}", Event.RIGHT_TAKEN),
                Query(per_second(operator(names.M_EVENTS_DROPPED)), "Events dropped"),
            ),
        ),
    ),
)

OPERATIONS: Final = PanelSet(
    "operations",
    "Operations",
    "Is the operator itself well?",
    (JOB,),
    (_REIGN, _LOOPS, _API),
)
