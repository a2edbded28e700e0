"""The alerts, each with its reason. A promise broken pages, a margin warns; what Splitwatt mends by itself within its times does
neither, so each `for_s` is longer than the mend takes."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Alert, Event, Severity

_IN_FORCE: Final = names.M_BUDGET_LIMIT_IN_FORCE_WATTS
_DRAW: Final = names.M_BUDGET_MEASURED_WATTS
_BY_SOURCE: Final = f"{names.M_VLLM_PROMPT_BY_SOURCE}_total"
_LIMIT_OF: Final = (
    f"{{{{ with printf `{_IN_FORCE}{{budget=%q}}` $labels.budget | query }}}}{{{{ . | first | value | humanize }}}}W{{{{ end }}}}"
)
"""In a summary: the limit in force of the budget that it speaks of."""


def _promise_of(latency: str) -> str:
    series = f'{names.M_CLUSTER_SLO_SECONDS}{{namespace=%q, cluster=%q, latency="{latency}"}}'
    return (
        f"{{{{ with printf `{series}` $labels.namespace $labels.cluster | query }}}}"
        "{{ . | first | value | humanizeDuration }}{{ end }}"
    )


def _missed(latency: str, metric: str, matcher: str) -> Alert:
    """Of each role: a user's TTFT is prefill's part and decode's, so either alone above the promise is a promise broken."""
    rate = f"rate({metric}_bucket{{{matcher}}}[5m])"
    return Alert(
        f"{latency.capitalize()}Missed",
        Severity.CRITICAL,
        f"histogram_quantile(0.99, sum by (namespace, cluster, role, le) ({rate})) "
        f'> on (namespace, cluster) group_left () {names.M_CLUSTER_SLO_SECONDS}{{latency="{latency}"}}',
        300,
        f"{{{{ $labels.namespace }}}}/{{{{ $labels.cluster }}}}: {latency} P99 at {{{{ $labels.role }}}} is "
        f"{{{{ $value | humanizeDuration }}}}, promised "
        f"are {_promise_of(latency)}",
        f"For five minutes more than one request in a hundred had a longer {latency} than spec.slo allows. See whether caps "
        f"fell, replicas are missing, or load grew.",
        Event.PROMISE_TOO_TIGHT,
    )


