"""Calls that may never return, kept off the event loop: one daemon thread each, and a sweep that steps over a stuck GPU.

What it protects: no NVML call, and no disk, ever stops the control loop, and a GPU whose driver blocks never keeps its
neighbours from being read. Daemon threads, because a call that hangs in the driver must not keep the process from ending.

The `Sweeper` reads all GPUs in one thread, for a thread per GPU would cost more than all the reads. When one read blocks,
that thread is left behind with its GPU (the GPU counts as hung until the read returns) and a fresh thread goes on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, TypeVar

T = TypeVar("T")

STALL_S: Final = 1.0
"""A read that has not returned for this long is called hung."""


def daemon_call(name: str, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run `function` in a daemon thread of its own; the future carries its result or exception. The caller bounds how many
    run at once. If the loop is gone when the call returns, the result is dropped: nobody is left to act on it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may itself include None

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - carried to whoever awaits the future, not swallowed
            failure = error
        _post(loop, lambda: settle(result, failure))

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        if not loop.is_closed():
            raise


@dataclass(slots=True)
class _Job(Generic[T]):
    names: tuple[str, ...]
    read: Callable[[str], T]
    done: asyncio.Event = field(default_factory=asyncio.Event)
    results: dict[str, T] = field(default_factory=dict)


class _Worker(Generic[T]):
    """One reading thread. `current` is the GPU it is at, and since when."""

    def __init__(self, loop: asyncio.AbstractEventLoop, unstuck: Callable[[str], None]) -> None:
        self._loop = loop
        self._unstuck = unstuck
        self.jobs: queue.SimpleQueue[_Job[T] | None] = queue.SimpleQueue()
        self.current: tuple[str, float] | None = None
        self.abandoned: str | None = None
        """Set once by the loop: the name it stopped waiting for."""
        threading.Thread(target=self._run, name="nvml-sweep", daemon=True).start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            for name in job.names:
                self.current = (name, time.monotonic())
                result = job.read(name)
                if self.abandoned is not None:  # the loop went on without us; what was read is stale
                    break
                job.results[name] = result
            self.current = None
            if self.abandoned is not None:
                break
            _post(self._loop, job.done.set)
        left_behind = self.abandoned
        if left_behind is not None:
            _post(self._loop, partial(self._unstuck, left_behind))


class Sweeper(Generic[T]):
    """Reads all of `names` one after the other. At most one stuck thread per name is ever left behind."""

    def __init__(self, *, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._stuck: set[str] = set()
        self._worker: _Worker[T] | None = None

    @property
    def stuck(self) -> frozenset[str]:
        """Names whose read has not returned."""
        return frozenset(self._stuck)

    async def sweep(self, names: Iterable[str], read: Callable[[str], T]) -> dict[str, T]:
        """What `read` gave for each name that is not stuck. `read` must not raise. Waits for a name at most `stall_s`."""
        wanted = tuple(name for name in names if name not in self._stuck)
        results: dict[str, T] = {}
        while wanted:
            if self._worker is None:
                self._worker = _Worker(asyncio.get_running_loop(), self._stuck.discard)
            job = _Job(wanted, read)
            self._worker.jobs.put(job)
            stuck = await self._finish(job, self._worker)
            results.update(job.results)
            if stuck is None:
                break
            self._stuck.add(stuck)
            self._worker.abandoned = stuck
            self._worker.jobs.put(None)  # wakes it in case it returned just now
            self._worker = None
            results.pop(stuck, None)
            wanted = tuple(name for name in wanted if name != stuck and name not in results)
        return results

    async def _finish(self, job: _Job[T], worker: _Worker[T]) -> str | None:
        """None when the job is done, else the name that it is stuck at."""
        while True:
            try:
                async with asyncio.timeout(self._stall_s):
                    await job.done.wait()
                return None
            except TimeoutError:
                current = worker.current
                if current is not None and time.monotonic() - current[1] >= self._stall_s / 2:
                    return current[0]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.jobs.put(None)
            self._worker = None
