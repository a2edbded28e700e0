"""`make property-long`: a million transitions of `support.swarm`, over as many processes as there are cores.

Every walk is a seed. A seed that fails is printed at once, with what was violated and the command that plays it again. The table
of what happened, the seeds and the seconds come at the end, and flat in out/property.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from support.swarm import EVENTS, walk
from support.vanishing import VANISHING

say = Console(markup=False, highlight=False, soft_wrap=True).print
OUT: Final = Path("out/property.json")
TOLD_EVERY_S: Final = 15.0
"""Between two lines of progress."""
WALKS_AT_ONCE: Final = 20
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
        except Exception as error:  # noqa: BLE001  # whatever it raises fails its own walk, and is told with its seed
            trace = "".join(traceback.format_exception(error)[-6:])
            tally.failures[seed] = f"seed {seed}: {type(error).__name__}\n{trace}"
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
    tally, started, told_s = Tally(), time.monotonic(), 0.0
    with ProcessPoolExecutor(processes, initializer=_begin) as pool:
        for part in pool.map(play, chunks(first, walks)):
            tally.add(part)
            for seed, text in sorted(part.failures.items()):
                say(f'{text}\nagain: make property-long ARGS="--seed {seed}"\n')
            past_s = time.monotonic() - started
            if past_s - told_s >= TOLD_EVERY_S:
                told_s, done = past_s, tally.events.total()
                failed = f"{len(tally.failures)} of {tally.walks} walks failed"
                say(f"{past_s:4.0f} s: {done} transitions, {done / past_s:.0f} a second, {failed}")
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
        failures = play(range(asked.seed, asked.seed + 1)).failures
        say(failures.get(asked.seed, f"seed {asked.seed}: nothing violated"))
        return 1 if failures else 0
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
        "transitions_per_s": round(tally.events.total() / seconds),
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
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
