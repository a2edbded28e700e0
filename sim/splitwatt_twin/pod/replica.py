"""One replica: prompts and tokens on one agenda of virtual time, kept level with the clock.

Theory: vLLM's engine computes prompts and tokens on the same GPUs. Here a prefill and a decode engine share them, and a
prompt does not slow the tokens of others down (chunked prefill's cost is left out); while both work, the GPUs draw what
the prefill wants. A request whose KV cache comes from another replica skips the prefill, as behind NixlConnector.

Invariant: each request that was taken in ends exactly once, with all its tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from splitwatt_core.names import L_MODEL_NAME
from splitwatt_shell.waiting import woken

from splitwatt_twin.cluster import MAX_IN_SYSTEM, KvLink
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import EngineFleet
from splitwatt_twin.kv import MIN_KV_TOKENS, kv_capacity_tokens, link_of, shape_of
from splitwatt_twin.metrics import EngineReading, engine_metrics
from splitwatt_twin.pod.flags import EngineSettings
from splitwatt_twin.pod.gpus import Gpus
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.stats import EngineStats

log = logging.getLogger(__name__)

SENSE_S: Final = 0.1
"""Caps are read at least this often."""
STREAM_S: Final = 0.05
"""A stream shows new tokens this often; several steps of the engine fall into one."""

_SELF: Final = ClusterKey("", "self")
_NEAR: Final = KvLink(bytes_per_token=0, gbit_per_s=1, remainder_s=0.0)
"""The KV cache stays where it was computed."""


class BusyError(RuntimeError):
    """More requests wait than the replica takes; the message is one sentence."""


@dataclass(eq=False, slots=True)
class Job:
    """A request and the moment it is over."""

    request: Request
    done: asyncio.Event


class Replica(Collector):
    """`run` keeps it level with the clock until cancelled. Its metrics are vLLM's, with vLLM's labels."""

    def __init__(self, settings: EngineSettings, gpus: Gpus) -> None:
        self._settings = settings
        self._gpus = gpus
        shape = shape_of(settings.model)
        capacity = kv_capacity_tokens(
            shape, gpus=settings.gpus, memory_bytes=gpus.memory_bytes, memory_share=settings.memory_share
        )
        if capacity < MIN_KV_TOKENS:
            log.warning(
                "%s leaves no room for a KV cache on %d GPUs; emulated with %d tokens", shape.name, settings.gpus, MIN_KV_TOKENS
            )
        self._stats = EngineStats()
        self._prefill = PrefillEngine(name="prefill", pace=gpus, stats=self._stats)
        self._decode = DecodeEngine(
            name="decode", pace=gpus, kv_capacity_tokens=max(MIN_KV_TOKENS, capacity), stats=self._stats,
            beside_prefill=True,
        )  # fmt: skip
        self._link = link_of(shape, profile_name=gpus.profile.name)
        self._jobs: dict[Request, Job] = {}
        self._news = asyncio.Event()
        self._fleet = EngineFleet(now_s=time.monotonic(), finished=self._finished, touched=lambda _: None)
        self._fleet.add(_SELF, self._prefill, link=_NEAR)
        self._fleet.add(_SELF, self._decode, link=_NEAR)

    @property
    def most_tokens(self) -> int:
        """Prompt and answer of one request together."""
        return min(self._settings.model_tokens, self._decode.kv_capacity_tokens)

    def submit(self, *, prompt_tokens: int, output_tokens: int, kv_arrives: bool) -> Job:
        """`kv_arrives`: another replica computed the prompt. Raises BusyError."""
        assert min(prompt_tokens, output_tokens) > 0 and prompt_tokens + output_tokens <= self.most_tokens
        if len(self._jobs) >= MAX_IN_SYSTEM:
            raise BusyError(f"{MAX_IN_SYSTEM} requests are waiting or running; try again later")
        now_s = self._catch_up()
        request = Request(cluster=_SELF, arrived_s=now_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        job = self._jobs[request] = Job(request, asyncio.Event())
        if kv_arrives:
            self._fleet.cluster(_SELF).take_over(request, self._link, now_s)
        else:
            self._fleet.cluster(_SELF).submit(request, now_s)
        self._news.set()
        return job

    def generated(self, job: Job) -> int:
        """Tokens of the answer so far."""
        return self._decode.generated(job.request)

    def _finished(self, request: Request) -> None:
        self._jobs.pop(request).done.set()

    def _catch_up(self) -> float:
        now_s = time.monotonic()
        while not self._fleet.run_until(now_s):
            pass
        return now_s

    async def run(self) -> None:
        while True:
            self._news.clear()
            self._catch_up()
            self._gpus.refresh()
            self._gpus.show(self._at_work())
            await woken(self._news, within_s=min(self._fleet.next_s - time.monotonic(), SENSE_S))

    def _at_work(self) -> PrefillEngine | DecodeEngine | None:
        if self._prefill.batch_tokens:
            return self._prefill
        return self._decode if self._decode.running else None

    def collect(self) -> Iterable[Metric]:
        self._catch_up()
        reading = EngineReading(
            labels=[self._settings.served_names[0], "0"],
            running=self._prefill.running + self._decode.running,
            waiting=self._prefill.waiting + self._decode.waiting,
            kv_usage=self._decode.kv_usage,
            stats=self._stats,
            decodes=True,
        )
        return engine_metrics([reading], labels=[L_MODEL_NAME, "engine"], finished_reason="length")
