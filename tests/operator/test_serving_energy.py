"""Joules per token as the operator shows them: whose watts, whose tokens, and no figure where the two are apart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from splitwatt_core import names
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.clusters import ClusterName, LabelOwners, Role
from splitwatt_core.protocol.contract import GpuStatus, NodePower, Status, Workload
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.serving import energy
from splitwatt_operator.serving.energy import Drawn, EnergyMeter, prices
from splitwatt_operator.telemetry.prometheus import PrometheusClient
from support.exporter import Exporter

CHAT = ClusterName("s", "chat")
OWNERS = LabelOwners({CHAT: 0.0})
DRAWN = Drawn(
    power_w={("n1", "g0"): 600.0, ("n1", "g1"): 400.0, ("n2", "g0"): 300.0, ("n2", "g1"): 100.0},
    read_per_s={("s", "p"): 2000.0, ("s", "d"): 2000.0},  # vLLM's decode engines count prompts as well
    written_per_s={("s", "p"): 4.0, ("s", "d"): 80.0},
)


def pod(name: str, role: Role, **changes: Any) -> Pod:
    return replace(Pod(PodName("s", name), uid=name, version=1, label="chat", role=role, gpus=2), **changes)


def node(name: str, *owners: tuple[str, ...]) -> NodePower:
    """`owners`: the pods of each of its GPUs."""
    gpus = tuple(
        GpuStatus(f"g{at}", workloads=tuple(Workload("s", pod) for pod in pods)) for at, pods in enumerate(owners)
    )  # fmt: skip
    return NodePower(name, uid=name, resource_version=1, status=Status(gpus=gpus))


PODS = (pod("p", Role.PREFILL), pod("d", Role.DECODE))
NODES = (node("n1", ("p",), ("p",)), node("n2", ("d",), ("d",)))


def test_prompts_pay_for_prefill_and_answers_for_decode() -> None:
    assert prices(DRAWN, PODS, NODES, OWNERS) == {CHAT: {Role.PREFILL: 0.5, Role.DECODE: 5.0}}


@pytest.mark.parametrize(
    ("pods", "nodes", "drawn"),
    [
        ((*PODS, pod("d2", Role.DECODE)), NODES, replace(DRAWN, written_per_s={**DRAWN.written_per_s, ("s", "d2"): 80.0})),
        ((*PODS, pod("d2", Role.DECODE)), (*NODES, node("n1", ("d2",), ("d2",))), DRAWN),
        (PODS, (NODES[0], node("n2", ("d",), ())), DRAWN),
        (PODS, (NODES[0], node("n2", ("d",), ("d", "stranger"))), DRAWN),
        (PODS, NODES, replace(DRAWN, power_w={k: v for k, v in DRAWN.power_w.items() if k != ("n2", "g1")})),
        (PODS, NODES, replace(DRAWN, written_per_s={("s", "p"): 4.0})),
        (PODS, NODES, replace(DRAWN, written_per_s={("s", "p"): 4.0, ("s", "d"): 0.0})),
    ],
    ids=["a replica without watts", "a replica without tokens", "a GPU that is not held", "a GPU that is shared", "a GPU unread",
         "an engine that is not scraped", "no token"],
)  # fmt: skip
def test_a_role_whose_watts_and_tokens_are_apart_has_no_price(pods: tuple[Pod, ...], nodes: Any, drawn: Drawn) -> None:
    assert prices(drawn, pods, nodes, OWNERS) == {CHAT: {Role.PREFILL: 0.5}}


def test_who_ended_or_waits_or_has_neither_counts_nowhere() -> None:
    others = (
        pod("starting", Role.DECODE),
        pod("old", Role.DECODE, ended=True),
        pod("new", Role.DECODE, gated=True),
        pod("x", Role.DECODE, label="gone"),
    )
    assert prices(DRAWN, (*PODS, *others), NODES, OWNERS) == {CHAT: {Role.PREFILL: 0.5, Role.DECODE: 5.0}}


def test_a_replica_of_two_pods_has_one_engine_and_the_watts_of_both() -> None:
    leader, worker = pod("d", Role.DECODE, group="r0"), pod("d-1", Role.DECODE, group="r0")
    nodes = (*NODES, node("n3", ("d-1",), ("d-1",)))
    assert Role.DECODE not in prices(DRAWN, (PODS[0], leader, worker), nodes, OWNERS)[CHAT], "the worker's watts are not known"
    drawn = replace(DRAWN, power_w={**DRAWN.power_w, ("n3", "g0"): 200.0, ("n3", "g1"): 200.0})
    assert prices(drawn, (PODS[0], leader, worker), nodes, OWNERS)[CHAT][Role.DECODE] == 10.0


@pytest.fixture
def site() -> Iterator[Exporter]:
    """Two GPUs at 450 and 150 W, of which one changes its role all the time, and an engine that writes 60 tokens a second."""
    began_s = time.monotonic()

    def page() -> str:
        now_s = time.monotonic() - began_s
        role = "Decode" if int(now_s) % 2 else "Unassigned"
        return "\n".join((
            f'{names.M_GPU_POWER_WATTS}{{node="n2",gpu="g0",role="{role}"}} 450',
            f'{names.M_GPU_POWER_WATTS}{{node="n2",gpu="g1",role="Decode"}} 150',
            *(f'{names.M_VLLM_GENERATION_TOKENS}{{namespace="s",pod="d",engine="{rank}"}} {30 * now_s}' for rank in "01"),
            "",
        ))  # fmt: skip

    made = Exporter(page)
    yield made
    made.close()


async def test_the_price_is_integrated_by_a_real_prometheus(
    site: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "WINDOW", "6s")
    view: Any = SimpleNamespace(
        pods=SimpleNamespace(facts={"d": PODS[1]}), node_powers=SimpleNamespace(facts={"n2": NODES[1]}), owners=OWNERS
    )
    metrics = Metrics()
    metrics.show_cluster(CHAT, None, {})
    asked = {"namespace": "s", "cluster": "chat", "role": "decode"}

    def shown() -> float | None:
        return metrics.registry.get_sample_value(names.M_CLUSTER_JOULES_PER_TOKEN, asked)

    with ProcessGroup(tmp_path / "processes") as group:
        server = PrometheusServer(group, tmp_path / "prometheus")
        server.set_targets("twin", {site.address: {}})
        server.start()
        async with PrometheusClient(server.url, timeout_s=5.0) as client:
            meter = EnergyMeter(client, view, metrics)
            await meter.read()
            assert shown() is None, "nothing was there for a whole window yet"
            async with asyncio.timeout(60.0):
                while shown() is None:
                    await asyncio.sleep(0.2)
                    await meter.read()
            assert shown() == pytest.approx(10.0, rel=0.1), "600 W at 60 tokens a second"
            group.close()
            await meter.read()
            assert shown() is None
