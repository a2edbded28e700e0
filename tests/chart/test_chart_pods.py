"""What a site may say of the pods: whose images, which nodes, whose driver, what else goes in. Without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import splitwatt_agent.__main__ as agent_main
from splitwatt_core.rendering.render import RenderContext
from splitwatt_core.rendering.router import DEFAULT_VLLM_ROUTER_IMAGE
from splitwatt_operator import options as operator_options
from support.some import some

from .conftest import CHART, Helm, Render

EACH = pytest.mark.parametrize("component", ["operator", "agent"])


def pod_of(render: Render, component: str, **values: Any) -> dict[str, Any]:
    """The pod template's metadata and spec."""
    kind = {"operator": "Deployment", "agent": "DaemonSet"}[component]
    found: dict[str, Any] = render(values={component: values})[kind, f"splitwatt-{component}"]["spec"]["template"]
    return found


def container_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    found: dict[str, Any] = only
    return found


# ------------------------------------------------------------------------------------------------------------ images

REGISTRY = "registry.example.com/team"
"""Of what is rendered where nobody says otherwise."""
DIGEST = f"sha256:{'ab' * 32}"


@EACH
@pytest.mark.parametrize(
    ("registry", "image", "name"),
    [
        ("registry.example.com/team", {}, "registry.example.com/team/splitwatt-{}:0.1.0"),
        ("registry.example.com:5000/", {"tag": "x"}, "registry.example.com:5000/splitwatt-{}:x"),
        ("localhost", {"digest": DIGEST}, f"localhost/splitwatt-{{}}:0.1.0@{DIGEST}"),
        ("docker.io/library", {}, "docker.io/library/splitwatt-{}:0.1.0"),
        ("r.example.com", {"repository": "team/sw"}, "r.example.com/team/sw:0.1.0"),
        ("r.example.com", {"repository": "other.example.com/sw"}, "other.example.com/sw:0.1.0"),
        ("r.example.com", {"repository": "localhost/sw"}, "localhost/sw:0.1.0"),
        ("", {"repository": "host:5000/sw"}, "host:5000/sw:0.1.0"),
        ("", {"repository": "team/sw"}, "team/sw:0.1.0"),
    ],
)
def test_an_images_name_says_whose_it_is(render: Render, component: str, registry: str, image: dict[str, str], name: str) -> None:
    other = {"operator": "agent", "agent": "operator"}[component]
    values = {"image": {"registry": registry}, component: {"image": image}, other: {"image": {"repository": "r.io/x"}}}
    kind = {"operator": "Deployment", "agent": "DaemonSet"}[component]
    made = render(values=values)[kind, f"splitwatt-{component}"]["spec"]["template"]
    assert container_of(made)["image"] == name.format(component)


@pytest.mark.parametrize("values", [{}, {"operator": {"image": {"repository": "r.io/x"}}}], ids=["neither", "operator alone"])
def test_no_image_of_somebody_elses_is_pulled(helm: Helm, values: Mapping[str, Any]) -> None:
    result = helm("template", CHART, values=values)
    assert result.returncode != 0
    assert "set image.registry to where the images lie, as in --set image.registry=registry.example.com/team" in result.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ["--engine-image=registry.example.com/team/splitwatt-engine:0.1.0"]),
        ({"engine": {"image": {"repository": "r.io/e", "tag": "2"}}}, ["--engine-image=r.io/e:2"]),
        # Where the other two name registries of their own, this one need not.
        ({"image": {"registry": ""}} | {name: {"image": {"repository": "r.io/x"}} for name in ("operator", "agent")}, []),
        ({"engine": None}, []),  # as `helm upgrade --reuse-values` from a chart without it
    ],
    ids=["below the registry", "elsewhere", "without a registry", "unknown"],
)
def test_the_operator_is_told_where_the_emulated_engine_lies(render: Render, values: Mapping[str, Any], said: list[str]) -> None:
    pod = render(values=values)["Deployment", "splitwatt-operator"]["spec"]["template"]
    assert [argument for argument in container_of(pod)["args"] if argument.startswith("--engine-image")] == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),  # the publisher's, which the operator knows
        ({"router": {"image": {"repository": "splitwatt-router"}}}, [f"{REGISTRY}/splitwatt-router:0.1.0"]),
        ({"router": {"image": {"repository": "r.io/vllm-router", "tag": "v0.1.17"}}}, ["r.io/vllm-router:v0.1.17"]),
        (
            {"router": {"image": {"repository": "splitwatt-router", "digest": DIGEST}}},
            [f"{REGISTRY}/splitwatt-router:0.1.0@{DIGEST}"],
        ),
        ({"router": None}, []),  # as `helm upgrade --reuse-values` from a chart without it
    ],
    ids=["publisher's", "below the registry", "elsewhere", "pinned", "unknown"],
)
def test_the_operator_is_told_where_the_router_lies(render: Render, values: Mapping[str, Any], said: list[str]) -> None:
    """A cluster that names no image gets what the operator was told, else what its publisher has."""
    pod = render(values=values)["Deployment", "splitwatt-operator"]["spec"]["template"]
    given = operator_options.parse(container_of(pod)["args"])
    assert [given.context.router_image] == (said or [DEFAULT_VLLM_ROUTER_IMAGE])
    assert [argument for argument in container_of(pod)["args"] if argument.startswith("--router-image")] == [
        f"--router-image={image}" for image in said
    ]


