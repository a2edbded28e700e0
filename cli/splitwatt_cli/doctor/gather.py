"""Asks API server and Prometheus for all that the checks want to know. Whatever is not answered is said as that."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any, Final

from splitwatt_client import Connection, Rejected
from splitwatt_client.connection import UNLIMITED
from splitwatt_core import names
from splitwatt_core.budget.tree import MeterSpec

from splitwatt_cli import prometheus
from splitwatt_cli.doctor.facts import Clock, MeterAnswer, Right, SiteFacts, TelemetryFacts
from splitwatt_cli.doctor.meters import specs_of
from splitwatt_cli.doctor.rights import needed
from splitwatt_cli.prometheus import Prometheus, PrometheusError
from splitwatt_cli.snapshot import SiteSnapshot, take

MAX_REVIEWS_AT_ONCE: Final = 16
MAX_QUERIES_AT_ONCE: Final = 8
REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
ANNOTATION_BREAKER: Final = "splitwatt.io/breaker-watts"
"""On a PowerBudget, by a person: what the breaker above it is rated."""
_LIFE: Final = names.M_AGENT_WATCH_LIVE
_TTFT: Final = "|".join(f"{metric}_count" for metric in (names.M_VLLM_TTFT, names.M_SGLANG_TTFT))
_ENGINES: Final = f'{{__name__=~"{_TTFT}"}}'


async def gather(
    connection: Connection,
    *,
    namespace: str | None,
    prometheus_of: Any,
    breakers_w: Mapping[str, int],
) -> SiteFacts:
    """`prometheus_of`: gives the end point for a snapshot, None where nobody says one. Raises ApiError where the API server does
    not answer."""
    version = str((await connection.request_json("GET", "/version")).get("gitVersion", ""))
    server = await server_clock(connection)
    seen = await take(connection, namespace=namespace)
    (refused, rights_problem), telemetry = await asyncio.gather(_rights(connection, seen), _telemetry(prometheus_of, seen))
    return SiteFacts(
        seen=seen,
        telemetry=telemetry,
        version=version,
        server=server,
        local_s=seen.now_s,
        refused=refused,
        rights_problem=rights_problem,
        breakers_w={**_annotated(seen), **breakers_w},
    )


def _annotated(seen: SiteSnapshot) -> dict[str, int]:
    found: dict[str, int] = {}
    for obj in seen.budgets:
        text = (obj["metadata"].get("annotations") or {}).get(ANNOTATION_BREAKER, "")
        if text.isdigit():
            found[obj["metadata"]["name"]] = int(text)
    return found


async def server_clock(connection: Connection) -> Clock | None:
    """The API server's, by the header Date; to about a second."""
    asked_s = time.time()
    response = await connection.open("GET", "/version", limits=UNLIMITED)
    try:
        answered_s = time.time()
        text = response.headers.get("Date", "")
    finally:
        response.close()
    try:
        shown_s = parsedate_to_datetime(text).astimezone(UTC).timestamp() + 0.5
    except (TypeError, ValueError):
        return None
    return clock_of(shown_s, asked_s, answered_s)


def clock_of(shown_s: float, asked_s: float, answered_s: float) -> Clock:
    return Clock(shown_s - (asked_s + answered_s) / 2, (answered_s - asked_s) / 2)


async def _rights(connection: Connection, seen: SiteSnapshot) -> tuple[list[Right], str]:
    """What the accounts lack, and why that cannot be told. Nothing is asked before anything is installed."""
    if not seen.definitions:
        return [], ""
    turn = asyncio.Semaphore(MAX_REVIEWS_AT_ONCE)
    refused: list[Right] = []
    problem = ""

    async def review(right: Right) -> None:
        nonlocal problem
        async with turn:
            if problem:
                return
            try:
                answer = await connection.request_json("POST", REVIEWS, body=_review(right, seen.namespace))
            except Rejected as refusal:
                problem = refusal.message
                return
        if not answer["status"].get("allowed"):
            refused.append(right)

    wanted = needed(seen.namespace)
    await asyncio.gather(*map(review, wanted))
    return sorted(refused, key=wanted.index), problem


def _review(right: Right, namespace: str) -> dict[str, Any]:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource,
        "name": right.name, "namespace": right.namespace,
    }  # fmt: skip
    user = f"system:serviceaccount:{namespace}:{right.account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": groups,
            "resourceAttributes": {key: value for key, value in attributes.items() if value},
        },
    }


