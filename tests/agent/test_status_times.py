"""When the agent writes its object's status: acknowledgements at once, the rest once a second, a sign of life once a minute."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_agent.conditions import Report
from splitwatt_agent.node_power import SPACING_S, URGENT_SPACING_S, due_s
from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import SIGN_OF_LIFE_S, GpuStatus, Health
from splitwatt_core.protocol.node_account import AGENT_STATUS_SILENT_S

LINE = GpuStatus(uuid="a", acked_grant=7, management_w=400, enforced_w=400, min_w=200, max_w=700, default_w=700, model="X")
STANDS = Report("u", 1, "b", (LINE,), (Condition("Ready", True, "Ready", "as it was"),))


def test_nothing_new_is_said_once_a_minute() -> None:
    assert due_s(STANDS, written=STANDS, written_s=100.0) == 160.0
    assert due_s(None, written=STANDS, written_s=100.0) == 160.0, "a session that begins anew has nothing to say yet"


def test_a_sign_of_life_that_a_busy_api_server_delays_is_still_in_time() -> None:
    assert SIGN_OF_LIFE_S + 15.0 <= AGENT_STATUS_SILENT_S


def test_the_first_status_is_due_at_once() -> None:
    assert due_s(STANDS, written=None, written_s=float("-inf")) == float("-inf")


@pytest.mark.parametrize(
    "report",
    [
        replace(STANDS, observed_uid="v"),
        replace(STANDS, observed_term=2),
        replace(STANDS, boot_id="c"),
        replace(STANDS, gpus=(replace(LINE, acked_grant=8),)),
        replace(STANDS, gpus=(replace(LINE, health=Health.LOST),)),
        replace(STANDS, gpus=()),
    ],
)
def test_what_the_ledger_waits_for_is_written_at_once(report: Report) -> None:
    assert due_s(report, written=STANDS, written_s=100.0) == 100.0 + URGENT_SPACING_S


@pytest.mark.parametrize(
    "report",
    [replace(STANDS, gpus=(replace(LINE, enforced_w=390),)), replace(STANDS, conditions=())],
)
def test_anything_else_waits_for_a_second_to_pass(report: Report) -> None:
    assert due_s(report, written=STANDS, written_s=100.0) == 100.0 + SPACING_S
