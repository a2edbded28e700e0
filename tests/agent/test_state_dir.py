"""A disk that fails under the agent's record: the old record stays whole, and no limit rises before a new one is durable."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_agent.durable import DurableRecord
from splitwatt_agent.state_dir import StateDir, StateDirError
from splitwatt_core.protocol.contract import Grant, Mode, NodePower, Spec
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback, SetCap
from splitwatt_core.protocol.record import Record, Taken

PATIENCE_S = 30.0
OLD = Record(term=1, grants={"GPU-a": Taken(1_000_000_001, 400, 400)})
LONG = Record(term=2, grants={f"GPU-{i:04}": Taken(2_000_000_001, 500, 500, "u", since_cap_w=500) for i in range(400)})
"""Longer than a page, so that a small file system takes the half of it."""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path)
    state.write_record(OLD)
    yield state
    state.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three pages, two of which are free."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def is_as_before(folder: Path, state: StateDir) -> bool:
    """The old record is there, whole, and nothing lies beside it."""
    return state.read_record() == OLD and {path.name for path in folder.iterdir()} == {"lock", "record.json"}


def test_a_write_that_is_cut_short_leaves_the_old_record(tmp_path: Path) -> None:
    """The kernel takes the first bytes and says how many; the next call fails. Limits on file sizes do just that."""
    code = """
import resource, sys
from pathlib import Path
from splitwatt_agent.durable import DurableRecord
from splitwatt_agent.state_dir import StateDir
from splitwatt_core.protocol.record import Record, Taken

state = StateDir(Path(sys.argv[1]))
state.write_record(Record(term=1, grants={"GPU-a": Taken(1_000_000_001, 400, 400)}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
try:
    state.write_record(Record(term=2, grants={"GPU-a": Taken(2_000_000_001, 500, 500)}))
except OSError as error:
    print(error.strerror)
"""
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    state = StateDir(tmp_path)
    assert is_as_before(tmp_path, state)
    assert said.stdout == "File too large\n", "whoever writes must hear of it"
    state.close()


def test_a_disk_that_is_full_in_the_middle_leaves_the_old_record(full_disk: Path) -> None:
    state = StateDir(full_disk)
    state.write_record(OLD)
    with pytest.raises(OSError, match="No space left") as failure:
        state.write_record(LONG)
    assert failure.value.errno == errno.ENOSPC
    assert is_as_before(full_disk, state)
    newer = Record(term=3, grants=OLD.grants)
    state.write_record(newer)
    assert state.read_record() == newer, "and what fits is written again"
    state.close()


def test_a_disk_that_fails_at_fsync_leaves_the_old_record(
    tmp_path: Path, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output error"):
            state.write_record(LONG)
    assert is_as_before(tmp_path, state)
    state.write_record(LONG)
    assert state.read_record() == LONG


def test_a_record_is_not_durable_before_its_folder_is(tmp_path: Path, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name may still lead to the old file after a crash; so the write raises, and leaves a file that is whole."""
    file_only = iter([None])
    fsync = os.fsync

    def broken(file: int) -> None:
        if next(file_only, "folder") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        state.write_record(LONG)
    assert state.read_record() == LONG


def test_what_a_former_process_did_not_live_to_see_durable_is_made_so(
    tmp_path: Path, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended between the rename and the folder's fsync. A limit may rise by what the record says, so it has to last."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    assert DurableRecord(state).error == ""
    assert synced == [tmp_path.stat().st_ino]

    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    record = DurableRecord(state)
    assert (record.current, record.error) == (OLD, "[Errno 5] Input/output error"), "told, and what was found still lowers"


async def test_after_a_failure_the_record_that_was_durable_before_is_written_again(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver is loaded anew, and its session starts from the last durable record. The one that failed lies on the disk."""
    record, fsync, calls = DurableRecord(state), os.fsync, iter(["file", "folder"])

    def broken(file: int) -> None:
        if next(calls, "later") == "folder":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(os, "fsync", broken)
    assert not await record.write(LONG)
    assert (state.read_record(), record.current) == (LONG, OLD)
    async with asyncio.timeout(PATIENCE_S):
        while not await record.write(record.current):  # noqa: ASYNC110 - a disk that failed is asked again and again
            await asyncio.sleep(0.01)
    assert (state.read_record(), record.error) == (OLD, "")


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "null", '"one"', "[]"])
def test_a_number_that_is_none_is_a_sentence(tmp_path: Path, state: StateDir, number: str) -> None:
    (tmp_path / "record.json").write_text(f'{{"term": {number}, "grants": {{}}}}')
    with pytest.raises(StateDirError, match=r"record\.json cannot be understood"):
        state.read_record()
    gpu = f'{{"uuid": "a", "model": "m", "minMilliwatts": {number}, "maxMilliwatts": 1, "defaultMilliwatts": 1}}'
    (tmp_path / "inventory.json").write_text(f'{{"bootID": "b", "gpus": [{gpu}]}}')
    with pytest.raises(StateDirError, match=r"inventory\.json cannot be understood"):
        state.read_inventory("b")


@pytest.mark.parametrize(
    ("key", "value"),
    [("uuid", ""), ("minMilliwatts", -1), ("minMilliwatts", 700_001), ("maxMilliwatts", 2**32 - 1), ("defaultMilliwatts", 10**8)],
)
def test_a_kept_gpu_that_no_status_can_carry_is_not_believed(tmp_path: Path, state: StateDir, key: str, value: object) -> None:
    gpu = {"uuid": "a", "model": "m", "minMilliwatts": 200_000, "maxMilliwatts": 700_000, "defaultMilliwatts": 700_000}
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps({"bootID": "b", "gpus": [gpu]}))
    assert [kept.uuid for kept in state.read_inventory("b")] == ["a"]
    file.write_text(json.dumps({"bootID": "b", "gpus": [{**gpu, key: value}]}))
    with pytest.raises(StateDirError, match=r"inventory\.json cannot be understood"):
        state.read_inventory("b")


async def test_no_limit_rises_while_the_disk_is_full(full_disk: Path) -> None:
    state = StateDir(full_disk)
    record = DurableRecord(state)
    gpus = {uuid: GpuIdentity(uuid, "H100", 200_000, 700_000, 700_000) for uuid in LONG.grants}
    enforcer = Enforcer(gpus=gpus, record=Record())
    caps_mw = dict.fromkeys(gpus, 300_000)
    grants = tuple(Grant(uuid, 2_000_000_001, cap_w=500, safe_cap_w=500, charge_w=700) for uuid in gpus)
    spec = Spec(term=2, for_uid="u", mode=Mode.STRICT, gpus=grants)
    enforcer.observe(NodePower("n", "u", 1, spec), consistent=True)

    async def tick(now_s: float) -> tuple[SetCap, ...]:
        actions = enforcer.tick(now_s, {uuid: Readback(mw, mw) for uuid, mw in caps_mw.items()})
        if actions.persist is not None and await record.write(actions.persist):
            enforcer.persisted()
        return actions.set_caps

    for second in range(6):
        assert await tick(float(second)) == ()
        await asyncio.sleep(0.02)
    assert record.error == "[Errno 28] No space left on device"
    assert state.read_record() == Record()
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=1m", str(full_disk)], check=True)
    async with asyncio.timeout(PATIENCE_S):
        while record.error:
            assert await tick(7.0) == (), "the record first"
            await asyncio.sleep(0.02)
    assert state.read_record() == LONG
    assert {call.cap_mw for call in await tick(8.0)} == {500_000}
    state.close()
