"""Engines on simulated GPUs: the phase model's times under the GPUs' own caps, and demand that follows the work."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_core.gpus.phase_model import decode_load, decode_ms, demand_w, prefill_load, prefill_ms
from splitwatt_core.gpus.profiles import builtin, find
from splitwatt_core.protocol.contract import Phase
from splitwatt_nvml_twin.faults import Fault
from splitwatt_nvml_twin.handle import Demand, NodeTwin
from splitwatt_nvml_twin.models import A100_SXM, H100_SXM
from splitwatt_twin.arrivals import Arrival
from splitwatt_twin.cluster import KvLink
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import EngineFleet
from splitwatt_twin.gpus import GpuGroup, NodeGpus, UnknownGpuError
from splitwatt_twin.kv import kv_capacity_tokens, link_of, shape_of
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.stats import EngineStats

H100 = find(builtin(), H100_SXM.name)
KEY = ClusterKey("serving", "chat")


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[NodeTwin]:
    path = tmp_path / "n1.state"
    with NodeTwin.create(path, gpus=[H100_SXM] * 8, boot_id="b1", node_name="n1", manual_clock=True) as made:
        yield made


@pytest.fixture
def node(twin: NodeTwin) -> Iterator[NodeGpus]:
    gpus = NodeGpus(twin.path)
    yield gpus
    gpus.close()


def cap(twin: NodeTwin, node: NodeGpus, watts: int, *, gpus: range = range(8)) -> None:
    """By the out-of-band limiter: the enforced cap is what counts, whoever set it."""
    for gpu in gpus:
        twin.set_outside_limit(gpu, watts * 1000)
    node.refresh()


def serve_one(node: NodeGpus, *, prompt: int, output: int) -> Request:
    """One request through an otherwise idle prefill and decode replica of 8 GPUs each."""
    done: list[Request] = []
    fleet = EngineFleet(now_s=0.0, finished=done.append, touched=lambda _: None)
    group = GpuGroup(node, range(8))
    link = KvLink(bytes_per_token=1, gbit_per_s=400, remainder_s=0.005)
    fleet.add(KEY, PrefillEngine(name="p", pace=group, stats=EngineStats()), link=link)
    fleet.add(KEY, DecodeEngine(name="d", pace=group, kv_capacity_tokens=10**6, stats=EngineStats()), link=link)
    fleet.start_load(KEY, iter([Arrival(0.0, prompt, output)]), origin_s=0.0)
    while not done:
        fleet.run_until(fleet.next_s)
    return done[0]


def test_an_unloaded_replica_takes_the_phase_models_times(node: NodeGpus) -> None:
    assert H100 is not None
    request = serve_one(node, prompt=1020, output=129)
    steps_ms = sum(decode_ms(H100, 1, 1021 + i, 700) for i in range(128))
    assert request.ttft_s * 1000 == pytest.approx(prefill_ms(H100, 1020, 700))
    assert request.e2e_s * 1000 == pytest.approx(prefill_ms(H100, 1020, 700) + 5 + steps_ms)


def test_a_cap_slows_prefill_and_leaves_decode_alone_down_to_its_cliff(twin: NodeTwin, node: NodeGpus) -> None:
    assert H100 is not None
    decode = H100.phase(Phase.DECODE)
    assert decode is not None
    free = serve_one(node, prompt=2048, output=100)
    cap(twin, node, decode.natural_w)
    at_natural = serve_one(node, prompt=2048, output=100)
    cap(twin, node, decode.cliff_w)
    at_cliff = serve_one(node, prompt=2048, output=100)
    cap(twin, node, 200)
    below = serve_one(node, prompt=2048, output=100)
    assert free.ttft_s * 1.15 < at_natural.ttft_s < at_cliff.ttft_s < below.ttft_s
    assert at_cliff.ttft_s == pytest.approx(free.ttft_s * 1.3, rel=0.01)
    assert free.tbt_s == pytest.approx(at_natural.tbt_s)
    assert at_cliff.tbt_s is not None and free.tbt_s is not None and below.tbt_s is not None
    assert at_cliff.tbt_s < free.tbt_s * 1.05 and below.tbt_s > at_cliff.tbt_s * 1.3


def test_the_slowest_gpu_of_a_group_sets_the_pace(twin: NodeTwin, node: NodeGpus) -> None:
    group, other = GpuGroup(node, (0, 1, 2, 3)), GpuGroup(node, (4, 5, 6, 7))
    free_s = group.prefill_s(1000)
    cap(twin, node, 350, gpus=range(3, 4))
    assert group.prefill_s(1000) == pytest.approx(free_s * 1.3, rel=0.01)
    assert other.prefill_s(1000) == free_s


def test_a_smaller_group_takes_longer_in_proportion(node: NodeGpus) -> None:
    whole, half = GpuGroup(node, range(8)), GpuGroup(node, range(4))
    assert half.prefill_s(1000) == pytest.approx(2 * whole.prefill_s(1000))
    assert half.decode_s(8, 1000) == pytest.approx(2 * whole.decode_s(8, 1000))


def test_work_becomes_demand_and_demand_becomes_power(twin: NodeTwin, node: NodeGpus) -> None:
    assert H100 is not None
    group = GpuGroup(node, (0, 1))
    engine = PrefillEngine(name="p", pace=group, stats=EngineStats())
    engine.submit(Request(KEY, arrived_s=0.0, prompt_tokens=600, output_tokens=2), 0.0)
    group.work(engine)
    node.flush()
    wanted_w = demand_w(H100, Phase.PREFILL, prefill_load(H100, 600))
    assert [t.demand_w for t in twin.read_all()] == pytest.approx([wanted_w] * 2 + [95.0] * 6)
    twin.advance_clock(1.0)
    assert twin.read(0).power_w == pytest.approx(wanted_w, rel=0.01)
    engine.fire()
    group.work(engine)
    node.flush()
    twin.advance_clock(1.0)
    assert twin.read(0).power_w == pytest.approx(95.0, rel=0.01)


def test_decode_demand_follows_the_batch(twin: NodeTwin, node: NodeGpus) -> None:
    assert H100 is not None
    group = GpuGroup(node, range(8))
    engine = DecodeEngine(name="d", pace=group, kv_capacity_tokens=10**6, stats=EngineStats())
    for batch in (1, 30):
        while engine.running < batch:
            request = Request(KEY, arrived_s=0.0, prompt_tokens=100, output_tokens=900)
            request.token(0.0)
            engine.commit(request)
            engine.arrive(request, 0.0)
            if engine.waiting:
                engine.fire()
        group.work(engine)
        node.flush()
        assert twin.read(5).demand_w == pytest.approx(demand_w(H100, Phase.DECODE, decode_load(H100, batch)))


def test_demand_comes_back_after_a_reboot_and_stale_demand_ends_at_start(twin: NodeTwin, node: NodeGpus) -> None:
    group = GpuGroup(node, range(8))
    engine = PrefillEngine(name="p", pace=group, stats=EngineStats())
    engine.submit(Request(KEY, arrived_s=0.0, prompt_tokens=2000, output_tokens=2), 0.0)
    group.work(engine)
    node.flush()
    twin.reboot("b2")
    assert twin.read(0).demand_w < 100
    node.refresh()
    node.flush()
    assert twin.read(0).demand_w == pytest.approx(700)
    after_a_crash = NodeGpus(twin.path)
    after_a_crash.flush()
    assert twin.read(0).demand_w < 100
    after_a_crash.close()


def test_a_lost_gpu_makes_its_group_unfit(twin: NodeTwin, node: NodeGpus) -> None:
    group, other = GpuGroup(node, (0, 1)), GpuGroup(node, (2, 3))
    twin.set_fault(1, Fault.gpu_lost())
    node.refresh()
    assert not group.healthy and other.healthy
    twin.clear_faults(1)
    node.refresh()
    assert group.healthy


def test_a_gpu_without_a_timed_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.state"
    odd = dataclasses.replace(H100_SXM, name="Acme X1")
    NodeTwin.create(path, gpus=[odd], boot_id="b").close()
    with pytest.raises(UnknownGpuError, match="no built-in profile times a Acme X1"):
        NodeGpus(path)


def test_an_eight_gpu_group_holds_a_million_tokens_and_one_gpu_not_even_the_weights() -> None:
    shape = shape_of("meta-llama/Llama-3.1-70B-Instruct")
    assert shape.kv_bytes_per_token(grouped=True) == 327_680
    assert 1_200_000 < kv_capacity_tokens(shape, gpus=8, memory_bytes=80 * 2**30) < 1_500_000
    assert kv_capacity_tokens(shape, gpus=1, memory_bytes=80 * 2**30) < 0
    assert shape_of("somebody/else") is shape
    assert link_of(shape, profile_name="A100-SXM-80GB").remainder_s == 0.008
    assert link_of(shape, profile_name="H100-SXM").handoff_s(4000) == 0.005


def test_a_node_of_other_gpus_has_other_times(tmp_path: Path, node: NodeGpus) -> None:
    path = tmp_path / "a100.state"
    with NodeTwin.create(path, gpus=[A100_SXM] * 8, boot_id="b") as twin:
        twin.set_demand(0, Demand(power_w=300.0))
        a100 = NodeGpus(path)
        assert GpuGroup(a100, range(8)).prefill_s(1024) > 2 * GpuGroup(node, range(8)).prefill_s(1024)
        a100.close()
