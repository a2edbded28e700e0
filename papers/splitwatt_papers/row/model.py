"""A row of GPU servers in virtual time: what a power policy does to its power and to its requests.

Power. The trace gives the unlocked power u of 40 servers; n servers draw n/40 of it. A server's GPUs take a fixed share of
its power; what they take above idle shrinks under a clock lock by the phase model, phase by phase:

    g(clock) = sum over phases of energy share * (watts above idle at the clock / unlocked) * (step time at the clock / unlocked)

The last factor is the work that does not go away: slower requests overlap more, so more of them are under way. The two
priorities have servers, locks and phase mixes of their own. Shares of provisioned power are called power here.

Latency. A request is a prefill and a decode, one after the other, each slowed by the clock in force at that moment. There
are no queues: a lock slows service, never waiting. Impact is a request's time under the policy over its time unlocked.

Protects: without locks the row draws exactly n/40 of its trace, and no request is faster under a policy than without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus.phase_model import (
    clock_factor,
    decode_load,
    decode_ms,
    demand_w,
    power_at_clock_w,
    prefill_load,
    prefill_ms,
)
from splitwatt_core.gpus.profiles import Profile, builtin, find
from splitwatt_core.policies.polca_table import Level, PolcaSettings, RowPriority
from splitwatt_core.protocol.contract import Phase

from splitwatt_papers.row.kernel import BRAKE_LEVEL, TableColumns, run_levels, served_ms
from splitwatt_papers.row.trace import DAY_S, STEP_S, RowTrace, steps_of

FloatArray = NDArray[np.float64]
LevelArray = NDArray[np.int8]
IntArray = NDArray[np.int64]

PHASES: Final = (Phase.PREFILL, Phase.DECODE)
BASE_SERVERS: Final = 40
"""What the row's power was provisioned for (paper)."""
MAX_REQUESTS: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class RequestClass:
    """One row of the paper's mix (grade U). `share`: of the servers, and of the requests; lengths in tokens, uniform."""

    name: str
    share: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    low_share: float


MIX: Final = (
    RequestClass("Summarize", 0.25, (2048, 8192), (256, 512), 1.0),
    RequestClass("Search", 0.25, (512, 2048), (1024, 2048), 0.0),
    RequestClass("Chat", 0.50, (2048, 4096), (128, 2048), 0.5),
)


@dataclass(frozen=True, slots=True)
class ImpactBound:
    """Largest latency impact of a priority, strict (grade U)."""

    p50: float
    p99: float


SLOS: Final = {RowPriority.LOW: ImpactBound(0.05, 0.50), RowPriority.HIGH: ImpactBound(0.01, 0.05)}


def a100() -> Profile:
    profile = find(builtin(), "A100-SXM-80GB")
    assert profile is not None
    return profile


@dataclass(frozen=True)
class Row:
    """Servers of one kind on power provisioned for `BASE_SERVERS` of them.

    `gpu_share`: of a server's power, at any load (paper: 50-60 %). `decode_batch`: sequences per decode step, which sets
    step time and a phase's share of the energy (ours).
    """

    servers: int = 52
    gpu_share: float = 0.55
    server_rated_w: float = 6500.0
    gpus_per_server: int = 8
    decode_batch: int = 16
    mix: tuple[RequestClass, ...] = MIX
    profile: Profile = field(default_factory=a100)

    def __post_init__(self) -> None:
        if self.servers < 1 or not 0 < self.gpu_share < 1 or self.decode_batch < 1:
            raise ValueError("a row needs 1 or more servers, a GPU share within 0..1 and a decode batch of 1 or more")
        if abs(sum(w.share for w in self.mix) - 1) > 1e-9:
            raise ValueError("shares of the mix must sum to 1")

    @cached_property
    def scale(self) -> float:
        """Servers over those the power is provisioned for."""
        return self.servers / BASE_SERVERS

    @cached_property
    def idle_power(self) -> float:
        """What the GPUs of `BASE_SERVERS` draw idle, as a share of provisioned power."""
        return self.gpus_per_server * self.profile.idle_w / self.server_rated_w

    def class_share(self, priority: RowPriority) -> float:
        """The priority's share of the servers."""
        return sum(w.share * _part(w, priority) for w in self.mix)

    def above_idle(self, priority: RowPriority, clock_mhz: int) -> float:
        """g(clock) of the module's docstring, 0..1; 1 unlocked."""
        energy = self._energy(priority)
        total = 0.0
        for phase, joule in zip(PHASES, energy, strict=True):
            profile = self.profile.phase(phase)
            assert profile is not None
            full_w = demand_w(self.profile, phase, 1.0) - self.profile.idle_w
            less = (power_at_clock_w(self.profile, phase, 1.0, clock_mhz) - self.profile.idle_w) / full_w
            total += joule * less * clock_factor(self.profile, profile, clock_mhz)
        # A clock that slows more than it saves would mean more busy GPUs than there are.
        return min(total / sum(energy), 1.0)

    def _energy(self, priority: RowPriority) -> tuple[float, float]:
        """Energy above idle of the priority's mean request in prefill and decode; a decode step's is shared by its batch."""
        prefill = decode = 0.0
        for w in self.mix:
            prompt, output = round(sum(w.prompt_tokens) / 2), sum(w.output_tokens) / 2
            rate = w.share * _part(w, priority)
            cap_w = float(self.profile.default_cap_w)
            prefill_w = demand_w(self.profile, Phase.PREFILL, prefill_load(self.profile, prompt)) - self.profile.idle_w
            decode_w = demand_w(self.profile, Phase.DECODE, decode_load(self.profile, self.decode_batch)) - self.profile.idle_w
            step_ms = decode_ms(self.profile, self.decode_batch, prompt + output / 2, cap_w)
            prefill += rate * prefill_w * prefill_ms(self.profile, prompt, cap_w)
            decode += rate * decode_w * output * step_ms / self.decode_batch
        return prefill, decode


