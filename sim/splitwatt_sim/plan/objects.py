"""A plan as objects to apply: InferenceCluster and PowerBudget, and the PowerProfiles behind it, by the API's own models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import yaml
from pydantic import ValidationError
from splitwatt_api.inference_cluster import InferenceCluster
from splitwatt_api.power_budget import PowerBudget
from splitwatt_core.clusters import Role, RouterType
from splitwatt_core.names import GROUP_VERSION, LABEL_PLAN, LABEL_POOL

from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.options import REST_W, LatencySlo
from splitwatt_sim.plan.search import PlanDesign, charge_w
from splitwatt_sim.servers.catalogue import Gpu
from splitwatt_sim.servers.kinds import GPUS, LOSSES
from splitwatt_sim.servers.profile_files import profile_object

ROLE_OF_PART: Final = {
    "prefill": Role.PREFILL.value, "decode": Role.DECODE.value, "mixed": Role.MIXED.value, "unsplit": Role.MIXED.value,
}  # fmt: skip


class PlanObjectsError(PlanError):
    """A plan that this version's API cannot say; the message is one sentence."""


def manifests(
    design: PlanDesign, *, name: str, namespace: str, model: str, slo: LatencySlo, gpus: Mapping[str, Gpu],
    feed_w: float = math.inf,
) -> list[dict[str, Any]]:  # fmt: skip
    """Objects in the order in which they are applied; each passes the API's models. `gpus`: by their names in options.
    `feed_w`: the most that the feed carries, where that was said.

    An unsplit design is a mixed pool alone. One of three pools names no router, for vllm-router knows no third pool. Raises
    PlanObjectsError for what the API's bounds refuse.
    """
    wanted: dict[str, Any] = {"model": {"name": model}, "engine": {"type": "VLLM"}}
    for part, option, servers in design.parts:
        role = ROLE_OF_PART[part]
        wanted[role] = _role(name, role, servers, option.cap_w)
    if design.mixed is not None:
        wanted["router"] = {"type": RouterType.NONE.value}
    limits = {"ttftP99Milliseconds": slo.ttft_p99_ms, "tbtP99Milliseconds": slo.tbt_p99_ms}
    if any(limit is not None for limit in limits.values()):
        wanted["slo"] = {key: round(limit) for key, limit in limits.items() if limit is not None}
    objects = [
        _object("PowerBudget", {"name": name}, _budget(design, name, gpus, feed_w)),
        _object("InferenceCluster", {"name": name, "namespace": namespace}, wanted),
    ]
    try:
        PowerBudget.from_wire(objects[0])
        InferenceCluster.from_wire(objects[1])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanObjectsError(f"the API does not take this plan: {where}: {first['msg']}") from error
    return objects


def profile_manifests(design: PlanDesign, gpus: Mapping[str, Gpu]) -> list[dict[str, Any]]:
    """The PowerProfiles that the plan was made with, as they were given. The chart brings the built-in ones too, and a profile
    that was measured on one's own machines is the better one: so they are not among the plan's own objects."""
    return [profile_object(gpus[gpu].written, memory_bytes=gpus[gpu].memory_bytes) for gpu in _bought(design)]


def _bought(design: PlanDesign) -> list[str]:
    return list(dict.fromkeys(option.gpu for _, option, _ in design.parts))


def _object(kind: str, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": GROUP_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _role(name: str, role: str, replicas: int, cap_w: int) -> dict[str, Any]:
    return {
        "replicas": replicas,
        "gpusPerReplica": GPUS,
        "nodeSelector": {LABEL_POOL: f"{name}-{role}"},
        "powerCeilingWatts": cap_w,
    }


def reserve_w(design: PlanDesign, gpus: Mapping[str, Gpu]) -> int:
    """What one server may surprise by: its GPUs back at their default limits, behind an agent that cannot say so. The server of
    the plan that is held lowest below its default counts."""
    surprise_w = max(
        charge_w(cap_w=gpus[option.gpu].profile.default_cap_w, rest_w=0.0) - charge_w(cap_w=option.cap_w, rest_w=0.0)
        for _, option, _ in design.parts
    )
    return max(0, math.ceil(surprise_w))


def kept_w(design: PlanDesign, gpus: Mapping[str, Gpu], feed_w: float) -> int:
    """Of `reserve_w` what the feed has room for beside the caps: no limit is ever above what the feed carries."""
    caps_w = math.ceil(design.charge_w)
    room_w = math.inf if math.isinf(feed_w) else max(0, math.floor(feed_w) - caps_w)
    return int(min(reserve_w(design, gpus), room_w))


def _budget(design: PlanDesign, name: str, gpus: Mapping[str, Gpu], feed_w: float) -> dict[str, Any]:
    """One feed for all nodes of the plan. The limit is what the caps add up to, as invariant I1 counts it, and the reserve. It
    observes: whoever applies it reads what it would do, and then says Strict."""
    profiles = [gpus[gpu].profile for gpu in _bought(design)]
    rated_w = max(charge_w(cap_w=profile.default_cap_w, rest_w=REST_W) for profile in profiles)
    reserved_w = kept_w(design, gpus, feed_w)
    return {
        "limitWatts": math.ceil(design.charge_w) + reserved_w,
        "mode": "Observe",
        "policy": {"type": "PhaseAware"},
        "reserveWatts": reserved_w,
        "nodeSelector": {"matchLabels": {LABEL_PLAN: name}},
        "nonGpuWattsPerNode": REST_W,
        "unmanagedWattsPerNode": math.ceil(rated_w),
        "overheadPercent": round(LOSSES * 100),
    }


def as_yaml(objects: list[dict[str, Any]], *, header: str) -> str:
    """`header`: comment lines before the first object, without their marks."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + "---\n".join(yaml.safe_dump(obj, sort_keys=False, width=120) for obj in objects)
