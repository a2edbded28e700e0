"""POLCA's two-threshold law for a row of servers, and its three baselines, as tables of one state machine.

Source: arXiv:2308.12908 (ASPLOS'24). With p = row power / provisioned row power: above T1 the low priority is locked to a
lower clock, above T2 to a still lower one, and if p is still above T2 once that lock is in force, the high priority is
locked too. Both release below a threshold of their own (hysteresis). Above 100 % the power brake takes every GPU to its
lowest clock. The brake is the hardware's protection and stands in every table; a policy is judged by how rarely it fires.

A comparison policy, never the default: the two-threshold method is named in US 2025/0377708 A1.

Protects: the high priority is locked only after the low priority's lock had time to act; a level is left upwards only
above its threshold and downwards only below its release; no reading changes nothing.

What the paper leaves open and this module decides: `waits` of a rule (how long "still above" takes), that AllT2 and LowT2
both release to LowT1, what a brake falls back to, and the locks of the baselines. They are said where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Final

from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import Profile

T1: Final = 0.80
T2: Final = 0.89
T1_RELEASE: Final = 0.75
T2_RELEASE: Final = 0.84
BRAKE_ABOVE: Final = 1.0
"""Shares of provisioned row power (paper, section 6)."""

PAPER_TOP_CLOCK_MHZ: Final = 1410
"""Top SM clock of the paper's GPU, an A100."""
LOW_T1_MHZ: Final = 1275
LOW_T2_MHZ: Final = 1110
HIGH_T2_MHZ: Final = 1305
BRAKE_MHZ: Final = 288
"""The brake's clock is unconfirmed (grade U)."""

TELEMETRY_S: Final = 2.0
COMMAND_LATENCY_S: Final = 40.0
"""An out-of-band clock lock, from the decision until the GPU obeys."""
BRAKE_LATENCY_S: Final = 5.0


class Level(IntEnum):
    """What the machine wants of the row, mildest first."""

    FREE = 0
    LOW_T1 = 1
    LOW_T2 = 2
    ALL_T2 = 3
    BRAKE = 4


class Threshold(StrEnum):
    T1 = "T1"
    T2 = "T2"
    T1_RELEASE = "T1 release"
    T2_RELEASE = "T2 release"
    BRAKE = "brake"


class RowPriority(IntEnum):
    """The two classes of a row's servers."""

    LOW = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """From `at` to `to` while p is above (or, not `above`, below) the threshold; strict, both ways.

    `waits`: only once the level has stood so long that its own locks are in force and the reading shows them.
    """

    at: Level
    to: Level
    above: bool
    threshold: Threshold
    waits: bool = False


@dataclass(frozen=True, slots=True)
class PolcaTable:
    """A policy. The first rule that holds is taken. `brake_falls_to`: the level whose locks are sent with the brake and
    stand when it is released (ours: the hardest of the table; the paper does not say)."""

    name: str
    rules: tuple[Rule, ...]
    brake_falls_to: Level

    @property
    def levels(self) -> frozenset[Level]:
        return frozenset({Level.FREE, *(rule.to for rule in self.rules)})


def _with_brake(name: str, rules: tuple[Rule, ...], falls_to: Level) -> PolcaTable:
    """The brake before all other rules, from every level; its release waits until the locks it falls back on stand."""
    milder = sorted({Level.FREE, falls_to, *(rule.to for rule in rules)})
    brakes = tuple(Rule(at, Level.BRAKE, True, Threshold.BRAKE) for at in milder)
    release = Rule(Level.BRAKE, falls_to, False, Threshold.T2_RELEASE, waits=True)
    return PolcaTable(name, (*brakes, *rules, release), falls_to)


