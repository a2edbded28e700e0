"""`splitwatt faults`: play all scenes and some random pairs, and say what broke."""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from splitwatt_nvml_twin.build import BuildError

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.catalogue import SCENES
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.play import play
from splitwatt_lab.faults.report import line, rewrite, summary, table, write_json
from splitwatt_lab.faults.scene import Scene, draw_pairs, pair_of
from splitwatt_lab.faults.verdict import Outcome
from splitwatt_lab.site import repository
from splitwatt_lab.toolbuild import Console as BuildConsole

PAIRS: Final = 30
GUILTY: Final = 1
FAILED: Final = 2
HEALTHY_S: Final = 20.0
SITES: Final = 3
"""A site waits most of the time: it takes less than half a core."""
JOINED: Final = " + "
LOGS: Final = "faults-logs"
PR_SET_PDEATHSIG: Final = 1
"""Linux, sys/prctl.h."""


class FaultsCommand:
    help = "do every known fault to real processes on this machine, alone and in pairs, and judge the budgets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        number = parser.add_argument
        number("--seed", type=int, default=1, help="of the pairs and of what scenes choose (%(default)s)")
        number("--only", metavar="NAMES", help=f"scenes by name, with commas; a pair as 'one{JOINED}other'")
        number("--pairs", type=int, default=PAIRS, metavar="N", help="random pairs after the scenes (%(default)s)")
        number(
            "--sites",
            type=int,
            choices=range(1, 9),
            default=SITES,
            metavar="N",
            help="sites that play at the same time (%(default)s)",
        )
        number("--list", action="store_true", help="print the scenes and what each promises, and play none")
        number("--out", type=Path, default=Path("out"), metavar="DIR", help="faults.json and logs (%(default)s)")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False, soft_wrap=True)
        if args.list:
            for scene in SCENES.values():
                console.print(f"{scene.name:44}  {scene.group:10}  {scene.promise}")
            return 0
        try:
            scenes = chosen(args.only, pairs=args.pairs, seed=args.seed)
            outcomes, minutes = run_sites(scenes, args.out.resolve(), seed=args.seed, sites=args.sites)
            if args.only is None:
                page = repository() / "docs" / "safety.md"
                rewrite(page, table(outcomes, date=time.strftime("%Y-%m-%d"), seed=args.seed))
        except (LabError, BuildError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt faults: {error}", soft_wrap=True)
            return FAILED
        said = summary(outcomes, seed=args.seed, minutes=minutes)
        del said["outcomes"]
        for name, value in said.items():
            console.print(f"{name}: {value}")
        return GUILTY if said["failed"] else 0


def chosen(only: str | None, *, pairs: int, seed: int) -> list[Scene]:
    """The scenes to play, in order. Raises LabError naming one that is not there."""
    if only is None:
        return [*SCENES.values(), *draw_pairs(tuple(SCENES.values()), pairs, random.Random(f"{seed}/pairs"))]
    return [named(wanted) for wanted in filter(None, (name.strip() for name in only.split(",")))]


def named(name: str) -> Scene:
    """A scene by its name, or a pair by both. Raises LabError naming one that is not there."""
    parts = [part.strip() for part in name.split(JOINED)]
    if unknown := [part for part in parts if part not in SCENES]:
        raise LabError(f"there is no scene {unknown[0]!r}; `splitwatt faults --list` prints all of them")
    scene = SCENES[parts[0]]
    for part in parts[1:]:
        scene = pair_of(scene, SCENES[part])
    return scene


def run_sites(scenes: Sequence[Scene], out: Path, *, seed: int, sites: int) -> tuple[list[Outcome], float]:
    """Play them on several sites at the same time, those that want to be alone last. Returns the outcomes in the scenes' order,
    and the minutes it took."""
    started_s = time.monotonic()
    shutil.rmtree(out / LOGS, ignore_errors=True)
    beside = [scene for scene in scenes if not scene.alone]
    shares = [share for share in (beside[k::sites] for k in range(sites)) if share]
    shares.append([scene for scene in scenes if scene.alone])
    found: dict[str, Outcome] = {}
    with pool(sites) as players:
        work = [
            players.submit(run_scenes, [s.name for s in share], out / LOGS / f"part-{k}", seed=seed)
            for k, share in enumerate(shares[:-1], 1)
        ]
        for part in work:
            found |= {outcome.name: outcome for outcome in part.result()}
    with pool(1) as players:
        found |= {
            o.name: o for o in players.submit(run_scenes, [s.name for s in shares[-1]], out / LOGS / "alone", seed=seed).result()
        }
    outcomes = [found[scene.name] for scene in scenes]
    minutes = (time.monotonic() - started_s) / 60
    write_json(outcomes, out / "faults.json", seed=seed, minutes=minutes)
    return outcomes, minutes


def pool(sites: int) -> ProcessPoolExecutor:
    """Processes that each play one site."""
    return ProcessPoolExecutor(sites, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),))


def end_with(parent: int) -> None:
    """A site ends with who began it, however that ends, and its own processes with it: their supervisor sees the pipe close."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be said
        os.kill(os.getpid(), signal.SIGTERM)


def run_scenes(names: Sequence[str], out: Path, *, seed: int) -> list[Outcome]:
    """Play the scenes of these names one after the other, on one site for as long as it is healthy. What was played so far
    stands in `out`."""
    console = Console(highlight=False, soft_wrap=True)
    started_s = time.monotonic()
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        ground: Ground | None = None
        for serial, name in enumerate(names, 1):
            scene = named(name)
            if ground is None:
                directory = out / f"site-{serial}"
                console.print(f"[dim]a fresh site: {directory}[/dim]")
                ground = stack.enter_context(Ground(directory, seed=seed, progress=BuildConsole()))
            outcome = play(ground, scene, random.Random(f"{seed}/{scene.name}"))
            if outcome.unproven and sound(ground):
                console.print(f"[dim]{scene.name} once more: {outcome.unseen[0]}[/dim]")
                outcome = play(ground, scene, random.Random(f"{seed}/{scene.name}"))
            outcomes.append(outcome)
            minutes = (time.monotonic() - started_s) / 60
            console.print(
                f"{minutes:5.1f} min, {serial} of {len(names)}: {line(outcome)}", style=None if outcome.passed else "red"
            )
            write_json(outcomes, out / "faults.json", seed=seed, minutes=minutes)
            if scene.fresh or not sound(ground):
                stack.pop_all().close()
                ground = None
    return outcomes


def sound(ground: Ground) -> bool:
    """Whether the next scene may be played on this site: everything runs, and all is healthy."""
    try:
        for process in ground.extra.values():
            process.kill()
        ground.extra.clear()
        ground.revive()
        return ground.until(lambda: ground.ailment() is None, within_s=HEALTHY_S) is not None
    except (LabError, OSError, httpx.TransportError):
        return False


COMMAND: Final = FaultsCommand()
