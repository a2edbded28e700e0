"""Kinds of servers of 2026 for the fleet simulator: 8 GPUs that serve Llama-3.1-70B, tensor parallel 8, under a cap.

Theory. The times are the core's phase model, asked at the knots of the profile's tables: between them the model is linear,
so the arrays hold it everywhere, and a law is not written down twice. What a step adds for its context is apart, as in

    step s = decode_s[batch] + kv_s * context,    kv_s = kv_ms_per_mtoken / 1e9 * what the cap costs decode,

with the context in tokens, all sequences together: ms per million tokens are 1e-9 s per token. Unlike the tables of 2023
this tells long contexts from short ones, and memory counts what an engine may use, not what the GPU has.

Protects: a plan speaks of the caps that can be applied. A cap below what the GPU takes is refused, and no watts of a kind
exceed the caps of its GPUs and the rest of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus import phase_model
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import MsPoints, Profile, Timing
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.fleet.state import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, Kind
from splitwatt_sim.servers import kinds
from splitwatt_sim.servers.kinds import GPUS, OVERLAP_FROM_TOKENS, Links, brake, decode_gpus_w, named, prefill_gpus_w
from splitwatt_sim.servers.tables import GIB, ModelShape, TableError


@dataclass(frozen=True, slots=True)
class Stated:
    """A number, its grade (as in the core's profiles: P paper, D data, M measured, V vendor, U unconfirmed) and source."""

    value: float
    grade: str
    source: str


_SYSTEMS: Final = "gpu.mem_capacity in the system files of aiconfigurator 0.12.0 (PyPI, Apache-2.0)"
HBM_BYTES: Final[Mapping[str, Stated]] = {
    "A100-SXM-80GB": Stated(80 * GIB, "D", _SYSTEMS),
    "H100-SXM": Stated(80 * GIB, "D", _SYSTEMS),
    "H200-SXM": Stated(141 * GIB, "D", _SYSTEMS),
    "B200": Stated(180 * GIB, "D", _SYSTEMS),
}
"""Of one GPU, by the names of the built-in power profiles."""

USABLE_SHARE: Final = Stated(
    0.9, "V", "vLLM's engine arguments: default of gpu_memory_utilization in most releases; some newer ones have 0.92"
)
"""Of the memory, for weights and KV cache. The rest is for activations, graphs and communication."""

_LLAMA_3: Final = "Llama 3 paper (arXiv:2407.21783), table 3"
SHAPE: Final[Mapping[str, Stated]] = {
    "layers": Stated(80, "P", _LLAMA_3),
    "hidden": Stated(8192, "P", _LLAMA_3),
    "heads": Stated(64, "P", _LLAMA_3),
    "kv_heads": Stated(8, "P", f"{_LLAMA_3}: grouped-query attention"),
    "bytes_per_value": Stated(2, "P", "bfloat16, as the weights are published"),
    "weights_bytes": Stated(
        141_100_000_000,
        "U",
        f"derived: 70.55e9 parameters of 2 bytes, counted from {_LLAMA_3} with a vocabulary of 128256: two embeddings of "
        "8192 each, and 80 layers of query and output 8192 x 8192, key and value 8192 x 1024, three of 8192 x 28672",
    ),
}
LLAMA_70B: Final = ModelShape("meta-llama/Llama-3.1-70B-Instruct", **{name: int(stated.value) for name, stated in SHAPE.items()})

LINK_BYTES_PER_S: Final = Stated(
    400e9 / 8, "P", "Splitwise (arXiv:2311.18677): one link of 400 Gb/s for an H100 server; taken for every server here"
)
OVERLAP_REST_S: Final = Stated(
    0.005, "P", "Splitwise (arXiv:2311.18677): what is left of a hand-off behind its prefill, H100 with 400 Gb/s"
)
SERVER_REST_W: Final = Stated(kinds.SERVER_REST_W, "U", "the examples' nonGpuWattsPerNode; no measurement is known")
OVERLAPPED: Final = Links()


def kind_2026(
    profile: Profile,
    *,
    cap_w: int | None = None,
    clock_mhz: int = UNLOCKED_MHZ,
    longest_prompt: int,
    links: Links = OVERLAPPED,
    memory_bytes: float | None = None,
) -> Kind:
    """A server of 8 GPUs of a profile with timing under a cap per GPU (None: the default limit) and a clock lock (0: none).

    Tables cover prompts of `longest_prompt` tokens. `memory_bytes`: of one GPU; None: known by the profile's name. Nothing is
    kept between calls: one takes a few milliseconds. Raises TableError where the profile lacks what a server needs: timing of
    Llama-3.1-70B on 8 GPUs, both phases, a memory that holds the weights.
    """
    timing, hbm_bytes = _timing(profile), memory_of(profile) if memory_bytes is None else memory_bytes
    cap = float(profile.default_cap_w if cap_w is None else cap_w)
    if cap < profile.min_cap_w:
        raise TableError(f"a cap of {cap:.0f} W is below the {profile.min_cap_w} W that {profile.name} takes; raise it")
    decode = profile.phase(Phase.DECODE)
    if decode is None or profile.phase(Phase.PREFILL) is None:
        raise TableError(f"profile {profile.name} does not describe both phases; add the missing one")
    room_bytes = int(GPUS * hbm_bytes * USABLE_SHARE.value - LLAMA_70B.weights_bytes)
    if room_bytes <= 0:
        raise TableError(
            f"{GPUS} x {profile.name} with {hbm_bytes / GIB:g} GiB each do not hold the {LLAMA_70B.weights_bytes / 1e9:.0f} GB "
            f"of weights of {LLAMA_70B.name}: take GPUs with more memory"
        )
    size = longest_prompt + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    kv_bytes = LLAMA_70B.kv_bytes_per_token(grouped=True)
    return Kind(
        name=named(profile.name, cap, clock_mhz),
        prefill_s=_asked_s(lambda tokens: phase_model.prefill_ms(profile, tokens, cap, clock_mhz), timing.prefill_points, size),
        prefill_w=prefill_gpus_w(profile, cap, size, clock_mhz) + SERVER_REST_W.value,
        decode_s=_asked_s(
            lambda batch: phase_model.decode_ms(profile, batch, 0, cap, clock_mhz),
            timing.decode_points,
            MAX_BATCH_SEQUENCES + 1,
        ),
        decode_w=decode_gpus_w(profile, cap, clock_mhz) + SERVER_REST_W.value,
        kv_s=timing.kv_ms_per_mtoken / 1e9 * brake(profile, decode, cap, clock_mhz),
        idle_w=GPUS * profile.idle_w + SERVER_REST_W.value,
        kv_room=room_bytes // kv_bytes,
        hand_off_s_per_token=0.0 if links.free else kv_bytes / LINK_BYTES_PER_S.value,
        hand_off_fixed_s=OVERLAP_REST_S.value if links.overlap and not links.free else 0.0,
        overlap_from_tokens=float(OVERLAP_FROM_TOKENS) if links.overlap else float("inf"),
    )


def _timing(profile: Profile) -> Timing:
    timing = profile.timing
    if timing is None or timing.model != LLAMA_70B.name or timing.tensor_parallel != GPUS:
        raise TableError(f"profile {profile.name} has no timing of {LLAMA_70B.name} on {GPUS} GPUs; fit one from a table")
    return timing


def memory_of(profile: Profile) -> float:
    """Bytes of one GPU, by name, as a profile of the cluster is found: it carries the built-in one's name in lower case.
    Raises TableError for another GPU."""
    for name, stated in HBM_BYTES.items():
        if profile.matches(name):
            return stated.value
    raise TableError(f"the memory of {profile.name} is not known; name the profile as one of {', '.join(HBM_BYTES)}")


def _asked_s(ask_ms: Callable[[int], float], points: MsPoints, size: int) -> NDArray[np.float64]:
    """float64[size] seconds for 0, 1, … size - 1: the model asked at both ends and wherever its slope can change."""
    knots = sorted({1, size - 1, *(x for x, _ in points if 1 < x < size)})
    seconds = np.interp(np.arange(size), knots, [ask_ms(x) / 1e3 for x in knots])
    seconds[0] = 0.0
    return seconds
