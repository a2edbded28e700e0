"""The simulated GPUs as engines feel them: caps and clock locks set the pace, work sets the demand.

Theory: the core's phase model says how long a batch takes under a cap and a clock lock, and what the phase wants to
draw; the simulated library applies cap, lock, lag and faults to that demand. A tensor-parallel group waits for its
slowest GPU at every step, so the slowest one sets the pace. The clock that counts is the *lock*, not the present clock:
an idle GPU's clock is low and a capped one's is what the cap makes of it, which the phase model counts already.

Only this module touches the simulated library's handle. Caps are read together, once per `NodeGpus.refresh`; demands
are collected and written together, once per `flush`, and only when they changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ, decode_load, decode_ms, demand_w, prefill_load, prefill_ms
from splitwatt_core.gpus.profiles import Profile, builtin, find
from splitwatt_core.protocol.contract import Phase
from splitwatt_nvml_twin.handle import Demand, GpuTruth, NodeTwin

from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import Engine

DEMAND_SLACK_W: Final = 0.5
"""The library's demand may differ this much from ours before it is set again (a reboot makes GPUs idle by itself)."""

IDLE: Final = Demand(power_w=0.0, utilization_percent=0.0)
"""Less than the idle draw: the library makes it the model's own idle."""

Limits = tuple[float, float]
"""(enforced cap in watts, locked SM clock in MHz, 0 = unlocked)."""


class UnknownGpuError(ValueError):
    """A GPU model without a timed profile; the message is one sentence."""


class NodeGpus:
    """All GPUs of one node. `truths` are as of the last `refresh`."""

    def __init__(self, state_file: Path) -> None:
        """Raises OSError when there is no such state, and UnknownGpuError for a GPU that no built-in profile times."""
        self._twin = NodeTwin.open(state_file)
        self.uuids = self._twin.uuids
        self.memory_bytes = self._twin.memory_bytes
        self.profiles = [_profile(name, state_file) for name in self._twin.product_names]
        self.truths: Sequence[GpuTruth] = ()
        count = self._twin.gpu_count
        self._wanted: list[Demand] = [IDLE] * count
        self._changed = set(range(count))  # whatever an earlier process left there ends with the first flush
        self.refresh()

    def keep_to(self, gpus: Iterable[int]) -> None:
        """The node's other GPUs are somebody else's: what is on them stays."""
        self._changed.intersection_update(gpus)

    def refresh(self) -> None:
        """Reads every GPU's present caps, locks, power and health."""
        self.truths = self._twin.read_all()
        for gpu, (truth, wanted) in enumerate(zip(self.truths, self._wanted, strict=True)):
            if wanted is not IDLE and abs(truth.demand_w - wanted.power_w) > DEMAND_SLACK_W:
                self._changed.add(gpu)

    def limits(self, gpu: int) -> Limits:
        truth = self.truths[gpu]
        return truth.enforced_mw / 1000, truth.locked_max_mhz or UNLOCKED_MHZ

    @property
    def power_w(self) -> float:
        return sum(truth.power_w for truth in self.truths)

    def want(self, gpu: int, demand: Demand) -> None:
        if demand != self._wanted[gpu]:
            self._wanted[gpu] = demand
            self._changed.add(gpu)

    def flush(self) -> None:
        """Writes the demands that changed."""
        if self._changed:
            self._twin.set_demands({gpu: self._wanted[gpu] for gpu in sorted(self._changed)})
            self._changed.clear()

    def close(self) -> None:
        self._twin.close()


def _profile(gpu_model: str, state_file: Path) -> Profile:
    profile = find(builtin(), gpu_model)
    if profile is None or profile.timing is None:
        known = ", ".join(p.name for p in builtin() if p.timing is not None)
        raise UnknownGpuError(f"{state_file}: no built-in profile times a {gpu_model}; use one of {known}")
    return profile


class GpuGroup:
    """The GPUs of one replica: a `ReplicaSpeed` for its engine. All of one model, as they are on one node."""

    def __init__(self, node: NodeGpus, gpus: Sequence[int]) -> None:
        self.gpus = tuple(gpus)
        self.profile = node.profiles[self.gpus[0]]
        self.memory_bytes = min(node.memory_bytes[gpu] for gpu in self.gpus)
        self._node = node
        assert self.profile.timing is not None
        # Timing is known for one group size; work and memory bandwidth divide by the size, to first order.
        self._scale_s = self.profile.timing.tensor_parallel / len(self.gpus) / 1000

    @property
    def healthy(self) -> bool:
        return not any(self._node.truths[gpu].lost for gpu in self.gpus)

    def _distinct(self) -> set[Limits]:
        return {self._node.limits(gpu) for gpu in self.gpus}

    def prefill_s(self, tokens: int) -> float:
        return self._scale_s * max(prefill_ms(self.profile, tokens, cap, clock) for cap, clock in self._distinct())

    def decode_s(self, batch: int, context_tokens: float) -> float:
        return self._scale_s * max(decode_ms(self.profile, batch, context_tokens, cap, clock) for cap, clock in self._distinct())

    def work(self, engine: Engine) -> None:
        """Demands what the engine's present batch draws uncapped; idle when it has none."""
        match engine:
            case PrefillEngine(batch_tokens=tokens) if tokens:
                self._want(Phase.PREFILL, prefill_load(self.profile, tokens))
            case DecodeEngine(running=batch) if batch:
                self._want(Phase.DECODE, decode_load(self.profile, batch))
            case _:
                self.rest()

    def _want(self, phase: Phase, load: float) -> None:
        power_w = demand_w(self.profile, phase, load)
        demand = Demand(power_w=power_w)
        for gpu in self.gpus:
            self._node.want(gpu, demand)

    def rest(self) -> None:
        for gpu in self.gpus:
            self._node.want(gpu, IDLE)
