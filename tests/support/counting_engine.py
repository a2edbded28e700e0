"""A stand-in for a vLLM engine with NixlConnector: its counters move as vLLM 0.32's were seen to, whatever goes wrong.

Text is nothing and time is none; what it is for are the ways of failing, which cannot be had from an engine at will.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

BLOCK_TOKENS: Final = 128
BLOCK_BYTES: Final = 131_072
CHARS_PER_TOKEN: Final = 4
REMOTE: Final = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")

_PAGE: Final = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="{block}",cache_dtype="auto",engine="0",num_gpu_blocks="64"}} 1.0
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{{engine="0",model_name="m",source="local_compute"}} {computed}.0
vllm:prompt_tokens_by_source_total{{engine="0",model_name="m",source="local_cache_hit"}} 0.0
vllm:prompt_tokens_by_source_total{{engine="0",model_name="m",source="external_kv_transfer"}} {external}.0
vllm:prompt_tokens_by_source_created{{engine="0",model_name="m",source="external_kv_transfer"}} 1.7e+09
"""
_CONNECTOR: Final = """\
# HELP vllm:nixl_bytes_transferred Histogram of bytes transferred per NIXL Xfer.
# TYPE vllm:nixl_bytes_transferred histogram
vllm:nixl_bytes_transferred_bucket{{engine="0",le="+Inf",model_name="m"}} 1.0
vllm:nixl_bytes_transferred_count{{engine="0",model_name="m"}} 1.0
vllm:nixl_bytes_transferred_sum{{engine="0",model_name="m"}} {moved}.0
# HELP vllm:nixl_num_failed_transfers_total Number of failed NIXL KV Cache transfers.
# TYPE vllm:nixl_num_failed_transfers_total counter
vllm:nixl_num_failed_transfers_total{{engine="0",model_name="m"}} {failed}.0
"""


@dataclass
class CountingEngine:
    """At `host`, whose side channel is a port that takes connections while `side_channel` is set. `fetch`: what becomes of a KV
    cache that lies elsewhere: it "moves", or its transfer fails and the prompt is computed ("recompute") or refused ("fail")."""

    host: str
    port: int
    side_port: int
    version: str = "0.32.0"
    connector: bool = True
    side_channel: bool = True
    fetch: str = "moves"
    external: int = 0
    computed: int = 0
    moved: int = 0
    failed: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    _runner: web.AppRunner | None = None
    _side: asyncio.Server | None = None

    async def __aenter__(self) -> CountingEngine:
        app = web.Application()
        app.add_routes([
            web.post("/v1/completions", self._complete),
            web.get("/metrics", self._metrics),
            web.get("/version", self._version),
            web.get("/health", self._health),
        ])  # fmt: skip
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        if self.side_channel:
            self._side = await asyncio.start_server(lambda _, writer: writer.close(), self.host, self.side_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._side is not None:
            await self.close_side_channel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def close_side_channel(self) -> None:
        assert self._side is not None
        self._side.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._side.wait_closed()
        self._side = None

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        tokens = len(body["prompt"]) // CHARS_PER_TOKEN
        params = (body.get("kv_transfer_params") or {}) if self.connector else {}
        answer: dict[str, Any] = {"id": "c", "object": "text_completion", "model": "m", "created": 1}
        if params.get("do_remote_decode"):
            answer["kv_transfer_params"] = {
                "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "e", "remote_block_ids": [1],
                "remote_host": self.host, "remote_port": self.side_port,
            }  # fmt: skip
        if params.get("do_remote_prefill"):
            assert all(params.get(key) is not None for key in REMOTE), "vLLM's engine ends on it"
            if self.fetch == "moves":
                self.external += tokens
                self.moved += -(-tokens // BLOCK_TOKENS) * BLOCK_BYTES
            else:
                self.failed += 1
                if self.fetch == "fail":
                    return web.json_response({"error": {"message": "KV load failed"}}, status=500)
                self.computed += tokens
        else:
            self.computed += tokens
        choice = {"index": 0, "text": "a b", "finish_reason": "length"}
        usage = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
        return web.json_response({**answer, "choices": [choice], "usage": usage})

    async def _metrics(self, _: web.Request) -> web.Response:
        page = _PAGE + (_CONNECTOR if self.connector else "")
        numbers = {"computed": self.computed, "external": self.external, "moved": self.moved, "failed": self.failed}
        return web.Response(text=page.format(block=BLOCK_TOKENS, **numbers))

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()
