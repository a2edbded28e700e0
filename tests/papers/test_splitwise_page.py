"""Splitwise's page: what it says of results that are known beforehand, met and missed alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from splitwatt_papers.pages.splitwise_plot import plot
from splitwatt_papers.pages.splitwise_runs import (
    CELLS,
    PUBLISHED_MS,
    REFERENCE_RPS,
    SECONDS,
    Cell,
    Effort,
    Golden,
    SplitwiseResults,
)
from splitwatt_papers.pages.splitwise_text import golden_text, headline, near, page, rate_rows, sampling_text

MET = SplitwiseResults(
    Effort(1, 5, SECONDS),
    traced=True,
    golden=(Golden("A100:70", 0.0004, None),),
    cells={
        (design, cell): Cell.of(published, [published - 1, published, published + 1, published - 1, published + 1])
        for design, figures in PUBLISHED_MS.items()
        for cell, published in zip(CELLS, figures, strict=True)
    },
    rates={key: (rate,) for key, rate in REFERENCE_RPS.items()},
)


def test_a_met_golden_list_holds_and_a_missed_one_is_said_to_fail() -> None:
    assert "That holds: at most 0.0004 ms off" in golden_text(MET)
    assert "That **does not hold**" in golden_text(replace(MET, golden=(Golden("A100:70", 0.0011, 2e-9),)))
    assert golden_text(replace(MET, golden=())).startswith("**Not run**")


def test_a_published_figure_outside_the_range_of_one_list_is_bold_and_counted() -> None:
    assert "**0 of 45 cells**" in sampling_text(MET)
    key = ("HH:25/15", "ttft_ms_p50")
    off = replace(MET, cells={**MET.cells, key: replace(MET.cells[key], published=150.0)})
    assert "**1 of 45 cells** (HH:25/15 TTFT P50)" in sampling_text(off)
    assert "| **150** |" in page(off, "run") and "**132**" not in page(MET, "run")


def test_the_headline_compares_the_largest_design_with_unsplit_h100() -> None:
    text = headline(MET)
    assert f"{140 / 110:.2f} times with `splitwise-2023`" in text and f"{100 / 80:.2f} times with `batch`" in text


@pytest.mark.parametrize(("rates", "counted"), [((110, 120, 100), 3), ((90, 130), 0), ((121,), 0)])
def test_near_is_within_one_step_of_the_grid(rates: tuple[int, ...], counted: int) -> None:
    assert near(110, rates) == counted


def test_rates_show_their_range_over_seeds() -> None:
    key = next(iter(REFERENCE_RPS))
    wide = replace(MET, rates={**MET.rates, key: (30, 50, 70)})
    assert rate_rows(wide)[0] == ("splitwise-2023", "A100:70", "50", "30", "50", "70", "1 of 3")
    assert "**12 of 12 medians**" in page(MET, "run")


def test_a_missing_trace_is_said_first(tmp_path: Path) -> None:
    assert "**The conversation trace was not there.**" in page(replace(MET, traced=False), "run")
    plot(MET, tmp_path / "img" / "plot.png")
    assert (tmp_path / "img" / "plot.png").read_bytes().startswith(b"\x89PNG")
