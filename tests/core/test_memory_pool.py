"""A decode pool's memoryExpansion: legal flags of the recorded vLLM, and the traps that it keeps off."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import (
    ClusterSpec,
    EngineSpec,
    EngineType,
    MemoryExpansionSpec,
    RoleSpec,
    RouterSpec,
    RouterType,
    SpecError,
)
from splitwatt_core.memory.expansion import MemoryWay
from splitwatt_core.memory.pool import choice_of
from splitwatt_core.rendering.render import RenderContext, render

GIB = 2**30
IMAGES = ("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai:v0.32.0")


def cluster(gpu: str, *args: str, image: str = IMAGES[0], **asked: Any) -> ClusterSpec:
    if gpu == "GH200":
        asked = {"gpu_bytes": 89 * GIB, **asked}
    memory = MemoryExpansionSpec(gpu=gpu, context_tokens=2048, **asked)
    return ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="meta-llama/Llama-3.1-8B-Instruct",
        engine=EngineSpec(EngineType.VLLM, image=image, args=args), prefill=RoleSpec(1, 1),
        decode=RoleSpec(1, 1, memory_expansion=memory),
    )  # fmt: skip


def args_of(spec: ClusterSpec, role: str) -> list[str]:
    found = {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext())}
    args: list[str] = found["Deployment", f"chat-{role}"]["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def transfer_of(spec: ClusterSpec, role: str) -> dict[str, Any]:
    args = args_of(spec, role)
    found: dict[str, Any] = json.loads(args[args.index("--kv-transfer-config") + 1])
    return found


def test_without_it_nothing_changes() -> None:
    spec = cluster("H100-SXM")
    assert spec.decode is not None
    plain = replace(spec, decode=replace(spec.decode, memory_expansion=None))
    assert choice_of(plain) is None and args_of(plain, "decode") == args_of(spec, "decode")


@pytest.mark.parametrize("image", IMAGES)
def test_a_smaller_kv_cache_needs_consent_and_is_one_type_for_both_pools(image: str) -> None:
    refused, allowed = (choice_of(cluster("H100-SXM", lossy_kv=consent)) for consent in (False, True))
    assert refused is not None and refused.way is MemoryWay.NONE and "its owner must consent" in refused.message
    assert allowed is not None and allowed.way is MemoryWay.FP8_KV and "446 requests" in allowed.message
    for role in ("prefill", "decode"):
        args = args_of(cluster("H100-SXM", image=image, lossy_kv=True), role)
        assert args[args.index("--kv-cache-dtype") + 1] == "fp8"


@pytest.mark.parametrize("image", IMAGES)
def test_weights_are_fetched_ahead_where_the_link_is_fast_enough(image: str) -> None:
    spec = cluster("GH200", image=image, host_weights_bytes=64 * GIB)
    choice = choice_of(spec)
    assert choice is not None and choice.way is MemoryWay.PREFETCH
    assert "--offload-backend" in args_of(spec, "decode") and "--offload-backend" not in args_of(spec, "prefill")
    args = args_of(spec, "decode")
    group = int(args[args.index("--offload-group-size") + 1])
    assert 7e9 <= 16.06e9 / 32 * (32 // group) <= 10.5e9
    assert args[args.index("--offload-num-in-group") + 1] == args[args.index("--offload-prefetch-step") + 1] == "1"
    slow = choice_of(cluster("H100-SXM", host_weights_bytes=64 * GIB))
    assert slow is not None and slow.way is MemoryWay.NONE and "wins less than 5%" in slow.message
    none = choice_of(cluster("GH200"))
    assert none is not None and none.decode == () and "hostWeightsGibibytes is 0" in none.message


def test_a_kv_tier_stands_beside_the_transfer_and_a_small_one_is_warned_of() -> None:
    plain = transfer_of(cluster("H100-SXM"), "decode")
    multi = transfer_of(cluster("H100-SXM", kv_tier_bytes=100 * GIB), "decode")
    assert multi["kv_connector"] == "MultiConnector" and multi["kv_load_failure_policy"] == "recompute"
    tier, nixl = multi["kv_connector_extra_config"]["connectors"]
    assert nixl == plain and tier["kv_connector_extra_config"] == {"cpu_bytes_to_use": 100 * GIB}
    assert transfer_of(cluster("H100-SXM", kv_tier_bytes=100 * GIB), "prefill") == transfer_of(cluster("H100-SXM"), "prefill")
    small, large = (choice_of(cluster("H100-SXM", kv_tier_bytes=size * GIB)) for size in (10, 100))
    assert small is not None and "Warning: the KV tier of 10 GiB is smaller than the GPUs' own 56 GiB" in small.message
    assert large is not None and "Warning" not in large.message


@pytest.mark.parametrize(("args", "said"), [
    (("--cpu-offload-gb", "8"), r"WeightsFit.*\d+ to \d+ times as long: leave it out"),
    (("--cpu_offload_gb=8",), r"WeightsFit"),
    (("--kv-cache-dtype=fp8",), r"must not set --kv-cache-dtype beside spec.decode.memoryExpansion"),
    (("--offload-backend", "uva"), r"must not set --offload-backend"),
    (("--kv-offloading-size", "20"), r"drops the connector .*kvTierGibibytes, which keeps both"),
])  # fmt: skip
def test_arguments_that_would_do_harm_are_refused(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        args_of(cluster("H100-SXM", *args), "decode")


def test_the_connector_is_guarded_without_memory_expansion_too() -> None:
    spec = cluster("H100-SXM", "--kv-offloading-size=20")
    with pytest.raises(SpecError, match="drops the connector"):
        args_of(replace(spec, decode=RoleSpec(1, 1)), "decode")
    unsplit = replace(spec, prefill=None, decode=None, mixed=RoleSpec(1, 1), router=RouterSpec(RouterType.NONE))
    assert "--kv-offloading-size=20" in args_of(unsplit, "mixed")


@pytest.mark.parametrize(("changes", "said"), [
    ({"model": "own/model"}, "the shape of own/model is not known"),
    ({"engine": EngineSpec(EngineType.EMULATED)}, "engine.type VLLM alone"),
])  # fmt: skip
def test_what_cannot_be_reckoned_says_so(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        choice_of(replace(cluster("H100-SXM"), **changes))
    with pytest.raises(SpecError, match="gpu H9000 is not known: name one of"):
        choice_of(cluster("H9000"))
    with pytest.raises(SpecError, match="GH200 comes with memories of several sizes: set gpuMemoryGibibytes"):
        choice_of(cluster("GH200", gpu_bytes=None))
    with pytest.raises(SpecError, match="not one request"):
        choice_of(replace(cluster("H100-SXM"), model="meta-llama/Llama-3.1-70B-Instruct"))


def test_a_cap_below_the_cliff_is_reckoned_with() -> None:
    spec = cluster("H100-SXM")
    assert spec.decode is not None
    low = choice_of(replace(spec, decode=replace(spec.decode, power_ceiling_w=200)))
    high = choice_of(spec)
    assert low is not None and high is not None and low.message != high.message
