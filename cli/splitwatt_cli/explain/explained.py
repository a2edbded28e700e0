"""What `splitwatt explain` answers: one sentence first, then the numbers, the reasons, and what would have to change. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from splitwatt_core.clusters import cluster_label
from splitwatt_core.conditions import counted
from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER, LABEL_CLUSTER, LABEL_ROLE

from splitwatt_cli.conditions import Object, conditions_of, judged, name_of
from splitwatt_cli.explain.remedies import remedy
from splitwatt_cli.explain.why import BudgetLevel, NodeGround, Why, gpus_of, ground_of, level_of, why_cap
from splitwatt_cli.snapshot import SiteSnapshot, named

MAX_EVENTS: Final = 10
POSTURES: Final = {
    "Adopting": "it is not in force yet: caps of its nodes are being brought under it",
    "Normal": "its meter is below the limit: caps may rise where there is room",
    "Trim": "its meter was above the limit: nothing is raised, and GPUs give their margin",
    "Shed": "its meter stayed above the limit: all but the highest class's prefill are at the cliff of their phase",
    "Brake": "its meter stays above the limit: every GPU is at its lowest cap",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """`facts`: label and value in order. `to_change`: commands or sentences. `rows`: GPUs or pods, each a flat mapping."""

    subject: str
    answer: str
    facts: Sequence[tuple[str, str]] = ()
    because: Sequence[str] = ()
    to_change: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, str]] = ()
    decisions: Sequence[Mapping[str, Any]] = field(default=())

    def wire(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "answer": self.answer,
            "facts": [{"name": name, "value": value} for name, value in self.facts],
            "because": list(self.because),
            "toChange": list(self.to_change),
            "rows": [dict(row) for row in self.rows],
            "events": [dict(row) for row in self.events],
            "decisions": [dict(row) for row in self.decisions],
        }


def events_of(seen: SiteSnapshot, kinds: Sequence[str], name: str, namespace: str | None = None) -> list[dict[str, str]]:
    """Newest first."""
    found: list[dict[str, str]] = []
    for event in reversed(seen.events):
        about = event.get("regarding") or {}
        if about.get("kind") in kinds and about.get("name") == name and namespace in (None, about.get("namespace")):
            row = {"time": str(event.get("eventTime") or ""), "reason": event.get("reason", ""), "note": event.get("note", "")}
            found.append(row)
    return found[:MAX_EVENTS]


def _bad(obj: Object) -> list[tuple[int, str, str]]:
    """Rank, reason and message of what does not hold, worst first; a limit that nothing can keep before what follows from it."""
    rows = [(severity.rank, c.type != "Feasible", c.reason, c.message) for severity, c in judged(obj)]
    return [(rank, reason, message) for rank, _, reason, message in sorted(rows)]


def explain_budget(seen: SiteSnapshot, name: str, decisions: Sequence[Mapping[str, Any]] = ()) -> Explanation | None:
    """None: there is no such budget."""
    budgets = named(seen.budgets)
    if name not in budgets:
        return None
    obj = budgets[name]
    spec, status, bad = obj["spec"], obj.get("status") or {}, _bad(obj)
    way: list[BudgetLevel] = []
    up = name
    while up in budgets and len(way) < len(budgets):
        way.append(level_of(budgets[up]))
        up = budgets[up]["spec"].get("parent") or ""
    full = [level for level in way if level.full]
    because = [message for _, _, message in bad]
    posture = str(status.get("posture") or "")
    if posture:
        because.append(f"posture {posture}: {POSTURES.get(posture, posture)}")
    for level in full:
        kept = f", {level.reserve_w} W of them in reserve" if level.reserve_w else ""
        because.append(f"{level.name} is full: {level.charge_w} W are charged of {level.aim_w} W{kept}")
    for pending in status.get("pendingLimits") or ():
        because.append(f"a limit of {pending['watts']} W comes into force at {pending['inForceAt']}")
    return Explanation(
        subject=f"PowerBudget {name}",
        answer=_budget_answer(bad, full, status),
        facts=[
            ("limit", f"{spec['limitWatts']} W"),
            ("in force", _watts(status.get("limitInForceWatts"))),
            ("charge", _watts(status.get("chargeWatts"))),
            ("draw", _watts(status.get("measuredWatts"))),
            ("reserve", f"{spec.get('reserveWatts', 0)} W"),
            ("short", _watts(status.get("shortWatts", 0 if status else None))),
            ("nodes, GPUs", f"{status.get('nodes', 0)}, {status.get('gpus', 0)}"),
            ("way up", " > ".join(level.name for level in way)),
            ("mode, policy", f"{_root(way[-1].name, budgets, status)}"),
        ],
        because=because,
        to_change=_with_limit(_changes(bad, kind="pb", name=name), spec, status),
        rows=_lowest_first(seen, name),
        events=events_of(seen, ("PowerBudget",), name),
        decisions=decisions,
    )


def _budget_answer(bad: Sequence[tuple[int, str, str]], full: Sequence[Any], status: Object) -> str:
    if not status:
        return "no operator has looked at it yet"
    if bad:
        return bad[0][2]
    if full:
        return f"kept, and full: no cap below it rises until watts are given back or {full[0].name} has more"
    return "kept, with room: no cap below it is low for want of watts"


def _root(name: str, budgets: Mapping[str, Object], status: Object) -> str:
    spec = budgets[name]["spec"]
    return f"{status.get('mode') or spec.get('mode') or 'default'}, {(spec.get('policy') or {}).get('type') or 'PhaseAware'}"


def _lowest_first(seen: SiteSnapshot, budget: str) -> list[dict[str, Any]]:
    """Kinds of GPUs below it: how many of which phase have which caps, and why."""
    budgets, nodes = named(seen.budgets), named(seen.nodes)
    kinds: Counter[tuple[str, str, str]] = Counter()
    caps: dict[tuple[str, str, str], list[int]] = {}
    for obj in seen.node_powers:
        if budget not in ((obj.get("spec") or {}).get("budgets") or ()):
            continue
        ground = ground_of(obj, budgets, nodes.get(obj["metadata"]["name"]))
        for gpu in gpus_of(obj):
            why = why_cap(gpu, ground)
            key = (gpu.phase, why.code, why.text)
            kinds[key] += 1
            caps.setdefault(key, []).append(gpu.cap_w or gpu.default_w)
    return [
        {"gpus": count, "phase": phase, "capWatts": f"{min(caps[key])}-{max(caps[key])}", "code": code, "why": text}
        for key, count in sorted(kinds.items(), key=lambda row: (-row[1], row[0]))
        for phase, code, text in [key]
    ]


def explain_node(seen: SiteSnapshot, name: str) -> Explanation | None:
    node_powers, nodes = named(seen.node_powers), named(seen.nodes)
    if name not in node_powers:
        if name not in nodes:
            return None
        text = "the operator keeps no NodePower for it: no leaf budget selects it, or no operator is active"
        return Explanation(f"Node {name}", text, to_change=["splitwatt doctor"])
    obj = node_powers[name]
    ground = ground_of(obj, named(seen.budgets), nodes.get(name))
    whys = [(gpu, why_cap(gpu, ground)) for gpu in gpus_of(obj)]
    bad = _bad(obj)
    kinds = Counter(why for _, why in whys)
    because = [message for _, _, message in bad]
    because += [f"{counted(count, 'GPU')}: {why.text}" for why, count in kinds.most_common()]
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return Explanation(
        subject=f"Node {name}",
        answer=_node_answer(bad, kinds, ground),
        facts=[
            ("budgets", " > ".join(level.name for level in ground.levels) or "none"),
            ("mode", ground.mode),
            ("limit of the node", _watts(spec.get("nodeLimitWatts"))),
            ("enforced caps", _watts(status.get("enforcedCapWattsTotal"))),
            ("GPUs, healthy", f"{status.get('gpuCount', 0)}, {status.get('healthyGpuCount', 0)}"),
        ],
        because=because,
        to_change=list(
            dict.fromkeys([*_changes(bad, kind="np", name=name), *(why.change for why in kinds if why.change)])
        ),
        rows=[
            {
                "gpu": gpu.uuid, "phase": gpu.phase, "capWatts": gpu.cap_w, "enforcedWatts": gpu.enforced_w,
                "chargeWatts": gpu.charge_w, "range": f"{gpu.min_w}-{gpu.max_w}", "pods": ", ".join(gpu.pods),
                "code": why.code, "why": why.text,
            }
            for gpu, why in whys
        ],
        events=events_of(seen, ("Node", "NodePower"), name),
    )  # fmt: skip


def _node_answer(bad: Sequence[tuple[int, str, str]], kinds: Mapping[Why, int], ground: NodeGround) -> str:
    if not ground.agent:
        return "no agent has answered on it: nothing is capped, and its flat rate (unmanagedWattsPerNode) is charged"
    if bad:
        return bad[0][2]
    if not kinds:
        return "its agent reports no GPU"
    return max(kinds.items(), key=lambda row: row[1])[0].text


def explain_cluster(seen: SiteSnapshot, obj: Object) -> Explanation:
    meta, status, bad = obj["metadata"], obj.get("status") or {}, _bad(obj)
    pods = [
        pod for pod in seen.pods
        if pod["metadata"]["namespace"] == meta["namespace"]
        and (pod["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == cluster_label(meta["name"])
    ]  # fmt: skip
    power = next((c.message for c in conditions_of(obj) if c.type == "PowerAdmitted"), "power admission has not looked at it yet")
    rows = [row for pod in sorted(pods, key=name_of) if (row := _waits(pod, power)) is not None]
    kinds = Counter(row["waitsFor"] for row in rows)
    because = [message for _, _, message in bad]
    because += [f"{counted(count, 'pod')}: {what}" for what, count in kinds.most_common() if what not in because]
    because = list(dict.fromkeys(because))  # Ready repeats what keeps it from being so
    slo = obj["spec"].get("slo") or {}
    return Explanation(
        subject=f"InferenceCluster {name_of(obj)}",
        answer=_cluster_answer(bad, kinds, status),
        facts=[
            *((role, _replicas(status.get(role) or {})) for role in ("prefill", "decode", "mixed") if role in obj["spec"]),
            ("reserved floor", _watts(status.get("powerFloorWatts"))),
            ("TTFT P99", f"{status.get('ttftP99Milliseconds', 'unknown')} of {slo.get('ttftP99Milliseconds', 'no limit')} ms"),
            ("TBT P99", f"{status.get('tbtP99Milliseconds', 'unknown')} of {slo.get('tbtP99Milliseconds', 'no limit')} ms"),
            ("leaf budgets", ", ".join(sorted({_leaf(pod) for pod in pods} - {""})) or "none yet"),
        ],
        because=because,
        to_change=_changes(bad, kind="ic", name=meta["name"], namespace=meta["namespace"]),
        rows=rows,
        events=events_of(seen, ("InferenceCluster",), meta["name"], meta["namespace"]),
    )


def _cluster_answer(bad: Sequence[tuple[int, str, str]], waiting: Mapping[str, int], status: Object) -> str:
    if bad:
        return bad[0][2]
    if waiting:
        return f"{counted(sum(waiting.values()), 'pod')} not ready: {max(waiting, key=lambda what: waiting[what])}"
    return "it serves, and no pod of it waits" if status else "no operator has looked at it yet"


def _waits(pod: Object, power: str) -> dict[str, Any] | None:
    """What a pod that is not ready waits for; None of one that is."""
    spec, status = pod["spec"], pod.get("status") or {}
    conditions = {row["type"]: row for row in status.get("conditions") or ()}
    if (conditions.get("Ready") or {}).get("status") == "True" or status.get("phase") in ("Succeeded", "Failed"):
        return None
    gates = [gate["name"] for gate in spec.get("schedulingGates") or ()]
    waiting = [
        f"{state['reason']}: {state.get('message', '')}".rstrip(": ")
        for row in status.get("containerStatuses") or ()
        if (state := (row.get("state") or {}).get("waiting")) and state.get("reason")
    ]
    if GATE_POWER in gates:
        code, what = "PowerGate", power
    elif gates:
        code, what = "Gate", f"another controller's scheduling gate: {', '.join(gates)}"
    elif not spec.get("nodeName"):
        code, what = (
            "Scheduler",
            (conditions.get("PodScheduled") or {}).get("message") or "the scheduler has not looked at it yet",
        )
    else:
        code, what = "Start", waiting[0] if waiting else f"its containers on {spec['nodeName']} to become ready"
    role = (pod["metadata"].get("labels") or {}).get(LABEL_ROLE, "")
    return {"pod": pod["metadata"]["name"], "role": role, "code": code, "waitsFor": what}


def _leaf(pod: Object) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(ANNOTATION_BUDGET) or "")


def _replicas(told: Object) -> str:
    ready, admitted, wanted = (told.get(f"{word}Replicas", 0) for word in ("ready", "admitted", "wanted"))
    return f"{ready} ready, {admitted} admitted, {wanted} wanted"


def _changes(bad: Sequence[tuple[int, str, str]], *, kind: str, name: str, namespace: str = "") -> list[str]:
    found = (remedy(reason, kind=kind, name=name, namespace=namespace) for _, reason, _ in bad)
    return list(dict.fromkeys(text for text in found if text))


def _with_limit(changes: Sequence[str], spec: Object, status: Object) -> list[str]:
    """With the limit that minimum caps would fit, where the status says what is short."""
    short_w = status.get("shortWatts")
    return [
        text.replace('"limitWatts":N', f'"limitWatts":{spec["limitWatts"] + short_w}') if short_w else text for text in changes
    ]


def _watts(value: int | None) -> str:
    return "unknown" if value is None else f"{value} W"
