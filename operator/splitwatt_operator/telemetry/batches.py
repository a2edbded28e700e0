"""Which meters are asked together, and which alone: a query a second for each of hundreds of meters costs more than all else.

A joint query that fails may fail for one of its members: one that Prometheus refuses, one that is slow, one whose series are
many. So each of its members is a suspect, and suspects are asked alone, in turn. Whoever answers goes back among the others;
the culprit stays alone for `ALONE_S` after its last failure. Where all of them answer alone it was too long for a proxy, or too
slow as a whole: so fewer are asked together for a while.

Meters of one family (`core/budget/meters/folding.py`) are one question to the server, however many they are: so more of them go
into one query. Where such a query fails though each of its members answers alone, it is the question that the server does not
like: then no family is asked for a while, and they are joined as the others are.

While nothing at all is answered nobody is suspected: it is the server that is away. Pure; times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_plus

from splitwatt_core.budget.meters.folding import escaped

MAX_TOGETHER: Final = 25
MIN_TOGETHER: Final = 4
FAMILY_SHARE: Final = 4
"""So many times as many meters of a family are asked together: they cost the server less, and asking all of them alone in a round
of their own is the price of a failure."""
UNFOLDED_S: Final = 600.0
PARTS: Final = 5
"""How often the values of a family's members stand in its query."""
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
    blame for that itself. `folded`: asked as a family."""

    members: tuple[str, ...]
    answered: bool
    took_s: float
    blamed: bool = False
    folded: bool = False


@dataclass(slots=True)
class _Suspect:
    """`until_s`: alone until then at least. `asked_s`: when it last was."""

    until_s: float = float("-inf")
    asked_s: float = float("-inf")


class Batches:
    """Meters are told by their queries; meters with the same one are one."""

    def __init__(self) -> None:
        self._suspects: dict[str, _Suspect] = {}
        self._unexplained: list[tuple[set[str], bool]] = []
        """Of each joint query that failed, the members that did not answer alone yet, while none of them was found guilty; and
        whether it was of a family."""
        self._most = MAX_TOGETHER
        self._fewer_until_s = float("-inf")
        self._unfolded_until_s = float("-inf")
        self._disliked = False
        """Whether a query of a family failed for none of its members."""

    def folds(self, now_s: float) -> bool:
        """Whether families are asked about as such."""
        return now_s >= self._unfolded_until_s

    def of_family(self, members: Mapping[str, str], *, base: int, method: str) -> list[tuple[str, ...]]:
        """Those of a family that nobody suspects, cut by number and by length. `members`: queries by the value that tells them
        apart; `base`: bytes of their query without values. After `together`, which looks at the time."""
        room = _room(method) - base
        batches: list[tuple[str, ...]] = []
        batch: list[str] = []
        left = room
        for value, query in members.items():
            if query in self._suspects:
                continue
            size = PARTS * (_size(escaped(value), method) + len("%7C"))
            if batch and (len(batch) == FAMILY_SHARE * self._most or size > left):
                batches.append(tuple(batch))
                batch, left = [], room
            batch.append(query)
            left -= size
        return [*batches, tuple(batch)] if batch else batches

    def together(
        self, queries: Sequence[str], *, method: str, now_s: float, folded: Collection[str] = frozenset()
    ) -> list[tuple[str, ...]]:
        """Those that nobody suspects, in their order, cut into joint queries by number and by length; without the `folded`, whom
        `of_family` tells."""
        self._forget(queries, now_s)
        if self._most < MAX_TOGETHER and now_s >= self._fewer_until_s:
            self._most, self._fewer_until_s = min(MAX_TOGETHER, 2 * self._most), now_s + FEWER_S
        room = _room(method)
        batches: list[tuple[str, ...]] = []
        batch: list[str] = []
        left = room
        for query in dict.fromkeys(queries):
            if query in self._suspects or query in folded:
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
        if self._disliked:
            self._unfolded_until_s, self._disliked = now_s + UNFOLDED_S, False
        if any(too_many):
            self._most, self._fewer_until_s = max(MIN_TOGETHER, self._most // 2), now_s + FEWER_S

    def _joint(self, asked: Asked) -> bool:
        """Whether its members were too many for one query."""
        if asked.blamed:
            for query in asked.members:
                self._suspects.setdefault(query, _Suspect())
            self._unexplained = [*self._unexplained, (set(asked.members), asked.folded)][-MAX_UNEXPLAINED:]
        return asked.answered and asked.took_s > SLOW_S

    def _single(self, asked: Asked, now_s: float) -> bool:
        """Whether its answer leaves nobody to blame for a joint query that failed."""
        (query,) = asked.members
        suspect = self._suspects.get(query, _Suspect())
        suspect.asked_s = now_s
        if asked.blamed or asked.took_s > SLOW_S:
            suspect.until_s = now_s + ALONE_S
            self._suspects[query] = suspect
            self._unexplained = [row for row in self._unexplained if query not in row[0]]
        elif asked.answered:
            if now_s >= suspect.until_s:
                self._suspects.pop(query, None)
            for members, _ in self._unexplained:
                members.discard(query)
            explained = [folded for members, folded in self._unexplained if not members]
            self._unexplained = [row for row in self._unexplained if row[0]]
            self._disliked = self._disliked or any(explained)
            return not all(explained)
        return False


def _room(method: str) -> int:
    return MAX_GET_BYTES if method == "GET" else MAX_POST_BYTES


def _size(query: str, method: str) -> int:
    return len(quote_plus(query)) if method == "GET" else len(query.encode())
