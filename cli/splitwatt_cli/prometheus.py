"""Prometheus asked from where people sit: straight, or through the API server's proxy where its address is a Service's.

So nobody needs a port-forward: whoever may `get services/proxy` in its namespace can ask. Only instant queries, by GET.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
from splitwatt_client import ApiError, Connection, Object

ENVIRONMENT: Final = "SPLITWATT_PROMETHEUS"
FLAG: Final = "--prometheus-url="
ANSWER_S: Final = 10.0
_SERVICE: Final = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\..*)?")


class PrometheusError(Exception):
    """No answer; the sentence says what to change."""


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One row of an instant vector. `values`: (Unix time, value), the newest last; several for a range selector."""

    labels: Mapping[str, str]
    values: Sequence[tuple[float, float]]

    @property
    def value(self) -> float:
        return self.values[-1][1]


class Prometheus(Protocol):
    @property
    def where(self) -> str: ...

    async def query(self, expression: str) -> list[VectorRow]:
        """An instant vector, or the raw samples of a range selector. Raises PrometheusError."""
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prometheus", metavar="URL",
        help=f"where Prometheus is (default: ${ENVIRONMENT}, or the operator's own, through the API server's proxy)",
    )  # fmt: skip
    parser.add_argument(
        "--prometheus-header", action="append", default=[], metavar="NAME=VALUE", help="sent with every query; may be repeated"
    )


def address(args: argparse.Namespace, deployments: Sequence[Object]) -> str:
    """The flag's, the environment's, or the operator's own; "" where nobody says."""
    return args.prometheus or os.environ.get(ENVIRONMENT, "") or address_of(deployments)


def address_of(deployments: Sequence[Object]) -> str:
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            for argument in container.get("args") or ():
                if argument.startswith(FLAG):
                    return str(argument.removeprefix(FLAG))
    return ""


def headers_of(args: argparse.Namespace) -> dict[str, str]:
    """Raises PrometheusError for what is no NAME=VALUE."""
    pairs = [text.partition("=") for text in args.prometheus_header]
    if wrong := [name for name, equals, _ in pairs if not name or not equals]:
        raise PrometheusError(f"--prometheus-header {wrong[0]!r} must be NAME=VALUE")
    return {name: value for name, _, value in pairs}


def reach(url: str, connection: Connection, headers: Mapping[str, str], *, inside: bool) -> Prometheus:
    """`inside`: this process runs in the cluster, where names of Services resolve."""
    parts = urlsplit(url)
    service = _SERVICE.fullmatch(parts.hostname or "")
    if service is None or inside:
        return Direct(url.rstrip("/"), headers)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    scheme = "https:" if parts.scheme == "https" else ""
    path = f"/api/v1/namespaces/{service[2]}/services/{scheme}{service[1]}:{port}/proxy{parts.path.rstrip('/')}"
    return Proxied(url, path, connection)


@dataclass(frozen=True, slots=True)
class Direct:
    where: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def query(self, expression: str) -> list[VectorRow]:
        limits = aiohttp.ClientTimeout(total=ANSWER_S)
        try:
            async with (
                aiohttp.ClientSession(headers=dict(self.headers), timeout=limits) as session,
                session.get(f"{self.where}/api/v1/query", params={"query": expression}) as response,
            ):
                return samples_of(await response.json(content_type=None), self.where)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PrometheusError(f"Prometheus at {self.where} gave no answer ({str(error) or type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class Proxied:
    where: str
    path: str
    connection: Connection

    async def query(self, expression: str) -> list[VectorRow]:
        try:
            answer = await self.connection.request_json("GET", f"{self.path}/api/v1/query", query=[("query", expression)])
        except ApiError as error:
            raise PrometheusError(f"Prometheus at {self.where}, through the API server: {error}") from error
        return samples_of(answer, self.where)


def samples_of(answer: Any, where: str) -> list[VectorRow]:
    """Raises PrometheusError for what is no answer of Prometheus."""
    if not isinstance(answer, dict) or answer.get("status") != "success":
        said = answer.get("error", "no answer of Prometheus' API") if isinstance(answer, dict) else "no answer of Prometheus' API"
        raise PrometheusError(f"Prometheus at {where} refused: {said}")
    rows = answer["data"]["result"]
    return [
        VectorRow(row["metric"], [(float(t), float(v)) for t, v in row.get("values") or [row["value"]]])
        for row in rows
        if isinstance(row, dict)
    ]
