"""From a watched object to its core fact, once per kind: wire fields and Kubernetes' own forms end here.

Nothing is judged in here but whether an object can be read at all; what follows from it is the core's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from splitwatt_api import convert
from splitwatt_api.role_scale import RoleScale
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.scheduling import NodeRules, NodeTerm, Toleration
from splitwatt_core.budget.facts import NodeFact, Taint
from splitwatt_core.budget.known_labels import group_of
from splitwatt_core.budget.tree import BudgetSpec, Requirement, Selector
from splitwatt_core.clusters import ClusterSpec, Role, SpecError
from splitwatt_core.gpus.profiles import Offered
from splitwatt_core.names import (
    ANNOTATION_BUDGET,
    GATE_POWER,
    GPU_RESOURCE,
    LABEL_CLUSTER,
    LABEL_MANAGED_BY,
    LABEL_ROLE,
    LABEL_WORKER,
    MANAGED_BY,
)
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_core.rendering.role_scale import ScaleFact

from splitwatt_operator.cluster.store import JsonObject, version_of
from splitwatt_operator.recorder import Subject

UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What reading an object of unexpected shape can raise; ValidationError, ContractError and SpecError are ValueErrors."""
ENDED_PHASES: Final = ("Succeeded", "Failed")
MAX_SENTENCE_CHARS: Final = 400

unix_s = convert.unix_s
"""RFC 3339 to Unix seconds, for whoever reads times of watched objects."""


def sentence_of(error: Exception) -> str:
    """One line: a pydantic error names its first fields, any other its own words."""
    if isinstance(error, ValidationError):
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3]]
        return "; ".join(parts)[:MAX_SENTENCE_CHARS]
    if isinstance(error, KeyError):
        return f"{error} is missing"[:MAX_SENTENCE_CHARS]
    return " ".join(str(error).split())[:MAX_SENTENCE_CHARS]


def subject_of(obj: JsonObject) -> Subject:
    meta = obj["metadata"]
    return Subject(
        api_version=obj.get("apiVersion", "v1"),
        kind=obj.get("kind", ""),
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        uid=meta.get("uid", ""),
    )


def budget_reader(policies: Collection[str]) -> Callable[[JsonObject], BudgetSpec]:
    """PowerBudgets whose policy is one of these."""

    def read(obj: JsonObject) -> BudgetSpec:
        spec = convert.budget_from_wire(obj)
        if spec.policy not in policies:
            raise SpecError(f"spec.policy.type {spec.policy} is unknown; use one of {', '.join(sorted(policies))}")
        return spec

    return read


def role_scale(obj: JsonObject) -> ScaleFact:
    """Raises as an unreadable object does."""
    wire = RoleScale.from_wire(obj, lenient=True)
    owner = next((ref["uid"] for ref in obj["metadata"].get("ownerReferences") or () if ref.get("controller")), None)
    return ScaleFact(wire.spec.replicas, wire.declared, owner)


def cluster(obj: JsonObject) -> ClusterSpec:
    """One that cannot be rendered is as unreadable as one that cannot be parsed: caps, admission and the objects that run
    all follow one spec."""
    spec = convert.cluster_from_wire(obj)
    render(spec, RenderContext())
    return spec


def profile(obj: JsonObject) -> Offered:
    shipped = obj["metadata"].get("labels", {}).get(LABEL_MANAGED_BY) == MANAGED_BY
    return Offered(convert.profile_from_wire(obj), shipped)


def node(obj: JsonObject) -> NodeFact:
    """Lenient where admission alone looks: a Node that cannot be read would be charged to nobody. A count of GPUs that is no
    number is room for none."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj["status"]
    gpus = str((status.get("allocatable") or {}).get(GPU_RESOURCE, ""))
    return NodeFact(
        name=meta["name"],
        labels=meta.get("labels") or {},
        boot_id=status["nodeInfo"].get("bootID", ""),
        gpus=int(gpus) if gpus.isdecimal() else 0,
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(
            Taint(taint.get("key", ""), taint.get("effect", ""), taint.get("value", "")) for taint in spec.get("taints") or ()
        ),
        provider_id=spec.get("providerID") or "",
    )


def pod(obj: JsonObject) -> Pod:
    meta, spec = obj["metadata"], obj["spec"]
    labels = meta.get("labels") or {}
    foreign = LABEL_CLUSTER in labels and not labels[LABEL_CLUSTER]
    gates = [str(gate.get("name")) for gate in spec.get("schedulingGates") or ()]
    return Pod(
        name=PodName(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        version=version_of(obj),
        label=labels.get(LABEL_CLUSTER, ""),
        role=None
        if foreign
        else next((role for role in Role if role.value == labels.get(LABEL_ROLE, labels.get(LABEL_WORKER))), None),
        gpus=gpus_of(spec),
        created_s=unix_s(meta["creationTimestamp"]),
        gated=GATE_POWER in gates,
        other_gates=tuple(gate for gate in gates if gate != GATE_POWER),
        leaf=(meta.get("annotations") or {}).get(ANNOTATION_BUDGET),
        node=spec.get("nodeName"),
        rules=_rules(obj),
        ended=(obj.get("status") or {}).get("phase") in ENDED_PHASES,
        terminating=bool(meta.get("deletionTimestamp")),
        group=group_of(labels),
        labels=labels if foreign else None,
    )


def gpus_of(spec: Mapping[str, Any]) -> int:
    """What the scheduler counts for a pod: containers run together, beside all sidecars; before them init containers, one at a
    time, beside the sidecars that were started before each; and its overhead. Source: Kubernetes, effective pod requests."""

    def asked(resources: Mapping[str, Any] | None) -> int:
        return int((resources or {}).get(GPU_RESOURCE, 0))

    def requests(container: Mapping[str, Any]) -> int:
        return asked((container.get("resources") or {}).get("requests"))

    sidecars = most = 0
    for container in spec.get("initContainers") or ():
        most = max(most, sidecars + requests(container))
        if container.get("restartPolicy") == "Always":
            sidecars += requests(container)
    together = sidecars + sum(requests(container) for container in spec.get("containers") or ())
    return max(together, most) + asked(spec.get("overhead"))


def required_terms(obj: JsonObject) -> Sequence[Mapping[str, Any]]:
    """A pod's required node affinity terms, any of which is enough."""
    affinity = (obj["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms: Sequence[Mapping[str, Any]] = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    ) or ()
    return terms


def _rules(obj: JsonObject) -> NodeRules:
    spec = obj["spec"]
    return NodeRules(
        selector=Selector(spec.get("nodeSelector") or {}),
        terms=tuple(
            NodeTerm(_requirements(term.get("matchExpressions")), _requirements(term.get("matchFields")))
            for term in required_terms(obj)
        ),
        tolerations=tuple(
            Toleration(row.get("key") or "", row.get("operator") or "Equal", row.get("value") or "", row.get("effect") or "")
            for row in spec.get("tolerations") or ()
        ),
    )


def _requirements(rows: Sequence[Mapping[str, Any]] | None) -> tuple[Requirement, ...]:
    return tuple(Requirement(row["key"], row["operator"], tuple(row.get("values") or ())) for row in rows or ())
