"""The twin's process on a real API server: pods on kwok nodes become load on simulated GPUs, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpclib.client import Channel, UnaryUnaryMethod
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_client.podresources import (
    LIST_METHOD,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    PluginDevice,
    devices_of,
)
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from splitwatt_nvml_twin.plant import RackPlant
from support.asking import HTTP
from support.waiting import PATIENCE_S, eventually


class Lab:
    """Two kwok nodes of eight simulated H100s, and the twin's process."""

    def __init__(self, plane: ControlPlane, folder: Path, namespace: str) -> None:
        self.plane, self.folder, self.namespace = plane, folder, namespace
        self.names = [f"twin-{uuid.uuid4().hex[:8]}" for _ in range(2)]
        specs = [nodes.NodeSpec(name, rack="t1") for name in self.names]
        self.twins = [
            NodeTwin.create(folder / f"{i}.state", gpus=[H100_SXM] * 8, boot_id=spec.boot_id, node_name=spec.name)
            for i, spec in enumerate(specs)
        ]
        nodes.create(plane, specs)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def config(self) -> Path:
        path = self.folder / "twin.json"
        path.write_text(json.dumps({
            "kubeconfig": str(self.plane.kubeconfig), "listen": f"127.0.0.1:{self.port}", "seed": 7,
            "requests_per_s": 8.0, "rate": [[0, 1.0], [30, 1.5]], "results": str(self.folder / "results.jsonl"),
            "meter": {"noise_percent": 0.5, "delay_s": 0.3},
            "nodes": [
                {"name": name, "rack": "t1", "state_file": str(twin.path), "pod_resources_socket": str(self.socket(i))}
                for i, (name, twin) in enumerate(zip(self.names, self.twins, strict=True))
            ],
        }))  # fmt: skip
        return path

    def socket(self, node: int) -> Path:
        return self.folder / f"{node}.sock"

    def start(self) -> None:
        with (self.folder / "twin.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "splitwatt_twin", "--config", str(self.config())], stderr=log)
        eventually("the twin answers", lambda: self.answers() or self.process is None or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return (self.folder / "twin.log").read_text()

    def answers(self) -> bool:
        try:
            return HTTP.get(f"http://127.0.0.1:{self.port}/healthz").is_success
        except httpx.TransportError:
            return False

    def metric(self, name: str, **labels: str) -> list[float]:
        """Values of the series that have these labels."""
        text = HTTP.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float:
        return sum(self.metric(name, **labels))

    def pod(self, name: str, role: str, *, node: int, gpus: int) -> None:
        manifest: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": self.namespace,
                "labels": {"splitwatt.io/cluster": "chat", "splitwatt.io/role": role},
            },
            "spec": {
                "nodeName": self.names[node],
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "engine", "image": "engine:emulated", "args": ["meta-llama/Llama-3.1-70B-Instruct"],
                    "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
                }],
            },
        }  # fmt: skip
        self.plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    async def owners(self, node: int) -> dict[str, str]:
        channel = Channel(path=str(self.socket(node)))
        try:
            ask = UnaryUnaryMethod(channel, LIST_METHOD, ListPodResourcesRequest, ListPodResourcesResponse)
            held = devices_of(await ask(ListPodResourcesRequest(), timeout=10))
        finally:
            channel.close()
        ours = [d for d in held if isinstance(d, PluginDevice) and d.owner.namespace == self.namespace]
        return {device.device_id: device.owner.pod for device in ours}

    def demanding(self, node: int) -> list[int]:
        return [gpu for gpu, truth in enumerate(self.twins[node].read_all()) if truth.demand_w > 100]

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for twin in self.twins:
            twin.close()
        self.plane.kubectl("delete", "node", *self.names, "--wait=false")


@pytest.fixture
def lab(control_plane: ControlPlane, namespace: str) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="twin-"))  # short: a unix socket's path has 107 bytes
    made = Lab(control_plane, folder, namespace)
    yield made
    made.end()
    shutil.rmtree(folder)


