"""Timing tables from files: the neutral CSV comes back as it was, fits find what made a table, bad files are one sentence."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from splitwatt_api.convert_profile import profile_from_wire
from splitwatt_api.power_profile import PowerProfile
from splitwatt_core.gpus import phase_model, profiles
from splitwatt_core.gpus.profiles import Timing
from splitwatt_sim.servers import table_files
from splitwatt_sim.servers.kinds_2026 import kind_2026
from splitwatt_sim.servers.table_files import (
    NEUTRAL_COLUMNS,
    SERVED_MODEL,
    DecodeRow,
    PrefillRow,
    TimingTable,
    fit_timing,
    from_aiconfigurator,
    read_aic_csv,
    read_neutral_csv,
    to_power_profile,
    write_neutral_csv,
)
from splitwatt_sim.servers.tables import TableError

BASE_MS = {1: 10.0, 8: 10.0, 16: 11.5, 64: 14.25}
KV_MS = 13.5
PREFILL_MS = {128: 14.0, 1024: 46.0, 8192: 344.0}
CONTEXTS = (1024, 4096)
AIC_HEADER = "sys,kind,isl,bs,ttft,tpot,power,t"
NEUTRAL_HEADER = ",".join(NEUTRAL_COLUMNS)

Noise = Callable[[int, int], float]


def exact(batch: int, context: int) -> float:
    del batch, context
    return 1.0


def law_ms(batch: int, context: int) -> float:
    return BASE_MS[batch] + KV_MS * batch * context / 1e6


def made(noise: Noise = exact) -> TimingTable:
    """A table that the known constants make, times a factor per row."""
    return TimingTable(
        "H100-SXM",
        SERVED_MODEL,
        8,
        tuple(PrefillRow(tokens, ms) for tokens, ms in PREFILL_MS.items()),
        tuple(DecodeRow(b, c, law_ms(b, c) * noise(b, c)) for b in BASE_MS for c in CONTEXTS),
    )


def aic_lines(system: str = "h100_sxm", noise: Noise = exact) -> list[str]:
    prefill = [f"{system},ctx,{tokens},1,{ms!r},0.0,,1.5" for tokens, ms in PREFILL_MS.items()]
    decode = [f"{system},gen,{c},{b},0.0,{law_ms(b, c) * noise(b, c)!r},,1.5" for b in BASE_MS for c in CONTEXTS]
    return [AIC_HEADER, *reversed(prefill), *decode]


def neutral(*tables: TimingTable) -> str:
    file = io.StringIO()
    write_neutral_csv(tables, file)
    return file.getvalue()


def test_a_neutral_csv_comes_back_as_it_was_to_the_last_bit() -> None:
    noisy = made(lambda b, c: 1 + 1e-3 * math.sin(b * c))
    powered = TimingTable("B200", "a,b", 4, (PrefillRow(7, 1 / 3, 512.5),), (DecodeRow(1, 0, 0.1, 300.0), DecodeRow(2, 0, 0.2)))
    text = neutral(noisy, powered)
    assert read_neutral_csv(text.splitlines(), name="t.csv") == (powered, noisy)  # by name of the GPU
    assert text.splitlines()[0] == "gpu,model,tensor_parallel,phase,tokens,batch,context,time_ms,power_w"
    assert 'B200,"a,b",4,prefill,7,,,0.3333333333333333,512.5' in text.splitlines()


def test_a_neutral_csv_needs_no_power_no_order_and_no_empty_cells() -> None:
    rows = ["g,m,8,decode,9,2,64,3.5", "g,m,8,prefill,64,9,9,2.5", "g,m,8,decode,9,2,32,3.25", "g,m,8,decode,9,1,64,3.0"]
    (table,) = read_neutral_csv([NEUTRAL_HEADER, *rows], name="t.csv")
    assert table.prefill == (PrefillRow(64, 2.5),)
    assert table.decode == (DecodeRow(1, 64, 3.0), DecodeRow(2, 32, 3.25), DecodeRow(2, 64, 3.5))


def test_a_fit_finds_the_constants_that_made_the_table() -> None:
    fit = fit_timing(made())
    assert fit.timing.kv_ms_per_mtoken == pytest.approx(KV_MS, rel=1e-9)
    assert dict(fit.timing.decode_points) == pytest.approx(BASE_MS, rel=1e-9)
    assert dict(fit.timing.prefill_points) == PREFILL_MS
    assert (fit.timing.model, fit.timing.tensor_parallel) == (SERVED_MODEL, 8)
    assert fit.decode_error < 1e-9 and fit.prefill_error == 0
    assert (fit.timing.prefill_error_permille, fit.timing.decode_error_permille) == (0, 0)


def test_a_fit_of_a_noisy_table_stays_within_three_percent_of_every_row_and_says_by_how_much() -> None:
    table = made(lambda b, c: 1.02 if (b + c // 1024) % 2 else 0.98)
    fit = fit_timing(table)
    points, kv_ms = dict(fit.timing.decode_points), fit.timing.kv_ms_per_mtoken
    misses = [abs((points[r.batch] + kv_ms * r.batch * r.context / 1e6) / r.time_ms - 1) for r in table.decode]
    assert 0.001 < max(misses) <= 0.03
    assert fit.decode_error == pytest.approx(max(misses), rel=1e-12)
    assert fit.timing.decode_error_permille == math.ceil(1000 * max(misses))


def test_no_other_rising_base_or_slope_is_nearer_than_the_fit() -> None:
    # At batch 16 the table falls below that of batch 8: there the base must be one value for both.
    table = made(lambda b, c: 0.8 if b == 16 else 1 + 0.01 * math.cos(b + c))
    fit = fit_timing(table, allowed_error=1)
    points, kv_ms = dict(fit.timing.decode_points), fit.timing.kv_ms_per_mtoken

    def squares(base_ms: dict[int, float], slope_ms: float) -> float:
        fitted = [base_ms[r.batch] + slope_ms * r.batch * r.context / 1e6 for r in table.decode]
        return sum((f / r.time_ms - 1) ** 2 for f, r in zip(fitted, table.decode, strict=True))

    pool = {b for b, ms in points.items() if ms == points[16]}
    assert pool >= {8, 16} and points[64] > points[16]
    best = squares(points, kv_ms)
    for step in (-0.05, -1e-3, 1e-3, 0.05):
        assert squares(points, kv_ms * (1 + step)) > best
        for moved in (pool, {64}, {*pool, 64}):
            base_ms = {b: ms * (1 + step) if b in moved else ms for b, ms in points.items()}
            assert squares(base_ms, kv_ms) > best
            assert squares(base_ms, kv_ms * (1 - step)) > best


def test_a_table_that_speeds_up_with_its_context_gets_a_slope_of_zero() -> None:
    fit = fit_timing(made(lambda b, c: 1 - 1e-5 * b if c == 4096 else 1 + 0.35 * b / 64), allowed_error=1)
    assert fit.timing.kv_ms_per_mtoken == 0.0


def test_a_fit_that_misses_is_refused_unless_it_is_allowed() -> None:
    falling = made(lambda b, c: 0.7 if b == 64 else 1.0)
    with pytest.raises(TableError) as error:
        fit_timing(falling)
    assert str(error.value).startswith(f"table of {SERVED_MODEL} on H100-SXM: the fit misses the decode of batch 64 at context ")
    assert str(error.value).endswith("%, and 3.0% is allowed; measure it again, or allow more (--fit-error)")
    fit = fit_timing(falling, allowed_error=0.3)
    assert 0.03 < fit.decode_error < 0.3
    values = [ms for _, ms in fit.timing.decode_points]
    assert values == sorted(values)
    with pytest.raises(TableError, match=r"the fit misses the prefill of 1024 tokens by \d+\.\d%, and 5\.0% is allowed"):
        fit_timing(replace(made(), prefill=(PrefillRow(1024, 46.0), PrefillRow(8192, 30.0))), allowed_error=0.05)


def test_aiconfigurators_columns_give_one_fit_per_gpu_under_our_names() -> None:
    lines = aic_lines() + aic_lines("b200_sxm")[1:] + aic_lines("mi300x")[1:]
    fits = read_aic_csv(lines, name="aic.csv")
    assert [fit.table.gpu for fit in fits] == ["B200", "H100-SXM", "mi300x"]
    assert fits[1].table == made()
    for fit in fits:
        assert fit.timing.kv_ms_per_mtoken == pytest.approx(KV_MS, rel=1e-9)
        assert dict(fit.timing.decode_points) == pytest.approx(BASE_MS, rel=1e-9)


def test_a_gpu_that_the_form_cannot_hold_can_be_left_out_or_allowed() -> None:
    lines = aic_lines() + aic_lines("b200_sxm", lambda b, c: 0.7 if b == 64 else 1.0)[1:]
    with pytest.raises(TableError, match=r"^table of meta-llama/Llama-3\.1-70B-Instruct on B200: the fit misses"):
        read_aic_csv(lines, name="aic.csv")
    assert [fit.table.gpu for fit in read_aic_csv(lines, name="aic.csv", gpus={"H100-SXM"})] == ["H100-SXM"]
    (b200, h100) = read_aic_csv(lines, name="aic.csv", allowed_error=0.5)
    assert b200.timing.decode_error_permille > 30 and h100.timing.decode_error_permille == 0


def test_several_prompts_of_a_batch_are_their_tokens_together() -> None:
    lines = [AIC_HEADER, "x,ctx,512,4,30,0,,", "x,ctx,512,1,10,0,,", "x,gen,10,1,0,5,,", "x,gen,20,1,0,5,,"]
    (fit,) = read_aic_csv(lines, name="aic.csv", model="m", tensor_parallel=2)
    assert fit.table.prefill == (PrefillRow(512, 10.0), PrefillRow(2048, 30.0))
    assert (fit.timing.model, fit.timing.tensor_parallel) == ("m", 2)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], r"t\.csv lacks the columns sys, kind, isl, bs, ttft, tpot; its first line must name them"),
        ([AIC_HEADER.replace("isl,", "")], r"t\.csv lacks the columns isl; its first line must name them"),
        ([AIC_HEADER], r"t\.csv has no rows below its first line"),
        ([AIC_HEADER, "x,mix,1,1,1,1,,"], r"t\.csv line 2: kind must be ctx or gen, not 'mix'"),
        ([AIC_HEADER, "x,ctx,many,1,1,1,,"], r"t\.csv line 2: invalid literal .*'many'"),
        ([AIC_HEADER, "x,ctx,1,1,1,1,,", "x,gen,1"], r"t\.csv line 3: .*None.*"),
        ([AIC_HEADER, "x,ctx,1,1,1,1,,"], r"table of m on x: give prefill times of at least two numbers of tokens"),
        (
            [AIC_HEADER, "x,ctx,1,1,1,1,,", "x,ctx,2,1,2,1,,", "x,gen,1,1,1,1,,", "x,gen,1,2,1,1,,"],
            r"table of m on x: give decode times of one batch at two contexts, or what a context costs stays unknown",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_sentence(lines: list[str], sentence: str) -> None:
    with pytest.raises(TableError, match=f"^{sentence}$"):
        read_aic_csv(lines, name="t.csv", model="m")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["g,m,8,mixed,1,1,1,1"], r"t\.csv line 2: phase must be prefill or decode, not 'mixed'"),
        (["g,m,8,prefill,,,,1"], r"t\.csv line 2: invalid literal .*''"),
        ([",m,8,prefill,1,,,1"], r"table of m on no GPU: name the GPU and the model, and give a tensor_parallel from 1"),
        (["g,,8,prefill,1,,,1"], r"table of no model on g: name the GPU and the model, .*"),
        (["g,m,0,prefill,1,,,1"], r"table of m on g: name the GPU and the model, .*"),
        (
            ["g,m,8,prefill,0,,,1"],
            r"table of m on g: prefill rows must rise in tokens \(from 1\), each once, but 0 follows the header",
        ),
        (["g,m,8,prefill,5,,,1"] * 2, r"table of m on g: prefill rows .*, but 5 follows 5"),
        (["g,m,8,decode,,5,64,1"] * 2, r"table of m on g: decode rows .*, but 5, 64 follows 5, 64"),
        (["g,m,8,decode,,5,-1,1"], r"table of m on g: decode rows .*, but 5, -1 follows the header"),
        (["g,m,8,prefill,5,,,-11"], r"t\.csv line 2: time_ms must be a number above 0, not -11"),
        (["g,m,8,prefill,5,,,2", "g,m,8,prefill,6,,,abc"], r"t\.csv line 3: time_ms must be a number above 0, not abc"),
        (["g,m,8,prefill,5,,"], r"t\.csv line 2: time_ms must be a number above 0, not empty"),
        (["g,m,8,decode,,5,1,nan"], r"t\.csv line 2: time_ms must be a number above 0, not nan"),
        (["g,m,8,decode,,5,1,1,inf"], r"t\.csv line 2: power_w must be a number above 0, not inf"),
    ],
)
def test_a_neutral_row_that_cannot_be_is_refused_in_one_sentence(rows: list[str], sentence: str) -> None:
    with pytest.raises(TableError, match=f"^{sentence}$"):
        read_neutral_csv([f"{NEUTRAL_HEADER},power_w", *rows], name="t.csv")


def test_rows_and_points_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = replace(made(), prefill=tuple(PrefillRow(n, float(n)) for n in range(1, 18)))
    with pytest.raises(TableError, match=r"^table on H100-SXM: timing of .*: prefill points: give 1 to 16 points, not 17$"):
        fit_timing(many)
    monkeypatch.setattr(table_files, "MAX_ROWS", 2)
    with pytest.raises(TableError, match=r"^t\.csv has more than 2 rows; keep those of the servers that are needed$"):
        read_neutral_csv(neutral(made()).splitlines(), name="t.csv")


def fake_aiconfigurator(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[object, ...]]) -> None:
    """The package's function, answering from the known constants."""

    def cli_estimate(
        model_path: str, system_name: str, *, mode: str, backend_name: str, isl: int, osl: int, batch_size: int, tp_size: int
    ) -> SimpleNamespace:
        calls.append((model_path, system_name, mode, backend_name, isl, osl, batch_size, tp_size))
        if system_name == "nope":
            raise ValueError("No database found for system=nope.\nCheck it.")
        if mode == "static_ctx":
            return SimpleNamespace(ttft=isl / 25, tpot=0.0, power_w=None)
        return SimpleNamespace(ttft=0.0, tpot=10 + batch_size / 16 + KV_MS * batch_size * isl / 1e6, power_w=400.0)

    for name in ("aiconfigurator", "aiconfigurator.cli", "aiconfigurator.cli.api"):
        module = ModuleType(name)
        module.__dict__["cli_estimate"] = cli_estimate
        monkeypatch.setitem(sys.modules, name, module)


