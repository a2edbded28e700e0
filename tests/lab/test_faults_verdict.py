"""The verdict on a scene: pure, and it excuses only what a rule covers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_lab.faults.expectations import BRAKED
from splitwatt_lab.faults.observer import PATHS, Observer, Said, said_of
from splitwatt_lab.faults.report import summary, table
from splitwatt_lab.faults.scene import ANY, Excuse, Expect
from splitwatt_lab.faults.verdict import Outcome, Window, power, tracebacks, ungoverned, unhealthy, wrong_conditions, wrong_exits
from splitwatt_lab.judge import BudgetLook

WHY = Excuse("a rule", 1.0)


def looks(overs_w: list[float], *, budget: str = "rack-a1", start_s: float = 0.0, gap_s: float = 0.1) -> list[BudgetLook]:
    return [
        BudgetLook(start_s + k * gap_s, budget, 0.0, 1000.0 + over_w, 1000, in_force=True) for k, over_w in enumerate(overs_w)
    ]


# ------------------------------------------------------------------------------------------------------------------- power


def test_seconds_above_a_limit_are_counted_with_the_worst_watts() -> None:
    found = power(looks([-5, 50, 120, -5]), [])
    assert found.beyond_s == pytest.approx(0.2)
    assert (found.worst_w, found.excused_s) == (120, 0)
    assert found.where == ("rack-a1 from 0.1 s on: caps +50 W of 1000 W",)


def test_draw_alone_is_a_violation_too() -> None:
    drawn = [replace(look, true_w=1500.0) for look in looks([-5] * 8)]
    found = power([*looks([-5], start_s=-0.1), *drawn], [])
    assert (found.worst_w, found.spike_s) == (500, 0)
    assert found.beyond_s == pytest.approx(0.8)


def test_a_spike_shorter_than_a_caps_reaction_is_the_breakers_and_is_counted_apart() -> None:
    before, *drawn, after = looks([-5] * 5)
    found = power([before, *(replace(look, true_w=1500.0) for look in drawn), after], [])
    assert found.beyond_s == 0
    assert found.spike_s == pytest.approx(0.3)


def test_draw_and_caps_above_a_limit_are_no_spike() -> None:
    before, one, after = looks([-5, 50, -5])
    assert power([before, replace(one, true_w=1500.0), after], []).beyond_s == pytest.approx(0.1)
    drawn_first = [before, replace(one, capped_w=990.0, true_w=1500.0), replace(after, capped_w=1500.0)]
    assert power(drawn_first, []).beyond_s == pytest.approx(0.2)


def test_only_what_lies_in_a_window_is_excused() -> None:
    found = power(looks([50] * 11), [Window(0.25, 0.55, WHY)])
    assert found.excused_s == pytest.approx(0.3)
    assert found.beyond_s == pytest.approx(0.7)


def test_a_window_for_cuts_covers_no_budget_that_was_not_cut() -> None:
    window = Window(0.0, 9.0, Excuse("a rule", 1.0, cut_only=True), frozenset({"rack-a2"}))
    assert power(looks([50] * 3), [window]).beyond_s == pytest.approx(0.2)
    assert power(looks([50] * 3, budget="rack-a2"), [window]).beyond_s == 0


def test_a_window_for_some_budgets_covers_no_other() -> None:
    window = Window(0.0, 9.0, Excuse("a rule", 1.0, budgets=("rack-a2",)))
    assert power(looks([50] * 3), [window]).beyond_s == pytest.approx(0.2)


def test_a_gap_of_the_judge_is_blind_time_and_no_acquittal() -> None:
    found = power(looks([-5, -5], gap_s=4.0), [])
    assert found.blind_s == pytest.approx(4.0)


@given(st.lists(st.floats(-200, 200), min_size=2, max_size=50), st.floats(0, 5), st.floats(0, 5))
def test_excused_and_beyond_are_all_that_was_over(overs_w: list[float], start_s: float, length_s: float) -> None:
    all_of_it = power(looks(overs_w), [])
    split = power(looks(overs_w), [Window(start_s, start_s + length_s, WHY)])
    assert split.beyond_s + split.excused_s == pytest.approx(all_of_it.beyond_s)
    assert split.beyond_s <= all_of_it.beyond_s + 1e-9


# -------------------------------------------------------------------------------------------------------------- conditions


def obj(name: str, *conditions: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    rows = [{"type": t, "status": s, "reason": r, "message": f"{r} it is"} for t, s, r in conditions]
    return {"metadata": {"name": name, "uid": "u", "generation": 1}, "spec": {}, "status": {"conditions": rows, **more}}


def test_a_condition_that_was_expected_and_never_said_is_wrong_and_so_is_a_forbidden_one() -> None:
    said = said_of("pb", obj("row-a", ("Ready", "False", "LeafGone"), ("Feasible", "False", "MinimumCapsAboveLimit")), 1.0)
    assert wrong_conditions(said, [Expect("pb", "row-a", "Ready", "False", ("LeafGone",))], []) == []
    assert wrong_conditions(said, [Expect("pb", "row-a", "Ready", "False", ("Other",))], []) == [
        "never said: pb/row-a Ready=False Other"
    ]
    assert wrong_conditions(said, [Expect("pb", ANY, ANY, ANY, ("LeafGone",))], []) == []
    assert wrong_conditions(said, [Expect("pb", ANY, ANY, ANY, ("Other",))], []) == ["never said: pb/* Other"]
    found = wrong_conditions(said, [], [Expect("pb", ANY, "Feasible", "False")])
    assert found == ["said though forbidden: pb/row-a Feasible=False MinimumCapsAboveLimit: MinimumCapsAboveLimit it is"]


def above(t_s: float, *, budget: str = "rack-a1", turned: str = "") -> Said:
    return Said("pb", budget, "WithinBudget", "False", "MeasuredAboveLimit", "measured 1020 W, limit 1000 W", t_s, turned)


@pytest.mark.parametrize(
    ("true_w", "t_s", "wrong"),
    [
        (1020.0, 105.0, False),
        (985.0, 105.0, False),  # no meter is better than that
        (900.0, 105.0, True),
        (1020.0, 120.0, True),  # long over
        (1020.0, 99.0, True),  # not yet
    ],
)
def test_a_meter_above_the_limit_may_be_told_where_the_draw_was_there_just_before(
    true_w: float, t_s: float, *, wrong: bool
) -> None:
    seen = [BudgetLook(100.0, "rack-a1", true_w, 900.0, 1000, in_force=True)]
    assert bool(wrong_conditions([above(t_s)], [], BRAKED, looks=seen)) is wrong
    assert wrong_conditions([above(t_s, budget="rack-a2")], [], BRAKED, looks=seen), "it says nothing of another rack"
    other = replace(above(t_s), type="Feasible", reason="MinimumCapsAboveLimit")
    assert wrong_conditions([other], [], [Expect("pb", ANY, "Feasible", "False")], looks=seen), "nor of anything else"


def test_a_condition_that_turned_again_is_another_one() -> None:
    """A word that was true once may be false the next time."""
    budget = obj("rack-a1", ("WithinBudget", "False", "MeasuredAboveLimit"))
    answers: dict[str, dict[str, Any]] = {path: {"items": []} for path in (*PATHS.values(), "leases")}
    answers["powerbudgets"]["items"] = [budget]
    observer = Observer(lambda path: answers[path.partition("?")[0].rpartition("/")[2]])
    for turned in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"):
        budget["status"]["conditions"][0]["lastTransitionTime"] = turned
        observer.look()
    assert [said.turned for said in observer.said()] == ["2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"]


SERVED = obj("chat", ("PrefillReady", "True", "Ready"), ("DecodeReady", "True", "Ready"))
HEALTHY = ("Ready", "True", "Holding")


def node(*, grant: int, acked: int, term: int = 1) -> dict[str, Any]:
    found = obj(
        "n", ("Ready", "True", "Enforcing"), observedUID="u", observedTerm=term, gpus=[{"uuid": "g", "ackedGrant": acked}]
    )
    found["spec"] = {"term": 1, "gpus": [{"uuid": "g", "grant": grant}]}
    return found


def test_healthy_is_every_budget_ready_and_every_grant_acknowledged() -> None:
    budget = obj("row", HEALTHY, posture="Normal", observedGeneration=1)
    objects = {"pb": {"row": budget}, "np": {"n": node(grant=3, acked=3)}, "ic": {"chat": SERVED}}
    assert unhealthy(objects, budgets=["row"], nodes=["n"], clusters=["chat"]) is None
    for cluster in ({}, obj("chat", ("PrefillReady", "True", "Ready"))):
        said = unhealthy(objects | {"ic": {"chat": cluster}}, budgets=["row"], nodes=["n"], clusters=["chat"])
        assert said == "InferenceCluster chat is not DecodeReady"


def _ailment(budget: dict[str, Any], power_of_node: dict[str, Any]) -> str | None:
    objects = {"pb": {"row": budget}, "np": {"n": power_of_node}}
    return unhealthy(objects, budgets=["row"], nodes=["n"], clusters=[])


@pytest.mark.parametrize(
    ("budget", "power_of_node", "says"),
    [
        (
            obj("row", ("Ready", "False", "X"), posture="Normal", observedGeneration=1),
            node(grant=3, acked=3),
            "row Ready=False X",
        ),
        (obj("row", HEALTHY, posture="Brake", observedGeneration=1), node(grant=3, acked=3), "posture Brake"),
        (obj("row", HEALTHY, posture="Normal", observedGeneration=0), node(grant=3, acked=3), "last change was not seen"),
        (obj("row", HEALTHY, posture="Normal", observedGeneration=1), node(grant=3, acked=2), "1 grants not acknowledged"),
        (obj("row", HEALTHY, posture="Normal", observedGeneration=1), node(grant=3, acked=3, term=0), "present object and term"),
    ],
)
def test_anything_else_is_not_and_is_said(budget: dict[str, Any], power_of_node: dict[str, Any], says: str) -> None:
    assert says in (_ailment(budget, power_of_node) or "")


@pytest.mark.parametrize(
    ("holder", "renewed", "governed"),
    [
        ("a", "2026-01-01T00:00:10.000000Z", True),
        ("a", "2026-01-01T00:00:01.000000Z", False),
        ("", "2026-01-01T00:00:10Z", False),
    ],
)
def test_without_a_leader_that_renews_its_lease_nothing_is_healthy(holder: str, renewed: str, governed: bool) -> None:
    now_s = datetime.fromisoformat("2026-01-01T00:00:12Z").timestamp()
    assert (ungoverned([{"spec": {"holderIdentity": holder, "renewTime": renewed}}], now_s) is None) is governed
    assert ungoverned([], now_s) == "no operator holds the Lease"


def test_an_object_that_is_gone_is_not_healthy() -> None:
    assert unhealthy({"pb": {}, "np": {}}, budgets=["row"], nodes=[], clusters=[]) == "row is not there"


# --------------------------------------------------------------------------------------------------------------- processes


def test_tracebacks_are_found_with_their_last_line() -> None:
    log = "info: all well\nTraceback (most recent call last):\n  File x\n    y\nValueError: year 0 is out of range\nmore\n"
    assert tracebacks({"operator": log, "twin": "Traceback is a word too\n"}) == ["operator: ValueError: year 0 is out of range"]


def logged(level: str, logger: str) -> str:
    trace = "Traceback (most recent call last):\n  File x\nValueError: year 0 is out of range"
    return json.dumps({"level": level, "logger": logger, "message": "stopping", "exception": trace}) + "\n"


def test_an_exception_that_we_log_as_an_error_is_unhandled_too() -> None:
    assert tracebacks({"operator": logged("error", "splitwatt_operator.app")}) == [
        "operator: stopping: ValueError: year 0 is out of range"
    ]
    handled = logged("warning", "splitwatt_operator.app") + logged("error", "kopf.watching")
    assert tracebacks({"operator": handled + logged("error", "splitwatt_operator.app")[:60]}) == []


def test_an_end_is_wrong_unless_the_scene_says_it_and_with_which_code() -> None:
    assert wrong_exits({"operator": 3}, {"operator": 3}) == []
    assert wrong_exits({"operator": 3}, {"operator": None}) == []
    assert wrong_exits({"operator": 1}, {"operator": 3}) == ["operator ended with code 1, not 3"]
    assert wrong_exits({"agent-a": -9}, {}) == ["agent-a ended with code -9"]


# ------------------------------------------------------------------------------------------------------------------ report

SOUND = Outcome("sound", "nodes", "It holds.", 10.0, 0.0, 0.4, 0, 300, 0.0, 1.0, 0.2, excuses=["a rule"])


@pytest.mark.parametrize(
    "fault",
    [
        {"violation_s_beyond_promise": 0.1},
        {"wrong_conditions": ["never said"]},
        {"wrong_exits": ["operator ended"]},
        {"tracebacks": ["operator: ValueError"]},
        {"problems": ["not healthy"]},
    ],
)
def test_each_kind_of_fault_alone_fails_a_scene_and_is_counted_at_the_top(fault: dict[str, Any]) -> None:
    assert SOUND.passed
    guilty = replace(SOUND, name="guilty", **fault)
    said = summary([SOUND, guilty], seed=7, minutes=1.0)
    assert said["failed"] == ["guilty"]
    assert (said["scenes"], said["pairs"], said["seed"]) == (2, 0, 7)
    totals = said["violation_s_beyond_promises"] + said["wrong_conditions"] + said["wrong_exits"] + said["tracebacks"]
    assert totals > 0 or "problems" in fault


def test_the_planted_fault_must_be_convicted_and_counts_in_no_total() -> None:
    planted = replace(SOUND, name="planted", convicted=True, violation_s_beyond_promise=5.0)
    assert summary([planted], seed=1, minutes=1.0) | {"outcomes": []} == {
        "scenes": 1, "pairs": 0, "failed": [], "violation_s_beyond_promises": 0, "tracebacks": 0, "wrong_conditions": 0,
        "wrong_exits": 0, "seed": 1, "minutes": 1.0, "outcomes": [],
    }  # fmt: skip
    assert summary([replace(planted, violation_s_beyond_promise=0.0)], seed=1, minutes=1.0)["failed"] == ["planted"]


def test_the_table_names_what_covers_seconds_and_who_failed() -> None:
    text = table([SOUND, replace(SOUND, name="a + b", group="pairs", problems=["x"])], date="2026-01-01", seed=7)
    assert "| sound | It holds. | – | 0.0 | 0.4 (a) | +300 | 1.0 | pass |" in text
    assert "- (a) a rule" in text
    assert "**fail**: a + b" in text


def test_only_what_is_wrong_with_nothing_but_the_view_is_played_once_more() -> None:
    blind = "the judge was blind for 4.1 s: not proven"
    starved = replace(SOUND, problems=[blind], unseen=[blind])
    assert starved.guilty
    assert starved.unproven
    assert not SOUND.unproven
    assert not replace(starved, problems=["a cut was not obeyed", blind]).unproven
    assert not replace(starved, violation_s_beyond_promise=0.1).unproven
    assert not replace(starved, tracebacks=["operator: ValueError"]).unproven
