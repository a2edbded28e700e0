"""POLCA's row, reproduced: `python -m splitwatt_papers.pages.polca` runs it and writes the page, its plot and flat figures.

40 -> 52 servers on the same provisioned power (arXiv:2308.12908), four policies on the same simulated six weeks. Every
number of `Polca` is the paper's; nothing of it or of the row was fitted to a trace that judges it: the trace's shapes were
made while looking at seeds below 2000, judged are seeds from 2001 on. Variants change one assumption each.

Protects: the page says what the run gave, also where an aim was missed; its figures stand in blocks that only this command
writes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from splitwatt_core.policies.polca_table import PolcaSettings, PolcaTable, RowPriority, Rule, comparison, settings_for

from splitwatt_papers.pages.markdown import MAX_SEEDS, MIN_SEEDS, filled, markdown, spread
from splitwatt_papers.row.model import SLOS, Impact, Row, clocks, impact, run_row, sample_requests, slowdowns
from splitwatt_papers.row.trace import DAY_S, STEP_S, TOLERANCE, RowTrace, Targets, make

SEEDS: Final = 10
FIRST_SEED: Final = 2001
"""Seeds below were looked at while the trace's shapes were made, these were not."""
REQUESTS: Final = 200_000
SERVERS: Final = (40, 44, 48, 50, 52, 53, 54, 56, 58, 60)
PAPER_LOCK_SAVES: Final = 0.20
"""The paper: locks save up to 20 % of peak power. Read as the GPU's own, at low priority's clock at T2."""

JUDGED: Final = "as judged"
BASELINES: Final = ("No-cap", "1-Thresh-Low-Pri", "1-Thresh-All")


@dataclass(frozen=True, slots=True)
class Variant:
    """One changed assumption: of the row, of the policies' numbers, of when their rules wait, or of the trace's noise."""

    name: str
    row: Row
    settings: PolcaSettings
    waits: Callable[[Rule], bool] = attrgetter("waits")
    bursts: bool = False

    @property
    def policies(self) -> tuple[PolcaSettings, ...]:
        """The four, with their waits as this variant has them."""

        def waiting(table: PolcaTable) -> PolcaTable:
            return replace(table, rules=tuple(replace(rule, waits=self.waits(rule)) for rule in table.rules))

        return tuple(replace(s, table=waiting(s.table)) for s in comparison(self.settings))


@dataclass(frozen=True, slots=True)
class PolcaOutcome:
    variant: str
    policy: str
    seed: int
    brakes: int
    peak: float
    over_s: float
    longest_over_s: float
    locked_share: float
    changes_per_day: float
    low: Impact
    high: Impact

    @property
    def meets(self) -> bool:
        return self.low.meets(SLOS[RowPriority.LOW]) and self.high.meets(SLOS[RowPriority.HIGH])


LATENCIES: Final[tuple[Callable[[PolcaOutcome], float], ...]] = (
    lambda o: o.low.worse_p50,
    lambda o: o.low.worse_p99,
    lambda o: o.high.worse_p50,
    lambda o: o.high.worse_p99,
)


@dataclass(frozen=True, slots=True)
class PolcaResults:
    """`sweep`: servers -> Polca's brakes, one per seed."""

    traces: tuple[Targets, ...]
    outcomes: tuple[PolcaOutcome, ...]
    sweep: dict[int, tuple[int, ...]]

    def of(self, policy: str, variant: str) -> list[PolcaOutcome]:
        return [o for o in self.outcomes if o.policy == policy and o.variant == variant]


def variants() -> tuple[Variant, ...]:
    """The judged row first."""
    row = Row()
    settings = settings_for(row.profile)
    return (
        Variant(JUDGED, row, settings),
        Variant("the trace's noise is rare bursts", row, settings, bursts=True),
        Variant("GPUs are 50 % of server power", Row(gpu_share=0.50), settings),
        Variant("GPUs are 60 % of server power", Row(gpu_share=0.60), settings),
        Variant("weak locks: they save what the paper says at most", weak_locks(row, settings), settings),
        Variant("commands take 80 s, as if each were sent twice", row, replace(settings, command_latency_s=80.0)),
        Variant('"still above" is the next reading', row, settings, waits=lambda rule: rule.waits and not rule.above),
        Variant("releases wait too, 42 s", row, settings, waits=lambda rule: rule.waits or not rule.above),
    )


