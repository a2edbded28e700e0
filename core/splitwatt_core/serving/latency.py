"""TTFT as a user has it, out of what the engines of two pools see of it.

A prefill engine counts from a request's arrival until its prompt is read. Only then does the router ask a decode engine, which
counts from there: the wait for the KV cache, for a place in the batch, and the first step, whose token is the first that the
user sees. So a request's TTFT is the sum of the two. Histograms do not say which values belong together, so of the sum's
quantile only bounds are certain, whatever the two have to do with each other:

    max(q99 P, q99 D)  <=  q99 (P + D)  <=  q(1 - a) P + q(1 - b) D    for all a + b = 1 %

for whose sum is too long is too long at P or at D, which happens to a + b at most. q99 P + q99 D is no bound: 0.9 % who wait
long at P and 0.9 % others who do at D leave both q99 short, and 1.8 % waited. Not in it: the router's own time and the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from splitwatt_core.clusters import Role

SHARES: Final = ((0.991, 0.999), (0.995, 0.995), (0.999, 0.991))
"""Quantiles of prefill and decode whose sums are upper bounds of the whole's 99th; the least of them is taken."""
LEVELS: Final = tuple(sorted({0.99, *(level for share in SHARES for level in share)}))
"""All that have to be known of each role."""

Quantiles = Mapping[float, float]
"""Seconds by level."""


@dataclass(frozen=True, slots=True)
class Ttft:
    """The 99th percentile lies between these, in milliseconds. `at`: the roles whose engines it was measured at."""

    least_ms: int
    most_ms: int
    at: tuple[Role, ...]


def ttft_of(seen: Mapping[Role, Quantiles], *, handed_on: bool) -> Ttft | None:
    """`seen`: of each role that requests came to. `handed_on`: a router is known to send every request to prefill first; else
    the decode engines read prompts themselves, where none came to prefill or for some of them. Requests of mixed engines are
    others than the pair's: of both together the percentile lies between those of each. None: it cannot be told, a part is
    missing."""
    mixed = seen.get(Role.MIXED)
    if mixed is None:
        return _of_pair(seen, handed_on=handed_on)
    if 0.99 not in mixed:
        return None
    alone = Ttft(_ms(mixed[0.99]), _ms(mixed[0.99]), (Role.MIXED,))
    if Role.PREFILL not in seen and Role.DECODE not in seen:
        return alone
    pair = _of_pair(seen, handed_on=handed_on)
    if pair is None:
        return None
    return Ttft(min(pair.least_ms, alone.least_ms), max(pair.most_ms, alone.most_ms), (*pair.at, Role.MIXED))


def _of_pair(seen: Mapping[Role, Quantiles], *, handed_on: bool) -> Ttft | None:
    prefill, decode = seen.get(Role.PREFILL), seen.get(Role.DECODE)
    if decode is None or any(level not in decode for level in LEVELS):
        return None
    if prefill is None:
        alone_ms = _ms(decode[0.99])
        return None if handed_on else Ttft(alone_ms, alone_ms, (Role.DECODE,))
    if any(level not in prefill for level in LEVELS):
        return None
    most_s = min(prefill[p] + decode[d] for p, d in SHARES)
    least_s = max(prefill[0.99], decode[0.99]) if handed_on else decode[0.99]
    return Ttft(_ms(least_s), _ms(max(most_s, least_s)), (Role.PREFILL, Role.DECODE))


def attained(limit_ms: int, ttft: Ttft | None) -> bool | None:
    """None: it is not known, or the limit lies between the bounds."""
    if ttft is None or ttft.least_ms <= limit_ms < ttft.most_ms:
        return None
    return ttft.most_ms <= limit_ms


def said(limit_ms: int, ttft: Ttft | None) -> str:
    """Words for the condition: the numbers, and where they were measured."""
    if ttft is None:
        return f"TTFT P99 unknown of {limit_ms} ms (it takes the prefill and the decode engines' histograms)"
    if ttft.at == (Role.DECODE,):
        return f"TTFT P99 {ttft.most_ms} ms of {limit_ms} ms (at decode engines, no prompt came to prefill)"
    if ttft.at == (Role.MIXED,):
        return f"TTFT P99 {ttft.most_ms} ms of {limit_ms} ms (at mixed engines)"
    least = f"at least {ttft.least_ms} and " if attained(limit_ms, ttft) is not True else ""
    where = "KV transfer and first step at decode engines"
    if Role.PREFILL in ttft.at:
        where = f"prompt at prefill engines, then {where}"
    if Role.MIXED in ttft.at:
        where = f"{where}; or at mixed engines"
    return f"TTFT P99 {least}at most {ttft.most_ms} ms of {limit_ms} ms ({where}, without the router's time)"


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
