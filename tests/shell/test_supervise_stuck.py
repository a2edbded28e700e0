"""Parts that do not end when they are told to: told again, and in the end the process goes, with a name in its log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time

import pytest
from splitwatt_shell import supervise
from splitwatt_shell.supervise import EXIT_STUCK, end_all, first_to_end


async def deaf(times: int, ended: list[str]) -> None:
    """Swallows that many cancellations."""
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("deaf")


async def soon() -> None:
    await asyncio.sleep(0)


async def test_a_part_that_missed_its_cancellation_is_told_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervise, "AGAIN_S", 0.05)
    ended: list[str] = []
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(10.0):
            assert await first_to_end(budgets=deaf(1, ended), soon=soon()) == "soon"
    assert ended == ["deaf"]
    assert "budgets in deaf (test_supervise_stuck.py:" in caplog.text
    assert "Event.wait" in caplog.text, "the place where it waits is named"


async def test_whoever_is_hurried_while_it_ends_others_leaves_none_behind() -> None:
    ended: list[str] = []
    part = asyncio.create_task(deaf(1, ended))
    await asyncio.sleep(0)
    ending = asyncio.create_task(end_all([part]))
    await asyncio.sleep(0.01)
    assert not part.done()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10.0):
            await ending
    assert ended == ["deaf"]


STUCK = """
import asyncio, logging, sys, threading, time
from splitwatt_shell import supervise
supervise.AGAIN_S, supervise.STOP_S = 0.1, 0.3
logging.basicConfig(stream=sys.stderr)
async def soon(): pass
async def never():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
async def parts(): await supervise.first_to_end(budgets=never(), signals=soon())
async def leftover(): left.append(asyncio.create_task(never())); await asyncio.sleep(0)
async def thread(): asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
left = []
supervise.run_main(globals()[sys.argv[1]]())
"""


def ended(how: str) -> tuple[int, str, float]:
    began_s = time.monotonic()
    process = subprocess.run([sys.executable, "-c", STUCK, how], check=False, capture_output=True, text=True, timeout=50.0)
    return process.returncode, process.stderr, time.monotonic() - began_s


def test_a_part_that_never_ends_ends_the_process() -> None:
    code, said, _ = ended("parts")
    assert code == EXIT_STUCK
    assert "would not end within 0.3 s: budgets in never" in said


@pytest.mark.parametrize("how", ["leftover", "thread"])
def test_what_is_left_when_all_parts_ended_does_not_keep_the_process(how: str) -> None:
    code, said, took_s = ended(how)
    assert code == 1
    assert "most recent call first" in said
    assert took_s < 30.0
