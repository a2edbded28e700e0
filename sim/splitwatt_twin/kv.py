"""How much KV cache a served model needs per token, and how much a replica has room for.

Sources: layer and head counts and parameters from the models' published configurations; KV bytes per token = 2 (key and
value) x layers x KV heads x head size x 2 bytes (bf16). Link speeds and remainders: Splitwise (arXiv:2311.18677), 8 ms
on A100 with 200 Gb/s, 5 ms on H100 with 400 Gb/s; newer GPUs are taken as H100. GPU memory: the products' data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_twin.cluster import KvLink

MEMORY_SHARE: Final = 0.9
"""Of a GPU's memory that the engine takes (vLLM's gpu_memory_utilization)."""
MIN_KV_TOKENS: Final = 16_384
"""A group too small for the model's weights would not start; it is emulated with this much room, and a warning."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    name: str
    parameters: float
    kv_bytes_per_token: int


_LLAMA_70B: Final = ModelShape("llama-3.1-70b", 70.6e9, 2 * 80 * 8 * 128 * 2)
_SHAPES: Final = (
    _LLAMA_70B,
    ModelShape("llama-3.3-70b", 70.6e9, 2 * 80 * 8 * 128 * 2),
    ModelShape("llama-3.1-8b", 8.03e9, 2 * 32 * 8 * 128 * 2),
    ModelShape("bloom", 176.2e9, 2 * 70 * 112 * 128 * 2),
)


def shape_of(model: str) -> ModelShape:
    """The shape of a model by its name; Llama 3.1 70B, whose timing the profiles hold, for one that is unknown."""
    return next((shape for shape in _SHAPES if shape.name in model.lower()), _LLAMA_70B)


def kv_capacity_tokens(shape: ModelShape, *, gpus: int, memory_bytes: float) -> int:
    """Tokens of KV cache beside bf16 weights on a tensor-parallel group. 0 or less: the weights alone do not fit."""
    return int((MEMORY_SHARE * memory_bytes * gpus - 2 * shape.parameters) / shape.kv_bytes_per_token)


def link_of(shape: ModelShape, *, profile_name: str) -> KvLink:
    """The way out of a prefill replica on this GPU model."""
    ampere = profile_name.startswith("A100")
    return KvLink(
        bytes_per_token=shape.kv_bytes_per_token,
        gbit_per_s=200 if ampere else 400,
        remainder_s=0.008 if ampere else 0.005,
    )
