"""One request on its way: arrival, prefill, KV hand-off, decode, end. Times are seconds of the fleet's own clock.

Invariant: `generated` never falls and never passes `output_tokens`. A request that loses its replica keeps the tokens
that were already streamed to the user; what is lost is their KV cache, so it is prefilled again over prompt + generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ClusterKey(NamedTuple):
    """Names one InferenceCluster."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodKey(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True, eq=False)
class Request:
    cluster: ClusterKey
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    finished_s: float | None = None
    last_step: int | None = None  # while in a decode batch: the engine's step that ends it
    requeues: int = 0
    prefill_pod: str = ""
    decode_pod: str = ""

    @property
    def context_tokens(self) -> int:
        """What a prefill has to compute now, and what the KV cache holds after it."""
        return self.prompt_tokens + self.generated

    @property
    def remaining(self) -> int:
        return self.output_tokens - self.generated

    @property
    def kv_tokens(self) -> int:
        """KV entries the request holds at its end, which a decode replica reserves when it takes it."""
        return self.prompt_tokens + self.output_tokens

    def token(self, at_s: float) -> None:
        """One token out of a prefill."""
        self.generated += 1
        self.last_token_s = at_s
        if self.first_token_s is None:
            self.first_token_s = at_s

    @property
    def ttft_s(self) -> float:
        assert self.first_token_s is not None
        return self.first_token_s - self.arrived_s

    @property
    def tbt_s(self) -> float | None:
        """Mean time between tokens; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        assert self.first_token_s is not None and self.finished_s is not None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        assert self.finished_s is not None
        return self.finished_s - self.arrived_s
