"""Rollouts keep a pair that requests can be served by, whatever happens meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.clusters import PAIR, Role
from splitwatt_core.serving.rollout import PoolState, RevisionState, RolloutPlan, plan_rollout
from support.sizes import sized

P, D = Role.PREFILL, Role.DECODE


@dataclass
class Fleet:
    """What the API server and the kubelets would make of plans. Pods become ready, and routers' pods go, when a test says so."""

    replicas: dict[Role, int]
    newest: str
    pools: dict[str, dict[Role, PoolState]] = field(default_factory=dict)
    routers: dict[str, int] = field(default_factory=dict)
    """Ready routers of each revision whose Deployment is there; -1: told to go, and its pods are still amid requests."""
    with_router: bool = True
    broken: set[str] = field(default_factory=set)

    def state(self) -> dict[str, RevisionState]:
        return {
            revision: RevisionState(
                self.pools.get(revision, {}), revision in self.routers, max(0, self.routers.get(revision, 0))
            )
            for revision in self.pools.keys() | self.routers.keys()
        }  # fmt: skip

    def step(self) -> RolloutPlan:
        plan = plan_rollout(self.state(), newest=self.newest, replicas=self.replicas, with_router=self.with_router)
        for revision, wanted in plan.replicas.items():
            for role, count in wanted.items():
                before = self.pools.setdefault(revision, {}).get(role, PoolState())
                # a ReplicaSet takes those first that are not ready
                self.pools[revision][role] = PoolState(count, min(before.ready, count))
        for revision in [r for r, by in self.pools.items() if r != self.newest and not any(p.wanted for p in by.values())]:
            del self.pools[revision]
        for revision in plan.routers - self.routers.keys():
            self.routers[revision] = 0
        for revision in self.routers.keys() - plan.routers:
            self.routers[revision] = -1
        self.look()
        return plan

    def look(self) -> None:
        """A router is ready while it knows a pair."""
        for revision, ready in self.routers.items():
            if ready >= 0 and not self.pair(revision):
                self.routers[revision] = 0

    def pair(self, revision: str) -> bool:
        """A router has to know one of each role, whatever they are scaled to."""
        asked = [role for role in PAIR if self.with_router or self.replicas[role]]
        return all(self.pools.get(revision, {}).get(role, PoolState()).ready > 0 for role in asked)

    def start(self, revision: str, role: Role) -> None:
        pool = self.pools[revision].get(role, PoolState())
        if revision not in self.broken and pool.ready < pool.wanted:
            self.pools[revision][role] = PoolState(pool.wanted, pool.ready + 1)

    def route(self, revision: str) -> None:
        if self.routers.get(revision) == 0 and self.pair(revision):
            self.routers[revision] = 1

    def gone(self, revision: str) -> None:
        if self.routers.get(revision) == -1:
            del self.routers[revision]

    def settle(self) -> None:
        for revision in sorted(self.pools):
            for role in PAIR:
                self.start(revision, role)
        for revision in sorted(self.routers):
            self.route(revision)
            self.gone(revision)

    def serving(self) -> set[str]:
        return {
            revision
            for revision in self.pools
            if self.pair(revision) and (not self.with_router or self.routers.get(revision, 0) > 0)
        }

    def held(self, role: Role) -> int:
        return sum(by.get(role, PoolState()).wanted for by in self.pools.values())

    def finish(self) -> int:
        """The steps until nothing but the newest is left."""
        for steps in range(1, 300):
            self.step()
            self.settle()
            if self.done():
                return steps
        raise AssertionError(f"not done: {self}")

    def done(self) -> bool:
        whole = {role: PoolState(count, count) for role, count in self.replicas.items()}
        routers = {self.newest} if self.with_router else set()
        served = bool(self.serving()) or (self.with_router and 0 in self.replicas.values())
        return self.pools == {self.newest: whole} and set(self.routers) == routers and served


