"""The product's own images, by `make images`, as archives that a node can load."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

from ground import rootfs

OUT: Final = Path("out") / "images"
BUILD_S: Final = 3600.0


def ensure(repository: Path) -> Sequence[Path]:
    """Archives of all images, built in a store of our own, on bases of Debian's packages: no registry is asked. Raises
    LabError."""
    env = {**os.environ, **rootfs.storage()}
    command: list[str | Path] = [sys.executable, "-m", "splitwatt_lab.images", "--engine=buildah", "--own-base"]
    # The machine's network as it is: a bridge of the build's own would stay behind.
    rootfs.run([*command, "--image-args=--network=host --layers"], what="make images", env=env, timeout_s=BUILD_S)
    return archives(repository)


def archives(repository: Path) -> Sequence[Path]:
    """What `make images` left. Raises LabError when there is nothing."""
    found = sorted((repository / OUT).glob("*.tar"))
    if not found:
        raise LabError(f"there are no images in {repository / OUT}; run `make images`")
    return found
