"""kind by podman: one control plane and two workers with GPUs, inside a run's namespaces.

podman keeps what it writes below the run's scratch folder and only reads node images from the user's cache, so that a run that is
killed leaves no container and no volume. Pods' addresses are routed to this machine too: a load driver dials them as they are.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import ensure_tools
from splitwatt_nvml_twin.handle import NodeTwin

from ground import host, kind_image, node_config, nvidia, rootfs, tools
from ground.cluster import VLLM_VARIABLE, Commands, network_of, vllm_folder
from ground.inside import ADDRESS

NAME: Final = "e2e"
CONTROL_PLANE: Final = f"{NAME}-control-plane"
WORKERS: Final[Mapping[str, Mapping[str, str]]] = {
    f"{NAME}-worker": {"splitwatt.io/rack": "a1", "splitwatt.io/pool": "h100"},
    f"{NAME}-worker2": {"splitwatt.io/rack": "a1", "splitwatt.io/pool": "h100"},
}
IN_NODE: Final = "/nvml-twin"
VLLM_IN_NODE: Final = "/vllm"
CREATE_S: Final = 600.0
READY_S: Final = 180.0
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_DROP_IN: Final = f"""[Service]
ExecStartPre=/bin/sh -c 'grep -q " {_BOOT_ID} " /proc/self/mounts || mount --bind {IN_NODE}/boot_id {_BOOT_ID}'
"""
_MANIFEST: Final = "/etc/kubernetes/manifests/kube-apiserver.yaml"
_LAID_ASIDE: Final = "/etc/kubernetes/kube-apiserver.yaml"
_QUIET_LOOKS: Final = 4
"""In a row without an API server, until the kubelet is believed to start none."""
_CRI: Final = 'plugins."io.containerd.grpc.v1.cri"'
_CONTAINERD: Final = f"""[{_CRI}]
  restrict_oom_score_adj = true
