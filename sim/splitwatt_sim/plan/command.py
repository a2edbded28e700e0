"""`splitwatt plan`: how many prefill and decode servers, of which GPU, at which caps. Here, in shards, or in a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from splitwatt_truth.trace import TraceError

from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.forward import PapersMissingError, to_papers
from splitwatt_sim.jit import is_cold
from splitwatt_sim.plan import arguments, memory, report, resolve
from splitwatt_sim.plan.command_options import JobOptions, OutputOptions, PlanOptions, PowerUnits, SearchOptions, ShardOptions
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.job import JobError, write_job
from splitwatt_sim.plan.misses import limits_given, why
from splitwatt_sim.plan.mixed import LOOKED_AT, Beside, less_cost, more_rate
from splitwatt_sim.plan.search import robust_rate
from splitwatt_sim.plan.shards import Fingerprint, Shard, ShardError, fingerprint, merged, read_shard, write_shard
from splitwatt_sim.plan.sweep import Item, Record, Result, Search, items, records, result
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.told import read_told

FAILED: Final = 2
NOTHING: Final = 1
AT_EQUAL_POWER: Final = "splitwatt plan --power-units splitwise"
OF_EQUAL_POWER: Final = ("requests", "power_of", "model", "margin_percent", "list_s", "step_rps", "seed")
"""Options of a search that mean something there too."""
PASSED_OVER: Final = ("slo", "fit_error_percent")
"""Those that are not heard there, and do no harm: its SLOs are Splitwise's anyway, and no table of a user's own is read."""


class PlanCommand:
    help = "find pools, servers and caps for a trace, SLOs and a budget of watts, money or servers"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        try:
            return plan(arguments.options_of(args), console)
        except (PlanError, PapersMissingError, TraceError, TableError, FleetError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt plan: {error}", soft_wrap=True, markup=False)
            return FAILED


def plan(options: PlanOptions, console: Console) -> int:
    """What the options ask for. Raises PlanError, PapersMissingError, TraceError, TableError, FleetError, OSError."""
    sharding, output = options.sharding, options.output
    if (sharding.shard is None) != (sharding.shards_dir is None):
        raise ShardError("--shard and --shards-dir belong together: which part to search, and where its result goes")
    given = _flags_given(options.job)
    if given and not options.on_kubernetes:
        raise JobError(f"{given[0]} speaks of a Job: add --on-kubernetes, or leave it out")
    if options.power_units is PowerUnits.SPLITWISE:
        return to_papers(at_equal_power(options), instead_of=AT_EQUAL_POWER)
    resolve.check_folders({"--out": output.out, "--shards-dir": sharding.shards_dir})
    resolve.check_model(options.search.model)
    search = resolve.search_of(options.search, read=read_told(console))
    rate_rps, option = _first_rate(options.search)
    resolve.check_lists(search.goal, rate_rps, option=option)
    whole = items(search)
    resolve.check_servers(options.search, search.limits, whole)
    if options.on_kubernetes:
        return write_job(options, fingerprint(search), len(whole), console)
    if is_cold():
        console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
    for line in search.catalogue.said_of(search.gpus):
        console.print(line, soft_wrap=True, markup=False)
    if sharding.shard is not None and sharding.shards_dir is not None:
        run = fingerprint(search)
        return search_shard(sharding.shard, sharding.shards_dir, run, whole, processes=options.processes, console=console)
    if sharding.merge is not None:
        found = merged(sharding.merge, fingerprint(search), whole)
    else:
        found = searched(whole, processes=options.processes, console=console)
    return finish(options, search, whole, found, console)


def at_equal_power(options: PlanOptions) -> list[str]:
    """The same question as a line of `splitwatt papers`. Raises PlanError for an option that says nothing to it."""
    kept = SearchOptions(**{name: getattr(options.search, name) for name in (*OF_EQUAL_POWER, *PASSED_OVER)})
    wrong = [*_flags_given(options.search, instead_of=kept), *_flags_given(options.sharding)]
    wrong += arguments.said(options, only=("on_kubernetes", "servers_per_rack", "router", "memory_expansion"))
    if wrong:
        raise PlanError(f"{wrong[0]} says nothing to --power-units splitwise: leave one of them out")
    return ["plan", *arguments.said(options.search, only=OF_EQUAL_POWER), *arguments.said(options.output)]


Group = SearchOptions | OutputOptions | ShardOptions | JobOptions


def _flags_given(options: Group, *, instead_of: Group | None = None) -> list[str]:
    """Options that are not what they are in another group, or without any."""
    flag, other = arguments.flags(), instead_of or type(options)()
    return [flag[f.name] for f in fields(options) if getattr(options, f.name) != getattr(other, f.name)]


def _first_rate(options: SearchOptions) -> tuple[float, str]:
    """The rate that is tried first, and the option that says it."""
    return (options.rate_rps, "--rate") if options.rate_rps else (options.step_rps, "--step")


def searched(todo: list[Item], *, processes: int, console: Console) -> list[Record]:
    """With a bar of progress on a terminal, and line by line in a log."""
    if not console.is_terminal:
        found = []
        for one in records(todo, processes=processes):
            found.append(one)
            console.print(f"searched {len(found)} of {len(todo)} pairs of servers")
        return found
    return list(
        track(
            records(todo, processes=processes),
            total=len(todo), description="searching pairs of servers", console=console, transient=True,
        )
    )  # fmt: skip


def search_shard(shard: Shard, folder: Path, run: Fingerprint, whole: list[Item], *, processes: int, console: Console) -> int:
    """One shard, unless its result is there: a pod that is started again does nothing twice."""
    mine, there = shard.share(whole), folder / shard.file_name
    if there.exists():
        read_shard(there, run, whole)
        console.print(f"{there} is there already: nothing to search", soft_wrap=True, markup=False)
        return 0
    target = write_shard(folder, shard, run, searched(mine, processes=processes, console=console))
    said = f"shard {shard.number} of {shard.of}: {len(mine)} of {len(whole)} pairs of servers"
    console.print(f"{said}, written to {target}", soft_wrap=True, markup=False)
    return 0


def finish(options: PlanOptions, search: Search, whole: list[Item], written: list[Record], console: Console) -> int:
    """Rank, show, check, write. The same for a local search and for one from shards."""
    output = options.output
    seeds = range(options.search.seed + 1, options.search.seed + 1 + output.checked)
    found = [one for item, record in zip(whole, written, strict=True) if (one := result(item, record)) is not None]
    if not found:
        console.print(_nothing(options.search, search, whole), soft_wrap=True, markup=False)
        report.say_earlier(output.out, console)
        return NOTHING
    best = report.ranked(found, by_price=search.limits.by_price)
    console.print(report.table(best, search))
    winner = best[0]
    with console.status("trying lists that the search did not see"):
        survived, robust_rps = robust_rate(winner.design, winner.rate_rps, search.goal, seeds=seeds)
    console.print(f"best: {winner.design}: {winner.rate_rps:g} requests/s")
    console.print(
        f"on {output.checked} lists the search did not see it holds that rate on {survived}; all of them hold {robust_rps:g} "
        "requests/s"
    )
    beside = _beside(best, search, seeds, robust_rps=robust_rps, survived=survived)
    if beside is not None:
        console.print(
            f"with mixed servers: {beside.design}: {beside.rate_rps:g} requests/s on {beside.design.charge_w / 1e3:.1f} kW; all "
            f"{output.checked} unseen lists hold {beside.robust_rps:g} requests/s",
            soft_wrap=True,
        )
    values = report.figures(winner, robust_rps=robust_rps, survived=survived, checked=output.checked)
    values |= report.mixed_figures(beside)
    if options.servers_per_rack is not None:
        console.print(report.racks(winner, options.servers_per_rack))
        values |= report.rack_figures(winner, options.servers_per_rack)
    if options.memory_expansion is not None:
        rows = memory.rows_of(winner, search, options.memory_expansion)
        console.print(memory.table(rows, winner.design.parts[1][1].gpu))
        console.print(memory.said(rows), soft_wrap=True)
        values |= memory.figures(rows)
    report.write(best, search, values, output, console, beside=beside, router=options.router)
    return 0


def _nothing(options: SearchOptions, search: Search, whole: list[Item]) -> str:
    """Why no design was found."""
    rate_rps, lower = _first_rate(options)
    reason = why(
        [item.servers for item in whole],
        search.limits,
        search.goal,
        rate_rps=rate_rps,
        lower=lower,
        measure=search.slo.measure(search.model),
        given=limits_given(search.limits, charge_option=resolve.charged_by(options, search.limits)),
    )
    return f"no design holds the SLOs: {reason}"


def _beside(best: Sequence[Result], search: Search, seeds: range, *, robust_rps: float, survived: int) -> Beside | None:
    """Mixed servers beside one of the best splits, where that beats the best design."""
    splits = [found.design for found in best if found.design.decode is not None][:LOOKED_AT]
    if search.rate_rps is None:
        return more_rate(splits, search.goal, above_rps=best[0].rate_rps, robust_above_rps=robust_rps, seeds=seeds)
    return less_cost(
        splits,
        search.goal,
        rate_rps=search.rate_rps,
        cost=search.limits.cost,
        below=search.limits.cost(best[0].design),
        survived=survived,
        robust_rps=robust_rps,
        seeds=seeds,
    )


COMMAND = PlanCommand()
