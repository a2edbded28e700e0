"""Acknowledgements of grants that nobody made: nothing is retired by them, nothing falls, and nothing ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.protocol.contract import GRANTS_PER_TERM, MAX_GPU_WATTS, GpuStatus, Health, NodePower
from support.keepers import condition, settled
from support.ledgers import TERM, charge_w, line, node, reading, settled_w, version
from support.world import DEFAULT_W, MIN_W, ROOT, World

OURS: Final = TERM * GRANTS_PER_TERM
NUMBERS = st.sampled_from([-1, 0, 1, *(term * GRANTS_PER_TERM + 3 for term in range(1, 5)), 2**31, 2**53, 2**63, 10**30])
TOLD_W = st.sampled_from([-(2**40), -1, 0, 1, MIN_W, 300, DEFAULT_W, DEFAULT_W + 1, MAX_GPU_WATTS, 2**31, 2**53])


@pytest.mark.parametrize("acked", [OURS + 6, OURS + GRANTS_PER_TERM, 2**53, 10**30])
def test_what_was_never_granted_is_not_acknowledged_and_retires_nothing(acked: int) -> None:
    raised = line(OURS + 5, 500)
    forged = version(1, raised, status=(reading(acked, 300),))
    account = node(forged)
    assert settled_w(account) == 700
    assert str(acked) in account.gpus["g0"].oddity and account.gpus["g0"].health is Health.UNKNOWN
    account.observe(version(2, raised, status=(reading(OURS + 4, 300),)), 1000.0, term=TERM)
    assert settled_w(account) == 500, "a sane word: the raise to 500 W still counts"


@pytest.mark.parametrize(("min_w", "listed"), [(800, 1), (200, 2)])
def test_no_contradiction_retires_what_it_may_not_acknowledge(min_w: int, listed: int) -> None:
    low = line(OURS + 4, 300)
    account = node(version(1, low, status=(reading(OURS + 4, 300),)))
    account.gpus["g0"].learn(line(OURS + 6, 600))  # sent, and not heard of since
    account.gpus["g0"].learn(line(OURS + 7, 200))
    row = reading(OURS + 7, 300, min_w=min_w)
    account.observe(version(2, low, status=(row,) * listed), 1000.0, term=TERM)
    account.observe(version(3, low, status=(reading(OURS + 4, 300),)), 1000.0, term=TERM)
    assert settled_w(account) == 600


def test_a_grant_on_its_way_outlives_an_acknowledgement_of_the_future() -> None:
    low = line(OURS + 4, 300)
    account = node(version(1, low, status=(reading(OURS + 4, 300),)))
    account.gpus["g0"].learn(line(OURS + 6, 600))
    account.observe(version(2, low, status=(reading(2**53, 300),)), 1000.0, term=TERM)
    account.observe(version(3, low, status=(reading(OURS + 4, 300),)), 1000.0, term=TERM)
    assert settled_w(account) == 600


@pytest.mark.parametrize(("acked", "expected_w"), [(OURS - 1, 300), (OURS + 1, 700)])
def test_without_a_line_only_earlier_terms_can_have_granted(acked: int, expected_w: int) -> None:
    """A line that was withdrawn leaves its acknowledgement behind; whoever starts then never saw it."""
    assert charge_w(node(version(1, status=(reading(acked, 300),)))) == expected_w


def test_a_line_of_an_earlier_term_stays_acknowledged_before_and_after_the_stamp() -> None:
    old = line(OURS - 7, 300)
    account = node(version(1, old, status=(reading(OURS - 7, 300),), term=TERM - 1))
    assert charge_w(account) == 300 and not account.gpus["g0"].oddity
    account.observe(version(2, old, status=(reading(OURS - 7, 300),)), 1000.0, term=TERM)
    assert charge_w(account) == 300 and not account.gpus["g0"].oddity


def forge(world: World, name: str, *rows: GpuStatus) -> None:
    stored = world.store.objects[name]
    told = replace(stored.status, gpus=rows)
    assert world.store.write_status(name, stored.uid, stored.resource_version, told) is not None


def look(world: World) -> None:
    world.now_s += 0.6
    world.active.watch()
    world.active.step()
    while world.active.sent:
        world.active.arrive()


def test_who_knows_grants_of_a_lost_future_is_told_its_cap_anew() -> None:
    """The store was set back: an agent refuses what is lower than what it took in (R12), so only a higher number reaches it."""
    world = World(limit_w=2 * DEFAULT_W)
    settled(world)
    operator = settled(world, 4)
    stored = world.store.objects["a0"]
    assert stored.spec is not None
    (before,) = stored.spec.gpus
    forge(world, "a0", replace(stored.status.gpus[0], acked_grant=before.grant + 7))
    look(world)
    steered = condition(operator, ROOT, "Steered")
    assert (steered.status, steered.reason) == (False, "ContradictoryStatus") and str(before.grant + 7) in steered.message
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.gpus[0].grant > before.grant + 7 and spec.gpus[0].cap_w == before.cap_w
    look(world)
    assert world.store.objects["a0"].spec == spec, "once"
    operator.settle(6)
    assert condition(operator, ROOT, "Steered").status


@settings(max_examples=25)
@given(
    claims=st.lists(st.sampled_from([1, 2, 5, GRANTS_PER_TERM, 2**53]), min_size=1, max_size=6),
    limits=st.lists(st.sampled_from([450, 900, 1400]), min_size=6, max_size=6),
)
def test_an_agent_that_acknowledges_the_future_is_charged_what_it_may_draw(claims: list[int], limits: list[int]) -> None:
    """It reads its limits back as they are, and applies what it is granted after it has told of it."""
    world = World()
    settled(world, 4)
    for ahead, limit_w in zip(claims, limits, strict=False):
        stored = world.store.objects["a0"]
        assert stored.spec is not None
        newest = max(row.grant for row in stored.spec.gpus)
        world.set_limit(limit_w)
        forge(world, "a0", *(replace(row, acked_grant=newest + ahead) for row in stored.status.gpus))
        look(world)
        world.check()
        world.agents["a0"].watch()
        world.agents["a0"].turn()
        world.agents["b0"].run()
        look(world)
        world.check()


ROWS = st.lists(
    st.builds(
        GpuStatus,
        uuid=st.sampled_from(["a0-g0", "a0-g1", "b0-g0", "unreadable-index-0"]),
        acked_grant=NUMBERS,
        management_w=st.none() | TOLD_W,
        enforced_w=st.none() | TOLD_W,
        min_w=TOLD_W,
        max_w=TOLD_W,
        default_w=TOLD_W,
        floor_w=TOLD_W,
    ),
    max_size=4,
).map(tuple)


@given(statuses=st.lists(ROWS, min_size=1, max_size=6))
def test_whatever_one_agent_tells_the_operator_lives_and_honest_gpus_are_charged(statuses: list[tuple[GpuStatus, ...]]) -> None:
    world = World(limit_w=1000)
    operator = settled(world, 4)
    for rows in statuses:
        forge(world, "a0", *rows)
        look(world)
        world.agents["b0"].run()
        look(world)
        charged_w, honest = operator.charge_w("b0", "b0-g0"), world.nodes["b0"].gpus["b0-g0"]
        assert charged_w is not None and charged_w >= honest.may_draw_w(world.now_s)
    assert operator.last.resign is None


def test_an_object_without_a_spec_has_nothing_to_acknowledge() -> None:
    bare: NodePower = replace(version(1, status=(reading(3, 300),)), spec=None)
    assert charge_w(node(bare)) == 700