def test_the_operator_is_told_where_llmds_images_lie(render: Render) -> None:
    images = {"picker": "r.io/picker:1", "sidecar": "r.io/sidecar:1", "envoy": "r.io/envoy:1"}
    for given, said in (({}, {}), (images, images), ({"envoy": "r.io/envoy:1"}, {"envoy": "r.io/envoy:1"}), (None, {})):
        values: dict[str, Any] = {"router": {"llmdImages": given}}
        context = operator_options.parse(
            container_of(render(values=values)["Deployment", "splitwatt-operator"]["spec"]["template"])["args"]
        ).context
        kept = RenderContext()
        assert context.llmd_picker_image == said.get("picker", kept.llmd_picker_image)
        assert context.llmd_sidecar_image == said.get("sidecar", kept.llmd_sidecar_image)
        assert context.envoy_image == said.get("envoy", kept.envoy_image)


# ------------------------------------------------------------------------------------------------------------- nodes


def terms(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    found: list[dict[str, Any]] = affinity["nodeSelectorTerms"]
    return found


def selects(pod: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As the scheduler reads it, with the operators that occur."""

    def matches(row: Mapping[str, Any]) -> bool:
        if row["operator"] == "Exists":
            return row["key"] in labels
        assert row["operator"] == "In"
        return labels.get(row["key"]) in row["values"]

    spec = pod["spec"]
    wanted: Mapping[str, str] = spec.get("nodeSelector", {})
    if not all(labels.get(key) == value for key, value in wanted.items()):
        return False
    return "affinity" not in spec or any(all(matches(row) for row in some(term["matchExpressions"])) for term in terms(pod))


@pytest.mark.parametrize(
    "label",
    [
        "nvidia.com/gpu.present=true",
        "feature.node.kubernetes.io/pci-10de.present=true",
        "feature.node.kubernetes.io/pci-0302_10de.present=true",
        "cloud.google.com/gke-accelerator=nvidia-h100-80gb",
        "k8s.amazonaws.com/accelerator=nvidia-tesla-v100",
        "karpenter.k8s.aws/instance-gpu-manufacturer=nvidia",
        "kubernetes.azure.com/accelerator=nvidia",
    ],
)
def test_whoever_marks_a_gpu_node_an_agent_goes_there(render: Render, label: str) -> None:
    key, _, value = label.partition("=")
    pod = pod_of(render, "agent")
    assert selects(pod, {"kubernetes.io/os": "linux", key: value})
    assert not selects(pod, {"kubernetes.io/os": "linux"})
    assert not selects(pod, {"karpenter.k8s.aws/instance-gpu-manufacturer": "amd", "nvidia.com/gpu.present": "false"})


def test_a_selector_or_affinity_of_the_sites_own_stands_instead_of_ours(render: Render) -> None:
    pool = pod_of(render, "agent", nodeSelector={"pool": "gpu"})
    assert selects(pool, {"pool": "gpu"}) and not selects(pool, {"nvidia.com/gpu.present": "true"})
    rows = [{"key": "rack", "operator": "In", "values": ["a"]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": rows}]}}
    rack = pod_of(render, "agent", affinity={"nodeAffinity": required})
    assert selects(rack, {"rack": "a"}) and not selects(rack, {"nvidia.com/gpu.present": "true"})
    both = pod_of(render, "agent", nodeSelector={"pool": "gpu"}, affinity={"nodeAffinity": required})
    assert selects(both, {"rack": "a", "pool": "gpu"}) and not selects(both, {"rack": "a"})


def test_no_taint_keeps_an_agent_from_a_gpu_node_unless_the_site_says_so(render: Render) -> None:
    assert pod_of(render, "agent")["spec"]["tolerations"] == [{"operator": "Exists"}]
    own = [{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}]
    assert pod_of(render, "agent", tolerations=own)["spec"]["tolerations"] == own
    assert "tolerations" not in pod_of(render, "agent", tolerations=[])["spec"]


# ------------------------------------------------------------------------------------------------------------- driver


def test_a_runtime_of_nvidias_gives_the_driver(render: Render) -> None:
    pod = pod_of(render, "agent", runtimeClassName="nvidia")
    assert pod["spec"]["runtimeClassName"] == "nvidia"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container_of(pod)["env"]
    assert container_of(pod)["securityContext"]["privileged"] is False


def test_a_driver_that_lies_on_the_host_is_mounted_as_one_file(render: Render) -> None:
    pod = pod_of(render, "agent", driverLibraryDir="/home/kubernetes/bin/nvidia/lib64")
    made = container_of(pod)
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "nvml"]
    (mount,) = [m for m in made["volumeMounts"] if m["name"] == "nvml"]
    assert volume["hostPath"] == {"path": "/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1", "type": "File"}
    (path,) = [row["value"] for row in made["env"] if row["name"] == "LD_LIBRARY_PATH"]
    assert mount == {"name": "nvml", "mountPath": f"{path}/libnvidia-ml.so.1", "readOnly": True}
    context = made["securityContext"]
    assert context["privileged"] is True, "nothing else gives it the device files"
    assert context["readOnlyRootFilesystem"] is True
    assert "LD_LIBRARY_PATH" not in str(pod_of(render, "agent")), "where a runtime gives it, its place is known"


def test_the_kubelets_folder_may_be_elsewhere_and_its_absence_stops_no_agent(render: Render) -> None:
    folder = "/var/snap/microk8s/common/var/lib/kubelet/pod-resources"
    pod = pod_of(render, "agent", podResourcesDir=folder)
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "pod-resources"]
    assert volume["hostPath"] == {"path": folder, "type": "DirectoryOrCreate"}
    given = agent_main.parse([a.replace("$(NODE_NAME)", "n1") for a in container_of(pod)["args"]])
    assert str(given.pod_resources) == f"{folder}/kubelet.sock"


def test_selinux_and_privilege_are_the_sites_to_say(render: Render) -> None:
    context = container_of(pod_of(render, "agent", seLinuxOptions={"type": "spc_t"}, privileged=True))["securityContext"]
    assert (context["seLinuxOptions"], context["privileged"]) == ({"type": "spc_t"}, True)
    assert "seLinuxOptions" not in container_of(pod_of(render, "agent"))["securityContext"]


def test_user_ids_may_be_the_clusters_to_give(render: Render) -> None:
    plain = pod_of(render, "operator")["spec"]["securityContext"]
    given = pod_of(render, "operator", runAsUser=None)["spec"]["securityContext"]
    assert (plain["runAsUser"], plain["runAsNonRoot"]) == (65532, True)
    assert given == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


# ------------------------------------------------------------------------------------------------------ what else goes in


@EACH
def test_annotations_labels_variables_and_volumes_go_in(render: Render, component: str) -> None:
    volume, mount = {"name": "more", "emptyDir": {}}, {"name": "more", "mountPath": "/more"}
    pod = pod_of(
        render,
        component,
        podAnnotations={"nvidia.cdi.k8s.io/container.agent": "management.nvidia.com/gpu=all"},
        podLabels={"team": "power", "app.kubernetes.io/component": "mine"},
        extraEnv=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        extraVolumes=[volume],
        extraVolumeMounts=[mount],
    )
    assert pod["metadata"]["annotations"] == {"nvidia.cdi.k8s.io/container.agent": "management.nvidia.com/gpu=all"}
    assert pod["metadata"]["labels"]["team"] == "power"
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == component, "what selects the pods stays"
    assert container_of(pod)["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert volume in pod["spec"]["volumes"] and mount in container_of(pod)["volumeMounts"]


def test_a_variable_of_the_sites_own_stands_instead_of_ours(render: Render) -> None:
    """Two rows of one name are refused by server-side apply, by which Helm and Argo CD write."""
    env = container_of(pod_of(render, "agent", extraEnv=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]))["env"]
    names = [row["name"] for row in env]
    assert len(set(names)) == len(names)
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in env


@EACH
def test_a_start_writes_no_warnings_of_failed_probes(render: Render, component: str) -> None:
    made = container_of(pod_of(render, component))
    startup = made["startupProbe"]
    assert startup["httpGet"]["path"] == "/healthz" and startup["initialDelaySeconds"] > 0
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 60
    assert "initialDelaySeconds" not in made["livenessProbe"], "the startup probe waits for both"


# -------------------------------------------------------------------------------------------------------------- quota


@pytest.mark.parametrize(
    ("operator", "agent", "classes"),
    [
        ("system-cluster-critical", "system-node-critical", ["system-cluster-critical", "system-node-critical"]),
        ("system-node-critical", "system-node-critical", ["system-node-critical"]),
        ("", "system-node-critical", ["system-node-critical"]),
        ("mine", "", None),
    ],
)
def test_the_quota_speaks_of_the_critical_classes_in_use(
    render: Render, operator: str, agent: str, classes: list[str] | None
) -> None:
    found = render(values={"operator": {"priorityClassName": operator}, "agent": {"priorityClassName": agent}})
    quota = found.get(("ResourceQuota", "splitwatt-critical-pods"))
    assert (quota and quota["spec"]["scopeSelector"]["matchExpressions"][0]["values"]) == classes
    spec = found["DaemonSet", "splitwatt-agent"]["spec"]["template"]["spec"]
    assert spec.get("priorityClassName", "") == agent


def test_pull_secrets_reach_both(render: Render) -> None:
    found = render(values={"imagePullSecrets": [{"name": "key"}], "image": {"registry": "r.io"}})
    for key in (("Deployment", "splitwatt-operator"), ("DaemonSet", "splitwatt-agent")):
        assert found[key]["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "key"}]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"image": {"registry": "https://r.io"}}, "/image/registry': 'https://r.io' does not match"),
        ({"image": {"registery": "r.io"}}, "additional properties 'registery' not allowed"),
        ({"agent": {"driverLibraryDir": "lib64"}}, "/agent/driverLibraryDir': 'lib64' does not match"),
        ({"agent": {"seLinuxOptions": {"typ": "spc_t"}}}, "additional properties 'typ' not allowed"),
        ({"agent": {"tolerations": [{"key": "a", "operator": "Exist"}]}}, "tolerations/0/operator': value must be one of"),
        ({"agent": {"affinity": {"requiredDuringScheduling": {}}}}, "additional properties 'requiredDuringScheduling'"),
        ({"agent": {"extraEnv": [{"value": "b"}]}}, "/agent/extraEnv/0': missing property 'name'"),
        ({"agent": {"extraVolumeMounts": [{"name": "a", "mountPath": "b"}]}}, "mountPath': 'b' does not match"),
        ({"agent": {"podAnnotations": {"a": True}}}, "/agent/podAnnotations/a': got boolean, want string"),
        ({"agent": {"image": {"digest": "abc"}}}, "/agent/image/digest': 'abc' does not match"),
        ({"router": {"image": "r.io/router:1"}}, "/router/image': got string, want object"),
        ({"operator": {"runAsUser": 0}}, "/operator/runAsUser': minimum: got 0, want 1"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_value_gets_a_sentence(helm: Helm, values: Mapping[str, Any], sentence: str) -> None:
    result = helm("template", CHART, values={"image": {"registry": "r.io"}} | dict(values))
    assert result.returncode != 0
    assert sentence in result.stderr
