"""What more memory would do to the decode pool of a plan: GPUs and watts with and without each way, under each cap.

The plan's own decode servers, at the plan's cap and without any way, are the measure: other rows need as many fewer servers as
the core's decode step gives tokens per second more. It is arithmetic (docs/memory.md), not a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rich.table import Table
from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.phase_model import latency_factor
from splitwatt_core.memory.decode import MemoryPlanError
from splitwatt_core.memory.expansion import MemoryOption, MemoryWay, Terms, options, recommended
from splitwatt_core.memory.ranks import load_of, rank_of
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.options import REST_W, caps_of
from splitwatt_sim.plan.search import charge_w
from splitwatt_sim.plan.sweep import Result, Search

GPUS_OF_A_SERVER: Final = 8


class Consent(StrEnum):
    """Whether a KV cache of fewer bits may be taken."""

    LOSSLESS = "lossless"
    LOSSY = "lossy"


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One way under one cap. `servers`: decode servers that serve what the plan's do."""

    cap_w: int
    option: MemoryOption
    servers: int
    charge_w: float


def rows_of(winner: Result, search: Search, consent: Consent) -> list[MemoryRow]:
    """Raises PlanError where the GPU, the model or the pool is not one that can be reckoned."""
    pool, servers = winner.design.decode, winner.design.decode_servers
    if pool is None:
        raise PlanError("--memory-expansion speaks of a decode pool, and the best design is unsplit: leave it out")
    profile = search.catalogue.gpu(pool.gpu).profile
    product = next((p for name in (profile.name, *profile.product_names) if (p := hardware.builtin().product(name))), None)
    shape, decode = hardware.builtin().model(search.model), profile.phase(Phase.DECODE)
    if product is None or shape is None or decode is None:
        raise PlanError(
            f"--memory-expansion: the memory of {pool.gpu}, or the shape of {search.model}, is not known: leave it out"
        )
    limit_ms = search.slo.tbt_p99_ms
    context = round(float(search.sizes.prompt_tokens.mean() + search.sizes.output_tokens.mean()))
    found: list[MemoryRow] = []
    try:
        rank = rank_of(product)
        load = load_of(
            shape, ranks=GPUS_OF_A_SERVER, context_tokens=context, step_limit_s=None if limit_ms is None else limit_ms / 1e3
        )
        caps = [pool.cap_w, *(cap_w for cap_w in caps_of(profile, Phase.DECODE) if cap_w != pool.cap_w)]
        base = 0.0
        for cap_w in caps:
            terms = Terms(
                cap_w=cap_w, slower=latency_factor(decode, cap_w), draw_w=decode.natural_w, lossy_kv=consent is Consent.LOSSY
            )
            for option in options(rank, load, terms):
                base = base or option.best.tokens_per_s
                needed = max(1, math.ceil(round(servers * base / option.best.tokens_per_s, 6)))
                found.append(MemoryRow(cap_w, option, needed, needed * charge_w(cap_w=cap_w, rest_w=REST_W)))
    except MemoryPlanError as error:
        raise PlanError(f"--memory-expansion: {error}") from error
    return found


def table(rows: Sequence[MemoryRow], gpu: str) -> Table:
    found = Table(
        "cap W", "way", "verdict", "tokens/s of a server", "mJ/token", "decode GPUs", "decode kW",
        title=f"more memory for decode on {gpu} (arithmetic, not simulated)",
    )  # fmt: skip
    for at, row in enumerate(rows):
        if at and rows[at - 1].cap_w != row.cap_w:
            found.add_section()
        option = row.option
        found.add_row(
            str(row.cap_w), option.way, f"{option.verdict}: {option.reason}",
            _between(option.worst.tokens_per_s, option.best.tokens_per_s),
            _between(*(1e3 * GPUS_OF_A_SERVER * joules for joules in option.joules_per_token)),
            str(GPUS_OF_A_SERVER * row.servers), f"{row.charge_w / 1e3:.1f}",
        )  # fmt: skip
    return found


def _between(low: float, high: float) -> str:
    return f"{high:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def said(rows: Sequence[MemoryRow]) -> str:
    """What to take at the plan's cap."""
    here = [row for row in rows if row.cap_w == rows[0].cap_w]
    best = recommended([row.option for row in here])
    if best.way is MemoryWay.NONE:
        return "more memory for decode: nothing that may be taken wins enough"
    row = next(row for row in here if row.option is best)
    return (
        f"more memory for decode: {best.way} ({best.gain:+.0%}): {GPUS_OF_A_SERVER * row.servers} decode GPUs on "
        f"{row.charge_w / 1e3:.1f} kW, instead of {GPUS_OF_A_SERVER * here[0].servers} on {here[0].charge_w / 1e3:.1f} kW"
    )


def figures(rows: Sequence[MemoryRow]) -> dict[str, float]:
    return dict(_figures(rows))


def _figures(rows: Sequence[MemoryRow]) -> Iterator[tuple[str, float]]:
    for row in rows:
        name = f"memory_{row.option.way.name.lower()}_at_{row.cap_w}_w"
        yield f"{name}_decode_gpus", GPUS_OF_A_SERVER * row.servers
        yield f"{name}_decode_charge_w", row.charge_w
        yield f"{name}_tokens_per_s_per_server", row.option.best.tokens_per_s
        yield f"{name}_worst_tokens_per_s_per_server", row.option.worst.tokens_per_s
