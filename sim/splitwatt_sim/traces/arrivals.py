"""Requests as columns, and the files they come from: a given list, Azure 2023 and 2024, Mooncake, BurstGPT.

The simulator knows a workload by three columns alone: when a request arrives, how many tokens its prompt has, how many it
generates. Which file holds them is told by its first line: the names of a CSV's columns (in any order, others are
ignored), or a JSON object.

The invariant kept here: whoever holds `Arrivals` holds checked columns, of one length, by rising time with ties in the
order of the file, every count from 1 to MAX_TOKENS. A cell that breaks this is refused with its line; none is repaired.

Sources of the columns: Azure/AzurePublicDataset (AzureLLMInferenceDataset2023 and 2024; the later one gives times with an
offset from UTC), kvcache-ai/Mooncake FAST25-release/traces, HPMLL/BurstGPT releases 1.1 and 2.0, Mutinifni/splitwise-sim.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray
from splitwatt_truth.trace import COLUMNS, MAX_TOKENS, MAX_TRACE_ROWS, TraceError, parse_trace

MAX_QUOTED_CHARS: Final = 120
"""What a message repeats of a file: enough to know the place, and still one sentence when the file is no text at all."""
MOONCAKE_KEYS: Final = ("timestamp", "input_length", "output_length")
MS_PER_S: Final = 1000.0
PACKED_SUFFIX: Final = ".gz"


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """N requests by rising time; the arrays are read-only.

    arrival_s float64[N]: seconds from the start of the run, 0 or more. prompt_tokens, output_tokens int64[N]: 1 to
    MAX_TOKENS. `name` is for tables and messages. `left_out` counts the rows of the source that failed there and are not
    here. Raises TraceError when the columns do not fit each other or these bounds.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    name: str
    left_out: int = 0

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for column, kind in (("arrival_s", np.float64), ("prompt_tokens", np.int64), ("output_tokens", np.int64)):
            values = getattr(self, column)
            if values.shape != (n,) or values.dtype != kind:
                raise TraceError(f"{self.name}: {column} must be {np.dtype(kind)}[{n}], not {values.dtype}{list(values.shape)}")
            if kind is np.int64 and n and not 1 <= int(values.min()) <= int(values.max()) <= MAX_TOKENS:
                raise TraceError(f"{self.name}: {column} must be from 1 to {MAX_TOKENS}")
            # A view of its own: the caller's array stays as writable as it was.
            own = values.view()
            own.flags.writeable = False
            object.__setattr__(self, column, own)
        # Written so that a NaN fails it too.
        if n and not (self.arrival_s[0] >= 0 and (np.diff(self.arrival_s) >= 0).all() and self.arrival_s[-1] < math.inf):
            raise TraceError(f"{self.name}: arrival_s must be finite, 0 or more, and must not fall")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def requests_per_s(self) -> float:
        """Mean rate, from the gaps: (N - 1) / (last - first). Raises TraceError when all arrive at once."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0
        if span_s <= 0:
            raise TraceError(f"{self.name} must hold at least two requests at different times; it has {len(self)} rows")
        return (len(self) - 1) / span_s


@dataclass(frozen=True, slots=True)
class _Table:
    """A CSV by its columns: time, prompt, output. `from_zero`: the first request sets the zero of the clock.
    `zero_failed`: no output means that the request failed in the source."""

    title: str
    columns: tuple[str, str, str]
    from_zero: bool = True
    zero_failed: bool = False


AZURE: Final = _Table("an Azure trace", COLUMNS)
TABLES: Final = (
    # Two runs of one given list must agree to the last bit, so its times stay as they are written.
    _Table("a list of arrivals", ("arrival_timestamp", "prompt_size", "token_size"), from_zero=False),
    AZURE,
    _Table("a BurstGPT trace", ("Timestamp", "Request tokens", "Response tokens"), zero_failed=True),
)


@contextmanager
def opened(path: Path, *, what: str) -> Iterator[TextIO]:
    """The file as text, unpacked when its name ends in .gz; what goes wrong while it is read becomes a TraceError. `what`
    names it: "trace", "rate file"."""
    try:
        packed = path.suffix == PACKED_SUFFIX
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
            yield lines
    except FileNotFoundError as error:
        raise TraceError(f"there is no {what} {path}; check the path") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"cannot read the {what} {path} ({error}); pass the path of a text file") from error


def read_arrivals(path: Path) -> Arrivals:
    """The whole file, checked, named by its stem. Raises TraceError, also when it cannot be read."""
    with opened(path, what="trace") as lines:
        return replace(parse_arrivals(lines, name=str(path)), name=Path(path.name.removesuffix(PACKED_SUFFIX)).stem)


def parse_arrivals(lines: Iterable[str], *, name: str) -> Arrivals:
    """Requests from the lines of a trace; its first line tells the format. `name` is used in messages.

    A given list keeps its times; in every other format the first request arrives at 0. Raises TraceError, which names the
    missing columns or the line.
    """
    rest = iter(lines)
    first = next(rest, "")
    if not first.strip():
        raise TraceError(f"{name} is empty or begins with an empty line; {_wanted()}")
    source = chain((first,), rest)
    if first.lstrip().startswith("{"):
        return _mooncake(source, name)
    header = [cell.strip().lstrip("\ufeff") for cell in next(csv.reader((first,)))]
    table = _table_of(header, name)
    if table is AZURE:
        return _azure(source, name)
    return _table(source, table, header, name)


def _wanted() -> str:
    tables = ", or ".join(", ".join(table.columns) for table in TABLES)
    return f"its first line must name {tables}, or be a JSON object with {', '.join(MOONCAKE_KEYS)}"


def quoted(text: str) -> str:
    """One line of a file's text, short enough for a message."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"


