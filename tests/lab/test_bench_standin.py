"""The stand-in for a fleet of agents, on a real API server: it answers as agents do, and its writes are counted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from splitwatt_core.names import M_RACK_POWER_WATTS
from splitwatt_lab import bench_standin
from splitwatt_lab.bench_operator import writes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from support.waiting import eventually

API = "/apis/splitwatt.io/v1alpha1/nodepowers"


@pytest.fixture
async def fleet(crds: ControlPlane) -> AsyncIterator[tuple[list[str], str]]:
    """Two answered nodes and the address of their /metrics."""
    names = [f"n-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    listen = f"127.0.0.1:{free_port()}"
    config = {
        "kubeconfig": str(crds.kubeconfig),
        "listen": listen,
        "nodes": [{"name": name, "rack": "r1", "boot_id": f"boot-{name}", "gpus": 2} for name in names],
    }
    running = asyncio.create_task(bench_standin.run(config))
    try:
        yield names, listen
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for name in names:
            crds.http.delete(f"{API}/{name}")


async def answered(crds: ControlPlane, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The node's object once its status holds. Off the loop, for the stand-in runs on it."""

    def look() -> dict[str, Any] | None:
        obj: dict[str, Any] = crds.http.get(f"{API}/{name}").json()
        return obj if holds(obj.get("status") or {}) else None

    return await asyncio.to_thread(eventually, f"{name} is answered", look)


async def test_grants_are_answered_and_counted(crds: ControlPlane, fleet: tuple[list[str], str]) -> None:
    (name, other), listen = fleet
    for each in (name, other):
        body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": each}}
        assert (await asyncio.to_thread(crds.http.post, API, json=body)).is_success
    first = await answered(crds, name, lambda status: len(status.get("gpus", [])) == 2)
    assert first["status"]["bootID"] == f"boot-{name}"
    before = writes((await asyncio.to_thread(crds.http.get, "/metrics")).text.splitlines(), "nodepowers")
    grants = [
        {"uuid": gpu["uuid"], "grant": 7, "capWatts": 300, "safeCapWatts": 300, "chargeWatts": 700}
        for gpu in first["status"]["gpus"]
    ]
    spec = {"term": 1, "forUID": first["metadata"]["uid"], "budgets": ["r1"], "gpus": grants}
    patched = await asyncio.to_thread(
        crds.http.patch, f"{API}/{name}", json={"spec": spec}, headers={"Content-Type": "application/merge-patch+json"}
    )
    assert patched.is_success, patched.text
    held = await answered(crds, name, lambda status: all(gpu["ackedGrant"] == 7 for gpu in status["gpus"]))
    assert {gpu["enforcedCapWatts"] for gpu in held["status"]["gpus"]} == {300}
    assert held["status"]["observedTerm"] == 1
    after = writes((await asyncio.to_thread(crds.http.get, "/metrics")).text.splitlines(), "nodepowers")
    assert after >= before + 2, "the grant and its answer"

    async with httpx.AsyncClient() as client:
        shown = (await client.get(f"http://{listen}/metrics")).text
    assert shown.count(f'node="{name}"') == 2
    assert f'{M_RACK_POWER_WATTS}{{rack="r1"}}' in shown
