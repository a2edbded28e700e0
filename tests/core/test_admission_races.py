"""Admission and the keeper look at the cluster at different moments, and answers get lost: no watt is promised twice.

Played in memory on the core's real code; see `support.served`. The sum that is checked is taken from the truth, and from
the rule's own words.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from splitwatt_core.clusters import PAIR, ClusterName, Role, RoleSpec, cluster_label
from support.served import CLIFF_W, GPUS, IDLE_W, LOSS, NOW_S, RACK_OF, RACKS, ROW, Answer, Fleet, cluster, reserved

IDLE_ROW_W = LOSS * IDLE_W * GPUS * len(RACK_OF)
PAIR_W = LOSS * sum((CLIFF_W[role] - IDLE_W) * GPUS for role in PAIR)
ONE_PAIR_W = int(IDLE_ROW_W + PAIR_W) + 50


def with_pair(fleet: Fleet, name: str, pool: RoleSpec | None = None) -> ClusterName:
    """A cluster whose first pair waits, seen by the operator. `pool`: of both roles, a replica of 8 GPUs if not given."""
    made = cluster(name, prefill=pool, decode=pool)
    fleet.serve(made)
    for role in PAIR:
        fleet.born(made, role)
    fleet.watch()
    return made.id


def within(fleet: Fleet) -> bool:
    return all(fleet.promised_w(name) <= budget.limit_w for name, budget in fleet.budgets.items())


# ----------------------------------------------------------------------------------------------------------------- scenes


def test_a_quiet_fleet_admits_what_fits_and_not_one_pair_more() -> None:
    fleet = Fleet(row_w=ONE_PAIR_W)
    with_pair(fleet, "chat")
    fleet.keep()
    assert len(fleet.admit().admissions) == 2
    fleet.bind()
    fleet.watch()
    fleet.keep()
    batch = with_pair(fleet, "batch")
    plan = fleet.admit()
    assert plan.admissions == ()
    assert plan.verdicts[batch].reason in ("InsufficientPower", "InsufficientGPUs")
    assert within(fleet)


def test_a_pod_past_its_gate_stays_reserved_until_the_keeper_counted_it() -> None:
    """Between the loops: bound, reported by its agent, shown by the watch, but the keeper has not stepped."""
    small = RoleSpec(1, 4)
    pair_w = LOSS * 4 * sum(CLIFF_W[role] - IDLE_W for role in PAIR)
    fleet = Fleet(row_w=int(IDLE_ROW_W + pair_w) + 50)
    with_pair(fleet, "chat", small)
    fleet.keep()
    assert len(fleet.admit().admissions) == 2
    batch = with_pair(fleet, "batch", small)
    for advance in (fleet.bind, fleet.watch, lambda: None, fleet.keep):
        advance()
        plan = fleet.admit()
        assert plan.admissions == ()
        assert plan.verdicts[batch].reason == "InsufficientPower"
    assert within(fleet)


def test_a_ceiling_raised_between_the_keepers_step_and_ours_is_reserved_at_once() -> None:
    """The keeper counted two floors of 300 W; they are 450 and 350 W now, and what is left does not do for two pairs."""
    low = RoleSpec(1, 4, power_ceiling_w=300)
    fleet = Fleet(row_w=int(IDLE_ROW_W + LOSS * 4 * (100 + 100 + 250 + 150)) + 50)
    chat = with_pair(fleet, "chat", low)
    fleet.keep()
    fleet.admit()
    fleet.bind()
    fleet.watch()
    fleet.keep()
    small = RoleSpec(1, 4)
    batch = with_pair(fleet, "batch", small)
    fleet.serve(replace(fleet.clusters[chat], prefill=small, decode=small))
    plan = fleet.admit()
    assert plan.admissions == ()
    assert plan.verdicts[batch].reason == "InsufficientPower"
    assert within(fleet)


def test_a_leaf_whose_node_vanished_keeps_what_it_was_promised() -> None:
    """A pod is on its way to the only node of rack b, which vanishes between the keeper's step and ours, and may come back."""
    fleet = Fleet(row_w=int(IDLE_ROW_W + LOSS * GPUS * (CLIFF_W[Role.DECODE] - IDLE_W)) + 50)
    made = [cluster(name, prefill=RoleSpec(0, GPUS), decode=RoleSpec(1, GPUS)) for name in ("chat", "batch")]
    for spec in made:
        fleet.serve(spec)
    fleet.born(made[0], Role.DECODE, rack="b")
    fleet.watch()
    fleet.keep()
    assert [admission.leaf for admission in fleet.admit().admissions] == ["b"]
    fleet.born(made[1], Role.DECODE, rack="a")
    fleet.watch()
    node = fleet.nodes.pop("b0")
    assert fleet.admit().admissions == ()
    fleet.nodes["b0"] = node
    fleet.bind()
    assert [pod.node for pod in fleet.past()] == ["b0"]
    assert within(fleet)


