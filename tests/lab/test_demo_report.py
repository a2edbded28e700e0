"""What a demo's report says in words, and that its view shows budgets in any window."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from splitwatt_lab import figures
from splitwatt_lab.judge import BudgetLook, Count
from splitwatt_lab.live import WIDE_COLUMNS, LiveView
from splitwatt_lab.report import events_since, in_words, write_report
from splitwatt_lab.run import Happening, Live, PassResult
from splitwatt_lab.scenario import Timeline
from splitwatt_lab.wiring import Feed, NodeLook, Wiring

CHAT = "serving/chat"


def look(t_s: float, *, capped_w: float, limit_w: int = 26_000, in_force: bool = True) -> BudgetLook:
    return BudgetLook(t_s, "rack-a1", true_w=20_000.0, capped_w=capped_w, limit_w=limit_w, in_force=in_force)


def result(*, ttft_ms: float = 400.0, **changed: Any) -> PassResult:
    request = {"namespace": "serving", "cluster": "chat", "t_s": 105.0, "output": 100, "prompt": 10}
    given: dict[str, Any] = {
        "policy": "PhaseAware", "started_s": 100.0, "ended_s": 160.0, "counts": {"rack-a1": Count()},
        "samples": [look(99.0, capped_w=34_896.0, in_force=False), look(101.0, capped_w=25_900.0)], "decisions": [],
        "requests": [{**request, "ttft_ms": ttft_ms, "tbt_ms": 17.0, "e2e_ms": 900.0}], "caps_by_role": {},
        "happenings": [Happening(12.0, "rack-a1: limit cut")],
        "events": [
            {"time": "1970-01-01T00:01:50.000000Z", "about": "PowerBudget/a1", "type": "", "reason": "B", "message": "later"},
            {"time": "1970-01-01T00:01:35.000000Z", "about": "PowerBudget/a1", "type": "", "reason": "A", "message": "first"},
        ],
        "adoption_s": {}, "patch_to_enforced_s": 0.15, "energy_j": 1200.0, "gpus": 32, "violations_s": 0.0,
        "slos": {CHAT: {"ttft_ms": 500, "tbt_ms": 50}},
    }  # fmt: skip
    return PassResult(**{**given, **changed})


def test_a_run_that_kept_everything_says_so_with_three_numbers() -> None:
    words = in_words(figures.as_json(result()))
    assert words["good"] and words["verdict"].startswith("Every power budget was kept for all 60 s")
    assert words["verdict"].endswith("Of 2 promised latencies 2 were kept.")
    assert [value for value, _ in words["numbers"]] == ["0.0 s", "2 of 2", "12.0 J"]
    assert words["without"] == [{"budget": "rack-a1", "nameplate_w": 34_896, "limit_w": 26_000, "over_w": 8_896}]


def test_a_promise_that_was_missed_is_named_and_costs_no_budget() -> None:
    words = in_words(figures.as_json(result(ttft_ms=900.0)))
    assert words["good"]
    assert words["verdict"].endswith("Of 2 promised latencies 1 were kept; missed: serving/chat TTFT 900.0 of 500 ms.")


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({"violations_s": 0.02}, "A power budget was exceeded for 0.1 s: Splitwatt failed."),
        ({"problems": ["serving/chat never ran"]}, "This run proves nothing: serving/chat never ran"),
        ({"violations_s": 3.0, "problems": ["blind"]}, "This run proves nothing: blind"),
    ],
)
def test_a_run_that_failed_or_proves_nothing_is_not_praised(changed: dict[str, Any], begins: str) -> None:
    words = in_words(figures.as_json(result(**changed)))
    assert not words["good"] and words["verdict"].startswith(begins)


def test_events_come_in_their_order_with_seconds_since_the_first_request() -> None:
    assert [(event["reason"], event["at_s"]) for event in events_since(result().events, 100.0)] == [("A", -5.0), ("B", 10.0)]


def test_the_page_is_dated_and_says_that_traffic_was_invented(tmp_path: Any) -> None:
    site = {"racks": 2, "nodes_per_rack": 4, "gpus_per_node": 8, "mixed": 0, "minutes": 1, "seed": 1}
    page = write_report([result()], tmp_path, site={**site, "trace": "seeded generator"}).read_text()
    assert "traffic was invented by a generator" in page and "Splitwatt 0." in page
    assert "34896 W behind rack-a1, whose limit is 26000 W (+8896 W)" in page
    assert "traffic was invented" not in write_report([result()], tmp_path, site={**site, "trace": "mine.csv"}).read_text()


def drawn(width: int, height: int) -> list[str]:
    """The view's lines in a window of that size, of a row and two racks."""
    said = io.StringIO()
    console = Console(file=said, width=width, height=height, force_terminal=False)
    names = ("row-a", "rack-a1", "rack-a2")
    view = SimpleNamespace(limit_w=20_800, status={"posture": "Normal"})
    latest = {name: BudgetLook(1.0, name, 17_800.0, 20_700.0, 20_800, True) for name in names}
    looks = {"a1-n1": NodeLook(power_w=3000.0, enforced_w=2800.0, enforced_each_w=(350,) * 8)}
    judge = SimpleNamespace(
        latest=latest, views=dict.fromkeys(names, view), counts={}, looks=looks, silent_s=0.0,
        wiring=Wiring([Feed("row-a"), Feed("rack-a1", "row-a", ()), Feed("rack-a2", "row-a", ())]),
    )  # fmt: skip
    site = SimpleNamespace(node_specs=[SimpleNamespace(name="a1-n1", rack="a1")])
    happenings = [Happening(72.0, "rack-a1: limit cut from 26000 W to 20800 W")]
    live = Live(cast(Any, site), cast(Any, judge), "PhaseAware", Timeline.of(3), clock_s=80.0, happenings=happenings)
    drawing = LiveView(console)
    drawing._events = ["12:00:00 rack-a1: AcknowledgementsLate 8 GPUs late to acknowledge: " + "x" * 60 + " 4711 W"]
    console.print(drawing.render(live), height=height)
    return said.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (WIDE_COLUMNS, 40), (160, 50)])
def test_every_budget_is_seen_with_its_numbers_in_any_window(width: int, height: int) -> None:
    lines = drawn(width, height)
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    for name in ("row-a", "rack-a1", "rack-a2"):
        row = next(line for line in lines if f" {name} " in line)
        assert all(number in row for number in ("20800", "17800", "20700", "Normal", "0.0")), row
        assert ("86%" in row) == (width >= WIDE_COLUMNS)
    text = "\n".join(lines)
    assert "limit cut from 26000 W" in text
    assert any("350" in line and "a1" in line for line in lines), "caps by role"


@pytest.mark.parametrize(("width", "height"), [(100, 40), (160, 50)])
def test_the_numbers_at_the_end_of_an_event_are_seen(width: int, height: int) -> None:
    assert any("4711 W" in line for line in drawn(width, height))
