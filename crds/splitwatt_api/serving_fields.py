"""Parts of an InferenceCluster that stand for themselves: where weights come from, when an engine counts as well, the router."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema
from splitwatt_core.clusters import DEFAULT_ROUTER_METRICS_PORT, MAX_ENGINE_ARGS, MAX_ROUTER_REPLICAS, ProbeSpec, RouterType

from splitwatt_api.base import CelRule, LabelKey, Labels, ObjectName, Port, Wire, kubernetes, one_of

MAX_WAIT_S: Final = 86_400
_PROBES: Final = ProbeSpec()

FreeForm = Annotated[dict[str, Any], WithJsonSchema({"type": "object", **kubernetes(preserve_unknown_fields=True)})]
"""An object whose fields belong to someone else (a pod spec, a connector's settings)."""

SecretKey = Annotated[str, Field(min_length=1, max_length=253)]
ModelPath = Annotated[str, Field(min_length=1, max_length=1024)]


class TemplateMetadata(Wire):
    """Labels and annotations added to a role's pods."""

    labels: Labels = Field(default_factory=dict, description="Labels to add; those under splitwatt.io/ are ours.")
    annotations: Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Annotations to add."
    )


class PodTemplate(Wire):
    """An overlay on the pods of a role."""

    metadata: TemplateMetadata | None = Field(default=None, description="Labels and annotations to add.")
    spec: FreeForm | None = Field(
        default=None, description="A partial pod spec, merged into the rendered one; containers merge by name."
    )


class TokenSecret(Wire):
    """One key of a Secret in the cluster's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: SecretKey = Field(default="token", description="Its key that holds the token.")


class Hub(Wire):
    """Weights are fetched from a hub, by the model's name."""

    token_secret: TokenSecret | None = Field(default=None, description="The token, for models that want one (HF_TOKEN).")
    cache_claim: ObjectName | None = Field(
        default=None,
        description="A PersistentVolumeClaim that keeps what was fetched, so that a new pod need not fetch it again. Every pod "
        "mounts it: ReadWriteMany where pods are on several nodes.",
    )


class WeightsClaim(Wire):
    """Weights lie in a PersistentVolumeClaim, which is mounted read-only."""

    name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    path: ModelPath | None = Field(default=None, description="Folder of the model in it; absent: its root.")


class WeightsImage(Wire):
    """Weights lie in an OCI image, which is mounted read-only (an image volume)."""

    reference: str = Field(min_length=1, max_length=1024, description="The image, for example registry.example.com/models/m:1.")
    path: ModelPath | None = Field(default=None, description="Folder of the model in it; absent: its root.")


class WeightsSource(Wire):
    """Where the weights come from; one of them. Emulated engines have none and look at none."""

    hub: Hub | None = Field(default=None, description="A hub, which is asked by the model's name. Also what absent means.")
    claim: WeightsClaim | None = Field(default=None, description="A PersistentVolumeClaim.")
    image: WeightsImage | None = Field(default=None, description="An OCI image.")
    path: ModelPath | None = Field(
        default=None, description="A folder that the engine's container has by itself, or by the pool's template."
    )


SOURCE_RULE: Final = CelRule(
    "[has(self.hub), has(self.claim), has(self.image), has(self.path)].filter(given, given).size() <= 1",
    "model.source is one of hub, claim, image and path: take the others out",
)


class Probes(Wire):
    """How patient Kubernetes is with an engine. One that a power brake starves answers late and works on."""

    startup_seconds: int = Field(
        default=_PROBES.startup_s, ge=10, le=MAX_WAIT_S, strict=True,
        description="How long a start may take, weights and compilation included, before it is begun anew.",
    )  # fmt: skip
    unready_seconds: int = Field(
        default=_PROBES.unready_s, ge=5, le=MAX_WAIT_S, strict=True,
        description="How long an engine may not answer before requests go to others.",
    )  # fmt: skip
    restart_seconds: int = Field(
        default=_PROBES.restart_s, ge=30, le=MAX_WAIT_S, strict=True,
        description="How long an engine may not answer before it is started anew, which costs its KV caches.",
    )  # fmt: skip


Quantity = Annotated[str | int, WithJsonSchema(kubernetes(int_or_string=True))]
"""As Kubernetes writes amounts: 500m, 2Gi, 1."""
Quantities = Annotated[dict[LabelKey, Quantity], Field(max_length=8)]


class Resources(Wire):
    """What a container asks of its node."""

    requests: Quantities = Field(default_factory=dict, description="What is kept for it, for example {cpu: 200m}.")
    limits: Quantities = Field(default_factory=dict, description="What it never exceeds, for example {memory: 2Gi}.")


class Router(Wire):
    """Who takes the clients' requests, has a prefill engine read the prompt, and a decode engine write the answer."""

    type: Annotated[RouterType, Field(json_schema_extra=one_of("router.type", ("VLLM", "SGLang", "LLMD", "None")))] = Field(
        default=RouterType.VLLM,
        description="VLLM: vllm-router. SGLang: sglang-router, for engine.type SGLang. LLMD: llm-d's router, where Kubernetes "
        "serves InferencePools. None: clients reach the decode pods, which then read the prompts themselves.",
    )
    image: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Container image; absent: the release's default."
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=MAX_ROUTER_REPLICAS,
        strict=True,
        description="How many routers share the requests.",
        json_schema_extra={"format": "int32"},
    )
    args: list[Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=list,
        max_length=MAX_ENGINE_ARGS,
        description="Arguments added after the rendered ones.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    resources: Resources | None = Field(
        default=None, description="What each router asks of its node; absent: the release's default. GPUs are refused."
    )
    metrics_port: Port = Field(default=DEFAULT_ROUTER_METRICS_PORT, description="Port of its /metrics.")
    template: PodTemplate | None = Field(
        default=None, description="An overlay on the router's pods: tolerations, affinity, environment. GPUs are refused."
    )