POLCA: Final = _with_brake(
    "Polca",
    (
        Rule(Level.FREE, Level.LOW_T2, True, Threshold.T2),
        Rule(Level.LOW_T1, Level.LOW_T2, True, Threshold.T2),
        Rule(Level.LOW_T2, Level.ALL_T2, True, Threshold.T2, waits=True),
        Rule(Level.FREE, Level.LOW_T1, True, Threshold.T1),
        Rule(Level.ALL_T2, Level.LOW_T1, False, Threshold.T2_RELEASE),
        Rule(Level.LOW_T2, Level.LOW_T1, False, Threshold.T2_RELEASE),
        Rule(Level.LOW_T1, Level.FREE, False, Threshold.T1_RELEASE),
    ),
    Level.ALL_T2,
)
ONE_THRESH_LOW_PRI: Final = _with_brake(
    "1-Thresh-Low-Pri",
    (
        Rule(Level.FREE, Level.LOW_T2, True, Threshold.T2),
        Rule(Level.LOW_T2, Level.FREE, False, Threshold.T2_RELEASE),
    ),
    Level.LOW_T2,
)
ONE_THRESH_ALL: Final = _with_brake(
    "1-Thresh-All",
    (
        Rule(Level.FREE, Level.ALL_T2, True, Threshold.T2),
        Rule(Level.ALL_T2, Level.FREE, False, Threshold.T2_RELEASE),
    ),
    Level.ALL_T2,
)
NO_CAP: Final = _with_brake("No-cap", (), Level.FREE)


@dataclass(frozen=True, slots=True)
class PolcaSettings:
    """A table with its numbers: thresholds as shares of provisioned power, clocks in MHz, delays in seconds.

    Raises ValueError where the thresholds are out of order, a release is not below its threshold, a deeper lock is not
    lower, or a delay is negative.
    """

    table: PolcaTable = POLCA
    t1: float = T1
    t2: float = T2
    t1_release: float = T1_RELEASE
    t2_release: float = T2_RELEASE
    brake_above: float = BRAKE_ABOVE
    low_t1_mhz: int = LOW_T1_MHZ
    low_t2_mhz: int = LOW_T2_MHZ
    high_t2_mhz: int = HIGH_T2_MHZ
    brake_mhz: int = BRAKE_MHZ
    telemetry_s: float = TELEMETRY_S
    command_latency_s: float = COMMAND_LATENCY_S
    brake_latency_s: float = BRAKE_LATENCY_S

    def __post_init__(self) -> None:
        if not 0 < self.t1 < self.t2 < self.brake_above:
            raise ValueError(f"thresholds must satisfy 0 < T1 < T2 < brake, not {self.t1}, {self.t2}, {self.brake_above}")
        if not (0 < self.t1_release < self.t1 and self.t1_release < self.t2_release < self.t2):
            raise ValueError(f"releases {self.t1_release}, {self.t2_release} must rise, each below its threshold")
        if not 0 < self.brake_mhz < self.low_t2_mhz <= min(self.low_t1_mhz, self.high_t2_mhz):
            raise ValueError("clocks must satisfy 0 < brake < low at T2 <= low at T1 and high at T2")
        if min(self.telemetry_s, self.command_latency_s, self.brake_latency_s) < 0:
            raise ValueError("delays must be 0 s or more")

    @property
    def wait_s(self) -> float:
        """What a waiting rule waits: a command to be in force, and a reading taken after that to arrive."""
        return self.command_latency_s + self.telemetry_s

    def threshold(self, which: Threshold) -> float:
        return {
            Threshold.T1: self.t1,
            Threshold.T2: self.t2,
            Threshold.T1_RELEASE: self.t1_release,
            Threshold.T2_RELEASE: self.t2_release,
            Threshold.BRAKE: self.brake_above,
        }[which]

    def standing_mhz(self, level: Level, priority: RowPriority) -> int:
        """The out-of-band lock of a priority at a level, 0 = unlocked. The brake is a path of its own: under it the locks
        of the level it falls back to stand."""
        low_mhz, high_mhz = {
            Level.FREE: (UNLOCKED_MHZ, UNLOCKED_MHZ),
            Level.LOW_T1: (self.low_t1_mhz, UNLOCKED_MHZ),
            Level.LOW_T2: (self.low_t2_mhz, UNLOCKED_MHZ),
            Level.ALL_T2: (self.low_t2_mhz, self.high_t2_mhz),
        }[self.table.brake_falls_to if level is Level.BRAKE else level]
        return low_mhz if priority is RowPriority.LOW else high_mhz


def translate_mhz(paper_mhz: int, *, top_clock_mhz: int, min_clock_mhz: int) -> int:
    """A clock of the paper's A100 on another SKU: the same share of the top clock, rounded, within the SKU's range.

    The rule is ours: the paper locks one SKU only. Equal shares cost compute-bound work equally. Raises ValueError on a
    clock that is not positive or an empty range.
    """
    if paper_mhz <= 0 or not 0 < min_clock_mhz <= top_clock_mhz:
        raise ValueError(f"clock {paper_mhz} MHz and range {min_clock_mhz}..{top_clock_mhz} MHz must be positive and in order")
    return min(max(round(paper_mhz * top_clock_mhz / PAPER_TOP_CLOCK_MHZ), min_clock_mhz), top_clock_mhz)


