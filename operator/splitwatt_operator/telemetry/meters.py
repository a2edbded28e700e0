"""What budgets' meters and agents say, asked of Prometheus once a second.

One query per budget fetches the sum, the count, the extremes and the oldest sample's time at one evaluation, so that they
belong together; `timestamp()` gives the scrape's own time, which an aggregated value would have lost. Agents' readings come by
two queries for all nodes at once, one row per scraped agent, so that two agents that both say they are of one node (two
clusters behind one end point, two scrape jobs) are seen as two and never added up.

Protected: a failed query, an empty answer and a watt of zero stay three different things (I5).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from splitwatt_api.promql import with_matchers
from splitwatt_core.budget.keeper import MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec
from splitwatt_core.names import L_GPU, L_NODE, L_ROLE, M_GPU_POWER_WATTS
from splitwatt_core.protocol.ledger import AGENT_METRICS_SILENT_S

from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, QueryInvalidError, Sample
from splitwatt_operator.telemetry.selector import problem_of, problem_of_tree

log = logging.getLogger(__name__)

AGGREGATES: Final = {"Sum": "sum", "Average": "avg", "Max": "max"}
PART: Final = "splitwatt_part"
"""Label that tells the three parts of the meter query apart."""
MAX_JUDGED_SELECTORS: Final = 1024
JUDGE_AGAIN_S: Final = 60.0
"""A refusal is taken back after this time, if Prometheus has changed its mind: a selector is not condemned for ever."""
MAX_SHOWN_LABELS: Final = 4


@dataclass(frozen=True, slots=True)
class AgentReading:
    """`gpus`: of how many GPUs `power_w` is the sum, None where the server does not tell."""

    power_w: float
    sampled_s: float
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """One round. `invalid`: for budgets whose selector is unusable, the sentence that says what to change. `doubts`: for nodes
    whose agents' series cannot be used, why."""

    meters: Mapping[str, MeterReading | MeterFailure] = field(default_factory=dict)
    agents: Mapping[str, AgentReading] = field(default_factory=dict)
    invalid: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    failures: int = 0


def meter_query(meter: MeterSpec, matchers: Sequence[str] = ()) -> str:
    """PromQL for all parts. The selectors must have passed `problem_of`. Raises KeyError for an unknown aggregate."""
    selector = with_matchers(meter.selector, matchers)
    aged = with_matchers(meter.age_selector or meter.selector, matchers)
    parts = {
        "value": f"{AGGREGATES[meter.aggregate]}({selector})",
        "count": f"count({selector})",
        "least": f"min({selector})",
        "most": f"max({selector})",
        "oldest": f"min(timestamp({aged}))",
    }
    return " or ".join(f'label_replace({query}, "{PART}", "{part}", "", "")' for part, query in parts.items())


def reading_of(meter: MeterSpec, samples: Sequence[Sample]) -> MeterReading | MeterFailure:
    """In watts."""
    if len({sample.labels.get(PART) for sample in samples}) < len(samples):
        return MeterFailure(
            "the query was answered more than once: several tenants or clusters behind one end point; "
            "name one (--prometheus-header, --prometheus-matcher)"
        )
    parts = {sample.labels.get(PART): sample.value for sample in samples}
    unit_w = meter.watts_per_unit
    if "oldest" not in parts and "count" in parts and meter.age_selector is not None:
        return MeterFailure(f"no series matches meter.ageSelector {meter.age_selector} now: its source is gone")
    if "value" not in parts and "count" in parts:
        return MeterFailure("the meter's series are there and hold no number (NaN or infinite)")
    try:
        return MeterReading(
            power_w=unit_w * parts["value"],
            sampled_s=parts["oldest"],
            series=int(parts["count"]),
            extremes_w=(unit_w * parts["least"], unit_w * parts["most"]) if "least" in parts and "most" in parts else None,
        )
    except KeyError:
        return MeterFailure("no series matches the meter's selector now")


def agent_queries(matchers: Sequence[str] = ()) -> tuple[str, str]:
    """PromQL for watts, and for sample times with how many GPUs were read, one row of each per scraped agent with all its
    labels but those of its GPUs."""
    series = with_matchers(M_GPU_POWER_WATTS, matchers)
    without = f"without ({L_GPU}, {L_ROLE})"
    count = f'label_replace(count {without} ({series}), "{PART}", "count", "", "")'
    return f"sum {without} ({series})", f"min {without} (timestamp({series})) or {count}"


