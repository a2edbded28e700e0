"""`make property-long`: a million transitions of `support.swarm`, over as many processes as there are cores.

Every walk is a seed. A seed that fails is printed with what was violated and the command that plays it again. The table of what
happened, the seeds and the seconds are printed, and written flat to out/property.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.status import Status
from support.swarm import EVENTS, walk
from support.vanishing import VANISHING

say = Console(markup=False, highlight=False, soft_wrap=True).print
OUT: Final = Path("out/property.json")
WALKS_AT_ONCE: Final = 50
"""Seeds that one process plays before it tells what came of them."""
GARBAGE_EVERY: Final = 100_000
"""Objects that are made and not dropped again, until a process looks for garbage."""
MAX_FAILURES: Final = 20
"""Failing seeds after which no more are looked for."""


@dataclass(slots=True)
class Tally:
    events: Counter[str] = field(default_factory=Counter)
    walks: int = 0
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.events += other.events
        self.walks += other.walks
        self.failures |= other.failures


def play(seeds: range) -> Tally:
    """All these walks; a failure ends its own walk alone."""
    tally = Tally()
    for seed in seeds:
        try:
            tally.events += walk(seed)
        except AssertionError as error:
            tally.failures[seed] = str(error)
        tally.walks += 1
    return tally


def _begin() -> None:
    """What is loaded stays, and most of what a walk makes dies by its reference counts: garbage is looked for rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY)


def chunks(first: int, walks: int) -> Iterator[range]:
    for at in range(first, first + walks, WALKS_AT_ONCE):
        yield range(at, min(at + WALKS_AT_ONCE, first + walks))


def search(first: int, walks: int, *, processes: int) -> Tally:
    """Play `walks` seeds from `first` on, until all are played or too many failed."""
    tally, started = Tally(), time.monotonic()
    with ProcessPoolExecutor(processes, initializer=_begin) as pool, Status("begun", console=Console(stderr=True)) as status:
        for part in pool.map(play, chunks(first, walks)):
            tally.add(part)
            status.update(f"{tally.events.total()} transitions, {len(tally.failures)} failed, {time.monotonic() - started:.0f} s")
            if len(tally.failures) >= MAX_FAILURES:
                pool.shutdown(cancel_futures=True)
                break
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    if asked.seed is not None:
        walk(asked.seed)
        say(f"seed {asked.seed}: nothing violated")
        return 0
    if asked.transitions < 1 or asked.processes < 1:
        parser.error("--transitions and --processes must be at least 1")
    started = time.monotonic()
    walks = -(-asked.transitions // EVENTS)
    tally = search(asked.first, walks, processes=asked.processes)
    tell(tally, first=asked.first, seconds=time.monotonic() - started, processes=asked.processes)
    return 1 if tally.failures else 0


def tell(tally: Tally, *, first: int, seconds: float, processes: int) -> None:
    flat: dict[str, int | float | list[int]] = {
        "transitions": tally.events.total(),
        "walks": tally.walks,
        "first_seed": first,
        "last_seed": first + tally.walks - 1,
        "seconds": round(seconds, 1),
        "processes": processes,
        "failures": len(tally.failures),
        "failed_seeds": sorted(tally.failures),
    }
    for name, number in flat.items():
        say(f"{name:24} {number}")
    say(f"\n{'event':24} {'times':>9}   * an object or a process that vanishes")
    for name, times in tally.events.most_common():
        say(f"{name:24} {times:>9}{'   *' if name in VANISHING else ''}")
        flat[f"events_{name}"] = times
    for seed, text in sorted(tally.failures.items()):
        say(f'\n{text}\nagain: make property-long ARGS="--seed {seed}"')
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
