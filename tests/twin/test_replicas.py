"""Pods become engines on assigned GPUs, and the load begins when a cluster is served and ends when it is gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_nvml_twin.faults import Fault
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from splitwatt_twin.arrivals import Arrival
from splitwatt_twin.config import parse
from splitwatt_twin.devices import NodeDevices
from splitwatt_twin.fleet import Engine, EngineFleet
from splitwatt_twin.gpus import NodeGpus
from splitwatt_twin.load import GONE_S, Load
from splitwatt_twin.meter_faults import MeterSeries
from splitwatt_twin.metrics import Snapshot, TwinCollector
from splitwatt_twin.replicas import Node, Replicas
from splitwatt_twin.requests import ClusterKey, PodKey, Request

CHAT = ClusterKey("serving", "chat")
MODEL = "meta-llama/Llama-3.1-70B-Instruct"


def pod(name: str, role: str, *, node: str = "n1", gpus: int = 4, ready: bool = True, **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name, "namespace": "serving", "uid": f"uid-{name}", "creationTimestamp": f"2026-01-01T00:00:0{name[-1]}Z",
            "labels": {"splitwatt.io/cluster": "chat", "splitwatt.io/role": role}, **meta,
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "engine", "args": [MODEL], "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }  # fmt: skip


class Lab:
    """Two nodes of eight GPUs; time is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 0.0
        self.done: list[Request] = []
        self.twins = {
            name: NodeTwin.create(folder / name, gpus=[H100_SXM] * 8, boot_id="b", node_name=name, manual_clock=True)
            for name in ("n1", "n2")
        }
        self.nodes = {}
        for name, twin in self.twins.items():
            gpus = NodeGpus(twin.path)
            self.nodes[name] = Node(gpus=gpus, devices=NodeDevices(gpus.uuids))
        self.touched: set[Engine] = set()
        self.fleet = EngineFleet(now_s=0.0, finished=self.done.append, touched=self.touched.add)
        self.replicas = Replicas(nodes=self.nodes, fleet=self.fleet, catch_up=lambda: self.to(self.now_s))

    def to(self, now_s: float) -> None:
        self.now_s = now_s
        while not self.fleet.run_until(now_s):
            pass
        for engine in self.touched:
            self.replicas.drive(engine)
        self.touched.clear()
        for node in self.nodes.values():
            node.gpus.flush()
            node.gpus.refresh()

    def held(self, node: str = "n1") -> dict[str, tuple[int, ...]]:
        return {key.name: gpus for key, gpus in self.nodes[node].devices.held.items()}

    def serving(self) -> list[str]:
        return sorted(view.pod.name for view in self.replicas.views())

    def demand_w(self, gpu: int) -> float:
        return self.twins["n1"].read_all()[gpu].demand_w

    def demanding(self, node: str = "n1") -> list[int]:
        return [gpu for gpu, truth in enumerate(self.twins[node].read_all()) if truth.demand_w > 100]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    for node in made.nodes.values():
        node.gpus.close()
    for twin in made.twins.values():
        twin.close()


def load(lab: Lab, **more: Any) -> Load:
    nodes = [{"name": "n1", "rack": "a1", "state_file": "s", "pod_resources_socket": "p"}]
    config = parse({"kubeconfig": "k", "listen": "127.0.0.1:0", "nodes": nodes, **more})
    return Load(config, fleet=lab.fleet, rows=None)


def test_pods_get_gpus_in_order_of_creation_whatever_the_order_of_the_list(lab: Lab) -> None:
    lab.replicas.synced([pod("c-3", "decode"), pod("b-2", "decode"), pod("a-1", "prefill"), pod("d-4", "decode", node="n2")])
    assert lab.held() == {"a-1": (0, 1, 2, 3), "b-2": (4, 5, 6, 7)}
    assert lab.held("n2") == {"d-4": (0, 1, 2, 3)}
    assert lab.serving() == ["a-1", "b-2", "d-4"]


def test_a_pod_that_waits_for_gpus_gets_those_of_one_that_ends(lab: Lab) -> None:
    lab.replicas.synced([pod("a-1", "prefill", gpus=8), pod("b-2", "decode", gpus=8)])
    assert lab.serving() == ["a-1"]
    lab.replicas.deleted(pod("a-1", "prefill", gpus=8))
    assert lab.serving() == ["b-2"] and lab.held() == {"b-2": tuple(range(8))}


