"""Plans, measured: `python -m splitwatt_papers.pages.plans` searches, checks on lists it did not see, writes its page.

Two questions. At the power of 40 H100, with decode timed right, what does the planner find for each of Splitwise's four
pairs, and does it last? Measured as the published splits were: by the reference model, on lists of two minutes. And in one
row's budget, what is it worth to decide split and caps together: against one cap for all, against caps at the default limit
(as a planner that only clamps replicas keeps them), against no split.

Protects: a plan is judged on lists that no search saw, and by another engine than the one that found it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.fleet.run import run_fleet
from splitwatt_sim.plan.options import GPUS_2026, MODEL_2026, LatencySlo, caps_of, option_for, profile_named
from splitwatt_sim.plan.search import Found, Goal, Limits, Option, PlanDesign, largest_rate, robust_rate
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated
from splitwatt_truth.trace import TraceError

from splitwatt_papers.equal_power.search import LIST_S, ORDER, POWER_UNITS, SEARCH_SEED, STEP_RPS, Judged, goal_of
from splitwatt_papers.equal_power.search import judged as judged_at
from splitwatt_papers.pages.markdown import markdown

COMMAND: Final = "python -m splitwatt_papers.pages.plans"
PUBLISHED: Final = {"HHcap": ("20/28", 120), "HH": ("17/23", 95), "HA": ("15/44", 80), "AA": ("29/41", 75)}
"""Best splits at this power under the right decode model, found on a 5-RPS grid with two-minute lists: grade M."""
MARGIN: Final = 0.03
ROW_W: Final = 200_000.0
ROW_SLO: Final = LatencySlo(2_000.0, 100.0, MARGIN)
TRACE: Final = "AzureLLMInferenceTrace_conv.csv"


def equal_power(sizes: Arrivals, *, seeds: Sequence[int]) -> list[Judged]:
    """The four pairs. Searched with `MARGIN` on the fleet engine, judged without one on the reference model."""
    goal = goal_of(sizes, margin=MARGIN)
    found = [judged_at(name, goal, power_units=POWER_UNITS, seeds=seeds) for name in ORDER]
    return [plan for plan in found if plan is not None]


@dataclass(frozen=True, slots=True)
class WayFound:
    """One way to fill the row, with the best it found. `all_rps`: what all unseen lists hold of it."""

    name: str
    found: Found | None
    all_rps: float = 0.0


def row_ways(sizes: Arrivals, gpus: Sequence[str], budget_w: float, *, seeds: Sequence[int]) -> list[WayFound]:
    """The same budget and SLOs, filled by five planners that may choose less and less; judged on the lists of these seeds."""
    longest = int(sizes.prompt_tokens.max())
    goal = Goal(sizes, LIST_S, SEARCH_SEED, STEP_RPS, ROW_SLO.checker(MODEL_2026))
    limits = Limits(charge_w=budget_w)

    def option(gpu: str, cap_w: int | None) -> Option:
        return option_for(MODEL_2026, gpu, cap_w, longest_prompt=longest)

    def way(name: str, pairs: Sequence[tuple[Option, Option | None]]) -> WayFound:
        found = [f for p, d in pairs if (f := largest_rate(p, d, limits, goal)) is not None]
        best = max(found, key=lambda f: (f.rate_rps, -f.design.charge_w), default=None)
        if best is None:
            return WayFound(name, None)
        return WayFound(name, best, robust_rate(best.design, best.rate_rps, goal, seeds=seeds)[1])

    caps = {gpu: [option(gpu, c) for c in caps_of(profile_named(GPUS_2026[gpu]), Phase.PREFILL)] for gpu in gpus}
    decode = {gpu: [option(gpu, c) for c in caps_of(profile_named(GPUS_2026[gpu]), Phase.DECODE)] for gpu in gpus}
    uncapped = {gpu: option(gpu, None) for gpu in gpus}
    return [
        way("split and caps together", [(p, d) for a in gpus for b in gpus for p in caps[a] for d in decode[b]]),
        way("split, one cap for all", [(p, p) for gpu in gpus for p in caps[gpu]]),
        way("split, default limits (static clamp)", [(uncapped[a], uncapped[b]) for a in gpus for b in gpus]),
        way("unsplit, best cap", [(p, None) for gpu in gpus for p in caps[gpu]]),
        way("unsplit, default limits", [(uncapped[gpu], None) for gpu in gpus]),
    ]


def plan_rows(judged: Sequence[Judged], lists: int) -> list[tuple[str, ...]]:
    unseen = f"of {lists} unseen lists"
    rows: list[tuple[str, ...]] = [
        ("pair", "found", "published", "same list, reference model", unseen, "all of them hold", "search")
    ]
    for j in judged:
        split, rate = PUBLISHED[j.name]
        design = j.found.design
        rows.append(
            (
                j.name, f"{design.prefill_servers}/{design.decode_servers} at {j.found.rate_rps:g}/s", f"{split} at {rate}/s",
                f"{j.first_rps:g}/s", f"{j.held} hold {j.found.rate_rps:g}/s", f"{j.all_rps:g}/s", f"{j.search_s:.1f} s",
            )
        )  # fmt: skip
    return rows


def way_rows(ways: Sequence[WayFound]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "decided", "design", "requests/s", "all unseen lists hold", "output tokens/s", "charged kW", "drawn kW",
            "TTFT P99 ms", "TBT P99 ms",
        )
    ]  # fmt: skip
    for way in ways:
        if way.found is None:
            rows.append((way.name, "none holds the SLOs", "0", "0", "0", "–", "–", "–", "–"))
            continue
        run, values = way.found.run, way.found.run.latencies.percentiles()
        rows.append(
            (
                way.name, str(way.found.design), f"{way.found.rate_rps:g}", f"{way.all_rps:g}",
                f"{run.output_tokens / LIST_S:.0f}",
                f"{way.found.design.charge_w / 1e3:.1f}", f"{sum(run.energy_j.values()) / run.ends_s / 1e3:.1f}",
                f"{values['ttft_ms_p99']:.0f}", f"{values['tbt_ms_p99']:.0f}",
            )
        )  # fmt: skip
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    return markdown(rows[0], rows[1:])


def page(
    judged: Sequence[Judged], ways: Sequence[WayFound], sizes: Arrivals, *, seeds: Sequence[int], gpus: Sequence[str]
) -> str:
    total_s = sum(j.search_s for j in judged)
    return f"""# Plans, measured in simulation

