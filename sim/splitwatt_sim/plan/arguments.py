"""The command line of `splitwatt plan`: what each option may say, the options as typed values, and the way back to a line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from splitwatt_sim.plan.command_options import (
    Before,
    JobOptions,
    OutputOptions,
    PlanOptions,
    PowerUnits,
    SearchOptions,
    ShardOptions,
)
from splitwatt_sim.plan.memory import Consent
from splitwatt_sim.plan.options import GPUS_2026
from splitwatt_sim.plan.resolve import DEFAULT_GPU
from splitwatt_sim.plan.shards import MAX_SHARDS, Shard
from splitwatt_sim.servers.designs import Design, DesignError, parse_design
from splitwatt_sim.servers.profile_files import ProfileFile, read_profile_file
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.told import add_part_arguments

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_SLO_MS: Final = 600_000.0
MAX_NAME: Final = 40
MAX_CLAIM_NAME: Final = 253
Options = TypeVar("Options", bound="DataclassInstance")


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def not_below_0(text: str) -> float:
    try:
        return 0.0 if float(text) == 0.0 else positive(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"must be a number from 0, not {text}") from None


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
    """Each option under the name of its field."""
    whole = PlanOptions()
    search, output = whole.search, whole.output
    add = parser.add_argument
    add("--requests", "--trace", type=Path, metavar="FILE", help="requests whose sizes are drawn from; default: a generator")
    add_part_arguments(parser)
    add(
        "--rate", dest="rate_rps", type=positive, metavar="R",
        help="requests per second to hold; without it: as many as the limits allow",
    )  # fmt: skip
    add(
        "--watts", "--power", dest="charge_w", type=watts, metavar="W",
        help="at most this much power, as a budget charges it; 400kW will do",
    )  # fmt: skip
    add(
        "--power-of", type=design, metavar="DESIGN",
        help="at most the power of these servers uncapped, as in H100:40 or HH:25/15",
    )  # fmt: skip
    add(
        "--power-units", choices=[unit.value for unit in PowerUnits], default=whole.power_units.value,
        help="watts: what a budget charges a server; splitwise: now `splitwatt papers plan`, and still found from here",
    )  # fmt: skip
    add("--usd-per-hour", type=positive, metavar="USD", help="at most this price")
    add(
        "--price", dest="prices", type=price, action="append", default=[], metavar="GPU=USD",
        help="price of a server of 8 per hour",
    )  # fmt: skip
    add("--servers", type=count, metavar="N", help="at most so many servers of 8 GPUs")
    add(
        "--gpus", metavar="A,B",
        help=f"GPUs to choose from: {', '.join(GPUS_2026)}, or of --profile; default: those of --profile, else {DEFAULT_GPU}",
    )  # fmt: skip
    add(
        "--profile", dest="profiles", type=profile_file, action="append", default=[], metavar="FILE",
        help="your own servers: PowerProfiles as YAML, or a timing table (.csv); may be given more than once",
    )  # fmt: skip
    add(
        "--fit-error", dest="fit_error_percent", type=percent, default=search.fit_error_percent, metavar="PERCENT",
        help="how far the fit may miss a row of a timing table (%(default)g)",
    )  # fmt: skip
    add("--model", default=search.model, help="served model (%(default)s)")
    add("--slo", choices=("splitwise",), help="Splitwise's nine slowdowns; needs a model with tables of 2023")
    add("--ttft-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 2000, with bloom-176b Splitwise's nine SLOs")
    add("--tbt-p99-ms", type=milliseconds, metavar="MS", help="SLO; default 100, with bloom-176b Splitwise's nine SLOs")
    add(
        "--kv-link-gbytes", dest="kv_gigabytes_per_s", type=positive, metavar="GB/S",
        help="speed of each server's link for KV caches; caches then move after the prefill, whole; default: as measured",
    )  # fmt: skip
    add("--kv-link-latency-ms", dest="kv_latency_ms", type=not_below_0, metavar="MS", help="on top for each cache (0)")
    add_list_arguments(parser, search)
    add_output_arguments(parser, output)
    add("--servers-per-rack", type=count, metavar="N", help="also say what each rack of the best design is charged and draws")
    add(
        "--router", type=Before, choices=list(Before), default=whole.router,
        help="who stands before the pools; own: a third pool goes into plan.yaml where it helps (%(default)s)",
    )  # fmt: skip
    add(
        "--memory-expansion", type=Consent, choices=list(Consent),
        help="also say what more memory would do to the decode pool; lossy: a KV cache of fewer bits may be taken",
    )  # fmt: skip
    add("--jobs", dest="processes", type=count, default=whole.processes, help="processes (%(default)s)")
    sweep = parser.add_argument_group("a sweep in shards", "Give every other option alike to each shard and to the merge.")
    ways = sweep.add_mutually_exclusive_group()
    ways.add_argument("--shard", type=shard, metavar="I/N", help="search only every N-th pair of servers, from the I-th on")
    sweep.add_argument("--shards-dir", type=Path, metavar="DIR", help="folder of the shards' results")
    ways.add_argument("--merge", type=Path, metavar="DIR", help="make the plan from the results of all shards in this folder")
    ways.add_argument("--on-kubernetes", action="store_true", help="write a Job that searches the shards in pods; apply nothing")
    job = parser.add_argument_group("with --on-kubernetes")
    job.add_argument("--shards", type=count, metavar="N", help="pods; default: one for each pair of servers, at most 16")
    job.add_argument(
        "--image", type=image_name, help="of the target sim of `make images`; default: localhost/splitwatt-sim:VERSION"
    )
    job.add_argument("--claim", type=claim_name, metavar="PVC", help="an existing claim for the results; default: make one")
    job.add_argument("--trace-claim", type=claim_name, metavar="PVC", help="claim that holds the file of --requests at its root")
    job.add_argument("--output", type=Path, metavar="FILE", help="the manifest; default: sweep.yaml in --out")


def add_list_arguments(parser: argparse.ArgumentParser, default: SearchOptions) -> None:
    """How lists of requests are drawn, and how far from the SLOs a rate has to stay."""
    add = parser.add_argument
    add(
        "--margin", dest="margin_percent", type=percent, default=default.margin_percent, metavar="PERCENT",
        help="how far below each SLO to stay (%(default)s)",
    )  # fmt: skip
    add(
        "--seconds", dest="list_s", type=positive, default=default.list_s, metavar="SECONDS",
        help="length of each list of requests (%(default)s)",
    )  # fmt: skip
    add(
        "--step", dest="step_rps", type=positive, default=default.step_rps, metavar="STEP",
        help="grid of rates, requests per second (%(default)s)",
    )  # fmt: skip
    add("--seed", type=int, default=default.seed, help="seed of the list that the search sees (%(default)s)")


def add_output_arguments(parser: argparse.ArgumentParser, default: OutputOptions) -> None:
    """How a plan is checked, named and written."""
    add = parser.add_argument
    add(
        "--check", dest="checked", type=count, default=default.checked, metavar="N",
        help="lists not searched on, for the best design (%(default)s)",
    )  # fmt: skip
    add("--name", type=object_name, default=default.name, help="name of the objects (%(default)s)")
    add(
        "--namespace", type=object_name, default=default.namespace,
        help="namespace of the InferenceCluster and the Job (%(default)s)",
    )  # fmt: skip
    add("--out", type=Path, default=default.out, metavar="DIR", help="plan.json, plan.png, plan.yaml (%(default)s)")


def taken(kind: type[Options], args: argparse.Namespace) -> Options:
    """The options of one kind, by the names of its fields."""
    given = {field.name: getattr(args, field.name) for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def options_of(args: argparse.Namespace) -> PlanOptions:
    return PlanOptions(
        search=taken(SearchOptions, args),
        output=taken(OutputOptions, args),
        sharding=taken(ShardOptions, args),
        job=taken(JobOptions, args),
        servers_per_rack=args.servers_per_rack,
        router=args.router,
        memory_expansion=args.memory_expansion,
        on_kubernetes=args.on_kubernetes,
        power_units=PowerUnits(args.power_units),
        processes=args.processes,
    )


def flags() -> Mapping[str, str]:
    """Field -> its option on the command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    # argparse lists its options nowhere else.
    return {action.dest: action.option_strings[0] for action in parser._actions}


