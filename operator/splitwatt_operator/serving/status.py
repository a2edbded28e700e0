"""What an InferenceCluster's status says, and when it is worth a write. Pure but for the time, which is passed in.

Conditions say the state, reasons say why, messages have the numbers. What changes a judgement is written at once; words
and numbers that merely move are refreshed every `NUMBERS_EVERY_S`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from splitwatt_api import convert
from splitwatt_core.admission.standing import ClusterStanding
from splitwatt_core.clusters import ClusterSpec, Role, RouterType
from splitwatt_core.conditions import Condition, ConditionChange, change_of, condition_from_wire
from splitwatt_core.names import GROUP_VERSION
from splitwatt_core.rendering.groups import GROUP_KIND, spans_nodes
from splitwatt_core.rendering.objects import selector_text
from splitwatt_core.serving.latency import attained, said
from splitwatt_core.serving.provable import why_not
from splitwatt_core.serving.rollout import RolloutPlan

from splitwatt_operator.cluster.store import JsonObject
from splitwatt_operator.serving.memory import memory_condition
from splitwatt_operator.serving.slo import Latency

NUMBERS_EVERY_S: Final = 15.0
NUMBERS: Final = ("powerFloorWatts", "ttftP99Milliseconds", "tbtP99Milliseconds")


def status_of(
    spec: ClusterSpec,
    workloads: Mapping[Role, JsonObject | None],
    router: JsonObject | None,
    *,
    standing: ClusterStanding | None,
    latency: Latency,
    proof: Condition,
    problems: Sequence[str],
    pool_problem: str = "",
    no_groups: str = "",
    scaled: Sequence[str] = (),
    unjudged: Sequence[str] = (),
    rollout: RolloutPlan | None = None,
    previous: Mapping[str, Any],
    now_s: float,
    invalid: str = "",
    generation: int | None = None,
) -> dict[str, Any]:
    """The whole status of a cluster that is served. `workloads`: of each role, of all revisions together. `problems`: sentences
    about objects that are not as rendered; `pool_problem`: about the InferencePool that its router needs; `no_groups`: about the
    LeaderWorkerSets that replicas over several nodes need. `scaled`: sentences about others who scale them. `unjudged`: about
    what its engines alone know. `rollout`: how it goes on from one revision to the next. `invalid`: why it is served by a former
    spec, and `generation` the newest, where that is not the spec's own. `proof`: what is known of its KV transfer."""
    observed = spec.generation if generation is None else generation
    problems = [*problems, no_groups] if no_groups else problems
    roles = {
        role: _role_condition(spec, role, workloads[role], no_groups if spans_nodes(spec, role) else "") for role in spec.roles
    }
    power = _power_condition(standing)
    routing = _router_condition(spec, router, pool_problem)
    ready = _ready(invalid, problems, power=power, roles=roles, router=routing, proof=proof if why_not(spec) is None else None)
    conditions = [ready, *roles.values(), routing, proof, power, _slo_condition(spec, latency)]
    if rollout is not None and rollout.sentence:
        conditions.append(Condition("RollingOut", True, rollout.reason, rollout.sentence))
    if scaled:
        conditions.append(Condition("ScaledElsewhere", True, "Autoscaler", " ".join(scaled)))
    if (memory := memory_condition(spec)) is not None:
        conditions.append(memory)
    if unjudged:
        conditions.append(Condition("EngineChecked", None, "NotKnown", " ".join(unjudged)))
    status: dict[str, Any] = {
        "observedGeneration": observed,
        "conditions": convert.conditions(conditions, generation=observed, previous=previous, now_s=now_s),
    }
    for role in spec.roles:
        numbers = (workloads[role] or {}).get("status", {})
        status[role.value] = {
            "wantedReplicas": spec.role(role).replicas,
            "replicas": numbers.get("replicas", 0),
            "readyReplicas": numbers.get("readyReplicas", 0),
            "admittedReplicas": 0 if standing is None else standing.admitted.get(role, 0),
            "labelSelector": selector_text(spec.name, role),
        }
    if standing is not None:
        status["powerFloorWatts"] = round(standing.floor_w)
    if (ttft := latency.ttft(spec)) is not None:
        status["ttftP99Milliseconds"] = ttft.most_ms
    if latency.tbt_p99_ms is not None:
        status["tbtP99Milliseconds"] = latency.tbt_p99_ms
    return status


def invalid_status(cluster: JsonObject, sentence: str, now_s: float) -> dict[str, Any]:
    """For a cluster that was never readable, or whose name is taken: its objects stay as they are, and Ready says why."""
    previous = cluster.get("status") or {}
    generation = cluster["metadata"].get("generation", 0)
    ready = Condition("Ready", False, "InvalidSpec", sentence)
    rows = convert.conditions([ready], generation=generation, previous=previous, now_s=now_s, keep_others=True)
    return {**previous, "observedGeneration": generation, "conditions": rows}


def manifest_of(cluster: JsonObject, status: Mapping[str, Any]) -> dict[str, Any]:
    """The apply body, bound to the object's uid: a namesake made anew never gets it."""
    meta = cluster["metadata"]
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "InferenceCluster",
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
        "status": dict(status),
    }


