"""The node guard: neighbours make up for a GPU that cannot be held, at once, and get their watts back slowly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.protocol.node_guard import GuardInput, GuardSettings, NodeGuard

TICK_S = 0.2
CAP_W, MIN_W, MAX_W = 450, 200, 700
HELD = GuardInput(cap_w=CAP_W, min_w=MIN_W, max_w=MAX_W, management_mw=CAP_W * 1000, enforced_mw=CAP_W * 1000, power_mw=400_000)
SICK = replace(HELD, management_mw=700_000, enforced_mw=700_000, power_mw=690_000)


class Node:
    """A node whose healthy GPUs do what they are told at once and draw their cap."""

    def __init__(self, gpus: int = 8, limit_w: int | None = 8 * CAP_W, guard: NodeGuard | None = None) -> None:
        self.guard = guard or NodeGuard()
        self.limit_w = limit_w
        self.now_s = 100.0
        self.given = {f"g{i}": HELD for i in range(gpus)}
        self.caps: dict[str, int] = {}
        self.draw_share = 0.95
        self.stuck: frozenset[str] = frozenset()
        self.liars: frozenset[str] = frozenset()

    def run(self, seconds: float) -> dict[str, int]:
        for _ in range(round(seconds / TICK_S)):
            self.caps = dict(self.guard.step(self.now_s, self.limit_w, self.given))
            for uuid, cap_w in self.caps.items():
                given = self.given[uuid]
                if given.management_mw is not None and given.power_mw is not None and uuid not in self.stuck:
                    self.given[uuid] = replace(
                        given,
                        management_mw=cap_w * 1000,
                        enforced_mw=cap_w * 1000,
                        power_mw=round(cap_w * 1000 * self.draw_share),
                    )
                if uuid in self.liars:
                    self.given[uuid] = replace(self.given[uuid], power_mw=700_000)
            self.now_s += TICK_S
        return self.caps

    def break_gpu(self, uuid: str, given: GuardInput) -> None:
        self.stuck = self.stuck | {uuid}
        self.given[uuid] = given

    def mend(self, uuid: str) -> None:
        self.stuck = self.stuck - {uuid}
        self.given[uuid] = replace(HELD, cap_w=self.given[uuid].cap_w)


def test_a_healthy_node_gets_its_grants() -> None:
    node = Node()
    assert set(node.run(5).values()) == {CAP_W}
    assert node.guard.lowered == {}


def test_neighbours_make_up_for_a_setter_that_does_nothing() -> None:
    node = Node()
    node.run(1)
    node.break_gpu("g0", SICK)
    assert set(node.run(0.8).values()) == {CAP_W}, "a setter call may still be on its way"
    caps = node.run(0.6)
    others = [caps[uuid] for uuid in caps if uuid != "g0"]
    assert len(set(others)) == 1 and sum(others) + 700 <= 8 * CAP_W < sum(others) + 700 + len(others)
    assert caps["g0"] == CAP_W, "the sick one is still asked for its own cap"


def test_never_below_the_minimum_cap() -> None:
    node = Node(gpus=2, limit_w=900)
    node.break_gpu("g0", replace(SICK, management_mw=900_000))
    assert node.run(3) == {"g0": CAP_W, "g1": MIN_W}


def test_release_waits_for_the_dwell_and_is_slow() -> None:
    node = Node()
    node.break_gpu("g0", SICK)
    node.run(3)
    lowered = node.caps["g1"]
    node.mend("g0")
    assert node.run(10)["g1"] == lowered, "nothing within the dwell"
    assert lowered < node.run(1.4)["g1"] <= lowered + 15
    assert node.run(10)["g1"] == CAP_W
    assert node.guard.lowered == {}


def test_a_relapse_within_the_release_lowers_at_once_and_starts_the_dwell_anew() -> None:
    node = Node()
    node.break_gpu("g0", SICK)
    node.run(3)
    lowered = node.caps["g1"]
    node.mend("g0")
    node.run(12)
    assert node.caps["g1"] > lowered
    node.break_gpu("g0", SICK)
    assert node.run(1.4)["g1"] == lowered
    node.mend("g0")
    assert node.run(9)["g1"] == lowered


def test_a_fault_long_after_a_quiet_time_still_gets_a_full_dwell() -> None:
    node = Node()
    node.run(60)
    node.break_gpu("g0", SICK)
    node.run(30)
    lowered = node.caps["g1"]
    node.mend("g0")
    assert node.run(9)["g1"] == lowered


@pytest.mark.parametrize(
    "unread",
    [
        replace(HELD, management_mw=None),
        replace(HELD, enforced_mw=None),
        replace(HELD, power_mw=None),
        replace(HELD, management_mw=None, enforced_mw=None, power_mw=None),
    ],
)
def test_nothing_rises_while_anything_is_unread(unread: GuardInput) -> None:
    node = Node()
    node.break_gpu("g0", SICK)
    node.run(3)
    lowered = node.caps["g1"]
    node.mend("g0")
    node.break_gpu("g7", unread)
    assert node.run(60)["g1"] == lowered
    node.mend("g7")
    assert node.run(60)["g1"] == CAP_W


def test_nothing_rises_when_the_allotment_or_a_gpu_goes_missing() -> None:
    node = Node()
    node.break_gpu("g0", SICK)
    node.run(3)
    lowered = node.caps["g1"]
    node.limit_w = None
    assert node.run(30)["g1"] == lowered
    gone = node.given.pop("g0")
    assert node.run(30)["g1"] == lowered, "the sick GPU still counts as last seen"
    node.given["g0"] = replace(gone, management_mw=None, enforced_mw=None)
    assert node.run(30)["g1"] == lowered, "unreadable counts as last read"


def test_time_in_which_nobody_watched_releases_nothing() -> None:
    node = Node()
    node.break_gpu("g0", SICK)
    node.run(3)
    lowered = node.caps["g1"]
    node.mend("g0")
    node.run(1)
    node.now_s += 3600
    assert node.run(9)["g1"] == lowered


def test_a_limit_behind_an_outside_limiter_counts_in_full() -> None:
    node = Node()
    node.break_gpu("g0", replace(SICK, enforced_mw=300_000, power_mw=290_000))
    node.run(3)
    assert sum(node.caps.values()) - CAP_W + 700 <= 8 * CAP_W


def test_a_lost_gpu_never_read_counts_its_maximum() -> None:
    node = Node(gpus=2, limit_w=900)
    node.break_gpu("g0", replace(HELD, management_mw=None, enforced_mw=None, power_mw=None))
    assert node.run(3)["g1"] == 200


def test_a_draw_above_the_allotment_behind_good_readbacks_is_made_up_once() -> None:
    """g0 reads back its cap and draws 250 W more: what is missing is taken from the others, and not again and again."""
    node = Node()
    node.draw_share = 1.0
    node.run(2)
    node.liars = frozenset({"g0"})
    assert set(node.run(0.8).values()) == {CAP_W}, "shorter than excess_s"
    node.run(0.8)
    drawn_w = 700 + sum(cap for uuid, cap in node.caps.items() if uuid != "g0")
    node.run(5)
    settled_w = 700 + sum(cap for uuid, cap in node.caps.items() if uuid != "g0")
    assert 8 * CAP_W - 60 <= settled_w <= 8 * CAP_W and settled_w <= drawn_w
    node.liars = frozenset()
    node.draw_share = 0.9
    node.run(120)
    assert set(node.caps.values()) == {CAP_W}


def test_a_cut_of_the_allotment_is_not_mistaken_for_a_fault() -> None:
    """Grants and allotment fall together; the draw follows half a second later."""
    node = Node()
    node.draw_share = 1.0
    node.run(3)
    node.limit_w = 8 * 300
    hot = {uuid: replace(given, cap_w=300) for uuid, given in node.given.items()}
    for _ in range(3):
        caps = node.guard.step(node.now_s, node.limit_w, hot)
        node.now_s += TICK_S
        assert set(caps.values()) == {300}
    node.given = {uuid: replace(g, management_mw=300_000, enforced_mw=300_000, power_mw=299_000) for uuid, g in hot.items()}
    assert set(node.run(5).values()) == {300} and node.guard.lowered == {}


def test_grants_above_the_allotment_are_lowered_to_it() -> None:
    node = Node(gpus=4, limit_w=4 * 300)
    assert set(node.run(1).values()) == {300}


def test_a_gpu_without_a_grant_is_counted_but_not_steered() -> None:
    node = Node(gpus=2, limit_w=1_000)
    node.break_gpu("g0", replace(SICK, cap_w=None))
    assert node.run(1) == {"g1": 300}


def test_no_allotment_yet_means_no_guard() -> None:
    node = Node(limit_w=None)
    node.break_gpu("g0", SICK)
    assert set(node.run(5).values()) == {CAP_W}


def test_more_gpus_than_a_node_has_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 64 GPUs"):
        NodeGuard().step(0.0, 1000, {f"g{i}": HELD for i in range(65)})


WATTS = st.integers(200, 700)
MILLIWATTS = st.none() | st.integers(150_000, 750_000)
INPUTS = st.builds(
    GuardInput,
    cap_w=st.none() | WATTS,
    min_w=st.just(MIN_W),
    max_w=st.just(MAX_W),
    management_mw=MILLIWATTS,
    enforced_mw=MILLIWATTS,
    power_mw=MILLIWATTS,
)
TICKS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.2, 1.0, 30.0]),
        st.none() | st.integers(0, 3_000),
        st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), INPUTS, max_size=4),
    ),
    max_size=30,
)


@given(ticks=TICKS)
def test_never_above_the_grant_never_below_the_minimum_and_no_sudden_rise(
    ticks: list[tuple[float, int | None, dict[str, GuardInput]]],
) -> None:
    """Whatever is read: caps stay within grant and minimum, and a lowered cap rises no faster than the release rate."""
    guard, now_s = NodeGuard(GuardSettings(dwell_s=0.5)), 0.0
    for pause_s, limit_w, gpus in ticks:
        now_s += pause_s
        before = guard.lowered
        caps = guard.step(now_s, limit_w, gpus)
        assert caps.keys() == {uuid for uuid, given in gpus.items() if given.cap_w is not None}
        missing = any(None in (g.management_mw, g.enforced_mw, g.power_mw) for g in gpus.values())
        for uuid, cap_w in caps.items():
            grant_w = gpus[uuid].cap_w
            assert grant_w is not None and min(MIN_W, grant_w) <= cap_w <= grant_w
            if uuid in before:
                allowed_w = 0 if missing else 10 * pause_s + 1
                assert cap_w <= max(before[uuid] + allowed_w, MIN_W)


@given(
    sick=st.sets(st.integers(0, 7), max_size=3),
    limit_w=st.integers(8 * MIN_W, 8 * CAP_W),
    true_w=st.integers(CAP_W, MAX_W),
)
def test_worst_cases_fit_the_allotment_whenever_minimum_caps_allow(sick: set[int], limit_w: int, true_w: int) -> None:
    node = Node(limit_w=limit_w)
    for i in sick:
        node.break_gpu(f"g{i}", replace(SICK, management_mw=true_w * 1000, enforced_mw=true_w * 1000, power_mw=100_000))
    node.run(2)
    healthy = [cap for uuid, cap in node.caps.items() if uuid not in node.stuck]
    worst_w = sum(healthy) + len(sick) * true_w
    assert worst_w <= limit_w or set(healthy) <= {MIN_W}


def test_what_no_cap_takes_from_a_gpu_is_not_asked_of_it_and_its_neighbours_make_up_for_it_once() -> None:
    """An idle draw above the lowest cap: 30 W more than its cap, for good."""
    idle = replace(HELD, cap_w=MIN_W, management_mw=MIN_W * 1000, enforced_mw=MIN_W * 1000, power_mw=230_000, floor_w=230)
    charged = Node(gpus=1, limit_w=230 + CAP_W)
    charged.break_gpu("floor", idle)
    assert charged.run(60) == {"g0": CAP_W, "floor": MIN_W} and charged.guard.lowered == {}, "its floor is in the allotment"
    unknown = Node(gpus=1, limit_w=MIN_W + CAP_W)
    unknown.break_gpu("floor", idle)
    assert unknown.run(60) == {"g0": CAP_W - 30, "floor": MIN_W}, "until the operator has heard of it"
    del charged.given["floor"]
    charged.limit_w = MIN_W + CAP_W
    assert charged.run(60) == {"g0": CAP_W - 30}, "unread it counts as last seen"
    alone = Node(gpus=0, limit_w=MIN_W)
    alone.break_gpu("floor", idle)
    assert alone.run(60) == {"floor": MIN_W}
