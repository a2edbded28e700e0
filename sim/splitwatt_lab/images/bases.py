"""Bases of our own, from Debian's packages by mmdebstrap: for machines that reach no container registry, and for small images.

The tar of each lies in the user's cache under a hash of what it is made of; `fresh` makes it anew, with today's packages.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.images.engines import ContainerEngine, Tick, run_logged
from splitwatt_lab.toolchain import cache_directory

SUITE: Final = "bookworm"
"""Debian 12: its Python is 3.11, as in the official image that is the default base."""
LEFT_OUT: Final = (
    *("path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*"),
    *("path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/lib/*/gconv/*"),
)
"""What people read, but for licences, and character sets that Python brings itself. dpkg's options."""


@dataclass(frozen=True, slots=True)
class DebianBase:
    """`variant`: mmdebstrap's; `extract` unpacks the packages named and what they depend on, and configures none."""

    name: str
    variant: str
    packages: Sequence[str]

    @property
    def key(self) -> str:
        """Sixteen hex digits over what it is made of."""
        made_of = [SUITE, platform.machine(), self.variant, *sorted(self.packages), *LEFT_OUT]
        return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]

    @property
    def image(self) -> str:
        return f"localhost/splitwatt-{self.name}:{self.key}"

    @property
    def tar(self) -> Path:
        return cache_directory() / "images" / f"{self.name}-{self.key}.tar"


_PYTHON: Final = ("python3.11-minimal", "libpython3.11-stdlib", "python3-minimal", "python-is-python3")
RUNTIME: Final = DebianBase("base", "extract", (*_PYTHON, "libstdc++6", "zlib1g", "libssl3", "coreutils", "dash", "tar"))
"""What runs: a Python, what compiled packages link, and enough of a shell for `kubectl exec` and `kubectl cp`."""
BUILD: Final = DebianBase("build-base", "minbase", (*_PYTHON, "python3.11-venv", "python3", "ca-certificates"))


def ensure(base: DebianBase, engine: ContainerEngine, log: Path, tick: Tick, *, fresh: bool = False) -> str:
    """The name of the image, in the engine's store. Raises LabError."""
    if fresh or not base.tar.exists():
        _make(base, log, tick)
    elif engine.has(base.image):
        return base.image
    engine.import_root(base.tar, base.image, log, tick)
    return base.image


def _make(base: DebianBase, log: Path, tick: Tick) -> None:
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise LabError(
            "there is no mmdebstrap here, which makes bases of Debian's packages: install it (apt-get install mmdebstrap)"
        )
    base.tar.parent.mkdir(parents=True, exist_ok=True)
    scratch = base.tar.with_name(f".{os.getpid()}-{base.tar.name}")
    command = [mmdebstrap, f"--variant={base.variant}", f"--include={','.join(base.packages)}"]
    command += [f"--dpkgopt={option}" for option in LEFT_OUT]
    command += [SUITE, str(scratch)]  # the format follows from the name's end
    try:
        run_logged(command, log, tick, what=f"making {base.name} of Debian's packages")
        scratch.rename(base.tar)
    finally:
        scratch.unlink(missing_ok=True)
