"""`splitwatt plan`: how many prefill and decode servers, of which GPU, at which caps."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table
from splitwatt_core.trace import TraceError

from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.jit import is_cold
from splitwatt_sim.plan.mixed import LOOKED_AT, Beside, less_charge, more_rate
from splitwatt_sim.plan.objects import PlanObjectsError, as_yaml, manifests, profile_manifests
from splitwatt_sim.plan.options import GPUS_2026, MODEL_2026, Slo, known_gpus, market
from splitwatt_sim.plan.plot import draw
from splitwatt_sim.plan.search import (
    Found,
    Goal,
    Limits,
    Option,
    largest_rate,
    least_design,
    pareto,
    robust_rate,
)
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated

FAILED: Final = 2
NOTHING: Final = 1
MAX_SLO_MS: Final = 600_000.0
MAX_NAME: Final = 40
LISTS_PER_SLO: Final = 10
"""A list must last this many times the longest SLO, or queues are cut off by its end and every rate looks good."""
GENERATED_S: Final = 600.0
"""Length of the generated list from which sizes are drawn when no file is given."""
SHOWN: Final = 12
DEFAULT_TTFT_MS: Final = 2_000.0
DEFAULT_TBT_MS: Final = 100.0


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def milliseconds(text: str) -> float:
    value = positive(text)
    if not 1 <= value <= MAX_SLO_MS:
        raise argparse.ArgumentTypeError(f"must lie from 1 to {MAX_SLO_MS:.0f} ms, not {text}")
    return value


def object_name(text: str) -> str:
    """RFC 1123, short enough for what is derived from it."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", text) or len(text) > MAX_NAME:
        raise argparse.ArgumentTypeError(
            f"must be at most {MAX_NAME} small letters, digits and dashes, as Kubernetes wants names, not {text!r}"
        )
    return text


def price(text: str) -> tuple[str, float]:
    gpu, _, usd = text.partition("=")
    if not gpu or not usd:
        raise argparse.ArgumentTypeError(f"write GPU=USD, the price of a server of 8 per hour, not {text!r}")
    return gpu, positive(usd)


class PlanCommand:
    help = "find pools, servers and caps for a trace, SLOs and a budget of watts, money or servers"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--requests", type=Path, metavar="FILE", help="requests whose sizes are drawn from; default: a generator")
        add("--rate", type=positive, metavar="R", help="requests per second to hold; without it: as many as the limits allow")
        add("--watts", type=positive, metavar="W", help="at most this much power, as a budget charges it")
        add("--usd-per-hour", type=positive, metavar="USD", help="at most this price")
        add("--price", type=price, action="append", default=[], metavar="GPU=USD", help="price of a server of 8 per hour")
        add("--servers", type=count, metavar="N", help="at most so many servers of 8 GPUs")
        add("--gpus", default="H100", metavar="A,B", help=f"GPUs to choose from: {', '.join(GPUS_2026)} (%(default)s)")
        add("--model", default=MODEL_2026, help="served model (%(default)s)")
        add("--ttft-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 2000, with bloom-176b Splitwise's nine SLOs")
        add("--tbt-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 100, with bloom-176b Splitwise's nine SLOs")
        add("--margin", type=float, default=3.0, metavar="PERCENT", help="how far below each SLO to stay (%(default)s)")
        add("--seconds", type=positive, default=120.0, help="length of each list of requests (%(default)s)")
        add("--step", type=positive, default=5.0, help="grid of rates, requests per second (%(default)s)")
        add("--seed", type=int, default=1, help="seed of the list that the search sees (%(default)s)")
        add("--check", type=count, default=5, metavar="N", help="lists not searched on, for the best design (%(default)s)")
        add("--name", type=object_name, default="plan", help="name of the objects (%(default)s)")
        add("--namespace", type=object_name, default="default", help="namespace of the InferenceCluster (%(default)s)")
        add("--out", type=Path, default=Path("out/plan"), metavar="DIR", help="plan.json, plan.png, plan.yaml (%(default)s)")
        add("--jobs", type=count, default=os.cpu_count() or 1, help="processes (%(default)s)")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        if is_cold():
            console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
        try:
            return plan(args, console)
        except (TraceError, TableError, FleetError, PlanObjectsError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt plan: {error}", soft_wrap=True)
            return FAILED


@dataclass(frozen=True, slots=True)
class Job:
    """One pair of options to search. Lives in the parent; forked workers find it by number."""

    prefill: Option
    decode: Option | None
    limits: Limits
    goal: Goal
    rate_rps: float | None

    def search(self) -> Found | None:
        if self.rate_rps is None:
            return largest_rate(self.prefill, self.decode, self.limits, self.goal)
        return least_design(self.prefill, self.decode, self.rate_rps, self.limits, self.goal)


_JOBS: list[Job] = []


def _search(number: int) -> Found | None:
    return _JOBS[number].search()


def search_all(jobs: list[Job], *, processes: int) -> Iterator[Found | None]:
    """Results in the order of the jobs. Jobs hold functions, so workers are forked with them instead of being sent them."""
    _JOBS[:] = jobs
    if processes == 1 or len(jobs) == 1:
        yield from map(_search, range(len(jobs)))
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_search, range(len(jobs)))


