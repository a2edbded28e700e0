"""What can be bought: servers of known GPUs under a few caps per phase, each with its charge and its price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import Profile, builtin
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.fleet.run import FleetRun
from splitwatt_sim.fleet.state import ServerKind
from splitwatt_sim.latencies import judged_ttft_ms_p99, slowdown_limits, slowdowns
from splitwatt_sim.plan.search import Option, charge_w
from splitwatt_sim.servers.alone import unloaded
from splitwatt_sim.servers.catalogue import GPUS_2026, MODEL_2026, Catalogue
from splitwatt_sim.servers.designs import USD_PER_HOUR
from splitwatt_sim.servers.kinds import SERVER_REST_W, kind_of_table
from splitwatt_sim.servers.kinds_2026 import kind_2026
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.servers.tables import builtin as builtin_tables
from splitwatt_sim.traces.arrivals import Arrivals

__all__ = [
    "GPUS_2026",
    "MODEL_2026",
    "REST_W",
    "LatencySlo",
    "Market",
    "SloFigure",
    "caps_of",
    "check_cap",
    "market",
    "option_for",
    "profile_for",
    "profile_named",
    "server_kind",
]  # fmt: skip

REST_W: Final = SERVER_REST_W
"""A server beside its GPUs, at the meter. One figure for every server, of both eras."""
PREFILL_SHARES: Final = (1.0, 0.8, 0.65, 0.5)
"""Caps tried for prefill, as shares of the default limit; every watt below the natural draw costs time there."""
CAP_GRAIN_W: Final = 5
MS: Final = "ms"
TIMES: Final = "times an unloaded server of 8 A100"


@dataclass(frozen=True, slots=True)
class SloFigure:
    """What a run did by one SLO. `limit`: the SLO less its margin; `unit`: `MS` or `TIMES`."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def missed(self) -> bool:
        return not self.value < self.limit

    @property
    def title(self) -> str:
        """`ttft_ms_p99` as people say it: TTFT P99."""
        return self.name.replace("_ms_", " ").replace("_", " ").upper()


@dataclass(frozen=True, slots=True)
class LatencySlo:
    """Absolute: P99 of TTFT, as a user has it, and of a request's mean TBT, in milliseconds. None: Splitwise's nine slowdowns,
    which count TTFT to the end of the prompt, as published."""

    ttft_p99_ms: float | None = None
    tbt_p99_ms: float | None = None
    margin: float = 0.0

    def checker(self, model: str) -> Callable[[FleetRun, Arrivals], list[str]]:
        """Names of the SLOs that a run misses. Raises TableError where slowdowns have no base for the model."""
        measure = self.measure(model)

        def missed(run: FleetRun, arrivals: Arrivals) -> list[str]:
            return [figure.name for figure in measure(run, arrivals) if figure.missed]

        return missed

    def measure(self, model: str) -> Callable[[FleetRun, Arrivals], list[SloFigure]]:
        """Every SLO with what a run did. Raises TableError as `checker` does."""
        if self.ttft_p99_ms is None and self.tbt_p99_ms is None:
            if model == MODEL_2026:
                raise TableError(f"{model} has no table to count slowdowns by: give an SLO for TTFT or TBT in milliseconds")
            base = builtin_tables().server(model, "A100")

            def relative(run: FleetRun, arrivals: Arrivals) -> list[SloFigure]:
                alone = unloaded(base, prompt=arrivals.prompt_tokens, output=arrivals.output_tokens)
                values = slowdowns(run.latencies, alone)
                return [SloFigure(n, values[n], limit * (1 - self.margin), TIMES) for n, limit in slowdown_limits().items()]

            return relative
        limits = {"ttft_ms_p99": self.ttft_p99_ms, "tbt_ms_p99": self.tbt_p99_ms}

        def absolute(run: FleetRun, arrivals: Arrivals) -> list[SloFigure]:
            del arrivals
            values = run.latencies.percentiles()
            values["ttft_ms_p99"] = judged_ttft_ms_p99(values)
            return [SloFigure(n, values[n], limit * (1 - self.margin), MS) for n, limit in limits.items() if limit is not None]

        return absolute


def profile_named(name: str) -> Profile:
    return next(profile for profile in builtin() if profile.name == name)


