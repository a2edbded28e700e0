"""Rollouts of clusters that ask for more replicas than there are watts for: they end, keep a pair, and give one at a time."""

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
class Pool:
    wanted: int = 0
    placed: int = 0
    ready: int = 0


@dataclass
class Rack:
    """`places`: replicas of each role that there are watts for. A pod that goes holds its place until it is gone."""

    replicas: dict[Role, int]
    places: dict[Role, int]
    newest: str = "a"
    pools: dict[str, dict[Role, Pool]] = field(default_factory=dict)
    leaving: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(PAIR, 0))
    routers: dict[str, int] = field(default_factory=dict)
    most: dict[Role, int] = field(default_factory=dict)
    forgets: bool = False
    """An operator that comes anew at every step."""

    def pool(self, revision: str, role: Role) -> Pool:
        return self.pools.setdefault(revision, {}).setdefault(role, Pool())

    def ready(self, role: Role) -> int:
        return sum(by[role].ready for by in self.pools.values() if role in by)

    def free(self, role: Role) -> int:
        held = sum(by[role].placed for by in self.pools.values() if role in by)
        return self.places[role] - held - self.leaving[role]

    def step(self) -> RolloutPlan:
        states = {
            revision: RevisionState(
                {
                    role: PoolState(pool.wanted, pool.ready, pool.wanted - pool.placed)
                    for role, pool in self.pools.get(revision, {}).items()
                },
                revision in self.routers,
                max(0, self.routers.get(revision, 0)),
            )
            for revision in self.pools.keys() | self.routers.keys()
        }
        for role in PAIR:
            self.most[role] = 0 if self.forgets else max(self.most.get(role, 0), self.ready(role))
        plan = plan_rollout(states, newest=self.newest, replicas=self.replicas, ready_at_most=self.most)
        for revision, wanted in plan.replicas.items():
            for role, count in wanted.items():
                pool = self.pool(revision, role)
                placed = min(pool.placed, count)
                self.leaving[role] += pool.placed - placed
                self.pools[revision][role] = Pool(count, placed, min(pool.ready, placed))
        for revision in plan.routers - self.routers.keys():
            self.routers[revision] = 0
        for revision in self.routers.keys() - plan.routers:
            self.routers[revision] = -1
        self.pools = {r: by for r, by in self.pools.items() if r == self.newest or any(p.wanted for p in by.values())}
        return plan

    def happen(self, what: str, number: int) -> None:
        pools = [(r, role, pool) for r, by in sorted(self.pools.items()) for role, pool in by.items()]
        match what:
            case "step":
                self.step()
            case "gone":
                role = PAIR[number % 2]
                self.leaving[role] = max(0, self.leaving[role] - 1)
            case "admit":
                able = [pool for _, role, pool in pools if pool.placed < pool.wanted and self.free(role) > 0]
                if able:
                    able[number % len(able)].placed += 1
            case "start":
                able = [pool for _, _, pool in pools if pool.ready < pool.placed]
                if able:
                    able[number % len(able)].ready += 1
            case _:
                self.route()

    def route(self) -> None:
        for revision, ready in list(self.routers.items()):
            if ready == -1:
                del self.routers[revision]
            elif self.pair(revision):
                self.routers[revision] = 1

    def pair(self, revision: str) -> bool:
        return all(self.pools.get(revision, {}).get(role, Pool()).ready for role in PAIR)

    def serving(self) -> bool:
        return any(ready > 0 and self.pair(revision) for revision, ready in self.routers.items())

    def settle(self) -> None:
        self.step()
        for number in range(2):
            self.happen("gone", number)
        for _ in range(20):
            self.happen("admit", 0)
        for _ in range(20):
            self.happen("start", 0)
        self.route()

    def done(self) -> bool:
        """Whatever there are watts for is of the newest, and nothing else is left."""
        ready = {role: min(self.replicas[role], self.places[role]) for role in PAIR}
        mine = {role: self.pool(self.newest, role).ready for role in PAIR}
        return set(self.pools) == {self.newest} and mine == ready and self.routers == {self.newest: 1}

    def finish(self) -> None:
        for _ in range(300):
            self.settle()
            if self.done():
                return
        raise AssertionError(f"not done: {self}")


def running(replicas: tuple[int, int], places: tuple[int, int], *, forgets: bool = False) -> Rack:
    pair = zip(PAIR, replicas, strict=True), zip(PAIR, places, strict=True)
    rack = Rack(dict(pair[0]), dict(pair[1]), forgets=forgets)
    rack.finish()
    rack.newest = "b"
    return rack


@pytest.mark.parametrize(("replicas", "places"), [((6, 6), (4, 4)), ((3, 3), (2, 2)), ((2, 10), (2, 3)), ((10, 10), (4, 4))])
def test_what_an_autoscaler_asks_for_in_vain_does_not_stop_a_rollout(replicas: tuple[int, int], places: tuple[int, int]) -> None:
    rack = running(replicas, places)
    plan = rack.step()
    missing = [f"{r - p} {role.value}" for r, p, role in zip(replicas, places, PAIR, strict=True) if r > p]
    assert f"{' and '.join(missing)} have no watts, and the others move without them." in plan.sentence
    rack.finish()


def test_a_place_that_somebody_else_got_is_the_last_one_given() -> None:
    """A cluster that comes first takes whatever becomes free."""
    rack = running((4, 4), (4, 4))
    for _ in range(30):
        rack.step()
        for number in range(2):
            rack.happen("gone", number)
        for role in PAIR:
            rack.places[role] -= rack.free(role)
    assert {role: rack.ready(role) for role in PAIR} == {P: 3, D: 3} == rack.places, "none but the first"
    assert rack.serving()
    rack.places = dict.fromkeys(PAIR, 4)
    rack.finish()


def test_watts_for_one_of_two_replicas_interrupt_nobody() -> None:
    """Nor does the rollout go on: whoever wants it scales to one, or finds watts."""
    rack = running((2, 2), (1, 1))
    for _ in range(30):
        plan = rack.step()
        rack.settle()
        assert rack.serving()
    assert "1 prefill and 1 decode have no watts" in plan.sentence and rack.pool("a", D).ready == 1
    rack.replicas = dict.fromkeys(PAIR, 1)
    rack.finish()


EVENTS = st.tuples(st.sampled_from(["step", "step", "gone", "admit", "start", "route"]), st.integers(0, 7))


@settings(max_examples=sized(2000), deadline=None)
@given(
    replicas=st.tuples(st.integers(2, 7), st.integers(2, 7)), places=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    events=st.lists(EVENTS, max_size=80), forgets=st.booleans(),
)  # fmt: skip
def test_a_rollout_ends_with_whatever_there_are_watts_for_and_somebody_serves_meanwhile(
    replicas: tuple[int, int], places: tuple[int, int], events: list[tuple[str, int]], forgets: bool
) -> None:
    """Whoever gets what is free. Where the operator remembers what it saw, no role has ever more than one missing."""
    rack = running(replicas, places, forgets=forgets)
    before = {role: rack.ready(role) for role in PAIR}
    for what, number in events:
        rack.happen(what, number)
        assert rack.serving(), rack
        if not forgets:
            missing = {role: before[role] - rack.ready(role) for role in PAIR}
            assert all(count <= 1 or {**rack.routers}.get("a", -1) == -1 for count in missing.values()), rack
    rack.finish()
