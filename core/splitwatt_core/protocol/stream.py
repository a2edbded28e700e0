"""What goes over an agent's own connection, as JSON: samples to the operator, brakes to the agent.

Trust is made by the API server alone. The agent makes its certificate itself and writes the fingerprint into the status of its
NodePower, which nobody else may write; the operator shows a token whose audience is this one node, and the API server says
whose it is. So a token that one node has seen is worth nothing at another.

A sample carries its own time, by the wall clock of its node, and its age when it was sent, by the monotonic one: whoever reads
it needs no common clock to know how old it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from splitwatt_core.protocol.brake import BrakeOrder, Depth
from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, MAX_GRANT, ContractError

BRAKE_PATH: Final = "/v1/brake"
SAMPLES_PATH: Final = "/v1/samples"
MAX_SAMPLES_HZ: Final = 10.0
CALM_HZ: Final = 1.0
MAX_AGE_S: Final = 3600.0
"""Nobody sends an older sample; one that says so is mistaken."""
MAX_ORDER_BYTES: Final = 16 * 1024
_AUDIENCE: Final = "agent.splitwatt.io/"


def audience_of(node: str) -> str:
    """Of the token that this node's agent takes."""
    return f"{_AUDIENCE}{node}"


def order_to_wire(order: BrakeOrder) -> dict[str, Any]:
    wire: dict[str, Any] = {"grant": order.grant, "to": order.to.value}
    if order.max_clock_mhz is not None:
        wire["maxClockMegahertz"] = order.max_clock_mhz
    if order.uuids:
        wire["uuids"] = sorted(order.uuids)
    return wire


def order_from_wire(raw: Any) -> BrakeOrder:
    """Raises ContractError: a brake that cannot be understood is refused whole, for its sender repeats it."""
    if not isinstance(raw, Mapping):
        raise ContractError(f"a brake is an object with grant and to, not {raw!r}")
    unknown = sorted(set(raw) - {"grant", "to", "maxClockMegahertz", "uuids"})
    if unknown:
        raise ContractError(f"a brake has no field {unknown[0]}")
    grant, clock_mhz, uuids = raw.get("grant"), raw.get("maxClockMegahertz"), raw.get("uuids", [])
    if type(grant) is not int or grant > MAX_GRANT:
        raise ContractError(f"grant must be a grant's number, not {grant!r}")
    if clock_mhz is not None and (type(clock_mhz) is not int or clock_mhz <= 0):
        raise ContractError(f"maxClockMegahertz must be a number above 0, not {clock_mhz!r}")
    if not isinstance(uuids, list) or not all(isinstance(uuid, str) for uuid in uuids) or len(uuids) > MAX_GPUS_PER_NODE:
        raise ContractError(f"uuids must be a list of at most {MAX_GPUS_PER_NODE} names of GPUs")
    try:
        return BrakeOrder(grant, Depth(raw.get("to", Depth.SAFE)), clock_mhz, frozenset(uuids))
    except ValueError as error:
        raise ContractError(str(error)) from error


@dataclass(frozen=True, slots=True)
class GpuSample:
    """Watts as they were read; None: the call failed."""

    uuid: str
    power_w: float | None
    management_w: float | None
    enforced_w: float | None
    health: str


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One sweep over a node's GPUs. `sampled_s`: the node's own wall clock; `age_s`: how long ago that was when it was sent, by
    its monotonic clock. `trouble`: why no GPU could be read, "" where they were."""

    node: str
    boot_id: str
    sampled_s: float
    age_s: float
    gpus: tuple[GpuSample, ...]
    trouble: str = ""


def sample_to_wire(sample: NodeSample) -> dict[str, Any]:
    return {
        "node": sample.node,
        "bootID": sample.boot_id,
        "sampledAt": round(sample.sampled_s, 3),
        "ageSeconds": round(sample.age_s, 4),
        **({"trouble": sample.trouble} if sample.trouble else {}),
        "gpus": [
            {
                "uuid": gpu.uuid,
                "powerWatts": gpu.power_w,
                "managementCapWatts": gpu.management_w,
                "enforcedCapWatts": gpu.enforced_w,
                "health": gpu.health,
            }
            for gpu in sample.gpus
        ],
    }


@dataclass(frozen=True, slots=True)
class NodeDraw:
    """What the operator reads of a sample. `power_w`: of `gpus` GPUs, those whose draw could be read."""

    power_w: float
    gpus: int
    age_s: float


def drawn_from_wire(raw: Any) -> NodeDraw:
    """Raises ContractError: one that cannot be understood, or of no age that can be, is no sample (I5)."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("gpus"), list) or len(raw["gpus"]) > MAX_GPUS_PER_NODE:
        raise ContractError("a sample is an object with gpus, a list")
    age_s = raw.get("ageSeconds")
    if not _number(age_s) or not 0.0 <= age_s <= MAX_AGE_S:
        raise ContractError(f"a sample's ageSeconds are from 0 to {MAX_AGE_S:g}, not {age_s!r}")
    watts = [row.get("powerWatts") if isinstance(row, Mapping) else None for row in raw["gpus"]]
    read = [power_w for power_w in watts if power_w is not None]
    if not all(_number(power_w) and power_w >= 0.0 for power_w in read):
        raise ContractError("a sample's powerWatts are numbers from 0, or null")
    return NodeDraw(float(sum(read)), len(read), float(age_s))


def _number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)
