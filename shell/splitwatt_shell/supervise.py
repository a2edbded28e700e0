"""Runs the parts of a process together: the first one to end, for whatever reason, ends them all.

A part that died alone would leave a process that looks alive and no longer decides.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def first_to_end(**parts: Coroutine[Any, Any, Any]) -> str:
    """Run all until one ends; cancel and await the others. Returns the name of the one that returned, or raises what one
    raised (an error before a return, the others' errors are logged)."""
    tasks = {name: asyncio.create_task(part, name=name) for name, part in parts.items()}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = [name for name, task in tasks.items() if task.done()]
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    errors = [(n, e) for n, t in tasks.items() if not t.cancelled() and (e := t.exception()) is not None]
    for name, error in errors[1:]:
        log.error("%s ended as well: %r", name, error)
    if errors:
        raise errors[0][1]
    return ended[0]


def on_stop_signal(stop: Callable[[], object]) -> None:
    """Call `stop` on the running loop at SIGTERM or SIGINT. Whoever asks last is the one that is called."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
