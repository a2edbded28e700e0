"""Instant queries to Prometheus, with "no answer", "no data" and "zero" as three different things (I5).

Every query ends within `timeout_s`, well below the budget loop's period, so that a slow Prometheus makes telemetry stale
but never the loop late. API: Prometheus HTTP API v1, `/api/v1/query` and `/api/v1/parse_query`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from splitwatt_operator.telemetry.endpoint import EndPoint, EndPointError
from splitwatt_operator.telemetry.lookup import Lookup

QUERY_TIMEOUT_S: Final = 0.8
MAX_CONCURRENT: Final = 16
MAX_MESSAGE_CHARS: Final = 300
POST_REFUSED: Final = (405, 501)
UNLIMITED: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""Our own time-out ends a request; aiohttp's swallows a cancellation that comes in the same turn."""
SERVER_STATES: Final = (401, 403, 404, 429)
"""Answers that say something of who asks, where, or how often, and nothing of the query."""
MAX_ANSWER_BYTES: Final = 16 * 2**20
"""Unpacked. Meters give five rows each and agents one, so that 100 000 GPUs in nodes of eight fill half of it; what is longer is
another page than the one asked for. Nothing else runs while it is read: half a second of such an answer at most."""


class QueryError(Exception):
    """No usable answer; the sentence says why."""


class QueryFailedError(QueryError):
    """This query may be to blame: another one may well be answered."""


