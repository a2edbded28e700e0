"""`splitwatt faults`: play all scenes and some random pairs, and say what broke."""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
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
JOINED: Final = " + "


class FaultsCommand:
    help = "do every known fault to real processes on this machine, alone and in pairs, and judge the budgets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        number = parser.add_argument
        number("--seed", type=int, default=1, help="of the pairs and of what scenes choose (%(default)s)")
        number("--only", metavar="NAMES", help=f"scenes by name, with commas; a pair as 'one{JOINED}other'")
        number("--pairs", type=int, default=PAIRS, metavar="N", help="random pairs after the scenes (%(default)s)")
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
            outcomes, minutes = run_scenes(scenes, args.out.resolve(), seed=args.seed, console=console)
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
    found = []
    for wanted in filter(None, (name.strip() for name in only.split(","))):
        parts = [part.strip() for part in wanted.split(JOINED)]
        if unknown := [part for part in parts if part not in SCENES]:
            raise LabError(f"there is no scene {unknown[0]!r}; `splitwatt faults --list` prints all of them")
        scene = SCENES[parts[0]]
        for part in parts[1:]:
            scene = pair_of(scene, SCENES[part])
        found.append(scene)
    return found


def run_scenes(scenes: Sequence[Scene], out: Path, *, seed: int, console: Console) -> tuple[list[Outcome], float]:
    """Play them one after the other, on one site for as long as it is healthy. Returns the outcomes and the minutes it took."""
    started_s = time.monotonic()
    outcomes: list[Outcome] = []
    logs = out / "faults-logs"
    shutil.rmtree(logs, ignore_errors=True)
    with ExitStack() as stack:
        ground: Ground | None = None
        for serial, scene in enumerate(scenes, 1):
            if ground is None:
                directory = logs / f"site-{serial}"
                console.print(f"[dim]a fresh site: {directory}[/dim]")
                ground = stack.enter_context(Ground(directory, seed=seed, progress=BuildConsole()))
            console.print(f"[dim]{serial} of {len(scenes)}, {(time.monotonic() - started_s) / 60:.1f} min: {scene.name} …[/dim]")
            outcome = play(ground, scene, random.Random(f"{seed}/{scene.name}"))
            outcomes.append(outcome)
            console.print(line(outcome), style=None if outcome.passed else "red")
            write_json(outcomes, out / "faults.json", seed=seed, minutes=(time.monotonic() - started_s) / 60)
            if scene.fresh or not sound(ground):
                stack.pop_all().close()
                ground = None
    return outcomes, (time.monotonic() - started_s) / 60


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
