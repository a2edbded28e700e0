"""Kinds of servers of 2023 for the fleet simulator: times and watts under a power cap, from the core's law.

BLOOM-176B or Llama2-70B: times from the server tables, watts and what a cap costs from the GPU's power profile. Like
`kinds_2026` it asks the core's phase model, the same that the operator, the emulated engines and the simulated GPUs ask, so
a plan made here speaks of the caps that are applied there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus import phase_model
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import PhaseProfile, Profile, builtin
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.fleet.state import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, Kind
from splitwatt_sim.servers.tables import GIB, ModelShape, ServerTable, Tables, lookup_s

GPUS: Final = 8
OVERLAP_FROM_TOKENS: Final = 512
OVERLAP_REST_S: Final = {"A100": 0.008, "H100": 0.005}
"""What is left of a hand-off that moves layer by layer behind its prefill: A100 with 200 Gb/s, H100 with 400 Gb/s
(Splitwise, arXiv:2311.18677)."""
LINK_BYTES_PER_S: Final = {"A100": 200e9 / 8, "H100": 400e9 / 8}
GPU_OF_KIND: Final = {"A100": "A100-SXM-80GB", "H100": "H100-SXM"}
MEMORY_BYTES: Final = 80 * GIB
SERVER_REST_W: Final = 2_800
"""What a server draws beside its GPUs, as the examples declare it (`nonGpuWattsPerNode`); no measurement is known (U)."""


@dataclass(frozen=True, slots=True)
class Links:
    """How the KV cache moves. `overlap` False: after the prefill, whole."""

    overlap: bool = True
    free: bool = False
    """No hand-off takes any time."""


def profile_of(kind: str) -> Profile:
    """The built-in power profile of a server kind's GPU. Raises KeyError for a kind without one."""
    return next(profile for profile in builtin() if profile.name == GPU_OF_KIND[kind])


@lru_cache(maxsize=256)
def kind_2023(
    table: ServerTable,
    shape: ModelShape,
    *,
    cap_w: int | None = None,
    clock_mhz: int = UNLOCKED_MHZ,
    longest_prompt: int,
    links: Links = Links(),
) -> Kind:
    """A server of 8 GPUs of a 2023 table under a cap per GPU (None: uncapped) and a clock lock (0: none), with the built-in
    power profile."""
    profile = profile_of(table.kind)
    return kind_of_table(table, shape, profile, cap_w=cap_w, clock_mhz=clock_mhz, longest_prompt=longest_prompt, links=links)


def kind_of_table(
    table: ServerTable,
    shape: ModelShape,
    profile: Profile,
    *,
    cap_w: int | None,
    clock_mhz: int = UNLOCKED_MHZ,
    longest_prompt: int,
    links: Links = Links(),
) -> Kind:
    """`kind_2023` with another power profile of that GPU; both phases must be in it. Nothing is kept between calls."""
    cap = float(profile.default_cap_w if cap_w is None else cap_w)
    size = longest_prompt + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    prefill, decode = profile.phase(Phase.PREFILL), profile.phase(Phase.DECODE)
    assert prefill is not None and decode is not None
    prefill_s = np.maximum(lookup_s(table.prefill_s, size), 1e-6) * brake(profile, prefill, cap, clock_mhz)
    decode_s = lookup_s(table.decode_s, MAX_BATCH_SEQUENCES + 1) * brake(profile, decode, cap, clock_mhz)
    kv_bytes = shape.kv_bytes_per_token(grouped=True)
    return Kind(
        name=named(table.kind, cap, clock_mhz),
        prefill_s=prefill_s,
        prefill_w=prefill_gpus_w(profile, cap, size, clock_mhz) + SERVER_REST_W,
        decode_s=decode_s,
        decode_w=decode_gpus_w(profile, cap, clock_mhz) + SERVER_REST_W,
        kv_s=0.0,  # the tables of 2023 do not tell the context apart
        idle_w=float(GPUS * profile.idle_w + SERVER_REST_W),
        kv_room=(GPUS * MEMORY_BYTES - shape.weights_bytes) // kv_bytes,
        hand_off_s_per_token=0.0 if links.free else kv_bytes / LINK_BYTES_PER_S[table.kind],
        hand_off_fixed_s=0.0 if links.free else OVERLAP_REST_S[table.kind] if links.overlap else 0.0,
        overlap_from_tokens=float(OVERLAP_FROM_TOKENS) if links.overlap else float("inf"),
    )


def named(server: str, cap_w: float, clock_mhz: int) -> str:
    lock = "" if clock_mhz == UNLOCKED_MHZ else f" and {clock_mhz} MHz"
    return f"{server} at {cap_w:.0f} W{lock}"


def brake(profile: Profile, phase: PhaseProfile, cap_w: float, clock_mhz: int) -> float:
    """Step time over step time without cap and lock: of the two the stronger one, as in the core's phase model."""
    return max(phase_model.latency_factor(phase, cap_w), phase_model.clock_factor(profile, phase, clock_mhz))


def prefill_gpus_w(profile: Profile, cap_w: float, size: int, clock_mhz: int = UNLOCKED_MHZ) -> NDArray[np.float64]:
    """float64[size]: GPU watts of the server by prompt tokens. Loads stop rising at the last load point: few are asked."""
    row = profile.phase(Phase.PREFILL)
    assert row is not None
    last = min(row.load_points[-1][0], size - 1)
    loads = [phase_model.prefill_load(profile, n) for n in range(last + 1)]
    head = [_gpu_w(profile, Phase.PREFILL, load, cap_w, clock_mhz) for load in loads]
    return GPUS * np.concatenate([head, np.full(size - last - 1, head[-1])])


def decode_gpus_w(profile: Profile, cap_w: float, clock_mhz: int = UNLOCKED_MHZ) -> NDArray[np.float64]:
    """float64[MAX_BATCH_SEQUENCES + 1]: GPU watts of the server by sequences."""
    loads = [phase_model.decode_load(profile, b) for b in range(MAX_BATCH_SEQUENCES + 1)]
    return GPUS * np.array([_gpu_w(profile, Phase.DECODE, load, cap_w, clock_mhz) for load in loads])


def _gpu_w(profile: Profile, phase: Phase, load: float, cap_w: float, clock_mhz: int) -> float:
    if clock_mhz == UNLOCKED_MHZ:
        return min(phase_model.demand_w(profile, phase, load), cap_w)
    return min(phase_model.power_at_clock_w(profile, phase, load, clock_mhz), cap_w)


def tables_kind(tables: Tables, model: str, kind: str, *, cap_w: int | None, longest_prompt: int) -> Kind:
    """`kind_2023` by names. Raises TableError."""
    return kind_2023(tables.server(model, kind), tables.shape(model), cap_w=cap_w, longest_prompt=longest_prompt)
