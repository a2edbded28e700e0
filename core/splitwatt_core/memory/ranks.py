"""How fast GPUs read their own memory and the host's, and what they compute: once, each with grade and source.

Grades as in `gpus.graded`: V a vendor's data sheet (nominal), D published measurements, U unconfirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core.gpus.hardware import ModelShape, Product
from splitwatt_core.memory.decode import DecodeLoad, MemoryPlanError, Rank


@dataclass(frozen=True, slots=True)
class HostLink:
    """`bytes_per_s`: reads of host memory by the GPU."""

    name: str
    bytes_per_s: float
    source: str


PCIE4: Final = HostLink("pcie4", 25e9, "U: PCIe 4.0 x16 as programs reach it, 32 GB/s nominal")
PCIE5: Final = HostLink("pcie5", 55e9, "U: PCIe 5.0 x16 as programs reach it, 63 GB/s nominal")
NVLINK2: Final = HostLink("nvlink2", 150e9, "P: NVLink2 as in Buddy Compression (ISCA'20)")
C2C: Final = HostLink("c2c", 377e9, "D: NVLink-C2C of a GH200, read, public benchmark of 2026-04; 450 GB/s nominal")


@dataclass(frozen=True, slots=True)
class Speeds:
    """`memory_bytes_per_s` and `flops_per_s` (dense, bf16): nominal, of NVIDIA's data sheets (V)."""

    memory_bytes_per_s: float
    flops_per_s: float
    link: HostLink


SPEEDS: Final = {
    "A100-SXM-80GB": Speeds(2039e9, 312e12, PCIE4),
    "H100-SXM": Speeds(3350e9, 989e12, PCIE5),
    "H200-SXM": Speeds(4800e9, 989e12, PCIE5),
    "B200": Speeds(8000e9, 2250e12, PCIE5),
    "GH200": Speeds(4000e9, 989e12, C2C),
}
"""By the names of `gpus.hardware`."""


def rank_of(product: Product) -> Rank:
    """Raises MemoryPlanError where something of this GPU is not known."""
    if product.name not in SPEEDS or product.memory_bytes is None:
        raise MemoryPlanError(f"the memory's speed of {product.name} is not known; known are {', '.join(SPEEDS)}")
    speeds = SPEEDS[product.name]
    return Rank(
        memory_bytes=product.memory_bytes,
        memory_bytes_per_s=speeds.memory_bytes_per_s,
        link_bytes_per_s=speeds.link.bytes_per_s,
        flops_per_s=speeds.flops_per_s,
        tdp_w=product.default_cap_w,
    )


def load_of(shape: ModelShape, *, ranks: int, context_tokens: int, step_limit_s: float | None) -> DecodeLoad:
    """The part of a dense model on one of `ranks` GPUs."""
    return DecodeLoad(
        weights_bytes=shape.weights_bytes / ranks,
        kv_bytes_per_token=shape.kv_bytes_per_token(grouped=True) / ranks,
        layers=shape.layers,
        parameters=shape.weights_bytes / shape.bytes_per_value / ranks,
        context_tokens=context_tokens,
        step_limit_s=step_limit_s,
    )
