"""`NodePower` (np): the contract between the operator and one node's agent, as a schema.

The core's `contract` module is the contract's own source; this is the shape the API server enforces. What it protects:
a term never falls and one write cannot use them all up (docs/protocol.md, R2), a spec once written is never removed, and every
grant's charge covers its cap (R4).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from splitwatt_core.protocol.contract import (
    MAX_BUDGETS_PER_NODE,
    MAX_GPUS_PER_NODE,
    MAX_GRANT,
    MAX_OWNERS_PER_GPU,
    MAX_PRIORITY,
    MAX_TERM,
    MAX_UNRESOLVED,
    MAX_UNRESOLVED_CHARS,
    MIN_PRIORITY,
    Health,
    Mode,
    Phase,
    Use,
)
from splitwatt_core.protocol.endpoint import ADDRESS, MAX_ADDRESS_CHARS, SHA256
from splitwatt_core.protocol.terms import MAX_RISE
from splitwatt_core.protocol.would import STEP_W

from splitwatt_api.base import (
    CelRule,
    Conditions,
    Count,
    GpuWatts,
    GpuWattsOrZero,
    Megahertz,
    NodeWatts,
    ObjectMeta,
    ObjectName,
    Wire,
    kubernetes,
)

Term = Annotated[int, Field(ge=0, le=MAX_TERM, strict=True)]
GrantNumber = Annotated[int, Field(ge=0, le=MAX_GRANT, strict=True)]


def _on_nodes(schema: dict[str, Any]) -> None:
    """An agent knows no Release: what it is granted then is held as in Strict."""
    kept = {key: schema[key] for key in ("description", "default") if key in schema}
    schema.clear()
    schema.update(type="string", enum=[mode.value for mode in Mode if mode is not Mode.RELEASE], **kept)


NodeMode = Annotated[Mode, Field(json_schema_extra=_on_nodes)]


class GpuGrant(Wire):
    """What one GPU may draw."""

    uuid: str = Field(min_length=1, max_length=96, description="NVML's UUID of the GPU.")
    grant: GrantNumber = Field(description="The grant's number; never used twice for a GPU, later ones are higher.")
    cap_watts: GpuWatts = Field(description="The power limit to set, in watts.")
    safe_cap_watts: GpuWatts = Field(description="The power limit that is safe without the operator, in watts.")
    charge_watts: GpuWatts = Field(description="What the operator counts for the GPU until this grant is acknowledged, in watts.")
    max_clock_megahertz: Megahertz | None = Field(
        default=None, description="Lock the SM clock to at most this, in MHz; absent: no lock."
    )
    phase: Phase = Field(default=Phase.UNASSIGNED, description="What its workload does: Unassigned, Prefill or Decode.")
    priority: int | None = Field(
        default=None,
        ge=MIN_PRIORITY,
        le=MAX_PRIORITY,
        strict=True,
        description="How the InferenceCluster of its pods ranks; they keep it when the cluster is gone. Absent: no such pod.",
    )
    ceiling_watts: GpuWatts | None = Field(
        default=None, description="The highest cap that those pods may have, in watts; they keep it when their cluster is gone."
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule("self.chargeWatts >= self.capWatts", "chargeWatts must be at least capWatts"),
            CelRule("self.safeCapWatts <= self.chargeWatts", "safeCapWatts must be at most chargeWatts"),
        )
    )


class WouldBeGrant(Wire):
    """What one GPU would be granted if the tree did not only observe. Nobody sets it: it has no grant number."""

    uuid: str = Field(min_length=1, max_length=96, description="NVML's UUID of the GPU.")
    would_cap_watts: GpuWatts = Field(
        description=f"The power limit that Strict would set, in watts; told anew once it moved by {STEP_W}."
    )
    would_max_clock_megahertz: Megahertz | None = Field(
        default=None, description="What Strict would lock the SM clock to, in MHz; absent: no lock."
    )


class NodePowerSpec(Wire):
    """The operator's word; nobody else writes it."""

    term: Term = Field(description="Which start of an active operator wrote this; it never falls.")
    for_uid: str = Field(
        alias="forUID",
        max_length=64,
        description="The uid of the object this was written for; the agent ignores a spec written for another.",
    )
    mode: NodeMode = Field(
        default=Mode.STRICT, description="What rules the node: Observe, Strict (in mode Release too) or Oversubscribed."
    )
    lease_name: str | None = Field(
        default=None, max_length=253, description="The Lease that bounds caps above their safe caps (Oversubscribed)."
    )
    node_limit_watts: NodeWatts | None = Field(
        default=None, description="The node's own allotment for its GPUs, in watts, for the agent's guard."
    )
    budgets: list[ObjectName] = Field(
        default_factory=list,
        max_length=MAX_BUDGETS_PER_NODE,
        description=(
            "Every budget the node is charged to: its leaf and all above it in order, then every other way on which it still "
            "counts, each from its leaf up; a budget on two ways stands there twice."
        ),
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    leaving_budgets: list[ObjectName] = Field(
        default_factory=list,
        max_length=MAX_BUDGETS_PER_NODE,
        description=(
            "Those of budgets that the node leaves, once every GPU has acknowledged a grant made after another leaf or parent "
            "claimed it."
        ),
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    overhead_percent: int | None = Field(
        default=None,
        ge=0,
        le=100,
        strict=True,
        description="Losses its leaf declares, in percent of GPU watts; counts on when the leaf is deleted.",
    )
    non_gpu_watts: NodeWatts | None = Field(
        default=None, description="What its leaf declares for it besides its GPUs, in watts; counts on when the leaf is deleted."
    )
    unmanaged_watts: NodeWatts | None = Field(
        default=None, description="What its leaf declares for it without an agent, in watts; counts on when the leaf is deleted."
    )
    gpus: list[GpuGrant] = Field(
        default_factory=list,
        max_length=MAX_GPUS_PER_NODE,
        description="One grant per GPU; a GPU that is not listed keeps its cap.",
        # Written whole by one writer. As a map, the record of who owns which field of which GPU is half of the object and
        # of the API server's work for each write (docs/decisions/0012).
        json_schema_extra=kubernetes(
            CelRule(
                "self.all(a, self.exists_one(b, b.uuid == a.uuid))",
                "every GPU is listed once: remove the second entry of its uuid",
            ),
            list_type="atomic",
        ),
    )

    would_be: list[WouldBeGrant] | None = Field(
        default=None,
        max_length=MAX_GPUS_PER_NODE,
        description="In mode Observe: what the budget would grant, for people to read. The agent does not act on it.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "self.mode == 'Observe' || !has(self.wouldBe) || size(self.wouldBe) == 0",
                "wouldBe is told in mode Observe only: where caps are granted, gpus says them",
                field_path=".wouldBe",
            ),
            CelRule(
                "self.term >= oldSelf.term",
                "spec.term never falls: an operator of a higher term has written this object, so the writer must stop",
            ),
            CelRule(
                f"self.term <= oldSelf.term + {MAX_RISE}",
                f"spec.term rises by {MAX_RISE} at most: it is the operator's to write, from its Lease's term",
            ),
        )
    )


