"""Time from `kubectl patch` of a limit to the last cap that had to fall, over 40 nodes of real agents.

The root's limit goes down by a tenth and up again, as often as asked; under `Uniform` every one of the 320 caps has to
fall at each step down. A step begins just before kubectl is started, for that is what a person waits for, and ends when
the last enforced limit was seen to fall on the simulated GPUs themselves, at 50 looks a second; nobody's word is taken for
it. It counts only when, at the end, enforced caps with everything else at the meter are within the new limit.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_nvml_twin.handle import NodeTwin

from splitwatt_lab import bench_site
from splitwatt_lab.bench_figures import percentile
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_lab.scenario import Manifest
from splitwatt_lab.site import LoadSpec, Site, SiteSpec

SPEC: Final = SiteSpec(racks=4, nodes_per_rack=10, gpus_per_node=8, load=LoadSpec())
POLICY: Final = "Uniform"
CUT_RATIO: Final = 0.9
LOOK_S: Final = 0.02
QUIET_S: Final = 1.5
"""No cap moved for this long: the step is over. Longer than an acknowledgement takes to cause another decision."""
STEP_S: Final = 60.0
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
class Step:
    """One lowered limit. Seconds since just before kubectl was started."""

    kubectl_s: float
    enforced_s: float


class Steps:
    """Takes the root's limit down and up. Watts at the meter."""

    def __init__(self, site: Site, budgets: Sequence[Manifest], watch: CapWatch) -> None:
        self._site = site
        self._watch = watch
        root = next(b for b in budgets if "parent" not in b["spec"])
        self._root: str = root["metadata"]["name"]
        self._high_w: int = root["spec"]["limitWatts"]
        self._low_w = round(self._high_w * CUT_RATIO)
        self._gpu_factor, self._rest_w = _beside_caps(budgets, site)

    def play(self) -> Step:
        """Down, timed, and up again. Raises LabError when caps do not follow."""
        before = list(self._watch.enforced_mw)
        started_s = time.time()
        self._patch(self._low_w)
        kubectl_s = time.time() - started_s
        self._await(f"enforced caps within {self._low_w} W", lambda: self._capped_w() <= self._low_w)
        step = Step(kubectl_s, self._watch.fell_s - started_s)
        if not all(a < b for a, b in zip(self._watch.enforced_mw, before, strict=True)):
            raise LabError("a cap did not fall though the root's limit did: the step would be timed by fewer caps")
        self._patch(self._high_w)
        self._await("caps as before the cut", lambda: self._watch.enforced_mw == before)
        return step

    def settle(self) -> None:
        """Wait until caps rest within the limit, after adoption."""
        self._await(f"enforced caps within {self._high_w} W", lambda: self._capped_w() <= self._high_w)

    def _capped_w(self) -> float:
        return sum(self._watch.enforced_mw) / 1000 * self._gpu_factor + self._rest_w

    def _patch(self, limit_w: int) -> None:
        patch = json.dumps({"spec": {"limitWatts": limit_w}})
        self._site.kubectl("patch", "pb", self._root, "--type=merge", "-p", patch)

    def _await(self, what: str, holds: Any) -> None:
        self._site.await_(what, lambda: time.time() - self._watch.moved_s > QUIET_S and holds(), timeout_s=STEP_S)


def _beside_caps(budgets: Sequence[Manifest], site: Site) -> tuple[float, float]:
    """What I1 counts at the root: watts at the meter per capped watt, and watts that are no cap's."""
    leaf = next(b["spec"] for b in budgets if "parent" in b["spec"])
    fixed_w = sum(b["spec"].get("fixedWatts", 0) for b in budgets)
    return 1 + leaf["overheadPercent"] / 100, fixed_w + leaf["nonGpuWattsPerNode"] * len(site.node_specs)


def figures(steps: Sequence[Step], gaps_s: Sequence[float]) -> dict[str, float]:
    """`bench_figures.FIGURES["patch"]` of these steps."""
    enforced_s = [step.enforced_s for step in steps]
    return {
        "patch_to_enforced_p50_s": round(percentile(enforced_s, 0.50), 3),
        "patch_to_enforced_p99_s": round(percentile(enforced_s, 0.99), 3),
        "kubectl_patch_p50_s": round(percentile([s.kubectl_s for s in steps], 0.50), 3),
        "accepted_to_enforced_p50_s": round(percentile([s.enforced_s - s.kubectl_s for s in steps], 0.50), 3),
        "look_gap_p99_s": round(percentile(gaps_s, 0.99), 3),
    }


def measure(bench: Bench) -> dict[str, float]:
    """Raises LabError."""
    with bench.site("patch", SPEC) as site:
        budgets = bench_site.apply(site, POLICY)
        bench_site.await_adopted(site, len(budgets), bench.progress)
        watch = CapWatch(list(site.twins.values()))
        watch.start()
        try:
            play = Steps(site, budgets, watch)
            play.settle()
            begun_s, steps = time.monotonic(), []
            for number in range(bench.steps):
                spent_s = time.monotonic() - begun_s
                bench.progress.waiting(
                    f"limit lowered {number} of {bench.steps} times", spent_s, spent_s * bench.steps / max(number, 1)
                )
                steps.append(play.play())
        finally:
            watch.stop()
    return figures(steps, watch.gaps_s)
