"""A scenario for `splitwatt simulate`: pools of servers under caps, a list of requests, SLOs; one YAML file.

model: meta-llama/Llama-3.1-70B-Instruct
requests: {file: trace.csv, rate: 20, seconds: 300, seed: 1}     # without file: the seeded generator
profiles: [own.yaml, times.csv]                                  # your own servers; without it: the built-in ones
kvLink: {gigabytesPerSecond: 50, latencyMilliseconds: 1}         # between servers; without it: the measured ones
pools:
  - {role: Prefill, gpu: H100, servers: 6, capWatts: 700}
  - {role: Decode, gpu: H200, servers: 4, capWatts: 350}
slo: {ttftP99Milliseconds: 2000, tbtP99Milliseconds: 100}
failures:                                                # pools and servers count from 0, pools as they are listed
  - {pool: 0, server: 2, atSeconds: 60, backAtSeconds: 120}
flips:
  - {pool: 0, server: 5, toRole: Decode, atSeconds: 150, switchSeconds: 20}
power: {budgets: [{name: row, limitWatts: 60000}]}       # instead of failures and flips; see power_part
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from splitwatt_api.inference_cluster import Priority, PriorityWord
from splitwatt_truth.trace_files import WHOLE, TracePart
from splitwatt_truth.trace_kinds import TraceUnit

from splitwatt_sim.fleet.run import MAX_CHANGES
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Change, Failure, Flip, Pool
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, check_cap, option_for
from splitwatt_sim.plan.search import Option
from splitwatt_sim.power.setup import PowerSetup
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import MAX_SERVERS
from splitwatt_sim.servers.kinds import links_of
from splitwatt_sim.servers.profile_files import read_profile_file
from splitwatt_sim.servers.table_files import FIT_ERROR
from splitwatt_sim.simulate.parts import Part, ScenarioError
from splitwatt_sim.simulate.power_part import Name, PoolFacts, PowerPart, setup_of
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated, poisson, read_rate_file, with_rate_curve
from splitwatt_sim.traces.told import Read

MAX_POOLS: Final = 16
MAX_PROFILE_FILES: Final = 64
MAX_REQUESTS: Final = 5_000_000
DEFAULT_RATE: Final = 5.5


class PoolRole(StrEnum):
    PREFILL = "Prefill"
    DECODE = "Decode"
    MIXED = "Mixed"


ROLE_CODES: Final = {PoolRole.PREFILL: PREFILL, PoolRole.DECODE: DECODE, PoolRole.MIXED: MIXED}


class RequestsPart(Part):
    """`rate` with a file: Poisson arrivals with sizes drawn from it; without `rate` the file's own arrivals. `rate_file`:
    seconds,multiplier of the rate over time; the mean rate is then `rate`, or the file's own. `from_seconds`, `to_seconds`,
    `trace_unit`: which part of the file is read, and the unit of its times."""

    file: Path | None = None
    from_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    to_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    trace_unit: TraceUnit | None = None
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e7)] = 120.0
    seed: Annotated[int, Field(ge=0)] = 1
    rate_file: Path | None = None


class PoolPart(Part):
    """`name`: for budgets; its role in lower case unless given. `cap_watts`: the caps, or under a power law the most that
    they may be."""

    role: PoolRole
    gpu: str
    servers: Annotated[int, Field(ge=1, le=MAX_SERVERS)]
    cap_watts: Annotated[int, Field(ge=1)] | None = None
    name: Name | None = None
    priority: Priority = PriorityWord.HIGH

    @property
    def called(self) -> str:
        return self.name or self.role.lower()


class KvLinkPart(Part):
    """Of each server, for KV caches. What is not given is as it was measured; there is no latency then."""

    gigabytes_per_second: Annotated[float, Field(gt=0, le=1e6)] | None = None
    latency_milliseconds: Annotated[float, Field(ge=0, le=600_000)] | None = None


class SloPart(Part):
    ttft_p99_milliseconds: Annotated[float, Field(gt=0)] | None = None
    tbt_p99_milliseconds: Annotated[float, Field(gt=0)] | None = None


Seconds = Annotated[float, Field(ge=0, le=1e9)]


class FailurePart(Part):
    """Without `back_at_seconds` it stays down."""

    pool: Annotated[int, Field(ge=0)]
    server: Annotated[int, Field(ge=0)]
    at_seconds: Seconds
    back_at_seconds: Seconds | None = None


class FlipPart(Part):
    """From `at_seconds` on it takes nothing new; `switch_seconds` begin when it is empty."""

    pool: Annotated[int, Field(ge=0)]
    server: Annotated[int, Field(ge=0)]
    to_role: PoolRole
    at_seconds: Seconds
    switch_seconds: Seconds


class Scenario(Part):
    model: str = MODEL_2026
    requests: RequestsPart = RequestsPart()
    pools: Annotated[tuple[PoolPart, ...], Field(min_length=1, max_length=MAX_POOLS)]
    slo: SloPart = SloPart()
    profiles: Annotated[tuple[Path, ...], Field(max_length=MAX_PROFILE_FILES)] = ()
    kv_link: KvLinkPart = KvLinkPart()
    fit_error_percent: Annotated[float, Field(ge=0, lt=100)] = FIT_ERROR * 100
    """How far the fit may miss a row of a timing table."""
    failures: Annotated[tuple[FailurePart, ...], Field(max_length=MAX_CHANGES)] = ()
    flips: Annotated[tuple[FlipPart, ...], Field(max_length=MAX_CHANGES)] = ()
    power: PowerPart | None = None

    def slos(self) -> LatencySlo:
        """Splitwise's nine slowdowns where no limit is given."""
        return LatencySlo(self.slo.ttft_p99_milliseconds, self.slo.tbt_p99_milliseconds)