class Workload(Wire):
    """The pod that holds a GPU."""

    namespace: str = Field(max_length=63, description="The pod's namespace.")
    pod: str = Field(max_length=253, description="The pod's name.")


class GpuReport(Wire):
    """What the agent read back of one GPU."""

    uuid: str = Field(min_length=1, max_length=96, description="NVML's UUID of the GPU.")
    acked_grant: GrantNumber = Field(
        default=0,
        description="The grant that was applied and read back with no setter call outstanding; 0: none yet.",
    )
    management_cap_watts: GpuWattsOrZero | None = Field(
        default=None, description="The power management limit, in watts; absent: it could not be read."
    )
    enforced_cap_watts: GpuWattsOrZero | None = Field(
        default=None, description="The enforced limit, in watts; absent: it could not be read."
    )
    min_cap_watts: GpuWattsOrZero = Field(default=0, description="The lowest legal power limit, in watts.")
    max_cap_watts: GpuWattsOrZero = Field(default=0, description="The highest legal power limit, in watts.")
    default_cap_watts: GpuWattsOrZero = Field(
        default=0, description="The limit after a reboot or reset, in watts: what the GPU is charged until a cap holds."
    )
    model: str = Field(default="", max_length=128, description="NVML's product name.")
    health: Health = Field(default=Health.UNKNOWN, description="Whether the GPU obeys; anything but OK says why not.")
    workload: Workload | None = Field(default=None, description="The pod that holds the GPU, as kubelet says.")
    workloads: list[Workload] = Field(
        default_factory=list,
        max_length=MAX_OWNERS_PER_GPU,
        description="All pods that hold a part of the GPU, where several share it: MIG instances, or a sharing device plugin.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    use: Use = Field(
        default=Use.UNKNOWN,
        description="What draw and processes show, whoever owns the GPU: Idle (near its idle draw for some seconds and no "
        "compute process), Busy, or Unknown. A GPU without a known owner is lowered as an idle one only when it is Idle.",
    )
    floor_watts: GpuWattsOrZero = Field(
        default=0, description="What the GPU was seen to draw above a cap that was set, in watts: no cap lowers it further."
    )
    brake: GpuBrake | None = Field(default=None, description="What holds the GPU below its grant; absent: nothing does.")


