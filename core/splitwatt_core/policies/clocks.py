"""Clock locks as columns: which of two is deeper, what a lock does to watts, and which may be told now.

A lock is a whole number of MHz, the highest that an SM clock may take; UNLOCKED_MHZ stands for none. It counts in no sum: a
cap bounds the watts whatever the clock does (I1). It is how watts are given back before a cap has to take them.

Protected: a lock is loosened only where a cap might be raised, and never because something is missing (I5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import ClockColumns, FloatArray
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ

Mhz = NDArray[np.int32]

_HIGHEST = np.iinfo(np.int32).max


def deeper(one_mhz: Mhz, other_mhz: Mhz) -> Mhz:
    """The lower lock of two, int32[N]; any lock is lower than none."""
    least = np.minimum(_rank(one_mhz), _rank(other_mhz))
    return np.where(least == _HIGHEST, UNLOCKED_MHZ, least).astype(np.int32)


def looser(one_mhz: Mhz, than_mhz: Mhz) -> NDArray[np.bool_]:
    """Where the first of two locks lets a clock rise above the second, bool[N]."""
    return _rank(one_mhz) > _rank(than_mhz)


def _rank(lock_mhz: Mhz) -> Mhz:
    return np.where(lock_mhz == UNLOCKED_MHZ, _HIGHEST, lock_mhz).astype(np.int32)


def next_clocks(*, target_mhz: Mhz, granted_mhz: Mhz, steerable: NDArray[np.bool_], may_raise: NDArray[np.bool_]) -> Mhz:
    """The locks to stand in the specs after this step, int32[N]. `granted_mhz`: those of the newest grants.

    Deepened at once, loosened only where a cap might rise: what makes a raise of watts unwise makes one of clocks unwise.
    Of a GPU that cannot be steered a lock stays as it is.
    """
    told = steerable & (may_raise | ~looser(target_mhz, granted_mhz))
    return np.where(told, target_mhz, granted_mhz).astype(np.int32)


def power_share(clocks: ClockColumns, share: FloatArray) -> FloatArray:
    """Watts above idle as a share of those at the top clock, for a clock at `share` of it, float64[N] (phase_model)."""
    floor, exponent = clocks.voltage_floor, clocks.exponent
    return np.where(share >= floor, share**exponent, floor**exponent * share / floor)


def share_of_power(clocks: ClockColumns, power: FloatArray) -> FloatArray:
    """The inverse: the clock at which a GPU draws this share of its watts above idle, 1 and more at the top clock and above."""
    floor, exponent = clocks.voltage_floor, clocks.exponent
    at_floor = floor**exponent
    return np.where(power >= at_floor, power ** (1.0 / exponent), floor * power / at_floor)


def lock_at(clocks: ClockColumns, share: FloatArray) -> Mhz:
    """The lock that holds a clock to `share` of the top clock, int32[N]: whole MHz, not below the lowest clock, and none at 1
    and above or where no clock is known."""
    mhz = np.maximum(np.floor(clocks.top_mhz * share), np.ceil(clocks.min_mhz))
    return np.where((share < 1.0) & (mhz < clocks.top_mhz), mhz, UNLOCKED_MHZ).astype(np.int32)
