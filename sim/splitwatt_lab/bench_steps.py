"""Time from `kubectl patch` of a limit to the last cap that had to fall, over 40 nodes of real agents.

The root's limit goes down by a tenth and up again, as often as asked; under `Uniform` every one of the 320 caps has to
fall at each step down. A step begins just before kubectl is started, for that is what a person waits for, and ends when
the last enforced limit was seen to fall on the simulated GPUs themselves, at 50 looks a second; nobody's word is taken for
it. It counts only when, at the end, enforced caps with everything else at the meter are within the new limit. The next one
begins when every grant of the raise between them is acknowledged.

Forty agents that wake at one moment share this machine's cores with the API server, where a fleet has a host for each: on
a small machine the figure is an upper bound. The same on one node (`measure_one`) shows the path without the crowd.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_nvml_twin.handle import NodeTwin

from splitwatt_lab import bench_site
from splitwatt_lab.bench_figures import Progress, percentile
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_lab.scenario import Manifest
from splitwatt_lab.site import LabSite, LoadSpec, SiteSpec

SPEC: Final = SiteSpec(racks=4, nodes_per_rack=10, gpus_per_node=8, load=LoadSpec())
POLICY: Final = "Uniform"
CUT_RATIO: Final = 0.9
LOOK_S: Final = 0.02
ONE_NODE_STEPS: Final = 5
QUIET_S: Final = 1.5
"""No cap moved for this long: the step is over. Longer than an acknowledgement takes to cause another decision."""
STEP_S: Final = 60.0
POLL_S: Final = 0.1
MAX_GAPS: Final = 100_000


class CapWatch(threading.Thread):
    """Looks at every enforced limit 50 times a second. `fell_s`, `moved_s`: when one was last seen lower, or other, than at
    the look before (Unix time). Reading the results is safe at any time."""

    def __init__(self, twins: Sequence[NodeTwin]) -> None:
        super().__init__(name="caps", daemon=True)
        self._twins = twins
        self._ending = threading.Event()
        self.enforced_mw = self._read()
        self.fell_s = self.moved_s = time.time()
        self.gaps_s: list[float] = []
        """Between looks, for the first `MAX_GAPS`."""

    def run(self) -> None:
        looked_s = time.time()
        while not self._ending.wait(LOOK_S):
            seen, now_s = self._read(), time.time()
            if seen != self.enforced_mw:
                self.moved_s = now_s
                if any(a < b for a, b in zip(seen, self.enforced_mw, strict=True)):
                    self.fell_s = now_s
                self.enforced_mw = seen
            if len(self.gaps_s) < MAX_GAPS:
                self.gaps_s.append(now_s - looked_s)
            looked_s = now_s

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def _read(self) -> list[int]:
        return [limit_mw for twin in self._twins for limit_mw in twin.read_enforced_mw()]


@dataclass(frozen=True, slots=True)
class LimitStep:
    """One lowered limit. Seconds since just before kubectl was started."""

    kubectl_s: float
    enforced_s: float


class Steps:
    """Takes the root's limit down and up. Watts at the meter."""

    def __init__(self, site: LabSite, budgets: Sequence[Manifest], watch: CapWatch) -> None:
        self._site = site
        self._watch = watch
        root = next(b for b in budgets if "parent" not in b["spec"])
        self._root: str = root["metadata"]["name"]
        self._high_w: int = root["spec"]["limitWatts"]
        self._low_w = round(self._high_w * CUT_RATIO)
        self._gpu_factor, self._rest_w = _beside_caps(budgets, site)

    def play(self) -> LimitStep:
        """Down, timed, and up again. Raises LabError when caps do not follow."""
        before = self._watch.enforced_mw
        started_s = time.time()
        self._patch(self._low_w)
        kubectl_s = time.time() - started_s
        self._await(f"enforced caps within {self._low_w} W", lambda: self._capped_w() <= self._low_w)
        step, low = LimitStep(kubectl_s, self._watch.fell_s - started_s), self._watch.enforced_mw
        if not all(a < b for a, b in zip(low, before, strict=True)):
            raise LabError("a cap did not fall though the root's limit did: the step would be timed by fewer caps")
        self._patch(self._high_w)
        self.settle(above=low)
        return step

    def settle(self, above: Sequence[int] = ()) -> None:
        """Wait until every cap has risen above these, all are within the limit, and all grants are acknowledged."""

        def settled() -> bool:
            risen = all(a > b for a, b in zip(self._watch.enforced_mw, above, strict=False))
            return risen and self._capped_w() <= self._high_w and bench_site.acknowledged(self._site)

        self._await(f"every cap risen again, within {self._high_w} W and acknowledged", settled)

    def _capped_w(self) -> float:
        return sum(self._watch.enforced_mw) / 1000 * self._gpu_factor + self._rest_w

    def _patch(self, limit_w: int) -> None:
        patch = json.dumps({"spec": {"limitWatts": limit_w}})
        self._site.kubectl("patch", "pb", self._root, "--type=merge", "-p", patch)

    def _await(self, what: str, holds: Callable[[], bool]) -> None:
        begun_s = time.monotonic()
        while time.time() - self._watch.moved_s < QUIET_S or not holds():
            if time.monotonic() - begun_s > STEP_S:
                raise LabError(
                    f"{what}: not after {STEP_S:g} s; is the machine busy with other things? (logs: {self._site.directory})"
                )
            bench_site.require_running(self._site)
            time.sleep(POLL_S)


