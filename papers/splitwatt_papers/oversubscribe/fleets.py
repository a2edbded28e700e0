"""Fleets of one GPU under caps, lists of long prompts for them, and what a run shows after its warm-up.

A list is Poisson; its first `WARM_S` seconds fill the pools and are not judged. Watts are taken without a server's rest,
for that is what a `RoomReading` adds. Runs are deterministic, so each is made once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from splitwatt_core.gpus.profiles import Profile
from splitwatt_sim.fleet.run import run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Pool, ServerKind
from splitwatt_sim.servers.kinds import GPUS, SERVER_REST_W
from splitwatt_sim.servers.kinds_2026 import kind_2026
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import poisson

from splitwatt_papers.oversubscribe.budget import Caps

PROMPT_TOKENS: Final = 8_192
OUTPUT_TOKENS: Final = 1_024
"""The published workload: 8k in, 1k out."""
FIXED: Final = "8192 in, 1024 out"
SPREAD: Final = 0.5
SIZES: Final = 20_000
LIST_S: Final = 420.0
WARM_S: Final = 120.0
"""Several times what one request takes from arrival to last token."""
ALONE_RPS: Final = 1.0
ALONE_SEED: Final = 1


def fixed_sizes() -> Arrivals:
    return Arrivals(np.zeros(1), np.array([PROMPT_TOKENS]), np.array([OUTPUT_TOKENS]), FIXED)


def spread_sizes() -> Arrivals:
    """Prompt and output each uniform within `SPREAD` of its mean, independent."""
    rng = np.random.Generator(np.random.PCG64(0))

    def draw(mean: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return rng.integers(round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD)) + 1, SIZES)

    return Arrivals(np.zeros(SIZES), draw(PROMPT_TOKENS), draw(OUTPUT_TOKENS), "spread by half")


@dataclass(frozen=True, slots=True)
class ServerFleet:
    """`decode_servers` 0: unsplit, every server does both."""

    prefill_servers: int
    decode_servers: int
    caps: Caps

    @property
    def servers(self) -> int:
        return self.prefill_servers + self.decode_servers

    @property
    def split(self) -> bool:
        return self.decode_servers > 0

    def __str__(self) -> str:
        if not self.split:
            return f"{self.servers} at {self.caps.prefill_w} W"
        return f"{self.prefill_servers} at {self.caps.prefill_w} W, {self.decode_servers} at {self.caps.decode_w} W"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of requests that arrive after the warm-up: P99s. tokens_per_s: output of requests that end between the warm-up and the
    last arrival. gpus_w, peak_gpus_w: all GPUs together in that time, mean and the largest mean of a second."""

    ttft_ms: float
    tbt_ms: float
    e2e_ms: float
    tokens_per_s: float
    gpus_w: float
    peak_gpus_w: float


class FleetBench:
    """One GPU model and one kind of list; remembers every run."""

    def __init__(self, profile: Profile, sizes: Arrivals, *, seconds: float = LIST_S, warm_s: float = WARM_S) -> None:
        """Raises ValueError where no second would be judged."""
        if not 0 <= warm_s < seconds:
            raise ValueError(f"a warm-up of {warm_s:g} s leaves nothing of {seconds:g} s; make the list longer")
        self.profile, self.sizes = profile, sizes
        self._seconds, self._warm_s = seconds, warm_s
        self._longest = int(sizes.prompt_tokens.max())
        self._kinds: dict[int, ServerKind] = {}
        self._runs: dict[tuple[ServerFleet, float, int], Figures] = {}

    def uncapped(self, prefill_servers: int, decode_servers: int) -> ServerFleet:
        cap_w = self.profile.default_cap_w
        return ServerFleet(prefill_servers, decode_servers, Caps(cap_w, cap_w))

    def run(self, fleet: ServerFleet, rate_rps: float, seed: int) -> Figures:
        key = (fleet, rate_rps, seed)
        if key not in self._runs:
            arrivals = poisson(self.sizes, requests_per_s=rate_rps, seconds=self._seconds, seed=seed)
            self._runs[key] = self._measured(fleet, arrivals)
        return self._runs[key]

    def runs(self, fleet: ServerFleet, rate_rps: float, seeds: Iterable[int]) -> list[Figures]:
        return [self.run(fleet, rate_rps, seed) for seed in seeds]

    def alone(self, fleet: ServerFleet) -> Figures:
        """Requests that hardly ever meet."""
        return self.run(fleet, ALONE_RPS, ALONE_SEED)

    def prefill_load(self, fleet: ServerFleet, rate_rps: float) -> float:
        """Share of its time that a prefill server works at this rate; of an unsplit fleet, its prompts' share alone."""
        prefill_s = self._kind(fleet.caps.prefill_w).prefill_s
        return rate_rps * float(prefill_s[self.sizes.prompt_tokens].mean()) / fleet.prefill_servers

    def _measured(self, fleet: ServerFleet, arrivals: Arrivals) -> Figures:
        run = run_fleet(self._pools(fleet), arrivals, seconds=int(self._seconds))
        judged = arrivals.arrival_s >= self._warm_s
        felt = run.latencies
        ttft_ms, tbt_ms, e2e_ms = (
            float(np.percentile(column[judged], 99)) for column in (felt.ttft_ms, felt.tbt_ms, felt.e2e_ms)
        )
        done_s = arrivals.arrival_s + felt.e2e_ms / 1e3
        ended = (done_s >= self._warm_s) & (done_s < self._seconds)
        gpus_w = run.power_w[:, int(self._warm_s) :].sum(axis=0) - fleet.servers * SERVER_REST_W
        return Figures(
            ttft_ms,
            tbt_ms,
            e2e_ms,
            float(arrivals.output_tokens[ended].sum()) / (self._seconds - self._warm_s),
            float(gpus_w.mean()),
            float(gpus_w.max()),
        )

    def _pools(self, fleet: ServerFleet) -> list[Pool]:
        if not fleet.split:
            return [Pool(MIXED, self._kind(fleet.caps.prefill_w), fleet.servers)]
        return [
            Pool(PREFILL, self._kind(fleet.caps.prefill_w), fleet.prefill_servers),
            Pool(DECODE, self._kind(fleet.caps.decode_w), fleet.decode_servers),
        ]

    def _kind(self, cap_w: int) -> ServerKind:
        if cap_w not in self._kinds:
            self._kinds[cap_w] = kind_2026(self.profile, cap_w=cap_w, longest_prompt=self._longest)
        return self._kinds[cap_w]


def mean_gpu_w(figures: Iterable[Figures], servers: int) -> float:
    """Mean draw of one GPU over runs of a fleet of so many servers."""
    return float(np.mean([f.gpus_w for f in figures])) / (servers * GPUS)
