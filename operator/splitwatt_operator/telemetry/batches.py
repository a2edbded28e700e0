"""Which meters are asked together, and which alone: a query a second for each of hundreds of meters costs more than all else.

A joint query that fails may fail for one of its members: one that Prometheus refuses, one that is slow, one whose series are
many. So each of its members is a suspect, and suspects are asked alone, in turn. Whoever answers goes back among the others;
the culprit stays alone for `ALONE_S` after its last failure. Where all of them answer alone it was too long for a proxy, or too
slow as a whole: so fewer are asked together for a while.

While nothing at all is answered nobody is suspected: it is the server that is away. Pure; times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_plus

MAX_TOGETHER: Final = 25
MIN_TOGETHER: Final = 4
MAX_POST_BYTES: Final = 12_000
"""Of one joint query. VictoriaMetrics takes 16 KiB (-search.maxQueryLen)."""
MAX_GET_BYTES: Final = 6_000
"""The same, as it stands in a URL: many proxies take 8 KiB with all headers."""
SLOT_BYTES: Final = 64
"""What telling one member from the others adds."""
SLOW_S: Final = 0.4
"""A query that takes longer, half of what it may, is on its way to fail."""
ALONE_S: Final = 120.0
MAX_SUSPECTS: Final = 4096
MAX_UNEXPLAINED: Final = 64
FEWER_S: Final = 60.0
"""For so long fewer are asked together, until twice as many are tried again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One query of a round: whose it was, whether it was answered, and how long that took. `blamed`: it was not, and may be to
    blame for that itself."""

    members: tuple[str, ...]
    answered: bool
    took_s: float
    blamed: bool = False


@dataclass(slots=True)
class _Suspect:
    """`until_s`: alone until then at least. `asked_s`: when it last was."""

    until_s: float = float("-inf")
    asked_s: float = float("-inf")


class Batches:
    """Meters are told by their queries; meters with the same one are one."""

    def __init__(self) -> None:
        self._suspects: dict[str, _Suspect] = {}
        self._unexplained: list[set[str]] = []
        """Of each joint query that failed, the members that did not answer alone yet, while none of them was found guilty."""
        self._most = MAX_TOGETHER
        self._fewer_until_s = float("-inf")

    def together(self, queries: Sequence[str], *, method: str, now_s: float) -> list[tuple[str, ...]]:
        """Those that nobody suspects, in their order, cut into joint queries by number and by length."""
        self._forget(queries, now_s)
        if self._most < MAX_TOGETHER and now_s >= self._fewer_until_s:
            self._most, self._fewer_until_s = min(MAX_TOGETHER, 2 * self._most), now_s + FEWER_S
        room = MAX_GET_BYTES if method == "GET" else MAX_POST_BYTES
        batches: list[tuple[str, ...]] = []
        batch: list[str] = []
        left = room
        for query in dict.fromkeys(queries):
            if query in self._suspects:
                continue
            size = _size(query, method) + SLOT_BYTES
            if batch and (len(batch) == self._most or size > left):
                batches.append(tuple(batch))
                batch, left = [], room
            batch.append(query)
            left -= size
        return [*batches, tuple(batch)] if batch else batches

    def alone(self, queries: Sequence[str]) -> list[str]:
        """The suspects among them, who has waited longest first."""
        found = [query for query in dict.fromkeys(queries) if query in self._suspects]
        return sorted(found, key=lambda query: self._suspects[query].asked_s)

    def _forget(self, queries: Sequence[str], now_s: float) -> None:
        """Suspects that nobody asks for any more: not at once, for who was refused is not asked for a while."""
        known = set(queries)
        kept = [(query, s) for query, s in self._suspects.items() if query in known or now_s < s.until_s]
        self._suspects = dict(kept[-MAX_SUSPECTS:])

    def learn(self, round_: Sequence[Asked], *, alive: bool, now_s: float) -> None:
        """`alive`: something else was answered meanwhile."""
        if not (alive or any(asked.answered for asked in round_)):
            return
        too_many = [self._joint(row) if len(row.members) > 1 else self._single(row, now_s) for row in round_]
        if any(too_many):
            self._most, self._fewer_until_s = max(MIN_TOGETHER, self._most // 2), now_s + FEWER_S

    def _joint(self, asked: Asked) -> bool:
        """Whether its members were too many for one query."""
        if asked.blamed:
            for query in asked.members:
                self._suspects.setdefault(query, _Suspect())
            self._unexplained = [*self._unexplained, set(asked.members)][-MAX_UNEXPLAINED:]
        return asked.answered and asked.took_s > SLOW_S

    def _single(self, asked: Asked, now_s: float) -> bool:
        """Whether its answer leaves nobody to blame for a joint query that failed."""
        (query,) = asked.members
        suspect = self._suspects.get(query, _Suspect())
        suspect.asked_s = now_s
        if asked.blamed or asked.took_s > SLOW_S:
            suspect.until_s = now_s + ALONE_S
            self._suspects[query] = suspect
            self._unexplained = [members for members in self._unexplained if query not in members]
        elif asked.answered:
            if now_s >= suspect.until_s:
                self._suspects.pop(query, None)
            for members in self._unexplained:
                members.discard(query)
            before, self._unexplained = self._unexplained, [members for members in self._unexplained if members]
            return len(self._unexplained) < len(before)
        return False


def _size(query: str, method: str) -> int:
    return len(quote_plus(query)) if method == "GET" else len(query.encode())
