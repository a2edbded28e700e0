"""Which cluster gets which requests, and from when on.

The load's clock starts when the first cluster of all has a ready replica of both roles; each cluster's own stream begins
when it is first served, at the pace the rate curve has by then. A cluster whose pods are all gone for `GONE_S` is taken
for deleted: its stream ends and what waited is dropped, under that name.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from splitwatt_truth.trace import TraceRow

from splitwatt_twin.arrivals import Sample, arrivals, generate, replay
from splitwatt_twin.config import TwinConfig
from splitwatt_twin.fleet import EngineFleet
from splitwatt_twin.requests import ClusterKey

log = logging.getLogger(__name__)

GONE_S: Final = 30.0
FULL_SHARE: Final = 1.0


class Load:
    """`shares` are filled from the configuration, others by `set_share`; a cluster without one gets no load yet."""

    def __init__(self, config: TwinConfig, *, fleet: EngineFleet, rows: Sequence[TraceRow] | None) -> None:
        self.origin_s: float | None = None
        self.shares: dict[ClusterKey, float] = dict(config.shares)
        self._config = config
        self._fleet = fleet
        self._rows = rows
        self._seen_s: dict[ClusterKey, float] = {}

    def set_share(self, key: ClusterKey, share: float) -> None:
        self.shares.setdefault(key, share)

    def tend(self, present: set[ClusterKey], now_s: float) -> None:
        """Starts the streams of clusters that are served and ends those of clusters that are gone."""
        for key in present:
            self._seen_s[key] = now_s
        for key, cluster in list(self._fleet.clusters.items()):
            if cluster.serving and not self._fleet.loaded(key) and key in self.shares:
                self._start(key, now_s)
            elif self._fleet.loaded(key) and now_s - self._seen_s.get(key, now_s) > GONE_S:
                self._fleet.stop_load(key)
                cluster.abandon()
                log.info("cluster %s has had no pods for %.0f s; its load ends", key, GONE_S)

    def _start(self, key: ClusterKey, now_s: float) -> None:
        if self.origin_s is None:
            self.origin_s = now_s
        share, begin_s = self.shares[key], now_s - self.origin_s
        stream = arrivals(
            self._samples(key, share),
            requests_per_s=self._config.requests_per_s * share,
            curve=self._config.rate,
            begin_s=begin_s,
            end_s=self._config.duration_s,
        )
        self._fleet.start_load(key, stream, origin_s=self.origin_s)
        log.info(
            "cluster %s is served: %.2f requests/s times the rate curve from second %.0f on",
            key, self._config.requests_per_s * share, begin_s,
        )  # fmt: skip

    def _samples(self, key: ClusterKey, share: float) -> Iterator[Sample]:
        if self._rows is None:
            return generate(f"{self._config.seed}/{key}")
        elsewhere = zlib.crc32(f"{self._config.seed}/{key}".encode())
        return replay(self._rows, first=0 if share >= FULL_SHARE else elsewhere)
