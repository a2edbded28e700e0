"""A real agent whose state folder takes nothing: GPUs are governed downward all the same, and it says what is wrong."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from splitwatt_agent.state_dir import StateDir, StateDirError
from splitwatt_lab.controlplane import ControlPlane
from support.agent_bench import AgentBench
from support.waiting import eventually

Mount = Callable[[str], Path]


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path) as bench:
        yield bench


@pytest.fixture
def mount(bench: AgentBench) -> Iterator[Mount]:
    """Mounts a small file system at the bench's state folder; called again, with other options, it changes them."""
    folder = bench.state_dir
    folder.mkdir()
    mounted = False

    def run(options: str) -> Path:
        nonlocal mounted
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options]
        done = subprocess.run(["mount", *again, "none", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a small file system is not permitted here ({done.stderr.strip()})")
        mounted = True
        return folder

    yield run
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def says_not_durable(bench: AgentBench) -> None:
    eventually("it says that nothing is durable", lambda: bench.condition("Ready").get("reason") == "StateNotDurable")


def test_a_node_that_boots_with_a_full_disk_is_capped_by_what_lies_on_it(bench: AgentBench, mount: Mount) -> None:
    folder = mount("size=64k")
    bench.create()
    process = bench.start()
    bench.await_ack(bench.grant({0: 400, 1: 500}), (0, 1))
    bench.end(process, signal.SIGKILL)
    fill(folder)
    bench.boot_id_file.write_text("boot-2\n")
    bench.twin.reboot("boot-2")
    bench.start()
    eventually("caps on the disk hold again", lambda: bench.limits_w() == [(400, 400), (500, 500)])
    says_not_durable(bench)
    lower = bench.grant({0: 300, 1: 300})
    eventually("a grant that lowers is obeyed", lambda: bench.limits_w() == [(300, 300)] * 2)
    higher = bench.grant({0: 600, 1: 600})
    time.sleep(1.5)
    assert bench.limits_w() == [(300, 300)] * 2, "nothing rises that is not on the disk"
    assert bench.acked(0) not in (lower, higher)
    (folder / "filler").unlink()
    bench.await_ack(higher, (0, 1))
    assert bench.limits_w() == [(600, 600)] * 2
    assert bench.condition("Ready")["reason"] == "Enforcing"


@pytest.mark.parametrize("options", ["nr_inodes=1", "size=4k", "ro"])
def test_an_empty_folder_that_takes_nothing_is_no_reason_not_to_lower(bench: AgentBench, mount: Mount, options: str) -> None:
    folder = mount(options)
    if options.startswith("size"):
        fill(folder)
    bench.create()
    process = bench.start()
    says_not_durable(bench)
    bench.grant({0: 300, 1: 300})
    eventually("the grant lowers", lambda: bench.limits_w() == [(300, 300)] * 2)
    with pytest.raises(StateDirError, match="one node has one agent"):
        StateDir(folder)
    assert bench.end(process, signal.SIGTERM) == 0
    assert "Traceback" not in bench.log.read_text()


def test_a_disk_that_turns_read_only_and_back_is_told_and_used_again(bench: AgentBench, mount: Mount) -> None:
    mount("size=64k")
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 400, 1: 400}), (0, 1))
    mount("ro")
    bench.grant({0: 300, 1: 300})
    eventually("the grant lowers", lambda: bench.limits_w() == [(300, 300)] * 2)
    says_not_durable(bench)
    assert "Read-only file system" in bench.condition("Ready")["message"]
    higher = bench.grant({0: 500, 1: 500})
    time.sleep(1.0)
    assert bench.limits_w() == [(300, 300)] * 2
    mount("rw")
    bench.await_ack(higher, (0, 1))


def test_an_inventory_that_cannot_be_read_is_written_anew(bench: AgentBench) -> None:
    bench.state_dir.mkdir()
    (bench.state_dir / "inventory.json").write_text('{"bootID": "boot-1", "gpus": [{}')
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    eventually("it names the GPUs", lambda: all(u in (bench.state_dir / "inventory.json").read_text() for u in bench.twin.uuids))
