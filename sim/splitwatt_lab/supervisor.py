"""A small process that owns the lab's children, so that none of them outlives the lab. Run as a file by `processes`.

Theory: cleaning up belongs to the one process that cannot forget it. The owner talks to this supervisor over a socket;
when the socket closes, or the owner is no longer the parent (killed with -9, crashed, anything), the supervisor ends every
child: SIGTERM, a grace period, SIGKILL, each time to the child's whole process group. It runs in a session of its own, so
Ctrl-C in a terminal reaches the owner alone. Should the supervisor itself be killed, the kernel kills its children
(PR_SET_PDEATHSIG). Standard library only, started with `python -I -S`: about 14 MB resident.

Wire: one JSON object per line each way, `{"id": n, "op": ...}` answered by `{"id": n, ...}`.
Invariant: a child is either in `children` or its exit code is in `exited`, and nothing of its group runs after its exit.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

UNATTENDED_GRACE_S: Final = 2.0
"""How long children may take to end by themselves after their owner died."""
OWNER_CHECK_S: Final = 0.5
POLL_S: Final = 0.02
MAX_CHILDREN: Final = 512
_PR_SET_PDEATHSIG: Final = 1


class Supervisor:
    """`remove`: a folder deleted at the end, for whoever dies cannot tidy up any more; empty for none."""

    def __init__(self, owner: socket.socket, *, owner_pid: int, remove: str) -> None:
        self._owner = owner
        self._owner_pid = owner_pid
        self._remove = remove
        self._grace_s = UNATTENDED_GRACE_S
        self._pid = os.getpid()
        self._buffer = b""
        self._stopping = False
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.exited: dict[str, int] = {}
        # Looked up before any fork: dlsym after fork may take locks.
        self._prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def run(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        while not self._stopping and os.getppid() == self._owner_pid:
            ready, _, _ = select.select([self._owner.fileno(), wake_read], [], [], OWNER_CHECK_S)
            if wake_read in ready:
                os.read(wake_read, 4096)
                self._reap()
            if self._owner.fileno() in ready and not self._serve():
                break
        self._end_children()
        if self._remove:
            shutil.rmtree(self._remove, ignore_errors=True)

    def _serve(self) -> bool:
        """Answer what has arrived; False when the owner has gone."""
        try:
            data = self._owner.recv(65_536)
        except ConnectionError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            answer = {"id": request["id"], **self._answer(request)}
            try:
                self._owner.sendall(json.dumps(answer).encode() + b"\n")
            except ConnectionError:
                return False
        return bool(data)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "start":
            return self._start(request)
        if operation == "poll":
            self._reap()
            return {"running": request["name"] in self.children, "code": self.exited.get(request["name"])}
        if operation == "signal":
            self._reap()
            child = self.children.get(request["name"])
            if child is not None:
                _signal_group(child.pid, request["signal"])
            return {"running": child is not None}
        if operation == "close":
            self._grace_s, self._stopping = request["grace_s"], True
            if request["keep"]:
                self._remove = ""
            return {}
        return {"error": f"unknown operation {operation!r}"}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        self._reap()
        name = request["name"]
        if name in self.children:
            return {"error": f"{name} is already running"}
        if len(self.children) >= MAX_CHILDREN:
            return {"error": f"{MAX_CHILDREN} processes run already; stop some first"}
        try:
            with Path(request["log"]).open("ab") as log:
                child = subprocess.Popen(
                    request["argv"],
                    env=request["env"],
                    cwd=request["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=self._die_with_supervisor,  # noqa: PLW1509 - this process has one thread
                )
        except OSError as error:
            return {"error": f"{request['argv'][0]} does not start: {error.strerror}"}
        self.children[name] = child
        self.exited.pop(name, None)
        return {"pid": child.pid}

    def _die_with_supervisor(self) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            os._exit(1)

    def _reap(self) -> None:
        for name, child in list(self.children.items()):
            # WNOWAIT leaves the zombie, so its process group's number cannot belong to anybody else yet.
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(child.pid, signal.SIGKILL)
            self.exited[name] = child.wait()
            del self.children[name]

    def _end_children(self) -> None:
        for child in self.children.values():
            _signal_group(child.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + self._grace_s
        while self.children and time.monotonic() < deadline_s:
            self._reap()
            time.sleep(POLL_S)
        for child in self.children.values():
            _signal_group(child.pid, signal.SIGKILL)
        while self.children:  # SIGKILL cannot be refused; a child in a hung system call ends when the kernel lets it
            self._reap()
            time.sleep(POLL_S)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # Gone, or (on some kernels) only the zombie is left.
        return


def main() -> None:
    descriptor, owner_pid, remove = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.chdir(Path("/"))
    Supervisor(socket.socket(fileno=descriptor), owner_pid=owner_pid, remove=remove).run()


if __name__ == "__main__":
    main()
