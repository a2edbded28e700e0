"""What an InferenceCluster becomes: every label, the gate, the engine's command line, and what an overlay may not do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.clusters import (
    MAX_LABEL_CHARS,
    PAIR,
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    Role,
    RoleSpec,
    SpecError,
)
from splitwatt_core.rendering.drift import fingerprint
from splitwatt_core.rendering.objects import object_name, selector_text
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_core.rendering.revision import RenderPlan
from support.some import some

CONTEXT = RenderContext(vllm_image="vllm:test", emulated_image="twin:test")
REVISION = "781b2889"
"""Of `cluster()`. Another one here means that every such cluster is rolled by the release."""


def cluster(**changes: Any) -> ClusterSpec:
    spec = ClusterSpec(
        namespace="serving",
        name="chat",
        uid="7d0c",
        generation=3,
        model="meta-llama/Llama-3.1-70B-Instruct",
        engine=EngineSpec(EngineType.VLLM),
        prefill=RoleSpec(2, 8, {"splitwatt.io/pool": "h100-prefill"}),
        decode=RoleSpec(3, 4, {"splitwatt.io/pool": "h100-decode"}),
    )
    return replace(spec, **changes)


def objects(spec: ClusterSpec) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in render(spec, CONTEXT)}


def pod_of(spec: ClusterSpec, role: Role) -> dict[str, Any]:
    template: dict[str, Any] = objects(spec)["Deployment", f"chat-{role.value}"]["spec"]["template"]
    return template


def engine_of(spec: ClusterSpec, role: Role) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(spec, role)["spec"]["containers"][0]
    return container


def with_overlay(overlay: dict[str, Any]) -> ClusterSpec:
    return cluster(prefill=replace(cluster().role(Role.PREFILL), template=overlay))


def test_the_objects_of_a_cluster() -> None:
    assert set(objects(cluster())) == {
        ("Service", "chat"),
        ("Deployment", "chat-router"),
        ("PodDisruptionBudget", "chat-router"),
        ("ServiceAccount", "chat-router"),
        ("Role", "chat-router"),
        ("RoleBinding", "chat-router"),
        ("Deployment", "chat-prefill"),
        ("Service", "chat-prefill"),
        ("PodDisruptionBudget", "chat-prefill"),
        ("Deployment", "chat-decode"),
        ("Service", "chat-decode"),
        ("PodDisruptionBudget", "chat-decode"),
    }


def test_every_object_is_labelled_stamped_and_owned() -> None:
    for (kind, name), manifest in some(objects(cluster()).items()):
        meta = manifest["metadata"]
        expected = {"app.kubernetes.io/managed-by": "splitwatt", "splitwatt.io/cluster": "chat"}
        if name not in ("chat", "chat-router"):
            role = name.removeprefix("chat-")
            expected |= {"splitwatt.io/role": role, "llm-d.ai/role": role}
        if kind == "Deployment":
            expected |= {"splitwatt.io/revision": REVISION}
        assert meta["labels"] == expected, kind
        assert meta["namespace"] == "serving"
        assert len(meta["annotations"]["splitwatt.io/rendered-hash"]) == 16
        assert meta["ownerReferences"] == [
            {
                "apiVersion": "splitwatt.io/v1alpha1",
                "kind": "InferenceCluster",
                "name": "chat",
                "uid": "7d0c",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


@pytest.mark.parametrize("role", PAIR)
def test_pods_are_born_gated_labelled_and_on_their_pool(role: Role) -> None:
    deployment = objects(cluster())["Deployment", f"chat-{role.value}"]["spec"]
    selector = {"splitwatt.io/cluster": "chat", "splitwatt.io/role": role.value}
    assert deployment["selector"] == {"matchLabels": selector}
    assert deployment["replicas"] == cluster().role(role).replicas
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    pod = deployment["template"]
    assert pod["metadata"]["labels"] == selector | {
        "splitwatt.io/revision": REVISION,
        "llm-d.ai/role": role.value,
        "app.kubernetes.io/managed-by": "splitwatt",
    }
    assert pod["spec"]["schedulingGates"] == [{"name": "splitwatt.io/power"}]
    assert pod["spec"]["nodeSelector"] == {"splitwatt.io/pool": f"h100-{role.value}"}
    gpus = {"nvidia.com/gpu": str(cluster().role(role).gpus_per_replica)}
    assert engine_of(cluster(), role)["resources"] == {"requests": gpus, "limits": gpus}


@pytest.mark.parametrize(("role", "gpus", "kv_role"), [(Role.PREFILL, "8", "kv_producer"), (Role.DECODE, "4", "kv_consumer")])
def test_the_engine_is_told_its_model_its_gpus_and_its_side_of_the_kv_transfer(role: Role, gpus: str, kv_role: str) -> None:
    spec = cluster(
        engine=EngineSpec(EngineType.VLLM, port=9000, args=("--max-model-len=8192",)),
        kv_transfer=KvTransferSpec(side_channel_port=5700, extra_config={"backends": ["UCX"]}),
    )
    engine = engine_of(spec, role)
    assert engine["command"] == ["vllm", "serve"]
    args = engine["args"]
    assert args[0] == "meta-llama/Llama-3.1-70B-Instruct"
    assert args[args.index("--port") + 1] == "9000"
    assert args[args.index("--tensor-parallel-size") + 1] == gpus
    policy = {"kv_load_failure_policy": "recompute"} if role is Role.DECODE else {}
    assert json.loads(args[args.index("--kv-transfer-config") + 1]) == {
        "kv_connector": "NixlConnector",
        "kv_role": kv_role,
        "kv_connector_extra_config": {"backends": ["UCX"]},
        **policy,
    }
    assert args[-1] == "--max-model-len=8192"
    env = {e["name"]: e for e in engine["env"]}
    assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert env["VLLM_NIXL_SIDE_CHANNEL_PORT"]["value"] == "5700"
    assert {p["name"]: p["containerPort"] for p in engine["ports"]} == {"http": 9000, "kv-side": 5700}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert engine[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_the_emulated_engine_speaks_the_same_names_from_our_own_image() -> None:
    ours = engine_of(cluster(engine=EngineSpec(EngineType.EMULATED)), Role.PREFILL)
    theirs = engine_of(cluster(), Role.PREFILL)
    assert ours["image"] == "twin:test"
    assert theirs["image"] == "vllm:test"
    assert "command" not in ours
    apart = ("image", "command", "lifecycle")
    assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}
    own = EngineSpec(EngineType.EMULATED, image="mine:1")
    assert engine_of(cluster(engine=own), Role.DECODE)["image"] == "mine:1"


def test_services_are_headless_per_role_and_one_leads_to_the_router() -> None:
    made = objects(cluster())
    assert made["Service", "chat-prefill"]["spec"]["clusterIP"] == "None"
    way_in = made["Service", "chat"]["spec"]
    assert way_in["selector"] == made["Deployment", "chat-router"]["spec"]["selector"]["matchLabels"]
    assert way_in["ports"] == [{"name": "http", "port": 8000, "protocol": "TCP", "targetPort": "http"}]
    assert "clusterIP" not in way_in


def test_one_replica_at_a_time_may_be_drained_of_those_that_have_a_place() -> None:
    """Nobody drains a node if those that wait for watts count as being away."""
    first = objects(cluster())["PodDisruptionBudget", "chat-decode"]["spec"]
    assert first["maxUnavailable"] == 1 and "minAvailable" not in first
    assert first["selector"]["matchLabels"]["splitwatt.io/role"] == "decode"
    for standing, least in ((0, 0), (1, 0), (2, 1), (3, 2)):
        at = RenderPlan({}, {}, standing={Role.DECODE: standing})
        made = {(m["kind"], m["metadata"]["name"]): m["spec"] for m in render(cluster(), CONTEXT, at) if "spec" in m}
        budget = made["PodDisruptionBudget", "chat-decode"]
        assert budget["minAvailable"] == least and "maxUnavailable" not in budget
        assert made["PodDisruptionBudget", "chat-prefill"]["maxUnavailable"] == 1, "of which nothing is known"


def test_rendering_is_deterministic_and_its_hash_follows_its_content() -> None:
    assert render(cluster(), CONTEXT) == render(cluster(), CONTEXT)
    key = ("Deployment", "chat-decode")
    before = objects(cluster())[key]["metadata"]["annotations"]
    scaled = objects(cluster(decode=replace(cluster().role(Role.DECODE), replicas=4)))
    assert scaled[key]["metadata"]["annotations"] != before
    assert scaled["Service", "chat"] == objects(cluster())["Service", "chat"]


def test_names_are_dns_labels_and_never_meet() -> None:
    assert object_name("chat", Role.PREFILL) == "chat-prefill"
    long = "a" * 80
    names = {object_name(n, r) for n in (long, long + "b", "a.b", "a-b", "1chat") for r in (None, *Role)}
    assert len(names) == 20
    for name in names:
        assert len(name) <= MAX_LABEL_CHARS
        assert name[0].isalpha() and name.replace("-", "").isalnum() and name == name.lower()
    assert object_name(long, Role.DECODE).endswith("-decode")
    assert selector_text("chat", Role.DECODE) == "splitwatt.io/cluster=chat,splitwatt.io/role=decode"


# -------------------------------------------------------------------------------------------------------------- overlay


def test_an_overlay_merges_containers_by_name_and_adds_tolerations() -> None:
    overlay = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"note": "x"}},
        "spec": {
            "priorityClassName": "gold",
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "containers": [
                {
                    "name": "engine",
                    "env": [{"name": "HF_TOKEN", "value": "t"}, {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": "1"}],
                    "resources": {"requests": {"memory": "100Gi"}},
                    "livenessProbe": None,
                },
                {"name": "sidecar", "image": "s:1"},
            ],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }
    pod = pod_of(with_overlay(overlay), Role.PREFILL)
    assert pod["metadata"]["labels"]["team"] == "search"
    assert pod["metadata"]["labels"]["splitwatt.io/role"] == "prefill"
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"splitwatt.io/pool": "h100-prefill", "zone": "a"}
    assert [t["key"] for t in spec["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert [c["name"] for c in spec["containers"]] == ["engine", "sidecar"]
    engine = spec["containers"][0]
    env = {e["name"]: e.get("value") for e in engine["env"]}
    assert env == {"VLLM_NIXL_SIDE_CHANNEL_HOST": None, "VLLM_NIXL_SIDE_CHANNEL_PORT": "1", "HF_TOKEN": "t"}
    assert engine["resources"]["requests"] == {"nvidia.com/gpu": "8", "memory": "100Gi"}
    assert "livenessProbe" not in engine
    assert engine["image"] == "vllm:test"
    assert spec["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    assert pod_of(with_overlay(overlay), Role.DECODE)["spec"] == pod_of(cluster(), Role.DECODE)["spec"]


GPU_SIDECAR = {"name": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
MIG_INIT = {"name": "x", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ({"spec": {"nodeName": "n1"}}, "nodeName bypasses power admission"),
        ({"spec": {"schedulingGates": None}}, "must keep the gate splitwatt.io/power"),
        ({"spec": {"containers": [GPU_SIDECAR]}}, "GPUs are asked for by gpusPerReplica"),
        ({"spec": {"initContainers": [MIG_INIT]}}, "GPUs are asked for by gpusPerReplica"),
        ({"spec": {"containers": [{"name": "engine", "resources": None}]}}, "must not be removed"),
        ({"spec": {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "4"}}}]}}, "cannot"),
        ({"spec": {"containers": None}}, "must not be removed"),
        ({"spec": {"nodeSelector": {"splitwatt.io/pool": "other"}}}, "change the role's nodeSelector"),
        ({"spec": {"nodeSelector": None}}, "change the role's nodeSelector"),
        ({"metadata": {"labels": {"splitwatt.io/role": "decode"}}}, "pick a label of your own"),
        ({"metadata": {"labels": None}}, "pick a label of your own"),
        ({"metadata": {"name": "x"}}, "metadata.name is not known here"),
        ({"kind": "Pod"}, "kind is not known here"),
        ({"spec": []}, "spec.prefill.template.spec must be an object"),
        ({"metadata": "x"}, "spec.prefill.template.metadata must be an object"),
        ({"spec": {"containers": {}}}, "spec.containers must be a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "containers[0] needs 'name'"),
        ({"spec": {"initContainers": "x"}}, "initContainers must be a list of objects"),
        ({"spec": {"initContainers": [{"name": "x", "resources": "y"}]}}, "resources must be an object"),
    ],
)
def test_an_overlay_cannot_touch_what_admission_stands_on(overlay: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        render(with_overlay(overlay), CONTEXT)
    assert says in str(caught.value)
    assert "spec.prefill.template" in str(caught.value)


def test_an_empty_overlay_changes_nothing() -> None:
    assert render(with_overlay({"spec": None, "metadata": None}), CONTEXT) == render(cluster(), CONTEXT)


@pytest.mark.parametrize("flag", ["--port", "--tensor-parallel-size=4", "-tp", "--kv-transfer-config.kv_role"])
def test_flags_that_are_rendered_cannot_be_given(flag: str) -> None:
    with pytest.raises(SpecError, match="must not set"):
        render(cluster(engine=EngineSpec(EngineType.VLLM, args=(flag,))), CONTEXT)


def test_absurd_sizes_are_refused() -> None:
    with pytest.raises(SpecError, match="gpusPerReplica must be between 1 and 64, not 65"):
        RoleSpec(1, 65)
    with pytest.raises(SpecError, match="replicas must be between 0 and 1000, not -1"):
        RoleSpec(-1, 8)
    with pytest.raises(SpecError, match="at most 64"):
        EngineSpec(EngineType.VLLM, args=("-x",) * 65)


# ---------------------------------------------------------------------------------------------------------------- drift


def test_drift_is_seen_in_rendered_fields_only() -> None:
    rendered = objects(cluster())["Deployment", "chat-prefill"]
    answer: dict[str, Any] = json.loads(json.dumps(rendered))
    answer["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    answer["status"] = {"replicas": 2}
    base = fingerprint(answer, rendered)

    def edited(change: Any) -> str:
        copy = json.loads(json.dumps(answer))
        change(copy)
        return fingerprint(copy, rendered)

    template = ("spec", "template", "spec")

    def pod(o: dict[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = o[template[0]][template[1]][template[2]]
        return spec

    assert edited(lambda o: o["status"].update(replicas=1)) == base
    assert edited(lambda o: o["metadata"]["labels"].update(theirs="x")) == base
    assert edited(lambda o: pod(o)["containers"].insert(0, {"name": "injected"})) == base
    assert edited(lambda o: o["spec"].update(replicas=5)) != base
    assert edited(lambda o: pod(o)["schedulingGates"].clear()) != base
    assert edited(lambda o: pod(o)["containers"][0]["args"].append("--x")) != base
    assert edited(lambda o: pod(o)["containers"].clear()) != base
    assert edited(lambda o: o["metadata"].pop("ownerReferences")) != base
    assert edited(lambda o: o["spec"].update(template=None)) != base
