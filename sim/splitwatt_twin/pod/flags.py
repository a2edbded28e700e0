"""vLLM's command line: the few flags that change the emulated engine, and all the others by name.

What vLLM would refuse is refused here too, so that a pod with a misspelt flag fails before it meets a real GPU. What vLLM
knows and emulation has no use for is accepted and named in the log. Sources: vLLM's own parsers, version 0.12 and later
(vllm/engine/arg_utils.py, vllm/entrypoints/openai/cli_args.py, vllm/utils/argparse_utils.py for `_` and dotted keys).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core import __version__
from splitwatt_core.gpus import hardware
from splitwatt_shell.address import MAX_PORT

_KV_LAYOUT: Final = ("dtype", "kv-cache-dtype", "block-size", "attention-backend")
KV_HASH_CHARS: Final = 8
KV_ROLES: Final = ("kv_producer", "kv_consumer", "kv_both")
DEFAULT_PORT: Final = 8000
MAX_GROUP: Final = 16
DEFAULT_MODEL_TOKENS: Final = 131_072
"""Context of Llama 3.1, whose timing the profiles hold; vLLM takes it from the model's own configuration."""

_SWITCHES: Final = """
    aggregate-engine-logging allow-credentials allow-deprecated-quantization async-scheduling calculate-kv-scales
    cudagraph-metrics data-parallel-external-lb data-parallel-hybrid-lb disable-cascade-attn disable-chunked-mm-input
    disable-custom-all-reduce disable-fastapi-docs disable-frontend-multiprocessing disable-hybrid-kv-cache-manager
    disable-log-requests disable-log-stats disable-nccl-for-dp-synchronization disable-sliding-window
    disable-uvicorn-access-log enable-auto-tool-choice enable-chunked-prefill enable-dbo enable-eplb
    enable-expert-parallel enable-force-include-usage enable-layerwise-nvtx-tracing enable-log-deltas enable-log-outputs
    enable-log-requests enable-logging-iteration-details enable-lora enable-mfu-metrics enable-mm-embeds
    enable-prefix-caching enable-prompt-embeds enable-prompt-tokens-details enable-request-id-headers
    enable-return-routed-experts enable-server-load-tracking enable-sleep-mode enable-ssl-refresh
    enable-tokenizer-info-endpoint enable-tower-connector-lora enforce-eager exclude-tools-when-tool-choice-none
    fully-sharded-loras headless interleave-mm-strings kv-cache-metrics kv-sharing-fast-prefill log-error-stack
    mm-encoder-only ray-workers-use-nsight return-tokens-as-token-ids skip-mm-profiling skip-tokenizer-init
    specialize-active-lora tokens-only trust-remote-code trust-request-chat-template use-tqdm-on-load
""".split()  # noqa: SIM905 - one word a flag
"""Flags without a value; each has a `--no-` form."""

