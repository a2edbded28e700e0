"""Budgets are held on real parts: operator, agents on simulated GPUs, Prometheus and a meter; the truth is read from the GPUs."""

from __future__ import annotations

import time
from typing import Any

from support.some import some

GPUS = 8
NON_GPU_W = 2 * 2000
LOSS = 1.04


def charge_of(caps_w: list[float]) -> float:
    """Σ caps at the meter, as I1 counts it (two nodes)."""
    return LOSS * sum(caps_w) + NON_GPU_W


def held_budget(datacenter: Any, **spec: Any) -> str:
    """Two nodes of four H100 that want everything, behind one metered leaf with Uniform caps."""
    datacenter.add_gpu_nodes("n1", "n2")
    datacenter.load(700.0)
    selector = f'rack_power_watts{{rack="{datacenter.rack}"}}'
    policy = {"type": "Uniform", "unassignedGpus": "Hold"}
    name: str = datacenter.budget("leaf", meter={"selector": selector}, policy=policy, limitGraceSeconds=5, **spec)
    return name


def adopted(datacenter: Any, budget: str) -> None:
    datacenter.await_condition(budget, "Ready", "True")
    datacenter.await_condition(budget, "TelemetryFresh", "True")


def test_a_budget_is_adopted_and_held_through_cut_raise_and_load(datacenter: Any) -> None:
    with datacenter.metered():
        budget = held_budget(datacenter, limitWatts=8500)
        operator = datacenter.active_operator()
        adopted(datacenter, budget)
        datacenter.eventually("the caps fit", lambda: charge_of(datacenter.caps_w()) <= 8500)
        datacenter.eventually("the meter agrees", lambda: datacenter.true_power_w() <= 8500)
        status = datacenter.status(budget)
        assert (status["nodes"], status["gpus"]) == (2, GPUS)
        assert status["adoptionMilliseconds"] > 0
        # Most of what may be drawn is given out, not hoarded.
        datacenter.eventually("the watts are used", lambda: charge_of(datacenter.caps_w()) >= 8500 - 300)

        datacenter.budget_limit(budget, 7500)
        datacenter.eventually("the cut is enforced", lambda: charge_of(datacenter.caps_w()) <= 7500)
        datacenter.budget_limit(budget, 9000)
        datacenter.eventually("the raise is used", lambda: charge_of(datacenter.caps_w()) >= 9000 - 300)
        assert charge_of(datacenter.caps_w()) <= 9000
        datacenter.await_condition(budget, "WithinBudget", "True")
        datacenter.await_condition(budget, "CapsEnforced", "True")
        # No decision since adoption ever charged more than the limit in force.
        rows = operator.decisions(budget)
        first = next(i for i, row in enumerate(rows) if row["posture"] != "Adopting")
        over = [(i, row) for i, row in enumerate(rows) if i >= first and row["charge_w"] > row["in_force_w"] + 1e-6]
        assert not over, f"{over} among {rows[over[0][0] - 5 : over[-1][0] + 5]}"
        for node in some(datacenter.twins):

            def acknowledged(node: str = node) -> bool:
                power = datacenter.node_power(node)
                granted = {g["uuid"]: g["grant"] for g in power["spec"]["gpus"]}
                return granted == {g["uuid"]: g["ackedGrant"] for g in power["status"]["gpus"]}

            datacenter.eventually("every grant is acknowledged", acknowledged)


def test_without_prometheus_nothing_is_raised(datacenter: Any) -> None:
    with datacenter.metered():
        budget = held_budget(datacenter, limitWatts=7500)
        operator = datacenter.active_operator()
        adopted(datacenter, budget)
        datacenter.eventually("the watts are used", lambda: 7200 <= charge_of(datacenter.caps_w()) <= 7500)
        datacenter.prometheus.stop()
        datacenter.await_condition(budget, "TelemetryFresh", "False", "MeterStale")
        before = datacenter.caps_w()
        datacenter.budget_limit(budget, 9000)
        datacenter.eventually("the limit is known", lambda: operator.decisions(budget)[-1]["limit_w"] == 9000)
        for _ in range(25):
            assert all(now <= then for now, then in zip(datacenter.caps_w(), before, strict=True))
            time.sleep(0.2)
        # A cut needs no telemetry.
        datacenter.budget_limit(budget, 7000)
        datacenter.eventually("the cut is enforced", lambda: charge_of(datacenter.caps_w()) <= 7000)
        datacenter.budget_limit(budget, 9000)
        datacenter.prometheus.start()
        datacenter.await_condition(budget, "TelemetryFresh", "True")
        datacenter.eventually("raises go on", lambda: charge_of(datacenter.caps_w()) >= 9000 - 300)


def test_a_killed_operator_leaves_every_cap_and_its_successor_adopts_them(datacenter: Any) -> None:
    with datacenter.metered():
        budget = held_budget(datacenter, limitWatts=7500)
        operator = datacenter.active_operator()
        adopted(datacenter, budget)
        datacenter.eventually("the watts are used", lambda: 7200 <= charge_of(datacenter.caps_w()) <= 7500)
        operator.process.kill()
        before = datacenter.caps_w()
        time.sleep(2.0)
        assert datacenter.caps_w() == before
        successor = datacenter.active_operator()
        deadline_s = time.monotonic() + 10.0
        while time.monotonic() < deadline_s:
            assert charge_of(datacenter.caps_w()) <= 7500
            time.sleep(0.1)
        datacenter.await_condition(budget, "Ready", "True")
        # What a predecessor had brought in force stays in force: its charge was never unknown.
        adopted_rows = [row for row in successor.decisions(budget) if row["posture"] != "Adopting"]
        assert all(row["charge_w"] <= 7500 + 1e-6 for row in some(adopted_rows))
        datacenter.budget_limit(budget, 8500)
        datacenter.eventually("the successor decides", lambda: charge_of(datacenter.caps_w()) >= 8500 - 300)


def test_a_limit_below_the_minimum_caps_is_infeasible_and_everything_goes_to_its_minimum(datacenter: Any) -> None:
    with datacenter.metered():
        budget = held_budget(datacenter, limitWatts=7500)
        datacenter.active_operator()
        adopted(datacenter, budget)
        datacenter.budget_limit(budget, 5000)
        datacenter.eventually("minimum caps", lambda: set(datacenter.caps_w()) == {200.0})
        row = datacenter.await_condition(budget, "Feasible", "False", "MinimumCapsAboveLimit")
        missing_w = charge_of([200.0] * GPUS) - 5000
        assert f"{missing_w:.0f} W" in row["message"]


def test_a_node_power_deleted_by_hand_comes_back_and_the_budget_holds(datacenter: Any) -> None:
    with datacenter.metered():
        budget = held_budget(datacenter, limitWatts=8500)
        datacenter.active_operator()
        adopted(datacenter, budget)
        node = next(iter(datacenter.twins))
        old = datacenter.node_power(node)["metadata"]["uid"]
        datacenter.plane.http.delete(f"/apis/splitwatt.io/v1alpha1/nodepowers/{node}").raise_for_status()

        def regranted() -> bool:
            power = datacenter.node_power(node) or {}
            return power.get("metadata", {}).get("uid") != old and len(power.get("spec", {}).get("gpus", [])) == GPUS // 2

        datacenter.eventually("it is granted anew", regranted)
        datacenter.await_condition(budget, "WithinBudget", "True")
        assert charge_of(datacenter.caps_w()) <= 8500
