"""Timing tables from files: aiconfigurator's columns and a neutral CSV of our own, fitted into the core's `Timing`.

Theory. A decode step reads all weights once and every sequence's KV cache, so its time is

    decode ms = base(batch) + kv_ms_per_mtoken * batch * context / 1e6,    base never falling with the batch.

That is the form of `Timing`, and why tables become a `Timing` and not a `ServerTable`: only it keeps the context apart, and
the phase model, the emulated engines and `kinds_2026` all ask it. A profile takes it with
`dataclasses.replace(profile, timing=fit.timing)`, and `to_power_profile` makes the object that a cluster applies.

The fit is the least sum of squared relative errors. At a given slope the best base is an isotonic regression, and what is
left is convex in the slope alone, so a bisection on its derivative finds the one minimum, without a solver.

Protects: times that the form cannot hold are never used unnoticed. A fit that misses any measured row by more than
`FIT_ERROR` is refused unless the caller allows it, and what it misses by is kept in the `Timing`.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from splitwatt_api.convert_profile import profile_to_api
from splitwatt_core.gpus.profiles import Profile, ProfileError, Timing

from splitwatt_sim.servers.tables import MAX_ROWS, TableError

NEUTRAL_COLUMNS: Final = ("gpu", "model", "tensor_parallel", "phase", "tokens", "batch", "context", "time_ms")
POWER_COLUMN: Final = "power_w"  # may be absent, and empty in any row
AIC_COLUMNS: Final = ("sys", "kind", "isl", "bs", "ttft", "tpot")
GPU_OF_SYSTEM: Final = {
    "a100_sxm": "A100-SXM-80GB", "h100_sxm": "H100-SXM", "h200_sxm": "H200-SXM", "b200_sxm": "B200",
}  # fmt: skip
"""aiconfigurator's systems by the names of our power profiles; others keep their own name."""
SERVED_MODEL: Final = "meta-llama/Llama-3.1-70B-Instruct"
AIC_NAME_OF_MODEL: Final = {SERVED_MODEL: "meta-llama/Meta-Llama-3.1-70B"}  # the same shapes, as aiconfigurator has them
Server = tuple[str, str, int]
"""GPU, model, tensor parallelism."""

FIT_ERROR: Final = 0.03
BISECTIONS: Final = 100
SAMPLED_TOKENS: Final = (128, 512, 1024, 2048, 4096, 8192)
SAMPLED_BATCHES: Final = (1, 8, 16, 32, 64, 128, 256)
SAMPLED_CONTEXTS: Final = (1024, 4096)  # as the built-in profiles of 2026 were sampled


class PrefillRow(NamedTuple):
    """One iteration of `tokens` prompt tokens in all. power_w: of one GPU, None where it was not measured."""

    tokens: int
    time_ms: float
    power_w: float | None = None


class DecodeRow(NamedTuple):
    """One step of `batch` sequences with `context` tokens each. power_w: as in PrefillRow."""

    batch: int
    context: int
    time_ms: float
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class TimingTable:
    """What was measured, uncapped, of one model on one tensor-parallel group. `gpu`: a PowerProfile's name or an NVML
    product name. Rows rise in their keys. Raises TableError."""

    gpu: str
    model: str
    tensor_parallel: int
    prefill: tuple[PrefillRow, ...]
    decode: tuple[DecodeRow, ...]

    def __post_init__(self) -> None:
        where = f"table of {self.model or 'no model'} on {self.gpu or 'no GPU'}"
        if not self.gpu or not self.model or self.tensor_parallel < 1:
            raise TableError(f"{where}: name the GPU and the model, and give a tensor_parallel from 1")
        _check_rows([row[:1] for row in self.prefill], f"{where}: prefill rows must rise in tokens (from 1)", lowest=(1,))
        _check_rows([row[:2] for row in self.decode], f"{where}: decode rows must rise in batch (from 1), context", lowest=(1, 0))
        rows: tuple[PrefillRow | DecodeRow, ...] = (*self.prefill, *self.decode)
        for row in rows:
            if not 0 < row.time_ms < math.inf or (row.power_w is not None and not 0 < row.power_w < math.inf):
                raise TableError(f"{where}: time_ms and {POWER_COLUMN} must be finite and above 0, not as in {row}")


