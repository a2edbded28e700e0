"""One container as a pod would be: no capability that is not asked for, a root that cannot be written, no new privileges."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from splitwatt_lab.errors import LabError, log_tail, telling_line
from splitwatt_lab.images.engines import ContainerEngine

PATIENCE_S: Final = 90.0
STOP_S: Final = 10.0
_POLL_S: Final = 0.02
LOW_LIMITS: Final = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


class Container:
    """From the engine's command to the end of the block, in which it is ended and removed. `options` are the engine's, `log`
    holds what it said. On the machine's own network."""

    def __init__(
        self, engine: ContainerEngine, image: str, arguments: Sequence[str], *, options: Sequence[str] = (), log: Path
    ) -> None:
        self._engine = engine
        self.name = f"splitwatt-check-{os.getpid()}-{log.stem}"
        self.log = log
        # podman would lay writable folders over /tmp and /run, which Kubernetes does not, and raise limits of processes, which it
        # may not do inside of another container.
        strict = ["--read-only-tmpfs=false", *LOW_LIMITS] if engine.name == "podman" else []
        self._command = [
            *(engine.program, "run", "--name", self.name, "--network", "host", "--read-only", *strict),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges", *options, image, *arguments),
        ]
        self._pid: int | None = None
        self._peak_kib = 0
        self.started_s = 0.0

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._engine.remove(self.name)
        self.started_s = time.monotonic()
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._engine.remove(self.name)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def eventually(self, what: str, probe: Callable[[], bool], *, within_s: float = PATIENCE_S) -> float:
        """Seconds from the engine's command until `probe` said yes. Raises LabError when it does not, or the container ends."""
        while not probe():
            self._look()
            if self._process.poll() is not None:
                raise LabError(
                    f"{self.name} ended with {self._process.returncode}, before {what}: {telling_line(self.log)} ({self.log})"
                )
            if time.monotonic() - self.started_s > within_s:
                raise LabError(f"{self.name}: not within {within_s:g} s: {what}. {telling_line(self.log)} ({self.log})")
            time.sleep(_POLL_S)
        return time.monotonic() - self.started_s

    def to_end(self, *, within_s: float = PATIENCE_S) -> str:
        """What it said. Raises LabError when it ends with another code than 0, or not in time."""
        while self._process.poll() is None:
            self._look()
            if time.monotonic() - self.started_s > within_s:
                raise LabError(f"{self.name} did not end within {within_s:g} s ({self.log})")
            time.sleep(_POLL_S)
        if self._process.returncode != 0:
            raise LabError(f"{self.name} ended with {self._process.returncode}: {' | '.join(log_tail(self.log)[-3:])}")
        return self.log.read_text(errors="replace")

    def peak_mb(self) -> float:
        """The most that its first process had resident so far, in 10^6 bytes."""
        self._look()
        return self._peak_kib * 1024 / 1e6

    def _look(self) -> None:
        """The kernel keeps the peak (proc_pid_status(5): VmHWM) for as long as the process is there."""
        self._pid = self._pid or self._engine.pid(self.name)
        if self._pid is None:
            return
        try:
            status = Path(f"/proc/{self._pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        rows = dict(line.split(":", 1) for line in status.splitlines())
        if "VmHWM" in rows:
            self._peak_kib = max(self._peak_kib, int(rows["VmHWM"].split()[0]))
