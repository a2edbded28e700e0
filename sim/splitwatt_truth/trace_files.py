"""Traces from files, row by row: one reader for all who replay or draw from one.

A file is read once, from its first line to its last, and only the rows of the wanted part are kept; so a file of any length
has a part that fits. The invariant: every kept row is checked, none is repaired. A row that breaks a bound is refused with its
line; a request without tokens failed in the source, and is left out and counted. What was decided about the file as a whole
(unit, part, what is not used) is said in `notes`, for people.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from splitwatt_truth.trace import MAX_TOKENS, TraceError, TraceRow
from splitwatt_truth.trace_kinds import (
    IMAGES,
    MOONCAKE,
    OF_A_CLOSED_LOOP,
    TraceKind,
    TraceUnit,
    a_list,
    check_record,
    kind_of,
    quoted,
    unit_of,
    wanted,
)

MAX_TRACE_ROWS: Final = 2_000_000
"""Requests of one part, 24 bytes each while it is read."""
PROBED_ROWS: Final = 1_000
"""Looked at before the unit of a file is decided."""
TOO_LATE_S: Final = 1e11
"""Seconds since 1970, in the year 5138; as milliseconds it is 1973."""
MAX_SPAN_S: Final = 10 * 365 * 86_400.0
"""From the first row to any other. More is a time that is missing (0, the year 1970), or a number among dates."""
BEFORE_FIRST_S: Final = 1.0
"""How far a row may come before the first one, from which parts are counted: files are not always quite in order."""
PROGRESS_LINES: Final = 50_000
GZIP_MAGIC: Final = b"\x1f\x8b"
PACKED_SUFFIX: Final = ".gz"

Progress = Callable[[int, int], None]
"""Told now and then: bytes read of the file, and all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePart:
    """What of a file is wanted: requests that came from `from_s` on and before `to_s`, counted from its first row, or from 0 in
    a given list. None: from the beginning, to the end. `unit`: of its times; None: told by the file. Raises TraceError."""

    unit: TraceUnit | None = None
    from_s: float | None = None
    to_s: float | None = None

    def __post_init__(self) -> None:
        start, end = self.from_s or 0.0, math.inf if self.to_s is None else self.to_s
        if not 0 <= start < math.inf:
            raise TraceError(f"a part of a trace begins at 0 s or later, not at {start:g} s: change --from")
        if not start < end:
            raise TraceError(f"a part of a trace ends after it begins, not from {start:g} s to {end:g} s: change --from or --to")

    @property
    def whole(self) -> bool:
        return self.from_s is None and self.to_s is None


WHOLE: Final = TracePart()


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Requests in the order of the file. `at`: in `unit`, from `zero` on, which is the time of the run's beginning."""

    at: array[float]
    prompt_tokens: array[int]
    output_tokens: array[int]
    zero: float
    unit: TraceUnit
    left_out: int
    notes: tuple[str, ...]


class _Row(NamedTuple):
    """Cells as text, for JSON too, so that one set of checks serves both."""

    line: int
    when: str
    prompt: str
    output: str
    images: bool = False
    delayed: bool = False


@contextmanager
def opened(path: Path, *, what: str, progress: Progress | None = None) -> Iterator[Iterator[str]]:
    """The lines of a file, unpacked where it is a gzip; what goes wrong while it is read becomes a TraceError. `what` names it:
    "trace", "rate file"."""
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            packed = path.suffix == PACKED_SUFFIX or raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as data:
                lines = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
                yield lines if progress is None else _told(lines, raw, size, progress)
    except FileNotFoundError as error:
        raise TraceError(f"there is no {what} {path}; check the path") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"cannot read the {what} {path} ({error}); pass the path of a text file") from error


def _told(lines: Iterator[str], raw: BinaryIO, size: int, progress: Progress) -> Iterator[str]:
    while some := list(islice(lines, PROGRESS_LINES)):
        yield from some
        progress(raw.tell(), size)


def read_trace(path: Path, part: TracePart = WHOLE, *, progress: Progress | None = None) -> TraceColumns:
    """Raises TraceError, also when the file cannot be read."""
    with opened(path, what="trace", progress=progress) as lines:
        return parse_trace(lines, part, name=str(path))


def rows_of(columns: TraceColumns, *, name: str) -> tuple[TraceRow, ...]:
    """By rising time, for who repeats them. Raises TraceError where all came at once: then they have no rate."""
    rows = sorted(zip(columns.at, columns.prompt_tokens, columns.output_tokens, strict=True), key=lambda row: row[0])
    if rows[-1][0] <= rows[0][0]:
        raise TraceError(f"{name} must hold at least two requests at different times; it has {len(rows)} rows")
    return tuple(TraceRow((at - columns.zero) / columns.unit.per_s, prompt, output) for at, prompt, output in rows)


