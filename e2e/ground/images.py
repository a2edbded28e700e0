"""The product's own images, by `make images`, as archives that a node can load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitwatt_core import __version__
from splitwatt_lab.errors import LabError

from ground import rootfs

REPOSITORY: Final = "localhost"
OUT: Final = Path("out") / "images"
AGENT: Final = f"{REPOSITORY}/splitwatt-agent:{__version__}"
ENGINE: Final = f"{REPOSITORY}/splitwatt-engine:{__version__}"
BASE_PACKAGES: Final = (
    *("python3.11-minimal", "libpython3.11-stdlib", "python3.11-venv", "python-is-python3", "python3", "ca-certificates"),
)
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def base() -> str:
    """Of Debian and Python's minor version as the official image has them."""
    return rootfs.image_of(rootfs.debian(BASE_PACKAGES, variant="minbase"), name="splitwatt-e2e-python")


def arguments() -> Sequence[str]:
    """The machine's own authorities, which a pip inside does not know else, and its network: a bridge would stay behind."""
    return ["--network=host", f"--volume={AUTHORITIES}:{AUTHORITIES}:ro"]


def ensure(repository: Path) -> Sequence[Path]:
    """Archives of all images, built by `make images` on a base of ours. Raises LabError."""
    env = {**os.environ, **rootfs.storage()}
    command: list[str | Path] = [
        "make",
        "-C",
        repository,
        "images",
        "ENGINE=buildah",
        f"BASE={base()}",
        f"IMAGE_ARGS={' '.join(arguments())}",
    ]
    rootfs.run(command, what="make images", env=env)
    return archives(repository)


def archives(repository: Path) -> Sequence[Path]:
    """What `make images` left. Raises LabError when there is nothing."""
    found = sorted((repository / OUT).glob("*.tar"))
    if not found:
        raise LabError(f"there are no images in {repository / OUT}; run `make images`")
    return found
