"""Base images and root file systems from Debian's packages, for machines that reach no container registry.

Each is made once: the tar lies in the user's cache under a hash of what it was made of.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolchain import cache_directory

from ground import host

SUITE: Final = "bookworm"
TIMEOUT_S: Final = 900.0


def cache() -> Path:
    folder = cache_directory() / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def storage() -> Mapping[str, str]:
    """Environment under which buildah and podman keep their images in the user's cache and nowhere else."""
    folder = cache() / "containers"
    config = cache() / "storage.conf"
    config.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}"\nrunroot = "{folder}-run"\n'
        '[storage.options.overlay]\nmountopt = "nodev"\n'
    )
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(config)}


def run(command: Sequence[str | Path], *, what: str, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """What it printed. Raises LabError with its last words."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(
            f"{what} did not end within {timeout_s:g} s; run it again on a freer machine, what is done is kept"
        ) from error
    if result.returncode != 0:
        last = " ".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-3:])
        raise LabError(f"{what} failed: {last}")
    return result.stdout


def debian(packages: Sequence[str], *, variant: str) -> Path:
    """The tar of a Debian with these packages, as mmdebstrap makes it."""
    digest = hashlib.sha256("\n".join([SUITE, variant, *sorted(packages)]).encode()).hexdigest()[:16]
    target = cache() / f"debian-{digest}.tar"
    if target.exists():
        return target
    fresh = target.with_name(f".new-{target.name}")
    # In a mount namespace of its own: ended halfway, it would leave its mounts on the machine.
    mmdebstrap: list[str | Path] = [
        host.require("unshare"),
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        host.require("mmdebstrap"),
    ]
    command: list[str | Path] = [*mmdebstrap, f"--variant={variant}", f"--include={','.join(packages)}", SUITE, fresh]
    run(command, what=f"making a Debian with {', '.join(packages[:4])}, ... by mmdebstrap")
    fresh.rename(target)
    return target


def image_of(tar: Path, *, name: str) -> str:
    """An image in our storage whose one layer is `tar`; its full name, tagged by the tar's own."""
    env, buildah = storage(), host.require("buildah")
    full = f"localhost/{name}:{tar.stem}"
    if full in run([buildah, "images", "--format", "{{.Name}}:{{.Tag}}"], what="listing images", env=env).split():
        return full
    container = run([buildah, "from", "scratch"], what="buildah from", env=env).strip()
    try:
        run([buildah, "add", container, tar], what="buildah add", env=env)
        run([buildah, "commit", container, full], what="buildah commit", env=env)
    finally:
        run([buildah, "rm", container], what="buildah rm", env=env)
    return full
