"""Specs as they are composed: stamps, lines that stay, lines that change, moves, Observe."""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.claims import DROPPED, Placement, Rates
from splitwatt_core.budget.facts import SpecWrite
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.budget.writer import Wish, compose, lowers, rebased, stamp
from splitwatt_core.protocol.contract import NO_GRANT, GpuStatus, Grant, Health, Mode, NodePower, Phase, Spec, Status
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

ROOT = BudgetSpec("row", "row", 1, 1000)
OBSERVING = replace(ROOT, mode=Mode.OBSERVE)
ROW = Grant("g0", 7, cap_w=300, safe_cap_w=300, charge_w=600, phase=Phase.DECODE)
RATES = Rates(overhead_percent=4, non_gpu_w=50, unmanaged_w=900)
OLD = Spec(
    term=1,
    for_uid="u1",
    node_limit_w=300,
    budgets=("a",),
    overhead_percent=4,
    non_gpu_w=50,
    unmanaged_w=900,
    gpus=(ROW,),
)


def write(over: Spec | None, spec: Spec) -> SpecWrite:
    return SpecWrite("n1", "u1", 5, spec, over=over)


def placement(spec: Spec | None = OLD, *leaves: str) -> Placement:
    node = NodeAccount("n1", present=True, object=NodePower("n1", "u1", 5, spec))
    names = leaves or ("a",)
    return Placement(node, names, names=names, leaving=names[1:], rates=RATES)


def account(row: Grant | None = ROW, charge_w: int = 300, **more: object) -> GpuAccount:
    facts: dict[str, object] = {"health": Health.OK, **more}
    return GpuAccount("g0", 700, 200, 700, row=row, charge_w=charge_w, **facts)  # type: ignore[arg-type]


def composed(wish: Wish, p: Placement | None = None, *, root: BudgetSpec = ROOT, moves: dict[str, int] | None = None) -> Spec:
    return compose(p or placement(), [wish], term=2, number=99, root=root, moves={} if moves is None else moves)


# --------------------------------------------------------------------------------------------------------------- order


def test_what_lowers_any_cap_is_told_from_what_only_raises() -> None:
    other = replace(ROW, uuid="g1")
    both = replace(OLD, gpus=(ROW, other))
    assert lowers(write(both, replace(OLD, gpus=(replace(ROW, cap_w=299), replace(other, cap_w=400)))))
    assert not lowers(write(both, replace(OLD, gpus=(ROW, replace(other, cap_w=400)))))
    assert not lowers(write(None, both)) and not lowers(write(OLD, both)), "who was granted nothing is told nothing lower"


def test_a_write_that_only_lowers_goes_onto_the_newest_version_of_the_same_spec() -> None:
    other = replace(ROW, uuid="g1")
    both = replace(OLD, gpus=(ROW, other))
    lower = write(both, replace(both, gpus=(replace(ROW, grant=8, cap_w=250), other)))
    newest = NodePower("n1", "u1", 9, both)
    assert rebased(lower, newest) == replace(lower, resource_version=9)
    for changed in (
        replace(newest, uid="u2"),
        replace(newest, spec=None),
        replace(newest, spec=replace(both, term=2)),
        replace(newest, spec=replace(both, budgets=("b",))),
    ):
        assert rebased(lower, changed) is None, "somebody else wrote a spec"
    mixed = write(both, replace(both, gpus=(replace(ROW, cap_w=250), replace(other, cap_w=301))))
    added = write(OLD, replace(both, gpus=(replace(ROW, cap_w=250), other)))
    lowered = (replace(ROW, cap_w=250), other)
    stamped, moved = (write(both, replace(both, gpus=lowered, **new)) for new in ({"term": 2}, {"budgets": ("b",)}))
    withdrawn = write(both, replace(both, gpus=(replace(ROW, cap_w=250),)))
    for decided in (mixed, added, withdrawn, stamped, moved, write(both, both)):
        assert rebased(decided, replace(newest, spec=decided.over)) is None, "what raises, begins or ends is decided anew"
    assert rebased(lower, replace(newest, resource_version=5)) is None, "it was refused for something else"


def test_a_line_that_was_to_be_withdrawn_keeps_its_grant_once_its_gpu_is_listed_again() -> None:
    """A node came up without one of its GPUs, and lists it before the write arrives: its agent may still set what it read."""
    raised = replace(ROW, uuid="g1", grant=8, cap_w=600, charge_w=600)
    before = replace(OLD, gpus=(ROW, raised))
    decided = write(before, replace(OLD, gpus=(replace(ROW, grant=9, cap_w=250),)))
    lines = tuple(
        GpuStatus(uuid, acked_grant=7, management_w=300, enforced_w=300, min_w=200, max_w=700, default_w=700)
        for uuid in ("g0", "g1")
    )
    found = NodePower("n1", "u1", 9, before, Status("u1", 1, "boot", lines))
    stands = rebased(decided, found) or replace(decided, spec=before)
    successor = NodeAccount("n1")
    successor.see_boot("boot")
    successor.observe(replace(found, spec=stands.spec, resource_version=10), 0.0, term=1)
    successor.refresh(0.0, settle_s=1.0)
    assert successor.gpus["g1"].charge_w >= 600, "what the agent may still set"


# --------------------------------------------------------------------------------------------------------------- stamp


def test_a_stamp_changes_the_term_and_nothing_that_was_granted() -> None:
    assert stamp(placement(), term=2, root=ROOT) == replace(OLD, term=2)


