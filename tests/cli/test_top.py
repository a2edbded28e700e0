"""`splitwatt top`: numbers of Prometheus stand before those of statuses, and what nobody knows is no zero."""

from __future__ import annotations

import argparse

import pytest
from splitwatt_cli import access
from splitwatt_cli.top.command import picture
from splitwatt_cli.top.view import Samples, moment_of
from support.cli_objects import budget, gpu, healthy, node_power


def test_prometheus_stands_before_statuses_budget_by_budget() -> None:
    moment = moment_of(healthy(), Samples({"rack-a1": {"draw": 25_000.0}}, {"Decode": 600.0}))
    rack = next(b for b in moment.budgets if b.name == "rack-a1")
    row_a = next(b for b in moment.budgets if b.name == "row-a")
    assert (rack.draw_w, row_a.draw_w) == (25_000.0, 18_000) and moment.source == "Prometheus"
    assert moment_of(healthy(), Samples()).source == "statuses, up to 10 s old"


def test_caps_are_summed_on_every_level_and_roles_have_their_watts() -> None:
    nodes = (node_power("n1", gpu("1"), gpu("2"), budgets=("rack-a1", "row-a")), node_power("n2", gpu("3", phase="Prefill")))
    moment = moment_of(healthy(node_powers=nodes), Samples(roles_w={"Decode": 500.0}))
    assert {b.name: b.caps_w for b in moment.budgets} == {"row-a": 700.0, "rack-a1": 1050.0}
    assert [(r.role, r.gpus, r.cap_w, r.draw_w) for r in moment.roles] == [
        ("Decode", 2, 700.0, 500.0),
        ("Prefill", 1, 350.0, None),
    ]


def test_a_draw_that_nobody_knows_is_no_zero(capsys: pytest.CaptureFixture[str]) -> None:
    blind = budget("rack-a1", rack="a1", status={"measuredWatts": None})
    access.console(argparse.Namespace()).print(picture(moment_of(healthy(budgets=(blind,)), Samples())))
    out = capsys.readouterr().out
    assert "unknown" in out and "0%" not in out and "Decode" in out
