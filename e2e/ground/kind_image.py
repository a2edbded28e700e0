"""A node image for kind where none can be pulled: Debian's packages, kind's own files, and the Kubernetes that we build.

What kind's own build does with docker and a registry, done with mmdebstrap, buildah and this machine's containerd. The image lies
in the user's cache under a hash of its inputs. CoreDNS and kindnetd are not in it: kind.py leaves them out, and lays a bridge.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import ensure_tools
from splitwatt_lab.toolchain import BUILD_ENVIRONMENT

from ground import archive, host, rootfs, tools

NAME: Final = "splitwatt-e2e-kind-node"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "mount", "kmod"),
    *("libseccomp2", "procps", "jq", "ca-certificates", "curl", "socat", "containerd", "runc", "containernetworking-plugins"),
)
_LINKS: Final[Mapping[str, str]] = {
    **{f"usr/local/bin/{name}": f"/usr/bin/{name}" for name in ("containerd", "ctr", "containerd-shim-runc-v2")},
    "usr/local/sbin/runc": "/usr/sbin/runc",
    "opt/cni/bin": "/usr/lib/cni",
    "etc/systemd/system/multi-user.target.wants/kubelet.service": "/etc/systemd/system/kubelet.service",
    "etc/systemd/system/multi-user.target.wants/containerd.service": "/etc/systemd/system/containerd.service",
    "etc/systemd/system/multi-user.target.wants/undo-mount-hacks.service": "/etc/systemd/system/undo-mount-hacks.service",
    "etc/systemd/system/systemd-binfmt.service": "/dev/null",
}
# As kind's Dockerfile prunes them: a node in a container has no devices and no consoles to care for.
_UNWANTED: Final = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/basic.target.wants/*",
)
_STORAGE: Final = """apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
"""
_NO_NETWORK: Final = "apiVersion: v1\nkind: List\nitems: []\n"
_IN_IMAGE: Final = "/usr/local/bin"
_SANDBOX: Final = re.compile(r'sandbox_image\s*=\s*"([^"]+)"')
_READY_S: Final = 30.0


def ensure() -> str:
    """The image's full name in our storage, built when it is not there. Raises LabError."""
    env, buildah = rootfs.storage(), host.require("buildah")
    name = f"localhost/{NAME}:{inputs_hash()}"
    if name in rootfs.run([buildah, "images", "--format", "{{.Name}}:{{.Tag}}"], what="listing images", env=env).split():
        return name
    with tempfile.TemporaryDirectory(prefix="kind-node-", dir=rootfs.cache()) as scratch:
        root = Path(scratch) / "root"
        _lay(root)
        _preload(root, Path(scratch))
        container = rootfs.run([buildah, "from", "scratch"], what="buildah from", env=env).strip()
        try:
            rootfs.run([buildah, "add", container, root], what="buildah add", env=env)
            settings = [
                "--env=container=docker",
                "--stop-signal=SIGRTMIN+3",
                '--entrypoint=["/usr/local/bin/entrypoint", "/sbin/init"]',
            ]
            rootfs.run([buildah, "config", *settings, container], what="buildah config", env=env)
            rootfs.run([buildah, "commit", container, name], what="buildah commit", env=env)
        finally:
            rootfs.run([buildah, "rm", container], what="buildah rm", env=env)
    return name


