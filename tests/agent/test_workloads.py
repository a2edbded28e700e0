"""What becomes of kubelet's odd answers: the last good one stands, and the agent goes on."""

from __future__ import annotations

import asyncio
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
from splitwatt_client.podresources import LIST_METHOD, ListPodResourcesRequest, ListPodResourcesResponse

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
