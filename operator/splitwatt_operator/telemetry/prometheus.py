"""Instant queries to Prometheus, with "no answer", "no data" and "zero" as three different things (I5).

Every query ends within `timeout_s`, well below the budget loop's period, so that a slow Prometheus makes telemetry stale
but never the loop late. API: Prometheus HTTP API v1, `/api/v1/query` and `/api/v1/parse_query`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

QUERY_TIMEOUT_S: Final = 0.8
MAX_CONCURRENT: Final = 16
MAX_MESSAGE_CHARS: Final = 300


class QueryError(Exception):
    """No usable answer; the sentence says why."""


class QueryInvalidError(QueryError):
    """Prometheus read the query and refused it: asking again will not help."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


class PrometheusClient:
    """Async context manager around one HTTP client. `url` is the server's root, with any path prefix."""

    def __init__(self, url: str, *, timeout_s: float = QUERY_TIMEOUT_S, max_concurrent: int = MAX_CONCURRENT) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_concurrent)
        limits = httpx.Limits(max_connections=max_concurrent, max_keepalive_connections=max_concurrent)
        self._http = httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False)

    async def __aenter__(self) -> PrometheusClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def vector(self, query: str) -> list[Sample]:
        """The instant vector now. An empty list is an answer: no such series. NaN samples are left out: they are no
        data. Raises QueryError, QueryInvalidError."""
        data = await self._call("/api/v1/query", {"query": query, "timeout": f"{round(1000 * self._timeout_s)}ms"})
        if data.get("resultType") != "vector":
            raise QueryInvalidError(f"the query gives a {data.get('resultType')}, not an instant vector: {query}")
        rows: Any = data.get("result")
        samples = []
        for row in rows if isinstance(rows, list) else [rows]:
            try:
                value = float(row["value"][1])
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise QueryError(f"Prometheus at {self.url} answered with a malformed sample: {row!r:.120}") from error
            if math.isfinite(value):
                samples.append(Sample(labels=row.get("metric", {}), value=value))
        return samples

    async def parse(self, query: str) -> Mapping[str, Any]:
        """Prometheus' own syntax tree of a query. Raises QueryInvalidError with its parser's words, QueryError when there is
        no such answer (some compatible servers have no `parse_query`)."""
        return await self._call("/api/v1/parse_query", {"query": query})

    async def _call(self, path: str, params: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                response = await self._http.post(self.url + path, data=dict(params))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise QueryError(f"no answer from Prometheus at {self.url} ({_why(error)})") from error
        try:
            answer = response.json()
        except ValueError as error:
            raise QueryError(f"{self.url}{path} answered {response.status_code} without JSON") from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            answer = answer if isinstance(answer, dict) else {}
            sentence = str(answer.get("error", f"HTTP {response.status_code}"))[:MAX_MESSAGE_CHARS]
            if answer.get("errorType") == "bad_data":
                raise QueryInvalidError(sentence)
            raise QueryError(f"Prometheus at {self.url} refused the query: {sentence}")
        data = answer.get("data")
        if not isinstance(data, dict):
            raise QueryError(f"{self.url}{path} answered without data")
        return data


def _why(error: Exception) -> str:
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return "timed out"
    return str(error) or type(error).__name__
