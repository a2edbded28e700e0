"""`splitwatt plan --power-units splitwise`: Splitwise's designs at equal provisioned power, in the paper's own units.

For comparison with published splits. What a budget of yours would charge, and caps beyond the paper's half power, are the
planner's usual question (watts).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from splitwatt_sim.jit import is_cold
from splitwatt_sim.plan.arguments import check_lists
from splitwatt_sim.plan.misses import limits_given, why
from splitwatt_sim.plan.options import MODEL_2026, Slo, option_for
from splitwatt_sim.plan.report import say_earlier, staged, write_objects
from splitwatt_sim.plan.search import Limits, PlanDesign
from splitwatt_sim.plan.sweep import check_seconds
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import SPLIT, UNSPLIT
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated

from splitwatt_papers.equal_power.search import ALL, CAP_W, Judged, goal_of, judged, named, servers_of

NOTHING: Final = 1
PAPER_MODEL: Final = "bloom-176b"
WITHOUT: Final = (
    "watts", "usd_per_hour", "servers", "gpus", "profile", "rate", "ttft_p99_ms", "tbt_p99_ms", "shard", "merge",
    "on_kubernetes", "servers_per_rack", "price",
)  # fmt: skip
"""Options of the planner's usual question that mean nothing here."""


def plan_at_equal_power(args: argparse.Namespace, console: Console) -> int:
    """Search, judge, show, write. Raises TableError, TraceError, FleetError, PlanObjectsError, OSError."""
    model = _checked(args)
    sizes = _sizes(args)
    goal = goal_of(sizes, margin=args.margin / 100, seconds=args.seconds, seed=args.seed, step_rps=args.step, model=model)
    check_lists(args, goal)
    power_units, seeds = args.power_of.power_units, range(args.seed + 1, args.seed + 1 + args.check)
    if is_cold():
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
            rate_rps=args.step,
            lower="--step",
            measure=Slo(margin=args.margin / 100).measure(model),
            given=limits_given(limits, charge_option="the power of --power-of", power_units=True),
        )
        console.print(f"no design holds Splitwise's SLOs: {reason}", soft_wrap=True, markup=False)
        say_earlier(args.out, console)
        return NOTHING
    console.print(_table(found, args, sizes))
    winner = found[0]
    base = next((plan for plan in found if plan.name == "H100"), None)
    against = "" if base is None or base is winner else f", {winner.first_rps / base.first_rps:.2f} times H100 unsplit"
    console.print(
        f"best: {named(winner.name, winner.found.design)}: {winner.first_rps:g} requests/s by the reference model{against}; all "
        f"{args.check} unseen lists hold {winner.all_rps:g}",
        soft_wrap=True,
    )
    _write(found, args, model=model, console=console)
    return 0


def ranked(found: Sequence[Judged]) -> list[Judged]:
    """The best first, by the list that was searched and then by price. The unseen lists judge what comes out; an order by them
    would choose by luck on them."""
    return sorted(found, key=lambda p: (-p.first_rps, -p.found.rate_rps, named(p.name, p.found.design).usd_per_hour))


def _checked(args: argparse.Namespace) -> str:
    """The model. Raises TableError for options that do not go together."""
    if args.power_of is None:
        raise TableError("--power-units splitwise needs --power-of, servers whose power is to be spent, as in H100:40")
    for name in WITHOUT:
        if getattr(args, name):
            raise TableError(f"--{name.replace('_', '-')} says nothing to --power-units splitwise: leave one of them out")
    check_seconds(args.seconds)
    # Only tables of 2023 have power in the paper's units; the model served by default is of 2026.
    return PAPER_MODEL if args.model == MODEL_2026 else str(args.model)


def _sizes(args: argparse.Namespace) -> Arrivals:
    if args.requests is not None:
        return read_arrivals(args.requests)
    return generated(requests_per_s=10.0, seconds=600.0, seed=args.seed)


