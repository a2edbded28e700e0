"""The physics of the simulated GPUs, on a hand-moved clock and against an integration of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_nvml_twin.handle import Demand, NodeTwin
from splitwatt_nvml_twin.models import A100_SXM, B200, BUILT_IN, H100_SXM, GpuModel

SW_POWER_CAP = 0x4
GPU_IDLE = 0x1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeTwin]:
    with NodeTwin.create(tmp_path / "node", gpus=[H100_SXM, A100_SXM], boot_id="b", manual_clock=True) as twin:
        yield twin


class Reference:
    """The stated equations, integrated in small steps and sharing no code with the library."""

    STEP_S = 2e-5

    def __init__(self, model: GpuModel) -> None:
        self.model = model
        self.open_w = 1.1 * model.max_limit_mw / 1000
        self.ceiling_w = self.open_w
        self.power_w = self.wanted_w = model.idle_w
        self.limit_w = model.default_limit_mw / 1000
        self.energy_j = 0.0

    def run(self, seconds: float) -> None:
        model = self.model
        for _ in range(round(seconds / self.STEP_S)):
            if self.wanted_w > self.limit_w:
                rate = (self.limit_w - self.ceiling_w) / model.cap_reaction_s
            else:
                lag = model.cap_reaction_s if self.ceiling_w < self.limit_w else model.cap_release_s
                rate = (self.open_w - self.ceiling_w) / lag
            before = self.power_w
            self.power_w += (min(self.wanted_w, self.ceiling_w) - self.power_w) * self.STEP_S / model.power_lag_s
            self.ceiling_w += rate * self.STEP_S
            self.energy_j += (before + self.power_w) / 2 * self.STEP_S


def test_an_idle_gpu_draws_its_idle_watts_for_ever(node: NodeTwin) -> None:
    node.advance_clock(3600)
    truth = node.read(0)
    assert truth.power_w == pytest.approx(95.0)
    assert truth.energy_j == pytest.approx(95.0 * 3600)
    assert truth.sample_w == pytest.approx(95.0)
    assert truth.average_w == pytest.approx(95.0)
    assert truth.throttle_reasons == GPU_IDLE
    assert truth.sm_clock_mhz == H100_SXM.idle_clock_mhz


def test_uncapped_power_follows_demand_with_a_first_order_lag(node: NodeTwin) -> None:
    node.set_demand(0, Demand(600.0))
    for _ in range(8):
        start = node.read(0).power_w
        node.advance_clock(0.01)
        assert node.read(0).power_w == pytest.approx(600 + (start - 600) * math.exp(-0.01 / H100_SXM.power_lag_s))


def test_steady_power_is_the_least_of_demand_cap_and_clock_lock(node: NodeTwin) -> None:
    for demand_w, outside_mw, expected_w in [(300, None, 300), (700, None, 700), (700, 350_000, 350), (300, 350_000, 300)]:
        node.set_outside_limit(0, outside_mw)
        node.set_demand(0, Demand(demand_w))
        node.advance_clock(20)
        assert node.read(0).power_w == pytest.approx(expected_w, rel=1e-4)


def test_a_cut_acts_late_and_is_settled_within_half_a_second(node: NodeTwin) -> None:
    node.set_demand(0, Demand(700.0))
    node.advance_clock(5)
    node.set_outside_limit(0, 350_000)
    node.advance_clock(0.03)
    assert node.read(0).power_w > 600
    node.advance_clock(0.47)
    assert 350 < node.read(0).power_w < 353.5


def test_a_load_step_overshoots_its_cap_briefly_after_a_quiet_time(node: NodeTwin) -> None:
    node.set_outside_limit(0, 400_000)
    node.set_demand(0, Demand(300.0))
    node.advance_clock(10)
    node.set_demand(0, Demand(700.0))
    node.advance_clock(0.04)
    peak_w = node.read(0).power_w
    assert 500 < peak_w < 700
    node.advance_clock(0.5)
    assert node.read(0).power_w < 404


def test_spikes_in_a_row_cannot_carry_the_mean_above_the_cap(node: NodeTwin) -> None:
    node.set_outside_limit(0, 400_000)
    node.set_demand(0, Demand(700.0))
    node.advance_clock(2)
    start_j = node.read(0).energy_j
    for _ in range(100):
        node.set_demand(0, Demand(700.0))
        node.advance_clock(0.05)
        node.set_demand(0, Demand(300.0))
        node.advance_clock(0.05)
    assert (node.read(0).energy_j - start_j) / 10 < 400


def test_a_raised_cap_lets_power_up_again_with_the_same_lag(node: NodeTwin) -> None:
    node.set_demand(0, Demand(500.0))
    node.set_outside_limit(0, 250_000)
    node.advance_clock(5)
    assert node.read(0).throttle_reasons == SW_POWER_CAP
    node.set_outside_limit(0, None)
    node.advance_clock(0.02)
    assert node.read(0).power_w < 400
    node.advance_clock(0.5)
    assert node.read(0).power_w == pytest.approx(500, rel=0.01)
    assert node.read(0).throttle_reasons == 0


SCHEDULE = [(0.33, 700.0, 700.0), (0.21, 700.0, 400.0), (0.4, 300.0, 400.0), (0.06, 650.0, 400.0), (0.2, 650.0, 250.0),
            (0.3, 500.0, 700.0), (0.5, 240.0, 300.0), (0.25, 600.0, 500.0), (0.4, 95.0, 500.0)]  # fmt: skip


def test_power_and_energy_match_an_independent_integration(node: NodeTwin) -> None:
    reference = Reference(H100_SXM)
    for seconds, demand_w, limit_w in SCHEDULE:
        node.set_demand(0, Demand(demand_w))
        node.set_outside_limit(0, int(limit_w * 1000))
        reference.wanted_w, reference.limit_w = demand_w, limit_w
        node.advance_clock(seconds)
        reference.run(seconds)
        truth = node.read(0)
        assert truth.power_w == pytest.approx(reference.power_w, abs=0.5)
        assert truth.energy_j == pytest.approx(reference.energy_j, rel=1e-3)


steps = st.lists(
    st.tuples(
        st.floats(0, 1000),
        st.sampled_from([None, 200_000, 350_000, 700_000]),
        st.lists(st.floats(0, 2.5), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@given(steps)
def test_looking_more_often_changes_nothing(schedule: list[tuple[float, int | None, list[float]]]) -> None:
    with (
        TemporaryDirectory() as folder,
        NodeTwin.create(Path(folder) / "n", gpus=[H100_SXM, H100_SXM], boot_id="b", manual_clock=True) as node,
    ):
        for demand_w, outside_mw, pauses in schedule:
            for gpu in (0, 1):
                node.set_demand(gpu, Demand(demand_w))
                node.set_outside_limit(gpu, outside_mw)
            for pause_s in pauses:
                node.advance_clock(pause_s)
                node.set_outside_limit(1, outside_mw)  # rewrites the record without changing anything
        seldom, often = node.read_all()
        assert often.power_w == pytest.approx(seldom.power_w, abs=1e-6)
        assert often.energy_j == pytest.approx(seldom.energy_j, rel=1e-9)
        assert often.sample_w == pytest.approx(seldom.sample_w, abs=1e-3)
        assert often.average_w == pytest.approx(seldom.average_w, abs=1e-3)
        assert often.sm_clock_mhz == seldom.sm_clock_mhz


@settings(max_examples=40)
@given(steps)
def test_power_stays_between_idle_and_the_most_that_was_wanted(
    schedule: list[tuple[float, int | None, list[float]]],
) -> None:
    with (
        TemporaryDirectory() as folder,
        NodeTwin.create(Path(folder) / "n", gpus=[H100_SXM], boot_id="b", manual_clock=True) as node,
    ):
        most_w, energy_j = H100_SXM.idle_w, 0.0
        for demand_w, outside_mw, pauses in schedule:
            node.set_demand(0, Demand(demand_w))
            node.set_outside_limit(0, outside_mw)
            most_w = max(most_w, demand_w)
            for pause_s in pauses:
                node.advance_clock(pause_s)
                truth = node.read(0)
                assert H100_SXM.idle_w - 1e-6 <= truth.power_w <= most_w + 1e-6
                assert truth.energy_j >= energy_j
                energy_j = truth.energy_j


def test_the_sensor_misses_a_spike_between_its_windows_but_the_energy_counter_does_not(node: NodeTwin) -> None:
    node.set_demand(0, Demand(200.0))
    node.advance_clock(2)
    node.set_demand(0, Demand(700.0))  # the clock started on a sensor period: 75 ms nobody looks
    node.advance_clock(0.03)
    node.set_demand(0, Demand(200.0))
    before_j = node.read(0).energy_j
    node.advance_clock(0.9)
    truth = node.read(0)
    assert truth.sample_w == pytest.approx(200, abs=5)
    assert truth.average_w > 210
    assert truth.energy_j - before_j > 0.9 * 200


def test_the_average_is_the_energy_of_the_last_second(node: NodeTwin) -> None:
    node.advance_clock(5)
    node.set_demand(0, Demand(600.0))
    before_j = node.read(0).energy_j
    for tenth in range(1, 11):
        node.advance_clock(0.1)
        truth = node.read(0)
        expected_w = (truth.energy_j - before_j) + (1 - tenth / 10) * 95.0
        assert truth.average_w == pytest.approx(expected_w, rel=1e-6)


def test_half_power_costs_an_h100_a_factor_of_1_3_in_clock(node: NodeTwin) -> None:
    node.set_demand(0, Demand(700.0))
    node.set_outside_limit(0, 350_000)
    node.advance_clock(5)
    truth = node.read(0)
    assert 1980 / truth.sm_clock_mhz == pytest.approx(1.3, abs=0.02)
    assert truth.sm_clock_mhz % 15 == 0


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_model_idles_below_its_default_and_reaches_its_top(name: str, tmp_path: Path) -> None:
    model = BUILT_IN[name]
    with NodeTwin.create(tmp_path / "n", gpus=[model], boot_id="b", manual_clock=True) as node:
        assert node.read(0).power_w == pytest.approx(model.idle_w)
        assert node.read(0).management_mw == model.default_limit_mw
        node.set_demand(0, Demand(2 * model.max_limit_mw / 1000))
        node.advance_clock(5)
        assert node.read(0).power_w == pytest.approx(model.max_limit_mw / 1000, rel=1e-3)
        node.set_outside_limit(0, model.min_limit_mw)
        node.advance_clock(5)
        assert node.read(0).power_w == pytest.approx(max(model.min_limit_mw / 1000, model.idle_w), rel=1e-3)


def test_an_idle_b200_draws_more_than_its_lowest_cap(tmp_path: Path) -> None:
    with NodeTwin.create(tmp_path / "n", gpus=[B200], boot_id="b", manual_clock=True) as node:
        node.set_outside_limit(0, B200.min_limit_mw)
        node.advance_clock(60)
        truth = node.read(0)
        assert truth.power_w == pytest.approx(205.0) and truth.power_w > truth.enforced_mw / 1000 == 200
        assert truth.throttle_reasons == GPU_IDLE


def test_a_floor_is_drawn_whatever_the_cap_and_no_more_than_is_wanted(node: NodeTwin) -> None:
    node.set_floor(0, 230.0)
    node.set_demand(0, Demand(power_w=400.0))
    for limit_mw, power_w in ((200_000, 230.0), (300_000, 300.0), (None, 400.0)):
        node.set_outside_limit(0, limit_mw)
        node.advance_clock(10)
        assert node.read(0).power_w == pytest.approx(power_w, abs=0.1)
    node.set_outside_limit(0, 200_000)
    node.set_demand(0, Demand(power_w=210.0))
    node.advance_clock(10)
    assert node.read(0).power_w == pytest.approx(210.0, abs=0.1)
    node.reboot("c")
    node.set_demand(0, Demand(power_w=400.0))
    node.advance_clock(10)
    assert node.read(0).power_w == pytest.approx(200.0, abs=0.1), "it was the load's"
    with pytest.raises(ValueError, match="between 0 and"):
        node.set_floor(0, -1.0)


def test_temperature_rises_slowly_to_a_plausible_level(node: NodeTwin) -> None:
    cold_c = node.read(0).temperature_c
    node.set_demand(0, Demand(700.0))
    node.advance_clock(1)
    assert cold_c < node.read(0).temperature_c < cold_c + 5
    node.advance_clock(200)
    assert 60 < node.read(0).temperature_c < 85


def test_no_limiter_pushes_a_gpu_below_idle(node: NodeTwin) -> None:
    node.set_demand(0, Demand(700.0))
    node.set_outside_limit(0, 10_000)
    node.advance_clock(20)
    assert node.read(0).power_w == pytest.approx(H100_SXM.idle_w, rel=1e-3)
    assert node.read(0).sm_clock_mhz == H100_SXM.min_clock_mhz


def test_reaction_time_is_a_parameter(tmp_path: Path) -> None:
    slow = replace(H100_SXM, cap_reaction_s=0.5)
    with NodeTwin.create(tmp_path / "n", gpus=[H100_SXM, slow], boot_id="b", manual_clock=True) as node:
        node.set_demands({0: Demand(700.0), 1: Demand(700.0)})
        node.advance_clock(5)
        for gpu in (0, 1):
            node.set_outside_limit(gpu, 300_000)
        node.advance_clock(0.3)
        quick_w, slow_w = node.read_power_w()
        assert quick_w < 325
        assert slow_w > 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"default_limit_mw": 900_000}, "min <= default <= max"),
        ({"idle_w": 700.0}, "idle_w"),
        ({"power_lag_s": 0.08}, "1.5 times"),
        ({"cap_reaction_s": math.nan}, "time constants"),
        ({"name": "x" * 200}, "name"),
        ({"idle_clock_mhz": 1}, "clocks"),
    ],
)
def test_a_model_that_cannot_be_simulated_is_refused_with_a_reason(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(H100_SXM, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "demand",
    [Demand(-1.0), Demand(math.nan), Demand(math.inf), Demand(300, utilization_percent=101), Demand(300, sm_clock_mhz=-3)],
)
def test_a_demand_that_makes_no_sense_is_refused_and_changes_nothing(node: NodeTwin, demand: Demand) -> None:
    with pytest.raises(ValueError, match="GPU 1"):
        node.set_demands({0: Demand(500.0), 1: demand})
    assert node.read(0).demand_w == H100_SXM.idle_w


def test_bad_handles_of_a_node_say_what_to_change(tmp_path: Path, node: NodeTwin) -> None:
    with pytest.raises(ValueError, match="GPUs 0 to 1"):
        node.read(2)
    with pytest.raises(FileExistsError):
        NodeTwin.create(node.path, gpus=[B200], boot_id="b")
    with pytest.raises(OSError, match="No such file"):
        NodeTwin.open(tmp_path / "absent")
    (tmp_path / "text").write_text("not a node")
    with pytest.raises(OSError, match="create it anew"):
        NodeTwin.open(tmp_path / "text")
    with pytest.raises(ValueError, match="1 to 64 GPUs"):
        NodeTwin.create(tmp_path / "many", gpus=[B200] * 65, boot_id="b")
    with NodeTwin.create(tmp_path / "real", gpus=[B200], boot_id="b") as real, pytest.raises(ValueError, match="manual_clock"):
        real.advance_clock(1)
    with pytest.raises(ValueError, match="closed"):
        real.read(0)