def running(prefill: int, decode: int, *, with_router: bool = True) -> Fleet:
    fleet = Fleet({P: prefill, D: decode}, "a", with_router=with_router)
    fleet.finish()
    return fleet


def test_a_new_cluster_gets_all_its_replicas_and_a_router_at_once() -> None:
    plan = plan_rollout({}, newest="a", replicas={P: 2, D: 3})
    assert plan.replicas == {"a": {P: 2, D: 3}}
    assert plan.routers == {"a"} and not plan.interrupted and plan.sentence == ""


def test_two_and_two_move_one_by_one_and_the_routers_first() -> None:
    fleet = running(2, 2)
    fleet.newest = "b"
    fleet.step()
    assert fleet.pools["a"] == {P: PoolState(1, 1), D: PoolState(1, 1)} and fleet.held(P) == 1
    fleet.step()
    assert fleet.pools["b"] == {P: PoolState(1, 0), D: PoolState(1, 0)}
    fleet.start("b", P)
    fleet.step()
    assert fleet.pools["a"] == {P: PoolState(1, 1), D: PoolState(1, 1)} and "b" not in fleet.routers, "b has no pair yet"
    fleet.start("b", D)
    fleet.step()
    assert fleet.routers == {"a": 1, "b": 0}
    fleet.step()
    assert fleet.pools["a"] == {P: PoolState(1, 1), D: PoolState(1, 1)}, "b's router takes no request yet"
    fleet.route("b")
    fleet.step()
    assert fleet.routers == {"a": -1, "b": 1}
    assert "The router of a has pods that have not ended." in fleet.step().sentence
    assert fleet.pools["a"] == {P: PoolState(1, 1), D: PoolState(1, 1)}, "a's router may be amid a request"
    fleet.gone("a")
    fleet.step()
    assert "a" not in fleet.pools
    fleet.finish()


def test_one_of_a_role_is_an_interruption_and_is_told() -> None:
    fleet = running(1, 2)
    fleet.newest = "b"
    plan = fleet.step()
    assert plan.interrupted and "prefill has one replica" in plan.sentence
    assert fleet.pools["a"] == {P: PoolState(1, 1), D: PoolState(1, 1)}, "decode moves one first"
    fleet.step()
    assert fleet.pools["a"][P] == PoolState(1, 1)
    fleet.start("b", D)
    fleet.step()
    assert fleet.pools["a"][P] == PoolState(0, 0), "then prefill, for as long as it takes to start"
    fleet.finish()


def test_a_revision_that_does_not_start_stops_and_the_former_serves_on() -> None:
    fleet = running(3, 4)
    fleet.newest, fleet.broken = "b", {"b"}
    for _ in range(30):
        fleet.step()
        fleet.settle()
    assert fleet.pools["a"] == {P: PoolState(2, 2), D: PoolState(3, 3)} and fleet.serving() == {"a"}
    fleet.newest = "c"
    fleet.finish()


def test_a_rollback_takes_the_way_back() -> None:
    fleet = running(2, 2)
    fleet.newest, fleet.broken = "b", {"b"}
    for _ in range(5):
        fleet.step()
        fleet.settle()
    fleet.newest = "a"
    plan = fleet.step()
    assert plan.replicas["b"] == {P: 0, D: 0} and plan.kept == "a"
    assert fleet.finish() < 5


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16])
def test_at_least_so_much_is_there_for_what_each_router_is_asked(count: int) -> None:
    """Of the requests that all replicas could serve, none is asked for more than twice its part."""
    fleet = running(count, count)
    fleet.newest = "b"
    for _ in range(300):
        fleet.step()
        for when in (fleet.look, fleet.settle):
            when()
            asked = [revision for revision in fleet.routers if fleet.routers[revision] > 0]
            for revision in asked:
                ready = min(fleet.pools[revision][role].ready for role in PAIR)
                assert ready * len(asked) * 2 >= count - 1, (fleet, revision)
        if fleet.done():
            return
    raise AssertionError("not done")


