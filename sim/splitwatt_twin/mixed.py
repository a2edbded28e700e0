"""A replica that reads prompts and writes tokens on the same GPUs: a prefill and a decode engine that share them.

A prompt does not slow the tokens of others down (chunked prefill's cost is left out); while both work, the GPUs draw what the
prefill wants. The KV cache stays where it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.stats import EngineStats


@dataclass(frozen=True, slots=True, eq=False)
class MixedEngine:
    """Two engines of one name and one set of counters."""

    prefill: PrefillEngine
    decode: DecodeEngine

    @property
    def name(self) -> str:
        return self.prefill.name

    @property
    def parts(self) -> tuple[PrefillEngine, DecodeEngine]:
        return self.prefill, self.decode

    @property
    def at_work(self) -> PrefillEngine | DecodeEngine:
        """Whose work the GPUs show."""
        return self.prefill if self.prefill.batch_tokens else self.decode

    @property
    def pending(self) -> int:
        """Tokens of prompts that wait, and one for each answer under way, as the planner's fleet counts."""
        return self.prefill.pending_tokens + self.decode.running + self.decode.waiting

    @property
    def running(self) -> int:
        return self.prefill.running + self.decode.running

    @property
    def waiting(self) -> int:
        return self.prefill.waiting + self.decode.waiting

    @property
    def kv_usage(self) -> float:
        return self.decode.kv_usage

    @property
    def stats(self) -> EngineStats:
        return self.prefill.stats
