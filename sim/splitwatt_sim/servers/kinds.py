"""Kinds of servers of 2023 for the fleet simulator: times and watts under a power cap, from the core's law.

BLOOM-176B or Llama2-70B: times from the server tables, watts and what a cap costs from the GPU's power profile. Like
`kinds_2026` it asks the core's phase model, the same that the operator, the emulated engines and the simulated GPUs ask, so
a plan made here speaks of the caps that are applied there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus import hardware, phase_model
from splitwatt_core.gpus.hardware import HandOff, ModelShape
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import PhaseProfile, Profile, builtin
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.fleet.state import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, ServerKind
from splitwatt_sim.servers.tables import ServerTable, TableError, Tables, lookup_s

GPUS: Final = 8
"""Of one server, and of one replica: the tables know Llama-3.1-70B on no other number."""
LOSSES: Final = 0.04
"""Conversion losses on GPU watts, as the examples declare them (`overheadPercent`); taken as drawn, too."""
OVERLAP_FROM_TOKENS: Final = 512
GPU_OF_KIND: Final = {"A100": "A100-SXM-80GB", "H100": "H100-SXM"}
SERVER_REST_W: Final = hardware.builtin().server_rest_w


class Moved(NamedTuple):
    """What a `ServerKind` says of its hand-offs."""

    s_per_token: float
    fixed_s: float
    overlap_from_tokens: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Links:
    """How the KV cache moves. `overlap` False: after the prefill, whole. `bytes_per_s`, `latency_s`: of a link that somebody
    gave instead of the measured ones; over such a one caches move after the prefill, as NixlConnector fetches them."""

    overlap: bool = True
    free: bool = False
    """No hand-off takes any time."""
    bytes_per_s: float | None = None
    latency_s: float | None = None

    def hand_off(self, measured: HandOff, *, bytes_per_token: int) -> Moved:
        """How a cache of so many bytes moves where a hand-off was measured like this."""
        if self.bytes_per_s is not None or self.latency_s is not None:
            speed = measured.link_bytes_per_s if self.bytes_per_s is None else self.bytes_per_s
            return Moved(bytes_per_token / speed, 0.0, float("inf"), self.latency_s or 0.0)
        return Moved(
            s_per_token=0.0 if self.free else bytes_per_token / measured.link_bytes_per_s,
            fixed_s=measured.rest_s if self.overlap and not self.free else 0.0,
            overlap_from_tokens=float(OVERLAP_FROM_TOKENS) if self.overlap else float("inf"),
        )


def links_of(gigabytes_per_s: float | None, latency_ms: float | None) -> Links:
    """A link as people give it; None: not given."""
    return Links(
        bytes_per_s=None if gigabytes_per_s is None else gigabytes_per_s * 1e9,
        latency_s=None if latency_ms is None else latency_ms / 1e3,
    )


def memory_of(profile: Profile) -> int:
    """Bytes of one GPU, by name, as a profile of the cluster is found: it carries the built-in one's name in lower case.
    Raises TableError for another GPU."""
    known = {p.name: p.memory_bytes for p in hardware.builtin().products if p.memory_bytes is not None}
    for name, memory_bytes in known.items():
        if profile.matches(name):
            return memory_bytes
    raise TableError(f"the memory of {profile.name} is not known; name the profile as one of {', '.join(known)}")


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
) -> ServerKind:
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
) -> ServerKind:
    """`kind_2023` with another power profile of that GPU; both phases must be in it. Nothing is kept between calls."""
    cap = float(profile.default_cap_w if cap_w is None else cap_w)
    size = longest_prompt + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    prefill, decode = profile.phase(Phase.PREFILL), profile.phase(Phase.DECODE)
    assert prefill is not None and decode is not None
    prefill_s = np.maximum(lookup_s(table.prefill_s, size), 1e-6) * brake(profile, prefill, cap, clock_mhz)
    decode_s = lookup_s(table.decode_s, MAX_BATCH_SEQUENCES + 1) * brake(profile, decode, cap, clock_mhz)
    kv_bytes = shape.kv_bytes_per_token(grouped=True)
    moved = links.hand_off(hardware.builtin().hand_offs[table.kind], bytes_per_token=kv_bytes)
    return ServerKind(
        name=named(table.kind, cap, clock_mhz),
        prefill_s=prefill_s,
        prefill_w=prefill_gpus_w(profile, cap, size, clock_mhz) + SERVER_REST_W,
        decode_s=decode_s,
        decode_w=decode_gpus_w(profile, cap, clock_mhz) + SERVER_REST_W,
        kv_s=0.0,  # the tables of 2023 do not tell the context apart
        idle_w=float(GPUS * profile.idle_w + SERVER_REST_W),
        kv_room=(GPUS * memory_of(profile_of(table.kind)) - shape.weights_bytes) // kv_bytes,
        hand_off_s_per_token=moved.s_per_token,
        hand_off_fixed_s=moved.fixed_s,
        overlap_from_tokens=moved.overlap_from_tokens,
        hand_off_latency_s=moved.latency_s,
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


def tables_kind(tables: Tables, model: str, kind: str, *, cap_w: int | None, longest_prompt: int) -> ServerKind:
    """`kind_2023` by names. Raises TableError."""
    return kind_2023(tables.server(model, kind), tables.shape(model), cap_w=cap_w, longest_prompt=longest_prompt)
