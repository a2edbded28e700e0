"""What the whole keeper does with other people's serving: caps by phase and rank, one cap for one replica, nothing on a guess."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import Selector, WorkloadRule
from splitwatt_core.budget.workloads import OwnerFact
from splitwatt_core.protocol.contract import Phase, PowerClass, Workload
from support.keepers import caps, condition
from support.machines import PROFILE
from support.some import some
from support.world import DEFAULT_W, MIN_W, ROOT, Operator, World

ROLE = "llm-d.ai/role"
GROUP = "leaderworkerset.sigs.k8s.io/group-key"


def owner(name: str, **labels: str) -> OwnerFact:
    return OwnerFact("their", name, f"uid-{name}", labels, {"team": "a"})


def run_pods(world: World, **nodes: str) -> None:
    """`a0="prefill"`: all GPUs of node a0 are held by pod their/prefill."""
    for node, pod in nodes.items():
        world.nodes[node].workloads.update({uuid: Workload("their", pod) for uuid in world.nodes[node].gpus})


def ruled(world: World, *rules: WorkloadRule) -> None:
    """The root says this of every operator to come, and of those there are."""
    world.budgets[ROOT] = replace(world.budgets[ROOT], workloads=rules)
    for operator in world.operators:
        operator.keeper.on_budget(world.budgets[ROOT], world.now_s)


def awaiting(world: World) -> Operator:
    """An operator whose shell reads every owner's labels."""
    operator = world.elect()
    old, operator.keeper = (
        operator.keeper,
        Keeper(term=operator.term, policies=world.policies, profiles=(PROFILE,), awaits_owners=True),
    )
    operator.see_kind()
    for spec in old.budgets.values():
        operator.keeper.on_budget(spec, world.now_s)
    for node in world.nodes.values():
        operator.see_node(node)
    for obj in list(world.store.objects.values()):
        operator.keeper.on_node_power(obj, world.now_s)
    return operator


def told(world: World, *owners: OwnerFact, rounds: int = 12) -> Operator:
    operator = world.elect()
    for one in owners:
        operator.keeper.on_owner(one)
    operator.settle(rounds)
    return operator


# ----------------------------------------------------------------------------------------------------- phases and ranks


def test_a_pair_of_somebody_elses_is_capped_as_decode_and_as_prefill() -> None:
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=2 * 350 + 2 * 640)
    run_pods(world, a0="d", b0="p")
    operator = told(world, owner("d", **{ROLE: "decode"}), owner("p", **{ROLE: "prefill"}))
    decode, prefill = caps(world, "a0"), caps(world, "b0")
    assert prefill == [640, 640] and decode[0] == decode[1] and 250 <= decode[0] <= 350
    spec = world.store.objects["a0"].spec
    assert spec is not None and {line.phase for line in spec.gpus} == {Phase.DECODE}
    assert {line.power_class for line in spec.gpus} == {PowerClass(0, 700)}
    assert condition(operator, ROOT, "OwnersKnown").message == "every GPU has a known owner or is proven idle"


def test_floors_of_somebody_elses_pods_are_counted_so_that_admission_reserves_them_no_more() -> None:
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=2000)
    run_pods(world, a0="d")
    operator = told(world, owner("d", **{ROLE: "decode"}))
    assert operator.keeper.floors_counted() == {("their", "d"): (2, 2 * 250.0)}
    assert operator.keeper.floor_room_w(ROOT) == 2000 - 2 * 250 - 2 * MIN_W


def test_without_a_word_of_it_a_pod_is_a_stranger_as_before_and_is_named() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    run_pods(world, a0="job")
    operator = told(world, owner("job", app="train"))
    assert caps(world, "a0") == [DEFAULT_W] and caps(world, "b0") == [MIN_W]
    for budget in (ROOT, "a"):
        said = condition(operator, budget, "OwnersKnown")
        assert said.status and said.reason == "AllKnown"
        assert said.message.endswith(
            "1 pod of which no known label and no rule says a phase is given no less than prefill: their/job; class it by "
            "spec.workloads of the root budget"
        )
    assert "their/job" not in condition(operator, "b", "OwnersKnown").message


def test_ranks_come_from_rules_alone() -> None:
    """Three kinds under one budget: whoever a rule ranks higher keeps its watts."""
    world = World(policy="PhaseAware", limit_w=640 + 400)
    run_pods(world, a0="one", b0="two")
    pair = (owner("one", app="one", **{ROLE: "prefill"}), owner("two", app="two", **{ROLE: "prefill"}))
    operator = told(world, *pair)
    assert caps(world, "a0") == caps(world, "b0") == [520], "labels rank nobody"
    ruled(world, WorkloadRule(Selector({"app": "two"}), priority=100))
    operator.settle(12)
    assert caps(world, "b0") == [640] and caps(world, "a0") == [400]
    ruled(world)
    operator.settle(12)
    assert caps(world, "a0") == caps(world, "b0") == [520], "the site took its word back"


