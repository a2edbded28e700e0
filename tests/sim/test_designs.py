"""Names of cluster designs: what they mean, what they cost, and what is refused."""

from __future__ import annotations

import pytest
from splitwatt_sim.servers.designs import MAX_SERVERS, Design, DesignError, parse_design


@pytest.mark.parametrize(
    ("text", "prompt_kind", "token_kind"),
    [
        ("AA:45/25", "A100", "A100"),
        ("HH:25/15", "H100", "H100"),
        ("HA:25/26", "H100", "A100"),
        ("HHcap:25/21", "H100", "H100-capped"),
    ],
)
def test_a_split_design_names_prompt_machines_before_the_slash(text: str, prompt_kind: str, token_kind: str) -> None:
    got = parse_design(text)
    first, second = (int(count) for count in text.partition(":")[2].split("/"))
    assert (got.prompt_kind, got.prompt_machines) == (prompt_kind, first)
    assert (got.token_kind, got.token_machines) == (token_kind, second)
    assert got.split
    assert got.servers == first + second
    assert str(got) == text


@pytest.mark.parametrize(("text", "kind", "count"), [("A100:70", "A100", 70), (" H100:40\n", "H100", 40)])
def test_an_unsplit_design_has_one_kind_of_machine_for_both_phases(text: str, kind: str, count: int) -> None:
    got = parse_design(text)
    assert got == Design(kind, kind, count, kind, 0)
    assert not got.split
    assert got.servers == count
    assert str(got) == text.strip()


@pytest.mark.parametrize("text", ["", "A100", "A100:", "B200:4", "HH:25/15/3", "HH:a/b", "HH:-1/2", "hh:25/15", "A100:7.5"])
def test_a_name_that_is_none_is_answered_with_all_there_are(text: str) -> None:
    with pytest.raises(DesignError) as error:
        parse_design(text)
    assert str(error.value) == (
        f"design {text!r} is not known; write one of A100:COUNT, H100:COUNT, AA:PROMPT/TOKEN, HH:PROMPT/TOKEN, "
        "HA:PROMPT/TOKEN, HHcap:PROMPT/TOKEN"
    )


def test_the_wrong_number_of_counts_is_answered_with_the_right_form() -> None:
    with pytest.raises(DesignError, match=r"^design 'HH:40': HH takes two counts, prompt and token machines, as in HH:25/15$"):
        parse_design("HH:40")
    with pytest.raises(DesignError, match=r"^design 'H100:20/20': H100 takes one count, as in H100:40$"):
        parse_design("H100:20/20")
    with pytest.raises(DesignError, match="takes one count"):
        parse_design("H100:20/0")


@pytest.mark.parametrize("text", ["A100:0", "HH:0/5", "HH:5/0", f"A100:{MAX_SERVERS + 1}", f"HH:{MAX_SERVERS}/1"])
def test_counts_below_one_and_above_the_bound_are_refused(text: str) -> None:
    with pytest.raises(DesignError) as error:
        parse_design(text)
    assert str(error.value) == f"design {text!r}: write counts from 1, at most {MAX_SERVERS} servers in all"


def test_the_largest_cluster_is_allowed() -> None:
    assert parse_design(f"HH:{MAX_SERVERS - 1}/1").servers == MAX_SERVERS


def test_forty_h100_take_the_power_of_seventy_a100_and_the_money_of_eighty_six() -> None:
    h100, a100 = parse_design("H100:40"), parse_design("A100:1")
    assert h100.power_units == 40 * 44.0
    assert h100.usd_per_hour == 40 * 38.0
    assert h100.power_units / a100.power_units == pytest.approx(70, rel=0.02)
    assert int(h100.usd_per_hour / a100.usd_per_hour) == 86


def test_a_capped_machine_is_provisioned_for_less_and_costs_the_same() -> None:
    full, capped = parse_design("HH:25/21"), parse_design("HHcap:25/21")
    assert capped.power_units == pytest.approx(25 * 44.0 + 21 * 30.8)
    assert capped.usd_per_hour == full.usd_per_hour == 46 * 38.0


@pytest.mark.parametrize("text", ["A100:70", "AA:45/25", "HH:25/15", "HA:25/26", "HHcap:25/21"])
def test_the_published_designs_have_about_the_power_of_forty_h100(text: str) -> None:
    assert parse_design(text).power_units == pytest.approx(parse_design("H100:40").power_units, rel=0.02)
