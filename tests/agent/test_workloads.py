"""What becomes of kubelet's odd answers: the last good one stands, and the agent goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server, Stream
from splitwatt_agent import workloads
from splitwatt_agent.nvml import PynvmlPort
from splitwatt_agent.owners import Owners
from splitwatt_agent.workloads import Slices, WorkloadPoll
from splitwatt_client import Connection
from splitwatt_client.podresources import (
    LIST_METHOD,
    DeviceOwner,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    response_of,
)
from splitwatt_core.protocol.contract import Workload

PATIENCE_S = 10.0


class AsItIs(CodecBase):
    """Bytes in, bytes out."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class Kubelet:
    """Answers with whatever bytes it is given."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def __mapping__(self) -> Mapping[str, Handler]:
        async def answer(stream: Stream[Any, Any]) -> None:
            await stream.recv_message()
            await stream.send_message(self._answer)

        return {LIST_METHOD: Handler(answer, Cardinality.UNARY_UNARY, ListPodResourcesRequest, ListPodResourcesResponse)}


class Heard:
    """What the control loop is told."""

    def __init__(self) -> None:
        self.missed: asyncio.Queue[str] = asyncio.Queue()

    gpus = ("GPU-a",)

    def miss_owners(self, why: str) -> None:
        self.missed.put_nowait(why)

    def hear_owners(self, owners: Owners) -> None:
        raise AssertionError(f"nothing was said, not {owners}")


class HangingPort(PynvmlPort):
    """A driver that does not return from the question for a name, as it does behind a GPU that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.goes_on = threading.Event()

    def gpu_of(self, name: str) -> str | None:
        self.asked += 1
        assert self.goes_on.wait(PATIENCE_S)
        return "GPU-a"


async def test_a_driver_that_hangs_on_a_name_is_asked_once_and_again_when_it_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "POLL_S", 0.01)
    monkeypatch.setattr(workloads, "NAMES_S", 0.05)
    answer = response_of({DeviceOwner("ns", "a"): ["nvidia0"]}, resource_name="nvidia.com/gpu").SerializeToString()
    server, heard, socket, port = Server([Kubelet(answer)], codec=AsItIs()), Heard(), tmp_path / "kubelet.sock", HangingPort()
    await server.start(path=str(socket))
    told: asyncio.Queue[Owners] = asyncio.Queue()
    monkeypatch.setattr(heard, "hear_owners", told.put_nowait)
    poll = WorkloadPoll(socket, heard, port=port, slices=Slices(Connection(None), node="n1"))
    polling = asyncio.create_task(poll.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(5):
                why = await heard.missed.get()
                assert why.startswith("NVML does not say which GPU a pod's device is (a question for a device's name answered")
            assert port.asked == 1
            port.goes_on.set()
            assert (await told.get()).by_gpu == {"GPU-a": (Workload("ns", "a"),)}
    finally:
        port.goes_on.set()
        polling.cancel()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"\x0a\x05\xff", b"\x0a\x04\x0a\x02\xff\xfe"])
async def test_an_answer_that_is_none_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(workloads, "POLL_S", 0.01)
    server, heard, socket = Server([Kubelet(answer)], codec=AsItIs()), Heard(), tmp_path / "kubelet.sock"
    await server.start(path=str(socket))
    poll = WorkloadPoll(socket, heard, port=PynvmlPort(), slices=Slices(Connection(None), node="n1"))
    polling = asyncio.create_task(poll.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                assert "kubelet's PodResources" in await heard.missed.get()
    finally:
        polling.cancel()
        server.close()
        await server.wait_closed()