class QueryInvalidError(QueryFailedError):
    """Prometheus read the query and refused it: asking again will not help."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    location: str
    body: bytes


class PrometheusClient:
    """Async context manager around one HTTP client, aiohttp: requests are given up all the time here, and others leak the
    connection of one that is, until none is left. `end_point`: the server's root, with any path prefix, or all there is to
    say of it. Raises EndPointError where one of its files cannot be used."""

    def __init__(
        self, end_point: EndPoint | str, *, timeout_s: float = QUERY_TIMEOUT_S, max_concurrent: int = MAX_CONCURRENT
    ) -> None:
        self._end_point = end_point if isinstance(end_point, EndPoint) else EndPoint(end_point)
        self.url = self._end_point.url.rstrip("/")
        self.matchers = self._end_point.matchers
        self._method = self._end_point.method
        self.timeout_s = timeout_s
        self._max_concurrent = max_concurrent
        self._slots = asyncio.Semaphore(max_concurrent)
        self._tls = self._end_point.tls()
        self._tls_version = self._end_point.tls_version()
        self._lookup = Lookup()
        self._session: aiohttp.ClientSession | None = None
        self._former: aiohttp.ClientSession | None = None
        """With the certificates before the present ones: requests may be under way in it."""

    def _connected(self) -> aiohttp.ClientSession:
        """Made at the first request, for it belongs to the event loop that runs then."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._max_concurrent, ssl=self._tls, resolver=self._lookup, use_dns_cache=False
            )
            self._session = aiohttp.ClientSession(connector=connector, timeout=UNLIMITED, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def __aenter__(self) -> PrometheusClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._session, self._former):
            if session is not None:
                await session.close()

    @property
    def method(self) -> str:
        """Of queries from now on: POST, or GET where nothing else is allowed."""
        return self._method

    async def vector(self, query: str, *, whole: bool = False) -> list[Sample]:
        """The instant vector now. An empty list is an answer: no such series. NaN samples are left out: they are no
        data. `whole`: an answer from part of the data is none, for its sum is too small. Raises QueryError; QueryFailedError
        and QueryInvalidError where the query itself may be, or is, to blame."""
        answer = await self._call("/api/v1/query", {"query": query, "timeout": f"{round(1000 * self.timeout_s)}ms"})
        if whole and (lacking := _lacking(answer)):
            raise QueryFailedError(f"Prometheus at {self.url} answered from part of its data, which is no sum: {lacking}")
        data = answer["data"]
        if data.get("resultType") != "vector":
            raise QueryInvalidError(f"the query gives a {data.get('resultType')}, not an instant vector: {query}")
        rows: Any = data.get("result")
        samples = []
        for row in rows if isinstance(rows, list) else [rows]:
            try:
                _, text = row["value"]
                value = float(text)
                labels = {str(name): str(label) for name, label in row["metric"].items()}
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise QueryFailedError(f"Prometheus at {self.url} answered with a malformed sample: {row!r:.120}") from error
            if math.isfinite(value):
                samples.append(Sample(labels=labels, value=value))
        return samples

    async def parse(self, query: str) -> Mapping[str, Any]:
        """Prometheus' own syntax tree of a query. Raises QueryInvalidError with its parser's words, QueryError when there is
        no such answer (some compatible servers have no `parse_query`)."""
        data: Mapping[str, Any] = (await self._call("/api/v1/parse_query", {"query": query}))["data"]
        return data

    async def _call(self, path: str, params: Mapping[str, str]) -> Mapping[str, Any]:
        """The whole answer, whose `data` is an object."""
        try:
            async with self._slots, asyncio.timeout(self.timeout_s):
                response = await self._send(path, params)
        except EndPointError as error:
            raise QueryError(f"Prometheus at {self.url} was not asked: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            if name := self._lookup.unanswered:
                raise QueryError(f"no answer from Prometheus at {self.url} (DNS does not answer for {name})") from error
            late = isinstance(error, TimeoutError)
            sentence = f"no answer from Prometheus at {self.url} ({_why(error)})"
            raise (QueryFailedError if late else QueryError)(sentence) from error
        status = response.status
        blamed = QueryError if status in SERVER_STATES else QueryFailedError
        if 300 <= status < 400:
            raise QueryError(f"{self.url}{path} answered {status}, a redirect to {response.location!r:.120}")
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise blamed(f"{self.url}{path} answered {status} without JSON{_advice(status)}") from error
        if 200 <= status < 300 and not (isinstance(answer, dict) and "status" in answer):
            raise QueryError(f"{self.url}{path} answered {status} with JSON that is not of Prometheus' API")
        if not isinstance(answer, dict) or answer.get("status") != "success":
            answer = answer if isinstance(answer, dict) else {}
            sentence = str(answer.get("error") or answer.get("message") or response.reason)[:MAX_MESSAGE_CHARS]
            if answer.get("errorType") == "bad_data":
                raise QueryInvalidError(sentence)
            raise blamed(f"Prometheus at {self.url} refused the query with {status}: {sentence}{_advice(status)}")
        if not isinstance(answer.get("data"), dict):
            raise QueryError(f"{self.url}{path} answered without data")
        return answer

    async def _send(self, path: str, params: Mapping[str, str]) -> Response:
        """Once, and once more by GET where a POST is not allowed: then it never is."""
        if (version := self._end_point.tls_version()) != self._tls_version:
            self._tls, self._tls_version = self._end_point.tls(), version
            oldest, self._former, self._session = self._former, self._session, None
            if oldest is not None:
                await oldest.close()
        response = await self._request(path, params)
        if self._method == "POST" and response.status in POST_REFUSED:
            self._method = "GET"
            response = await self._request(path, params)
        return response

    async def _request(self, path: str, params: Mapping[str, str]) -> Response:
        extra = dict(self._end_point.arguments)
        get = self._method == "GET"
        async with self._connected().request(
            self._method,
            self.url + path,
            params={**extra, **params} if get else extra,
            data=None if get else dict(params),
            headers=self._end_point.request_headers(),
            allow_redirects=False,
        ) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise QueryFailedError(f"{self.url}{path} answered with more than {MAX_ANSWER_BYTES >> 20} MiB")
            return Response(answer.status, answer.reason or "", answer.headers.get("location", "nowhere"), bytes(body))


def _lacking(answer: Mapping[str, Any]) -> str:
    """Why there may be more than was answered, "" where that is all: a store or a storage node that gave nothing (Thanos,
    remote read, VictoriaMetrics' cluster), samples that could not be added up. What is an info is a hint, and lacks nothing."""
    warnings = answer.get("warnings")
    if warnings:
        told = warnings if isinstance(warnings, list) else [warnings]
        return "; ".join(map(str, told))[:MAX_MESSAGE_CHARS]
    return "isPartial" if answer.get("isPartial") else ""


def _advice(status: int) -> str:
    """What people forget most."""
    return {
        401: ": give a token or a password (--prometheus-token-file, --prometheus-user)",
        403: ": these credentials may not ask, or no tenant is named (--prometheus-header)",
    }.get(status, "")


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(cause) or type(cause).__name__
