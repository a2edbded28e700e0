"""How fast a server runs a model, as tables: prefill by tokens, decode by batch.

Two decode tables stand side by side. `decode_s` is keyed by the number of sequences, as it was measured. `slipped_s` is
the reference simulator's: fitted on prompt tokens times batch, it is asked with sequences, so that a batch of 64 looks like
a prompt of 64 tokens and decode hardly slows with its batch. It is kept to reproduce published results, nothing else.

Between the points of a table times are linear, and beyond both ends the last segment goes on. Built-in tables
(`tables_2023.json`) are medians of the public measurements of splitwise-sim; `read_splitwise_csv` makes such tables from any
file with those columns. Times are kept to the last bit: a request's fate can hang on which of two events is first.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus.hardware import ModelShape

Points = tuple[tuple[int, float], ...]

SPLITWISE_COLUMNS: Final = (
    "model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel",
)  # fmt: skip
KIND_OF_HARDWARE: Final = {"a100-80gb": "A100", "h100-80gb": "H100", "h100-80gb-pcap": "H100-capped"}
MAX_ROWS: Final = 1_000_000
GIB: Final = 1024**3


class TableError(ValueError):
    """A table that cannot be used; the message is one sentence that says what to change."""


class DecodeModel(StrEnum):
    """Which decode table a run asks."""

    BATCH = "batch"
    SPLITWISE_2023 = "splitwise-2023"


@dataclass(frozen=True, slots=True)
class ServerTable:
    """Seconds of one iteration on one server, uncapped. `kind` names the server.

    prefill_s: (prompt tokens in the batch, s). decode_s: (sequences, s). slipped_s: (prompt tokens times batch, s),
    empty where no such measurement exists.
    """

    kind: str
    model: str
    prefill_s: Points
    decode_s: Points
    slipped_s: Points = ()

    def __post_init__(self) -> None:
        for name in ("prefill_s", "decode_s"):
            _check(getattr(self, name), f"table of {self.model} on {self.kind}: {name}")

    def decode_points(self, decode: DecodeModel) -> Points:
        """Raises TableError where that table was never measured."""
        if decode is DecodeModel.BATCH:
            return self.decode_s
        if not self.slipped_s:
            raise TableError(f"{self.kind} has no table for decode model {decode.value}; use --decode-model batch")
        return self.slipped_s


def _check(points: Points, where: str) -> None:
    keys = [x for x, _ in points]
    if len(points) < 2 or sorted(set(keys)) != keys or keys[0] < 1:
        raise TableError(f"{where} needs at least two points with rising keys from 1, not {keys}")
    if any(not 0 < time_s < math.inf for _, time_s in points):
        raise TableError(f"{where} must hold finite times above 0 s")


def lookup_s(points: Points, size: int) -> NDArray[np.float64]:
    """float64[size]: the table read at 0, 1, … size - 1; linear between points and beyond them."""
    x = np.array([k for k, _ in points], dtype=np.float64)
    y = np.array([time_s for _, time_s in points])
    at = np.arange(size, dtype=np.float64)
    right = np.clip(np.searchsorted(x, at), 1, len(x) - 1)
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return np.asarray(y[right - 1] + slope * (at - x[right - 1]))


@dataclass(frozen=True, slots=True)
class Tables:
    """Shapes by model name, server tables by (model, kind)."""

    shapes: Mapping[str, ModelShape]
    servers: Mapping[tuple[str, str], ServerTable]

    def server(self, model: str, kind: str) -> ServerTable:
        """Raises TableError that names what there is."""
        found = self.servers.get((model, kind))
        if found is None:
            have = ", ".join(sorted(k for m, k in self.servers if m == model))
            if not have:
                models = ", ".join(sorted({m for m, _ in self.servers})) or "none"
                raise TableError(f"there is no table of {model}; models with tables: {models}")
            raise TableError(f"there is no table of {model} on {kind}; tables of this model: {have}")
        return found

    def shape(self, model: str) -> ModelShape:
        """Raises TableError that names what there is."""
        if model not in self.shapes:
            raise TableError(f"model {model} is not known; choose one of {', '.join(sorted(self.shapes))}")
        return self.shapes[model]


@cache
def builtin() -> Tables:
    """The tables of 2023: BLOOM-176B and Llama2-70B on servers of 8 A100 or 8 H100, tensor parallel 8. What these models weigh is
    as splitwise-sim counts it, for published results rest on that; the core's facts about hardware have BLOOM's true weights."""
    raw = json.loads(files(__package__).joinpath("tables_2023.json").read_text(encoding="utf-8"))
    shapes = {name: ModelShape(name, **{k: v["value"] for k, v in fields.items()}) for name, fields in raw["models"].items()}
    servers = {
        (model, kind): ServerTable(kind, model, **{name: _points(rows) for name, rows in fields.items()})
        for model, kinds in raw["servers"].items()
        for kind, fields in kinds.items()
    }
    return Tables(shapes, servers)


def _points(rows: Sequence[Any]) -> Points:
    return tuple((int(x), float(time_s)) for x, time_s in rows)


def read_splitwise_csv(lines: Iterable[str], *, name: str, tensor_parallel: int = 8) -> tuple[ServerTable, ...]:
    """Tables from splitwise-sim's columns (`SPLITWISE_COLUMNS`, others are ignored): medians over equal keys.

    Rows of another tensor parallelism are passed over. `name` is used in messages. Raises TableError.
    """
    reader = csv.DictReader(lines)
    missing = [column for column in SPLITWISE_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TableError(f"{name} lacks the columns {', '.join(missing)}; its first line must name them")
    prefill: dict[tuple[str, str], dict[int, list[float]]] = {}
    decode: dict[tuple[str, str], dict[int, list[float]]] = {}
    slipped: dict[tuple[str, str], dict[int, list[float]]] = {}
    for count, row in enumerate(reader):
        if count == MAX_ROWS:
            raise TableError(f"{name} has more than {MAX_ROWS} rows; keep those of the servers that are needed")
        try:
            batch, tokens = int(row["batch_size"]), int(row["prompt_size"]) * int(row["batch_size"])
            prompt_s, token_s = float(row["prompt_time"]) / 1000, float(row["token_time"]) / 1000
            parallel = int(row["tensor_parallel"])
        except (TypeError, ValueError) as error:
            raise TableError(f"{name} line {reader.line_num}: {error}") from error
        if parallel != tensor_parallel:
            continue
        key = (row["model"], KIND_OF_HARDWARE.get(row["hardware"], row["hardware"]))
        prefill.setdefault(key, {}).setdefault(tokens, []).append(prompt_s)
        slipped.setdefault(key, {}).setdefault(tokens, []).append(token_s)
        decode.setdefault(key, {}).setdefault(batch, []).append(token_s)
    if not prefill:
        raise TableError(f"{name} has no rows with tensor_parallel {tensor_parallel}")
    return tuple(
        ServerTable(kind, model, _medians(prefill[key]), _medians(decode[key]), _medians(slipped[key]))
        for key in sorted(prefill)
        for model, kind in [key]
    )


def _medians(groups: Mapping[int, list[float]]) -> Points:
    return tuple((key, statistics.median(groups[key])) for key in sorted(groups))
