"""What budgets' meters and agents say, asked of Prometheus once a second.

Meters are asked many in one query (`batches` says which), and as one question where only a label's value tells them apart, so
that hundreds of them cost a handful of requests; meters that are the same are asked once. A round ends in its second whatever
Prometheus does: who was not answered by then has failed.

Protected: a failed query, an empty answer and a watt of zero stay three different things (I5), and no meter is blind for
another's sake for longer than one round.
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
from splitwatt_core.budget.meters.folding import Family, families
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec
from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S

from splitwatt_operator.telemetry.batches import Asked, Batches
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, QueryFailedError, QueryInvalidError, Sample
from splitwatt_operator.telemetry.queries import (
    AGGREGATES,
    AgentReading,
    agent_queries,
    agents_of,
    family_query,
    joint_query,
    meter_query,
    question,
    reading_of,
    shared_out,
    split,
)
from splitwatt_operator.telemetry.selector import problem_of, problem_of_tree

log = logging.getLogger(__name__)

MAX_REFUSED_SELECTORS: Final = 1024
JUDGE_AGAIN_S: Final = 60.0
"""A refusal is taken back after this time, if Prometheus has changed its mind: a selector is not condemned for ever."""
ROUND_SHARE: Final = 1.125
"""A round may last this much of what one query may: 0.9 s of 0.8 s."""
JOINT_LANES: Final = 8
ALONE_LANES: Final = 4
"""Queries under way at once, of either kind; Prometheus itself works on 20 at a time, and others ask as well."""

MAX_EXPLAINED: Final = 16
"""Refused selectors of a round that are looked at more closely; the others have their refusal, and their turn."""

Answer = list[Sample] | QueryError
_Agents = tuple[dict[str, AgentReading], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Readings:
    """One round. `invalid`: for budgets whose selector is unusable, the sentence that says what to change. `doubts`: for nodes
    whose agents' series cannot be used, why."""

    meters: Mapping[str, MeterReading | MeterFailure] = field(default_factory=dict)
    agents: Mapping[str, AgentReading] = field(default_factory=dict)
    invalid: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    failures: int = 0


class Telemetry:
    """`read` is one round over all budgets; it never raises for Prometheus' sake."""

    def __init__(self, prometheus: PrometheusClient, *, agent_silent_s: float = AGENT_METRICS_SILENT_S) -> None:
        self._prometheus = prometheus
        self._agent_silent_s = agent_silent_s
        self._batches = Batches()
        self._refused: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Selectors that Prometheus cannot read: the problem, and until when that holds (monotonic)."""
        self._turn = 0
        self._folded: dict[str, MeterSpec] = {}
        self._families: list[Family] = []

    async def read(self, budgets: Sequence[BudgetSpec]) -> Readings:
        meters = {budget.name: budget.meter for budget in budgets if budget.meter is not None}
        queries, results = self._queries(meters)
        self._fold({query: meters[name] for name, query in queries.items()})
        end_s = time.monotonic() + ROUND_SHARE * self._prometheus.timeout_s
        async with asyncio.TaskGroup() as group:
            agents = group.create_task(self._agents())
            round_ = _Round(self._prometheus, agents, end_s=end_s)
            group.create_task(self._ask(round_, list(dict.fromkeys(queries.values()))))
        await self._explain({query: meters[name] for name, query in queries.items()}, round_.answers)
        for name, query in queries.items():
            results[name] = self._result(meters[name], round_.answers.get(query))
        invalid = {name: problem for name, meter in meters.items() if (problem := self._problem(meter)) is not None}
        failures = sum(isinstance(result, MeterFailure) for result in results.values()) + (agents.result() is None)
        readings, doubts = agents.result() or ({}, {})
        return Readings(meters=results, agents=readings, invalid=invalid, doubts=doubts, failures=failures)

    def _queries(self, meters: Mapping[str, MeterSpec]) -> tuple[dict[str, str], dict[str, MeterReading | MeterFailure]]:
        """What to ask for each budget, and what is known of the others without asking."""
        queries: dict[str, str] = {}
        known: dict[str, MeterReading | MeterFailure] = {}
        for name, meter in meters.items():
            if (problem := self._problem(meter)) is not None:
                known[name] = MeterFailure(problem)
            elif meter.aggregate not in AGGREGATES:
                known[name] = MeterFailure(f"meter.aggregate {meter.aggregate} is unknown; use one of {', '.join(AGGREGATES)}")
            else:
                queries[name] = meter_query(meter, self._prometheus.matchers)
        return queries, known

    def _fold(self, meters: Mapping[str, MeterSpec]) -> None:
        """`meters` by their query; they are the same for hours."""
        if meters != self._folded:
            asked = {query: question(meter, self._prometheus.matchers) for query, meter in meters.items()}
            self._families, self._folded = families(asked), dict(meters)

    async def _ask(self, round_: _Round, queries: Sequence[str]) -> None:
        method, now_s = self._prometheus.method, time.monotonic()
        folds = self._families if self._batches.folds(now_s) else []
        folded = {query for family in folds for query in family.members.values()}
        batches = self._batches.together(queries, method=method, now_s=now_s, folded=folded)
        for family in folds:
            own = self._batches.of_family(family.members, base=len(family_query(family, ())), method=method)
            round_.families |= {members: family for members in own if len(members) > 1}
            batches += own
        suspects = self._batches.alone(queries)
        await asyncio.gather(self._ask_together(round_, batches), self._ask_alone(round_, suspects))

    async def _ask_together(self, round_: _Round, batches: Sequence[tuple[str, ...]]) -> None:
        """And alone, while there is time, whoever a refused query left unanswered. Where not all of them are answered in time,
        others come first in the next round."""
        if not batches:
            return
        first = self._turn % len(batches)
        self._turn += JOINT_LANES
        asked = await round_.ask([*batches[first:], *batches[:first]], lanes=JOINT_LANES)
        await self._learn(round_, asked)
        left = [query for row in asked if row.blamed and len(row.members) > 1 for query in row.members]
        if left and round_.alive:
            await self._ask_alone(round_, left)

    async def _ask_alone(self, round_: _Round, queries: Sequence[str]) -> None:
        await self._learn(round_, await round_.ask([(query,) for query in queries], lanes=ALONE_LANES))

    async def _learn(self, round_: _Round, asked: Sequence[Asked]) -> None:
        if not round_.alive and any(row.blamed for row in asked):
            round_.alive = await round_.agents is not None
        self._batches.learn(asked, alive=round_.alive, now_s=time.monotonic())

    def _result(self, meter: MeterSpec, answer: Answer | None) -> MeterReading | MeterFailure:
        if (problem := self._problem(meter)) is not None:
            return MeterFailure(problem)
        if answer is None:
            return MeterFailure(f"Prometheus at {self._prometheus.url} answers too slowly: this meter's turn did not come")
        return MeterFailure(str(answer)) if isinstance(answer, QueryError) else reading_of(meter, answer)

    async def _explain(self, meters: Mapping[str, MeterSpec], answers: Mapping[str, Answer]) -> None:
        """Have Prometheus' own parser say what is wrong with selectors whose query it refused; `meters` by their query."""
        refused = [(meters[query], answer) for query, answer in answers.items() if isinstance(answer, QueryInvalidError)]
        await asyncio.gather(*(self._judge(meter, refusal) for meter, refusal in refused[:MAX_EXPLAINED]))

    async def _judge(self, meter: MeterSpec, refusal: QueryInvalidError) -> None:
        """Prometheus before 3 and some compatible servers cannot parse for us: then its refusal has to do."""
        problems = {meter.selector: f"Prometheus refuses the meter's selector {meter.selector}: {refusal}"}
        for selector in _selectors(meter):
            try:
                problem = problem_of_tree(selector, await self._prometheus.parse(selector))
            except QueryInvalidError as error:
                problem = f"Prometheus cannot read the meter's selector {selector}: {error}"
            except QueryError:
                continue
            if problem is not None:
                problems = {selector: problem}
                break
        for selector, problem in problems.items():
            self._refused[selector] = (problem, time.monotonic() + JUDGE_AGAIN_S)
        while len(self._refused) > MAX_REFUSED_SELECTORS:
            self._refused.popitem(last=False)

    def _problem(self, meter: MeterSpec) -> str | None:
        for selector in _selectors(meter):
            problem, until_s = self._refused.get(selector, ("", float("-inf")))
            if time.monotonic() < until_s:
                return problem
            if (wrong := problem_of(selector)) is not None:
                return wrong
        return None

    async def _agents(self) -> _Agents | None:
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


