"""The simulated GPUs as engines feel them: caps and clock locks set the pace, work sets the demand.

Theory: the core's phase model says how long a batch takes under a cap and a clock lock, and what the phase wants to
draw; the simulated library applies cap, lock, lag and faults to that demand. A tensor-parallel group waits for its
slowest GPU at every step, so the slowest one sets the pace. The clock that counts is the *lock*, not the present clock:
an idle GPU's clock is low and a capped one's is what the cap makes of it, which the phase model counts already.

Only this module touches the simulated library's handle. Caps are read together, once per `NodeGpus.refresh`; demands
are collected and written together, once per `flush`, and only when they changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitwatt_core.contract import Phase
from splitwatt_core.phase_model import decode_load, decode_ms, demand_w, prefill_load, prefill_ms
from splitwatt_core.profiles import Profile, builtin, find
from splitwatt_nvml_twin.handle import Demand, GpuTruth, NodeTwin
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import Engine

DEMAND_SLACK_W: Final = 0.5
"""The library's demand may differ this much from ours before it is set again (a reboot makes GPUs idle by itself)."""

Limits = tuple[float, float]
"""(enforced cap in watts, locked SM clock in MHz, 0 = unlocked)."""


class UnknownGpuError(ValueError):
    """A GPU model without a timed profile; the message is one sentence."""


class NodeGpus:
    """All GPUs of one node. `truths` are as of the last `refresh`."""

    def __init__(self, state_file: Path) -> None:
        """Raises OSError when there is no such state, and UnknownGpuError for a GPU that no built-in profile times."""
        self._twin = NodeTwin.open(state_file)
        self.models = [self._twin.model(gpu) for gpu in range(self._twin.gpu_count)]
        self.profiles = [_profile(model.name, state_file) for model in self.models]
        self.truths: Sequence[GpuTruth] = ()
        self._wanted: list[Demand] = [self._idle(gpu) for gpu in range(self._twin.gpu_count)]
        self._changed: set[int] = set()
        self.refresh()

    @property
    def uuids(self) -> list[str]:
        return [model.uuid for model in self.models]

    def refresh(self) -> None:
        """Reads every GPU's present caps, locks, power and health."""
        self.truths = self._twin.read_all()
        for gpu, truth in enumerate(self.truths):
            if abs(truth.demand_w - self._wanted[gpu].power_w) > DEMAND_SLACK_W:
                self._changed.add(gpu)

    def limits(self, gpu: int) -> Limits:
        truth = self.truths[gpu]
        return truth.enforced_mw / 1000, truth.locked_max_mhz

    @property
    def power_w(self) -> float:
        return sum(truth.power_w for truth in self.truths)

    def want(self, gpu: int, demand: Demand) -> None:
        if demand != self._wanted[gpu]:
            self._wanted[gpu] = demand
            self._changed.add(gpu)

    def rest(self, gpu: int) -> None:
        self.want(gpu, self._idle(gpu))

    def _idle(self, gpu: int) -> Demand:
        return Demand(gpu=gpu, power_w=float(self.profiles[gpu].idle_w))

    def flush(self) -> None:
        """Writes the demands that changed."""
        if self._changed:
            self._twin.set_demands([self._wanted[gpu] for gpu in sorted(self._changed)])
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
    """The GPUs of one replica: a `Pace` for its engine. All of one model, as they are on one node."""

    def __init__(self, node: NodeGpus, gpus: Sequence[int]) -> None:
        self.gpus = tuple(gpus)
        self.profile = node.profiles[self.gpus[0]]
        self.memory_bytes = min(node.models[gpu].memory_bytes for gpu in self.gpus)
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
        return self._scale_s * max(
            decode_ms(self.profile, batch, context_tokens, cap, clock) for cap, clock in self._distinct()
        )

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
        for gpu in self.gpus:
            self._node.want(gpu, Demand(gpu=gpu, power_w=power_w, utilization=1.0))

    def rest(self) -> None:
        for gpu in self.gpus:
            self._node.rest(gpu)