def test_aiconfigurator_is_asked_once_per_server_and_then_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    seen: list[tuple[int, int]] = []
    fake_aiconfigurator(monkeypatch, calls)
    cache = tmp_path / "aic.csv"
    table = from_aiconfigurator(cache, system="h100_sxm", on_sample=lambda done, total: seen.append((done, total)))
    assert len(calls) == len(set(calls)) == 6 + 7 * 2
    assert seen == [(n, 20) for n in range(20)]
    assert calls[0] == ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "static_ctx", "vllm", 128, 1, 1, 8)
    assert ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "static_gen", "vllm", 4096, 2, 64, 8) in calls
    assert (table.gpu, table.model, table.tensor_parallel) == ("H100-SXM", SERVED_MODEL, 8)
    assert table.decode[0] == DecodeRow(1, 1024, 10 + 1 / 16 + KV_MS * 1024 / 1e6, 400.0)

    assert from_aiconfigurator(cache, system="h100_sxm") == table
    assert len(calls) == 20
    other = from_aiconfigurator(cache, system="b200_sxm")
    assert len(calls) == 40
    assert read_neutral_csv(cache.read_text().splitlines(), name="aic.csv") == (other, table)
    assert [path.name for path in tmp_path.iterdir()] == ["aic.csv"]


def test_without_the_package_the_cached_file_still_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator", None)
    cache = tmp_path / "aic.csv"
    with pytest.raises(TableError, match=r"^aiconfigurator is not installed; install splitwatt\[aic\] or give a table of your"):
        from_aiconfigurator(cache, system="h100_sxm")
    cache.write_text(neutral(made()))
    assert from_aiconfigurator(cache, system="h100_sxm") == made()
    with pytest.raises(TableError, match=r"^aiconfigurator is not installed"):
        from_aiconfigurator(cache, system="h100_sxm", tensor_parallel=4)


