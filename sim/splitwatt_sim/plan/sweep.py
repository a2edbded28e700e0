"""A plan's search as numbered work items: what is asked, in how many parts, and what each part found.

Theory. `Search` holds everything that decides the result. `items` makes from it a list of independent items, one for each pair
of servers, always the same and in the same order: so item 7 means the same on every machine, and a sweep can be cut into shards
(`plan/shards.py`) and put together again. An item's answer is a flat record of numbers. It crosses a process or a file unchanged,
for JSON keeps every float64 to the last bit, and every way to a plan goes through it: a local run is all items on one machine.

Protects: one search, one result. Nothing that an item finds depends on which other items ran beside it.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from splitwatt_sim.fleet.run import ROLE_NAMES
from splitwatt_sim.latencies import PERCENTILES, SLOWDOWN_SLOS
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.options import LatencySlo, market
from splitwatt_sim.plan.search import Found, Goal, Limits, Option, PlanDesign, largest_rate, least_design
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import MAX_SERVERS
from splitwatt_sim.traces.arrivals import Arrivals

Record = dict[str, Any]
"""{"item": number, "found": None or {counts, rate, what the run measured}}: JSON."""

LISTS_PER_SLO: Final = 10
"""A list must last this many times the longest SLO, or queues are cut off by its end and every rate looks good."""
SHORTEST_LIST_MS: Final = 20_000.0
PERCENTILE_NAMES: Final = tuple(f"{name}_ms_p{p}" for name in SLOWDOWN_SLOS for p in PERCENTILES)
USER_NAMES: Final = tuple(f"ttft_user_ms_p{p}" for p in PERCENTILES)
"""There where a run knows them."""


class RecordError(PlanError):
    """A record that no search of an item has written."""


def check_seconds(seconds: float, *, longest_slo_ms: float = 0.0) -> None:
    """Raises PlanError where lists are too short."""
    shortest_ms = max(LISTS_PER_SLO * longest_slo_ms, SHORTEST_LIST_MS)
    if seconds * 1e3 < shortest_ms:
        raise PlanError(f"lists of {seconds:g} s hide queues: give --seconds {shortest_ms / 1e3:g} or more")


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked. `rate_rps` None: the largest rate within the limits; else the least design that holds it. `gpus`: names in
    the catalogue. Raises PlanError where a limit on money meets a GPU without a price, and where lists are too short."""

    model: str
    gpus: tuple[str, ...]
    slo: LatencySlo
    limits: Limits
    rate_rps: float | None
    sizes: Arrivals
    seconds: float
    seed: int
    step_rps: float
    usd_per_hour: Mapping[str, float] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=Catalogue)

    def __post_init__(self) -> None:
        slos_ms = (self.slo.ttft_p99_ms or 0.0, self.slo.tbt_p99_ms or 0.0)
        check_seconds(self.seconds, longest_slo_ms=max(slos_ms))

    @property
    def goal(self) -> Goal:
        return Goal(self.sizes, self.seconds, self.seed, self.step_rps, self.slo.checker(self.model))


@dataclass(frozen=True, slots=True)
class Item:
    """One pair of servers to search. `servers`: a design of these servers, without counts."""

    number: int
    servers: PlanDesign
    limits: Limits
    goal: Goal
    rate_rps: float | None

    def search(self) -> Found | None:
        prefill, decode = self.servers.prefill, self.servers.decode
        if self.rate_rps is None:
            return largest_rate(prefill, decode, self.limits, self.goal)
        return least_design(prefill, decode, self.rate_rps, self.limits, self.goal)


@dataclass(frozen=True, slots=True)
class Result:
    """The best design of an item, and what it did on the list that the search saw. Energy and `energy_j` by role count whole
    servers, idle ones too, from 0 to `ends_s`."""

    design: PlanDesign
    rate_rps: float
    percentiles: Mapping[str, float]
    energy_j: Mapping[str, float]
    ends_s: float
    output_tokens: int

    @property
    def joules_per_token(self) -> float:
        return sum(self.energy_j.values()) / self.output_tokens

    @property
    def drawn_w(self) -> float:
        """Mean of all servers."""
        return sum(self.energy_j.values()) / self.ends_s

    def pools(self) -> list[tuple[str, Option, int, float]]:
        """Role, servers, how many, and the watts that they draw together in the mean."""
        d, drawn_w = self.design, {role: energy_j / self.ends_s for role, energy_j in self.energy_j.items()}
        if d.decode is None:
            return [("unsplit", d.prefill, d.prefill_servers, drawn_w["mixed"])]
        return [
            ("prefill", d.prefill, d.prefill_servers, drawn_w["prefill"]),
            ("decode", d.decode, d.decode_servers, drawn_w["decode"]),
        ]