def read_scenario(path: Path) -> Scenario:
    """Files named inside are looked up beside the scenario. Raises ScenarioError that names the field."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read {path} ({error}); pass the path of a scenario file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a day that is none, and lists a thousand deep
        raise ScenarioError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ScenarioError(f"{path} must hold a mapping; its keys are {_keys(Scenario)}")
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        loc = first["loc"]
        raise ScenarioError(f"{path}: {'.'.join(map(str, loc))}: {_says(first['type'], loc, first['msg'])}") from error
    roles = {pool.role for pool in scenario.pools}
    if PoolRole.MIXED not in roles and roles != {PoolRole.PREFILL, PoolRole.DECODE}:
        raise ScenarioError(f"{path}: pools: a fleet needs Prefill and Decode pools, or a Mixed one; add what is missing")
    return scenario


def _says(kind: str, loc: tuple[int | str, ...], message: str) -> str:
    """What to write instead, where pydantic does not say it."""
    if kind == "model_type":
        return "Input should be a mapping of keys to values"
    if kind == "extra_forbidden":
        return f"there is no such key; keys are {_keys(_part_at(loc[:-1]))}"
    if "outages" in loc and kind in ("tuple_type", "missing", "too_long", "too_short"):
        return "write outages as a list of [from, to], both in seconds, like [[190, 220]]"
    return message


def _keys(part: type[BaseModel]) -> str:
    return ", ".join(field.alias or name for name, field in part.model_fields.items())


def _part_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The part that stands at a place of a scenario."""
    part: type[BaseModel] = Scenario
    for name in loc:
        for field in part.model_fields.values():
            if field.alias == name:
                part = _part_in(field.annotation) or part
                break
    return part