def test_gpus_are_held_before_and_after_readiness_and_engines_are_not(lab: Lab) -> None:
    lab.replicas.changed(pod("a-1", "prefill", ready=False))
    assert lab.held() == {"a-1": (0, 1, 2, 3)} and lab.serving() == []
    lab.replicas.changed(pod("a-1", "prefill"))
    assert lab.serving() == ["a-1"]
    lab.replicas.changed(pod("a-1", "prefill", deletionTimestamp="2026-01-01T00:00:09Z"))
    assert lab.held() == {"a-1": (0, 1, 2, 3)} and lab.serving() == []
    lab.replicas.synced([])
    assert lab.held() == {}


def test_a_pod_recreated_under_its_name_is_another_one(lab: Lab) -> None:
    lab.replicas.changed(pod("a-1", "prefill"))
    lab.replicas.changed(pod("a-1", "prefill", uid="later", creationTimestamp="2026-01-01T00:00:09Z", node="n1"))
    assert lab.serving() == ["a-1"]
    lab.replicas.deleted(pod("a-1", "prefill"))  # the late deletion of the first one
    assert lab.serving() == ["a-1"]


def test_pods_elsewhere_are_no_concern(lab: Lab) -> None:
    lab.replicas.changed(pod("a-1", "prefill", node="elsewhere"))
    lab.replicas.deleted(pod("a-1", "prefill", node="elsewhere"))
    assert lab.serving() == [] and lab.replicas.clusters() == set()


def test_load_runs_on_the_assigned_gpus_only_and_ends_with_rest(lab: Lab) -> None:
    lab.replicas.synced([pod("a-1", "prefill"), pod("b-2", "decode", node="n2")])
    ours = load(lab, requests_per_s=20.0)
    ours.tend(lab.replicas.clusters(), 0.0)
    assert ours.origin_s is None, "no share is known yet"
    ours.set_share(CHAT, 1.0)
    ours.tend(lab.replicas.clusters(), 0.0)
    seen: set[tuple[int, ...]] = set()
    for i in range(400):
        lab.to(i * 0.02)
        seen.add(tuple(lab.demanding()))
        assert set(lab.demanding("n2")) <= {0, 1, 2, 3}
    assert seen == {(), (0, 1, 2, 3)}, "prefill is on and off, on its own GPUs"
    assert lab.demanding("n2") == [0, 1, 2, 3]
    assert len(lab.done) > 20
    lab.replicas.rest()
    lab.to(lab.now_s)
    assert lab.demanding() == lab.demanding("n2") == []


def test_a_mixed_pod_reads_and_writes_on_its_own_gpus(lab: Lab) -> None:
    lab.replicas.synced([pod("m0", "mixed")])
    lab.fleet.start_load(CHAT, iter([Arrival(1.0, 1000, 20)]), origin_s=0.0)
    lab.to(1.0)
    reading_w = lab.demand_w(0)
    while not lab.fleet.clusters[CHAT].mixed["m0"].decode.running:
        lab.to(lab.fleet.next_s)
    assert lab.demand_w(7) < lab.demand_w(0) < reading_w, "it draws what the prompt wants, then what the tokens want"
    lab.to(100.0)
    assert len(lab.done) == 1 and lab.demand_w(0) == lab.demand_w(7)
    [shown] = lab.replicas.views()
    assert (shown.role, shown.labels[:2]) == ("mixed", ["serving", "m0"])
    lab.replicas.gone(PodKey("serving", "m0"))
    assert not lab.fleet.clusters[CHAT].serving


def test_losing_a_gpu_moves_the_requests_and_its_return_brings_the_engine_back(lab: Lab) -> None:
    lab.replicas.synced([pod("a-1", "prefill"), pod("b-2", "decode"), pod("c-3", "decode", node="n2")])
    ours = load(lab, requests_per_s=10.0, duration_s=5, clusters={"serving/chat": {"share": 1.0}})
    ours.tend(lab.replicas.clusters(), 0.0)
    lab.to(3.0)
    lab.twins["n1"].set_fault(5, Fault.gpu_lost())
    lab.to(3.1)
    lab.replicas.check_health()
    assert lab.serving() == ["a-1", "c-3"] and lab.held()["b-2"] == (4, 5, 6, 7)
    lab.twins["n1"].clear_faults(5)
    lab.to(3.2)
    lab.replicas.check_health()
    assert lab.serving() == ["a-1", "b-2", "c-3"]
    lab.to(300.0)
    counts = lab.fleet.cluster(CHAT).counts
    assert counts.arrived == counts.finished == len(lab.done) > 20 and counts.requeued > 0


