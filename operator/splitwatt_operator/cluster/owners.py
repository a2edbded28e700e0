"""Labels of the pods that hold GPUs and are of no InferenceCluster, read as the core wants them and passed through.

A cluster has many pods for each one that holds a GPU, and no selector finds these: a watch of all of them would cost memory and
events that nobody needs. But NodePowers name the holders. So the pods of their namespaces are listed, metadata alone: at once
when a new holder is named, and every `PERIOD_S` for labels that changed.

Protected: a list that fails changes nothing. A new operator looks for every holder once before it decides, for FIRST_S at most:
who was not found by then keeps its caps, and cuts of a limit wait for nobody's labels. A holder is dropped when no NodePower
names it any more, and not because its pod is gone.

Pods that ask for power admission themselves are watched, by the empty cluster label; labels of namespaces are read for these too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from splitwatt_client.errors import ApiError, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import NAMESPACES, PODS
from splitwatt_core.budget.workloads import OwnerFact, PodKey
from splitwatt_shell.waiting import woken

from splitwatt_operator.cluster.store import JsonObject, Key, Kind, Store
from splitwatt_operator.cluster.view import View

log = logging.getLogger(__name__)

PERIOD_S: Final = 15.0
GAP_S: Final = 1.0
"""Between two looks, however many pods begin."""
FIRST_S: Final = 10.0
"""For so long a new operator waits for the labels of every holder."""

OwnerNews = tuple[PodKey, OwnerFact | None]
"""None: no NodePower names it any more."""


class OwnerLabels:
    """`first` returns once every holder was looked for, or FIRST_S passed; `run` goes on until cancelled. One reader `take`s what
    is new."""

    def __init__(self, store: Store, view: View, reader: Reader) -> None:
        self._view = view
        self._reader = reader
        self._by_node: dict[str, frozenset[PodKey]] = {}
        self._named: Counter[PodKey] = Counter()
        self._facts: dict[PodKey, OwnerFact] = {}
        self._news: dict[PodKey, None] = {}
        self._due = asyncio.Event()
        self._said = ""
        self.wake: Callable[[], None] = lambda: None
        store.follow(self._take)

    # ---------------------------------------------------------------------------------------------------- who is named

    def _take(self, kind: Kind, key: Key, obj: JsonObject | None) -> None:
        if kind is Kind.POD and self._asks(key) and key.namespace not in self._view.spaces:
            self._due.set()
        if kind is not Kind.NODE_POWER:
            return
        fact = self._view.node_powers.facts.get(key)
        gpus = () if fact is None else fact.status.gpus
        now = frozenset((owner.namespace, owner.pod) for gpu in gpus for owner in gpu.owners)
        before = self._by_node.get(key.name, frozenset())
        if now == before:
            return
        self._by_node[key.name] = now
        if not now:
            del self._by_node[key.name]
        for pod in now - before:
            self._named[pod] += 1
        for pod in before - now:
            self._named[pod] -= 1
            if not self._named[pod]:
                del self._named[pod]
                self._facts.pop(pod, None)
                self._news[pod] = None
        if any(pod not in self._facts and not self._ours(pod) for pod in now):
            self._due.set()

    def _ours(self, pod: PodKey) -> bool:
        """Whether its cluster says what it is."""
        seen = self._view.pods.facts.get(Key(*pod))
        return seen is not None and seen.role is not None

    def _asks(self, key: Key) -> bool:
        """Whether it waits for power, or was let in, by its own word."""
        seen = self._view.pods.facts.get(key)
        return seen is not None and seen.labels is not None and not seen.ended and (seen.gated or seen.leaf is not None)

    # ------------------------------------------------------------------------------------------------------ what is new

    def take(self) -> list[OwnerNews]:
        """What changed since the last call."""
        news = [(pod, self._facts.get(pod)) for pod in self._news if pod in self._facts or pod not in self._named]
        self._news.clear()
        return news

    def tell_all(self) -> None:
        """Somebody begins who knows nothing yet."""
        self._news.update(dict.fromkeys(self._facts))

    # ----------------------------------------------------------------------------------------------------------- looking

    async def first(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                while True:
                    if await self.look():
                        return
                    await asyncio.sleep(GAP_S)

    async def run(self) -> None:
        while True:
            await woken(self._due, within_s=PERIOD_S)
            self._due.clear()
            if not await self.look():
                self._due.set()
            await asyncio.sleep(GAP_S)

    async def look(self) -> bool:
        """Read every holder's labels; False when some could not be read, and are as they were."""
        wanted: dict[str, list[str]] = {}
        for namespace, name in self._named:
            if not self._ours((namespace, name)):
                wanted.setdefault(namespace, []).append(name)
        failures: list[str] = []
        asked = any(self._asks(key) for key in list(self._view.pods.facts))
        spaces = await self._spaces(failures) if wanted or asked else {}
        if asked and spaces is not None:
            self._view.spaces = spaces
        for namespace, names in sorted(wanted.items()):
            try:
                listing = await self._reader.list_metadata(PODS, namespace=namespace)
            except ApiError as failure:
                failures.append(f"pods of {namespace}: {failure}")
                continue
            found = {item["metadata"]["name"]: item["metadata"] for item in listing.items}
            around = None if spaces is None else spaces.get(namespace, {})
            for name in names:
                self._see(_owner(namespace, name, found.get(name, {}), around))
        if self._news:
            self.wake()
        self._say("; ".join(failures))
        return not failures

    async def _spaces(self, failures: list[str]) -> Mapping[str, Mapping[str, str]] | None:
        """Labels by namespace; None when they could not be read. Without the right to it the fleet is ruled all the same: pods
        that a rule chooses by their namespace keep their caps."""
        try:
            listing = await self._reader.list_metadata(NAMESPACES)
        except Rejected as refusal:
            log.warning("cannot read the labels of namespaces, grant list to the operator's service account: %s", refusal)
            return None
        except ApiError as failure:
            failures.append(f"namespaces: {failure}")
            return None
        return {item["metadata"]["name"]: item["metadata"].get("labels") or {} for item in listing.items}

    def _see(self, fact: OwnerFact) -> None:
        if fact.key in self._named and self._facts.get(fact.key) != fact:
            self._facts[fact.key] = fact
            self._news[fact.key] = None

    def _say(self, failure: str) -> None:
        if failure and failure != self._said:
            log.warning("labels of pods that hold GPUs stay as they were: %s", failure)
        self._said = failure


def _owner(namespace: str, name: str, meta: Mapping[str, Any], around: Mapping[str, str] | None) -> OwnerFact:
    """`meta` is empty where there is no such pod."""
    return OwnerFact(namespace, name, meta.get("uid", ""), meta.get("labels") or {}, around)
