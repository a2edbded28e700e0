"""The router that is rendered before the pools: its command line, its rights, and what it must never be taken for."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import pytest
from splitwatt_core.clusters import (
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    RoleSpec,
    RouterSpec,
    RouterType,
    SpecError,
)
from splitwatt_core.rendering.render import RenderContext, render
from support.some import some


def cluster(router: RouterSpec | None = None, **changes: Any) -> ClusterSpec:
    pool = RoleSpec(1, 8)
    given: dict[str, Any] = {"engine": EngineSpec(EngineType.VLLM, port=9000), "prefill": pool, "decode": pool, **changes}
    return ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="m", router=router or RouterSpec(), **given
    )  # fmt: skip


def deployment(spec: ClusterSpec) -> dict[str, Any]:
    found = {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext(router_image="router:test"))}
    content: dict[str, Any] = found["Deployment", "chat-router"]["spec"]
    return content


def pod(spec: ClusterSpec) -> dict[str, Any]:
    found: dict[str, Any] = deployment(spec)["template"]
    return found


def arguments(spec: ClusterSpec) -> list[str]:
    found: list[str] = pod(spec)["spec"]["containers"][0]["args"]
    return found


def parsed(spec: ClusterSpec) -> argparse.Namespace:
    """By vllm-router's own parser, which ends the process on a word that it does not know."""
    router_args_module = importlib.import_module("vllm_router.router_args")
    parser = argparse.ArgumentParser()
    router_args_module.RouterArgs.add_cli_args(parser, use_router_prefix=False)
    return parser.parse_args(arguments(spec))


def test_the_router_asks_the_engines_of_its_own_cluster_both_roles_apart() -> None:
    args, revision = parsed(cluster()), pod(cluster())["metadata"]["labels"]["splitwatt.io/revision"]
    assert args.vllm_pd_disaggregation and args.service_discovery and args.kv_connector == "nixl"
    assert (args.service_discovery_namespace, args.service_discovery_port) == ("serving", 9000)
    of = [f"splitwatt.io/revision={revision}"]
    assert args.prefill_selector == ["splitwatt.io/cluster=chat", "splitwatt.io/role=prefill", *of]
    assert args.decode_selector == ["splitwatt.io/cluster=chat", "splitwatt.io/role=decode", *of]
    assert args.host == args.prometheus_host == "0.0.0.0", "its defaults are loopback"
    assert 2 <= args.health_check_interval_secs <= 5
    assert parsed(cluster(kv_transfer=KvTransferSpec("MooncakeConnector"))).kv_connector == "mooncake"


def test_a_users_arguments_stand_before_defaults_and_not_beside_them() -> None:
    """The router's other command line, in Rust, refuses a flag that comes twice."""
    given = ("--policy", "cache_aware", "--health_check_interval_secs=2")
    args = arguments(cluster(RouterSpec(args=given)))
    assert args.count("--policy") == 1 and not any(arg.startswith("--health-check-interval-secs") for arg in args)
    assert args[-3:] == list(given)


@pytest.mark.parametrize("flag", ["--port", "--prefill-selector=a=b", "--service_discovery_namespace", "--prometheus-port=1"])
def test_what_follows_from_the_cluster_cannot_be_given(flag: str) -> None:
    with pytest.raises(SpecError, match=r"spec\.router\.args must not set --"):
        render(cluster(RouterSpec(args=(flag,))), RenderContext())


def test_a_router_is_no_consumer_of_power() -> None:
    template = pod(cluster())
    assert template["metadata"]["labels"].keys() == {
        "splitwatt.io/router", "splitwatt.io/revision", "app.kubernetes.io/managed-by",
    }  # fmt: skip
    assert "schedulingGates" not in template["spec"]
    [container] = template["spec"]["containers"]
    assert "nvidia.com/gpu" not in {**container["resources"]["requests"], **container["resources"]["limits"]}
    for kind in ("requests", "limits"):
        with pytest.raises(SpecError, match=f"spec.router.resources.{kind} must not ask for nvidia.com/gpu"):
            render(cluster(RouterSpec(resources={kind: {"nvidia.com/gpu": 1}})), RenderContext())