def parse_trace(lines: Iterable[str], part: TracePart = WHOLE, *, name: str) -> TraceColumns:
    """Requests from the lines of a trace; its first line tells the kind. `name` is used in messages. Raises TraceError, which
    names the missing columns or the line."""
    rest = iter(lines)
    first = next(rest, "")
    start = first.lstrip("\ufeff \t")
    if not start.strip():
        raise TraceError(f"{name} is empty or begins with an empty line; {wanted()}")
    if start.startswith("["):
        raise a_list(name)
    if start.startswith("{"):
        names = frozenset(_record(start, f"{name} line 1"))
        return _kept(_objects(chain((start,), rest), name), MOONCAKE, names, part, name)
    header = [cell.strip() for cell in next(csv.reader((start,)))]
    kind = kind_of(header, name)
    return _kept(_cells(rest, kind, header, name), kind, frozenset(header), part, name)


def _cells(lines: Iterator[str], kind: TraceKind, header: list[str], name: str) -> Iterator[_Row]:
    reader = csv.reader(lines)
    if twice := [column for column in kind.columns if header.count(column) > 1]:
        raise TraceError(f"{name} names the column {twice[0]} twice: take one out")
    when, prompt, output = (header.index(column) for column in kind.columns)
    images = next((header.index(column) for column in IMAGES if column in header), None)
    for cells in reader:
        if not cells:
            continue
        line = reader.line_num + 1
        if len(cells) != len(header) and (len(cells) < len(header) or any(cells[len(header) :])):
            # One too many shifts the rest: a number written as 1,000 is two cells.
            raise TraceError(f"{name} line {line} has {len(cells)} cells where the first line names {len(header)} columns")
        has_images = images is not None and cells[images].strip() not in ("", "0", "0.0")
        yield _Row(line, cells[when], cells[prompt], cells[output], has_images)


def _objects(lines: Iterator[str], name: str) -> Iterator[_Row]:
    """The hashes of the prefix blocks (`hash_ids`) are not used."""
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{name} line {line}"
        record = _record(text, where)
        check_record(record, where)
        when, prompt, output = (str(record[key]) for key in MOONCAKE.columns)
        has_images = record.get("type") == "image" or any(record.get(key) for key in IMAGES)
        yield _Row(line, when, prompt, output, has_images, record.get(OF_A_CLOSED_LOOP[0]) is not None)


def _record(text: str, where: str) -> dict[str, object]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise TraceError(f'{where} must be one whole JSON object, not "{quoted(text)}"')
    return record


def _kept(rows: Iterator[_Row], kind: TraceKind, names: frozenset[str], part: TracePart, name: str) -> TraceColumns:
    """The rows of the part, checked."""
    probed = list(islice(rows, PROBED_ROWS))
    if not probed:
        raise TraceError(f"{name} holds no request; it needs at least one row below its first line")
    unit, notes = _unit(probed, kind, names, part, name)
    first = _time(probed[0], kind, name)
    base = first if kind.from_zero else 0.0
    begin = -math.inf if part.from_s is None else base + part.from_s * unit.per_s
    end = math.inf if part.to_s is None else base + part.to_s * unit.per_s
    earliest = -math.inf if part.whole else base - BEFORE_FIRST_S * unit.per_s
    at, prompts, outputs = array("d"), array("q"), array("q")
    seen = left_out = pictured = delayed = 0
    last = first
    for row in chain(probed, rows):
        seen += 1
        when = _time(row, kind, name)
        last = max(last, when)
        if when < earliest:
            raise TraceError(
                f"{name} line {row.line} comes {(base - when) / unit.per_s:.0f} s before the first row, from which --from and "
                "--to count: sort the file by time"
            )
        if not begin <= when < end:
            continue
        if row.images:
            pictured += 1
        if row.delayed:
            delayed += 1
        prompt, output = _tokens(row.prompt, 1, row, kind, name), _tokens(row.output, 2, row, kind, name)
        if not prompt or not output:
            left_out += 1
            continue
        if not abs(when - base) <= MAX_SPAN_S * unit.per_s:
            raise TraceError(_astray(row, kind, name, years=(when - base) / unit.per_s / (365 * 86_400)))
        if len(at) == MAX_TRACE_ROWS:
            raise TraceError(
                f"{name} line {row.line}: at most {MAX_TRACE_ROWS} requests can be read at once; take a part of the trace with "
                "--from and --to, in its seconds (in a scenario requests.fromSeconds and toSeconds)"
            )
        at.append(when)
        prompts.append(prompt)
        outputs.append(output)
    if not at:
        raise TraceError(f"{name} holds no request{_none_left(part, left_out, reach_s=(last - base) / unit.per_s)}")
    if not part.whole:
        reach_s = (last - base) / unit.per_s
        notes.append(f"took {len(at)} requests {_span(part)}; the trace has {seen} rows from 0 to {reach_s:.0f} s")
    if left_out:
        notes.append(f"rows left out, for their requests failed in the source (0 tokens): {left_out}")
    if pictured:
        notes.append(f"images are ignored, {kind.columns[1]} alone counts; requests with images: {pictured}")
    if delayed:
        notes.append(f"rows with a delay, as in a closed loop, come at their {kind.columns[0]} all the same: {delayed}")
    zero = min(at) if kind.from_zero else max(begin, 0.0)
    return TraceColumns(at, prompts, outputs, zero, unit, left_out, tuple(notes))


