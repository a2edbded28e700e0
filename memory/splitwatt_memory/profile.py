"""Measures tensors: sizes of their entries under each codec, and the target ratio that each allocation gets.

Two passes over each file: one counts exponents, for a code is of a whole allocation, one sizes entries. Blocks are all that is
held. Tensors that are no floats have no exponents to code, and count as they are under that codec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bpc_sizes import Sizes, bpc_sizes
from splitwatt_memory.codecs.exponent import Counts, ExponentCode, code_of, counted, exponent_sizes
from splitwatt_memory.codecs.zvc import zvc_sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.files.tensor import BLOCK_ELEMENTS, Tensor
from splitwatt_memory.targets import THRESHOLD, SizeHistogram, Target, chosen, overall_ratio, selected
from splitwatt_memory.values import ValueType, converted

CODECS: Final = ("bpc", "zvc", "exponent")
Advance = Callable[[int], None]


class Allocations(StrEnum):
    """What one allocation is: a tensor, all tensors whose names differ by numbers alone (the same part of each layer), or a
    file."""

    TENSOR = "tensor"
    KIND = "kind"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """`wanted`: what floats are turned into first. `sample_bytes`: the most that is read of a tensor, in blocks spread over it.
    `snapshots`: files are moments of one run, and tensors of one name are one allocation; its exponents are coded by the first
    moment's."""

    wanted: ValueType | None = None
    threshold: float = THRESHOLD
    allocations: Allocations = Allocations.TENSOR
    snapshots: bool = False
    sample_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TensorMeasured:
    """A tensor, or an allocation over all its snapshots: sizes by codec. `measured_as`: the type that was measured."""

    name: str
    held: str
    measured_as: str
    raw_bytes: int
    moments: Mapping[str, Sequence[SizeHistogram]]
    targets: Mapping[str, Target]
    allocation: str = ""

    def histogram(self, codec: str) -> SizeHistogram:
        return sum(self.moments[codec], SizeHistogram())


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """All that was measured. `sampled`: not every block was read."""

    tensors: tuple[TensorMeasured, ...]
    allocations: tuple[TensorMeasured, ...]
    sampled: bool
    left_alone: int = 0
    """Tensors that `--as` could not turn into floats of another type."""

    def histogram(self, codec: str) -> SizeHistogram:
        return sum((one.histogram(codec) for one in self.allocations), SizeHistogram())

    def summary(self, codec: str) -> Summary:
        """Of all allocations together, each at its target."""
        return summary_of([(one.targets[codec], one.histogram(codec)) for one in self.allocations])


@dataclass(frozen=True, slots=True)
class Summary:
    """Under one codec. `target_ratio`: bytes over bytes on the device; `overflow_share`: bytes over the link of an entry that
    overflows, as a share of it; `link_bytes`: when every entry is read once."""

    target_ratio: float
    overflow_fraction: float
    overflow_share: float
    raw_ratio: float
    sector_ratio: float
    link_bytes: int


def summary_of(parts: Sequence[tuple[Target, SizeHistogram]]) -> Summary:
    """Of allocations, each with its target."""
    entries = sum(target.entries for target, _ in parts)
    over = sum(hist.overflow_fraction(target.device_bytes) * hist.entries for target, hist in parts)
    link = sum(hist.link_bytes(target.device_bytes) for target, hist in parts)
    whole = sum((hist for _, hist in parts), SizeHistogram())
    return Summary(
        target_ratio=overall_ratio([target for target, _ in parts]),
        overflow_fraction=sum(t.overflow_fraction * t.entries for t, _ in parts) / entries if entries else 0.0,
        overflow_share=link / over / ENTRY_BYTES if over else 0.0,
        raw_ratio=whole.raw_ratio,
        sector_ratio=whole.sector_ratio,
        link_bytes=link,
    )


@dataclass(slots=True)
class _Group:
    """An allocation while it is measured."""

    members: list[Tensor] = field(default_factory=list)
    codes: dict[str, ExponentCode] = field(default_factory=dict)


def profile_of(moments: Sequence[Sequence[Tensor]], options: ProfileOptions, advance: Advance = lambda _: None) -> MemoryProfile:
    """`moments`: the tensors of each file. `advance` hears of each count of bytes that is done with; all of them together are
    `work_bytes`. Raises TensorFileError, OSError."""
    groups = _grouped(moments, options)
    found: list[TensorMeasured] = []
    rows: list[TensorMeasured] = []
    for name, group in groups.items():
        _learn(group, options, advance)
        sized = [(tensor, _sized(tensor, group, options, advance)) for tensor in group.members]
        found += [_measured(_label(tensor, moments), [sizes], [tensor], options, allocation=name) for tensor, sizes in sized]
        by_moment: dict[Path, dict[str, SizeHistogram]] = {}
        for tensor, sizes in sized:
            moment = by_moment.setdefault(tensor.path if options.snapshots else Path(), dict.fromkeys(CODECS, SizeHistogram()))
            for codec in CODECS:
                moment[codec] += sizes[codec]
        rows.append(_measured(name, list(by_moment.values()), _of_first_moment(group, options), options))
    by_codec = {codec: selected({r.name: r.moments[codec] for r in rows}, options.threshold) for codec in CODECS}
    allocations = tuple(
        TensorMeasured(r.name, r.held, r.measured_as, r.raw_bytes, r.moments, {c: by_codec[c][r.name] for c in CODECS})
        for r in rows
    )
    every = [tensor for tensors in moments for tensor in tensors]
    return MemoryProfile(
        tuple(found), allocations,
        sampled=any(_every(tensor, options) > 1 for tensor in every),
        left_alone=sum(options.wanted is not None and _type_of(t, options) != options.wanted for t in every),
    )  # fmt: skip


