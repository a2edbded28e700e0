"""What is made of a search: racks add up to the row, and the picture says what was found and that it is simulated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from rich.console import Console
from splitwatt_cli.main import main
from splitwatt_sim.plan import report
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo
from splitwatt_sim.plan.plot import draw
from splitwatt_sim.plan.search import Limits
from splitwatt_sim.plan.sweep import Result, Search, items, record, result
from splitwatt_sim.traces.resample import generated

SEARCH = Search(
    model=MODEL_2026,
    gpus=("H100",),
    slo=LatencySlo(2_000.0, 100.0),
    limits=Limits(charge_w=40_000.0),
    rate_rps=None,
    sizes=generated(requests_per_s=10.0, seconds=60.0, seed=3),
    seconds=20.0,
    seed=1,
    step_rps=20.0,
)
FOUND = [one for item in items(SEARCH) if (one := result(item, record(item))) is not None]
SPLIT = next(f for f in FOUND if f.design.decode is not None and f.design.prefill_servers > 2)
UNSPLIT = next(f for f in FOUND if f.design.decode is None)


def drawn(best: list[Result], search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], plt.Figure]:
    """Everything that the picture says."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw(best, search, folder / "plan.png", robust_rps=60.0, checked=5)
    figure = plt.gcf()
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    said = [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]
    monkeypatch.undo()
    plt.close(figure)
    return said, figure


def test_the_best_is_the_fastest_then_the_cheapest_then_the_thriftiest() -> None:
    ranked = report.ranked(FOUND, by_price=False)
    keys = [(-f.rate_rps, f.design.charge_w, f.joules_per_token) for f in ranked]
    assert keys == sorted(keys) and len(ranked) == len(FOUND)
    by_price = report.ranked(FOUND, by_price=True)
    assert [(-f.rate_rps, f.design.usd_per_hour) for f in by_price] == sorted((-f.rate_rps, f.design.usd_per_hour) for f in FOUND)


def test_what_all_servers_of_the_pools_draw_is_what_the_plan_draws() -> None:
    for found in (SPLIT, UNSPLIT):
        assert sum(drawn_w for *_, drawn_w in found.pools()) == pytest.approx(found.drawn_w)
        assert sum(servers for _, _, servers, _ in found.pools()) == found.design.servers
        assert sum(option.charge_w * servers for _, option, servers, _ in found.pools()) == pytest.approx(found.design.charge_w)


def test_a_rack_takes_what_its_servers_take_and_a_small_pool_does_not_fill_one() -> None:
    design = replace(SPLIT, design=replace(SPLIT.design, prefill_servers=5, decode_servers=1))
    values = report.rack_figures(design, 2)
    assert (values["prefill_racks"], values["decode_racks"]) == (3, 1)
    assert values["prefill_rack_charge_w"] == 2 * design.design.prefill.charge_w
    assert design.design.decode is not None and values["decode_rack_charge_w"] == design.design.decode.charge_w
    prefill_w, decode_w = (drawn_w for *_, drawn_w in design.pools())
    assert values["prefill_rack_mean_w"] == pytest.approx(prefill_w * 2 / 5) and values["decode_rack_mean_w"] == decode_w


def test_the_table_of_racks_ends_with_the_row(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=120).print(report.racks(SPLIT, 2))
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "row" in line)
    assert f"{SPLIT.design.charge_w / 1e3:.1f}" in row and f"{SPLIT.drawn_w / 1e3:.1f}" in row
    assert "the plan in racks of 2 servers of one pool (simulated)" in said


def test_the_command_writes_racks_only_when_asked(tmp_path: Path) -> None:
    one = ["plan", "--servers", "3", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(one) == 0 and "rack" not in (tmp_path / "plan.json").read_text()
    assert main([*one, "--servers-per-rack", "2"]) == 0
    assert '"servers_per_rack": 2' in (tmp_path / "plan.json").read_text()


def test_the_picture_says_what_to_count_on_which_servers_and_that_it_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, figure = drawn([SPLIT, UNSPLIT], SEARCH, tmp_path, monkeypatch)
    charge = f"{SPLIT.design.charge_w / 1e3:.1f} kW"
    assert f"60 requests/s within the SLOs on {charge}, on each of 5 unseen lists (simulated)" in said
    assert any(f"{SPLIT.design.prefill_servers} x {SPLIT.design.prefill}, prefill" in text for text in said)
    assert any(f"the best unsplit: {UNSPLIT.rate_rps:g} requests/s" in text for text in said)
    labels = ("budget, 40 kW", "the plan", "split, prefill on H100", "unsplit on H100")
    for label in ("requests per second within the SLOs", *labels):
        assert label in said
    left = figure.axes[0]
    assert left.get_ylim()[0] == 0 and left.get_ylim()[1] > SPLIT.rate_rps


def test_where_a_rate_was_given_height_is_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, figure = drawn([UNSPLIT], replace(SEARCH, rate_rps=20.0, limits=Limits()), tmp_path, monkeypatch)
    assert f"energy at {UNSPLIT.rate_rps:g} requests/s, J per output token" in said
    assert not any("the best split" in text or text.startswith("budget") for text in said)
    assert figure.axes[0].get_ylim()[1] == pytest.approx(1.35 * UNSPLIT.joules_per_token)
