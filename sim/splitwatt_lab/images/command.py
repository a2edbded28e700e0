"""`python -m splitwatt_lab.images`: builds images, puts archives below out/images, and on demand starts and measures them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console as Terminal
from rich.table import Table

from splitwatt_lab.errors import LabError
from splitwatt_lab.images import bases, checks, engines
from splitwatt_lab.images.catalogue import CONTAINERFILE, IMAGES, LOCAL, OUT, Image
from splitwatt_lab.images.engines import ContainerEngine, Tick
from splitwatt_lab.site import repository
from splitwatt_lab.toolbuild import BuildStep, Console

OFFICIAL: Final = "docker.io/library/python:3.11-slim-bookworm"
FIGURES: Final = Path("out") / "images.json"
AUTHORITIES_VARIABLE: Final = "PIP_CERT"
_PASSED_ON: Final = (AUTHORITIES_VARIABLE, "PIP_INDEX_URL")
"""What tells pip of a machine where packages come from tells that of a build too."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with code 2 and a sentence on a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="make images", description="Builds Splitwatt's images; archives of them lie in out/images."
    )
    names = [image.name for image in IMAGES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--engine", default=os.environ.get("ENGINE", ""), help="docker, podman or buildah; default: what is here")
    parser.add_argument("--registry", default=os.environ.get("REGISTRY") or LOCAL, help="what names begin with (%(default)s)")
    parser.add_argument(
        "--base", default=os.environ.get("BASE", ""), metavar="IMAGE", help=f"what runs stands on it ({OFFICIAL})"
    )
    parser.add_argument(
        "--build-base", default=os.environ.get("BUILD_BASE", ""), metavar="IMAGE",
        help="the same Python with venv, and what is compiled needs; default: as --base",
    )  # fmt: skip
    parser.add_argument(
        "--own-base", action="store_true", help="make both bases of Debian's packages by mmdebstrap, once; no registry is asked"
    )
    parser.add_argument("--fresh-base", action="store_true", help="the same, anew, with the packages of today")
    parser.add_argument(
        "--only-base", action="store_true", help="make the own bases, print their names, and build nothing on them"
    )
    parser.add_argument(
        "--image-args", type=shlex.split, default=os.environ.get("IMAGE_ARGS", ""), metavar="ARGS",
        help="added to the engine's build command, for example '--volume /etc/pki/ca.pem:/etc/ssl/certs/ca-certificates.crt:ro'",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="start each in a container until it has done the first step of its work"
    )
    parser.add_argument(
        "--report", action="store_true", help=f"the same, and print sizes, start times and memory; also in {FIGURES}"
    )
    given = parser.parse_args(arguments)
    if (given.own_base or given.fresh_base or given.only_base) and (given.base or given.build_base):
        parser.error("an own base is made, or BASE and BUILD_BASE say what there is: give one of the two")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when something did not work, with a sentence; 2 for a wrong command line."""
    given = parse(arguments)
    try:
        _run(given, repository())
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _run(given: argparse.Namespace, root: Path) -> None:
    engine = engines.find(given.engine)
    terminal = Console()
    wanted = [image for image in IMAGES if image.name in given.only]
    total = len(wanted)

    def ticker(what: str, number: int = 0) -> Tick:
        return lambda elapsed_s: terminal(BuildStep(what, number, total if number else 1, elapsed_s))

    logs = root / OUT / "logs"
    base, build_base = _bases(given, engine, logs, ticker)
    if given.only_base:
        sys.stdout.write(f"BASE={base} BUILD_BASE={build_base}\n")
        return
    for number, image in enumerate(wanted, start=1):
        log = logs / f"{image.name}-build.log"
        log.unlink(missing_ok=True)
        tick = ticker(f"{image.name} with {engine.name}", number)
        reference = image.reference(given.registry)
        arguments = ["--file", str(root / CONTAINERFILE), "--target", image.name, "--tag", reference]
        arguments += ["--build-arg", f"BASE={base}", "--build-arg", f"BUILD_BASE={build_base}"]
        engine.build([*arguments, *_of_this_machine(engine), *given.image_args, str(root)], log, tick)
        engine.save(reference, image.archive(root), log, ticker(f"the archive of {image.name}", number))
        sys.stderr.write(f"\n{reference}: {image.archive(root).relative_to(root)}\n")
    if given.check or given.report:
        runner = engine.runner()
        references = {image.name: image.reference(given.registry) for image in wanted}
        seen = checks.check(references, runner, root, stage=_say)
        if given.report:
            _report(wanted, references, seen, runner, root)


def _bases(given: argparse.Namespace, engine: ContainerEngine, logs: Path, ticker: Callable[[str], Tick]) -> tuple[str, str]:
    """What runs stands on the first, what builds on the second."""
    if given.own_base or given.fresh_base or given.only_base:
        made = [
            bases.ensure(
                base, engine, logs / f"{base.name}.log", ticker(f"{base.name} of Debian's packages"), fresh=given.fresh_base
            )
            for base in (bases.RUNTIME, bases.BUILD)
        ]
        return made[0], made[1]
    base = given.base or OFFICIAL
    build_base = given.build_base or base
    for image in dict.fromkeys((base, build_base)):
        if engine.has(image):
            continue
        try:
            engine.pull(image, logs / "pull.log", ticker(f"{image} to be here"))
        except LabError as error:
            raise LabError(
                f"{error}. Where no registry can be reached: make images ARGS=--own-base makes bases of Debian's packages, and "
                "BASE= and BUILD_BASE= name images that are here"
            ) from error
    return base, build_base


def _say(what: str) -> None:
    sys.stderr.write(f"{what} ...\n")


def _of_this_machine(engine: ContainerEngine) -> list[str]:
    arguments = [word for name in _PASSED_ON if os.environ.get(name) for word in ("--build-arg", f"{name}={os.environ[name]}")]
    authorities = os.environ.get(AUTHORITIES_VARIABLE)
    if authorities and engine.name != "docker":  # which has no such option: there BUILD_BASE has to know them
        arguments += ["--volume", f"{authorities}:{authorities}:ro"]
    return arguments


def _report(
    wanted: Sequence[Image],
    references: Mapping[str, str],
    seen: Mapping[str, checks.Started],
    engine: ContainerEngine,
    root: Path,
) -> None:
    table = Table("image", "size, MB", "archive, MB", "start, s", "first work done, s", "memory at most, MB")
    rows = []
    for image in wanted:
        row: dict[str, float | str] = {"image": image.name, "size_mb": round(engine.size_mb(references[image.name]), 1)}
        row["archive_mb"] = round(image.archive(root).stat().st_size / 1e6, 1)
        if (one := seen.get(image.name)) is not None:
            row |= {"start_s": round(one.start_s, 2), "work_s": round(one.work_s, 2), "peak_mb": round(one.peak_mb, 1)}
        rows.append(row)
        table.add_row(*(str(row.get(key, "-")) for key in ("image", "size_mb", "archive_mb", "start_s", "work_s", "peak_mb")))
    Terminal().print(table)
    target = root / FIGURES
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n")
