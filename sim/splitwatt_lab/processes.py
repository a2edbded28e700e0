"""Processes that the lab starts, none of which outlives it.

A `ProcessGroup` is the owner's side of one supervisor (see `supervisor`): it starts, signals and watches named children
and promises that closing the group, or the death of this process by any means, ends all of them. Output goes straight
from the child to its log file, so nothing is lost when either side dies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from splitwatt_lab import supervisor
from splitwatt_lab.errors import LabError, telling_line

DEFAULT_GRACE_S: Final = 5.0
_ANSWER_S: Final = 30.0
_POLL_S: Final = 0.03


@dataclass(slots=True)
class Process:
    """One named child. It may be stopped and started again; its log goes on in the same file."""

    group: ProcessGroup
    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    cwd: Path | None = None
    pid: int = 0
    _ended: int | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it (again). Raises LabError when it runs already or its program cannot be started."""
        answer = self.group._ask(
            op="start",
            name=self.name,
            argv=list(self.argv),
            env={**os.environ, **self.env},
            cwd=None if self.cwd is None else str(self.cwd),
            log=str(self.log),
        )
        self.pid = answer["pid"]

    @property
    def running(self) -> bool:
        return bool(self.group._ask(op="poll", name=self.name)["running"])

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        code: int | None = self.group._ask(op="poll", name=self.name)["code"]
        return code

    def send(self, number: signal.Signals) -> None:
        self.group._ask(op="signal", name=self.name, signal=int(number))

    def wait(self, timeout_s: float) -> int:
        """Exit code. Raises TimeoutError when it still runs after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while (code := self.returncode) is None:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.name} still runs after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return code

    def stop(self, grace_s: float = DEFAULT_GRACE_S) -> int:
        """SIGTERM, then SIGKILL after `grace_s`. Returns the exit code; a process that had ended keeps its own."""
        self.send(signal.SIGTERM)
        try:
            return self.wait(grace_s)
        except TimeoutError:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL at once, its whole process group."""
        self.send(signal.SIGKILL)
        return self.wait(_ANSWER_S)

    def restart(self, grace_s: float = DEFAULT_GRACE_S) -> None:
        self.stop(grace_s)
        self.start()

    def await_ready(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Poll `ready` until it is true. Raises LabError (one sentence, with the log) when the process ends or time runs out."""
        started_s = time.monotonic()
        while not ready():
            code = self.returncode
            if code is not None:
                raise LabError(
                    f"{self.name} ended with code {code} before it was ready: {telling_line(self.log)} (log: {self.log})"
                )
            if time.monotonic() - started_s > timeout_s:
                raise LabError(f"{self.name} was not ready after {timeout_s:g} s: {telling_line(self.log)} (log: {self.log})")
            time.sleep(_POLL_S)


class ProcessGroup:
    """All children of one part of the lab. `directory` holds their logs; with `remove_directory` it is deleted at the end,
    also when this process is killed."""

    def __init__(self, directory: Path, *, remove_directory: bool = False) -> None:
        self.directory = directory
        self._remove = remove_directory
        self._lock = threading.Lock()
        self._serial = 0
        self._buffer = b""
        self._processes: dict[str, Process] = {}
        self._socket: socket.socket | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs, (self.directory / "supervisor.log").open("ab") as log:
            # Without a session of its own the terminal's Ctrl-C would end it before its children.
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve())),
                    *(str(theirs.fileno()), str(os.getpid()), str(self.directory.resolve()) if self._remove else ""),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ours.settimeout(_ANSWER_S)
        self._socket = ours
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def supervisor_pid(self) -> int:
        return 0 if self._supervisor is None else self._supervisor.pid

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
    ) -> Process:
        """Start `argv` under `name`. `env` is added to this process's environment; the log is `directory/name.log` unless given.

        Raises LabError when the name runs already or the program cannot be started.
        """
        process = Process(
            group=self,
            name=name,
            argv=[str(word) for word in argv],
            log=(self.directory / f"{name}.log") if log is None else log,
            env=dict(env or {}),
            cwd=cwd,
        )
        process.start()
        self._processes[name] = process
        return process

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    def close(self, grace_s: float = 2.0, *, keep: bool = False) -> None:
        """End every child (SIGTERM, `grace_s`, SIGKILL) and the supervisor. `keep`: leave the directory where it is."""
        if self._socket is None or self._supervisor is None:
            return
        try:
            self._ask(op="close", grace_s=grace_s, keep=keep)
        except LabError:
            pass  # It has gone already, and its children with it (PR_SET_PDEATHSIG).
        finally:
            self._socket.close()
            self._socket = None
            self._supervisor.wait()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer. Raises LabError with the supervisor's sentence."""
        with self._lock:
            if self._socket is None:
                raise LabError(f"the processes under {self.directory} have been closed")
            self._serial += 1
            try:
                self._socket.sendall(json.dumps({"id": self._serial, **request}).encode() + b"\n")
                while True:
                    answer = self._read_answer(self._socket)
                    # An interrupted request leaves its answer behind; it is not ours.
                    if answer["id"] == self._serial:
                        break
            except OSError as error:
                log = self.directory / "supervisor.log"
                raise LabError(f"the supervisor of {self.directory} is gone: {telling_line(log)} (log: {log})") from error
        if "error" in answer:
            raise LabError(answer["error"])
        return answer

    def _read_answer(self, source: socket.socket) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = source.recv(65_536)
            if not data:
                raise ConnectionResetError("closed by the supervisor")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
