"""SGLang in the place of vLLM: its engines' command line, and that of the router that it needs.

SGLang splits otherwise. Its router sends a request to a prefill and a decode engine at once, with a number that it drew and the
address of the prefill engine's bootstrap server, where decode asks for the KV cache. So its engines stand behind its own router,
which reads that port from an annotation on the prefill pods, and never behind vllm-router.

Rendered from its source, and held to its parser's list of flags; no SGLang engine was ever started here. The router was.

Source: SGLang 0.5.23, srt/server_args.py, arg_groups/fields/disagg.py, entrypoints/http_server.py and
observability/metrics_collector.py; sglang-router 0.3.2, its command line and src/service_discovery.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, Role, SpecError
from splitwatt_core.rendering.command_line import FlagError, KnownFlags, published_version

ENGINE: Final = "sglang"
DEFAULT_IMAGE: Final = "lmsysorg/sglang:v0.5.23"
DEFAULT_ROUTER_IMAGE: Final = "lmsysorg/sgl-model-gateway:v0.3.2"
COMMAND: Final = ["python3", "-m", "sglang.launch_server"]
ROUTER_COMMAND: Final = ["python3", "-m", "sglang_router.launch_router"]
ROUTER_OWN_FLAGS: Final = ("--pd-disaggregation", "--mini-lb", "--enable-igw", "--backend")
BOOTSTRAP_ANNOTATION: Final = "sglang.ai/bootstrap-port"
"""On prefill pods: where its router finds their bootstrap server's port."""

BACKENDS: Final = {"NixlConnector": "nixl", "MooncakeConnector": "mooncake"}
"""vLLM's connectors to SGLang's words for the same libraries."""
BUSY_METRICS: Final = (
    "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_prefill_inflight_queue_reqs", "sglang:num_decode_prealloc_queue_reqs", "sglang:num_decode_transfer_queue_reqs",
)  # fmt: skip
"""An engine that shows a number above zero in one of them has requests, or KV caches on their way."""
ENV: Final = [{"name": "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "value": "false"}]
"""Else each look at /health is a request for one token, which an engine that a brake starves of power fails."""

_RENDERED: Final = "it follows from model, gpusPerReplica, port and kvTransfer"
_OWN_FLAGS: Final = (
    "--model-path", "--model", "--host", "--port", "--tp-size", "--tensor-parallel-size", "--tp", "--enable-metrics",
    "--disaggregation-mode", "--disaggregation-transfer-backend", "--disaggregation-bootstrap-port",
)  # fmt: skip
_OWN: Final = dict.fromkeys(_OWN_FLAGS, _RENDERED) | dict.fromkeys(("--help", "-h"), "SGLang then serves nothing")
"""The cluster's own flags, and why."""
_GROUPS: Final = ("--pp-size", "--pipeline-parallel-size", "--nnodes")
"""Each multiplies the GPUs that tensor parallelism takes; data parallelism of attention shares them."""
_TP: Final = "--tp-size"


def version_of(image: str) -> str | None:
    """Of SGLang; None where the image's name does not say it."""
    return published_version("lmsysorg/sglang", image)


def engine_args(cluster: ClusterSpec, role: Role, model: str) -> list[str]:
    """`model`: what the engine is told to load. Raises SpecError for what SGLang has no word for."""
    kv = cluster.kv_transfer
    if kv.connector not in BACKENDS:
        raise SpecError(f"spec.kvTransfer.connector must be {' or '.join(BACKENDS)} with engine.type SGLang, not {kv.connector}")
    if kv.extra_config:
        raise SpecError("spec.kvTransfer.extraConfig is vLLM's: with engine.type SGLang write its flags into spec.engine.args")
    for arg in cluster.engine.args:
        if (name := arg.split("=", 1)[0]) in _OWN:
            raise SpecError(f"spec.engine.args must not set {name}; {_OWN[name]}")
    named = any(arg.split("=", 1)[0] == "--served-model-name" for arg in cluster.engine.args)
    return [
        *("--model-path", model),
        *(() if named or model == cluster.model else ("--served-model-name", cluster.model)),
        *("--host", "0.0.0.0"),
        *("--port", str(cluster.engine.port)),
        *(_TP, str(cluster.role(role).gpus_per_replica)),
        *(() if role is Role.MIXED else _splits(cluster, role)),
        "--enable-metrics",
        *cluster.engine.args,
    ]


def _splits(cluster: ClusterSpec, role: Role) -> tuple[str, ...]:
    """A mixed engine, which reads its prompts itself, has none of these: the mode is one or the other."""
    kv = cluster.kv_transfer
    return (
        *("--disaggregation-mode", role.value),
        *("--disaggregation-transfer-backend", BACKENDS[kv.connector]),
        *("--disaggregation-bootstrap-port", str(kv.side_channel_port)),
    )


def pod_annotations(cluster: ClusterSpec, role: Role) -> dict[str, str]:
    """Of the role's pods."""
    return {BOOTSTRAP_ANNOTATION: str(cluster.kv_transfer.side_channel_port)} if role is Role.PREFILL else {}


def refuse(flags: KnownFlags, args: Sequence[str], users: Sequence[str], *, gpus: int, where: str) -> None:
    """As `vllm_flags.refuse`: `args` behind the command; `users`: those of them that are the user's."""
    try:
        given: dict[str, Any] = dict(flags.given(args))
        mine = flags.given(users)
    except FlagError as error:
        raise SpecError(f"{where}: {error}") from error
    for name in mine:
        if name in _OWN:
            raise SpecError(f"{where} must not set {name}; {_OWN[name]}")
    several = {name: int(given[name]) for name in _GROUPS if int(given.get(name, 1)) != 1}
    if several:
        words = " and ".join(f"{name} {count}" for name, count in several.items())
        raise SpecError(f"{where}: {words} take more GPUs than gpusPerReplica {gpus}: all GPUs of a replica are its tensor group")
