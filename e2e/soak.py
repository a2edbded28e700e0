"""`make e2e-soak`: half an hour of churn under load. Budgets hold, requests are answered, and nothing grows.

Memory, descriptors and API requests of the second quarter are the baseline of the last one: the first is warming up. Read from
the processes and the API server themselves. SOAK_MINUTES says how long (30).
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil
import pytest
from ground import rack, serving
from ground.furnish import NAMESPACE
from ground.site import Site
from ground.traffic import Traffic
from splitwatt_lab.judge import Judge

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
STEP_S = 20.0
PROGRAMS = ("splitwatt_operator", "splitwatt_agent")
MORE_MEMORY = 1.10
MORE_BYTES = 8_000_000
MORE_DESCRIPTORS = 8
MORE_REQUESTS = 1.5
_REQUESTS = re.compile(r"^apiserver_request_total\{([^}]*)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Look:
    """At every process of a program together; `requests` since the API server began, without watches and node leases."""

    at_s: float
    resident: dict[str, int]
    descriptors: dict[str, int]
    requests: float


def look(site: Site) -> Look:
    resident, descriptors = dict.fromkeys(PROGRAMS, 0), dict.fromkeys(PROGRAMS, 0)
    for process in psutil.process_iter(["cmdline"]):
        for name in PROGRAMS:
            if name in (process.info["cmdline"] or ()):
                try:
                    resident[name] += process.memory_info().rss
                    descriptors[name] += process.num_fds()
                except psutil.NoSuchProcess:
                    continue  # a pod that was killed on purpose
    counted = _REQUESTS.findall(site.cluster.http.get("/metrics").text)
    ours = (float(count) for labels, count in counted if 'group="splitwatt.io"' in labels and 'verb="WATCH"' not in labels)
    return Look(time.monotonic(), resident, descriptors, sum(ours))


def churn(site: Site, turn: int) -> None:
    """One of the things that happen to a site on a busy day."""
    limits = (2800, 900)
    match turn % 4:
        case 0 | 2:
            site.limit(rack.NAME, rack.limit_w(site, above_least_w=limits[turn // 2 % 2]))
        case 1:
            replicas = 1 + turn // 4 % 2
            site.cluster.kubectl("scale", "-n", serving.NAMESPACE, "ic/chat", f"--replicas={replicas}")
        case _:
            component = ("agent", "operator")[turn // 4 % 2]
            words = ("delete", "pod", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}", "--wait=false")
            site.cluster.kubectl(*words)


@pytest.mark.timeout(60 * (MINUTES + 15))
def test_nothing_grows_over_half_an_hour(installed: Site, judged: Judge) -> None:
    site = installed
    serving.make_namespace(site)
    serving.serve(site, serving.inference_cluster(site, "chat", prefill=1, decode=1))
    looks: list[Look] = []
    until_s = time.monotonic() + 60 * MINUTES
    with Traffic(site.cluster, namespace=serving.NAMESPACE, name="chat", per_s=2.0) as asked:
        for turn in itertools.takewhile(lambda _: time.monotonic() < until_s, itertools.count()):
            churn(site, turn)
            time.sleep(STEP_S)
            looks.append(look(site))
    lost = [each for each in asked.failed() if each.status != 0]
    assert asked.requests and not lost, lost[:3]
    quarter = len(looks) // 4
    assert quarter >= 4, "too short to compare anything; raise SOAK_MINUTES"
    before, after = looks[quarter : 2 * quarter], looks[-quarter:]
    for name in PROGRAMS:
        assert middle(after, name) <= MORE_MEMORY * middle(before, name) + MORE_BYTES
        assert max(each.descriptors[name] for each in after) <= max(each.descriptors[name] for each in before) + MORE_DESCRIPTORS
    assert per_s(after) <= MORE_REQUESTS * per_s(before)


def middle(looks: Iterable[Look], name: str) -> float:
    return statistics.median(each.resident[name] for each in looks)


def per_s(looks: Sequence[Look]) -> float:
    return (looks[-1].requests - looks[0].requests) / (looks[-1].at_s - looks[0].at_s)
