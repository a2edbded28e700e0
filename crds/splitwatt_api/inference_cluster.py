"""`InferenceCluster` (ic): one served model, split into a prefill and a decode pool, or served whole by a mixed one.

The pools are the product's first half: prefill wants watts, decode wants memory, so each has its own replicas, nodes and
power ceiling. Defaults fill all but the model, the engine and the pools. `kubectl scale ic` moves decode replicas.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import combinations
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, WithJsonSchema
from splitwatt_core.clusters import (
    DEFAULT_CONNECTOR,
    DEFAULT_ENGINE_PORT,
    DEFAULT_SIDE_CHANNEL_PORT,
    MAX_ENGINE_ARGS,
    MAX_NODES_PER_REPLICA,
    MAX_REPLICAS,
    OVERFLOW_SENTENCE,
    PAIR,
    EngineType,
    Role,
)
from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, MAX_PRIORITY, MIN_PRIORITY

from splitwatt_api.base import (
    CelRule,
    Conditions,
    Count,
    Generation,
    GpuWatts,
    LabelKey,
    LabelValue,
    ObjectMeta,
    ObjectName,
    Port,
    Told,
    Wire,
    kubernetes,
    one_of,
)
from splitwatt_api.memory_fields import ENGINE_RULE, MemoryExpansion
from splitwatt_api.serving_fields import (
    MAX_WAIT_S,
    SOURCE_RULE,
    FreeForm,
    PodTemplate,
    Probes,
    Router,
    WeightsSource,
)

MIN_DRAIN_S: Final = 30
"""KV caches are fetched from a prefill engine for that long after its answer."""
MAX_PULL_SECRETS: Final = 8


class PriorityWord(StrEnum):
    HIGH = "High"
    LOW = "Low"


Priority = Annotated[
    PriorityWord | Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, strict=True)],
    WithJsonSchema(
        kubernetes(
            CelRule(
                "type(self) == int ? "
                f"(int(self) >= {MIN_PRIORITY} && int(self) <= {MAX_PRIORITY}) : (string(self) in ['High', 'Low'])",
                f"priority must be High, Low, or a whole number from {MIN_PRIORITY} to {MAX_PRIORITY} (High is 100, Low is 0)",
            ),
            int_or_string=True,
        )
    ),
]


class ModelRef(Wire):
    """The model that is served."""

    name: str = Field(
        min_length=1,
        max_length=253,
        description="The model's name as the engine knows it, for example meta-llama/Llama-3.1-70B-Instruct.",
    )
    source: WeightsSource | None = Field(
        default=None,
        description="Where its weights come from; absent: a hub, by its name.",
        json_schema_extra=kubernetes(SOURCE_RULE),
    )


class Engine(Wire):
    """The inference engine of all pools."""

    type: Annotated[EngineType, Field(json_schema_extra=one_of("engine.type", ("VLLM", "SGLang", "Emulated")))] = Field(
        description="VLLM; SGLang, which needs router.type SGLang or None; or Emulated: our own small engine for simulated GPUs."
    )
    image: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Container image; absent: the release's default."
    )
    port: Port = Field(default=DEFAULT_ENGINE_PORT, description="Port of its HTTP API, /health and /metrics.")
    args: list[Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=list,
        max_length=MAX_ENGINE_ARGS,
        description="Arguments added after the rendered ones.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    probes: Probes = Field(
        default_factory=Probes,
        description="How patient Kubernetes is with an engine.",
        json_schema_extra={"default": {}},
    )


class Slo(Wire):
    """What the service promises; absent: not asked for."""

    ttft_p99_milliseconds: int | None = Field(
        default=None,
        alias="ttftP99Milliseconds",
        ge=1,
        le=3_600_000,
        strict=True,
        description="99th percentile of the time to the first token, in milliseconds.",
    )
    tbt_p99_milliseconds: int | None = Field(
        default=None,
        alias="tbtP99Milliseconds",
        ge=1,
        le=3_600_000,
        strict=True,
        description="99th percentile of the time between tokens, in milliseconds.",
    )


class RolePool(Wire):
    """One pool of replicas: of those that do one phase, or of those that do both."""

    replicas: int = Field(
        ge=0,
        le=MAX_REPLICAS,
        strict=True,
        description="How many replicas. Of prefill the most recent change wins, of this or of its RoleScale.",
        json_schema_extra={"format": "int32"},
    )
    gpus_per_replica: int = Field(
        default=1,
        ge=1,
        le=MAX_GPUS_PER_NODE,
        strict=True,
        description="GPUs of one replica on each of its nodes; they share one power cap.",
    )
    nodes_per_replica: int = Field(
        default=1,
        ge=1,
        le=MAX_NODES_PER_REPLICA,
        strict=True,
        description="Nodes of one replica. More than 1: a LeaderWorkerSet, whose pods start together or not at all.",
    )
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels of the nodes this pool may use."
    )
    power_ceiling_watts: GpuWatts | None = Field(
        default=None, description="The most watts one GPU of this pool is ever granted; absent: left to the policy."
    )
    drain_seconds: int | None = Field(
        default=None,
        ge=MIN_DRAIN_S,
        le=MAX_WAIT_S,
        strict=True,
        description="The most that a pod which is told to go waits for its requests to end; absent: 60 for prefill, 300 for "
        "decode and mixed. KV caches are fetched from a prefill pod for 30 s after its answer.",
    )
    template: PodTemplate | None = Field(default=None, description="An overlay on the pool's pods.")


class DecodePool(RolePool):
    """A pool whose replicas the cluster's scale sets. Who leaves them to a scaler must be able to leave them out: whatever stands
    in a manifest is set back each time it is applied."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=MAX_REPLICAS,
        strict=True,
        description="How many replicas; `kubectl scale` and autoscalers set it. Leave it out where they shall: it is 1 at first, "
        "and a manifest without it changes nothing.",
        json_schema_extra={"format": "int32"},
    )
    memory_expansion: MemoryExpansion | None = Field(
        default=None, description="What more memory this pool may use; absent: what its GPUs have."
    )


