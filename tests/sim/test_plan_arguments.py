"""What the options of `plan` may say: power as people say it, designs, SLOs that go together."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_core.gpus.profiles import builtin
from splitwatt_sim.plan.arguments import watts
from splitwatt_sim.plan.command_options import SearchOptions
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.resolve import search_of, uncapped_w
from splitwatt_sim.plan.search import charge_w
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.profile_files import profile_object, read_profile_file


@pytest.mark.parametrize(
    ("text", "wanted_w"), [("400kW", 400e3), ("0.4MW", 400e3), ("400000", 400e3), ("250 W", 250.0), ("1e3kW", 1e6)]
)
def test_power_is_read_as_people_write_it(text: str, wanted_w: float) -> None:
    assert watts(text) == pytest.approx(wanted_w)


@pytest.mark.parametrize("text", ["", "kW", "4GW", "-3kW", "0", "4 00", "1e999"])
def test_power_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be"):
        watts(text)


def test_the_power_of_servers_is_what_a_budget_charges_them_uncapped() -> None:
    h100_w = charge_w(cap_w=700, rest_w=2_800)
    assert uncapped_w(parse_design("H100:40")) == pytest.approx(40 * h100_w)
    assert uncapped_w(parse_design("HHcap:2/3")) == pytest.approx(2 * h100_w + 3 * charge_w(cap_w=350, rest_w=2_800))
    assert uncapped_w(parse_design("HA:1/1")) == pytest.approx(h100_w + charge_w(cap_w=400, rest_w=2_800))


def test_a_profile_of_ones_own_says_the_power_of_its_gpu(tmp_path: Path) -> None:
    h100 = next(profile for profile in builtin() if profile.name == "H100-SXM")
    path = tmp_path / "lean.yaml"
    path.write_text(yaml.safe_dump(profile_object(replace(h100, default_cap_w=500), memory_bytes=None)), encoding="utf-8")
    shelf = Catalogue(files=(read_profile_file(path),))
    assert uncapped_w(parse_design("H100:3"), shelf) == pytest.approx(3 * charge_w(cap_w=500, rest_w=2_800))
    assert uncapped_w(parse_design("HHcap:1/1"), shelf) == pytest.approx(
        charge_w(cap_w=500, rest_w=2_800) + charge_w(cap_w=250, rest_w=2_800)
    )
    search = search_of(SearchOptions(power_of=parse_design("H100:3"), profiles=(read_profile_file(path),)))
    assert search.limits.charge_w == pytest.approx(3 * charge_w(cap_w=500, rest_w=2_800))


def test_a_design_that_is_none_is_refused_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--power-of", "X100:4"])
    assert "HH:PROMPT/TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SearchOptions(), r"^say what may be spent .* or what must be held \(--rate\)$"),
        (SearchOptions(servers=3, gpus=" , "), r"^--gpus names no GPU; choose from A100, H100, H200, B200$"),
        (SearchOptions(servers=3, prices=(("V100", 9.0),)), r"^--price: there is no table of .* on V100; choose from A100"),
        (SearchOptions(servers=3, slo="splitwise"), r"add --model bloom-176b$"),
        (SearchOptions(servers=3, slo="splitwise", tbt_p99_ms=50.0), r"exclude each other: leave one of them out$"),
        (SearchOptions(servers=3, list_s=19.0), r"^lists of 19 s hide queues: give --seconds 20 or more$"),
    ],
)
def test_options_that_make_no_search_are_a_plans_error_in_one_sentence(options: SearchOptions, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        search_of(options)
