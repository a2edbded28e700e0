"""The list of requests for a run of the reference model: a file as it is, its sizes at another rate, or generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated, poisson
from splitwatt_truth.trace import TraceError

MAX_REQUESTS: Final = 5_000_000
GENERATED_RPS: Final = 5.5
"""Without a file and without a rate: that of the public conversation trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """`rate_rps` None: the file's own arrivals, all of them. `seconds` and `seed` are of a list that is drawn."""

    requests: Path | None = None
    rate_rps: float | None = None
    seconds: float = 120.0
    seed: int = 1


def requests_of(options: ListOptions) -> Arrivals:
    """At least one request. Raises TraceError."""
    arrivals = _drawn(options)
    if len(arrivals) == 0:
        raise TraceError("the list holds no request: raise --rate or --seconds")
    return arrivals


def _drawn(options: ListOptions) -> Arrivals:
    given = None if options.requests is None else read_arrivals(options.requests)
    if given is not None and options.rate_rps is None:
        return given
    rate_rps = options.rate_rps or GENERATED_RPS
    wanted = rate_rps * options.seconds
    if wanted > MAX_REQUESTS:
        raise TraceError(f"{wanted:.0f} requests are more than the {MAX_REQUESTS} of one run: lower --rate or --seconds")
    if given is None:
        return generated(requests_per_s=rate_rps, seconds=options.seconds, seed=options.seed)
    return poisson(given, requests_per_s=rate_rps, seconds=options.seconds, seed=options.seed)