def _table(found: Sequence[Judged], args: argparse.Namespace, sizes: Arrivals) -> Table:
    title = (
        f"Requests/s within Splitwise's nine SLOs at {args.power_of.power_units:g} power units, those of {args.power_of}; "
        f"sizes of {sizes.name} (simulated)"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("design", no_wrap=True, min_width=len("HHcap:20/28"))
    for name in (
        "$/h", "found, with\nmargin", "same list,\nreference", f"of {args.check} unseen\nhold it", f"all {args.check}\nhold",
    ):  # fmt: skip
        shown.add_column(name, justify="right", no_wrap=True)
    for plan in found:
        design = named(plan.name, plan.found.design)
        shown.add_row(
            str(design), f"{design.usd_per_hour:.0f}", f"{plan.found.rate_rps:g}", f"{plan.first_rps:g}", str(plan.held),
            f"{plan.all_rps:g}",
        )  # fmt: skip
    return shown


def _figures(found: Sequence[Judged], args: argparse.Namespace) -> dict[str, float]:
    """Flat: name -> number, the unit in the name."""
    values: dict[str, float] = {"power_units": args.power_of.power_units, "lists_checked": args.check}
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


def _write(found: Sequence[Judged], args: argparse.Namespace, *, model: str, console: Console) -> None:
    with staged(args.out) as folder:
        written = _write_to(folder, found, args, model=model, console=console)
    console.print(f"written to {args.out}: {', '.join(written)}", soft_wrap=True, markup=False)


def _write_to(out: Path, found: Sequence[Judged], args: argparse.Namespace, *, model: str, console: Console) -> list[str]:
    """Names of the files written."""
    (out / "plan.json").write_text(json.dumps(_figures(found, args), indent=1) + "\n", encoding="utf-8")
    _draw(found, args, out / "plan.png")
    written = ["plan.json", "plan.png"]
    best = next((plan for plan in found if plan.name not in UNSPLIT), None)
    if best is None:
        console.print("no split design was found, and an InferenceCluster cannot say an unsplit one yet: no plan.yaml")
    else:
        if best is not found[0]:
            console.print("an InferenceCluster cannot say an unsplit design yet: plan.yaml holds the best split one")
        design = _charged(best, model)
        catalogue = Catalogue(model)
        assert design.decode is not None
        write_objects(
            design,
            rate_rps=best.all_rps,
            name=args.name,
            namespace=args.namespace,
            model=model,
            slo=Slo(margin=args.margin / 100),
            gpus={gpu: catalogue.gpu(gpu) for gpu in (design.prefill.gpu, design.decode.gpu)},
            out=out,
        )
        written += ["plan.yaml", "profiles.yaml"]
    return written


def _charged(plan: Judged, model: str) -> PlanDesign:
    """The same design with the watts that a budget charges."""
    longest, design = len(plan.found.design.prefill.kind.prefill_s), plan.found.design
    prefill, decode = (option_for(model, kind.removesuffix("-capped"), CAP_W[kind], longest_prompt=longest)
                       for kind in SPLIT[plan.name])  # fmt: skip
    return PlanDesign(prefill, design.prefill_servers, decode, design.decode_servers)


def _draw(found: Sequence[Judged], args: argparse.Namespace, path: Path) -> None:
    """Bars: what the search found, and what all unseen lists hold. Writes a PNG."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.6 * len(found)), layout="constrained")
    for at, plan in enumerate(found):
        axes.barh(at - 0.19, plan.first_rps, height=0.36, color="#0072b2", label="the search's list" if at == 0 else None)
        axes.barh(at + 0.19, plan.all_rps, height=0.36, color="#56b4e9",
                  label=f"all {args.check} unseen lists" if at == 0 else None)  # fmt: skip
        axes.text(plan.first_rps, at - 0.19, f" {plan.first_rps:g}", va="center")
        axes.text(plan.all_rps, at + 0.19, f" {plan.all_rps:g}", va="center")
    axes.set_yticks(range(len(found)), [str(named(plan.name, plan.found.design)) for plan in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(max(plan.first_rps, plan.all_rps) for plan in found))
    axes.set_xlabel("requests per second within Splitwise's nine SLOs, by the reference model")
    axes.set_title(f"Designs at the power of {args.power_of} in Splitwise's units (simulated)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
