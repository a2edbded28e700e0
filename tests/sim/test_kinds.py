"""Kinds of servers under caps: they say what the phase model says, within the watts that the caps allow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from splitwatt_core.gpus import phase_model, profiles
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.fleet.state import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, ServerKind
from splitwatt_sim.servers.kinds import SERVER_REST_W, Links, kind_2023, profile_of
from splitwatt_sim.servers.kinds_2026 import LLAMA_70B, kind_2026
from splitwatt_sim.servers.tables import GIB, ServerTable, TableError, builtin
from support.some import some

GPUS = 8
LONGEST = 12_000
TOKENS = (1, 2, 100, 128, 129, 700, 2_048, 5_000, 8_192, 8_193, LONGEST)
BATCHES = (1, 2, 7, 8, 9, 20, 64, 100, 256, 257, MAX_BATCH_SEQUENCES)
PROFILES = profiles.builtin()
NAMES = [profile.name for profile in PROFILES]
H100 = PROFILES[NAMES.index("H100-SXM")]
OVERLAPPED = Links()


def caps(profile: Profile) -> list[int]:
    """Legal caps from the lowest to the default, with those where a phase collapses or stops to notice."""
    phases = [profile.phase(Phase.PREFILL), profile.phase(Phase.DECODE)]
    marks = {w for row in phases if row is not None for w in (row.cliff_w, row.natural_w, row.cliff_w + 7)}
    legal = {profile.min_cap_w, profile.default_cap_w, *marks}
    return sorted(w for w in legal if profile.min_cap_w <= w <= profile.default_cap_w)


def kind_of(profile: Profile, cap_w: int | None = None, links: Links = OVERLAPPED) -> ServerKind:
    return kind_2026(profile, cap_w=cap_w, longest_prompt=LONGEST, links=links)


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_times_are_the_phase_models_at_every_size_and_cap(profile: Profile) -> None:
    for cap_w in some(caps(profile)):
        kind = kind_of(profile, cap_w)
        prefill_s = [phase_model.prefill_ms(profile, n, cap_w) / 1e3 for n in TOKENS]
        assert kind.prefill_s[list(TOKENS)] == pytest.approx(prefill_s, rel=1e-12)
        for context in (0, 1_000, 30_000):
            decode_s = [phase_model.decode_ms(profile, b, context, cap_w) / 1e3 for b in BATCHES]
            got_s = kind.decode_s[list(BATCHES)] + kind.kv_s * context * np.array(BATCHES)
            assert got_s == pytest.approx(decode_s, rel=1e-12)


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_watts_are_the_phase_models_demand_under_the_cap_and_the_rest_of_the_server(profile: Profile) -> None:
    for cap_w in some(caps(profile)):
        kind = kind_of(profile, cap_w)
        for n in TOKENS:
            want_w = phase_model.demand_w(profile, Phase.PREFILL, phase_model.prefill_load(profile, n))
            assert kind.prefill_w[n] == pytest.approx(GPUS * min(want_w, cap_w) + SERVER_REST_W, rel=1e-12)
        for b in BATCHES:
            want_w = phase_model.demand_w(profile, Phase.DECODE, phase_model.decode_load(profile, b))
            assert kind.decode_w[b] == pytest.approx(GPUS * min(want_w, cap_w) + SERVER_REST_W, rel=1e-12)


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_no_kind_draws_more_than_its_caps_and_the_rest_and_none_less_than_idle(profile: Profile) -> None:
    for cap_w in some(caps(profile)):
        kind = kind_of(profile, cap_w)
        for watts in (kind.prefill_w, kind.decode_w):
            assert watts.max() <= GPUS * cap_w + SERVER_REST_W
            assert watts.min() == watts[0] == kind.idle_w == GPUS * profile.idle_w + SERVER_REST_W
            assert (np.diff(watts) >= 0).all()


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_a_lower_cap_never_speeds_up_and_the_lowest_slows_both_phases(profile: Profile) -> None:
    kinds = [kind_of(profile, cap_w) for cap_w in caps(profile)]
    for lower, higher in some(pairwise(kinds)):
        assert (lower.prefill_s >= higher.prefill_s).all()
        assert (lower.decode_s >= higher.decode_s).all()
        assert lower.kv_s >= higher.kv_s
    assert kinds[0].prefill_s[1_000] > 1.1 * kinds[-1].prefill_s[1_000]
    assert kinds[0].decode_s[64] > 1.1 * kinds[-1].decode_s[64]
    assert kinds[0].kv_s > 1.1 * kinds[-1].kv_s


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_times_are_positive_and_rise_with_their_batch(profile: Profile) -> None:
    kind = kind_of(profile)
    assert len(kind.prefill_s) == len(kind.prefill_w) == LONGEST + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    assert len(kind.decode_s) == len(kind.decode_w) == MAX_BATCH_SEQUENCES + 1
    assert kind.prefill_s[0] == kind.decode_s[0] == 0.0
    for seconds in (kind.prefill_s, kind.decode_s):
        assert (seconds[1:] > 0).all() and np.isfinite(seconds).all()
        assert (np.diff(seconds) >= 0).all() and seconds[-1] > 1.3 * seconds[1]
    assert kind.kv_s > 0


def test_no_cap_means_the_default_limit() -> None:
    free, capped = kind_of(H100), kind_of(H100, H100.default_cap_w)
    assert free.name == capped.name == "H100-SXM at 700 W"
    assert (free.prefill_s == capped.prefill_s).all() and (free.decode_w == capped.decode_w).all()


def test_a_million_tokens_of_context_cost_the_profiles_milliseconds() -> None:
    assert H100.timing is not None
    assert kind_of(H100).kv_s * 1e6 == pytest.approx(H100.timing.kv_ms_per_mtoken / 1e3, rel=1e-12)


def test_decode_keeps_its_pace_at_half_power_and_prefill_does_not() -> None:
    full, half = kind_of(H100, 700), kind_of(H100, 350)
    assert half.decode_s[64] / full.decode_s[64] == pytest.approx(1.02)
    assert half.prefill_s[2_048] / full.prefill_s[2_048] == pytest.approx(1.3)


def test_room_for_the_cache_is_what_an_engine_may_use_less_the_weights() -> None:
    assert LLAMA_70B.weights_bytes == 141.1e9
    rooms = {profile.name: kind_of(profile).kv_room for profile in PROFILES}
    for name, gib in (("A100-SXM-80GB", 80), ("H100-SXM", 80), ("H200-SXM", 141), ("B200", 180)):
        assert rooms[name] == int(8 * gib * GIB * 0.9 - 141.1e9) // 327_680
    assert all(kind_of(H100, w).kv_room == rooms["H100-SXM"] for w in some(caps(H100)))


def test_the_cache_moves_behind_its_prefill_or_after_it_or_in_no_time() -> None:
    behind, after, free = (kind_of(H100, links=x) for x in (Links(), Links(overlap=False), Links(free=True)))
    whole_s = 327_680 / 50e9
    assert (behind.hand_off_s_per_token, behind.hand_off_fixed_s, behind.overlap_from_tokens) == (whole_s, 0.005, 512)
    assert (after.hand_off_s_per_token, after.hand_off_fixed_s, after.overlap_from_tokens) == (whole_s, 0, float("inf"))
    assert (free.hand_off_s_per_token, free.hand_off_fixed_s) == (0, 0)


def test_a_kind_asks_the_model_at_a_few_sizes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = phase_model.prefill_ms

    def counted(profile: Profile, tokens: int, cap_w: float, clock_mhz: float) -> float:
        asked.append(tokens)
        return real(profile, tokens, cap_w, clock_mhz)

    monkeypatch.setattr(phase_model, "prefill_ms", counted)
    kind_of(H100)
    assert 1 <= len(asked) <= profiles.MAX_POINTS + 2  # a plan builds hundreds of kinds


@pytest.mark.parametrize(("cap_w", "clock_mhz"), [(700, 1410), (400, 1410), (350, 1900), (700, 0)])
def test_under_a_cap_and_a_clock_lock_the_stronger_brake_counts_and_the_lower_draw(cap_w: int, clock_mhz: int) -> None:
    kind = kind_2026(H100, cap_w=cap_w, clock_mhz=clock_mhz, longest_prompt=LONGEST)
    assert kind.prefill_s[700] * 1e3 == pytest.approx(phase_model.prefill_ms(H100, 700, cap_w, clock_mhz))
    step_s = kind.decode_s[20] + kind.kv_s * 20 * 900
    assert step_s * 1e3 == pytest.approx(phase_model.decode_ms(H100, 20, 900, cap_w, clock_mhz))
    for phase, load, drawn_w in (
        (Phase.PREFILL, phase_model.prefill_load(H100, 700), kind.prefill_w[700]),
        (Phase.DECODE, phase_model.decode_load(H100, 20), kind.decode_w[20]),
    ):
        wanted_w = phase_model.power_at_clock_w(H100, phase, load, clock_mhz)
        assert drawn_w == pytest.approx(8 * min(wanted_w, cap_w) + 2800)
    assert ("MHz" in kind.name) == (clock_mhz > 0)


def test_a_profile_is_known_by_its_name_in_a_cluster() -> None:
    assert kind_of(replace(H100, name="h100-sxm")).kv_room == kind_of(H100).kv_room


def test_what_makes_no_server_is_refused_in_one_sentence() -> None:
    assert H100.timing is not None
    decode_only = tuple(row for row in H100.phases if row.phase is Phase.DECODE)
    wanted = r"meta-llama/Llama-3\.1-70B-Instruct on 8 GPUs; fit one from a table"
    cases = [
        (H100, 199, r"a cap of 199 W is below the 200 W that H100-SXM takes; raise it"),
        (replace(H100, timing=None), 700, rf"profile H100-SXM has no timing of {wanted}"),
        (replace(H100, timing=replace(H100.timing, tensor_parallel=4)), 700, rf"profile H100-SXM has no timing of {wanted}"),
        (replace(H100, timing=replace(H100.timing, model="m")), 700, rf"profile H100-SXM has no timing of {wanted}"),
        (replace(H100, phases=decode_only), 700, r"profile H100-SXM does not describe both phases; add the missing one"),
        (
            replace(H100, name="GH200"), 700,
            r"the memory of GH200 is not known; name the profile as one of A100-SXM-80GB, H100-SXM, H200-SXM, B200, "
            r"A100-SXM-40GB, GB200, GB300, L40S, T4",
        ),
    ]  # fmt: skip
    for profile, cap_w, sentence in cases:
        with pytest.raises(TableError, match=f"^{sentence}$"):
            kind_of(profile, cap_w)


def test_a_kind_of_2023_is_its_table_slowed_as_the_profile_says() -> None:
    table, profile = builtin().server("llama2-70b", "H100"), profile_of("H100")
    shape = builtin().shape("llama2-70b")
    full, half = (kind_2023(table, shape, cap_w=w, longest_prompt=LONGEST) for w in (None, 350))
    assert full.prefill_s[512] == pytest.approx(dict(table.prefill_s)[512])
    assert full.decode_s[[1, 64]] == pytest.approx([dict(table.decode_s)[1], dict(table.decode_s)[64]])
    assert half.prefill_s[512:] == pytest.approx(1.3 * full.prefill_s[512:])
    assert half.decode_s[64] == pytest.approx(1.02 * full.decode_s[64])
    assert half.prefill_w.max() == 8 * 350 + 2_800 < full.prefill_w.max() == 8 * profile.default_cap_w + 2_800
    assert half.kv_room == full.kv_room == (8 * 80 * GIB - shape.weights_bytes) // shape.kv_bytes_per_token(grouped=True)
    assert full.kv_s == 0.0


def test_a_kind_of_2023_never_takes_no_time_where_its_table_falls_below_zero() -> None:
    steep = ServerTable("H100", "m", prefill_s=((100, 1.0), (200, 3.0)), decode_s=((1, 0.5), (4, 0.8)))
    kind = kind_2023(steep, builtin().shape("llama2-70b"), longest_prompt=LONGEST)
    assert kind.prefill_s[1] == pytest.approx(1e-6)
    assert kind.prefill_s[200] == pytest.approx(3.0)