def weak_locks(row: Row, settings: PolcaSettings) -> Row:
    """The row with GPUs whose peak power falls by `PAPER_LOCK_SAVES` at low priority's clock at T2, prefill saturated.

    From idle + (peak - idle) * share^k = (1 - saves) * peak, with share the clock over the top clock.
    """
    gpu = row.profile
    peak_w = gpu.default_cap_w
    left = ((1 - PAPER_LOCK_SAVES) * peak_w - gpu.idle_w) / (peak_w - gpu.idle_w)
    exponent = float(np.log(left) / np.log(settings.low_t2_mhz / gpu.max_clock_mhz))
    return replace(row, profile=replace(gpu, clock_exponent_permille=round(1000 * exponent)))


def run_all(seeds: Sequence[int], progress: Progress) -> PolcaResults:
    task = progress.add_task("simulated row", total=len(seeds))
    traces, outcomes = [], []
    sweep: dict[int, tuple[int, ...]] = dict.fromkeys(SERVERS, ())
    for seed in seeds:
        plain = make(seed)
        traces.append(plain.measured())
        loads = {bursts: make(seed, bursts=bursts) if bursts else plain for bursts in (False, True)}
        samples = {b: sample_requests(trace, Row(), count=REQUESTS, seed=seed) for b, trace in loads.items()}
        for variant in variants():
            for settings in variant.policies:
                run = run_row(loads[variant.bursts], settings, variant.row)
                factors = {p: slowdowns(settings, variant.row, p) for p in RowPriority}
                felt = impact(samples[variant.bursts], run, factors)
                outcomes.append(
                    PolcaOutcome(
                        variant=variant.name,
                        policy=settings.table.name,
                        seed=seed,
                        brakes=run.brakes,
                        peak=float(run.power.max()),
                        over_s=run.over_s,
                        longest_over_s=run.longest_over_s,
                        locked_share=run.locked_share,
                        changes_per_day=run.changes_per_day,
                        low=felt[RowPriority.LOW],
                        high=felt[RowPriority.HIGH],
                    )
                )
        for servers in SERVERS:
            row = Row(servers=servers)
            sweep[servers] += (run_row(plain, settings_for(row.profile), row).brakes,)
        progress.advance(task)
    return PolcaResults(tuple(traces), tuple(outcomes), sweep)


def verdicts(results: PolcaResults) -> list[tuple[str, bool, str]]:
    """The gate's lines: what was wanted, whether it holds, what was found."""
    lines = []
    for name, wanted in (
        ("peak", "peak 79 %"),
        ("rise_2_s", "largest rise in 2 s 9 %"),
        ("rise_40_s", "in 40 s 11.8 %"),
    ):
        target = getattr(Targets(), name)
        worst = max(abs(getattr(t, name) / target - 1) for t in results.traces)
        lines.append((f"trace: {wanted}, within 3 % (relative)", worst <= TOLERANCE, f"largest miss {100 * worst:.1f} %"))
    judged = results.of("Polca", JUDGED)
    brakes = [o.brakes for o in judged]
    lines.append(("`Polca` never brakes", sum(brakes) == 0, f"{sum(brakes)} brakes in {len(brakes)} seeds of six weeks"))
    p50, p99, high_p50, high_p99 = (100 * max(latency(o) for o in judged) for latency in LATENCIES)
    found = f"at worst P50 / P99 grow by {p50:.2f} / {p99:.2f} % (low) and {high_p50:.2f} / {high_p99:.2f} % (high priority)"
    lines.append(("`Polca` meets all SLOs", all(o.meets for o in judged), found))
    for policy in BASELINES:
        counts = [o.brakes for o in results.of(policy, JUDGED)]
        braked = sum(c > 0 for c in counts)
        found = f"in {braked} of {len(counts)} seeds; {min(counts)} to {max(counts)} brakes"
        lines.append((f"{policy} brakes", braked == len(counts), found))
    return lines


MAIN_HEAD: Final = (
    "policy", "brakes in six weeks", "fewest - most", "peak power", "seconds over", "longest over", "time locked",
    "changes a day", "low P50", "low P99", "high P50", "high P99", "SLOs",
)  # fmt: skip
SHOWN: Final = ("policy", "brakes in six weeks", "fewest - most", "low P99", "high P99", "SLOs")
"""What a terminal has room for; the page has all."""


