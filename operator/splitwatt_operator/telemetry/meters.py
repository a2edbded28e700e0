"""What budgets' meters and agents say, asked of Prometheus once a second.

One query per budget fetches the sum, the count and the oldest sample's time at one evaluation, so that they belong
together; `timestamp()` gives the scrape's own time, which an aggregated value would have lost. Agents' readings come by
two queries for all nodes at once.

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

from splitwatt_core.budget.keeper import MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.names import L_NODE, M_GPU_POWER_WATTS

from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, QueryInvalidError, Sample
from splitwatt_operator.telemetry.selector import problem_of, problem_of_tree

log = logging.getLogger(__name__)

AGGREGATES: Final = {"Sum": "sum", "Average": "avg", "Max": "max"}
PART: Final = "splitwatt_part"
"""Label that tells the three parts of the meter query apart."""
MAX_JUDGED_SELECTORS: Final = 1024
JUDGE_AGAIN_S: Final = 60.0
"""A refusal is taken back after this time, if Prometheus has changed its mind: a selector is not condemned for ever."""
AGENT_POWER_QUERY: Final = f"sum by ({L_NODE}) ({M_GPU_POWER_WATTS})"
AGENT_TIME_QUERY: Final = f"min by ({L_NODE}) (timestamp({M_GPU_POWER_WATTS}))"


@dataclass(frozen=True, slots=True)
class AgentReading:
    power_w: float
    sampled_s: float


@dataclass(frozen=True, slots=True)
class Readings:
    """One round. `invalid`: for budgets whose selector is unusable, the sentence that says what to change."""

    meters: Mapping[str, MeterReading | MeterFailure] = field(default_factory=dict)
    agents: Mapping[str, AgentReading] = field(default_factory=dict)
    invalid: Mapping[str, str] = field(default_factory=dict)
    failures: int = 0


def meter_query(selector: str, aggregate: str) -> str:
    """PromQL for all three parts. The selector must have passed `problem_of`. Raises KeyError for an unknown aggregate."""
    parts = {
        "value": f"{AGGREGATES[aggregate]}({selector})",
        "count": f"count({selector})",
        "oldest": f"min(timestamp({selector}))",
    }
    return " or ".join(f'label_replace({query}, "{PART}", "{part}", "", "")' for part, query in parts.items())


def reading_of(samples: Sequence[Sample]) -> MeterReading | MeterFailure:
    parts = {sample.labels.get(PART): sample.value for sample in samples}
    try:
        return MeterReading(power_w=parts["value"], sampled_s=parts["oldest"], series=int(parts["count"]))
    except KeyError:
        return MeterFailure("no series matches the meter's selector now")


class Telemetry:
    """`read` is one round over all budgets; it never raises for Prometheus' sake."""

    def __init__(self, prometheus: PrometheusClient) -> None:
        self._prometheus = prometheus
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
            if budget.meter is not None and (problem := self._known_problem(budget.meter.selector)) is not None
        }
        results = {name: task.result() for name, task in meters.items()}
        failures = sum(isinstance(result, MeterFailure) for result in results.values()) + (agents.result() is None)
        return Readings(meters=results, agents=agents.result() or {}, invalid=invalid, failures=failures)

    async def _meter(self, budget: BudgetSpec) -> MeterReading | MeterFailure:
        meter = budget.meter
        assert meter is not None
        try:
            if (problem := await self._problem(meter.selector)) is not None:
                return MeterFailure(problem)
            samples = await self._prometheus.vector(meter_query(meter.selector, meter.aggregate))
            self._judge(meter.selector, None)  # it was read, so it can be
            return reading_of(samples)
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

    def _known_problem(self, selector: str) -> str | None:
        return self._judged.get(selector, (None, 0.0))[0] or problem_of(selector)

    async def _agents(self) -> dict[str, AgentReading] | None:
        power, times = await asyncio.gather(
            self._prometheus.vector(AGENT_POWER_QUERY),
            self._prometheus.vector(AGENT_TIME_QUERY),
            return_exceptions=True,
        )
        for answer in (power, times):
            if isinstance(answer, QueryError):
                log.debug("no readings of agents: %s", answer)
                return None
            if isinstance(answer, BaseException):
                raise answer
        assert not isinstance(power, BaseException) and not isinstance(times, BaseException)
        # Series without a node label add up to one row without a name: nobody's reading.
        sampled = {sample.labels[L_NODE]: sample.value for sample in times if L_NODE in sample.labels}
        return {
            node: AgentReading(sample.value, sampled[node])
            for sample in power
            if (node := sample.labels.get(L_NODE)) is not None and node in sampled
        }
