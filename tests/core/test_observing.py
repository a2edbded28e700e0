"""What Observe tells: the caps that Strict would grant, the cuts, the pods; and that nobody can obey it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.facts import PodFact, WouldCut
from splitwatt_core.budget.observing import observing
from splitwatt_core.protocol.contract import Mode, NodePower, Phase, Spec, Workload, spec_from_wire, spec_to_wire
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.record import Record
from splitwatt_core.protocol.would import STEP_W, WouldBe, steady, would_from_wire, would_to_wire
from support.keepers import caps, condition, settled
from support.some import some
from support.world import DEFAULT_W, ROOT, Operator, World

ROWS = st.builds(
    WouldBe,
    st.sampled_from(["g0", "g1", "g2"]),
    st.integers(1, 2000),
    st.none() | st.integers(1, 3000),
)


def observing_world(limit_w: int = 900, **changes: Any) -> tuple[World, Operator]:
    world = World(limit_w=limit_w, **changes)
    world.lines[ROOT].mode = Mode.OBSERVE
    world.tell_budgets()
    return world, settled(world)


def told(world: World, node: str) -> dict[str, WouldBe]:
    spec = world.store.objects[node].spec
    assert spec is not None
    return {row.uuid: row for row in spec.would}


# ------------------------------------------------------------------------------------------------- nobody can obey it


@given(st.lists(ROWS, max_size=3, unique_by=lambda row: row.uuid), st.integers(300_000, 700_000))
def test_an_agent_does_the_same_with_and_without_it(rows: list[WouldBe], limit_mw: int) -> None:
    done = []
    for would in ((), tuple(rows)):
        enforcer = Enforcer(gpus={"g0": GpuIdentity("g0", "H100", 200_000, 700_000, 700_000)}, record=Record())
        seen = NodePower("n", "u", 5, Spec(term=1, for_uid="u", mode=Mode.OBSERVE, would=would))
        verdict = enforcer.observe(seen, consistent=True)
        acts = [enforcer.tick(float(at), {"g0": Readback(limit_mw, limit_mw)}) for at in range(3)]
        enforcer.persisted()
        acts.append(enforcer.tick(3.0, {"g0": Readback(limit_mw, limit_mw)}))
        assert not any(act.set_caps or act.clocks for act in acts)
        done.append((verdict, acts, enforcer.status()))
    assert done[0] == done[1]


@given(st.lists(ROWS, min_size=1, max_size=3, unique_by=lambda row: row.uuid))
def test_no_row_reads_as_a_grant(rows: list[WouldBe]) -> None:
    wire = would_to_wire(rows)
    grants = spec_from_wire({"gpus": [], "wouldBe": wire}).gpus
    assert grants == () and not any(key in row for row in wire for key in ("grant", "capWatts", "maxClockMegahertz"))


@given(st.lists(ROWS, max_size=3, unique_by=lambda row: row.uuid))
def test_what_is_told_is_read_back(rows: list[WouldBe]) -> None:
    spec = Spec(term=1, for_uid="u", mode=Mode.OBSERVE, would=tuple(rows))
    assert spec_from_wire(spec_to_wire(spec)) == spec


@given(st.sampled_from([None, True, 3, 2.5, "x", [], {}, [None], [3], ["x"], [{}], [{"uuid": "g0"}]]))
def test_what_cannot_be_read_is_left_out_and_the_grants_beside_it_stand(rubbish: object) -> None:
    good = {"uuid": "g0", "wouldCapWatts": 300}
    rows = [rubbish, {"uuid": "g1", "wouldCapWatts": "x" if rubbish == 3 else rubbish}, good]
    assert would_from_wire(rows) == (WouldBe("g0", 300),)
    grant = {"uuid": "g0", "grant": 5, "capWatts": 400}
    assert spec_from_wire({"gpus": [grant], "wouldBe": rubbish}).gpus[0].cap_w == 400


@given(st.lists(ROWS, max_size=3, unique_by=lambda r: r.uuid), st.lists(ROWS, max_size=3, unique_by=lambda r: r.uuid))
def test_rows_follow_within_a_step_and_settle(old: list[WouldBe], new: list[WouldBe]) -> None:
    kept = steady(old, new)
    assert [row.uuid for row in kept] == [row.uuid for row in new]
    assert all(abs(a.cap_w - b.cap_w) < STEP_W and a.max_clock_mhz == b.max_clock_mhz for a, b in zip(kept, new, strict=True))
    assert steady(kept, new) == kept


# ------------------------------------------------------------------------------------------------------- what it tells


def test_observe_tells_the_caps_that_strict_then_grants() -> None:
    world, operator = observing_world()
    would = {node: told(world, node)[f"{node}-g0"].cap_w for node in ("a0", "b0")}
    assert world.true_sum_w() == 2 * DEFAULT_W, "told, not set"
    assert sum(would.values()) <= 900
    world.lines[ROOT].mode = Mode.STRICT
    world.tell_budgets()
    operator.settle(10)
    assert {node: caps(world, node)[0] for node in ("a0", "b0")} == would
    assert all(not obj.spec.would for obj in some(world.store.objects.values()) if obj.spec is not None)
    assert operator.keeper.hand() == {}


def test_a_limit_that_is_wide_enough_cuts_nobody() -> None:
    _, operator = observing_world(limit_w=5000)
    said = condition(operator, ROOT, "Observing")
    assert (said.status, said.reason) == (True, "WouldCutNothing")
    assert said.message == "in Strict none of 2 GPUs would be cut"


def test_the_cut_is_told_by_role_here_and_in_every_budget_above() -> None:
    world, operator = observing_world()
    world.nodes["a0"].workloads["a0-g0"] = Workload("ns", "p")
    world.pods[("ns", "p")] = PodFact("ns", "p", Phase.PREFILL, 0)
    operator.keeper.on_pod(world.pods[("ns", "p")])
    operator.settle(6)
    row, rack = operator.last.budgets[ROOT].would, operator.last.budgets["a"].would
    assert row is not None and rack is not None
    assert (rack.gpus[Phase.PREFILL], rack.gpus[Phase.UNASSIGNED], row.gpus[Phase.UNASSIGNED]) == (1, 0, 1)
    would = {node: told(world, node)[f"{node}-g0"].cap_w for node in ("a0", "b0")}
    assert row.cut_w[Phase.PREFILL] == DEFAULT_W - would["a0"] and row.cut_w[Phase.UNASSIGNED] == DEFAULT_W - would["b0"]
    said = condition(operator, ROOT, "Observing").message
    assert said.startswith(f"in Strict 2 of 2 GPUs would be cut by {2 * DEFAULT_W - sum(would.values())} W in all (1 prefill by ")


def test_strict_says_nothing_of_it() -> None:
    operator = settled(World(limit_w=900))
    assert operator.last.budgets[ROOT].would is None and operator.last.budgets[ROOT].mode is Mode.STRICT
    assert all(c.type != "Observing" for c in operator.last.budgets[ROOT].conditions)


def test_pods_whose_floors_do_not_fit_are_named_lowest_rank_first() -> None:
    world, operator = observing_world(limit_w=700, policy="PhaseAware")
    for node, priority in (("a0", 100), ("b0", 0)):
        world.nodes[node].workloads[f"{node}-g0"] = Workload("ns", node)
        world.pods[("ns", node)] = PodFact("ns", node, Phase.PREFILL, priority)
        operator.keeper.on_pod(world.pods[("ns", node)])
    operator.settle(6)
    cut = operator.last.budgets[ROOT].would
    assert cut is not None and cut.held == ("ns/b0",) and cut.lacking_w > 0
    said = condition(operator, ROOT, "Observing")
    assert said.reason == "WouldHoldPods" and "1 pod would have been held at the power gate: ns/b0" in said.message


def test_a_draw_above_the_limit_does_not_make_it_tell_of_a_brake() -> None:
    """Nothing is capped, so the draw may stand above the limit for ever; Strict would not brake for ever."""
    world, operator = observing_world(limit_w=900)
    for node in world.nodes.values():
        for gpu in node.gpus.values():
            gpu.wants_w = DEFAULT_W
    operator.settle(40)
    assert operator.last.budgets[ROOT].posture.name == "BRAKE", "or the scene shows nothing"
    would = [told(world, node)[f"{node}-g0"].cap_w for node in ("a0", "b0")]
    assert min(would) > 200, "what it would settle at, not minimum caps"


def test_a_change_of_mode_is_an_event() -> None:
    world, operator = observing_world()
    world.lines[ROOT].mode = Mode.STRICT
    world.tell_budgets()
    notes = [note for note in operator.step().notes if note.reason == "ModeChanged"]
    assert [(note.name, note.message.partition(":")[0]) for note in notes] == [(ROOT, "mode Observe -> Strict")]


def test_the_sentence_counts_what_is_felt_and_locked() -> None:
    cut = WouldCut(8, {Phase.PREFILL: 2, Phase.DECODE: 4}, {Phase.PREFILL: 250.4, Phase.DECODE: 1000.0}, 1, 33.0, locked=2)
    assert observing(cut).message == (
        "in Strict 6 of 8 GPUs would be cut by 1250 W in all (2 prefill by 250 W, 4 decode by 1000 W), 1 GPU of them to below "
        "what the work there draws, by 33 W; 2 clocks would be locked"
    )
    assert observing(replace(cut, short_gpus=0)).message.endswith(
        "none of them to below what the work there draws; 2 clocks would be locked"
    )