def main_rows(results: PolcaResults, variant: str) -> list[tuple[str, ...]]:
    rows = []
    for policy in (*BASELINES, "Polca"):
        found = results.of(policy, variant)
        brakes = [o.brakes for o in found]
        rows.append(
            (
                policy,
                spread(brakes),
                f"{min(brakes)} - {max(brakes)}",
                spread([o.peak for o in found], percent=True),
                spread([o.over_s for o in found], ".0f"),
                f"{max(o.longest_over_s for o in found):.0f} s",
                spread([o.locked_share for o in found], percent=True),
                spread([o.changes_per_day for o in found], ".0f"),
                *(spread([v(o) for o in found], ".2f", percent=True) for v in LATENCIES),
                f"{sum(o.meets for o in found)} of {len(found)}",
            )
        )
    return rows


VARIANT_MORE: Final = ("seeds in which Polca brakes", "in which it meets its SLOs", "its changes a day")


def variant_rows(results: PolcaResults) -> list[tuple[str, ...]]:
    rows = []
    for variant in variants():
        found = {policy: results.of(policy, variant.name) for policy in (*BASELINES, "Polca")}
        polca = found["Polca"]
        means = (spread([o.brakes for o in found[policy]]) for policy in found)
        braked, met = sum(o.brakes > 0 for o in polca), sum(o.meets for o in polca)
        changes = spread([o.changes_per_day for o in polca], ".0f")
        rows.append((variant.name, *means, f"{braked} of {len(polca)}", f"{met} of {len(polca)}", changes))
    return rows


def sweep_rows(results: PolcaResults) -> list[tuple[str, ...]]:
    return [
        (
            str(n),
            f"+{100 * (n / SERVERS[0] - 1):.1f} %",
            spread(counts),
            f"{sum(c > 0 for c in counts)} of {len(counts)}",
        )
        for n, counts in results.sweep.items()
    ]


def figures(results: PolcaResults, seeds: Sequence[int]) -> dict[str, str]:
    """The blocks of docs/reproduce/polca.md that this command writes, by name."""
    gate = [(wanted, "holds" if ok else "**does not hold**", found) for wanted, ok, found in verdicts(results)]
    sweep_head = ("servers", "more", "Polca's brakes in six weeks", "seeds in which it brakes")
    variant_head = ("changed assumption", *BASELINES, "Polca", *VARIANT_MORE)
    run = (
        f"Seeds {seeds[0]} to {seeds[-1]}, six weeks each, {REQUESTS:,} sampled requests per seed. No brake in {len(seeds)} "
        f"seeds would mean, at 95 %, fewer than {3 / len(seeds):.1f} brakes per six weeks (rule of three), not never."
    )
    return {
        "run": run,
        "gate": markdown(("wanted", "verdict", "found"), gate),
        "main": markdown(MAIN_HEAD, main_rows(results, JUDGED)),
        "sweep": markdown(sweep_head, sweep_rows(results)),
        "variants": markdown(variant_head, variant_rows(results)),
        "locks": markdown(("lock", "priority", "left of GPU watts above idle", "the same, weak locks"), lock_rows()),
    }


def lock_rows() -> list[tuple[str, ...]]:
    """What each lock leaves, with the longer time the work then takes."""
    row = Row()
    locks = settings_for(row.profile)
    weak = weak_locks(row, locks)
    used = (
        (locks.low_t1_mhz, RowPriority.LOW),
        (locks.low_t2_mhz, RowPriority.LOW),
        (locks.high_t2_mhz, RowPriority.HIGH),
    )
    return [
        (f"{mhz} MHz", priority.name.lower(), *(f"{100 * r.above_idle(priority, mhz):.0f} %" for r in (row, weak)))
        for mhz, priority in used
    ]


