"""What vanished still draws, on real parts: a leaf that is deleted and applied again, a label that is taken away."""

from __future__ import annotations

import json
import time
from typing import Any

ROW_W = 12_000


def forest(datacenter: Any) -> tuple[str, str, str]:
    """A row that two racks of one node each must share: both could use more than half."""
    datacenter.add_gpu_nodes("n1", "n2")
    datacenter.load(700.0)
    row = datacenter.budget("row", leaf=False, limitWatts=ROW_W - 4000, policy={"type": "Uniform", "unassignedGpus": "Hold"})
    for node in datacenter.twins:
        datacenter.plane.kubectl("label", "node", node, f"half={node}")
    leaves = [
        datacenter.budget(short, parent=row, limitWatts=ROW_W, nodeSelector={"matchLabels": {"half": node}})
        for short, node in zip(("a", "b"), datacenter.twins, strict=True)
    ]
    return row, leaves[0], leaves[1]


def still(datacenter: Any, before: list[float]) -> bool:
    """But for a watt of rounding, that whole caps for all leave over."""
    now = datacenter.caps_w()
    return all(abs(a - b) <= 1.0 for a, b in zip(now, before, strict=True)) and sum(now) * 1.04 + 4000 <= ROW_W - 4000


def test_a_leaf_that_is_deleted_counts_on_and_nothing_rises_until_it_is_back(datacenter: Any) -> None:
    row, a, b = forest(datacenter)
    datacenter.active_operator()
    for budget in (row, a, b):
        datacenter.await_condition(budget, "Ready", "True")
    datacenter.eventually("the watts are used", lambda: sum(datacenter.caps_w()) * 1.04 + 4000 > ROW_W - 4000 - 100)
    # The row's own word follows its caps: it is written once a step.
    datacenter.eventually("the row says so", lambda: datacenter.status(row)["chargeWatts"] > ROW_W - 4000 - 100)
    before, charge_w = datacenter.caps_w(), datacenter.status(row)["chargeWatts"]
    manifest = datacenter.get(f"/apis/splitwatt.io/v1alpha1/powerbudgets/{a}")
    datacenter.plane.kubectl("delete", "pb", a)
    said = datacenter.await_condition(row, "Ready", "False", "LeafGone")
    assert a in said["message"]
    assert [gone["name"] for gone in datacenter.status(row)["goneBudgets"]] == [a]
    time.sleep(3.0)
    assert still(datacenter, before)
    assert abs(datacenter.status(row)["chargeWatts"] - charge_w) < 10
    manifest["metadata"] = {"name": a}
    manifest.pop("status")
    datacenter.plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    datacenter.await_condition(a, "Ready", "True")
    datacenter.await_condition(row, "Ready", "True")
    assert still(datacenter, before) and datacenter.status(a)["posture"] == "Normal"


def test_a_label_that_is_taken_away_is_named_and_moves_nothing(datacenter: Any) -> None:
    row, a, b = forest(datacenter)
    datacenter.active_operator()
    for budget in (row, a, b):
        datacenter.await_condition(budget, "Ready", "True")
    datacenter.eventually("the watts are used", lambda: sum(datacenter.caps_w()) * 1.04 + 4000 > ROW_W - 4000 - 100)
    before, node = datacenter.caps_w(), next(iter(datacenter.twins))
    datacenter.plane.kubectl("label", "node", node, "half-")
    said = datacenter.await_condition(a, "Ready", "False", "NodesUnclaimed")
    assert node in said["message"]
    datacenter.eventually("an Event is recorded", lambda: datacenter.events("NodesUnclaimed"))
    time.sleep(2.0)
    assert still(datacenter, before) and datacenter.status(a)["nodes"] == 1
    assert datacenter.status(a)["unclaimedNodes"] == [node]
    assert datacenter.node_power(node)["spec"]["budgets"] == [a, row]
    other = list(datacenter.twins)[1]
    datacenter.plane.kubectl("label", "node", node, f"half={other}")
    datacenter.eventually("another leaf's claim moves it", lambda: datacenter.node_power(node)["spec"]["budgets"] == [b, row])
    assert datacenter.await_condition(b, "Ready", "True") and datacenter.status(b)["nodes"] == 2
