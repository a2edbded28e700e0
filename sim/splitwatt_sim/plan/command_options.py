"""What may be asked of `splitwatt plan`, as frozen values: what is searched, what is made of it, in which part, in which pods.

A field stands for one option of the command line; `arguments` reads them, and says them again to another machine. None: not
given.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from splitwatt_sim.plan.memory import Consent
from splitwatt_sim.plan.shards import Shard
from splitwatt_sim.servers.catalogue import MODEL_2026
from splitwatt_sim.servers.designs import Design
from splitwatt_sim.servers.profile_files import ProfileFile
from splitwatt_sim.servers.table_files import FIT_ERROR


class PowerUnits(StrEnum):
    WATTS = "watts"
    SPLITWISE = "splitwise"


class Before(StrEnum):
    """The router that a plan counts on."""

    VLLM = "vllm"
    OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Everything that decides what a search finds. `from_s`, `to_s`, `trace_unit`: which part of `requests` is
    read. `charge_w`: as a budget charges it; `power_of`: servers whose uncapped power is the limit; `gpus`: names with commas
    between; `prices`: GPU, USD per hour of a server of 8; `list_s`: length of each list of requests; `step_rps`: grid of
    rates."""

    requests: Path | None = None
    from_s: float | None = None
    to_s: float | None = None
    trace_unit: str | None = None
    profiles: tuple[ProfileFile, ...] = ()
    gpus: str | None = None
    prices: tuple[tuple[str, float], ...] = ()
    fit_error_percent: float = FIT_ERROR * 100
    rate_rps: float | None = None
    charge_w: float | None = None
    power_of: Design | None = None
    slo: str | None = None
    usd_per_hour: float | None = None
    servers: int | None = None
    model: str = MODEL_2026
    ttft_p99_ms: float | None = None
    tbt_p99_ms: float | None = None
    kv_gigabytes_per_s: float | None = None
    kv_latency_ms: float | None = None
    margin_percent: float = 3.0
    list_s: float = 120.0
    step_rps: float = 5.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is made of a search. `checked`: lists not searched on, for the best design."""

    checked: int = 5
    name: str = "plan"
    namespace: str = "default"
    out: Path = Path("out/plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Which part is searched here, or where the parts are put together."""

    shard: Shard | None = None
    shards_dir: Path | None = None
    merge: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Of the Job that searches the shards in pods; `output`: its manifest."""

    shards: int | None = None
    image: str | None = None
    claim: str | None = None
    trace_claim: str | None = None
    output: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The whole command line. `job` says nothing unless `on_kubernetes`; `processes` search side by side.
    `servers_per_rack`: say too what each rack is charged and draws. `router`: vllm-router sends to two pools or to one, so that a
    third one is written only for a router of one's own. `memory_expansion`: say too what more memory would do to decode."""

    search: SearchOptions = field(default_factory=SearchOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    sharding: ShardOptions = field(default_factory=ShardOptions)
    job: JobOptions = field(default_factory=JobOptions)
    servers_per_rack: int | None = None
    router: Before = Before.VLLM
    memory_expansion: Consent | None = None
    on_kubernetes: bool = False
    power_units: PowerUnits = PowerUnits.WATTS
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
