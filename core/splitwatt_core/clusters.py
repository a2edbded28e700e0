"""The core's view of an `InferenceCluster`: what rendering and power admission need to know, as frozen data.

Built from the API models in one place (`splitwatt_api.convert`), with every default already filled in. Invariant: a
`ClusterSpec` is complete, so rendering needs no look at anything else; what it cannot render raises `SpecError`.

A cluster is known by its `ClusterName`. Labels hold 63 characters where names may have 253, so what its pods and metrics
carry is `cluster_label`, and the one way back is `LabelOwners`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, Phase

PRIORITY_HIGH: Final = 100
"""`priority: High`; integers between and beyond are classes of the user's own. Higher is served first."""
PRIORITY_LOW: Final = 0

DEFAULT_ENGINE_PORT: Final = 8000
"""vLLM's own default port for its OpenAI-compatible API, /health and /metrics."""
DEFAULT_SIDE_CHANNEL_PORT: Final = 5600
"""vLLM's default VLLM_NIXL_SIDE_CHANNEL_PORT: where decode asks prefill for the KV cache's addresses."""
DEFAULT_CONNECTOR: Final = "NixlConnector"
DEFAULT_ROUTER_METRICS_PORT: Final = 29000
"""vllm-router's own default."""

MAX_REPLICAS: Final = 1000
MAX_NODES_PER_REPLICA: Final = 16
MAX_ROUTER_REPLICAS: Final = 16
MAX_ENGINE_ARGS: Final = 64

MAX_LABEL_CHARS: Final = 63
"""Of a label value, and of a DNS label such as a Service's name."""
NAME_HASH_CHARS: Final = 8


class SpecError(ValueError):
    """A cluster that cannot be rendered; the message is one sentence that says what to change."""


class ClusterName(NamedTuple):
    """Which InferenceCluster: the object's own namespace and name, never a label value."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def cluster_label(name: str) -> str:
    """The value of the label splitwatt.io/cluster, and of the metric label: the name itself wherever it fits, else its
    beginning and a hash of the whole. Deployments hold it as their selector, which can never change: nor may this."""
    if len(name) <= MAX_LABEL_CHARS:
        return name
    room = MAX_LABEL_CHARS - NAME_HASH_CHARS - 1
    digest = hashlib.sha256(f'"{name}"'.encode()).hexdigest()
    return f"{name[:room].rstrip('-.')}-{digest[:NAME_HASH_CHARS]}"


class LabelOwners:
    """From a label value back to the one cluster that it means. Two names can give one value, by a chance of one in 2^32 or
    because somebody chose a name like another's hash: then it is the older cluster's, and the other gets a sentence."""

    def __init__(self, created_s: Mapping[ClusterName, float]) -> None:
        """`created_s`: every InferenceCluster there is, readable or not, and when it was created."""
        self._owner: dict[tuple[str, str], ClusterName] = {}
        self._refused: dict[ClusterName, ClusterName] = {}
        for name in sorted(created_s, key=lambda name: (created_s[name], name)):
            owner = self._owner.setdefault((name.namespace, cluster_label(name.name)), name)
            if owner != name:
                self._refused[name] = owner

    def of(self, namespace: str, label: str) -> ClusterName | None:
        """None: no cluster there has this label value."""
        return self._owner.get((namespace, label))

    def refusal(self, name: ClusterName) -> str | None:
        """Why a cluster cannot be served under its name; None when it can."""
        owner = self._refused.get(name)
        if owner is None:
            return None
        return (
            f"metadata.name gives the label value {cluster_label(name.name)}, by which the pods of the older "
            f"InferenceCluster {owner.name} are known: create it anew under another name"
        )


class EngineType(StrEnum):
    VLLM = "VLLM"
    SGLANG = "SGLang"
    EMULATED = "Emulated"


class Role(StrEnum):
    """Values of the label splitwatt.io/role."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    """It reads prompts and writes tokens by itself: every replica of an unsplit cluster, or what the two others overflow into."""

    @property
    def phase(self) -> Phase:
        """Mixed work reads prompts among other things, so it is protected as prefill is (`budget.demand`)."""
        return Phase.DECODE if self is Role.DECODE else Phase.PREFILL

    @property
    def llmd(self) -> str:
        """The value of the label llm-d.ai/role, by which llm-d's scheduler takes a pod for both of its lists, or for one."""
        return "prefill-decode" if self is Role.MIXED else self.value


