"""A Lease, the processes that want it, and a network that delays, reorders and loses; in virtual time, on the core's own rule.

Each process has a monotonic clock of its own: any offset, and a rate that differs by up to `DRIFT`. It acts only when the walk
picks it, so between any two of its acts it may have been stopped for as long as the walk likes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.candidacy import Candidacy, life_of

DURATION_S: Final = 3
DRIFT: Final = 0.05
PAUSES_S: Final = (0.0, 0.01, 0.1, 0.3, 0.6, 1.0, 2.5, 5.0)
INSTANT_S: Final = 0.001
MAX_AWAITED_S: Final = 100.0
ACTS: Final = {
    "pause": 30,
    "look": 25,
    "take": 14,
    "renew": 20,
    "land": 45,
    "answer": 40,
    "lose": 3,
    "kill": 1,
    "release": 0.6,
    "reign over": 0.5,
    "at once": 15,
    "await": 8,
}
BY_HAND: Final = {"delete": 0.7, "clear": 0.7, "shorten": 0.5}


@dataclass(frozen=True, slots=True)
class Stored:
    version: str
    holder: str
    duration_s: float


@dataclass(slots=True)
class Request:
    """`version`: what a write is bound to, "": that there is none; None: a look. `landed`: the store has served it."""

    of: Process
    sent_s: float
    version: str | None
    holder: str = ""
    landed: bool = False
    stored: Stored | None = None
    refused: bool = False


@dataclass(slots=True)
class Process:
    """`rate`, `offset_s`: its clock. `me`: its name in the Lease, anew for each candidacy."""

    slot: int
    rate: float
    offset_s: float
    rule: Candidacy
    me: str = ""
    version: str | None = None
    """What a write of it is bound to: "" that there is no Lease, None that it knows of nothing."""
    holds: bool = False
    held_until_s: float = float("-inf")

    def now_s(self, true_s: float) -> float:
        return self.offset_s + self.rate * true_s

    def may_send(self, true_s: float) -> bool:
        return self.now_s(true_s) < self.held_until_s


@dataclass(slots=True)
class LeaseWorld:
    """`rule_of` makes the rule of a process with a life. `acts`: what may happen, and how often. What a person does by
    hand, it does once in a walk: an absence has no version, so of two deletions a slow candidate would see one."""

    random: random.Random
    rule_of: Callable[[str], Candidacy]
    acts: dict[str, float]
    lives: tuple[str, ...] = ("a" * 16, "b" * 16, "")
    now_s: float = 0.0
    lease: Stored | None = None
    versions: int = 0
    network: list[Request] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """What the walk came by."""

    def __post_init__(self) -> None:
        self.processes = [self._started(slot) for slot in range(len(self.lives))]

    def _started(self, slot: int) -> Process:
        rate = 1.0 + self.random.uniform(-DRIFT, DRIFT)
        process = Process(slot, rate, self.random.uniform(0.0, 1e6), self.rule_of(self.lives[slot]))
        self._candidate(process)
        return process

    def _candidate(self, process: Process) -> None:
        process.me = process.rule.name(f"p{process.slot}", token=f"{self.random.getrandbits(32):08x}")
        process.holds, process.version, process.held_until_s = False, None, float("-inf")

    def all_look(self) -> None:
        """Process 0 holds it, and everybody has seen that."""
        first = self.processes[0]
        for process in self.processes:
            for act in ("look", "land", "answer"):
                self.act(act, process)
            if process is first:
                for act in ("take", "land", "answer"):
                    self.act(act, process)
        assert first.may_send(self.now_s)

    def walk(self, steps: int) -> None:
        names, weights = list(self.acts), list(self.acts.values())
        for act in self.random.choices(names, weights, k=steps):
            self.act(act, self.random.choice(self.processes))
            senders = [process.slot for process in self.processes if process.may_send(self.now_s)]
            assert len(senders) <= 1, f"processes {senders} both hold the Lease at {self.now_s:.2f} s"

    def act(self, act: str, process: Process) -> None:
        now_s = process.now_s(self.now_s)
        match act:
            case "pause":
                self.now_s += self.random.choice(PAUSES_S)
            case "look" if not process.holds or not process.may_send(self.now_s):
                self.network.append(Request(process, now_s, None))
            case "take" if not process.holds and process.version is not None:
                if now_s > process.rule.vacant_from_s(me=process.me):
                    self.network.append(Request(process, now_s, process.version, process.me))
                    process.version = None  # once for each look
            case "renew" if process.holds and process.version:
                self.network.append(Request(process, now_s, process.version, process.me))
            case "release" if process.holds and process.version:
                process.held_until_s = float("-inf")
                self.network.append(Request(process, now_s, process.version, ""))
                self._candidate(process)
            case "reign over" if process.holds and not process.may_send(self.now_s):
                self._candidate(process)
            case "at once":
                self._at_once(process, now_s)
            case "await" if not process.holds:
                left_s = process.rule.vacant_from_s(me=process.me) - now_s
                if 0.0 < left_s < MAX_AWAITED_S:
                    self.now_s += left_s / process.rate + INSTANT_S
            case "kill":
                self.processes[process.slot] = self._started(process.slot)  # what it sent is still under way
                self.seen["killed"] += 1
            case "land" | "answer" | "lose":
                self._network(act, process)
            case "delete" if self.lease is not None and not self.seen["by hand"]:
                self.lease = None
                self.seen["by hand"] += 1
            case "clear" | "shorten" if self.lease is not None and not self.seen["by hand"]:
                self.versions += 1
                self.seen["by hand"] += 1
                holder, duration_s = ("", self.lease.duration_s) if act == "clear" else (self.lease.holder, 0.1)
                self.lease = Stored(str(self.versions), holder, duration_s)

    def _at_once(self, process: Process, now_s: float) -> None:
        """What it would do now, over a network without delay."""
        if process.holds:
            asked = Request(process, now_s, process.version, process.me) if process.version else None
        elif process.version is not None and now_s > process.rule.vacant_from_s(me=process.me):
            asked, process.version = Request(process, now_s, process.version, process.me), None
        else:
            asked = Request(process, now_s, None)
        if asked is not None:
            self._land(asked)
            self._answer(asked, lost=False)

    def _network(self, act: str, process: Process) -> None:
        under_way = [request for request in self.network if request.of is process or self.random.random() < 0.2]
        if not under_way:
            return
        request = self.random.choice(under_way)
        if act == "land" and not request.landed:
            self._land(request)
        elif act == "lose" or (act == "answer" and request.landed):
            self.network.remove(request)
            if request.of in self.processes:
                self._answer(request, lost=act == "lose")
            if act == "lose" and not request.landed and self.random.random() < 0.5:
                self._land(request)  # it lands all the same; nobody hears of it

    def _land(self, request: Request) -> None:
        request.landed = True
        if request.version is not None:
            request.refused = request.version != (self.lease.version if self.lease else "")
            if not request.refused:
                self.versions += 1
                duration_s = float(request.of.rule.duration_s) if request.holder else float(request.of.rule.given_up_duration_s())
                self.lease = Stored(str(self.versions), request.holder, duration_s)
        request.stored = self.lease

    def _answer(self, request: Request, *, lost: bool) -> None:
        """As `HeldLease` takes it."""
        process, stored = request.of, request.stored
        now_s = process.now_s(self.now_s)
        if request.version is None:
            if lost:
                process.rule.unheard()
            elif not process.holds:
                self._saw(process, stored, now_s)
            elif stored is None or stored.holder != process.me:
                self._candidate(process)
            else:
                process.version = stored.version
        elif not lost and not request.refused and request.holder == process.me:
            assert stored is not None
            if not process.holds:
                self.seen["taken"] += 1
                process.rule.taken()
            process.holds, process.version = True, stored.version
            process.held_until_s = request.sent_s + process.rule.hold_s

    def _saw(self, process: Process, stored: Stored | None, now_s: float) -> None:
        if stored is None:
            process.rule.saw("", "", 0.0, now_s=now_s)
        else:
            process.rule.saw(stored.version, stored.holder, stored.duration_s, now_s=now_s)
            if stored.holder != process.me and process.rule.life and life_of(stored.holder) == process.rule.life:
                self.seen["found its own former life"] += 1
        process.version = "" if stored is None else stored.version
