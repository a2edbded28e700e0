"""What a decode pool's `memoryExpansion` becomes: arguments of its engines, and a sentence that says why.

A rule of the cluster alone, so that the same spec gives the same pods. Traps of vLLM 0.33 that it keeps off:

- `--kv-offloading-size` overwrites the KV connector, so a split pool's KV transfer would be gone: the tier becomes a child of
  MultiConnector, and the flag is refused;
- `--cpu-offload-gb` reads weights in place at each step: refused where they fit;
- engines that hand KV caches to each other must keep them in one type, so a smaller type is rendered for every pool;
- a host tier smaller than the GPUs' own pool adds no hit: it is rendered, and said.

Sources: vLLM 0.33, config/vllm.py (`_post_init_kv_transfer_config`), config/offload.py, docs of KV offloading; the keys of
OffloadingConnector's extra config are unconfirmed against an engine on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, EngineType, MemoryExpansionSpec, Role, SpecError
from splitwatt_core.gpus import hardware, profiles
from splitwatt_core.gpus.phase_model import latency_factor
from splitwatt_core.memory.decode import MEMORY_SHARE, DecodeLoad, MemoryPlanError, Rank, requests_that_fit
from splitwatt_core.memory.expansion import (
    MemoryOption,
    MemoryWay,
    Terms,
    Verdict,
    cpu_offload_refusal,
    layers_to_offload,
    options,
    recommended,
)
from splitwatt_core.memory.ranks import load_of, rank_of
from splitwatt_core.protocol.contract import Phase

WHERE: Final = "spec.decode.memoryExpansion"
KV_TYPE: Final = "--kv-cache-dtype"
KV_TIER: Final = "--kv-offloading-size"
CPU_OFFLOAD: Final = "--cpu-offload-gb"
OURS: Final = (
    KV_TYPE, KV_TIER, "--kv-offloading-backend", "--offload-backend", "--offload-group-size", "--offload-num-in-group",
    "--offload-prefetch-step", "--offload-params",
)  # fmt: skip
"""What memoryExpansion decides, and engine.args must leave to it."""
LINK_SPREAD: Final = 63 / 55
"""A link's nominal speed over what programs reach, of PCIe 5.0 (`ranks`): the refusal's two bounds."""


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """`everywhere`: arguments of every pool's engines; `decode`: of decode's alone. `kv_tier_bytes`: of each replica, on the
    host. `message`: why, as the condition MemoryExpanded says it. `gives_watts`: the pool waits for its link."""

    everywhere: tuple[str, ...]
    decode: tuple[str, ...]
    kv_tier_bytes: int
    way: MemoryWay
    message: str
    gives_watts: bool

    def args(self, role: Role) -> tuple[str, ...]:
        return (*self.everywhere, *(self.decode if role is Role.DECODE else ()))


def choice_of(cluster: ClusterSpec) -> MemoryChoice | None:
    """None: the cluster asks for none. Raises SpecError for what cannot be reckoned, and for arguments that would do harm."""
    asked = None if cluster.decode is None else cluster.decode.memory_expansion
    if asked is None:
        return None
    if cluster.engine.type is not EngineType.VLLM:
        raise SpecError(f"{WHERE} is rendered for engine.type VLLM alone: leave it out")
    for arg in cluster.engine.args:
        if (flag := _flag(arg)) in OURS:
            raise SpecError(f"spec.engine.args must not set {flag} beside {WHERE}, which decides it: leave out one of them")
    rank, load, terms = _reckoned(cluster, asked)
    try:
        refusal = cpu_offload_refusal(
            rank,
            load,
            _cpu_offload_bytes(cluster.engine.args),
            links=(rank.link_bytes_per_s, LINK_SPREAD * rank.link_bytes_per_s),
        )
        found = options(rank, load, terms)
    except MemoryPlanError as error:
        raise SpecError(f"{WHERE}: {error}") from error
    if refusal is not None:
        raise SpecError(f"spec.engine.args ({refusal.reason}): {refusal.message}")
    best = recommended(found)
    ahead = _fetched_ahead(load, best)
    if best.way is MemoryWay.PREFETCH and not ahead:
        best = found[0]
    words = [_sentence(found, best, asked)]
    if asked.kv_tier_bytes and (short := _tier_warning(rank, load, cluster.role(Role.DECODE).gpus, asked)):
        words.append(short)
    return MemoryChoice(
        everywhere=(KV_TYPE, "fp8") if best.way is MemoryWay.FP8_KV else (),
        decode=ahead if best.way is MemoryWay.PREFETCH else (),
        kv_tier_bytes=asked.kv_tier_bytes,
        way=best.way,
        message=" ".join(words),
        gives_watts=best.gives_watts,
    )


def with_tier(transfer: dict[str, Any], choice: MemoryChoice | None, role: Role) -> dict[str, Any]:
    """A pool's KV transfer config, with the host tier as MultiConnector's first child where decode asks for one."""
    if choice is None or not choice.kv_tier_bytes or role is not Role.DECODE:
        return transfer
    tier = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": choice.kv_tier_bytes},
    }
    policy = {key: transfer[key] for key in ("kv_load_failure_policy",) if key in transfer}
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        **policy,
        "kv_connector_extra_config": {"connectors": [tier, transfer]},
    }


def refuse_tier_flag(cluster: ClusterSpec) -> None:
    """Raises SpecError where the user's own flag would replace the connector of a split cluster."""
    if cluster.split and any(_flag(arg) == KV_TIER for arg in cluster.engine.args):
        raise SpecError(
            f"spec.engine.args must not set {KV_TIER}: vLLM then drops the connector between prefill and decode; "
            f"set {WHERE}.kvTierGibibytes, which keeps both"
        )


