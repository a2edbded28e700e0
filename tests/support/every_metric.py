"""A page on which every metric that panels show stands once with every label that somebody asks for."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from splitwatt_panels.sets import NOT_SHOWN
from support.registries import SCRAPED, exported

SAID: Final[Mapping[str, tuple[str, ...]]] = {
    "budget": ("rack-a1", "rack-a2"),
    "condition": ("Ready", "CapsEnforced", "ForeignLimit", "KVTransferVerified"),
    "state": ("Wanted", "Admitted", "Ready"),
    "latency": ("TTFT", "TBT"),
    "source": ("local_compute", "local_cache_hit", "external_kv_transfer"),
    "kind": ("Lease", "NodePower"),
    "le": ("0.5", "1.0", "+Inf"),
}
"""Values that somebody asks for; of any other label one is enough."""
RISES: Final = re.compile(r"_(total|bucket|count|sum)$")
PER_S: Final = 10.0


def values_of(metric: str, label: str) -> tuple[str, ...]:
    if label == "role":
        return ("Prefill", "Decode") if metric.startswith("splitwatt_gpu_") else ("prefill", "decode")
    return SAID.get(label, (f"some-{label}",))


def lines_of(metric: str, labels: frozenset[str], now_s: float) -> Iterator[str]:
    """Counters rise ten a second from the start of the test, gauges say 1."""
    own = sorted(labels - SCRAPED) + (["namespace"] if "cluster" in labels else [])
    for row in itertools.product(*(values_of(metric, label) for label in own)):
        told = ",".join(f'{label}="{value}"' for label, value in zip(own, row, strict=True))
        yield f"{metric}{{{told}}} {PER_S * now_s if RISES.search(metric) else 1.0}"


def every_metric() -> Callable[[], str]:
    """The page as it is now."""
    began_s = time.monotonic()
    asked = {name: labels for name, labels in exported().items() if name != "up" and name not in NOT_SHOWN}

    def page() -> str:
        now_s = time.monotonic() - began_s
        return "\n".join(line for name, labels in asked.items() for line in lines_of(name, labels, now_s)) + "\n"

    return page
