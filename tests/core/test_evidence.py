"""What readings prove: idleness only by draw and processes together, for long enough; a floor only under a limit that stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.gpus import hardware
from splitwatt_core.protocol.contract import Use
from splitwatt_core.protocol.evidence import (
    FLOOR_SETTLED_S,
    FLOOR_WINDOW_S,
    IDLE_AFTER_S,
    Bounds,
    Evidence,
    Glance,
    idle_below_mw,
)

TICK_S = 0.2
BELOW_MW = idle_below_mw(idle_w=69, min_mw=200_000)
QUIET = Glance(power_mw=95_000, limit_mw=700_000, processes=0)
ANY_SIGHT = st.builds(
    Glance,
    power_mw=st.none() | st.integers(0, 1_000_000),
    limit_mw=st.none() | st.sampled_from([200_000, 450_000, 700_000]),
    processes=st.none() | st.integers(0, 3),
)


class Gpu:
    """One GPU, seen every 0.2 s."""

    def __init__(self) -> None:
        self.evidence = Evidence({"g0": Bounds(BELOW_MW, min_mw=200_000)})
        self.now_s = 50.0

    def see(self, glance: Glance, seconds: float = TICK_S) -> Use:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self.evidence.see(self.now_s, {"g0": glance})
        return self.evidence.use("g0")

    def floor_w(self, power_w: float, limit_w: int, seconds: float) -> int:
        self.see(Glance(round(power_w * 1000), limit_w * 1000, 1), seconds)
        return self.evidence.floor_w("g0")


# ------------------------------------------------------------------------------------------------------------------- use


def test_near_idle_and_no_process_for_some_seconds_is_idle() -> None:
    gpu = Gpu()
    assert gpu.see(QUIET) is Use.UNKNOWN
    assert gpu.see(QUIET, IDLE_AFTER_S) is Use.IDLE


@pytest.mark.parametrize(
    ("glance", "use"),
    [
        (Glance(600_000, 700_000, 0), Use.BUSY),
        (Glance(95_000, 700_000, 1), Use.BUSY),
        (Glance(None, 700_000, 1), Use.BUSY),
        (Glance(600_000, 700_000, None), Use.BUSY),
        (Glance(95_000, 700_000, None), Use.UNKNOWN),
        (Glance(None, 700_000, 0), Use.UNKNOWN),
    ],
)
def test_anything_else_is_no_idleness_at_once_and_the_proof_begins_anew(glance: Glance, use: Use) -> None:
    gpu = Gpu()
    assert gpu.see(glance, 60.0) is use
    assert gpu.see(QUIET, IDLE_AFTER_S - 1.0) is Use.UNKNOWN
    assert gpu.see(QUIET, 2.0) is Use.IDLE
    assert gpu.see(glance) is use
    assert gpu.see(QUIET, IDLE_AFTER_S - 1.0) is not Use.IDLE


def test_a_pause_in_which_nobody_watched_proves_nothing() -> None:
    gpu = Gpu()
    gpu.see(QUIET, IDLE_AFTER_S - 1.0)
    gpu.now_s += 60.0
    assert gpu.see(QUIET) is not Use.IDLE


@given(st.lists(ANY_SIGHT, max_size=60))
def test_never_idle_but_after_an_unbroken_row_of_quiet_readings(glances: list[Glance]) -> None:
    gpu, quiet_s = Gpu(), 0.0
    for glance in glances:
        use = gpu.see(glance)
        is_quiet = glance.processes == 0 and glance.power_mw is not None and glance.power_mw < BELOW_MW
        quiet_s = quiet_s + TICK_S if is_quiet else 0.0
        assert (use is Use.IDLE) == (quiet_s >= IDLE_AFTER_S + TICK_S - 1e-9)


def test_what_counts_as_idle_draw_is_the_products_own_and_lies_below_what_work_draws() -> None:
    for product in hardware.builtin().products:
        below_mw = idle_below_mw(idle_w=product.idle_w, min_mw=product.min_cap_w * 1000)
        assert (product.idle_w or 0) * 1000 < below_mw < product.default_cap_w * 1000
    assert idle_below_mw(idle_w=None, min_mw=100_000) == 100_000, "of an unknown product: what its lowest cap leaves untouched"


# ---------------------------------------------------------------------------------------------------------------- floors


def test_a_draw_that_stays_above_its_limit_is_a_floor() -> None:
    gpu = Gpu()
    assert gpu.floor_w(205.3, 200, FLOOR_SETTLED_S) == 0, "a cap needs its time"
    assert gpu.floor_w(205.3, 200, 2 * FLOOR_WINDOW_S) == 206
    assert gpu.floor_w(205.3, 206, 120.0) == 206, "and stays one under the cap that it is then given"
    assert gpu.floor_w(90.0, 450, 120.0) == 206, "under a higher limit it cannot show"
    assert gpu.floor_w(90.0, 206, 30.0) < 206, "it is forgotten where it would show and does not"
    assert gpu.floor_w(90.0, 200, 120.0) == 0


def test_a_cap_at_work_is_none() -> None:
    gpu = Gpu()
    for i in range(100):
        assert gpu.floor_w(450 + (6 if i % 2 else -5), 450, TICK_S) == 0
    for limit_w in (400, 300, 200, 300, 200):
        assert gpu.floor_w(450, limit_w, FLOOR_SETTLED_S) == 0, "limits that keep moving leave no time to settle"
    gpu.floor_w(450, 300, 1.0)
    gpu.floor_w(450, 200, 4.0)
    assert gpu.floor_w(203, 200, 4.0) == 0, "a fall that is seen late is no floor"
    assert gpu.floor_w(199, 200, 60.0) == 0


def test_a_draw_that_now_and_then_obeys_its_limit_has_no_floor_above_it() -> None:
    gpu = Gpu()
    for _ in range(60):
        assert gpu.floor_w(240, 200, 2.0) == 0
        assert gpu.floor_w(199, 200, TICK_S) == 0


@given(st.lists(ANY_SIGHT, max_size=80))
def test_a_floor_is_never_more_than_was_drawn(glances: list[Glance]) -> None:
    gpu, highest_mw = Gpu(), 0
    for glance in glances:
        gpu.see(glance)
        highest_mw = max(highest_mw, glance.power_mw or 0)
        assert gpu.evidence.floor_w("g0") * 1000 < highest_mw + 1000
