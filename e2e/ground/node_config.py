"""Configuration of a node's programs: pure functions from places to text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

POD_SUBNET: Final = "10.202.0.0/24"
POD_GATEWAY: Final = "10.202.0.1"
DNS_ADDRESS: Final = "10.96.0.10"
SOCKET: Final = "/run/containerd/containerd.sock"


def containerd(*, pause_image: str, cni_programs: Path, nvidia_spec: Path) -> str:
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    runc = 'runtime_type = "io.containerd.runc.v2"'
    return "\n".join([
        "version = 2",
        f"{cri}]",
        f'sandbox_image = "{pause_image}"',
        # A container may be given no lower score than its starter has without CAP_SYS_RESOURCE, which many machines lack.
        "restrict_oom_score_adj = true",
        f"{cri}.cni]",
        f'bin_dir = "{cni_programs}"',
        f"{cri}.containerd]",
        'default_runtime_name = "runc"',
        f"{cri}.containerd.runtimes.runc]",
        runc,
        f"{cri}.containerd.runtimes.nvidia]",
        runc,
        f'base_runtime_spec = "{nvidia_spec}"',
        "",
    ])  # fmt: skip


def bridge_network(*, subnet: str = POD_SUBNET, masquerade: bool = True) -> str:
    plugins: list[Mapping[str, Any]] = [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": masquerade,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}, indent=1)


def kubelet(*, authority: Path, resolv_conf: Path) -> str:
    """JSON, which is YAML."""
    nothing = ("imagefs.available", "nodefs.available", "nodefs.inodesFree", "imagefs.inodesFree")
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS_ADDRESS],
            "resolvConf": str(resolv_conf),
            # A full disk of the machine is no matter of the scenarios.
            "evictionHard": {"memory.available": "50Mi", **dict.fromkeys(nothing, "0%")},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "2s",
        },
        indent=1,
    )


def kube_proxy(*, kubeconfig: Path) -> str:
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": POD_SUBNET,
            "conntrack": {"maxPerCore": 0},
        },
        indent=1,
    )


def ready(node: Mapping[str, Any], *, since_s: float = 0.0, boot_id: str | None = None) -> bool:
    """The kubelet said Ready at `since_s` (Unix time) or later, and of this boot."""
    status = node["status"]
    says = next((each for each in status.get("conditions", ()) if each["type"] == "Ready"), None)
    if says is None or says["status"] != "True" or boot_id not in (None, status["nodeInfo"]["bootID"]):
        return False
    return datetime.fromisoformat(says["lastHeartbeatTime"]).timestamp() >= int(since_s)
