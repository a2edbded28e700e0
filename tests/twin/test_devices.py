"""Which GPUs a pod gets, what a pod says, and kubelet's answer over a real gRPC socket."""

from pathlib import Path
from typing import Any

from grpclib.client import Channel, UnaryUnaryMethod
from splitwatt_client.podresources import (
    LIST_METHOD,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    PluginDevice,
    devices_of,
)
from splitwatt_core.clusters import Role
from splitwatt_twin.devices import NodeDevices
from splitwatt_twin.podserver import PodResourcesServer
from splitwatt_twin.podview import view
from splitwatt_twin.requests import ClusterKey, PodKey

A, B, C = (PodKey("serving", name) for name in "abc")


def devices() -> NodeDevices:
    return NodeDevices([f"GPU-{i}" for i in range(8)])


def test_the_lowest_free_gpus_are_given_and_come_back() -> None:
    node = devices()
    assert node.assign(A, 2) == (0, 1)
    assert node.assign(B, 4) == (2, 3, 4, 5)
    assert node.assign(A, 2) == (0, 1), "asking again changes nothing"
    assert node.assign(C, 4) is None and C not in node.held, "all or nothing"
    assert node.release(A) == (0, 1) and node.release(A) == ()
    assert node.assign(C, 4) == (0, 1, 6, 7)
    assert node.device_ids(C) == ("GPU-0", "GPU-1", "GPU-6", "GPU-7") and node.device_ids(A) == ()
    assert node.assign(A, 0) is None


def pod(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "metadata": {
            "name": "chat-decode-0", "namespace": "serving", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "decode"},
        },
        "spec": {
            "nodeName": "n1",
            "containers": [
                {"name": "sidecar"},
                {"name": "engine", "args": ["org/model", "--port", "1"], "resources": {"limits": {"nvidia.com/gpu": "8"}}},
            ],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip
    for path, value in changes.items():
        target = raw
        *parents, last = path.split("__")
        for part in parents:
            target = target[part]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return raw


def test_a_pod_is_read_from_labels_and_its_gpu_container() -> None:
    seen = view(pod())
    assert seen is not None
    assert (seen.key, seen.cluster) == (PodKey("serving", "chat-decode-0"), ClusterKey("serving", "chat"))
    assert (seen.role, seen.node, seen.gpus, seen.container) == (Role.DECODE, "n1", 8, "engine")
    assert seen.model == "org/model" and seen.ready


def test_pods_that_run_no_engine_are_none() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"spec__nodeName": None},
        {"status__phase": "Succeeded"},
        {"status__phase": "Failed"},
        {"metadata__labels": {"splitwatt.io/cluster": "chat"}},
        {"metadata__labels": {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "router"}},
        {"metadata__labels": {"splitwatt.io/role": "decode"}},
        {"spec__containers": [{"name": "engine"}]},
    )
    for change in changes:
        assert view(pod(**change)) is None, change


def test_a_pod_without_ready_or_on_its_way_out_takes_no_requests() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"status__conditions": []},
        {"status__conditions": [{"type": "Ready", "status": "False"}]},
        {"metadata__deletionTimestamp": "2026-01-01T00:00:00Z"},
        {"status": None},
    )
    for change in changes:
        seen = view(pod(**change))
        assert seen is not None and not seen.ready, change


async def test_kubelets_answer_names_the_pods_gpus(tmp_path: Path) -> None:
    node, path = devices(), tmp_path / "deep" / "kubelet.sock"
    server = PodResourcesServer(node, path)
    await server.start()
    channel = Channel(path=str(path))
    ask = UnaryUnaryMethod(channel, LIST_METHOD, ListPodResourcesRequest, ListPodResourcesResponse)
    try:
        assert devices_of(await ask(ListPodResourcesRequest())) == ()
        node.assign(A, 2)
        node.assign(B, 1)
        held = [d for d in devices_of(await ask(ListPodResourcesRequest())) if isinstance(d, PluginDevice)]
        owners = {d.device_id: (d.owner.namespace, d.owner.pod) for d in held}
        assert owners == {"GPU-0": A, "GPU-1": A, "GPU-2": B}
    finally:
        channel.close()
        await server.stop()
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    """By the node's next server, which answers for its own pods."""
    path, node = tmp_path / "kubelet.sock", devices()
    node.assign(A, 1)
    first, second = PodResourcesServer(devices(), path), PodResourcesServer(node, path)
    await first.start()
    await second.start()
    channel = Channel(path=str(path))
    ask = UnaryUnaryMethod(channel, LIST_METHOD, ListPodResourcesRequest, ListPodResourcesResponse)
    try:
        held = devices_of(await ask(ListPodResourcesRequest()))
        assert [(d.owner.namespace, d.owner.pod) for d in held] == [A]
    finally:
        channel.close()
        await second.stop()
        await first.stop()