def caps_of(profile: Profile, phase: Phase) -> tuple[int, ...]:
    """Caps worth trying, highest first. Decode: the natural draw, above which a cap buys nothing, and the cliff. Prefill:
    shares of the default limit. None below the cliff, where a phase collapses, and none above the default limit."""
    row = profile.phase(phase)
    assert row is not None
    if phase is Phase.DECODE:
        wanted: list[float] = [row.natural_w, row.cliff_w]
    else:
        wanted = [profile.default_cap_w * share for share in PREFILL_SHARES]
    lowest = max(profile.min_cap_w, row.cliff_w)
    rounded = (max(lowest, math.ceil(w / CAP_GRAIN_W) * CAP_GRAIN_W) for w in wanted)
    return tuple(sorted({min(profile.default_cap_w, w) for w in rounded}, reverse=True))


@dataclass(frozen=True, slots=True)
class Market:
    """Options by phase, and those for servers that do both."""

    prefill: tuple[Option, ...]
    decode: tuple[Option, ...]
    both: tuple[Option, ...]

    def pairs(self) -> list[tuple[Option, Option | None]]:
        split: list[tuple[Option, Option | None]] = [(p, d) for p in self.prefill for d in self.decode]
        return [*((b, None) for b in self.both), *split]


def profile_for(model: str, gpu: str, catalogue: Catalogue | None = None) -> Profile:
    """As it is simulated. `catalogue` None, here and below: the built-in GPUs. Raises TableError for an unknown model or
    GPU, and for one that cannot be simulated."""
    return (catalogue or Catalogue(model)).gpu(gpu).profile


def check_cap(profile: Profile, cap_w: int) -> None:
    """Raises TableError for a cap outside the GPU's range."""
    if not profile.min_cap_w <= cap_w <= profile.default_cap_w:
        raise TableError(
            f"a cap of {cap_w} W is outside {profile.min_cap_w} to {profile.default_cap_w} W, the range of {profile.name}"
        )


def server_kind(
    model: str,
    gpu: str,
    cap_w: int,
    clock_mhz: int = UNLOCKED_MHZ,
    *,
    longest_prompt: int,
    catalogue: Catalogue | None = None,
) -> ServerKind:
    """A server of 8 of these GPUs under a cap per GPU and a clock lock (0: none). Raises TableError for an unknown model or
    GPU."""
    shelf = catalogue or Catalogue(model)
    known = shelf.gpu(gpu)
    if model == MODEL_2026:
        return kind_2026(
            known.profile,
            cap_w=cap_w,
            clock_mhz=clock_mhz,
            longest_prompt=longest_prompt,
            links=shelf.links,
            memory_bytes=known.memory_bytes,
        )
    tables = builtin_tables()
    table, shape = tables.server(model, known.name), tables.shape(model)
    return kind_of_table(
        table, shape, known.profile, cap_w=cap_w, clock_mhz=clock_mhz, longest_prompt=longest_prompt, links=shelf.links
    )


def option_for(
    model: str,
    gpu: str,
    cap_w: int | None,
    *,
    longest_prompt: int,
    usd_per_hour: Mapping[str, float] | None = None,
    catalogue: Catalogue | None = None,
) -> Option:
    """A server of 8 of these GPUs under a cap per GPU, None: the default limit. Raises TableError for an unknown model or
    GPU, and for a cap outside the GPU's range."""
    catalogue = catalogue or Catalogue(model)
    name, profile = catalogue.name_of(gpu), profile_for(model, gpu, catalogue)
    cap_w = profile.default_cap_w if cap_w is None else cap_w
    check_cap(profile, cap_w)
    kind = server_kind(model, gpu, cap_w, longest_prompt=longest_prompt, catalogue=catalogue)
    usd = {**USD_PER_HOUR, **(usd_per_hour or {})}.get(name, math.nan)
    return Option(name, cap_w, kind, charge_w(cap_w=cap_w, rest_w=REST_W), usd)


def market(
    model: str,
    gpus: Sequence[str],
    *,
    longest_prompt: int,
    usd_per_hour: Mapping[str, float] | None = None,
    catalogue: Catalogue | None = None,
) -> Market:
    """Servers of these GPUs under every cap worth trying. Raises TableError for a model or GPU that no table knows."""
    shelf = catalogue or Catalogue(model)

    def options(phase: Phase) -> tuple[Option, ...]:
        return tuple(
            option_for(model, gpu, cap_w, longest_prompt=longest_prompt, usd_per_hour=usd_per_hour, catalogue=shelf)
            for gpu in gpus
            for cap_w in caps_of(shelf.gpu(gpu).profile, phase)
        )

    prefill = options(Phase.PREFILL)
    return Market(prefill=prefill, decode=options(Phase.DECODE), both=prefill)