def plan(args: argparse.Namespace, console: Console) -> int:
    """Search, show, check, write. Raises TraceError, TableError, FleetError, OSError."""
    sizes = _sizes(args)
    slo = _slo(args)
    limits = Limits(
        charge_w=args.watts or math.inf,
        usd_per_hour=args.usd_per_hour or math.inf,
        **({"servers": args.servers} if args.servers else {}),
    )
    if args.rate is None and limits == Limits():
        raise TraceError("say what may be spent (--watts, --usd-per-hour or --servers) or what must be held (--rate)")
    longest_ms = max(slo.ttft_p99_ms or 0.0, slo.tbt_p99_ms or 0.0, DEFAULT_TTFT_MS)
    if args.seconds * 1e3 < LISTS_PER_SLO * longest_ms:
        raise TraceError(f"lists of {args.seconds:g} s hide queues: give --seconds {LISTS_PER_SLO * longest_ms / 1e3:g} or more")
    goal = Goal(sizes, args.seconds, args.seed, args.step, slo.checker(args.model))
    gpus = list(dict.fromkeys(part.strip() for part in args.gpus.split(",") if part.strip()))
    if not gpus:
        raise TableError(f"--gpus names no GPU; choose from {', '.join(known_gpus(args.model))}")
    shop = market(args.model, gpus, longest_prompt=int(sizes.prompt_tokens.max()), usd_per_hour=dict(args.price))
    priceless = sorted({option.gpu for option in shop.prefill if math.isnan(option.usd_per_hour)})
    if args.usd_per_hour and priceless:
        raise TableError(f"no price is known of {', '.join(priceless)}: add --price {priceless[0]}=USD, or leave it out")
    jobs = [Job(prefill, decode, limits, goal, args.rate) for prefill, decode in shop.pairs()]
    results = track(
        search_all(jobs, processes=min(args.jobs, len(jobs))),
        total=len(jobs), description="searching pairs of servers", console=console, transient=True,
    )  # fmt: skip
    found = [result for result in results if result is not None]
    if not found:
        console.print(
            f"no design holds the SLOs within these limits at {args.rate or args.step:g} requests/s: raise a limit, loosen an "
            f"SLO, or lower {'--rate' if args.rate else '--step'}",
            soft_wrap=True,
        )
        return NOTHING
    by_price = args.usd_per_hour is not None and args.watts is None
    best = sorted(
        found,
        key=lambda f: (-f.rate_rps, f.design.usd_per_hour if by_price else f.design.charge_w, f.run.joules_per_token),
    )
    console.print(_table(best[:SHOWN], args))
    winner = best[0]
    survived, robust = robust_rate(
        winner.design, winner.rate_rps, goal, seeds=range(args.seed + 1, args.seed + 1 + args.check)
    )
    console.print(f"best: {winner.design}: {winner.rate_rps:g} requests/s")
    console.print(
        f"on {args.check} lists the search did not see it holds that rate on {survived}; all of them hold {robust:g} requests/s"
    )
    beside = _beside(best, goal, args, robust_rps=robust, survived=survived)
    if beside is not None:
        console.print(
            f"with mixed servers: {beside.design}: {beside.rate_rps:g} requests/s on {beside.design.charge_w / 1e3:.1f} kW; all "
            f"{args.check} unseen lists hold {beside.robust_rps:g} requests/s",
            soft_wrap=True,
        )
    _write(args, best, winner, slo, console, robust_rps=robust, survived=survived, beside=beside)
    return 0


def _beside(best: list[Found], goal: Goal, args: argparse.Namespace, *, robust_rps: float, survived: int) -> Beside | None:
    """Mixed servers beside one of the best splits, where that beats the best design."""
    splits = [found.design for found in best if found.design.decode is not None][:LOOKED_AT]
    seeds = range(args.seed + 1, args.seed + 1 + args.check)
    if args.rate is None:
        return more_rate(splits, goal, above_rps=best[0].rate_rps, robust_above_rps=robust_rps, seeds=seeds)
    below_w = best[0].design.charge_w
    return less_charge(splits, goal, rate_rps=args.rate, below_w=below_w, survived=survived, seeds=seeds)


def _sizes(args: argparse.Namespace) -> Arrivals:
    if args.requests is not None:
        return read_arrivals(args.requests)
    return generated(requests_per_s=10.0, seconds=GENERATED_S, seed=args.seed)