def _beside_caps(budgets: Sequence[Manifest], site: LabSite) -> tuple[float, float]:
    """What I1 counts at the root: watts at the meter per capped watt, and watts that are no cap's."""
    leaf = next(b["spec"] for b in budgets if "parent" in b["spec"])
    fixed_w = sum(b["spec"].get("fixedWatts", 0) for b in budgets)
    return 1 + leaf["overheadPercent"] / 100, fixed_w + leaf["nonGpuWattsPerNode"] * len(site.node_specs)


def figures(steps: Sequence[LimitStep], gaps_s: Sequence[float]) -> dict[str, float]:
    """Flat figures of these steps, `gaps_s` between two looks at the caps."""
    enforced_s = [step.enforced_s for step in steps]
    return {
        "patch_to_enforced_p50_s": round(percentile(enforced_s, 0.50), 3),
        "patch_to_enforced_p99_s": round(percentile(enforced_s, 0.99), 3),
        "kubectl_patch_p50_s": round(percentile([s.kubectl_s for s in steps], 0.50), 3),
        "accepted_to_enforced_p50_s": round(percentile([s.enforced_s - s.kubectl_s for s in steps], 0.50), 3),
        "look_gap_p99_s": round(percentile(gaps_s, 0.99), 3),
    }


def play(site: LabSite, budgets: Sequence[Manifest], count: int, progress: Progress) -> tuple[list[LimitStep], list[float]]:
    """`count` steps on an adopted site, and the gaps between looks. Raises LabError."""
    watch = CapWatch(list(site.twins.values()))
    watch.start()
    try:
        steps, taken = Steps(site, budgets, watch), []
        steps.settle()
        begun_s = time.monotonic()
        for number in range(count):
            spent_s = time.monotonic() - begun_s
            progress.waiting(f"limit lowered {number} of {count} times", spent_s, spent_s * count / max(number, 1))
            taken.append(steps.play())
    finally:
        watch.stop()
    return taken, watch.gaps_s


def measure_one(site: LabSite, budgets: Sequence[Manifest], progress: Progress) -> dict[str, float]:
    """`patch_to_enforced_one_node_p50_s` on an adopted site of one node. Raises LabError."""
    progress.stage("one node: limit lowered")
    taken, _ = play(site, budgets, ONE_NODE_STEPS, progress)
    return {"patch_to_enforced_one_node_p50_s": round(percentile([step.enforced_s for step in taken], 0.50), 3)}


def measure(bench: Bench) -> dict[str, float]:
    """`bench_figures.FIGURES["patch"]`. Raises LabError."""
    with bench.site("patch", SPEC) as site:
        budgets = bench_site.apply(site, POLICY)
        bench_site.await_adopted(site, len(budgets), bench.progress)
        bench.progress.stage(f"patch: {bench.steps} times lowered, 40 nodes")
        return figures(*play(site, budgets, bench.steps, bench.progress))
