"""Every row of README's table "What bad input gets", typed on a running site: it says what README says, and the judge looks on.

One site for all rows. A new row of the table needs a line here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from splitwatt_lab import scenario
from splitwatt_lab.judge import Judge, complaints
from splitwatt_lab.run import API
from splitwatt_lab.site import LabSite, LoadSpec, SiteSpec

README: Final = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SPEC: Final = SiteSpec(racks=2, nodes_per_rack=2, load=LoadSpec(requests_per_s=4.0))
LEAF: Final = {"limitWatts": 13_000, "nonGpuWattsPerNode": 2_800, "unmanagedWattsPerNode": 10_200}
SEEN_S: Final = 30.0

REFUSED: Final[Mapping[str, Mapping[str, Any]]] = {
    "`limitWats: 26000`": {"limitWatts": 26_000, "limitWats": 26_000},
    "`limitWatts: -5`": {"limitWatts": -5},
    "`mode: Strict` beside `parent: row-a`": {**LEAF, "mode": "Strict", "parent": "row-a"},
    "`meter: {selector: sum(rack_power_watts)}`": {**LEAF, "meter": {"selector": "sum(rack_power_watts)"}},
}
"""What is typed, as a whole PowerBudget's spec."""
TOLD: Final = (
    "two leaves select a node",
    "parents in a circle",
    "a limit that minimum caps exceed",
    "no watts for a new replica",
)


def rows() -> dict[str, str]:
    """README's two tables: what is typed or wrong, and what is said."""
    section = README.split("## What bad input gets")[1].split("\n## ")[0]
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    return {what: said for what, said in found if not said.startswith(("it says", "condition", "---"))}


def pattern(said: str) -> re.Pattern[str]:
    """README's sentence with any numbers and names in place of its own; `…` stands for anything."""
    text = re.escape(said.strip("`")).replace("…", ".*?")
    return re.compile(re.sub(r"\d+", r"\\d+", text), re.DOTALL)


def test_readmes_rows_are_those_that_are_played() -> None:
    assert set(rows()) == {*REFUSED, *TOLD}


class Site:
    """A running site with its judge."""

    def __init__(self, lab: LabSite, judge: Judge) -> None:
        self.lab = lab
        self.judge = judge

    def budget(self, name: str, spec: Mapping[str, Any]) -> str:
        """Apply a PowerBudget; what kubectl said."""
        doc = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": name}, "spec": dict(spec)}
        done = self.lab.plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(doc), check=False)
        return done.stdout + done.stderr

    def condition(self, path: str, wanted: str) -> str:
        """The condition of README's row, as `Type=Status Reason: message`, once it says that."""
        kind, _, _ = wanted.strip("`").partition("=")
        found = ""
        end_s = time.monotonic() + SEEN_S
        while time.monotonic() < end_s and not pattern(wanted).search(found):
            for c in (self.lab.get(path).get("status") or {}).get("conditions") or ():
                if c["type"] == kind:
                    found = f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
            time.sleep(0.3)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with LabSite(SPEC, tmp_path_factory.mktemp("bad-input")) as lab:
        judge = Judge(
            twins=lab.twins,
            wiring=scenario.wiring(SPEC),
            plant=SPEC.plant,
            budgets=lambda: lab.get(f"{API}/powerbudgets?resourceVersion=0")["items"],
        )
        chat, _ = scenario.clusters(SPEC)
        docs = [*scenario.budgets(SPEC, "PhaseAware"), *scenario.namespaces([chat]), chat]
        lab.kubectl("apply", "-f", "-", stdin=scenario.to_yaml(docs))
        judge.start()
        lab.await_("adoption", lambda: len(judge.views) == 3 and all(v.adopted for v in judge.views.values()), timeout_s=60)
        lab.await_("the first request", lambda: lab.results.is_file() and lab.results.stat().st_size > 0, timeout_s=120)
        yield Site(lab, judge)


def test_every_row_is_said_and_the_judge_looks_on(site: Site) -> None:
    said = rows()
    begun_s = time.monotonic()
    for what, spec in REFUSED.items():
        assert pattern(said[what]).search(site.budget("mistaken", spec)), what

    site.budget("rack-b", {**LEAF, "parent": "row-a", "nodeSelector": {"matchLabels": {"splitwatt.io/rack": "a2"}}})
    for name in ("rack-a2", "rack-b"):
        wanted = said["two leaves select a node"]
        assert pattern(wanted).search(site.condition(f"{API}/powerbudgets/{name}", wanted)), name
    site.lab.kubectl("delete", "pb", "rack-b")

    site.budget("hall-1", {"limitWatts": 9000, "parent": "hall-2"})
    site.budget("hall-2", {"limitWatts": 9000, "parent": "hall-1"})
    wanted = said["parents in a circle"]
    assert pattern(wanted).search(site.condition(f"{API}/powerbudgets/hall-1", wanted))
    site.lab.kubectl("delete", "pb", "hall-1", "hall-2")

    _, batch = scenario.clusters(SPEC)
    tight_w = round(site.judge.latest["row-a"].capped_w)
    site.lab.kubectl("patch", "pb", "row-a", "--type=merge", "-p", f'{{"spec":{{"limitWatts":{tight_w}}}}}')
    site.lab.kubectl("apply", "-f", "-", stdin=scenario.to_yaml([*scenario.namespaces([batch]), batch]))
    wanted = said["no watts for a new replica"]
    found = site.condition(f"{API}/namespaces/batch/inferenceclusters/summarize", wanted)
    assert re.search(r"PowerAdmitted=False InsufficientPower: To keep its GPUs above the cliff, .* \d+ W are missing\.", found), (
        found
    )

    over_s = site.judge.violations_s()
    assert over_s == 0, "no mistake may cost a budget"
    site.lab.kubectl("patch", "pb", "rack-a2", "--type=merge", "-p", '{"spec":{"limitWatts":7000}}')
    wanted = said["a limit that minimum caps exceed"]
    assert pattern(wanted).search(site.condition(f"{API}/powerbudgets/rack-a2", wanted))

    length_s = time.monotonic() - begun_s
    site.judge.stop()
    assert complaints(site.judge.counts, list(site.judge.wiring.feeds), length_s) == []
    assert {name for name, count in site.judge.counts.items() if count.either_over_s} <= {"rack-a2"}
