"""`python -m splitwatt_twin.pod MODEL [vLLM's flags]`: one emulated engine, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import closing
from typing import Final

from aiohttp import web
from splitwatt_nvml_twin.build import BuildError
from splitwatt_shell.address import Address
from splitwatt_shell.serve import ListenError, listening
from splitwatt_shell.supervise import first_to_end, on_stop_signal, run_main

from splitwatt_twin.gpus import UnknownGpuError
from splitwatt_twin.pod.api import application
from splitwatt_twin.pod.flags import EngineSettings, parse
from splitwatt_twin.pod.gpus import TooFewGpusError, gpus_of
from splitwatt_twin.pod.replica import Replica

DRAIN_S: Final = 50.0
"""Requests in flight may end; a pod is killed 60 s after it was told to."""

log = logging.getLogger("splitwatt_twin.pod")


async def run(settings: EngineSettings) -> None:
    """Until SIGTERM or SIGINT. Raises ListenError when the address is taken, and what `gpus_of` raises."""
    stop = asyncio.Event()
    on_stop_signal(stop.set)
    with closing(gpus_of(os.environ, count=settings.gpus)) as gpus:
        replica = Replica(settings, gpus)
        await first_to_end(http=_serve(settings, replica, stop), replica=replica.run())


async def _serve(settings: EngineSettings, replica: Replica, stop: asyncio.Event) -> None:
    """The replica goes on while requests in flight end."""
    runner = web.AppRunner(application(settings, replica), access_log=None, handle_signals=False, shutdown_timeout=DRAIN_S)
    async with listening(runner, Address(settings.host, settings.port, "--port")) as address:
        log.info("serving %s on %s with %d GPUs", settings.model, address, settings.gpus)
        await stop.wait()


def main() -> int:
    settings = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if settings.ignored:
        log.info("without effect on an emulated engine: %s", " ".join(settings.ignored))
    try:
        run_main(run(settings))
    except (BuildError, ListenError, TooFewGpusError, UnknownGpuError, OSError) as error:
        sys.stderr.write(f"splitwatt_twin.pod: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
