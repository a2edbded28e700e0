"""Who stands aside, over random fleets: only those that owe an acknowledgement, never fewer watts than they may draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.claims import Placement
from splitwatt_core.budget.fleet import LATE_ACK_S, MUTE_S, Fleet, build_fleet
from splitwatt_core.budget.tree import BudgetSpec, Selector, build_tree
from splitwatt_core.protocol.contract import Grant, Health
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

NOW_S = 1_000.0
LEAVES = ("a", "b")
BUDGETS = {
    "row": BudgetSpec("row", "row", 1, 9_000),
    **{name: BudgetSpec(name, name, 1, 5_000, parent="row", selector=Selector({"rack": name})) for name in LEAVES},
}
COLUMNS = ("min_w", "max_w", "natural_w", "cliff_w", "cap_w")


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Up to eight nodes of one GPU in two racks below a row, in shared groups; some sick, some late, some without samples
    or words."""
    placements = []
    for k in range(draw(st.integers(1, 8))):
        charge_w = draw(st.integers(200, 700))
        owes_s = draw(st.sampled_from([None, 1.0, LATE_ACK_S + 1.0, MUTE_S + 1.0]))
        account = GpuAccount(
            f"g{k}", 700, 200, 700, acked=5, charge_w=charge_w, row=Grant(f"g{k}", 5, charge_w, charge_w, charge_w),
            health=draw(st.sampled_from([Health.OK, Health.OK, Health.LOST])),
            unacked_since_s=None if owes_s is None else NOW_S - owes_s,
        )  # fmt: skip
        node = NodeAccount(f"n{k}", present=True, gpus={account.uuid: account})
        node.sample_s = NOW_S - draw(st.sampled_from([0.0, 30.0]))
        node.status_s = NOW_S - draw(st.sampled_from([0.5, 80.0]))
        placements.append(Placement(node, (draw(st.sampled_from(LEAVES)),)))
    fleet = build_fleet(tree=build_tree(BUDGETS), budgets=BUDGETS, placements=placements, pods={}, profiles=(), now_s=NOW_S)
    group = draw(st.lists(st.integers(0, 3), min_size=len(placements), max_size=len(placements)))
    return replace(fleet, gpus=replace(fleet.gpus, group=np.array(group, dtype=np.int32)))


@given(fleets(), st.lists(st.integers(-300, 300), min_size=3, max_size=3))
def test_only_who_owes_stands_aside_and_exactly_at_its_charge(fleet: Fleet, room_w: list[int]) -> None:
    spare_w = np.array(room_w, dtype=np.float64)
    left = fleet.with_late_aside(fleet.charged_w() - fleet.rest_w + spare_w)
    aside = fleet.steerable & ~left.steerable
    tight_w = np.minimum(spare_w, spare_w[0])  # the row, which comes first, counts for both racks
    over = tight_w[fleet.gpus.leaf] < 0
    assert np.array_equal(aside, fleet.steerable & fleet.late & (over | fleet.mute))
    assert bool(np.all(fleet.late | ~fleet.mute)), "mute is late, and more"
    for name in COLUMNS:
        before, after = getattr(fleet.gpus, name), getattr(left.gpus, name)
        assert np.array_equal(after, np.where(aside, fleet.charge_w, before)), name
    assert len(set(left.gpus.group[aside])) == int(aside.sum())
    assert not set(left.gpus.group[aside]) & set(left.gpus.group[~aside])
    assert np.array_equal(left.charged_w(), fleet.charged_w())


@given(fleets())
def test_a_floor_counts_what_a_late_gpu_may_still_draw(fleet: Fleet) -> None:
    floor_w = fleet.floor_w()
    assert bool(np.all(floor_w >= fleet.gpus.cliff_w))
    assert bool(np.all(floor_w[fleet.late] >= fleet.charge_w[fleet.late]))
    answered = replace(fleet, late=np.zeros_like(fleet.late))
    assert np.array_equal(answered.floor_w(), fleet.gpus.cliff_w)