def _table_of(header: list[str], name: str) -> _Table:
    """The table all of whose columns are there; else the complaint is about the one that is nearest."""
    missing = {table: [column for column in table.columns if column not in header] for table in TABLES}
    table = min(TABLES, key=lambda table: len(missing[table]))
    lacks, found = missing[table], quoted(", ".join(header))
    if len(lacks) == len(table.columns):
        raise TraceError(f"{name} is no trace of a known kind: {_wanted()} (it has: {found})")
    if lacks:
        raise TraceError(
            f"{name} looks like {table.title} but lacks the column{'s' if len(lacks) > 1 else ''} {', '.join(lacks)}; "
            f"its first line must name {', '.join(table.columns)} (it has: {found})"
        )
    return table


class _Columns:
    """Three growing columns; every cell is checked as it comes, while its line is known. Cells are text, for JSON too, so
    that one set of checks serves both."""

    def __init__(self, name: str, names: tuple[str, str, str]) -> None:
        self._name, self._names = name, names
        self._at, self._prompt, self._output = array("d"), array("q"), array("q")

    def add(self, line: int, when: str, prompt: str, output: str) -> None:
        if len(self._at) == MAX_TRACE_ROWS:
            raise TraceError(f"{self._name} line {line}: a trace may have at most {MAX_TRACE_ROWS} requests; cut the file there")
        try:
            at = float(when)
        except ValueError:
            at = math.nan
        if not 0 <= at < math.inf:
            raise TraceError(f'{self._name} line {line}: {self._names[0]} must be a number, 0 or more, not "{quoted(when)}"')
        self._at.append(at)
        self._prompt.append(self._tokens(line, 1, prompt))
        self._output.append(self._tokens(line, 2, output))

    def _tokens(self, line: int, column: int, cell: str) -> int:
        try:
            value = int(cell)
        except ValueError:
            value = 0
        if not 1 <= value <= MAX_TOKENS:
            raise TraceError(
                f"{self._name} line {line}: {self._names[column]} must be a whole number from 1 to {MAX_TOKENS}, "
                f'not "{quoted(cell)}"'
            )
        return value

    def arrivals(self, *, units_per_s: float = 1.0, from_zero: bool, left_out: int = 0) -> Arrivals:
        if not self._at:
            failed = f", for all of its {left_out} rows failed" if left_out else ""
            raise TraceError(f"{self._name} holds no request{failed}; it needs at least one row below its first line")
        at = np.array(self._at)
        order = np.argsort(at, kind="stable")
        at = at[order]
        # Shifted before it is divided: whole milliseconds stay exact for as long as possible.
        at_s = (at - at[0] if from_zero else at) / units_per_s
        prompt, output = np.array(self._prompt, np.int64)[order], np.array(self._output, np.int64)[order]
        return Arrivals(at_s, prompt, output, self._name, left_out)


def _table(lines: Iterable[str], table: _Table, header: list[str], name: str) -> Arrivals:
    reader = csv.reader(lines)
    next(reader)
    when, prompt, output = (header.index(column) for column in table.columns)
    columns, left_out = _Columns(name, table.columns), 0
    for cells in reader:
        if not cells:
            continue
        if len(cells) < len(header):
            raise TraceError(
                f"{name} line {reader.line_num} has {len(cells)} cells where the first line names {len(header)} columns"
            )
        if table.zero_failed and cells[output].strip() == "0":
            left_out += 1
            continue
        columns.add(reader.line_num, cells[when], cells[prompt], cells[output])
    return columns.arrivals(from_zero=table.from_zero, left_out=left_out)


def _azure(lines: Iterable[str], name: str) -> Arrivals:
    """Through the core, which reads the same columns for the twin: dates with or without an offset, or seconds."""
    rows = parse_trace(lines, name=name)
    n = len(rows)
    return Arrivals(
        np.fromiter((row.at_s for row in rows), np.float64, n),
        np.fromiter((row.prompt_tokens for row in rows), np.int64, n),
        np.fromiter((row.output_tokens for row in rows), np.int64, n),
        name,
    )


def _mooncake(lines: Iterable[str], name: str) -> Arrivals:
    """One JSON object a line, times in milliseconds. The hashes of the prefix blocks (`hash_ids`) are not used."""
    columns = _Columns(name, MOONCAKE_KEYS)
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise TraceError(f'{name} line {line} must be one whole JSON object, not "{quoted(text)}"')
        missing = [key for key in MOONCAKE_KEYS if key not in record]
        if missing:
            raise TraceError(f"{name} line {line} lacks {', '.join(missing)} (it has: {quoted(', '.join(record))})")
        when, prompt, output = (str(record[key]) for key in MOONCAKE_KEYS)
        columns.add(line, when, prompt, output)
    return columns.arrivals(units_per_s=MS_PER_S, from_zero=True)
