"""A plan is something to apply: the real API server takes the objects that the planner writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from splitwatt_cli.main import main
from splitwatt_core.clusters import Role
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_sim.plan.objects import as_yaml, manifests, reserve_w
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, option_for
from splitwatt_sim.plan.search import PlanDesign
from splitwatt_sim.servers.catalogue import Catalogue


def test_the_api_server_accepts_a_plan(crds: ControlPlane, tmp_path: Path) -> None:
    arguments = ["--watts", "45000", "--gpus", "H100", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1"]
    assert main(["plan", *arguments, "--out", str(tmp_path)]) == 0
    files = ["-f", str(tmp_path / "profiles.yaml"), "-f", str(tmp_path / "plan.yaml")]
    taken = crds.kubectl("apply", "--dry-run=server", *files).stdout
    for kind in ("powerprofile", "powerbudget", "inferencecluster"):
        assert f"{kind}.splitwatt.io/" in taken
    assert "error" not in taken.lower()


H100, LEAN = (option_for(MODEL_2026, "H100", cap_w, longest_prompt=512) for cap_w in (700, 380))


@pytest.mark.parametrize(
    ("design", "pools"),
    [
        (PlanDesign(H100, 3), {"mixed": 3}),
        (PlanDesign(H100, 3, LEAN, 2, H100, 1), {"prefill": 3, "decode": 2, "mixed": 1}),
    ],
)
def test_the_api_server_accepts_mixed_servers(crds: ControlPlane, design: PlanDesign, pools: dict[str, int]) -> None:
    slo, known = LatencySlo(2_000.0, 100.0), {"H100": Catalogue().gpu("H100")}
    written = manifests(design, name="chat", namespace="default", model=MODEL_2026, slo=slo, gpus=known)
    answer = crds.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=as_yaml(written, header="two\nlines"))
    [cluster] = [obj for obj in json.loads(answer.stdout)["items"] if obj["kind"] == "InferenceCluster"]
    assert {role: pool["replicas"] for role in Role if (pool := cluster["spec"].get(role)) is not None} == pools


def test_the_api_server_accepts_the_example_of_a_server(crds: ControlPlane) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "plan" / "x1.yaml"
    assert "powerprofile.splitwatt.io/x1 created" in crds.kubectl("apply", "--dry-run=server", "-f", example).stdout


@pytest.mark.parametrize(("beside_w", "reserved_w"), [(math.inf, 10_000), (0.0, 0), (700.9, 700), (-5.0, 0)])
def test_no_limit_is_above_what_the_feed_carries(beside_w: float, reserved_w: int) -> None:
    """The reserve has what room the caps leave; one that would not fit is cut, never the feed's word."""
    design, known = PlanDesign(H100, 3, LEAN, 2), {"H100": Catalogue().gpu("H100")}
    caps_w = math.ceil(design.charge_w)
    feed_w = caps_w + beside_w
    budget = manifests(
        design, name="chat", namespace="default", model=MODEL_2026, slo=LatencySlo(2_000.0, 100.0), gpus=known, feed_w=feed_w
    )[0]["spec"]
    assert budget["reserveWatts"] == min(reserved_w, reserve_w(design, known))
    assert budget["limitWatts"] == caps_w + budget["reserveWatts"]
    assert budget["limitWatts"] <= max(feed_w, caps_w)
