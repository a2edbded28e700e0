"""`splitwatt plan`: how many prefill and decode servers, of which GPU, at which caps. Here, in shards, or in a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from splitwatt_papers.equal_power.command import plan_at_equal_power
from splitwatt_truth.trace import TraceError

from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.jit import is_cold
from splitwatt_sim.plan import arguments, report
from splitwatt_sim.plan.job import JobError, write_job
from splitwatt_sim.plan.misses import limits_given, why
from splitwatt_sim.plan.mixed import LOOKED_AT, Beside, less_cost, more_rate
from splitwatt_sim.plan.objects import PlanObjectsError
from splitwatt_sim.plan.search import robust_rate
from splitwatt_sim.plan.shards import Fingerprint, Shard, ShardError, fingerprint, merged, read_shard, write_shard
from splitwatt_sim.plan.sweep import Item, Record, Result, Search, items, records, result
from splitwatt_sim.servers.tables import TableError

FAILED: Final = 2
NOTHING: Final = 1


class PlanCommand:
    help = "find pools, servers and caps for a trace, SLOs and a budget of watts, money or servers"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        try:
            return plan(args, console)
        except (TraceError, TableError, FleetError, PlanObjectsError, ShardError, JobError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt plan: {error}", soft_wrap=True, markup=False)
            return FAILED


def plan(args: argparse.Namespace, console: Console) -> int:
    """What the options ask for. Raises TraceError, TableError, FleetError, PlanObjectsError, ShardError, JobError, OSError."""
    if (args.shard is None) != (args.shards_dir is None):
        raise ShardError("--shard and --shards-dir belong together: which part to search, and where its result goes")
    for name in ("shards", "image", "claim", "trace_claim", "output"):
        if getattr(args, name) is not None and not args.on_kubernetes:
            raise JobError(f"--{name.replace('_', '-')} speaks of a Job: add --on-kubernetes, or leave it out")
    arguments.check_folders(args)
    arguments.check_model(args.model)
    if args.power_units == "splitwise":
        return plan_at_equal_power(args, console)
    search = arguments.search_of(args)
    arguments.check_lists(args, search.goal)
    whole = items(search)
    arguments.check_servers(args, search.limits, whole)
    if args.on_kubernetes:
        return write_job(args, fingerprint(search), len(whole), console)
    if is_cold():
        console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
    for line in search.catalogue.said_of(search.gpus):
        console.print(line, soft_wrap=True, markup=False)
    if args.shard is not None:
        return search_shard(args.shard, args.shards_dir, fingerprint(search), whole, jobs=args.jobs, console=console)
    if args.merge is not None:
        found = merged(args.merge, fingerprint(search), whole)
    else:
        found = searched(whole, jobs=args.jobs, console=console)
    return finish(args, search, whole, found, console)


def searched(todo: list[Item], *, jobs: int, console: Console) -> list[Record]:
    """With a bar of progress on a terminal, and line by line in a log."""
    if not console.is_terminal:
        found = []
        for one in records(todo, processes=jobs):
            found.append(one)
            console.print(f"searched {len(found)} of {len(todo)} pairs of servers")
        return found
    return list(
        track(
            records(todo, processes=jobs),
            total=len(todo), description="searching pairs of servers", console=console, transient=True,
        )
    )  # fmt: skip


def search_shard(shard: Shard, folder: Path, run: Fingerprint, whole: list[Item], *, jobs: int, console: Console) -> int:
    """One shard, unless its result is there: a pod that is started again does nothing twice."""
    mine, there = shard.share(whole), folder / shard.file_name
    if there.exists():
        read_shard(there, run, whole)
        console.print(f"{there} is there already: nothing to search", soft_wrap=True, markup=False)
        return 0
    target = write_shard(folder, shard, run, searched(mine, jobs=jobs, console=console))
    said = f"shard {shard.number} of {shard.of}: {len(mine)} of {len(whole)} pairs of servers"
    console.print(f"{said}, written to {target}", soft_wrap=True, markup=False)
    return 0


def finish(args: argparse.Namespace, search: Search, whole: list[Item], written: list[Record], console: Console) -> int:
    """Rank, show, check, write. The same for a local search and for one from shards."""
    found = [one for item, record in zip(whole, written, strict=True) if (one := result(item, record)) is not None]
    if not found:
        console.print(_nothing(args, search, whole), soft_wrap=True, markup=False)
        report.say_earlier(args.out, console)
        return NOTHING
    best = report.ranked(found, by_price=search.limits.by_price)
    console.print(report.table(best, search))
    winner = best[0]
    with console.status("trying lists that the search did not see"):
        survived, robust_rps = robust_rate(
            winner.design, winner.rate_rps, search.goal, seeds=range(args.seed + 1, args.seed + 1 + args.check)
        )
    console.print(f"best: {winner.design}: {winner.rate_rps:g} requests/s")
    console.print(
        f"on {args.check} lists the search did not see it holds that rate on {survived}; all of them hold {robust_rps:g} "
        "requests/s"
    )
    beside = _beside(best, search, args, robust_rps=robust_rps, survived=survived)
    if beside is not None:
        console.print(
            f"with mixed servers: {beside.design}: {beside.rate_rps:g} requests/s on {beside.design.charge_w / 1e3:.1f} kW; all "
            f"{args.check} unseen lists hold {beside.robust_rps:g} requests/s",
            soft_wrap=True,
        )
    values = report.figures(winner, robust_rps=robust_rps, survived=survived, checked=args.check)
    values |= report.mixed_figures(beside)
    if args.servers_per_rack is not None:
        console.print(report.racks(winner, args.servers_per_rack))
        values |= report.rack_figures(winner, args.servers_per_rack)
    report.write(best, search, values, name=args.name, namespace=args.namespace, out=args.out, console=console)
    if beside is not None:
        console.print("an InferenceCluster cannot say mixed servers yet: plan.yaml holds the best split without them")
    return 0


def _nothing(args: argparse.Namespace, search: Search, whole: list[Item]) -> str:
    """Why no design was found."""
    reason = why(
        [item.servers for item in whole],
        search.limits,
        search.goal,
        rate_rps=args.rate or args.step,
        lower="--rate" if args.rate else "--step",
        measure=search.slo.measure(search.model),
        given=limits_given(search.limits, charge_option=arguments.charged_by(args, search.limits)),
    )
    return f"no design holds the SLOs: {reason}"


def _beside(
    best: Sequence[Result], search: Search, args: argparse.Namespace, *, robust_rps: float, survived: int
) -> Beside | None:
    """Mixed servers beside one of the best splits, where that beats the best design."""
    splits = [found.design for found in best if found.design.decode is not None][:LOOKED_AT]
    seeds = range(args.seed + 1, args.seed + 1 + args.check)
    if args.rate is None:
        return more_rate(splits, search.goal, above_rps=best[0].rate_rps, robust_above_rps=robust_rps, seeds=seeds)
    return less_cost(
        splits,
        search.goal,
        rate_rps=args.rate,
        cost=search.limits.cost,
        below=search.limits.cost(best[0].design),
        survived=survived,
        robust_rps=robust_rps,
        seeds=seeds,
    )


COMMAND = PlanCommand()
