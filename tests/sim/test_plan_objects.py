"""A plan is something to apply: the real API server takes the objects that the planner writes."""

from __future__ import annotations

from pathlib import Path

from splitwatt_cli.main import main
from splitwatt_lab.controlplane import ControlPlane


def test_the_api_server_accepts_a_plan(crds: ControlPlane, tmp_path: Path) -> None:
    arguments = ["--watts", "45000", "--gpus", "H100", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1"]
    assert main(["plan", *arguments, "--out", str(tmp_path)]) == 0
    files = ["-f", str(tmp_path / "profiles.yaml"), "-f", str(tmp_path / "plan.yaml")]
    taken = crds.kubectl("apply", "--dry-run=server", *files).stdout
    for kind in ("powerprofile", "powerbudget", "inferencecluster"):
        assert f"{kind}.splitwatt.io/" in taken
    assert "error" not in taken.lower()


def test_the_api_server_accepts_the_example_of_a_server(crds: ControlPlane) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "plan" / "x1.yaml"
    assert "powerprofile.splitwatt.io/x1 created" in crds.kubectl("apply", "--dry-run=server", "-f", example).stdout
