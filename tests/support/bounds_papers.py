"""The compiled loops that reproduce published results, with small runs; prints what came out of them. Run as a process."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from splitwatt_core.policies.polca_table import RowPriority, comparison, settings_for
from splitwatt_papers.reference.run import run_reference
from splitwatt_papers.row.ladder import LadderSettings, in_band, run_row_ahead
from splitwatt_papers.row.ladder import slowdowns as ladder_slowdowns
from splitwatt_papers.row.model import Row, RowRun, impact, run_row, sample_requests, slowdowns
from splitwatt_papers.row.trace import RowTrace, make
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import builtin
from splitwatt_sim.traces.resample import generated
from support.bounds import report


def trace() -> RowTrace:
    """A third of a day, its rise to the peak: interpreted, a day of the ladder takes ten seconds."""
    day = make(11, days=1)
    return replace(day, utilisation=day.utilisation[12_000:24_000])


def ladders() -> list[tuple[Row, RowRun, LadderSettings]]:
    """On a row as it is, and on one with far too many servers, where the brake falls."""
    ladder = in_band()
    return [(row, run_row_ahead(trace(), ladder, row), ladder) for row in (Row(servers=56), Row(servers=80))]


def digest() -> str:
    """Everything that came out, to the last bit."""
    out = hashlib.sha256(trace().utilisation.tobytes())
    arrivals = generated(requests_per_s=14.0, seconds=12.0, seed=3)
    for design in ("A100:5", "HA:2/3"):
        got = run_reference(
            parse_design(design), arrival_s=arrivals.arrival_s, prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens, tables=builtin(),
        )  # fmt: skip
        out.update(got.ttft_ms.tobytes() + got.e2e_ms.tobytes())
    row = Row(servers=56)
    requests = sample_requests(trace(), row, count=500, seed=11)
    for settings in comparison(settings_for(row.profile)):
        run = run_row(trace(), settings, row)
        felt = impact(requests, run, {p: slowdowns(settings, row, p) for p in RowPriority})
        out.update(run.power.tobytes() + run.in_force.tobytes())
        out.update(repr((run.brakes, felt)).encode())
    for row, run, ladder in ladders():
        felt = impact(requests, run, {p: ladder_slowdowns(ladder, row, p) for p in RowPriority})
        out.update(run.power.tobytes() + run.in_force.tobytes())
        out.update(repr((run.brakes, felt)).encode())
    return out.hexdigest()


if __name__ == "__main__":
    report(digest)
