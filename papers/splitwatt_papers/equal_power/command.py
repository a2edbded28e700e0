"""`splitwatt papers plan`: Splitwise's designs at equal provisioned power, in the paper's own units.

For comparison with published splits. What a budget of yours would charge, and caps beyond the paper's half power, are the
planner's usual question (watts).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.jit import is_cold
from splitwatt_sim.plan.arguments import add_list_arguments, add_output_arguments, design, taken
from splitwatt_sim.plan.command_options import OutputOptions, SearchOptions
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.misses import limits_given, why
from splitwatt_sim.plan.options import LatencySlo, option_for
from splitwatt_sim.plan.report import FILES, say_earlier, staged, write_objects
from splitwatt_sim.plan.resolve import MODELS_2023, check_folders, check_lists, check_model, sizes_of
from splitwatt_sim.plan.search import Limits, PlanDesign
from splitwatt_sim.plan.sweep import check_seconds
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import SPLIT, UNSPLIT, Design
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_truth.trace import TraceError

from splitwatt_papers.equal_power.search import (
    ALL,
    CAP_W,
    LIST_S,
    MODEL,
    SEARCH_SEED,
    STEP_RPS,
    Judged,
    goal_of,
    judged,
    named,
    servers_of,
)
from splitwatt_papers.reference.run import StuckError

NOTHING: Final = 1
FAILED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualPowerOptions:
    """`power_of`: servers whose power is to be spent; the others as the planner's."""

    power_of: Design
    requests: Path | None = None
    model: str = MODEL
    margin_percent: float = 3.0
    list_s: float = LIST_S
    step_rps: float = STEP_RPS
    seed: int = SEARCH_SEED


