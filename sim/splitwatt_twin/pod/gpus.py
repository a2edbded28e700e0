"""The replica's GPUs: simulated ones where the environment names their state file, else steady H100s at their default cap.

With a state file (`SPLITWATT_NVML_TWIN`, as the simulated NVML itself reads it) the engine keeps to present caps and its
work draws power. `NVIDIA_VISIBLE_DEVICES` says which GPUs of the node are the replica's, as NVIDIA's device plugin sets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ, decode_ms, prefill_ms
from splitwatt_core.gpus.profiles import Profile, builtin, find
from splitwatt_nvml_twin.handle import STATE_FILE_VARIABLE
from splitwatt_nvml_twin.models import H100_SXM

from splitwatt_twin.fleet import Engine
from splitwatt_twin.gpus import GpuGroup, NodeGpus

DEVICES_VARIABLE: Final = "NVIDIA_VISIBLE_DEVICES"


class TooFewGpusError(ValueError):
    """The group wants more GPUs than there are; the message is one sentence."""


class Gpus(Protocol):
    """What a replica asks of its GPUs: a pace, and that they show its work."""

    profile: Profile
    memory_bytes: float

    def prefill_s(self, tokens: int) -> float: ...

    def decode_s(self, batch: int, context_tokens: float) -> float: ...

    def refresh(self) -> None:
        """Reads the present caps."""
        ...

    def show(self, engine: Engine | None) -> None:
        """The engine that is at work, or none."""
        ...

    def close(self) -> None: ...


class SteadyGpus:
    """GPUs that nothing caps and nobody measures: enough for a cluster without the simulated NVML."""

    def __init__(self, count: int) -> None:
        profile = find(builtin(), H100_SXM.name)
        assert profile is not None and profile.timing is not None, "the built-in profiles time the H100"
        self.profile = profile
        self.memory_bytes: float = H100_SXM.memory_bytes
        # Timing is known for one group size; work and memory bandwidth divide by the size, to first order.
        self._scale_s = profile.timing.tensor_parallel / count / 1000

    def prefill_s(self, tokens: int) -> float:
        return self._scale_s * prefill_ms(self.profile, tokens, self.profile.default_cap_w, UNLOCKED_MHZ)

    def decode_s(self, batch: int, context_tokens: float) -> float:
        return self._scale_s * decode_ms(self.profile, batch, context_tokens, self.profile.default_cap_w, UNLOCKED_MHZ)

    def refresh(self) -> None:
        """Nothing changes."""

    def show(self, engine: Engine | None) -> None:
        """Nobody looks."""

    def close(self) -> None:
        """Nothing is open."""


class SimulatedGpus(GpuGroup):
    """The replica's GPUs of a node whose state other processes share."""

    def __init__(self, state_file: Path, *, count: int, devices: str) -> None:
        """Raises OSError without such a state, UnknownGpuError for a model without timing, TooFewGpusError."""
        self._shared = NodeGpus(state_file)
        named = [uuid for uuid in devices.split(",") if uuid in self._shared.uuids]
        mine = [self._shared.uuids.index(uuid) for uuid in named] or list(range(len(self._shared.uuids)))
        if len(mine) < count:
            where = f"{DEVICES_VARIABLE} names" if named else f"{state_file} has"
            raise TooFewGpusError(f"--tensor-parallel-size {count} needs {count} GPUs, but {where} {len(mine)}")
        super().__init__(self._shared, mine[:count])
        self._shared.keep_to(self.gpus)

    def refresh(self) -> None:
        self._shared.refresh()

    def show(self, engine: Engine | None) -> None:
        if engine is None:
            self.rest()
        else:
            self.work(engine)
        self._shared.flush()

    def close(self) -> None:
        self.show(None)
        self._shared.close()


def gpus_of(environment: Mapping[str, str], *, count: int) -> Gpus:
    """The GPUs that this environment gives a replica of `count`. Raises as `SimulatedGpus`."""
    state = environment.get(STATE_FILE_VARIABLE)
    if not state:
        return SteadyGpus(count)
    return SimulatedGpus(Path(state), count=count, devices=environment.get(DEVICES_VARIABLE, ""))
