"""Finished requests as JSON lines, and the numbers a person wants at the end.

One line per finished request, times of the wall clock:
`t_s` Unix time of its end, `arrived_s` Unix time of its arrival, `namespace`, `cluster`, `ttft_ms`, `tbt_ms` (mean gap
between tokens; null for an answer of one token), `e2e_ms`, `prompt`, `output` (tokens), `requeues` (how often it lost its
replica), `prefill_pod`, `decode_pod` ("" when one token was all).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from splitwatt_twin.cluster import Cluster
from splitwatt_twin.requests import ClusterKey, Request

MAX_KEPT: Final = 500_000
"""Latencies kept per cluster for the summary's percentiles."""


class LoadResults:
    """`wall_offset_s`: Unix time minus the fleet's clock."""

    def __init__(self, path: Path | None, *, wall_offset_s: float) -> None:
        """Raises OSError when the file cannot be written."""
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        self._wall_offset_s = wall_offset_s
        self._kept: dict[ClusterKey, list[tuple[float, float | None, float, int]]] = defaultdict(list)

    def add(self, request: Request) -> None:
        assert request.finished_s is not None
        ttft_ms, e2e_ms = request.ttft_s * 1e3, request.e2e_s * 1e3
        tbt_ms = None if request.tbt_s is None else request.tbt_s * 1e3
        kept = self._kept[request.cluster]
        if len(kept) < MAX_KEPT:
            kept.append((ttft_ms, tbt_ms, e2e_ms, request.output_tokens))
        if self._file is None:
            return
        line = {
            "t_s": round(request.finished_s + self._wall_offset_s, 4),
            "arrived_s": round(request.arrived_s + self._wall_offset_s, 4),
            "namespace": request.cluster.namespace,
            "cluster": request.cluster.name,
            "ttft_ms": round(ttft_ms, 3),
            "tbt_ms": None if tbt_ms is None else round(tbt_ms, 3),
            "e2e_ms": round(e2e_ms, 3),
            "prompt": request.prompt_tokens,
            "output": request.output_tokens,
            "requeues": request.requeues,
            "prefill_pod": request.prefill_pod,
            "decode_pod": request.decode_pod,
        }
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def summary(self, clusters: Mapping[ClusterKey, Cluster]) -> dict[str, Any]:
        """Per cluster: counts, and latencies at P50, P90 and P99 in ms."""
        return {str(key): self._summary_of(key, cluster) for key, cluster in sorted(clusters.items())}

    def _summary_of(self, key: ClusterKey, cluster: Cluster) -> dict[str, Any]:
        kept, counts = self._kept[key], cluster.counts
        row: dict[str, Any] = {
            "arrived": counts.arrived,
            "finished": counts.finished,
            "unfinished": cluster.in_system,
            "requeued": counts.requeued,
            "dropped": {reason.value: n for reason, n in counts.dropped.items() if n},
            "output_tokens": sum(tokens for *_, tokens in kept),
        }
        columns: Sequence[tuple[str, list[float]]] = (
            ("ttft_ms", [k[0] for k in kept]),
            ("tbt_ms", [k[1] for k in kept if k[1] is not None]),
            ("e2e_ms", [k[2] for k in kept]),
        )
        for name, values in columns:
            values.sort()
            for level in (50, 90, 99):
                row[f"{name}_p{level}"] = round(percentile(values, level), 1) if values else None
        return row


def percentile(values: Sequence[float], level: float) -> float:
    """Of sorted values, linear between neighbours (numpy's default)."""
    place = (len(values) - 1) * level / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