def test_a_parent_that_is_gone_for_a_moment_lets_nobody_in_below_it() -> None:
    """Its racks have room enough, and nobody knows what the row has. It comes back with none."""
    fleet = Fleet(row_w=ONE_PAIR_W)
    with_pair(fleet, "chat")
    fleet.keep()
    assert len(fleet.admit().admissions) == 2
    batch = with_pair(fleet, "batch", RoleSpec(1, 4))
    row = fleet.budgets.pop(ROW)
    fleet.keeper.on_budget_gone(ROW, NOW_S)
    for look in range(3):
        plan = fleet.admit()
        assert plan.admissions == (), f"look {look}"
        verdict = plan.verdicts[batch]
        assert verdict.reason == "InvalidTree" and "create it or name another" in verdict.message
        fleet.keep()
    fleet.budgets[ROW] = row
    fleet.keep()
    assert fleet.admit().verdicts[batch].reason == "InsufficientPower"
    fleet.budgets[ROW] = replace(row, limit_w=row.limit_w + int(PAIR_W))
    fleet.keep()
    assert len(fleet.admit().admissions) == 2
    assert within(fleet)


def test_what_was_not_sent_is_decided_anew_when_the_lease_is_back() -> None:
    """Meanwhile the limit was cut: what was decided before would be one pair too much."""
    fleet = Fleet(row_w=ONE_PAIR_W)
    chat = with_pair(fleet, "chat")
    fleet.keep()
    assert len(fleet.admit(Answer.UNSENT, Answer.UNSENT).admissions) == 2
    assert fleet.past() == [] and len(fleet.assumed) == 0
    row = fleet.budgets[ROW]
    fleet.budgets[ROW] = replace(row, limit_w=row.limit_w - 500)
    fleet.keep()
    plan = fleet.admit()
    assert plan.admissions == () and plan.verdicts[chat].reason == "InsufficientPower"
    assert within(fleet)
    fleet.budgets[ROW] = row
    fleet.keep()
    assert len(fleet.admit().admissions) == len(fleet.past()) == 2
    assert within(fleet)


def test_what_was_not_sent_a_second_time_may_still_land_from_the_first() -> None:
    fleet = Fleet(row_w=ONE_PAIR_W)
    with_pair(fleet, "chat")
    fleet.keep()
    fleet.admit(Answer.LOST, Answer.LOST)
    fleet.admit(Answer.UNSENT, Answer.UNSENT)
    with_pair(fleet, "batch")
    assert fleet.admit(Answer.UNSENT, Answer.UNSENT).admissions == ()
    fleet.land()
    assert len(fleet.past()) == 2
    assert within(fleet)


def test_what_refuses_a_second_attempt_may_be_the_first() -> None:
    """Its answer was lost, the watch has not shown it: the refusal of the next attempt frees nothing."""
    fleet = Fleet(row_w=ONE_PAIR_W)
    with_pair(fleet, "chat")
    fleet.keep()
    fleet.admit(Answer.SILENT, Answer.SILENT)
    assert len(fleet.past()) == 2
    with_pair_later = cluster("batch")
    fleet.serve(with_pair_later)
    for role in PAIR:
        fleet.watch(fleet.born(with_pair_later, role).name)
    for _ in range(3):
        assert fleet.admit().admissions == ()
        assert within(fleet)
    fleet.watch()
    assert fleet.admit().admissions == ()
    assert len(fleet.assumed) == 0, "the pods speak for themselves"


