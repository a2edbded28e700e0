"""What the agent remembers on its host: the record of docs/protocol.md, R12, the GPUs of this boot, and that it is the only one.

Files are replaced whole (temporary file, fsync, rename, fsync of the folder), so a crash, a full disk or a failing one leaves
the old or the new one, and a write that raised is not durable: the caller asks again, and raises no cap meanwhile.
A file that cannot be understood stops the start with a sentence: guessing could apply a grant that was already outdone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from splitwatt_core.protocol.brake import brake_from_wire, brake_to_wire
from splitwatt_core.protocol.contract import MAX_GPU_WATTS
from splitwatt_core.protocol.enforcer import GpuIdentity
from splitwatt_core.protocol.record import Record, Taken, checked

RECORD_FILE: Final = "record.json"
INVENTORY_FILE: Final = "inventory.json"
LOCK_FILE: Final = "lock"


class StateDirError(Exception):
    """One sentence that says what to change."""


class StateDir:
    """The agent's folder on the host, locked for this process until it ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Creates the folder where it is missing and takes the lock: on the folder itself, which also a full or a read-only
        disk allows, and on the file that older agents lock, where there can be one. Raises StateDirError."""
        self._path = path
        self._locks: list[int] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            raise StateDirError(f"cannot use --state-dir {path}: {error.strerror}; name a folder to write to") from error
        # The disk that refuses may take it later; then the next process locks both.
        with suppress(OSError):
            # Not open for writing: a disk must not be kept from becoming read-only.
            self._lock(os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            (path / LOCK_FILE).write_text(f"{os.getpid()}\n", encoding="ascii")

    def _lock(self, file: int) -> None:
        """Raises StateDirError when another process holds it, OSError when it cannot be locked."""
        self._locks.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise StateDirError(
                f"another agent (process {self._holder()}) holds --state-dir {self._path}; one node has one agent, so stop "
                "that one first"
            ) from error

    def _holder(self) -> str:
        try:
            return (self._path / LOCK_FILE).read_text(encoding="ascii").strip() or "unknown"
        except (OSError, UnicodeDecodeError):
            return "unknown"

    def close(self) -> None:
        """Give the lock back."""
        while self._locks:
            os.close(self._locks.pop())

    def read_record(self) -> Record:
        """The last durable record, an empty one at the very first start. Raises StateDirError."""
        raw = self._read(RECORD_FILE)
        if raw is None:
            return Record()
        try:
            held = raw.get("held", {})  # absent in the records of older agents: nothing is held for acknowledged then
            found = Record(
                term=int(raw["term"]),
                grants={
                    str(uuid): _taken(int(grant), int(cap_w), held.get(uuid)) for uuid, (grant, cap_w) in raw["grants"].items()
                },
                brakes={str(uuid): brake_from_wire(row) for uuid, row in raw.get("brakes", {}).items()},
            )
            return checked(found)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise self._unreadable(RECORD_FILE, repr(error)) from error

    def write_record(self, record: Record) -> None:
        """Durable when it returns. Raises OSError."""
        held = {
            uuid: {
                "uid": taken.uid,
                "safeCapWatts": taken.safe_cap_w,
                "ackedGrant": taken.acked_grant,
                "sinceCapWatts": taken.since_cap_w,
            }
            for uuid, taken in record.grants.items()
        }
        # `grants` alone is what older agents read: one that is rolled back to goes on where this one stood.
        grants = {uuid: [taken.grant, taken.cap_w] for uuid, taken in record.grants.items()}
        brakes = {uuid: brake_to_wire(brake) for uuid, brake in record.brakes.items()}
        self._write(RECORD_FILE, {"term": record.term, "grants": grants, "held": held, "brakes": brakes})

    def read_inventory(self, boot_id: str) -> tuple[GpuIdentity, ...]:
        """The GPUs that were seen since this boot: one that will not answer now is still there. Raises StateDirError."""
        raw = self._read(INVENTORY_FILE)
        if raw is None:
            return ()
        try:
            if raw["bootID"] != boot_id:
                return ()
            return tuple(
                _checked(
                    uuid=str(gpu["uuid"]),
                    model=str(gpu["model"]),
                    min_mw=int(gpu["minMilliwatts"]),
                    max_mw=int(gpu["maxMilliwatts"]),
                    default_mw=int(gpu["defaultMilliwatts"]),
                    cappable=bool(gpu.get("cappable", True)),
                )
                for gpu in raw["gpus"]
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise self._unreadable(INVENTORY_FILE, repr(error)) from error

    def write_inventory(self, boot_id: str, gpus: Sequence[GpuIdentity]) -> None:
        """Durable when it returns. Raises OSError."""
        rows = [
            {
                "uuid": gpu.uuid,
                "model": gpu.model,
                "minMilliwatts": gpu.min_mw,
                "maxMilliwatts": gpu.max_mw,
                "defaultMilliwatts": gpu.default_mw,
                "cappable": gpu.cappable,
            }
            for gpu in gpus
        ]
        self._write(INVENTORY_FILE, {"bootID": boot_id, "gpus": rows})

    def _read(self, name: str) -> Any:
        try:
            content = json.loads((self._path / name).read_bytes())
            if content is None:  # which would look like a file that is not there
                raise ValueError("it holds null")
            return content
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(name, str(error)) from error

    def _unreadable(self, name: str, why: str) -> StateDirError:
        return StateDirError(
            f"{self._path / name} cannot be understood ({why}); restore it, or delete it once the node's NodePower is known "
            "to be the operator's latest word"
        )

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        target, temporary = self._path / name, self._path / f".{name}.new"
        try:
            with temporary.open("wb") as file:  # buffered: a disk that takes half of it raises, and is not believed
                file.write(json.dumps(content).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError:
            with suppress(OSError):  # the disk that refused may refuse this as well; the next write empties the file
                temporary.unlink()
            raise
        self.settle()

    def settle(self) -> None:
        """What was renamed into place is durable when it returns, whoever did it: a process that ended in between left a file
        that can be read and that a power cut would take back. Raises OSError."""
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _checked(*, uuid: str, model: str, min_mw: int, max_mw: int, default_mw: int, cappable: bool) -> GpuIdentity:
    """A GPU as an agent can have seen it: one line that no status can carry would have the whole node unheard. Raises
    ValueError."""
    limits = (min_mw, default_mw, max_mw)
    if not uuid or not all(0 <= limit_mw <= 1000 * MAX_GPU_WATTS for limit_mw in limits) or min_mw > max_mw:
        raise ValueError(f"limits of {limits} mW, of {uuid or 'no GPU'}, are none")
    return GpuIdentity(uuid, model, min_mw=min_mw, max_mw=max_mw, default_mw=default_mw, cappable=cappable)


def _taken(grant: int, cap_w: int, held: Mapping[str, Any] | None) -> Taken:
    """Raises KeyError, TypeError, ValueError."""
    if held is None:
        return Taken(grant, cap_w, safe_cap_w=cap_w)
    return Taken(
        grant,
        cap_w,
        safe_cap_w=int(held["safeCapWatts"]),
        uid=str(held["uid"]),
        acked_grant=int(held["ackedGrant"]),
        since_cap_w=int(held["sinceCapWatts"]),
    )