`{COMMAND} --data DIR` writes this page. **Simulated**: tables of published measurements, no real server.
Sizes of requests: {sizes.name}.

## At the power of 40 H100

BLOOM-176B, decode timed by its batch, Splitwise's nine SLOs. For each pair every split along the power line was searched
on the fleet engine, with {MARGIN:.0%} to spare, on one list of {LIST_S:.0f} s (Poisson, seed {SEARCH_SEED}, steps of
{STEP_RPS:g} requests/s): {total_s:.1f} s of search for the four pairs together, compiled. Then the reference model, which
the published splits were measured with, judged the plans without that margin, on the same list and on {len(seeds)} lists
that no search saw.

{_table(plan_rows(judged, len(seeds)))}

- *Published*: the best splits known at this power under the right decode model.
- A plan is not a promise: the rate to count on is the one that all lists hold.
- The fleet engine keeps pools apart; the reference model lets a full pool borrow machines of the other, so its rate may be
  the higher or the lower one.

## Split and caps, decided together

{MODEL_2026}, servers of 8 {" or ".join(gpus)}, a row budget of {ROW_W / 1e3:.0f} kW as a PowerBudget charges it,
TTFT P99 below {ROW_SLO.ttft_p99_ms:.0f} ms and TBT P99 below {ROW_SLO.tbt_p99_ms:.0f} ms with {MARGIN:.0%} to spare. Each
way chooses the best it can of what it may decide, on the list of seed {SEARCH_SEED}. What it chose was then run on
{len(seeds)} lists that no search saw: the largest rate, up to the one found, that all of them hold.

{_table(way_rows(ways))}

{_worth(ways)}

- *Static clamp*: caps stay at the default limit, and replicas are clamped until their sum fits: what a planner does that
  knows no measured power and no phase.
- What a cap costs prefill comes from one published point (x1.3 at half power) and a derived curve: grade U in the
  profiles. Measure your own before buying by it.
- Requests are independent; no prefix is shared, no prompt is chunked in split pools.
"""


def _worth(ways: Sequence[WayFound]) -> str:
    """What deciding both together is worth against each other way, in requests within the SLOs on every unseen list."""
    best = ways[0].all_rps
    if not best:
        return "Nothing holds the SLOs within this budget on every unseen list."
    gains = ", ".join(f"{best / way.all_rps - 1:+.0%} against {way.name}" for way in ways[1:] if way.all_rps)
    return f"Deciding both together serves, within the SLOs on every unseen list: {gains}."


def sizes_of(data: Path | None) -> Arrivals:
    """The conversation trace where it is, else the seeded generator. Raises TraceError."""
    if data is None:
        return generated(requests_per_s=5.5, seconds=3_600.0, seed=SEARCH_SEED)
    return read_arrivals(data / TRACE)


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="search plans, judge them on unseen lists, write the page")
    parser.add_argument("--data", type=Path, default=os.environ.get("SPLITWATT_DATA") or None, help="folder of the Azure traces")
    parser.add_argument("--seeds", type=int, default=5, help="lists that no search saw (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/reproduce"), metavar="DIR")
    args = parser.parse_args()
    console = Console()
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {args.seeds}")
    try:
        sizes = sizes_of(args.data)
    except TraceError as error:
        parser.error(str(error))
    gpus, seeds = ("H100", "H200"), range(SEARCH_SEED + 1, SEARCH_SEED + 1 + args.seeds)
    warm = PlanDesign(option_for(MODEL_2026, "H100", None, longest_prompt=20_000), 1)
    run_fleet(warm.pools(), generated(requests_per_s=2.0, seconds=10.0, seed=1))  # so that no search waits for the compiler
    with console.status("searching the four pairs at equal power"):
        judged = equal_power(sizes, seeds=seeds)
    with console.status("filling a row's budget five ways"):
        ways = row_ways(sizes, gpus, ROW_W, seeds=seeds)
    for rows in (plan_rows(judged, args.seeds), way_rows(ways)):
        table = Table()
        for name in rows[0]:
            table.add_column(name)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / "plans.md"
    target.write_text(page(judged, ways, sizes, seeds=seeds, gpus=gpus), encoding="utf-8")
    console.print(f"written: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
