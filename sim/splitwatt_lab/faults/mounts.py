"""Small file systems that end with whoever mounted them: a mount namespace of our own, seen by us and our children alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000


def private_namespace() -> bool:
    """From now on mounts of this thread, and of what it starts, are nobody else's, and need no unmounting even after
    kill -9. Call it before any thread is started. False where this takes more rights than we have."""
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return bool(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) == 0)


def mount_small(place: Path, *, size_bytes: int) -> None:
    """A file system of this size on an empty folder. Raises LabError."""
    place.mkdir(parents=True, exist_ok=True)
    _command("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "splitwatt-faults", str(place))


def remount(place: Path, how: str) -> None:
    """`how`: ro or rw. Raises LabError."""
    _command("mount", "-o", f"remount,{how}", str(place))


def unmount(place: Path) -> None:
    _command("umount", "--lazy", str(place))


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(words)} failed: {done.stderr.strip()}")
