"""What the measurements on a whole site share: a site, its budgets applied, adopted and at rest, nobody dead meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from splitwatt_lab import scenario
from splitwatt_lab.bench_figures import Progress
from splitwatt_lab.errors import LabError, telling_line
from splitwatt_lab.run import API
from splitwatt_lab.site import LabSite, SiteSpec
from splitwatt_lab.toolbuild import Console

LOGS: Final = "bench-logs"
ADOPTION_S: Final = 120.0
LOOK_S: Final = 0.25
READ_S: Final = 120.0
"""A thousand objects at once, from a machine that is at its end."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks. `steps`: lowered limits to be timed. `nodes`: of the large site."""

    out: Path
    steps: int
    progress: Progress
    nodes: int = 1_000

    @contextmanager
    def site(self, name: str, spec: SiteSpec) -> Iterator[LabSite]:
        """A site of its own; its logs stay in `out`. Raises LabError."""
        directory = self.out / LOGS / name
        shutil.rmtree(directory, ignore_errors=True)
        with LabSite(spec, directory, progress=Console(), stage=lambda what: self.progress.stage(f"starting: {what}")) as site:
            yield site


def apply(site: LabSite, policy: str) -> Sequence[scenario.Manifest]:
    """The example's budgets, scaled to the site."""
    budgets = scenario.budgets(site.spec, policy)
    site.kubectl("apply", "-f", "-", stdin=scenario.to_yaml(budgets))
    return budgets


def await_adopted(site: LabSite, budgets: int, progress: Progress, *, within_s: float = ADOPTION_S) -> float:
    """Wait until all of them are in force; the slowest one's adoption in seconds, as the operator reports it."""
    begun_s = time.monotonic()
    while True:
        statuses = [item.get("status") or {} for item in read(site, "powerbudgets")]
        took_ms: list[int] = [s["adoptionMilliseconds"] for s in statuses if s.get("adoptionMilliseconds") is not None]
        if len(took_ms) == budgets:
            return max(took_ms) / 1000
        waited_s = time.monotonic() - begun_s
        if waited_s > within_s:
            raise LabError(
                f"{budgets - len(took_ms)} of {budgets} budgets were not adopted after {within_s:g} s (logs: {site.directory})"
            )
        require_running(site)
        progress.waiting("adoption", waited_s, within_s)
        time.sleep(LOOK_S)


def require_running(site: LabSite) -> None:
    """Raises LabError when operator or load has ended: what comes after would be waited for in vain."""
    for process in (site.operator, site.load):
        if process is not None and not process.running:
            raise LabError(
                f"{process.name} ended with code {process.returncode}: {telling_line(process.log)} (log: {process.log})"
            )


def acknowledged(site: LabSite) -> bool:
    """Whether every agent has acknowledged every grant there is."""
    return all(
        {row["uuid"]: row["grant"] for row in (np.get("spec") or {}).get("gpus", ())}
        == {row["uuid"]: row.get("ackedGrant", 0) for row in (np.get("status") or {}).get("gpus", ())}
        for np in read(site, "nodepowers")
    )


def read(site: LabSite, resource: str) -> Sequence[Mapping[str, Any]]:
    """All objects of one of our cluster-scoped resources, from the API server's cache."""
    items: Sequence[Mapping[str, Any]] = site.get(f"{API}/{resource}?resourceVersion=0", within_s=READ_S)["items"]
    return items
