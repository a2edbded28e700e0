"""Which nodes count where: labels, specs, moves, vanished nodes, inventories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from splitwatt_core.budget.claims import DROPPED, Placement, managed
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.roster import VERIFY_EVERY_S, Roster
from splitwatt_core.budget.tree import BudgetSpec, Selector, build_tree
from splitwatt_core.protocol.contract import NO_GRANT, GpuStatus, Grant, NodePower, Spec, Status

TERM = 3
BUDGETS = {name: BudgetSpec(name, name, 1, 1000, selector=Selector({"rack": name})) for name in ("a", "b")}


def node_power(version: int, *budgets: str, acked: int = 7, gpus: int = 1, term: int = TERM) -> NodePower:
    """An object with grant 7 on every GPU, or the later one that is acknowledged."""
    return NodePower(
        "n1",
        "u1",
        version,
        Spec(
            TERM if term else 0,
            "u1",
            budgets=budgets,
            gpus=tuple(Grant(f"g{i}", max(7, acked), 300, 300, 300) for i in range(gpus)),
        ),
        Status("u1", TERM, "boot", tuple(GpuStatus(f"g{i}", acked, 300, 300, 200, 700, 700) for i in range(gpus))),
    )


def roster(rack: str | None = "a", *versions: NodePower) -> Roster:
    made = Roster()
    made.see_node(NodeFact("n1", {} if rack is None else {"rack": rack}, "boot"))
    for seen in versions:
        made.account("n1").observe(seen, 0.0, term=TERM)
    return made


def relabel(made: Roster, rack: str) -> None:
    made.see_node(NodeFact("n1", {"rack": rack}, "boot"))


def confirm(made: Roster) -> None:
    """Fresh reads find every claim as it is."""
    for claim in made.to_confirm(0.0):
        made.confirm(claim)


def leaves(made: Roster, *, observing: frozenset[str] = frozenset()) -> tuple[str, ...]:
    placed, _ = made.placements(BUDGETS, observing=observing)
    return placed[0].leaves if placed else ()


def test_a_node_counts_where_its_label_says() -> None:
    assert leaves(roster("a")) == ("a",)
    assert leaves(roster("z")) == () and leaves(roster(None)) == ()


def test_labels_and_selectors_that_change_are_looked_at_again() -> None:
    made = roster("a")
    assert leaves(made) == ("a",)
    relabel(made, "b")
    assert leaves(made) == ("b", "a"), "and where it was, for nothing is acknowledged yet"
    turned = {name: replace(spec, selector=Selector({"rack": "b" if name == "a" else "a"})) for name, spec in BUDGETS.items()}
    placed, _ = made.placements(turned)
    assert placed[0].leaves == ("a", "b")
    late = Roster()
    late.account("n1")
    assert leaves(late) == (), "its object was seen before its Node"
    relabel(late, "a")
    assert leaves(late) == ("a",)


def test_many_selectors_are_not_each_held_against_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    matches = Selector.matches

    def counted(self: Selector, labels: Mapping[str, str]) -> bool:
        nonlocal asked
        asked += 1
        return matches(self, labels)

    monkeypatch.setattr(Selector, "matches", counted)
    budgets = {f"b{k}": BudgetSpec(f"b{k}", f"b{k}", 1, 1000, selector=Selector({"rack": f"{k}"})) for k in range(100)}
    made = Roster()
    for k in range(100):
        made.see_node(NodeFact(f"n{k}", {"rack": f"{k}"}, "boot"))
    placed, _ = made.placements(budgets)
    assert {p.node.name: p.leaves for p in placed} == {f"n{k}": (f"b{k}",) for k in range(100)}
    made.placements({name: replace(spec, limit_w=900) for name, spec in budgets.items()})
    assert asked == 100, "once each, whatever becomes of limits"


def test_a_moved_node_counts_in_both_until_a_later_grant_is_acknowledged_and_written_off() -> None:
    made = roster("a", node_power(1, "a"))
    relabel(made, "b")
    assert leaves(made) == ("b", "a")
    assert leaves(made) == ("b", "a"), "the grant it has acknowledged is older than the move"
    confirm(made)
    made.moves["n1"]["a"] = 8
    made.account("n1").observe(node_power(2, "b", "a", acked=7), 0.0, term=TERM)
    assert leaves(made) == ("b", "a")
    made.account("n1").observe(node_power(3, "b", "a", acked=8), 0.0, term=TERM)
    assert leaves(made) == ("b", "a") and made.moves["n1"]["a"] == DROPPED
    made.account("n1").observe(node_power(4, "b", acked=8), 0.0, term=TERM)
    assert leaves(made) == ("b",) and made.moves["n1"] == {}


def test_a_node_that_comes_back_before_that_never_left_but_counts_where_it_seemed_to_be_as_well() -> None:
    made = roster("a", node_power(1, "a"))
    relabel(made, "b")
    leaves(made)
    relabel(made, "a")
    assert leaves(made) == ("a", "b") and made.moves["n1"] == {"b": NO_GRANT}


def test_one_gpu_that_does_not_answer_keeps_the_whole_node_in_its_former_rack() -> None:
    made = roster("b", node_power(1, "a", gpus=2))
    leaves(made)
    confirm(made)
    made.moves["n1"]["a"] = 8
    seen = node_power(2, "b", "a", gpus=2)
    one = (replace(seen.status.gpus[0], acked_grant=8), seen.status.gpus[1])
    made.account("n1").observe(replace(seen, status=replace(seen.status, gpus=one)), 0.0, term=TERM)
    assert leaves(made) == ("b", "a")


def test_a_successor_learns_of_the_former_rack_from_the_spec() -> None:
    assert leaves(roster("b", node_power(1, "a"))) == ("b", "a")


def test_a_node_without_gpus_has_nothing_to_acknowledge() -> None:
    made = roster("a", node_power(1, "a", gpus=0))
    relabel(made, "b")
    assert leaves(made) == ("b", "a") and made.moves["n1"]["a"] == NO_GRANT, "no fresh read says so yet"
    confirm(made)
    assert leaves(made) == ("b", "a") and made.moves["n1"]["a"] == DROPPED
    made.account("n1").observe(node_power(2, "b", gpus=0), 0.0, term=TERM)
    assert leaves(made) == ("b",)


def test_a_move_out_of_or_into_a_tree_that_observes_waits_for_no_grant() -> None:
    for observing in (frozenset("a"), frozenset("b"), frozenset("ab")):
        made = roster("b", node_power(1, "a"))
        leaves(made, observing=observing)
        confirm(made)
        assert leaves(made, observing=observing) == ("b", "a")
        assert made.moves["n1"]["a"] == DROPPED


def test_a_vanished_node_counts_where_it_was() -> None:
    made = roster("a", node_power(1, "a"))
    made.account("n1").present = False
    assert leaves(made) == ("a",)
    unseen = Roster()
    unseen.account("n1").observe(node_power(1, "a"), 0.0, term=TERM)
    assert leaves(unseen) == ("a",), "also for a successor that never saw its labels"


def test_a_budget_that_is_gone_counts_what_names_it() -> None:
    """A tombstone: it selects nothing, and nothing is claimed by what is missing."""
    gone = BudgetSpec("deleted", "d", 1, 1000, selector=Selector({"rack": "z"}))
    budgets = {**BUDGETS, "deleted": gone}
    tree = build_tree(budgets, gone={"deleted"})
    made = roster("z", node_power(1, "deleted"))
    made.see_node(NodeFact("n2", {"rack": "z"}, "boot"))
    placed, _ = made.placements(budgets, tree=tree)
    assert [(p.node.name, p.leaves, p.claimed) for p in placed] == [("n1", ("deleted",), False)]


def test_two_selectors_that_overlap_are_a_conflict_and_both_count() -> None:
    made = roster("a")
    budgets = {**BUDGETS, "too": replace(BUDGETS["a"], name="too")}
    placed, conflicts = made.placements(budgets)
    assert placed == [Placement(made.account("n1"), ("a", "too"), names=("a", "too"), leaving=("too",))]
    assert conflicts == {"n1": ("a", "too")}


def test_a_node_power_is_asked_for_once_until_it_was_created() -> None:
    made = roster("a")
    placed, _ = made.placements(BUDGETS)
    assert made.to_create(placed) == ("n1",) and made.to_create(placed) == ()
    made.created("n1")
    assert made.to_create(placed) == ("n1",)
    made.account("n1").observe(node_power(1, "a"), 0.0, term=TERM)
    made.created("n1")
    assert made.to_create(placed) == ()


def test_what_seems_gone_is_verified_at_a_measured_pace_and_forgotten_only_when_it_is() -> None:
    made = roster("a", node_power(1, "a"))
    made.forget("n1")
    assert "n1" in made.nodes, "present"
    made.account("n1").present = False
    made.forget("n1")
    assert "n1" in made.nodes and made.to_verify(0.0) == (), "its NodePower is there"
    made.account("n1").forget_object("u1")
    assert made.to_verify(10.0) == ("n1",)
    assert made.to_verify(10.0 + VERIFY_EVERY_S / 2) == ()
    assert made.to_verify(10.0 + VERIFY_EVERY_S) == ("n1",)
    made.forget("n1")
    assert made.nodes == {} and made.to_verify(99.0) == ()
    made.forget("n1")


def test_a_node_is_managed_once_a_gpu_of_it_is_known() -> None:
    assert not managed(roster("a").account("n1"))
    assert managed(roster("a", node_power(1, "a")).account("n1"))
    assert not managed(roster("a", node_power(1, "a", gpus=0)).account("n1"))


def test_a_claim_counts_from_fresh_reads_of_what_it_still_says() -> None:
    made = roster("a", node_power(1, "a"))
    relabel(made, "b")
    placed, _ = made.placements(BUDGETS)
    (claim,) = made.to_confirm(0.0)
    assert (claim.labels, claim.budgets) == ({"rack": "b"}, (("b", "b", 1),)) and placed[0].unread == {"a"}
    assert made.to_confirm(VERIFY_EVERY_S / 2) == (), "asked at a measured pace"
    relabel(made, "z")
    made.confirm(claim)
    placed, _ = made.placements(BUDGETS)
    assert placed[0].unread == {"a"}, "its labels have changed since"
    relabel(made, "b")
    made.placements(BUDGETS)
    made.confirm(*made.to_confirm(VERIFY_EVERY_S))
    placed, _ = made.placements(BUDGETS)
    assert placed[0].unread == frozenset() and made.to_confirm(9.0) == ()


def test_of_a_node_that_is_gone_no_claim_is_read() -> None:
    made = roster("a", node_power(1, "a"))
    relabel(made, "b")
    made.account("n1").present = False
    assert leaves(made) == ("b", "a") and made.to_confirm(0.0) == ()
