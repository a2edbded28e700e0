"""llm-d's router as it is rendered: who asks whom at which port, what its parts may, and what decode's pods get for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.clusters import (
    PAIR,
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    RoleSpec,
    RouterSpec,
    RouterType,
    SpecError,
)
from splitwatt_core.rendering.llmd import picker_args
from splitwatt_core.rendering.render import RenderContext, render

LABELS = {"splitwatt.io/router": "chat"}


def cluster(router: RouterSpec | None = None, **changes: Any) -> ClusterSpec:
    pool = RoleSpec(1, 8)
    given: dict[str, Any] = {"engine": EngineSpec(EngineType.VLLM, port=9000), "prefill": pool, "decode": pool, **changes}
    return ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="m",
        router=router or RouterSpec(RouterType.LLMD), **given,
    )  # fmt: skip


def objects(spec: ClusterSpec) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in render(spec, RenderContext())}


def pod(spec: ClusterSpec, name: str) -> dict[str, Any]:
    found: dict[str, Any] = objects(spec)["Deployment", name]["spec"]["template"]
    return found


def containers(spec: ClusterSpec, name: str) -> dict[str, dict[str, Any]]:
    found = pod(spec, name)["spec"]
    return {c["name"]: c for c in (*found.get("initContainers", ()), *found["containers"])}


def flags(args: list[str]) -> dict[str, str]:
    """--flag=value and --flag value alike."""
    found, words = {}, iter(args)
    for word in words:
        flag, equals, value = word.partition("=")
        found[flag] = value if equals else next(words)
    return found


def port_of(container: dict[str, Any], name: str) -> int:
    [port] = [port["containerPort"] for port in container["ports"] if port["name"] == name]
    assert isinstance(port, int)
    return port


def test_clients_come_to_envoy_envoy_asks_the_picker_and_the_picker_knows_both_pools() -> None:
    made, parts = objects(cluster()), containers(cluster(), "chat-router")
    way_in, pool, ask = made["Service", "chat"]["spec"], made["InferencePool", "chat"]["spec"], made["Service", "chat-router"]
    assert way_in["selector"] == ask["spec"]["selector"] == LABELS
    assert (way_in["ports"][0]["port"], way_in["ports"][0]["targetPort"]) == (9000, "http")
    envoy, picker = parts["envoy-proxy"], parts["epp"]
    config = json.loads(envoy["args"][envoy["args"].index("--config-yaml") + 1])
    ports = {w["name"]: w["address"]["socket_address"]["port_value"] for w in config["static_resources"]["listeners"]}
    assert ports["engines"] == port_of(envoy, "http") and ports["ready"] == envoy["readinessProbe"]["httpGet"]["port"]
    [asked] = [c for c in config["static_resources"]["clusters"] if c["name"] == "ext_proc"]
    address = asked["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    told = flags(picker["args"])
    assert address == {"address": "127.0.0.1", "port_value": int(told["--grpc-port"])}
    assert port_of(picker, "grpc") == pool["endpointPickerRef"]["port"]["number"] == ask["spec"]["ports"][0]["port"]
    assert pool["endpointPickerRef"]["name"] == "chat-router" and pool["endpointPickerRef"]["failureMode"] == "FailClose"
    assert (told["--pool-name"], told["--pool-namespace"]) == ("chat", "serving")
    for role in PAIR:
        assert pool["selector"]["matchLabels"].items() <= pod(cluster(), f"chat-{role}")["metadata"]["labels"].items()
    assert not pool["selector"]["matchLabels"].items() <= pod(cluster(), "chat-router")["metadata"]["labels"].items()


def test_a_prompt_that_decode_has_not_seen_goes_to_prefill() -> None:
    config = json.loads(flags(picker_args(cluster()))["--config-text"])
    plugins = {plugin["type"]: plugin.get("parameters") for plugin in config["plugins"]}
    assert plugins["disagg-profile-handler"] == {"deciders": {"prefill": "prefix-based-pd-decider"}}
    assert plugins["prefix-based-pd-decider"]["nonCachedTokens"] > 0, "0 would mean: never"
    for profile in config["schedulingProfiles"]:
        named = [plugin["pluginRef"] for plugin in profile["plugins"]]
        assert set(named) <= set(plugins) and f"{profile['name']}-filter" in named
    assert [profile["name"] for profile in config["schedulingProfiles"]] == ["prefill", "decode"]
    for role in PAIR:  # the filters' own label
        assert pod(cluster(), f"chat-{role}")["metadata"]["labels"]["llm-d.ai/role"] == role.value


def test_requests_for_mixed_pods_go_whole_to_one_of_them() -> None:
    spec = cluster(prefill=None, decode=None, mixed=RoleSpec(3, 8))
    config = json.loads(flags(picker_args(spec))["--config-text"])
    types = {plugin["type"] for plugin in config["plugins"]}
    assert "single-profile-handler" in types and not {"prefix-based-pd-decider", "disagg-profile-handler"} & types
    [profile] = config["schedulingProfiles"]
    assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= types and "decode-filter" in types
    labels, parts = pod(spec, "chat-mixed")["metadata"]["labels"], containers(spec, "chat-mixed")
    assert labels["llm-d.ai/role"] == "prefill-decode", "decode's filter lets it through"
    pool = objects(spec)["InferencePool", "chat"]["spec"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert list(parts) == ["engine"] and pool["targetPorts"] == [{"number": port_of(parts["engine"], "http")}]
    assert "--kv-transfer-config" not in parts["engine"]["args"]
    objects(cluster(prefill=None, decode=None, mixed=RoleSpec(3, 8), kv_transfer=KvTransferSpec("NobodysConnector")))


def test_decodes_sidecar_stands_at_the_pools_port_and_the_engine_behind_it() -> None:
    parts = containers(cluster(), "chat-decode")
    sidecar, engine = parts["routing-sidecar"], parts["engine"]
    told = flags(sidecar["args"])
    assert told == {
        "--port": "9000", "--model-server-port": "8200", "--kv-connector": "nixlv2", "--secure-proxy": "false",
    }  # fmt: skip
    assert port_of(sidecar, "http") == 9000 and sidecar["restartPolicy"] == "Always", "it ends after the engine"
    assert port_of(engine, "engine-http") == 8200
    assert engine["args"][engine["args"].index("--port") + 1] == "8200"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert engine[probe]["httpGet"]["port"] == "engine-http"
    assert "http://localhost:8200/metrics" in engine["lifecycle"]["preStop"]["exec"]["command"]
    names = [port["name"] for part in parts.values() for port in part["ports"]]
    assert len(names) == len(set(names)), "a Service means one of them"
    assert containers(cluster(), "chat-prefill") == containers(cluster(RouterSpec()), "chat-prefill")
    assert "routing-sidecar" not in containers(cluster(RouterSpec()), "chat-decode")


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_no_two_of_a_decode_pod_listen_at_one_port(port: int, side: int) -> None:
    if port == side:
        return
    engine = EngineSpec(EngineType.VLLM, port=port)
    parts = containers(cluster(engine=engine, kv_transfer=KvTransferSpec(side_channel_port=side)), "chat-decode")
    ports = [p["containerPort"] for part in parts.values() for p in part["ports"]]
    assert len(ports) == len(set(ports)) == 3 and {port, side} < set(ports)


@pytest.mark.parametrize(
    ("connector", "word"), [("NixlConnector", "nixlv2"), ("MooncakeConnector", "mooncake"), ("OffloadingConnector", "offloading")]
)
def test_the_sidecar_asks_as_the_engines_connector_wants(connector: str, word: str) -> None:
    parts = containers(cluster(kv_transfer=KvTransferSpec(connector)), "chat-decode")
    assert f"--kv-connector={word}" in parts["routing-sidecar"]["args"]


def test_a_connector_that_the_sidecar_does_not_know_is_refused() -> None:
    with pytest.raises(SpecError, match=r"spec\.kvTransfer\.connector LMCacheConnector is none that LLMD's sidecar knows: Mo"):
        render(cluster(kv_transfer=KvTransferSpec("LMCacheConnector")), RenderContext())
    emulated = EngineSpec(EngineType.EMULATED)
    assert render(cluster(engine=emulated, kv_transfer=KvTransferSpec("LMCacheConnector")), RenderContext())


def test_it_may_read_what_it_watches_and_change_nothing() -> None:
    made = objects(cluster())
    rules = made["Role", "chat-router"]["rules"]
    assert all(rule["verbs"] == ["get", "list", "watch"] for rule in rules)
    found = {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}
    assert {("", "pods"), ("inference.networking.k8s.io", "inferencepools"), ("llm-d.ai", "inferenceobjectives")} <= found
    assert not {"configmaps", "secrets", "leases", "tokenreviews"} & {resource for _, resource in found}
    assert (
        made["RoleBinding", "chat-router"]["subjects"][0]["name"] == pod(cluster(), "chat-router")["spec"]["serviceAccountName"]
    )


def test_it_is_no_consumer_of_power() -> None:
    template = pod(cluster(), "chat-router")
    assert template["metadata"]["labels"] == LABELS | {"app.kubernetes.io/managed-by": "splitwatt"}
    assert "schedulingGates" not in template["spec"]
    gated = pod(cluster(), "chat-decode")["spec"]
    assert gated["schedulingGates"] == [{"name": "splitwatt.io/power"}]
    assert "nvidia.com/gpu" not in json.dumps(gated["initContainers"])
    for kind in ("requests", "limits"):
        with pytest.raises(SpecError, match=f"spec.router.resources.{kind} must not ask for nvidia.com/gpu"):
            render(cluster(RouterSpec(RouterType.LLMD, resources={kind: {"nvidia.com/gpu": 1}})), RenderContext())


@pytest.mark.parametrize(
    "flag", ["--pool-name=x", "--grpc-port", "--endpoint-selector", "--metrics-port=1", "--secure-serving=false"]
)
def test_what_follows_from_the_cluster_cannot_be_given(flag: str) -> None:
    with pytest.raises(SpecError, match=r"spec\.router\.args must not set --"):
        render(cluster(RouterSpec(RouterType.LLMD, args=(flag,))), RenderContext())


def test_a_configuration_of_the_users_own_stands_instead() -> None:
    args = picker_args(cluster(RouterSpec(RouterType.LLMD, args=("--config-file=/mine/c.yaml", "--v=2"))))
    assert "--config-text" not in args and args[-2:] == ["--config-file=/mine/c.yaml", "--v=2"]


def test_images_are_the_users_or_the_releases_and_overlays_reach_all_three() -> None:
    context = RenderContext()
    parts = containers(cluster(), "chat-router")
    assert (parts["epp"]["image"], parts["envoy-proxy"]["image"]) == (context.llmd_picker_image, context.envoy_image)
    own = RouterSpec(
        RouterType.LLMD, image="mine:1", template={"spec": {"containers": [{"name": "envoy-proxy", "image": "mirror/envoy:1"}]}}
    )
    parts = containers(cluster(own), "chat-router")
    assert (parts["epp"]["image"], parts["envoy-proxy"]["image"]) == ("mine:1", "mirror/envoy:1")
    overlay = {"spec": {"initContainers": [{"name": "routing-sidecar", "image": "mirror/sidecar:1"}]}}
    sidecar = containers(cluster(decode=RoleSpec(1, 8, template=overlay)), "chat-decode")["routing-sidecar"]
    assert sidecar["image"] == "mirror/sidecar:1" and sidecar["restartPolicy"] == "Always"


def test_streams_may_end_before_envoy_and_picker_are_told_to_go() -> None:
    """Envoy leaves at once, and answers pass through the picker too."""
    spec = pod(cluster(), "chat-router")["spec"]
    waits = {c["name"]: c["lifecycle"]["preStop"]["sleep"]["seconds"] for c in spec["containers"]}
    assert set(waits) == {"envoy-proxy", "epp"} and min(waits.values()) >= 120
    assert spec["terminationGracePeriodSeconds"] > max(waits.values())


def test_no_request_passes_without_the_picker() -> None:
    envoy = containers(cluster(), "chat-router")["envoy-proxy"]
    config = envoy["args"][envoy["args"].index("--config-yaml") + 1]
    assert '"failure_mode_allow":false' in config and "$(" not in config, "Kubernetes would fill that in"