def test_no_role_runs_ahead_of_the_other() -> None:
    fleet = running(8, 8)
    fleet.newest = "b"
    for _ in range(30):
        fleet.step()
        fleet.start("b", P)
    assert fleet.pools == {"a": {P: PoolState(6, 6), D: PoolState(7, 7)}, "b": {P: PoolState(2, 2), D: PoolState(1, 0)}}


def test_of_two_that_serve_the_former_is_kept_until_the_newest_has_as_much() -> None:
    """Two prefill replicas have met in the middle at once, of six decode replicas one has moved."""
    fleet = running(2, 6)
    fleet.newest = "b"
    while "b" not in fleet.routers:
        fleet.step()
        fleet.settle()
        assert fleet.routers.get("a") == 1, fleet
    while fleet.routers.get("a") == 1:
        before = fleet.pools["b"][D].ready
        assert fleet.step().kept == "a" or before >= 3
        fleet.settle()
    fleet.finish()


def test_a_router_that_nobody_reaches_for_a_moment_is_not_taken_away() -> None:
    fleet = running(3, 3)
    fleet.newest = "b"
    for _ in range(2):
        fleet.step()
        fleet.start("b", P)
        fleet.start("b", D)
    fleet.routers = {"a": 0}
    fleet.pools = {revision: {P: PoolState(n, n), D: PoolState(n, n)} for revision, n in (("a", 1), ("b", 2))}
    assert fleet.step().routers == {"a", "b"}


EVENTS = st.one_of(
    st.just(("step", 0)),
    st.just(("step", 0)),
    st.tuples(st.just("start"), st.integers(0, 7)),
    st.tuples(st.just("start"), st.integers(0, 7)),
    st.tuples(st.just("route"), st.integers(0, 3)),
    st.tuples(st.just("gone"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["newest", "newest", "prefill", "decode"]), st.integers(0, 7)),
)
"""The number says which of those that can."""


def happen(fleet: Fleet, name: str, number: int, *, least: int) -> None:
    """`least`: replicas that a role is scaled to."""
    match name:
        case "step":
            fleet.step()
        case "start":
            able = [
                (revision, role)
                for revision, by in sorted(fleet.pools.items())
                for role in PAIR
                if revision not in fleet.broken and by.get(role, PoolState()).ready < by.get(role, PoolState()).wanted
            ]
            if able:
                fleet.start(*able[number % len(able)])
        case "route" | "gone":
            waiting = sorted(r for r, ready in fleet.routers.items() if ready == (0 if name == "route" else -1))
            if waiting:
                getattr(fleet, name)(waiting[number % len(waiting)])
        case "newest":
            fleet.newest = "abc"[number % 3]
        case _:
            fleet.replicas[Role(name)] = least + number % 5


@settings(max_examples=sized(4000), deadline=None)
@given(
    prefill=st.integers(2, 5), decode=st.integers(2, 5), events=st.lists(EVENTS, max_size=80), with_router=st.booleans(),
    broken=st.sets(st.sampled_from("bc"), max_size=1),
)  # fmt: skip
def test_somebody_serves_at_every_moment_and_no_role_grows_beyond_what_is_asked(
    prefill: int, decode: int, events: list[tuple[str, int]], with_router: bool, broken: set[str]
) -> None:
    """Rollouts, rollbacks, rollouts amid rollouts, scaling, revisions that never start."""
    fleet = running(prefill, decode, with_router=with_router)
    fleet.broken = broken
    for name, number in (("newest", 1), *events):
        held = {role: fleet.held(role) for role in PAIR}
        happen(fleet, name, number, least=2)
        assert fleet.serving(), (name, number, fleet)
        assert all(fleet.held(role) <= max(held[role], fleet.replicas[role]) for role in PAIR)
    fleet.broken = set()
    fleet.finish()