def test_an_overlay_says_where_it_runs_and_gets_no_gpu() -> None:
    toleration = {"key": "team", "operator": "Exists"}
    overlay = {"metadata": {"annotations": {"a": "b"}}, "spec": {"tolerations": [toleration], "nodeSelector": {"pool": "cpu"}}}
    template = pod(cluster(RouterSpec(template=overlay)))
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert template["spec"]["nodeSelector"] == {"pool": "cpu"} and toleration in template["spec"]["tolerations"]
    gpu = {"name": "router", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"spec": {"containers": [gpu]}}, "cannot be set; GPUs are asked for by engines alone"),
        ({"spec": {"initContainers": [{**gpu, "name": "x"}]}}, "cannot be set; GPUs are asked for by engines alone"),
        ({"spec": {"resourceClaims": [{"name": "gpu"}]}}, "resourceClaims cannot be set"),
        ({"metadata": {"labels": {"splitwatt.io/router": "other"}}}, "pick a label of your own"),
    ]
    for wrong, says in refused:
        with pytest.raises(SpecError, match=says) as caught:
            render(cluster(RouterSpec(template=wrong)), RenderContext())
        assert str(caught.value).startswith("spec.router.template.")


def test_it_may_see_the_pods_of_its_namespace_and_change_nothing() -> None:
    found = {(m["kind"], m["metadata"]["name"]): m for m in render(cluster(), RenderContext())}
    role, binding = found["Role", "chat-router"], found["RoleBinding", "chat-router"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "chat-router", "namespace": "serving"}]
    spec = pod(cluster())["spec"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("chat-router", True)


def test_it_is_renewed_before_it_goes_and_streams_may_end() -> None:
    made = deployment(cluster(RouterSpec(replicas=3)))
    assert made["replicas"] == 3
    assert made["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    spec = pod(cluster())["spec"]
    [container] = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + 60
    assert container["readinessProbe"]["httpGet"]["path"] == "/readiness"


def test_the_image_is_the_users_or_the_releases() -> None:
    assert pod(cluster())["spec"]["containers"][0]["image"] == "router:test"
    assert pod(cluster(RouterSpec(image="mine:1")))["spec"]["containers"][0]["image"] == "mine:1"


def test_without_a_router_clients_reach_decode_and_nothing_of_it_is_rendered() -> None:
    made = {(m["kind"], m["metadata"]["name"]): m for m in render(cluster(RouterSpec(RouterType.NONE)), RenderContext())}
    assert made["Service", "chat"]["spec"]["selector"] == {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "decode"}
    assert not [name for kind, name in some(made) if "router" in name]


def test_absurd_numbers_of_routers_are_refused() -> None:
    for replicas in (0, 17):
        with pytest.raises(SpecError, match=f"router.replicas must be between 1 and 16, not {replicas}"):
            RouterSpec(replicas=replicas)


def test_before_an_unsplit_cluster_it_sends_requests_whole_to_its_mixed_engines() -> None:
    whole = cluster(prefill=None, decode=None, mixed=RoleSpec(1, 8))
    args, revision = parsed(whole), pod(whole)["metadata"]["labels"]["splitwatt.io/revision"]
    assert not args.vllm_pd_disaggregation and args.service_discovery
    assert args.selector == ["splitwatt.io/cluster=chat", "splitwatt.io/role=mixed", f"splitwatt.io/revision={revision}"]
    assert not args.prefill_selector and not args.decode_selector and "--kv-connector" not in arguments(whole)
    assert (args.service_discovery_namespace, args.service_discovery_port) == ("serving", 9000)
    assert not parsed(cluster()).selector