async def test_pods_are_served_moved_and_let_go(lab: Lab) -> None:
    lab.start()
    lab.pod("chat-prefill-0", "prefill", node=0, gpus=8)
    assert lab.metric("splitwatt_twin_load_seconds") == [], "a cluster without decode replicas is not served"
    lab.pod("chat-decode-0", "decode", node=1, gpus=4)
    lab.pod("chat-decode-1", "decode", node=1, gpus=4)

    eventually("ten requests are done", lambda: lab.total("vllm:request_success_total") >= 10)
    assert lab.total("vllm:time_to_first_token_seconds_count", pod="chat-prefill-0", role="prefill") >= 10
    assert lab.demanding(1), "decode draws power"
    uuids = lab.twins[0].uuids, lab.twins[1].uuids
    assert await lab.owners(0) == dict.fromkeys(uuids[0], "chat-prefill-0")
    halves = await lab.owners(1)
    assert sorted(halves) == sorted(uuids[1]) and set(halves.values()) == {"chat-decode-0", "chat-decode-1"}
    assert len({halves[uuid] for uuid in uuids[1][:4]}) == 1, "a group is the lowest free GPUs"

    # The meter is above what the GPUs draw, by losses and non-GPU watts: between all idle and all at their limit.
    eventually("the meter shows", lambda: lab.total("rack_power_watts", rack="t1") > 0)
    idle_w, most_w = (RackPlant().true_w([8 * gpu_w] * 2) for gpu_w in (H100_SXM.idle_w, 770.0))
    assert idle_w * 1.05 < lab.total("rack_power_watts", rack="t1") < most_w

    # A replica is deleted: its GPUs come free, its requests go elsewhere, its series end.
    lab.plane.kubectl("delete", "pod", "chat-decode-0", "-n", lab.namespace, "--wait=true")
    eventually("its series end", lambda: not lab.metric("vllm:num_requests_running", pod="chat-decode-0"))
    assert set((await lab.owners(1)).values()) == {"chat-decode-1"}
    before = lab.total("vllm:request_success_total", pod="chat-decode-1")
    eventually("others are served", lambda: lab.total("vllm:request_success_total", pod="chat-decode-1") >= before + 10)
    lab.pod("chat-decode-2", "decode", node=1, gpus=4)
    eventually("the new one is served", lambda: lab.total("vllm:generation_tokens_total", pod="chat-decode-2") > 0)
    assert set((await lab.owners(1)).values()) == {"chat-decode-1", "chat-decode-2"}

    # The end: idle GPUs, no sockets, whole results.
    assert lab.process is not None
    lab.process.send_signal(signal.SIGTERM)
    assert lab.process.wait(timeout=PATIENCE_S) == 0, lab.log
    assert lab.demanding(0) == lab.demanding(1) == []
    assert not lab.socket(0).exists() and not lab.socket(1).exists()
    lines = [json.loads(line) for line in (lab.folder / "results.jsonl").read_text().splitlines()]
    summary = json.loads((lab.folder / "results.summary.json").read_text())[f"{lab.namespace}/chat"]
    assert summary["finished"] == len(lines) >= 20 and summary["dropped"] == {}
    assert summary["arrived"] == summary["finished"] + summary["unfinished"]
    assert abs(lines[-1]["t_s"] - time.time()) < 60 and all(line["ttft_ms"] > 10 for line in lines)
    assert "Traceback" not in lab.log


async def test_a_restarted_twin_finds_its_pods_again(lab: Lab) -> None:
    lab.pod("chat-prefill-0", "prefill", node=0, gpus=8)
    lab.pod("chat-decode-0", "decode", node=1, gpus=8)
    lab.start()
    eventually("requests are done", lambda: lab.total("vllm:request_success_total") >= 3)
    assert lab.process is not None
    lab.process.kill()
    lab.process.wait()
    assert lab.socket(0).exists()
    lab.start()
    eventually("requests are done again", lambda: lab.total("vllm:request_success_total") >= 3)
    assert set((await lab.owners(0)).values()) == {"chat-prefill-0"}


def _fails(folder: Path, raw: dict[str, Any]) -> str:
    path = folder / "bad.json"
    path.write_text(json.dumps(raw))
    ended = subprocess.run(
        [sys.executable, "-m", "splitwatt_twin", "--config", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    return ended.stderr


def test_bad_input_ends_with_one_sentence_before_anything_starts(tmp_path: Path) -> None:
    state = tmp_path / "n.state"
    NodeTwin.create(state, gpus=[H100_SXM], boot_id="b").close()
    with tempfile.TemporaryDirectory(prefix="twin-") as short:
        socket_path = f"{short}/s.sock"
        node = {"name": "n", "rack": "r", "state_file": str(state), "pod_resources_socket": socket_path}
        raw = {"kubeconfig": str(tmp_path / "none"), "listen": "127.0.0.1:0", "nodes": [node]}
        bad_trace = tmp_path / "trace.csv"
        bad_trace.write_text("TIMESTAMP,tokens\n1,2\n")
        assert "lacks the columns ContextTokens, GeneratedTokens" in _fails(tmp_path, {**raw, "trace": str(bad_trace)})
        assert "unknown key speed" in _fails(tmp_path, {**raw, "speed": 1})
        assert "kubeconfig" in _fails(tmp_path, raw)
        nowhere = {**node, "state_file": str(tmp_path / "absent")}
        assert "absent" in _fails(tmp_path, {**raw, "nodes": [nowhere]})
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            sentence = _fails(tmp_path, {**raw, "listen": f"127.0.0.1:{port}"})
            assert str(port) in sentence and "Traceback" not in sentence
        assert not Path(socket_path).exists()


def test_a_low_priority_cluster_gets_half_the_rate(lab: Lab, crds: ControlPlane) -> None:
    role = {"replicas": 1, "gpusPerReplica": 8}
    manifest = {
        "apiVersion": "splitwatt.io/v1alpha1", "kind": "InferenceCluster",
        "metadata": {"name": "chat", "namespace": lab.namespace},
        "spec": {
            "model": {"name": "meta-llama/Llama-3.1-70B-Instruct"}, "engine": {"type": "Emulated"}, "priority": "Low",
            "prefill": role, "decode": role,
        },
    }  # fmt: skip
    crds.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    lab.start()
    lab.pod("chat-prefill-0", "prefill", node=0, gpus=8)
    lab.pod("chat-decode-0", "decode", node=1, gpus=8)
    eventually("the load begins", lambda: f"cluster {lab.namespace}/chat is served: 4.00 requests/s" in lab.log)
