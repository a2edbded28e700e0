"""The page of plans: what deciding together is worth counts on the lists that no search saw."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from splitwatt_papers.pages import plans
from splitwatt_papers.pages.plans import WayFound, _worth, row_ways, way_rows
from splitwatt_sim.plan.search import Goal, PlanDesign
from splitwatt_sim.traces.resample import generated


def test_worth_is_counted_on_the_unseen_lists() -> None:
    ways = [WayFound("together", None, 400.0), WayFound("clamp", None, 320.0), WayFound("nothing", None)]
    assert _worth(ways) == "Deciding both together serves, within the SLOs on every unseen list: +25% against clamp."
    assert _worth([WayFound("together", None), ways[1]]) == "Nothing holds the SLOs within this budget on every unseen list."


def test_each_way_is_judged_on_the_unseen_lists_and_shown_with_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[PlanDesign, float, Sequence[int]]] = []

    def hold(design: PlanDesign, rate_rps: float, goal: Goal, *, seeds: Sequence[int]) -> tuple[int, float]:
        asked.append((design, rate_rps, seeds))
        return 0, float(len(asked))

    monkeypatch.setattr(plans, "robust_rate", hold)
    ways = row_ways(generated(requests_per_s=10.0, seconds=60.0, seed=3), ["H100"], 18_000.0, seeds=range(2, 4))
    rows = way_rows(ways)
    assert asked == [(way.found.design, way.found.rate_rps, range(2, 4)) for way in ways if way.found is not None]
    assert len(ways) == 5 and rows[0][3] == "all unseen lists hold" and all(len(row) == len(rows[0]) for row in rows)
    assert [row[3] for row in rows[1:]] == ["1", "2", "3", "4", "5"]
