"""The real sglang-router, with arguments, rights and pods as they are rendered, before stand-ins on a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_core.clusters import (
    PAIR,
    ClusterSpec,
    EngineSpec,
    EngineType,
    KvTransferSpec,
    Role,
    RoleSpec,
    RouterSpec,
    RouterType,
)
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from support.bootstrap_engine import MODEL, BootstrapEngine
from support.routed import RoutedCluster
from support.waiting import eventually

SIDE_PORT = 8997


@pytest.fixture
def routed(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[RoutedCluster]:
    pool = RoleSpec(replicas=1, gpus_per_replica=1)
    spec = ClusterSpec(
        namespace=namespace, name="chat", uid="u", generation=1, model=MODEL,
        engine=EngineSpec(EngineType.SGLANG, port=free_port()), prefill=pool, decode=pool,
        kv_transfer=KvTransferSpec(side_channel_port=SIDE_PORT),
        router=RouterSpec(RouterType.SGLANG, metrics_port=free_port()),
    )  # fmt: skip
    with ProcessGroup(tmp_path) as group:
        cluster = RoutedCluster(control_plane, group, spec)
        cluster.apply_rights()
        yield cluster
        cluster.close()


def test_both_engines_get_the_request_and_decode_the_address_of_the_kv_cache(routed: RoutedCluster) -> None:
    router, port = routed.router(), routed.spec.engine.port
    assert not routed.answers(f"{routed.url}/readiness"), "nobody is there yet"
    engines = {role: BootstrapEngine(f"127.0.0.{8 + at}", port, role.value) for at, role in enumerate(PAIR)}
    try:
        for role, engine in engines.items():
            routed.join(role, engine.host)
        routed.await_routed()
        answer = eventually("a request is answered", lambda: asked(routed))
        assert answer["choices"][0]["text"] == "decode", router.log.read_text()[-3000:]
        read, wrote = (engines[role].asked[-1] for role in (Role.PREFILL, Role.DECODE))
        for body in (read, wrote):
            assert (body["bootstrap_host"], body["bootstrap_port"]) == (engines[Role.PREFILL].host, SIDE_PORT)
        assert read["bootstrap_room"] == wrote["bootstrap_room"] is not None

        routed.leave(f"chat-decode-{engines[Role.DECODE].host.rpartition('.')[2]}")
        eventually("who leaves is asked no more", lambda: not asked(routed))
        assert routed.answers(f"http://127.0.0.1:{routed.spec.router.metrics_port}/metrics")
    finally:
        for engine in engines.values():
            engine.close()


def asked(routed: RoutedCluster) -> dict[str, list[dict[str, str]]]:
    """The answer; nothing when there was none."""
    answer = routed.ask(prompt="a b c", max_tokens=1)
    return answer.json() if answer.status_code == 200 else {}