def settings_for(profile: Profile) -> PolcaSettings:
    """`Polca` with the paper's numbers, its clocks translated to the profile's GPU. Errors as in `translate_mhz`."""

    def clock_mhz(paper_mhz: int) -> int:
        return translate_mhz(paper_mhz, top_clock_mhz=profile.max_clock_mhz, min_clock_mhz=profile.min_clock_mhz)

    return PolcaSettings(
        low_t1_mhz=clock_mhz(LOW_T1_MHZ),
        low_t2_mhz=clock_mhz(LOW_T2_MHZ),
        high_t2_mhz=clock_mhz(HIGH_T2_MHZ),
        brake_mhz=clock_mhz(BRAKE_MHZ),
    )


def comparison(settings: PolcaSettings) -> tuple[PolcaSettings, ...]:
    """The paper's comparison with one set of numbers: No-cap, 1-Thresh-Low-Pri, 1-Thresh-All, Polca.

    Locks of the baselines, our reading: what they lock they lock at T2 to low priority's clock at T2, and release below
    T2's release.
    """
    return (
        replace(settings, table=NO_CAP),
        replace(settings, table=ONE_THRESH_LOW_PRI),
        replace(settings, table=ONE_THRESH_ALL, high_t2_mhz=settings.low_t2_mhz),
        replace(settings, table=POLCA),
    )


@dataclass(frozen=True, slots=True)
class PolcaState:
    """`entered_s`: when the machine came to its level; -inf before the first change."""

    level: Level = Level.FREE
    entered_s: float = float("-inf")


class Path(StrEnum):
    """How a command reaches the GPUs: an out-of-band clock lock, or the brake line of the power supply."""

    LOCK = "Lock"
    BRAKE = "Brake"


@dataclass(frozen=True, slots=True)
class ClockCommand:
    """`clock_mhz` 0: unlock, or release the brake. In force from `effective_s`. While braked, the brake's clock counts."""

    path: Path
    priority: RowPriority
    clock_mhz: int
    effective_s: float


def step(
    state: PolcaState, utilisation: float | None, now_s: float, settings: PolcaSettings
) -> tuple[PolcaState, tuple[ClockCommand, ...]]:
    """One reading: the next state and the commands to send now, low priority's before high priority's.

    `utilisation`: row power / provisioned row power, None where there is no fresh reading (which changes nothing).
    Raises ValueError on a negative or non-finite utilisation.
    """
    assert state.level in settings.table.levels, f"{settings.table.name} has no level {state.level.name}"
    if utilisation is None:
        return state, ()
    if not 0 <= utilisation < float("inf"):
        raise ValueError(f"utilisation must be 0 or more and finite, not {utilisation}")
    for rule in settings.table.rules:
        if rule.at is state.level and _holds(rule, utilisation, now_s - state.entered_s, settings):
            return PolcaState(rule.to, now_s), _commands(state.level, rule.to, now_s, settings)
    return state, ()


def _holds(rule: Rule, utilisation: float, stood_s: float, settings: PolcaSettings) -> bool:
    if rule.waits and stood_s < settings.wait_s:
        return False
    threshold = settings.threshold(rule.threshold)
    return utilisation > threshold if rule.above else utilisation < threshold


def _commands(at: Level, to: Level, now_s: float, settings: PolcaSettings) -> tuple[ClockCommand, ...]:
    commands = []
    if (at is Level.BRAKE) != (to is Level.BRAKE):
        clock_mhz = settings.brake_mhz if to is Level.BRAKE else UNLOCKED_MHZ
        commands = [ClockCommand(Path.BRAKE, p, clock_mhz, now_s + settings.brake_latency_s) for p in RowPriority]
    for priority in RowPriority:
        clock_mhz = settings.standing_mhz(to, priority)
        if clock_mhz != settings.standing_mhz(at, priority):
            commands.append(ClockCommand(Path.LOCK, priority, clock_mhz, now_s + settings.command_latency_s))
    return tuple(commands)
