"""GPUs as pods get them: NVIDIA's resource, a resource that is shared by time slicing, and claims. Each is offered by a small
program of this folder, which runs in the agent's image from a ConfigMap, on nodes with GPUs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ground import device_plugin, dra_driver, wire
from ground.cluster import GPUS, HANDLER, Cluster

SYSTEM: Final = "kube-system"
SHARED: Final = "nvidia.com/gpu.shared"
"""As NVIDIA's plugin calls a GPU that it offers several times (`renameByDefault`)."""
OFFERED_S: Final = 120
_RULES: Final = (
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]},
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["create"]},
)


@dataclass(frozen=True, slots=True)
class Program:
    """`module` of this folder as a DaemonSet `name`. `folders`: of the node, mounted where they are."""

    name: str
    module: str
    folders: Sequence[Path]
    env: Mapping[str, str] = field(default_factory=dict)
    node: str | None = None
    account: str = "default"

    def manifests(self, image: str) -> list[Mapping[str, Any]]:
        meta, labels = {"name": self.name, "namespace": SYSTEM}, {"app": self.name}
        sources = {f"{module.__name__.rpartition('.')[2]}.py": module for module in (wire, device_plugin, dra_driver)}
        texts = {name: Path(str(module.__file__)).read_text() for name, module in sources.items()}
        scripts = [{"key": name, "path": f"ground/{name}"} for name in texts]
        env = {"PYTHONPATH": "/script:/opt/splitwatt", **self.env}
        mounts = {f"node-{number}": str(folder) for number, folder in enumerate(self.folders)}
        container = {
            "name": "program",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-m", f"ground.{self.module}"],
            "env": [{"name": name, "value": value} for name, value in env.items()],
            "volumeMounts": [
                {"name": "script", "mountPath": "/script"},
                *({"name": name, "mountPath": path} for name, path in mounts.items()),
            ],
        }
        where = {"kubernetes.io/hostname": self.node} if self.node else {"nvidia.com/gpu.present": "true"}
        pod = {
            "runtimeClassName": HANDLER,
            "priorityClassName": "system-node-critical",
            "serviceAccountName": self.account,
            "nodeSelector": where,
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [
                {"name": "script", "configMap": {"name": self.name, "items": scripts}},
                *({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}} for name, path in mounts.items()),
            ],
        }
        template = {"metadata": {"labels": labels}, "spec": pod}
        return [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": texts},
            {
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": meta,
                "spec": {"selector": {"matchLabels": labels}, "template": template},
            },
        ]


def install_device_plugin(cluster: Cluster) -> None:
    """On every node with GPUs; waits until each offers them."""
    _apply(cluster, Program("gpu-device-plugin", "device_plugin", [device_plugin.FOLDER]).manifests(cluster.image("agent")))
    for node in cluster.nodes():
        await_offered(cluster, node, "nvidia.com/gpu", GPUS)


def share(cluster: Cluster, node: str, uuid: str, *, replicas: int) -> None:
    """Offer one GPU of a node so many times, as `SHARED`."""
    env = {"RESOURCE": SHARED, "DEVICES": uuid, "REPLICAS": str(replicas)}
    plugin = Program("gpu-shared-plugin", "device_plugin", [device_plugin.FOLDER], env, node)
    _apply(cluster, plugin.manifests(cluster.image("agent")))
    await_offered(cluster, node, SHARED, replicas)


def offer_by_claim(cluster: Cluster, node: str, uuid: str) -> None:
    """Offer one GPU of a node to claims of the DeviceClass `gpu.nvidia.com`."""
    name = "gpu-dra-driver"
    who = {"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}
    rbac = "rbac.authorization.k8s.io"
    rights: list[Mapping[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SYSTEM}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": list(_RULES)},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [who],
        },
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": dra_driver.DRIVER},
            "spec": {"selectors": [{"cel": {"expression": f'device.driver == "{dra_driver.DRIVER}"'}}]},
        },
    ]
    env = {"NODE": node, "DEVICES": uuid}
    driver = Program(name, "dra_driver", [dra_driver.REGISTRY, dra_driver.PLUGINS], env, node, account=name)
    _apply(cluster, [*rights, *driver.manifests(cluster.image("agent"))])
    ready = "--for=jsonpath={.status.numberReady}=1"
    cluster.kubectl("wait", "-n", SYSTEM, f"ds/{name}", ready, f"--timeout={OFFERED_S}s")


def withdraw(cluster: Cluster, name: str) -> None:
    """End a program: what it offered is gone with its pod."""
    cluster.kubectl("delete", "ds", name, "-n", SYSTEM, "--ignore-not-found", "--wait=true", "--timeout=60s")


def await_offered(cluster: Cluster, node: str, resource: str, count: int) -> None:
    key = resource.replace(".", "\\.")
    wanted = f"jsonpath={{.status.allocatable.{key}}}={count}"
    cluster.kubectl("wait", f"node/{node}", f"--for={wanted}", f"--timeout={OFFERED_S}s")


def _apply(cluster: Cluster, manifests: Sequence[Mapping[str, Any]]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(items))