def test_a_lost_patch_stands_until_no_attempt_can_land_any_more() -> None:
    fleet = Fleet(row_w=ONE_PAIR_W)
    with_pair(fleet, "chat")
    fleet.keep()
    fleet.admit(Answer.LOST, Answer.LOST)
    assert len(fleet.assumed) == 2 and fleet.past() == []
    for pod in list(fleet.pods.values()):
        fleet.touch(pod.name)
    fleet.watch()
    fleet.assumed.settle(fleet.shown.values())
    assert len(fleet.assumed) == 0, "the pods are newer than what was sent"
    fleet.land()
    assert fleet.past() == []
    assert len(fleet.admit().admissions) == 2


# ------------------------------------------------------------------------------------------------------------- any order

NAMES = ("chat", "batch", "long-" + "x" * 95)
WALKS, STEPS = 150, 60


class Walk:
    """Everything that can happen, in a random order. Owners change what they like; nothing may make us promise too much."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fleet = Fleet(row_w=int(IDLE_ROW_W + 1.3 * PAIR_W), rack_w=int(IDLE_ROW_W + 0.7 * PAIR_W))
        self.whole = dict(self.fleet.nodes)
        self.admitted = self.refused = 0
        for _ in NAMES:
            self.owner_applies()
        self.events: dict[Callable[[], None], int] = {
            self.owner_applies: 2,
            self.owner_deletes: 1,
            self.controllers_create_pods: 4,
            self.a_pod_changes: 4,
            self.fleet.watch: 4,
            self.fleet.bind: 4,
            self.fleet.land: 2,
            self.a_node_comes_or_goes: 1,
            self.fleet.keep: 3,
            self.admission_looks: 8,
        }

    def run(self) -> None:
        for event in self.random.choices(list(self.events), list(self.events.values()), k=STEPS):
            event()
            assert {pod.leaf for pod in self.fleet.past()} <= set(RACKS)

    def owner_applies(self) -> None:
        name, ceiling_w = self.random.choice(NAMES), self.random.choice((None, None, 300, 400))
        gpus = self.random.choice((2, 4, 8))
        prefill, decode = (RoleSpec(self.random.randint(0, 2), gpus, power_ceiling_w=ceiling_w) for _ in PAIR)
        self.fleet.serve(cluster(name, priority=100 if name == "chat" else 0, prefill=prefill, decode=decode))

    def owner_deletes(self) -> None:
        self.fleet.clusters.pop(ClusterName("s", self.random.choice(NAMES)), None)

    def controllers_create_pods(self) -> None:
        for spec in self.fleet.clusters.values():
            for role in PAIR:
                here = sum(pod.label == cluster_label(spec.name) and pod.role is role for pod in self.fleet.pods.values())
                for _ in range(spec.role(role).replicas - here):
                    self.fleet.born(spec, role)

    def a_pod_changes(self) -> None:
        if not self.fleet.pods:
            return
        name = self.random.choice(sorted(self.fleet.pods))
        match self.random.choice(("touch", "terminate", "remove", "show")):
            case "touch":
                self.fleet.touch(name)
            case "terminate":
                self.fleet.touch(name, terminating=True)
            case "remove":
                self.fleet.remove(name)
            case "show":
                self.fleet.watch(name)

    def a_node_comes_or_goes(self) -> None:
        node = self.random.choice(sorted(RACK_OF))
        if self.fleet.nodes.pop(node, None) is None:
            self.fleet.nodes[node] = self.whole[node]

    def admission_looks(self) -> None:
        plan = self.fleet.decide()
        self.refused += sum(verdict.reason == "InsufficientPower" for verdict in plan.verdicts.values())
        for admission in reserved(plan):
            self.admitted += 1
            for name in (admission.leaf, ROW):
                limit_w = self.fleet.budgets[name].limit_w
                assert self.fleet.promised_w(name) <= limit_w + 1e-6, f"{admission.need.pod} makes {name} promise too much"
        self.fleet.send(self.random.choice(list(Answer)) for _ in itertools.count())


def test_no_order_of_events_promises_a_watt_twice() -> None:
    admitted = refused = 0
    for seed in range(WALKS):
        walk = Walk(seed)
        try:
            walk.run()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        admitted, refused = admitted + walk.admitted, refused + walk.refused
    assert admitted > WALKS and refused > WALKS, "the sums were looked at, and mattered"