class _Round:
    """What is asked until `end_s` (monotonic), beside `agents`. `answers` by a meter's query; `alive`: something was answered."""

    def __init__(self, prometheus: PrometheusClient, agents: asyncio.Task[_Agents | None], *, end_s: float) -> None:
        self._prometheus = prometheus
        self.agents = agents
        self._end_s = end_s
        self.answers: dict[str, Answer] = {}
        self.families: dict[tuple[str, ...], Family] = {}
        """Of those members that are asked as a family."""
        self.alive = False

    async def ask(self, batches: Sequence[tuple[str, ...]], *, lanes: int) -> list[Asked]:
        """Each batch as one query, `lanes` at a time; those whose turn does not come are left out."""
        waiting, asked = iter(batches), list[Asked]()

        async def lane() -> None:
            while time.monotonic() < self._end_s and (members := next(waiting, None)) is not None:
                asked.append(await self._one(members))

        await asyncio.gather(*(lane() for _ in range(min(lanes, len(batches)))))
        return asked

    async def _one(self, members: tuple[str, ...]) -> Asked:
        started_s = time.monotonic()
        try:
            found = await self._vectors(members, within_s=self._end_s - started_s)
        except QueryError as error:
            self.answers.update(dict.fromkeys(members, error))
            blamed = isinstance(error, QueryFailedError)
            return Asked(members, False, time.monotonic() - started_s, blamed=blamed, folded=members in self.families)
        self.answers.update(zip(members, found, strict=True))
        self.alive = True
        return Asked(members, True, time.monotonic() - started_s)

    def _query(self, members: tuple[str, ...]) -> str:
        if (family := self.families.get(members)) is not None:
            asked = set(members)
            return family_query(family, [value for value, query in family.members.items() if query in asked])
        return members[0] if len(members) == 1 else joint_query(members)

    async def _vectors(self, members: tuple[str, ...], *, within_s: float) -> list[list[Sample]]:
        """The samples of each. Raises QueryError."""
        try:
            async with asyncio.timeout(within_s):
                samples = await self._prometheus.vector(self._query(members), whole=True)
        except TimeoutError:
            raise QueryError(f"no answer from Prometheus at {self._prometheus.url} within the round") from None
        except QueryInvalidError as refusal:
            if len(members) == 1:
                raise
            raise QueryFailedError(f"refused together with {len(members) - 1} other meters: {refusal}") from refusal
        family = self.families.get(members)
        if family is not None:
            found = shared_out(samples, family, members)
        else:
            found = [samples] if len(members) == 1 else split(samples, len(members))
        if found is None:
            raise QueryFailedError(f"{self._prometheus.url} answered a joint query with rows that belong to none of its meters")
        return found


def _selectors(meter: MeterSpec) -> tuple[str, ...]:
    return (meter.selector,) if meter.age_selector is None else (meter.selector, meter.age_selector)
