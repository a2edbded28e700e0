"""How much KV cache a replica has room for, and how it leaves a prefill replica.

Shapes and weights of served models, the share of memory that an engine takes and the links come from the core's facts about
hardware. Newer GPUs than A100 are taken to have H100's link.
"""

from __future__ import annotations

from typing import Final

from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.hardware import ModelShape

from splitwatt_twin.cluster import KvLink

MIN_KV_TOKENS: Final = 16_384
"""A group too small for the model's weights would not start; it is emulated with this much room, and a warning."""
UNKNOWN_IS: Final = "llama-3.1-70b"
"""The profiles hold this model's timing."""


def shape_of(model: str) -> ModelShape:
    """The shape of a model by its name; that of `UNKNOWN_IS` for one that is unknown."""
    facts = hardware.builtin()
    return facts.model(model) or facts.models[UNKNOWN_IS]


def kv_capacity_tokens(shape: ModelShape, *, gpus: int, memory_bytes: float, memory_share: float | None = None) -> int:
    """Tokens of KV cache beside the weights on a tensor-parallel group, of the share of memory that the engine takes (None:
    the usual one). 0 or less: the weights alone do not fit."""
    share = hardware.builtin().memory_share if memory_share is None else memory_share
    room_bytes = share * memory_bytes * gpus - shape.weights_bytes
    return int(room_bytes / shape.kv_bytes_per_token(grouped=True))


def link_of(shape: ModelShape, *, profile_name: str) -> KvLink:
    """The way out of a prefill replica on this GPU model."""
    hand_off = hardware.builtin().hand_offs["A100" if profile_name.startswith("A100") else "H100"]
    return KvLink(
        bytes_per_token=shape.kv_bytes_per_token(grouped=True),
        gbit_per_s=hand_off.link_gbit_per_s,
        remainder_s=hand_off.rest_s,
    )
