"""The compiled loops that reproduce published results, with small runs; prints what came out of them. Run as a process."""

from __future__ import annotations

import hashlib

from splitwatt_core.policies.polca_table import RowPriority, comparison, settings_for
from splitwatt_papers.reference.run import run_reference
from splitwatt_papers.row.ladder import in_band, run_row_ahead
from splitwatt_papers.row.ladder import slowdowns as ladder_slowdowns
from splitwatt_papers.row.model import Row, impact, run_row, sample_requests, slowdowns
from splitwatt_papers.row.trace import make
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import builtin
from splitwatt_sim.traces.resample import generated
from support.bounds import report


def digest() -> str:
    """Everything that came out, to the last bit."""
    out = hashlib.sha256()
    arrivals = generated(requests_per_s=14.0, seconds=12.0, seed=3)
    for design in ("A100:5", "HA:2/3"):
        got = run_reference(
            parse_design(design), arrival_s=arrivals.arrival_s, prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens, tables=builtin(),
        )  # fmt: skip
        out.update(got.e2e_ms.tobytes())
    row, trace = Row(servers=56), make(11, days=1)
    requests = sample_requests(trace, row, count=500, seed=11)
    for settings in comparison(settings_for(row.profile)):
        levels = run_row(trace, settings, row)
        felt = impact(requests, levels, {p: slowdowns(settings, row, p) for p in RowPriority})
        out.update(levels.power.tobytes() + repr(felt).encode())
    for servers in (56, 80):  # with far too many the brake falls too
        ladder, many = in_band(), Row(servers=servers)
        positions = run_row_ahead(trace, ladder, many)
        felt = impact(requests, positions, {p: ladder_slowdowns(ladder, many, p) for p in RowPriority})
        out.update(positions.power.tobytes() + repr((positions.brakes, felt)).encode())
    return out.hexdigest()


if __name__ == "__main__":
    report(digest)
