"""The life of a process: a lock on a file of this machine, held to the end, and the number in that file.

The Lease names its holder's life. Whoever finds its own life there holds the lock now, so that holder has ended: a container that
is started again need not wait for the Lease that its former process left (`core/protocol/candidacy.py`). The kernel gives the
lock back with the process, however that ends, and not while it is only stopped.

Protected: a life is never shared by two machines or two boots, also where the folder was copied, and without the lock there is
none. Then a successor waits, which is always safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LIFE_FILE: Final = "life"
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_NUMBER: Final = re.compile(r"[0-9a-f]{32}")
LIFE_CHARS: Final = 16


class Life:
    """`token` is "" where there is none. The lock is held until the process ends, or `close`."""

    def __init__(self, folder: Path | None, *, boot_id_file: Path = BOOT_ID_FILE) -> None:
        """Creates the folder where it is missing. Whatever is in the way is a warning."""
        self.token = ""
        self._file = -1
        if folder is None:
            return
        try:
            self.token = self._locked(folder, boot_id_file.read_text(encoding="ascii").strip())
        except BlockingIOError:
            log.warning("--state-dir %s belongs to another process that lives: give each replica a folder of its own", folder)
        except (OSError, UnicodeDecodeError) as error:
            log.warning("--state-dir %s is not used: %s; after a crash the Lease has to run out first", folder, error)
        if not self.token:
            self.close()

    def _locked(self, folder: Path, boot_id: str) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / LIFE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Read and written under the lock alone. The number stays as long as the file: it stands for the lock, not for a process.
        number = os.pread(self._file, 64, 0).decode("ascii", errors="replace").strip()
        if not _NUMBER.fullmatch(number):
            number = secrets.token_hex(16)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, number.encode("ascii"), 0)
        inode = os.fstat(self._file)
        told = f"{number}/{boot_id}/{inode.st_dev}/{inode.st_ino}"
        return hashlib.sha256(told.encode("ascii")).hexdigest()[:LIFE_CHARS]

    def close(self) -> None:
        """Give the lock back: nothing may be sent under this life any more."""
        self.token = ""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
