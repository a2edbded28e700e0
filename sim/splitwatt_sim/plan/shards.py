"""A sweep in shards: one self-describing file for each, and the way back to one list.

Shard I of N holds the items I, I + N, I + 2N, …: neighbours in the list cost alike, so dealing them out in turn keeps shards
alike. A file says what it is part of: `Fingerprint` holds every option that decides the result, and hashes of the trace's
columns, of the profiles, and of the code and numpy, whose draws may change with its version.

Protects: what is put together was made for one question by one program. A file of another run, a missing shard, or a set of
another N is refused in a sentence that names it; a file is written whole or not at all, so a half one is never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import numpy as np

from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.sweep import Item, Record, RecordError, Search, result

KIND: Final = "splitwatt plan shard, simulated"
PACKAGES: Final = ("splitwatt_core", "splitwatt_truth", "splitwatt_sim")
CODE_SUFFIXES: Final = (".py", ".json")
FILE: Final = re.compile(r"shard-(?P<shard>0|[1-9][0-9]{0,8})-of-(?P<of>[1-9][0-9]{0,8})\.json")
"""As `Shard.file_name` writes it: one name for each shard, so that none is read twice."""
MAX_SHARDS: Final = 10_000
MAX_NAMED: Final = 8
"""Shards that a message names before it counts the rest."""


class ShardError(PlanError):
    """Shards that do not make one sweep; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Shard:
    """`number` from 0 to `of` - 1."""

    number: int
    of: int

    @property
    def file_name(self) -> str:
        return f"shard-{self.number}-of-{self.of}.json"

    def share(self, whole: Sequence[Item]) -> list[Item]:
        """This shard's items. Raises ShardError where there are more shards than items: some would have nothing to do."""
        if self.of > len(whole):
            raise ShardError(f"the sweep has {len(whole)} items, one for each pair of servers: make at most so many shards")
        return list(whole[self.number :: self.of])


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a result depends on. `options`: by the names of the command line, None: not given."""

    options: Mapping[str, Any]
    trace: str
    profiles: str
    code: str

    @property
    def short(self) -> str:
        """Ten hexadecimal digits, for names. The code is left out: a name is given before an image runs."""
        text = json.dumps([dict(self.options), self.trace, self.profiles], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def differs(self, other: Fingerprint) -> str:
        """Words for the first thing in which another one differs; empty when it is the same."""
        for name in {**self.options, **other.options}:
            mine, theirs = self.options.get(name), other.options.get(name)
            if mine != theirs:
                return f"--{name} {_said(theirs)}, not {_said(mine)}"
        for name, words in (("trace", "another trace"), ("profiles", "other profiles"), ("code", "another version of the code")):
            if getattr(self, name) != getattr(other, name):
                return words
        return ""


def _said(value: object) -> str:
    return "left out" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def fingerprint(search: Search) -> Fingerprint:
    """Raises TableError."""
    limits, slo, links = search.limits, search.slo, search.catalogue.links
    options = {
        "model": search.model,
        "gpus": ",".join(search.gpus),
        "rate": search.rate_rps,
        "watts": _finite(limits.charge_w),
        "usd-per-hour": _finite(limits.usd_per_hour),
        "servers": limits.servers,
        "price": ",".join(f"{gpu}={usd!r}" for gpu, usd in sorted(search.usd_per_hour.items())) or None,
        "ttft-p99-ms": slo.ttft_p99_ms,
        "tbt-p99-ms": slo.tbt_p99_ms,
        "kv-link-gbytes": None if links.bytes_per_s is None else links.bytes_per_s / 1e9,
        "kv-link-latency-ms": None if links.latency_s is None else links.latency_s * 1e3,
        "margin": slo.margin * 100,
        "seconds": search.seconds,
        "step": search.step_rps,
        "seed": search.seed,
    }
    trace = hashlib.sha256()
    for column in (search.sizes.arrival_s, search.sizes.prompt_tokens, search.sizes.output_tokens):
        trace.update(np.ascontiguousarray(column).tobytes())
    known = [search.catalogue.gpu(name) for name in search.gpus]
    simulated = [{**asdict(gpu.profile), "sources": None, "memory_bytes": gpu.memory_bytes} for gpu in known]
    profiles = hashlib.sha256(json.dumps(simulated, sort_keys=True).encode())
    return Fingerprint(options, trace.hexdigest(), profiles.hexdigest(), code())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@cache
def code() -> str:
    """A hash of every file of the packages that decide a result, and numpy's version."""
    digest = hashlib.sha256(np.__version__.encode())
    for package in PACKAGES:
        for name, text in sorted(_sources(files(package), package)):
            digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _sources(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(CODE_SUFFIXES):
            found.append((f"{name}/{entry.name}", entry.read_bytes()))
    return found


def write_shard(folder: Path, shard: Shard, run: Fingerprint, results: Sequence[Record]) -> Path:
    """Whole or not at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / shard.file_name
    half = folder / f".{shard.file_name}.{uuid.uuid4().hex}.part"  # an index may run twice, and pods share their numbers
    whole = {"kind": KIND, "shard": shard.number, "of": shard.of, "run": asdict(run), "results": list(results)}
    try:
        with half.open("w", encoding="utf-8") as file:
            file.write(json.dumps(whole, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a pod's volume may be gone the moment the pod is
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
    return target


def read_shard(path: Path, run: Fingerprint, whole: Sequence[Item]) -> list[Record]:
    """The records of a shard of this run, item by item. Raises ShardError."""
    named = FILE.fullmatch(path.name)
    assert named is not None, "only names of shards are read"
    shard = Shard(int(named["shard"]), int(named["of"]))
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind, has = raw["kind"], (raw["shard"], raw["of"])
        of_run = Fingerprint(**raw["run"])
        results: list[Record] = list(raw["results"])
        numbers = [written["item"] for written in results]
        differs = run.differs(of_run)
    except OSError as error:
        raise ShardError(f"cannot read {path} ({error}); make it readable, or run that shard again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is no shard of a plan; remove it, or run that shard again") from error
    if differs:
        raise ShardError(f"{path} is of another run, made with {differs}; remove it, or give the options it was made with")
    mine = shard.share(whole) if shard.number < shard.of else []
    if shard.number >= shard.of or kind != KIND or has != (shard.number, shard.of) or numbers != [item.number for item in mine]:
        raise ShardError(f"{path} does not hold what its name says; remove it, or run that shard again")
    try:
        for item, written in zip(mine, results, strict=True):
            result(item, written)
    except RecordError as error:
        raise ShardError(f"{path} lacks what a result needs; remove it, or run that shard again") from error
    return results


def merged(folder: Path, run: Fingerprint, whole: Sequence[Item]) -> list[Record]:
    """All records by item, from all shards in a folder. Raises ShardError."""
    try:
        names = [named for path in sorted(folder.iterdir()) if (named := FILE.fullmatch(path.name))]
    except OSError as error:
        raise ShardError(f"cannot read {folder} ({error}); give the folder of --shards-dir") from error
    if not names:
        raise ShardError(f"{folder} holds no shard; run --shard 0/N --shards-dir {folder} to --shard N-1/N first")
    records = [written for named in names for written in read_shard(folder / named.string, run, whole)]
    counts = sorted({int(named["of"]) for named in names})
    if len(counts) > 1:
        raise ShardError(f"{folder} mixes shards of {' and of '.join(map(str, counts))}; keep one of these sets")
    missing = sorted(set(range(counts[0])) - {int(named["shard"]) for named in names})
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise ShardError(
            f"{folder} lacks shard {', '.join(map(str, missing[:MAX_NAMED]))}{more} of {counts[0]}: run --shard "
            f"{missing[0]}/{counts[0]} --shards-dir {folder}{' and so on' if len(missing) > 1 else ''}"
        )
    return sorted(records, key=lambda written: written["item"])