def inputs_hash() -> str:
    programs = _programs()
    parts = [*PACKAGES, rootfs.SUITE, Path(__file__).read_text(), *(str(path) for path in sorted(programs.values()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _programs() -> Mapping[str, Path]:
    """Their folders are named by hashes of their own inputs."""
    return {**ensure_tools().paths, **tools.ensure()}


def official() -> str:
    """The node image that this release of kind would take."""
    text = (_kind_module() / "pkg/apis/config/defaults/image.go").read_text()
    found = re.search(r'^const Image = "(\S+)"', text, re.MULTILINE)
    assert found is not None, "kind names its default image"
    return f"docker.io/{found[1]}"


def _kind_module() -> Path:
    command = ["go", "mod", "download", "-json", "sigs.k8s.io/kind"]
    env = {**os.environ, **BUILD_ENVIRONMENT}
    result = subprocess.run(command, cwd=tools.PINS / "kind", env=env, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"kind's module could not be fetched: {result.stderr.strip() or result.stdout.strip()}")
    return Path(json.loads(result.stdout)["Dir"])


def _lay(root: Path) -> None:
    """Debian, kind's files over it, and the programs of a node."""
    root.mkdir()
    rootfs.run(["tar", "-xf", rootfs.debian(PACKAGES, variant="minbase"), "-C", root, "--exclude=./dev/*"], what="unpacking")
    files = _kind_module() / "images" / "base" / "files"
    for source in sorted(path for path in files.rglob("*") if path.is_file()):
        target = root / source.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if target.parent.name == "bin" else 0o644)
    for pattern in _UNWANTED:
        for path in root.glob(pattern):
            path.unlink()
    with (root / "etc/systemd/journald.conf").open("a") as journald:
        journald.write("ReadKMsg=no\n")
    for link, target_name in _LINKS.items():
        path = root / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target_name)
    programs = _programs()
    for name in ("kubelet", "kubeadm", "kubectl"):
        shutil.copy2(programs[name], root / "usr/bin" / name)
    (root / "etc/kubernetes/manifests").mkdir(parents=True)
    (root / "kind/manifests").mkdir(parents=True)
    (root / "kind/version").write_text(next(tool.version for tool in tools.TOOLS if tool.name == "kubelet"))
    (root / "kind/manifests/default-cni.yaml").write_text(_NO_NETWORK)
    (root / "kind/manifests/default-storage.yaml").write_text(_STORAGE)
    spec = json.loads(rootfs.run([host.require("ctr"), "oci", "spec"], what="ctr oci spec"))
    spec["process"].pop("rlimits", None)
    spec["hooks"] = {"createContainer": [{"path": "/kind/bin/mount-product-files.sh"}]}
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(spec))


def _preload(root: Path, scratch: Path) -> None:
    """The control plane's images into the image's own containerd: written by this machine's, whose format is the same."""
    folder, state, socket = root / "var/lib/containerd", scratch / "state", scratch / "containerd.sock"
    config = scratch / "containerd.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    command: list[str | Path] = [
        host.require("containerd"),
        "--config",
        config,
        "--root",
        folder,
        "--state",
        state,
        "--address",
        socket,
    ]
    with (scratch / "containerd.log").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    ctr: list[str | Path] = [host.require("ctr"), "--address", socket, "--namespace", "k8s.io"]
    try:
        deadline_s = time.monotonic() + _READY_S
        while subprocess.run([str(word) for word in (*ctr, "version")], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline_s or process.poll() is not None:
                raise LabError(f"containerd did not start: {(scratch / 'containerd.log').read_text()[-400:]}")
            time.sleep(0.1)
        for image in _control_plane(root, scratch):
            label = "--label=io.cri-containerd.pinned=pinned"
            rootfs.run([*ctr, "images", "import", label, "--all-platforms", "--no-unpack", "--digests", image], what="ctr import")
    finally:
        process.terminate()
        process.wait()


def _control_plane(root: Path, scratch: Path) -> Sequence[Path]:
    """Archives under the names that kubeadm asks for, each with one program."""
    programs = _programs()
    version = (root / "kind/version").read_text()
    listed = rootfs.run([programs["kubeadm"], "config", "images", "list", f"--kubernetes-version={version}"], what="kubeadm")
    sandbox = _SANDBOX.search((root / "etc/containerd/config.toml").read_text())
    assert sandbox is not None, "kind's containerd configuration names its sandbox image"
    made = []
    for name in listed.split():
        program = name.rsplit("/", 1)[-1].split(":")[0]
        if program not in programs:
            continue  # pause has a file of its own, and CoreDNS is left out
        files = {f"{_IN_IMAGE}/{program}": programs[program]}
        if program == "kube-proxy":
            files |= _with_libraries(host.require("nft"))
        made.append(archive.write(scratch / f"{program}.tar", name=name, files=files, entrypoint=[program]))
    pause = archive.pause_program(scratch)
    made.append(archive.write(scratch / "pause.tar", name=sandbox[1], files={"/pause": pause}, entrypoint=["/pause"]))
    return made


def _with_libraries(program: Path) -> dict[str, Path]:
    """A program and every library that its loader asks for."""
    found = re.findall(r"(/\S+) \(0x", rootfs.run(["ldd", program], what="ldd"))
    return {str(path): path for path in (program, *map(Path, found))}
