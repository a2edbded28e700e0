"""Requests as columns, as the simulator takes them from a file.

It knows a workload by three columns alone: when a request arrives, how many tokens its prompt has, how many it generates. What
kind of file holds them, and what is read of it, is splitwatt_truth.trace_files'.

The invariant kept here: whoever holds `Arrivals` holds checked columns, of one length, by rising time with ties in the
order of the file, every count from 1 to MAX_TOKENS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from splitwatt_truth.trace import MAX_TOKENS, TraceError
from splitwatt_truth.trace_files import PACKED_SUFFIX, WHOLE, Progress, TracePart, read_trace


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """N requests by rising time; the arrays are read-only.

    arrival_s float64[N]: seconds from the start of the run, 0 or more. prompt_tokens, output_tokens int64[N]: 1 to
    MAX_TOKENS. `name` is for tables and messages. `left_out` counts the rows of the source that failed there and are not
    here, `notes` say what else was decided about it. Raises TraceError when the columns do not fit each other or these bounds.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    name: str
    left_out: int = 0
    notes: tuple[str, ...] = ()

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


def read_arrivals(path: Path, part: TracePart = WHOLE, *, progress: Progress | None = None) -> Arrivals:
    """The part of a file, checked, named by its stem. A given list keeps its times, or counts them from the part's beginning; in
    every other kind the first request arrives at 0. Raises TraceError, also when the file cannot be read."""
    columns = read_trace(path, part, progress=progress)
    at = np.array(columns.at)
    order = np.argsort(at, kind="stable")
    # Shifted before it is divided: whole milliseconds stay exact for as long as possible.
    at_s = (at[order] - columns.zero) / columns.unit.per_s
    prompt, output = (np.array(tokens, np.int64)[order] for tokens in (columns.prompt_tokens, columns.output_tokens))
    return Arrivals(at_s, prompt, output, Path(path.name.removesuffix(PACKED_SUFFIX)).stem, columns.left_out, columns.notes)
