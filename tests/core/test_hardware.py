"""Facts about hardware: each stands once, with grade and source; what nobody published stays unknown."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from splitwatt_core.gpus.graded import GRADES, FactError
from splitwatt_core.gpus.hardware import Product, builtin, parse
from splitwatt_core.gpus.profiles import ProfileError
from splitwatt_core.gpus.profiles import builtin as profiles
from splitwatt_core.gpus.profiles import parse as parse_profiles
from splitwatt_core.protocol.contract import Phase
from support import fact_files
from support.some import some

TEXT = files("splitwatt_core.gpus").joinpath("hardware.json").read_text(encoding="utf-8")
PROFILES_TEXT = files("splitwatt_core.gpus").joinpath("profiles.json").read_text(encoding="utf-8")
FACTS = builtin()
CAPS_AND_IDLE = {
    "NVIDIA A100-SXM4-40GB": (100, 400, 400, 50),
    "NVIDIA A100-SXM4-80GB": (100, 400, 400, 70),
    "NVIDIA H100": (200, 650, 700, None),
    "NVIDIA H100 80GB HBM3": (200, 700, 700, 69),
    "NVIDIA H100 NVL": (200, 310, 400, None),
    "NVIDIA H200": (200, 700, 700, 69),
    "NVIDIA B200": (200, 1000, 1000, 200),
    "NVIDIA B300 SXM6 AC": (200, 1100, 1100, None),
    "NVIDIA GB200": (200, 1200, 1200, 166),
    "NVIDIA GB300": (200, 1400, 1400, 178),
    "NVIDIA GH200 480GB": (100, 900, 900, None),
    "NVIDIA L40S": (100, 350, 350, 66),
    "Tesla T4": (60, 70, 70, 34),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": (300, 600, 600, None),
}
FIELDS = ("min_cap_w", "default_cap_w", "max_cap_w", "idle_w", "min_clock_mhz", "max_clock_mhz", "memory_mib")


def changed(**parts: Any) -> str:
    return fact_files.changed(TEXT, "products", parts)


def number(value: Any, grade: str = "U", source: str = "somewhere") -> dict[str, Any]:
    return {"value": value, "grade": grade, "source": source}


def test_limits_and_idle_draw_are_those_read_from_real_machines() -> None:
    for name, wanted in CAPS_AND_IDLE.items():
        found = FACTS.product(name)
        assert found is not None, name
        assert (found.min_cap_w, found.default_cap_w, found.max_cap_w, found.idle_w) == wanted, name
    assert len(FACTS.products) == len(CAPS_AND_IDLE)


def test_a_product_goes_by_its_nvml_names_and_by_no_part_of_one() -> None:
    assert FACTS.product(" nvidia h100 nvl ") is not FACTS.product("NVIDIA H100")
    assert FACTS.product("H100-SXM") is FACTS.product("NVIDIA H100 80GB HBM3")
    assert FACTS.product("NVIDIA GH200 120GB") is FACTS.product("NVIDIA GH200 480GB")
    assert FACTS.product("NVIDIA H100 PCIe") is None and FACTS.product("") is None
    names = [name.casefold() for product in FACTS.products for name in (product.name, *product.product_names)]
    assert len(names) == len(set(names)), "two products share a name"


@pytest.mark.parametrize("product", FACTS.products, ids=lambda p: p.name)
def test_every_known_number_of_a_product_has_a_grade_and_a_source(product: Product) -> None:
    known = {key for key in FIELDS if getattr(product, key) is not None}
    module = set() if product.module is None else {f"module.{key}" for key in (*FIELDS[:3], "idle_w")}
    assert product.sources.keys() == known | {"product_names"} | module
    check_sources(product.sources.values())


def test_every_number_of_models_links_and_servers_has_a_grade_and_a_source() -> None:
    assert len(FACTS.sources) == 6 * len({shape.name for shape in FACTS.models.values()}) + 2 * len(FACTS.hand_offs) + 2
    check_sources(FACTS.sources.values())


def check_sources(sources: Any) -> None:
    for source in some(sources):
        grade, text = source.split(": ", 1)
        assert grade in GRADES and len(text) > 10
        if "derived" in text:
            assert grade == "U", text


def test_a_profile_says_of_its_product_what_the_facts_say() -> None:
    for profile in some(profiles()):
        product = FACTS.product(profile.name)
        assert product is not None
        for key in ("product_names", "min_cap_w", "default_cap_w", "idle_w", "min_clock_mhz", "max_clock_mhz"):
            assert getattr(profile, key) == getattr(product, key)
            assert profile.sources[key] == product.sources[key]
    assert "min_cap_w" not in PROFILES_TEXT and "idle_w" not in PROFILES_TEXT, "a second table"


def test_what_a_profile_derives_from_its_product_follows_from_it() -> None:
    """x1.3 at half the natural draw, clock^k between, 1 / (cap - idle) below, never slower than at the lowest clock; decode
    1.02 * (cliff / cap)^2.07."""
    for profile in some(profiles()):
        prefill, decode = profile.phase(Phase.PREFILL), profile.phase(Phase.DECODE)
        assert prefill is not None and decode is not None
        k, idle_w, half_w = profile.clock_exponent_permille / 1000, profile.idle_w, prefill.natural_w / 2
        span_w = prefill.natural_w - idle_w
        assert (half_w - idle_w) / span_w == pytest.approx(1.3**-k, rel=2e-4), profile.name
        slowest = profile.max_clock_mhz / profile.min_clock_mhz
        assert prefill.latency_points[0][0] == decode.latency_points[0][0] == profile.min_cap_w
        for cap_w, permille in prefill.latency_points:
            above_w = max(cap_w - idle_w, 1e-9)
            slower = (above_w / span_w) ** (-1 / k) if cap_w >= half_w else 1.3 * (half_w - idle_w) / above_w
            assert permille == pytest.approx(1000 * min(slower, slowest), rel=0.003), (profile.name, cap_w)
        for cap_w, permille in some(decode.latency_points[:-1]):
            assert permille == pytest.approx(1020 * (decode.cliff_w / cap_w) ** 2.07, rel=0.01), (profile.name, cap_w)


def test_served_models_are_found_by_part_of_their_name() -> None:
    llama = FACTS.model("meta-llama/Llama-3.1-70B-Instruct")
    assert llama is not None and llama.name == "meta-llama/Llama-3.1-70B-Instruct"
    assert FACTS.model("nvidia/Llama-3.3-70B-Instruct-FP8") is llama
    assert llama.kv_bytes_per_token(grouped=True) == 2 * 8 * 128 * 2 * 80
    assert llama.kv_bytes_per_token(grouped=False) == 8 * llama.kv_bytes_per_token(grouped=True)
    parameters = 2 * 128_256 * 8192 + 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672)
    assert llama.weights_bytes == pytest.approx(2 * parameters, rel=1e-3)
    assert FACTS.model("somebody/else") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not in the form"),
        ("[]", "not in the form"),
        ('{"products": []}', "server is missing"),
        (changed(idle_w=None), "idle_w is missing"),
        (changed(idle_w=number(70, grade="X")), "idle_w: give a source and a grade"),
        (changed(idle_w=number(70, source="")), "idle_w: give a source and a grade"),
        (changed(idle_w=number(400)), "A100-SXM-80GB: idle draw must lie between 0 and the default cap, or be null"),
        (changed(min_cap_w=number(900)), "caps must satisfy 0 < minimum <= default <= maximum"),
        (changed(max_cap_w=number(300)), "caps must satisfy"),
        (changed(min_clock_mhz=number(9000)), "clocks must satisfy"),
        (changed(min_clock_mhz=number(0)), "clocks must satisfy"),
        (changed(memory_mib=number(0)), "memory must be above 0"),
        (changed(module={"min_cap_w": number(1)}), "default_cap_w is missing"),
    ],
)
def test_a_wrong_file_says_what_to_change(text: str, message: str) -> None:
    with pytest.raises(FactError, match=message):
        parse(text)


def test_half_a_range_of_clocks_is_refused() -> None:
    raw = json.loads(changed())
    raw["products"][0]["max_clock_mhz"] = None
    with pytest.raises(FactError, match="or both be null"):
        parse(json.dumps(raw))


def test_a_profile_of_a_product_without_the_facts_it_needs_is_refused() -> None:
    raw = json.loads(PROFILES_TEXT)
    raw["profiles"] = raw["profiles"][:1]
    raw["profiles"][0]["name"] = "GH200"
    with pytest.raises(
        ProfileError, match=r"GH200: hardware\.json does not say idle_w, min_clock_mhz, max_clock_mhz; add it there"
    ):
        parse_profiles(json.dumps(raw), FACTS)
    raw["profiles"][0]["name"] = "K80"
    with pytest.raises(ProfileError, match=r"K80: hardware\.json has no product of that name; add it there"):
        parse_profiles(json.dumps(raw), FACTS)
