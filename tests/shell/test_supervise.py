"""Parts of a process that end together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest
from splitwatt_shell.supervise import first_to_end, on_stop_signal


class Parts:
    """`forever` notes that it was ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def forever(self, name: str = "forever") -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(name)


async def fails(why: str) -> None:
    raise LookupError(why)


async def test_the_first_part_to_end_ends_all() -> None:
    parts = Parts()

    async def soon() -> None:
        await asyncio.sleep(0)

    assert await first_to_end(forever=parts.forever(), soon=soon()) == "soon"
    assert parts.ended == ["forever"]


async def test_a_part_that_fails_is_not_swallowed_and_its_neighbours_end(caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts()
    with pytest.raises(LookupError, match="a bug"), caplog.at_level(logging.ERROR):
        await first_to_end(forever=parts.forever(), one=fails("a bug"), other=fails("another"))
    assert parts.ended == ["forever"]
    assert "other ended as well: LookupError('another')" in caplog.text


async def test_cancelling_the_whole_cancels_the_parts() -> None:
    parts = Parts()
    task = asyncio.create_task(first_to_end(a=parts.forever("a"), b=parts.forever("b")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(parts.ended) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_both_signals_ask_for_the_end(number: signal.Signals) -> None:
    stop = asyncio.Event()
    on_stop_signal(stop.set)
    try:
        os.kill(os.getpid(), number)
        async with asyncio.timeout(10.0):
            await stop.wait()
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)
