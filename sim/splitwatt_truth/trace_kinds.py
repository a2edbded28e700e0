"""Which kind of file a trace is, told by its first line, and in which unit its times are.

Columns have one of the names below, in any order, others are ignored. Two kinds share their names and differ by a factor of a
thousand: Mooncake counts milliseconds, Bailian seconds. The invariant: no unit is guessed in silence. It is told by what only
one of them has, or by a rate that cannot be, and said; where neither tells, the file is refused until somebody says it.

Sources of the names: Azure/AzurePublicDataset (AzureLLMInferenceDataset2023 and 2024, AzureLMMInferenceDataset2025),
kvcache-ai/Mooncake FAST25-release/traces, alibaba-edu/qwen-bailian-usagetraces-anon, HPMLL/BurstGPT releases 1.1 and 2.0,
microsoft/vidur, Mutinifni/splitwise-sim.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from splitwatt_truth.trace import TraceError

MAX_QUOTED_CHARS: Final = 120
"""What a message repeats of a file: enough to know the place, and still one sentence when the file is no text at all."""
MAX_RATE_PER_S: Final = 100.0
"""Requests per second of a trace; the published ones have 0.1 to 20. Times that would make it more are in another unit."""
MIN_RATE_PER_S: Final = 0.01
"""Whole numbers that would make less as milliseconds may be micro- or nanoseconds."""


class TraceUnit(StrEnum):
    SECONDS = "s"
    MILLISECONDS = "ms"

    @property
    def per_s(self) -> float:
        return 1.0 if self is TraceUnit.SECONDS else 1000.0


@dataclass(frozen=True, slots=True)
class TraceKind:
    """A kind of file by its names of time, prompt and output. `from_zero`: the first request sets the zero of the clock.
    `dates`: times may be dates too. `unit`: of its times; None: to be told by `unit_of`."""

    title: str
    columns: tuple[str, str, str]
    from_zero: bool = True
    dates: bool = False
    unit: TraceUnit | None = TraceUnit.SECONDS


MOONCAKE: Final = TraceKind("a Mooncake or Bailian trace", ("timestamp", "input_length", "output_length"), unit=None)
"""As objects, one a line, or as columns."""
KINDS: Final = (
    # Two runs of one given list must agree to the last bit, so its times stay as they are written.
    TraceKind("a list of arrivals", ("arrival_timestamp", "prompt_size", "token_size"), from_zero=False),
    TraceKind("an Azure trace", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), dates=True),
    TraceKind("a BurstGPT trace", ("Timestamp", "Request tokens", "Response tokens")),
    TraceKind("a vidur trace", ("arrived_at", "num_prefill_tokens", "num_decode_tokens")),
    MOONCAKE,
)
OF_BAILIAN: Final = ("chat_id", "parent_chat_id")
OF_A_CLOSED_LOOP: Final = ("delay", "session_id")
OF_A_CONVERSATION: Final = ("conversations", "conversation", "messages")
IMAGES: Final = ("NumImages", "num_images", "images")
SAY_UNIT: Final = "say which: --trace-unit s or --trace-unit ms (in a scenario requests.traceUnit)"


def quoted(text: str) -> str:
    """One line of a file's text, short enough for a message."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"


def wanted() -> str:
    tables = ", or ".join(", ".join(kind.columns) for kind in KINDS)
    return f"its first line must name {tables}, or be a JSON object with {', '.join(MOONCAKE.columns)}"


def kind_of(header: Sequence[str], name: str) -> TraceKind:
    """The kind all of whose columns are there. Raises TraceError about the one that is nearest."""
    missing = {kind: [column for column in kind.columns if column not in header] for kind in KINDS}
    kind = min(KINDS, key=lambda kind: len(missing[kind]))
    lacks, found = missing[kind], quoted(", ".join(header))
    if kind.columns[0] in lacks and any(column in header for column in OF_A_CLOSED_LOOP):
        raise TraceError(f"{name} {_closed_loop(header)}")
    if len(lacks) == len(kind.columns):
        raise TraceError(f"{name} is no trace of a known kind: {wanted()} (it has: {found})")
    if lacks:
        raise TraceError(
            f"{name} looks like {kind.title} but lacks the column{'s' if len(lacks) > 1 else ''} {', '.join(lacks)}; "
            f"its first line must name {', '.join(kind.columns)} (it has: {found})"
        )
    return kind


def check_record(record: Mapping[str, Any], where: str) -> None:
    """That a JSON object is a request with its time and sizes. Raises TraceError that says what it is instead."""
    missing = [key for key in MOONCAKE.columns if key not in record]
    if not missing:
        return
    if MOONCAKE.columns[0] in missing and any(key in record for key in OF_A_CLOSED_LOOP):
        raise TraceError(f"{where} {_closed_loop(record)}")
    talk = next((key for key in OF_A_CONVERSATION if key in record), None)
    if talk is not None:
        raise TraceError(
            f"{where} holds the text of a conversation ({talk}), as ShareGPT does: count its tokens and write "
            f"{', '.join(MOONCAKE.columns)} for each request"
        )
    raise TraceError(f"{where} lacks {', '.join(missing)} (it has: {quoted(', '.join(record))})")


def _closed_loop(names: Collection[str]) -> str:
    has = ", ".join(key for key in OF_A_CLOSED_LOOP if key in names)
    return (
        f"is a turn of a closed loop ({has}), which begins when the answer before it is there, and has no time of its own: give "
        "every row the time at which it came"
    )


def a_list(name: str) -> TraceError:
    return TraceError(
        f"{name} is one JSON list, as ShareGPT's conversations are: write one object a line, each with "
        f"{', '.join(MOONCAKE.columns)}; conversations have text instead, and no times"
    )


def unit_of(times: Sequence[float], names: Collection[str], *, name: str) -> tuple[TraceUnit, str]:
    """The unit of a Mooncake-like file from its first times and the names in its first row, and why in words. Raises TraceError
    where it may be either."""
    told = next((key for key in OF_BAILIAN if key in names), None)
    if told is not None:
        return TraceUnit.SECONDS, f"it has {told}, as Bailian's traces, whose times are seconds"
    span = max(times) - min(times)
    per_unit = (len(times) - 1) / span if span > 0 else 0.0
    as_ms_per_s = per_unit * TraceUnit.MILLISECONDS.per_s
    fractions = any(not at.is_integer() for at in times)
    if not fractions and 0 < as_ms_per_s < MIN_RATE_PER_S:
        raise TraceError(
            f"{name}: its times are whole numbers, as milliseconds mostly are, but the first {len(times)} rows make "
            f"{as_ms_per_s:.2g} requests/s so: divide micro- or nanoseconds to milliseconds, or {SAY_UNIT}"
        )
    if fractions == (as_ms_per_s > MAX_RATE_PER_S):
        if fractions:
            return TraceUnit.SECONDS, f"they have fractions, and as milliseconds would make {as_ms_per_s:.0f} requests/s"
        return TraceUnit.MILLISECONDS, "they are whole numbers, as Mooncake's, whose times are milliseconds"
    why = "they have fractions, as seconds mostly have" if fractions else "they are whole numbers, as milliseconds mostly are"
    rates = f"the first {len(times)} rows make {per_unit:.3g} requests/s as seconds, {as_ms_per_s:.3g} as milliseconds"
    raise TraceError(f"{name}: its times may be seconds or milliseconds: {why}, but {rates}; {SAY_UNIT}")
