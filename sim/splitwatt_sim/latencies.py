"""What users feel: TTFT, TBT and end-to-end time of every request, their percentiles, and Splitwise's nine SLOs.

Two times go by the name of TTFT. As published it ends when the prompt was read. A user waits for more: the KV cache's way to the
decode machine, a place in its batch, and the first step there. SLOs in milliseconds are judged by the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PERCENTILES: Final = (50, 90, 99)
SLOWDOWN_SLOS: Final = {"ttft": (2.0, 3.0, 6.0), "tbt": (1.25, 1.5, 5.0), "e2e": (1.25, 1.5, 5.0)}
"""Largest slowdowns at `PERCENTILES` against an unloaded server of 8 A100, all strict (arXiv:2311.18677, table of SLOs)."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """float64[N] milliseconds, one per request. TBT is a request's mean: (E2E - TTFT) / output tokens, as published.
    `ttft_user_ms`: until the user has a token; None where it was not simulated, and `ttft_ms` stands for it."""

    ttft_ms: NDArray[np.float64]
    tbt_ms: NDArray[np.float64]
    e2e_ms: NDArray[np.float64]
    ttft_user_ms: NDArray[np.float64] | None = None

    def columns(self) -> dict[str, NDArray[np.float64]]:
        return {"ttft": self.ttft_ms, "tbt": self.tbt_ms, "e2e": self.e2e_ms}

    def percentiles(self) -> dict[str, float]:
        """`ttft_ms_p50` … `e2e_ms_p99`, and `ttft_user_ms_…` where it is known; linear interpolation between order statistics."""
        known = {} if self.ttft_user_ms is None else {"ttft_user": self.ttft_user_ms}
        return {
            f"{name}_ms_p{p}": float(value)
            for name, column in (self.columns() | known).items()
            for p, value in zip(PERCENTILES, np.percentile(column, PERCENTILES), strict=True)
        }


def judged_ttft_ms_p99(percentiles: Mapping[str, float]) -> float:
    """The one that an SLO in milliseconds is held against."""
    return percentiles.get("ttft_user_ms_p99", percentiles["ttft_ms_p99"])


def slowdowns(measured: Latencies, alone: Latencies) -> dict[str, float]:
    """`ttft_p50` … `e2e_p99`: percentiles of each request's time over its time alone."""
    base = alone.columns()
    return {
        f"{name}_p{p}": float(value)
        for name, column in measured.columns().items()
        for p, value in zip(PERCENTILES, np.percentile(column / base[name], PERCENTILES), strict=True)
    }


def slowdown_limits() -> dict[str, float]:
    """`ttft_p50` … `e2e_p99`: the nine SLOs, flat."""
    return {f"{name}_p{p}": limit for name, limits in SLOWDOWN_SLOS.items() for p, limit in zip(PERCENTILES, limits, strict=True)}


def missed_slos(slowdown: dict[str, float], *, margin: float = 0.0) -> list[str]:
    """Names of the SLOs that are not met with this much to spare (0.03: 3 %)."""
    return [name for name, limit in slowdown_limits().items() if not slowdown[name] < limit * (1 - margin)]