def test_a_conflict_is_told_on_the_budgets_above_it() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    run_pods(world, a0="one")
    ruled(world, WorkloadRule(Selector({"app": "one"}), phase=Phase.DECODE))
    operator = told(world, owner("one", app="one", **{ROLE: "prefill"}))
    for budget in (ROOT, "a"):
        assert condition(operator, budget, "OwnersKnown").message.endswith(
            f"1 pod to look at: their/one: label {ROLE} says Prefill, spec.workloads[0] says Decode, which counts"
        )
    assert caps(world, "a0") == [472], "decode's natural draw and the margin"


# ----------------------------------------------------------------------------------------------- what is missing or a lie


def test_a_label_that_vanishes_raises_nothing() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    run_pods(world, a0="d")
    operator = told(world, owner("d", **{ROLE: "decode"}))
    assert caps(world, "a0") == [472]
    operator.keeper.on_owner(owner("d"))
    operator.settle(12)
    assert caps(world, "a0") == [472]
    operator.keeper.on_owner(OwnerFact("their", "d", ""))
    operator.settle(12)
    assert caps(world, "a0") == [472], "the pod is gone, and its GPUs are still said to be its own"


def test_a_label_that_vanished_while_no_operator_ran_raises_nothing_either() -> None:
    """The line of its GPU tells every successor what it was; a pod that comes after it begins anew."""
    world = World(policy="PhaseAware", limit_w=2000)
    run_pods(world, a0="d")
    told(world, owner("d", **{ROLE: "decode"}))
    for bare in (owner("d"), owner("d", **{GROUP: "g"})):
        operator = told(world, bare)
        assert caps(world, "a0") == [472]
        assert "their/d: its labels and rules say no phase any more" in condition(operator, "a", "OwnersKnown").message
    operator.keeper.on_owner(owner("d", **{ROLE: "prefill"}))
    operator.settle(12)
    assert caps(world, "a0") == [672], "what is said again counts"
    operator.keeper.on_owner(owner("job"))
    run_pods(world, a0="job")
    operator.settle(12)
    assert "1 pod of which" in condition(operator, "a", "OwnersKnown").message


def test_a_pod_of_which_nothing_was_read_yet_keeps_its_cap() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = awaiting(world)
    operator.settle(12)
    assert caps(world, "a0") == [MIN_W]
    run_pods(world, a0="d")
    for agent in world.agents.values():
        agent.run()
    operator.settle(12)
    assert caps(world, "a0") == [MIN_W], "nobody knows what it is, and a raise on a guess would have to be taken back"
    operator.keeper.on_owner(owner("d"))
    operator.settle(12)
    assert caps(world, "a0") == [DEFAULT_W], "read, and a stranger"


WORDS = st.sampled_from(["decode", "prefill", "both", "x"])
RULES = st.builds(
    WorkloadRule,
    st.just(Selector({"app": "x"})),
    st.none() | st.just(Selector({"team": "a"})),
    st.none() | st.sampled_from([Phase.PREFILL, Phase.DECODE]),
    st.none() | st.integers(-1000, 1000),
)


@settings(max_examples=25)
@given(
    labels=st.lists(st.dictionaries(st.sampled_from(["app", ROLE, GROUP, "splitwatt.io/group"]), WORDS), min_size=4, max_size=4),
    rules=st.lists(RULES, max_size=2),
    limit_w=st.integers(4 * MIN_W, 4 * 700),
)
def test_whatever_owners_claim_the_budget_is_kept(labels: list[dict[str, str]], rules: list[WorkloadRule], limit_w: int) -> None:
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=limit_w)
    for (node, i), pod in zip([(node, i) for node in ("a0", "b0") for i in range(2)], "wxyz", strict=True):
        world.nodes[node].workloads[f"{node}-g{i}"] = Workload("their", pod)
    ruled(world, *rules)
    operator = told(world, *(owner(pod, **said) for pod, said in zip("wxyz", labels, strict=True)))
    world.check()
    assert world.true_sum_w() <= limit_w and operator.last.budgets[ROOT].charge_w <= limit_w
    assert all(MIN_W <= cap <= 700 for node in ("a0", "b0") for cap in caps(world, node))