def _check_rows(keys: Sequence[tuple[int, ...]], sentence: str, *, lowest: tuple[int, ...]) -> None:
    for before, key in itertools.pairwise([(), *keys]):
        if key <= before or any(value < least for value, least in zip(key, lowest, strict=True)):
            found = f"{', '.join(map(str, key))} follows {', '.join(map(str, before)) or 'the header'}"
            raise TableError(f"{sentence}, each once, but {found}")


@dataclass(frozen=True, slots=True)
class Fit:
    """A table and the `timing` fitted to it. Errors: the largest |fitted / measured - 1| over all rows of that phase."""

    table: TimingTable
    timing: Timing
    prefill_error: float
    decode_error: float


def fit_timing(table: TimingTable, *, allowed_error: float = FIT_ERROR) -> Fit:
    """The nearest `Timing` of a table. Raises TableError where a row is missed by more than `allowed_error` (0.03: 3 %), and
    where the rows do not tell enough: two prefills, and two contexts of at least one batch."""
    where = f"table of {table.model} on {table.gpu}"
    if len(table.prefill) < 2:
        raise TableError(f"{where}: give prefill times of at least two numbers of tokens")
    batches, at = np.unique([row.batch for row in table.decode], return_inverse=True)
    if len(batches) == len(table.decode):
        raise TableError(f"{where}: give decode times of one batch at two contexts, or what a context costs stays unknown")
    prefill_ms = np.array([row.time_ms for row in table.prefill])
    fitted_ms = _rising(prefill_ms, 1 / prefill_ms**2)
    decode_ms = np.array([row.time_ms for row in table.decode])
    mtokens = np.array([row.batch * row.context for row in table.decode]) / 1e6
    base_ms, kv_ms = _fit_decode(at, mtokens, decode_ms)
    prefill_error = np.abs(fitted_ms / prefill_ms - 1)
    decode_error = np.abs((base_ms[at] + kv_ms * mtokens) / decode_ms - 1)
    prefill_words, decode_words = "prefill of {0} tokens", "decode of batch {0} at context {1}"
    for what, errors, rows in ((prefill_words, prefill_error, table.prefill), (decode_words, decode_error, table.decode)):
        worst = int(np.argmax(errors))
        if errors[worst] > allowed_error:
            raise TableError(
                f"{where}: the fit misses the {what.format(*rows[worst])} by {errors[worst]:.1%}, and {allowed_error:.1%} "
                "is allowed; measure it again, or allow more (--fit-error)"
            )
    try:
        timing = Timing(
            model=table.model,
            tensor_parallel=table.tensor_parallel,
            prefill_points=tuple(zip((row.tokens for row in table.prefill), fitted_ms.tolist(), strict=True)),
            decode_points=tuple(zip(batches.tolist(), base_ms.tolist(), strict=True)),
            kv_ms_per_mtoken=kv_ms,
            prefill_error_permille=_permille(prefill_error),
            decode_error_permille=_permille(decode_error),
        )
    except ProfileError as error:
        raise TableError(f"table on {table.gpu}: {error}") from error
    return Fit(table, timing, float(prefill_error.max()), float(decode_error.max()))


def _permille(errors: NDArray[np.float64]) -> int:
    """Rounded up, but for rounding noise: an error is never told smaller than it is."""
    return math.ceil(round(1000 * float(errors.max()), 6))


def _fit_decode(at: NDArray[np.intp], mtokens: NDArray[np.float64], ms: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Base ms of each batch, and ms per million tokens, of least squared relative error. `at`: a row's batch."""
    weight = 1 / ms**2
    total = np.bincount(at, weight).astype(np.float64)

    def base_at(kv_ms: float) -> NDArray[np.float64]:
        return np.maximum(_rising(np.bincount(at, weight * (ms - kv_ms * mtokens)) / total, total), 0.0)

    def pull(kv_ms: float) -> float:
        """Falls with the slope; 0 at the best one (half the derivative of the sum of squares, negative)."""
        return float(np.sum(weight * mtokens * (ms - base_at(kv_ms)[at] - kv_ms * mtokens)))

    # No base is below 0, so a slope that overshoots every row is too steep; where none helps, `low` stays at 0.
    low, high = 0.0, float(np.max(ms[mtokens > 0] / mtokens[mtokens > 0]))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) > 0 else (low, middle)
    return base_at(low), low