_VALUED: Final = """
    additional-config all2all-backend allowed-headers allowed-local-media-path allowed-media-domains allowed-methods
    allowed-origins api-server-count attention-backend attention-config block-size chat-template
    chat-template-content-format code-revision collect-detailed-traces compilation-config config config-format convert
    cp-kv-cache-interleave-size cpu-offload-gb data-parallel-address data-parallel-backend data-parallel-rank
    data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank
    dbo-decode-token-threshold dbo-prefill-token-threshold dcp-kv-cache-interleave-size decode-context-parallel-size
    default-chat-template-kwargs default-mm-loras distributed-executor-backend download-dir dtype ec-transfer-config
    eplb-config expert-placement-strategy generation-config h11-max-header-count h11-max-incomplete-event-size
    hf-config-path hf-overrides hf-token io-processor-plugin kv-cache-dtype kv-cache-memory-bytes
    kv-cache-metrics-sample kv-events-config kv-offloading-backend kv-offloading-size limit-mm-per-prompt load-format
    log-config-file logits-processor-pattern logprobs-mode long-prefill-token-threshold lora-dtype mamba-block-size
    mamba-cache-dtype mamba-cache-mode mamba-ssm-cache-dtype master-addr master-port max-cpu-loras
    max-cudagraph-capture-size max-log-len max-logprobs max-long-partial-prefills max-lora-rank max-loras
    max-num-batched-tokens max-num-partial-prefills max-num-seqs max-parallel-loading-workers media-io-kwargs
    middleware mm-encoder-attn-backend mm-encoder-tp-mode mm-processor-cache-gb mm-processor-cache-type
    mm-processor-kwargs mm-shm-cache-max-object-size-mb model-impl model-loader-extra-config nnodes node-rank
    num-gpu-blocks-override optimization-level otlp-traces-endpoint override-attention-dtype
    override-generation-config pipeline-parallel-size pooler-config prefill-context-parallel-size
    prefix-caching-hash-algo profiler-config pt-load-map-location quantization reasoning-parser
    reasoning-parser-plugin response-role revision root-path runner safetensors-load-strategy scheduler-cls
    scheduling-policy seed show-hidden-metrics-for-version speculative-config ssl-ca-certs ssl-cert-reqs ssl-certfile
    ssl-ciphers ssl-keyfile stream-interval structured-outputs-config swap-space tokenizer tokenizer-mode
    tokenizer-revision tool-call-parser tool-parser-plugin tool-server ubatch-size uds uvicorn-log-level
    video-pruning-rate weight-transfer-config worker-cls worker-extension-cls
""".split()  # noqa: SIM905 - one word a flag
_LISTS: Final = "api-key cudagraph-capture-sizes ignore-patterns logits-processors lora-modules".split()  # noqa: SIM905
_SHORT: Final = {
    "tensor-parallel-size": "-tp", "pipeline-parallel-size": "-pp", "data-parallel-size": "-dp", "quantization": "-q",
    "enable-expert-parallel": "-ep", "compilation-config": "-cc",
}  # fmt: skip
_DOTTED: Final = re.compile(r"--([\w-]+)\.([\w.-]+)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`served_names`: what requests may call the model, the first one in answers. `kv_role` None: no KV transfer. `kv_hash`: two
    engines that differ in it do not understand each other's KV caches. `recompute`: such a prompt is read again, else it fails.
    `ignored`: flags that vLLM knows and emulation has no use for."""

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    gpus: int
    memory_share: float
    model_tokens: int
    kv_role: str | None
    kv_hash: str
    recompute: bool
    ignored: tuple[str, ...]


def parse(arguments: Sequence[str]) -> EngineSettings:
    """Ends the process with 2 and a sentence on a line that vLLM would not take, as vLLM does."""
    plain, dotted = _undotted(arguments)
    parser = _parser()
    args = parser.parse_args(plain)
    model = args.model or args.model_tag
    if model is None:
        parser.error("name the model: splitwatt_twin.pod MODEL [flags]")
    unknown = sorted(dotted.keys() - {*_VALUED, "kv-transfer-config"})
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(f'--{name}.…' for name in unknown)}")
    known = vars(args)
    transfer = _transfer(parser, args.kv_transfer_config, dotted.get("kv-transfer-config", {}))
    flags = (*_SWITCHES, *_VALUED, *_LISTS)
    ignored = [f for f in flags if known.get(f.replace("-", "_")) is not None] + [f for f in dotted if f in _VALUED]
    return EngineSettings(
        model=model,
        served_names=tuple(args.served_model_name or [model]),
        host=args.host,
        port=args.port,
        gpus=args.tensor_parallel_size,
        memory_share=args.gpu_memory_utilization,
        model_tokens=args.max_model_len,
        kv_role=None if transfer is None else transfer["kv_role"],
        kv_hash=_kv_hash(model, known),
        recompute=transfer is not None and transfer.get("kv_load_failure_policy") == "recompute",
        ignored=tuple(f"--{name}" for name in ignored),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splitwatt_twin.pod", description="One emulated engine with vLLM's command line.", allow_abbrev=False
    )
    parser.add_argument("model_tag", nargs="?", metavar="MODEL")
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=_whole(0, MAX_PORT), default=DEFAULT_PORT)
    parser.add_argument("--tensor-parallel-size", "-tp", type=_whole(1, MAX_GROUP), default=1)
    parser.add_argument("--gpu-memory-utilization", type=_share, default=hardware.builtin().memory_share)
    parser.add_argument("--max-model-len", type=_whole(1, 1 << 30), default=DEFAULT_MODEL_TOKENS)
    parser.add_argument("--kv-transfer-config")
    for name in _SWITCHES:
        parser.add_argument(*_spelt(name), action=argparse.BooleanOptionalAction)
    for name in _VALUED:
        parser.add_argument(*_spelt(name))
    for name in _LISTS:
        parser.add_argument(*_spelt(name), nargs="+")
    return parser


def _spelt(name: str) -> list[str]:
    return [f"--{name}", *([_SHORT[name]] if name in _SHORT else [])]


def _undotted(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Takes `--flag.key value` and `--flag.key=value` out of the line, and writes `_` in flags as `-`."""
    plain: list[str] = []
    dotted: dict[str, dict[str, str]] = {}
    rest = iter(arguments)
    for argument in rest:
        if (found := _DOTTED.fullmatch(argument)) is not None:
            value = found[3] if found[3] is not None else next(rest, "")
            dotted.setdefault(found[1].replace("_", "-"), {})[found[2]] = value
        elif argument.startswith("--"):
            flag, *value_of = argument.split("=", 1)
            plain.append("=".join([flag.replace("_", "-"), *value_of]))
        else:
            plain.append(argument)
    return plain, dotted


def _kv_hash(model: str, known: dict[str, Any]) -> str:
    """After vLLM's NIXL handshake, which compares a hash of version, model and how KV caches are laid out. Source: vLLM 0.32,
    compute_nixl_compatibility_hash."""
    said = [__version__, model, *(str(known.get(flag.replace("-", "_"))) for flag in _KV_LAYOUT)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:KV_HASH_CHARS]


def _transfer(parser: argparse.ArgumentParser, text: str | None, keys: dict[str, str]) -> dict[str, Any] | None:
    if text is None and not keys:
        return None
    try:
        config: Any = {} if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        parser.error(f"--kv-transfer-config is no JSON: {error}")
    if not isinstance(config, dict):
        parser.error('--kv-transfer-config must be a JSON object, as {"kv_connector": "NixlConnector", "kv_role": "kv_both"}')
    config |= keys
    if config.get("kv_role") not in KV_ROLES:
        parser.error(f"--kv-transfer-config: kv_role must be one of {', '.join(KV_ROLES)}, not {config.get('kv_role')!r}")
    return config


def _whole(least: int, most: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must lie between {least} and {most}, not {value}")
        return value

    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {value}")
    return value