@settings(max_examples=sized(2000), deadline=None)
@given(events=st.lists(EVENTS, max_size=60), with_router=st.booleans())
def test_a_rollout_ends_whatever_a_role_is_scaled_to(events: list[tuple[str, int]], with_router: bool) -> None:
    """To nothing and to one, too; told to be interrupted only where a role has one."""
    fleet = running(2, 2, with_router=with_router)
    for name, number in events:
        held = {role: fleet.held(role) for role in PAIR}
        happen(fleet, name, number, least=0)
        assert all(fleet.held(role) <= max(held[role], fleet.replicas[role]) for role in PAIR)
        plan = plan_rollout(fleet.state(), newest=fleet.newest, replicas=fleet.replicas, with_router=with_router)
        assert plan.interrupted <= (1 in fleet.replicas.values())
    fleet.finish()


def test_from_split_to_unsplit_serving_is_interrupted_and_that_is_said() -> None:
    old = RevisionState({P: PoolState(2, 2), D: PoolState(3, 3)}, routed=True, routers_ready=1)
    plan = plan_rollout({"a": old}, newest="b", replicas={Role.MIXED: 2})
    assert plan.interrupted and "prefill and decode go before the others are ready" in plan.sentence
    assert plan.replicas["b"][Role.MIXED] == 2 and plan.replicas["a"] == {P: 0, D: 0, Role.MIXED: 0}
    there = RevisionState({Role.MIXED: PoolState(2, 2)}, routed=True, routers_ready=1)
    assert not plan_rollout({"a": old, "b": there}, newest="b", replicas={Role.MIXED: 2}).interrupted


@pytest.mark.parametrize("replicas", [{P: 0, D: 3}, {P: 2, D: 0}])
def test_with_a_role_at_zero_the_other_is_rolled_all_the_same(replicas: dict[Role, int]) -> None:
    """No router is ready then, of either revision."""
    fleet = running(3, 3)
    fleet.replicas = replicas
    for _ in range(3):
        fleet.step()
        fleet.settle()
    fleet.newest = "b"
    empty = "prefill" if not replicas[P] else "decode"
    plan = fleet.step()
    assert f"Nobody is served while {empty} is scaled to zero." in plan.sentence and plan.reason == "ScaledToZero"
    fleet.finish()
    fleet.replicas = {P: 2, D: 2}
    assert fleet.finish() < 4


@pytest.mark.parametrize("zero", [{P}, {D}, {P, D}])
def test_who_is_rolled_without_a_router_while_a_role_is_at_zero_is_told_of_no_pair(zero: set[Role]) -> None:
    replicas = {role: 0 if role in zero else 3 for role in PAIR}
    old = RevisionState({role: PoolState(count, count) for role, count in replicas.items()})
    plan = plan_rollout({"a": old}, newest="b", replicas=replicas, with_router=False)
    roles = "prefill and decode are" if len(zero) == 2 else f"{next(iter(zero))} is"
    assert plan.reason == "ScaledToZero" and plan.sentence.endswith(f"There is no pair to keep while {roles} scaled to zero.")
    both = RevisionState({role: PoolState(3, 3) for role in PAIR})
    assert plan_rollout({"a": both}, newest="b", replicas=dict.fromkeys(PAIR, 3), with_router=False).reason == "PairsKept"


def test_a_cluster_scaled_to_nothing_amid_a_rollout_ends_it() -> None:
    nothing = dict.fromkeys(PAIR, 0)
    old = RevisionState({role: PoolState() for role in PAIR}, routed=True, routers_ready=1)
    assert "b" in plan_rollout({"a": old}, newest="b", replicas=nothing).routers, "else the former's router would stay for ever"
    there = RevisionState({}, routed=True, routers_ready=1)
    assert plan_rollout({"a": old, "b": there}, newest="b", replicas=nothing).routers == {"b"}