def _part(workload: RequestClass, priority: RowPriority) -> float:
    return workload.low_share if priority is RowPriority.LOW else 1.0 - workload.low_share


def clocks(settings: PolcaSettings, priority: RowPriority) -> IntArray:
    """Clock of a priority at each level, int64[levels] in MHz, 0 = unlocked; under Brake that of the brake itself."""
    mhz = [settings.standing_mhz(level, priority) for level in Level]
    mhz[Level.BRAKE] = settings.brake_mhz
    return np.array(mhz, dtype=np.int64)


def columns(settings: PolcaSettings, row: Row) -> TableColumns:
    rules = [
        (
            rule.at,
            rule.to,
            rule.above,
            settings.threshold(rule.threshold),
            steps_of(settings.wait_s) if rule.waits else 0,
        )
        for rule in settings.table.rules
    ]
    delays = (
        max(steps_of(settings.telemetry_s), 1),
        steps_of(settings.command_latency_s),
        steps_of(settings.brake_latency_s),
    )
    above = np.zeros((len(Level), 2))
    for level in Level:
        for on, priority in ((on, p) for on in (0, 1) for p in RowPriority):
            clock_mhz = settings.brake_mhz if on else settings.standing_mhz(level, priority)
            above[level, on] += row.class_share(priority) * row.above_idle(priority, clock_mhz)
    # power = rest + idle + (gpu - idle) * above, with rest = (1 - share) * offered and gpu = share * offered.
    fixed = row.scale * row.idle_power * (1.0 - above)
    scaled = (1.0 - row.gpu_share) + row.gpu_share * above
    return TableColumns(np.array(rules, dtype=np.float64), np.array(delays, dtype=np.int64), fixed, scaled)


@dataclass(frozen=True, slots=True)
class RowRun:
    """power float64[T], share of provisioned. wanted, braked int8[T]. in_force int8[T]: level whose clocks the GPUs have.
    `brakes`: how often the brake was called."""

    power: FloatArray
    wanted: LevelArray
    braked: LevelArray
    in_force: LevelArray
    brakes: int

    @property
    def over_s(self) -> float:
        """Seconds above provisioned power."""
        return float(np.count_nonzero(self.power > 1.0)) * STEP_S

    @property
    def longest_over_s(self) -> float:
        over = np.concatenate([[0], (self.power > 1.0).astype(np.int8), [0]])
        edges = np.flatnonzero(np.diff(over))
        return float((edges[1::2] - edges[::2]).max(initial=0)) * STEP_S

    @property
    def changes_per_day(self) -> float:
        """How often the machine changes its level, each time with commands to a class of servers or two."""
        return float(np.count_nonzero(np.diff(self.wanted))) * DAY_S / (STEP_S * len(self.wanted))

    @property
    def locked_share(self) -> float:
        """Share of the time in which any GPU is locked or braked."""
        return float(np.count_nonzero(self.in_force)) / len(self.in_force)


def check_above_idle(trace: RowTrace, row: Row) -> None:
    """Below idle a lock would add power in this model. Raises ValueError."""
    if row.gpu_share * float(trace.utilisation.min()) < row.idle_power:
        raise ValueError("the trace falls so low that its GPUs would draw less than idle")


