"""Joules per token: a price where watts and tokens are of the same replicas, and none elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.serving.energy import joules_per_token

WATTS = st.floats(0.0, 1e5, allow_nan=False)
TOKENS = st.floats(0.1, 1e6, allow_nan=False)
ROWS = st.dictionaries(st.sampled_from("abcdef"), st.tuples(WATTS, TOKENS), min_size=1)


def test_watts_over_tokens_of_all_replicas() -> None:
    assert joules_per_token({"a": 5000.0, "b": 3000.0}, {"a": 300.0, "b": 100.0}) == 20.0


@given(ROWS)
def test_a_price_lies_between_those_of_its_replicas(rows: dict[str, tuple[float, float]]) -> None:
    price_j = joules_per_token({k: w for k, (w, _) in rows.items()}, {k: t for k, (_, t) in rows.items()})
    alone = [watts / tokens for watts, tokens in rows.values()]
    assert price_j is not None
    assert min(alone) * 0.999 <= price_j <= max(alone) * 1.001


@given(ROWS, st.sampled_from(["watts", "tokens"]))
def test_a_replica_with_one_half_leaves_no_price(rows: dict[str, tuple[float, float]], lacks: str) -> None:
    power_w, tokens_per_s = {k: w for k, (w, _) in rows.items()}, {k: t for k, (_, t) in rows.items()}
    (power_w if lacks == "watts" else tokens_per_s).pop(next(iter(rows)))
    assert joules_per_token(power_w, tokens_per_s) is None


@pytest.mark.parametrize("made_per_s", [0.0, float("nan")])
def test_idle_draw_is_no_price(made_per_s: float) -> None:
    assert joules_per_token({"a": 70.0}, {"a": made_per_s}) is None
    assert joules_per_token({}, {}) is None
