"""`python -m splitwatt_twin.pod MODEL [vLLM's flags]`: one emulated engine, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from typing import Final

from splitwatt_nvml_twin.build import BuildError

from splitwatt_twin.gpus import UnknownGpuError
from splitwatt_twin.metrics import listen
from splitwatt_twin.pod.api import application
from splitwatt_twin.pod.flags import Settings, parse
from splitwatt_twin.pod.gpus import TooFewGpusError, gpus_of
from splitwatt_twin.pod.replica import Replica

DRAIN_S: Final = 50.0
"""Requests in flight may end; a pod is killed 60 s after it was told to."""

log = logging.getLogger("splitwatt_twin.pod")


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises OSError when the address is taken, and what `gpus_of` raises."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with AsyncExitStack() as stack:
        gpus = gpus_of(os.environ, count=settings.gpus)
        stack.callback(gpus.close)
        replica = Replica(settings, gpus)
        app = application(settings, replica)
        runner = await listen(app, host=settings.host, port=settings.port, drain_s=DRAIN_S)
        stack.push_async_callback(runner.cleanup)
        log.info("serving %s on %s:%d with %d GPUs", settings.model, settings.host, settings.port, settings.gpus)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(replica.run())
            await stop.wait()
            await runner.cleanup()
            running.cancel()


def main() -> int:
    settings = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if settings.ignored:
        log.info("without effect on an emulated engine: %s", " ".join(settings.ignored))
    try:
        asyncio.run(run(settings))
    except (BuildError, TooFewGpusError, UnknownGpuError, OSError) as error:
        sys.stderr.write(f"splitwatt_twin.pod: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
