"""The API server's store goes back to a backup: the agent must neither follow it back nor stay deaf to what comes after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from support.agent_bench import AgentBench
from support.waiting import eventually

CRD = Path(__file__).resolve().parents[2] / "crds" / "nodepowers.splitwatt.io.yaml"


@pytest.fixture
def own_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that may be rewound."""
    with ControlPlane(tmp_path / "plane") as plane:
        plane.kubectl("apply", "--server-side", "-f", CRD)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRD)
        yield plane


def swap_store(plane: ControlPlane, *, source: Path, target: Path) -> None:
    plane.stop(Component.API_SERVER)
    plane.stop(Component.ETCD)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    plane.start(Component.ETCD)
    plane.start(Component.API_SERVER)


def test_a_restored_store_cannot_raise_a_cap_and_later_grants_count_again(own_plane: ControlPlane, tmp_path: Path) -> None:
    store = next(path.parent for path in own_plane.directory.rglob("member") if path.is_dir())
    backup = tmp_path / "backup"
    with AgentBench(own_plane, tmp_path) as bench:
        bench.create()
        bench.start()
        old = bench.grant({0: 600, 1: 600})
        bench.await_ack(old, (0, 1))
        swap_store(own_plane, source=store, target=backup)
        for cap_w in (500, 400, 300):
            newest = bench.grant({0: cap_w, 1: cap_w})
            bench.await_ack(newest, (0, 1))
        swap_store(own_plane, source=backup, target=store)
        assert bench.object()["spec"]["gpus"][0]["grant"] == old
        eventually("acknowledgements are taken back", lambda: (bench.acked(0), bench.acked(1)) == (0, 0))
        assert bench.limits_w() == [(300, 300)] * 2, "the old grant was outdone before"
        later = bench.grant({0: 450, 1: 450})
        bench.await_ack(later, (0, 1))
        assert bench.limits_w() == [(450, 450)] * 2