ALERTS: Final = (
    Alert(
        "BudgetAboveLimit",
        Severity.CRITICAL,
        f"{_DRAW} > {_IN_FORCE}",
        10,
        f"{{{{ $labels.budget }}}} draws {{{{ $value | humanize }}}}W, more than its limit in force, {_LIMIT_OF}",
        "The meter of PowerBudget {{ $labels.budget }} reads above the limit in force for more than 10 seconds, longer than caps "
        "take to act. Look at its conditions (kubectl get pb {{ $labels.budget }} -o yaml): CapsEnforced names GPUs that do not "
        "obey, TelemetryFresh says when non-GPU watts are under-declared.",
        Event.LIMIT_TOO_LOW,
    ),
    Alert(
        "BudgetBrakes",
        Severity.CRITICAL,
        f"{names.M_BUDGET_CHARGE_WATTS} and on (budget) {names.M_BUDGET_POSTURE} == 4",
        30,
        f"{{{{ $labels.budget }}}} has braked for half a minute: charged {{{{ $value | humanize }}}}W, limit in force "
        f"{_LIMIT_OF}",
        "In Brake every GPU below the budget is at its lowest cap, and requests are slow. It should take seconds: what draws the "
        "watts is not a GPU that Splitwatt caps, or the meter is wrong.",
        Event.LIMIT_TOO_LOW,
    ),
    Alert(
        "LimitInfeasible",
        Severity.CRITICAL,
        f"{names.M_BUDGET_SHORT_WATTS} > 0",
        60,
        f"{{{{ $labels.budget }}}} lacks {{{{ $value | humanize }}}}W with every GPU at its lowest cap; limit in force "
        f"{_LIMIT_OF}",
        "No cap can keep this limit: it will be broken as soon as the GPUs work. The condition Feasible has the sum.",
        Event.LIMIT_TOO_LOW,
    ),
    Alert(
        "CapNotObeyed",
        Severity.CRITICAL,
        f"max by (node, gpu) ({names.M_GPU_ENFORCED_CAP_WATTS}) - max by (node, gpu) ({names.M_GPU_GRANTED_CAP_WATTS}) > 1",
        30,
        "{{ $labels.gpu }} on {{ $labels.node }} has an enforced limit {{ $value | humanize }}W above its cap",
        "The driver enforces more than what was granted. The GPU is charged what it may draw, and others get less for it; the "
        "NodePower's condition CapsEnforced says why.",
        Event.SETTER_REFUSES,
    ),
    Alert(
        "NobodyReigns",
        Severity.CRITICAL,
        f"(sum({names.M_OPERATOR_ACTIVE}) or vector(0)) < 1",
        60,
        "{{ $value }} replicas of the Splitwatt operator hold the Lease",
        "Caps stay as they are and hold, but no limit that is changed is followed, nothing is raised, and no pod passes its "
        "power gate. This also fires where the operator is not scraped.",
        Event.NOBODY_REIGNS,
    ),
    _missed("TTFT", names.M_VLLM_TTFT, 'role!=""'),
    _missed("TBT", names.M_VLLM_TBT, 'role!="prefill"'),
    Alert(
        "MarginSmall",
        Severity.WARNING,
        f"{_DRAW} / {_IN_FORCE} > 0.98",
        600,
        f"{{{{ $labels.budget }}}} has drawn {{{{ $value | humanizePercentage }}}} of its limit in force, {_LIMIT_OF}, for ten "
        f"minutes",
        "It holds, on its last two per cent. A meter that reads a little low, or watts that nobody declared, would break it.",
        Event.LIMIT_TOO_LOW,
    ),
    Alert(
        "MeterNotBelieved",
        Severity.WARNING,
        f"{_IN_FORCE} and on (budget) {names.M_BUDGET_TELEMETRY_FRESH} == 0",
        60,
        "Nobody can tell what {{ $labels.budget }} draws; its limit in force is {{ $value | humanize }}W",
        "Its meter, or the agents' samples where it has none, are stale or cannot be true. Charges keep the limit; nothing is "
        "raised meanwhile. The condition TelemetryFresh says what to change.",
        Event.METER_SILENT,
    ),
    Alert(
        "CapsNotEnforced",
        Severity.WARNING,
        f'{names.M_BUDGET_GPUS} and on (budget) {names.M_BUDGET_CONDITION}{{condition="CapsEnforced"}} == 0',
        120,
        "{{ $labels.budget }}: not every cap of its {{ $value }} GPUs was read back",
        "Some node has no agent, a sick GPU, or a late acknowledgement. Such GPUs are charged the most that they may draw, so "
        "the others get less. The condition CapsEnforced names them.",
        Event.SETTER_REFUSES,
    ),
    Alert(
        "GrantsLate",
        Severity.WARNING,
        f"max by (node) ({names.M_GPU_UNACKED_SECONDS}) > 10",
        30,
        "A grant to {{ $labels.node }} has waited {{ $value | humanizeDuration }} to be read back",
        "The agent has the grant and cannot apply it: a driver that hangs, a setter that lies, a full disk. Watts cannot move "
        "away from this node meanwhile.",
        Event.SETTER_REFUSES,
    ),
    Alert(
        "ForeignLimit",
        Severity.WARNING,
        f'sum by (node) ({names.M_AGENT_CONDITION}{{condition="ForeignLimit"}}) > 0',
        60,
        "Somebody else sets power limits on {{ $labels.node }} ({{ $value }} agent says so)",
        "Agent and stranger overwrite each other. The agent puts its limit back each time, and each time there is a moment in "
        "which a GPU may draw more. The NodePower's condition ForeignLimit names the GPUs and the limits.",
        Event.FOREIGN_LIMIT,
    ),
    Alert(
        "PodsGated",
        Severity.WARNING,
        f'sum by (namespace, cluster, role) ({names.M_CLUSTER_PODS}{{state="Wanted"}}) '
        f'- sum by (namespace, cluster, role) ({names.M_CLUSTER_PODS}{{state="Admitted"}}) > 0',
        600,
        "{{ $value }} {{ $labels.role }} pods of {{ $labels.namespace }}/{{ $labels.cluster }} have waited at the power gate "
        "for ten minutes",
        "No leaf has both their GPUs and the watts of their floors. The condition PowerAdmitted says what is missing and where.",
        Event.REPLICAS_TOO_MANY,
    ),
    Alert(
        "DecodeComputesPrompts",
        Severity.WARNING,
        f'sum by (namespace, cluster) (rate({_BY_SOURCE}{{role="decode", source="local_compute"}}[5m])) '
        f'/ sum by (namespace, cluster) (rate({_BY_SOURCE}{{role="decode"}}[5m])) > 0.5',
        300,
        "Decode engines of {{ $labels.namespace }}/{{ $labels.cluster }} compute {{ $value | humanizePercentage }} of their "
        "prompt tokens themselves",
        "KV caches do not move: answers are right, but nothing is split, and decode GPUs do prefill under decode's caps. The "
        "condition KVTransferVerified says what is wrong.",
        None,
        "a hand-off of the lab's engines never fails",
    ),
    Alert(
        "WritesRefused",
        Severity.WARNING,
        f'sum by (kind, code) (rate({names.M_API_REFUSALS}{{code!~"404|409"}}[5m])) * 60 > 1',
        120,
        "The API server refuses {{ $value | humanize }} writes of {{ $labels.kind }} a minute with HTTP {{ $labels.code }}",
        "403: the operator's account lacks a right. 422: definitions (CRDs) of another version. After a minute without any "
        "success /healthz says that no cap can be moved.",
        Event.RIGHT_TAKEN,
    ),
)
