"""`splitwatt plan --memory-expansion`: decode GPUs and watts with and without, from the plan's own pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from splitwatt_core.memory.expansion import MemoryWay, Verdict
from splitwatt_sim.plan import memory
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.memory import Consent
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, option_for
from splitwatt_sim.plan.search import Limits, PlanDesign
from splitwatt_sim.plan.sweep import Result, Search
from splitwatt_sim.traces.resample import generated
from support.some import some

SHORT = generated(requests_per_s=10.0, seconds=60.0, seed=3)
SIZES = replace(SHORT, prompt_tokens=np.full(len(SHORT), 8000))
"""Long prompts: decode is then bound by memory. With short ones eight H100 compute at their limit."""
LONGEST = int(SIZES.prompt_tokens.max())
SEARCH = Search(MODEL_2026, ("H100",), LatencySlo(2000.0, 100.0), Limits(charge_w=1e5), None, SIZES, 20.0, 1, 10.0)
DESIGN = PlanDesign(
    option_for(MODEL_2026, "H100", 700, longest_prompt=LONGEST), 2, option_for(MODEL_2026, "H100", 380, longest_prompt=LONGEST), 7
)
WINNER = Result(DESIGN, 20.0, {}, {}, 20.0, 1)


def test_the_plans_own_pool_is_the_measure() -> None:
    rows = memory.rows_of(WINNER, SEARCH, Consent.LOSSY)
    base = rows[0]
    assert (base.cap_w, base.option.way, base.servers) == (380, MemoryWay.NONE, 7)
    assert base.charge_w == pytest.approx(7 * DESIGN.parts[1][1].charge_w)
    fp8 = next(row for row in rows if row.cap_w == 380 and row.option.way is MemoryWay.FP8_KV)
    assert fp8.option.verdict is Verdict.TAKE and fp8.servers < base.servers and fp8.charge_w < base.charge_w
    assert "instead of 56" in memory.said(rows)
    assert len({row.cap_w for row in rows}) > 1 and len(rows) % len(MemoryWay) == 0


def test_without_consent_nothing_lossy_is_recommended() -> None:
    rows = memory.rows_of(WINNER, SEARCH, Consent.LOSSLESS)
    assert Verdict.NEEDS_CONSENT in {row.option.verdict for row in rows}
    assert "nothing that may be taken wins enough" in memory.said(rows)


def test_where_memory_is_not_the_bound_nothing_is_won() -> None:
    rows = memory.rows_of(WINNER, replace(SEARCH, sizes=SHORT), Consent.LOSSY)
    assert rows[0].option.best.bound == "compute" and "nothing that may be taken" in memory.said(rows)


def test_the_table_and_the_figures_have_every_row() -> None:
    rows = memory.rows_of(WINNER, SEARCH, Consent.LOSSY)
    console = Console(width=200, record=True, quiet=True)
    assert memory.table(rows, "H100").row_count == len(some(rows))
    console.print(memory.table(rows, "H100"))
    figures = memory.figures(rows)
    assert len(figures) == 4 * len(rows) and figures["memory_none_at_380_w_decode_gpus"] == 56


def test_an_unsplit_plan_has_no_decode_pool() -> None:
    unsplit = replace(WINNER, design=PlanDesign(DESIGN.prefill, 2))
    with pytest.raises(PlanError, match="the best design is unsplit"):
        memory.rows_of(unsplit, SEARCH, Consent.LOSSY)
