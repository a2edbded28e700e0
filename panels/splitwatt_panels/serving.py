"""The set *Serving*: what users feel, and what it costs in watts."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Panel, PanelRow, PanelSet, PanelStep, Query, Tone, Unit
from splitwatt_panels.promql import (
    CLUSTER,
    JOB,
    NAMESPACE,
    PHASE_OF_ROLE,
    ROLE,
    cluster,
    engine,
    operator,
    p99,
    per_second,
)

_WHOSE: Final = ("namespace", "cluster")
_OF: Final = "{{namespace}}/{{cluster}}"
_OF_ROLE: Final = f"{_OF} {{{{role}}}}"
_PER_ROLE: Final = (*_WHOSE, "role")


def _promise(latency: str) -> Query:
    return Query(cluster(names.M_CLUSTER_SLO_SECONDS, f'latency="{latency}"'), f"{_OF} promised")


def _pods(state: str) -> str:
    return cluster(names.M_CLUSTER_PODS, 'role=~"$role"', f'state="{state}"')


_LATENCY: Final = PanelRow(
    "Latency",
    (
        Panel(
            "TTFT, 99th percentile",
            Unit.SECONDS,
            "Time to the first token of 99 in 100 requests at the engines of each role, and what was promised. A user waits for "
            "prefill's part and for decode's, which begins with the KV cache's way (docs/slo.md).",
            "A part alone above the line: SLOAttained is False. A rise after a cut of power is prefill under its cap; one "
            "without is a queue.",
            (Query(p99(names.M_VLLM_TTFT, (*_WHOSE, "role")), f"{_OF} {{{{role}}}} P99"), _promise("TTFT")),
        ),
        Panel(
            "TBT, 99th percentile",
            Unit.SECONDS,
            "Time between two tokens of 99 in 100, by the engines that write answers, and what was promised.",
            "Decode waits for memory more than for clocks: it should hardly move when a cap falls. Where it does, the cap is "
            "below the cliff of the GPU.",
            (Query(p99(names.M_VLLM_TBT, _WHOSE, 'role!="prefill"'), f"{_OF} P99"), _promise("TBT")),
        ),
        Panel(
            "Whole request, 99th percentile",
            Unit.SECONDS,
            "From arrival to the last token of 99 in 100 requests.",
            "What a user of short answers feels. It depends on how long answers are.",
            (Query(p99(names.M_VLLM_E2E, _WHOSE), f"{_OF}"),),
        ),
    ),
)

_WORK: Final = PanelRow(
    "Tokens and watts",
    (
        Panel(
            "Tokens",
            Unit.PER_SECOND,
            "Prompt tokens read and answer tokens written per second.",
            "The work that is done. A fall while requests wait means that watts or replicas are missing.",
            (
                Query(per_second(engine(names.M_VLLM_PROMPT_TOKENS), *_PER_ROLE), f"{_OF_ROLE} read"),
                Query(per_second(engine(names.M_VLLM_GENERATION_TOKENS), *_PER_ROLE), f"{_OF_ROLE} written"),
            ),
        ),
        Panel(
            "Watts by role",
            Unit.WATTS,
            "Draw of all GPUs by the phase that they run, whatever cluster is chosen: agents know no cluster.",
            "Beside the tokens it shows which role pays for them.",
            (Query(f"sum by (role) ({operator(names.M_GPU_POWER_WATTS, PHASE_OF_ROLE)})", "{{role}}"),),
        ),
        Panel(
            "Joules per token, by role",
            Unit.JOULES,
            "Watts of a cluster's GPUs over its tokens per second, of the last minute: tokens of prompts at prefill, of answers "
            "at decode and at mixed engines. From power readings, not from the GPUs' energy counters. No line while there are no "
            "tokens, or where some pod of the role has watts without tokens or tokens without watts.",
            "The price of a token. A cap that lowers it without breaking a promise is well set.",
            (Query(engine(names.M_CLUSTER_JOULES_PER_TOKEN), _OF_ROLE),),
        ),
    ),
)

_LOAD: Final = PanelRow(
    "Load",
    (
        Panel(
            "Requests",
            Unit.COUNT,
            "Requests that engines work on, and those that wait in them.",
            "Waiting requests at prefill are TTFT to come; at decode they wait for KV room.",
            (
                Query(f"sum by ({', '.join(_PER_ROLE)}) ({engine(names.M_VLLM_RUNNING)})", f"{_OF_ROLE} running"),
                Query(f"sum by ({', '.join(_PER_ROLE)}) ({engine(names.M_VLLM_WAITING)})", f"{_OF_ROLE} waiting"),
            ),
        ),
        Panel(
            "Requests finished",
            Unit.PER_SECOND,
            "Requests that ended per second, by reason.",
            "Any reason but stop and length is a request that a user did not get.",
            (Query(per_second(engine(names.M_VLLM_SUCCESS), *_WHOSE, "finished_reason"), f"{_OF} {{{{finished_reason}}}}"),),
        ),
        Panel(
            "KV cache in use",
            Unit.SHARE,
            "The fullest engine of each role.",
            "At 100 % requests are put off or computed again, at the price of TBT.",
            (Query(f"max by ({', '.join(_PER_ROLE)}) ({engine(names.M_VLLM_KV_USAGE)})", _OF_ROLE),),
            thresholds=(PanelStep(0.9, Tone.WARNING),),
        ),
    ),
)

_PODS: Final = PanelRow(
    "Pods",
    (
        Panel(
            "Pods behind their power gate",
            Unit.COUNT,
            "Pods that are wanted and were not let past the gate splitwatt.io/power.",
            "They wait for watts, GPUs or their turn; the condition PowerAdmitted says for what.",
            (Query(f"clamp_min({_pods('Wanted')} - ignoring (state) {_pods('Admitted')}, 0)", _OF_ROLE),),
            thresholds=(PanelStep(1, Tone.WARNING),),
        ),
        Panel(
            "Pods wanted and ready",
            Unit.COUNT,
            "Replicas that were asked for, and pods that are ready.",
            "What lies between them is at the gate, starts, or fails.",
            (Query(_pods("Wanted"), f"{_OF_ROLE} wanted"), Query(_pods("Ready"), f"{_OF_ROLE} ready")),
        ),
        Panel(
            "Clusters whose condition does not hold",
            Unit.COUNT,
            "How many InferenceClusters say False, by condition. Unknown counts as neither.",
            "Names the kind of trouble; kubectl describe ic says the sentence.",
            (Query(f"sum by (condition) ({cluster(names.M_CLUSTER_CONDITION)} == bool 0)", "{{condition}}"),),
            thresholds=(PanelStep(1, Tone.WARNING),),
        ),
    ),
)

SERVING: Final = PanelSet(
    "serving",
    "Serving",
    "What do users feel, and what does a token cost?",
    (JOB, NAMESPACE, CLUSTER, ROLE),
    (_LATENCY, _WORK, _LOAD, _PODS),
)
