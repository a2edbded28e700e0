"""What a token costs in joules, by role of a served cluster.

Watts and tokens come by different ways: watts from the agents of nodes, tokens from engines. A quotient of the two is a price
only where both speak of the same replicas over the same time; else it is a number that looks like one. So anchors stop short: a
replica with watts and no tokens, or with tokens and no watts, leaves its whole role without a figure.

Watts are integrated from power readings. The GPUs' energy counters are no ground for a price: on one card under memory-bound load
the counter showed 3 to 26 % of the draw while the power fields agreed within 0.5 % (docs/metering.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_core.clusters import Role

WRITES_ANSWERS: Final[Mapping[Role, bool]] = {Role.PREFILL: False, Role.DECODE: True, Role.MIXED: True}
"""Whose tokens are those of answers. Prefill's are those of prompts; at mixed engines an answer pays for its prompt too."""


def joules_per_token(power_w: Mapping[str, float], tokens_per_s: Mapping[str, float]) -> float | None:
    """Of one role over one window: mean watts of all GPUs and tokens per second, by replica. None where they are not of the
    same ones, where there is none, or while no token was made: idle draw is no price of a token."""
    made_per_s = sum(tokens_per_s.values())
    if power_w.keys() != tokens_per_s.keys() or not made_per_s > 0:
        return None
    return sum(power_w.values()) / made_per_s
