"""PyTorch for CPUs, in a folder below the user's cache: `python -m ground.torch_cpu` makes it once and prints its path.

It holds what the extra `train` needs beyond `make setup` (`train/requirements.txt`), so that no other target waits for it. Put in
front of PYTHONPATH, it makes `import torch` work in `.venv`.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

from ground import no_cuda, rootfs

REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "train" / "requirements.txt"
_INSTALL_S: Final = 3600.0


def ensure() -> Path:
    """The folder, made where it is not there. Raises LabError."""
    digest = hashlib.sha256(f"{platform.machine()}\n{sys.version_info[:2]}\n".encode())
    for file in (REQUIREMENTS, Path(no_cuda.__file__)):
        digest.update(file.read_bytes())
    folder = rootfs.cache() / f"torch-{digest.hexdigest()[:16]}"
    if folder.exists():
        return folder
    fresh = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    only = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", *only, "--target", fresh, "-r", REQUIREMENTS]
    rootfs.run(pip, what="installing PyTorch for CPUs", timeout_s=_INSTALL_S)
    if sys.platform == "linux" and platform.machine() == "x86_64":
        no_cuda.lay(fresh / "torch")
    fresh.rename(folder)
    return folder


def main() -> int:
    try:
        sys.stdout.write(f"{ensure()}\n")
    except LabError as error:
        sys.stderr.write(f"PyTorch for CPUs: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