def test_a_stamp_names_every_leaf_that_counts_the_node() -> None:
    spec = stamp(placement(OLD, "b", "a"), term=2, root=ROOT)
    assert (spec.budgets, spec.leaving) == (("b", "a"), ("a",))


def test_a_stamp_does_not_bring_to_life_what_was_written_for_another_object() -> None:
    restored = stamp(placement(replace(OLD, for_uid="u0")), term=2, root=ROOT)
    assert (restored.for_uid, restored.gpus, restored.node_limit_w) == ("u1", (), None)
    assert stamp(placement(None), term=2, root=ROOT).gpus == ()


# ------------------------------------------------------------------------------------------------------------- compose


def test_a_line_that_says_what_it_should_stays_as_it_is() -> None:
    spec = composed(Wish(account(), 300, 0, Phase.DECODE))
    assert spec.gpus == (ROW,) and spec.node_limit_w == 300 and spec.term == 2


def test_a_new_cap_is_a_new_grant_that_carries_the_charge_of_now() -> None:
    (line,) = composed(Wish(account(charge_w=650), 250, 0, Phase.DECODE)).gpus
    assert line == Grant("g0", 99, cap_w=250, safe_cap_w=250, charge_w=650, phase=Phase.DECODE)
    (line,) = composed(Wish(account(), 500, 0, Phase.DECODE)).gpus
    assert line.charge_w == 500


def test_a_new_clock_lock_is_told_under_the_same_grant() -> None:
    (line,) = composed(Wish(account(), 300, 1410, Phase.DECODE)).gpus
    assert line == replace(ROW, max_clock_mhz=1410)


def test_a_new_phase_is_told_under_the_same_grant() -> None:
    (line,) = composed(Wish(account(), 300, 0, Phase.PREFILL)).gpus
    assert (line.grant, line.phase) == (7, Phase.PREFILL)


def test_a_line_that_never_reached_the_object_is_granted_anew() -> None:
    lost = replace(ROW, grant=8)
    (line,) = composed(Wish(account(lost), 300, 0, Phase.DECODE)).gpus
    assert line.grant == 99


def test_a_safe_cap_is_never_above_the_cap_nor_below_the_minimum() -> None:
    for safe_cap_w, cap_w, said_w in ((250, 300, 250), (400, 300, 300), (100, 300, 200)):
        (line,) = composed(Wish(account(), cap_w, 0, Phase.DECODE), root=replace(ROOT, safe_cap_w=safe_cap_w)).gpus
        assert line.safe_cap_w == said_w


def test_a_move_grants_every_gpu_anew_and_remembers_since_when() -> None:
    moves = {"a": NO_GRANT, "old": 50}
    spec = composed(Wish(account(), 300, 0, Phase.DECODE), placement(OLD, "b", "a", "old"), moves=moves)
    assert spec.gpus[0].grant == 99 and spec.budgets == ("b", "a", "old") and spec.leaving == ("a", "old")
    assert moves == {"a": 99, "old": 50}


def test_a_move_waits_for_the_first_spec_that_grants_anew() -> None:
    """While nothing can be granted the line that stands keeps its number, and no later acknowledgement would end the move."""
    moves = {"a": NO_GRANT}
    waits = composed(Wish(account(), 0, 0, Phase.DECODE), placement(OLD, "b", "a"), moves=moves)
    assert waits.gpus == (ROW,) and moves == {"a": NO_GRANT}
    spec = composed(Wish(account(), 300, 0, Phase.DECODE), placement(OLD, "b", "a"), moves=moves)
    assert spec.gpus[0].grant == 99 and moves == {"a": 99}


def test_a_leaf_that_the_node_has_left_is_dropped() -> None:
    spec = composed(Wish(account(), 300, 0, Phase.DECODE), placement(OLD, "b", "a"), moves={"a": DROPPED})
    assert spec.budgets == ("b",) and spec.leaving == () and spec.gpus == (ROW,)


def test_observe_keeps_lines_and_adds_none() -> None:
    kept = composed(Wish(account(), 250, 0, Phase.DECODE), root=OBSERVING)
    assert (kept.mode, kept.gpus, kept.node_limit_w) == (Mode.OBSERVE, (ROW,), None)
    assert composed(Wish(account(None), 250, 0, Phase.DECODE), placement(None), root=OBSERVING).gpus == ()


def test_what_a_gpu_draws_whatever_its_cap_is_in_the_nodes_allotment() -> None:
    drawing = account()
    drawing.floor_w = 330
    assert composed(Wish(drawing, 300, 0, Phase.DECODE)).node_limit_w == 330


def test_what_cannot_be_granted_yet_keeps_its_line_and_counts_in_the_nodes_allotment() -> None:
    p = placement(replace(OLD, gpus=(ROW, replace(ROW, uuid="g1"))))
    silent = GpuAccount("g1", 700, 0, 700, row=replace(ROW, uuid="g1"), charge_w=550)
    spec = compose(
        p,
        [Wish(account(), 300, 0, Phase.DECODE), Wish(silent, 0, 0, Phase.UNASSIGNED)],
        term=2,
        number=99,
        root=ROOT,
        moves={},
    )
    assert spec.gpus == p.node.object.spec.gpus  # type: ignore[union-attr]
    assert spec.node_limit_w == 300 + 550


def test_a_sick_gpus_charge_is_part_of_the_nodes_allotment() -> None:
    sick = account(charge_w=650, health=Health.CAP_NOT_ENFORCED)
    assert composed(Wish(sick, 300, 0, Phase.DECODE)).node_limit_w == 650
    assert composed(Wish(account(charge_w=650), 300, 0, Phase.DECODE)).node_limit_w == 300