def _part_in(annotation: object) -> type[BaseModel] | None:
    """Of what a field holds, perhaps as one of many, perhaps or nothing."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for inner in get_args(annotation) if (part := _part_in(inner)) is not None), None)


def with_part(scenario: Scenario, part: TracePart) -> Scenario:
    """What the command line says of the part of the file, before what the scenario says."""
    said = {"from_seconds": part.from_s, "to_seconds": part.to_s, "trace_unit": part.unit}
    requests = scenario.requests.model_copy(update={name: value for name, value in said.items() if value is not None})
    return scenario.model_copy(update={"requests": requests})


def part_of(part: RequestsPart) -> TracePart:
    """Raises TraceError, ScenarioError."""
    wanted = TracePart(from_s=part.from_seconds, to_s=part.to_seconds, unit=part.trace_unit)
    if part.file is None and wanted != WHOLE:
        raise ScenarioError("requests.fromSeconds, toSeconds and traceUnit are of requests.file: name it, or leave them out")
    return wanted


def arrivals_of(
    scenario: Scenario, *, beside: Path, read: Read = read_arrivals, tell: Callable[[str], object] = lambda text: None
) -> Arrivals:
    """The list of requests. `read`: a file of them; `tell`: what of the files is not played. Raises TraceError, ScenarioError."""
    part = scenario.requests
    of_file = part_of(part)
    source = None if part.file is None else read(beside / part.file, of_file)
    rate = part.rate or (DEFAULT_RATE if source is None else source.requests_per_s)
    replayed = source is not None and part.rate is None and part.rate_file is None
    if not replayed and rate * part.seconds > MAX_REQUESTS:
        wanted = rate * part.seconds
        raise ScenarioError(f"{wanted:.0f} requests are more than the {MAX_REQUESTS} of one run: lower rate or seconds")
    if part.rate_file is not None:
        shape = source or generated(requests_per_s=rate, seconds=part.seconds, seed=part.seed)
        curve = read_rate_file(beside / part.rate_file)
        if (end_s := curve.points[-1][0]) > part.seconds:
            tell(
                f"{part.rate_file}: the first {part.seconds:g} s of {end_s:g} s are played: "
                "raise requests.seconds to play all of the curve"
            )
        arrivals = with_rate_curve(shape, curve, requests_per_s=rate, seconds=part.seconds)
    elif source is None:
        arrivals = generated(requests_per_s=rate, seconds=part.seconds, seed=part.seed)
    elif replayed:
        arrivals = source
    else:
        arrivals = poisson(source, requests_per_s=rate, seconds=part.seconds, seed=part.seed)
    if len(arrivals) == 0:
        raise ScenarioError("the list holds no request: raise requests.rate or requests.seconds")
    return arrivals


def catalogue_of(scenario: Scenario, *, beside: Path) -> Catalogue:
    """The GPUs that the scenario may name. Raises TableError, before any trace is read."""
    files = tuple(read_profile_file(beside / path) for path in scenario.profiles)
    links = links_of(scenario.kv_link.gigabytes_per_second, scenario.kv_link.latency_milliseconds)
    catalogue = Catalogue(scenario.model, files, scenario.fit_error_percent / 100, links)
    catalogue.check()
    for part in scenario.pools:
        catalogue.gpu(part.gpu)
    return catalogue


def changes_of(scenario: Scenario) -> list[Change]:
    """Failures, then flips; of one moment they are played in that order."""
    failures = [
        Failure(part.pool, part.server, part.at_seconds, math.inf if part.back_at_seconds is None else part.back_at_seconds)
        for part in scenario.failures
    ]
    flips = [
        Flip(part.pool, part.server, part.at_seconds, ROLE_CODES[part.to_role], part.switch_seconds) for part in scenario.flips
    ]
    return [*failures, *flips]


def pools_of(scenario: Scenario, *, longest_prompt: int, catalogue: Catalogue | None = None) -> list[tuple[Pool, Option]]:
    """Pools with what they were bought as. Raises TableError."""
    return [
        (Pool(ROLE_CODES[part.role], option.kind, part.servers), option)
        for part in scenario.pools
        for option in [option_for(scenario.model, part.gpu, part.cap_watts, longest_prompt=longest_prompt, catalogue=catalogue)]
    ]


def power_of(scenario: Scenario, catalogue: Catalogue | None = None) -> PowerSetup:
    """What the scenario's power law is given. Raises ScenarioError, TableError."""
    assert scenario.power is not None
    if scenario.failures or scenario.flips:
        raise ScenarioError("power does not go with failures or flips yet: a server under a power law stays what it is")
    catalogue = catalogue or Catalogue(scenario.model)
    profiles = {part.gpu: catalogue.gpu(part.gpu).profile for part in scenario.pools}
    for part in scenario.pools:
        if part.cap_watts is not None:
            check_cap(profiles[part.gpu], part.cap_watts)
    pools = [
        PoolFacts(
            name=part.called,
            role=ROLE_CODES[part.role],
            gpu=part.gpu,
            profile=profiles[part.gpu],
            servers=part.servers,
            priority=part.priority,
            cap_watts=part.cap_watts,
        )
        for part in scenario.pools
    ]
    return setup_of(scenario.power, pools, model=scenario.model, seed=scenario.requests.seed, catalogue=catalogue)
