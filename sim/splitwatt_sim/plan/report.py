"""What is made of a search: the table, the figures, the picture, and the objects to apply."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console
from rich.table import Table

from splitwatt_sim.latencies import judged_ttft_ms_p99
from splitwatt_sim.plan.command_options import Before, OutputOptions
from splitwatt_sim.plan.mixed import Beside
from splitwatt_sim.plan.objects import as_yaml, kept_w, manifests, profile_manifests, reserve_w
from splitwatt_sim.plan.options import LatencySlo
from splitwatt_sim.plan.plot import draw
from splitwatt_sim.plan.search import PlanDesign
from splitwatt_sim.plan.sweep import Result, Search
from splitwatt_sim.servers.catalogue import Gpu

SHOWN: Final = 12


def ranked(found: Sequence[Result], *, by_price: bool) -> list[Result]:
    """The best first: by rate, then by what it costs, then by energy."""
    return sorted(
        found,
        key=lambda f: (-f.rate_rps, f.design.usd_per_hour if by_price else f.design.charge_w, f.joules_per_token),
    )


def table(best: Sequence[Result], search: Search) -> Table:
    title = f"{search.model}, {', '.join(search.gpus)}: best designs of each pair of servers (simulated)"
    shown = Table(title=title, title_justify="left", padding=(0, 0), collapse_padding=True)
    for name in ("prefill", "decode"):
        shown.add_column(name, no_wrap=True)
    for name in ("rate\n/s", "charge\nkW", "drawn\nkW", "price\n$/h", "TTFT\nP99 ms", "TBT\nP99 ms", "J per\ntoken"):
        shown.add_column(name, justify="right", no_wrap=True)
    for f in best[:SHOWN]:
        d = f.design
        usd = "?" if math.isnan(d.usd_per_hour) else f"{d.usd_per_hour:.0f}"
        shown.add_row(
            f"{d.prefill_servers}×{d.prefill}", f"{d.decode_servers}×{d.decode}" if d.decode else "unsplit",
            f"{f.rate_rps:g}", f"{d.charge_w / 1e3:.1f}", f"{f.drawn_w / 1e3:.1f}", usd,
            f"{judged_ttft_ms_p99(f.percentiles):.0f}", f"{f.percentiles['tbt_ms_p99']:.0f}", f"{f.joules_per_token:.2f}",
        )  # fmt: skip
    return shown


def racks(winner: Result, servers_per_rack: int) -> Table:
    """What the fullest rack of each pool takes, and the row of all of them. A rack holds servers of one pool."""
    title = f"the plan in racks of {servers_per_rack} servers of one pool (simulated)"
    shown = Table(title=title, title_justify="left", padding=(0, 0), collapse_padding=True)
    shown.add_column("", no_wrap=True)
    for name in ("servers", "racks", "rack kW\ncharged", "rack kW\ndrawn", "all kW\ncharged", "all kW\ndrawn"):
        shown.add_column(name, justify="right", no_wrap=True)
    total = 0
    for role, option, servers, drawn_w in winner.pools():
        count = math.ceil(servers / servers_per_rack)
        full = min(servers, servers_per_rack)
        total += count
        watts = (full * option.charge_w, full * drawn_w / servers, servers * option.charge_w, drawn_w)
        shown.add_row(f"{role}, {option}", str(servers), str(count), *(f"{w / 1e3:.1f}" for w in watts))
    row_w = (winner.design.charge_w, winner.drawn_w)
    shown.add_section()
    shown.add_row("row", str(winner.design.servers), str(total), "", "", *(f"{w / 1e3:.1f}" for w in row_w))
    return shown


def rack_figures(winner: Result, servers_per_rack: int) -> dict[str, float]:
    """Flat: name -> number, the unit in the name; as `racks`."""
    values: dict[str, float] = {"servers_per_rack": servers_per_rack}
    for role, option, servers, drawn_w in winner.pools():
        full = min(servers, servers_per_rack)
        values[f"{role}_racks"] = math.ceil(servers / servers_per_rack)
        values[f"{role}_rack_charge_w"] = full * option.charge_w
        values[f"{role}_rack_mean_w"] = full * drawn_w / servers
    return values


def figures(winner: Result, *, robust_rps: float, survived: int, checked: int) -> dict[str, float]:
    """Flat: name -> number, the unit in the name."""
    design = winner.design
    return {
        "rate_requests_per_s": winner.rate_rps,
        "robust_rate_requests_per_s": robust_rps,
        "lists_survived": survived,
        "lists_checked": checked,
        "prefill_servers": design.prefill_servers,
        "decode_servers": design.decode_servers,
        "prefill_cap_w": design.prefill.cap_w,
        "decode_cap_w": design.decode.cap_w if design.decode else 0,
        "charge_w": design.charge_w,
        "joules_per_token": winner.joules_per_token,
        **winner.percentiles,
    }


def mixed_figures(beside: Beside | None) -> dict[str, float]:
    """Flat, of a design with mixed servers beside the pools; none: only that there is none."""
    if beside is None:
        return {"mixed_servers": 0}
    assert beside.design.mixed is not None
    return {
        "mixed_servers": beside.design.mixed_servers,
        "with_mixed_rate_requests_per_s": beside.rate_rps,
        "with_mixed_robust_rate_requests_per_s": beside.robust_rps,
        "with_mixed_lists_survived": beside.survived,
        "with_mixed_prefill_servers": beside.design.prefill_servers,
        "with_mixed_decode_servers": beside.design.decode_servers,
        "with_mixed_charge_w": beside.design.charge_w,
        "mixed_cap_w": beside.design.mixed.cap_w,
    }


def write(
    best: Sequence[Result],
    search: Search,
    values: Mapping[str, float],
    output: OutputOptions,
    console: Console,
    *,
    beside: Beside | None = None,
    router: Before = Before.VLLM,
) -> None:
    """plan.json, plan.png, plan.yaml, profiles.yaml: all of them, or none where one cannot be written. `best`: ranked, at least
    one. `beside`: better than that, for a router that knows it. Raises OSError, PlanObjectsError."""
    third = beside if beside is not None and router is Before.OWN else None
    with staged(output.out) as folder:
        _write(best, search, values, replace(output, out=folder), beside=third)
    console.print(f"written to {output.out}: {', '.join(FILES)}", soft_wrap=True, markup=False)
    if third is not None:
        console.print(f"plan.yaml holds the mixed servers: {OWN_ROUTER}", soft_wrap=True)
    elif beside is not None:
        console.print(
            "plan.yaml holds the best design without mixed servers beside two pools, to which vllm-router cannot send: with "
            "--router own it holds them",
            soft_wrap=True,
        )


OWN_ROUTER: Final = "bring a router that sends to all three pools; without one nothing is split"
FILES: Final = ("plan.json", "plan.png", "plan.yaml", "profiles.yaml")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write a plan's files to. They take the place of an earlier plan's in `out` once all are there: half of one
    plan beside half of another would be applied as one."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".plan-", dir=out) as made:
        folder = Path(made)
        yield folder
        for stale in FILES:
            if not (folder / stale).exists():
                (out / stale).unlink(missing_ok=True)
        for path in sorted(folder.iterdir()):
            path.replace(out / path.name)


def say_earlier(out: Path, console: Console) -> None:
    """Where nothing was found: that what lies there is not the answer."""
    there = [name for name in FILES if (out / name).exists()]
    if there:
        console.print(f"{out} still holds an earlier plan: {', '.join(there)}", soft_wrap=True, markup=False)


def _write(
    best: Sequence[Result], search: Search, values: Mapping[str, float], output: OutputOptions, *, beside: Beside | None
) -> None:
    winner, out = best[0], output.out
    (out / "plan.json").write_text(json.dumps(dict(values), indent=1) + "\n", encoding="utf-8")
    robust_rps, checked = values["robust_rate_requests_per_s"], int(values["lists_checked"])
    draw(best, search, out / "plan.png", robust_rps=robust_rps, checked=checked)
    design, rate_rps = (winner.design, robust_rps) if beside is None else (beside.design, beside.robust_rps)
    gpus: dict[str, Gpu] = {gpu: search.catalogue.gpu(gpu) for gpu in search.gpus}
    write_objects(design, output, rate_rps=rate_rps, model=search.model, slo=search.slo, gpus=gpus, feed_w=search.limits.charge_w)


def write_objects(
    design: PlanDesign, output: OutputOptions, *, rate_rps: float, model: str, slo: LatencySlo, gpus: Mapping[str, Gpu],
    feed_w: float = math.inf,
) -> None:  # fmt: skip
    """plan.yaml and profiles.yaml. Raises OSError, PlanObjectsError."""
    reserved_w, wanted_w = kept_w(design, gpus, feed_w), reserve_w(design, gpus)
    short_w = wanted_w - reserved_w
    short = (
        f"\nThat is {short_w} W too few: the feed's {feed_w:g} W have no room for more. Plan for {short_w} W less, or know that "
        "one server may surprise the feed."
    )
    router = f"Three pools: {OWN_ROUTER}. See docs/router.md.\n" if design.mixed is not None else ""
    header = (
        f"{design}\nplanned for {rate_rps:g} requests/s (simulated), {design.charge_w:.0f} W at the meter\n"
        f"{router}"
        f"The limit is what the caps add up to and {reserved_w} W of reserve, for one server whose GPUs are reset "
        f"(docs/safety.md).{short if short_w else ''}\n"
        "The feed has to carry both. It only observes: read what it would do, then set mode: Strict (docs/observe.md)."
    )
    objects = manifests(design, name=output.name, namespace=output.namespace, model=model, slo=slo, gpus=gpus, feed_w=feed_w)
    (output.out / "plan.yaml").write_text(as_yaml(objects, header=header), encoding="utf-8")
    profiles = as_yaml(
        profile_manifests(design, gpus),
        header="What the plan was made with. The chart brings these profiles; apply them only where it is not installed.",
    )
    (output.out / "profiles.yaml").write_text(profiles, encoding="utf-8")