def waits_s(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """How old the written status must be before the new one is worth a write."""
    if old == new:
        return float("inf")
    change = change_of(*([condition_from_wire(row) for row in status.get("conditions", ())] for status in (old, new)))
    return 0.0 if change is ConditionChange.JUDGEMENT or _still(old) != _still(new) else NUMBERS_EVERY_S


def _still(status: Mapping[str, Any]) -> dict[str, Any]:
    """What does not move all the time."""
    return {field: value for field, value in status.items() if field not in (*NUMBERS, "conditions")}


def _role_condition(spec: ClusterSpec, role: Role, workload: JsonObject | None, no_groups: str) -> Condition:
    """A LeaderWorkerSet counts groups, where a Deployment counts pods: replicas both."""
    kind = f"{role.value.capitalize()}Ready"
    wanted = spec.role(role).replicas
    if no_groups:
        return Condition(kind, False, "NoLeaderWorkerSet", no_groups)
    if workload is None:
        what = GROUP_KIND if spans_nodes(spec, role) else "Deployment"
        return Condition(kind, False, "NotCreated", f"The {what} of the {role.value} role does not exist yet.")
    numbers = workload.get("status") or {}
    ready, updated = numbers.get("readyReplicas", 0), numbers.get("updatedReplicas", 0)
    current = numbers.get("observedGeneration", 0) >= workload["metadata"].get("generation", 0)
    if wanted == 0:
        return Condition(kind, True, "ScaledToZero", "No replicas are asked for.")
    message = f"{ready} of {wanted} replicas are ready."
    if not current or updated < wanted:
        return Condition(kind, False, "RollingOut", f"{message[:-1]}, {updated} of {wanted} are up to date.")
    if ready < wanted:
        return Condition(kind, False, "ReplicasNotReady", message)
    return Condition(kind, True, "AllReplicasReady", message)


def _router_condition(spec: ClusterSpec, deployment: JsonObject | None, pool_problem: str) -> Condition:
    """One router that is ready is enough to be reached."""
    kind = "RouterReady"
    if pool_problem:
        return Condition(kind, False, "NoInferencePool", pool_problem)
    if spec.router.type is RouterType.NONE:
        who = "decode pods read the prompts themselves, and nothing is split" if spec.split else "clients reach the mixed pods"
        return Condition(kind, None, "NoRouter", f"spec.router.type is None: {who}.")
    if deployment is None:
        return Condition(kind, False, "NotCreated", "The Deployment of the router does not exist yet.")
    if spec.router.type is not RouterType.LLMD and not all(spec.role(role).replicas for role in spec.roles):
        return Condition(kind, None, "ScaledToZero", "A router is ready once it knows a replica of each role.")
    ready, wanted = deployment.get("status", {}).get("readyReplicas", 0), spec.router.replicas
    message = f"{ready} of {wanted} routers are ready."
    if not ready:
        return Condition(kind, False, "RouterNotReady", message)
    return Condition(kind, True, "RouterReady", message)


def _power_condition(standing: ClusterStanding | None) -> Condition:
    if standing is None:
        return Condition("PowerAdmitted", None, "NotDecided", "Power admission has not looked at this cluster yet.")
    verdict = standing.verdict
    return Condition("PowerAdmitted", verdict.admitted, verdict.reason, verdict.message)


def _slo_condition(spec: ClusterSpec, latency: Latency) -> Condition:
    """False as soon as one promise is broken; Unknown while one that was made cannot be judged."""
    ttft, tbt_ms = latency.ttft(spec), latency.tbt_p99_ms
    kept: list[bool | None] = []
    words: list[str] = []
    unmeasured = False
    if (limit_ms := spec.slo.ttft_p99_ms) is not None:
        kept.append(attained(limit_ms, ttft))
        words.append(said(limit_ms, ttft))
        unmeasured |= ttft is None
    if (limit_ms := spec.slo.tbt_p99_ms) is not None:
        kept.append(None if tbt_ms is None else tbt_ms <= limit_ms)
        who = "decode" if spec.split else "mixed"
        words.append(f"TBT P99 {'unknown' if tbt_ms is None else f'{tbt_ms} ms'} of {limit_ms} ms (at {who} engines)")
        unmeasured |= tbt_ms is None
    if not kept:
        return Condition("SLOAttained", None, "NoSLO", "spec.slo asks for nothing.")
    sentence = ", ".join(words)
    if False in kept:
        return Condition("SLOAttained", False, "Missed", f"{sentence}.")
    if unmeasured:
        return Condition("SLOAttained", None, "NoData", f"{sentence}: no requests in the last minute, or no metrics.")
    if None in kept:
        return Condition("SLOAttained", None, "Undecided", f"{sentence}: the histograms do not tell on which side it is.")
    return Condition("SLOAttained", True, "Attained", f"{sentence}.")


def _ready(
    invalid: str,
    problems: Sequence[str],
    *,
    power: Condition,
    roles: Mapping[Role, Condition],
    router: Condition,
    proof: Condition | None,
) -> Condition:
    """`proof` None: none is owed."""
    if invalid:
        return Condition("Ready", False, "InvalidSpec", invalid)
    if problems:
        return Condition("Ready", False, "ObjectsNotApplied", " ".join(problems))
    if power.status is False:
        return Condition("Ready", False, "WaitingForPower", power.message)
    if not all(condition.status for condition in roles.values()):
        words = " ".join(f"{role.value}: {c.message}" for role, c in roles.items() if not c.status)
        return Condition("Ready", False, "RolesNotReady", words)
    if router.status is False:
        return Condition("Ready", False, "RouterNotReady", router.message)
    if proof is not None and not proof.status:
        return Condition("Ready", False, "KVTransferNotVerified", proof.message)
    of = {1: "Every replica", 2: "Every replica of both roles"}.get(len(roles), "Every replica of all roles")
    if router.status is None:
        return Condition("Ready", True, "Serving", f"{of} is ready. {router.message}")
    return Condition("Ready", True, "Serving", f"{of} is ready, and so is the router.")
