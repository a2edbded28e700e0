"""Runs the parts of a process together: the first one to end, for whatever reason, ends them all.

A part that died alone would leave a process that looks alive and no longer decides. So would a part that does not end when
it is told to: libraries swallow a cancellation now and then. It is told again, and if that does not help the process ends,
with the place where the part stands in the log.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_S: Final = 8.0
"""Who has not ended by then is cancelled once more. Longer than any last act, such as giving up a Lease."""
STOP_S: Final = 15.0
"""No end takes longer. Half of what a kubelet waits before it kills."""
EXIT_STUCK: Final = 4
"""Exit code of a process whose parts would not end."""


async def first_to_end(**parts: Coroutine[Any, Any, Any]) -> str:
    """Run all until one ends; cancel and await the others. Returns the name of the one that returned, or raises what one
    raised (an error before a return, the others' errors are logged)."""
    tasks = {name: asyncio.create_task(part, name=name) for name, part in parts.items()}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = [name for name, task in tasks.items() if task.done()]
    finally:
        await end_all(tasks.values())
    errors = [(n, e) for n, t in tasks.items() if not t.cancelled() and (e := t.exception()) is not None]
    for name, error in errors[1:]:
        log.error("%s ended as well: %r", name, error)
    if errors:
        raise errors[0][1]
    return ended[0]


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel and await them; their results and errors are the caller's to look at. Whoever has not ended after `AGAIN_S` is
    cancelled again; after `STOP_S` the process ends with `EXIT_STUCK`. Being cancelled in here hurries the tasks, and
    counts once they have ended."""
    loop = asyncio.get_running_loop()
    again_s, last_s = loop.time() + AGAIN_S, loop.time() + STOP_S
    hurried: asyncio.CancelledError | None = None
    for task in tasks:
        task.cancel()
    while pending := [task for task in tasks if not task.done()]:
        now_s = loop.time()
        if now_s >= last_s:
            _give_up(pending)
        if now_s >= again_s:
            again_s = last_s
            log.error("told to end again: %s", _standing(pending))
            for task in pending:
                task.cancel()
        try:
            await asyncio.wait(pending, timeout=min(again_s, last_s) - now_s)
        except asyncio.CancelledError as error:
            hurried = error
            for task in pending:
                task.cancel()
    if hurried is not None:
        raise hurried


def _give_up(pending: Collection[asyncio.Task[Any]]) -> None:
    """Not by an exception: asyncio, too, waits without end for tasks that do not end."""
    log.critical("ending the process: these would not end within %g s: %s", STOP_S, _standing(pending))
    logging.shutdown()
    os._exit(EXIT_STUCK)


def _standing(tasks: Collection[asyncio.Task[Any]]) -> str:
    """Each task's name and where it stands, from its own coroutine down to the one that waits."""
    told = []
    for task in tasks:
        places: list[str] = []
        coro: Any = task.get_coro()
        while (frame := getattr(coro, "cr_frame", None)) is not None:
            places.append(f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
            coro = getattr(coro, "cr_await", None)
        told.append(f"{task.get_name()} in {' > '.join(places) or repr(coro)}")
    return "; ".join(told)


def run_main(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, whose own end (tasks and threads that are left) has a bound as well: after `STOP_S` the process ends
    with code 1 and every thread's stack on stderr."""
    try:
        with asyncio.Runner() as runner:
            try:
                return runner.run(main)
            finally:
                faulthandler.dump_traceback_later(STOP_S, exit=True, file=sys.__stderr__ or 2)
    finally:
        faulthandler.cancel_dump_traceback_later()


def on_stop_signal(stop: Callable[[], object]) -> None:
    """Call `stop` on the running loop at SIGTERM or SIGINT. Whoever asks last is the one that is called."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