def work_bytes(moments: Sequence[Sequence[Tensor]], options: ProfileOptions) -> int:
    """What `profile_of` will read, both passes counted."""
    passes = ((tensor, 1 + _has_exponents(tensor, options)) for tensors in moments for tensor in tensors)
    return sum(count * tensor.size_bytes // _every(tensor, options) for tensor, count in passes)


def _grouped(moments: Sequence[Sequence[Tensor]], options: ProfileOptions) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for tensors in moments:
        for tensor in tensors:
            if options.allocations is Allocations.FILE:
                name = "file" if options.snapshots else str(tensor.path)
            elif options.allocations is Allocations.KIND:
                name = re.sub(r"\d+", "*", tensor.name)
            else:
                name = tensor.name if options.snapshots else _label(tensor, moments)
            groups.setdefault(name, _Group()).members.append(tensor)
    return groups


def _label(tensor: Tensor, moments: Sequence[Sequence[Tensor]]) -> str:
    return tensor.name if len(moments) == 1 else f"{tensor.path}:{tensor.name}"


def _learn(group: _Group, options: ProfileOptions, advance: Advance) -> None:
    """The exponent codes of an allocation, one for each float type in it."""
    counts: dict[str, Counts] = {}
    for tensor in group.members:
        kind = _type_of(tensor, options)
        if kind is None or not kind.is_float:
            continue
        if options.snapshots and tensor.path != group.members[0].path:  # a static code does not know what comes
            advance(tensor.size_bytes // _every(tensor, options))
            continue
        for entries in _entries(tensor, options, advance):
            here = counted(entries, kind)
            counts[kind.name] = counts[kind.name] + here if kind.name in counts else here
        group.codes[kind.name] = code_of(counts[kind.name], kind)


def _sized(tensor: Tensor, group: _Group, options: ProfileOptions, advance: Advance) -> dict[str, SizeHistogram]:
    kind = _type_of(tensor, options)
    code = None if kind is None else group.codes.get(kind.name)
    element_bytes = 1 if kind is None else kind.size_bytes
    found = dict.fromkeys(CODECS, SizeHistogram())
    for entries in _entries(tensor, options, advance):
        sizes = {
            "bpc": bpc_sizes(entries),
            "zvc": zvc_sizes(entries, element_bytes),
            "exponent": _as_they_are(entries) if code is None else exponent_sizes(entries, code),
        }
        for codec in CODECS:
            found[codec] += SizeHistogram.of(sizes[codec])
    whole = -(-_bytes_as_measured(tensor, options) // ENTRY_BYTES)
    return {codec: hist.scaled_to(whole) for codec, hist in found.items()}


def _as_they_are(entries: npt.NDArray[np.uint8]) -> Sizes:
    return np.where(entries.view("<u8").any(axis=1), ENTRY_BYTES, 0).astype(np.uint8)


def _of_first_moment(group: _Group, options: ProfileOptions) -> list[Tensor]:
    return [tensor for tensor in group.members if not options.snapshots or tensor.path == group.members[0].path]


def _entries(tensor: Tensor, options: ProfileOptions, advance: Advance) -> Iterator[npt.NDArray[np.uint8]]:
    """(n, 128) of each block, the last entry filled up with zeros as an allocation is."""
    kind = _type_of(tensor, options)
    for raw in tensor.blocks(_every(tensor, options)):
        data = raw
        if kind is not None and tensor.kind is not None and kind != tensor.kind:
            data = converted(raw, tensor.kind, kind)
        short = -len(data) % ENTRY_BYTES
        yield np.frombuffer(data + bytes(short) if short else data, np.uint8).reshape(-1, ENTRY_BYTES)
        advance(len(raw))


def _every(tensor: Tensor, options: ProfileOptions) -> int:
    if options.sample_bytes is None:
        return 1
    blocks = -(-tensor.size_bytes // (BLOCK_ELEMENTS * tensor.element_bytes))
    kept = max(1, options.sample_bytes // (BLOCK_ELEMENTS * tensor.element_bytes))
    return -(-blocks // kept)


def _type_of(tensor: Tensor, options: ProfileOptions) -> ValueType | None:
    """What is measured."""
    if options.wanted is None or tensor.kind is None or not tensor.kind.is_float:
        return tensor.kind
    return options.wanted


def _has_exponents(tensor: Tensor, options: ProfileOptions) -> bool:
    kind = _type_of(tensor, options)
    return kind is not None and kind.is_float


def _measured(
    name: str,
    moments: Sequence[Mapping[str, SizeHistogram]],
    members: Sequence[Tensor],
    options: ProfileOptions,
    *,
    allocation: str = "",
) -> TensorMeasured:
    """Its targets are those it would have alone."""
    by_codec = {codec: [moment[codec] for moment in moments] for codec in CODECS}
    kinds = {None if (kind := _type_of(t, options)) is None else kind.name for t in members}
    raw_bytes = sum(_bytes_as_measured(tensor, options) for tensor in members)
    targets = {codec: chosen(hists, options.threshold) for codec, hists in by_codec.items()}
    held = ", ".join(sorted({tensor.held for tensor in members}))
    measured = ", ".join(sorted(kind or "bytes" for kind in kinds))
    return TensorMeasured(name, held, measured, raw_bytes, by_codec, targets, allocation)


def _bytes_as_measured(tensor: Tensor, options: ProfileOptions) -> int:
    kind = _type_of(tensor, options)
    return tensor.size_bytes // tensor.element_bytes * (1 if kind is None else kind.size_bytes)
