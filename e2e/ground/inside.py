"""The first process of a run's namespaces: `python -I -S inside.py SCRATCH COMMAND...`. Standard library only.

It lays the run's own folders over those that a node uses, so that every default path holds (the chart's too) and nothing is
written on the machine; gives the network namespace an address and a default route, which kube-proxy and kubelet look for;
starts the command, and reaps orphans until it ends. The kernel ends everything else then.

The cgroup namespace's root is the run's own cgroup. What is mounted at /sys/fs/cgroup still shows the machine's, so it is
mounted anew: a kubelet or podman then finds a tree of its own at `/`, and whatever they make lies in the run's cgroup.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

ADDRESS: Final = "10.201.0.1"
"""Of this machine within the run: what kubelets, pods and containers dial."""
_GATEWAY: Final = "10.201.0.254"
_LINK: Final = "splitwatt0"
_CGROUPS: Final = Path("/sys/fs/cgroup")

BOUND: Final = (
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/splitwatt",
    "/var/lib/containers",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/cni/net.d",
    "/etc/containers",
)
MERELY_THERE: Final = ("/lib/modules",)
"""kind mounts it into its nodes, whether there are any modules or not."""
IN_MEMORY: Final = ("/run/containerd", "/run/netns", "/run/containers", "/run/libpod", "/var/lib/cni")


def missing_mount_points() -> list[str]:
    """Folders to make on the machine before the run, outermost first."""
    wanted: list[Path] = []
    for name in (*BOUND, *IN_MEMORY, *MERELY_THERE):
        path = Path(name)
        wanted += [at for at in (*reversed(path.parents), path) if not at.exists() and at not in wanted]
    return [str(path) for path in wanted]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def lay_folders(scratch: Path) -> None:
    for name in BOUND:
        folder = scratch / "over" / name[1:].replace("/", "-")
        folder.mkdir(parents=True)
        _run("mount", "--bind", str(folder), name)
    for name in IN_MEMORY:
        _run("mount", "-t", "tmpfs", "splitwatt-e2e", name)
    boot_id = scratch / "boot_id"
    boot_id.write_text(Path("/proc/sys/kernel/random/uuid").read_text())
    _run("mount", "--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
    _run("mount", "--make-rshared", "/")


def own_cgroups() -> None:
    if (_CGROUPS / "cgroup.controllers").exists():
        _run("mount", "-t", "cgroup2", "cgroup2", str(_CGROUPS))
        # A cgroup that hands controllers down may hold no process of its own.
        (_CGROUPS / "harness").mkdir()
        (_CGROUPS / "harness" / "cgroup.procs").write_text("0")
        controllers = (_CGROUPS / "cgroup.controllers").read_text().split()
        (_CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))
        return
    hierarchies = [folder.name for folder in sorted(_CGROUPS.iterdir()) if (folder / "cgroup.procs").exists()]
    _run("mount", "-t", "tmpfs", "cgroups", str(_CGROUPS))
    for name in hierarchies:
        folder = _CGROUPS / name
        folder.mkdir()
        if name == "unified":
            _run("mount", "-t", "cgroup2", "cgroup2", str(folder))
        else:
            options = "none,name=systemd" if name == "systemd" else name
            _run("mount", "-t", "cgroup", "-o", options, "cgroup", str(folder))


def raise_network() -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", _LINK, "type", "veth", "peer", "name", f"{_LINK}p")
    _run("ip", "addr", "add", f"{ADDRESS}/24", "dev", _LINK)
    for link in (_LINK, f"{_LINK}p"):
        _run("ip", "link", "set", link, "up")
    _run("ip", "route", "add", "default", "via", _GATEWAY)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def reap_until(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    scratch, command = Path(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends in good order
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    own_cgroups()
    lay_folders(scratch)
    raise_network()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.execvp(command[0], command)
    code = reap_until(child)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
