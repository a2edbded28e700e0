"""`splitwatt memprofile`: how far tensors compress as GPU memory would, under three codecs, and what a link costs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from splitwatt_memory import report
from splitwatt_memory.files.opened import tensors_in
from splitwatt_memory.files.tensor import Tensor, TensorFileError
from splitwatt_memory.links import LINKS, MEMORIES, LinkError, LinkSpeed
from splitwatt_memory.plot import FORMS, draw
from splitwatt_memory.profile import Allocations, MemoryProfile, ProfileOptions, profile_of, work_bytes
from splitwatt_memory.targets import THRESHOLD
from splitwatt_memory.values import TARGETS, TYPES

FAILED: Final = 2
MEBIBYTE: Final = 1 << 20


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of entries from 0 to 1, not {text}")
    return value


def link(text: str) -> LinkSpeed:
    name, given, gigabytes = text.partition("=")
    try:
        if given and name:
            return LinkSpeed(name, float(gigabytes) * 1e9, "given")
        return LINKS[name]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(LINKS)}, or NAME=GB/S with gigabytes per second above 0, not {text}"
        ) from None


def memory(text: str) -> float:
    if text in MEMORIES:
        return MEMORIES[text]
    try:
        return positive(text) * 1e9
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(MEMORIES)}, or gigabytes per second, not {text}") from None


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in FORMS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMS)}, not {text}")
    return path


class MemprofileCommand:
    help = "measure how far tensors in files compress as GPU memory would (Buddy Compression), and say so where they do not"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("files", nargs="+", type=Path, metavar="FILE", help=".safetensors, .npz, .npy, .gguf; any other is a raw array")
        add("--as", dest="wanted", choices=TARGETS, help="turn floats into this type first")
        add("--dtype", choices=list(TYPES), help="what raw arrays hold, and unsigned NumPy arrays of that size")
        add("--only", type=pattern, metavar="REGEX", help="only tensors whose names have this")
        add("--threshold", type=share, default=THRESHOLD, metavar="SHARE",
            help="Buddy Threshold: entries of an allocation that may overflow (%(default)s)")  # fmt: skip
        add("--allocations", type=Allocations, choices=list(Allocations), default=Allocations.TENSOR,
            help="what shares target and exponent code: a tensor, a part of all layers, or a file (%(default)s)")  # fmt: skip
        add("--snapshots", action="store_true", help="files are moments of one run: the worst of them counts")
        add("--sample-mebibytes", type=positive, metavar="MIB", help="read at most so much of each tensor, spread over it")
        add("--link", dest="links", type=link, action="append", default=[], metavar="NAME[=GB/S]",
            help=f"link to buddy memory: {', '.join(LINKS)} (all), or a bandwidth of your own; as often as needed")  # fmt: skip
        add("--memory", type=memory, default=MEMORIES["H100"], metavar="GPU|GB/S",
            help=f"bandwidth of the GPU's own memory: {', '.join(MEMORIES)} (H100), or gigabytes per second")  # fmt: skip
        add("--json", type=Path, metavar="FILE", help="all figures, for every tensor and allocation")
        add("--picture", type=picture, metavar="FILE", help="sizes of entries as a .png or .svg")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        try:
            return memprofile(args, console)
        except (TensorFileError, LinkError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt memprofile: {error}", soft_wrap=True, markup=False)
            return FAILED


def memprofile(args: argparse.Namespace, console: Console) -> int:
    """Raises TensorFileError, OSError."""
    _check(args)
    held = None if args.dtype is None else TYPES[args.dtype]
    moments = [_chosen(tensors_in(path, held), args.only, path) for path in args.files]
    options = ProfileOptions(
        wanted=None if args.wanted is None else TYPES[args.wanted],
        threshold=args.threshold,
        allocations=args.allocations,
        snapshots=args.snapshots,
        sample_bytes=None if args.sample_mebibytes is None else int(args.sample_mebibytes * MEBIBYTE),
    )
    profile = _with_progress(moments, options, console)
    links = args.links or list(LINKS.values())
    console.print(report.table(profile))
    if profile.left_alone:
        console.print(f"{profile.left_alone} tensors are no floats and stayed as they are: --as speaks of floats")
    if profile.sampled:
        console.print("a part of each large tensor was read, as --sample-mebibytes says")
    for line in report.verdicts(profile, links, args.memory):
        console.print(line, soft_wrap=True, markup=False)
    if args.json is not None:
        given = {
            "files": [str(path) for path in args.files],
            "as": args.wanted,
            "threshold": args.threshold,
            "allocations_are": str(args.allocations),
        }
        report.write(report.figures(profile, links, args.memory, given), args.json)
        console.print(f"written: {args.json}", soft_wrap=True, markup=False)
    if args.picture is not None:
        title = ", ".join(path.name for path in args.files) + ("" if args.wanted is None else f" as {args.wanted}")
        draw(profile, args.picture, title=title)
        console.print(f"written: {args.picture}", soft_wrap=True, markup=False)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Before anything long is begun."""
    for option, path in (("--json", args.json), ("--picture", args.picture)):
        if path is not None and not path.parent.is_dir():
            raise TensorFileError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if len(set(args.files)) < len(args.files):
        raise TensorFileError("a file is named twice: leave one of them out")


def _chosen(tensors: Sequence[Tensor], only: re.Pattern[str] | None, path: Path) -> list[Tensor]:
    found = [tensor for tensor in tensors if only is None or only.search(tensor.name)]
    if not found:
        assert only is not None, f"{path} has no tensor"
        raise TensorFileError(f"{path}: none of its {len(tensors)} tensors has {only.pattern!r} in its name")
    return found


def _with_progress(moments: Sequence[Sequence[Tensor]], options: ProfileOptions, console: Console) -> MemoryProfile:
    if not console.is_terminal:
        return profile_of(moments, options)
    columns = (TextColumn("measuring"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=work_bytes(moments, options))
        return profile_of(moments, options, lambda done: progress.advance(task, done))


COMMAND = MemprofileCommand()
