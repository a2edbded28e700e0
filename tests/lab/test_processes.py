"""Children of the lab: started, stopped, killed, and never orphaned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from splitwatt_lab import ports, servers
from splitwatt_lab.errors import LabError, PortInUseError
from splitwatt_lab.processes import ProcessGroup
from support.waiting import eventually

WAIT_S = 30.0
SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(3600)"]
STUBBORN = [
    *(sys.executable, "-S", "-c"),
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(3600)",
]


def up(log: Path) -> bool:
    return log.exists() and "up" in log.read_text()


def test_a_process_gets_its_environment_and_writes_its_log(group: ProcessGroup, tmp_path: Path) -> None:
    command = "import os; print(os.environ['WATTS'], os.getcwd())"
    process = group.start("say", [sys.executable, "-c", command], env={"WATTS": "700"}, cwd=tmp_path)
    assert process.wait(WAIT_S) == 0
    assert process.log.read_text() == f"700 {tmp_path}\n"
    assert not process.running and process.returncode == 0


def test_stop_asks_first_and_restart_keeps_the_log(group: ProcessGroup) -> None:
    process = group.start("sleep", SLEEP)
    eventually("it is up", lambda: up(process.log))
    first = process.pid
    process.restart()
    eventually("it is up again", lambda: process.log.read_text().count("up") == 2)
    assert process.pid != first and not psutil.pid_exists(first)
    assert process.stop() == -signal.SIGTERM
    assert process.stop() == -signal.SIGTERM, "stopping twice is harmless"


def test_what_ignores_sigterm_is_killed_after_its_grace(group: ProcessGroup) -> None:
    process = group.start("stubborn", STUBBORN)
    eventually("it is up", lambda: up(process.log))
    assert process.stop(grace_s=0.2) == -signal.SIGKILL


def test_kill_takes_the_whole_process_group(group: ProcessGroup) -> None:
    command = (
        "import subprocess,sys,time; c = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(3600)']);"
        "print(c.pid, 'up', flush=True); time.sleep(3600)"
    )
    process = group.start("parent", [sys.executable, "-c", command])
    eventually("it is up", lambda: up(process.log))
    grandchild = psutil.Process(int(process.log.read_text().split()[0]))
    assert process.kill() == -signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=WAIT_S)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_grandchildren_go_when_their_parent_ends_by_itself(group: ProcessGroup) -> None:
    command = (
        "import subprocess,sys; c = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(3600)']);"
        "print(c.pid, flush=True)"
    )
    process = group.start("parent", [sys.executable, "-c", command])
    assert process.wait(WAIT_S) == 0
    grandchild = int(process.log.read_text())
    eventually(
        "the grandchild ends", lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie"
    )


def test_a_program_that_is_not_there_and_a_name_that_is_taken_are_sentences(group: ProcessGroup) -> None:
    with pytest.raises(LabError, match=r"/no/such/program does not start: No such file"):
        group.start("none", ["/no/such/program"])
    group.start("sleep", SLEEP)
    with pytest.raises(LabError, match="sleep is already running"):
        group.start("sleep", SLEEP)


def test_one_that_ends_before_it_is_ready_is_named_with_its_reason_and_log(group: ProcessGroup) -> None:
    process = group.start("agent", [sys.executable, "-c", "import sys; print('no GPU error here'); sys.exit(4)"])
    with pytest.raises(LabError, match=r"agent ended with code 4 before it was ready: no GPU error here \(log: .*agent"):
        process.await_ready(lambda: False, timeout_s=WAIT_S)
    silent = group.start("silent", SLEEP)
    with pytest.raises(LabError, match=r"silent was not ready after 0\.1 s"):
        silent.await_ready(lambda: False, timeout_s=0.1)


def test_closing_ends_all_and_is_harmless_twice(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        pids = [group.start(f"child-{i}", argv).pid for i, argv in enumerate([SLEEP, STUBBORN, SLEEP])]
        eventually("the child is up", lambda: up(tmp_path / "child-1.log"))
        group.close(grace_s=0.2)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(LabError, match="have been closed"):
        group.start("late", SLEEP)


OWNER = """
import json, os, pathlib, sys
from splitwatt_lab.processes import ProcessGroup
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
with ProcessGroup(pathlib.Path(sys.argv[1]), remove_directory=True) as group:
    pids = [group.start(f"child-{i}", sleep).pid for i in range(3)]
    if os.fork() == 0:  # a forked child holds a copy of the owner's end of the socket
        os.execvp(sleep[0], sleep) if sys.argv[2] == "exec" else __import__("time").sleep(3600)
    print(json.dumps([group.supervisor_pid, *pids]), flush=True)
    __import__("time").sleep(3600)
"""


@pytest.mark.parametrize("child", ["exec", "fork"])
def test_a_killed_owner_leaves_nothing_even_if_a_fork_of_it_lives_on(tmp_path: Path, child: str) -> None:
    folder = tmp_path / "owned"
    command = [sys.executable, "-c", OWNER, str(folder), child]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert owner.stdout is not None
    pids = json.loads(owner.stdout.readline())
    owner.kill()
    owner.wait(WAIT_S)
    try:
        eventually("all have ended", lambda: not any(psutil.pid_exists(pid) for pid in pids))
        eventually("the folder is gone", lambda: not folder.exists())
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # the fork that was left alive on purpose


def test_ports_stay_out_of_the_ephemeral_range_and_a_taken_one_is_a_sentence() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(10_000 < ports.free_port() < low for _ in range(50))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} on 127\.0\.0\.1, wanted for a test, is in use; stop"):
            ports.require_free(port, purpose="a test")
    ports.require_free(port, purpose="a test")
    with pytest.raises(LabError, match="port 70000 for a test is not between 1 and 65535"):
        ports.require_free(70_000, purpose="a test")


def test_a_server_is_started_again_on_another_port_when_its_own_was_taken(
    group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    def listening(port: int) -> bool:
        return group["web"].running and not ports.is_free(port) and "Serving" in group["web"].log.read_text()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        occupied = taken.getsockname()[1]
        offered = iter([occupied])
        choose = ports.free_port
        monkeypatch.setattr(servers, "free_port", lambda: next(offered, None) or choose())
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
        process, port = servers.start_server(group, "web", command, healthy=listening)
        assert port != occupied and process.running
        with pytest.raises(PortInUseError):
            servers.start_server(group, "second", command, healthy=listening, port=occupied)
