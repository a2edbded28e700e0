"""Compiles the simulated `libnvidia-ml.so.1`, once per version of its sources, into the user's cache.

Theory: the library is an ordinary program's dependency found through LD_LIBRARY_PATH, so it must carry NVML's own file
name and soname and be compiled against NVIDIA's own header. The folder is keyed by a hash of sources, header, flags and
compiler, and appears by one rename: two processes that build at once both end up with a whole library.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

LIBRARY_NAME: Final = "libnvidia-ml.so.1"
HEADER_PACKAGE: Final = "nvidia-nvml-dev"
BUILD_TIMEOUT_S: Final = 300.0

_SOURCES: Final = Path(__file__).parent / "csrc"
_FLAGS: Final = (
    *("-std=c17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Werror"),
    f"-Wl,-soname,{LIBRARY_NAME}",
)


class BuildError(RuntimeError):
    """The library cannot be built; the message says what to change."""


def _header_folder() -> Path:
    try:
        files = metadata.files(HEADER_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise BuildError(f"nvml.h is missing: install the Python package {HEADER_PACKAGE} (extra `twin`)") from None
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate())).resolve().parent
    raise BuildError(f"the installed {HEADER_PACKAGE} has no nvml.h: install it again")


def _compiler() -> str:
    wanted = os.environ.get("CC", "cc")
    found = shutil.which(wanted)
    if found is None:
        raise BuildError(f"no C compiler `{wanted}` on PATH: install gcc or clang, or name one in CC")
    return found


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splitwatt" / "nvml-twin"


def ensure_library() -> Path:
    """Folder that holds libnvidia-ml.so.1, building it first where needed. Raises BuildError."""
    compiler, header = _compiler(), _header_folder()
    sources = sorted(_SOURCES.glob("*.c"))
    digest = hashlib.sha256("\0".join((compiler, *_FLAGS)).encode())
    for file in (*sources, *sorted(_SOURCES.glob("*.h")), header / "nvml.h", Path(compiler).resolve()):
        # The compiler's own bytes are not read: its size and date tell versions apart.
        if file.parent in (_SOURCES, header):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        else:
            digest.update(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}".encode())
    folder = _cache_folder() / digest.hexdigest()[:16]
    if (folder / LIBRARY_NAME).exists():
        return folder

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
        fresh = Path(scratch) / "library"
        fresh.mkdir()
        command = [compiler, *_FLAGS, "-isystem", str(header), "-o", str(fresh / LIBRARY_NAME), *map(str, sources), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
        try:
            fresh.rename(folder)
        except OSError:
            # Another process was quicker; its library has the same content.
            if not (folder / LIBRARY_NAME).exists():
                raise
    return folder