def agents_of(
    power: Sequence[Sample], times: Sequence[Sample], *, silent_s: float
) -> tuple[dict[str, AgentReading], dict[str, str]]:
    """Readings by node, and for nodes with two agents the sentence that names both. A row that is older than its rival by
    `silent_s` is of a former agent, whose series some servers show for minutes; rows without a node or a time are nobody's."""
    sampled = {frozenset(row.labels.items()): row.value for row in times}
    rows: dict[str, list[tuple[float, Sample]]] = {}
    for row in power:
        node, sampled_s = row.labels.get(L_NODE), sampled.get(frozenset(row.labels.items()))
        if node and sampled_s is not None:
            rows.setdefault(node, []).append((sampled_s, row))
    readings: dict[str, AgentReading] = {}
    doubts: dict[str, str] = {}
    for node, found in rows.items():
        newest_s = max(sampled_s for sampled_s, _ in found)
        living = [(sampled_s, row) for sampled_s, row in found if newest_s - sampled_s <= silent_s]
        if len(living) == 1:
            sampled_s, row = living[0]
            gpus = sampled.get(frozenset((row.labels | {PART: "count"}).items()))
            readings[node] = AgentReading(row.value, sampled_s, None if gpus is None else int(gpus))
        else:
            first, second = (row.labels for _, row in living[:2])
            doubts[node] = (
                f"{len(living)} agents say they are of node {node}: {_apart(first, second)} and {_apart(second, first)}; "
                "keep one by a matcher in every query (--prometheus-matcher, operator.prometheus.matchers)"
            )
    return readings, doubts


def _apart(labels: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What tells one label set from another."""
    differing = sorted(name for name in labels if labels[name] != other.get(name))
    shown = ",".join(f'{name}="{labels[name]}"' for name in differing[:MAX_SHOWN_LABELS])
    return f"{{{shown}}}"


class Telemetry:
    """`read` is one round over all budgets; it never raises for Prometheus' sake."""

    def __init__(self, prometheus: PrometheusClient, *, agent_silent_s: float = AGENT_METRICS_SILENT_S) -> None:
        self._prometheus = prometheus
        self._agent_silent_s = agent_silent_s
        self._judged: OrderedDict[str, tuple[str | None, float]] = OrderedDict()
        """Selectors that Prometheus has read: the problem or None, and until when that holds (monotonic)."""

    async def read(self, budgets: Sequence[BudgetSpec]) -> Readings:
        metered = [budget for budget in budgets if budget.meter is not None]
        async with asyncio.TaskGroup() as group:
            agents = group.create_task(self._agents())
            meters = {budget.name: group.create_task(self._meter(budget)) for budget in metered}
        invalid = {
            budget.name: problem
            for budget in metered
            if budget.meter is not None and (problem := self._known_problem(budget.meter)) is not None
        }
        results = {name: task.result() for name, task in meters.items()}
        failures = sum(isinstance(result, MeterFailure) for result in results.values()) + (agents.result() is None)
        readings, doubts = agents.result() or ({}, {})
        return Readings(meters=results, agents=readings, invalid=invalid, doubts=doubts, failures=failures)

    async def _meter(self, budget: BudgetSpec) -> MeterReading | MeterFailure:
        meter = budget.meter
        assert meter is not None
        try:
            for selector in _selectors(meter):
                if (problem := await self._problem(selector)) is not None:
                    return MeterFailure(problem)
            samples = await self._prometheus.vector(meter_query(meter, self._prometheus.matchers))
            self._judge(meter.selector, None)  # it was read, so it can be
            return reading_of(meter, samples)
        except KeyError:
            return MeterFailure(f"meter.aggregate {meter.aggregate} is unknown; use one of {', '.join(AGGREGATES)}")
        except QueryInvalidError as refusal:
            self._judge(meter.selector, f"Prometheus refuses the meter's selector {meter.selector}: {refusal}")
            return MeterFailure(str(refusal))
        except QueryError as error:
            return MeterFailure(str(error))

    async def _problem(self, selector: str) -> str | None:
        known, until_s = self._judged.get(selector, (None, float("-inf")))
        if time.monotonic() < until_s:
            return known
        problem = problem_of(selector)
        if problem is None:
            try:
                problem = problem_of_tree(selector, await self._prometheus.parse(selector))
            except QueryInvalidError as refusal:
                problem = f"Prometheus cannot read the meter's selector {selector}: {refusal}"
            except QueryError:
                # Prometheus before 3 and some compatible servers cannot parse for us; the form is right, and the query
                # itself will tell.
                return None
        self._judge(selector, problem)
        return problem

    def _judge(self, selector: str, problem: str | None) -> None:
        lasts_s = float("inf") if problem is None else JUDGE_AGAIN_S
        self._judged[selector] = (problem, time.monotonic() + lasts_s)
        while len(self._judged) > MAX_JUDGED_SELECTORS:
            self._judged.popitem(last=False)

    def _known_problem(self, meter: MeterSpec) -> str | None:
        found = (self._judged.get(selector, (None, 0.0))[0] or problem_of(selector) for selector in _selectors(meter))
        return next((problem for problem in found if problem is not None), None)

    async def _agents(self) -> tuple[dict[str, AgentReading], dict[str, str]] | None:
        power, times = await asyncio.gather(
            *(self._prometheus.vector(query) for query in agent_queries(self._prometheus.matchers)), return_exceptions=True
        )
        for answer in (power, times):
            if isinstance(answer, QueryError):
                log.debug("no readings of agents: %s", answer)
                return None
            if isinstance(answer, BaseException):
                raise answer
        assert not isinstance(power, BaseException) and not isinstance(times, BaseException)
        return agents_of(power, times, silent_s=self._agent_silent_s)


def _selectors(meter: MeterSpec) -> tuple[str, ...]:
    return (meter.selector,) if meter.age_selector is None else (meter.selector, meter.age_selector)
