"""Status writes whose answer is lost: what the object says then is not known, and the report is written until it is."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from splitwatt_agent import node_power
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.session import Granted, Standing
from splitwatt_agent.state import ControlState, closed, session_began
from splitwatt_client import OutcomeUnknown
from splitwatt_core.protocol.contract import GpuStatus, NodePower

PATIENCE_S = 5.0


class Api:
    """Stores every status; of the second write the answer is lost."""

    def __init__(self) -> None:
        self.acked: list[int] = []
        self.asked: asyncio.Queue[int] = asyncio.Queue()

    async def apply(self, manifest: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.acked.append(manifest["status"]["gpus"][0]["ackedGrant"])
        self.asked.put_nowait(len(self.acked))
        if len(self.acked) == 2:
            raise OutcomeUnknown("the answer broke off")
        return manifest

    async def get(self, *_: Any) -> dict[str, Any]:
        raise OutcomeUnknown("no answer")


def reports(acked: int) -> ControlState:
    line = GpuStatus("a", acked_grant=acked, management_w=400, enforced_w=400, min_w=200, max_w=700, default_w=700)
    state = dataclasses.replace(session_began(ControlState(ticked_s=0.0), boot_id="b"), observed=NodePower("n", "u", 1))
    return closed(dataclasses.replace(state, standing=Standing("u", 1, (line,), {"a": Granted(400, "Decode")})), 0.0)


async def test_an_acknowledgement_that_may_have_landed_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU was reset since. The report says again what it said before, and the object may say otherwise."""
    monkeypatch.setattr(node_power, "URGENT_SPACING_S", 0.0)
    api, control = Api(), SimpleNamespace(state=reports(0), offer=lambda *_, **__: None)
    link = NodePowerLink(api, control, node="n")  # type: ignore[arg-type]
    writing = asyncio.create_task(link.write())
    async with asyncio.timeout(PATIENCE_S):
        for acked in (7, 0, 0):
            await api.asked.get()
            control.state = reports(acked)
            link.report_changed()
    await asyncio.sleep(0.2)
    writing.cancel()
    assert api.acked == [0, 7, 0]
    assert link.writes == {"Done": 2, "Unknown": 1}