def _rising(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest values that never fall, by weighted squares: neighbours that do are pooled into their mean."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (v, w, n), (u, x, m) = pools[-2:]
            pools[-2:] = [((v * w + u * x) / (w + x), w + x, n + m)]
    return np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])


def read_aic_csv(
    lines: Iterable[str],
    *,
    name: str,
    model: str = SERVED_MODEL,
    tensor_parallel: int = 8,
    gpus: Container[str] | None = None,
    allowed_error: float = FIT_ERROR,
) -> tuple[Fit, ...]:
    """One fit per system of a file with `AIC_COLUMNS` (others are ignored): rows of kind ctx give prefill ms (ttft) by
    isl * bs tokens, rows of kind gen decode ms (tpot) by bs sequences of isl tokens of context.

    Such a file does not name its model; `model` and `tensor_parallel` do. `gpus`: which to take, by the names of our power
    profiles, None: all. `name` is used in messages. Raises TableError, also where a fit misses by more than `allowed_error`.
    """

    def parse(row: dict[str, str]) -> tuple[Server, PrefillRow | DecodeRow]:
        server = (GPU_OF_SYSTEM.get(row["sys"], row["sys"]), model, tensor_parallel)
        isl, batch = int(row["isl"]), int(row["bs"])
        if row["kind"] == "ctx":
            return server, PrefillRow(isl * batch, _above_0(row, "ttft"))
        if row["kind"] == "gen":
            return server, DecodeRow(batch, isl, _above_0(row, "tpot"))
        raise ValueError(f"kind must be ctx or gen, not {row['kind']!r}")

    tables = _read(lines, name=name, columns=AIC_COLUMNS, parse=parse)
    return tuple(fit_timing(table, allowed_error=allowed_error) for table in tables if gpus is None or table.gpu in gpus)


def read_neutral_csv(lines: Iterable[str], *, name: str) -> tuple[TimingTable, ...]:
    """Tables of a file with `NEUTRAL_COLUMNS` and perhaps power_w, by GPU, model and tensor parallelism.

    phase prefill: time_ms by tokens; phase decode: time_ms by batch and context; columns of the other phase are ignored.
    power_w: of one GPU. `name` is used in messages. Raises TableError.
    """
    return _read(lines, name=name, columns=NEUTRAL_COLUMNS, parse=_neutral_row)


def _neutral_row(row: dict[str, str]) -> tuple[Server, PrefillRow | DecodeRow]:
    time_ms, power_w = _above_0(row, "time_ms"), _above_0(row, POWER_COLUMN) if row.get(POWER_COLUMN) else None
    server = (row["gpu"], row["model"], int(row["tensor_parallel"]))
    if row["phase"] == "prefill":
        return server, PrefillRow(int(row["tokens"]), time_ms, power_w)
    if row["phase"] == "decode":
        return server, DecodeRow(int(row["batch"]), int(row["context"]), time_ms, power_w)
    raise ValueError(f"phase must be prefill or decode, not {row['phase']!r}")


def _above_0(row: dict[str, str], column: str) -> float:
    """Raises ValueError, to which `_read` adds file and line: a table knows neither any more."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{column} must be a number above 0, not {row[column] or 'empty'}")
    return value


def _read(
    lines: Iterable[str],
    *,
    name: str,
    columns: Sequence[str],
    parse: Callable[[dict[str, str]], tuple[Server, PrefillRow | DecodeRow]],
) -> tuple[TimingTable, ...]:
    reader = csv.DictReader(lines)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise TableError(f"{name} lacks the columns {', '.join(missing)}; its first line must name them")
    prefill: dict[Server, list[PrefillRow]] = {}
    decode: dict[Server, list[DecodeRow]] = {}
    for count, row in enumerate(reader):
        if count == MAX_ROWS:
            raise TableError(f"{name} has more than {MAX_ROWS} rows; keep those of the servers that are needed")
        try:
            server, found = parse(row)
        except (TypeError, ValueError) as error:
            raise TableError(f"{name} line {reader.line_num}: {error}") from error
        if isinstance(found, PrefillRow):
            prefill.setdefault(server, []).append(found)
        else:
            decode.setdefault(server, []).append(found)
    if not prefill and not decode:
        raise TableError(f"{name} has no rows below its first line")
    return tuple(
        TimingTable(
            *server,
            prefill=tuple(sorted(prefill.get(server, ()), key=itemgetter(0))),
            decode=tuple(sorted(decode.get(server, ()), key=itemgetter(0, 1))),
        )
        for server in sorted({*prefill, *decode})
    )


def write_neutral_csv(tables: Iterable[TimingTable], file: TextIO) -> None:
    """Write what `read_neutral_csv` reads back, times to the last bit. Open the file with newline=""."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*NEUTRAL_COLUMNS, POWER_COLUMN])
    for table in tables:
        server = (table.gpu, table.model, table.tensor_parallel)
        for row in table.prefill:
            writer.writerow([*server, "prefill", row.tokens, "", "", row.time_ms, row.power_w])
        for step in table.decode:
            writer.writerow([*server, "decode", "", step.batch, step.context, step.time_ms, step.power_w])


