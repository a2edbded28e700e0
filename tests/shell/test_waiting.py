"""Bounded waits."""

from __future__ import annotations

import asyncio
import time

import pytest
from splitwatt_shell.waiting import NotInTimeError, poll_until, woken


async def test_an_event_wakes_or_the_time_is_over() -> None:
    event = asyncio.Event()
    assert not await woken(event, within_s=0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await woken(event, within_s=30.0)
    assert event.is_set(), "the one who waits clears it"
    event.clear()
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await woken(event, within_s=None)


@pytest.mark.parametrize("within_s", [0.0, -1.0])
async def test_without_time_left_only_what_has_come_counts(within_s: float) -> None:
    event = asyncio.Event()
    assert not await woken(event, within_s=within_s)
    event.set()
    assert await woken(event, within_s=within_s)


async def test_cancelling_a_wait_is_not_taken_for_its_end() -> None:
    waiting = asyncio.create_task(woken(asyncio.Event(), within_s=30.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_polling_gives_the_first_true_answer() -> None:
    answers = iter(["", "", "there"])
    assert poll_until("it is there", lambda: next(answers), within_s=30.0, pause_s=0.0) == "there"


def test_what_does_not_come_is_told_with_what_was_seen_last() -> None:
    began_s = time.monotonic()
    with pytest.raises(NotInTimeError, match=r"^not within 0.02 s: the pod runs; last seen: None$"):
        poll_until("the pod runs", lambda: None, within_s=0.02, pause_s=0.001)
    assert time.monotonic() - began_s >= 0.02
