"""Percentiles, slowdowns and the nine SLOs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from splitwatt_sim.latencies import PERCENTILES, SLOWDOWN_SLOS, Latencies, missed_slos, slowdowns
from splitwatt_sim.servers.alone import unloaded
from splitwatt_sim.servers.tables import ServerTable

NAMES = [f"{name}_p{p}" for name in SLOWDOWN_SLOS for p in PERCENTILES]
AT_LIMIT = {f"{name}_p{p}": limit for name, limits in SLOWDOWN_SLOS.items() for p, limit in zip(PERCENTILES, limits, strict=True)}
"""Every slowdown exactly what is no longer allowed."""


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def column(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def test_percentiles_are_linear_between_order_statistics() -> None:
    got = Latencies(column(40, 10, 30, 20), column(*range(101)), column(7)).percentiles()
    assert list(got) == [f"{name}_ms_p{p}" for name in ("ttft", "tbt", "e2e") for p in (50, 90, 99)]
    # Of four values P90 lies at position 0.9 * 3 = 2.7, and P99 at 2.97.
    assert [got["ttft_ms_p50"], got["ttft_ms_p90"], got["ttft_ms_p99"]] == pytest.approx([25.0, 37.0, 39.7])
    assert [got["tbt_ms_p50"], got["tbt_ms_p90"], got["tbt_ms_p99"]] == pytest.approx([50.0, 90.0, 99.0])
    assert [got["e2e_ms_p50"], got["e2e_ms_p90"], got["e2e_ms_p99"]] == [7.0, 7.0, 7.0]


def test_a_slowdown_is_taken_request_by_request_before_the_percentile() -> None:
    alone = Latencies(column(1, 100), column(1, 1), column(10, 1000))
    measured = Latencies(column(3, 100), column(1, 2), column(20, 1000))
    got = slowdowns(measured, alone)
    assert list(got) == NAMES
    # Ratios 3 and 1; of the percentiles themselves the ratio would be near 1.
    assert got["ttft_p50"] == 2.0
    assert got["e2e_p50"] == 1.5
    assert got["tbt_p90"] == pytest.approx(1.9)


def test_a_request_alone_takes_its_prompt_and_then_a_step_per_further_token() -> None:
    table = ServerTable("A100", "m", ((100, 1.0), (200, 2.0)), ((1, 0.5), (2, 0.6)), ((100, 0.05), (200, 0.07)))
    got = unloaded(table, prompt=ints(100, 150), output=ints(1, 5))
    assert got.ttft_ms.tolist() == pytest.approx([1000.0, 1500.0])
    # As in Splitwise's evaluation the step is read at the prompt's length.
    assert got.tbt_ms.tolist() == pytest.approx([50.0, 60.0])
    assert got.e2e_ms.tolist() == pytest.approx([1000.0, 1500.0 + 4 * 60.0])


def test_without_a_table_by_tokens_the_one_by_sequences_is_read() -> None:
    table = ServerTable("B200", "m", ((1, 1.0), (2, 2.0)), ((1, 0.5), (2, 0.6)))
    assert unloaded(table, prompt=ints(2), output=ints(3)).tbt_ms.tolist() == pytest.approx([600.0])


def test_the_limits_are_splitwises_nine() -> None:
    assert [AT_LIMIT[name] for name in NAMES] == [2, 3, 6, 1.25, 1.5, 5, 1.25, 1.5, 5]


def test_an_slo_is_missed_at_its_limit_and_held_just_below() -> None:
    assert missed_slos(AT_LIMIT) == NAMES
    assert missed_slos({name: float(np.nextafter(limit, 0)) for name, limit in AT_LIMIT.items()}) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_slo_is_judged_by_itself(name: str) -> None:
    held = {slo: 0.5 * limit for slo, limit in AT_LIMIT.items()}
    assert missed_slos(held | {name: AT_LIMIT[name]}) == [name]
    assert missed_slos(held | {name: float("nan")}) == [name]


def test_a_margin_lowers_every_limit_by_its_share() -> None:
    near = {name: 0.98 * limit for name, limit in AT_LIMIT.items()}
    assert missed_slos(near) == []
    assert missed_slos(near, margin=0.01) == []
    assert missed_slos(near, margin=0.03) == NAMES
