"""The agent's loops end when they are told to, also in the very turn in which what they wait for comes; and a wedge is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from splitwatt_agent import workloads
from splitwatt_agent.metrics import LINK_WEDGED_S, WEDGED_S, health_of
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.state import ControlState
from splitwatt_agent.threads import Sweeper
from splitwatt_agent.workloads import WorkloadPoll
from splitwatt_client import Connection
from support.endings import Loop, ends_in_the_turn_of_its_wake

PATIENCE_S = 10.0
SETTLED_S = 0.1


def link_of(ticked_s: float = 0.0) -> NodePowerLink:
    control = SimpleNamespace(state=ControlState(ticked_s=ticked_s), offer=lambda *_, **__: None)
    return NodePowerLink(Connection(), control, node="n")  # type: ignore[arg-type]


def status_writer() -> Loop:
    link = link_of()
    return link.write(), link.report_changed


def sweep() -> Loop:
    release = threading.Event()

    def read(name: str) -> str:
        release.wait(PATIENCE_S)
        return name

    async def sweeps() -> None:
        sweeper: Sweeper[str] = Sweeper(stall_s=PATIENCE_S)
        while True:
            await sweeper.sweep(["a"], read)

    return sweeps(), release.set


@pytest.mark.parametrize("make", [status_writer, sweep], ids=lambda make: make.__name__)
async def test_an_end_that_meets_its_wake_is_not_missed(make: Callable[[], Loop]) -> None:
    await ends_in_the_turn_of_its_wake(make(), settled_s=SETTLED_S, patience_s=PATIENCE_S)


async def test_an_end_that_meets_kubelets_silence_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out and the cancellation in one turn: whatever a library makes of both, the poll ends."""
    monkeypatch.setattr(workloads, "ANSWER_S", 0.3)
    silent = await asyncio.start_unix_server(lambda reader, writer: None, tmp_path / "kubelet.sock")
    unasked: Any = SimpleNamespace(hear_owners=lambda _: None, miss_owners=lambda _: None)
    running = asyncio.create_task(WorkloadPoll(tmp_path / "kubelet.sock", unasked, port=unasked, slices=unasked).run())
    await asyncio.sleep(SETTLED_S)
    time.sleep(0.3)  # noqa: ASYNC251 - so that both are due in the next turn
    asyncio.get_running_loop().call_later(0.0, running.cancel)
    done, _ = await asyncio.wait({running}, timeout=3.0)
    silent.close()
    assert done == {running}
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_loop_that_no_longer_comes_round_is_told_by_its_name() -> None:
    now_s = time.monotonic()

    def health(*, control_ago_s: float = 0.0, link_ago_s: float = 0.0) -> str | None:
        link = link_of()
        link.round_s = now_s - link_ago_s
        return health_of(SimpleNamespace(state=ControlState(ticked_s=now_s - control_ago_s)), link)  # type: ignore[arg-type]

    assert health() is None
    assert "the control loop has not come round for" in (health(control_ago_s=WEDGED_S + 1.0) or "")
    assert health(link_ago_s=LINK_WEDGED_S / 2) is None
    assert "neither written nor tried for" in (health(link_ago_s=LINK_WEDGED_S + 1.0) or "")
