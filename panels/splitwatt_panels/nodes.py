"""The set *Nodes and GPUs*: whether caps are obeyed, and whether agents can make them so."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Drawing, Event, Panel, PanelRow, PanelSet, PanelStep, Query, Tone, Unit
from splitwatt_panels.promql import JOB, NODE, PHASE_OF_ROLE, RANGE, ROLE, agent, per_second

_POWER: Final = agent(names.M_GPU_POWER_WATTS, PHASE_OF_ROLE)
_GRANTED: Final = agent(names.M_GPU_GRANTED_CAP_WATTS, PHASE_OF_ROLE)
_ENFORCED: Final = agent(names.M_GPU_ENFORCED_CAP_WATTS, PHASE_OF_ROLE)
_MANAGEMENT: Final = agent(names.M_GPU_MANAGEMENT_CAP_WATTS, PHASE_OF_ROLE)
_LIVE: Final = agent(names.M_AGENT_WATCH_LIVE)
_FOREIGN: Final = agent(names.M_AGENT_CONDITION, 'condition="ForeignLimit"')
_HELD: Final = agent(names.M_AGENT_CONDITION, 'condition=~"Ready|CapsEnforced"')
_ANY_WARNS: Final = (PanelStep(1, Tone.WARNING),)
_YES: Final = (PanelStep(1, Tone.GOOD),)

_CAPS: Final = PanelRow(
    "Caps",
    (
        Panel(
            "Cap against draw",
            Unit.WATTS,
            "Sums of each node: granted caps, limits that the driver enforces, and draw.",
            "Draw below enforced, enforced at granted: caps are obeyed. Much room between them is watts that others could have.",
            (
                Query(f"sum by (node) ({_GRANTED})", "{{node}} granted"),
                Query(f"sum by (node) ({_ENFORCED})", "{{node}} enforced"),
                Query(f"sum by (node) ({_POWER})", "{{node}} draw"),
            ),
        ),
        Panel(
            "Cap sum by role",
            Unit.WATTS,
            "Granted caps of all GPUs chosen, and their draw, by the phase that they run.",
            "Who holds the watts and who uses them: prefill wants its cap, decode often draws below it.",
            (
                Query(f"sum by (role) ({_GRANTED})", "{{role}} granted"),
                Query(f"sum by (role) ({_POWER})", "{{role}} draw"),
            ),
        ),
        Panel(
            "Enforced above the grant",
            Unit.WATTS,
            "By how much a GPU's enforced limit is above its granted cap, the worst of each node; 0 while none is.",
            "A cap that is not obeyed: its GPU is charged what it may draw, and others pay for it.",
            (Query(f"clamp_min(max by (node) ({_ENFORCED} - {_GRANTED}), 0)", "{{node}}"),),
            thresholds=(PanelStep(1, Tone.BAD),),
        ),
        Panel(
            "Enforced below the limit set",
            Unit.WATTS,
            "By how much the driver enforces less than the limit that was set, the most of each node.",
            "The hardware holds itself back: heat, a power brake, a weak supply. No cap of ours explains it.",
            (Query(f"clamp_min(max by (node) ({_MANAGEMENT} - {_ENFORCED}), 0)", "{{node}}"),),
            thresholds=_ANY_WARNS,
        ),
        Panel(
            "Draw floors",
            Unit.WATTS,
            "What GPUs of a node draw above caps that were set, so that no cap lowers it; 0 while caps hold.",
            "Such watts are charged as they are. A floor on a new product is a fact to report.",
            (Query(f"sum by (node) ({agent(names.M_GPU_FLOOR_WATTS)})", "{{node}}"),),
            thresholds=_ANY_WARNS,
        ),
        Panel(
            "GPUs held by their cap",
            Unit.COUNT,
            "GPUs whose clocks the power limit holds down just now.",
            "Where it is near all of them, watts are what throughput waits for.",
            (Query(f"sum by (node) ({agent(names.M_GPU_POWER_CAPPED)})", "{{node}}"),),
        ),
        Panel(
            "SM clock",
            Unit.HERTZ,
            "Mean SM clock of each node's GPUs.",
            "Falls under a cap or a clock lock; a fall with neither is heat.",
            (Query(f"avg by (node) ({agent(names.M_GPU_SM_CLOCK_HERTZ)})", "{{node}}"),),
        ),
        Panel(
            "Energy counter against power readings",
            Unit.SHARE,
            "Joules that the GPUs' own energy counters count, as a share of what their power readings come to, by node.",
            "100 % where the two agree. Power readings are what caps, charges and joules per token stand on; a counter that "
            "shows less stands still or misses load (docs/metering.md), and one that shows more sees peaks between two readings.",
            (
                Query(
                    f"{per_second(agent(names.M_GPU_ENERGY_JOULES), 'node')} / "
                    f"(sum by (node) (avg_over_time({agent(names.M_GPU_POWER_WATTS)}[{RANGE}])) > 0)",
                    "{{node}}",
                ),
            ),
        ),
        Panel(
            "Draw by the energy counter",
            Unit.WATTS,
            "Rate of the GPUs' own energy counters, by node.",
            "A check on the power readings above: the two differ where sampling misses short peaks, or a counter stands still.",
            (Query(per_second(agent(names.M_GPU_ENERGY_JOULES), "node"), "{{node}}"),),
        ),
    ),
)

_OBEDIENCE: Final = PanelRow(
    "Agents",
    (
        Panel(
            "Healthy GPUs",
            Unit.SHARE,
            "Share of GPUs that can be read and obey.",
            "The others are charged the most that they may draw.",
            (Query(f"avg({agent(names.M_GPU_HEALTHY)})", "healthy"),),
            Drawing.NUMBER,
            base=Tone.BAD,
            thresholds=_YES,
        ),
        Panel(
            "Age of agents' samples",
            Unit.SECONDS,
            "Seconds since the newest sample of each agent was scraped.",
            "Older than operator.agentSilenceSeconds (5), an agent shows no life, and nothing of its node is lowered or raised.",
            (Query(f"time() - max by (node) (timestamp({_LIVE}))", "{{node}}"),),
            thresholds=(PanelStep(5, Tone.WARNING),),
        ),
        Panel(
            "Wait from grant to readback",
            Unit.SECONDS,
            "How long the newest grant of a GPU waits to be read back, the longest of each node; 0 once it was.",
            "Until then the GPU is charged the higher of its old and new caps, and watts cannot move.",
            (Query(f"max by (node) ({agent(names.M_GPU_UNACKED_SECONDS)})", "{{node}}"),),
            thresholds=(PanelStep(2, Tone.WARNING), PanelStep(30, Tone.BAD)),
        ),
        Panel(
            "Foreign limits",
            Unit.COUNT,
            "1 while somebody else sets power limits on a node's GPUs.",
            "Two hands on one limit: find the other one (a script, dcgm, a vendor's daemon) and stop it.",
            (Query(f"max by (node) ({_FOREIGN}) or 0 * max by (node) ({_LIVE})", "{{node}}"),),
            thresholds=_ANY_WARNS,
        ),
        Panel(
            "Agents whose condition does not hold",
            Unit.COUNT,
            "How many agents say False, by condition.",
            "kubectl describe np NODE says the sentence.",
            (Query(f"sum by (condition) ({_HELD} == bool 0)", "{{condition}}"),),
            thresholds=_ANY_WARNS,
        ),
        Panel(
            "Links of the agent",
            Unit.COUNT,
            "1 while its NodePower is watched, and while kubelet's PodResources answers.",
            "Without the first no grant arrives; without the second nobody knows whose each GPU is.",
            (
                Query(f"min by (node) ({_LIVE})", "{{node}} watch"),
                Query(f"min by (node) ({agent(names.M_AGENT_POD_RESOURCES_UP)})", "{{node}} PodResources"),
            ),
            base=Tone.BAD,
            thresholds=_YES,
        ),
        Panel(
            "Setter calls that lied",
            Unit.PER_SECOND,
            "Calls that reported success and left a higher limit, per second.",
            "A driver that says yes and does nothing. Such a GPU counts as not capped.",
            (Query(per_second(agent(names.M_GPU_CAP_MISMATCH), "node"), "{{node}}"),),
            thresholds=(PanelStep(0.001, Tone.WARNING),),
        ),
        Panel(
            "NVML errors",
            Unit.PER_SECOND,
            "Failed calls of NVML, by call and code.",
            "A GPU that falls off the bus shows here first.",
            (Query(per_second(agent(names.M_AGENT_NVML_ERRORS), "call", "code"), "{{call}} {{code}}", Event.SETTER_REFUSES),),
        ),
        Panel(
            "Status writes",
            Unit.PER_SECOND,
            "Writes of NodePower statuses by outcome: Done, Rejected, Unknown.",
            "Acknowledgements travel in them. Rejected and Unknown together for long: the API server or the agent's rights.",
            (Query(per_second(agent(names.M_AGENT_STATUS_WRITES), "outcome"), "{{outcome}}"),),
        ),
    ),
)

NODES: Final = PanelSet(
    "nodes",
    "Nodes and GPUs",
    "Are caps obeyed, and can every agent do its work?",
    (JOB, NODE, ROLE),
    (_CAPS, _OBEDIENCE),
)
