"""Who says how many replicas prefill has: whoever spoke last, however often the other repeats himself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.clusters import MAX_REPLICAS, Role
from splitwatt_core.rendering.objects import object_name
from splitwatt_core.rendering.role_scale import ScaleFact, heard, replicas_in_force, role_scale
from support.served import cluster

REPLICAS = st.integers(0, MAX_REPLICAS)


class World:
    """An InferenceCluster and its RoleScale; `look` is the operator's."""

    def __init__(self, declared: int) -> None:
        self.declared = declared
        self.scale: ScaleFact | None = None

    def look(self) -> int:
        if self.scale is None:
            self.scale = ScaleFact(self.declared, self.declared, "u")
        elif not heard(self.declared, self.scale):
            forgot = self.scale.declared is None
            self.scale = replace(self.scale, declared=self.declared, replicas=self.scale.replicas if forgot else self.declared)
        return replicas_in_force(self.declared, self.scale)


@given(REPLICAS, st.lists(st.tuples(st.sampled_from(["cluster", "scale", "again", "look", "restart"]), REPLICAS), max_size=30))
def test_the_last_change_holds_and_what_is_only_repeated_undoes_nothing(first: int, events: list[tuple[str, int]]) -> None:
    world = World(first)
    last = world.look()
    for what, replicas in events:
        assert world.scale is not None
        if what == "cluster":
            last = last if replicas == world.declared else replicas
            world.declared = replicas
        elif what == "scale":
            world.scale, last = replace(world.scale, replicas=replicas), replicas
        # Between two looks in order; GitOps applies the same again, and an operator that starts anew has no memory of its own.
        assert replicas_in_force(world.declared, world.scale) == world.look() == last
        assert world.scale is not None and world.scale.replicas == last and heard(world.declared, world.scale)


@given(REPLICAS, REPLICAS, REPLICAS)
def test_of_two_changes_that_nobody_saw_in_order_the_clusters_holds(before: int, declared: int, scaled: int) -> None:
    in_force = replicas_in_force(declared, ScaleFact(scaled, before, "u"))
    assert in_force == (scaled if declared == before else declared)


@given(REPLICAS, REPLICAS)
def test_one_that_forgot_what_was_declared_holds_and_one_that_is_gone_does_not(declared: int, scaled: int) -> None:
    """A restore from a backup, or a hand that took the annotation out."""
    assert replicas_in_force(declared, ScaleFact(scaled, None, "u")) == scaled
    assert replicas_in_force(declared, None) == declared


@pytest.mark.parametrize("name", ["chat", "long-" + "x" * 95])
def test_a_new_one_says_what_the_cluster_does_and_goes_with_it(name: str) -> None:
    spec = cluster(name)
    made = role_scale(spec, 4)
    meta = made["metadata"]
    assert (meta["name"], meta["namespace"]) == (object_name(name, Role.PREFILL), spec.namespace)
    assert made["spec"] == {"cluster": name, "role": "Prefill", "replicas": 4}
    assert meta["annotations"] == {"splitwatt.io/declared-replicas": "4"}
    [owner] = meta["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("InferenceCluster", name, spec.uid, True)