class EqualPowerCommand:
    help = "Splitwise's designs at equal provisioned power, in the paper's own units"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--power-of", type=design, metavar="DESIGN", help="servers whose power is to be spent, as in H100:40")
        add("--requests", "--trace", type=Path, metavar="FILE", help="requests whose sizes are drawn from; default: a generator")
        add("--model", default=MODEL, help="served model (%(default)s)")
        add_list_arguments(parser, SearchOptions(list_s=LIST_S, step_rps=STEP_RPS, seed=SEARCH_SEED))
        add_output_arguments(parser, OutputOptions())

    def run(self, args: argparse.Namespace) -> int:
        try:
            if args.power_of is None:
                raise PlanError("a plan at equal power needs --power-of, servers whose power is to be spent, as in H100:40")
            options, output = taken(EqualPowerOptions, args), taken(OutputOptions, args)
            return plan_at_equal_power(options, output, Console(highlight=False))
        except (PlanError, TraceError, TableError, FleetError, StuckError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt papers plan: {error}", soft_wrap=True, markup=False)
            return FAILED


def plan_at_equal_power(options: EqualPowerOptions, output: OutputOptions, console: Console) -> int:
    """Search, judge, show, write. Raises PlanError, TableError, TraceError, FleetError, StuckError, OSError."""
    check_folders({"--out": output.out})
    check_model(options.model, MODELS_2023)
    check_seconds(options.list_s)
    margin, model = options.margin_percent / 100, options.model
    sizes = sizes_of(options.requests, seed=options.seed)
    goal = goal_of(sizes, margin=margin, seconds=options.list_s, seed=options.seed, step_rps=options.step_rps, model=model)
    check_lists(goal, options.step_rps, option="--step")
    power_units, seeds = options.power_of.power_units, range(options.seed + 1, options.seed + 1 + output.checked)
    if is_cold() or is_cold("splitwatt_papers"):
        console.print("[dim]compiling the event loops, once: about half a minute[/dim]")
    bar = track(ALL, description="searching designs", console=console, transient=True, disable=not console.is_terminal)
    tried = [judged(name, goal, power_units=power_units, seeds=seeds, model=model) for name in bar]
    found = ranked([plan for plan in tried if plan is not None])
    if not found:
        limits = Limits(charge_w=power_units)
        reason = why(
            [servers_of(name, goal, model=model) for name in ALL],
            limits,
            goal,
            rate_rps=options.step_rps,
            lower="--step",
            measure=LatencySlo(margin=margin).measure(model),
            given=limits_given(limits, charge_option="the power of --power-of", power_units=True),
        )
        console.print(f"no design holds Splitwise's SLOs: {reason}", soft_wrap=True, markup=False)
        say_earlier(output.out, console)
        return NOTHING
    console.print(_table(found, options.power_of, checked=output.checked, sizes=sizes))
    winner = found[0]
    base = next((plan for plan in found if plan.name == "H100"), None)
    against = "" if base is None or base is winner else f", {winner.first_rps / base.first_rps:.2f} times H100 unsplit"
    console.print(
        f"best: {named(winner.name, winner.found.design)}: {winner.first_rps:g} requests/s by the reference model{against}; all "
        f"{output.checked} unseen lists hold {winner.all_rps:g}",
        soft_wrap=True,
    )
    with staged(output.out) as folder:
        written = _write(found, options, replace(output, out=folder))
    console.print(f"written to {output.out}: {', '.join(written)}", soft_wrap=True, markup=False)
    return 0


def ranked(found: Sequence[Judged]) -> list[Judged]:
    """The best first, by the list that was searched and then by price. The unseen lists judge what comes out; an order by them
    would choose by luck on them."""
    return sorted(found, key=lambda p: (-p.first_rps, -p.found.rate_rps, named(p.name, p.found.design).usd_per_hour))


def _table(found: Sequence[Judged], power_of: Design, *, checked: int, sizes: Arrivals) -> Table:
    title = (
        f"Requests/s within Splitwise's nine SLOs at {power_of.power_units:g} power units, those of {power_of}; "
        f"sizes of {sizes.name} (simulated)"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("design", no_wrap=True, min_width=len("HHcap:20/28"))
    for name in (
        "$/h", "found, with\nmargin", "same list,\nreference", f"of {checked} unseen\nhold it", f"all {checked}\nhold",
    ):  # fmt: skip
        shown.add_column(name, justify="right", no_wrap=True)
    for plan in found:
        design = named(plan.name, plan.found.design)
        shown.add_row(
            str(design), f"{design.usd_per_hour:.0f}", f"{plan.found.rate_rps:g}", f"{plan.first_rps:g}", str(plan.held),
            f"{plan.all_rps:g}",
        )  # fmt: skip
    return shown


def _figures(found: Sequence[Judged], power_of: Design, *, checked: int) -> dict[str, float]:
    """Flat: name -> number, the unit in the name."""
    values: dict[str, float] = {"power_units": power_of.power_units, "lists_checked": checked}
    for plan in found:
        design = named(plan.name, plan.found.design)
        values |= {
            f"{plan.name}_prefill_servers": design.prompt_machines,
            f"{plan.name}_decode_servers": design.token_machines,
            f"{plan.name}_requests_per_s": plan.found.rate_rps,
            f"{plan.name}_reference_requests_per_s": plan.first_rps,
            f"{plan.name}_lists_held": plan.held,
            f"{plan.name}_robust_requests_per_s": plan.all_rps,
            f"{plan.name}_usd_per_hour": design.usd_per_hour,
        }
    return values


def _write(found: Sequence[Judged], options: EqualPowerOptions, output: OutputOptions) -> list[str]:
    """Names of the files written."""
    power_of, model, checked = options.power_of, options.model, output.checked
    figures = _figures(found, power_of, checked=checked)
    (output.out / "plan.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    _draw(found, power_of, output.out / "plan.png", checked=checked)
    best, catalogue = found[0], Catalogue(model)
    charged = _charged(best, model)
    write_objects(
        charged,
        output,
        rate_rps=best.all_rps,
        model=model,
        slo=LatencySlo(margin=options.margin_percent / 100),
        gpus={option.gpu: catalogue.gpu(option.gpu) for _, option, _ in charged.parts},
    )
    return list(FILES)


def _charged(plan: Judged, model: str) -> PlanDesign:
    """The same design with the watts that a budget charges."""
    longest, design = len(plan.found.design.prefill.kind.prefill_s), plan.found.design
    kinds = [UNSPLIT[plan.name]] if plan.name in UNSPLIT else SPLIT[plan.name]
    prefill, *decode = (option_for(model, kind.removesuffix("-capped"), CAP_W[kind], longest_prompt=longest) for kind in kinds)
    return PlanDesign(prefill, design.prefill_servers, next(iter(decode), None), design.decode_servers)


def _draw(found: Sequence[Judged], power_of: Design, path: Path, *, checked: int) -> None:
    """Bars: what the search found, and what all unseen lists hold. Writes a PNG."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.6 * len(found)), layout="constrained")
    for at, plan in enumerate(found):
        axes.barh(at - 0.19, plan.first_rps, height=0.36, color="#0072b2", label="the search's list" if at == 0 else None)
        axes.barh(at + 0.19, plan.all_rps, height=0.36, color="#56b4e9",
                  label=f"all {checked} unseen lists" if at == 0 else None)  # fmt: skip
        axes.text(plan.first_rps, at - 0.19, f" {plan.first_rps:g}", va="center")
        axes.text(plan.all_rps, at + 0.19, f" {plan.all_rps:g}", va="center")
    axes.set_yticks(range(len(found)), [str(named(plan.name, plan.found.design)) for plan in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(max(plan.first_rps, plan.all_rps) for plan in found))
    axes.set_xlabel("requests per second within Splitwise's nine SLOs, by the reference model")
    axes.set_title(f"Designs at the power of {power_of} in Splitwise's units (simulated)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
