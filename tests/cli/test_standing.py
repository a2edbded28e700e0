"""`splitwatt status`: what is wrong comes first, once, and only where it is."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
from splitwatt_cli import access
from splitwatt_cli.conditions import severity_of
from splitwatt_cli.finding import Gravity
from splitwatt_cli.status.command import show
from splitwatt_cli.status.standing import budget_rows, standing_of
from splitwatt_core.conditions import condition_from_wire
from support.cli_objects import NOW_S, budget, cluster, healthy, lease, node_power, row


def lines(**parts: Any) -> list[str]:
    return [f.line for f in standing_of(healthy(**parts)).findings]


def test_a_healthy_site_has_nothing_wrong() -> None:
    standing = standing_of(healthy())
    assert standing.findings == [] and standing.wire()["healthy"] is True
    assert [b.name for b in standing.budgets] == ["row-a", "rack-a1"] and standing.budgets[1].depth == 1
    assert standing.operator.active and standing.operator.term == 3


def test_the_worst_stands_first_whatever_is_found_first() -> None:
    late = budget("a", conditions=[row("CapsEnforced", False, "AcknowledgementsLate", "2 GPUs late")])
    over = budget("b", conditions=[row("WithinBudget", False, "MeasuredAboveLimit", "measured 27000 W, limit 26000 W")])
    found = standing_of(healthy(budgets=(late, over))).findings
    assert [(f.severity, f.subject) for f in found] == [(Gravity.BROKEN, "PowerBudget b"), (Gravity.WARNING, "PowerBudget a")]
    assert found[0].fix == "splitwatt explain budget b"


def test_a_row_does_not_repeat_what_its_rack_says_but_its_own_limit_it_does() -> None:
    late = [row("CapsEnforced", False, "GpusNotCapped", "1 GPU: GPU-1")]
    parts = (budget("row-a", conditions=late), budget("rack-a1", rack="a1", parent="row-a", conditions=late))
    assert lines(budgets=parts) == ["PowerBudget rack-a1: 1 GPU: GPU-1"]
    over = [row("WithinBudget", False, "ChargedAboveLimit", "charged 30000 W")]
    both = (budget("row-a", conditions=over), budget("rack-a1", rack="a1", parent="row-a", conditions=over))
    assert len(lines(budgets=both)) == 2


def test_words_that_two_conditions_of_an_object_share_are_said_once() -> None:
    power = [
        row("PowerAdmitted", False, "InsufficientPower", "too few watts"),
        row("Ready", False, "WaitingForPower", "too few watts"),
    ]
    found = standing_of(healthy(clusters=(cluster(conditions=power),))).findings
    assert [(f.check, f.severity) for f in found] == [("WaitingForPower", Gravity.BROKEN)]


def test_no_operator_is_broken_and_a_paused_node_is_a_note() -> None:
    assert standing_of(healthy(lease=lease(renewed_s=NOW_S - 40))).findings[0].check == "NobodyReigns"
    short = lease(renewed_s=NOW_S - 20)  # or this machine's clock is ahead by as much
    short["spec"]["leaseDurationSeconds"] = 3
    assert standing_of(healthy(lease=short)).operator.active
    assert standing_of(healthy(lease=None)).findings[0].check == "NobodyReigns"
    paused = node_power("n1", conditions=[row("Ready", False, "Paused", "stepped aside")])
    assert [f.severity for f in standing_of(healthy(node_powers=(paused,))).findings] == [Gravity.NOTE]


def test_what_cannot_be_read_is_said_and_never_taken_for_nothing() -> None:
    assert lines(budgets=(), unread={"powerbudgets": "forbidden"}) == ["powerbudgets could not be read: forbidden"]


def test_a_node_without_an_agent_is_broken() -> None:
    assert lines(node_powers=(node_power("n9", agent=False),)) == ["nodes: no agent has ever answered on 1 node: n9"]


@pytest.mark.parametrize(
    ("given", "severity"),
    [
        (row("Ready", True, "Holding"), None),
        (row("Ready", True, "NodesGone"), Gravity.WARNING),
        (row("Ready", False, "OverlappingSelectors"), Gravity.BROKEN),
        (row("Ready", False, "Adopting"), Gravity.NOTE),
        (row("ForeignLimit", True, "SetByAnother"), Gravity.WARNING),
        (row("RollingOut", True, "PairsKept"), Gravity.NOTE),
        (row("SLOAttained", None, "NoData"), None),
        (row("Observing", True, "WouldCutNothing"), Gravity.NOTE),
        (row("Observing", True, "WouldCut"), Gravity.NOTE),
        (row("Observing", True, "WouldHoldPods"), Gravity.NOTE),
        (row("CapsReleased", True, "Released"), None),
        (row("CapsReleased", False, "Releasing"), Gravity.NOTE),
        (row("CapsReleased", False, "RaisesHeld"), Gravity.WARNING),
        (row("CapsReleased", False, "LimitInTheWay"), Gravity.WARNING),
        (row("CapsReleased", False, "NotReached"), Gravity.WARNING),
        (row("CapsReleased", False, "CapsLeft"), Gravity.WARNING),
        (row("CapsReleased", False, "PodsOnCapsLeft"), Gravity.WARNING),
        (row("OfALaterRelease", False, "Whatever"), Gravity.WARNING),
    ],
)
def test_a_condition_is_as_bad_as_its_type_and_reason(given: dict[str, Any], severity: Gravity | None) -> None:
    assert severity_of(condition_from_wire(given)) is severity


def test_a_charge_above_the_limit_is_no_fault_while_a_tree_observes_and_a_draw_above_it_is() -> None:
    def told(reason: str, *more: dict[str, Any]) -> tuple[list[tuple[str, Gravity]], str]:
        conditions = [row("Ready", True, "Observing", "x"), row("WithinBudget", False, reason, "44800 W, limit 26000 W"), *more]
        standing = standing_of(healthy(budgets=(budget("rack-a1", rack="a1", conditions=conditions),)))
        return [(f.check, f.severity) for f in standing.findings], standing.budgets[0].ready

    observing = row("Observing", True, "WouldCut", "in Strict 16 of 64 GPUs would be cut by 1760 W in all")
    found, ready = told("ChargedAboveLimit", observing)
    assert found == [("ChargedAboveLimit", Gravity.NOTE), ("WouldCut", Gravity.NOTE)] and ready == "Observing"
    assert told("MeasuredAboveLimit", observing)[0][0] == ("MeasuredAboveLimit", Gravity.BROKEN)
    assert told("ChargedAboveLimit")[0] == [("ChargedAboveLimit", Gravity.BROKEN)], "Strict promises it"


def test_budgets_in_a_circle_are_shown_all_the_same() -> None:
    rows = budget_rows([budget("a", parent="b"), budget("b", parent="a"), budget("c", parent="gone")])
    assert sorted(r.name for r in rows) == ["a", "b", "c"] and len(rows) == 3


def test_one_screen_has_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show(access.console(argparse.Namespace(output="text")), standing_of(healthy()))
    out = capsys.readouterr().out
    for word in ("nothing is wrong", "rack-a1", "26000", "18000", "serving/chat", "2 of 2 GPUs obey", "op-1 is active"):
        assert word in out


def test_the_shape_of_json_is_the_documented_one(capsys: pytest.CaptureFixture[str]) -> None:
    access.print_json("Status", standing_of(healthy()).wire())
    told = json.loads(capsys.readouterr().out)
    assert told["apiVersion"] == "cli.splitwatt.io/v1alpha1" and told["kind"] == "Status"
    assert set(told) == {"apiVersion", "kind", "healthy", "findings", "operator", "budgets", "nodes", "clusters"}
    assert set(told["budgets"][0]) == {
        "name", "parent", "limitWatts", "limitInForceWatts", "chargeWatts", "measuredWatts", "posture", "nodes", "gpus", "ready"
    }  # fmt: skip
