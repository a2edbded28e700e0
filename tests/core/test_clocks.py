"""Clock locks: which is deeper, and which may be told now."""

from __future__ import annotations

import numpy as np
from splitwatt_core.policies.clocks import deeper, looser, next_clocks


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