PODS = ("w", "x", "y", "z")
EVENTS = st.one_of(
    st.tuples(st.just("labels"), st.sampled_from(PODS), st.dictionaries(st.sampled_from([ROLE, GROUP, "app"]), WORDS)),
    st.tuples(st.just("gone"), st.sampled_from(PODS), st.none()),
    st.tuples(st.just("unnamed"), st.sampled_from(PODS), st.none()),
    st.tuples(st.just("rules"), st.none(), st.lists(RULES, max_size=2)),
    st.tuples(st.just("holds"), st.sampled_from(PODS), st.tuples(st.sampled_from(["a0", "b0"]), st.integers(0, 1))),
    st.tuples(st.just("limit"), st.none(), st.integers(4 * MIN_W, 4 * 700)),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


@settings(max_examples=30)
@given(st.lists(EVENTS, min_size=3, max_size=12), st.booleans())
def test_whatever_changes_of_owners_no_sum_is_lifted_and_every_charge_is_an_upper_bound(
    events: list[tuple[str, str | None, Any]], awaits: bool
) -> None:
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=1600)
    new = awaiting if awaits else World.elect
    operator, labels = new(world), dict[str, OwnerFact]()
    operator.settle(4)
    for what, pod, how in events:
        if what == "labels" and pod is not None:
            labels[pod] = owner(pod, **how)
            operator.keeper.on_owner(labels[pod])
        elif what == "gone" and pod is not None:
            operator.keeper.on_owner(OwnerFact("their", pod, ""))
        elif what == "unnamed" and pod is not None:
            operator.keeper.on_owner_gone("their", pod)
        elif what == "rules":
            ruled(world, *how)
        elif what == "holds" and pod is not None:
            world.nodes[how[0]].workloads[f"{how[0]}-g{how[1]}"] = Workload("their", pod)
        elif what == "limit":
            rules = world.budgets[ROOT].workloads
            world.set_limit(how)
            ruled(world, *rules)
        else:
            operator.holds_lease = False
            operator = new(world)
            for one in labels.values():
                operator.keeper.on_owner(one)
        operator.settle(2)
        world.check()
    operator.settle(15)
    assert world.true_sum_w() <= operator.last.budgets[ROOT].charge_w <= world.limit_w


# -------------------------------------------------------------------------------------------- one replica over two nodes


def replica(world: World, **labels: str) -> tuple[OwnerFact, OwnerFact]:
    """Leader and worker, each with the GPUs of a rack of its own."""
    run_pods(world, a0="chat-0", b0="chat-0-1")
    return owner("chat-0", **labels), owner("chat-0-1", **labels)


@pytest.mark.parametrize("role", [{}, {ROLE: "prefill"}], ids=["stranger", "prefill"])
def test_a_replica_over_two_racks_has_one_cap(role: dict[str, str]) -> None:
    """Else one half waits for the other, which draws the watts all the same."""
    world = World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    leader, worker = replica(world, **role)
    told(world, leader, worker)
    assert caps(world, "a0") == [325] and caps(world, "b0") >= [640], "two pods that nobody calls one"
    apart, world = world, World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    leader, worker = replica(world, **{GROUP: "8ce3", **role})
    operator = told(world, leader, worker)
    assert caps(world, "a0") == caps(world, "b0") == [325]
    assert operator.last.budgets[ROOT].charge_w < apart.charged_w(), "what it cannot use stays for others"


def test_a_group_is_raised_as_one_and_only_where_every_rack_has_room() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    operator = told(world, *replica(world, **{GROUP: "8ce3", ROLE: "decode"}))
    seen: set[tuple[int, int]] = set()
    for limit_w in (400, 450, 300, 475):
        world.set_limit(2000, a=limit_w, b=1000)
        for _ in range(12):
            operator.settle(1)
            seen.add((caps(world, "a0")[0], caps(world, "b0")[0]))
        assert caps(world, "a0") == caps(world, "b0") == [min(limit_w, 472)]
    assert all(b >= a for a, b in some(seen)), "the one with room follows down, and never waits above"


def test_a_group_label_that_vanishes_from_one_pod_leaves_it_in_the_group() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    operator = told(world, *replica(world, **{GROUP: "8ce3", ROLE: "prefill"}))
    operator.keeper.on_owner(owner("chat-0-1"))
    operator.settle(12)
    assert caps(world, "a0") == caps(world, "b0") == [325]


def test_a_replica_of_another_rank_or_namespace_is_another_one() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    ruled(world, WorkloadRule(Selector({"app": "x"}), priority=100))
    leader, worker = replica(world, **{GROUP: "8ce3", ROLE: "prefill"})
    told(world, replace(leader, labels={**leader.labels, "app": "x"}), worker)
    assert caps(world, "a0") == [325] and caps(world, "b0")[0] >= 640


def test_groups_are_kept_across_a_new_operator() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.set_limit(2000, a=325, b=1000)
    pair = replica(world, **{GROUP: "8ce3", ROLE: "prefill"})
    told(world, *pair)
    told(world, *pair)
    assert caps(world, "a0") == caps(world, "b0") == [325]


def test_nobody_is_told_of_pods_of_ours_twice() -> None:
    """An InferenceCluster's word comes first: no rule and no label of the pod says anything beside it."""
    world = World(policy="PhaseAware", limit_w=2000)
    run_pods(world, a0="mine")
    world.pods[("their", "mine")] = PodFact("their", "mine", Phase.DECODE, 5)
    ruled(world, WorkloadRule(Selector({"app": "x"}), phase=Phase.PREFILL, priority=900))
    told(world, owner("mine", app="x", **{ROLE: "prefill"}))
    assert caps(world, "a0") == [472]
    spec = world.store.objects["a0"].spec
    assert spec is not None and {line.power_class for line in spec.gpus} == {PowerClass(5, 700)}
