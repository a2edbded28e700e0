"""The largest rate at which a design holds all nine SLOs.

Rates are tried upwards on a grid. Whether the SLOs hold is not quite monotone in the rate (a design that overflows into
mixed machines can recover), so the search goes on until `MISSES` rates in a row fail, and answers with the largest that held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from splitwatt_sim.latencies import missed_slos, slowdowns
from splitwatt_sim.servers.alone import unloaded
from splitwatt_sim.servers.designs import Design
from splitwatt_sim.servers.tables import DecodeModel, Tables
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import poisson

from splitwatt_papers.reference.run import run_reference

MISSES: Final = 3
BASELINE: Final = "A100"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every design. `sizes`: requests whose prompt and output lengths are drawn from."""

    sizes: Arrivals
    seconds: float
    seed: int
    tables: Tables
    model: str = "bloom-176b"
    decode: DecodeModel = DecodeModel.BATCH
    step_rps: int = 10
    margin: float = 0.0
    paired: bool = True

    def arrivals(self, rate_rps: float) -> Arrivals:
        """The list for one rate; the same for every design."""
        return poisson(self.sizes, requests_per_s=rate_rps, seconds=self.seconds, seed=self.seed, paired=self.paired)


def holds(design: Design, arrivals: Arrivals, question: Question) -> bool:
    """Whether all nine SLOs hold. Raises what `run_reference` raises."""
    columns = {"prompt": arrivals.prompt_tokens, "output": arrivals.output_tokens}
    measured = run_reference(
        design,
        arrival_s=arrivals.arrival_s,
        prompt=columns["prompt"],
        output=columns["output"],
        tables=question.tables,
        model=question.model,
        decode=question.decode,
    )
    alone = unloaded(question.tables.server(question.model, BASELINE), prompt=columns["prompt"], output=columns["output"])
    return not missed_slos(slowdowns(measured, alone), margin=question.margin)


def largest_rate_rps(
    design: Design, question: Question, *, start_rps: int | None = None, tick: Callable[[], None] = lambda: None
) -> int:
    """Requests per second, a multiple of the grid's step; 0 when none holds. `tick` is called after every run."""
    best, missed = 0, 0
    rate = start_rps or question.step_rps
    while missed < MISSES:
        if holds(design, question.arrivals(rate), question):
            best, missed = rate, 0
        else:
            missed += 1
        tick()
        rate += question.step_rps
    return best
