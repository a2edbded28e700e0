"""`memoryExpansion` of a decode pool: what more memory it may use, from which the engines' arguments follow."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from splitwatt_api.base import CelRule, Wire, one_of

MAX_CONTEXT_TOKENS: Final = 10_000_000
MAX_HOST_GIBIBYTES: Final = 16_384
ENGINE_RULE: Final = CelRule(
    "!has(self.decode) || !has(self.decode.memoryExpansion) || self.engine.type == 'VLLM'",
    "decode.memoryExpansion is rendered for engine.type VLLM alone: leave it out",
    field_path=".decode.memoryExpansion",
)


class LossyKvCache(StrEnum):
    NEVER = "Never"
    ALLOWED = "Allowed"


class MemoryExpansion(Wire):
    """What more memory decode may use. The operator takes the way that wins most, or none, and says why in MemoryExpanded."""

    gpu: str = Field(
        min_length=1, max_length=128, description="The pool's GPUs, by product: H100-SXM, H200-SXM, A100-SXM-80GB, B200 or GH200."
    )
    gpu_memory_gibibytes: int | None = Field(
        default=None,
        ge=1,
        le=MAX_HOST_GIBIBYTES,
        strict=True,
        description="Memory of one of them, where the product comes with several sizes, as GH200 does; absent: the product's.",
    )
    context_tokens: int = Field(
        ge=1, le=MAX_CONTEXT_TOKENS, strict=True, description="Tokens of a usual request, prompt and answer, in its KV cache."
    )
    lossy_kv_cache: Annotated[
        LossyKvCache, Field(json_schema_extra=one_of("decode.memoryExpansion.lossyKvCache", ("Never", "Allowed")))
    ] = Field(
        default=LossyKvCache.NEVER,
        description="Allowed: the owner consents to a KV cache of fewer bits, which changes answers. It is then rendered for "
        "prefill too, for both keep KV caches in one type.",
    )
    host_weights_gibibytes: int = Field(
        default=0, ge=0, le=MAX_HOST_GIBIBYTES, strict=True, description="Host memory that weights may take, for each GPU."
    )
    kv_tier_gibibytes: int = Field(
        default=0,
        ge=0,
        le=MAX_HOST_GIBIBYTES,
        strict=True,
        description="Host memory of each replica for finished prefixes, beside the transfer; no batch grows by it. 0: none.",
    )