def test_a_cluster_that_comes_later_joins_the_curve_where_it_is(lab: Lab) -> None:
    ours = load(lab, requests_per_s=10, rate=[[0, 1.0], [50, 1.0], [50.1, 0.0]], clusters={"serving/chat": {"share": 1.0}})
    ours.tend(set(), 100.0)
    assert ours.origin_s is None
    lab.to(100.0)
    lab.replicas.synced([pod("a-1", "prefill"), pod("b-2", "decode")])
    ours.tend(lab.replicas.clusters(), 100.0)
    assert ours.origin_s == 100.0
    lab.to(400.0)
    assert lab.fleet.cluster(CHAT).counts.arrived == pytest.approx(500, rel=0.2)


def test_a_deleted_clusters_load_ends_after_a_while(lab: Lab) -> None:
    lab.replicas.synced([pod("a-1", "prefill"), pod("b-2", "decode")])
    ours = load(lab, requests_per_s=5, clusters={"serving/chat": {"share": 1.0}})
    ours.tend(lab.replicas.clusters(), 0.0)
    lab.to(5.0)
    ours.tend(lab.replicas.clusters(), 5.0)
    lab.replicas.synced([])
    lab.to(5.0 + GONE_S)
    ours.tend(lab.replicas.clusters(), 5.0 + GONE_S)
    assert lab.fleet.loaded(CHAT)
    lab.to(6.0 + GONE_S)
    ours.tend(lab.replicas.clusters(), 6.0 + GONE_S)
    assert not lab.fleet.loaded(CHAT)
    lab.to(100.0)
    counts, cluster = lab.fleet.cluster(CHAT).counts, lab.fleet.cluster(CHAT)
    assert cluster.in_system == 0
    assert counts.arrived == counts.finished + sum(counts.dropped.values()) and sum(counts.dropped.values()) > 0


def test_metrics_have_vllms_names_and_the_racks_meter(lab: Lab) -> None:
    lab.replicas.synced([pod("a-1", "prefill"), pod("b-2", "decode")])
    ours = load(lab, requests_per_s=20, clusters={"serving/chat": {"share": 1.0}})
    ours.tend(lab.replicas.clusters(), 0.0)
    lab.to(10.0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TwinCollector(lambda: Snapshot(
        replicas=lab.replicas.views(), clusters=lab.fleet.clusters.values(),
        meters=[MeterSeries({"rack": "a1"}, 12345.6)], load_s=10.0, late_s=0.0,
    )))  # fmt: skip
    samples = {
        (s.name, s.labels.get("pod", "")): s
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for s in family.samples
        if not s.name.endswith("_bucket")
    }
    prefill, decode = (
        {name.removeprefix("vllm:"): s.value for (name, p), s in samples.items() if p == which and name.startswith("vllm:")}
        for which in ("a-1", "b-2")
    )
    finished = lab.fleet.cluster(CHAT).counts.finished
    assert decode["request_success_total"] + prefill["request_success_total"] == finished == len(lab.done) > 0
    assert prefill["time_to_first_token_seconds_count"] == prefill["generation_tokens_total"] > finished
    assert decode["inter_token_latency_seconds_count"] == decode["generation_tokens_total"]
    assert decode["e2e_request_latency_seconds_count"] == decode["request_success_total"]
    assert decode["num_requests_running"] > 0 and 0 < decode["kv_cache_usage_perc"] < 1
    assert prefill["prompt_tokens_total"] > 1000 and {"num_requests_waiting", "kv_cache_usage_perc"} <= set(prefill)
    came = lab.fleet.cluster(CHAT).counts.arrived
    assert 0 < decode["time_to_first_token_seconds_count"] <= came, "once for each sequence, when its first step is done"
    assert decode["time_to_first_token_seconds_sum"] > 0
    labels = samples["vllm:num_requests_running", "b-2"].labels
    assert labels == {
        "namespace": "serving", "pod": "b-2", "cluster": "chat", "role": "decode", "model_name": MODEL,
    }  # fmt: skip
    assert samples["rack_power_watts", ""].value == 12345.6
    assert samples["splitwatt_twin_requests_total", ""].value == lab.fleet.cluster(CHAT).counts.arrived


def test_keys_read_as_kubernetes_writes_them() -> None:
    assert str(PodKey("a", "b")) == str(ClusterKey("a", "b")) == "a/b"
