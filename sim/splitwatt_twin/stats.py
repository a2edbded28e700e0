"""What one emulated engine has done, in the shape of vLLM's metrics: plain numbers, cheap enough for every token.

prometheus_client's own histogram takes one observation at a time; a decode step yields one per running sequence, all
alike, so these take a value with a count.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

# vLLM's own buckets (vllm/v1/metrics/loggers.py), so that dashboards and queries made for vLLM fit.
TTFT_BUCKETS_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TBT_BUCKETS_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
E2E_BUCKETS_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
KV_BYTES_BUCKETS: Final = tuple(float(2**11 * 4**k) for k in range(12))
"""From 2 KiB to 8 GiB (vllm/distributed/kv_transfer/kv_connector/v1/nixl)."""


class Histogram:
    """A Prometheus histogram: `bounds` are upper bounds, the last bucket is +Inf."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(le, count of observations at or below it), as the exposition format wants it."""
        rows: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            rows.append(("+Inf" if bound == float("inf") else repr(bound), seen))
        return rows


class EngineStats:
    """Counters of one replica since it became ready. Tokens are counted where they are computed."""

    __slots__ = ("e2e", "generation_tokens", "kv_bytes", "kv_tokens", "prompt_tokens", "successes", "tbt", "ttft")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.successes = 0
        self.kv_tokens = 0
        self.kv_bytes = Histogram(KV_BYTES_BUCKETS)
        self.ttft = Histogram(TTFT_BUCKETS_S)
        self.tbt = Histogram(TBT_BUCKETS_S)
        self.e2e = Histogram(E2E_BUCKETS_S)

    def received(self, tokens: int, *, bytes_per_token: int) -> None:
        """A KV cache that another replica computed is here."""
        self.kv_tokens += tokens
        self.kv_bytes.observe(tokens * bytes_per_token)