def run_row(trace: RowTrace, settings: PolcaSettings, row: Row) -> RowRun:
    """One policy over one trace. Raises ValueError where the trace's GPUs would draw less than idle."""
    check_above_idle(trace, row)
    offered = trace.utilisation * row.scale
    table = columns(settings, row)
    power = np.empty_like(offered)
    level = np.zeros(len(offered), dtype=np.int8)
    braked = np.zeros(len(offered), dtype=np.int8)
    brakes = run_levels(offered, table, power, level, braked)
    lag = int(table.delays[1])
    standing = np.zeros_like(level)
    standing[lag:] = level[: len(level) - lag]
    standing[standing == BRAKE_LEVEL] = settings.table.brake_falls_to
    in_force = np.where(braked == 1, np.int8(BRAKE_LEVEL), standing).astype(np.int8)
    return RowRun(power, level, braked, in_force, int(brakes))


@dataclass(frozen=True, slots=True)
class Requests:
    """A sample of requests. start int64[Q], steps. priority int8[Q]. work_ms float64[Q, 2]: prefill, decode, unlocked."""

    start: IntArray
    priority: LevelArray
    work_ms: FloatArray


def sample_requests(trace: RowTrace, row: Row, *, count: int, seed: int) -> Requests:
    """`count` requests of the mix, arriving as the trace's GPU power above idle goes. Raises ValueError on a bad count."""
    if not 1 <= count <= MAX_REQUESTS:
        raise ValueError(f"count must lie in 1..{MAX_REQUESTS}, not {count}")
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    arrivals = np.cumsum(row.gpu_share * trace.utilisation - row.idle_power)
    start = np.searchsorted(arrivals, rng.random(count) * arrivals[-1]).astype(np.int64)
    kind = rng.choice(len(row.mix), size=count, p=[w.share for w in row.mix])
    low = rng.random(count) < np.array([w.low_share for w in row.mix])[kind]
    prompt = rng.integers(*np.array([(w.prompt_tokens[0], w.prompt_tokens[1] + 1) for w in row.mix])[kind].T)
    output = rng.integers(*np.array([(w.output_tokens[0], w.output_tokens[1] + 1) for w in row.mix])[kind].T)
    cap_w = float(row.profile.default_cap_w)
    # Lengths repeat: each prompt and each mean context is asked for once.
    prompts, of_prompt = np.unique(prompt, return_inverse=True)
    contexts, of_context = np.unique(prompt + output / 2, return_inverse=True)
    prefill = np.array([prefill_ms(row.profile, p, cap_w) for p in prompts.tolist()])
    step = np.array([decode_ms(row.profile, row.decode_batch, c, cap_w) for c in contexts.tolist()])
    work_ms = np.stack([prefill[of_prompt], output * step[of_context]], axis=1)
    return Requests(start, np.where(low, RowPriority.LOW, RowPriority.HIGH).astype(np.int8), work_ms)


@dataclass(frozen=True, slots=True)
class Impact:
    """Latency impact of one priority: by how much P50 and P99 of request time grow, and P50 and P99 of each request's own
    slowdown; 0.05 = 5 % more."""

    p50: float
    p99: float
    own_p50: float
    own_p99: float

    @property
    def worse_p50(self) -> float:
        return max(self.p50, self.own_p50)

    @property
    def worse_p99(self) -> float:
        return max(self.p99, self.own_p99)

    def meets(self, slo: ImpactBound) -> bool:
        """Both readings of the paper's SLO hold."""
        return self.worse_p50 < slo.p50 and self.worse_p99 < slo.p99


def slowdowns(settings: PolcaSettings, row: Row, priority: RowPriority) -> FloatArray:
    """float64[2, levels]: how many times longer each phase takes at each level."""
    factors = np.ones((len(PHASES), len(Level)))
    for i, phase in enumerate(PHASES):
        profile = row.profile.phase(phase)
        assert profile is not None
        factors[i] = [clock_factor(row.profile, profile, float(c)) for c in clocks(settings, priority)]
    return factors


def impact(requests: Requests, run: RowRun, factors: Mapping[RowPriority, FloatArray]) -> dict[RowPriority, Impact]:
    """Latency impact of a run by priority, over all requests of the sample. `factors`: `slowdowns` of each priority, by
    what `run.in_force` counts."""
    found = {}
    for priority in RowPriority:
        mine = requests.priority == priority
        if not mine.any():
            found[priority] = Impact(0.0, 0.0, 0.0, 0.0)
            continue
        work_ms = requests.work_ms[mine]
        free_ms = work_ms.sum(axis=1)
        took_ms = served_ms(requests.start[mine], work_ms, run.in_force, factors[priority], STEP_S * 1000)
        assert bool(np.all(took_ms >= free_ms - 1e-6))
        before, after = np.percentile(free_ms, [50, 99]), np.percentile(took_ms, [50, 99])
        own = np.percentile(took_ms / free_ms - 1, [50, 99])
        found[priority] = Impact(*(float(x) for x in (*(after / before - 1), *own)))
    return found
