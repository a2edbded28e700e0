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

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.gpus import hardware, phase_model
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.gpus.profiles import MsPoints, Profile, Timing
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.fleet.state import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, ServerKind
from splitwatt_sim.servers.kinds import GPUS, SERVER_REST_W, Links, brake, decode_gpus_w, memory_of, named, prefill_gpus_w
from splitwatt_sim.servers.tables import GIB, TableError

LLAMA_70B: Final = hardware.builtin().models["llama-3.1-70b"]
HAND_OFF: Final = hardware.builtin().hand_offs["H100"]
"""Taken for every server here."""
OVERLAPPED: Final = Links()


def kind_2026(
    profile: Profile,
    *,
    cap_w: int | None = None,
    clock_mhz: int = UNLOCKED_MHZ,
    longest_prompt: int,
    links: Links = OVERLAPPED,
    memory_bytes: float | None = None,
) -> ServerKind:
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
    room_bytes = int(GPUS * hbm_bytes * hardware.builtin().memory_share - LLAMA_70B.weights_bytes)
    if room_bytes <= 0:
        raise TableError(
            f"{GPUS} x {profile.name} with {hbm_bytes / GIB:g} GiB each do not hold the {LLAMA_70B.weights_bytes / 1e9:.0f} GB "
            f"of weights of {LLAMA_70B.name}: take GPUs with more memory"
        )
    size = longest_prompt + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    kv_bytes = LLAMA_70B.kv_bytes_per_token(grouped=True)
    moved = links.hand_off(HAND_OFF, bytes_per_token=kv_bytes)
    return ServerKind(
        name=named(profile.name, cap, clock_mhz),
        prefill_s=_asked_s(lambda tokens: phase_model.prefill_ms(profile, tokens, cap, clock_mhz), timing.prefill_points, size),
        prefill_w=prefill_gpus_w(profile, cap, size, clock_mhz) + SERVER_REST_W,
        decode_s=_asked_s(
            lambda batch: phase_model.decode_ms(profile, batch, 0, cap, clock_mhz),
            timing.decode_points,
            MAX_BATCH_SEQUENCES + 1,
        ),
        decode_w=decode_gpus_w(profile, cap, clock_mhz) + SERVER_REST_W,
        kv_s=timing.kv_ms_per_mtoken / 1e9 * brake(profile, decode, cap, clock_mhz),
        idle_w=GPUS * profile.idle_w + SERVER_REST_W,
        kv_room=room_bytes // kv_bytes,
        hand_off_s_per_token=moved.s_per_token,
        hand_off_fixed_s=moved.fixed_s,
        overlap_from_tokens=moved.overlap_from_tokens,
        hand_off_latency_s=moved.latency_s,
    )


def _timing(profile: Profile) -> Timing:
    timing = profile.timing
    if timing is None or timing.model != LLAMA_70B.name or timing.tensor_parallel != GPUS:
        raise TableError(f"profile {profile.name} has no timing of {LLAMA_70B.name} on {GPUS} GPUs; fit one from a table")
    return timing


def _asked_s(ask_ms: Callable[[int], float], points: MsPoints, size: int) -> NDArray[np.float64]:
    """float64[size] seconds for 0, 1, … size - 1: the model asked at both ends and wherever its slope can change."""
    knots = sorted({1, size - 1, *(x for x, _ in points if 1 < x < size)})
    seconds = np.interp(np.arange(size), knots, [ask_ms(x) / 1e3 for x in knots])
    seconds[0] = 0.0
    return seconds