def plot(trace: RowTrace, path: Path) -> None:
    """The day with the trace's highest power: the row unlocked and under Polca, thresholds, clocks in force."""
    row = Row()
    settings = settings_for(row.profile)
    run = run_row(trace, settings, row)
    per_day = int(DAY_S / STEP_S)
    day = int(trace.utilisation.argmax()) // per_day
    span = slice(day * per_day, (day + 1) * per_day)
    hour = np.arange(per_day) * STEP_S / 3600
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(10, 6.5), height_ratios=(3, 1), layout="constrained")
    top.plot(hour, 100 * trace.utilisation[span] * row.scale, lw=0.3, color="#bbbbbb", label="52 servers unlocked")
    top.plot(hour, 100 * run.power[span], lw=0.3, color="#1f5fa8", label="52 servers under Polca")
    lines = (
        (settings.brake_above, "brake", "#c00000", "-"),
        (settings.t2, "T2", "#d06000", "-"),
        (settings.t2_release, "T2 release", "#d06000", ":"),
        (settings.t1, "T1", "#2a8a2a", "-"),
        (settings.t1_release, "T1 release", "#2a8a2a", ":"),
    )
    for share, name, color, style in lines:
        top.axhline(100 * share, color=color, ls=style, lw=1)
        top.annotate(f" {name}", (24, 100 * share), color=color, va="center", fontsize=8, annotation_clip=False)
    top.set_ylabel("row power, % of provisioned")
    top.set_title(f"Simulated row, seed {trace.seed}, day {day + 1}: the day with the highest power of six weeks")
    legend = top.legend(loc="lower center", fontsize=8)
    for handle in legend.get_lines():
        handle.set_linewidth(2)
    for priority, color in ((RowPriority.HIGH, "#7b3fa0"), (RowPriority.LOW, "#1f8f8f")):
        mhz = clocks(settings, priority)[run.in_force[span]]
        bottom.step(
            hour,
            np.where(mhz == 0, row.profile.max_clock_mhz, mhz),
            where="post",
            color=color,
            lw=0.8,
            label=f"{priority.name.lower()} priority",
        )
    bottom.set_ylabel("clock limit, MHz")
    bottom.set_xlabel("hour of the day")
    bottom.set_xlim(0, 24)
    bottom.set_xticks(range(0, 25, 3))
    bottom.set_ylim(1050, 1450)
    bottom.legend(loc="lower left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


FLAT_HEAD: Final = (
    "variant", "policy", "seed", "brakes", "peak", "over_s", "locked_share", "changes_per_day",
    "low_p50", "low_p99", "high_p50", "high_p99",
)  # fmt: skip


def write_flat(results: PolcaResults, path: Path) -> None:
    """One line for each variant, policy and seed; latencies as growth, 0.05 = 5 % more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(FLAT_HEAD)
        for o in results.outcomes:
            numbers = (o.peak, o.over_s, o.locked_share, o.changes_per_day, *(latency(o) for latency in LATENCIES))
            out.writerow([o.variant, o.policy, o.seed, o.brakes, *(f"{x:.6g}" for x in numbers)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m splitwatt_papers.pages.polca", description="POLCA's row, simulated.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many seeds judge, {MIN_SEEDS} to {MAX_SEEDS}")
    parser.add_argument("--out", type=Path, default=Path("docs/reproduce"), help="folder of polca.md; the plot goes to ../img")
    parser.add_argument("--flat", type=Path, default=Path("out/reproduce_polca.csv"), help="figures, one line per run")
    options = parser.parse_args(arguments)
    if not MIN_SEEDS <= options.seeds <= MAX_SEEDS:
        parser.error(f"--seeds must lie in {MIN_SEEDS}..{MAX_SEEDS}")
    page = options.out / "polca.md"
    if not page.is_file():
        parser.error(f"{page} is not there; its text is kept in the page itself, only figures are written")
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    console = Console()
    with Progress(console=console) as progress:
        results = run_all(seeds, progress)
    shown = [MAIN_HEAD.index(name) for name in SHOWN]
    table = Table(*SHOWN, title=f"Simulated: 52 servers on power for 40, {len(seeds)} seeds, mean ± 95 % interval")
    for cells in main_rows(results, JUDGED):
        table.add_row(*(cells[i] for i in shown))
    console.print(table)
    for wanted, ok, found in verdicts(results):
        console.print(f"{'holds' if ok else 'DOES NOT HOLD'}: {wanted} ({found})")
    page.write_text(filled(page.read_text(encoding="utf-8"), figures(results, seeds)), encoding="utf-8")
    plot(make(seeds[0]), options.out.parent / "img" / "polca-row-day.png")
    write_flat(results, options.flat)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
