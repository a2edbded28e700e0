"""How long nobody decides after the leader was killed (SIGKILL), on real processes: beside a standby, and started again.

Both processes append to one decision log, so the longest time between two decisions around a kill is the gap of the budget
loop, by one clock. The leader is killed at a moment of its own each time, so that its last renewal is now fresh, now old.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from typing import Final

from splitwatt_lab import bench_site
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_lab.processes import Process
from splitwatt_lab.site import LabSite, SiteSpec

SPEC: Final = SiteSpec(racks=1, nodes_per_rack=4, gpus_per_node=8, load=None)
STANDBY_LEASE_S: Final = 3
"""As the chart has it for two replicas."""
KILLS: Final = 8
APART_S: Final = 3.37
"""Between the takeover and the next kill, and a share of a renewal more each time."""
LATE_S: Final = 22.0
BACK_S: Final = 60.0
LOOK_S: Final = 0.1


def longest_gap(times_s: list[float], *, killed_s: float) -> float:
    """Between the last decision before a kill and the first one after it. Raises ValueError where one of them is missing."""
    before = max(t for t in times_s if t <= killed_s)
    return min(t for t in times_s if t > killed_s) - before


def measure(bench: Bench) -> dict[str, float]:
    """The figures of `bench_figures.FIGURES["takeover"]`. Raises LabError."""
    with bench.site("takeover-restart", SPEC) as site:
        budgets = bench_site.apply(site, "PhaseAware")
        bench_site.await_adopted(site, len(budgets), bench.progress)
        assert site.operator is not None
        operator = site.operator
        restarts_s = [
            _gap(site, bench, f"started again, {n + 1} of {KILLS}", number=n, leader=operator, successor=operator)
            for n in range(KILLS)
        ]
        operator.kill()
        time.sleep(LATE_S)
        started_s = time.time()
        operator.start()
        late_s = _first_after(site, started_s) - started_s
    with bench.site("takeover-standby", replace(SPEC, lease_s=STANDBY_LEASE_S)) as site:
        budgets = bench_site.apply(site, "PhaseAware")
        bench_site.await_adopted(site, len(budgets), bench.progress)
        assert site.operator is not None
        leader, standby = site.operator, site.start_another_operator("standby")[0]
        standbys_s = []
        for n in range(KILLS):
            standbys_s.append(_gap(site, bench, f"beside a standby, {n + 1} of {KILLS}", number=n, leader=leader))
            leader.start()  # as the other one's standby
            leader, standby = standby, leader
    return {
        "takeover_standby_max_s": round(max(standbys_s), 2),
        "takeover_standby_p50_s": round(statistics.median(standbys_s), 2),
        "takeover_restart_max_s": round(max(restarts_s), 2),
        "takeover_restart_p50_s": round(statistics.median(restarts_s), 2),
        "takeover_late_restart_s": round(late_s, 2),
    }


def _gap(site: LabSite, bench: Bench, what: str, *, number: int, leader: Process, successor: Process | None = None) -> float:
    """Kill the leader, start `successor` where there is none yet, and wait for a decision."""
    bench.progress.stage(f"takeover: leader killed, {what}")
    time.sleep(APART_S + number / KILLS)
    leader.kill()
    killed_s = time.time()
    if successor is not None:
        successor.start()
    _first_after(site, killed_s)
    return longest_gap(_decided_s(site), killed_s=killed_s)


def _first_after(site: LabSite, when_s: float) -> float:
    begun_s = time.monotonic()
    while not (found := [t for t in _decided_s(site) if t > when_s]):
        if time.monotonic() - begun_s > BACK_S:
            raise LabError(f"nobody decided for {BACK_S:g} s after the leader was killed (logs: {site.directory})")
        time.sleep(LOOK_S)
    return min(found)


def _decided_s(site: LabSite) -> list[float]:
    """Unix times of all decisions so far; a line that is being written is left out."""
    lines = site.decision_log.read_text().splitlines(keepends=True)
    return [json.loads(line)["time_s"] for line in lines if line.endswith("\n")]