async def _telemetry(prometheus_of: Any, seen: SiteSnapshot) -> TelemetryFacts:
    try:
        end_point: Prometheus | None = prometheus_of(seen)
        if end_point is None:
            return TelemetryFacts(
                problem="nobody says where Prometheus is, so meters, agents' samples and engines are not looked at"
            )
        return await _asked(end_point, seen)
    except PrometheusError as error:
        return TelemetryFacts(where="asked", problem=str(error))


async def _asked(end_point: Prometheus, seen: SiteSnapshot) -> TelemetryFacts:
    """Raises PrometheusError."""
    turn = asyncio.Semaphore(MAX_QUERIES_AT_ONCE)

    async def ask(expression: str) -> list[prometheus.VectorRow]:
        async with turn:
            return await end_point.query(expression)

    asked_s = time.time()
    now = await ask("vector(time())")
    clock = clock_of(now[0].value, asked_s, time.time()) if now else None
    ages, up, targets, lives, draw, closed, engines, pods = await asyncio.gather(
        ask(f"min by (node) (time() - timestamp({_LIFE}))"),
        ask(f"up and on (job, instance) last_over_time({_LIFE}[15m])"),
        ask(f"max by (job, instance, node) (last_over_time({_LIFE}[15m]))"),
        ask(f"{_LIFE}[1m]"),
        ask(f"sum by (node) ({names.M_GPU_POWER_WATTS})"),
        ask(f"{names.M_AGENT_POD_RESOURCES_UP} == 0"),
        ask(f'count by (namespace, cluster) ({_ENGINES[:-1]}, role!=""}})'),
        ask(f"count by (namespace, pod) ({_ENGINES})"),
    )
    meters = {name: spec.meter for name, spec in specs_of(list(seen.budgets)).items() if spec.meter is not None}
    answers = await asyncio.gather(*(_meter(ask, meter) for meter in meters.values()))
    return TelemetryFacts(
        where=end_point.where,
        clock=clock,
        age_s=_by_node(ages),
        down=_down(up, targets),
        gap_s=_gaps(lives),
        draw_w=_by_node(draw),
        closed=frozenset(row.labels.get("node", "") for row in closed),
        meters=dict(zip(meters, answers, strict=True)),
        engines=frozenset((row.labels.get("namespace", ""), row.labels.get("cluster", "")) for row in engines),
        pods=frozenset((row.labels.get("namespace", ""), row.labels.get("pod", "")) for row in pods),
    )


async def _meter(ask: Any, meter: MeterSpec) -> MeterAnswer:
    try:
        total, count, oldest = await asyncio.gather(
            ask(f"sum({meter.selector})"),
            ask(f"count({meter.selector})"),
            ask(f"max(time() - timestamp({meter.age_selector or meter.selector}))"),
        )
    except PrometheusError as error:
        return MeterAnswer(problem=str(error))
    return MeterAnswer(
        value=total[0].value if total else None,
        series=int(count[0].value) if count else 0,
        age_s=oldest[0].value if oldest else None,
    )


def _down(up: Sequence[prometheus.VectorRow], targets: Sequence[prometheus.VectorRow]) -> frozenset[str]:
    """Nodes that an agent's target spoke of lately, and none of whose targets answers now."""
    nodes: dict[tuple[str | None, str | None], set[str]] = {}
    for row in targets:
        nodes.setdefault((row.labels.get("job"), row.labels.get("instance")), set()).add(row.labels.get("node", ""))
    answers: dict[bool, set[str]] = {True: set(), False: set()}
    for row in up:
        answers[row.value != 0] |= nodes.get((row.labels.get("job"), row.labels.get("instance")), set())
    return frozenset(answers[False] - answers[True])


def _by_node(rows: Sequence[prometheus.VectorRow]) -> dict[str, float]:
    return {row.labels.get("node", ""): row.value for row in rows}


def _gaps(rows: Sequence[prometheus.VectorRow]) -> dict[str, float]:
    """Seconds between two samples of an agent, usually; of fewer than three nothing is said."""
    return {
        row.labels.get("node", ""): median(b[0] - a[0] for a, b in zip(row.values, row.values[1:], strict=False))
        for row in rows
        if len(row.values) > 2
    }


def end_point(connection: Connection, args: Any, seen: SiteSnapshot) -> Prometheus | None:
    """Raises PrometheusError for a header that is none."""
    url = prometheus.address(args, seen.deployments)
    headers = prometheus.headers_of(args)
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    return prometheus.reach(url, connection, headers, inside=inside) if url else None