PAIR: Final = (Role.PREFILL, Role.DECODE)
"""Neither serves without the other; a mixed replica needs neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryExpansionSpec:
    """`gpu`: a product's name, `gpu_bytes`: its memory where it comes with several sizes. `lossy_kv`: the owner's
    consent. `host_weights_bytes`: of a GPU, `kv_tier_bytes`: of a replica."""

    gpu: str
    context_tokens: int
    gpu_bytes: int | None = None
    lossy_kv: bool = False
    host_weights_bytes: int = 0
    kv_tier_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One pool. `template` is the user's pod template overlay ({"metadata": ..., "spec": ...}), see `rendering.overlay`.

    `power_ceiling_w`: the most watts one GPU of this role may ever be granted; None leaves it to the policy. `drain_s`: the most
    that a pod which is told to go waits for its requests to end; None: the release's. `nodes_per_replica`: a replica has a pod on
    each, with `gpus_per_replica` GPUs. `memory_expansion`: of decode alone.
    """

    replicas: int
    gpus_per_replica: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    power_ceiling_w: int | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    drain_s: int | None = None
    nodes_per_replica: int = 1
    memory_expansion: MemoryExpansionSpec | None = None

    @property
    def gpus(self) -> int:
        """Of one replica, on all its nodes."""
        return self.gpus_per_replica * self.nodes_per_replica

    def __post_init__(self) -> None:
        if not 1 <= self.nodes_per_replica <= MAX_NODES_PER_REPLICA:
            raise SpecError(f"nodesPerReplica must be between 1 and {MAX_NODES_PER_REPLICA}, not {self.nodes_per_replica}")
        if not 0 <= self.replicas <= MAX_REPLICAS:
            raise SpecError(f"replicas must be between 0 and {MAX_REPLICAS}, not {self.replicas}")
        if not 1 <= self.gpus_per_replica <= MAX_GPUS_PER_NODE:
            raise SpecError(f"gpusPerReplica must be between 1 and {MAX_GPUS_PER_NODE}, not {self.gpus_per_replica}")


NO_POOL: Final = RoleSpec(replicas=0, gpus_per_replica=1)
"""Of a role that a cluster does not have."""


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How long an engine may take to start, may not answer before no request is sent to it, and before it is started anew. An
    engine that a brake starves of power answers late and works on: whoever kills it for that loses its KV cache and an hour."""

    startup_s: int = 3600
    unready_s: int = 30
    restart_s: int = 600


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the weights are, at most one of: a hub (`token_secret`: name and key; `cache_claim`: a claim that keeps what was
    fetched), a claim, an OCI image, or a path that the engine's own container has. `path` is below the claim or the image."""

    token_secret: tuple[str, str] | None = None
    cache_claim: str | None = None
    claim: str | None = None
    image: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """`image` None: the release's default for this engine type. `args` are appended to the rendered ones."""

    type: EngineType
    image: str | None = None
    port: int = DEFAULT_ENGINE_PORT
    args: tuple[str, ...] = ()
    probes: ProbeSpec = field(default_factory=ProbeSpec)

    def __post_init__(self) -> None:
        if len(self.args) > MAX_ENGINE_ARGS:
            raise SpecError(f"engine.args has {len(self.args)} entries; at most {MAX_ENGINE_ARGS} are taken")


@dataclass(frozen=True, slots=True)
class KvTransferSpec:
    """`extra_config` becomes kv_connector_extra_config as it is. `recompute`: a prompt whose KV cache does not come is read again
    by decode, which is seen (`serving.kv_proof`); otherwise its request fails."""

    connector: str = DEFAULT_CONNECTOR
    side_channel_port: int = DEFAULT_SIDE_CHANNEL_PORT
    extra_config: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = True