class GpuBrake(Wire):
    """What the operator said over the agent's own connection."""

    grant: GrantNumber = Field(description="Grants above this number lift it; nothing else does.")
    cap_watts: GpuWattsOrZero | None = Field(default=None, description="The power limit it is held to, in watts.")
    max_clock_megahertz: Megahertz | None = Field(default=None, description="What its SM clock is locked to, in MHz.")


class StreamAddress(Wire):
    """Where the agent listens for its operator."""

    address: str = Field(min_length=3, max_length=MAX_ADDRESS_CHARS, pattern=ADDRESS.pattern, description="HOST:PORT, for TLS.")
    certificate_sha256: str = Field(
        alias="certificateSHA256",
        pattern=SHA256.pattern,
        max_length=64,
        description="The SHA-256 of the certificate that it made for itself, in hexadecimal digits.",
    )


class NodePowerStatus(Wire):
    """The agent's word; nobody else writes it."""

    observed_uid: str = Field(default="", alias="observedUID", max_length=64, description="The object this speaks of.")
    observed_term: Term = Field(default=0, description="The highest term the agent has accepted.")
    boot_id: str = Field(default="", alias="bootID", max_length=256, description="The boot and driver load of the readbacks.")
    gpu_count: Count | None = Field(default=None, description="How many GPUs are reported.")
    healthy_gpu_count: Count | None = Field(default=None, description="How many of them have health OK.")
    enforced_cap_watts_total: NodeWatts | None = Field(
        default=None, description="Sum of the enforced limits, in watts; absent while one of them is unreadable."
    )
    gpus: list[GpuReport] = Field(
        default_factory=list,
        max_length=MAX_GPUS_PER_NODE,
        description="One report per GPU.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    unresolved_devices: list[Annotated[str, Field(max_length=MAX_UNRESOLVED_CHARS)]] = Field(
        default_factory=list,
        max_length=MAX_UNRESOLVED,
        description="Devices that kubelet gave to pods and that no GPU of this node is known by, each with its pod.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    stream: StreamAddress | None = Field(
        default=None, description="Where the agent listens for samples to be read and brakes to be said; absent: nowhere."
    )
    conditions: Conditions = Field(
        default_factory=list,
        description="Ready, CapsEnforced; while they hold Paused, Observing and ForeignLimit; LeaseHeld in Oversubscribed.",
    )


class NodePower(Wire):
    """The power contract of one node, of the same name: grants from the operator, acknowledgements from its agent."""

    api_version: Literal["splitwatt.io/v1alpha1"] = "splitwatt.io/v1alpha1"
    kind: Literal["NodePower"] = "NodePower"
    metadata: ObjectMeta
    spec: NodePowerSpec | None = Field(default=None, description="The operator's word: grants for the node's GPUs.")
    status: NodePowerStatus | None = Field(default=None, description="The agent's word: what was read back.")

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "!has(oldSelf.spec) || has(self.spec)",
                "spec cannot be removed: delete the NodePower to release the node's charge",
            )
        )
    )
