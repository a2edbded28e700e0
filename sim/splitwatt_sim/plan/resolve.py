"""From what was asked to what is searched: the catalogue, the limits, the SLOs; and what is refused before anything is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from splitwatt_truth.trace_files import WHOLE, TracePart

from splitwatt_sim.plan.command_options import SearchOptions
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.options import MODEL_2026, REST_W, LatencySlo
from splitwatt_sim.plan.search import Goal, Limits, charge_w
from splitwatt_sim.plan.sweep import Item, Search
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import MAX_SERVERS, Design
from splitwatt_sim.servers.kinds import links_of
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.servers.tables import builtin as builtin_tables
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated
from splitwatt_sim.traces.told import Read, part_of

GENERATED_RPS: Final = 10.0
GENERATED_S: Final = 600.0
"""Of the generated list from which sizes are drawn when no file is given."""
DEFAULT_TTFT_MS: Final = 2_000.0
DEFAULT_TBT_MS: Final = 100.0
DEFAULT_GPU: Final = "H100"
MODELS_2023: Final = tuple(sorted(builtin_tables().shapes))


def search_of(options: SearchOptions, *, read: Read = read_arrivals) -> Search:
    """`read`: a file of requests. Raises PlanError, TableError and TraceError, with what is wrong in the options before the trace
    is read."""
    if not any((options.rate_rps, options.charge_w, options.power_of, options.usd_per_hour, options.servers)):
        raise PlanError("say what may be spent (--watts, --power-of, --usd-per-hour or --servers) or what must be held (--rate)")
    part = part_of(from_s=options.from_s, to_s=options.to_s, unit=options.trace_unit)
    if options.requests is None and part != WHOLE:
        raise PlanError("--from, --to and --trace-unit say which part of a trace is read: add --requests, or leave them out")
    links = links_of(options.kv_gigabytes_per_s, options.kv_latency_ms)
    catalogue = Catalogue(options.model, options.profiles, options.fit_error_percent / 100, links)
    catalogue.check()
    given_w = math.inf if options.power_of is None else uncapped_w(options.power_of, catalogue)
    limits = Limits(
        charge_w=min(options.charge_w or math.inf, given_w),
        usd_per_hour=options.usd_per_hour or math.inf,
        **({"servers": options.servers} if options.servers else {}),
    )
    gpus = _gpus(options, catalogue)
    for gpu in gpus:
        catalogue.gpu(gpu)
    try:
        usd_per_hour = {catalogue.name_of(gpu): usd for gpu, usd in options.prices}
    except TableError as error:
        raise PlanError(f"--price: {error}") from error
    return Search(
        model=options.model,
        gpus=gpus,
        slo=_slo(options),
        limits=limits,
        rate_rps=options.rate_rps,
        sizes=sizes_of(options.requests, part, seed=options.seed, read=read),
        seconds=options.list_s,
        seed=options.seed,
        step_rps=options.step_rps,
        usd_per_hour=usd_per_hour,
        catalogue=catalogue,
    )


def sizes_of(requests: Path | None, part: TracePart = WHOLE, *, seed: int, read: Read = read_arrivals) -> Arrivals:
    """Requests from which sizes are drawn. Raises TraceError."""
    if requests is not None:
        return read(requests, part)
    return generated(requests_per_s=GENERATED_RPS, seconds=GENERATED_S, seed=seed)


def charged_by(options: SearchOptions, limits: Limits) -> str:
    """The option that limits the charge."""
    return "--watts" if limits.charge_w == options.charge_w else "--power-of"


def check_folders(folders: Mapping[str, Path | None]) -> None:
    """By option. Before minutes of search: that their result can be written. Raises PlanError."""
    for option, path in folders.items():
        there = None if path is None else next((p for p in (path, *path.parents) if p.exists()), None)
        if there is not None and not there.is_dir():
            raise PlanError(f"{option} wants a folder, and {there} is a file: name another one")


def check_model(model: str, known: Collection[str] = (MODEL_2026, *MODELS_2023)) -> None:
    """Raises PlanError that lists the models."""
    if model not in known:
        raise PlanError(f"--model {model} is not known; choose from {', '.join(known)}")


def check_lists(goal: Goal, rate_rps: float, *, option: str) -> None:
    """Raises PlanError where the first list of a search, at this rate of this option, would hold no request."""
    if not len(goal.arrivals(rate_rps)):
        raise PlanError(
            f"a list of {goal.seconds:g} s at {rate_rps:g} requests/s holds no request: give a larger {option}, or more --seconds"
        )


def check_servers(options: SearchOptions, limits: Limits, whole: Sequence[Item]) -> None:
    """Raises PlanError where a limit leaves room for more servers than a plan may have: the count would be the limit then, and
    nobody asked for that one."""
    if options.servers is not None:
        if options.servers > MAX_SERVERS:
            raise PlanError(f"--servers is {options.servers}, and a plan has at most {MAX_SERVERS} servers: give less")
        return
    if options.rate_rps is not None:  # the least fleet fills no limit
        return
    offered = [o for item in whole for o in (item.servers.prefill, item.servers.decode) if o is not None]
    holds: list[tuple[float, str, str]] = []
    if math.isfinite(limits.charge_w):
        leanest_w = min(o.charge_w for o in offered)
        holds.append((limits.charge_w / leanest_w, charged_by(options, limits), f"{limits.charge_w:.0f}"))
    if math.isfinite(limits.usd_per_hour):
        cheapest = min(o.usd_per_hour for o in offered)
        holds.append((limits.usd_per_hour / cheapest, "--usd-per-hour", f"{limits.usd_per_hour:g}"))
    servers, option, most = min(holds, default=(0.0, "", ""))
    if math.floor(servers + 1e-9) > MAX_SERVERS:
        raise PlanError(
            f"{option} {most} holds {math.floor(servers + 1e-9)} servers, and a plan at most {MAX_SERVERS}: give --servers or "
            f"less {option}"
        )


def uncapped_w(these: Design, catalogue: Catalogue | None = None) -> float:
    """What a budget charges these servers at their GPUs' default limits, capped ones at half of it (Splitwise's HHcap). A
    profile of one's own says the limit of its GPU."""
    shelf = catalogue or Catalogue()

    def one_w(kind: str) -> float:
        default_w = shelf.gpu(kind.removesuffix("-capped")).profile.default_cap_w
        return charge_w(cap_w=default_w / 2 if kind.endswith("-capped") else default_w, rest_w=REST_W)

    return one_w(these.prompt_kind) * these.prompt_machines + one_w(these.token_kind) * these.token_machines


def _gpus(options: SearchOptions, catalogue: Catalogue) -> tuple[str, ...]:
    if options.gpus is None:
        return tuple(catalogue.given()) or (DEFAULT_GPU,)
    wanted = [part.strip() for part in options.gpus.split(",") if part.strip()]
    if not wanted:
        raise PlanError(f"--gpus names no GPU; choose from {', '.join(catalogue.names())}")
    return tuple(dict.fromkeys(catalogue.name_of(name) for name in wanted))


def _slo(options: SearchOptions) -> LatencySlo:
    margin = options.margin_percent / 100
    if options.slo is not None and (options.ttft_p99_ms is not None or options.tbt_p99_ms is not None):
        raise PlanError("--slo splitwise and SLOs in milliseconds exclude each other: leave one of them out")
    if options.slo is not None and options.model == MODEL_2026:
        raise PlanError(f"--slo splitwise counts by tables of 2023, and {options.model} has none: add --model bloom-176b")
    if options.model != MODEL_2026:
        return LatencySlo(options.ttft_p99_ms, options.tbt_p99_ms, margin)
    return LatencySlo(options.ttft_p99_ms or DEFAULT_TTFT_MS, options.tbt_p99_ms or DEFAULT_TBT_MS, margin)
