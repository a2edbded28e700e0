"""What is asked of engines and routers by HTTP, each within a deadline and a bound: counters, versions, one completion.

The operator speaks to a cluster's Service and to its engines' pods by address, so that no name has to resolve.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_core.names import (
    L_BLOCK_SIZE,
    L_SOURCE,
    M_VLLM_CACHE_CONFIG,
    M_VLLM_NIXL_BYTES,
    M_VLLM_NIXL_FAILED,
    M_VLLM_PROMPT_BY_SOURCE,
)
from splitwatt_core.serving.kv_proof import KvCounters

LOOK_S: Final = 3.0
"""For an engine's counters, or its version."""
MAX_PAGE_BYTES: Final = 8 * 2**20
_KEPT: Final = (M_VLLM_NIXL_BYTES, M_VLLM_NIXL_FAILED, M_VLLM_PROMPT_BY_SOURCE, M_VLLM_CACHE_CONFIG)
_SOURCES: Final = {"external_kv_transfer": "external", "local_compute": "computed", "local_cache_hit": "cached"}
UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)
"""TimeoutError is an OSError; ValueError: what came is no such page."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: none came in time. `prompt_tokens` as the engine counted them, 0 when it did not say."""

    status: int
    prompt_tokens: int = 0


def counters_of(page: str) -> KvCounters:
    """From an engine's /metrics. Engines of one process (data parallel) count together. Raises ValueError."""
    wanted = "\n".join(line for line in page.splitlines() if line.startswith(_KEPT)) + "\n"
    tokens = dict.fromkeys(("external", "computed", "cached"), 0.0)
    sums: dict[str, float] = {}
    block_tokens = None
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            if sample.name == f"{M_VLLM_PROMPT_BY_SOURCE}_total":
                source = _SOURCES.get(sample.labels.get(L_SOURCE, ""))
                if source is not None:
                    tokens[source] += sample.value
            elif sample.name in (f"{M_VLLM_NIXL_BYTES}_sum", f"{M_VLLM_NIXL_FAILED}_total"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            elif sample.name == M_VLLM_CACHE_CONFIG and sample.labels.get(L_BLOCK_SIZE, "").isdecimal():
                block_tokens = int(sample.labels[L_BLOCK_SIZE])
    moved, failed = sums.get(f"{M_VLLM_NIXL_BYTES}_sum"), sums.get(f"{M_VLLM_NIXL_FAILED}_total")
    return KvCounters(
        external_tokens=int(tokens["external"]),
        computed_tokens=int(tokens["computed"]),
        cached_tokens=int(tokens["cached"]),
        moved_bytes=None if moved is None else int(moved),
        failed=None if failed is None else int(failed),
        block_tokens=block_tokens,
    )


class Engines:
    """Async context manager around one HTTP client."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Engines:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=LOOK_S), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def counters(self, urls: Mapping[str, str]) -> dict[str, KvCounters]:
        """Of each engine, by the names of `urls`. Raises one of UNREACHABLE when one does not show them: a sum without it would
        be none."""
        pages = await asyncio.gather(*(self._get(f"{url}/metrics") for url in urls.values()))
        return {name: counters_of(page) for name, page in zip(urls, pages, strict=True)}

    async def versions(self, urls: Mapping[str, str]) -> dict[str, str]:
        """Of those that say one."""
        pages = await asyncio.gather(*(self._get(f"{url}/version") for url in urls.values()), return_exceptions=True)
        return {name: version for name, page in zip(urls, pages, strict=True) if (version := _version(page))}

    async def complete(self, url: str, body: Mapping[str, Any], *, within_s: float) -> Answer:
        """One completion, whose prompt nobody but us has sent."""
        assert self._session is not None, "entered first"
        try:
            async with asyncio.timeout(within_s), self._session.post(f"{url}/v1/completions", json=dict(body)) as answer:
                content = await answer.json(content_type=None) if answer.status == 200 else {}
        except UNREACHABLE:
            return Answer(0)
        tokens = (content.get("usage") or {}).get("prompt_tokens") if isinstance(content, dict) else None
        return Answer(answer.status, tokens if isinstance(tokens, int) else 0)

    async def _get(self, url: str) -> str:
        assert self._session is not None, "entered first"
        async with asyncio.timeout(LOOK_S), self._session.get(url, allow_redirects=False) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > MAX_PAGE_BYTES:
                    raise ValueError(f"{url} answered with more than {MAX_PAGE_BYTES >> 20} MiB")
            if answer.status != 200:
                raise ValueError(f"{url} answered {answer.status}")
            return body.decode("utf-8", "replace")


async def closed(addresses: Mapping[str, str], port: int) -> list[str]:
    """Which of these hosts take no connection at this port."""
    found = await asyncio.gather(*(_listens(host, port) for host in addresses.values()))
    return [name for name, listens in zip(addresses, found, strict=True) if not listens]


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def _version(page: str | BaseException) -> str | None:
    if isinstance(page, asyncio.CancelledError):
        raise page
    if isinstance(page, BaseException):
        return None
    try:
        found = json.loads(page)
    except ValueError:
        return None
    version = found.get("version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None
