"""The command line of `splitwatt plan`: its options, what they mean, and how to say them again to another machine."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitwatt_truth.trace import TraceError

from splitwatt_sim.plan.options import GPUS_2026, MODEL_2026, REST_W, Slo
from splitwatt_sim.plan.search import MAX_SERVERS, Goal, Limits, charge_w
from splitwatt_sim.plan.shards import MAX_SHARDS, Shard
from splitwatt_sim.plan.sweep import Item, Search
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.designs import Design, DesignError, parse_design
from splitwatt_sim.servers.profile_files import ProfileFile, read_profile_file
from splitwatt_sim.servers.table_files import FIT_ERROR
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.servers.tables import builtin as builtin_tables
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated

MAX_SLO_MS: Final = 600_000.0
MAX_NAME: Final = 40
MAX_CLAIM_NAME: Final = 253
GENERATED_S: Final = 600.0
"""Length of the generated list from which sizes are drawn when no file is given."""
DEFAULT_TTFT_MS: Final = 2_000.0
DEFAULT_TBT_MS: Final = 100.0
DEFAULT_GPU: Final = "H100"
UNITS: Final = ("watts", "splitwise")
SEARCHED: Final = (
    "rate", "watts", "power_of", "slo", "usd_per_hour", "servers", "model", "ttft_p99_ms", "tbt_p99_ms", "margin", "seconds",
    "step", "seed",
)  # fmt: skip
"""Plain options that decide what a search finds, by their names in the parsed arguments."""
WRITTEN: Final = ("check", "name", "namespace", "out", "servers_per_rack")
"""Those that decide what is made of it."""


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def watts(text: str) -> float:
    form = re.fullmatch(r"([0-9.eE+]+) ?(k|M)?W?", text)
    if form is None:
        raise argparse.ArgumentTypeError(f"must be watts, as in 400000, 400kW or 0.4MW, not {text}")
    return positive(form[1]) * {"": 1.0, "k": 1e3, "M": 1e6}[form[2] or ""]


def design(text: str) -> Design:
    try:
        return parse_design(text)
    except DesignError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"must lie from 0 to below 100 percent, not {text}")
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


def claim_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", text) or len(text) > MAX_CLAIM_NAME:
        raise argparse.ArgumentTypeError(f"must be the name of a PersistentVolumeClaim, not {text!r}")
    return text


def image_name(text: str) -> str:
    if not re.fullmatch(r"[^\s:@][^\s]*", text):
        raise argparse.ArgumentTypeError(f"must be an image as registry/name:tag, not {text!r}")
    return text


def price(text: str) -> tuple[str, float]:
    gpu, _, usd = text.partition("=")
    if not gpu or not usd:
        raise argparse.ArgumentTypeError(f"write GPU=USD, the price of a server of 8 per hour, not {text!r}")
    return gpu, positive(usd)


def shard(text: str) -> Shard:
    form = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if form is None or not int(form[1]) < int(form[2]) <= MAX_SHARDS:
        raise argparse.ArgumentTypeError(f"write I/N with I from 0 to N - 1 and N up to {MAX_SHARDS}, as in 0/8, not {text}")
    return Shard(int(form[1]), int(form[2]))


def profile_file(text: str) -> ProfileFile:
    try:
        return read_profile_file(Path(text))
    except TableError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--requests", "--trace", type=Path, metavar="FILE", help="requests whose sizes are drawn from; default: a generator")
    add("--rate", type=positive, metavar="R", help="requests per second to hold; without it: as many as the limits allow")
    add("--watts", "--power", type=watts, metavar="W", help="at most this much power, as a budget charges it; 400kW will do")
    add(
        "--power-of", type=design, metavar="DESIGN",
        help="at most the power of these servers uncapped, as in H100:40 or HH:25/15",
    )  # fmt: skip
    add(
        "--power-units", choices=UNITS, default=UNITS[0],
        help="watts: what a budget charges a server; splitwise: the paper's provisioned units, for its own four pairs",
    )  # fmt: skip
    add("--usd-per-hour", type=positive, metavar="USD", help="at most this price")
    add("--price", type=price, action="append", default=[], metavar="GPU=USD", help="price of a server of 8 per hour")
    add("--servers", type=count, metavar="N", help="at most so many servers of 8 GPUs")
    add(
        "--gpus", metavar="A,B",
        help=f"GPUs to choose from: {', '.join(GPUS_2026)}, or of --profile; default: those of --profile, else {DEFAULT_GPU}",
    )  # fmt: skip
    add(
        "--profile", type=profile_file, action="append", default=[], metavar="FILE",
        help="your own servers: PowerProfiles as YAML, or a timing table (.csv); may be given more than once",
    )  # fmt: skip
    add(
        "--fit-error", type=percent, default=FIT_ERROR * 100, metavar="PERCENT",
        help="how far the fit may miss a row of a timing table (%(default)g)",
    )  # fmt: skip
    add("--model", default=MODEL_2026, help="served model (%(default)s)")
    add("--slo", choices=("splitwise",), help="Splitwise's nine slowdowns; needs a model with tables of 2023")
    add("--ttft-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 2000, with bloom-176b Splitwise's nine SLOs")
    add("--tbt-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 100, with bloom-176b Splitwise's nine SLOs")
    add("--margin", type=percent, default=3.0, metavar="PERCENT", help="how far below each SLO to stay (%(default)s)")
    add("--seconds", type=positive, default=120.0, help="length of each list of requests (%(default)s)")
    add("--step", type=positive, default=5.0, help="grid of rates, requests per second (%(default)s)")
    add("--seed", type=int, default=1, help="seed of the list that the search sees (%(default)s)")
    add("--check", type=count, default=5, metavar="N", help="lists not searched on, for the best design (%(default)s)")
    add("--servers-per-rack", type=count, metavar="N", help="also say what each rack of the best design is charged and draws")
    add("--name", type=object_name, default="plan", help="name of the objects (%(default)s)")
    add("--namespace", type=object_name, default="default", help="namespace of the InferenceCluster and the Job (%(default)s)")
    add("--out", type=Path, default=Path("out/plan"), metavar="DIR", help="plan.json, plan.png, plan.yaml (%(default)s)")
    add("--jobs", type=count, default=os.cpu_count() or 1, help="processes (%(default)s)")
    sweep = parser.add_argument_group("a sweep in shards", "Give every other option alike to each shard and to the merge.")
    ways = sweep.add_mutually_exclusive_group()
    ways.add_argument("--shard", type=shard, metavar="I/N", help="search only every N-th pair of servers, from the I-th on")
    sweep.add_argument("--shards-dir", type=Path, metavar="DIR", help="folder of the shards' results")
    ways.add_argument("--merge", type=Path, metavar="DIR", help="make the plan from the results of all shards in this folder")
    ways.add_argument("--on-kubernetes", action="store_true", help="write a Job that searches the shards in pods; apply nothing")
    job = parser.add_argument_group("with --on-kubernetes")
    job.add_argument("--shards", type=count, metavar="N", help="pods; default: one for each pair of servers, at most 16")
    job.add_argument("--image", type=image_name, help="image of images/Containerfile.sim; default: splitwatt-sim of this version")
    job.add_argument("--claim", type=claim_name, metavar="PVC", help="an existing claim for the results; default: make one")
    job.add_argument("--trace-claim", type=claim_name, metavar="PVC", help="claim that holds the file of --requests at its root")
    job.add_argument("--output", type=Path, metavar="FILE", help="the manifest; default: sweep.yaml in --out")


def search_of(args: argparse.Namespace) -> Search:
    """Raises TableError and TraceError, with what is wrong in the options before the trace is read."""
    if not any((args.rate, args.watts, args.power_of, args.usd_per_hour, args.servers)):
        raise TraceError("say what may be spent (--watts, --power-of, --usd-per-hour or --servers) or what must be held (--rate)")
    catalogue = Catalogue(args.model, tuple(args.profile), args.fit_error / 100)
    catalogue.check()
    limits = Limits(
        charge_w=min(args.watts or math.inf, math.inf if args.power_of is None else uncapped_w(args.power_of, catalogue)),
        usd_per_hour=args.usd_per_hour or math.inf,
        **({"servers": args.servers} if args.servers else {}),
    )
    gpus = _gpus(args, catalogue)
    for gpu in gpus:
        catalogue.gpu(gpu)
    try:
        usd_per_hour = {catalogue.name_of(gpu): usd for gpu, usd in args.price}
    except TableError as error:
        raise TableError(f"--price: {error}") from error
    return Search(
        model=args.model,
        gpus=gpus,
        slo=_slo(args),
        limits=limits,
        rate_rps=args.rate,
        sizes=_sizes(args),
        seconds=args.seconds,
        seed=args.seed,
        step_rps=args.step,
        usd_per_hour=usd_per_hour,
        catalogue=catalogue,
    )


def _gpus(args: argparse.Namespace, catalogue: Catalogue) -> tuple[str, ...]:
    if args.gpus is None:
        return tuple(catalogue.given()) or (DEFAULT_GPU,)
    wanted = [part.strip() for part in args.gpus.split(",") if part.strip()]
    if not wanted:
        raise TableError(f"--gpus names no GPU; choose from {', '.join(catalogue.names())}")
    return tuple(dict.fromkeys(catalogue.name_of(name) for name in wanted))


def _sizes(args: argparse.Namespace) -> Arrivals:
    if args.requests is not None:
        return read_arrivals(args.requests)
    return generated(requests_per_s=10.0, seconds=GENERATED_S, seed=args.seed)


def charged_by(args: argparse.Namespace, limits: Limits) -> str:
    """The option that limits the charge."""
    return "--watts" if limits.charge_w == args.watts else "--power-of"


def check_folders(args: argparse.Namespace) -> None:
    """Before minutes of search: that their result can be written. Raises TableError."""
    for name in ("out", "shards_dir"):
        path: Path | None = getattr(args, name)
        there = None if path is None else next((p for p in (path, *path.parents) if p.exists()), None)
        if there is not None and not there.is_dir():
            raise TableError(f"--{name.replace('_', '-')} wants a folder, and {there} is a file: name another one")


def check_model(model: str) -> None:
    """Raises TableError that lists the models."""
    known = (MODEL_2026, *sorted(builtin_tables().shapes))
    if model not in known:
        raise TableError(f"--model {model} is not known; choose from {', '.join(known)}")


def check_lists(args: argparse.Namespace, goal: Goal) -> None:
    """Raises TableError where the first list of a search would hold no request."""
    option, rate_rps = ("--rate", args.rate) if args.rate else ("--step", args.step)
    if not len(goal.arrivals(rate_rps)):
        raise TableError(
            f"a list of {args.seconds:g} s at {rate_rps:g} requests/s holds no request: give a larger {option}, or more --seconds"
        )


def check_servers(args: argparse.Namespace, limits: Limits, whole: Sequence[Item]) -> None:
    """Raises TableError where a limit leaves room for more servers than a plan may have: the count would be the limit then, and
    nobody asked for that one."""
    if args.servers is not None:
        if args.servers > MAX_SERVERS:
            raise TableError(f"--servers is {args.servers}, and a plan has at most {MAX_SERVERS} servers: give less")
        return
    if args.rate is not None:  # the least fleet fills no limit
        return
    options = [o for item in whole for o in (item.servers.prefill, item.servers.decode) if o is not None]
    holds: list[tuple[float, str, str]] = []
    if math.isfinite(limits.charge_w):
        leanest_w = min(o.charge_w for o in options)
        holds.append((limits.charge_w / leanest_w, charged_by(args, limits), f"{limits.charge_w:.0f}"))
    if math.isfinite(limits.usd_per_hour):
        cheapest = min(o.usd_per_hour for o in options)
        holds.append((limits.usd_per_hour / cheapest, "--usd-per-hour", f"{limits.usd_per_hour:g}"))
    servers, option, most = min(holds, default=(0.0, "", ""))
    if math.floor(servers + 1e-9) > MAX_SERVERS:
        raise TableError(
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


def _slo(args: argparse.Namespace) -> Slo:
    margin = args.margin / 100
    if args.slo is not None and (args.ttft_p99_ms is not None or args.tbt_p99_ms is not None):
        raise TableError("--slo splitwise and SLOs in milliseconds exclude each other: leave one of them out")
    if args.slo is not None and args.model == MODEL_2026:
        raise TableError(f"--slo splitwise counts by tables of 2023, and {args.model} has none: add --model bloom-176b")
    if args.model != MODEL_2026:
        return Slo(args.ttft_p99_ms, args.tbt_p99_ms, margin)
    return Slo(args.ttft_p99_ms or DEFAULT_TTFT_MS, args.tbt_p99_ms or DEFAULT_TBT_MS, margin)


def said_again(args: argparse.Namespace, *, requests: str | None, profiles: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """A command line, from `plan` on, that asks for the same search; files under the paths that they have where it is typed.
    `also`: further options of `WRITTEN`. What is at its default is left out."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    line = ["plan"]
    if requests is not None:
        line += ["--requests", requests]
    for path in profiles:
        line += ["--profile", path]
    if args.gpus is not None:
        line += ["--gpus", args.gpus]
    for gpu, usd in args.price:
        line += ["--price", f"{gpu}={_number(usd)}"]
    for name in ("fit_error", *SEARCHED, *also):
        value = getattr(args, name)
        if value != parser.get_default(name):
            line += [f"--{name.replace('_', '-')}", _number(value) if isinstance(value, float) else str(value)]
    return line


def _number(value: float) -> str:
    """To the last bit, and as people write it."""
    return repr(value).removesuffix(".0")
