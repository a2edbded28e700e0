"""One real node beside the lab's control plane: kubelet, containerd and kube-proxy of this machine, inside a run's namespaces.

All default paths hold, for the run has laid its own folders over them (see `inside`). The GPUs are simulated, all else is not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.toolbuild import ensure_tools
from splitwatt_nvml_twin.handle import NodeTwin

from ground import archive, host, node_config, nvidia, tools
from ground.cluster import Commands, network_of, vllm_folder
from ground.inside import ADDRESS

NAME: Final = "node-1"
LABELS: Final[Mapping[str, str]] = {
    "nvidia.com/gpu.present": "true",
    "splitwatt.io/rack": "a1",
    "splitwatt.io/pool": "h100",
}
READY_S: Final = 120.0
_POLL_S: Final = 0.1
_PROXY: Final = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "kube-proxy"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
}
# What a reboot takes with it.
_MOUNTED_BELOW: Final = ("/run/containerd/", "/run/netns/", "/var/lib/kubelet/")
_IN_MEMORY: Final = ("/run/containerd", "/var/lib/cni")


class NodeCluster(Commands):
    """Begins as it is made; raises LabError with one sentence. Only inside a run's namespaces."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.address_of_host = ADDRESS
        self._logs = scratch / "logs"
        self._logs.mkdir()
        lab_tools, node_tools = ensure_tools(), tools.ensure(names=tools.FOR_NODE)
        self._programs: Mapping[str, Path] = {**lab_tools.paths, **node_tools}
        self._plane = ControlPlane(scratch / "plane", tools=lab_tools, address=ADDRESS)
        self._plane.__enter__()
        (self._logs / "control-plane").symlink_to(self._plane.logs)
        super().__init__(tools=self._programs, kubeconfig=self._plane.kubeconfig, home=scratch / "home")
        self._group = ProcessGroup(scratch / "node").__enter__()
        self._folder = self._group.directory
        self._twin_folder = scratch / "twins" / NAME
        self._boot_id_file = scratch / nvidia.BOOT_ID_FILE
        self._twin = nvidia.make_twin(self._twin_folder, node=NAME, boot_id=self._boot_id_file.read_text().strip())
        self._write_configuration()
        self._start()
        self.kubectl("apply", "-f", "-", stdin=json.dumps(nvidia.RUNTIME_CLASS))

    # ------------------------------------------------------------------------------------------------ the protocol

    def load(self, archives: Sequence[Path]) -> None:
        for each in archives:
            self._ctr("-n", "k8s.io", "images", "import", str(each))

    def tag(self, image: str, other: str) -> None:
        self._ctr("-n", "k8s.io", "images", "tag", "--force", image, other)

    def nodes(self) -> Sequence[str]:
        return [NAME]

    def twin(self, node: str) -> NodeTwin:
        assert node == NAME
        return self._twin

    def vllm(self) -> str:
        return str(vllm_folder())

    def shell_of(self, address: str) -> Sequence[str]:
        return network_of(address)

    def stop_api_server(self) -> None:
        self._plane.kill(Component.API_SERVER)

    def start_api_server(self) -> None:
        """Again and again, as a kubelet would: one that does not reach etcd within 20 s ends."""
        deadline_s = time.monotonic() + READY_S
        while True:
            try:
                self._plane.start(Component.API_SERVER)
                break
            except LabError:
                if time.monotonic() > deadline_s:
                    raise
        self._await_node()

    def restart_kubelet(self, node: str) -> None:
        assert node == NAME
        self._group["kubelet"].restart()
        self._await_node()

    def restart_node(self, node: str) -> None:
        """As if the power had gone: no process of the node is asked."""
        assert node == NAME
        for name in ("kubelet", "kube-proxy", "containerd"):
            self._group[name].kill()
        self._end_containers()
        self._forget_memory()
        boot_id = str(uuid.uuid4())
        for file in (self._boot_id_file, self._twin_folder / nvidia.BOOT_ID_FILE):
            file.write_text(f"{boot_id}\n")
        self._twin.reboot(boot_id)
        for name, ready in (("containerd", self._containerd_ready), ("kubelet", None), ("kube-proxy", None)):
            self._group[name].start()
            if ready is not None:
                self._group[name].await_ready(ready, timeout_s=READY_S)
        self._await_node(boot_id)

    def close(self) -> None:
        self.end_proxy()
        for name in ("kubelet", "kube-proxy", "containerd"):
            if name in self._group:
                self._group[name].kill()
        self._end_containers()
        self._twin.close()
        self._group.close()
        self._plane.close()

    # ------------------------------------------------------------------------------------------------ inside

    def _write_configuration(self) -> None:
        spec = self._folder / "nvidia-spec.json"
        default = json.loads(self._output([str(host.require("ctr")), "oci", "spec"]))
        spec.write_text(nvidia.base_spec(default, twin_folder=str(self._twin_folder)))
        (self._folder / "containerd.toml").write_text(
            node_config.containerd(
                pause_image=archive.PAUSE_IMAGE, cni_programs=host.require("host-local").parent, nvidia_spec=spec
            )
        )
        Path("/etc/cni/net.d/10-pods.conflist").write_text(node_config.bridge_network())
        resolv_conf = self._folder / "resolv.conf"
        resolv_conf.write_text("")
        (self._folder / "kubelet.yaml").write_text(
            node_config.kubelet(authority=self._plane.client_authority, resolv_conf=resolv_conf)
        )
        proxy = self._plane.certificate_kubeconfig("kube-proxy", user="system:kube-proxy")
        (self._folder / "kube-proxy.yaml").write_text(node_config.kube_proxy(kubeconfig=proxy))
        self.kubectl("apply", "-f", "-", stdin=json.dumps(_PROXY))

    def _start(self) -> None:
        kubeconfig = self._plane.certificate_kubeconfig("kubelet", user=f"system:node:{NAME}", groups=["system:nodes"])
        containerd = self._begin("containerd", [host.require("containerd"), "--config", self._folder / "containerd.toml"])
        containerd.await_ready(self._containerd_ready, timeout_s=READY_S)
        self.load([archive.pause(self._folder)])
        labels = ",".join(f"{key}={value}" for key, value in LABELS.items())
        self._begin(
            "kubelet",
            [
                self._programs["kubelet"],
                f"--config={self._folder / 'kubelet.yaml'}",
                f"--kubeconfig={kubeconfig}",
                f"--hostname-override={NAME}",
                f"--node-ip={ADDRESS}",
                f"--node-labels={labels}",
            ],
        )
        proxy: list[str | Path] = [
            self._programs["kube-proxy"],
            f"--config={self._folder / 'kube-proxy.yaml'}",
            f"--hostname-override={NAME}",
        ]
        self._begin("kube-proxy", proxy)
        self._await_node()

    def _begin(self, name: str, command: Sequence[str | Path]) -> Process:
        return self._group.start(name, command, log=self._logs / f"{name}.log")

    def _containerd_ready(self) -> bool:
        return subprocess.run([str(host.require("ctr")), "version"], capture_output=True, check=False).returncode == 0

    def _ctr(self, *arguments: str) -> str:
        return self._output([str(host.require("ctr")), *arguments])

    def _output(self, command: Sequence[str]) -> str:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode != 0:
            raise LabError(f"{' '.join(command)} failed: {result.stderr.strip()}")
        return result.stdout

    def _await_node(self, boot_id: str | None = None) -> None:
        """Until the kubelet says Ready anew, and of this boot."""
        asked_s = time.time()

        def ready() -> bool:
            found = self.kubectl("get", "node", NAME, "-o", "json", check=False)
            if found.returncode != 0:
                return False
            return node_config.ready(json.loads(found.stdout), since_s=asked_s, boot_id=boot_id)

        self._group["kubelet"].await_ready(_slowly(ready), timeout_s=READY_S)

    def _end_containers(self) -> None:
        """Every shim and all below it, at once. Only processes of this run are in sight here."""
        for process in psutil.process_iter(["name"]):
            if process.info["name"].startswith("containerd-shim"):
                for each in (*process.children(recursive=True), process):
                    try:
                        os.kill(each.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue  # it ended by itself

    def _forget_memory(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(_MOUNTED_BELOW):
                subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        for folder in _IN_MEMORY:
            for child in Path(folder).iterdir():
                shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink()
        for namespace in Path("/run/netns").iterdir():
            namespace.unlink()
        for command in (["ip", "link", "del", "cni0"], ["nft", "flush", "ruleset"]):
            subprocess.run(command, check=False, capture_output=True)


def _slowly(ready: Callable[[], bool]) -> Callable[[], bool]:
    """kubectl is a heavy way to ask: not thirty times a second."""

    def look() -> bool:
        time.sleep(_POLL_S)
        return ready()

    return look
