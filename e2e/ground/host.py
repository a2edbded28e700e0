"""Programs that a machine must have for a ground, and Debian's packages that bring them.

`python -m ground.host node` says what is missing and, as root on Debian or Ubuntu, installs it. Elsewhere it says what to
install. Nothing is ever removed for it, and no daemon is started: each runs where a ground starts it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

CNI_FOLDERS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
POLICY: Final = Path("/usr/sbin/policy-rc.d")
_NO_DAEMON: Final = "#!/bin/sh\nexit 101\n"

PROGRAMS: Final[Mapping[str, str]] = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "host-local": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "ip": "iproute2",
    "curl": "curl",
    "nsenter": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "podman": "podman",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "unshare": "util-linux",
}
"""Program -> Debian's package."""

IMAGES: Final = ("buildah", "mmdebstrap")
NODE: Final = (
    *("unshare", "ip", "containerd", "runc", "host-local", "iptables", "nft", "conntrack", "ethtool", "socat", "curl", "nsenter"),
    *IMAGES,
)
KIND: Final = (*NODE, "podman", "netavark", "aardvark-dns")
NEEDS: Final[Mapping[str, Sequence[str]]] = {"node": NODE, "kind": KIND}

_ELSEWHERE: Final[Mapping[str, Sequence[str]]] = {
    "host-local": [str(folder) for folder in CNI_FOLDERS],
    "netavark": ["/usr/lib/podman", "/usr/libexec/podman"],
    "aardvark-dns": ["/usr/lib/podman", "/usr/libexec/podman"],
}
_SYSTEM_PATH: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(program: str) -> Path | None:
    """Where a program lies; system folders count even when they are not on PATH."""
    places = [os.environ.get("PATH", ""), *_SYSTEM_PATH, *_ELSEWHERE.get(program, ())]
    found = shutil.which(program, path=":".join(places))
    return None if found is None else Path(found)


def require(program: str) -> Path:
    """Raises LabError that names the package."""
    path = find(program)
    if path is None:
        raise LabError(f"there is no `{program}` on this machine; install {PROGRAMS[program]} (Debian's name)")
    return path


def missing(programs: Sequence[str]) -> Sequence[str]:
    return [program for program in programs if find(program) is None]


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def ensure(programs: Sequence[str]) -> None:
    """Have all of them. Raises LabError: what is missing here and why it is not installed by itself."""
    if os.geteuid() != 0:
        raise LabError("namespaces, mounts and cgroups of a node are root's to make; run this as root")
    absent = missing(programs)
    if not absent:
        return
    packages = sorted({PROGRAMS[program] for program in absent})
    if not can_install():
        raise LabError(f"{', '.join(absent)} must be installed first (on Debian: {' '.join(packages)}); there is no apt-get here")
    sys.stderr.write(f"installing {' '.join(packages)} with apt-get\n")
    _apt_get("update", "-q")
    with _no_daemons():
        _apt_get("install", "-qy", "--no-install-recommends", "--no-remove", *packages)
    if still := missing(programs):
        raise LabError(f"{', '.join(still)} is still missing after {' '.join(packages)} was installed; look at apt-get's output")


def _apt_get(*arguments: str) -> None:
    result = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        reason = " ".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-2:])
        raise LabError(f"`apt-get {' '.join(arguments)}` failed: {reason}")


@contextmanager
def _no_daemons() -> Iterator[None]:
    """Debian's packages start their daemons unless a policy forbids it; one that is there is left as it is."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text(_NO_DAEMON)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def main() -> int:
    ground = sys.argv[1] if len(sys.argv) == 2 else ""
    if ground not in NEEDS:
        sys.stderr.write(f"usage: python -m ground.host {'|'.join(NEEDS)}\n")
        return 2
    try:
        ensure(NEEDS[ground])
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
