"""Can this number be true? What a meter's sample is held against before anybody acts on it.

Meters fail in two directions. A sample *above* all reason (a sentinel such as 65535, watts given as milliwatts) would brake
a row for nothing; one *below* what the GPUs themselves draw (0, kilowatts, another rack's) would let go of a brake. Both
questions need bounds that honest meters never touch, for a refused truth is worse than a believed lie:

- Above. GPUs cannot draw more than their maxima, but what nobody declared can be large: the rest of an 8-GPU server is 80 % of
  its GPUs' watts (docs/facts.md, meters), and an under-declared rack is just what must brake. So a sample is believed up to
  EXPLAINED_TIMES what GPU maxima and declared watts come to; or up to LIMIT_TIMES the limit, for a feed carries an overload of
  half its rating for seconds (docs/facts.md, breakers) and nodes may stand there that nobody knows; or up to BELIEVED_TIMES
  what the same meter read when it was within one of these two, so that a cut of the limit makes no honest reading a lie, and
  a counter of energy that was taken for a meter is not believed step by step for ever. 65 535 W on a rack of 30.4 kW and a
  limit of 40 kW is above all three; 28 kW of 26 kW below each.
- Below. Whatever else is true, the GPUs' own watts pass through the meter. A sample below CONTRADICTED_SHARE of the least that
  they drew around its time contradicts them, once it is not alone (`Doubt`). NVML is good to 5 %, a PDU to 2 %, and a sample
  may be as old as its budget allows: hence the share, and the least of that whole time, which no lag and no falling or
  rising load undercuts.

Pure. Protected: a number that cannot be true raises nothing, releases nothing and brakes nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Final

EXPLAINED_TIMES: Final = 2.0
LIMIT_TIMES: Final = 1.5
BELIEVED_TIMES: Final = 1.25
UNKNOWN_NODE_W: Final = 15_000
"""What a node without an agent may draw whatever was declared for it: a server of 8 B200 is rated 14.3 kW (docs/facts.md,
meters)."""

NO_VALUES: Final = frozenset(
    {float(2**bits - 1) for bits in (15, 16, 31, 32, 63, 64)} | {float(2**bits) for bits in (15, 31, 63)}
)
"""Registers of all ones, signed and unsigned, and of the sign bit alone, read unsigned: what SNMP and Modbus send for "no value"
(docs/facts.md, meters)."""
EXPORTERS_SCALES: Final = (1, 10, 100, 1000)
"""An exporter may have divided such a register like any other number: 6553.5 W."""
_EMPTY: Final = sorted(bits / scale for bits in NO_VALUES for scale in EXPORTERS_SCALES)
NO_VALUE_SHARE: Final = 0.05
"""A meter may pass by such a number: it is believed this near to what was read or modelled already."""

CONTRADICTED_SHARE: Final = 0.85
CONTRADICTED_SLACK_W: Final = 100.0
"""Below it in any case: idle GPUs are read to 5 W each, and some meters count in steps of 100 W."""
CONTRADICTED_AFTER_S: Final = 5.0
CONTRADICTED_SAMPLES: Final = 2
CONTRADICTED_ROUNDS: Final = 2


def most_w(*, explained_w: float, limit_w: float, believed_w: float | None) -> float:
    """The most that a meter is believed. `explained_w`: GPU maxima with losses and all declared watts below it; `believed_w`:
    what it read when that was within the other two bounds, None where it never was."""
    return max(EXPLAINED_TIMES * explained_w, LIMIT_TIMES * limit_w, BELIEVED_TIMES * (believed_w or 0.0))


def is_no_value(raw: float, power_w: float, *near_w: float | None) -> bool:
    """Whether `raw`, the number as the meter gave it, is one of NO_VALUES, whole or divided, and its watts are far from all of
    `near_w`."""
    at = bisect_left(_EMPTY, raw)
    empty = any(math.isclose(raw, number, rel_tol=1e-9) for number in _EMPTY[max(at - 1, 0) : at + 1])
    return empty and not any(known_w is not None and abs(power_w - known_w) <= NO_VALUE_SHARE * known_w for known_w in near_w)


def agent_problem(node: str, power_w: float, *, most_w: float) -> str:
    """What is wrong with an agent's sum of its GPUs' watts, "" where it can be true. `most_w`: their maxima, 0: not known."""
    bound_w = EXPLAINED_TIMES * most_w if most_w > 0 else UNKNOWN_NODE_W
    if 0 <= power_w <= bound_w:
        return ""
    return f"the agent on {node} says that its GPUs draw {power_w:.0f} W, and they draw 0 to {bound_w:.0f} W: look at that node"


def contradicts(power_w: float, drawn_w: float) -> bool:
    """Whether a meter cannot have read this while GPUs behind it drew `drawn_w`."""
    return power_w < CONTRADICTED_SHARE * drawn_w - CONTRADICTED_SLACK_W


@dataclass(frozen=True, slots=True)
class Doubt:
    """Whether a meter is contradicted, and the samples in a row that speak against that verdict. One is not enough either way,
    nor is a moment, nor one round of the agents' own samples, which may be rare and have missed a dip.

    since_s: the time of the first of the samples in a row; samples, rounds: how many they are, and against how many rounds of
    agents' samples they were held; agents_s: the time of the newest round. meter_w, drawn_w: the newest contradiction."""

    contradicted: bool = False
    since_s: float | None = None
    samples: int = 0
    rounds: int = 0
    agents_s: float = float("-inf")
    meter_w: float = 0.0
    drawn_w: float = 0.0

    @property
    def suspect(self) -> bool:
        """Contradicted, or on the way to it: such a sample releases nothing and teaches nothing."""
        return self.contradicted or self.since_s is not None

    def hold(self, *, power_w: float, sampled_s: float, drawn_w: float, known_w: float, agents_s: float) -> Doubt:
        """One more sample. `drawn_w`: the least that agents with fresh samples read around its time; `known_w`: the same with
        what silent agents read last, for a meter is not cleared because agents went away (I5). `agents_s`: when the agents'
        newest samples were taken."""
        low = contradicts(power_w, known_w if self.contradicted else drawn_w)
        named = replace(self, meter_w=power_w, drawn_w=drawn_w) if low else self
        if low == self.contradicted:
            return named if self.since_s is None else replace(named, since_s=None, samples=0, rounds=0)
        since_s = sampled_s if self.since_s is None else min(self.since_s, sampled_s)
        samples = self.samples + 1
        rounds = self.rounds + (self.since_s is None or agents_s > self.agents_s)
        lasting = rounds >= CONTRADICTED_ROUNDS and sampled_s - since_s >= CONTRADICTED_AFTER_S
        if samples >= CONTRADICTED_SAMPLES and (self.contradicted or lasting):
            return replace(named, contradicted=low, since_s=None, samples=0, rounds=0)
        return replace(named, since_s=since_s, samples=samples, rounds=rounds, agents_s=agents_s)