class OnFailure(StrEnum):
    RECOMPUTE = "Recompute"
    FAIL = "Fail"


class KvTransfer(Wire):
    """How the KV cache gets from prefill to decode."""

    connector: str = Field(default=DEFAULT_CONNECTOR, min_length=1, max_length=128, description="vLLM's KV connector.")
    side_channel_port: Port = Field(
        default=DEFAULT_SIDE_CHANNEL_PORT,
        description="Port of each pod where decode asks prefill for the KV cache's addresses.",
    )
    on_failure: Annotated[OnFailure, Field(json_schema_extra=one_of("kvTransfer.onFailure", ("Recompute", "Fail")))] = Field(
        default=OnFailure.RECOMPUTE,
        description="What becomes of a request whose KV cache does not come. Recompute: decode reads its prompt again. Fail: it "
        "gets an error.",
    )
    extra_config: FreeForm | None = Field(default=None, description="Passed to the connector as kv_connector_extra_config.")


class PullSecret(Wire):
    """One Secret of type kubernetes.io/dockerconfigjson."""

    name: ObjectName = Field(description="Name of the Secret.")


POOLS: Final = tuple(role.value for role in Role)


def _divide(one: str, other: str) -> CelRule:
    """Of pools that are both there; halves of a pair alone are refused by another rule, before defaults are filled in."""
    here, there = (f"self.{pool}.gpusPerReplica * self.{pool}.nodesPerReplica" for pool in (one, other))
    there_are = " || ".join(f"!has(self.{pool})" for pool in dict.fromkeys((*PAIR, one, other)))
    return CelRule(
        f"{there_are} || [{here}].all(a, [{there}].all(b, a % b == 0 || b % a == 0))",
        f"{one}.gpusPerReplica and {other}.gpusPerReplica, each times its nodesPerReplica, must divide one another: make one a "
        "multiple of the other",
        field_path=f".{other}.gpusPerReplica",
    )


