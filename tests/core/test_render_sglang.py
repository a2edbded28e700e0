"""SGLang's engines and its router as they are rendered, read back by their own parsers where these can be had."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core.clusters import (
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    ModelSource,
    Role,
    RoleSpec,
    RouterSpec,
    RouterType,
    SpecError,
)
from splitwatt_core.rendering.command_line import FlagError, KnownFlags, known
from splitwatt_core.rendering.engine import engine_args
from splitwatt_core.rendering.render import RenderContext, render, unjudged
from splitwatt_core.rendering.sglang import version_of
from splitwatt_core.serving.provable import why_not
from support.some import some

VERSION = "0.5.23"
VERDICTS = Path(__file__).with_name("recorded") / f"sglang-{VERSION}-verdicts.json"
CONTEXT = RenderContext()
TAKEN_HERE_ALONE = 0.02
"""Share of command lines whose values SGLang alone can judge."""


def cluster(*args: str, **changes: Any) -> ClusterSpec:
    spec = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="org/model",
        engine=EngineSpec(EngineType.SGLANG, port=9000, args=args), prefill=RoleSpec(1, 4), decode=RoleSpec(1, 8),
        router=RouterSpec(RouterType.SGLANG),
    )  # fmt: skip
    return replace(spec, **changes)


def part(spec: ClusterSpec, name: str) -> dict[str, Any]:
    found = {(m["kind"], m["metadata"]["name"]): m for m in render(spec, CONTEXT)}
    template: dict[str, Any] = found["Deployment", f"chat-{name}"]["spec"]["template"]
    return template


def flags() -> KnownFlags:
    found = known("sglang", VERSION)
    assert found is not None
    return found


def refusal(spec: ClusterSpec) -> str:
    with pytest.raises(SpecError) as caught:
        render(spec, CONTEXT)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize(("role", "gpus"), [(Role.PREFILL, "4"), (Role.DECODE, "8")])
def test_each_role_is_told_its_half(role: Role, gpus: str) -> None:
    spec = cluster("--mem-fraction-static=0.8", source=ModelSource(claim="weights", path="llama"))
    [container] = part(spec, role.value)["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "sglang.launch_server"]
    given = flags().given(container["args"])
    assert given == {
        "--model-path": "/models/served/llama", "--served-model-name": "org/model", "--host": "0.0.0.0", "--port": "9000",
        "--tp-size": gpus, "--disaggregation-mode": role.value, "--disaggregation-transfer-backend": "nixl",
        "--disaggregation-bootstrap-port": "5600", "--enable-metrics": True, "--mem-fraction-static": "0.8",
    }  # fmt: skip
    assert version_of(container["image"]) == VERSION
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert [each["name"] for each in container["env"]] == ["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": gpus}
    assert part(spec, role.value)["spec"]["schedulingGates"]


def test_the_router_finds_the_bootstrap_port_on_prefill_pods() -> None:
    spec = cluster(kv_transfer=KvTransferSpec(side_channel_port=8998))
    assert part(spec, "prefill")["metadata"]["annotations"] == {"sglang.ai/bootstrap-port": "8998"}
    assert "annotations" not in part(spec, "decode")["metadata"]
    mooncake = cluster(kv_transfer=KvTransferSpec("MooncakeConnector"))
    assert flags().given(engine_args(mooncake, Role.DECODE))["--disaggregation-transfer-backend"] == "mooncake"


def test_an_engine_that_goes_waits_for_what_sglang_says_it_has_in_hand() -> None:
    [container] = part(cluster(), "prefill")["spec"]["containers"]
    program = container["lifecycle"]["preStop"]["exec"]["command"][2]
    compile(program, "hook", "exec")
    assert '"sglang:num_prefill_inflight_queue_reqs"' in program and "vllm:" not in program


# --------------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (cluster("--mem-fraction-statics", "0.8"), "--mem-fraction-statics is no flag of SGLang 0.5.23: did you mean --mem-frac"),
        (cluster("--mem_fraction_static", "0.8"), "did you mean --mem-fraction-static?"),
        (cluster("--context-length"), "--context-length takes a whole number"),
        (cluster("--kv-cache-dtype", "fp3"), "--kv-cache-dtype takes one of "),
        (cluster("--tp", "2"), "must not set --tp; it follows from model, gpusPerReplica, port and kvTransfer"),
        (cluster("--tensor-parallel", "2"), "must not set --tp-size"),
        (cluster("--disaggregation-mode=null"), "must not set --disaggregation-mode"),
        (cluster("--pp-size", "2"), "--pp-size 2 take more GPUs than gpusPerReplica 4"),
        (cluster(kv_transfer=KvTransferSpec("LMCacheConnectorV1")), "connector must be NixlConnector or MooncakeConnector"),
        (cluster(kv_transfer=KvTransferSpec(extra_config={"a": 1})), "extraConfig is vLLM's"),
        (cluster(decode=RoleSpec(1, 6)), "must divide one another"),
        (cluster(router=RouterSpec()), "spec.router.type VLLM cannot split for engine.type SGLang"),
        (cluster(engine=EngineSpec(EngineType.VLLM)), "spec.router.type SGLang cannot split for engine.type VLLM"),
        (cluster(router=RouterSpec(RouterType.SGLANG, args=("--mini-lb",))), "spec.router.args must not set --mini-lb"),
    ],
)
def test_what_sglang_cannot_do_is_said(spec: ClusterSpec, says: str) -> None:
    assert says in refusal(spec)


def test_an_unknown_image_is_refused_nothing_and_told_of() -> None:
    spec = cluster("--flag-of-the-future")
    spec = replace(spec, engine=replace(spec.engine, image="mine:1"))
    assert render(spec, CONTEXT)
    [told] = unjudged(spec, CONTEXT)
    assert told.startswith("The flags of mine:1 are not known (those of lmsysorg/sglang 0.5.23 are)")
    assert not unjudged(cluster(), CONTEXT)


def test_that_its_kv_caches_move_is_not_claimed() -> None:
    assert (why_not(cluster()) or ("",))[0] == "NotCounted"
    assert (why_not(cluster(router=RouterSpec(RouterType.NONE))) or ("",))[0] == "NoRouter"


def test_nothing_is_refused_that_sglang_takes() -> None:
    rows = json.loads(VERDICTS.read_text(encoding="utf-8"))["verdicts"]
    taken_here_alone = 0
    for args, accepted in some(rows):
        try:
            flags().given(["--model-path", "org/model", *args])
        except FlagError as error:
            assert not accepted, (args, str(error))
        else:
            taken_here_alone += not accepted
    assert taken_here_alone < TAKEN_HERE_ALONE * len(rows)


# ------------------------------------------------------------------------------------------------------------------ router


def test_its_router_takes_what_is_rendered() -> None:
    module = importlib.import_module("sglang_router.router_args")
    parser = argparse.ArgumentParser()
    module.RouterArgs.add_cli_args(parser, use_router_prefix=False)
    args = parser.parse_args(part(cluster(), "router")["spec"]["containers"][0]["args"])
    of = f"splitwatt.io/revision={part(cluster(), 'router')['metadata']['labels']['splitwatt.io/revision']}"
    assert args.pd_disaggregation and args.service_discovery and not args.mini_lb
    assert (args.service_discovery_namespace, args.service_discovery_port) == ("serving", 9000)
    assert args.prefill_selector == ["splitwatt.io/cluster=chat", "splitwatt.io/role=prefill", of]
    assert args.decode_selector == ["splitwatt.io/cluster=chat", "splitwatt.io/role=decode", of]
    [container] = part(cluster(), "router")["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "sglang_router.launch_router"]
    assert container["image"] == CONTEXT.sglang_router_image
    own = cluster(router=RouterSpec(RouterType.SGLANG, image="mine:2"))
    assert part(own, "router")["spec"]["containers"][0]["image"] == "mine:2"


def test_an_unsplit_cluster_is_told_of_no_halves_and_its_router_of_none() -> None:
    spec = cluster(prefill=None, decode=None, mixed=RoleSpec(2, 4))
    words = part(spec, "mixed")["spec"]["containers"][0]["args"]
    assert not [word for word in words if word.startswith("--disaggregation")]
    routed = part(spec, "router")["spec"]["containers"][0]["args"]
    assert "--selector" in routed and "--pd-disaggregation" not in routed and "--prefill-selector" not in routed


def test_without_a_router_clients_reach_decode() -> None:
    bare = cluster(router=RouterSpec(RouterType.NONE))
    assert not [m for m in render(bare, CONTEXT) if m["metadata"]["name"] == "chat-router"]
