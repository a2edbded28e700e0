"""What one node agent costs: CPU time and memory of a real agent process at 5 Hz on eight simulated GPUs.

Everything around it is real too: its own token, watch and status writes on a real API server, grants of a real operator,
kubelet's PodResources every two seconds (the twin answers, without pods), and a real Prometheus that scrapes it once a
second. Only the library behind pynvml is the simulated one; a driver's calls take longer, but that time passes in the
kernel and the GPU, not in the agent.
"""

from __future__ import annotations

import time
from typing import Final

from splitwatt_lab import bench_site, bench_steps
from splitwatt_lab.bench_process import usage
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.site import LoadSpec, SiteSpec

WARM_UP_S: Final = 10.0
MEASURED_S: Final = 40.0
SPEC: Final = SiteSpec(racks=1, nodes_per_rack=1, gpus_per_node=8, load=LoadSpec())


def measure(bench: Bench) -> dict[str, float]:
    """`agent_core_percent` over 40 s after grants are in force and a warm-up, `agent_rss_mib` after it, and while the site
    stands, how fast a lowered limit reaches its one node. Raises LabError."""
    with bench.site("agent", SPEC) as site:
        budgets = bench_site.apply(site, bench_steps.POLICY)
        bench_site.await_adopted(site, len(budgets), bench.progress)
        bench.progress.stage("agent: warming up")
        time.sleep(WARM_UP_S)
        (agent,) = site.agents.values()
        spent = usage(agent.pid, seconds=MEASURED_S, what="agent at 5 Hz", progress=bench.progress)
        reached = bench_steps.measure_one(site, budgets, bench.progress)
    return {"agent_core_percent": round(spent.core_percent, 3), "agent_rss_mib": round(spent.rss_mib, 1)} | reached