class InferenceClusterSpec(Wire):
    """What the team that serves the model asks for."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            *(_divide(one, other) for one, other in combinations(POOLS, 2)),
            CelRule(
                "has(self.prefill) == has(self.decode)",
                "prefill and decode are two halves: give both, or neither of them and mixed",
                field_path=".decode",
            ),
            CelRule("has(self.prefill) || has(self.mixed)", "give pools: prefill and decode, or mixed"),
            CelRule(
                "!has(self.mixed) || !has(self.prefill) || self.router.type == 'None'",
                OVERFLOW_SENTENCE,
                field_path=".mixed",
            ),
            CelRule(
                "self.router.type == 'None' || (self.router.type == 'SGLang') == (self.engine.type == 'SGLang')",
                "engine.type SGLang needs router.type SGLang or None, and no other engine stands behind router.type SGLang",
                field_path=".router.type",
            ),
            ENGINE_RULE,
        )
    )

    model: ModelRef = Field(description="The model that is served.")
    engine: Engine = Field(description="The inference engine of all pools.")
    priority: Priority = Field(
        default=PriorityWord.HIGH,
        description="Who keeps watts when they are short: High (100), Low (0) or a class of your own; higher keeps more.",
    )
    slo: Slo = Field(default_factory=Slo, description="What the service promises.", json_schema_extra={"default": {}})
    prefill: RolePool | None = Field(default=None, description="The pool that reads prompts; it follows TTFT.")
    decode: DecodePool | None = Field(
        default=None, description="The pool that writes tokens; it follows TBT. `kubectl scale` sets its replicas."
    )
    mixed: RolePool | None = Field(
        default=None,
        description="The pool whose replicas read prompts and write tokens by themselves. Without the two others: the cluster is "
        "not split. Beside them: takes what they have no room for, where a router of your own sends it there.",
    )
    kv_transfer: KvTransfer = Field(
        default_factory=KvTransfer,
        description="How the KV cache gets from prefill to decode.",
        json_schema_extra={"default": {}},
    )
    router: Router = Field(default_factory=Router, description="Who stands before the pools.", json_schema_extra={"default": {}})
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of engines' and router's pods: who is scheduled first, and who is preempted."
    )
    image_pull_secrets: list[PullSecret] = Field(
        default_factory=list,
        max_length=MAX_PULL_SECRETS,
        description="Secrets in the cluster's namespace that open the registry of engines and router.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )


class RoleStatus(Wire):
    """How one pool stands."""

    wanted_replicas: Count = Field(default=0, description="Replicas in force: of the spec, or of the RoleScale.")
    replicas: Count = Field(default=0, description="Pods that exist.")
    ready_replicas: Count = Field(default=0, description="Pods that are ready.")
    admitted_replicas: Count = Field(default=0, description="Pods whose power floor is reserved.")
    label_selector: str = Field(default="", max_length=512, description="Selects the pool's pods, for autoscalers.")


class InferenceClusterStatus(Wire):
    """What the operator knows of the cluster."""

    observed_generation: Generation | None = Field(default=None, description="The metadata.generation acted on.")
    prefill: RoleStatus | None = Field(default=None, description="How the prefill pool stands.")
    decode: RoleStatus | None = Field(default=None, description="How the decode pool stands.")
    mixed: RoleStatus | None = Field(default=None, description="How the mixed pool stands.")
    power_floor_watts: Told | None = Field(
        default=None, description="Watts at the meter reserved for the admitted replicas' floors."
    )
    ttft_p99_milliseconds: Told | None = Field(
        default=None, alias="ttftP99Milliseconds", description="Measured time to the first token, 99th percentile, ms."
    )
    tbt_p99_milliseconds: Told | None = Field(
        default=None, alias="tbtP99Milliseconds", description="Measured time between tokens, 99th percentile, ms."
    )
    conditions: Conditions = Field(
        default_factory=list,
        description="Ready, PrefillReady, DecodeReady, MixedReady, RouterReady, KVTransferVerified, PowerAdmitted, SLOAttained; "
        "RollingOut while two revisions are there, ScaledElsewhere while an autoscaler aims at a rendered Deployment, "
        "MemoryExpanded where decode.memoryExpansion is there, EngineChecked while something of the engine's command line cannot "
        "be judged.",
    )


class InferenceCluster(Wire):
    """A large language model served by split prefill and decode pools, or by a mixed one, inside power budgets."""

    api_version: Literal["splitwatt.io/v1alpha1"] = "splitwatt.io/v1alpha1"
    kind: Literal["InferenceCluster"] = "InferenceCluster"
    metadata: ObjectMeta
    spec: InferenceClusterSpec = Field(description="What the team that serves the model asks for.")
    status: InferenceClusterStatus | None = Field(default=None, description="What the operator knows of the cluster.")