def from_aiconfigurator(
    cache: Path,
    *,
    system: str,
    model: str = SERVED_MODEL,
    tensor_parallel: int = 8,
    backend: str = "vllm",
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> TimingTable:
    """The table of this server in the neutral CSV `cache`; where it is not there yet, aiconfigurator is asked once at
    `SAMPLED_*` and the file grows by it. A simulation asks the table, never the package: one answer takes about a second.

    Uses `aiconfigurator.cli.api.cli_estimate` (0.12.0), one static pass per point: mode static_ctx with one output token
    gives ttft, static_gen with two gives the tpot of one step at context isl. `backend` is not a column: keep one file per
    engine. `on_sample` is told how many points are done, of how many. Raises TableError where the package is missing or
    has no such server; its other errors pass.
    """
    gpu = GPU_OF_SYSTEM.get(system, system)
    tables = read_neutral_csv(cache.read_text("utf-8").splitlines(), name=str(cache)) if cache.exists() else ()
    for table in tables:
        if (table.gpu, table.model, table.tensor_parallel) == (gpu, model, tensor_parallel):
            return table
    try:
        estimate = importlib.import_module("aiconfigurator.cli.api").cli_estimate
    except ImportError as error:
        raise TableError("aiconfigurator is not installed; install splitwatt[aic] or give a table of your own") from error
    points = [("static_ctx", tokens, 1, 1) for tokens in SAMPLED_TOKENS]
    points += [("static_gen", context, 2, batch) for batch in SAMPLED_BATCHES for context in SAMPLED_CONTEXTS]
    prefill: list[PrefillRow] = []
    decode: list[DecodeRow] = []
    for done, (mode, isl, osl, batch) in enumerate(points):
        on_sample(done, len(points))
        try:
            answer = estimate(
                AIC_NAME_OF_MODEL.get(model, model), system, mode=mode, backend_name=backend, isl=isl, osl=osl,
                batch_size=batch, tp_size=tensor_parallel,
            )  # fmt: skip
        except (ValueError, AssertionError) as error:
            raise TableError(f"aiconfigurator has no {model} on {system}: {' '.join(str(error).split())}") from error
        if mode == "static_ctx":
            prefill.append(PrefillRow(isl, float(answer.ttft), answer.power_w or None))
        else:
            decode.append(DecodeRow(batch, isl, float(answer.tpot), answer.power_w or None))
    table = TimingTable(gpu, model, tensor_parallel, tuple(prefill), tuple(decode))
    # Whole or not at all: a file that ends halfway would be taken for the table.
    half = cache.with_name(f"{cache.name}.part")
    with half.open("w", encoding="utf-8", newline="") as file:
        write_neutral_csv((*tables, table), file)
    half.replace(cache)
    return table


def to_power_profile(profile: Profile) -> dict[str, Any]:
    """The PowerProfile manifest (splitwatt.io/v1alpha1) of a profile: what a policy needs, without step times. Raises
    TableError where the API would refuse it, and where a number has no grade."""
    try:
        return profile_to_api(profile).to_wire()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise TableError(f"profile {profile.name} is no PowerProfile: {first['loc'][0]}: {first['msg']}") from error
    except ValueError as error:
        raise TableError(f"profile {profile.name} is no PowerProfile: {error}") from error
