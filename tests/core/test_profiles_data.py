"""The data file: complete, sourced, consistent; and what is said of GPUs that nobody profiled."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.phase_model import latency_factor
from splitwatt_core.gpus.profiles import (
    PhaseProfile,
    Profile,
    ProfileError,
    Timing,
    builtin,
    conservative,
    find,
    lookup,
    parse,
)
from splitwatt_core.protocol.contract import Phase
from support import fact_files
from support.some import some

TEXT = files("splitwatt_core.gpus").joinpath("profiles.json").read_text(encoding="utf-8")
H100 = builtin()[1]


def changed(**parts: Any) -> str:
    return fact_files.changed(TEXT, "profiles", parts)


def test_four_gpu_models_by_their_nvml_names() -> None:
    names = ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200"]
    found = [find(builtin(), name) for name in names]
    assert [p.name for p in found if p is not None] == ["A100-SXM-80GB", "H100-SXM", "H200-SXM", "B200"]
    assert find(builtin(), " nvidia h100 80gb hbm3 ") is H100 and find(builtin(), "H100-SXM") is H100
    assert find(builtin(), "NVIDIA H100 PCIe") is None and find(builtin(), "") is None


@pytest.mark.parametrize("profile", builtin(), ids=lambda p: p.name)
def test_every_number_has_a_grade_and_a_source(profile: Profile) -> None:
    expected = {"product_names", "idle_w", "min_cap_w", "default_cap_w", "min_clock_mhz", "max_clock_mhz"}
    expected |= {"clock_exponent_permille", "voltage_floor_permille"}
    curve = ("natural_w", "cliff_w", "latency_points", "load_points", "clock_sensitivity_permille")
    expected |= {f"phases.{phase.value}.{key}" for phase in (Phase.PREFILL, Phase.DECODE) for key in curve}
    expected |= {f"timing.{key}" for key in ("prefill_points", "decode_points", "kv_ms_per_mtoken")}
    assert profile.sources.keys() == expected
    for source in profile.sources.values():
        grade, text = source.split(": ", 1)
        assert grade in "PDMVU" and len(text) > 10


@pytest.mark.parametrize("profile", builtin(), ids=lambda p: p.name)
def test_curves_reach_every_legal_cap(profile: Profile) -> None:
    for phase in some(profile.phases):
        assert profile.min_cap_w <= phase.cliff_w <= phase.natural_w <= profile.default_cap_w
        assert phase.latency_points[0][0] <= profile.min_cap_w
        assert phase.latency_points[-1] == (phase.natural_w, 1000)
        assert 1.0 <= latency_factor(phase, phase.cliff_w) <= 1.31


def test_decode_draws_less_than_prefill_and_loses_less_by_a_cap() -> None:
    for profile in some(builtin()):
        prefill, decode = profile.phase(Phase.PREFILL), profile.phase(Phase.DECODE)
        assert prefill is not None and decode is not None
        assert decode.natural_w < prefill.natural_w
        assert latency_factor(decode, decode.cliff_w) < latency_factor(prefill, prefill.cliff_w)


def test_a_clusters_own_profile_comes_first_and_the_served_model_decides() -> None:
    any_model = PhaseProfile(Phase.DECODE, 360, 300, ((300, 1010), (360, 1000)))
    mine = replace(any_model, natural_w=320, latency_points=((300, 1010), (320, 1000)), model="llama")
    own = replace(H100, phases=(any_model,))
    late = replace(H100, phases=(mine,))
    profiles = (own, late, *builtin())
    assert lookup(profiles, "H100-SXM", Phase.DECODE) is any_model
    assert lookup(profiles, "H100-SXM", Phase.DECODE, model="other") is any_model
    assert lookup(profiles, "H100-SXM", Phase.DECODE, model="llama") is mine
    assert lookup(profiles, "H100-SXM", Phase.PREFILL) is H100.phase(Phase.PREFILL)
    assert lookup(profiles, "unheard of", Phase.DECODE) is None
    assert lookup(builtin(), "H100-SXM", Phase.UNASSIGNED) is None


def test_an_unknown_gpu_is_assumed_to_want_everything() -> None:
    guess = conservative(Phase.DECODE, min_cap_w=100, max_cap_w=600)
    assert (guess.natural_w, guess.cliff_w) == (600, 300)
    assert [latency_factor(guess, cap) for cap in (100, 300, 600)] == [3.9, 1.3, 1.0]
    stuck = conservative(Phase.PREFILL, min_cap_w=500, max_cap_w=500)
    assert (stuck.natural_w, stuck.cliff_w, stuck.latency_points) == (500, 500, ((500, 1000),))
    high_floor = conservative(Phase.PREFILL, min_cap_w=400, max_cap_w=600)
    assert (high_floor.cliff_w, high_floor.latency_points) == (400, ((400, 1300), (600, 1000)))
    with pytest.raises(ProfileError):
        conservative(Phase.DECODE, min_cap_w=0, max_cap_w=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not in the form"),
        ('{"profiles": [3]}', "not in the form"),
        (changed(phases={"Dreaming": {}}), "not in the form.*Dreaming"),
        (changed(phases=None), "phases is missing"),
        (changed(voltage_floor_permille={"value": 769, "grade": "X", "source": "s"}), "voltage_floor_permille: give a source"),
        (changed(voltage_floor_permille={"value": 769, "grade": "U", "source": ""}), "voltage_floor_permille: give a source"),
        (changed(clock_exponent_permille={"value": 1, "grade": "U", "source": "s"}), "clock exponent"),
    ],
)
def test_a_wrong_file_says_what_to_change(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        parse(text, hardware.builtin())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"idle_w": 380}, "idle draw must be below the natural draw of Decode"),
        ({"min_cap_w": 900}, "0 < minimum <= default"),
        ({"min_clock_mhz": 9000}, "clocks must satisfy"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        replace(H100, **parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"cliff_w": 800}, "0 < cliff <= natural"),
        ({"latency_points": ()}, "give 1 to 16 points"),
        ({"latency_points": ((700, 1000), (350, 1300))}, "sort them"),
        ({"latency_points": ((350, 900), (700, 1000))}, "must not rise"),
        ({"latency_points": ((350, 1300), (600, 1100))}, "must have 1000 permille"),
        ({"latency_points": ((350, 1300), (800, 1000))}, "above the natural draw"),
        ({"load_points": ((1, 500), (2, 400))}, "must not fall"),
        ({"load_points": ((1, 1001),)}, "raise the natural draw"),
        ({"load_points": ((1, 0), (2, 10))}, "must be above 0"),
    ],
)
def test_a_phase_that_contradicts_itself_is_refused(parts: dict[str, Any], message: str) -> None:
    phase = H100.phase(Phase.PREFILL)
    assert phase is not None
    with pytest.raises(ProfileError, match=message):
        replace(phase, **parts)


def test_negative_kv_time_is_refused() -> None:
    with pytest.raises(ProfileError, match="kv_ms_per_mtoken must be 0 or more"):
        Timing("m", 8, ((1, 1.0),), ((1, 1.0),), -1.0)