def _slo(args: argparse.Namespace) -> Slo:
    if not 0 <= args.margin < 100:
        raise TraceError(f"--margin must lie from 0 to below 100 percent, not {args.margin:g}")
    margin = args.margin / 100
    if args.model != MODEL_2026:
        return Slo(args.ttft_p99_ms, args.tbt_p99_ms, margin)
    return Slo(args.ttft_p99_ms or DEFAULT_TTFT_MS, args.tbt_p99_ms or DEFAULT_TBT_MS, margin)


def _table(found: list[Found], args: argparse.Namespace) -> Table:
    title = f"{args.model}, {args.gpus}: best designs of each pair of servers (simulated)"
    table = Table(title=title, title_justify="left", padding=(0, 0), collapse_padding=True)
    for name in ("prefill", "decode"):
        table.add_column(name, no_wrap=True)
    for name in ("rate\n/s", "charge\nkW", "drawn\nkW", "price\n$/h", "TTFT\nP99 ms", "TBT\nP99 ms", "J per\ntoken"):
        table.add_column(name, justify="right", no_wrap=True)
    for f in found:
        d, values = f.design, f.run.latencies.percentiles()
        drawn_kw = sum(f.run.energy_j.values()) / f.run.ends_s / 1e3
        usd = "?" if math.isnan(d.usd_per_hour) else f"{d.usd_per_hour:.0f}"
        table.add_row(
            f"{d.prefill_servers}x{d.prefill}", f"{d.decode_servers}x{d.decode}" if d.decode else "unsplit",
            f"{f.rate_rps:g}", f"{d.charge_w / 1e3:.1f}", f"{drawn_kw:.1f}", usd,
            f"{values['ttft_ms_p99']:.0f}", f"{values['tbt_ms_p99']:.0f}", f"{f.run.joules_per_token:.2f}",
        )  # fmt: skip
    return table


def _write(
    args: argparse.Namespace, found: list[Found], winner: Found, slo: Slo, console: Console, *, robust_rps: float, survived: int,
    beside: Beside | None,
) -> None:  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {
        "rate_requests_per_s": winner.rate_rps,
        "robust_rate_requests_per_s": robust_rps,
        "lists_survived": survived,
        "lists_checked": args.check,
        "prefill_servers": winner.design.prefill_servers,
        "decode_servers": winner.design.decode_servers,
        "prefill_cap_w": winner.design.prefill.cap_w,
        "decode_cap_w": winner.design.decode.cap_w if winner.design.decode else 0,
        "charge_w": winner.design.charge_w,
        "joules_per_token": winner.run.joules_per_token,
        **winner.run.latencies.percentiles(),
        "mixed_servers": beside.design.mixed_servers if beside else 0,
    }
    if beside is not None:
        assert beside.design.mixed is not None
        figures |= {
            "with_mixed_rate_requests_per_s": beside.rate_rps,
            "with_mixed_robust_rate_requests_per_s": beside.robust_rps,
            "with_mixed_lists_survived": beside.survived,
            "with_mixed_prefill_servers": beside.design.prefill_servers,
            "with_mixed_decode_servers": beside.design.decode_servers,
            "with_mixed_charge_w": beside.design.charge_w,
            "mixed_cap_w": beside.design.mixed.cap_w,
        }
    (args.out / "plan.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(found, pareto(found), winner, args.out / "plan.png", title=f"{args.model}: designs found (simulated)")
    written = ["plan.json", "plan.png"]
    for stale in ("plan.yaml", "profiles.yaml"):
        (args.out / stale).unlink(missing_ok=True)
    sayable = next((f for f in found if f.design.decode is not None), None)
    if sayable is None:
        console.print("no split design was found, and an InferenceCluster cannot say an unsplit one yet: no plan.yaml")
    else:
        if beside is not None:
            console.print("an InferenceCluster cannot say mixed servers yet: plan.yaml holds the best split without them")
        if sayable is not winner:
            console.print("an InferenceCluster cannot say an unsplit design yet: plan.yaml holds the best split one")
        rate_rps = robust_rps if sayable is winner else sayable.rate_rps
        charge_w = sayable.design.charge_w
        header = (
            f"{sayable.design}\nplanned for {rate_rps:g} requests/s (simulated), {charge_w:.0f} W at the meter\n"
            "The limit is what the caps add up to: no reserveWatts for a reboot or a reset. See docs/safety.md, the reserve."
        )
        objects = manifests(
            sayable.design,
            name=args.name,
            namespace=args.namespace,
            model=args.model,
            slo=slo,
            gpu_profiles=known_gpus(args.model),
        )
        (args.out / "plan.yaml").write_text(as_yaml(objects, header=header), encoding="utf-8")
        profiles = as_yaml(
            profile_manifests(sayable.design, known_gpus(args.model)),
            header="What the plan was made with. The chart brings these profiles; apply them only where it is not installed.",
        )
        (args.out / "profiles.yaml").write_text(profiles, encoding="utf-8")
        written += ["plan.yaml", "profiles.yaml"]
    console.print(f"written to {args.out}: {', '.join(written)}")


COMMAND = PlanCommand()