def _astray(row: _Row, kind: TraceKind, name: str, *, years: float) -> str:
    where = f'{name} line {row.line}: "{quoted(row.when)}" comes {abs(years):.0f} years'
    if not kind.from_zero:
        return f"{where} after the run's beginning, which is 0: take that off every time"
    side = "after" if years > 0 else "before"
    return f"{where} {side} the first row; one of the two is no time of this trace: take that row out, or give its time"


def _span(part: TracePart) -> str:
    end = "the end" if part.to_s is None else f"{part.to_s:g} s"
    return f"from {part.from_s or 0.0:g} s to {end}"


def _none_left(part: TracePart, left_out: int, *, reach_s: float) -> str:
    if left_out:
        where = ", for all of its" if part.whole else f" {_span(part)}, for all of the"
        return f"{where} {left_out} rows failed (0 tokens)"
    return f" {_span(part)}: it has rows from 0 to {reach_s:.0f} s; change --from or --to"


def _unit(probed: list[_Row], kind: TraceKind, names: frozenset[str], part: TracePart, name: str) -> tuple[TraceUnit, list[str]]:
    """The unit of the times and, where somebody might have meant another, what was taken and why."""
    unit, notes = _said_or_told(probed, kind, names, part, name)
    row = probed[0]
    if _is_number(row.when) and TOO_LATE_S <= float(row.when) / unit.per_s < math.inf:
        where = f'{name} line {row.line}: "{quoted(row.when)}" is no time in'
        if unit is TraceUnit.SECONDS and float(row.when) / TraceUnit.MILLISECONDS.per_s < TOO_LATE_S:
            raise TraceError(f"{where} seconds, but one in milliseconds since 1970: --trace-unit ms takes it so")
        raise TraceError(
            f"{where} seconds or milliseconds, but one in micro- or nanoseconds since 1970: divide all to milliseconds"
        )
    return unit, notes


def _said_or_told(
    probed: list[_Row], kind: TraceKind, names: frozenset[str], part: TracePart, name: str
) -> tuple[TraceUnit, list[str]]:
    if part.unit is not None:
        if kind.dates and not _is_number(probed[0].when):
            raise TraceError(f"{name}: its times are dates, which have no unit to say: leave out --trace-unit")
        return part.unit, [f"times are taken as {part.unit.name.lower()}, as was asked"]
    if kind.unit is not None:
        return kind.unit, []
    unit, why = unit_of([_time(row, kind, name) for row in probed], names, name=name)
    return unit, [f"times are taken as {unit.name.lower()}: {why} (--trace-unit says otherwise)"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time(row: _Row, kind: TraceKind, name: str) -> float:
    """In the file's own unit; a date in seconds. Dates without an offset are UTC, so that no clock change falls into them."""
    text = row.when.strip()
    try:
        # No number has its dash there. Asked first, for a conversion that fails costs as much as the rest of a row.
        if kind.dates and text[4:5] == "-":
            date = datetime.fromisoformat(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        at = float(text)
    except ValueError:
        at = math.nan
    if not 0 <= at < math.inf:
        wants = "a date with a time, or seconds, 0 or more" if kind.dates else "a number, 0 or more"
        raise TraceError(f'{name} line {row.line}: {kind.columns[0]} must be {wants}, not "{quoted(row.when)}"')
    return at


def _tokens(cell: str, column: int, row: _Row, kind: TraceKind, name: str) -> int:
    """Whole, also where it is written as 472.0; 0 where the request failed."""
    try:
        value = int(cell)
    except ValueError:
        try:
            number = float(cell)
        except ValueError:
            number = -1.0
        value = int(number) if number.is_integer() else -1
    if not 0 <= value <= MAX_TOKENS:
        raise TraceError(
            f"{name} line {row.line}: {kind.columns[column]} must be a whole number from 1 to {MAX_TOKENS}, or 0 where the "
            f'request failed, not "{quoted(cell)}"'
        )
    return value