def items(search: Search) -> list[Item]:
    """Numbered from 0. Raises PlanError, TableError."""
    shop = market(
        search.model,
        search.gpus,
        longest_prompt=int(search.sizes.prompt_tokens.max()),
        usd_per_hour=search.usd_per_hour,
        catalogue=search.catalogue,
    )
    priceless = sorted({option.gpu for option in shop.prefill if math.isnan(option.usd_per_hour)})
    if math.isfinite(search.limits.usd_per_hour) and priceless:
        raise PlanError(f"no price is known of {', '.join(priceless)}: add --price {priceless[0]}=USD, or leave it out")
    goal = search.goal
    return [
        Item(number, PlanDesign(prefill, 0, decode), search.limits, goal, search.rate_rps)
        for number, (prefill, decode) in enumerate(shop.pairs())
    ]


def record(item: Item) -> Record:
    """Search an item."""
    found = item.search()
    if found is None:
        return {"item": item.number, "found": None}
    run = found.run
    return {
        "item": item.number,
        "found": {
            "servers": _counts(found.design),
            "rate_requests_per_s": found.rate_rps,
            "percentiles_ms": run.latencies.percentiles(),
            "energy_j": dict(run.energy_j),
            "ends_s": run.ends_s,
            "output_tokens": run.output_tokens,
        },
    }


def result(item: Item, written: Record) -> Result | None:
    """What `record` said of this item. Raises RecordError where it is no such record: what passes can be ranked, printed and
    written."""
    try:
        found = written["found"]
        return None if found is None else _result(item, found)
    except (KeyError, TypeError) as error:
        raise RecordError(f"the record of item {item.number} has not what a run measures: {error}") from error


def _result(item: Item, found: Mapping[str, Any]) -> Result:
    """Raises KeyError, TypeError, RecordError."""
    counts = {name: found["servers"][name] for name in _counts(item.servers)}
    if not all(type(count) is int and 0 <= count <= MAX_SERVERS for count in counts.values()):
        raise RecordError(f"counts of servers are whole numbers from 0 to {MAX_SERVERS}")
    design = replace(item.servers, **counts)
    if not all(servers > 0 for _, _, servers in design.parts):
        raise RecordError("each role has a server")
    if type(found["output_tokens"]) is not int or found["output_tokens"] < 1:
        raise RecordError("a run without a token measures nothing")
    return Result(
        design=design,
        rate_rps=_above_0(found["rate_requests_per_s"]),
        percentiles={
            name: _number(found["percentiles_ms"][name])
            for name in (*PERCENTILE_NAMES, *(name for name in USER_NAMES if name in found["percentiles_ms"]))
        },
        energy_j={role: _number(found["energy_j"][role]) for role in (ROLE_NAMES[pool.role] for pool in design.pools())},
        ends_s=_above_0(found["ends_s"]),
        output_tokens=found["output_tokens"],
    )


def _number(value: object) -> float:
    """Finite, and 0 or more: requests of one token have no time between tokens."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RecordError(f"a number is wanted, not {value!r}")
    if not 0 <= value <= sys.float_info.max:  # a whole number in JSON may be larger than any float
        raise RecordError("a finite number from 0 is wanted")
    return value


def _above_0(value: object) -> float:
    number = _number(value)
    if not number > 0:
        raise RecordError("a number above 0 is wanted")
    return number


def _counts(design: PlanDesign) -> dict[str, int]:
    """How many servers of each role: the design's whole numbers, by name."""
    return {f.name: value for f in fields(design) if isinstance(value := getattr(design, f.name), int)}


_ITEMS: list[Item] = []


def _record(at: int) -> Record:
    return record(_ITEMS[at])


def records(todo: Sequence[Item], *, processes: int) -> Iterator[Record]:
    """In the order of the items. Items hold functions, so workers are forked with them instead of being sent them."""
    _ITEMS[:] = todo
    if processes == 1 or len(todo) <= 1:
        yield from map(_record, range(len(todo)))
        return
    with ProcessPoolExecutor(min(processes, len(todo)), mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_record, range(len(todo)))