def test_a_server_that_aiconfigurator_does_not_know_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_aiconfigurator(monkeypatch, [])
    with pytest.raises(TableError) as error:
        from_aiconfigurator(tmp_path / "aic.csv", system="nope")
    assert str(error.value) == f"aiconfigurator has no {SERVED_MODEL} on nope: No database found for system=nope. Check it."
    assert not list(tmp_path.iterdir())


def test_a_profile_takes_a_fitted_timing_and_simulates_with_it() -> None:
    fit = fit_timing(made())
    profile = replace(profiles.find(profiles.builtin(), fit.table.gpu) or profiles.builtin()[0], timing=fit.timing)
    assert profile.name == "H100-SXM"
    kind = kind_2026(profile, longest_prompt=8192)
    assert kind.prefill_s[8192] == pytest.approx(0.344)
    assert kind.decode_s[16] + kind.kv_s * 16 * 4096 == pytest.approx(law_ms(16, 4096) / 1e3)
    assert phase_model.decode_ms(profile, 64, 1024, 700) == pytest.approx(law_ms(64, 1024))


@pytest.mark.parametrize("profile", profiles.builtin(), ids=lambda p: p.name)
def test_a_simulated_profile_is_one_that_a_cluster_takes(profile: profiles.Profile) -> None:
    manifest = to_power_profile(profile)
    assert (manifest["apiVersion"], manifest["kind"]) == ("splitwatt.io/v1alpha1", "PowerProfile")
    assert PowerProfile.from_wire(manifest).to_wire() == manifest
    back = profile_from_wire(manifest)
    assert back.phases == profile.phases and back.product_names == profile.product_names
    assert back.matches(profile.name) and isinstance(profile.timing, Timing) and back.timing is None


def test_a_profile_that_the_api_would_refuse_says_why_in_one_sentence() -> None:
    profile = profiles.builtin()[0]
    with pytest.raises(TableError, match=r"^profile A100-SXM-80GB is no PowerProfile: phases: List should have at least 1 item"):
        to_power_profile(replace(profile, phases=()))
    with pytest.raises(TableError, match=r"^profile A100-SXM-80GB is no PowerProfile: source of idle_w must begin with a grade"):
        to_power_profile(replace(profile, sources={"idle_w": "somewhere"}))
