"""The agent's guard of its node's own allotment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardInput:
    """One GPU this tick. `cap_w`: the granted cap, None without a grant. Readings None: could not be read.
    `min_w`, `max_w`: legal range of caps."""

    cap_w: int | None
    min_w: int
    max_w: int
    management_mw: int | None
    enforced_mw: int | None
    power_mw: int | None


class NodeGuard:
    """Lowers neighbours' caps when a GPU cannot be held or the node measures above its limit (GPU watts)."""

    def step(self, now_s: float, node_limit_w: int | None, gpus: Mapping[str, GuardInput]) -> Mapping[str, int]:
        """Effective cap in watts of every GPU that has a grant, never above the grant. `now_s`: monotonic."""
        raise NotImplementedError