def said(options: DataclassInstance, *, only: Sequence[str] | None = None, **instead: Any) -> list[str]:
    """The options that are not at their default, as they are typed. `only`: these fields; `instead`: other values for some."""
    flag, default = flags(), type(options)()
    line: list[str] = []
    for field in fields(options):
        value = instead.get(field.name, getattr(options, field.name))
        if (only is None or field.name in only) and value != getattr(default, field.name):
            for one in value if isinstance(value, tuple) else (value,):
                line += [flag[field.name], _word(one)]
    return line


def said_again(options: PlanOptions, *, requests: str | None, profiles: Sequence[str], with_output: bool = False) -> list[str]:
    """A command line, from `plan` on, that asks for the same search; files under the paths that they have where it is typed.
    `with_output`: and that makes the same of it."""
    line = ["plan", *said(options.search, requests=requests, profiles=tuple(profiles))]
    return (
        [*line, *said(options.output), *said(options, only=("servers_per_rack", "router", "memory_expansion"))]
        if with_output
        else line
    )


def _word(value: object) -> str:
    """Numbers to the last bit, and as people write them."""
    if isinstance(value, tuple):
        gpu, usd = value
        return f"{gpu}={_word(usd)}"
    if isinstance(value, ProfileFile):
        return str(value.path)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