class RouterType(StrEnum):
    """Who stands before the pools. Without one there is no split: a decode engine computes the prompts that it is sent."""

    VLLM = "VLLM"
    SGLANG = "SGLang"
    LLMD = "LLMD"
    NONE = "None"


LABEL_ROUTERS: Final = (RouterType.VLLM, RouterType.SGLANG)
"""They find engines by labels, so each revision has its own; and take a pod for one of prefill and decode, or know one kind of
pods alone (src/service_discovery.rs of either)."""
OVERFLOW_SENTENCE: Final = (
    "router.type VLLM, SGLang or LLMD asks prefill and decode, or mixed alone: take mixed out, or prefill and decode, or set "
    "router.type None and bring a router that sends to all three"
)
"""llm-d's picker has a mixed pod in both of its lists, and would have prompts read by one for another, or by a pod for itself."""


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """`image` None: the release's default. `args` are appended to the rendered ones. `resources` as in a container, empty: the
    release's. `template`: an overlay as a role's."""

    type: RouterType = RouterType.VLLM
    image: str | None = None
    replicas: int = 1
    args: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    metrics_port: int = DEFAULT_ROUTER_METRICS_PORT
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MAX_ROUTER_REPLICAS:
            raise SpecError(f"router.replicas must be between 1 and {MAX_ROUTER_REPLICAS}, not {self.replicas}")
        if len(self.args) > MAX_ENGINE_ARGS:
            raise SpecError(f"router.args has {len(self.args)} entries; at most {MAX_ENGINE_ARGS} are taken")


@dataclass(frozen=True, slots=True)
class SloSpec:
    """None: not asked for."""

    ttft_p99_ms: int | None = None
    tbt_p99_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """One InferenceCluster. `uid` and `generation` come from its metadata. `prefill` and `decode`: both, or neither and `mixed`.
    `mixed` beside them takes what they have no room for, where a router knows how to send it there."""

    namespace: str
    name: str
    uid: str
    generation: int
    model: str
    engine: EngineSpec
    prefill: RoleSpec | None = None
    decode: RoleSpec | None = None
    mixed: RoleSpec | None = None
    priority: int = PRIORITY_HIGH
    slo: SloSpec = field(default_factory=SloSpec)
    kv_transfer: KvTransferSpec = field(default_factory=KvTransferSpec)
    router: RouterSpec = field(default_factory=RouterSpec)
    source: ModelSource = field(default_factory=ModelSource)
    priority_class: str | None = None
    image_pull_secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.prefill is None) != (self.decode is None):
            raise SpecError("prefill and decode are two halves: give both, or neither of them and mixed")
        if self.prefill is None and self.mixed is None:
            raise SpecError("a cluster has prefill and decode, or mixed: give its replicas")
        if self.prefill is not None and self.mixed is not None and self.router.type is not RouterType.NONE:
            raise SpecError(OVERFLOW_SENTENCE)

    @property
    def id(self) -> ClusterName:
        return ClusterName(self.namespace, self.name)

    @property
    def served_name(self) -> str:
        """What requests call the model: vLLM's --served-model-name, the first one where there are several."""
        for at, arg in enumerate(self.engine.args):
            flag, given, value = arg.partition("=")
            if flag.replace("_", "-") == "--served-model-name":
                return value if given else next(iter(self.engine.args[at + 1 :]), self.model)
        return self.model

    @property
    def roles(self) -> tuple[Role, ...]:
        """Those that it has, whatever their replicas."""
        return tuple(role for role in Role if self._pool(role) is not None)

    @property
    def split(self) -> bool:
        """Whether prompts are read by one replica and answers written by another."""
        return self.decode is not None

    def role(self, role: Role) -> RoleSpec:
        """NO_POOL for one that it has not."""
        return self._pool(role) or NO_POOL

    def _pool(self, role: Role) -> RoleSpec | None:
        return {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.MIXED: self.mixed}[role]
