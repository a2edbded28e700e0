"""Clock locks: which is deeper, and which may be told now."""

from __future__ import annotations

import numpy as np
import pytest
from splitwatt_core.columns import ClockColumns
from splitwatt_core.gpus import phase_model
from splitwatt_core.gpus.profiles import Profile, builtin
from splitwatt_core.policies.clocks import deeper, looser, next_clocks, power_share, share_of_power
from splitwatt_core.protocol.contract import Phase


def mhz(*locks: int) -> np.ndarray:
    return np.array(locks, dtype=np.int32)


def test_any_lock_is_deeper_than_none() -> None:
    assert deeper(mhz(0, 0, 900, 800), mhz(0, 900, 0, 900)).tolist() == [0, 900, 900, 800]
    assert looser(mhz(0, 0, 900, 900), mhz(0, 900, 0, 800)).tolist() == [False, True, False, True]


def test_a_lock_is_deepened_at_once_loosened_where_a_cap_might_rise_and_left_where_nobody_answers() -> None:
    granted = mhz(0, 900, 900, 900)
    for target, calm, held in (
        (mhz(800, 800, 1000, 0), [800, 800, 1000, 0], [800, 800, 900, 900]),
        (mhz(0, 900, 0, 700), [0, 900, 0, 700], [0, 900, 900, 700]),
    ):
        every, none = np.ones(4, dtype=np.bool_), np.zeros(4, dtype=np.bool_)
        told = {"target_mhz": target, "granted_mhz": granted}
        assert next_clocks(**told, steerable=every, may_raise=every).tolist() == calm
        assert next_clocks(**told, steerable=every, may_raise=none).tolist() == held
        assert next_clocks(**told, steerable=none, may_raise=none).tolist() == granted.tolist()


@pytest.mark.parametrize("gpu", builtin(), ids=lambda gpu: gpu.name)
def test_columns_tie_watts_to_clocks_as_the_phase_model_does(gpu: Profile) -> None:
    """From the lowest clock up, so on both sides of the voltage floor."""
    clocks_mhz = np.linspace(gpu.min_clock_mhz, gpu.max_clock_mhz, 50)
    columns = ClockColumns(
        granted_mhz=np.zeros(50, dtype=np.int32),
        top_mhz=np.full(50, float(gpu.max_clock_mhz)),
        min_mhz=np.full(50, float(gpu.min_clock_mhz)),
        idle_w=np.full(50, float(gpu.idle_w)),
        exponent=np.full(50, gpu.clock_exponent),
        voltage_floor=np.full(50, gpu.voltage_floor),
    )
    drawn_w = [phase_model.power_at_clock_w(gpu, Phase.PREFILL, 1.0, mhz) for mhz in clocks_mhz]
    span_w = phase_model.demand_w(gpu, Phase.PREFILL, 1.0) - gpu.idle_w
    share = power_share(columns, clocks_mhz / gpu.max_clock_mhz)
    assert gpu.idle_w + span_w * share == pytest.approx(drawn_w)
    assert share_of_power(columns, share) * gpu.max_clock_mhz == pytest.approx(clocks_mhz)