[{_CRI}.containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "{IN_NODE}/nvidia-spec.json"
[{_CRI}.containerd.runtimes.nvidia.options]
  SystemdCgroup = true
"""
_KUBELET: Final = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nfailCgroupV1: false\n"
_NO_DNS: Final = "kind: InitConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\nskipPhases: [preflight, addon/coredns]\n"


def pod_subnet(number: int) -> str:
    return f"10.244.{number}.0/24"


class KindCluster(Commands):
    """Begins as it is made; raises LabError with one sentence. Only inside a run's namespaces."""

    def __init__(self, scratch: Path, *, image: str) -> None:
        self.scratch = scratch
        self.address_of_host = ADDRESS
        self._programs: Mapping[str, Path] = {**ensure_tools().paths, **tools.ensure()}
        self._folder = scratch / "kind"
        for folder in (self._folder, scratch / "logs"):
            folder.mkdir()
        super().__init__(tools=self._programs, kubeconfig=self._folder / "kubeconfig", home=scratch / "home")
        self._env = self._podman_environment()
        self._twins = {node: self._furnish(node) for node in (CONTROL_PLANE, *WORKERS)}
        config = self._folder / "kind.yaml"
        config.write_text(json.dumps(self._config(own=kind_image.NAME in image)))
        self._kind("create", "cluster", "--config", config, "--image", image, "--kubeconfig", self.kubeconfig, "--wait", "0s")
        self._route()
        self._await_nodes((CONTROL_PLANE, *WORKERS))
        self.kubectl("apply", "-f", "-", stdin=json.dumps(nvidia.RUNTIME_CLASS))

    # ------------------------------------------------------------------------------------------------ the protocol

    def load(self, archives: Sequence[Path]) -> None:
        for each in archives:
            self._kind("load", "image-archive", each)

    def tag(self, image: str, other: str) -> None:
        for node in (CONTROL_PLANE, *WORKERS):
            self._podman("exec", node, "ctr", "-n", "k8s.io", "images", "tag", "--force", image, other)

    def nodes(self) -> Sequence[str]:
        return list(WORKERS)

    def twin(self, node: str) -> NodeTwin:
        return self._twins[node]

    def vllm(self) -> str:
        vllm_folder()
        return VLLM_IN_NODE

    def shell_of(self, address: str) -> Sequence[str]:
        return network_of(address)

    def stop_api_server(self) -> None:
        """Its manifest is laid aside, so that the kubelet starts none, and what runs is killed before the kubelet can ask it to:
        it would take its address out of the Service then, and kube-proxy needs up to a minute to find it again."""
        self._podman("exec", CONTROL_PLANE, "sh", "-c", f"mv {_MANIFEST} {_LAID_ASIDE} && pkill -9 kube-apiserver")
        deadline_s = time.monotonic() + READY_S
        quiet = 0
        while quiet < _QUIET_LOOKS:
            if time.monotonic() > deadline_s:
                raise LabError("the API server still runs without its manifest")
            killed = self._podman("exec", CONTROL_PLANE, "sh", "-c", "pkill -9 kube-apiserver && echo killed || true")
            quiet = 0 if "killed" in killed else quiet + 1
            time.sleep(0.5)

    def start_api_server(self) -> None:
        self._podman("exec", CONTROL_PLANE, "mv", _LAID_ASIDE, _MANIFEST)
        self._await_nodes((CONTROL_PLANE, *WORKERS))

    def restart_kubelet(self, node: str) -> None:
        asked_s = time.time()
        self._podman("exec", node, "systemctl", "restart", "kubelet")
        self._await_nodes([node], since_s=asked_s)

    def restart_node(self, node: str) -> None:
        """As if the power had gone: nothing on it is asked."""
        self._podman("kill", node)
        boot_id = str(uuid.uuid4())
        (self._twin_folder(node) / nvidia.BOOT_ID_FILE).write_text(f"{boot_id}\n")
        self._twins[node].reboot(boot_id)
        asked_s = time.time()
        self._podman("start", node)
        self._route()
        self._await_nodes([node], since_s=asked_s, boot_id=boot_id)

    def close(self) -> None:
        """Nodes end with the run's namespaces, and their volumes with its scratch folder: quicker than kind would."""
        self.end_proxy()
        for twin in self._twins.values():
            twin.close()

    # ------------------------------------------------------------------------------------------------ inside

    def _podman_environment(self) -> Mapping[str, str]:
        """What podman and kind run under. The run's storage lies above the cache's, which it only reads."""
        storage, containers = self._folder / "storage.conf", self._folder / "containers.conf"
        graph = self._folder / "graph"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "/run/containers/storage"\n'
            f'[storage.options]\nadditionalimagestores = ["{rootfs.cache() / "containers"}"]\n'
        )
        containers.write_text(
            # A network namespace takes this from the machine, which need not forward.
            '[containers]\ndefault_sysctls = ["net.ipv4.ip_forward=1"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'static_dir = "{graph}/libpod"\nvolume_path = "{graph}/volumes"\ntmp_dir = "/run/libpod"\n'
            '[network]\nnetwork_backend = "netavark"\n'
            f'network_config_dir = "{self._folder}/networks"\n'
        )
        policy = Path("/etc/containers/policy.json")  # the run's own folder lies there
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        return {
            "PATH": f"{self._programs['kind'].parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.scratch / "home"),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(containers),
            "KIND_EXPERIMENTAL_PROVIDER": "podman",
        }

    def _twin_folder(self, node: str) -> Path:
        return self.scratch / "twins" / node

    def _furnish(self, node: str) -> NodeTwin:
        boot_id = str(uuid.uuid4())
        folder = self._twin_folder(node)
        twin = nvidia.make_twin(folder, node=node, boot_id=boot_id)
        spec = json.loads(rootfs.run([host.require("ctr"), "oci", "spec"], what="ctr oci spec"))
        (folder / "nvidia-spec.json").write_text(nvidia.base_spec(spec, twin_folder=IN_NODE))
        (folder / "boot-id.conf").write_text(_DROP_IN)
        number = (CONTROL_PLANE, *WORKERS).index(node)
        (folder / "pods.conflist").write_text(node_config.bridge_network(subnet=pod_subnet(number), masquerade=False))
        return twin

    def _config(self, *, own: bool) -> Mapping[str, Any]:
        def node(name: str, role: str, labels: Mapping[str, str]) -> Mapping[str, Any]:
            folder = self._twin_folder(name)
            mounts = {
                str(folder): IN_NODE,
                str(folder / "boot-id.conf"): "/etc/systemd/system/kubelet.service.d/20-boot-id.conf",
                str(folder / "pods.conflist"): "/etc/cni/net.d/10-pods.conflist",
            }
            extra: list[dict[str, Any]] = [{"hostPath": source, "containerPath": target} for source, target in mounts.items()]
            if vllm := os.environ.get(VLLM_VARIABLE):
                extra.append({"hostPath": vllm, "containerPath": VLLM_IN_NODE, "readOnly": True})
            return {"role": role, "labels": dict(labels), "extraMounts": extra}

        gpu = {"nvidia.com/gpu.present": "true"}
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": NAME,
            "networking": {"disableDefaultCNI": True, "kubeProxyMode": "nftables", "ipFamily": "ipv4"},
            "kubeadmConfigPatches": [_KUBELET, *([_NO_DNS] if own else [])],
            "containerdConfigPatches": [_CONTAINERD],
            "nodes": [
                node(CONTROL_PLANE, "control-plane", {}),
                *(node(name, "worker", {**labels, **gpu}) for name, labels in WORKERS.items()),
            ],
        }

    def _route(self) -> None:
        """Each node's pods by its present address, on this machine and on every other node."""
        shown = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        nodes = (CONTROL_PLANE, *WORKERS)
        address = {node: self._podman("inspect", "--format", shown, node).strip() for node in nodes}
        for number, node in enumerate(nodes):
            words = ["ip", "route", "replace", pod_subnet(number), "via", address[node]]
            rootfs.run(words, what="a route to pods")
            for other in nodes:
                if other != node:
                    self._podman("exec", other, *words)

    def _await_nodes(self, names: Sequence[str], *, since_s: float = 0.0, boot_id: str | None = None) -> None:
        deadline_s = time.monotonic() + READY_S
        waiting = set(names)
        while waiting:
            if time.monotonic() > deadline_s:
                raise LabError(f"not Ready after {READY_S:g} s: {', '.join(sorted(waiting))}")
            time.sleep(0.3)
            found = self.kubectl("get", "nodes", "-o", "json", check=False)
            for each in json.loads(found.stdout)["items"] if found.returncode == 0 else ():
                if node_config.ready(each, since_s=since_s, boot_id=boot_id):
                    waiting.discard(each["metadata"]["name"])

    def _kind(self, *arguments: str | Path) -> str:
        return self._say([self._programs["kind"], *arguments, "--name", NAME])

    def _podman(self, *arguments: str | Path) -> str:
        return self._say([host.require("podman"), *arguments])

    def _say(self, command: Sequence[str | Path]) -> str:
        words = [str(word) for word in command]
        result = subprocess.run(
            words, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CREATE_S, check=False
        )
        with (self.scratch / "logs" / "kind.log").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{result.stdout}{result.stderr}\n")
        if result.returncode != 0:
            raise LabError(f"{' '.join(words[:4])} failed: {result.stderr.strip()[-1500:]}")
        return result.stdout


def node_image() -> str:
    """kind's own image of its release where the registry's name resolves and it can be pulled, else one of ours."""
    official = kind_image.official()
    try:
        socket.getaddrinfo("registry-1.docker.io", 443)
        rootfs.run([host.require("buildah"), "pull", official], what=f"pulling {official}", env=rootfs.storage())
    except (OSError, LabError):
        return kind_image.ensure()
    return official
