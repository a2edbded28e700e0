"""Raw objects as an API server gives them, for the command line's pure rules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from splitwatt_cli.doctor.facts import Clock, MeterAnswer, SiteFacts, TelemetryFacts
from splitwatt_cli.snapshot import SiteSnapshot
from splitwatt_core.names import GPU_RESOURCE, LABEL_RACK

NOW_S = 1_800_000_000.0


def rfc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row(kind: str, status: bool | None, reason: str, message: str = "") -> dict[str, Any]:
    word = {True: "True", False: "False", None: "Unknown"}[status]
    return {"type": kind, "status": word, "reason": reason, "message": message or reason, "lastTransitionTime": rfc(NOW_S - 60)}


def budget(name: str, *, limit_w: int = 26_000, rack: str = "", conditions: Any = (), **more: Any) -> dict[str, Any]:
    """`more`: of spec; `status` apart."""
    status = {
        "limitInForceWatts": limit_w,
        "chargeWatts": 20_000,
        "measuredWatts": 18_000,
        "posture": "Normal",
        "nodes": 1,
        "gpus": 2,
    }
    status |= more.pop("status", {})
    leaf = {"nodeSelector": {"matchLabels": {LABEL_RACK: rack}}, "unmanagedWattsPerNode": 10_000} if rack else {}
    return {
        "apiVersion": "splitwatt.io/v1alpha1",
        "kind": "PowerBudget",
        "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1, "annotations": more.pop("annotations", {})},
        "spec": {"limitWatts": limit_w, **leaf, **more},
        "status": {**status, "conditions": list(conditions) or [row("Ready", True, "Holding")]},
    }


def gpu(uuid: str = "GPU-1", *, cap_w: int | None = 350, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its line in a NodePower's spec and in its status. `more` goes to the line."""
    report = {
        "uuid": uuid, "ackedGrant": 7, "enforcedCapWatts": cap_w, "minCapWatts": 200, "maxCapWatts": 700, "defaultCapWatts": 700,
        "model": "NVIDIA H100 80GB HBM3", "health": "OK", "use": "Busy", **more.pop("report", {}),
    }  # fmt: skip
    line = {"uuid": uuid, "grant": 7, "capWatts": cap_w, "safeCapWatts": cap_w, "chargeWatts": cap_w, "phase": "Decode", **more}
    return (line if cap_w is not None else {"uuid": uuid}), report


def node_power(
    name: str,
    *gpus: tuple[dict[str, Any], dict[str, Any]],
    budgets: Any = ("rack-a1",),
    said_s: float = NOW_S - 5,
    came_s: float | None = None,
    conditions: Any = (),
    agent: bool = True,
) -> dict[str, Any]:
    """`said_s`: when the agent wrote by its own clock, `came_s`: by the API server's."""
    ready = row("Ready", True, "Enforcing", f"2 GPUs are read. Said at {rfc(said_s)}.")
    lines = [line for line, _ in gpus if "capWatts" in line]
    status = {
        "gpuCount": len(gpus), "healthyGpuCount": len(gpus), "enforcedCapWattsTotal": 700,
        "gpus": [report for _, report in gpus], "conditions": list(conditions) or [ready],
    }  # fmt: skip
    managed = {
        "manager": "splitwatt-agent", "operation": "Apply", "subresource": "status",
        "time": rfc(said_s if came_s is None else came_s),
    }  # fmt: skip
    return {
        "kind": "NodePower",
        "metadata": {"name": name, "managedFields": [managed] if agent else []},
        "spec": {"term": 1, "mode": "Strict", "budgets": list(budgets), "overheadPercent": 0, "nonGpuWatts": 2000, "gpus": lines},
        **({"status": status} if agent else {}),
    }


def node(name: str, *, rack: str = "a1", gpus: int = 2, labels: dict[str, str] | None = None) -> dict[str, Any]:
    own = {LABEL_RACK: rack} if rack else {}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {**own, **(labels or {})}},
        "status": {"allocatable": {GPU_RESOURCE: str(gpus)} if gpus else {}},
    }


def cluster(name: str = "chat", namespace: str = "serving", *, conditions: Any = (), ready: int = 1) -> dict[str, Any]:
    role = {"wantedReplicas": 1, "readyReplicas": ready, "admittedReplicas": ready, "replicas": 1}
    return {
        "kind": "InferenceCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}, "slo": {"ttftP99Milliseconds": 2000}},
        "status": {"prefill": role, "decode": role, "conditions": list(conditions) or [row("Ready", True, "Serving")]},
    }


def lease(*, renewed_s: float = NOW_S - 2, came_s: float | None = None) -> dict[str, Any]:
    managed = {"manager": "splitwatt-operator", "time": rfc(renewed_s if came_s is None else came_s)}
    return {
        "metadata": {"name": "splitwatt-operator", "namespace": "splitwatt-system", "managedFields": [managed]},
        "spec": {"holderIdentity": "op-1", "leaseDurationSeconds": 15, "renewTime": rfc(renewed_s), "leaseTransitions": 3},
    }


METER = {"selector": 'rack_power_watts{rack="a1"}'}


def healthy(**more: Any) -> SiteSnapshot:
    """One rack of one node, whole."""
    parts: dict[str, Any] = {
        "now_s": NOW_S,
        "budgets": (budget("row-a"), budget("rack-a1", rack="a1", parent="row-a", meter=METER)),
        "node_powers": (node_power("n1", gpu("GPU-1"), gpu("GPU-2"), budgets=("rack-a1", "row-a")),),
        "nodes": (node("n1"),),
        "clusters": (cluster(),),
        "lease": lease(),
    }
    return SiteSnapshot(**{**parts, **more})


def answers(**more: Any) -> TelemetryFacts:
    """What Prometheus says of it."""
    parts: dict[str, Any] = {
        "where": "http://prometheus",
        "clock": Clock(0.0, 0.01),
        "age_s": {"n1": 0.5},
        "gap_s": {"n1": 1.0},
        "draw_w": {"n1": 600.0},
        "meters": {"rack-a1": MeterAnswer(value=2700.0, series=1, age_s=0.5)},
        "engines": frozenset({("serving", "chat")}),
    }
    return TelemetryFacts(**{**parts, **more})


def facts(snapshot: SiteSnapshot, telemetry: TelemetryFacts | None = None, **more: Any) -> SiteFacts:
    told = {"version": "v1.37.2", "server": Clock(0.0, 0.01), "local_s": NOW_S, **more}
    return SiteFacts(seen=snapshot, telemetry=answers() if telemetry is None else telemetry, **told)