def _flag(arg: str) -> str:
    return arg.split("=", 1)[0].replace("_", "-")


def _reckoned(cluster: ClusterSpec, asked: MemoryExpansionSpec) -> tuple[Rank, DecodeLoad, Terms]:
    pool, facts = cluster.role(Role.DECODE), hardware.builtin()
    product, shape = facts.product(asked.gpu), facts.model(cluster.model)
    if product is not None and asked.gpu_bytes is not None:
        product = replace(product, memory_mib=asked.gpu_bytes >> 20)
    if product is None:
        raise SpecError(f"{WHERE}.gpu {asked.gpu} is not known: name one of {', '.join(p.name for p in facts.products)}")
    if product.memory_bytes is None:
        raise SpecError(f"{WHERE}: {product.name} comes with memories of several sizes: set gpuMemoryGibibytes")
    if shape is None:
        raise SpecError(f"{WHERE}: the shape of {cluster.model} is not known, only of {', '.join(facts.models)}: leave it out")
    limit_ms = cluster.slo.tbt_p99_ms
    try:
        rank = rank_of(product)
        load = load_of(
            shape, ranks=pool.gpus, context_tokens=asked.context_tokens, step_limit_s=None if limit_ms is None else limit_ms / 1e3
        )
        cap_w = min(pool.power_ceiling_w or product.default_cap_w, product.default_cap_w)
        found = profiles.find(profiles.builtin(), product.name)
        decode = None if found is None else found.phase(Phase.DECODE)
        terms = Terms(
            cap_w=cap_w, slower=1.0 if decode is None else latency_factor(decode, cap_w),
            draw_w=None if decode is None else decode.natural_w, lossy_kv=asked.lossy_kv, host_bytes=asked.host_weights_bytes,
        )  # fmt: skip
    except MemoryPlanError as error:
        raise SpecError(f"{WHERE}: {error}") from error
    return rank, load, terms


def _fetched_ahead(load: DecodeLoad, option: MemoryOption) -> tuple[str, ...]:
    """Flags of vLLM's prefetch backend: one layer of each group on the host. Empty: not one layer is worth it."""
    group, layers = layers_to_offload(load.layers, load.weights_bytes / load.layers, option.offloaded_bytes)
    if not layers:
        return ()
    return (
        "--offload-backend", "prefetch", "--offload-group-size", str(group), "--offload-num-in-group", "1",
        "--offload-prefetch-step", "1",
    )  # fmt: skip


def _cpu_offload_bytes(args: Sequence[str]) -> float:
    """What --cpu-offload-gb says, of each GPU; 0 where it says nothing, or no number, which vLLM itself refuses."""
    for at, arg in enumerate(args):
        if _flag(arg) == CPU_OFFLOAD:
            text = arg.partition("=")[2] or next(iter(args[at + 1 :]), "")
            try:
                return max(0.0, float(text)) * 2**30
            except ValueError:
                return 0.0
    return 0.0


def _sentence(found: Sequence[MemoryOption], best: MemoryOption, asked: MemoryExpansionSpec) -> str:
    """Every way with its numbers at best and at worst, the chosen one first."""
    base = found[0].best
    head = (
        f"Taken: {best.way} ({best.best.requests} requests and {best.best.tokens_per_s:.0f} tokens/s per GPU)."
        if best.way is not MemoryWay.NONE
        else f"Nothing is taken: no allowed way wins enough over {base.requests} requests and {base.tokens_per_s:.0f} tokens/s."
    )
    if best.gives_watts:
        head += " The pool waits for its link and can give watts."
    others = [_other(one, asked) for one in found[1:] if one.way is not best.way and one.verdict is not Verdict.REUSE_ONLY]
    return f"{head} Not taken: {'; '.join(others)}. Arithmetic, not measured."


def _other(one: MemoryOption, asked: MemoryExpansionSpec) -> str:
    if one.way is MemoryWay.PREFETCH and not asked.host_weights_bytes:
        return f"{one.way}: hostWeightsGibibytes is 0"
    low, high = sorted((one.worst.tokens_per_s, one.best.tokens_per_s))
    return (
        f"{one.way}: {one.reason}, {low:.0f} to {high:.0f} tokens/s" if round(low) != round(high) else f"{one.way}: {one.reason}"
    )


def _tier_warning(rank: Rank, load: DecodeLoad, gpus: int, asked: MemoryExpansionSpec) -> str:
    pool = gpus * requests_that_fit(rank, load) * load.context_tokens * load.kv_bytes_per_token
    if asked.kv_tier_bytes >= pool:
        return ""
    return (
        f"Warning: the KV tier of {asked.kv_tier_bytes / 2**30:.0f} GiB is smaller than the GPUs' own {pool / 2**30:.0f} GiB "
        f"({MEMORY_SHARE:.0%} of their memory, less weights), so it adds hardly a hit: make it larger or leave it out."
    )
