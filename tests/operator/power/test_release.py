"""In and out again, on real parts: Observe tells, Strict holds, Observe names what stays, Release gives back; and a deletion says
what it leaves."""

from __future__ import annotations

import json
from typing import Any

UNIFORM = {"type": "Uniform", "unassignedGpus": "Hold"}
DEFAULT_W = 700.0
WIDE_W, TIGHT_W = 20_000, 8_000
"""Two nodes of 4 GPUs: defaults need 2 x (2000 + 1.04 x 2800) = 9824 W."""
SHARE_W = 480.0
"""Of each GPU in the tight budget: (8000 - 2 x 2000) / (8 x 1.04), down to whole steps of 5 W."""


def mode(datacenter: Any, budget: str, word: str, *, limit_w: int | None = None) -> None:
    spec = {"mode": word} | ({} if limit_w is None else {"limitWatts": limit_w})
    datacenter.plane.kubectl("patch", "pb", budget, "--type=merge", "-p", json.dumps({"spec": spec}))


def told(datacenter: Any) -> dict[str, int]:
    """Would-be caps by GPU, as the NodePowers say them."""
    specs = [(datacenter.node_power(node) or {}).get("spec") or {} for node in datacenter.twins]
    return {row["uuid"]: row["wouldCapWatts"] for spec in specs for row in spec.get("wouldBe", [])}


def test_observe_tells_strict_holds_and_release_gives_back(datacenter: Any) -> None:
    twins = datacenter.add_gpu_nodes("n1", "n2")
    datacenter.load(650.0)
    budget = datacenter.budget("leaf", mode=None, limitWatts=TIGHT_W, policy=UNIFORM, limitGraceSeconds=1)
    operator = datacenter.active_operator()
    # A budget without a mode observes. What it tells is told of every GPU, in the object and in the metrics, and nothing is set.
    datacenter.eventually("8 would-be caps", lambda: len(told(datacenter)) == 8)
    datacenter.await_condition(budget, "Observing", "True", "WouldCut")
    first = "in Strict 8 of 8 GPUs would be cut by "
    datacenter.eventually("a sentence", lambda: datacenter.condition(budget, "Observing")["message"].startswith(first))
    assert datacenter.status(budget)["mode"] == "Observe"
    columns = datacenter.plane.kubectl("get", "pb", budget).stdout
    assert "MODE" in columns and "Observe" in columns
    would = told(datacenter)
    assert sum(would.values()) * 1.04 + 4000 <= TIGHT_W and set(datacenter.caps_w()) == {DEFAULT_W}
    (node, *_), (uuid, cap_w) = datacenter.twins, next(iter(would.items()))
    assert abs(operator.metric("splitwatt_would_cap_watts", gpu=uuid, node=node) - cap_w) < 10
    assert operator.metric("splitwatt_budget_would_cut_gpus", budget=budget, role="Prefill") is not None

    mode(datacenter, budget, "Strict")

    def as_told() -> bool:
        return all(abs(a - b) <= 10 for a, b in zip(sorted(datacenter.caps_w()), sorted(would.values()), strict=True))

    datacenter.eventually("the caps that were told", as_told)
    assert sum(datacenter.caps_w()) * 1.04 + 4000 <= TIGHT_W
    datacenter.eventually("an Event", lambda: [e for e in datacenter.events("ModeChanged") if e["regarding"]["name"] == budget])
    datacenter.eventually("no more of it", lambda: not told(datacenter))

    mode(datacenter, budget, "Observe")
    left = datacenter.await_condition(budget, "CapsReleased", "False", "CapsLeft")
    assert "8 GPUs left below the default limit" in left["message"]
    held = datacenter.caps_w()

    # Defaults do not fit this limit: as many as do get theirs, the rest is held and said. Of a rack that draws all of its limit
    # nothing rises, whatever the mode.
    datacenter.load(150.0)
    datacenter.eventually("a lighter rack", lambda: datacenter.status(budget)["measuredWatts"] < TIGHT_W / 2 + 2000)
    mode(datacenter, budget, "Release")
    waits = datacenter.await_condition(budget, "CapsReleased", "False", "LimitInTheWay")
    assert "lacks" in waits["message"]
    assert sum(datacenter.caps_w()) * 1.04 + 4000 <= TIGHT_W and datacenter.status(budget)["chargeWatts"] <= TIGHT_W
    assert sum(datacenter.caps_w()) >= sum(held)

    mode(datacenter, budget, "Release", limit_w=WIDE_W)
    datacenter.await_condition(budget, "CapsReleased", "True", "Released")
    assert set(datacenter.caps_w()) == {DEFAULT_W}
    assert all(gpu.enforced_mw == DEFAULT_W * 1000 for twin in twins for gpu in twin.read_all())


def test_one_node_is_released_by_its_label_while_its_neighbour_is_held(datacenter: Any) -> None:
    first, second = datacenter.add_gpu_nodes("n1", "n2")
    datacenter.load(650.0)
    policy = {"type": "PhaseAware", "unassignedGpus": "Minimum"}
    budget = datacenter.budget("leaf", limitWatts=TIGHT_W, policy=policy, limitGraceSeconds=1)
    datacenter.active_operator()
    datacenter.await_condition(budget, "Ready", "True")
    datacenter.eventually("caps", lambda: sum(datacenter.caps_w()) * 1.04 + 4000 <= TIGHT_W)
    mode(datacenter, budget, "Observe", limit_w=WIDE_W)
    datacenter.await_condition(budget, "CapsReleased", "False", "CapsLeft")
    before = [gpu.management_mw for gpu in second.read_all()]
    label = f"{datacenter.rack}-n1"
    datacenter.plane.kubectl("label", "node", label, "splitwatt.io/mode=Release")
    datacenter.eventually("its defaults", lambda: {gpu.management_mw for gpu in first.read_all()} == {DEFAULT_W * 1000})
    datacenter.await_condition(budget, "CapsReleased", "True", "Released")
    assert [gpu.management_mw for gpu in second.read_all()] == before


def test_a_deleted_budget_says_what_stays_and_gives_back_when_it_is_applied_again(datacenter: Any) -> None:
    datacenter.add_gpu_nodes("n1", "n2")
    datacenter.load(650.0)
    budget = datacenter.budget("leaf", limitWatts=TIGHT_W, policy=UNIFORM, limitGraceSeconds=1)
    datacenter.active_operator()
    datacenter.await_condition(budget, "Ready", "True")
    # Minimum caps come first; the budget stands still only at what it gives in the end.
    datacenter.eventually("each GPU's share", lambda: set(datacenter.caps_w()) == {SHARE_W})
    before = datacenter.caps_w()
    datacenter.plane.kubectl("delete", "pb", budget)
    [event] = datacenter.eventually(
        "an Event", lambda: [e for e in datacenter.events("CapsStay") if e["regarding"]["name"] == budget]
    )
    assert "8 GPUs keep caps" in event["note"] and "apply it again with mode: Release" in event["note"]
    assert datacenter.caps_w() == before
    datacenter.budget("leaf", mode="Release", limitWatts=WIDE_W, policy=UNIFORM, limitGraceSeconds=1)
    datacenter.await_condition(budget, "CapsReleased", "True", "Released")
    assert set(datacenter.caps_w()) == {DEFAULT_W}
